"""Sending: a report for each record, in words where it failed; and transactions that are all or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Generator

import pytest

from kb_platform.errors import BrokersUnavailable, QueueFull, StreamError
from kb_platform.streams.broker import Brokers
from kb_platform.streams.reader import Reader
from kb_platform.streams.sender import Delivery, Sender, TransactionalSender
from tests.kafka_brokers import MockCluster, NewTopics, brokers_address, brokers_of, new_topics


@pytest.fixture(scope="module")
def mock() -> Generator[MockCluster]:
    cluster = MockCluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def made() -> Generator[NewTopics]:
    with new_topics(brokers_address()) as topics:
        yield topics


def values(brokers: Brokers, topic: str, partitions: int = 1) -> list[bytes | None]:
    """All that is committed."""
    with Reader(brokers, topic, dict.fromkeys(range(partitions), 0)) as reader:
        found: list[bytes | None] = []
        until = time.monotonic() + 20
        while True:
            batch = reader.read(max_records=1000, max_bytes=50_000_000, wait_s=5)
            found += [item.value for item in batch.messages]
            if batch.ended:
                return found
            assert time.monotonic() < until


# With the mock.


def test_every_record_has_one_report(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address), mock.topic()
    told: list[Delivery] = []
    with Sender(brokers) as sender:
        for number in range(1_000):
            sender.send(topic, b"same", b"%d" % number, [("a", b"1")], told.append)
        assert sender.flush(10) == 0
        assert len(sender) == 0
    assert [item.error for item in told] == [None] * 1_000
    assert [item.offset for item in told] == list(range(1_000))
    assert {item.topic for item in told} == {topic}
    assert len({item.partition for item in told}) == 1
    assert values(brokers, topic, 4) == [b"%d" % number for number in range(1_000)]


def test_keys_go_where_the_java_client_puts_them(mock: MockCluster) -> None:
    from confluent_kafka import murmur2

    brokers, topic = brokers_of(mock.address), mock.topic()
    keys = [b"%d" % number for number in range(50)]
    told: list[Delivery] = []
    with Sender(brokers) as sender:
        for key in keys:
            sender.send(topic, key, b"", [], told.append)
            sender.flush(10)
    assert [item.partition for item in told] == [murmur2(key, 4) for key in keys]


def test_a_record_that_is_too_large_is_told_and_the_rest_goes_on(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address, max_record_bytes=65_536), mock.topic()
    told: list[Delivery] = []
    with Sender(brokers) as sender:
        sender.send(topic, None, os.urandom(3_000_000), [], told.append)
        sender.send(topic, None, b"fine", [], told.append)
    assert [item.error is None for item in told] == [False, True]
    assert "too large" in (told[0].error or "")
    assert (told[0].partition, told[0].offset) == (-1, -1)


def test_the_queue_is_full_and_then_it_is_not() -> None:
    mock = MockCluster(1)
    try:
        brokers, topic = brokers_of(mock.address), mock.topic()
        told: list[Delivery] = []
        with Sender(brokers, queue=10) as sender:
            mock.freeze()
            with pytest.raises(QueueFull, match=topic):
                for _ in range(11):
                    sender.send(topic, None, b"x", [], told.append)
            assert len(sender) == 10
            mock.thaw()
            assert sender.flush(20) == 0
            sender.send(topic, None, b"x", [], told.append)
        assert [item.error for item in told] == [None] * 11
    finally:
        mock.close()


@pytest.mark.slow
def test_what_could_not_be_delivered_is_told_in_time() -> None:
    mock = MockCluster(1)
    try:
        brokers, topic = brokers_of(mock.address), mock.topic()
        told: list[Delivery] = []
        sender = Sender(brokers, delivery_timeout_s=2)
        mock.kill()
        sender.send(topic, None, b"x", [], told.append)
        began = time.monotonic()
        sender.close()
        assert time.monotonic() - began < 8
        assert len(told) == 1
        assert "KB_KAFKA_BOOTSTRAP_SERVERS" in (told[0].error or "")
    finally:
        mock.close()


@pytest.mark.slow
def test_what_is_given_up_at_the_end_is_told() -> None:
    """Frozen brokers: what is under way may have arrived."""
    mock = MockCluster(1)
    try:
        brokers, topic = brokers_of(mock.address), mock.topic()
        told: list[Delivery] = []
        sender = Sender(brokers, delivery_timeout_s=1)
        mock.freeze()
        sender.send(topic, None, b"x", [], told.append)
        began = time.monotonic()
        sender.close()
        assert time.monotonic() - began < 6
        assert [item.error is None for item in told] == [False]
    finally:
        mock.close()


def test_no_brokers_no_sender() -> None:
    for make in (Sender, lambda brokers: TransactionalSender(brokers, "t").begin()):
        began = time.monotonic()
        with pytest.raises(BrokersUnavailable):
            make(brokers_of("127.0.0.1:1", kafka_timeout_s=0.5))
        assert time.monotonic() - began < 4


def test_a_transaction_must_be_begun(mock: MockCluster) -> None:
    sender = TransactionalSender(brokers_of(mock.address), "t")
    for act in (sender.commit, lambda: sender.send("t", None, b"")):
        with pytest.raises(StreamError, match="no transaction"):
            act()
    sender.abort()
    sender.close()


# With real brokers.


def test_the_largest_record_of_the_settings_arrives(made: NewTopics) -> None:
    brokers = brokers_of(made.address)
    largest = brokers.settings.max_record_bytes
    topic = made(max_message_bytes=largest + 1_048_576, segment_bytes=2 * largest)
    value = os.urandom(largest)
    told: list[Delivery] = []
    with Sender(brokers) as sender:
        sender.send(topic, b"k", value, [("h", b"x" * 1_000)], told.append)
    assert [item.error for item in told] == [None]
    assert values(brokers, topic) == [value]


def test_what_the_topic_does_not_take_is_told(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made(max_message_bytes=10_000)
    told: list[Delivery] = []
    with Sender(brokers) as sender:
        sender.send(topic, b"k", os.urandom(50_000), [], told.append)
        sender.flush(20)
        sender.send(topic, b"k", b"fine", [], told.append)
    assert ["too large" in (item.error or "") for item in told] == [True, False]
    assert told[1].error is None
    assert values(brokers, topic) == [b"fine"]


@pytest.mark.slow
def test_a_topic_that_is_not_there_is_told_in_time(made: NewTopics) -> None:
    told: list[Delivery] = []
    began = time.monotonic()
    with Sender(brokers_of(made.address), delivery_timeout_s=10) as sender:
        sender.send(made.name(), b"k", b"x", [], told.append)
    assert time.monotonic() - began < 13
    assert len(told) == 1
    assert "no such topic" in (told[0].error or "")


def test_a_transaction_is_all_or_nothing(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    with TransactionalSender(brokers, f"{topic}-tx") as sender:
        for end in (sender.commit, sender.abort, sender.commit):
            sender.begin()
            for number in range(3):
                sender.send(topic, None, f"{end.__name__} {number}".encode())
            end()
        with pytest.raises(StreamError, match="open"):
            sender.commit()
        sender.begin()
        with pytest.raises(StreamError, match="open already"):
            sender.begin()
        sender.send(topic, None, b"never")
    assert values(brokers, topic) == [b"commit 0", b"commit 1", b"commit 2"] * 2


def test_a_later_sender_ends_what_an_earlier_one_of_its_name_has_open(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    with (
        TransactionalSender(brokers, f"{topic}-tx") as first,
        TransactionalSender(brokers, f"{topic}-tx") as second,
    ):
        first.begin()
        first.send(topic, None, b"first")
        second.begin()
        second.send(topic, None, b"second")
        with pytest.raises(StreamError, match="another sender"):
            first.commit()
        second.commit()
        first.begin()
        first.send(topic, None, b"first again")
        first.commit()
    assert values(brokers, topic) == [b"second", b"first again"]


@pytest.mark.slow
def test_a_transaction_that_was_open_for_too_long_is_ended_and_the_next_is_fine(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    with TransactionalSender(brokers, f"{topic}-tx", transaction_timeout_s=5) as sender:
        sender.begin()
        sender.send(topic, None, b"late")
        while len(sender):
            sender.poll(0.05)
        with pytest.raises(StreamError):
            # Brokers look for such transactions every ten seconds.
            time.sleep(17)
            sender.commit()
        sender.begin()
        sender.send(topic, None, b"fine")
        sender.commit()
    assert values(brokers, topic) == [b"fine"]


def test_a_record_that_fails_ends_its_transaction(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made(max_message_bytes=10_000)
    with TransactionalSender(brokers, f"{topic}-tx") as sender:
        sender.begin()
        sender.send(topic, None, b"fine, but not without the other")
        sender.send(topic, None, os.urandom(50_000))
        with pytest.raises(StreamError, match="too large"):
            sender.commit()
        sender.begin()
        sender.send(topic, None, b"next")
        sender.commit()
    assert values(brokers, topic) == [b"next"]
