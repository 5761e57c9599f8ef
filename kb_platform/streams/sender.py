"""Sending records: what brokers have acknowledged is safe, once, on two replicas; what they have not is told.

`Sender` tells of each record by itself; `TransactionalSender` sends all or nothing.
Does not belong here: what is sent, and trying again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from kb_platform.errors import BrokersRefused, BrokersUnavailable, QueueFull, StreamError
from kb_platform.sources.message import Header
from kb_platform.streams.broker import HEADROOM_BYTES, Brokers
from kb_platform.streams.client_errors import as_stream_error, is_silence, kafka_error, no_answer
from kb_platform.streams.delivery import Delivery

QUEUE = 100_000
QUEUE_BYTES = 64 * 1_048_576
DELIVERY_TIMEOUT_S = 30.0
TRANSACTION_TIMEOUT_S = 60.0


class Sender:
    """Sends records, each with a report. Use it from one thread at a time, and close it."""

    def __init__(
        self, brokers: Brokers, *, queue: int | None = None, delivery_timeout_s: float = DELIVERY_TIMEOUT_S
    ) -> None:
        """`queue`: records that may wait at most. `delivery_timeout_s`: after that a record has failed.

        Waits for an answer of the brokers; raises BrokersRefused, BrokersUnavailable.
        """
        brokers.require()
        self._brokers = brokers
        self._delivery_timeout_s = delivery_timeout_s
        self._producer = _producer(brokers, queue=queue or QUEUE, delivery_timeout_s=delivery_timeout_s)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Records that wait, or whose report waits."""
        return len(self._producer)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header] = (),
        on_delivery: Callable[[Delivery], None] | None = None,
    ) -> None:
        """Queue a record. `on_delivery` is called in `poll` or `flush`, once.

        Raises QueueFull; StreamError when this sender cannot go on at all. A record that is too large is told as a delivery.
        """

        def report(error: KafkaError | None, message: KafkaMessage) -> None:
            if on_delivery is not None:
                on_delivery(self._delivery(topic, error, message))

        try:
            self._producer.produce(topic, value, key, on_delivery=report, headers=list(headers))
        except BufferError:
            raise QueueFull(
                f"{len(self._producer)} records wait to be sent to {topic}", hint="wait, or send less at once"
            ) from None
        except KafkaException as error:
            found = kafka_error(error)
            if found is None or found.fatal() or found.code() == KafkaError._FATAL:  # pyright: ignore[reportPrivateUsage]
                raise as_stream_error(f"sending to {topic}", error) from None
            if on_delivery is not None:
                on_delivery(Delivery(topic, -1, -1, in_words(found, self._brokers)))

    def poll(self, timeout_s: float = 0.0) -> int:
        """Serve reports, waiting so long for the first; returns how many events there were.

        Raises StreamError when this sender cannot go on at all, as `flush` does.
        """
        return self._served(lambda: self._producer.poll(timeout_s))

    def flush(self, timeout_s: float) -> int:
        """Wait until all that waits is delivered or has failed; returns how many still wait."""
        return self._served(lambda: self._producer.flush(timeout_s))

    def close(self) -> None:
        """Wait as long as a delivery may take; what is not delivered then is given up, and told."""
        if self.flush(self._delivery_timeout_s + 1.0):
            self._producer.purge()
            self.flush(1.0)

    def _served(self, serve: Callable[[], int]) -> int:
        try:
            return serve()
        except (KafkaException, SystemError) as error:
            raise as_stream_error("sending", error, self._brokers.complaints.lately()) from None

    def _delivery(self, topic: str, error: KafkaError | None, message: KafkaMessage) -> Delivery:
        partition, offset = message.partition(), message.offset()
        told = in_words(error, self._brokers) if error is not None else None
        return Delivery(topic, -1 if partition is None else partition, -1 if offset is None else offset, told)


class TransactionalSender:
    """Sends records in transactions. Use it from one thread at a time, and close it.

    One that begins ends what others with the same id have under way: theirs fail. After any error the next `begin` starts
    afresh. An error of `commit` does not tell whether the transaction was committed: look at the topic.
    """

    def __init__(
        self,
        brokers: Brokers,
        transactional_id: str,
        *,
        transaction_timeout_s: float = TRANSACTION_TIMEOUT_S,
    ) -> None:
        """`transaction_timeout_s`: brokers abort a transaction that is open for longer."""
        self._brokers = brokers
        self._id = transactional_id
        self._transaction_timeout_s = transaction_timeout_s
        self._timeout_s = brokers.settings.kafka_timeout_s
        self._producer: Producer | None = None
        self._open = False
        self._failed: list[str] = []

    def __enter__(self) -> TransactionalSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Records that wait."""
        return len(self._producer) if self._producer is not None else 0

    def poll(self, timeout_s: float = 0.0) -> None:
        """Serve reports. A record that failed is raised by `commit`; raises StreamError when all has."""
        if self._producer is not None:
            self._step(f"sending in the transaction {self._id}", lambda producer: producer.poll(timeout_s))

    def begin(self) -> None:
        """Begin a transaction; raises BrokersUnavailable, BrokersRefused, StreamError."""
        if self._open:
            raise StreamError(f"the transaction {self._id} is open already")
        doing = f"beginning the transaction {self._id}"
        if self._producer is None:
            self._brokers.require()
            self._producer = self._made()
            self._step(doing, lambda producer: producer.init_transactions(self._timeout_s))
        self._step(doing, lambda producer: producer.begin_transaction())
        self._failed.clear()
        self._open = True

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header] = (),
        *,
        partition: int = -1,
    ) -> None:
        """Add a record; raises StreamError, and the transaction is no more."""

        def report(error: KafkaError | None, _: KafkaMessage) -> None:
            if error is not None:
                self._failed.append(in_words(error, self._brokers))

        def produce(producer: Producer) -> None:
            for _ in range(int(self._timeout_s * 10)):
                try:
                    producer.produce(
                        topic, value, key, partition=partition, on_delivery=report, headers=list(headers)
                    )
                except BufferError:
                    producer.poll(0.1)
                else:
                    producer.poll(0)
                    return
            raise QueueFull(f"{len(producer)} records wait to be sent to {topic}")

        self._require_open()
        self._step(f"sending to {topic}", produce)

    def commit(self) -> None:
        """Commit all that was sent, or raise StreamError."""
        self._require_open()
        doing = f"committing the transaction {self._id}"

        def commit(producer: Producer) -> None:
            left = producer.flush(self._timeout_s)
            if self._failed:
                raise StreamError(f"{doing}: {self._failed[0]}")
            if left:
                raise no_answer(doing, self._brokers.complaints.lately(), waited_s=self._timeout_s)
            producer.commit_transaction(self._timeout_s)

        self._step(doing, commit)
        self._open = False

    @property
    def refused(self) -> tuple[str, ...]:
        """Why brokers refused records of the last transaction, in words. Where they did, it was not committed."""
        return tuple(self._failed)

    def abort(self) -> None:
        """Take back all that was sent; without an open transaction there is nothing to do.

        Raises nothing: where brokers do not answer, they abort it when its time is up, or at the next `begin`.
        """

        def abort(producer: Producer) -> None:
            # A record that is under way while its transaction is aborted comes too late, and the brokers take the
            # sender for an old one.
            if producer.flush(self._timeout_s) == 0:
                producer.abort_transaction(self._timeout_s)
            else:
                self._drop()

        if self._open:
            with contextlib.suppress(StreamError):
                self._step(f"aborting the transaction {self._id}", abort)
            self._open = False

    def close(self) -> None:
        """Abort what is open, and let go."""
        self.abort()
        self._drop()

    def _require_open(self) -> None:
        if not self._open:
            raise StreamError(f"no transaction {self._id} is open", hint="begin one")

    def _step(self, doing: str, do: Callable[[Producer], Any]) -> None:
        producer = self._producer
        if producer is None:
            raise StreamError(f"{doing}: there is no connection")
        try:
            do(producer)
        except StreamError:
            self._drop()
            raise
        except (KafkaException, SystemError) as error:
            self._drop()
            raise self._error(doing, error) from None

    def _error(self, doing: str, error: KafkaException | SystemError) -> StreamError:
        found = kafka_error(error)
        # A fatal error is raised in the midst of reports, and the next report then fails with a SystemError.
        if isinstance(error, SystemError) or (
            found is not None and (found.fatal() or found.code() in _ENDED)
        ):
            return StreamError(
                f"{doing}: the brokers have ended it: it was open for longer than {self._transaction_timeout_s:.0f} s, or "
                "another sender has begun one of this name",
                hint="begin again",
            )
        return as_stream_error(doing, error, self._brokers.complaints.lately())

    def _drop(self) -> None:
        """Without waiting: whoever begins next with this id ends what is left over."""
        producer, self._producer, self._open = self._producer, None, False
        if producer is not None:
            # One that was fenced says so once more.
            with contextlib.suppress(KafkaException, SystemError):
                producer.purge()
                producer.flush(0)

    def _made(self) -> Producer:
        return _producer(
            self._brokers,
            queue=QUEUE,
            delivery_timeout_s=min(DELIVERY_TIMEOUT_S, self._transaction_timeout_s),
            transactional_id=self._id,
            transaction_timeout_ms=int(self._transaction_timeout_s * 1000),
        )


def _producer(brokers: Brokers, *, queue: int, delivery_timeout_s: float, **more: Any) -> Producer:
    largest = brokers.settings.max_record_bytes + HEADROOM_BYTES
    wanted = {
        # Text: a third of its size for little work, and brokers keep it as it comes.
        "compression.type": "zstd",
        # As the Java client, so that all producers put a key into the same partition.
        "partitioner": "murmur2_random",
        "linger.ms": 10,
        # So long a topic that brokers do not know may still be in the making.
        "topic.metadata.propagation.max.ms": 5_000,
        **brokers.client(
            enable_idempotence=True,
            acks="all",
            message_max_bytes=min(largest, 1_000_000_000),
            queue_buffering_max_messages=queue,
            queue_buffering_max_kbytes=max(QUEUE_BYTES, 2 * largest) // 1024,
            delivery_timeout_ms=int(delivery_timeout_s * 1000),
            **more,
        ),
    }
    return brokers.made(lambda: Producer(wanted))


def in_words(error: KafkaError, brokers: Brokers) -> str:
    """Why a record was not delivered, for the person who sent it."""
    code = error.code()
    if code in _WORDS:
        return _WORDS[code]
    if is_silence(error):
        told = no_answer("not delivered", brokers.complaints.lately())
    else:
        told = as_stream_error("not delivered", error)
    kinds = BrokersRefused | BrokersUnavailable
    return f"{told} ({told.hint})" if isinstance(told, kinds) and told.hint else str(told)


_WORDS: dict[Any, str] = {
    KafkaError.MSG_SIZE_TOO_LARGE: "the record is too large (KB_MAX_RECORD_BYTES, or max.message.bytes of the topic)",
    KafkaError.RECORD_LIST_TOO_LARGE: "the records are too large for the topic (max.message.bytes)",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "there is no such topic (`kb kafka init` makes the topics)",
    KafkaError._UNKNOWN_TOPIC: "there is no such topic (`kb kafka init` makes the topics)",  # pyright: ignore[reportPrivateUsage]
    KafkaError._UNKNOWN_PARTITION: "there is no such partition",  # pyright: ignore[reportPrivateUsage]
    KafkaError.NOT_ENOUGH_REPLICAS: "too few brokers have it to be safe (min.insync.replicas of the topic)",
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND: "too few brokers have it to be safe (min.insync.replicas of the topic)",
    KafkaError._PURGE_QUEUE: "given up before it was sent",  # pyright: ignore[reportPrivateUsage]
    KafkaError._PURGE_INFLIGHT: "given up while it was sent: brokers may have it",  # pyright: ignore[reportPrivateUsage]
}
_ENDED: frozenset[Any] = frozenset(
    {
        KafkaError._FENCED,  # pyright: ignore[reportPrivateUsage]
        KafkaError._FATAL,  # pyright: ignore[reportPrivateUsage]
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.INVALID_TXN_STATE,
    }
)
