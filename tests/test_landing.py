"""Landing from real brokers into the real tables: what is in the log, in quarantine and in the dead-letter topic after."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from psycopg.rows import TupleRow

from kb_platform.errors import BrokersUnavailable, PositionLost
from kb_platform.settings import Settings
from kb_platform.sources.message import Message
from kb_platform.stages import lag, positions
from kb_platform.stages.dead_letters import publish
from kb_platform.stages.landing import Landed, land
from kb_platform.stages.replaying import replay
from kb_platform.store import quarantine, streams
from kb_platform.store.database import Database
from kb_platform.streams.broker import Brokers
from kb_platform.streams.topics import Topics
from tests.kafka_brokers import NewTopics, brokers_address, new_topics
from tests.stream_events import START, document_message, poison, release_message


class Stage:
    """A topic with its dead-letter topic, and a knowledge base that lands it."""

    def __init__(
        self, topics: NewTopics, database: Database, *, partitions: int = 3, **settings: Any
    ) -> None:
        self.topics = topics
        self.database = database
        self.topic = topics(partitions, max_message_bytes=20_000_000)
        self.dead = topics(1, name=f"{self.topic}.dlq", max_message_bytes=20_000_000)
        topics._names.append(self.dead)
        self.settings = Settings(
            kafka_bootstrap_servers=topics.address,
            kafka_release_topic=self.topic,
            kafka_group=f"group-of-{self.topic}",
            **settings,
        )
        self.brokers = Brokers(self.settings)

    def send(self, messages: Iterable[Message], *, partition: int | None = None, **config: Any) -> None:
        """Send messages as they are; with `transactional_id`, in one transaction."""
        producer = Producer(
            {"bootstrap.servers": self.topics.address, "message.max.bytes": 20_000_000, "log_level": 0}
            | {name.replace("_", "."): value for name, value in config.items()}
        )
        transactional = "transactional_id" in config
        if transactional:
            producer.init_transactions(30)
            producer.begin_transaction()
        for one in messages:
            producer.produce(
                self.topic,
                one.value,
                one.key,
                partition=one.partition if partition is None else partition,
                headers=list(one.headers),
            )
        assert producer.flush(30) == 0
        if transactional:
            producer.commit_transaction(30)

    def send_and_abort(self, messages: Iterable[Message]) -> None:
        """Send messages in a transaction that is given up."""
        producer = Producer(
            {
                "bootstrap.servers": self.topics.address,
                "transactional.id": f"{self.topic}-abort",
                "log_level": 0,
            }
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        for one in messages:
            producer.produce(
                self.topic, one.value, one.key, partition=one.partition, headers=list(one.headers)
            )
        producer.flush(30)
        producer.abort_transaction(30)

    def land(self, **options: Any) -> Landed:
        """Land what the topic holds now."""
        return land(self.database, self.brokers, self.settings, self.topic, **options)

    def rows(self, query: str, *parameters: Any) -> list[TupleRow]:
        """What the database says."""
        with self.database.snapshot() as connection:
            return connection.execute(query, parameters).fetchall()

    def stored(self) -> streams.Stream:
        """Positions as they are kept."""
        with self.database.snapshot() as connection:
            found = streams.stream(connection, self.settings.kafka_group, self.topic)
        assert found is not None
        return found

    def dead_letters(self) -> list[dict[str, bytes]]:
        """The headers of all dead letters that a reader of committed records sees."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.topics.address,
                "group.id": "none",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )
        consumer.assign([TopicPartition(self.dead, 0, 0)])
        found: list[dict[str, bytes]] = []
        while (message := consumer.poll(20)) is not None and message.error() is None:
            found.append(dict(message.headers() or []) | {"value": message.value() or b""})
        consumer.close()
        return found


@pytest.fixture
def stage(database: Database) -> Generator[Stage]:
    """A topic of three partitions and an empty knowledge base."""
    with new_topics(brokers_address()) as topics:
        yield Stage(topics, database)


def tags(stage: Stage) -> list[str]:
    """The current releases' tags."""
    return [row[0] for row in stage.rows("SELECT tag FROM kb.current_releases ORDER BY release_id")]


def test_events_become_releases_once(stage: Stage) -> None:
    """Records of three partitions, both modes, are in the log; landing again does nothing."""
    stage.send(
        release_message(release_id=n, partition=n % 3, mode="structured" if n % 2 else "binary", time=n)
        for n in range(1, 31)
    )
    first = stage.land()
    assert (first.records, first.new, first.quarantined, first.lag) == (30, 30, 0, 0)
    assert len(tags(stage)) == 30
    second = stage.land()
    assert (second.records, second.batches) == (0, 0)
    origins = {row[0] for row in stage.rows("SELECT origin FROM kb.release_observations")}
    assert len(origins) == 30
    assert all(origin.startswith(f"kafka:{stage.topic}/") for origin in origins)


def test_positions_go_past_what_is_no_record(stage: Stage) -> None:
    """Control records and aborted records leave gaps; the end of a range is a position."""
    stage.send([release_message(release_id=1)], transactional_id=f"{stage.topic}-a")
    stage.send_and_abort([release_message(release_id=2), release_message(release_id=3)])
    landed = stage.land()
    assert (landed.records, landed.lag) == (1, 0)
    with closing(Topics(stage.brokers)) as topics:
        _, marks = topics.look(stage.topic)
    assert stage.stored().positions == {number: mark.high for number, mark in marks.items()}
    assert marks[0].high > 3
    assert stage.land().batches == 0


def test_edits_deletions_and_what_comes_late(stage: Stage) -> None:
    """Of one release the newest state holds, whatever order the events came in; the history has all of them."""
    stage.send(
        [
            release_message(body="first", time=0),
            release_message(body="third", action="edited", time=20),
            release_message(body="second", action="edited", time=10),
            release_message(release_id=2, body="gone", time=0),
            release_message(release_id=2, body="gone", action="deleted", time=30),
            release_message(release_id=2, body="came late", action="edited", time=5),
        ],
        partition=0,
    )
    landed = stage.land()
    assert (landed.new, landed.edited, landed.deleted, landed.late) == (2, 1, 1, 2)
    assert stage.rows("SELECT release_id, body FROM kb.current_releases") == [(1, "third")]
    history = stage.rows("SELECT body FROM kb.release_observations WHERE release_id = 1 ORDER BY observed_at")
    assert [row[0] for row in history] == ["first", "second", "third"]


def test_reading_all_of_it_again_changes_nothing(stage: Stage) -> None:
    """After a reset to the beginning, and by a group of its own."""
    stage.send(
        release_message(release_id=n % 5 + 1, body=f"state {n % 7}", action="edited", time=n, partition=0)
        for n in range(60)
    )
    stage.send([found for _, found in poison()][:5], partition=1)
    first = stage.land()
    assert first.quarantined == 5
    before = stage.rows("SELECT * FROM kb.observation ORDER BY sequence")
    with closing(Topics(stage.brokers)) as topics:
        chosen = positions.plan(stage.database, topics, stage.settings, stage.topic, "earliest")
    assert chosen.skipped == 0
    positions.carry_out(stage.database, stage.settings, chosen, by="test@here")
    again = stage.land()
    assert (again.records, again.appended) == (65, 0)
    other = stage.settings.model_copy(update={"kafka_group": "another"})
    assert land(stage.database, stage.brokers, other, stage.topic).appended == 0
    assert stage.rows("SELECT * FROM kb.observation ORDER BY sequence") == before
    assert len(stage.rows("SELECT FROM kb.quarantine")) == 5
    assert len(stage.dead_letters()) == 5
    assert [row[0] for row in stage.rows("SELECT requested_by FROM kb.stream_resets")] == ["test@here"] * 3


def test_poison_is_set_apart_with_all_that_came(stage: Stage) -> None:
    """Bytes, headers and coordinates, in quarantine and as a dead letter, and its neighbours are landed."""
    # Brokers give a time of their own.
    bad = [(reason, found) for reason, found in poison() if found.timestamp == START]
    stage.send([release_message(release_id=1), *(found for _, found in bad), release_message(release_id=2, time=9)],
               partition=0)  # fmt: skip
    landed = stage.land()
    assert (landed.new, landed.quarantined, landed.dead_letters) == (2, len(bad), len(bad))
    rows = stage.rows(
        'SELECT reason, raw, headers, partition, "offset", attempts FROM kb.quarantine ORDER BY 5'
    )
    assert [row[0] for row in rows] == [reason for reason, _ in bad]
    assert [bytes(row[1]) for row in rows] == [found.value or b"" for _, found in bad]
    assert [len(row[2]) for row in rows] == [len(found.headers) for _, found in bad]
    assert [(row[3], row[4], row[5]) for row in rows] == [(0, n, 1) for n in range(1, len(bad) + 1)]
    letters = stage.dead_letters()
    assert [letter["kb-reason"].decode() for letter in letters] == [reason for reason, _ in bad]
    assert [letter["value"] for letter in letters] == [found.value or b"" for _, found in bad]
    assert {letter["kb-topic"].decode() for letter in letters} == {stage.topic}
    assert len({letter["kb-dead-letter"] for letter in letters}) == len(bad)
    assert publish(stage.database, stage.brokers, stage.settings, stage.topic) == 0


def test_a_dead_letter_that_is_in_its_topic_is_not_sent_again(stage: Stage) -> None:
    """Who is killed between the brokers' commit and ours leaves a letter that only looks as if it waited."""
    stage.send([found for _, found in poison()][:3], partition=0)
    stage.land()
    with stage.database.transaction() as connection:
        connection.execute("UPDATE kb.dead_letter SET published_at = NULL")
        connection.execute("DELETE FROM kb.dead_letter_position")
    assert publish(stage.database, stage.brokers, stage.settings, stage.topic) == 0
    assert len(stage.dead_letters()) == 3
    assert stage.rows("SELECT FROM kb.dead_letter WHERE published_at IS NULL") == []


def test_dead_letters_wait_for_their_topic(stage: Stage) -> None:
    """Landing does not need it; what could not be sent is sent when it is there."""
    stage.topics.delete(stage.dead)
    stage.send([release_message(), poison()[0][1]], partition=0)
    landed = stage.land()
    assert (landed.new, landed.quarantined, landed.dead_letters) == (1, 1, 0)
    stage.topics(1, name=stage.dead)
    assert stage.land().dead_letters == 1
    assert len(stage.dead_letters()) == 1


def test_a_replayed_record_does_not_overwrite_what_came_after_it(stage: Stage) -> None:
    """The record is read with a larger limit, and goes into the history of its release."""
    stage.send(
        [
            release_message(body="x" * 5_000, time=0),
            release_message(body="newer", action="edited", time=10),
        ],
        partition=0,
    )
    small = stage.settings.model_copy(update={"max_body_bytes": 2_000})
    landed = land(stage.database, stage.brokers, small, stage.topic)
    assert landed.reasons == {"body-too-long": 1}
    with stage.database.snapshot() as connection:
        (record,) = quarantine.listed(connection)
    assert replay(stage.database, record.quarantine_id, small).reasons == {"body-too-long": 1}
    assert replay(stage.database, record.quarantine_id, stage.settings).late == 1
    assert [row[0] for row in stage.rows("SELECT body FROM kb.current_releases")] == ["newer"]
    with stage.database.snapshot() as connection:
        assert quarantine.listed(connection) == []


def test_documents_are_landed_by_the_same_code(stage: Stage) -> None:
    """A page of a wiki is found under its source, edited and deleted like a release."""
    stage.send(
        [
            document_message("p1", time=0),
            document_message("p2", time=0),
            document_message("p1", deleted=True, time=9),
        ],
        partition=0,
    )
    landed = stage.land()
    assert (landed.new, landed.deleted) == (2, 1)
    rows = stage.rows("SELECT repository, tag, name, url, version_key FROM kb.current_releases")
    assert [(row[1], row[2], row[4]) for row in rows] == [("p2", "How we do p2", None)]
    assert rows[0][0].startswith("wiki.example.org/")


# --- when reading cannot go on --------------------------------------------------------------------------------


def expect_lost(stage: Stage, reason: str) -> PositionLost:
    """Landing and looking both say it, landing keeps it, and nothing was written."""
    before = stage.rows("SELECT count(*) FROM kb.observation")
    with pytest.raises(PositionLost) as caught:
        stage.land()
    assert caught.value.reason == reason
    stored = stage.stored()
    assert (stored.trouble, stored.trouble_since is not None) == (reason, True)
    assert stage.rows("SELECT count(*) FROM kb.observation") == before
    with closing(Topics(stage.brokers)) as topics:
        seen = lag.look(stage.database, topics, stage.settings, stage.topic)
    assert seen.trouble is not None
    assert seen.trouble.reason == reason
    return caught.value


def reset(stage: Stage, to: str = "earliest") -> positions.Plan:
    """As `kb kafka reset --yes`."""
    with closing(Topics(stage.brokers)) as topics:
        chosen = positions.plan(stage.database, topics, stage.settings, stage.topic, positions.target(to))
    positions.carry_out(stage.database, stage.settings, chosen, by="test@here")
    return chosen


def test_a_trimmed_topic_is_named_and_reset(stage: Stage) -> None:
    """Records that were deleted before they were read are not skipped in silence."""
    stage.send((release_message(release_id=n, time=n) for n in range(1, 11)), partition=0)
    stage.land()
    stage.send((release_message(release_id=n, time=n) for n in range(11, 21)), partition=0)
    stage.topics.trim(stage.topic, 0, 15)
    lost = expect_lost(stage, "truncated")
    assert "kb kafka reset" in (lost.hint or "")
    assert "5 records" in str(lost)
    chosen = reset(stage)
    assert (chosen.trouble, chosen.steps[0].before, chosen.steps[0].after) == ("truncated", 10, 15)
    assert stage.land().new == 5
    assert stage.stored().trouble is None


def test_a_topic_made_anew_is_named_and_reset(stage: Stage) -> None:
    """Also where the new topic has a record at the old position, which librdkafka would read without a word."""
    stage.send((release_message(release_id=n, time=n) for n in range(1, 4)), partition=0)
    stage.land()
    stage.topics.delete(stage.topic)
    expect_lost(stage, "missing")
    stage.topics(3, name=stage.topic)
    stage.send((release_message(release_id=n, time=n) for n in range(11, 21)), partition=0)
    expect_lost(stage, "recreated")
    assert reset(stage).trouble == "recreated"
    landed = stage.land()
    assert (landed.records, landed.new) == (10, 10)
    assert stage.stored().topic_id == stage.topics.topic_id(stage.topic)


def test_a_topic_made_anew_under_a_running_landing(stage: Stage) -> None:
    """The run that waits for more does not go on in the other topic."""
    stage.send([release_message(release_id=n, time=n) for n in range(1, 4)], partition=0)
    caught_up = threading.Event()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            stage.land(linger_s=60, tell=lambda so_far: caught_up.set() if so_far.records == 3 else None)
        except BaseException as error:
            caught.append(error)

    running = threading.Thread(target=run)
    running.start()
    assert caught_up.wait(30)
    stage.topics.delete(stage.topic)
    stage.topics(3, name=stage.topic)
    stage.send([release_message(release_id=n, time=n) for n in range(11, 16)], partition=0)
    running.join(60)
    assert [type(error) for error in caught] == [PositionLost]
    assert len(tags(stage)) == 3


@pytest.mark.slow
def test_an_end_before_the_position_is_named(stage: Stage) -> None:
    """Brokers that have lost records are not read on where new ones take their offsets."""
    stage.send([release_message()], partition=0)
    stage.land()
    with stage.database.transaction() as connection:
        connection.execute("UPDATE kb.stream_partition SET next_offset = 99 WHERE partition = 0")
    expect_lost(stage, "beyond-end")
    reset(stage, "latest")
    assert stage.land().records == 0


def test_a_reset_can_skip_and_says_how_much(stage: Stage) -> None:
    """To an offset, to the end, to a time; partitions that do not go so far end where they end."""
    stage.send((release_message(release_id=n, time=n) for n in range(1, 11)), partition=0)
    stage.send([release_message(release_id=99)], partition=1)
    assert reset(stage, "4").skipped == 4 + 1
    assert stage.land().records == 6
    assert reset(stage, "latest").skipped == 0
    assert stage.land().records == 0
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert [step.after for step in reset(stage, later).steps] == [10, 1, 0]
    assert [step.after for step in reset(stage, "2026-01-01").steps] == [0, 0, 0]


def test_a_topic_that_was_never_there_is_no_trouble_of_ours(stage: Stage) -> None:
    """The documents' topic may never be wanted."""
    with pytest.raises(PositionLost) as caught:
        land(stage.database, stage.brokers, stage.settings, stage.topics.name())
    assert (caught.value.reason, "kb kafka init" in (caught.value.hint or "")) == ("missing", True)
    assert stage.rows("SELECT FROM kb.stream WHERE trouble IS NOT NULL") == []


def test_partitions_that_are_added_are_read(stage: Stage) -> None:
    """A running landing notices them, and so does the next one."""
    from confluent_kafka.admin import NewPartitions

    stage.send([release_message(release_id=1)], partition=0)
    stage.land()
    for future in stage.topics.admin.create_partitions([NewPartitions(stage.topic, 4)]).values():
        future.result(20)
    stage.topics.wait_for(
        lambda: len(stage.topics.admin.list_topics(stage.topic, 5).topics[stage.topic].partitions) == 4
    )
    stage.send([release_message(release_id=2)], partition=3)
    assert stage.land().new == 1
    assert set(stage.stored().positions) == {0, 1, 2, 3}


# --- bounds ---------------------------------------------------------------------------------------------------


def test_a_run_is_bounded_by_records_and_by_time(database: Database) -> None:
    """And the next one goes on there."""
    with new_topics(brokers_address()) as topics:
        stage = Stage(topics, database, partitions=1, kafka_batch_records=10, kafka_run_records=25)
        stage.send((release_message(release_id=n, time=n) for n in range(1, 101)), partition=0)
        first = stage.land()
        assert (first.records, first.batches, first.lag) == (30, 3, 70)
        assert stage.land().records == 30
        timed = stage.settings.model_copy(update={"kafka_run_s": 0.001, "kafka_run_records": 1_000})
        assert land(stage.database, stage.brokers, timed, stage.topic).batches == 1


def test_batches_are_bounded_by_bytes(database: Database) -> None:
    """A record over the bound goes alone, and is landed like any other."""
    with new_topics(brokers_address()) as topics:
        stage = Stage(topics, database, partitions=1, kafka_batch_bytes=10_000)
        bodies = ["a" * 4_000, "b" * 4_000, "c" * 300_000, "d" * 100]
        stage.send(
            (release_message(release_id=n + 1, body=body, time=n) for n, body in enumerate(bodies)),
            partition=0,
        )
        landed = stage.land()
        assert (landed.new, landed.batches >= 3) == (4, True)


def test_told_to_stop_a_landing_stops_between_two_batches(stage: Stage) -> None:
    """What was landed is committed, and the rest is there for the next."""
    stop = threading.Event()
    stage.settings = stage.settings.model_copy(update={"kafka_batch_records": 5})
    stage.send((release_message(release_id=n, time=n) for n in range(1, 51)), partition=0)
    first = stage.land(stop=stop, tell=lambda _: stop.set(), linger_s=30)
    assert 0 < first.records <= 10
    rest = stage.land()
    assert first.records + rest.records == 50


@pytest.mark.slow
def test_two_that_land_the_same_topic_share_the_work(stage: Stage) -> None:
    """Each record is handed over once, whoever does it; none is lost, and the counts are exact."""
    stage.settings = stage.settings.model_copy(update={"kafka_batch_records": 20})
    stage.send(release_message(release_id=n, partition=n % 3, time=n) for n in range(1, 301))
    results: list[Landed] = []
    both = [threading.Thread(target=lambda: results.append(stage.land())) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(90)
    assert sum(result.records for result in results) == 300
    assert sum(result.new for result in results) == 300
    assert stage.rows("SELECT sum(records), sum(lag) FROM kb.streams") == [(300, 0)]
    assert len(tags(stage)) == 300


def test_a_position_that_another_has_moved_is_not_moved_again(stage: Stage) -> None:
    """The batch is given up whole: no row, no quarantined record."""
    stage.send([release_message(release_id=1), poison()[0][1]], partition=0)
    stage.land()
    stage.send([release_message(release_id=2), poison()[1][1]], partition=0)
    tries = 0

    def slow(connection: Any, group: str, topic: str, moves: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            other = Stage.__new__(Stage)
            other.__dict__.update(stage.__dict__)
            assert other.land().records == 2
        streams.advance(connection, group, topic, moves)

    landed = stage.land(advance=slow)
    assert (landed.records, landed.fenced) == (0, 1)
    assert Counter(row[0] for row in stage.rows("SELECT attempts FROM kb.quarantine")) == {1: 2}
    assert tags(stage) == ["v1.1.0", "v1.2.0"]


def test_offsets_are_there_for_lag_tools(stage: Stage) -> None:
    """The group has committed offsets at the brokers, though nobody of ours reads them."""
    stage.send((release_message(release_id=n, time=n) for n in range(1, 8)), partition=0)
    stage.land()
    consumer = Consumer(
        {"bootstrap.servers": stage.topics.address, "group.id": stage.settings.kafka_group, "log_level": 0}
    )
    try:
        stage.topics.wait_for(lambda: consumer.committed([TopicPartition(stage.topic, 0)], 10)[0].offset == 7)
    finally:
        consumer.close()


def test_without_brokers_landing_says_so_in_time(database: Database) -> None:
    """No hang, and nothing written."""
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", kafka_timeout_s=2)
    began = datetime.now(UTC)
    with pytest.raises(BrokersUnavailable, match=r"127\.0\.0\.1:1"):
        land(database, Brokers(settings), settings, "kb.releases")
    assert datetime.now(UTC) - began < timedelta(seconds=15)
