"""The external asset `github/releases`, observed by polling: one run goes on for a while, then makes way for the next.

A run is a new process, and starting one takes seconds: polling for ten minutes in one keeps news quick and Dagster's
history short (144 runs a day, where a run for every round would be thousands). What the polls saw is recorded by them, in
the database; Dagster's observations are for people who look.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints

import dagster as dg

from assets.placement import on_cpu
from assets.stage import MOST_NAMED, OWNERS, check_result, failing_plainly, named
from kb_platform.settings import Settings
from kb_platform.stages.polling_lane import Attempt
from kb_platform.stages.polling_session import ForgeFor, Session, Totals
from kb_platform.store import watch_list
from kb_platform.store.database import Database
from kb_platform.store.watch_list import Watch

GITHUB_RELEASES = dg.AssetKey(["github", "releases"])
POLL = "poll"
PRIORITY_TAG = "dagster/priority"
SECONDS_BETWEEN_OBSERVATIONS = 60.0

DESCRIPTION = """\
**Releases as GitHub (and Gitea, Forgejo) show them**, in the JSON of their REST APIs, of every repository on the watch list.

They are edited, deleted, re-tagged and back-ported without notice; that is why every list is read to its end and the log
keeps every observation. The job `poll` asks, politely, and records what it sees; releases also come as files (`kb import`).

- *Figures* of an observation are of the time since the one before, a minute mostly.
"""


def polled_releases() -> dg.AssetsDefinition:
    """The external asset with its observation."""

    def poll_forges(
        context: dg.AssetExecutionContext,
        settings: dg.ResourceParam[Settings],
        database: dg.ResourceParam[Database],
        forge_for: dg.ResourceParam[ForgeFor],
    ) -> dg.ObserveResult:
        told = _Telling(context)
        stop = threading.Event()
        session = Session(database, forge_for, settings, stop=stop, tell=told.attempt, beat=told.beat)
        told.take = session.take
        try:
            with failing_plainly():
                if not session.run():
                    context.log.info("another process is polling; nothing to do here")
        except dg.DagsterExecutionInterruptedError:
            # What was polled is recorded, and the next run goes on: told to stop, a session has not failed.
            context.log.info("told to stop")
        return dg.ObserveResult(
            asset_key=GITHUB_RELEASES,
            metadata=_figures(session.take()),
            check_results=[_verified(database, settings)],
        )

    poll_forges.__annotations__ = get_type_hints(poll_forges, include_extras=True) | {
        "return": dg.ObserveResult
    }
    with warnings.catch_warnings():
        # "Beta" like the backfill policies; the older decorator warns of its own deprecated parts.
        warnings.simplefilter("ignore", dg.BetaWarning)
        spec = dg.AssetSpec(
            GITHUB_RELEASES, group_name="sources", kinds={"github"}, owners=OWNERS, description=DESCRIPTION
        )
        decorate: Callable[[Any], dg.AssetsDefinition] = dg.multi_observable_source_asset(
            name="poll_forges",
            specs=[spec],
            check_specs=[
                dg.AssetCheckSpec(
                    "watched_repositories_are_verified",
                    asset=GITHUB_RELEASES,
                    description="Every watched repository could be polled the last time, and was verified within its time. "
                    "The app's status page and `kb watch list` have the reasons at any moment; here they are those of the "
                    "last run's end.",
                )
            ],
        )
        return decorate(poll_forges)


def poll_job(settings: Settings) -> Any:
    """Observes `github/releases`. In one process everywhere: it waits more than it works, so a pod of its own is enough."""
    return dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
        POLL,
        selection=dg.AssetSelection.assets(GITHUB_RELEASES),
        executor_def=dg.in_process_executor,
        # Of runs that wait for a place it is the first: news of forges waits for no flood of events and no great refresh.
        tags={PRIORITY_TAG: "10", **(on_cpu(settings) if settings.kubernetes else {})},
        description="Poll the watched repositories that are due, for `KB_POLL_SESSION_S` seconds. One run polls at a time; "
        "a second one ends at once. The sensor `polling` asks for it.",
    )


def _verified(database: Database, settings: Settings) -> dg.AssetCheckResult:
    now, usual = datetime.now(UTC), timedelta(hours=settings.stale_after_hours)
    with database.snapshot() as connection:
        watched = watch_list.watched(connection)
    failures = {one.name: why for one in watched if (why := _trouble(one, now, usual)) is not None}
    return check_result(
        "watched_repositories_are_verified", failures, passed=f"all {len(watched):,} watched repositories"
    )


def _trouble(watch: Watch, now: datetime, usual: timedelta) -> str | None:
    if watch.failures:
        return f"failed {watch.failures:,} times in a row, {watch.reason}: {watch.detail}"
    longest = timedelta(seconds=watch.stale_after_s) if watch.stale_after_s else usual
    if now - (watch.verified_at or watch.added_at) > longest:
        return f"verified at {watch.verified_at}" if watch.verified_at else "never verified"
    return None


class _Telling:
    """What a session says of itself while it runs: lines in the run's log, observations for the plots."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._attempts: list[Attempt] = []
        self._lock = threading.Lock()
        self._observed_at = time.monotonic()
        self.take: Callable[[], Totals] = Totals

    def attempt(self, attempt: Attempt) -> None:
        """Called in the lanes' threads; Dagster's log is for the run's own."""
        if attempt.outcome == "failed" or attempt.imported.appended or attempt.imported.quarantined:
            with self._lock:
                self._attempts.append(attempt)

    def beat(self) -> None:
        """Called every few seconds in the run's own thread."""
        with self._lock:
            attempts, self._attempts = self._attempts, []
        for attempt in attempts:
            if attempt.outcome == "failed":
                self._context.log.warning("%s: %s, %s", attempt.repository, attempt.reason, attempt.detail)
            else:
                self._context.log.info("%s: %s", attempt.repository, _news(attempt))
        now = time.monotonic()
        if now - self._observed_at >= SECONDS_BETWEEN_OBSERVATIONS:
            self._observed_at = now
            self._context.log_event(dg.AssetObservation(GITHUB_RELEASES, metadata=_figures(self.take())))


def _news(attempt: Attempt) -> str:
    imported = attempt.imported
    parts = [
        f"{count} {name}"
        for name in ("new", "edited", "deleted", "reappeared", "quarantined")
        if (count := getattr(imported, name))
    ]
    return ", ".join(parts) or "nothing new"


def _figures(totals: Totals) -> dict[str, Any]:
    """Of the time since the last observation, a minute mostly: sums over a run would be saw teeth in the plots."""
    figures: dict[str, Any] = {
        "polls": totals.turns,
        "repositories_changed": len(totals.changed_repositories),
        "repositories_failing": len(totals.failures),
        "requests": totals.requests,
        "not_modified_share": round(totals.not_modified_share, 4),
        "releases_new": totals.new,
        "releases_edited": totals.edited,
        "releases_deleted": totals.deleted,
        "records_quarantined": totals.quarantined,
        "longest_wait_past_due_s": round(totals.late_s, 1),
    }
    if totals.failures:
        figures["failing"] = dg.MetadataValue.json(dict(list(totals.failures.items())[:MOST_NAMED]))
        figures["failing_names"] = named(list(totals.failures))
    return figures


def longest_start(settings: Settings) -> timedelta:
    """How long a run may take from its start to its first request: a pod pulls its image first."""
    return timedelta(minutes=5) if settings.kubernetes else timedelta(minutes=1)
