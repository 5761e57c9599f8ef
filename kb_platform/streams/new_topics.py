"""Making the topics of the platform, with the settings that it states; topics that are there are never altered.

Belongs here: what those settings are and why, and how a topic that is there differs. Looking at topics is `topics`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from kb_platform.errors import PositionLost
from kb_platform.settings import Settings
from kb_platform.streams.broker import HEADROOM_BYTES, Brokers, Deadline
from kb_platform.streams.client_errors import as_stream_error, kafka_error
from kb_platform.streams.topics import Topic, Topics, dead_letter_topic

DAY_MS = 86_400_000
SEGMENT_BYTES = 256 * 1_048_576
# Headers of a dead letter say where it comes from and why.
LETTER_BYTES = 1_048_576


class Wanted(NamedTuple):
    """A topic as it should be. `config` in Kafka's names."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


class Made(NamedTuple):
    """A topic after `create`. `made`: it was not there before. `differences`: from the stated settings, in words."""

    name: str
    made: bool
    differences: list[str]


def wanted(settings: Settings, brokers: int) -> list[Wanted]:
    """The topics of releases and documents and their dead-letter topics, on so many brokers."""
    replication = min(settings.kafka_replication, brokers)
    largest = settings.max_record_bytes + HEADROOM_BYTES
    config = {
        # Every event counts: none is replaced by a later one of the same key.
        "cleanup.policy": "delete",
        "retention.ms": str(settings.kafka_retention_days * DAY_MS),
        "max.message.bytes": str(largest),
        # Two replicas have what a producer is told to be safe, and one broker may be away.
        "min.insync.replicas": "2" if replication >= 3 else "1",
        # Batches stay as producers compressed them: brokers spend nothing, and each producer may choose.
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
        # Brokers refuse a record that is larger than a segment, whatever `max.message.bytes` says.
        "segment.bytes": str(max(SEGMENT_BYTES, 2 * largest)),
    }
    letters = config | {
        # They wait for a person; nothing but a person removes them.
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": str(largest + LETTER_BYTES),
    }
    found: list[Wanted] = []
    for name in dict.fromkeys((settings.kafka_release_topic, settings.kafka_document_topic)):
        found.append(Wanted(name, settings.kafka_partitions, replication, config))
        found.append(Wanted(dead_letter_topic(name), settings.kafka_partitions, replication, letters))
    return found


def create(brokers: Brokers, settings: Settings) -> list[Made]:
    """Make what is missing of these topics; say how what is there differs. Again is harmless.

    Raises BrokersUnavailable, BrokersRefused, StreamError (brokers refuse a setting, such as a policy of theirs).
    """
    cluster = brokers.require()
    topics = wanted(settings, cluster.brokers)
    deadline = Deadline(3 * settings.kafka_timeout_s)
    admin = brokers.admin()
    new = {topic.name: _make(brokers, admin, topic, deadline) for topic in topics}
    with Topics(brokers) as looks:
        found = {topic.name: _described(looks, topic.name, deadline) for topic in topics}
    configs = _configs(brokers, admin, [topic.name for topic in topics], deadline)
    return [
        Made(topic.name, new[topic.name], differences(topic, found[topic.name], configs[topic.name]))
        for topic in topics
    ]


def differences(topic: Wanted, found: Topic, config: dict[str, str]) -> list[str]:
    """How a topic that is there differs from what it should be, in words."""
    told: list[str] = []
    if len(found.partitions) != topic.partitions:
        told.append(f"has {len(found.partitions)} partitions, not {topic.partitions}")
    if found.replicas and found.replicas != topic.replication:
        told.append(f"has {found.replicas} replicas, not {topic.replication}")
    told += [
        f"{key} is {config.get(key, 'not known')}, not {value}"
        for key, value in topic.config.items()
        if config.get(key) != value
    ]
    return told


def _make(brokers: Brokers, admin: Any, topic: Wanted, deadline: Deadline) -> bool:
    doing = f"making the topic {topic.name}"
    new = NewTopic(topic.name, topic.partitions, topic.replication, config=topic.config)
    within = Deadline(min(deadline.left, brokers.settings.kafka_timeout_s))
    try:
        future = admin.create_topics(
            [new], request_timeout=max(within.left, 0.1), operation_timeout=max(within.left, 0.1)
        )[topic.name]
        brokers.result(future, doing, within, admin.poll)
    except KafkaException as error:
        failed = kafka_error(error)
        if failed is not None and failed.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return False
        raise as_stream_error(doing, error, brokers.complaints.lately(deadline.began)) from None
    return True


def _described(looks: Topics, name: str, deadline: Deadline) -> Topic:
    """A topic just made is not known to every broker at once."""
    while True:
        try:
            return looks.describe(name)
        except PositionLost:
            if deadline.passed:
                raise


def _configs(brokers: Brokers, admin: Any, names: list[str], deadline: Deadline) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    within = Deadline(min(deadline.left, brokers.settings.kafka_timeout_s))
    found: dict[str, dict[str, str]] = {}
    for resource, future in admin.describe_configs(resources, request_timeout=max(within.left, 0.1)).items():
        doing = f"reading the settings of the topic {resource.name}"
        try:
            entries = brokers.result(future, doing, within, admin.poll)
        except KafkaException as error:
            raise as_stream_error(doing, error, brokers.complaints.lately(within.began)) from None
        found[resource.name] = {key: str(entry.value) for key, entry in entries.items()}
    return found
