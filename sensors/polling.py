"""The sensor that keeps polling going, and the partitions in step with the watch list. It asks no forge anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import dagster as dg

from assets.partitions import REPOSITORIES, known_partitions
from assets.polling import POLL, longest_start
from kb_platform.settings import Settings
from kb_platform.store import forgetting, polls, watch_list
from kb_platform.store.credentials import is_polling
from kb_platform.store.database import Database
from sensors.opening import Open, opened_once
from sensors.patience import NoAnswer, Patience
from sensors.status import default_sensor_status
from sensors.under_way import failed_in_a_row

# The daemon looks at its sensors every 5 seconds, and leaves out one whose interval is not quite over: with 5 here every
# other tick came after 10.
SECONDS_BETWEEN = 3
MOST_SECONDS = 4.0
# A run takes a few seconds to start: one that is asked for a little early is there when the first repository is due.
AHEAD = timedelta(seconds=5)
MOST_RUNS = 20

_NOT_BEGUN = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]


class _State(NamedTuple):
    """What the database says. `next_due`: None when nothing is watched. `polled_at`: when something was polled last."""

    next_due: datetime | None
    polled_at: datetime | None
    polling: bool
    watched: list[str]
    gone: list[str]


def polling_sensor(settings: Settings, database: Database | None = None) -> dg.SensorDefinition:
    """Asks for a `poll` run when a repository is due and nobody polls."""
    patience: Patience[_State] = Patience(MOST_SECONDS)
    opened = opened_once(database)

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
        name="polling",
        job_name=POLL,
        minimum_interval_seconds=SECONDS_BETWEEN,
        default_status=default_sensor_status(settings),
        description="Keeps one polling run going while a watched repository is due, and the partitions in step with the "
        "watch list. Asks no forge anything itself. Runs that fail are asked for again after a pause that doubles.",
    )
    def polling(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            state = patience.ask(lambda: _look(opened))
        except NoAnswer as error:
            return dg.SkipReason(f"the database is not looked at: {error}")
        partitions = _partition_requests(context.instance, state)
        why_not = _why_not(context.instance, state, settings)
        if why_not is not None:
            return dg.SensorResult(dynamic_partitions_requests=partitions, skip_reason=why_not)
        return dg.SensorResult(run_requests=[dg.RunRequest()], dynamic_partitions_requests=partitions)

    return polling


def _look(opened: Open) -> _State:
    with opened().snapshot() as connection:
        return _State(
            polls.next_due(connection),
            polls.last_polled(connection),
            is_polling(connection),
            [watch.name for watch in watch_list.watched(connection)],
            forgetting.names_without_repository(connection),
        )


def _partition_requests(
    instance: dg.DagsterInstance, state: _State
) -> list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest]:
    known = set(known_partitions(instance))
    missing = [name for name in state.watched if name not in known]
    gone = [name for name in state.gone if name in known]
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if missing:
        requests.append(REPOSITORIES.build_add_request(missing))
    if gone:
        requests.append(REPOSITORIES.build_delete_request(gone))
    return requests


def _why_not(instance: dg.DagsterInstance, state: _State, settings: Settings) -> str | None:
    """Why no run is asked for; None when one is."""
    now = datetime.now(UTC)
    if state.next_due is None:
        return "nothing is watched: `kb watch add OWNER/REPO`"
    if state.polling:
        return "a run is polling"
    if state.next_due > now + AHEAD:
        return f"the next repository is due in {(state.next_due - now).total_seconds():,.0f} s"
    if _is_about_to_poll(instance, now, longest_start(settings)):
        return "a run is about to poll"
    pause = failed_in_a_row(instance, POLL, state.polled_at).pause_left(now).total_seconds()
    return f"the last runs failed; the next try is in {pause:,.0f} s" if pause else None


def _is_about_to_poll(instance: dg.DagsterInstance, now: datetime, longest: timedelta) -> bool:
    if instance.get_run_records(dg.RunsFilter(job_name=POLL, statuses=_NOT_BEGUN), limit=1):
        return True
    # Whoever polls has a lock in the database. A run without it is about to take it, or its process is gone.
    begun = instance.get_run_records(
        dg.RunsFilter(job_name=POLL, statuses=[dg.DagsterRunStatus.STARTED]), limit=MOST_RUNS
    )
    return any(_is_young(record, now, longest) for record in begun)


def _is_young(record: dg.RunRecord, now: datetime, longest: timedelta) -> bool:
    return record.start_time is not None and now.timestamp() - record.start_time < longest.total_seconds()
