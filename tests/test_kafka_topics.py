"""Topics: which one has a name now, its watermarks, making those of the platform; and no answer is not "no topic"."""

from __future__ import annotations

import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kb_platform.errors import BrokersUnavailable, PositionLost
from kb_platform.settings import Settings
from kb_platform.streams.new_topics import create, differences, wanted
from kb_platform.streams.sender import Sender, TransactionalSender
from kb_platform.streams.topics import Topic, Topics, Watermarks, dead_letter_topic
from tests.kafka_brokers import MockCluster, NewTopics, brokers_address, brokers_of, new_topics


@pytest.fixture(scope="module")
def made() -> Generator[NewTopics]:
    with new_topics(brokers_address()) as topics:
        yield topics


def send(made: NewTopics, topic: str, count: int, key: bytes = b"k") -> None:
    with Sender(brokers_of(made.address)) as sender:
        for number in range(count):
            sender.send(topic, key, b"%d" % number)


# With the mock.


@pytest.mark.slow
def test_watermarks_of_the_mock() -> None:
    mock = MockCluster(1)
    try:
        brokers, topic = brokers_of(mock.address, kafka_timeout_s=2), mock.topic()
        with Sender(brokers) as sender:
            for _ in range(3):
                sender.send(topic, b"k", b"v")
        with Topics(brokers) as looks:
            marks = looks.watermarks(Topic(topic, "", (0, 1, 2, 3)))
            assert sorted(marks.values()) == [Watermarks(0, 0)] * 3 + [Watermarks(0, 3)]
            mock.freeze()
            began = time.monotonic()
            with pytest.raises(BrokersUnavailable):
                looks.watermarks(Topic(topic, "", (0, 1, 2, 3)))
            assert time.monotonic() - began < 4
            mock.thaw()
            assert looks.watermarks(Topic(topic, "", (0, 1, 2, 3))) == marks
            mock.kill()
            with pytest.raises(BrokersUnavailable):
                looks.look(topic)
    finally:
        mock.close()


@pytest.mark.parametrize(
    ("brokers", "replicas", "in_sync"), [(1, 1, "1"), (2, 2, "1"), (3, 3, "2"), (9, 3, "2")]
)
def test_stated_settings_fit_the_number_of_brokers(brokers: int, replicas: int, in_sync: str) -> None:
    for topic in wanted(Settings(), brokers):
        assert topic.replication == replicas
        assert topic.config["min.insync.replicas"] == in_sync
        assert topic.config["cleanup.policy"] == "delete"


def test_a_dead_letter_topic_keeps_all_and_takes_the_largest_record() -> None:
    settings = Settings(max_record_bytes=20_000_000, kafka_retention_days=7, kafka_partitions=5)
    topics = {topic.name: topic for topic in wanted(settings, 3)}
    assert set(topics) == {"kb.releases", "kb.releases.dlq", "kb.documents", "kb.documents.dlq"}
    releases, letters = topics["kb.releases"].config, topics[dead_letter_topic("kb.releases")].config
    assert releases["retention.ms"] == str(7 * 24 * 3600 * 1000)
    assert letters["retention.ms"] == "-1"
    assert 20_000_000 < int(releases["max.message.bytes"]) < int(letters["max.message.bytes"])
    assert {topic.partitions for topic in topics.values()} == {5}


def test_one_topic_for_both_is_made_once() -> None:
    both = Settings(kafka_release_topic="one", kafka_document_topic="one")
    assert [topic.name for topic in wanted(both, 3)] == ["one", "one.dlq"]


def test_differences_are_told_in_words() -> None:
    topic = wanted(Settings(), 3)[0]
    there = Topic(topic.name, "id", (0,), 1)
    config = topic.config | {"cleanup.policy": "compact"}
    del config["retention.ms"]
    assert differences(topic, there, config) == [
        "has 1 partitions, not 3",
        "has 1 replicas, not 3",
        "cleanup.policy is compact, not delete",
        "retention.ms is not known, not 2592000000",
    ]
    assert differences(topic, Topic(topic.name, "id", (0, 1, 2), 3), dict(topic.config)) == []


# With real brokers.


def test_a_topic_is_described_by_its_id(made: NewTopics) -> None:
    topic = made(partitions=4)
    with Topics(brokers_of(made.address)) as looks:
        found = looks.describe(topic)
        assert found.partitions == (0, 1, 2, 3)
        assert found.topic_id == made.topic_id(topic)
        made.delete(topic)
        made(partitions=2, name=topic)
        anew = looks.describe(topic)
        assert anew.topic_id != found.topic_id
        assert anew.partitions == (0, 1)


def test_no_such_topic_is_missing_and_is_not_made_by_asking(made: NewTopics) -> None:
    name = made.name()
    with Topics(brokers_of(made.address)) as looks:
        with pytest.raises(PositionLost) as raised:
            looks.describe(name)
        assert raised.value.reason == "missing"
        with pytest.raises(PositionLost) as raised:
            looks.watermarks(Topic(name, "", (0,)))
        assert raised.value.reason == "missing"
    assert name not in made.admin.list_topics(timeout=10).topics


def test_a_topic_that_is_deleted_goes_missing(made: NewTopics) -> None:
    topic = made()
    with Topics(brokers_of(made.address)) as looks:
        known = looks.describe(topic)
        made.delete(topic)
        for ask in (lambda: looks.look(topic), lambda: looks.watermarks(known)):
            with pytest.raises(PositionLost) as raised:
                ask()
            assert raised.value.reason == "missing"


def test_partitions_that_are_added_are_seen(made: NewTopics) -> None:
    from confluent_kafka.admin import NewPartitions

    topic = made(partitions=1)
    with Topics(brokers_of(made.address)) as looks:
        before, _ = looks.look(topic)
        made.admin.create_partitions([NewPartitions(topic, 3)])[topic].result(20)
        made.wait_for(lambda: looks.describe(topic).partitions == (0, 1, 2))
        after, marks = looks.look(topic)
        assert after.topic_id == before.topic_id
        assert set(marks) == {0, 1, 2}


def test_watermarks_end_where_what_is_committed_ends(made: NewTopics) -> None:
    topic = made()
    brokers = brokers_of(made.address)
    send(made, topic, 5)
    with Topics(brokers) as looks, TransactionalSender(brokers, f"{topic}-tx") as sender:
        found = looks.describe(topic)
        assert looks.watermarks(found) == {0: Watermarks(0, 5)}
        sender.begin()
        sender.send(topic, None, b"open")
        while len(sender):
            sender.poll(0.05)
        assert looks.watermarks(found) == {0: Watermarks(0, 5)}
        sender.commit()
        made.wait_for(lambda: looks.watermarks(found) == {0: Watermarks(0, 7)})
        made.trim(topic, 0, 2)
        made.wait_for(lambda: looks.watermarks(found) == {0: Watermarks(2, 7)})


def test_offsets_at_a_time(made: NewTopics) -> None:
    topic = made()
    before = datetime.now(UTC) - timedelta(hours=1)
    send(made, topic, 4)
    with Topics(brokers_of(made.address)) as looks:
        found = looks.describe(topic)
        assert looks.offsets_at(found, before) == {0: 0}
        assert looks.offsets_at(found, datetime.now(UTC) + timedelta(hours=1)) == {0: 4}
        made.trim(topic, 0, 3)
        made.wait_for(lambda: looks.offsets_at(found, before) == {0: 3})


def names_of(made: NewTopics) -> dict[str, Any]:
    release, document = made.name(), made.name()
    for name in (release, document):
        made.remove_later(dead_letter_topic(name))
    return {"kafka_release_topic": release, "kafka_document_topic": document, "kafka_partitions": 2}


def test_the_topics_of_the_platform_are_made_once(made: NewTopics) -> None:
    brokers = brokers_of(made.address, **names_of(made))
    first = create(brokers, brokers.settings)
    assert [(item.made, item.differences) for item in first] == [(True, [])] * 4
    again = create(brokers, brokers.settings)
    assert [(item.made, item.differences) for item in again] == [(False, [])] * 4
    assert [item.name for item in again] == [item.name for item in first]


def test_a_topic_that_is_there_is_not_altered(made: NewTopics) -> None:
    names = names_of(made)
    brokers = brokers_of(made.address, **names)
    made(partitions=1, name=names["kafka_release_topic"], cleanup_policy="compact")
    found = {item.name: item for item in create(brokers, brokers.settings)}
    there = found[names["kafka_release_topic"]]
    assert not there.made
    assert "has 1 partitions, not 2" in there.differences
    assert "cleanup.policy is compact, not delete" in there.differences
    assert found[names["kafka_document_topic"]].made
    with Topics(brokers) as looks:
        assert looks.describe(there.name).partitions == (0,)
