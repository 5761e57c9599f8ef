"""The sensors, evaluated against a real PostgreSQL and a real Dagster instance."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from assets.partitions import known_partitions, range_tags, register
from assets.refresh import PROCESS_TAG, WORK_TAG
from kb_platform.definitions import build_defs
from kb_platform.errors import ModelError
from kb_platform.settings import Settings
from kb_platform.store.database import Database
from sensors.patience import NoAnswer, Patience
from sensors.staleness import MOST_REQUESTS, stale_index_sensor
from sensors.under_way import LONGEST_SILENCE, Tried, being_refreshed
from tests.hashing_embedder import HashingEmbedder
from tests.releases import notes, observe, release


class Watch:
    """The staleness sensor over a knowledge base, and the runs that it asks for."""

    def __init__(self, database: Database, instance: dg.DagsterInstance, embedder: HashingEmbedder) -> None:
        self.database = database
        self.instance = instance
        self.embedder: HashingEmbedder | None = embedder
        self.model = embedder.model
        self.defs = build_defs(
            settings=Settings(),
            database=database,
            load_embedder=self._load,
            configured_model=lambda: self.model,
        )
        self.sensor = stale_index_sensor(Settings(), database)

    def _load(self, _model: object) -> HashingEmbedder:
        if self.embedder is None:
            raise ModelError("the weights are damaged")
        return self.embedder

    def tick(self) -> list[dg.RunRequest]:
        """One evaluation, with what the daemon does about partitions."""
        context = dg.build_sensor_context(
            instance=self.instance, repository_def=self.defs.get_repository_def()
        )
        evaluated = self.sensor.evaluate_tick(context)
        for request in evaluated.dynamic_partitions_requests or []:
            register(self.instance, cast("dg.AddDynamicPartitionsRequest", request).partition_keys)
        self.skipped = evaluated.skip_message
        return list(evaluated.run_requests or [])

    def create(self, request: dg.RunRequest, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
        """The record of the run that a request asks for."""
        job = self.defs.resolve_job_def("refresh")
        location = RegisteredCodeLocationOrigin("kb_platform")
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "refresh")
        pointer = ModuleCodePointer("kb_platform.definitions", "defs")
        return self.instance.create_run_for_job(
            job,
            status=status,
            tags={**request.tags, **tags},
            # Dagster queues no run of which it does not know where its code is.
            remote_job_origin=origin,
            job_code_origin=JobPythonOrigin("refresh", RepositoryPythonOrigin(sys.executable, pointer)),
        )

    def execute(self, request: dg.RunRequest) -> bool:
        """Run what a request asks for."""
        done = self.defs.resolve_job_def("refresh").execute_in_process(
            instance=self.instance, tags=dict(request.tags), raise_on_error=False
        )
        return done.success


@pytest.fixture
def watch(database: Database, hashing_embedder: HashingEmbedder) -> Generator[Watch]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Watch(database, instance, hashing_embedder)


def two_repositories(database: Database) -> None:
    observe(database, "one/alpha", release(1, notes("fix the parser")))
    observe(database, "two/beta", release(1, notes("faster start")))


def partition(request: dg.RunRequest) -> str | None:
    """The partition of a request for one."""
    return request.tags.get("dagster/partition")


def test_news_is_asked_for_once_run_and_then_there_is_nothing_more_to_ask(watch: Watch) -> None:
    two_repositories(watch.database)
    (request,) = watch.tick()
    assert known_partitions(watch.instance) == ["one/alpha", "two/beta"]
    assert request.run_key is None
    assert watch.execute(request)
    assert watch.tick() == []
    assert watch.skipped == "the index reflects the whole log"


def test_a_single_repository_is_asked_for_by_its_partition(watch: Watch) -> None:
    two_repositories(watch.database)
    watch.execute(watch.tick()[0])
    observe(watch.database, "two/beta", release(2, notes("new")))
    (request,) = watch.tick()
    assert partition(request) == "two/beta"
    assert watch.execute(request)
    assert watch.tick() == []


@pytest.mark.parametrize(
    "status",
    [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED],
)
def test_while_a_run_is_busy_with_them_nothing_is_asked(watch: Watch, status: dg.DagsterRunStatus) -> None:
    two_repositories(watch.database)
    (request,) = watch.tick()
    watch.create(request, status)
    assert watch.tick() == []
    assert watch.skipped == "2 repositories are stale, and runs are busy with all of them"
    # What the run does not take is asked for all the same.
    observe(watch.database, "three/gamma", release(1, notes("c")))
    (more,) = watch.tick()
    assert partition(more) == "three/gamma"


def test_runs_that_do_not_index_hold_up_nothing(watch: Watch) -> None:
    two_repositories(watch.database)
    (request,) = watch.tick()
    job = watch.defs.resolve_implicit_global_asset_job_def()
    watch.instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey("raw_releases")}),
        tags=dict(request.tags),
    )
    assert len(watch.tick()) == 1
    watch.instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey("release_index")}),
        tags=dict(request.tags),
    )
    assert watch.tick() == []


def test_a_silent_run_is_not_waited_for_for_ever(watch: Watch) -> None:
    two_repositories(watch.database)
    (request,) = watch.tick()
    watch.create(request, dg.DagsterRunStatus.STARTED)
    order = known_partitions(watch.instance)
    later = datetime.now(UTC) + LONGEST_SILENCE
    assert being_refreshed(watch.instance, order, now=later - timedelta(minutes=1)) == set(order)
    assert being_refreshed(watch.instance, order, now=later + timedelta(minutes=1)) == set()


def test_a_run_whose_process_was_killed_is_closed_and_not_waited_for(watch: Watch) -> None:
    two_repositories(watch.database)
    (request,) = watch.tick()
    # No process has this number: Linux's limit is 4,194,304.
    run = watch.create(
        request, dg.DagsterRunStatus.STARTED, **{PROCESS_TAG: f"{socket.gethostname()}/99999999"}
    )
    watch.tick()
    closed = watch.instance.get_run_by_id(run.run_id)
    assert closed is not None
    assert closed.status == dg.DagsterRunStatus.FAILURE
    assert being_refreshed(watch.instance, known_partitions(watch.instance)) == set()


def test_after_a_failure_the_same_is_asked_for_again_after_a_pause(watch: Watch) -> None:
    two_repositories(watch.database)
    embedder, watch.embedder = watch.embedder, None
    # The first run gets as far as making an index version, which is another state of affairs.
    assert not watch.execute(watch.tick()[0])
    (request,) = watch.tick()
    assert not watch.execute(request)
    assert watch.tick() == []
    assert "in vain, the next try is in" in str(watch.skipped)
    # News is another piece of work, and is asked for at once.
    observe(watch.database, "one/alpha", release(2, notes("news")))
    (again,) = watch.tick()
    assert again.tags[WORK_TAG] != request.tags[WORK_TAG]
    watch.embedder = embedder
    assert watch.execute(again)
    assert watch.tick() == []


def test_the_pause_doubles_up_to_an_hour() -> None:
    now = datetime.now(UTC)
    pauses = [Tried(times, now).pause_left(now).total_seconds() for times in (1, 2, 3, 7, 8, 500)]
    assert pauses == [30, 60, 120, 1920, 3600, 3600]
    assert Tried(1, now - timedelta(seconds=31)).pause_left(now) == timedelta(0)
    assert Tried(0, None).pause_left(now) == timedelta(0)


def test_a_lost_request_is_made_again_and_a_doubled_one_does_no_harm(watch: Watch) -> None:
    two_repositories(watch.database)
    (lost,) = watch.tick()
    (again,) = watch.tick()
    assert again.tags == lost.tags
    assert watch.execute(again)
    assert watch.embedder is not None
    embedded = len(watch.embedder.embedded)
    assert watch.execute(lost)
    assert len(watch.embedder.embedded) == embedded
    assert watch.tick() == []


def test_an_edit_back_to_a_former_text_is_work_too(watch: Watch) -> None:
    for body in ("A", "B", "A"):
        observe(watch.database, "one/alpha", release(1, notes(body)))
        (request,) = watch.tick()
        assert watch.execute(request)
    assert watch.tick() == []


def test_many_scattered_repositories_are_asked_for_in_a_bounded_number_of_runs(watch: Watch) -> None:
    names = [f"o/r{n:05}" for n in range((MOST_REQUESTS + 2) * 300)]
    register(watch.instance, names)
    stale = names[::300]
    for name in stale:
        observe(watch.database, name, release(1, notes("x")))
    requests = watch.tick()
    assert len(requests) == MOST_REQUESTS
    assert [partition(request) for request in requests] == stale[:MOST_REQUESTS]


def test_a_gap_of_few_others_is_taken_along(watch: Watch) -> None:
    register(watch.instance, ["a/a", "b/b", "c/c"])
    observe(watch.database, "a/a", release(1, notes("x")))
    observe(watch.database, "c/c", release(1, notes("y")))
    (request,) = watch.tick()
    assert range_tags(dg.PartitionKeyRange("a/a", "c/c")).items() <= request.tags.items()


# --- a database that does not answer ---


class Frozen:
    """A database that answers when it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    @contextmanager
    def snapshot(self) -> Generator[Any]:
        self.let_go.wait(60)
        raise ModelError("let go")
        yield


def test_a_frozen_database_costs_a_tick_less_than_five_seconds(watch: Watch) -> None:
    frozen = Frozen()
    watch.sensor = stale_index_sensor(Settings(), cast("Database", frozen))
    started = time.monotonic()
    assert watch.tick() == []
    first = time.monotonic() - started
    assert "no answer within 4 seconds" in str(watch.skipped)
    # The next tick does not even wait.
    assert watch.tick() == []
    assert "still hangs" in str(watch.skipped)
    frozen.let_go.set()
    assert first < 5
    assert time.monotonic() - started - first < 1


def test_patience_hands_on_answers_and_errors() -> None:
    patience: Patience[int] = Patience(5)
    assert patience.ask(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        patience.ask(lambda: 1 // 0)
    impatient: Patience[int] = Patience(0.05)
    gate = threading.Event()
    with pytest.raises(NoAnswer):
        impatient.ask(lambda: int(gate.wait(30)))
    gate.set()


# --- status ---


@pytest.mark.parametrize("on", [False, True])
def test_sensors_run_from_the_start_only_when_the_settings_say_so(on: bool) -> None:
    defs = build_defs(settings=Settings(sensors_on=on))
    sensors = {sensor.name: sensor for sensor in defs.sensors or []}
    landing = {"landing_releases", "landing_documents"}
    assert set(sensors) == {"polling", "stale_index", "automation", "run_failures", "freshness"} | landing
    assert {s.default_status == dg.DefaultSensorStatus.RUNNING for s in sensors.values()} == {on}
