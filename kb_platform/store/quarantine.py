"""Quarantine: records that are not releases, with their bytes and the reason, until someone deals with them.

A record of a file or a poll is known by its bytes; a message of a topic by where it stood, and the first time that it is
refused it becomes a dead letter (`dead_letters` says which of them are published).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from kb_platform.errors import NotKnown
from kb_platform.sources.message import DEAD_LETTERS, Message
from kb_platform.sources.release import Refused
from kb_platform.store.database import Connection, scalar

# bytea holds 1 GB, but one row of that size stops a dump; the operator still has the file.
MOST_BYTES = 16 * 1_048_576
# Behind the name of a topic stands its dead letters'.

_COLUMNS = (
    "quarantine_id, repository, origin, reason, detail, {raw}, raw_bytes, first_seen_at, last_seen_at, attempts, "
    'resolved_at, resolution, topic, topic_id, partition, "offset", dead_letter_at'
)


class Quarantined(NamedTuple):
    """A quarantined record. `raw` is cut to 16 MiB; `raw_bytes` is the true length.

    Of a message: where it stood, and when it was published as a dead letter (None: not yet).
    """

    quarantine_id: int
    repository: str | None
    origin: str
    reason: str
    detail: str
    raw: bytes
    raw_bytes: int
    first_seen_at: datetime
    last_seen_at: datetime
    attempts: int
    resolved_at: datetime | None
    resolution: str | None
    topic: str | None = None
    topic_id: str | None = None
    partition: int | None = None
    offset: int | None = None
    dead_letter_at: datetime | None = None


class RefusedMessage(NamedTuple):
    """A message that is not to be understood. `repository`: whose it is, where that much is known."""

    message: Message
    topic_id: str
    reason: str
    detail: str
    repository: str | None = None


def put(connection: Connection, refused: Sequence[Refused]) -> int:
    """Set records apart; the same bytes again only count an attempt. Returns how many were not there before."""
    if refused:
        lock(connection)
    new = 0
    for item in refused:
        row = connection.execute(
            """
            INSERT INTO kb.quarantined_record (fingerprint, repository, origin, reason, detail, raw, raw_bytes)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (fingerprint) DO UPDATE SET attempts = kb.quarantined_record.attempts + 1,
                last_seen_at = now(), reason = excluded.reason, detail = excluded.detail,
                resolved_at = NULL, resolution = NULL
            RETURNING attempts
            """,
            (
                _fingerprint(item.raw),
                item.repository,
                storable(item.origin),
                item.reason,
                storable(item.detail),
                item.raw[:MOST_BYTES],
                item.raw_bytes or len(item.raw),
            ),
        ).fetchone()
        new += int(row is not None and row[0] == 1)
    return new


def put_messages(connection: Connection, refused: Sequence[RefusedMessage]) -> int:
    """Set messages apart, in their order, and have them published as dead letters. Returns how many were not there before.

    The same place in the same topic again only counts an attempt, whoever read it; the same bytes at two places are two.
    """
    # One row for each place, or the statement would change one twice.
    chosen = {_place_fingerprint(item): item for item in refused}
    if not chosen:
        return 0
    lock(connection)
    rows = connection.execute(
        """
        INSERT INTO kb.quarantined_record (fingerprint, repository, origin, reason, detail, raw, raw_bytes)
        SELECT fingerprint, repository, origin, reason, detail, raw, raw_bytes
        FROM unnest(%b::bytea[], %s::text[], %s::text[], %s::text[], %s::text[], %b::bytea[], %s::bigint[])
            WITH ORDINALITY AS item (fingerprint, repository, origin, reason, detail, raw, raw_bytes, ordinal)
        ORDER BY ordinal
        ON CONFLICT (fingerprint) DO UPDATE SET attempts = kb.quarantined_record.attempts + 1,
            last_seen_at = now(), reason = excluded.reason, detail = excluded.detail,
            resolved_at = NULL, resolution = NULL
        RETURNING quarantine_id, fingerprint, xmax = 0
        """,
        (
            list(chosen),
            [item.repository for item in chosen.values()],
            [storable(item.message.place) for item in chosen.values()],
            [storable(item.reason) for item in chosen.values()],
            [storable(item.detail) for item in chosen.values()],
            [(item.message.value or b"")[:MOST_BYTES] for item in chosen.values()],
            [len(item.message.value or b"") for item in chosen.values()],
        ),
    ).fetchall()
    new = [(row[0], chosen[bytes(row[1])]) for row in rows if row[2]]
    if new:
        _keep_messages(connection, new)
        connection.execute(
            "INSERT INTO kb.dead_letter (quarantine_id, topic) SELECT * FROM unnest(%s::bigint[], %s::text[])",
            ([one for one, _ in new], [item.message.topic + DEAD_LETTERS for _, item in new]),
        )
    return len(new)


def message_of(connection: Connection, quarantine_id: int) -> tuple[Message, str] | None:
    """The message behind a record, and its topic's id; None where the record was none of a topic.

    Its value is cut where the record's `raw` is.
    """
    row = connection.execute(
        f"SELECT {MESSAGE_COLUMNS} FROM kb.quarantined_message m JOIN kb.quarantined_record q USING (quarantine_id) "
        "WHERE quarantine_id = %s",
        (quarantine_id,),
    ).fetchone()
    return None if row is None else message_from(row)


def lock(connection: Connection) -> None:
    """One at a time writes records, until the transaction ends.

    Two that meet the same bad records in different orders would wait for each other in a circle.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('kb.quarantine', 0))")


def resolve(connection: Connection, quarantine_id: int, resolution: str) -> None:
    """Mark a record as dealt with; it stays, for the record."""
    connection.execute(
        "UPDATE kb.quarantined_record SET resolved_at = now(), resolution = %s WHERE quarantine_id = %s",
        (resolution, quarantine_id),
    )


def retried(connection: Connection, quarantine_id: int, reason: str, detail: str) -> None:
    """A replay failed (again)."""
    connection.execute(
        "UPDATE kb.quarantined_record SET attempts = attempts + 1, last_seen_at = now(), reason = %s, detail = %s "
        "WHERE quarantine_id = %s",
        (reason, storable(detail), quarantine_id),
    )


def listed(connection: Connection, *, resolved: bool = False) -> list[Quarantined]:
    """Open records (or those dealt with), oldest first, with the first 200 bytes of each."""
    rows = connection.execute(
        f"SELECT {_COLUMNS.format(raw='substring(raw FOR 200)')} FROM kb.quarantine "
        "WHERE (resolved_at IS NOT NULL) = %s ORDER BY quarantine_id",
        (resolved,),
    ).fetchall()
    return [Quarantined(*row) for row in rows]


def get(connection: Connection, quarantine_id: int) -> Quarantined:
    """One record. Raises NotKnown."""
    row = connection.execute(
        f"SELECT {_COLUMNS.format(raw='raw')} FROM kb.quarantine WHERE quarantine_id = %s", (quarantine_id,)
    ).fetchone()
    if row is None:
        raise NotKnown(
            f"no quarantined record {quarantine_id}", hint="`kb quarantine list` shows their numbers"
        )
    return Quarantined(*row)


def open_by_reason(connection: Connection, repository: str | None = None) -> dict[str, int]:
    """How many records wait, by reason; of one repository, or of all."""
    rows = connection.execute(
        "SELECT reason, count(*) FROM kb.quarantined_record WHERE resolved_at IS NULL "
        "AND (%(name)s::text IS NULL OR lower(repository) = lower(%(name)s)) GROUP BY reason ORDER BY reason",
        {"name": repository},
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def seen_since(connection: Connection, moment: datetime) -> int:
    """How many open records were seen for the first time since then."""
    return int(
        scalar(
            connection,
            "SELECT count(*) FROM kb.quarantined_record WHERE resolved_at IS NULL AND first_seen_at >= %s",
            (moment,),
        )
    )


MESSAGE_COLUMNS = (
    'm.topic_id, m.topic, m.partition, m."offset", m."timestamp", m.key, q.raw, m.headers, m.has_value'
)


def message_from(row: Sequence[Any]) -> tuple[Message, str]:
    """A message and its topic's id out of MESSAGE_COLUMNS."""
    topic_id, topic, partition, offset, timestamp, key, raw, headers, has_value = row
    kept = tuple((name, None if value is None else base64.b64decode(value)) for name, value in headers)
    value = bytes(raw) if has_value else None
    return Message(
        topic, partition, offset, timestamp, None if key is None else bytes(key), value, kept
    ), topic_id


def _keep_messages(connection: Connection, new: Sequence[tuple[int, RefusedMessage]]) -> None:
    messages = [item.message for _, item in new]
    connection.execute(
        'INSERT INTO kb.quarantined_message (quarantine_id, topic, topic_id, partition, "offset", "timestamp", key, headers, '
        "has_value) SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::integer[], %s::bigint[], "
        "%s::timestamptz[], %b::bytea[], %s::jsonb[], %s::boolean[])",
        (
            [one for one, _ in new],
            [message.topic for message in messages],
            [item.topic_id for _, item in new],
            [message.partition for message in messages],
            [message.offset for message in messages],
            [message.timestamp for message in messages],
            [None if message.key is None else message.key[:MOST_BYTES] for message in messages],
            [Jsonb([_header(*header) for header in message.headers]) for message in messages],
            [message.value is not None for message in messages],
        ),
    )


def _header(name: str, value: bytes | None) -> list[str | None]:
    return [storable(name), None if value is None else base64.b64encode(value).decode()]


def _place_fingerprint(item: RefusedMessage) -> bytes:
    place = f"{item.topic_id}\n{item.message.partition}\n{item.message.offset}"
    # No record's bytes are likely to begin like this; were they to, the two would be one record.
    return hashlib.sha256(b"\0kb.message\n" + place.encode("utf-8", "backslashreplace")).digest()


def _fingerprint(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def storable(text: str) -> str:
    """A text as PostgreSQL takes it, cut to 2,000 characters."""
    return text.replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()[:2_000]
