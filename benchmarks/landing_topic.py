"""The topic that `kills_of_landing.py` lands, filled and read with bare clients, so that it shares nothing with the code
under test. What the records say is `landing_workload`.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from benchmarks.landing_workload import Place, Record, Workload, digest
from tests.kafka_brokers import NewTopics

PARTITIONS = 3
LARGEST_TRANSACTION = 300
# Every so manieth transaction is aborted after its records were sent.
ABORTED = 10
TIMEOUT_S = 30.0
# One kill of a broker may hold up a transaction for as long as its session lasts, and a new leader needs.
LONGEST_TRANSACTION_S = 120.0


@dataclass(frozen=True)
class Topic:
    """A topic and its dead-letter topic."""

    address: str
    name: str

    @property
    def environment(self) -> dict[str, str]:
        """The settings of one who lands it."""
        return {"KB_KAFKA_BOOTSTRAP_SERVERS": self.address, "KB_KAFKA_RELEASE_TOPIC": self.name}

    def ends(self) -> dict[int, int]:
        """The offset behind the last record that is committed, by partition."""
        consumer = self._consumer()
        try:
            return _ends(consumer, self.name)
        finally:
            consumer.close()

    def records(self) -> Iterator[Message]:
        """All committed records, each partition in its order."""
        yield from self._read(self.name)

    def dead_letters(self) -> Counter[Any]:
        """The dead letters that readers of what is committed see: place, reason and value of each."""
        found: Counter[Any] = Counter()
        for message in self._read(f"{self.name}.dlq"):
            headers = dict(message.headers() or [])
            told = [_text(headers.get(f"kb-{name}")) for name in ("partition", "offset", "reason")]
            if _text(headers.get("kb-topic")) != self.name:
                told = ["-1", "-1", "of another topic"]
            found[int(told[0]), int(told[1]), told[2], digest(message.value())] += 1
        return found

    def _read(self, name: str) -> Iterator[Message]:
        consumer = self._consumer()
        try:
            ends = _ends(consumer, name)
            consumer.assign([TopicPartition(name, one, 0) for one in ends])
            left = {one for one, end in ends.items() if end > 0}
            deadline = time.monotonic() + LONGEST_TRANSACTION_S
            while left:
                message = consumer.poll(1.0)
                if message is None:
                    if time.monotonic() > deadline:
                        raise SystemExit(f"{name} cannot be read to its end")
                    continue
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition() or 0)
        finally:
            consumer.close()

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": "bare",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "socket.timeout.ms": 4_000,
                "log_level": 0,
            }
        )


@contextmanager
def new_topic(address: str) -> Generator[Topic]:
    """Makes a topic with a name of its own, and its dead-letter topic; both go in the end."""
    topics = NewTopics(address)
    name = f"kb-kills-{uuid.uuid4().hex[:12]}"
    names = (name, f"{name}.dlq")
    for one in names:
        topics(PARTITIONS, name=one)
    try:
        yield Topic(address, name)
    finally:
        for one in names:
            topics.delete(one)


class Feed:
    """Writes the workload into the topic, in transactions of 1 to 300 records."""

    def __init__(self, topic: Topic, seed: int) -> None:
        self._topic = topic
        self._workload = Workload(seed)
        self._chance = random.Random(seed + 1)
        self._producer = Producer(
            {
                "bootstrap.servers": topic.address,
                "transactional.id": f"feed-{topic.name}",
                "socket.timeout.ms": 4_000,
                "linger.ms": 2,
                "log_level": 0,
            }
        )
        self._producer.init_transactions(TIMEOUT_S)
        self._transactions = 0
        self._sent = 0
        # By partition, in order. Delivery reports know the partition; the offset is unknown after some retries.
        self._committed: dict[int, list[Record]] = defaultdict(list)

    @property
    def kinds(self) -> Counter[str]:
        """What was produced."""
        return self._workload.kinds

    def send_up_to(self, records: int) -> None:
        """Write until that many records are committed."""
        while self._sent < records:
            self._transactions += 1
            size = self._chance.randint(1, LARGEST_TRANSACTION)
            if self._transactions % ABORTED == 0:
                self._begin([self._workload.never() for _ in range(size)])
                self._insist(self._producer.abort_transaction)
                continue
            batch = [self._workload.next() for _ in range(min(size, records - self._sent))]
            placed = self._committed_batch(batch)
            for partition, item in placed:
                self._committed[partition].append(item)
            self._sent += len(batch)

    def committed(self) -> dict[Place, Record]:
        """Every committed record, where it stands in the topic. Stops when the topic holds anything else."""
        found: dict[Place, Record] = {}
        at: Counter[int] = Counter()
        for message in self._topic.records():
            partition, offset = message.partition() or 0, message.offset() or 0
            sent = self._committed[partition]
            item = sent[at[partition]] if at[partition] < len(sent) else None
            if item is None or (item.key, item.value) != (message.key(), message.value()):
                raise SystemExit(f"the topic has another record at {partition}/{offset} than was sent")
            found[Place(partition, offset)] = item
            at[partition] += 1
        if len(found) != self._sent:
            raise SystemExit(f"the topic has {len(found):,} records, and {self._sent:,} were sent")
        return found

    def _committed_batch(self, batch: list[Record]) -> list[tuple[int, Record]]:
        """The records with their partitions, in the order of each partition."""
        deadline = time.monotonic() + LONGEST_TRANSACTION_S
        while True:
            placed = self._begin(batch)
            try:
                self._insist(self._producer.commit_transaction)
            except KafkaException as error:
                if time.monotonic() > deadline or not error.args[0].txn_requires_abort():
                    raise
                # What was sent of it becomes one more gap.
                self._insist(self._producer.abort_transaction)
                continue
            return placed

    def _begin(self, batch: list[Record]) -> list[tuple[int, Record]]:
        self._producer.begin_transaction()
        partitions: dict[int, int] = {}
        for number, item in enumerate(batch):

            def report(error: KafkaError | None, message: Message, number: int = number) -> None:
                if error is None:
                    partitions[number] = message.partition() or 0

            self._producer.produce(
                self._topic.name, item.value, item.key, headers=list(item.headers), on_delivery=report
            )
        # Sent, so that an aborted transaction leaves its records in the log.
        self._producer.flush(LONGEST_TRANSACTION_S)
        return [(partitions[number], item) for number, item in enumerate(batch) if number in partitions]

    def _insist(self, do: Callable[[float], None]) -> None:
        deadline = time.monotonic() + LONGEST_TRANSACTION_S
        while True:
            try:
                return do(TIMEOUT_S)
            except KafkaException as error:
                if time.monotonic() > deadline or not error.args[0].retriable():
                    raise


def _ends(consumer: Consumer, name: str) -> dict[int, int]:
    ends: dict[int, int] = {}
    for one in range(PARTITIONS):
        marks = consumer.get_watermark_offsets(TopicPartition(name, one), timeout=TIMEOUT_S)
        if marks is None:
            raise SystemExit(f"the brokers do not tell where {name} ends")
        ends[one] = marks[1]
    return ends


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or "-1"
