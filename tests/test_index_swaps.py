"""Readers while versions swap and repositories refresh: no error, nothing half-done, nothing mixed.

Every release of a repository carries the repository's generation as a word in its notes. A refresh brings the next
generation of all of them in; a reader that sees two generations of one repository has seen half a refresh.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from kb_platform.stages import indexing, promotion
from kb_platform.store import index_versions, search
from kb_platform.store.database import Connection, Database
from kb_platform.store.search import Conditions
from kb_platform.text.words import term_id
from tests.hashing_embedder import HashingEmbedder, hashing_model
from tests.job import Job
from tests.releases import notes, observe, release

REPOSITORIES = ("acme/one", "acme/two", "acme/three")
RELEASES = 8
READERS = 8
SWAPS = 30
REFRESHES = 30
NARROW, WIDE = hashing_model("narrow", dimension=24), hashing_model("wide", dimension=40)


@dataclass
class Seen:
    """What a reader saw."""

    searches: int = 0
    versions: Counter[int] = field(default_factory=Counter[int])
    generations: set[int] = field(default_factory=set[int])
    wrong: list[str] = field(default_factory=list[str])


def put_generation(database: Database, repository: str, generation: int) -> None:
    """New notes for all releases of a repository; one is there in every other generation only."""
    for number in range(1, RELEASES + 1):
        item = release(number, notes(f"Generation{generation} of widget {number}", f"Gadget {number} hums"))
        observe(database, repository, item, deleted=number == RELEASES and generation % 2 == 1)


def expected_rows(generation: int) -> int:
    return 2 * (RELEASES - generation % 2)


def look(connection: Connection, embedders: dict[str, HashingEmbedder], seen: Seen) -> None:
    """One search as retrieval does it, and what must hold of what it finds."""
    scope = search.open_scope(connection)
    assert scope is not None
    version = scope.version
    vector = embedders[version.model].embed_query("widget generation")
    words = {term_id("widget"): 1.0, term_id("gadget"): 1.0}
    frequencies = search.document_frequencies(connection, version.version, list(words))
    rows = search.candidates(
        connection,
        version,
        Conditions(),
        words=words,
        vector=vector,
        most_words=500,
        most_vectors=500,
        exact_scan_rows=0,
    )
    seen.searches += 1
    seen.versions[version.version] += 1
    total = 0
    for repository in REPOSITORIES:
        mine = [row for row in rows if row.repository == repository]
        generations = {int(found[1]) for row in mine if (found := re.search(r"Generation(\d+)", row.text))}
        seen.generations |= generations
        if len(generations) != 1:
            seen.wrong.append(f"{repository} shows generations {sorted(generations)}")
        elif len(mine) != expected_rows(min(generations)):
            seen.wrong.append(f"{repository} shows {len(mine)} rows of generation {min(generations)}")
        total += len(mine)
    if sum(frequencies.values()) != total or version.chunks != total:
        seen.wrong.append(f"{frequencies} and {version.chunks} where there are {total} rows")


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["scan", "graph"])
def test_readers_see_whole_states_of_one_version(database: Database, graph: bool) -> None:
    job = Job(database, NARROW)
    for repository in REPOSITORIES:
        put_generation(database, repository, 0)
    job.run()
    second = indexing.build_version(database, WIDE)
    job.run()
    if graph:
        for number in (1, second):
            index_versions.build_graph(database, number, least_rows=1)
    embedders = {model.key: HashingEmbedder(model) for model in (NARROW, WIDE)}
    promotion.promote(database, second)

    readers = Database(database.url, pool_size=READERS)
    seen = [Seen() for _ in range(READERS)]
    errors: list[BaseException] = []
    stop = threading.Event()

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)
                stop.set()

        return run

    def reader(mine: Seen) -> Callable[[], None]:
        def read() -> None:
            while not stop.is_set():
                with readers.snapshot() as connection:
                    look(connection, embedders, mine)
                # Or the writers get no turn on a machine of two cores.
                time.sleep(0.005)

        return read

    def swap() -> None:
        for number in range(SWAPS):
            if number % 3 == 2:
                promotion.rollback(database)
            else:
                with database.snapshot() as connection:
                    served = index_versions.active(connection)
                assert served is not None
                promotion.promote(database, 1 if served.version == second else second, force=True)

    def refresh() -> None:
        for number in range(REFRESHES):
            repository = REPOSITORIES[number % len(REPOSITORIES)]
            put_generation(database, repository, 1 + number // len(REPOSITORIES))
            job.chunk(repository)
            job.embed(repository)
            job.index(repository)

    reading = [threading.Thread(target=guarded(reader(mine))) for mine in seen]
    writing = [threading.Thread(target=guarded(work)) for work in (swap, refresh)]
    for thread in [*reading, *writing]:
        thread.start()
    for thread in writing:
        thread.join()
    stop.set()
    for thread in reading:
        thread.join()
    readers.close()

    assert errors == []
    assert [wrong for mine in seen for wrong in mine.wrong] == []
    assert all(mine.searches for mine in seen)
    assert set(sum((mine.versions for mine in seen), Counter[int]())) == {1, second}
    assert len(set[int]().union(*(mine.generations for mine in seen))) > 3, "they read while it moved"
    assert job.problems() == []
    with database.snapshot() as connection:
        assert {v.version: v.chunks for v in index_versions.versions(connection)} == {
            1: 3 * expected_rows(REFRESHES // 3), second: 3 * expected_rows(REFRESHES // 3),
        }  # fmt: skip


def test_a_reader_ends_on_the_version_that_it_began_with(database: Database) -> None:
    """The pointer flips, the old version is retired and would be dropped, while a snapshot still reads it."""
    job = Job(database, NARROW)
    for repository in REPOSITORIES:
        put_generation(database, repository, 0)
    job.run()
    second = indexing.build_version(database, WIDE)
    job.run()
    embedders = {model.key: HashingEmbedder(model) for model in (NARROW, WIDE)}
    seen = Seen()
    with database.snapshot() as connection:
        look(connection, embedders, seen)
        promotion.promote(database, second)
        with database.transaction() as other:
            index_versions.retire(other, 1)
        put_generation(database, REPOSITORIES[0], 1)
        job.run(REPOSITORIES[0])
        started = time.monotonic()
        assert index_versions.drop_retired(database, older_than=timedelta(0)) == []
        assert time.monotonic() - started < 10
        look(connection, embedders, seen)
    assert seen.versions == {1: 2}
    with database.snapshot() as connection:
        look(connection, embedders, seen)
    assert seen.versions == {1: 2, second: 1}
    assert seen.wrong == []
