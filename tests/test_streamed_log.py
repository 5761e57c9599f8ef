"""Events → the log, against a plain reference in memory: any order, repeats of any part, polls in between, and at once."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kb_platform.errors import NotKnown
from kb_platform.sources.release import Observed, Release
from kb_platform.sources.streamed import DOCUMENTS, GITHUB, Origin, Streamed
from kb_platform.store import forgetting, release_log, repositories, streamed_log, watch_list
from kb_platform.store.database import Connection, Database, scalar
from kb_platform.store.repositories import ensure_repository, find_repository
from kb_platform.store.streamed_log import AppendedStreamed

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
NOW = START + timedelta(days=30)
TOPIC_ID = "topic-1"


def release(number: int = 1, body: str = "A", *, tag: str | None = None, draft: bool = False) -> Release:
    return Release(number, tag or f"v1.{number}.0", "", body, START, START, False, draft, "", None)


def event(
    number: int = 1,
    body: str | None = "A",
    *,
    revised: int = 0,
    at: int | None = None,
    offset: int = 0,
    partition: int = 0,
    topic_id: str = TOPIC_ID,
    repository: str = "acme/tool",
    repository_number: int | None = 7,
    forge: str = GITHUB,
    versioned: bool = True,
    tag: str | None = None,
) -> Streamed:
    """An event; `body` None: the release is gone. Times are seconds after START."""
    return Streamed(
        repository=Origin(forge, repository_number, repository),
        release=release(number, body or "", tag=tag),
        raw=f"{number} {body}".encode(),
        deleted=body is None,
        revised_at=START + timedelta(seconds=revised),
        event_at=START + timedelta(seconds=revised if at is None else at),
        versioned=versioned,
        place=f"kafka:kb.releases/{partition}@{offset}",
        topic_id=topic_id,
        partition=partition,
        offset=offset,
    )


def stream(*events: Streamed) -> list[Streamed]:
    """The same, one behind the other in a partition."""
    return [
        dataclasses.replace(one, offset=offset, place=f"kafka:kb.releases/{one.partition}@{offset}")
        for offset, one in enumerate(events)
    ]


def counts(appended: AppendedStreamed) -> dict[str, int]:
    return {str(change): count for change, count in appended.counts.items() if count}


class Undone:
    """A database within one transaction that is taken back: an example leaves nothing, and costs no commits."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @contextmanager
    def transaction(self) -> Generator[Connection]:
        """A part of the transaction."""
        with self.connection.transaction():
            yield self.connection

    snapshot = transaction


@contextmanager
def undone(database: Database) -> Generator[Undone]:
    with database.transaction() as connection, connection.transaction(force_rollback=True):
        yield Undone(connection)


def land(database: Database | Undone, events: Sequence[Streamed], *, now: datetime = NOW) -> dict[str, int]:
    with database.transaction() as connection:
        return counts(streamed_log.append_streamed(connection, events, now=now))


def bodies(database: Database | Undone, name: str = "acme/tool", number: int = 1) -> list[str | None]:
    """The history of a release: its bodies, None where it was gone."""
    with database.snapshot() as connection:
        repository_id, _ = find_repository(connection, name)
        return [
            None if one.deleted else one.release.body
            for one in release_log.history(connection, repository_id, number)
        ]


def current(database: Database | Undone, name: str = "acme/tool") -> dict[int, str]:
    with database.snapshot() as connection:
        repository_id, _ = find_repository(connection, name)
        return {
            one.release.release_id: one.release.body
            for one in release_log.current_releases(connection, repository_id)
        }


def as_of(database: Database | Undone, seconds: float, name: str = "acme/tool") -> dict[int, str]:
    with database.snapshot() as connection:
        rows = connection.execute(
            "SELECT release_id, body FROM kb.releases_as_of(%s) WHERE repository = %s",
            (START + timedelta(seconds=seconds), name),
        )
        return dict(rows.fetchall())


def everything(connection: Connection) -> list[list[Any]]:
    """All rows that landing writes."""
    return [
        connection.execute("SELECT * FROM kb.observation ORDER BY sequence").fetchall(),
        connection.execute("SELECT * FROM kb.stream_head ORDER BY repository_id, release_id").fetchall(),
        connection.execute("SELECT * FROM kb.repository ORDER BY repository_id").fetchall(),
        connection.execute("SELECT * FROM kb.former_name ORDER BY former_name").fetchall(),
    ]


# --- one release ----------------------------------------------------------------------------------------------


def test_there_and_back_again_and_gone_and_back(database: Database) -> None:
    told = stream(
        event(body="A", revised=10), event(body="B", revised=20), event(body="A", revised=30),
        event(body="A", revised=40), event(body=None, revised=50), event(body=None, revised=60), event(body="C", revised=70),
    )  # fmt: skip
    assert land(database, told) == {"new": 1, "edited": 2, "unchanged": 2, "deleted": 1, "reappeared": 1}
    assert bodies(database) == ["A", "B", "A", None, "C"]
    assert [as_of(database, at) for at in (9, 10, 25, 30, 49, 55, 70)] == [
        {}, {1: "A"}, {1: "B"}, {1: "A"}, {1: "A"}, {}, {1: "C"},
    ]  # fmt: skip


def test_a_late_event_is_in_the_history_at_its_place_and_never_the_present(database: Database) -> None:
    land(database, [event(body="A", revised=10, offset=0), event(body="C", revised=30, offset=1)])
    assert land(database, [event(body="B", revised=20, offset=2)]) == {"late": 1}
    assert bodies(database) == ["A", "B", "C"]
    assert current(database) == {1: "C"}
    assert [as_of(database, at) for at in (15, 25, 35)] == [{1: "A"}, {1: "B"}, {1: "C"}]


def test_a_late_event_before_a_state_that_was_only_confirmed(database: Database) -> None:
    """A, then A again, then late what was between them: the present state is A still."""
    land(database, [event(body="A", revised=10, offset=0), event(body="A", revised=30, offset=1)])
    assert land(database, [event(body="B", revised=20, offset=2)]) == {"late": 1}
    assert current(database) == {1: "A"}


def test_a_deletion_that_overtook_what_it_deletes(database: Database) -> None:
    land(database, [event(body=None, revised=30, offset=0)])
    assert land(database, [event(body="A", revised=10, offset=1)]) == {"late": 1}
    assert current(database) == {}
    assert as_of(database, 20) == {1: "A"}


def test_equal_times_are_told_apart_by_the_offset(database: Database) -> None:
    land(database, [event(body="A", revised=10, offset=3), event(body="B", revised=10, offset=4)])
    assert current(database) == {1: "B"}
    assert land(database, [event(body="Z", revised=10, offset=2)]) == {"late": 1}
    assert current(database) == {1: "B"}


def test_equal_times_in_two_partitions_are_told_apart_by_arrival(database: Database) -> None:
    first, second = (
        event(body="A", revised=10, partition=1, offset=5),
        event(body="B", revised=10, partition=0, offset=1),
    )
    land(database, [first, second])
    assert current(database) == {1: "B"}
    assert land(database, [first]) == {"unchanged": 1}
    assert land(database, [second]) == {"unchanged": 1}
    assert bodies(database) == ["A", "B"]


def test_the_time_of_the_event_decides_between_states_of_the_same_second(database: Database) -> None:
    land(database, [event(body="B", revised=10, at=12, offset=0, partition=1)])
    assert land(database, [event(body="A", revised=10, at=11, offset=9)]) == {"late": 1}
    assert current(database) == {1: "B"}


def test_a_time_to_come_counts_as_now_and_does_not_overrule_what_follows(database: Database) -> None:
    far = 10**9
    wrong, right = event(body="A", revised=far, offset=0), event(body="B", revised=40 * 86_400, offset=1)
    assert land(database, [wrong]) == {"new": 1}
    assert current(database) == {1: "A"}
    later = START + timedelta(days=41)
    assert land(database, [right], now=later) == {"edited": 1}
    for now in (later, later + timedelta(days=1), START + timedelta(seconds=2 * far)):
        assert land(database, [wrong, right], now=now) == {"unchanged": 2}
        assert land(database, [wrong], now=now) == {"unchanged": 1}
    assert current(database) == {1: "B"}
    assert bodies(database) == ["A", "B"]


def test_a_poll_that_saw_more_than_the_event_knows(database: Database) -> None:
    """A poll does not always say when the state began; then the time at which it was seen counts."""
    with database.transaction() as connection:
        release_log.append(
            connection,
            "acme/tool",
            [Observed("acme/tool", release(body="B"), b"", "github:x")],
            at=START + timedelta(seconds=20),
        )
    assert land(database, [event(body="A", revised=10, offset=0)]) == {"late": 1}
    assert current(database) == {1: "B"}
    assert land(database, [event(body="C", revised=21, offset=1)]) == {"edited": 1}
    assert land(database, [event(body="A", revised=10, offset=0)]) == {"unchanged": 1}
    assert bodies(database) == ["A", "B", "C"]


def test_a_poll_that_says_when_the_state_began(database: Database) -> None:
    polled = Observed(
        "acme/tool", release(body="B"), b"", "github:x", revised_at=START + timedelta(seconds=5)
    )
    with database.transaction() as connection:
        release_log.append(connection, "acme/tool", [polled], at=START + timedelta(seconds=20))
    assert land(database, [event(body="B", revised=5, offset=0)]) == {"unchanged": 1}
    assert land(database, [event(body="C", revised=10, offset=1)]) == {"edited": 1}
    assert current(database) == {1: "C"}, "newer than what was polled, though it was polled later"
    assert land(database, [event(body="C", revised=10, offset=1), event(body="B", revised=5, offset=0)]) == {
        "unchanged": 2
    }


def test_what_postgresql_refuses_is_set_apart_and_what_follows_is_compared_without_it(
    database: Database,
) -> None:
    told = stream(
        event(body="A", revised=10), event(body="a\0b", revised=20), event(body="A", revised=30), event(2, "X", revised=5),
        event(2**63, "Y", revised=6), event(3, None, revised=7), event(3, "\0", revised=8),
    )  # fmt: skip
    with database.transaction() as connection:
        appended = streamed_log.append_streamed(connection, told, now=NOW)
    assert [item.offset for item, _ in appended.refused] == [1, 4, 6]
    assert counts(appended) == {"new": 2, "unchanged": 1, "deleted": 1}
    assert bodies(database) == ["A"]
    assert current(database) == {1: "A", 2: "X"}
    with database.transaction() as connection:
        before = everything(connection)
        again = streamed_log.append_streamed(connection, told, now=NOW)
        assert [item.offset for item, _ in again.refused] == [1, 4, 6]
        assert everything(connection) == before


def test_a_document_has_no_version(database: Database) -> None:
    page = event(tag="1.2.3", versioned=False, forge=DOCUMENTS, repository="wiki/team", repository_number=9)
    land(database, [page, event(tag="1.2.3")])
    with database.snapshot() as connection:
        rows = connection.execute(
            "SELECT r.name, o.version_key IS NULL FROM kb.observation o JOIN kb.repository r USING (repository_id) ORDER BY 1"
        ).fetchall()
    assert rows == [("acme/tool", False), ("wiki/team", True)]


def test_the_log_keeps_bytes_place_and_times(database: Database) -> None:
    one = dataclasses.replace(event(revised=10, at=12, offset=5), raw=b'{"id":\t1}\r\0\xff')
    land(database, [one])
    with database.snapshot() as connection:
        row = connection.execute(
            "SELECT raw, origin, observed_at, revised_at, content_hash FROM kb.release_observations"
        ).fetchone()
    assert row == (one.raw, one.place, one.revised_at, one.revised_at, one.release.content_hash.hex())


def test_releases_made_from_a_changelog_give_way(database: Database) -> None:
    ours = release_log.OUR_NUMBERS + 5
    with database.transaction() as connection:
        for number, tag in ((ours, "v1.0.0"), (ours + 1, "v2.0.0")):
            made = Observed("acme/tool", release(number, "made", tag=tag), b"", "changelog:x")
            release_log.append(connection, "acme/tool", [made], at=START)
    assert land(database, [event(1, "told", tag="1.0.0", revised=10)]) == {"new": 1, "deleted": 1}
    assert current(database) == {1: "told", ours + 1: "made"}
    assert land(database, [event(1, "told", tag="1.0.0", revised=10)]) == {"unchanged": 1}


# --- any order ------------------------------------------------------------------------------------------------

BODIES = ("A", "B", "C", None)


@dataclass
class Model:
    """What the log must say: the newest event of each release decides, whatever came when."""

    newest: dict[int, tuple[tuple[int, int, int], str | None]] = field(
        default_factory=dict[int, tuple[tuple[int, int, int], "str | None"]]
    )

    def land(self, events: Sequence[Streamed]) -> None:
        for one in events:
            order = (
                int((one.revised_at - START).total_seconds()),
                int((one.event_at - START).total_seconds()),
                one.offset,
            )
            known = self.newest.get(one.release.release_id)
            if known is None or order > known[0]:
                self.newest[one.release.release_id] = (order, None if one.deleted else one.release.body)

    @property
    def current(self) -> dict[int, str]:
        return {number: body for number, (_, body) in self.newest.items() if body is not None}


@st.composite
def topics(draw: st.DrawFn) -> tuple[list[Streamed], list[tuple[int, int]]]:
    """The records of one partition, and slices of it in the order in which groups read them."""
    drawn = draw(
        st.lists(
            st.tuples(st.sampled_from((1, 2)), st.sampled_from(BODIES), st.integers(0, 6), st.integers(0, 3)),
            min_size=1,
            max_size=12,
        )
    )
    events = stream(*(event(n, body, revised=revised, at=revised + at) for n, body, revised, at in drawn))
    bounds = st.tuples(st.integers(0, len(events)), st.integers(0, len(events))).map(
        lambda pair: (min(pair), max(pair))
    )
    return events, draw(st.lists(bounds, max_size=6))


@given(topics(), st.integers(1, 5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_events_in_any_slices_come_to_what_the_newest_ones_say(
    database: Database, told: tuple[list[Streamed], list[tuple[int, int]]], size: int
) -> None:
    with undone(database) as held:
        check_slices(held, *told, size)


def check_slices(database: Undone, events: list[Streamed], slices: list[tuple[int, int]], size: int) -> None:
    model = Model()
    for start in range(0, len(events), size):
        batch = events[start : start + size]
        land(database, batch)
        model.land(batch)
        assert current(database) == model.current
    with database.snapshot() as connection:
        before = everything(connection)
    for start, stop in [(0, len(events)), *slices]:
        assert set(land(database, events[start:stop])) <= {"unchanged"}
    with database.snapshot() as connection:
        assert everything(connection) == before


@given(st.permutations(range(7)), st.lists(st.sampled_from(("A", "B", "C", "D")), min_size=7, max_size=7))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_states_that_all_differ_are_a_history_in_order_however_they_come(
    database: Database, order: list[int], words: list[str]
) -> None:
    events = [
        event(1, f"{word}{at}", revised=10 * at, offset=offset)
        for offset, (at, word) in enumerate((at, words[at]) for at in order)
    ]
    wanted = [f"{word}{at}" for at, word in enumerate(words)]
    with undone(database) as held:
        for one in events:
            land(held, [one])
        assert bodies(held) == wanted
        assert [as_of(held, 10 * at + 5) for at in range(7)] == [{1: body} for body in wanted]
        assert set(land(held, list(reversed(events)))) == {"unchanged"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("event", "poll", "again")),
            st.sampled_from(BODIES),
            st.integers(0, 8),
            st.booleans(),
            st.integers(0, 2),
        ),
        max_size=14,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_polls_and_several_topics_in_between_and_reading_again_adds_nothing(
    database: Database, steps: list[tuple[str, str | None, int, bool, int]]
) -> None:
    with undone(database) as held:
        check_steps(held, steps)


def check_steps(database: Undone, steps: list[tuple[str, str | None, int, bool, int]]) -> None:
    name = "acme/tool"
    landed: list[Streamed] = []
    for at, (kind, body, revised, says_when, partition) in enumerate(steps):
        if kind == "event":
            one = event(1, body, revised=revised, offset=at, partition=partition,
                        topic_id=f"topic-{partition % 2}")  # fmt: skip
            landed.append(one)
            land(database, [one])
        elif kind == "poll" and body is not None:
            seen = Observed(name, release(1, body), b"", "github:x",
                            revised_at=START + timedelta(seconds=revised) if says_when else None)  # fmt: skip
            with database.transaction() as connection:
                release_log.append(connection, name, [seen], at=START + timedelta(seconds=at))
            assert current(database, name) == {1: body}, "what was seen last is the present state"
        if landed:
            with database.snapshot() as connection:
                before = everything(connection)
            for batch in (landed, landed[::2], landed[-2:]):
                assert set(land(database, batch)) <= {"unchanged"}
            with database.snapshot() as connection:
                assert everything(connection) == before


# --- repositories ---------------------------------------------------------------------------------------------


def names(database: Database) -> dict[str, tuple[str, int | None]]:
    """Name → forge and number."""
    with database.snapshot() as connection:
        rows = connection.execute("SELECT name, forge, external_id FROM kb.repository").fetchall()
    return {name: (forge, number) for name, forge, number in rows}


def of(
    name: str, number: int | None = None, *, at: int = 10, forge: str = GITHUB, offset: int = 0
) -> Streamed:
    body = f"{name} {number} {at}"
    return event(body=body, revised=at, repository=name, repository_number=number, forge=forge, offset=offset)


def test_a_number_says_which_repository_it_is_and_the_newest_event_how_it_is_called(
    database: Database,
) -> None:
    land(database, [of("acme/old", 7, at=10)])
    land(database, [of("acme/new", 7, at=20, offset=1)])
    assert names(database) == {"acme/new": (GITHUB, 7)}
    land(database, [of("acme/old", 7, at=15, offset=2), of("acme/old", 7, at=10)])
    assert names(database) == {"acme/new": (GITHUB, 7)}, "an older event does not name it back"
    with database.snapshot() as connection:
        assert find_repository(connection, "acme/old")[1] == "acme/new"
    land(database, [of("acme/old", None, at=30, offset=3)])
    assert names(database) == {"acme/new": (GITHUB, 7)}, "who only knows the former name means this one"


def test_an_event_that_confirms_a_name_counts_too(database: Database) -> None:
    land(database, [of("acme/tool", 7, at=10)])
    land(database, [of("acme/tool", 7, at=50, offset=1)])
    land(database, [of("acme/other", 7, at=30, offset=2)])
    assert names(database) == {"acme/tool": (GITHUB, 7)}


def test_the_name_of_a_watched_repository_is_for_polling_to_tell(database: Database) -> None:
    land(database, [of("acme/tool", 7)])
    with database.transaction() as connection:
        watch_list.add(connection, "acme/tool", at=NOW)
    land(database, [of("acme/new", 7, at=20, offset=1)])
    assert names(database) == {"acme/tool": (GITHUB, 7)}


def test_names_that_are_taken(database: Database) -> None:
    with database.transaction() as connection:
        ensure_repository(connection, "acme/imported")
    land(
        database,
        [
            of("acme/tool", 1), of("ACME/tool", 2), of("acme/tool", 1, forge="https://git.example.com/api/v1"),
            of("Acme/Imported", 3), of("acme/imported", 4), of("acme/tool", None, forge=DOCUMENTS),
        ],
    )  # fmt: skip
    found = names(database)
    other = next(name for name in found if found[name] == (DOCUMENTS, None))
    assert found == {
        "acme/tool": (GITHUB, 1),
        "ACME/tool.2": (GITHUB, 2),
        "acme/tool.1": ("https://git.example.com/api/v1", 1),
        "Acme/Imported": (GITHUB, 3),
        "acme/imported.4": (GITHUB, 4),
        other: (DOCUMENTS, None),
    }
    assert other.startswith("acme/tool.")
    with database.snapshot() as connection:
        before = everything(connection)
    land(database, [of("ACME/tool", 2), of("acme/imported", 4), of("acme/tool", None, forge=DOCUMENTS)])
    with database.snapshot() as connection:
        assert everything(connection) == before


def test_a_name_that_is_set_free_goes_to_who_has_it_now(database: Database) -> None:
    land(database, [of("acme/a", 1), of("acme/b", 2)])
    land(database, [of("acme/c", 2, at=20, offset=1), of("acme/b", 1, at=21, offset=1)])
    assert names(database) == {"acme/b": (GITHUB, 1), "acme/c": (GITHUB, 2)}
    with database.snapshot() as connection:
        assert find_repository(connection, "acme/a")[1] == "acme/b"


def test_a_very_long_name_that_is_taken(database: Database) -> None:
    long = "acme/" + "x" * 100
    land(database, [of(long, 1), of(long, 2)])
    assert sorted(map(len, names(database))) == [105, 105]


def test_a_repository_that_is_forgotten_meanwhile(database: Database) -> None:
    land(database, [of("acme/tool", 7), of("acme/stays", 8)])
    with database.snapshot() as connection:
        repository_id, _ = find_repository(connection, "acme/tool")
    started, outcome = threading.Event(), list[object]()

    def loader() -> None:
        started.set()
        try:
            outcome.append(
                land(database, [of("acme/tool", 7, at=20, offset=1), of("acme/stays", 8, at=20, offset=1)])
            )
        except NotKnown as error:
            outcome.append(error)

    with database.transaction() as connection:
        forgetting.forget(connection, repository_id)
        thread = threading.Thread(target=loader)
        thread.start()
        assert started.wait(5)
        thread.join(0.3)
        assert outcome == [], "whether it is forgotten is not known yet"
    thread.join(20)
    assert isinstance(outcome[0], NotKnown)
    assert set(land(database, [of("acme/tool", 7, at=20), of("acme/stays", 8, at=20, offset=1)])) == {
        "new",
        "edited",
    }


def test_loaders_a_poller_and_who_renames_do_not_wait_in_a_circle(database: Database) -> None:
    errors = list[BaseException]()

    def guarded(work: Callable[[int], object], times: int) -> threading.Thread:
        def run() -> None:
            try:
                for at in range(times):
                    work(at)
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=run)

    def loader(partition: int) -> Callable[[int], object]:
        def work(at: int) -> None:
            numbers = range(1, 25) if partition else range(24, 0, -1)
            batch = [
                event(1, f"{partition} {at}", revised=100 + at, partition=partition, offset=1000 * at + n,
                      repository=f"acme/tool-{n}" if at % 7 else f"acme/Tool-{n}", repository_number=n)
                for n in numbers
            ]  # fmt: skip
            land(
                database,
                [*batch, of(f"acme/new-{at}", 1_000 + at, offset=at), of(f"acme/more-{at}", offset=at)],
            )

        return work

    def poller(at: int) -> None:
        name = f"acme/tool-{1 + at % 24}"
        with database.transaction() as connection:
            release_log.append(connection, name, [Observed(name, release(1, f"p{at}"), b"", "github:x")])

    def renamer(at: int) -> None:
        with database.transaction() as connection:
            repository_id = ensure_repository(connection, f"acme/odd-{at}")
            repositories.identify(connection, repository_id, 5_000 + at)
            repositories.rename_repository(connection, repository_id, f"acme/even-{at}", NOW)

    threads = [guarded(loader(0), 15), guarded(loader(1), 15), guarded(poller, 60), guarded(renamer, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with database.snapshot() as connection:
        assert (
            scalar(connection, "SELECT count(*) FROM kb.repository WHERE external_id BETWEEN 1 AND 24") == 24
        )
        assert (
            scalar(
                connection,
                "SELECT count(*) FROM kb.repository WHERE external_id >= 1000 AND external_id < 5000",
            )
            == 15
        )
