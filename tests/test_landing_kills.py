"""The kills of `benchmarks/kills_of_landing.py` in short; and that the harness sees what is lost, doubled or different."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import LiteralString

import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import kills_of_landing, mortal_loader
from benchmarks.kills_of_landing import GROUP, Faults, Outcome, judge
from benchmarks.landing_topic import Feed, Topic, new_topic
from benchmarks.landing_workload import START, Expected, Place, Record, Told, Workload, expected, history
from kb_platform.settings import Settings
from kb_platform.stages.landing import land
from kb_platform.store.database import Connection, Database
from kb_platform.streams.broker import Brokers
from tests.kafka_brokers import brokers_address

Landed = tuple[Database, Topic, Expected, dict[int, int]]


@pytest.fixture
def landed(database: Database) -> Generator[Landed]:
    """A small topic, landed by one whom nobody kills, and what must have come of it."""
    with new_topic(brokers_address()) as topic:
        feed = Feed(topic, seed=3)
        feed.send_up_to(1_200)
        settings = Settings(
            kafka_bootstrap_servers=topic.address, kafka_release_topic=topic.name, kafka_group=GROUP
        )
        land(database, Brokers(settings), settings, topic.name)
        yield database, topic, expected(topic.name, feed.committed()), topic.ends()


def told(at: int, body: str, *, deleted: bool = False, draft: bool = False) -> Told:
    moment = START + timedelta(seconds=at)
    return Told("acme/tool", 1, body, draft, deleted, moment, moment)


@pytest.mark.parametrize(
    ("events", "bodies"),
    [
        ([told(1, "a"), told(2, "b"), told(3, "a")], ["a", "b", "a"]),
        ([told(1, "a"), told(1, "a"), told(2, "a")], ["a"]),
        ([told(1, "a"), told(3, "c"), told(2, "b")], ["a", "b", "c"]),
        ([told(1, "a"), told(3, "c"), told(2, "a")], ["a", "c"]),
        ([told(3, "c"), told(1, "a"), told(2, "c")], ["a", "c", "c"]),
        ([told(1, "a"), told(2, "a", deleted=True), told(1, "a")], ["a", "gone"]),
        ([told(2, "a", deleted=True), told(1, "a")], ["a", "gone"]),
        ([told(1, "a"), told(1, "a", draft=True)], ["a", "a"]),
        ([told(1, "a"), told(9, "a"), told(5, "b")], ["b", "a"]),
    ],
)
def test_the_model_knows_the_order_of_events(events: list[Told], bodies: list[str]) -> None:
    rows = history([(Place(0, offset), event) for offset, event in enumerate(events)])
    assert ["gone" if row.told.deleted else row.told.body for row in rows] == bodies


def test_the_workload_has_everything_in_it() -> None:
    workload = Workload(seed=1)
    records = [workload.next() for _ in range(6_000)]
    assert {kind for kind, count in workload.kinds.items() if count > 20} == {
        "new", "ghost", "edited", "back", "deleted", "again", "unpublished", "repeated", "late", "poison",
    }  # fmt: skip
    poison = [item for item in records if item.told is None]
    assert 40 < len(poison) < 90
    assert len({item.value for item in poison}) < len(poison)
    assert {len(item.headers) for item in records if item.told} == {1, 7}
    assert [Workload(seed=1).next()] == records[:1]


def test_one_release_in_two_partitions_is_refused() -> None:
    item = Record(b"1", b"{}", (), told(1, "a"), None)
    with pytest.raises(SystemExit, match="several partitions"):
        expected("topic", {Place(0, 1): item, Place(1, 1): item})


@pytest.mark.slow
def test_killed_loaders_lose_and_double_nothing() -> None:
    faults = Faults(kills=40, loaders=2, postgres_crashes=4, broker_kills=2)
    outcome = kills_of_landing.run(brokers_address(), records=6_000, faults=faults, seed=7)
    kills_of_landing.show(outcome)
    assert outcome.killed["PostgreSQL"] == 4
    assert outcome.killed["broker"] == 2
    assert outcome.killed.total() == 46
    assert {how.removeprefix("loader ") for how in outcome.killed} & set(mortal_loader.POINTS)
    assert outcome.rows["records handed over"] == 6_000
    assert outcome.rows["quarantine"] == outcome.rows["dead letters"] > 30
    assert outcome.is_clean


@pytest.mark.slow
def test_without_the_fence_the_harness_finds_differences() -> None:
    faults = Faults(kills=6, loaders=2, fence=False)
    outcome = kills_of_landing.run(brokers_address(), records=2_000, faults=faults, seed=7)
    assert outcome.extra["records handed over"] > 0
    assert not outcome.is_clean


@pytest.mark.slow
def test_the_comparison_sees_every_difference(landed: Landed) -> None:
    database, topic = landed[:2]
    with database.snapshot() as connection:
        assert differences(connection, landed) == []
    damages: list[tuple[LiteralString, list[str]]] = [
        ("UPDATE kb.stream_partition SET records = records + 1 WHERE partition = 0", ["records handed over"]),
        ("UPDATE kb.stream_partition SET next_offset = next_offset - 1 WHERE partition = 1", ["positions"]),
        ("UPDATE kb.quarantined_record SET attempts = 2 WHERE quarantine_id = 1", ["quarantine"]),
        ("UPDATE kb.quarantined_message SET partition = partition + 1 WHERE quarantine_id = 2", ["quarantine"]),
        ("UPDATE kb.observation SET origin = 'kafka:x/0@1' WHERE sequence = 1", ["observations"]),
        ("UPDATE kb.observation SET body = 'x' WHERE NOT deleted", ["current releases", "observations"]),
    ]  # fmt: skip
    for damage, tables in damages:
        with database.transaction() as connection, connection.transaction() as attempt:
            # The log takes no changes; this one gets by its triggers.
            connection.execute("SET LOCAL session_replication_role = replica")
            connection.execute(damage)
            assert sorted(differences(connection, landed)) == tables, damage
            raise psycopg.Rollback(attempt)
    publish_again(topic)
    with database.snapshot() as connection:
        assert differences(connection, landed) == ["dead letters"]


def differences(connection: Connection, landed: Landed) -> list[str]:
    """The tables in which something is found."""
    outcome = Outcome()
    judge(connection, *landed[1:], outcome)
    assert outcome.wrong == []
    return [table for table in outcome.rows if outcome.lost[table] or outcome.extra[table]]


def publish_again(topic: Topic) -> None:
    """The first dead letter of a partition a second time."""
    client = {"bootstrap.servers": topic.address, "log_level": 0}
    consumer = Consumer(client | {"group.id": "none", "auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(f"{topic.name}.dlq", one, 0) for one in range(3)])
    letter = consumer.poll(20)
    assert letter is not None
    assert letter.error() is None
    consumer.close()
    producer = Producer(client)
    producer.produce(f"{topic.name}.dlq", letter.value(), letter.key(), headers=letter.headers() or [])
    assert producer.flush(20) == 0
