"""Dagster's own history: which of its runs may go, and letting them go.

Dagster prunes ticks by itself (`retention` in `dagster.yaml`) and nothing else: runs, their events and their logs stay for
ever. What must not go is the last materialization of each partition, for by it Dagster knows that the partition exists:
without it automation would make the partition again.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import NamedTuple

import dagster as dg

_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PAGE = 200
# One night need not do all: the next goes on.
LONGEST_S = 600.0


class Pruned(NamedTuple):
    """How many runs went, and how many old ones stay because they hold the state of an asset."""

    deleted: int
    kept: int


def prune(
    instance: dg.DagsterInstance, before: datetime, *, longest_s: float = LONGEST_S, page: int = _PAGE
) -> Pruned:
    """Delete runs that ended and were created before a time, with their events and logs; `page` of them are read at once."""
    ends = time.monotonic() + longest_s
    filters = dg.RunsFilter(statuses=_ENDED, created_before=before)
    needed = _latest_materializations(instance)
    newest: dict[str, str | None] = {}
    deleted = kept = 0
    # A cursor is a run that is still there, so it is the last that stays: what lay between is gone.
    last_kept: str | None = None
    while records := instance.get_run_records(filters, limit=page, cursor=last_kept, ascending=True):
        for record in records:
            run = record.dagster_run
            if run.job_name not in newest:
                newest[run.job_name] = _newest(instance, run.job_name)
            if run.run_id == newest[run.job_name] or _holds(instance, run.run_id, needed):
                kept, last_kept = kept + 1, run.run_id
                continue
            instance.delete_run(run.run_id)
            instance.compute_log_manager.delete_logs(prefix=[run.run_id])
            deleted += 1
            if time.monotonic() > ends:
                return Pruned(deleted, kept)
    return Pruned(deleted, kept)


def _latest_materializations(instance: dg.DagsterInstance) -> set[int]:
    """The event ids of the last materialization of every partition of every asset."""
    found: set[int] = set()
    for key in instance.all_asset_keys():
        by_partition = instance.event_log_storage.get_latest_storage_id_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        found.update(by_partition.values())
        last = instance.get_latest_materialization_event(key)
        if last is not None:
            found |= {
                record.storage_id
                for record in instance.get_records_for_run(
                    last.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
                ).records
            }
    return found


def _newest(instance: dg.DagsterInstance, job: str) -> str | None:
    """A job's last run that ended stays, however old: it holds what its checks found."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_ENDED), limit=1)
    return records[0].dagster_run.run_id if records else None


def _holds(instance: dg.DagsterInstance, run_id: str, needed: set[int]) -> bool:
    cursor: str | None = None
    while True:
        found = instance.get_records_for_run(
            run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=1000, cursor=cursor
        )
        if any(record.storage_id in needed for record in found.records):
            return True
        if not found.has_more:
            return False
        cursor = found.cursor
