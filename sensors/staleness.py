"""The sensor that keeps the index fresh: what the log has and the index has not, is refreshed."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg

from assets.jobs import REFRESH
from assets.partitions import REPOSITORIES, known_partitions, range_tags, ranges
from assets.refresh import WORK_TAG, close_abandoned
from kb_platform.settings import Settings
from kb_platform.stages.staleness import Work, work_left
from kb_platform.store.database import Database
from sensors.opening import opened_once
from sensors.patience import NoAnswer, Patience
from sensors.status import default_sensor_status
from sensors.under_way import being_refreshed, tried

# The daemon looks at its sensors every 5 seconds, and leaves out one whose interval is not quite over: with 5 here every
# other tick came after 10. A look costs a few milliseconds.
SECONDS_BETWEEN = 3
# Beyond 60 s Dagster kills a tick; beyond a few, other sensors of the code location wait.
MOST_SECONDS = 4.0
# What remains is asked for at a later tick; a queue of hundreds helps nobody.
MOST_REQUESTS = 8


def stale_index_sensor(settings: Settings, database: Database | None = None) -> dg.SensorDefinition:
    """Asks for a `refresh` of what is stale. `database`: of the settings of the process that evaluates, by default."""
    patience: Patience[Work] = Patience(MOST_SECONDS)
    opened = opened_once(database)

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
        name="stale_index",
        job_name=REFRESH,
        minimum_interval_seconds=SECONDS_BETWEEN,
        default_status=default_sensor_status(settings),
        description="Compares the log with the index and asks for a refresh of the repositories whose news the index does "
        "not have, unless a run is busy with them. Work that was tried in vain is tried again after a pause that doubles.",
    )
    def stale_index(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            work = patience.ask(lambda: work_left(opened()))
        except NoAnswer as error:
            return dg.SkipReason(f"the database is not looked at: {error}")
        if not work.repositories:
            return dg.SkipReason("the index reflects the whole log")
        return _requests(context.instance, work)

    return stale_index


def _requests(instance: dg.DagsterInstance, work: Work) -> dg.SensorResult | dg.SkipReason:
    close_abandoned(instance)
    known = known_partitions(instance)
    missing = [name for name in work.repositories if name not in set(known)]
    order = [*known, *missing]
    busy = being_refreshed(instance, order)
    free = [name for name in work.repositories if name not in busy]
    now = datetime.now(UTC)
    requests: list[dg.RunRequest] = []
    pauses: list[float] = []
    for keys in ranges(order, set(free)):
        part = set(order[order.index(keys.start) : order.index(keys.end) + 1]) & set(free)
        fingerprint = work.fingerprint(part)
        if pause := tried(instance, fingerprint).pause_left(now).total_seconds():
            pauses.append(pause)
        else:
            requests.append(dg.RunRequest(tags={WORK_TAG: fingerprint} | range_tags(keys)))
    additions = [REPOSITORIES.build_add_request(missing)] if missing else []
    if not requests:
        return dg.SensorResult(
            dynamic_partitions_requests=additions, skip_reason=_why_nothing(work, free, pauses)
        )
    return dg.SensorResult(run_requests=requests[:MOST_REQUESTS], dynamic_partitions_requests=additions)


def _why_nothing(work: Work, free: list[str], pauses: list[float]) -> str:
    stale = f"{len(work.repositories):,} repositories are stale"
    if not free:
        return f"{stale}, and runs are busy with all of them"
    return f"{stale}; refreshes of them were in vain, the next try is in {min(pauses):,.0f} s"
