"""Quarantine: records that are not releases, with their bytes and the reason, until someone deals with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from kb_platform.errors import NotKnown
from kb_platform.sources.release import Refused
from kb_platform.store.database import Connection, scalar

# bytea holds 1 GB, but one row of that size stops a dump; the operator still has the file.
MOST_BYTES = 16 * 1_048_576


class Quarantined(NamedTuple):
    """A quarantined record. `raw` is cut to 16 MiB; `raw_bytes` is the true length."""

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


def put(connection: Connection, refused: Sequence[Refused]) -> int:
    """Set records apart; the same bytes again only count an attempt. Returns how many were not there before."""
    if refused:
        # Two imports that meet the same bad records in different orders would wait for each other in a circle.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('kb.quarantine', 0))")
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
                _storable(item.origin),
                item.reason,
                _storable(item.detail),
                item.raw[:MOST_BYTES],
                item.raw_bytes or len(item.raw),
            ),
        ).fetchone()
        new += int(row is not None and row[0] == 1)
    return new


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
        (reason, _storable(detail), quarantine_id),
    )


def listed(connection: Connection, *, resolved: bool = False) -> list[Quarantined]:
    """Open records (or those dealt with), oldest first, with the first 200 bytes of each."""
    rows = connection.execute(
        "SELECT quarantine_id, repository, origin, reason, detail, substring(raw FOR 200), raw_bytes, first_seen_at, "
        "last_seen_at, attempts, resolved_at, resolution FROM kb.quarantine "
        "WHERE (resolved_at IS NOT NULL) = %s ORDER BY quarantine_id",
        (resolved,),
    ).fetchall()
    return [Quarantined(*row) for row in rows]


def get(connection: Connection, quarantine_id: int) -> Quarantined:
    """One record. Raises NotKnown."""
    row = connection.execute(
        "SELECT * FROM kb.quarantine WHERE quarantine_id = %s", (quarantine_id,)
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


def _fingerprint(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def _storable(text: str) -> str:
    return text.replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()[:2_000]
