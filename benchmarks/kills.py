"""Does a full build survive `kill -9`, of itself and of PostgreSQL, at any moment?

    python benchmarks/kills.py [--kills 100] [--releases 300] [--seed 1] [--data FOLDER]

A process builds a knowledge base (import, chunk, embed, index, promote; the embedder hashes words, so that the build is
made of what can be interrupted and not of waiting for a model). It, its server or both are killed at random moments and
it is started again, until it ends; then everything it wrote is compared with what an undisturbed build wrote: contents,
not sequence numbers or times. That is repeated with new knowledge bases until there were as many kills as asked for.

Prints a table; exits 1 when anything is lost, doubled, orphaned or different.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, LiteralString

from psycopg import sql

from kb_platform.sample_corpus import releases_folder
from kb_platform.settings import Settings
from kb_platform.sources.files import find_files, read_records
from kb_platform.stages import indexing
from kb_platform.stages.chunking import chunk_repository
from kb_platform.stages.embedding import embed_repositories
from kb_platform.stages.importing import import_files
from kb_platform.store import embedded, index_versions
from kb_platform.store.audit import audit
from kb_platform.store.database import Connection, Database
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.repositories import repository_names
from kb_platform.store.schema import migrate
from tests.hashing_embedder import HashingEmbedder, hashing_model

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "releases"
# No model loads in that time, and no build of a few hundred releases takes it.
LONGEST_BUILD_S = 300
# Beside the releases, so that quarantine is part of what is compared.
NO_RELEASES = (b'{"id": 1, "tag_name": "cut off', b"[" * 1_000, b'{"id": -1, "tag_name": "v1"}', b"")

Victim = Literal["build", "server", "both"]
# In turn.
VICTIMS: tuple[Victim, ...] = ("build", "both", "build", "server", "build")

# What must be equal, each row as text that names things instead of numbering them.
TABLES: dict[str, LiteralString] = {
    "repositories": "SELECT name, verified_at IS NOT NULL FROM kb.repository",
    "observations": """
        SELECT r.name, release_id, row_number() OVER (PARTITION BY repository_id, release_id ORDER BY sequence), origin,
               content_hash, deleted, tag, md5(body), published_at, prerelease, draft, url, version_key, md5(raw)
        FROM kb.observation JOIN kb.repository r USING (repository_id)""",
    "quarantined records": "SELECT fingerprint, repository, origin, reason, raw_bytes, resolution FROM kb.quarantined_record",
    "chunks": """
        SELECT r.name, o.release_id, o.content_hash, chunker, ordinal, chunk_id, role, kind, span_start, span_end,
               md5(c.text), headings, reference, passage_hash, md5(words::text), md5(terms::text)
        FROM kb.chunk c JOIN kb.observation o USING (sequence) JOIN kb.repository r USING (repository_id)""",
    "chunked observations": """
        SELECT r.name, o.release_id, o.content_hash, chunker, chunks, searchable
        FROM kb.chunked_observation JOIN kb.observation o USING (sequence) JOIN kb.repository r USING (repository_id)""",
    "passages": "SELECT passage_hash, md5(text) FROM kb.passage",
    "embeddings": "SELECT m.key, passage_hash, md5(vector::text) FROM kb.embedding JOIN kb.model m USING (model_id)",
    "index versions": "SELECT status, model, chunker, repositories, releases, chunks, gate FROM kb.index_versions",
    "indexed observations": """
        SELECT r.name, o.release_id, o.content_hash, i.chunks
        FROM kb.indexed_observation i JOIN kb.observation o USING (sequence)
        JOIN kb.repository r ON r.repository_id = o.repository_id""",
    "indexed repositories": """
        SELECT r.name, releases, chunks FROM kb.index_repository JOIN kb.repository r USING (repository_id)""",
    "document frequencies": """
        SELECT r.name, term, documents FROM kb.index_term JOIN kb.repository r USING (repository_id)""",
    "promotions": "SELECT action, forced, previous_version IS NULL, gate FROM kb.promotion",
    "tables and indexes": r"""
        SELECT c.relkind, regexp_replace(c.relname, '_\d+', ''), coalesce(i.indisvalid, true)
        FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid
        WHERE c.relnamespace = 'kb'::regnamespace""",
}  # fmt: skip
INDEX_ROWS: LiteralString = """
    SELECT r.name, i.release_id, o.content_hash, ordinal, kind, i.tag, i.prerelease, i.published_at, i.version_key,
           md5(vector::text), md5(words::text)
    FROM {} i JOIN kb.observation o USING (sequence) JOIN kb.repository r ON r.repository_id = i.repository_id"""

Contents = dict[str, Counter[str]]


@dataclass
class Outcome:
    """What all disturbed builds together showed. `pace`: seconds that a build takes when nobody kills it, as of late."""

    pace: float
    builds: int = 0
    kills: Counter[Victim] = field(default_factory=Counter[Victim])
    lost: Counter[str] = field(default_factory=Counter[str])
    extra: Counter[str] = field(default_factory=Counter[str])
    violations: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether every build ended as the undisturbed one."""
        return not (self.lost.total() or self.extra.total() or self.violations)


def build(home: Path, data: Path) -> None:
    """The full build; what a process of its own does until it is killed."""
    server = embedded.running(home)
    database = Database(server.url(), revive=server.start)
    migrate(database)
    import_files(database, [data], Settings())
    indexing.ensure_version(database, hashing_model)
    with database.snapshot() as connection:
        names = repository_names(connection)
    for name in names:
        chunk_repository(database, name)
    embed_repositories(database, names, HashingEmbedder, slice_size=256)
    indexing.index_repositories(database, names)
    done = indexing.complete_versions(database)
    with database.snapshot() as connection:
        if index_versions.active(connection) is None:
            raise SystemExit(f"nothing is served: {done}")
    database.close()


def read_contents(connection: Connection) -> Contents:
    """Everything that must be equal, by table; each row is counted."""
    found = {name: _rows(connection, sql.SQL(query)) for name, query in TABLES.items()}
    for version in index_versions.versions(connection):
        rows = _rows(connection, sql.SQL(INDEX_ROWS).format(version.table))
        found["index rows"] = found.get("index rows", Counter[str]()) + rows
    return found


def compare(outcome: Outcome, wanted: Contents, home: Path) -> None:
    """Add what a finished build lost, has too much, or holds against the rules."""
    server = EmbeddedServer(home)
    server.start()
    database = Database(server.url(), pool_size=1)
    with database.snapshot() as connection:
        found = read_contents(connection)
        outcome.violations += [str(violation) for violation in audit(connection)]
    database.close()
    server.leave()
    for table in wanted.keys() | found.keys():
        lost = wanted.get(table, Counter[str]()) - found.get(table, Counter[str]())
        extra = found.get(table, Counter[str]()) - wanted.get(table, Counter[str]())
        outcome.lost[table] += lost.total()
        outcome.extra[table] += extra.total()
        for row in [*lost, *extra][:3]:
            print(f"{'lost' if row in lost else 'extra'} in {table}: {row[:200]}", file=sys.stderr)


def undisturbed(data: Path) -> tuple[Contents, float]:
    """What a build that nobody kills writes, and how many seconds it takes."""
    with _home() as home:
        begun = time.monotonic()
        if _start(home, data).wait(LONGEST_BUILD_S) != 0:
            raise SystemExit("the undisturbed build failed")
        seconds = time.monotonic() - begun
        server = EmbeddedServer(home)
        server.start()
        database = Database(server.url(), pool_size=1)
        with database.snapshot() as connection:
            contents = read_contents(connection)
        database.close()
        server.leave()
    return contents, seconds


def disturb(data: Path, wanted: Contents, *, kills: int, seconds: float, chance: random.Random) -> Outcome:
    """Builds until `kills` were made, each compared; `seconds`: what a build takes undisturbed."""
    outcome = Outcome(pace=seconds)
    begun = time.monotonic()
    while outcome.kills.total() < kills:
        with _home() as home:
            _until_done(home, data, outcome, kills, chance)
            compare(outcome, wanted, home)
        outcome.builds += 1
        print(f"{outcome.kills.total()} of {kills} kills, {outcome.builds} builds", file=sys.stderr)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _until_done(home: Path, data: Path, outcome: Outcome, kills: int, chance: random.Random) -> None:
    while True:
        process = _start(home, data)
        begun = time.monotonic()
        try:
            # What is left to do gets less with every life, so in the end a kill comes too late.
            may_kill = outcome.kills.total() < kills
            code = process.wait(chance.uniform(0, outcome.pace) if may_kill else LONGEST_BUILD_S)
        except subprocess.TimeoutExpired:
            victim = VICTIMS[outcome.kills.total() % len(VICTIMS)]
            outcome.kills[victim] += 1
            if _kill(process, home, victim) == 0:
                return
            continue
        if code == 0:
            # Other work on the machine comes and goes; kills at random moments of a build need to know how long one is.
            outcome.pace += (time.monotonic() - begun - outcome.pace) / 3
            return


def _kill(process: subprocess.Popen[bytes], home: Path, victim: Victim) -> int:
    """Kill and return how the build's process ended."""
    if victim != "build" and (server := EmbeddedServer(home).postmaster()) is not None:
        os.kill(server, signal.SIGKILL)
    if victim != "server":
        process.kill()
    # A build whose server died ends by itself: with an error, or well when it had no transaction under way.
    return process.wait(LONGEST_BUILD_S)


def _start(home: Path, data: Path) -> subprocess.Popen[bytes]:
    # What a build prints when its server dies is no news here.
    return subprocess.Popen(
        [sys.executable, __file__, "--build", str(home), "--data", str(data)], stderr=subprocess.DEVNULL
    )


@contextmanager
def _home() -> Generator[Path]:
    home = Path(tempfile.mkdtemp(prefix="kbk-"))
    try:
        yield home
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


def _rows(connection: Connection, query: sql.SQL | sql.Composed) -> Counter[str]:
    return Counter(repr(row) for row in connection.execute(query))


def sample(source: Path, folder: Path, releases: int) -> int:
    """Copy some releases of every repository, spread over its history, and records that are none; returns how many."""
    files = find_files([source])
    copied = 0
    for number, path in enumerate(files):
        share = releases * (number + 1) // len(files) - copied
        records = [record.raw for record in read_records(path, max_record_bytes=1 << 24)]
        chosen = records[:: max(1, len(records) // max(share, 1))][:share]
        copied += len(chosen)
        (folder / f"{path.stem}.jsonl").write_bytes(b"\n".join([*chosen, *NO_RELEASES]))
    return copied


def show(outcome: Outcome, wanted: Contents) -> None:
    """The table."""
    print(f"\n{'':26} {'rows':>8} {'lost':>6} {'extra':>6}")
    for table, rows in wanted.items():
        print(f"{table:26} {rows.total():>8,} {outcome.lost[table]:>6,} {outcome.extra[table]:>6,}")
    for violation in sorted(set(outcome.violations)):
        print(f"broken rule: {violation}")
    killed = ", ".join(f"{victim} {count}" for victim, count in sorted(outcome.kills.items()))
    print(
        f"\n{outcome.kills.total()} kills ({killed}) in {outcome.builds} builds, {outcome.seconds:.0f} s: "
        f"{outcome.lost.total()} lost, {outcome.extra.total()} duplicated or different, "
        f"{len(outcome.violations)} rules broken"
    )


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--releases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, default=SHARED if SHARED.is_dir() else releases_folder())
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.build, arguments.data)
        return 0
    with tempfile.TemporaryDirectory(prefix="kbk-data-") as folder:
        releases = sample(arguments.data, Path(folder), arguments.releases)
        wanted, seconds = undisturbed(Path(folder))
        print(f"{releases} releases; undisturbed, a build takes {seconds:.1f} s", file=sys.stderr)
        chance = random.Random(arguments.seed)
        outcome = disturb(Path(folder), wanted, kills=arguments.kills, seconds=seconds, chance=chance)
    show(outcome, wanted)
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
