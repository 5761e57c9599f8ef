"""The kills of `benchmarks/kills.py` in short: a build that is killed again and again ends as one that is not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import LiteralString

import pytest

from benchmarks import kills
from kb_platform.sample_corpus import releases_folder
from kb_platform.settings import Settings
from kb_platform.stages.importing import import_files
from kb_platform.store.audit import audit
from kb_platform.store.database import Database
from tests.hashing_embedder import hashing_model
from tests.job import Job

RELEASES = 24
DOUBLED = (
    "INSERT INTO kb.index_1 SELECT sequence, ordinal + 1000, repository_id, release_id, kind, prerelease, published_at, "
    "version_key, tag, vector, words FROM kb.index_1 LIMIT 1"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """A few of the releases that ship with the project, and records that are none."""
    folder = tmp_path_factory.mktemp("data")
    assert kills.sample(releases_folder(), folder, RELEASES) == RELEASES
    yield folder


@pytest.mark.slow
def test_killed_builds_end_as_the_undisturbed_one(data: Path) -> None:
    wanted, seconds = kills.undisturbed(data)
    assert wanted["observations"].total() == RELEASES
    assert wanted["quarantined records"].total() == 3
    assert wanted["index rows"].total() > RELEASES
    outcome = kills.disturb(data, wanted, kills=8, seconds=seconds, chance=random.Random(7))
    assert outcome.kills.total() == 8
    assert set(outcome.kills) == set(kills.VICTIMS)
    assert (+outcome.lost, +outcome.extra, outcome.violations) == (Counter(), Counter(), [])
    assert outcome.is_clean


@pytest.mark.parametrize(
    ("damage", "table"),
    [
        ("UPDATE kb.chunk SET kind = 'other' WHERE kind = 'fix'", "chunks"),
        ("UPDATE kb.embedding SET vector = vector + vector", "embeddings"),
        ("DELETE FROM kb.quarantined_record WHERE quarantine_id = 1", "quarantined records"),
        ("UPDATE kb.index_term SET documents = documents + 1", "document frequencies"),
        (DOUBLED, "index rows"),
        ("INSERT INTO kb.passage VALUES ('\\x00', 'nobody asked')", "passages"),
        ("CREATE TABLE kb.index_9 (left_over integer)", "tables and indexes"),
        ("UPDATE kb.repository SET verified_at = NULL WHERE repository_id = 1", "repositories"),
    ],
)  # fmt: skip
def test_the_comparison_sees_a_difference(
    database: Database, data: Path, damage: LiteralString, table: str
) -> None:
    import_files(database, [data], Settings())
    Job(database, hashing_model()).run()
    with database.transaction() as connection:
        before = kills.read_contents(connection)
        assert kills.read_contents(connection) == before
        connection.execute(damage)
        after = kills.read_contents(connection)
    assert [name for name in before if before[name] != after[name]] == [table]


def test_an_orphan_is_a_broken_rule(database: Database, data: Path) -> None:
    import_files(database, [data], Settings())
    Job(database).run()
    with database.transaction() as connection:
        connection.execute("DELETE FROM kb.chunk WHERE sequence = 1")
        assert audit(connection)


def test_an_outcome_with_anything_in_it_is_not_clean() -> None:
    assert kills.Outcome(pace=1.0).is_clean
    assert not kills.Outcome(pace=1.0, lost=Counter({"chunks": 1})).is_clean
    assert not kills.Outcome(pace=1.0, extra=Counter({"chunks": 1})).is_clean
    assert not kills.Outcome(pace=1.0, violations=["a rule"]).is_clean
