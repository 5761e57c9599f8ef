"""Topics: which there are, which one has a name now, and from where to where their records go.

`Topics` keeps its client open for many cheap looks. Making topics is `new_topics`; reading records is `reader`.
Every answer is an answer: where brokers are silent, and where they are out of date, this is an error and not "no topic".
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin._listoffsets import (
    OffsetSpec,  # the package does not export its name to type checkers
)

from kb_platform.errors import BrokersUnavailable, PositionLost, StreamError
from kb_platform.sources.message import DEAD_LETTERS
from kb_platform.streams.broker import Brokers, Deadline
from kb_platform.streams.client_errors import as_stream_error, is_silence, kafka_error

_T = TypeVar("_T")

# A leader that froze is left alone for a new one when a request to it has timed out. Of a look's time, one try takes
# this share, so that a new client has time for another.
_TRIES = 2
# A broker that was just started, or that a topic was just made behind, may not know it yet.
_ASK_AGAIN_S = 0.4
_DENIALS = 3


class Topic(NamedTuple):
    """A topic. `topic_id`: made anew under the same name, it has another. `replicas`: of its partitions, the fewest."""

    name: str
    topic_id: str
    partitions: tuple[int, ...]
    replicas: int = 0


class Watermarks(NamedTuple):
    """`low`: the oldest record's offset. `high`: the offset that follows the last record that is committed."""

    low: int
    high: int


def dead_letter_topic(name: str) -> str:
    """The name of a topic's dead-letter topic."""
    return name + DEAD_LETTERS


class Topics:
    """Looks at topics. Use it from one thread at a time, and close it."""

    def __init__(self, brokers: Brokers, *, timeout_s: float | None = None) -> None:
        """`timeout_s`: what one look (a call) may take; the settings' by default."""
        self._brokers = brokers
        self._timeout_s = brokers.settings.kafka_timeout_s if timeout_s is None else timeout_s
        self._admin: Any = None

    def __enter__(self) -> Topics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._admin = None

    def describe(self, name: str) -> Topic:
        """The topic that has this name now.

        Raises PositionLost("missing") when brokers say, more than once, that there is none; BrokersUnavailable,
        BrokersRefused.
        """
        return self._describe(name, Deadline(self._timeout_s))

    def watermarks(self, topic: Topic) -> dict[int, Watermarks]:
        """Where each partition begins and ends; raises BrokersUnavailable when one leader does not answer."""
        return self._watermarks(topic, Deadline(self._timeout_s))

    def look(self, name: str) -> tuple[Topic, dict[int, Watermarks]]:
        """Both of the above, within the time of one."""
        deadline = Deadline(self._timeout_s)
        topic = self._describe(name, deadline)
        return topic, self._watermarks(topic, deadline)

    def offsets_at(self, topic: Topic, moment: datetime) -> dict[int, int]:
        """The offset of the first record at or after a time, in each partition; its end where there is none."""
        deadline = Deadline(self._timeout_s)
        marks = self._watermarks(topic, deadline)
        at = OffsetSpec.for_timestamp(int(moment.timestamp() * 1000))
        found = self._offsets(topic, at, deadline, none_is=-1)
        return {
            number: marks[number].high
            if offset < 0
            else min(max(offset, marks[number].low), marks[number].high)
            for number, offset in found.items()
        }

    def _describe(self, name: str, deadline: Deadline) -> Topic:
        doing = f"looking for the topic {name}"
        denials = 0

        def ask(admin: Any, within: Deadline) -> Topic:
            future = admin.describe_topics(TopicCollection([name]), request_timeout=max(within.left, 0.1))[
                name
            ]
            described = self._brokers.result(future, doing, within, admin.poll)
            numbers = tuple(sorted(partition.id for partition in described.partitions))
            replicas = min((len(partition.replicas) for partition in described.partitions), default=0)
            return Topic(name, str(described.topic_id), numbers, replicas)

        while True:
            try:
                return self._patiently(ask, doing, deadline)
            except _Unknown:
                denials += 1
                if denials >= _DENIALS:
                    raise PositionLost(
                        "missing", f"there is no topic {name}", hint="`kb kafka init` makes the topics"
                    ) from None
                pause = Deadline(_ASK_AGAIN_S)
                while not pause.passed:
                    self._client().poll(pause.left)
                # A denial is an answer: what is left of the time may be little after one slow broker.
                if deadline.left < 1.0:
                    deadline = Deadline(1.0)

    def _watermarks(self, topic: Topic, deadline: Deadline) -> dict[int, Watermarks]:
        low = self._offsets(topic, OffsetSpec.earliest(), deadline)
        high = self._offsets(topic, OffsetSpec.latest(), deadline)
        return {
            number: Watermarks(low[number], max(high[number], low[number])) for number in topic.partitions
        }

    def _offsets(
        self, topic: Topic, spec: OffsetSpec | None, deadline: Deadline, *, none_is: int | None = None
    ) -> dict[int, int]:
        doing = f"asking for the offsets of {topic.name}"

        def ask(admin: Any, within: Deadline) -> dict[int, int]:
            futures = admin.list_offsets(
                {TopicPartition(topic.name, number): spec for number in topic.partitions},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=max(within.left, 0.1),
            )
            found: dict[int, int] = {}
            for place, future in futures.items():
                offset = self._brokers.result(future, doing, within, admin.poll).offset
                # Without an error: -1001 is said of a leader that did not answer.
                if offset < 0 and offset != none_is:
                    raise _Silent(f"{doing}: the leader of partition {place.partition} does not answer")
                found[place.partition] = offset
            return found

        while True:
            try:
                return self._patiently(ask, doing, deadline)
            except _Unknown:
                # Said of a topic that is gone, and of a partition that nobody leads just now.
                there = self._describe(topic.name, Deadline(max(deadline.left, 1.0))).partitions
                gone = sorted(set(topic.partitions) - set(there))
                if gone:
                    raise _no_partition(topic.name, gone[0]) from None
                self._brokers.give_up(doing, deadline)
                self._client().poll(min(_ASK_AGAIN_S, deadline.left))

    def _patiently(self, ask: Callable[[Any, Deadline], _T], doing: str, deadline: Deadline) -> _T:
        """Ask, and with a new client ask again: one that keeps to a lost controller or leader never mends."""
        share = max(deadline.left / _TRIES, 0.5)
        last: StreamError | None = None
        while True:
            within = Deadline(min(share, deadline.left))
            try:
                return ask(self._client(), within)
            except BrokersUnavailable as error:
                last = error
            except KafkaException as error:
                failed = kafka_error(error)
                if failed is not None and failed.code() in _NO_TOPIC:
                    raise _Unknown from None
                last = as_stream_error(doing, error, self._brokers.complaints.lately(deadline.began))
                if failed is None or not is_silence(failed):
                    raise last from None
            self._admin = None
            self._brokers.give_up(doing, deadline)
            if deadline.left < 0.2:
                raise last
            # Some brokers decline at once; a new leader takes a moment.
            self._client().poll(min(_ASK_AGAIN_S, deadline.left))

    def _client(self) -> Any:
        if self._admin is None:
            self._admin = self._brokers.admin()
        return self._admin


def lost(topic: str, number: int | None, position: int, marks: Watermarks | None) -> PositionLost | None:
    """Why a partition cannot be read from a position; None: it can. `marks` None: there is no such partition."""
    hint = _hint(topic)
    if marks is None:
        return _no_partition(topic, number)
    if position < marks.low:
        return PositionLost(
            "truncated",
            f"{marks.low - position:,} records of {topic}, partition {number}, were deleted before they were read (position "
            f"{position:,}, the first record left is {marks.low:,}); a longer retention keeps it from happening again",
            hint=hint,
        )
    if position > marks.high:
        return PositionLost(
            "beyond-end",
            f"{topic}, partition {number}, ends at {marks.high:,}, before the position {position:,}: the brokers have lost "
            "records that were read already, and new ones take their offsets",
            hint=hint,
        )
    return None


def _no_partition(topic: str, number: int | None) -> PositionLost:
    return PositionLost("recreated", f"{topic} has no partition {number} any more", hint=_hint(topic))


def _hint(topic: str) -> str:
    return f"`kb kafka reset --topic {topic}` asks where to go on, and records it"


class _Unknown(Exception):
    """A broker knows no such topic."""


class _Silent(BrokersUnavailable):
    """A leader did not answer."""


_NO_TOPIC: frozenset[Any] = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._NOENT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._UNKNOWN_TOPIC,  # pyright: ignore[reportPrivateUsage] - so librdkafka names its own errors
        KafkaError._UNKNOWN_PARTITION,  # pyright: ignore[reportPrivateUsage]
    }
)
