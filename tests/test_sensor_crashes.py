"""Every sensor, with the daemon (or the run it asked for) killed at each point at which it matters: after three clean ticks all
the work is done, once, and nothing is stuck.

Daemon, code location, run storage and PostgreSQL are real. A kill is an interrupt at the very place: Dagster writes nothing on
its way out of it, as after a real one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import httpx2
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.execution.api import execute_run
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.test_utils import instance_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.asset_daemon import AssetDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._daemon.sensor import execute_sensor_iteration
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from sqlalchemy import text

from assets.landing import CHANNELS
from assets.partitions import register
from assets.polling import POLL
from kb_platform.clock import SystemClock
from kb_platform.definitions import build_defs
from kb_platform.errors import BrokersUnavailable
from kb_platform.services.abandoned_runs import AbandonedRuns
from kb_platform.services.dagster_ui import FlyingRun
from kb_platform.settings import Settings
from kb_platform.sources.github import github_from_settings
from kb_platform.stages import alerting
from kb_platform.stages.staleness import work_left
from kb_platform.store import alerts, watch_list
from kb_platform.store.database import Database
from sensors.landing import Looking
from tests.github_stand_in import StandIn
from tests.hashing_embedder import HashingEmbedder
from tests.job import Job
from tests.landed import FakeTopics
from tests.releases import notes, observe, release

# Dagster's code location reads an old property of its own schedules.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Property .ScheduleDefinition.environment_vars. is deprecated"),
    # And its daemon says so in an old word when it takes up an interrupted tick.
    pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated"),
    pytest.mark.filterwarnings("ignore:Function .AssetSelection.keys. is deprecated"),
]

SENSORS = (
    "polling",
    "landing_releases",
    "landing_documents",
    "stale_index",
    "automation",
    "run_failures",
    "freshness",
)

# Where Dagster itself lets a tick be killed, and four places of ours.
EVALUATING, EVALUATED = "EVALUATING", "EVALUATED"
NEVER_STARTED, KILLED_AT_WORK = "NEVER_STARTED", "KILLED_AT_WORK"
POINTS = (
    "TICK_CREATED",
    EVALUATING,
    EVALUATED,
    "RUN_IDS_RESERVED",
    "RUN_CREATED",
    "RUN_LAUNCHED",
    "RUN_IDS_ADDED_TO_EVALUATIONS",
    NEVER_STARTED,
    KILLED_AT_WORK,
)
# The automation sensor is another daemon's, with other names for the same places.
AUTOMATION_POINTS: Mapping[str, str] = {
    "TICK_CREATED": "EVALUATIONS_FINISHED",
    EVALUATING: "ASSET_EVALUATIONS_ADDED",
    EVALUATED: "RUN_REQUESTS_CREATED",
    "RUN_IDS_RESERVED": "CURSOR_UPDATED",
    "RUN_LAUNCHED": "RUN_SUBMITTED",
}
# Alert sensors ask for no run: what is about runs cannot happen to them.
ASKING_FOR_NOTHING = ("run_failures", "freshness")
ABOUT_RUNS = POINTS[3:]
# What `make test` takes: the places that differ most.
QUICK = {
    ("landing_releases", "RUN_CREATED"),
    ("landing_releases", KILLED_AT_WORK),
    ("freshness", EVALUATED),
}


class Killed(KeyboardInterrupt):
    """The process is gone."""


class KillAt(dict[str, Any]):
    """Crash flags that kill at one place, once; `reached`: whether anybody got there."""

    def __init__(self, point: str | None) -> None:
        super().__init__({point: 9} if point else {})
        self.point = point
        self.reached = False

    def get(self, key: str, default: Any = None) -> Any:
        if key == self.point and not self.reached:
            self.reached = True
            raise Killed(key)
        return None


class Launcher(RunLauncher, ConfigurableClass):
    """Takes runs and leaves the work to whoever asks for it."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__()
        self._inst_data = inst_data
        self.launched: list[str] = []

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Launcher:
        return cls(inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        self.launched.append(context.dagster_run.run_id)

    def terminate(self, run_id: str) -> bool:
        raise NotImplementedError


class Guarded:
    """What the guard of `kb up` is told of an instance: no run has a process."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    def runs_in_flight(self) -> list[FlyingRun]:
        statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
        return [
            FlyingRun(
                record.dagster_run.run_id, record.dagster_run.status.value, time.time() - 120, dict(record.dagster_run.tags)
            )
            for record in self._instance.get_run_records(dg.RunsFilter(statuses=statuses))
        ]  # fmt: skip

    def process_of(self, run_id: str) -> int | None:
        del run_id
        return 99_999_999

    def close(self, run_id: str) -> None:
        run = self._instance.get_run_by_id(run_id)
        assert run is not None
        self._instance.report_run_failed(run)


class World:
    """A knowledge base with something to do for every sensor, a daemon, and workers."""

    def __init__(
        self, database: Database, instance: dg.DagsterInstance, embedder: HashingEmbedder, sensor: str
    ) -> None:
        self.database, self.instance, self.sensor, self.embedder = database, instance, sensor, embedder
        self.stand_in = StandIn(SystemClock(), seed=3)
        self.settings = Settings(
            github_api_url=self.stand_in.site.api,
            github_token=None,
            poll_session_s=0,
            poll_interval_s=3600,
            kafka_bootstrap_servers="nowhere.test:9092",
        )
        self.topics = FakeTopics(database, self.settings)
        self.forge = github_from_settings(
            self.settings, SystemClock(), transport=httpx2.MockTransport(self.stand_in.handle)
        )
        self.number = self.stale = 0
        self.kill = KillAt(None)
        self.repository = self._definitions()
        self.context: Any = None
        self.remotes: list[Any] = []

    def _definitions(self) -> dg.RepositoryDefinition:
        looking: Callable[[], Looking] = lambda: self.topics  # noqa: E731
        defs = build_defs(
            settings=self.settings,
            database=self.database,
            load_embedder=lambda _model: self.embedder,
            configured_model=lambda: self.embedder.model,
            forge_for=lambda _source, _url: self.forge,
            brokers=object(),
            land=self.topics.land,
            looking=looking,
        )
        repository = defs.get_repository_def()
        for sensor in repository.sensor_defs:
            if not isinstance(sensor, dg.AutomationConditionSensorDefinition):
                sensor.evaluate_tick = self._killable(sensor.evaluate_tick)  # type: ignore[method-assign]
        return repository

    def _killable(self, evaluate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def evaluate_tick(context: Any) -> Any:
            self.kill.get(EVALUATING)
            found = evaluate(context)
            self.kill.get(EVALUATED)
            return found

        return evaluate_tick

    # --- the daemon ---

    def start(self, sensor: str) -> None:
        """A sensor is switched on."""
        (location,) = self.context.create_request_context().code_locations
        (repository,) = location.get_repositories().values()
        self.remotes.append(repository.get_sensor(sensor))
        self.instance.start_sensor(self.remotes[-1])

    def tick(self, kill: KillAt | None = None) -> bool:
        """One round of the daemon; False: it was killed."""
        self.kill = kill or KillAt(None)
        self._let_it_be_due()
        try:
            AssetDaemon({}, 30)._run_iteration_impl(self.context, None, {}, self.kill)
            flags = {self.sensor: self.kill}
            list(execute_sensor_iteration(self.context, _logger(), None, None, debug_crash_flags=flags))
        except Killed:
            return False
        return True

    def _let_it_be_due(self) -> None:
        for remote in self.remotes:
            state = self.instance.get_instigator_state(remote.get_remote_origin_id(), remote.selector_id)
            assert state is not None
            data: Any = state.instigator_data
            earlier = {
                name: getattr(data, name) - 3600
                for name in ("last_tick_start_timestamp", "last_tick_timestamp")
                if getattr(data, name)
            }
            if earlier:
                self.instance.update_instigator_state(state.with_data(data._replace(**earlier)))

    def later(self) -> None:
        """An hour goes by for Dagster's runs; the guard closes those whose process is gone."""
        guard = AbandonedRuns(Guarded(self.instance), lambda _news: None)
        guard.look()
        guard.look()
        storage: Any = self.instance.run_storage
        with storage.connect() as connection:
            connection.execute(
                text("UPDATE runs SET start_time = start_time - 3600, end_time = end_time - 3600")
            )
            connection.execute(
                text(
                    "UPDATE runs SET create_timestamp = datetime(create_timestamp, '-1 hour'), "
                    "update_timestamp = datetime(update_timestamp, '-1 hour')"
                )
            )

    # --- the workers ---

    @property
    def launcher(self) -> Launcher:
        launcher = self.instance.run_launcher
        assert isinstance(launcher, Launcher)
        return launcher

    def _launched(self) -> list[str]:
        """What the queue gives out."""
        list(QueuedRunCoordinatorDaemon(interval_seconds=1).run_iteration(self.context))
        launched, self.launcher.launched = self.launcher.launched, []
        return launched

    def work(self) -> int:
        """Do all runs that were asked for; how many there were."""
        launched = self._launched()
        for run_id in launched:
            run = self.instance.get_run_by_id(run_id)
            assert run is not None
            job = self.repository.get_job(run.job_name)
            execute_run(InMemoryJob(job), run, self.instance, raise_on_error=False)
        return len(launched)

    def lose_workers(self, *, at_work: bool) -> None:
        """The runs' processes are killed: before they said a word, or with half of it done."""
        launched = self._launched()
        assert launched
        if not at_work:
            return
        for run_id in launched:
            run = self.instance.get_run_by_id(run_id)
            assert run is not None
            self.instance.report_dagster_event(
                DagsterEvent(DagsterEventType.RUN_START.value, run.job_name), run_id
            )
            self._half(run.job_name)

    def _half(self, job: str) -> None:
        """What a run has committed when it is killed half way."""
        for channel in CHANNELS:
            if job == channel.job:
                self.topics.land_one_batch(channel.topic(self.settings))
        if job not in (POLL, *(channel.job for channel in CHANNELS)):
            Job(self.database, self.embedder.model).chunk("one/alpha")

    # --- what there is to do, and whether it is done ---

    def arrange(self) -> None:
        """Something to do for the sensor."""
        if self.sensor in ("polling", "freshness"):
            self.number = self.stand_in.add_repository("acme/tool", 5)
            with self.database.transaction() as connection:
                at = datetime.now(UTC) - (timedelta(days=30) if self.sensor == "freshness" else timedelta(0))
                watch_list.add(connection, "acme/tool", at=at)
                connection.execute("UPDATE kb.watch SET added_at = %s", (at,))
        for channel in CHANNELS:
            if self.sensor == channel.job.replace("land_", "landing_"):
                self.topics.fill(channel.topic(self.settings), 25)
        if self.sensor == "stale_index":
            observe(self.database, "one/alpha", release(1, notes("fix the parser")))
            observe(self.database, "two/beta", release(1, notes("faster start")))
            self.stale = 2
        if self.sensor == "automation":
            observe(self.database, "one/alpha", release(1, notes("fix the parser")))
            self.stale = 1
            register(self.instance, ["one/alpha"])
            self.tick()
            # News of more than one repository is a backfill, which is another daemon's.
            job = self.repository.get_job("refresh").get_subset(asset_selection={dg.AssetKey("raw_releases")})
            assert job.execute_in_process(instance=self.instance, partition_key="one/alpha").success
        if self.sensor == "run_failures":
            observe(self.database, "one/alpha", release(1, notes("fix the parser")))
            register(self.instance, ["one/alpha"])
            run = self.instance.create_run_for_job(
                self.repository.get_job("refresh"), status=dg.DagsterRunStatus.STARTED
            )
            self.instance.report_run_failed(run)

    def require_done(self) -> None:
        """All work is done, once."""
        stuck = self.instance.get_runs(
            dg.RunsFilter(
                statuses=[
                    status
                    for status in dg.DagsterRunStatus
                    if status
                    not in (
                        dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED,
                    )
                ]
            )
        )  # fmt: skip
        assert stuck == []
        ticks = [
            tick
            for remote in self.remotes
            for tick in self.instance.get_ticks(remote.get_remote_origin_id(), remote.selector_id)
        ]
        assert [tick.status for tick in ticks if tick.status == TickStatus.STARTED] == []
        assert [tick.error for tick in ticks if tick.error] == []
        if self.sensor == "polling":
            assert len(self._rows()) == len(self.stand_in.truth(self.number))
        for channel in CHANNELS:
            topic = channel.topic(self.settings)
            assert self.topics.look(self.database, self.settings, topic).lag == 0
        if self.topics.sent:
            assert sorted(self._rows()) == sorted(self.topics.sent)
        if self.sensor in ("stale_index", "automation"):
            assert not work_left(self.database).repositories
            assert len(self.embedder.embedded) == len(set(self.embedder.embedded)) == self.stale
        if self.sensor in ASKING_FOR_NOTHING:
            with self.database.snapshot() as connection:
                kinds = [alert.kind for alert in alerts.open_alerts(connection)]
            assert kinds == [alerting.RUN_FAILED if self.sensor == "run_failures" else alerting.STALE]

    def _rows(self) -> list[int]:
        with self.database.snapshot() as connection:
            rows = connection.execute("SELECT release_id FROM kb.release_observations").fetchall()
        return [row[0] for row in rows]


_under_test: list[World] = []


def definitions_under_test() -> dg.RepositoryDefinition:
    """What the code location loads."""
    return _under_test[-1].repository


def _logger() -> Any:
    import logging

    return logging.getLogger("test.daemon")


Make = Callable[[str], World]


@pytest.fixture
def make(database: Database, hashing_embedder: HashingEmbedder) -> Generator[Make]:
    """Makes the world of one sensor."""
    launcher = {"run_launcher": {"module": __name__, "class": "Launcher"}}
    with instance_for_test(overrides=launcher) as instance:

        def made(sensor: str) -> World:
            world = World(database, instance, hashing_embedder, sensor)
            _under_test.append(world)
            origin = InProcessCodeLocationOrigin(
                LoadableTargetOrigin(module_name=__name__, attribute="definitions_under_test"),
                location_name="kb_platform",
            )
            world.context = WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin))
            world.start(sensor)
            return world

        yield made
        world = _under_test.pop()
        world.context.__exit__(None, None, None)
        world.forge.close()


def cases() -> list[Any]:
    """Every sensor with every point; the quick ones are not slow."""
    return [
        pytest.param(
            sensor,
            point,
            id=f"{sensor}-{point}",
            marks=[] if (sensor, point) in QUICK else [pytest.mark.slow],
        )
        for sensor, point in itertools.product(SENSORS, POINTS)
        if sensor not in ASKING_FOR_NOTHING or point not in ABOUT_RUNS
    ]


def test_every_sensor_is_among_those_that_are_killed() -> None:
    assert sorted(sensor.name for sensor in build_defs(settings=Settings()).sensors or []) == sorted(SENSORS)


@pytest.mark.parametrize(("sensor", "point"), cases())
def test_three_clean_ticks_after_a_kill_all_is_done_once(make: Make, sensor: str, point: str) -> None:
    world = make(sensor)
    world.arrange()
    if point in (NEVER_STARTED, KILLED_AT_WORK):
        assert world.tick()
        world.lose_workers(at_work=point == KILLED_AT_WORK)
        if sensor == "automation":
            # To Dagster's automation a run that it has asked for is done with; what it left undone is stale, and that is
            # another sensor's.
            world.start("stale_index")
    else:
        place = AUTOMATION_POINTS.get(point, point) if sensor == "automation" else point
        kill = KillAt(place)
        assert not world.tick(kill)
        assert kill.reached
        world.work()
    for _ in range(3):
        world.later()
        assert world.tick()
        world.work()
    world.require_done()


@pytest.mark.parametrize(
    "sensor", ["landing_releases", pytest.param("landing_documents", marks=pytest.mark.slow)]
)
def test_a_run_that_failed_is_asked_for_again_after_a_pause(make: Make, sensor: str) -> None:
    world = make(sensor)
    world.arrange()
    world.topics.landing_error = BrokersUnavailable("no broker answered")
    world.tick()
    assert world.work() == 1
    world.topics.landing_error = None
    world.tick()
    assert world.work() == 0
    world.later()
    world.tick()
    assert world.work() == 1
    world.require_done()
