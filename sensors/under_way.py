"""Which work is under way or was tried, as Dagster's run records tell.

Belongs here: reading runs. Whether there is work at all is read from the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import dagster as dg

from assets.jobs import REFRESH
from assets.partitions import partitions_of
from assets.refresh import WORK_TAG
from assets.release_index import KEY as INDEX

# A run that has said nothing for so long is not counted on. Steps log a line every few seconds; what is silent for
# longer is a pod that waits for its node, and that has 20 minutes.
LONGEST_SILENCE = timedelta(minutes=30)
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)
MOST_RUNS = 200
MOST_FAILURES = 20
# What ended a run that lived so long is no reason to wait.
SETTLED = timedelta(minutes=1)

_WAITING = [dg.DagsterRunStatus.QUEUED]
_BUSY = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class Tried(NamedTuple):
    """How often a piece of work was run to an end, and when last."""

    times: int
    last_ended_at: datetime | None

    def pause_left(self, now: datetime) -> timedelta:
        """How long to wait before it is tried again: longer each time, since what failed thrice will fail again."""
        if self.last_ended_at is None:
            return timedelta(0)
        pause = min(FIRST_PAUSE * 2 ** min(self.times - 1, 20), LONGEST_PAUSE)
        return max(self.last_ended_at + pause - now, timedelta(0))


def being_refreshed(
    instance: dg.DagsterInstance, order: Sequence[str], *, now: datetime | None = None
) -> set[str]:
    """The repositories that some run will index or is indexing. `order`: all partitions, as Dagster orders them."""
    now = now or datetime.now(UTC)
    found: set[str] = set()
    records = instance.get_run_records(dg.RunsFilter(statuses=[*_WAITING, *_BUSY]), limit=MOST_RUNS)
    for record in records:
        run = record.dagster_run
        if _indexes(run) and (
            run.status in _WAITING or now - _last_sign(instance, record) <= LONGEST_SILENCE
        ):
            found.update(partitions_of(order, dict(run.tags)))
    return found


def tried(instance: dg.DagsterInstance, fingerprint: str) -> Tried:
    """What became of the runs that were started for this very work."""
    records = instance.get_run_records(
        dg.RunsFilter(tags={WORK_TAG: fingerprint}, statuses=_ENDED), limit=MOST_RUNS
    )
    ends = [record.end_time for record in records if record.end_time is not None]
    return Tried(len(records), datetime.fromtimestamp(max(ends), UTC) if ends else None)


def failed_in_a_row(instance: dg.DagsterInstance, job: str, progress_at: datetime | None) -> Tried:
    """How many of a job's last runs failed one after the other, since one that got anywhere (`progress_at`: when work was last
    done at all); none after one that went on for long.

    A killed process is recorded as a failure too: by counting those, three kills within 20 s cost two minutes.
    """
    times = 0
    last: datetime | None = None
    for record in instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_ENDED), limit=MOST_FAILURES):
        if record.dagster_run.status != dg.DagsterRunStatus.FAILURE or _lived(record) >= SETTLED:
            break
        times += 1
        if last is None and record.end_time is not None:
            last = datetime.fromtimestamp(record.end_time, UTC)
        if (
            progress_at is not None
            and record.start_time is not None
            and record.start_time <= progress_at.timestamp()
        ):
            break
    return Tried(times, last)


def _lived(record: dg.RunRecord) -> timedelta:
    if record.start_time is None or record.end_time is None:
        return timedelta(0)
    return timedelta(seconds=record.end_time - record.start_time)


def _indexes(run: dg.DagsterRun) -> bool:
    if run.asset_selection is None:
        return run.job_name == REFRESH
    return INDEX in run.asset_selection


def _last_sign(instance: dg.DagsterInstance, record: dg.RunRecord) -> datetime:
    events = instance.get_records_for_run(record.dagster_run.run_id, limit=1, ascending=False).records
    updated = record.update_timestamp.replace(tzinfo=UTC)
    if not events:
        return updated
    return max(updated, datetime.fromtimestamp(events[0].timestamp, UTC))
