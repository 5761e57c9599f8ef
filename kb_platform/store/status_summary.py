"""How the platform is doing, for the status page and for alerts: what is watched, what credentials may still ask,
what was asked, what waits. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kb_platform.store import alerts, index_refresh, index_versions, quarantine, streams
from kb_platform.store.database import Connection, scalar

MOST_ALERTS = 20
HOURS_OF_REQUESTS = 48
# Below this, a failure may be a hiccup; the next poll tells.
FAILING_FROM = 3


@dataclass(frozen=True)
class Watched:
    """A watched repository and how polling it goes. `failures`: in a row."""

    repository: str
    source: str
    stale_after_s: int | None
    added_at: datetime
    due_at: datetime
    polled_at: datetime | None
    verified_at: datetime | None
    outcome: str | None
    truncated: bool
    failures: int
    reason: str | None
    detail: str | None
    failing_since: datetime | None

    @property
    def known_since(self) -> datetime:
        """When it was last verified, or put on the list."""
        return self.verified_at or self.added_at

    def is_stale(self, now: datetime, stale_after: timedelta) -> bool:
        """Whether it was not verified for too long: by its own limit, else by `stale_after`."""
        limit = stale_after if self.stale_after_s is None else timedelta(seconds=self.stale_after_s)
        return now - self.known_since > limit


@dataclass(frozen=True)
class WatchCounts:
    """How many repositories are watched, how many of them fail, and how many were not verified within their limit."""

    watched: int
    failing: int
    stale: int


@dataclass(frozen=True)
class Credential:
    """What a credential may still ask for. `remaining` counts until `reset_at`; None: not known."""

    name: str
    rate_limit: int | None
    remaining: int | None
    reset_at: datetime | None
    blocked_until: datetime | None
    blocked_reason: str | None
    updated_at: datetime


@dataclass(frozen=True)
class Requests:
    """How many requests were answered like this in an hour, over all credentials."""

    hour: datetime
    answer: str
    requests: int


@dataclass(frozen=True)
class Status:
    """All that the status page shows but the list of repositories. `alerts`: the first MOST_ALERTS of `open_alerts`.

    `stale_after`: the limit of repositories that have none of their own. `behind`: what the index does not reflect yet.
    """

    alerts: tuple[alerts.Alert, ...]
    open_alerts: int
    counts: WatchCounts
    credentials: tuple[Credential, ...]
    requests: tuple[Requests, ...]
    index_version: int | None
    model: str | None
    behind: tuple[str, ...]
    quarantine: dict[str, int]
    stale_after: timedelta
    streams: tuple[streams.StreamState, ...] = ()


@dataclass(frozen=True)
class WatchedPage:
    """Some of the watched repositories that a search finds; `found`: how many it finds."""

    rows: tuple[Watched, ...]
    found: int


def status(connection: Connection, now: datetime, stale_after: timedelta) -> Status:
    """See Status. Call inside a snapshot."""
    served = index_versions.active(connection)
    return Status(
        alerts=tuple(alerts.open_alerts(connection, limit=MOST_ALERTS)),
        open_alerts=alerts.count_open(connection),
        counts=watch_counts(connection, now, stale_after),
        credentials=tuple(credentials(connection)),
        requests=tuple(requests(connection, now - timedelta(hours=HOURS_OF_REQUESTS))),
        index_version=served and served.version,
        model=served and served.model,
        behind=tuple(index_refresh.stale_repositories(connection)),
        quarantine=quarantine.open_by_reason(connection),
        stale_after=stale_after,
        streams=tuple(streams.states(connection)),
    )


_IS_STALE = (
    "coalesce(verified_at, added_at) < %(now)s - coalesce(make_interval(secs => stale_after_s), %(limit)s)"
)
_WATCHED = """
    SELECT repository, source, stale_after_s, added_at, due_at, polled_at, verified_at, outcome, truncated, failures,
           reason, detail, failing_since
    FROM kb.watched_repositories
"""


def troubled(connection: Connection, now: datetime, stale_after: timedelta) -> list[Watched]:
    """The watched repositories that are stale or keep failing, by name. `stale_after`: for those without their own limit."""
    rows = connection.execute(
        f"{_WATCHED} WHERE failures >= %(failing)s OR {_IS_STALE} ORDER BY repository",
        {"failing": FAILING_FROM, "now": now, "limit": stale_after},
    ).fetchall()
    return [Watched(*row) for row in rows]


def watched_page(connection: Connection, search: str, *, offset: int, limit: int) -> WatchedPage:
    """Watched repositories whose name contains `search`: failing ones first, then those not verified for longest."""
    condition = "WHERE strpos(lower(repository), lower(%s)) > 0"
    search = alerts.storable(search)
    found = scalar(connection, f"SELECT count(*) FROM kb.watched_repositories {condition}", (search,))
    rows = connection.execute(
        f"{_WATCHED} {condition} ORDER BY failures > 0 DESC, verified_at NULLS FIRST, repository OFFSET %s LIMIT %s",
        (search, offset, limit),
    ).fetchall()
    return WatchedPage(tuple(Watched(*row) for row in rows), int(found))


def watch_counts(connection: Connection, now: datetime, stale_after: timedelta) -> WatchCounts:
    """See WatchCounts."""
    row = connection.execute(
        f"SELECT count(*), count(*) FILTER (WHERE failures > 0), count(*) FILTER (WHERE {_IS_STALE}) "
        "FROM kb.watched_repositories",
        {"now": now, "limit": stale_after},
    ).fetchone()
    return WatchCounts(*row) if row else WatchCounts(0, 0, 0)


def credentials(connection: Connection) -> list[Credential]:
    """All credentials that were ever used, the latest first."""
    rows = connection.execute(
        "SELECT credential, rate_limit, remaining, reset_at, blocked_until, blocked_reason, updated_at "
        "FROM kb.credentials ORDER BY updated_at DESC, credential"
    ).fetchall()
    return [Credential(*row) for row in rows]


def requests(connection: Connection, since: datetime) -> list[Requests]:
    """Requests by hour and kind of answer, the oldest hour first."""
    rows = connection.execute(
        "SELECT hour, answer, sum(requests)::bigint FROM kb.request_tally WHERE hour >= %s "
        "GROUP BY hour, answer ORDER BY hour, answer",
        (since,),
    ).fetchall()
    return [Requests(*row) for row in rows]


def quarantined_since(connection: Connection, moment: datetime) -> dict[str, int]:
    """How many records that still wait were first refused since then, by reason."""
    rows = connection.execute(
        "SELECT reason, count(*) FROM kb.quarantined_record WHERE resolved_at IS NULL AND first_seen_at >= %s "
        "GROUP BY reason ORDER BY reason",
        (moment,),
    ).fetchall()
    return {row[0]: row[1] for row in rows}
