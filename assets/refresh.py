"""A refresh in this process: the job `refresh` over what is stale, as the command line runs it.

The runs are recorded in the Dagster instance like any other, so the UI shows them. Whether there is work is read from the
database (`kb_platform.stages.staleness`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from assets.jobs import REFRESH
from assets.partitions import known_partitions, range_tags, ranges, register
from assets.stage import RUN
from kb_platform.stages.staleness import Work, work_left
from kb_platform.store.database import Database
from kb_platform.store.repositories import find_repository

# Another run in the same process costs half a second: smaller gaps than between processes are worth leaving out.
MOST_TAKEN_ALONG = 8
PROCESS_TAG = "kb/process"
WORK_TAG = "kb/work"
# By this the UI knows that a run belongs to the job of our code location: what it launches itself has it too.
LOCATION_TAGS = {".dagster/repository": "__repository__@kb_platform"}


@dataclass
class RefreshResult:
    """What a refresh did, over all its runs. Seconds are those of the stages; `wall_seconds` is all of it.

    `problems`: what failed, a sentence each; `warnings`: what a person should look at some time.
    """

    repositories: int = 0
    releases: int = 0
    releases_chunked: int = 0
    chunks: int = 0
    embedded: int = 0
    reused: int = 0
    tokens: int = 0
    rows_inserted: int = 0
    rows_deleted: int = 0
    embedding_seconds: float = 0.0
    wall_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict[str, float])
    promoted_version: int | None = None
    served_version: int | None = None
    recall_at_10: float | None = None
    run_ids: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything was up to date, so that no run was started."""
        return not self.run_ids

    @property
    def success(self) -> bool:
        """Whether all that was asked for is done."""
        return not self.problems

    @property
    def tokens_per_second(self) -> float:
        """Of the model's share of the time; 0 when nothing was embedded."""
        return self.tokens / self.embedding_seconds if self.embedding_seconds else 0.0


def refresh(
    defs: dg.Definitions,
    database: Database,
    instance: dg.DagsterInstance,
    repositories: Sequence[str] | None = None,
) -> RefreshResult:
    """Bring stale repositories (of these, or of all) up to date; starts no run where there is nothing to do.

    Raises NotKnown for a repository that is not in the log. What fails in a run is in the result.
    """
    started = time.monotonic()
    result = RefreshResult()
    close_abandoned(instance)
    work = work_left(database)
    wanted = _asked_for(database, work, repositories)
    if wanted:
        register(instance, wanted)
        job = defs.resolve_job_def(REFRESH)
        for keys in ranges(known_partitions(instance), set(wanted), most_taken_along=MOST_TAKEN_ALONG):
            _add_run(result, _execute(job, instance, keys, work.fingerprint(wanted)))
    result.wall_seconds = time.monotonic() - started
    return result


def close_abandoned(instance: dg.DagsterInstance) -> list[str]:
    """Runs of the command line whose process was killed are marked as failed; returns their ids.

    Nobody else would: Dagster watches the processes that it has launched, and these it has not. Until then the run looks
    busy for ever, and the staleness sensor would wait for it.
    """
    closed: list[str] = []
    unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
    for run in instance.get_runs(unfinished):
        owner = run.tags.get(PROCESS_TAG)
        if owner is not None and _is_gone(owner):
            instance.report_run_failed(run, f"its process ({owner}) is gone; what it had committed is kept")
            closed.append(run.run_id)
    return closed


def _asked_for(database: Database, work: Work, repositories: Sequence[str] | None) -> list[str]:
    if repositories is None:
        return list(work.repositories)
    with database.snapshot() as connection:
        names = {find_repository(connection, name)[1] for name in repositories}
    return [name for name in work.repositories if name in names]


def _execute(
    job: dg.JobDefinition, instance: dg.DagsterInstance, keys: dg.PartitionKeyRange, fingerprint: str
) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        instance=instance,
        tags={PROCESS_TAG: _this_process(), WORK_TAG: fingerprint} | LOCATION_TAGS | range_tags(keys),
        raise_on_error=False,
        # The log is in the instance, and the command line says what went wrong in its own words.
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def _add_run(result: RefreshResult, run: dg.ExecuteInProcessResult) -> None:
    result.run_ids.append(run.run_id)
    for stage, figures in _figures_by_stage(run).items():
        seconds = float(figures.pop("seconds", 0.0))
        result.stage_seconds[stage] = result.stage_seconds.get(stage, 0.0) + seconds
        for name in ("repositories", "releases", "releases_chunked", "chunks", "embedded", "reused", "tokens",
                     "rows_inserted", "rows_deleted", "embedding_seconds"):  # fmt: skip
            setattr(result, name, getattr(result, name) + figures.get(name, 0))
        for name in ("promoted_version", "served_version", "recall_at_10"):
            setattr(result, name, figures.get(name, getattr(result, name)))
    for check in run.get_asset_check_evaluations():
        if not check.passed:
            told = result.problems if check.severity == dg.AssetCheckSeverity.ERROR else result.warnings
            told.append(f"{check.asset_key.to_user_string()}, {check.check_name}: {check.description}")
    if not run.success:
        result.problems += _failures(run)


def _figures_by_stage(run: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """The figures of the run as a whole, which stand with each of its partitions alike."""
    found: dict[str, dict[str, Any]] = {}
    for event in run.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        stage = materialization.asset_key.to_user_string()
        if stage not in found:
            found[stage] = _plain(materialization.metadata)
    return found


def _plain(metadata: Mapping[str, dg.MetadataValue[Any]]) -> dict[str, Any]:
    return {name.removeprefix(RUN): item.value for name, item in metadata.items() if name.startswith(RUN)}


def _failures(run: dg.ExecuteInProcessResult) -> list[str]:
    failures = [
        f"{event.step_key}: {_message(event.step_failure_data)}"
        for event in run.all_events
        if event.is_step_failure and event.step_failure_data.error is not None
    ]
    return failures or [f"run {run.run_id} did not succeed"]


def _message(data: Any) -> str:
    """The sentence of a deliberate failure, else the innermost error."""
    if data.user_failure_data is not None and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    error = data.error
    while error.cause is not None:
        error = error.cause
    return str(error.message).strip()


def _this_process() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _is_gone(owner: str) -> bool:
    host, _, pid = owner.rpartition("/")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
