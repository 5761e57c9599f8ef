"""Messages in quarantine: known by where they stood, with all that came with them, each a dead letter once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from kb_platform.sources.message import Header, Message
from kb_platform.sources.release import Refused
from kb_platform.store import dead_letters, quarantine
from kb_platform.store.database import Database, scalar
from kb_platform.store.quarantine import RefusedMessage

AT = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
TOPIC = "kb.releases"


def message(
    offset: int = 0,
    value: bytes | None = b"oops",
    *,
    partition: int = 0,
    key: bytes | None = b"7",
    headers: tuple[Header, ...] = (),
    timestamp: datetime | None = AT,
) -> Message:
    return Message(TOPIC, partition, offset, timestamp, key, value, headers)


def refused(*messages: Message, topic_id: str = "id-1", reason: str = "not-json") -> list[RefusedMessage]:
    return [RefusedMessage(one, topic_id, reason, f"{reason} at {one.offset}") for one in messages]


def put(database: Database, items: list[RefusedMessage]) -> int:
    with database.transaction() as connection:
        return quarantine.put_messages(connection, items)


def rows(database: Database) -> tuple[int, int, int]:
    with database.snapshot() as connection:
        return (
            scalar(connection, "SELECT count(*) FROM kb.quarantined_record"),
            scalar(connection, "SELECT count(*) FROM kb.quarantined_message"),
            scalar(connection, "SELECT count(*) FROM kb.dead_letter"),
        )


HOSTILE: tuple[Header, ...] = (
    ("ce_id", b"1"),
    ("ce_id", b"2"),
    ("nul\0name", b"\0\xff\xfe"),
    ("surrogate\ud800", b""),
    ("null", None),
    ("", b"x"),
    ("quote\"'\\{}", b'{"a": [1, null]}'),
    ("\N{PILE OF POO}", "é".encode()),
)


@pytest.mark.parametrize(
    "one",
    [
        message(),
        message(value=None),
        message(value=b""),
        message(key=None, timestamp=None),
        message(key=b"\0\xff", value=b"\0\xff\x80" * 100),
        message(2**62, partition=2**31 - 1),
        message(headers=HOSTILE),
    ],
)
def test_a_message_is_kept_with_all_that_came_with_it(database: Database, one: Message) -> None:
    assert put(database, refused(one)) == 1
    with database.snapshot() as connection:
        (listed,) = quarantine.listed(connection)
        kept = quarantine.message_of(connection, listed.quarantine_id)
        got = quarantine.get(connection, listed.quarantine_id)
    assert kept is not None
    storable = tuple((quarantine.storable(name), value) for name, value in one.headers)
    assert kept == (one._replace(headers=storable), "id-1")
    assert (got.topic, got.topic_id, got.partition, got.offset) == (TOPIC, "id-1", one.partition, one.offset)
    assert (got.origin, got.raw, got.dead_letter_at) == (one.place, one.value or b"", None)


def test_the_same_bytes_at_two_places_are_two_records(database: Database) -> None:
    places = [message(1), message(2), message(1, partition=1)]
    assert put(database, refused(*places)) == 3
    assert put(database, refused(message(1), topic_id="id-2")) == 1, "another topic of the same name"
    assert rows(database) == (4, 4, 4)
    with database.transaction() as connection:
        assert quarantine.put(connection, [Refused("not-json", "x", b"oops", "import:x")]) == 1
        assert quarantine.message_of(connection, quarantine.listed(connection)[-1].quarantine_id) is None
    assert rows(database) == (5, 4, 4)


def test_the_same_place_again_counts_an_attempt_and_nothing_else(database: Database) -> None:
    put(database, refused(message(1), message(2)))
    with database.snapshot() as connection:
        letters = dead_letters.waiting(connection, f"{TOPIC}.dlq", 10)
    assert put(database, refused(message(2), message(3), message(3), reason="too-deep")) == 1
    with database.snapshot() as connection:
        listed = quarantine.listed(connection)
        again = dead_letters.waiting(connection, f"{TOPIC}.dlq", 10)
    assert [(one.offset, one.attempts, one.reason) for one in listed] == [
        (1, 1, "not-json"),
        (2, 2, "too-deep"),
        (3, 1, "too-deep"),
    ]
    assert [one.letter for one in again[:2]] == [one.letter for one in letters]
    assert rows(database) == (3, 3, 3)


def test_a_record_that_was_dealt_with_is_open_again_only_when_it_is_refused_again(database: Database) -> None:
    put(database, refused(message(1), message(2)))
    with database.transaction() as connection:
        first, second = quarantine.listed(connection)
        quarantine.resolve(connection, first.quarantine_id, "replayed")
        quarantine.resolve(connection, second.quarantine_id, "discarded")
        dead_letters.published(
            connection, [one.letter for one in dead_letters.waiting(connection, f"{TOPIC}.dlq", 9)]
        )
    put(database, refused(message(2)))
    with database.snapshot() as connection:
        assert [one.offset for one in quarantine.listed(connection)] == [2]
        assert [one.offset for one in quarantine.listed(connection, resolved=True)] == [1]
        assert quarantine.open_by_reason(connection) == {"not-json": 1}
        assert dead_letters.waiting(connection, f"{TOPIC}.dlq", 9) == [], "it was published once"
        assert quarantine.get(connection, second.quarantine_id).dead_letter_at is not None


def test_nothing_to_set_apart(database: Database) -> None:
    assert put(database, []) == 0


def test_a_value_too_large_to_keep_is_cut(database: Database) -> None:
    put(database, refused(message(1, b"x" * (quarantine.MOST_BYTES + 5))))
    with database.snapshot() as connection:
        (one,) = quarantine.listed(connection)
        got = quarantine.get(connection, one.quarantine_id)
    assert (len(got.raw), got.raw_bytes) == (quarantine.MOST_BYTES, quarantine.MOST_BYTES + 5)


def test_what_is_not_committed_is_not_there(database: Database) -> None:
    class Died(Exception):
        pass

    with pytest.raises(Died), database.transaction() as connection:
        quarantine.put_messages(connection, refused(message()))
        raise Died
    assert rows(database) == (0, 0, 0)


def test_thousands_are_set_apart_in_their_order(database: Database) -> None:
    many = refused(*(message(offset, b"x%d" % offset) for offset in range(3_000)))
    assert put(database, many) == 3_000
    assert put(database, many) == 0
    with database.snapshot() as connection:
        listed = quarantine.listed(connection)
    assert [one.offset for one in listed] == list(range(3_000))
    assert {one.attempts for one in listed} == {2}
