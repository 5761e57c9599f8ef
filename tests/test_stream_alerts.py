"""Alerts about streams: a position that is lost, brokers that do not answer, and that both end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from kb_platform.settings import Settings
from kb_platform.stages import alerting
from kb_platform.store import alerts, streams
from kb_platform.store.alerts import Alert
from kb_platform.store.database import Database
from sensors.alerts import alert_sensors
from tests.test_alerts import Hook

GROUP, TOPIC = "kb-platform", "kb.releases"
NOW = datetime(2026, 5, 3, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


class Watchtower:
    """The freshness sensor over a database in which streams are recorded."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.hook = Hook()
        self.use(Settings(kafka_bootstrap_servers="nowhere.test:9092"))

    def use(self, settings: Settings) -> None:
        _, self.sensor = alert_sensors(settings, self.database, self.hook)

    def tick(self) -> list[Alert]:
        """One evaluation; what is open then."""
        with dg.DagsterInstance.ephemeral() as instance:
            self.sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
        with self.database.snapshot() as connection:
            return alerts.open_alerts(connection)


@pytest.fixture
def tower(database: Database) -> Watchtower:
    return Watchtower(database)


def read(database: Database, *topics: str, group: str = GROUP) -> None:
    """Topics that were read once."""
    with database.transaction() as connection:
        for topic in topics:
            streams.adopt(connection, group, topic, "id", {0: 7})


def lose(
    database: Database, topic: str = TOPIC, *, group: str = GROUP, detail: str = "40 records were deleted."
) -> None:
    with database.transaction() as connection:
        streams.in_trouble(connection, group, topic, "truncated", detail, NOW)


def silence(database: Database, topic: str, since: datetime) -> None:
    with database.transaction() as connection:
        streams.unreachable(connection, GROUP, topic, since)


def test_a_lost_position_is_an_error_with_the_command_until_it_is_reset(tower: Watchtower) -> None:
    read(tower.database, TOPIC)
    assert tower.tick() == []
    lose(tower.database)
    (alert,) = tower.tick()
    assert (alert.kind, alert.subject, alert.severity) == ("stream", "kb.releases for kb-platform", "error")
    assert alert.message == (
        "nothing is landed since 2026-05-03 12:00 UTC (truncated): 40 records were deleted. `kb kafka reset --topic kb.releases` "
        "asks where to go on, and records it"
    )
    assert "ERROR stream kb.releases for kb-platform" in tower.hook.texts[0]
    assert len(tower.tick()) == 1
    with tower.database.transaction() as connection:
        streams.reset(connection, GROUP, TOPIC, "id", {0: 47}, "a test")
    assert tower.tick() == []
    assert tower.hook.texts[1:] == [
        "kb-platform alerts: 1 resolved\nresolved stream: kb.releases for kb-platform"
    ]


def test_each_topic_of_each_group_is_an_alert_of_its_own(tower: Watchtower) -> None:
    read(tower.database, TOPIC, "kb.documents")
    read(tower.database, TOPIC, group="another")
    for topic, group in ((TOPIC, GROUP), ("kb.documents", GROUP), (TOPIC, "another")):
        lose(tower.database, topic, group=group)
    assert sorted(alert.subject for alert in tower.tick()) == [
        "kb.documents for kb-platform",
        "kb.releases for another",
        "kb.releases for kb-platform",
    ]


def test_what_brokers_say_is_told_on_one_line_and_cut(tower: Watchtower) -> None:
    read(tower.database, TOPIC)
    lose(tower.database, detail="gone\n\x1b[31m" + "x" * 5_000)
    (alert,) = tower.tick()
    assert len(alert.message) < 700
    assert not set(alert.message) & {"\n", "\x1b"}
    assert alert.message.endswith("and records it")


def test_brokers_that_are_silent_for_long_are_one_warning_for_all_topics(tower: Watchtower) -> None:
    read(tower.database, TOPIC, "kb.documents")
    now = datetime.now(UTC)
    silence(tower.database, TOPIC, now - timedelta(minutes=4))
    assert tower.tick() == []
    with tower.database.transaction() as connection:
        connection.execute("UPDATE kb.stream SET unreachable_since = %s", (now - timedelta(minutes=6),))
    (alert,) = tower.tick()
    assert (alert.kind, alert.subject, alert.severity) == ("brokers", "Kafka", "warning")
    assert "(kb.documents, kb.releases)" in alert.message
    assert "`kb kafka status`" in alert.message
    with tower.database.transaction() as connection:
        for topic in (TOPIC, "kb.documents"):
            streams.looked(connection, GROUP, topic, {0: (0, 9)}, now)
    assert tower.tick() == []


def test_the_silence_counts_from_the_first_topic_that_was_silent() -> None:
    def state(topic: str, minutes: int | None) -> streams.StreamState:
        since = None if minutes is None else NOW - timedelta(minutes=minutes)
        return streams.StreamState(GROUP, topic, "id", NOW, since, None, None, None, ())

    problems = alerting.broker_problems([state("a", 7), state("b", 9), state("c", 2), state("d", None)], NOW)
    assert [problem.message.partition(".")[0] for problem in problems] == [
        "no broker answers since 2026-05-03 11:51 UTC (a, b)"
    ]
    assert alerting.broker_problems([state("c", 5)], NOW) == []


def test_with_kafka_off_there_is_nothing_to_mend(tower: Watchtower) -> None:
    read(tower.database, TOPIC)
    lose(tower.database)
    silence(tower.database, TOPIC, NOW)
    assert len(tower.tick()) == 2
    tower.use(Settings())
    assert tower.tick() == []


@pytest.mark.parametrize("kind", [alerting.STREAM, alerting.BROKERS])
def test_the_freshness_sensor_keeps_both_kinds_up(kind: str) -> None:
    assert kind in alerting.FRESHNESS_KINDS


def test_a_stream_without_trouble_is_no_problem(make_database: Callable[[], Database]) -> None:
    database = make_database()
    read(database, TOPIC)
    assert alerting.freshness_problems(database, NOW, DAY) == []
