"""Work whose runs failed and that was not done since, as Dagster's run records tell.

Belongs here: which failed runs are tries at the same work, which later run did it after all, what went wrong. Does not
belong here: what is said about it (`kb_platform.stages.alerting`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from assets import chunks, embeddings, release_index
from assets.jobs import REFRESH
from assets.partitions import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG, known_partitions
from kb_platform.stages.alerting import FailedRun

# What failed earlier and was not tried again since is given up, or done in another way.
LOOKED_BACK = timedelta(days=7)
# A piece of work that fails is tried about 170 times a week.
MOST_RUNS = 500
MOST_SUCCESSES = 200
MOST_NAMED = 25
# Dagster's own retry follows within a minute; if it has not by now, nobody makes it.
RETRY_WITHIN = timedelta(hours=1)
WILL_RETRY_TAG = "dagster/will_retry"

_INDEXING = frozenset({chunks.KEY, embeddings.KEY, release_index.KEY})


@dataclass(frozen=True)
class FailedWork:
    """What failed; `complete`: whether that is all."""

    runs: list[FailedRun]
    complete: bool


def failed_work(instance: dg.DagsterInstance, stale: Collection[str], now: datetime) -> FailedWork:
    """The work that failed in the last days and was not done since, the latest first.

    `stale`: the repositories that the index does not reflect; a failed refresh of others has nothing left to do.
    """
    since = now - LOOKED_BACK
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since)
    records = instance.get_run_records(failed, limit=MOST_RUNS)
    if not records:
        return FailedWork([], complete=True)
    order = {name: place for place, name in enumerate(known_partitions(instance))}
    places = sorted(order[name] for name in stale if name in order)
    tries = sorted((_Try.of(record, order) for record in records), key=lambda one: one.ended_at, reverse=True)
    done = _successes(instance, tries, order)
    chains: list[tuple[_Try, _Try]] = []
    for one in tries:
        if one.is_retried(now) or one.has_nothing_left(places) or any(other.did(one) for other in done):
            continue
        for number, (latest, _) in enumerate(chains):
            if latest.includes(one):
                # A refresh takes more repositories along as they get stale; it keeps the name that it failed under first.
                chains[number] = (latest, one)
                break
        else:
            chains.append((one, one))
    return FailedWork(
        [_described(instance, latest, earliest) for latest, earliest in chains[:MOST_NAMED]],
        complete=len(records) < MOST_RUNS and len(chains) <= MOST_NAMED,
    )


@dataclass(frozen=True)
class _Try:
    """A run that ended. It took the partitions from place `first` to `last` (none: `first` > `last`)."""

    run: dg.DagsterRun
    ended_at: datetime
    first: int
    last: int

    @classmethod
    def of(cls, record: dg.RunRecord, order: dict[str, int]) -> _Try:
        tags = record.dagster_run.tags
        start, end = _ends(tags)
        first, last = 0, len(order) - 1
        if start is not None and end is not None:
            known = start in order and end in order
            first, last = (order[start], order[end]) if known else (1, 0)
        ended = record.update_timestamp.replace(tzinfo=UTC)
        if record.end_time is not None:
            ended = datetime.fromtimestamp(record.end_time, UTC)
        return cls(record.dagster_run, ended, first, last)

    def is_retried(self, now: datetime) -> bool:
        """Whether Dagster runs this again by itself."""
        return self.run.tags.get(WILL_RETRY_TAG) == "true" and now - self.ended_at < RETRY_WITHIN

    def has_nothing_left(self, stale: Sequence[int]) -> bool:
        """Whether this was to bring repositories up to date that are so by now. `stale`: places, sorted."""
        selection = self.run.asset_selection
        if not (selection & _INDEXING if selection else self.run.job_name == REFRESH):
            return False
        place = bisect_left(stale, self.first)
        return place == len(stale) or stale[place] > self.last

    def includes(self, other: _Try) -> bool:
        """Whether this run was to do all that the other was to do."""
        mine, theirs = self.run.asset_selection, other.run.asset_selection
        return (
            self.run.job_name == other.run.job_name
            and (not mine or bool(theirs and theirs <= mine))
            and (self._takes_all or _ends(self.run.tags) == _ends(other.run.tags) or self._spans(other))
        )

    def did(self, other: _Try) -> bool:
        """Whether this success makes up for the other's failure."""
        return self.ended_at >= other.ended_at and self.includes(other)

    @property
    def subject(self) -> str:
        """The work in a few words."""
        selection = self.run.asset_selection
        work = self.run.job_name
        if selection:
            work = ", ".join(sorted(key.to_user_string() for key in selection))
        start, end = _ends(self.run.tags)
        if start is None:
            return work
        return f"{work} of {start}" if start == end else f"{work} of {start} to {end}"

    @property
    def _takes_all(self) -> bool:
        return _ends(self.run.tags)[0] is None

    def _spans(self, other: _Try) -> bool:
        return other.first <= other.last and self.first <= other.first and other.last <= self.last


def _ends(tags: Any) -> tuple[str | None, str | None]:
    if PARTITION_TAG in tags:
        return tags[PARTITION_TAG], tags[PARTITION_TAG]
    return tags.get(RANGE_START_TAG), tags.get(RANGE_END_TAG)


def _successes(instance: dg.DagsterInstance, failed: Sequence[_Try], order: dict[str, int]) -> list[_Try]:
    """The latest successes of the jobs that failed."""
    found: list[_Try] = []
    for job in {one.run.job_name for one in failed}:
        earliest = min(one.ended_at for one in failed if one.run.job_name == job)
        filters = dg.RunsFilter(
            job_name=job,
            statuses=[dg.DagsterRunStatus.SUCCESS],
            updated_after=earliest - timedelta(minutes=1),
        )
        found += [
            _Try.of(record, order) for record in instance.get_run_records(filters, limit=MOST_SUCCESSES)
        ]
    return found


def _described(instance: dg.DagsterInstance, latest: _Try, earliest: _Try) -> FailedRun:
    run_id = latest.run.run_id
    failures = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1).records
    if failures:
        event = failures[0].event_log_entry.dagster_event
        if event is not None:
            return FailedRun(earliest.subject, run_id, event.step_key, _first_line(_error(event)))
    ends = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.RUN_FAILURE, limit=1).records
    event = ends[0].event_log_entry.dagster_event if ends else None
    return FailedRun(earliest.subject, run_id, None, _first_line(event.message if event else None))


def _error(event: dg.DagsterEvent) -> str | None:
    """The sentence of a deliberate failure, else the error as our code raised it: Dagster wraps it."""
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error is not None and error.cause is not None and str(error.cls_name).startswith("Dagster"):
        error = error.cause
    # `kb_platform.errors.StoreError: …`: where the class is defined helps nobody.
    return re.sub(r"^[\w.]+\.(?=\w+: )", "", error.message.strip()) if error is not None else None


def _first_line(text: str | None) -> str | None:
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), None)
