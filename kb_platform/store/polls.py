"""What became of polling: when each watched repository is due, what its last poll came to, and for how long it fails.

The list of what is watched is `watch_list`; the pages that a walk saw are `pages`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from kb_platform.errors import NotKnown
from kb_platform.store.database import Connection, scalar
from kb_platform.store.watch_list import WATCHES, Watch

Outcome = Literal["changed", "unchanged", "partial"]


def due(connection: Connection, forge: str, now: datetime, *, limit: int) -> list[Watch]:
    """The repositories of a forge that are due, the longest overdue first."""
    rows = connection.execute(
        f"{WATCHES} WHERE r.forge = %s AND w.due_at <= %s ORDER BY w.due_at, w.repository_id LIMIT %s",
        (forge, now, limit),
    )
    return [Watch(*row) for row in rows]


def next_due(connection: Connection, forge: str | None = None) -> datetime | None:
    """When the next repository (of a forge, or of any) is due; None when none is watched."""
    return scalar(
        connection,
        "SELECT min(w.due_at) FROM kb.watch w JOIN kb.repository r USING (repository_id) "
        "WHERE %(forge)s::text IS NULL OR r.forge = %(forge)s",
        {"forge": forge},
    )


def last_polled(connection: Connection) -> datetime | None:
    """When a watched repository was polled last, whatever came of it; None: never."""
    return scalar(connection, "SELECT max(polled_at) FROM kb.watch")


def forges(connection: Connection) -> list[tuple[str, str | None]]:
    """(source, address or None for the settings' own) of everything that is watched."""
    rows = connection.execute(
        "SELECT DISTINCT source, api_url FROM kb.watch ORDER BY source, api_url NULLS FIRST"
    )
    return [(row[0], row[1]) for row in rows]


def require_watched(connection: Connection, repository_id: int) -> str:
    """The present name of a watched repository; it keeps it and stays watched until the transaction ends.

    Raises NotKnown when it is not watched (any more): a poll must not bring back what a person has just had forgotten.
    """
    row = connection.execute(
        "SELECT r.name FROM kb.watch w JOIN kb.repository r USING (repository_id) WHERE w.repository_id = %s FOR SHARE",
        (repository_id,),
    ).fetchone()
    if row is None:
        raise NotKnown("the repository is not watched any more", hint="`kb watch add OWNER/REPO`")
    return str(row[0])


def identified(connection: Connection, repository_id: int, at: datetime) -> None:
    """The forge was asked for the repository's name and number."""
    connection.execute("UPDATE kb.watch SET identified_at = %s WHERE repository_id = %s", (at, repository_id))


def succeeded(
    connection: Connection,
    repository_id: int,
    outcome: Outcome,
    *,
    truncated: bool,
    at: datetime,
    due_at: datetime,
) -> None:
    """A poll came to an end; what failed before is over."""
    connection.execute(
        "UPDATE kb.watch SET outcome = %s, truncated = %s, polled_at = %s, due_at = %s, failures = 0, reason = NULL, "
        "detail = NULL, failing_since = NULL WHERE repository_id = %s",
        (outcome, truncated, at, due_at, repository_id),
    )


def failed(
    connection: Connection, repository_id: int, reason: str, detail: str, *, at: datetime, due_at: datetime
) -> None:
    """A poll failed; it is tried again at `due_at`."""
    connection.execute(
        "UPDATE kb.watch SET outcome = 'failed', polled_at = %s, due_at = %s, failures = failures + 1, reason = %s, "
        "detail = %s, failing_since = coalesce(failing_since, %s) WHERE repository_id = %s",
        (at, due_at, reason, detail[:2_000], at, repository_id),
    )


def postpone(connection: Connection, repository_id: int, due_at: datetime) -> None:
    """Nothing was asked: it is another's turn first."""
    connection.execute("UPDATE kb.watch SET due_at = %s WHERE repository_id = %s", (due_at, repository_id))
