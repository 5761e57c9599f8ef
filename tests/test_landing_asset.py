"""Landing as Dagster runs it: observations that plot, checks that say what to do, runs that end as they should."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import Any, cast

import dagster as dg
import pytest
from dagster_k8s.job import get_user_defined_k8s_config

from assets.landing import (
    CHANNELS,
    DOCUMENTS,
    POSITION_HOLDS,
    PUBLISHED,
    RELEASES,
    UNDERSTOOD,
    Channel,
    landed_topics,
    landing_jobs,
)
from kb_platform.definitions import build_defs, refresh_in_process
from kb_platform.errors import BrokersUnavailable, KbError, PositionLost
from kb_platform.settings import Settings
from kb_platform.stages.landing import Landed
from kb_platform.store import loaders, streams
from kb_platform.store.database import Database
from resources.brokers import BrokersResource
from resources.settings import SettingsResource
from tests.hashing_embedder import HashingEmbedder
from tests.kafka_brokers import brokers_address, new_topics
from tests.landed import FakeTopics
from tests.stream_events import poison, release_message
from tests.test_landing import Stage, reset

SETTINGS = Settings(kafka_bootstrap_servers="nowhere.test:9092", kafka_linger_s=7)
TOPIC = RELEASES.topic(SETTINGS)


class Yard:
    """Jobs that land topics in memory; `land` may be another landing."""

    def __init__(self, database: Database, instance: dg.DagsterInstance) -> None:
        self.database, self.instance = database, instance
        self.topics = FakeTopics(database, SETTINGS)
        self.land: Any = self.topics.land

    def run(
        self,
        channel: Channel = RELEASES,
        settings: Settings = SETTINGS,
        brokers: Any = None,
        **given: Any,
    ) -> dg.ExecuteInProcessResult:
        defs = dg.Definitions(
            assets=landed_topics(self.land, **given),
            jobs=landing_jobs(settings),
            resources={"settings": settings, "database": self.database, "brokers": brokers or object()},
        )
        job = defs.resolve_job_def(channel.job)
        return job.execute_in_process(instance=self.instance, raise_on_error=False)

    def figures(self, channel: Channel = RELEASES) -> list[dict[str, Any]]:
        """Metadata of all observations, the oldest first."""
        records = self.instance.fetch_observations(channel.key, limit=50, ascending=True).records
        return [
            {name: value.value for name, value in record.asset_observation.metadata.items()}
            for record in records
            if record.asset_observation is not None
        ]


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What a run that failed says of itself."""
    assert not result.success
    (event,) = (event for event in result.all_events if event.is_step_failure)
    data = event.step_failure_data
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


@pytest.fixture
def yard(database: Database) -> Generator[Yard]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Yard(database, instance)


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.job)
def test_a_run_lands_its_topic_and_observes_it(yard: Yard, channel: Channel) -> None:
    yard.topics.fill(channel.topic(SETTINGS), 25)
    result = yard.run(channel)
    assert result.success
    (figures,) = yard.figures(channel)
    assert {name: figures[name] for name in ("records", "new", "lag", "quarantined", "late", "dead_letters")} == {
        "records": 25, "new": 25, "lag": 0, "quarantined": 0, "late": 0, "dead_letters": 0,
    }  # fmt: skip
    assert figures["seconds"] > 0
    assert figures["records_per_second"] > 0
    # All of them are numbers, which the UI plots.
    assert {type(value) for value in figures.values()} <= {int, float}
    assert {name: check.passed for name, check in checks(result).items()} == {
        POSITION_HOLDS: True, UNDERSTOOD: True, PUBLISHED: True,
    }  # fmt: skip


def test_a_run_lands_its_own_topic_with_the_settings_linger(yard: Yard) -> None:
    asked: list[tuple[str, float]] = []

    def land(
        _database: Any, _brokers: Any, _settings: Any, topic: str, *, linger_s: float, tell: Any
    ) -> Landed:
        del tell
        asked.append((topic, linger_s))
        return Landed()

    yard.land = land
    yard.run(RELEASES)
    yard.run(DOCUMENTS)
    assert asked == [("kb.releases", 7.0), ("kb.documents", 7.0)]


def test_figures_are_of_the_time_since_the_last_observation(yard: Yard) -> None:
    def land(*_given: Any, linger_s: float, tell: Callable[[Landed], None]) -> Landed:
        del linger_s
        landed = Landed()
        for _ in range(3):
            landed.records += 100
            landed.lag = 1000 - landed.records
            tell(landed)
        landed.records += 50
        return landed

    yard.land = land
    assert yard.run(seconds_between=0.0).success
    assert [figures["records"] for figures in yard.figures()] == [100, 100, 100, 50]
    assert [figures["lag"] for figures in yard.figures()] == [900, 800, 700, 700]


# --- what goes wrong ---


def lost(*_given: Any, **_named: Any) -> Landed:
    raise PositionLost(
        "recreated", "kb.releases is another topic", hint="`kb kafka reset --topic kb.releases` asks"
    )


def test_a_lost_position_is_a_red_check_with_the_command_and_no_failed_run(yard: Yard) -> None:
    yard.land = lost
    result = yard.run()
    # A failed run would be tried again, and again.
    assert result.success
    check = checks(result)[POSITION_HOLDS]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.ERROR
    assert check.description == (
        "recreated: kb.releases is another topic → `kb kafka reset --topic kb.releases` asks"
    )


def test_what_was_landed_before_the_position_was_lost_is_observed(yard: Yard) -> None:
    def land(*_given: Any, linger_s: float, tell: Callable[[Landed], None]) -> Landed:
        del linger_s
        tell(Landed(records=40, lag=3))
        return lost()

    yard.land = land
    yard.run()
    (figures,) = yard.figures()
    assert (figures["records"], figures["lag"]) == (40, 3)


@pytest.mark.parametrize(
    "error",
    [
        BrokersUnavailable("no broker at nowhere.test:9092 answered within 10 s", hint="check the address"),
        KbError("the disk is full"),
    ],
)
def test_other_errors_fail_the_run_plainly(yard: Yard, error: KbError) -> None:
    yard.topics.error = error
    said = failure(yard.run())
    assert said == (f"{error} → {error.hint}" if error.hint else str(error))
    # Nothing holds the topic any more.
    yard.topics.error = None
    assert yard.run().success


# Dagster reads an old property of its own context.
@pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run is deprecated")
def test_with_kafka_off_a_run_names_the_setting(yard: Yard) -> None:
    said = failure(yard.run(settings=Settings(), brokers=BrokersResource(settings=SettingsResource())))
    assert "KB_KAFKA_BOOTSTRAP_SERVERS" in said
    assert yard.topics.landings == 0


def test_quarantined_records_are_a_warning_with_the_command(yard: Yard) -> None:
    yard.land = lambda *_given, **_named: Landed(
        records=9, quarantined=4, reasons={"not-json": 3, "unknown-type": 1}
    )
    check = checks(yard.run())[UNDERSTOOD]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description == "4 records of this run are in quarantine: `kb quarantine list` shows why"
    assert {name: value.value for name, value in check.metadata.items()} == {
        "quarantined": 4, "reason/not-json": 3, "reason/unknown-type": 1,
    }  # fmt: skip


def test_dead_letters_that_wait_are_a_warning(yard: Yard) -> None:
    with yard.database.transaction() as connection:
        quarantine_id = connection.execute(
            "INSERT INTO kb.quarantined_record (fingerprint, origin, reason, detail, raw, raw_bytes) "
            "VALUES ('\\x01', 'kafka:kb.releases/0@0', 'not-json', 'x', 'x', 1) RETURNING quarantine_id"
        ).fetchone()
        assert quarantine_id is not None
        connection.execute(
            "INSERT INTO kb.dead_letter (quarantine_id, topic) VALUES (%s, 'kb.releases.dlq')", quarantine_id
        )
    check = checks(yard.run())[PUBLISHED]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert str(check.description).startswith("1 wait to be sent to kb.releases.dlq")
    assert checks(yard.run(DOCUMENTS))[PUBLISHED].passed


# --- two at once, and being told to stop ---


def test_a_second_run_of_a_topic_ends_at_once(yard: Yard) -> None:
    yard.topics.fill(TOPIC, 3)
    with yard.database.transaction() as connection:
        streams.adopt(connection, SETTINGS.kafka_group, TOPIC, "id", {0: 0})
        streams.in_trouble(
            connection, SETTINGS.kafka_group, TOPIC, "truncated", "40 records were deleted", datetime.now(UTC)
        )
    with loaders.turn(yard.database, SETTINGS.kafka_group, TOPIC):
        result = yard.run()
        assert result.success
        assert yard.topics.landings == 0
        # What is wrong with the topic is not well again because another run has its turn.
        assert checks(result)[POSITION_HOLDS].description == (
            "truncated: 40 records were deleted. `kb kafka reset --topic kb.releases` asks where to go on, and records it"
        )
        yard.run(DOCUMENTS)
        assert yard.topics.landings == 1


def test_told_to_stop_a_run_has_not_failed(yard: Yard) -> None:
    def land(*_given: Any, linger_s: float, tell: Callable[[Landed], None]) -> Landed:
        del linger_s
        tell(Landed(records=40))
        raise dg.DagsterExecutionInterruptedError

    yard.land = land
    result = yard.run()
    assert result.success
    assert [figures["records"] for figures in yard.figures()] == [40]


def test_a_turn_goes_with_its_holder(yard: Yard) -> None:
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with loaders.turn(yard.database, "group", "topic") as mine:
            assert mine
            held.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with loaders.turn(yard.database, "group", "topic") as mine, yard.database.snapshot() as connection:
        assert not mine
        assert loaders.is_landing(connection, "group", "topic")
        # Names that meet when they are put together are still two.
        assert not loaders.is_landing(connection, "group\ntopic", "")
        # As when its process is killed: the server ends the connection.
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with yard.database.snapshot() as connection:
            if not loaders.is_landing(connection, "group", "topic"):
                break
        time.sleep(0.02)
    with loaders.turn(yard.database, "group", "topic") as mine:
        assert mine
    leave.set()
    thread.join(10)


# --- where it runs ---


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel.job)
def test_on_a_cluster_a_landing_run_has_a_place_and_no_pods_for_its_step(channel: Channel) -> None:
    job = build_defs(settings=Settings(kubernetes=True)).resolve_job_def(channel.job)
    config = get_user_defined_k8s_config(job.run_tags)
    assert config.pod_spec_config["node_selector"] == {"kb-platform/node-group": "general"}
    assert job.executor_def.name == "in_process"


def test_what_is_landed_lies_upstream_of_the_log() -> None:
    graph = build_defs(settings=Settings()).resolve_asset_graph()
    assert {RELEASES.key, DOCUMENTS.key} < graph.get(dg.AssetKey("raw_releases")).parent_keys


# --- with real brokers ---


@pytest.mark.slow
def test_from_the_sensor_to_the_index_and_through_a_topic_made_anew(
    database: Database, hashing_embedder: HashingEmbedder
) -> None:
    with new_topics(brokers_address()) as topics, dg.DagsterInstance.ephemeral() as instance:
        stage = Stage(topics, database)
        stage.settings = stage.settings.model_copy(update={"kafka_linger_s": 0.5})
        defs = build_defs(
            settings=stage.settings,
            database=database,
            load_embedder=lambda _model: hashing_embedder,
            configured_model=lambda: hashing_embedder.model,
            brokers=stage.brokers,
        )
        (sensor,) = (one for one in defs.sensors or [] if one.name == "landing_releases")

        def tick() -> str | None:
            """One evaluation; None: a run was asked for."""
            context = dg.build_sensor_context(instance=instance, repository_def=defs.get_repository_def())
            evaluated = cast("dg.SensorDefinition", sensor).evaluate_tick(context)
            for event in evaluated.asset_events:
                instance.report_runless_asset_event(event)
            return evaluated.skip_message

        def run() -> dict[str, dg.AssetCheckEvaluation]:
            done = defs.resolve_job_def("land_releases").execute_in_process(instance=instance)
            return checks(done)

        stage.send([release_message(release_id=n, time=n) for n in range(1, 9)] + [poison()[0][1]])
        assert tick() is None
        assert {name: check.passed for name, check in run().items()} == {
            POSITION_HOLDS: True, UNDERSTOOD: False, PUBLISHED: True,
        }  # fmt: skip
        assert tick() == "all is landed"
        assert refresh_in_process(
            instance=instance, database=database, settings=stage.settings,
            load_embedder=lambda _model: hashing_embedder, configured_model=lambda: hashing_embedder.model,
        ).releases == 8  # fmt: skip

        stage.topics.delete(stage.topic)
        stage.topics(3, name=stage.topic)
        stage.send(release_message(release_id=n, time=n) for n in range(11, 31))
        assert f"kb kafka reset --topic {stage.topic}" in str(tick())
        check = run()[POSITION_HOLDS]
        assert not check.passed
        assert f"kb kafka reset --topic {stage.topic}" in str(check.description)
        reset(stage)
        assert tick() is None
        assert run()[POSITION_HOLDS].passed
        assert tick() == "all is landed"
        assert stage.rows("SELECT count(*) FROM kb.observation") == [(28,)]
