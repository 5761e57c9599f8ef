"""The append-only log, against a plain reference in memory."""

from __future__ import annotations

import dataclasses
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kb_platform.errors import NotKnown
from kb_platform.sources.release import Observed, Release
from kb_platform.store import release_log
from kb_platform.store.database import Connection, Database, scalar
from kb_platform.store.repositories import ensure_repository
from tests.records import observed

START = datetime(2025, 6, 1, tzinfo=UTC)
RELEASES = (1, 2, 3)
CONTENTS = (("v1", "A"), ("v1", "B"), ("v2", "A"))


@dataclass(frozen=True)
class Step:
    """One append: what is seen of some releases, and by how much the clock has moved since the last one."""

    seen: tuple[tuple[int, int | None], ...]
    """(release, index into CONTENTS; None: it is gone)."""
    passed: timedelta


@dataclass
class Reference:
    """The log as a list, and what it says."""

    entries: list[tuple[datetime, Release, bool]] = field(default_factory=list)

    def append(self, items: list[Observed], at: datetime) -> Counter[str]:
        changes: Counter[str] = Counter()
        for item in items:
            mine = [entry for entry in self.entries if entry[1].release_id == item.release.release_id]
            known = mine[-1] if mine else None
            there = known is not None and not known[2]
            if item.deleted:
                change = "deleted" if there else "unchanged"
            elif there and known is not None:
                change = "unchanged" if known[1] == item.release else "edited"
            else:
                change = "new" if known is None else "reappeared"
            changes[change] += 1
            if change != "unchanged":
                self.entries.append((max(at, known[0]) if known else at, item.release, item.deleted))
        return changes

    def releases(self, as_of: datetime) -> dict[int, Release]:
        state: dict[int, tuple[Release, bool]] = {}
        for at, release, deleted in self.entries:
            if at <= as_of:
                state[release.release_id] = (release, deleted)
        return {number: release for number, (release, deleted) in state.items() if not deleted}


def steps() -> st.SearchStrategy[list[Step]]:
    """Streams of creations, edits, deletions, recreations and retaggings; the clock stands, runs and steps back."""
    seen = st.tuples(st.sampled_from(RELEASES), st.sampled_from((0, 1, 2, None)))
    passed = st.sampled_from((-90, 0, 0, 1, 60)).map(lambda seconds: timedelta(seconds=seconds))
    return st.lists(st.builds(Step, st.lists(seen, max_size=4).map(tuple), passed), max_size=10)


@given(steps())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_the_log_says_what_a_plain_list_says(database: Database, stream: list[Step]) -> None:
    repository, other = f"acme/{uuid.uuid4().hex}", f"acme/{uuid.uuid4().hex}"
    reference = Reference()
    now = START
    with database.transaction() as connection:
        # A neighbour with the same release ids, which nothing of all this may touch.
        release_log.append(connection, other, [of(other, 1, 0)], at=START)
        for step in stream:
            now += step.passed
            items = [of(repository, number, content) for number, content in step.seen]
            wanted = reference.append(items, now)
            appended = release_log.append(connection, repository, items, at=now)
            assert +Counter({str(change): n for change, n in appended.counts.items()}) == wanted
            again = release_log.append(connection, repository, last_of_each(items), at=now)
            assert again.counts["unchanged"] == len(last_of_each(items)), (
                "the same state again says nothing new"
            )
        repository_id = ensure_repository(connection, repository)
        moments = {at for at, _, _ in reference.entries}
        for moment in (
            moments | {at - timedelta(microseconds=1) for at in moments} | {START - timedelta(days=1)}
        ):
            expected = reference.releases(moment)
            stored = release_log.current_releases(connection, repository_id, as_of=moment)
            assert {s.release.release_id: s.release for s in stored} == expected
            assert releases_as_of(connection, repository, moment) == shown(expected)
        final = reference.releases(datetime.max.replace(tzinfo=UTC))
        assert {
            s.release.release_id: s.release for s in release_log.current_releases(connection, repository_id)
        } == final
        assert current_view(connection, repository) == shown(final)
        assert len(current_view(connection, other)) == 1
        kept = connection.execute(
            "SELECT observed_at, release_id, deleted FROM kb.release_observations WHERE repository = %s ORDER BY sequence",
            (repository,),
        ).fetchall()
        assert kept == [(at, release.release_id, deleted) for at, release, deleted in reference.entries]


def test_there_and_back_again_is_three_observations(database: Database) -> None:
    with database.transaction() as connection:
        for body, wanted in (("A", "new"), ("B", "edited"), ("A", "edited"), ("A", "unchanged")):
            assert append(connection, observed(1, body=body)) == [wanted]
        repository_id = ensure_repository(connection, "acme/tool")
        assert [s.release.body for s in release_log.history(connection, repository_id, 1)] == ["A", "B", "A"]


def test_every_field_of_a_release_counts_as_an_edit_and_nothing_else_does(database: Database) -> None:
    fields: dict[str, Any] = {
        "tag_name": "v9",
        "name": "Renamed",
        "body": "Other",
        "created_at": "2024-03-01T09:00:01Z",
        "published_at": "2024-03-03T10:00:00Z",
        "prerelease": True,
        "draft": True,
        "html_url": "https://github.com/acme/tool/releases/tag/other",
        "author": {"login": "else"},
    }
    with database.transaction() as connection:
        append(connection, observed(1))
        for name, value in fields.items():
            assert append(connection, observed(1, **{name: value})) == ["edited"], name
            assert append(connection, observed(1)) == ["edited"], name
        assert append(connection, observed(1, assets=[{"download_count": 7}])) == ["unchanged"]
        assert append(connection, observed(1, published_at="2024-03-02T11:00:00+01:00")) == ["unchanged"]


def test_a_clock_that_steps_back_hides_nothing(database: Database) -> None:
    with database.transaction() as connection:
        append(connection, observed(1, body="old"), at=START)
        append(connection, observed(1, body="new"), at=START - timedelta(hours=1))
        repository_id = ensure_repository(connection, "acme/tool")
        assert [s.release.body for s in release_log.current_releases(connection, repository_id)] == ["new"]
        assert (
            release_log.current_releases(connection, repository_id, as_of=START - timedelta(minutes=1)) == []
        )


def test_the_log_keeps_the_very_bytes(database: Database) -> None:
    raw = b'{"id": 1,\t"tag_name": "v1", "unknown": [1, 2.50]}\r'
    item = dataclasses.replace(observed(1), raw=raw)
    with database.transaction() as connection:
        append(connection, item)
        assert scalar(connection, "SELECT raw FROM kb.release_observations") == raw


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE kb.observation SET body = 'other'",
        "UPDATE kb.observation SET body = body WHERE false",
        "DELETE FROM kb.observation",
        "TRUNCATE kb.observation CASCADE",
        "UPDATE kb.release_observations SET body = 'other'",
    ],
)
def test_nothing_in_the_log_is_changed_or_removed(database: Database, statement: LiteralString) -> None:
    with database.transaction() as connection:
        append(connection, observed(1))
    with (
        pytest.raises(psycopg.Error, match=r"append-only|cannot update view"),
        database.transaction() as connection,
    ):
        connection.execute(statement)
    with database.snapshot() as connection:
        assert scalar(connection, "SELECT count(*) FROM kb.observation") == 1


def test_what_postgresql_refuses_is_set_apart_and_the_rest_is_in(database: Database) -> None:
    bad = dataclasses.replace(observed(3), release=dataclasses.replace(observed(3).release, release_id=2**63))
    worse = dataclasses.replace(observed(5), release=dataclasses.replace(observed(5).release, body="a\0b"))
    with database.transaction() as connection:
        appended = release_log.append(
            connection, "acme/tool", [observed(1), bad, observed(2), observed(4), worse, observed(6)]
        )
        assert sorted(item.release.body for item, _ in appended.refused) == sorted(
            [bad.release.body, worse.release.body]
        )
        assert appended.counts["new"] == 4, "only what is in the log counts"
        repository_id = ensure_repository(connection, "acme/tool")
        current = release_log.current_releases(connection, repository_id)
    assert sorted(found.release.release_id for found in current) == [1, 2, 4, 6]


def test_tags_names_and_spelling(database: Database) -> None:
    with database.transaction() as connection:
        append(connection, observed(1, tag_name="v1.0.0"), observed(2, tag_name="v1.0.0", draft=True))
        release_log.append(connection, "ACME/Tool", [observed(3, tag_name="v3")])
        repository_id = ensure_repository(connection, "Acme/TOOL")
        assert len(release_log.current_releases(connection, repository_id)) == 3
        # Of a release and the draft of its successor under the same tag, the release.
        assert release_log.release_by_tag(connection, repository_id, "v1.0.0").release.release_id == 1
        with pytest.raises(NotKnown, match="v4"):
            release_log.release_by_tag(connection, repository_id, "v4")


def test_versions_are_listed_newest_first(database: Database) -> None:
    tags = ["v1.9.0", "v1.10.0", "v2.0.0-rc.1", "v2.0.0", "nightly"]
    with database.transaction() as connection:
        append(connection, *(observed(n, tag_name=tag) for n, tag in enumerate(tags, 1)))
        repository_id = ensure_repository(connection, "acme/tool")
        listed = [s.release.tag for s in release_log.current_releases(connection, repository_id)]
    assert listed == ["v2.0.0", "v2.0.0-rc.1", "v1.10.0", "v1.9.0", "nightly"]


def of(repository: str, number: int, content: int | None) -> Observed:
    tag, body = CONTENTS[content or 0]
    return observed(number, repository=repository, tag_name=tag, body=body, deleted=content is None)


def last_of_each(items: list[Observed]) -> list[Observed]:
    return list({item.release.release_id: item for item in items}.values())


def append(connection: Connection, *items: Observed, at: datetime | None = None) -> list[str]:
    counts = release_log.append(connection, "acme/tool", items, at=at).counts
    return [change for change, n in counts.items() for _ in range(n)]


def shown(releases: dict[int, Release]) -> list[tuple[int, str, str]]:
    return sorted((number, release.tag, release.body) for number, release in releases.items())


def releases_as_of(connection: Connection, repository: str, moment: datetime) -> list[tuple[int, str, str]]:
    return connection.execute(  # pyright: ignore[reportReturnType]
        "SELECT release_id, tag, body FROM kb.releases_as_of(%s) WHERE repository = %s ORDER BY release_id",
        (moment, repository),
    ).fetchall()


def current_view(connection: Connection, repository: str) -> list[tuple[int, str, str]]:
    return connection.execute(  # pyright: ignore[reportReturnType]
        "SELECT release_id, tag, body FROM kb.current_releases WHERE repository = %s ORDER BY release_id",
        (repository,),
    ).fetchall()
