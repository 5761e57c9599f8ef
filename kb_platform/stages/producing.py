"""Records → events → brokers: each record is acknowledged, failed or refused, and somebody is told which.

Memory is bounded: when enough waits for brokers, no more is read until they have taken some. What a record means is
`sources.producible`; where records come from is the caller's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, NamedTuple, Protocol

from kb_platform.errors import BadRecord, QueueFull
from kb_platform.settings import Settings
from kb_platform.sources import envelope
from kb_platform.sources.files import Record
from kb_platform.sources.producible import Known, Producible, producible
from kb_platform.streams.delivery import Delivery, Sending

MOST_WAITING_BYTES = 32 * 1_048_576
# Brokers that refuse so many records one after the other will refuse the next ones too.
MOST_FAILURES = 100
# Longer than the producer tries to deliver a record.
SILENCE_S = 60.0
POLL_S = 0.2


class Producer(Sending, Protocol):
    """See streams.sender.Sender."""

    def flush(self, timeout_s: float) -> int:
        """Wait until all is answered for; returns how many messages are not."""
        ...


class Given(NamedTuple):
    """A record and what is known of it."""

    record: Record
    known: Known = Known()


class Unreadable(NamedTuple):
    """What should have been records and could not be read."""

    place: str
    reason: str
    detail: str


class Outcome(NamedTuple):
    """What became of one record. `error`: None when brokers have acknowledged it."""

    place: str
    event_id: str | None
    topic: str | None
    partition: int | None
    offset: int | None
    error: str | None


@dataclass
class Produced:
    """What producing came to. `refused`: records that are no event, by reason in `reasons`. `ended_by`: why it ended before
    all was read."""

    records: int = 0
    produced: int = 0
    acknowledged: int = 0
    failed: int = 0
    refused: int = 0
    bytes: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    ended_by: str | None = None

    @property
    def rate(self) -> float:
        """Acknowledged records a second."""
        return self.acknowledged / self.seconds if self.seconds else 0.0

    @property
    def complete(self) -> bool:
        """Whether every record was read, understood and acknowledged."""
        return self.ended_by is None and self.acknowledged == self.records


class Producing:
    """Produces records. Use once, in one thread; `reading`: whether it waits for the next record now."""

    def __init__(
        self,
        sender: Producer,
        settings: Settings,
        *,
        action: str,
        topic: str | None = None,
        mode: envelope.Mode = "binary",
        tell: Callable[[Outcome], object] = lambda _outcome: None,
        require_topic: Callable[[str], object] = lambda _topic: None,
        stop: threading.Event | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        most_waiting_bytes: int = MOST_WAITING_BYTES,
        silence_s: float = SILENCE_S,
    ) -> None:
        """`topic`: None: each kind of event has its own. `require_topic` raises when there is no such topic; asked once for
        each. `stop`: read no more when it is set."""
        self._sender = sender
        self._settings = settings
        self._action = action
        self._topic = topic
        self._mode: envelope.Mode = mode
        self._tell = tell
        self._require_topic = require_topic
        self._stop = stop or threading.Event()
        self._now = now
        self._most_waiting_bytes = most_waiting_bytes
        self._silence_s = silence_s
        self._topics: set[str] = set()
        self._waiting: dict[int, Outcome] = {}
        self._waiting_bytes = 0
        self._failures = 0
        self._heard = 0.0
        self.reading = False
        self.totals = Produced()

    def run(self, items: Iterable[Given | Unreadable]) -> Produced:
        """Produce all of it; returns when everything is answered for, or nobody answers any more.

        Raises StreamError, and whatever reading raises, once what was under way is answered for; `totals` has the figures.
        """
        began = self._heard = time.monotonic()
        try:
            for item in self._read(items):
                self.totals.records += 1
                if isinstance(item, Unreadable):
                    self._refuse(item.place, item.reason, item.detail)
                else:
                    self._take(item)
                self._sender.poll(0)
        except _StoppedError:
            pass
        finally:
            self._finish()
            self.totals.seconds = time.monotonic() - began
        return self.totals

    def _read(self, items: Iterable[Given | Unreadable]) -> Generator[Given | Unreadable]:
        """Until nothing is left, or it is time to stop."""
        iterator = iter(items)
        try:
            while not self._is_over():
                self.reading = True
                item = next(iterator, None)
                self.reading = False
                if item is None:
                    return
                yield item
        except KeyboardInterrupt:
            self._stop.set()
            self._is_over()
        finally:
            self.reading = False

    def _is_over(self) -> bool:
        if self._stop.is_set():
            self.totals.ended_by = self.totals.ended_by or "stopped"
        return self.totals.ended_by is not None

    def _take(self, given: Given) -> None:
        record = given.record
        try:
            if record.is_cut:
                raise BadRecord("record-too-long", f"a record of {record.size:,} bytes, over the limit")
            made = producible(
                record.raw, given.known, action=self._action, time=self._now(),
                github_api_url=self._settings.github_api_url, max_body_bytes=self._settings.max_body_bytes,
            )  # fmt: skip
            written = envelope.write(made.envelope, mode=self._mode)
        except BadRecord as error:
            self._refuse(record.place, error.reason, str(error))
            return
        self._send(record.place, made, written)

    def _send(self, place: str, made: Producible, written: envelope.Written) -> None:
        topic = self._topic_of(made)
        number, size = self.totals.produced, len(written.value)
        waiting = Outcome(place, made.envelope.event_id, topic, None, None, "no acknowledgement")

        def settle(delivery: Delivery) -> None:
            del self._waiting[number]
            self._waiting_bytes -= size
            self._settled(waiting, delivery)

        while self._waiting and self._waiting_bytes + size > self._most_waiting_bytes:
            self._wait()
        self._waiting[number] = waiting
        self._waiting_bytes += size
        try:
            while not self._handed_over(topic, made.key, written, settle):
                self._wait()
        except BaseException:
            del self._waiting[number]
            raise
        self.totals.produced += 1
        self.totals.bytes += size

    def _handed_over(
        self,
        topic: str,
        key: bytes | None,
        written: envelope.Written,
        settle: Callable[[Delivery], None],
    ) -> bool:
        try:
            self._sender.send(topic, key, written.value, written.headers, settle)
        except QueueFull:
            return False
        return True

    def _topic_of(self, made: Producible) -> str:
        own = {"release": self._settings.kafka_release_topic, "document": self._settings.kafka_document_topic}
        topic = self._topic or own[made.kind]
        if topic not in self._topics:
            self._require_topic(topic)
            self._topics.add(topic)
        return topic

    def _wait(self) -> None:
        """Until brokers have taken some, or it is time to stop."""
        self._sender.poll(POLL_S)
        if self._is_over():
            self.totals.records -= 1
            raise _StoppedError

    def _settled(self, waiting: Outcome, delivery: Delivery) -> None:
        self._heard = time.monotonic()
        if delivery.error is None:
            self._failures = 0
            self.totals.acknowledged += 1
        else:
            self._failures += 1
            self.totals.failed += 1
            if self._failures >= MOST_FAILURES and self.totals.ended_by is None:
                self.totals.ended_by = (
                    f"{self._failures} deliveries failed one after the other: {delivery.error}"
                )
        self._tell(
            waiting._replace(partition=delivery.partition, offset=delivery.offset, error=delivery.error)
        )

    def _refuse(self, place: str, reason: str, detail: str) -> None:
        self.totals.refused += 1
        self.totals.reasons[reason] = self.totals.reasons.get(reason, 0) + 1
        self._tell(Outcome(place, None, None, None, None, f"{reason}: {detail}"))

    def _finish(self) -> None:
        """Wait for what is under way; what nobody answers for has failed."""
        self._heard = time.monotonic()
        try:
            while self._waiting and time.monotonic() - self._heard < self._silence_s:
                self._sender.flush(POLL_S)
        finally:
            self.totals.failed += len(self._waiting)
            for waiting in self._waiting.values():
                self._tell(waiting)
            self._waiting.clear()


class _StoppedError(Exception):
    """It is time to stop, in the middle of a record."""


def read_lines(lines: IO[bytes], *, name: str, max_record_bytes: int) -> Generator[Record]:
    """The records of a stream, one a line; of a line that is too long the beginning is kept."""
    number = 0
    while line := lines.readline(max_record_bytes + 1):
        number += 1
        size = len(line.rstrip(b"\r\n"))
        rest = line
        while not rest.endswith(b"\n") and (rest := lines.readline(1 << 20)):
            size += len(rest.rstrip(b"\r\n"))
        kept = line.removeprefix(b"\xef\xbb\xbf").strip()
        if kept:
            is_long = size > max_record_bytes
            yield Record(kept[:max_record_bytes], f"{name}:{number}", size if is_long else len(kept))


def broken_down(reasons: dict[str, int]) -> str:
    """Reasons and how often each.

    >>> broken_down({"not-json": 2})
    '2 not-json'
    """
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
