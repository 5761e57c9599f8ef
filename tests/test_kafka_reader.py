"""Reading from positions: exact at every bound, past what is not read, and lost positions by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta

import pytest

from kb_platform.errors import BrokersUnavailable, PositionLost, StreamError
from kb_platform.sources.message import Message
from kb_platform.streams.broker import Brokers
from kb_platform.streams.reader import Batch, Reader
from kb_platform.streams.sender import Sender, TransactionalSender
from kb_platform.streams.topics import Watermarks, lost
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


def send(brokers: Brokers, topic: str, values: list[bytes], key: bytes = b"k") -> None:
    failed: list[str] = []
    with Sender(brokers) as sender:
        for value in values:
            sender.send(topic, key, value, [], lambda told: failed.append(told.error) if told.error else None)
    assert not failed


def one(brokers: Brokers, topic: str, partitions: int = 4) -> int:
    """The partition that `send` fills."""
    with Reader(brokers, topic, dict.fromkeys(range(partitions), 0)) as reader:
        return to_end(reader)[0].partition


def to_end(reader: Reader, *, max_records: int = 1000, max_bytes: int = 8_388_608) -> list[Message]:
    """All there is."""
    found: list[Message] = []
    until = time.monotonic() + 20
    while True:
        batch = reader.read(max_records=max_records, max_bytes=max_bytes, wait_s=5)
        found += batch.messages
        if batch.ended:
            return found
        assert time.monotonic() < until


# With the mock.


def test_a_message_is_what_was_sent(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address), mock.topic()
    before = datetime.now(UTC) - timedelta(seconds=5)
    headers = [("ce_id", b"1"), ("none", None), ("ce_id", b"2"), ("empty", b"")]
    with Sender(brokers) as sender:
        sender.send(topic, b"7", b"\x00\xff", headers)
        sender.send(topic, b"7", None)
        sender.send(topic, b"7", b"")
    with Reader(brokers, topic, dict.fromkeys(range(4), 0)) as reader:
        first, second, third = to_end(reader)
    assert (first.key, first.value, first.headers) == (b"7", b"\x00\xff", tuple(headers))
    assert (second.value, second.headers, third.value) == (None, (), b"")
    assert [item.offset for item in (first, second, third)] == [0, 1, 2]
    assert first.timestamp is not None
    assert before < first.timestamp < datetime.now(UTC) + timedelta(seconds=5)
    assert first.place == f"kafka:{topic}/{first.partition}@0"


def test_batches_are_bounded_by_records_and_positions_follow(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address), mock.topic()
    send(brokers, topic, [b"%d" % number for number in range(10)])
    number = one(brokers, topic)
    with Reader(brokers, topic, {number: 2}) as reader:
        batches = [reader.read(max_records=3, max_bytes=1_000, wait_s=5) for _ in range(3)]
        assert [[item.offset for item in batch.messages] for batch in batches] == [
            [2, 3, 4],
            [5, 6, 7],
            [8, 9],
        ]
        assert [batch.positions for batch in batches] == [{number: 5}, {number: 8}, {number: 10}]
        assert [batch.ended for batch in batches] == [False, False, True]


def test_batches_are_bounded_by_bytes_and_a_larger_record_goes_alone(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address), mock.topic()
    sizes = [100, 100, 5_000, 100, 100, 300_000, 50, 100]
    send(brokers, topic, [b"x" * size for size in sizes])
    number = one(brokers, topic)
    with Reader(brokers, topic, {number: 0}) as reader:
        batches: list[Batch] = []
        while not batches or not batches[-1].ended:
            batches.append(reader.read(max_records=100, max_bytes=210, wait_s=5))
    found = [[len(item.value or b"") for item in batch.messages] for batch in batches]
    assert found == [[100, 100], [5_000], [100, 100], [300_000], [50, 100]]
    assert [batch.positions[number] for batch in batches] == [2, 3, 5, 6, 8]
    assert all(batch.size == sum(item.size for item in batch.messages) for batch in batches)


def test_a_position_is_never_beyond_what_was_handed_out(mock: MockCluster) -> None:
    """Also where librdkafka has all of it already, and its end."""
    brokers, topic = brokers_of(mock.address), mock.topic()
    send(brokers, topic, [b"%d" % number for number in range(50)])
    number = one(brokers, topic)
    with Reader(brokers, topic, {number: 0}) as reader:
        taken: list[int] = []
        while len(taken) < 50:
            batch = reader.read(max_records=7, max_bytes=10_000, wait_s=5)
            taken += [item.offset for item in batch.messages]
            assert batch.positions == {number: taken[-1] + 1}
            assert batch.ended == (len(taken) == 50)
            time.sleep(0.05)
    assert taken == list(range(50))


def test_reading_returns_early_at_the_end_and_waits_where_nothing_is_new(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address), mock.topic()
    with Reader(brokers, topic, dict.fromkeys(range(4), 0)) as reader:
        began = time.monotonic()
        assert reader.read(max_records=10, max_bytes=1_000, wait_s=20).ended
        assert time.monotonic() - began < 5
        began = time.monotonic()
        batch = reader.read(max_records=10, max_bytes=1_000, wait_s=0.5)
        assert batch.ended
        assert not batch.messages
        assert 0.4 < time.monotonic() - began < 2
        send(brokers, topic, [b"new"])
        began = time.monotonic()
        batch = reader.read(max_records=10, max_bytes=1_000, wait_s=20)
        assert [item.value for item in batch.messages] == [b"new"]
        assert batch.ended
        assert time.monotonic() - began < 3


def test_no_wait_takes_what_there_is(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address), mock.topic()
    with Reader(brokers, topic, {0: 0}) as reader:
        began = time.monotonic()
        reader.read(max_records=10, max_bytes=1_000, wait_s=0)
        assert time.monotonic() - began < 0.5


@pytest.mark.slow
def test_a_slow_caller_does_not_make_brokers_silent(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address, kafka_timeout_s=1), mock.topic()
    send(brokers, topic, [b"x"] * 20)
    with Reader(brokers, topic, dict.fromkeys(range(4), 0)) as reader:
        reader.read(max_records=1, max_bytes=1_000, wait_s=5)
        time.sleep(2)
        assert len(to_end(reader)) == 19
        # Idle for longer than the timeout: they are asked, and they are alive.
        assert reader.read(max_records=1, max_bytes=1_000, wait_s=4).ended


@pytest.mark.slow
def test_dead_brokers_are_told_after_the_timeout_and_not_before() -> None:
    mock = MockCluster(2)
    try:
        brokers, topic = brokers_of(mock.address, kafka_timeout_s=3), mock.topic()
        send(brokers, topic, [b"x"] * 5)
        with Reader(brokers, topic, dict.fromkeys(range(4), 0)) as reader:
            assert len(to_end(reader)) == 5
            positions = reader.positions
            mock.kill()
            began = time.monotonic()
            assert reader.read(max_records=1, max_bytes=1_000, wait_s=1).positions == positions
            with pytest.raises(BrokersUnavailable) as raised:
                reader.read(max_records=1, max_bytes=1_000, wait_s=30)
            assert 2 < time.monotonic() - began < 8
            assert "KB_KAFKA_BOOTSTRAP_SERVERS" in (raised.value.hint or "")
            assert reader.positions == positions
    finally:
        mock.close()


def test_a_closed_reader_says_so(mock: MockCluster) -> None:
    reader = Reader(brokers_of(mock.address), mock.topic(), {0: 0})
    reader.close()
    reader.close()
    reader.publish({0: 1})
    with pytest.raises(StreamError, match="closed"):
        reader.read(max_records=1, max_bytes=1, wait_s=0)


def test_a_position_beyond_the_end_of_the_mock(mock: MockCluster) -> None:
    brokers, topic = brokers_of(mock.address), mock.topic()
    send(brokers, topic, [b"x"] * 3)
    number = one(brokers, topic)
    with Reader(brokers, topic, {number: 9}) as reader, pytest.raises(PositionLost) as raised:
        reader.read(max_records=1, max_bytes=1, wait_s=10)
    assert raised.value.reason == "beyond-end"


@pytest.mark.parametrize(
    ("position", "marks", "reason"),
    [
        (4, Watermarks(5, 9), "truncated"),
        (10, Watermarks(5, 9), "beyond-end"),
        (0, None, "recreated"),
        (5, Watermarks(5, 9), None),
        (9, Watermarks(5, 9), None),
        (0, Watermarks(0, 0), None),
    ],
)
def test_why_a_position_is_lost(position: int, marks: Watermarks | None, reason: str | None) -> None:
    found = lost("t", 3, position, marks)
    assert (found.reason if found else None) == reason
    if found is not None:
        assert "kb kafka reset" in (found.hint or "")


# With real brokers.


def transactions(brokers: Brokers, topic: str, *plan: tuple[str, int]) -> None:
    with TransactionalSender(brokers, f"{topic}-tx") as sender:
        for end, count in plan:
            sender.begin()
            for number in range(count):
                sender.send(topic, None, b"%s %d" % (end.encode(), number), partition=0)
            # What was not sent leaves nothing behind.
            until = time.monotonic() + 10
            while len(sender) and time.monotonic() < until:
                sender.poll(0.05)
            if end == "commit":
                sender.commit()
            else:
                sender.abort()


def test_positions_go_past_control_records_and_aborted_ones(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    transactions(brokers, topic, ("commit", 3), ("abort", 4), ("commit", 2), ("abort", 5))
    with Reader(brokers, topic, {0: 0}) as reader:
        found = to_end(reader)
        assert [item.offset for item in found] == [0, 1, 2, 9, 10]
        assert reader.positions == {0: 18}
    # One by one: after each, the position is just behind it, until the end is known.
    with Reader(brokers, topic, {0: 0}) as reader:
        positions: list[int] = []
        while not positions or positions[-1] < 18:
            positions.append(reader.read(max_records=1, max_bytes=100, wait_s=5).positions[0])
        assert positions in ([1, 2, 3, 10, 11, 18], [1, 2, 3, 10, 18])
    # From within the gaps.
    for start in (3, 5, 12, 18):
        with Reader(brokers, topic, {0: start}) as reader:
            assert [item.offset for item in to_end(reader)] == [item for item in (9, 10) if item >= start]
            assert reader.positions == {0: 18}


def test_aborted_records_alone_move_the_position_of_one_who_waits(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    with Reader(brokers, topic, {0: 0}) as reader:
        assert to_end(reader) == []
        transactions(brokers, topic, ("abort", 3))
        until = time.monotonic() + 10
        while reader.positions != {0: 4}:
            assert reader.read(max_records=10, max_bytes=1000, wait_s=0.5).messages == []
            assert time.monotonic() < until


def test_what_is_not_committed_is_not_read(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    with TransactionalSender(brokers, f"{topic}-tx") as sender, Reader(brokers, topic, {0: 0}) as reader:
        sender.begin()
        sender.send(topic, None, b"open")
        while len(sender):
            sender.poll(0.05)
        batch = reader.read(max_records=10, max_bytes=1000, wait_s=3)
        assert (batch.messages, batch.positions) == ([], {0: 0})
        sender.commit()
        assert [item.value for item in to_end(reader)] == [b"open"]


def read_lost(brokers: Brokers, topic: str, positions: Mapping[int, int]) -> PositionLost:
    with Reader(brokers, topic, positions) as reader:
        with pytest.raises(PositionLost) as raised:
            for _ in range(20):
                reader.read(max_records=10, max_bytes=1000, wait_s=1)
        # Kafka says it once; the reader goes on saying it.
        with pytest.raises(PositionLost):
            reader.read(max_records=10, max_bytes=1000, wait_s=1)
        assert reader.positions == dict(positions)
    return raised.value


def test_trimmed_topics_and_positions_beyond_the_end(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    send(brokers, topic, [b"x"] * 10)
    made.trim(topic, 0, 4)
    gone = read_lost(brokers, topic, {0: 2})
    assert gone.reason == "truncated"
    assert f"2 records of {topic}, partition 0," in str(gone)
    assert "position 2, the first record left is 4" in str(gone)
    assert f"kb kafka reset --topic {topic}" in (gone.hint or "")
    assert read_lost(brokers, topic, {0: 11}).reason == "beyond-end"
    with Reader(brokers, topic, {0: 4}) as reader:
        assert len(to_end(reader)) == 6


def test_what_was_read_before_a_lost_position_is_handed_out_first(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made(partitions=2)
    with TransactionalSender(brokers, f"{topic}-tx") as sender:
        sender.begin()
        sender.send(topic, None, b"fine", partition=0)
        sender.commit()
    with Reader(brokers, topic, {0: 0, 1: 7}) as reader:
        found: list[bytes | None] = []
        with pytest.raises(PositionLost) as raised:
            for _ in range(20):
                found += [item.value for item in reader.read(max_records=9, max_bytes=999, wait_s=1).messages]
        assert raised.value.reason == "beyond-end"
        assert found in ([b"fine"], [])
        assert reader.positions == {0: len(found) and reader.positions[0], 1: 7}


@pytest.mark.slow
def test_a_topic_trimmed_while_it_is_read(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address), made()
    send(brokers, topic, [os.urandom(200_000) for _ in range(60)])
    with Reader(brokers, topic, {0: 0}) as reader:
        first = reader.read(max_records=1, max_bytes=1000, wait_s=5)
        made.trim(topic, 0, 60)
        taken = [item.offset for item in first.messages]
        with pytest.raises(PositionLost) as raised:
            while True:
                batch = reader.read(max_records=5, max_bytes=10_000_000, wait_s=2)
                taken += [item.offset for item in batch.messages]
                assert not (batch.ended and len(taken) < 60), "records were skipped"
        assert raised.value.reason == "truncated"
        assert taken == list(range(len(taken)))
        assert reader.positions == {0: len(taken)}


@pytest.mark.slow
def test_a_topic_deleted_while_it_is_read(made: NewTopics) -> None:
    brokers, topic = brokers_of(made.address, kafka_timeout_s=4), made()
    send(brokers, topic, [b"x"] * 3)
    with Reader(brokers, topic, {0: 0}) as reader:
        assert len(to_end(reader)) == 3
        made.delete(topic)
        began = time.monotonic()
        with pytest.raises(PositionLost) as raised:
            reader.read(max_records=9, max_bytes=999, wait_s=30)
        assert raised.value.reason == "missing"
        assert time.monotonic() - began < 12


def test_a_topic_made_anew_is_read_in_silence_so_the_id_must_be_compared(made: NewTopics) -> None:
    """What librdkafka does, and why landing compares the topic's id."""
    brokers, topic = brokers_of(made.address), made()
    send(brokers, topic, [b"old"] * 3)
    before = made.topic_id(topic)
    made.delete(topic)
    made(name=topic)
    send(brokers, topic, [b"new"] * 5)
    with Reader(brokers, topic, {0: 3}) as reader:
        assert [item.value for item in to_end(reader)] == [b"new"] * 2
    assert made.topic_id(topic) != before


def test_positions_are_published_for_lag_tools(made: NewTopics) -> None:
    from confluent_kafka import TopicPartition

    topic = made()
    brokers = brokers_of(made.address, kafka_group=f"{topic}-group")
    send(brokers, topic, [b"x"] * 3)
    with Reader(brokers, topic, {0: 0}) as reader:
        to_end(reader)
        reader.publish(reader.positions)
        consumer = brokers.consumer()

        def published() -> bool:
            reader.read(max_records=1, max_bytes=1, wait_s=0.1)
            reader.publish(reader.positions)
            return consumer.committed([TopicPartition(topic, 0)], timeout=5)[0].offset == 3

        made.wait_for(published)
        consumer.close()


_GROWTH = """
import json, sys, psutil
from kb_platform.settings import Settings
from kb_platform.streams.broker import Brokers
from kb_platform.streams.reader import Reader
address, topic, partitions = sys.argv[1], sys.argv[2], int(sys.argv[3])
brokers = Brokers(Settings(kafka_bootstrap_servers=address))
before = peak = psutil.Process().memory_info().rss
count = size = largest = 0
with Reader(brokers, topic, dict.fromkeys(range(partitions), 0)) as reader:
    while True:
        batch = reader.read(max_records=2000, max_bytes=8 << 20, wait_s=5)
        count, size, largest = count + len(batch.messages), size + batch.size, max(largest, batch.size)
        peak = max(peak, psutil.Process().memory_info().rss)
        if batch.ended:
            break
print(json.dumps({"count": count, "size": size, "largest": largest, "grown": peak - before}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("each", "count"), [(8_000_000, 60), (300_000, 1_500), (2_000, 150_000)])
def test_memory_is_bounded_at_any_size_of_records(made: NewTopics, each: int, count: int) -> None:
    """Of some hundred megabytes in many partitions, a process holds some tens, and a few of the largest record."""
    partitions = 24
    topic = made(partitions=partitions, max_message_bytes=20_000_000, segment_bytes=40_000_000)
    brokers = brokers_of(made.address)
    failed: list[str] = []
    blocks = [os.urandom(each) for _ in range(3)]
    with Sender(brokers) as sender:
        for number in range(count):
            while len(sender) > 20_000_000 // each + 5:
                sender.poll(0.01)
            value = b"%d %s" % (number, blocks[number % 3])
            sender.send(
                topic,
                b"%d" % number,
                value,
                [],
                lambda told: failed.append(told.error) if told.error else None,
            )
    assert not failed
    out = subprocess.run(
        [sys.executable, "-c", _GROWTH, made.address, topic, str(partitions)],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    found = json.loads(out)
    assert found["count"] == count
    assert found["largest"] <= 8 * 1_048_576 + 100
    assert found["grown"] < 300 * 1_048_576 - 100 * 1_048_576 * (each < 1_000_000), found
    made.delete(topic)
