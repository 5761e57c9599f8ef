"""Dagster's own history: old runs go, what tells the state of an asset stays."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from assets.history import prune

PARTITIONS = dg.StaticPartitionsDefinition(["a", "b", "c", "d"])
SUCCESS = dg.DagsterRunStatus.SUCCESS
LATER = datetime.now(UTC) + timedelta(days=1)


@dg.asset(partitions_def=PARTITIONS)
def made() -> None: ...


@dg.op
def nothing() -> None: ...


@dg.job
def routine() -> None:
    nothing()


DEFS = dg.Definitions(assets=[made], jobs=[routine])


@pytest.fixture
def instance() -> Generator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def make(instance: dg.DagsterInstance, partition: str) -> str:
    job = DEFS.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, partition_key=partition).run_id


def test_the_last_materialization_of_each_partition_stays(instance: dg.DagsterInstance) -> None:
    old, last_a, last_b = make(instance, "a"), make(instance, "a"), make(instance, "b")
    pruned = prune(instance, LATER)
    assert pruned == (1, 2)
    assert not instance.has_run(old)
    assert instance.has_run(last_a)
    assert instance.has_run(last_b)
    assert instance.get_materialized_partitions(dg.AssetKey("made")) == {"a", "b"}


def test_runs_that_made_nothing_go_but_the_last(instance: dg.DagsterInstance) -> None:
    runs = [routine.execute_in_process(instance=instance).run_id for _ in range(5)]
    last_made = make(instance, "a")
    assert prune(instance, LATER).deleted == 4
    assert [instance.has_run(run) for run in runs] == [False] * 4 + [True]
    assert instance.has_run(last_made)
    assert instance.all_logs(runs[0]) == []


def test_what_is_younger_or_still_runs_stays(instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        routine.execute_in_process(instance=instance)
    going = instance.create_run_for_job(routine)
    assert prune(instance, datetime.now(UTC) - timedelta(days=1)) == (0, 0)
    assert prune(instance, LATER).deleted == 2
    assert instance.has_run(going.run_id)


def test_more_runs_than_a_page_are_pruned_and_one_night_need_not_do_all(instance: dg.DagsterInstance) -> None:
    for _ in range(7):
        routine.execute_in_process(instance=instance)
    assert prune(instance, LATER, longest_s=0.0).deleted == 1
    assert prune(instance, LATER, page=2).deleted == 5
    assert prune(instance, LATER, page=2) == (0, 1)


def test_pages_go_on_where_runs_stay_and_others_go(instance: dg.DagsterInstance) -> None:
    kept: list[str] = []
    for partition in ("a", "b", "c", "d"):
        routine.execute_in_process(instance=instance)
        make(instance, partition)
        kept.append(make(instance, partition))
    assert prune(instance, LATER, page=2) == (7, 5)
    assert all(instance.has_run(run) for run in kept)
    assert instance.get_runs_count() == 5


def test_the_last_run_of_a_job_that_is_seldom_run_stays(instance: dg.DagsterInstance) -> None:
    """Among 144 polls a day, a job that ran two days ago is not one of the last 200 runs."""
    seldom = [
        instance.add_run(dg.DagsterRun(job_name="seldom", run_id=f"seldom-{n}", status=SUCCESS))
        for n in (1, 2)
    ]
    for n in range(250):
        instance.add_run(dg.DagsterRun(job_name="often", run_id=f"often-{n}", status=SUCCESS))
    assert prune(instance, LATER) == (250, 2)
    assert [instance.has_run(run.run_id) for run in seldom] == [False, True]
