"""The sensors of alerts, evaluated against a real PostgreSQL and a real Dagster instance."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import dagster as dg
import pytest
from pydantic import SecretStr

from assets.partitions import range_tags, register
from kb_platform.errors import KbError
from kb_platform.settings import Settings
from kb_platform.store import alerts
from kb_platform.store.alerts import Alert
from kb_platform.store.database import Database
from sensors.alerts import alert_sensors
from sensors.failed_runs import MOST_NAMED, MOST_RUNS, RETRY_WITHIN, WILL_RETRY_TAG, failed_work
from tests.hashing_embedder import HashingEmbedder
from tests.job import Job
from tests.releases import notes, observe, release
from tests.test_alerts import Hook, watch
from tests.test_sensors import Watch, two_repositories


class Plant:
    """Jobs that fail when told so, and the sensors that look at their runs."""

    def __init__(self, database: Database, instance: dg.DagsterInstance, **given: Any) -> None:
        self.database = database
        self.instance = instance
        self.hook = Hook()
        self.broken = True
        self.settings = Settings(**given)
        self.use(database)

        @dg.op
        def press() -> None:
            if self.broken:
                try:
                    raise KeyError("no such thing")
                except KeyError as error:
                    raise KbError("the press is jammed\nand hot") from error

        @dg.op
        def pack() -> None:
            if self.broken:
                raise dg.Failure("the box is too small")

        @dg.job
        def pressing() -> None:
            press()

        @dg.job
        def packing() -> None:
            pack()

        @dg.job
        def refresh() -> None:
            press()

        self.jobs = {job.name: job for job in (pressing, packing, refresh)}

    def use(self, database: Database, post: Any = None) -> None:
        """Sensors over another database, or telling another webhook."""
        made = alert_sensors(self.settings, database, post or self.hook)
        self.sensors = {sensor.name: sensor for sensor in made}

    def run(self, job: str, *, fails: bool = True, **tags: str) -> str:
        """A run to its end; its id."""
        self.broken = fails
        done = self.jobs[job].execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            tags={key.replace("__", "/"): value for key, value in tags.items()},
        )
        assert done.success is not fails
        return done.run_id

    def tick(self, name: str = "run_failures") -> str:
        """One evaluation; what it says."""
        context = dg.build_sensor_context(instance=self.instance)
        evaluated = self.sensors[name].evaluate_tick(context)
        assert not evaluated.run_requests
        assert evaluated.skip_message is not None
        return evaluated.skip_message

    def open(self) -> list[Alert]:
        with self.database.snapshot() as connection:
            return alerts.open_alerts(connection)

    def subjects(self) -> list[str]:
        return sorted(alert.subject for alert in self.open())


@pytest.fixture
def plant(database: Database) -> Generator[Plant]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Plant(database, instance)


# --- failed runs ---


def test_a_run_that_failed_is_an_alert_until_a_later_one_succeeds(plant: Plant) -> None:
    plant.run("pressing", fails=False)
    assert plant.tick() == "nothing new"
    run_id = plant.run("pressing")
    assert plant.tick() == "1 alerts raised, 0 resolved"
    (alert,) = plant.open()
    assert (alert.kind, alert.subject, alert.severity) == ("run-failed", "pressing", "error")
    # The error that says what to do, not what caused it, and its first line only.
    assert alert.message == f"step press failed: KbError: the press is jammed (run {run_id})"
    assert plant.hook.texts[0].startswith("kb-platform alerts: 1 new\nERROR run-failed pressing: step press")
    assert plant.tick() == "nothing new"
    plant.run("packing", fails=False)
    assert plant.tick() == "nothing new"
    plant.run("pressing", fails=False)
    assert plant.tick() == "0 alerts raised, 1 resolved"
    assert plant.open() == []
    assert plant.hook.texts[1:] == ["kb-platform alerts: 1 resolved\nresolved run-failed: pressing"]


def test_each_retry_is_the_same_alert_with_the_latest_run(plant: Plant) -> None:
    plant.run("packing")
    plant.tick()
    latest = plant.run("packing")
    assert plant.tick() == "nothing new"
    (alert,) = plant.open()
    assert alert.message == f"step pack failed: the box is too small (run {latest})"
    assert len(plant.hook.texts) == 1


def test_other_partitions_are_other_work_and_a_wider_range_is_the_same(plant: Plant) -> None:
    register(plant.instance, ["a/a", "b/b", "c/c", "d/d"])
    for name in ("a/a", "b/b", "c/c", "d/d"):
        observe(plant.database, name, release(1, notes("x")))
    plant.run("refresh", **range_tags(dg.PartitionKeyRange("b/b", "c/c")))
    plant.run("refresh", **range_tags(dg.PartitionKeyRange("a/a", "a/a")))
    plant.tick()
    assert plant.subjects() == ["refresh of a/a", "refresh of b/b to c/c"]
    # The next try takes along what became stale since.
    plant.run("refresh", **range_tags(dg.PartitionKeyRange("b/b", "d/d")))
    assert plant.tick() == "nothing new"
    assert plant.subjects() == ["refresh of a/a", "refresh of b/b to c/c"]
    plant.run("refresh", fails=False, **range_tags(dg.PartitionKeyRange("a/a", "c/c")))
    # What failed with d/d was not done.
    plant.tick()
    assert plant.subjects() == ["refresh of b/b to d/d"]
    plant.run("refresh", fails=False)
    plant.tick()
    assert plant.subjects() == []


def test_a_failed_refresh_with_nothing_left_to_do_is_over(plant: Plant) -> None:
    register(plant.instance, ["a/a", "b/b"])
    observe(plant.database, "a/a", release(1, notes("x")))
    plant.run("refresh", dagster__partition="a/a")
    plant.run("refresh", dagster__partition="b/b")
    plant.run("refresh", dagster__partition="gone/gone")
    plant.tick()
    assert plant.subjects() == ["refresh of a/a"]
    Job(plant.database).run("a/a")
    assert plant.tick() == "0 alerts raised, 1 resolved"


def test_the_platforms_own_job_is_watched_like_this(
    database: Database, hashing_embedder: HashingEmbedder
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        staleness = Watch(database, instance, hashing_embedder)
        plant = Plant(database, instance)
        two_repositories(database)
        staleness.embedder = None
        assert not staleness.execute(staleness.tick()[0])
        assert plant.tick() == "1 alerts raised, 0 resolved"
        (alert,) = plant.open()
        assert alert.subject == "refresh of one/alpha to two/beta"
        assert "the weights are damaged" in alert.message
        # Done by hand, in two parts, under other names.
        staleness.embedder = hashing_embedder
        Job(database).run("one/alpha")
        assert plant.tick() == "nothing new"
        Job(database).run("two/beta")
        assert plant.tick() == "0 alerts raised, 1 resolved"


def test_what_dagster_retries_is_no_alert_yet(plant: Plant) -> None:
    plant.run("pressing", dagster__will_retry="true")
    assert WILL_RETRY_TAG == "dagster/will_retry"
    assert plant.tick() == "nothing new"
    # The retry that never came.
    later = datetime.now(UTC) + RETRY_WITHIN
    assert [run.subject for run in failed_work(plant.instance, [], later).runs] == ["pressing"]
    plant.run("pressing", dagster__will_retry="false")
    plant.tick()
    assert plant.subjects() == ["pressing"]


def test_a_run_without_a_failed_step_says_why_it_ended(plant: Plant) -> None:
    run = plant.instance.create_run_for_job(plant.jobs["pressing"], status=dg.DagsterRunStatus.STARTED)
    plant.instance.report_run_failed(run, "its process is gone\nwhat it had committed is kept")
    plant.tick()
    assert plant.open()[0].message == f"the run failed: its process is gone (run {run.run_id})"


def test_canceled_and_running_ones_and_those_of_last_month_are_none(plant: Plant) -> None:
    for status in (dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS):
        plant.instance.create_run_for_job(plant.jobs["pressing"], status=status)
    plant.run("packing")
    assert failed_work(plant.instance, [], datetime.now(UTC) + timedelta(days=8)).runs == []
    assert len(failed_work(plant.instance, [], datetime.now(UTC) + timedelta(days=6)).runs) == 1


def test_more_than_can_be_named_are_bounded_and_none_is_taken_for_resolved(plant: Plant) -> None:
    for number in range(MOST_NAMED):
        plant.instance.create_run_for_job(
            plant.jobs["pressing"],
            status=dg.DagsterRunStatus.FAILURE,
            tags={"dagster/partition": f"o/{number}"},
        )
    assert plant.tick() == f"{MOST_NAMED} alerts raised, 0 resolved"
    plant.instance.create_run_for_job(plant.jobs["packing"], status=dg.DagsterRunStatus.FAILURE)
    assert plant.tick() == "1 alerts raised, 0 resolved"
    assert len(plant.open()) == MOST_NAMED + 1


@pytest.mark.slow
def test_a_week_of_failures_is_looked_at_in_time(plant: Plant) -> None:
    register(plant.instance, [f"o/r{n:05}" for n in range(5_000)])
    observe(plant.database, "o/r00000", release(1, notes("x")))
    for number in range(MOST_RUNS):
        plant.instance.create_run_for_job(
            plant.jobs["refresh"],
            status=dg.DagsterRunStatus.FAILURE,
            tags=range_tags(dg.PartitionKeyRange("o/r00000", f"o/r{number:05}")),
        )
    started = time.monotonic()
    assert plant.tick() == "1 alerts raised, 0 resolved"
    assert time.monotonic() - started < 3


# --- freshness ---


def test_a_stale_repository_is_told_of_and_told_to_be_over(plant: Plant) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    watch(plant.database, "acme/tool", verified_at=long_ago)
    assert plant.tick("freshness") == "1 alerts raised, 0 resolved"
    assert plant.hook.texts[0].startswith(
        "kb-platform alerts: 1 new\nERROR stale-repository acme/tool: not verified since"
    )
    watch(plant.database, "acme/tool", verified_at=datetime.now(UTC))
    assert plant.tick("freshness") == "0 alerts raised, 1 resolved"
    assert plant.open() == []


def test_each_sensor_leaves_the_others_alerts_alone(plant: Plant) -> None:
    watch(plant.database, "acme/tool", verified_at=datetime.now(UTC) - timedelta(days=2))
    plant.run("pressing")
    for _ in range(2):
        plant.tick()
        plant.tick("freshness")
        assert plant.subjects() == ["acme/tool", "pressing"]


def test_news_goes_to_the_log_once_and_never_with_the_address(
    plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/services/s3cret"
        settings = Settings(alert_webhook_url=SecretStr(url))
        plant.sensors = {one.name: one for one in alert_sensors(settings, plant.database)}
        plant.run("pressing")
        said = plant.tick()
    assert "cannot be reached (ConnectError)" in said
    assert "s3cret" not in said + caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name == "kb"]
    assert sum("run-failed pressing" in line for line in ours) == 1
    caplog.clear()
    plant.tick()
    assert "run-failed" not in caplog.text
    assert [alert.attempts for alert in plant.open()] == [1]


def test_without_a_webhook_alerts_are_recorded_all_the_same(plant: Plant) -> None:
    plant.sensors = {one.name: one for one in alert_sensors(Settings(), plant.database)}
    plant.run("pressing")
    assert plant.tick() == "1 alerts raised, 0 resolved"
    assert [(alert.told_at, alert.attempts) for alert in plant.open()] == [(None, 0)]


# --- what does not answer ---


class Frozen:
    """A database that answers when it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    @contextmanager
    def snapshot(self) -> Generator[Any]:
        self.let_go.wait(60)
        raise KbError("let go")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run_failures", "freshness"])
def test_a_frozen_database_costs_a_tick_less_than_five_seconds(plant: Plant, name: str) -> None:
    frozen = Frozen()
    plant.use(cast("Database", frozen))
    started = time.monotonic()
    assert "no answer within 3 seconds" in plant.tick(name)
    first = time.monotonic() - started
    assert "still hangs" in plant.tick(name)
    frozen.let_go.set()
    assert first < 5
    assert time.monotonic() - started - first < 1


@pytest.mark.slow
def test_a_frozen_webhook_costs_a_tick_little_and_holds_up_no_alert(plant: Plant) -> None:
    let_go = threading.Event()

    def post(_text: str) -> str | None:
        let_go.wait(60)
        return None

    plant.use(plant.database, post)
    plant.run("pressing")
    started = time.monotonic()
    assert (
        plant.tick() == "1 alerts raised, 0 resolved; the webhook is waited for: no answer within 1.5 seconds"
    )
    assert time.monotonic() - started < 5
    plant.run("packing")
    assert "still hangs" in plant.tick()
    assert plant.subjects() == ["packing", "pressing"]
    # The other sensor neither waits for it nor tells the same.
    assert plant.tick("freshness") == "nothing new"
    let_go.set()
    until = time.monotonic() + 10
    while any(alert.told_at is None for alert in plant.open() if alert.subject == "pressing"):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("on", [False, True])
def test_they_run_from_the_start_only_when_the_settings_say_so(on: bool) -> None:
    made = alert_sensors(Settings(sensors_on=on))
    assert [sensor.name for sensor in made] == ["run_failures", "freshness"]
    assert {sensor.default_status == dg.DefaultSensorStatus.RUNNING for sensor in made} == {on}
    # They ask for no run, so they need no job.
    assert dg.Definitions(sensors=made).get_repository_def().has_sensor_def("freshness")
