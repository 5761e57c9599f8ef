"""Reading a topic from positions that the caller keeps: batches bounded by records and bytes, and where they end.

Partitions are assigned, never shared out by a group: the positions are the caller's, and Kafka only hears of them for lag
tools. A position is past what was read, control records and aborted records included, never past what was not handed out.
Does not belong here: what records mean, and keeping the positions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from kb_platform.errors import BrokersUnavailable, PositionLost, StreamError
from kb_platform.sources.message import Message, moment
from kb_platform.streams.broker import HEADROOM_BYTES, Brokers, let_go
from kb_platform.streams.client_errors import as_stream_error, is_silence, log, no_answer
from kb_platform.streams.topics import Topic, Topics, Watermarks, lost

# Taken from librdkafka's queue at once: what does not fit into a batch waits here, so it may not be much.
_CHUNK = 500
_NAP_S = 0.1
# A partition that is silent for so long is asked whether it is alive.
_LOOK_AFTER_S = 2.0
# Fetched ahead: as much as one batch, within these bounds.
_LEAST_AHEAD_KB = 1_024
_MOST_AHEAD_KB = 16_384
_FETCH_BYTES = 524_288

_END = KafkaError._PARTITION_EOF  # pyright: ignore[reportPrivateUsage] - so librdkafka names its own errors
_OUT_OF_RANGE = KafkaError._AUTO_OFFSET_RESET  # pyright: ignore[reportPrivateUsage]


@dataclass
class Batch:
    """What was read. `positions`: the next offset of every partition after it. `size`: bytes.

    `ended`: every partition was at its end.
    """

    messages: list[Message] = field(default_factory=list[Message])
    positions: dict[int, int] = field(default_factory=dict[int, int])
    size: int = 0
    ended: bool = False


class Reader:
    """Reads one topic. Use it from one thread, and close it."""

    def __init__(self, brokers: Brokers, topic: str, positions: Mapping[int, int]) -> None:
        """`positions`: the offset to begin with, for each partition that is to be read."""
        settings = brokers.settings
        ahead_kb = min(max(settings.kafka_batch_bytes // 1024, _LEAST_AHEAD_KB), _MOST_AHEAD_KB)
        largest = settings.max_record_bytes + HEADROOM_BYTES
        self._brokers = brokers
        self._publishing = False
        self._topic = topic
        self._timeout_s = settings.kafka_timeout_s
        self._consumer: Consumer | None = brokers.consumer(
            enable_partition_eof=True,
            on_commit=self._published,
            # Silence at the end of a partition lasts so long before librdkafka says that it is the end.
            fetch_wait_max_ms=100,
            fetch_min_bytes=1,
            fetch_error_backoff_ms=200,
            # A full queue is looked at again so soon. With the default, a second, records of 2 KB came at 13,000 a second in
            # the place of 200,000.
            fetch_queue_backoff_ms=5,
            queued_min_messages=10_000,
            queued_max_messages_kbytes=ahead_kb,
            # A single larger record is sent all the same; these bound how much comes with it. They count what is compressed:
            # 200,000 records that compress a thousandfold took 500 MB with 8 MiB here, and 250 MB so.
            fetch_max_bytes=_FETCH_BYTES,
            max_partition_fetch_bytes=_FETCH_BYTES // 2,
            # librdkafka wants this to be no more than the above; a consumer does nothing else with it.
            message_max_bytes=_FETCH_BYTES,
            receive_message_max_bytes=max(100_000_000, largest + ahead_kb * 1024),
        )
        self._positions = dict(positions)
        self._held: deque[KafkaMessage] = deque()
        self._ended: set[int] = set()
        self._lost: StreamError | None = None
        self._pulse = _Pulse(brokers, topic, tuple(self._positions))
        # Time as it passes within `read`: a caller that is busy elsewhere does not make brokers silent.
        self._elapsed = 0.0
        self._heard = dict.fromkeys(self._positions, 0.0)
        self._consumer.assign(
            [TopicPartition(topic, number, offset) for number, offset in self._positions.items()]
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of every partition after all that was handed out."""
        return dict(self._positions)

    def read(self, *, max_records: int, max_bytes: int, wait_s: float) -> Batch:
        """The next records: at most so many, of so many bytes (a single larger one goes alone).

        Returns when a bound is met, when something was read and all partitions are at their end, or after `wait_s` seconds
        with what there is. Raises PositionLost, BrokersRefused; BrokersUnavailable when a partition gave no sign of life for
        as long as the settings say. What was read before an error is handed out first.
        """
        consumer = self._open()
        began = time.monotonic()
        elapsed = self._elapsed
        batch = Batch()
        news = False
        try:
            while True:
                before = len(self._ended)
                full = self._fill(batch, max_records, max_bytes)
                news = news or bool(batch.messages) or len(self._ended) > before
                batch.ended = not self._held and len(self._ended) == len(self._positions)
                if full or (batch.ended and news):
                    break
                if self._lost is not None:
                    if batch.messages:
                        break
                    raise self._lost
                left = wait_s - (time.monotonic() - began)
                if not self._take(consumer, max_records - len(batch.messages), max(left, 0.0)):
                    self._elapsed = elapsed + time.monotonic() - began
                    self._look()
                    if left <= 0:
                        break
        finally:
            self._elapsed = elapsed + time.monotonic() - began
        batch.positions = dict(self._positions)
        return batch

    def publish(self, positions: Mapping[int, int]) -> None:
        """Tell Kafka's group where reading is, for lag tools; nothing waits for it, and nothing depends on it."""
        # One at a time: brokers that are silent would have a pile of them.
        if self._consumer is None or self._publishing or not positions:
            return
        self._publishing = True
        try:
            self._consumer.commit(
                offsets=[TopicPartition(self._topic, number, offset) for number, offset in positions.items()],
                asynchronous=True,
            )
        except (KafkaException, RuntimeError) as error:
            self._published(error, [])

    def close(self) -> None:
        """Let go of the connections; again is harmless."""
        consumer, self._consumer = self._consumer, None
        self._held.clear()
        self._pulse.close()
        if consumer is not None:
            let_go(consumer.close)

    def _published(self, error: object, _: object) -> None:
        self._publishing = False
        if error is not None:
            log.debug("positions of %s were not published: %s", self._topic, error)

    def _open(self) -> Consumer:
        if self._consumer is None:
            raise StreamError(f"reading {self._topic}: this reader is closed")
        return self._consumer

    def _take(self, consumer: Consumer, wanted: int, wait_s: float) -> bool:
        """Move what librdkafka has into `_held`; wait a little for the first. False: there was nothing."""
        try:
            # With a timeout, `consume` would wait until it has all that it may bring.
            taken = consumer.consume(min(wanted, _CHUNK), 0)
            if not taken:
                first = consumer.poll(min(_NAP_S, wait_s))
                if first is None:
                    return False
                taken = [first]
        except KafkaException as error:
            raise as_stream_error(
                f"reading {self._topic}", error, self._brokers.complaints.lately()
            ) from None
        self._held.extend(taken)
        return True

    def _fill(self, batch: Batch, max_records: int, max_bytes: int) -> bool:
        """Move what fits from `_held` to the batch; whether it is full."""
        while self._held:
            item = self._held[0]
            error = item.error()
            if error is not None:
                self._event(item, error)
                if self._lost is not None:
                    return False
                self._held.popleft()
                continue
            size = len(item)
            if batch.messages and (len(batch.messages) >= max_records or batch.size + size > max_bytes):
                return True
            message = _message(self._topic, item)
            self._held.popleft()
            batch.messages.append(message)
            batch.size += message.size
            self._positions[message.partition] = message.offset + 1
            self._ended.discard(message.partition)
            self._heard[message.partition] = self._elapsed
        return len(batch.messages) >= max_records or (bool(batch.messages) and batch.size >= max_bytes)

    def _event(self, item: KafkaMessage, error: KafkaError) -> None:
        number, offset = item.partition(), item.offset()
        doing = f"reading {self._topic}"
        if error.code() == _END and number in self._positions and offset is not None:
            # All before it was handed out: what is skipped here are control records and aborted ones.
            self._positions[number] = max(self._positions[number], offset)
            self._ended.add(number)
            self._heard[number] = self._elapsed
        elif error.code() in (_OUT_OF_RANGE, KafkaError.OFFSET_OUT_OF_RANGE):
            self._lost = self._out_of_range(number, error)
        elif not is_silence(error) and error.code() not in _PASSING:
            self._lost = as_stream_error(doing, error, self._brokers.complaints.lately())

    def _out_of_range(self, number: int | None, error: KafkaError) -> StreamError:
        """It is said once, and then the partition is silent: the error stays until there is a new reader."""
        with Topics(self._brokers) as topics:
            try:
                marks = topics.watermarks(Topic(self._topic, "", () if number is None else (number,)))
            except StreamError as failed:
                return failed
        position = self._positions.get(number, -1) if number is not None else -1
        mark = marks.get(number) if number is not None else None
        return lost(self._topic, number, position, mark) or StreamError(
            f"reading {self._topic}: partition {number} has nothing at {position}: {error.str()}"
        )

    def _look(self) -> None:
        """After a silence, find out whether the partitions are alive; raise when one was silent for too long."""
        quiet = {number: self._elapsed - heard for number, heard in self._heard.items()}
        if not quiet or max(quiet.values()) < min(_LOOK_AFTER_S, self._timeout_s / 3):
            return
        answer = self._pulse.answer()
        if isinstance(answer, PositionLost):
            raise answer
        if isinstance(answer, dict):
            for number in answer:
                if number in self._heard:
                    self._heard[number] = self._elapsed
            return
        number, silence = max(quiet.items(), key=lambda pair: pair[1])
        # A look that is under way may tell more.
        if silence < self._timeout_s or (answer is None and silence < 1.5 * self._timeout_s):
            self._pulse.ask()
            return
        if isinstance(answer, StreamError) and not isinstance(answer, BrokersUnavailable):
            raise answer
        doing = f"reading {self._topic}: partition {number} gives no sign of life"
        raise no_answer(doing, self._brokers.complaints.lately(), waited_s=silence)


class _Pulse:
    """Asks for watermarks in a thread of its own, so that nobody waits for an answer that may not come."""

    def __init__(self, brokers: Brokers, topic: str, partitions: tuple[int, ...]) -> None:
        # Half of what counts as silence: time for a second look.
        self._topics = Topics(brokers, timeout_s=max(brokers.settings.kafka_timeout_s / 2 - 0.5, 0.5))
        self._topic = Topic(topic, "", partitions)
        self._pool: ThreadPoolExecutor | None = None
        self._asked: Future[dict[int, Watermarks]] | None = None

    def ask(self) -> None:
        """Begin a look unless one is under way."""
        if self._asked is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="kafka-pulse")
            self._asked = self._pool.submit(self._topics.watermarks, self._topic)

    def answer(self) -> dict[int, Watermarks] | StreamError | None:
        """What the last look found, once; None: it is not known yet."""
        if self._asked is None or not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        error = asked.exception()
        if error is None:
            return asked.result()
        if isinstance(error, StreamError):
            return error
        raise error

    def close(self) -> None:
        """Let go; a look under way ends by itself."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


# Said of partitions that are being moved or made; the pulse decides whether that lasts.
_PASSING: frozenset[Any] = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_PARTITION,  # pyright: ignore[reportPrivateUsage]
        KafkaError._UNKNOWN_TOPIC,  # pyright: ignore[reportPrivateUsage]
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError._MAX_POLL_EXCEEDED,  # pyright: ignore[reportPrivateUsage]
    }
)


def _message(topic: str, item: KafkaMessage) -> Message:
    kind, milliseconds = item.timestamp()
    headers = item.headers()
    return Message(
        topic,
        item.partition() or 0,
        item.offset() or 0,
        None if kind == TIMESTAMP_NOT_AVAILABLE else moment(milliseconds),
        item.key(),
        item.value(),
        tuple(headers) if headers else (),  # pyright: ignore[reportArgumentType] - a list of pairs when read
    )
