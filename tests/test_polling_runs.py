"""Polling under Dagster: the session, the observed asset, the sensor and the partitions, against real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import dagster as dg
import httpx2
import pytest
from dagster_k8s.job import get_user_defined_k8s_config
from sqlalchemy import text

from assets.partitions import known_partitions, register
from assets.polling import GITHUB_RELEASES, POLL
from kb_platform.clock import SystemClock
from kb_platform.definitions import build_defs
from kb_platform.errors import SettingsError
from kb_platform.settings import Settings
from kb_platform.sources.forge import Forge
from kb_platform.sources.github import GitHub, github_from_settings
from kb_platform.stages.polling_session import Session, poll_now
from kb_platform.store import forgetting, watch_list
from kb_platform.store.credentials import Ledger
from kb_platform.store.database import Database
from sensors.polling import polling_sensor
from tests.github_stand_in import StandIn
from tests.hashing_embedder import HashingEmbedder
from tests.releases import notes, observe, release

REPOSITORY = "acme/tool"


class World:
    """A stand-in on the real clock, polled through Dagster."""

    def __init__(self, database: Database, instance: dg.DagsterInstance, embedder: HashingEmbedder) -> None:
        self.database, self.instance = database, instance
        self.stand_in = StandIn(SystemClock(), seed=6)
        self.settings = Settings(
            github_api_url=self.stand_in.site.api, poll_session_s=0, poll_interval_s=3600, github_token=None
        )
        self.forge: GitHub = github_from_settings(
            self.settings, SystemClock(), transport=httpx2.MockTransport(self.stand_in.handle)
        )
        self.defs = build_defs(
            settings=self.settings,
            database=database,
            load_embedder=lambda _model: embedder,
            configured_model=lambda: embedder.model,
            forge_for=self.forge_for,
        )
        self.sensor = polling_sensor(self.settings, database)
        self.skipped: str | None = None

    def forge_for(self, _source: str, _api_url: str | None) -> Forge:
        return self.forge

    def watch(self, *names: str) -> None:
        with self.database.transaction() as connection:
            for name in names:
                watch_list.add(connection, name, at=datetime.now(UTC))

    def tick(self) -> list[dg.RunRequest]:
        context = dg.build_sensor_context(
            instance=self.instance, repository_def=self.defs.get_repository_def()
        )
        evaluated = self.sensor.evaluate_tick(context)
        for request in evaluated.dynamic_partitions_requests or []:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                register(self.instance, request.partition_keys)
            else:
                for key in cast("dg.DeleteDynamicPartitionsRequest", request).partition_keys:
                    self.instance.delete_dynamic_partition("repositories", key)
        self.skipped = evaluated.skip_message
        return list(evaluated.run_requests or [])

    def poll(self) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def(POLL).execute_in_process(
            instance=self.instance, raise_on_error=False
        )

    def run_record(self, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """A run of the job in this state; no process belongs to it."""
        return self.instance.create_run_for_job(self.defs.resolve_job_def(POLL), status=status)


@pytest.fixture
def world(database: Database, hashing_embedder: HashingEmbedder) -> Generator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        made = World(database, instance, hashing_embedder)
        with closing(made.forge):
            yield made


def test_a_run_polls_what_is_due_and_observes(world: World) -> None:
    number = world.stand_in.add_repository(REPOSITORY, 4)
    world.watch(REPOSITORY)
    assert len(world.tick()) == 1
    assert known_partitions(world.instance) == [REPOSITORY]
    assert world.poll().success
    observations = world.instance.fetch_observations(GITHUB_RELEASES, limit=5).records
    figures: dict[str, Any] = {
        name: value.value for name, value in observations[0].asset_observation.metadata.items()
    }
    assert figures["polls"] == 1
    assert figures["releases_new"] == len(world.stand_in.truth(number))
    assert figures["requests"] == 2
    assert world.tick() == []
    assert world.skipped is not None
    assert world.skipped.startswith("the next repository is due in")


def test_what_cannot_be_polled_is_red_with_its_reason(world: World) -> None:
    world.stand_in.add_repository(REPOSITORY, 1)
    world.watch(REPOSITORY, "acme/nowhere")
    (check,) = world.poll().get_asset_check_evaluations()
    assert check.check_name == "watched_repositories_are_verified"
    assert not check.passed
    assert check.description == "1 fail: acme/nowhere"
    assert "not-found" in str(check.metadata["failing"].value)
    with world.database.transaction() as connection:
        watch_list.remove(connection, watch_list.find(connection, "acme/nowhere").repository_id)
    (check,) = world.poll().get_asset_check_evaluations()
    assert check.passed


def test_on_a_cluster_a_polling_run_has_a_place_and_no_pods_for_its_step() -> None:
    job = build_defs(settings=Settings(kubernetes=True)).resolve_job_def(POLL)
    config = get_user_defined_k8s_config(job.run_tags)
    assert config.pod_spec_config["node_selector"] == {"kb-platform/node-group": "general"}
    assert job.executor_def.name == "in_process"


def test_polled_releases_go_down_to_the_index(world: World) -> None:
    world.stand_in.add_repository(REPOSITORY, 2)
    world.stand_in.add_repository("acme/empty", 0)
    world.watch(REPOSITORY, "acme/empty")
    world.tick()
    world.poll()
    for name in (REPOSITORY, "acme/empty"):
        done = world.defs.resolve_job_def("refresh").execute_in_process(
            instance=world.instance, partition_key=name
        )
        assert done.success
        failed = [check for check in done.get_asset_check_evaluations() if not check.passed]
        assert failed == [], "a watched repository without releases is no fault"


def test_nothing_is_asked_while_somebody_polls_or_is_about_to(world: World) -> None:
    assert world.tick() == []
    assert world.skipped == "nothing is watched: `kb watch add OWNER/REPO`"
    world.watch(REPOSITORY)
    ledger = Ledger(world.database)
    with ledger.session():
        assert world.tick() == []
        assert world.skipped == "a run is polling"
    ledger.close()
    starting = world.run_record(dg.DagsterRunStatus.STARTING)
    assert world.tick() == []
    assert world.skipped == "a run is about to poll"
    world.instance.delete_run(starting.run_id)
    assert len(world.tick()) == 1


def test_a_run_whose_process_died_is_replaced(world: World) -> None:
    """It still counts as started; that nobody holds the lock says more."""
    world.watch(REPOSITORY)
    world.run_record(dg.DagsterRunStatus.STARTED)
    assert len(world.tick()) == 1


def test_runs_that_fail_are_asked_for_again_after_a_pause(world: World) -> None:
    world.watch(REPOSITORY)
    world.instance.report_run_failed(world.run_record(dg.DagsterRunStatus.STARTED))
    assert world.tick() == []
    assert world.skipped is not None
    assert world.skipped.startswith("the last runs failed")


def ended(world: World, *, began_s_ago: float, lived_s: float) -> None:
    """A run that failed, so long ago."""
    run = world.run_record(dg.DagsterRunStatus.STARTED)
    world.instance.report_run_failed(run)
    began = datetime.now(UTC).timestamp() - began_s_ago
    with cast("Any", world.instance.run_storage).connect() as connection:
        connection.execute(
            text("UPDATE runs SET start_time = :began, end_time = :ended WHERE run_id = :run"),
            {"began": began, "ended": began + lived_s, "run": run.run_id},
        )


def pause_of(world: World) -> float:
    """Seconds that the sensor lets pass before the next try; 0 when it asks for a run."""
    if world.tick():
        return 0.0
    assert world.skipped is not None
    return float(world.skipped.rpartition("in ")[2].removesuffix(" s"))


def test_runs_that_were_killed_while_they_polled_do_not_add_up(world: World) -> None:
    world.watch(REPOSITORY)
    for _ in range(4):
        ended(world, began_s_ago=10, lived_s=5)
    assert pause_of(world) > 200
    with world.database.transaction() as connection:
        connection.execute("UPDATE kb.watch SET polled_at = now() - interval '7 seconds'")
    assert 0 < pause_of(world) <= 30


def test_a_run_that_polled_for_long_is_replaced_at_once(world: World) -> None:
    world.watch(REPOSITORY)
    ended(world, began_s_ago=200, lived_s=5)
    ended(world, began_s_ago=90, lived_s=80)
    assert pause_of(world) == 0


def test_partitions_of_what_is_forgotten_go_and_those_that_a_person_made_stay(world: World) -> None:
    observe(world.database, "acme/old", release(1, notes("x")))
    register(world.instance, ["acme/old", "acme/by-hand"])
    world.watch(REPOSITORY)
    with world.database.transaction() as connection:
        repository_id = watch_list.find(connection, REPOSITORY).repository_id
        assert repository_id
        row = connection.execute("SELECT repository_id FROM kb.repository WHERE name = 'acme/old'").fetchone()
        assert row is not None
        forgetting.forget(connection, row[0])
    world.tick()
    assert set(known_partitions(world.instance)) == {REPOSITORY, "acme/by-hand"}


def test_a_second_session_ends_at_once(world: World) -> None:
    world.watch(REPOSITORY)
    ledger = Ledger(world.database)
    with ledger.session():
        assert not Session(world.database, world.forge_for, world.settings).run()
        done = world.poll()
        assert done.success
    ledger.close()
    assert world.stand_in.log == []


def test_a_session_goes_on_takes_in_what_is_added_and_stops_when_told(world: World) -> None:
    world.stand_in.add_repository(REPOSITORY, 1)
    world.stand_in.add_repository("acme/late", 1)
    world.watch(REPOSITORY)
    stop = threading.Event()
    settings = world.settings.model_copy(update={"poll_session_s": 60.0, "poll_interval_s": 1.0})
    session = Session(world.database, world.forge_for, settings, stop=stop)
    thread = threading.Thread(target=session.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while session.totals.turns < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        world.watch("acme/late")
        while "acme/late" not in session.totals.changed_repositories and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        stop.set()
        asked = time.monotonic()
        thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - asked < 5
    assert session.totals.changed_repositories == {REPOSITORY, "acme/late"}


def test_what_is_wrong_with_one_forge_holds_up_no_other(world: World) -> None:
    world.stand_in.add_repository(REPOSITORY, 1)
    world.watch(REPOSITORY)
    with world.database.transaction() as connection:
        watch_list.add(
            connection,
            "acme/elsewhere",
            source="gitea",
            api_url="https://git.test/api/v1",
            at=datetime.now(UTC),
        )

    def forge_for(source: str, api_url: str | None) -> Forge:
        if source == "gitea":
            raise SettingsError("no key")
        time.sleep(0.2)
        return world.forge_for(source, api_url)

    session = Session(world.database, forge_for, world.settings)
    with pytest.raises(SettingsError, match="no key"):
        session.run()
    assert session.totals.changed_repositories == {REPOSITORY}


def test_what_concerns_all_ends_the_session_with_its_error(world: World) -> None:
    world.watch(REPOSITORY)

    def no_forge(_source: str, _api_url: str | None) -> Forge:
        raise RuntimeError("no key")

    with pytest.raises(RuntimeError, match="no key"):
        Session(world.database, no_forge, world.settings).run()


def test_a_person_polls_now_and_waits_for_a_limit_that_ends_soon(world: World) -> None:
    number = world.stand_in.add_repository(REPOSITORY, 1)
    world.watch(REPOSITORY)
    world.stand_in.storm("secondary", requests=1, wait=1, retry_after="seconds")
    (attempt,) = poll_now(world.database, world.forge_for, world.settings, SystemClock(), longest_wait_s=5)
    assert (attempt.outcome, attempt.imported.new) == ("changed", len(world.stand_in.truth(number)))
    world.stand_in.storm("secondary", requests=1, wait=600, retry_after="seconds")
    (attempt,) = poll_now(world.database, world.forge_for, world.settings, SystemClock(), longest_wait_s=1)
    assert attempt.outcome == "waiting"
    assert attempt.until is not None
    assert attempt.until > datetime.now(UTC) + timedelta(seconds=500)
    assert world.stand_in.forbidden_requests() == []
