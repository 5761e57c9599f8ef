"""A batch of a topic, read and parsed one ahead: while PostgreSQL takes a batch, the next one is made ready.

Does not belong here: writing it (`landing`), what an event says (`sources.events`).
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from kb_platform.errors import BadRecord
from kb_platform.settings import Settings
from kb_platform.sources.events import parse_event
from kb_platform.sources.message import Message
from kb_platform.sources.streamed import Streamed
from kb_platform.store.quarantine import RefusedMessage
from kb_platform.store.streams import Move
from kb_platform.streams.reader import Batch, Reader

# The thread that writes gives the interpreter away with each word to PostgreSQL. By default it gets it back after 5 ms, when
# the thread that parses has had its turn: 4,000 events took 0.85 s so, and take 0.75 s.
TURN_S = 0.0003
# A batch that waits for records to come is handed over after this long.
BEAT_S = 1.0


@dataclass
class Prepared:
    """A batch that was read, and what its records say."""

    batch: Batch
    states: list[Streamed] = field(default_factory=list[Streamed])
    refused: list[RefusedMessage] = field(default_factory=list[RefusedMessage])

    def moves(self, positions: Mapping[int, int]) -> dict[int, Move]:
        """From where to where each partition goes with this batch."""
        records = by_partition(self.batch.messages)
        sizes: dict[int, int] = {}
        for message in self.batch.messages:
            sizes[message.partition] = sizes.get(message.partition, 0) + message.size
        quarantined = by_partition([one.message for one in self.refused])
        return {
            one: Move(positions[one], after, records.get(one, 0), sizes.get(one, 0), quarantined.get(one, 0))
            for one, after in self.batch.positions.items()
            if after != positions[one]
        }

    def refusals(self, refused: Sequence[tuple[Streamed, str]], topic_id: str) -> list[RefusedMessage]:
        """The messages whose states PostgreSQL did not take."""
        if not refused:
            return []
        messages = {(message.partition, message.offset): message for message in self.batch.messages}
        return [
            RefusedMessage(
                messages[state.partition, state.offset],
                topic_id,
                "refused-by-database",
                reason,
                state.repository.name,
            )
            for state, reason in refused
        ]


@contextmanager
def quick_turns() -> Generator[None]:
    """Threads of this process change places soon, as long as this lasts."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(TURN_S, before))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Ahead:
    """Reads and parses in a thread of its own, one batch at a time: the reader belongs to that thread."""

    def __init__(self, reader: Reader, settings: Settings, topic_id: str) -> None:
        self._reader = reader
        self._settings = settings
        self._topic_id = topic_id
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="landing")
        self._next: Future[Prepared] | None = None

    def close(self) -> None:
        """Wait for what is under way; a batch that was asked for is dropped."""
        self._thread.shutdown(wait=True)

    def ask(self) -> None:
        """Begin with the next batch."""
        self._next = self._thread.submit(self._prepare)

    def take(self) -> Prepared:
        """Wait for the batch that was asked for. Raises what reading it raised."""
        if self._next is None:
            raise RuntimeError("no batch was asked for")
        return self._next.result()

    def publish(self, positions: Mapping[int, int]) -> None:
        """Show the offsets to lag tools."""
        self._thread.submit(self._reader.publish, dict(positions))

    def _prepare(self) -> Prepared:
        settings = self._settings
        batch = self._reader.read(
            max_records=settings.kafka_batch_records, max_bytes=settings.kafka_batch_bytes, wait_s=BEAT_S
        )
        prepared = Prepared(batch)
        for message in batch.messages:
            try:
                state = parse_event(
                    message,
                    topic_id=self._topic_id,
                    github_api_url=settings.github_api_url,
                    max_body_bytes=settings.max_body_bytes,
                    max_record_bytes=settings.max_record_bytes,
                )
            except BadRecord as error:
                prepared.refused.append(RefusedMessage(message, self._topic_id, error.reason, str(error)))
            else:
                # Kept with the release: computed now, while PostgreSQL is busy with the batch before.
                _ = state.release.content_hash
                prepared.states.append(state)
        return prepared


def by_partition(messages: Sequence[Message]) -> dict[int, int]:
    """How many there are of each partition."""
    counts: dict[int, int] = {}
    for message in messages:
        counts[message.partition] = counts.get(message.partition, 0) + 1
    return counts
