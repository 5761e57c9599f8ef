"""Dead letters: what could not be understood, published for whoever can mend it; each once for readers of what is committed.

Which messages are dead letters is decided in the transaction that quarantines them (`store.quarantine`); here they are sent.
A letter's number goes along as a header. Whoever was killed between the brokers' commit and ours finds it in the topic, and
the transaction of a sender that hangs is ended by the next sender before it looks.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import closing

from kb_platform.errors import StreamError
from kb_platform.settings import Settings
from kb_platform.sources.message import Header
from kb_platform.store import dead_letters
from kb_platform.store.database import Database
from kb_platform.store.dead_letters import DeadLetter
from kb_platform.streams.broker import Brokers
from kb_platform.streams.reader import Reader
from kb_platform.streams.sender import TransactionalSender
from kb_platform.streams.topics import Topics, dead_letter_topic

LETTER = "kb-dead-letter"
BATCH_LETTERS = 500
READ_RECORDS = 1_000
READ_BYTES = 16 * 1_048_576
# Where a topic takes no larger ones, the beginning of a message is published; all of it is in quarantine.
CUT_BYTES = 512 * 1024


def publish(database: Database, brokers: Brokers, settings: Settings, topic: str) -> int:
    """Publish the dead letters of a topic that wait; how many were. 0 also when another process is at it.

    Raises StreamError: what was not published waits on.
    """
    to = dead_letter_topic(topic)
    with database.snapshot() as connection:
        if not dead_letters.waiting(connection, to, 1):
            return 0
    with dead_letters.only_publisher(database, to) as mine:
        return _publish(database, brokers, settings, to) if mine else 0


def _publish(database: Database, brokers: Brokers, settings: Settings, to: str) -> int:
    count = 0
    with closing(TransactionalSender(brokers, f"{settings.kafka_group}.{to}")) as sender:
        # Before it is looked at what is there: a transaction of another sender of this name is ended by this.
        sender.begin()
        sender.abort()
        _take_stock(database, brokers, to)
        while True:
            with database.snapshot() as connection:
                letters = dead_letters.waiting(connection, to, BATCH_LETTERS)
            if not letters:
                return count
            _send(sender, to, letters)
            with database.transaction() as connection:
                dead_letters.published(connection, [letter.letter for letter in letters])
            count += len(letters)


def _take_stock(database: Database, brokers: Brokers, to: str) -> None:
    """Note what the topic holds already, from where it was last looked at."""
    with closing(Topics(brokers)) as topics:
        found = topics.describe(to)
        marks = topics.watermarks(found)
    with database.snapshot() as connection:
        known = dead_letters.positions(connection, to, found.topic_id)
    positions = {one: min(max(known.get(one, mark.low), mark.low), mark.high) for one, mark in marks.items()}
    with closing(Reader(brokers, to, positions)) as reader:
        while any(positions[one] < mark.high for one, mark in marks.items()):
            batch = reader.read(max_records=READ_RECORDS, max_bytes=READ_BYTES, wait_s=1.0)
            there = [letter for message in batch.messages if (letter := _letter_of(message.headers))]
            positions = dict(batch.positions)
            with database.transaction() as connection:
                dead_letters.published(connection, there)
                dead_letters.set_positions(connection, to, found.topic_id, positions)


def _send(sender: TransactionalSender, to: str, letters: Sequence[DeadLetter], *, cut: bool = False) -> None:
    sender.begin()
    try:
        for letter in letters:
            value = letter.message.value or b""
            too_long = cut and len(value) > CUT_BYTES
            sender.send(
                to,
                letter.message.key,
                value[:CUT_BYTES] if too_long else letter.message.value,
                _headers(letter, cut=too_long),
            )
    except StreamError:
        sender.abort()
        if cut:
            raise
        _send(sender, to, letters, cut=True)
        return
    try:
        sender.commit()
    except StreamError:
        sender.abort()
        # Only where the brokers have refused a message is it certain that nothing was committed.
        if cut or not sender.refused:
            raise
        _send(sender, to, letters, cut=True)


def _headers(letter: DeadLetter, *, cut: bool) -> list[Header]:
    """The message's own, and beside them where it stood and why it is here."""
    message = letter.message
    ours: list[Header] = [
        (LETTER, str(letter.letter).encode()),
        ("kb-reason", letter.reason.encode()),
        ("kb-detail", letter.detail.encode()),
        ("kb-topic", message.topic.encode()),
        ("kb-topic-id", letter.topic_id.encode()),
        ("kb-partition", str(message.partition).encode()),
        ("kb-offset", str(message.offset).encode()),
    ]
    if message.timestamp is not None:
        ours.append(("kb-timestamp", message.timestamp.isoformat().encode()))
    if cut:
        ours.append(("kb-cut", str(len(message.value or b"")).encode()))
    return [*message.headers, *ours]


def _letter_of(headers: Sequence[Header]) -> uuid.UUID | None:
    # The last one: a dead letter that was sent to the topic again and died again has several.
    for name, value in reversed(headers):
        if name == LETTER and value is not None:
            try:
                return uuid.UUID(value.decode("ascii"))
            except ValueError:
                return None
    return None
