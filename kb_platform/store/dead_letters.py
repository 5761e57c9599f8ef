"""Dead letters: the outbox of messages that could not be understood.

A letter is written in the transaction that sets its message apart (`quarantine.put_messages`), once for ever. Whoever
publishes notes it here, and up to where a dead-letter topic was compared with what is noted. Sending is `stages.dead_letters`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

import psycopg

from kb_platform.sources.message import Message
from kb_platform.store.database import CONNECT_TIMEOUT_S, Connection, Database, scalar
from kb_platform.store.quarantine import MESSAGE_COLUMNS, message_from

# What is taken into memory at once; a single larger letter goes alone.
MOST_BYTES = 16 * 1_048_576


class DeadLetter(NamedTuple):
    """A message to be published. `letter` goes along with it, so that it is found again in the topic."""

    quarantine_id: int
    letter: UUID
    reason: str
    detail: str
    message: Message
    topic_id: str


def waiting(
    connection: Connection, dlq_topic: str, limit: int, *, most_bytes: int = MOST_BYTES
) -> list[DeadLetter]:
    """The letters that wait, in the order in which they were written: `limit` of them, and `most_bytes`, at most."""
    rows = connection.execute(
        # `raw_bytes` is of the whole value, of which MOST_BYTES of the quarantine are kept.
        "WITH first AS (SELECT quarantine_id, letter FROM kb.dead_letter "
        "WHERE topic = %(topic)s AND published_at IS NULL ORDER BY quarantine_id LIMIT %(limit)s), "
        "sized AS (SELECT quarantine_id, letter, row_number() OVER (ORDER BY quarantine_id) AS place, "
        "sum(octet_length(q.raw) + coalesce(octet_length(m.key), 0) + pg_column_size(m.headers)) "
        "OVER (ORDER BY quarantine_id) AS so_far "
        "FROM first JOIN kb.quarantined_record q USING (quarantine_id) JOIN kb.quarantined_message m USING (quarantine_id)) "
        f"SELECT quarantine_id, letter, q.reason, q.detail, {MESSAGE_COLUMNS} FROM sized "
        "JOIN kb.quarantined_record q USING (quarantine_id) JOIN kb.quarantined_message m USING (quarantine_id) "
        "WHERE place = 1 OR so_far <= %(bytes)s ORDER BY quarantine_id",
        {"topic": dlq_topic, "limit": limit, "bytes": most_bytes},
    )
    found: list[DeadLetter] = []
    for quarantine_id, letter, reason, detail, *stored in rows:
        message, topic_id = message_from(stored)
        found.append(DeadLetter(quarantine_id, letter, reason, detail, message, topic_id))
    return found


def count_waiting(connection: Connection, dlq_topic: str) -> int:
    """How many letters wait."""
    return int(
        scalar(
            connection,
            "SELECT count(*) FROM kb.dead_letter WHERE topic = %s AND published_at IS NULL",
            (dlq_topic,),
        )
    )


def published(connection: Connection, letters: Sequence[UUID]) -> int:
    """These letters are in their topic, where readers of what is committed find them. How many were not noted before."""
    return connection.execute(
        "UPDATE kb.dead_letter SET published_at = now() WHERE letter = ANY(%s) AND published_at IS NULL",
        (list(letters),),
    ).rowcount


def positions(connection: Connection, dlq_topic: str, topic_id: str) -> dict[int, int]:
    """Up to where this very topic was looked at; nothing of another one that had its name before."""
    return dict(
        connection.execute(
            "SELECT partition, next_offset FROM kb.dead_letter_position WHERE topic = %s AND topic_id = %s "
            "ORDER BY partition",
            (dlq_topic, topic_id),
        ).fetchall()
    )


def set_positions(
    connection: Connection, dlq_topic: str, topic_id: str, positions: Mapping[int, int]
) -> None:
    """The topic was looked at up to there."""
    connection.execute(
        "INSERT INTO kb.dead_letter_position (topic, partition, topic_id, next_offset) "
        "SELECT %s, partition, %s, next_offset FROM unnest(%s::integer[], %s::bigint[]) AS p (partition, next_offset) "
        "ORDER BY partition "
        "ON CONFLICT (topic, partition) DO UPDATE SET topic_id = excluded.topic_id, next_offset = excluded.next_offset",
        (dlq_topic, topic_id, list(positions), list(positions.values())),
    )


@contextmanager
def only_publisher(database: Database, dlq_topic: str) -> Generator[bool]:
    """Whether the topic's letters are this caller's to publish now; False when another one does. The lock goes with its
    holder. Raises DatabaseUnavailable."""
    # Through the pool first: it starts a server of ours that is down.
    with database.snapshot():
        pass
    with psycopg.connect(database.url, autocommit=True, connect_timeout=int(CONNECT_TIMEOUT_S)) as connection:
        yield bool(
            scalar(
                connection,
                "SELECT pg_try_advisory_lock(hashtext('kb.dead_letter'), hashtext(%s))",
                (dlq_topic,),
            )
        )
