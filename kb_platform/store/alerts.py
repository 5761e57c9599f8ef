"""Alerts: what a person should know of, one row while it lasts, and whether the webhook was told.

Does not belong here: what is worth an alert and in which words (`stages.alerting`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from kb_platform.store.database import Connection, scalar

Severity = Literal["warning", "error"]

KEPT = timedelta(days=90)
# Old news: a webhook that is set up today need not hear of what ended before.
TOLD_WITHIN = timedelta(days=1)
# Thousands of alerts that only go on are not written anew at every tick: 5,000 rows every 30 s would be 14 million dead
# rows a day.
SEEN_AGAIN_AFTER = timedelta(minutes=10)
# A value in an index may have 2,704 bytes.
_LONGEST_SUBJECT = 300


@dataclass(frozen=True)
class Problem:
    """Something that is wrong now. `kind` and `subject` together say whether it is the same as another."""

    kind: str
    subject: str
    severity: Severity
    message: str


@dataclass(frozen=True)
class Alert:
    """A problem as it was recorded. `attempts`: how often in vain the webhook was to be told since the last news."""

    alert_id: int
    kind: str
    subject: str
    severity: Severity
    message: str
    raised_at: datetime
    last_seen_at: datetime
    resolved_at: datetime | None
    told_at: datetime | None
    told_resolved_at: datetime | None
    attempts: int
    last_error: str | None


@dataclass(frozen=True)
class Changes:
    """What is new since it was last looked."""

    raised: tuple[Alert, ...]
    resolved: tuple[Alert, ...]


_COLUMNS = (
    "alert_id, kind, subject, severity, message, raised_at, last_seen_at, resolved_at, told_at, told_resolved_at, "
    "attempts, last_error"
)


def bring_up_to_date(
    connection: Connection,
    kinds: Collection[str],
    problems: Sequence[Problem],
    now: datetime,
    *,
    resolve: bool = True,
) -> Changes:
    """Make the open alerts of these kinds those of the problems: open, refresh, resolve.

    `resolve=False` where not all problems are known: then what is missing from them is left open.
    """
    # Who looks later must see what an earlier one is about to commit, or it would leave open what it should resolve.
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('kb.alert', 0))")
    raised = _raise(connection, problems, now)
    resolved = _resolve_others(connection, kinds, problems, now) if resolve else ()
    connection.execute("DELETE FROM kb.alert WHERE resolved_at < %s", (now - KEPT,))
    return Changes(raised, resolved)


def _raise(connection: Connection, problems: Sequence[Problem], now: datetime) -> tuple[Alert, ...]:
    if not problems:
        return ()
    rows = connection.execute(
        f"""
        INSERT INTO kb.alert AS open (kind, subject, severity, message, raised_at, last_seen_at)
        SELECT DISTINCT ON (kind, subject) kind, subject, severity, message, %(now)s, %(now)s
        FROM unnest(%(kinds)s::text[], %(subjects)s::text[], %(severities)s::text[], %(messages)s::text[])
            AS problem (kind, subject, severity, message)
        ON CONFLICT (kind, subject) WHERE resolved_at IS NULL DO UPDATE
            SET severity = excluded.severity, message = excluded.message, last_seen_at = excluded.last_seen_at
            WHERE (open.severity, open.message) <> (excluded.severity, excluded.message)
               OR open.last_seen_at <= excluded.last_seen_at - %(again)s::interval
        RETURNING (xmax = 0) AS is_new, {_COLUMNS}
        """,
        {
            "now": now,
            "again": SEEN_AGAIN_AFTER,
            "kinds": [problem.kind for problem in problems],
            "subjects": [_key(problem) for problem in problems],
            "severities": [problem.severity for problem in problems],
            "messages": [storable(problem.message) for problem in problems],
        },
    ).fetchall()
    return tuple(Alert(*row[1:]) for row in rows if row[0])


def _resolve_others(
    connection: Connection, kinds: Collection[str], problems: Sequence[Problem], now: datetime
) -> tuple[Alert, ...]:
    rows = connection.execute(
        f"""
        UPDATE kb.alert SET resolved_at = %(now)s, attempts = 0, last_error = NULL
        WHERE resolved_at IS NULL AND kind = ANY(%(kinds)s) AND NOT EXISTS (
            SELECT FROM unnest(%(open_kinds)s::text[], %(subjects)s::text[]) AS problem (kind, subject)
            WHERE problem.kind = kb.alert.kind AND problem.subject = kb.alert.subject)
        RETURNING {_COLUMNS}
        """,
        {
            "now": now,
            "kinds": list(kinds),
            "open_kinds": [problem.kind for problem in problems],
            "subjects": [_key(problem) for problem in problems],
        },
    ).fetchall()
    return tuple(Alert(*row) for row in rows)


def _key(problem: Problem) -> str:
    """The subject, short enough for the index that keeps it unique."""
    return storable(problem.subject)[:_LONGEST_SUBJECT]


def storable(text: str) -> str:
    """A text as PostgreSQL takes it: error messages may hold anything."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


# --- reading ---


def open_alerts(connection: Connection, *, limit: int | None = None) -> list[Alert]:
    """What is wrong now: errors first, then the oldest."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM kb.alert WHERE resolved_at IS NULL "
        "ORDER BY severity = 'error' DESC, raised_at, kind, subject LIMIT %s",
        (limit,),
    ).fetchall()
    return [Alert(*row) for row in rows]


def resolved_alerts(connection: Connection, *, limit: int) -> list[Alert]:
    """What is over, the latest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM kb.alert WHERE resolved_at IS NOT NULL ORDER BY resolved_at DESC, alert_id DESC LIMIT %s",
        (limit,),
    ).fetchall()
    return [Alert(*row) for row in rows]


def count_open(connection: Connection) -> int:
    """How many alerts are open."""
    return int(scalar(connection, "SELECT count(*) FROM kb.alert WHERE resolved_at IS NULL"))


# --- telling the webhook ---


def only_teller(connection: Connection) -> bool:
    """Whether nobody else is telling the webhook now; if so, nobody else will until the transaction ends."""
    return bool(
        scalar(connection, "SELECT pg_try_advisory_xact_lock(hashtextextended('kb.alert.telling', 0))")
    )


def untold(connection: Connection, now: datetime) -> list[Alert]:
    """What the webhook does not know yet, when some of it is due; else nothing.

    The nth try is due 30 s · (2ⁿ - 1) after the news, and from two hours on at every hour: longer pauses the longer
    nobody answers. What is due takes the rest along.
    """
    rows = connection.execute(
        f"""
        WITH news AS (
            SELECT {_COLUMNS}, coalesce(resolved_at, raised_at) AS since FROM kb.alert
            WHERE (resolved_at IS NULL AND told_at IS NULL)
               OR (resolved_at > %(oldest)s AND told_resolved_at IS NULL)),
        due AS (
            SELECT FROM news
            WHERE %(now)s >= since + make_interval(
                secs => 30 * (power(2, least(attempts, 7)) - 1) + 3600 * greatest(attempts - 7, 0)) LIMIT 1)
        SELECT {_COLUMNS} FROM news WHERE EXISTS (SELECT FROM due)
        ORDER BY resolved_at IS NOT NULL, severity = 'error' DESC, kind, subject
        """,
        {"now": now, "oldest": now - TOLD_WITHIN},
    ).fetchall()
    return [Alert(*row) for row in rows]


def mark_told(connection: Connection, told: Sequence[Alert], now: datetime) -> None:
    """The webhook took this news."""
    connection.execute(
        "UPDATE kb.alert SET told_at = coalesce(told_at, %(now)s), attempts = 0, last_error = NULL, "
        "told_resolved_at = CASE WHEN alert_id = ANY(%(over)s) THEN %(now)s END WHERE alert_id = ANY(%(all)s)",
        {
            "now": now,
            "all": [alert.alert_id for alert in told],
            "over": [alert.alert_id for alert in told if alert.resolved_at is not None],
        },
    )


def mark_untold(connection: Connection, news: Sequence[Alert], error: str) -> None:
    """The webhook did not take this news. `error`: why, without its address."""
    connection.execute(
        "UPDATE kb.alert SET attempts = attempts + 1, last_error = %s WHERE alert_id = ANY(%s)",
        (storable(error), [alert.alert_id for alert in news]),
    )
