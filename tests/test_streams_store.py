"""Positions, the fence around them, and what is known of topics."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from kb_platform.errors import Fenced
from kb_platform.store import status_summary, streams
from kb_platform.store.database import Database, scalar
from kb_platform.store.streams import Move

NOW = datetime(2026, 5, 1, tzinfo=UTC)
GROUP, TOPIC = "kb", "kb.releases"


@pytest.fixture
def adopted(database: Database) -> Database:
    with database.transaction() as connection:
        streams.adopt(connection, GROUP, TOPIC, "id-1", {0: 5, 1: 0, 2: 7})
    return database


def positions(database: Database, group: str = GROUP) -> dict[int, int]:
    with database.snapshot() as connection:
        stored = streams.stream(connection, group, TOPIC)
    assert stored is not None
    return dict(stored.positions)


def advance(database: Database, moves: dict[int, Move], group: str = GROUP) -> None:
    with database.transaction() as connection:
        streams.advance(connection, group, TOPIC, moves)


def test_nothing_is_known_of_a_topic_that_was_never_read(database: Database) -> None:
    with database.snapshot() as connection:
        assert streams.stream(connection, GROUP, TOPIC) is None
        assert streams.states(connection) == []


def test_the_first_that_begins_decides(adopted: Database) -> None:
    with adopted.transaction() as connection:
        streams.adopt(connection, GROUP, TOPIC, "id-2", {0: 99, 3: 1})
        streams.add_partitions(connection, GROUP, TOPIC, {0: 99, 4: 2})
        stored = streams.stream(connection, GROUP, TOPIC)
    assert stored is not None
    assert (stored.topic_id, stored.positions) == ("id-1", {0: 5, 1: 0, 2: 7, 4: 2})


def test_positions_move_from_where_they_are_and_only_there(adopted: Database) -> None:
    advance(adopted, {0: Move(5, 9, 4, 400, 1), 2: Move(7, 8, 1, 10)})
    assert positions(adopted) == {0: 9, 1: 0, 2: 8}
    for moves in ({0: Move(5, 9)}, {1: Move(0, 1), 0: Move(5, 6)}, {0: Move(10, 11)}, {7: Move(0, 1)}):
        with pytest.raises(Fenced, match="partition"):
            advance(adopted, moves)
    assert positions(adopted) == {0: 9, 1: 0, 2: 8}, "of a batch that is fenced no position moves"
    with adopted.transaction() as connection:
        streams.count_quarantined(connection, GROUP, TOPIC, {0: 2})
        (state,) = streams.states(connection)
    assert (state.records, state.bytes, state.quarantined) == (5, 410, 3)
    assert state.landed_at is not None


def test_groups_and_topics_have_positions_of_their_own(adopted: Database) -> None:
    with adopted.transaction() as connection:
        streams.adopt(connection, "other", TOPIC, "id-1", {0: 0})
        streams.adopt(connection, GROUP, "kb.documents", "id-9", {0: 5})
    advance(adopted, {0: Move(0, 3)}, group="other")
    assert positions(adopted)[0] == 5
    assert positions(adopted, "other") == {0: 3}
    with adopted.snapshot() as connection:
        documents = streams.stream(connection, GROUP, "kb.documents")
    assert documents is not None
    assert documents.positions == {0: 5}


def test_of_two_that_read_the_same_the_second_waits_and_is_told(adopted: Database) -> None:
    waiting, outcome = threading.Event(), list[str]()

    def second() -> None:
        waiting.set()
        try:
            advance(adopted, {0: Move(5, 8, 3)})
            outcome.append("went on")
        except Fenced:
            outcome.append("fenced")

    with adopted.transaction() as connection:
        streams.advance(connection, GROUP, TOPIC, {0: Move(5, 9, 4)})
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        time.sleep(0.2)
        assert outcome == [], "it is not known yet whether the first one commits"
    thread.join(10)
    assert outcome == ["fenced"]
    assert positions(adopted)[0] == 9


def test_the_second_goes_on_when_the_first_one_dies(adopted: Database) -> None:
    outcome = list[str]()

    def second() -> None:
        advance(adopted, {0: Move(5, 8, 3)})
        outcome.append("went on")

    class Died(Exception):
        pass

    thread = threading.Thread(target=second)
    with pytest.raises(Died), adopted.transaction() as connection:
        streams.advance(connection, GROUP, TOPIC, {0: Move(5, 9, 4)})
        thread.start()
        time.sleep(0.1)
        raise Died
    thread.join(10)
    assert outcome == ["went on"]
    assert positions(adopted)[0] == 8


def test_many_that_share_partitions_in_other_orders_do_not_wait_in_a_circle(adopted: Database) -> None:
    errors, done = list[BaseException](), list[int]()

    def loader(order: list[int]) -> None:
        try:
            while True:
                at = positions(adopted)
                if at[0] >= 60:
                    return
                try:
                    advance(adopted, {one: Move(at[one], at[one] + 1, 1) for one in order})
                    done.append(1)
                except Fenced:
                    pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loader, args=(order,)) for order in ([0, 1, 2], [2, 1, 0], [1, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert positions(adopted)[0] == 60
    with adopted.snapshot() as connection:
        assert scalar(connection, "SELECT records FROM kb.stream_partition WHERE partition = 0") == 55
    assert len(done) == 55, "each step was made by one of them"


def test_a_topic_made_anew_fences_who_read_the_one_before(adopted: Database) -> None:
    with adopted.transaction() as connection:
        streams.reset(connection, GROUP, TOPIC, "id-2", {0: 5, 1: 0, 2: 7}, "a person")
    with pytest.raises(Fenced, match="id-2"), adopted.transaction() as connection:
        streams.advance(connection, GROUP, TOPIC, {0: Move(5, 6)}, topic_id="id-1")
    with adopted.transaction() as connection:
        streams.advance(connection, GROUP, TOPIC, {0: Move(5, 6)}, topic_id="id-2")


def test_a_reset_is_recorded_and_ends_what_was_in_the_way(adopted: Database) -> None:
    advance(adopted, {0: Move(5, 9, 4, 400, 1)})
    with adopted.transaction() as connection:
        streams.looked(connection, GROUP, TOPIC, {0: (0, 20)}, NOW)
        streams.in_trouble(connection, GROUP, TOPIC, "recreated", "another\0topic", NOW)
        streams.reset(connection, GROUP, TOPIC, "id-2", {0: 0, 1: 3}, "me@here")
        stored = streams.stream(connection, GROUP, TOPIC)
        told = streams.resets(connection)
        (state,) = streams.states(connection)
    assert stored is not None
    assert (stored.topic_id, stored.trouble, stored.positions) == ("id-2", None, {0: 0, 1: 3})
    assert [
        (one.partition, one.from_offset, one.to_offset, one.from_topic_id, one.to_topic_id, one.trouble)
        for one in told
    ] == [(1, 0, 3, "id-1", "id-2", "recreated"), (0, 9, 0, "id-1", "id-2", "recreated")]
    assert {one.requested_by for one in told} == {"me@here"}
    assert (state.lag, state.records) == (0, 4), (
        "what is known of the other topic's end says nothing of this one"
    )


def test_a_reset_of_one_partition_leaves_the_others(adopted: Database) -> None:
    with adopted.transaction() as connection:
        streams.reset(connection, GROUP, TOPIC, "id-1", {1: 4}, "me")
        streams.reset(connection, "new", TOPIC, "id-1", {0: 2}, "me")
    assert positions(adopted) == {0: 5, 1: 4, 2: 7}
    assert positions(adopted, "new") == {0: 2}


def test_lag_and_trouble_as_they_are_shown(adopted: Database) -> None:
    with adopted.transaction() as connection:
        streams.looked(connection, GROUP, TOPIC, {0: (0, 9), 1: (3, 10), 2: (0, 2), 8: (0, 5)}, NOW)
        (state,) = streams.states(connection)
    # What was deleted before it was read waits no more; a position past the end is trouble, not lag.
    assert [one.lag for one in state.partitions] == [4, 7, 0]
    assert (state.lag, state.looked_at, state.unreachable_since) == (11, NOW, None)
    later = NOW + timedelta(minutes=1)
    with adopted.transaction() as connection:
        for at in (NOW, later):
            streams.unreachable(connection, GROUP, TOPIC, at)
            streams.in_trouble(connection, GROUP, TOPIC, "truncated", f"seen at {at}", at)
        (state,) = streams.states(connection)
        assert (state.unreachable_since, state.trouble_since, state.trouble_detail) == (
            NOW,
            NOW,
            f"seen at {later}",
        )
        streams.in_trouble(connection, GROUP, TOPIC, "beyond-end", "x", later)
        streams.looked(connection, GROUP, TOPIC, {}, NOW)
        (state,) = streams.states(connection)
        assert (state.trouble, state.trouble_since, state.unreachable_since) == ("beyond-end", later, None)
        streams.out_of_trouble(connection, GROUP, TOPIC)
        (state,) = streams.states(connection)
        assert (state.trouble, state.trouble_detail, state.trouble_since) == (None, None, None)
        assert json.loads(json.dumps(state.as_json()))["partitions"][0]["lag"] == 4
        shown = status_summary.status(connection, NOW, timedelta(hours=1))
    assert shown.streams == (state,)


def test_who_looks_does_not_wait_for_who_lands(adopted: Database) -> None:
    with adopted.transaction() as landing:
        streams.advance(landing, GROUP, TOPIC, {0: Move(5, 6)})
        with adopted.transaction() as looking:
            looking.execute("SET LOCAL statement_timeout = '2s'")
            streams.looked(looking, GROUP, TOPIC, {0: (0, 9), 1: (0, 9)}, NOW)
    with adopted.snapshot() as connection:
        (state,) = streams.states(connection)
    assert [(one.partition, one.high) for one in state.partitions] == [(0, None), (1, 9), (2, None)]
