"""The outbox of dead letters: in order, bounded, noted once, one publisher at a time."""

from __future__ import annotations

import uuid

from kb_platform.sources.message import Message
from kb_platform.store import dead_letters, quarantine
from kb_platform.store.database import Database
from kb_platform.store.dead_letters import DeadLetter
from kb_platform.store.quarantine import RefusedMessage

TOPIC, LETTERS = "kb.releases", "kb.releases.dlq"


def put(database: Database, *values: bytes, topic: str = TOPIC) -> None:
    with database.transaction() as connection:
        quarantine.put_messages(
            connection,
            [
                RefusedMessage(
                    Message(topic, 0, offset, None, b"7", value, (("h", b"1"),)), "id-1", "not-json", "bad"
                )
                for offset, value in enumerate(values)
            ],
        )


def waiting(database: Database, limit: int = 100, **bounds: int) -> list[DeadLetter]:
    with database.snapshot() as connection:
        return dead_letters.waiting(connection, LETTERS, limit, **bounds)


def test_letters_wait_in_their_order_until_they_are_noted(database: Database) -> None:
    put(database, b"a", b"b", b"c")
    put(database, b"other", topic="kb.documents")
    found = waiting(database)
    assert [one.message.value for one in found] == [b"a", b"b", b"c"]
    assert found[0].message == Message(TOPIC, 0, 0, None, b"7", b"a", (("h", b"1"),))
    assert (found[0].reason, found[0].detail, found[0].topic_id) == ("not-json", "bad", "id-1")
    assert len({one.letter for one in found}) == 3
    assert [one.message.value for one in waiting(database, 2)] == [b"a", b"b"]
    with database.transaction() as connection:
        noted = [found[1].letter, uuid.uuid4(), found[1].letter]
        assert dead_letters.published(connection, noted) == 1
        assert dead_letters.published(connection, noted) == 0
        assert dead_letters.count_waiting(connection, LETTERS) == 2
    assert [one.message.value for one in waiting(database)] == [b"a", b"c"]


def test_no_more_bytes_than_asked_for_but_always_one_letter(database: Database) -> None:
    put(database, b"x" * 5_000, b"y" * 5_000, b"z" * 50)
    assert [len(one.message.value or b"") for one in waiting(database, most_bytes=11_000)] == [
        5_000,
        5_000,
        50,
    ]
    assert [len(one.message.value or b"") for one in waiting(database, most_bytes=6_000)] == [5_000]
    assert [len(one.message.value or b"") for one in waiting(database, most_bytes=1)] == [5_000]


def test_positions_are_those_of_one_very_topic(database: Database) -> None:
    with database.transaction() as connection:
        assert dead_letters.positions(connection, LETTERS, "id-1") == {}
        dead_letters.set_positions(connection, LETTERS, "id-1", {1: 5, 0: 3})
        dead_letters.set_positions(connection, LETTERS, "id-1", {1: 6})
        assert dead_letters.positions(connection, LETTERS, "id-1") == {0: 3, 1: 6}
        assert dead_letters.positions(connection, LETTERS, "id-2") == {}
        dead_letters.set_positions(connection, LETTERS, "id-2", {0: 1})
        assert dead_letters.positions(connection, LETTERS, "id-2") == {0: 1}


def test_one_publishes_a_topic_at_a_time(database: Database) -> None:
    with dead_letters.only_publisher(database, LETTERS) as first:
        assert first
        with dead_letters.only_publisher(database, LETTERS) as second:
            assert not second
        with dead_letters.only_publisher(database, "kb.documents.dlq") as other:
            assert other
    with dead_letters.only_publisher(database, LETTERS) as again:
        assert again
