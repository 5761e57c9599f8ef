"""The sensors of landing: what they ask for and when, what they tell Dagster, and what places landing takes in the queue."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pytest
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import instance_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from sqlalchemy import text

from assets.jobs import REFRESH_TAGS
from assets.landing import CHANNELS, DOCUMENTS, POSITION_HOLDS, RELEASES, Channel, sensor_name
from kb_platform.definitions import build_defs
from kb_platform.errors import BrokersRefused, BrokersUnavailable, PositionLost
from kb_platform.home import DAGSTER_YAML, dagster_home
from kb_platform.settings import Settings
from kb_platform.store import loaders
from kb_platform.store.database import Database
from sensors import landing
from tests.kafka_brokers import LocalBrokers, NewTopics, brokers_address, wait_for
from tests.landed import FakeTopics

# Dagster's code location reads an old property of its own schedules.
pytestmark = pytest.mark.filterwarnings("ignore:Property .ScheduleDefinition.environment_vars. is deprecated")

SETTINGS = Settings(kafka_bootstrap_servers="nowhere.test:9092")
TOPIC = RELEASES.topic(SETTINGS)
LOST = PositionLost("truncated", "40 records were deleted", hint="`kb kafka reset --topic kb.releases`")


def create_run(
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    job: str,
    status: dg.DagsterRunStatus,
    tags: Mapping[str, str] | None = None,
) -> dg.DagsterRun:
    """The record of a run of a job, with the job's own tags, as Dagster makes it."""
    definition = defs.resolve_job_def(job)
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("kb_platform"), "__repository__")
    pointer = ModuleCodePointer("kb_platform.definitions", "defs")
    return instance.create_run_for_job(
        definition,
        status=status,
        tags={**definition.run_tags, **(tags or {})},
        # Dagster queues no run of which it does not know where its code is.
        remote_job_origin=RemoteJobOrigin(repository, job),
        job_code_origin=JobPythonOrigin(job, RepositoryPythonOrigin(sys.executable, pointer)),
    )


class Desk:
    """The sensor of one channel over topics in memory."""

    def __init__(
        self, database: Database, instance: dg.DagsterInstance, channel: Channel, settings: Settings
    ) -> None:
        self.database, self.instance, self.channel = database, instance, channel
        self.topics = FakeTopics(database, settings)
        self.defs = build_defs(
            settings=settings,
            database=database,
            brokers=object(),
            land=self.topics.land,
            looking=lambda: self.topics,
        )
        (self.sensor,) = (sensor for sensor in self.defs.sensors or [] if sensor.name == sensor_name(channel))
        self.events: list[Any] = []

    def tick(self) -> str | None:
        """One evaluation, and what the daemon does with it; why nothing is asked for, None when a run is."""
        context = dg.build_sensor_context(
            instance=self.instance, repository_def=self.defs.get_repository_def()
        )
        evaluated = cast("dg.SensorDefinition", self.sensor).evaluate_tick(context)
        self.events = list(evaluated.asset_events)
        for event in self.events:
            self.instance.report_runless_asset_event(event)
        assert len(evaluated.run_requests or []) == (0 if evaluated.skip_message else 1)
        return evaluated.skip_message

    def run_record(self, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """A run of the job in this state; no process belongs to it."""
        return create_run(self.instance, self.defs, self.channel.job, status)

    def made_s_ago(self, seconds: float) -> None:
        """All runs are so much older."""
        self._sql(f"UPDATE runs SET update_timestamp = datetime(update_timestamp, '-{seconds} seconds')")

    def failed(self, *, began_s_ago: float, lived_s: float) -> None:
        """A run that failed, so long ago."""
        run = self.run_record(dg.DagsterRunStatus.STARTED)
        self.instance.report_run_failed(run)
        began = datetime.now(UTC).timestamp() - began_s_ago
        self._sql(
            f"UPDATE runs SET start_time = {began}, end_time = {began + lived_s} WHERE run_id = '{run.run_id}'"
        )

    def _sql(self, statement: str) -> None:
        with cast("Any", self.instance.run_storage).connect() as connection:
            connection.execute(text(statement))

    def observed(self) -> list[Any]:
        return [
            event.metadata["lag"].value for event in self.events if isinstance(event, dg.AssetObservation)
        ]

    def checked(self) -> list[tuple[bool, str | None]]:
        return [
            (event.passed, event.description)
            for event in self.events
            if isinstance(event, dg.AssetCheckEvaluation)
        ]


@pytest.fixture(params=CHANNELS, ids=lambda channel: channel.job)
def desk(database: Database, request: pytest.FixtureRequest) -> Generator[Desk]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Desk(database, instance, request.param, SETTINGS)


@pytest.fixture
def releases(database: Database) -> Generator[Desk]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Desk(database, instance, RELEASES, SETTINGS)


# --- when a run is asked for ---


def test_what_waits_is_asked_for_and_landed(desk: Desk) -> None:
    topic = desk.channel.topic(SETTINGS)
    assert desk.tick() == "all is landed"
    desk.topics.fill(topic, 3)
    assert desk.tick() is None
    job = desk.defs.resolve_job_def(desk.channel.job)
    assert job.execute_in_process(instance=desk.instance).success
    assert desk.tick() == "all is landed"


def test_one_topic_asks_for_nothing_of_the_other(desk: Desk) -> None:
    other = DOCUMENTS if desk.channel == RELEASES else RELEASES
    desk.topics.fill(other.topic(SETTINGS), 3)
    assert desk.tick() == "all is landed"


def test_with_kafka_off_nobody_is_asked(database: Database) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        desk = Desk(database, instance, RELEASES, Settings())
        assert desk.tick() == "Kafka is off: KB_KAFKA_BOOTSTRAP_SERVERS is not set"
        assert desk.topics.looks == 0


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
)
def test_nothing_is_asked_while_a_run_is_about_to_land(releases: Desk, status: dg.DagsterRunStatus) -> None:
    releases.topics.fill(TOPIC, 3)
    releases.run_record(status)
    assert releases.tick() == "a run is about to land; 3 records wait"


def test_nothing_is_asked_while_a_run_lands_however_long_ago_it_began(releases: Desk) -> None:
    releases.topics.fill(TOPIC, 3)
    releases.run_record(dg.DagsterRunStatus.STARTED)
    releases.made_s_ago(3600)
    with loaders.turn(releases.database, SETTINGS.kafka_group, TOPIC) as mine:
        assert mine
        assert releases.tick() == "a run is landing; 3 records wait"
    assert releases.tick() is None


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
)
def test_a_run_whose_process_is_gone_blocks_nothing_for_long(
    releases: Desk, status: dg.DagsterRunStatus
) -> None:
    releases.topics.fill(TOPIC, 3)
    releases.run_record(status)
    releases.made_s_ago(landing.longest_start(SETTINGS).total_seconds() - 10)
    assert releases.tick() == "a run is about to land; 3 records wait"
    releases.made_s_ago(20)
    assert releases.tick() is None


def test_on_a_cluster_a_pod_has_time_to_start(database: Database) -> None:
    cluster = SETTINGS.model_copy(update={"kubernetes": True})
    assert landing.longest_start(cluster) > 10 * landing.longest_start(SETTINGS)


def test_another_group_or_topic_that_is_landed_is_no_reason_to_wait(releases: Desk) -> None:
    releases.topics.fill(TOPIC, 3)
    with (
        loaders.turn(releases.database, "another-group", TOPIC),
        loaders.turn(releases.database, SETTINGS.kafka_group, DOCUMENTS.topic(SETTINGS)),
    ):
        assert releases.tick() is None


# --- runs that fail ---


def pause_of(desk: Desk) -> float:
    """Seconds that the sensor lets pass before the next try; 0 when it asks for a run."""
    why_not = desk.tick()
    if why_not is None:
        return 0.0
    assert "the last runs failed" in why_not
    return float(why_not.rpartition("in ")[2].removesuffix(" s").replace(",", ""))


def test_the_pause_after_failures_doubles(releases: Desk) -> None:
    releases.topics.fill(TOPIC, 3)
    releases.failed(began_s_ago=1, lived_s=1)
    assert 25 <= pause_of(releases) <= 30
    releases.failed(began_s_ago=1, lived_s=1)
    assert 55 <= pause_of(releases) <= 60
    releases.failed(began_s_ago=1, lived_s=1)
    assert 115 <= pause_of(releases) <= 120


def test_failures_of_runs_that_landed_something_do_not_add_up(releases: Desk) -> None:
    releases.topics.fill(TOPIC, 25)
    for _ in range(4):
        releases.failed(began_s_ago=5, lived_s=5)
    assert pause_of(releases) > 200
    releases.topics.land_one_batch(TOPIC)
    assert pause_of(releases) <= 30


def test_a_run_that_went_on_for_long_is_replaced_at_once(releases: Desk) -> None:
    releases.topics.fill(TOPIC, 3)
    releases.failed(began_s_ago=90, lived_s=1)
    releases.failed(began_s_ago=70, lived_s=65)
    assert pause_of(releases) == 0


# --- brokers that do not answer ---


def test_frozen_brokers_cost_a_tick_less_than_five_seconds(releases: Desk) -> None:
    releases.topics.answering.clear()
    began = time.monotonic()
    assert "kb.releases is not looked at: no answer within 4 seconds" in str(releases.tick())
    first = time.monotonic() - began
    # The next tick does not even wait.
    assert "still hangs" in str(releases.tick())
    releases.topics.answering.set()
    assert first < 5
    assert time.monotonic() - began - first < 1
    assert releases.topics.looks == 1


@pytest.mark.parametrize("kind", [BrokersUnavailable, BrokersRefused])
def test_brokers_that_fail_are_named_with_what_to_do(releases: Desk, kind: type[BrokersUnavailable]) -> None:
    releases.topics.fill(TOPIC, 3)
    releases.topics.error = kind("no broker answered", hint="check the address")
    assert releases.tick() == "kb.releases is not looked at: no broker answered → check the address"
    assert releases.events == []
    releases.topics.error = None
    assert releases.tick() is None


# --- a lost position ---


@pytest.mark.parametrize("never_read", [False, True])
def test_a_lost_position_is_red_once_and_asks_for_nothing(releases: Desk, never_read: bool) -> None:
    releases.topics.fill(TOPIC, 3)
    if never_read:
        releases.topics.error = LOST
    else:
        releases.topics.trouble = LOST
    words = "truncated: 40 records were deleted → `kb kafka reset --topic kb.releases`"
    assert releases.tick() == words
    assert releases.checked() == [(False, words)]
    assert releases.tick() == words
    assert releases.checked() == []
    releases.topics.error = releases.topics.trouble = None
    assert releases.tick() is None
    assert releases.checked() == [(True, "the position is in the topic again")]
    releases.tick()
    assert releases.checked() == []


def test_another_trouble_is_news(releases: Desk) -> None:
    releases.topics.trouble = LOST
    releases.tick()
    releases.topics.trouble = PositionLost("recreated", "another topic")
    releases.tick()
    assert releases.checked() == [(False, "recreated: another topic")]
    key = dg.AssetCheckKey(RELEASES.key, POSITION_HOLDS)
    history = releases.instance.event_log_storage.get_asset_check_execution_history(key, limit=5)
    assert len(history) == 2


# --- lag that plots ---


def test_lag_is_observed_when_it_changes_but_not_at_every_tick(releases: Desk) -> None:
    clock = [0.0]
    tick = landing.Plot(lambda: clock[0])
    assert tick.is_due(0)
    assert not tick.is_due(0)
    clock[0] += landing.OBSERVED_AFTER_S - 1
    assert not tick.is_due(7)
    clock[0] += 2
    assert not tick.is_due(0)
    assert tick.is_due(7)
    clock[0] += landing.OBSERVED_ANYWAY_AFTER_S - 1
    assert not tick.is_due(7)
    clock[0] += 2
    assert tick.is_due(7)
    releases.topics.fill(TOPIC, 3)
    releases.tick()
    assert releases.observed() == [3]
    releases.tick()
    assert releases.observed() == []
    (record,) = releases.instance.fetch_observations(RELEASES.key, limit=5).records
    assert record.asset_observation is not None
    assert record.asset_observation.metadata["lag"].value == 3


# --- the queue ---


class Queue:
    """Dagster's queue as a new home has it, its daemon, and runs of our jobs that end when they are told to."""

    def __init__(self, instance: dg.DagsterInstance, workspace: WorkspaceProcessContext) -> None:
        self.instance, self._workspace = instance, workspace
        self.defs = build_defs(settings=Settings())

    def submit(self, job: str, count: int = 1, **tags: str) -> None:
        """So many requests for a job."""
        for _ in range(count):
            run = create_run(self.instance, self.defs, job, dg.DagsterRunStatus.NOT_STARTED, tags)
            self.instance.submit_run(run.run_id, self._workspace.create_request_context())

    def dequeue(self) -> Counter[str]:
        """One round of the daemon; what is at work then, by job."""
        list(QueuedRunCoordinatorDaemon(interval_seconds=1).run_iteration(self._workspace))
        return Counter(run.job_name for run in self._at_work())

    def end(self, job: str) -> None:
        """One run of a job ends."""
        run = next(run for run in self._at_work() if run.job_name == job)
        self.instance.report_run_failed(run)

    def waiting(self) -> Counter[str]:
        queued = self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
        return Counter(run.job_name for run in queued)

    def _at_work(self) -> list[dg.DagsterRun]:
        return list(self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])))


@pytest.fixture
def queue() -> Generator[Queue]:
    written = yaml.safe_load(DAGSTER_YAML)
    launcher = {"module": "dagster._core.test_utils", "class": "MockedRunLauncher"}
    # Threads of the queue belong to a daemon that goes on; here each round is over before the next.
    queued = {**written["run_queue"], "dequeue_use_threads": False}
    overrides = {"concurrency": written["concurrency"], "run_queue": queued, "run_launcher": launcher}
    origin = InProcessCodeLocationOrigin(
        LoadableTargetOrigin(module_name="kb_platform.definitions", attribute="defs"),
        location_name="kb_platform",
    )
    with (
        instance_for_test(overrides=overrides) as instance,
        WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)) as workspace,
    ):
        yield Queue(instance, workspace)


@pytest.mark.slow
def test_a_flood_of_events_and_refreshes_leaves_polling_its_place(queue: Queue) -> None:
    queue.submit("refresh", 9)
    queue.submit("land_releases", 9)
    queue.submit("land_documents", 9)
    full = Counter(refresh=2, land_releases=1, land_documents=1)
    assert queue.dequeue() == full
    # Polling comes last and finds a place that nobody else may take.
    queue.submit("poll")
    assert queue.dequeue() == full + Counter(poll=1)
    queue.end("poll")
    assert queue.dequeue() == full
    assert queue.waiting() == Counter(refresh=7, land_releases=8, land_documents=8)


def test_of_those_that_wait_polling_is_the_first(queue: Queue) -> None:
    # Jobs without a limit fill every place.
    queue.submit("housekeeping", 6)
    assert queue.dequeue() == Counter(housekeeping=5)
    queue.submit("refresh", 2)
    queue.submit("land_releases", 2)
    queue.submit("poll")
    queue.end("housekeeping")
    assert queue.dequeue() == Counter(housekeeping=4, poll=1)


@pytest.mark.slow
def test_refreshes_count_together_whoever_asked_for_them(queue: Queue) -> None:
    automation = next(
        sensor
        for sensor in queue.defs.sensors or []
        if isinstance(sensor, dg.AutomationConditionSensorDefinition)
    )
    assert automation.run_tags == REFRESH_TAGS
    queue.submit("checks", 3, **automation.run_tags)
    queue.submit("refresh", 3)
    assert sum(queue.dequeue().values()) == 2


def test_a_home_of_before_keeps_its_file(tmp_path: Path) -> None:
    configuration = dagster_home(Settings(home=tmp_path)) / "dagster.yaml"
    assert yaml.safe_load(configuration.read_text())["concurrency"]["runs"]["max_concurrent_runs"] == 5
    configuration.write_text("concurrency: {runs: {max_concurrent_runs: 3}}\n")
    dagster_home(Settings(home=tmp_path))
    assert "3" in configuration.read_text()


# --- real brokers ---


@pytest.mark.slow
def test_a_tick_over_brokers_that_freeze_stays_short_and_mends(database: Database) -> None:
    address = brokers_address()
    topics, local = NewTopics(address), LocalBrokers(address)
    with dg.DagsterInstance.ephemeral() as instance:
        topic = topics(3)
        settings = Settings(
            kafka_bootstrap_servers=address, kafka_release_topic=topic, kafka_group=f"group-of-{topic}"
        )
        defs = build_defs(settings=settings, database=database)
        (sensor,) = (one for one in defs.sensors or [] if one.name == sensor_name(RELEASES))

        def tick() -> tuple[float, str]:
            context = dg.build_sensor_context(instance=instance, repository_def=defs.get_repository_def())
            began = time.monotonic()
            evaluated = cast("dg.SensorDefinition", sensor).evaluate_tick(context)
            return time.monotonic() - began, str(evaluated.skip_message)

        assert tick()[1] == "all is landed"
        try:
            for broker in local.all():
                broker.freeze()
            took = [tick() for _ in range(8)]
        finally:
            local.mend()
        assert max(seconds for seconds, _ in took) < 5
        assert {said.partition(":")[0] for _, said in took} == {f"{topic} is not looked at"}
        wait_for(lambda: tick()[1] == "all is landed", 40)
    topics.clean()
