"""What the main job costs: everything once, nothing twice, one edit, one more release.

    python benchmarks/main_job.py [FOLDER] [--releases 300 | --full]

Builds a knowledge base of real releases with the configured model, in a home folder of its own, and prints the seconds of
every stage beside those that the model alone takes. Then the same again, with one release edited, and with one added.

Targets: the build takes at most 1.3 times what embedding alone takes; a second run embeds nothing; an edit embeds its
changed items and nothing else; one more release costs less than a hundredth of the build. What depends on the size of the
corpus is judged with --full only. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kb_platform.embedding.embedder import Embedder
from kb_platform.embedding.model import EmbeddingModel
from kb_platform.home import configured_model, embedder
from kb_platform.progress import for_terminal
from kb_platform.settings import Settings, load_settings
from kb_platform.sources.files import find_files, read_records
from kb_platform.sources.github_json import parse_release
from kb_platform.stages import indexing
from kb_platform.stages.chunking import chunk_repository, cut_release
from kb_platform.stages.embedding import EmbeddingReport, embed_repositories
from kb_platform.stages.importing import Imported, import_files
from kb_platform.store.database import Database
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.schema import migrate

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "releases"
MOST_OVERHEAD = 1.3
T = TypeVar("T")
LEAST_SAVING = 100


@dataclass
class Run:
    """One pass through all stages."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    imported: Imported = field(default_factory=Imported)
    chunks: int = 0
    embedding: EmbeddingReport | None = None

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def embedded(self) -> int:
        """Texts embedded."""
        return self.embedding.embedded if self.embedding else 0

    @property
    def embedding_alone(self) -> float:
        """Seconds that the model took."""
        return self.embedding.embedding_seconds if self.embedding else 0.0


class Job:
    """Runs the stages and times them."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.progress = for_terminal(lambda line: print(line, file=sys.stderr))

    def run(self, *paths: Path) -> Run:
        """Import these files and bring everything that they touch up to date."""
        done = Run()
        done.imported = self._timed(
            done, "import", lambda: import_files(self.database, paths, self.settings, progress=self.progress)
        )
        names = done.imported.repositories
        self._timed(
            done,
            "version",
            lambda: indexing.ensure_version(self.database, lambda: configured_model(self.settings)),
        )
        reports = self._timed(
            done, "chunk", lambda: [chunk_repository(self.database, name) for name in names]
        )
        done.chunks = sum(report.counts.searchable for report in reports)
        embeddings = self._timed(
            done,
            "embed",
            lambda: embed_repositories(
                self.database,
                names,
                self._load,
                slice_size=self.settings.embedding_slice,
                progress=self.progress,
            ),
        )
        done.embedding = embeddings[0]
        self._timed(done, "index", lambda: indexing.index_repositories(self.database, names))
        self._timed(done, "promote", lambda: indexing.complete_versions(self.database))
        return done

    def _load(self, model: EmbeddingModel) -> Embedder:
        return embedder(self.settings, model)

    def _timed(self, run: Run, stage: str, work: Callable[[], T]) -> T:
        begun = time.perf_counter()
        result = work()
        run.seconds[stage] = time.perf_counter() - begun
        return result


def sample(source: Path, folder: Path, releases: int | None) -> list[Path]:
    """Copy the releases (or some of every repository, spread over its history) to where they may be edited."""
    files = find_files([source])
    copied: list[Path] = []
    taken = 0
    for number, path in enumerate(files):
        records = [record.raw for record in read_records(path, max_record_bytes=1 << 26)]
        if releases is not None:
            share = releases * (number + 1) // len(files) - taken
            records = records[:: max(1, len(records) // max(share, 1))][:share]
        taken += len(records)
        if records:
            copied.append(folder / f"{path.stem}.jsonl")
            copied[-1].write_bytes(b"\n".join(records) + b"\n")
    return copied


def edit_one(path: Path) -> set[bytes]:
    """Change one item of the release with the most items; returns the keys of the texts that only the new one has."""
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    record = max(records, key=lambda record: record["body"].count("\n- ") + record["body"].count("\n* "))
    before = passages(record)
    mark = "\n- " if "\n- " in record["body"] else "\n* "
    record["body"] = record["body"].replace(mark, f"{mark}Rewritten since: ", 1)
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return passages(record) - before


def add_one(path: Path) -> None:
    """One more release: an old one's notes, shortened, under a new name."""
    record = json.loads(path.read_bytes().splitlines()[0])
    record |= {"id": record["id"] + 1, "tag_name": "v999.0.0", "name": "v999.0.0"}
    record["body"] = "## Fixes\n\n- The added release is found by its added words\n- Nothing else was added\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def passages(record: dict[str, Any]) -> set[bytes]:
    """The keys of a record's texts as they are embedded."""
    name, release = parse_release(json.dumps(record).encode(), repository=None, max_body_bytes=1 << 26)
    return {cut.passage.key for cut in cut_release(name, release) if cut.passage}


def show(name: str, run: Run) -> None:
    """One line."""
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in run.seconds.items())
    print(f"{name:18} {run.total:8.2f} s   embedded {run.embedded:>7,}   ({stages})")


def judge(name: str, reached: bool, detail: str, *, judged: bool = True) -> bool:
    """One target; returns whether it is missed."""
    verdict = ("reached" if reached else "MISSED") if judged else "not judged at this size"
    print(f"{name:44} {detail:28} {verdict}")
    return judged and not reached


def measure(job: Job, files: list[Path], *, full: bool) -> bool:
    """Everything in turn; returns whether all targets are reached."""
    build = job.run(*files)
    again = job.run(*files)
    changed = edit_one(files[0])
    edited = job.run(files[0])
    add_one(files[-1])
    added = job.run(files[-1])
    assert build.embedding is not None
    print(
        f"\n{build.imported.new:,} releases of {len(files)} repositories, {build.chunks:,} chunks, ", end=""
    )
    print(
        f"{build.embedded:,} texts and {build.embedding.tokens:,} tokens embedded by {build.embedding.engine}, ",
        end="",
    )
    print(f"{build.embedding.tokens_per_second:,.0f} tokens a second\n")
    for name, run in (("build", build), ("again", again), ("one edited", edited), ("one added", added)):
        show(name, run)
    print()
    ratio, saving = build.total / build.embedding_alone, build.total / added.total
    missed = [
        judge(f"build at most {MOST_OVERHEAD} x embedding alone", ratio <= MOST_OVERHEAD,
              f"{build.total:.1f} / {build.embedding_alone:.1f} s = {ratio:.2f}", judged=full),
        judge("a second run embeds nothing", again.embedded == 0, f"{again.embedded:,} embedded"),
        judge("an edit embeds its changed items", edited.embedded == len(changed) > 0,
              f"{edited.embedded:,} embedded, {len(changed):,} changed"),
        judge(f"one more release under 1/{LEAST_SAVING} of the build", saving > LEAST_SAVING,
              f"{added.total:.2f} s = 1/{saving:.0f}", judged=full),
    ]  # fmt: skip
    return not any(missed)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=SHARED, help="files of GitHub release JSON")
    parser.add_argument("--releases", type=int, default=300, help="how many, spread over all repositories")
    parser.add_argument("--full", action="store_true", help="all of them")
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        print(f"no releases at {arguments.folder}: name a folder of release JSON", file=sys.stderr)
        return 0
    home = Path(tempfile.mkdtemp(prefix="kbm-"))
    server = EmbeddedServer(home)
    server.start()
    database = Database(server.url())
    try:
        migrate(database)
        (home / "releases").mkdir()
        files = sample(arguments.folder, home / "releases", None if arguments.full else arguments.releases)
        return 0 if measure(Job(database, load_settings()), files, full=arguments.full) else 1
    finally:
        database.close()
        server.leave()
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
