"""Landing: records of a topic → observations in the log, exactly once.

A batch is one transaction: its rows, what it sets apart, its dead letters and its next offsets, fenced by the offsets that
it began with. Whoever dies before the commit has done nothing; whoever dies after it goes on behind it. Does not belong
here: what an event says (`sources.events`), how a state is compared with the log (`store.streamed_log`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kb_platform.errors import DatabaseUnavailable, Fenced, NotKnown, PositionLost, StreamError
from kb_platform.settings import Settings
from kb_platform.stages import dead_letters
from kb_platform.stages.lag import lag, trouble
from kb_platform.stages.landing_batch import BEAT_S, Ahead, Prepared, by_partition, quick_turns
from kb_platform.store import quarantine, streamed_log, streams
from kb_platform.store.database import Connection, Database
from kb_platform.store.streams import Move
from kb_platform.streams.broker import Brokers
from kb_platform.streams.reader import Batch, Reader
from kb_platform.streams.topics import Topics, Watermarks

# A database that comes back is waited for; a run that waits for ever holds a place that others need.
MOST_TRIES = 6
LONGEST_PAUSE_S = 10.0
# Lag and dead letters of a run that goes on.
LOOK_EVERY_S = 5.0

_log = logging.getLogger("kb")


@dataclass
class Landed:
    """What a landing did so far. `lag`: what waited at its end, as offsets tell. `dead_letters`: published ones.

    `late`: states that were over when their events came; they are in the history of their release.
    """

    records: int = 0
    bytes: int = 0
    batches: int = 0
    new: int = 0
    edited: int = 0
    deleted: int = 0
    reappeared: int = 0
    unchanged: int = 0
    late: int = 0
    quarantined: int = 0
    dead_letters: int = 0
    fenced: int = 0
    lag: int = 0
    seconds: float = 0.0
    repositories: set[str] = field(default_factory=set[str])
    reasons: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def appended(self) -> int:
        """Observations that the log did not have."""
        return self.new + self.edited + self.deleted + self.reappeared + self.late


Tell = Callable[[Landed], None]
Advance = Callable[[Connection, str, str, Mapping[int, Move]], None]


def land(
    database: Database,
    brokers: Brokers,
    settings: Settings,
    topic: str,
    *,
    linger_s: float = 0.0,
    stop: threading.Event | None = None,
    tell: Tell | None = None,
    advance: Advance | None = None,
) -> Landed:
    """Land what the topic holds, and what comes until nothing has come for `linger_s`, or the bounds of a run are met.

    `tell` is called in this thread after each batch, and every second while nothing comes. `advance` moves the offsets in
    the place of the store's, for harnesses that show what the fence is for. Raises PositionLost (kept as the stream's trouble
    before), BrokersUnavailable, BrokersRefused, DatabaseUnavailable.
    """
    landing = _Landing(database, brokers, settings, topic, stop or threading.Event(), tell, advance)
    return landing.run(linger_s)


class _Landing:
    def __init__(
        self,
        database: Database,
        brokers: Brokers,
        settings: Settings,
        topic: str,
        stop: threading.Event,
        tell: Tell | None,
        advance: Advance | None,
    ) -> None:
        self._database = database
        self._brokers = brokers
        self._settings = settings
        self._topic = topic
        self._group = settings.kafka_group
        self._stop = stop
        self._tell = tell
        self._advance = advance
        self._begun = self._looked = time.monotonic()
        self._topics = Topics(brokers)
        self._marks: Mapping[int, Watermarks] = {}
        self.result = Landed()

    def run(self, linger_s: float) -> Landed:
        self._brokers.require()
        tries = 0
        with closing(self._topics):
            while True:
                before = self.result.batches
                try:
                    self._read_on(linger_s)
                    break
                except PositionLost as lost:
                    self._keep(lost)
                    raise
                except (DatabaseUnavailable, Fenced, NotKnown) as error:
                    # The commit may have come through, or another has gone on: what is stored says where to read on.
                    tries = 1 if self.result.batches > before else tries + 1
                    if not isinstance(error, Fenced) and tries >= MOST_TRIES:
                        raise
                    self._pause(error, tries)
                    if self._is_over():
                        break
            self._publish_dead_letters()
        self.result.seconds = time.monotonic() - self._begun
        return self.result

    def _pause(self, error: Exception, tries: int) -> None:
        if isinstance(error, Fenced):
            self.result.fenced += 1
            # Of two loaders, one lands while the other waits; by chance, not both at once again.
            self._stop.wait(random.uniform(0.1, 1.0))  # noqa: S311 - no secret
        else:
            _log.warning("%s: the database is tried again: %s", self._topic, error)
            self._stop.wait(min(0.2 * 2**tries, LONGEST_PAUSE_S))

    # --- reading -----------------------------------------------------------------------------------------

    def _read_on(self, linger_s: float) -> None:
        topic_id, positions, ends = self._start()
        with (
            closing(Reader(self._brokers, self._topic, positions)) as reader,
            closing(Ahead(reader, self._settings, topic_id)) as ahead,
            quick_turns(),
        ):
            self._batches(ahead, topic_id, positions, ends, linger_s)

    def _batches(
        self,
        ahead: Ahead,
        topic_id: str,
        positions: dict[int, int],
        ends: Mapping[int, int],
        linger_s: float,
    ) -> None:
        idle_since = time.monotonic()
        ahead.ask()
        while True:
            prepared = ahead.take()
            self._require_same_topic(topic_id, positions)
            at_end = all(prepared.batch.positions.get(one, 0) >= end for one, end in ends.items())
            is_last = self._is_over(prepared.batch) or (at_end and linger_s == 0)
            if not is_last:
                ahead.ask()
            if prepared.batch.positions != positions:
                self._commit(prepared, positions, topic_id)
                ahead.publish(prepared.batch.positions)
                positions.update(prepared.batch.positions)
            if prepared.batch.messages:
                idle_since = time.monotonic()
            self.result.lag = lag(positions, self._marks)
            self._beat(positions)
            if is_last or (at_end and time.monotonic() - idle_since >= linger_s):
                return

    def _beat(self, positions: Mapping[int, int]) -> None:
        """What is due now and then while records come, and while none come."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            _, self._marks = self._topics.look(self._topic)
            self.result.lag = lag(positions, self._marks)
            with self._database.transaction() as connection:
                streams.looked(connection, self._group, self._topic, self._marks, datetime.now(UTC))
            self._publish_dead_letters()
        if self._tell is not None:
            self.result.seconds = now - self._begun
            self._tell(self.result)

    def _is_over(self, batch: Batch | None = None) -> bool:
        """Whether the run makes way once this batch is landed."""
        settings, result = self._settings, self.result
        records, size = (len(batch.messages), batch.size) if batch is not None else (0, 0)
        return (
            self._stop.is_set()
            or result.records + records >= settings.kafka_run_records
            or result.bytes + size >= settings.kafka_run_bytes
            or (settings.kafka_run_s > 0 and time.monotonic() - self._begun >= settings.kafka_run_s)
        )

    def _start(self) -> tuple[str, dict[int, int], dict[int, int]]:
        """The topic's identity, where to begin, and where it ends now."""
        with self._database.snapshot() as connection:
            stored = streams.stream(connection, self._group, self._topic)
        found, marks = self._topics.look(self._topic)
        with self._database.transaction() as connection:
            if stored is None or stored.topic_id is None:
                first = {partition: mark.low for partition, mark in marks.items()}
                streams.adopt(connection, self._group, self._topic, found.topic_id, first)
            elif added := {one: mark.low for one, mark in marks.items() if one not in stored.positions}:
                streams.add_partitions(connection, self._group, self._topic, added)
        with self._database.transaction() as connection:
            stored = streams.stream(connection, self._group, self._topic)
            if stored is None:
                raise Fenced(f"the positions of {self._topic} are being set by another process")
            streams.looked(connection, self._group, self._topic, marks, datetime.now(UTC))
        if (lost := trouble(stored, found, marks)) is not None:
            # A leader that has just become one may not know yet how far its records are committed.
            self._stop.wait(BEAT_S)
            lost = trouble(stored, *self._topics.look(self._topic))
            if lost is not None:
                raise lost
        if stored.trouble is not None:
            with self._database.transaction() as connection:
                streams.out_of_trouble(connection, self._group, self._topic)
        self._marks = marks
        self.result.lag = lag(stored.positions, marks)
        return found.topic_id, dict(stored.positions), {one: mark.high for one, mark in marks.items()}

    def _require_same_topic(self, topic_id: str, positions: Mapping[int, int]) -> None:
        """librdkafka reads a topic that took the place of another without a word; a batch counts if it is of ours."""
        found = self._topics.describe(self._topic)
        if found.topic_id == topic_id:
            if set(found.partitions) - set(positions):
                raise Fenced(f"{self._topic} has more partitions than before")
            return
        # The caller's next try looks at all of it and says what is wrong.
        raise Fenced(f"{self._topic} was made anew")

    # --- writing -----------------------------------------------------------------------------------------

    def _commit(self, prepared: Prepared, positions: Mapping[int, int], topic_id: str) -> None:
        with self._database.transaction() as connection:
            self._move(connection, prepared.moves(positions), topic_id)
            appended = streamed_log.append_streamed(connection, prepared.states)
            refused = [*prepared.refused, *prepared.refusals(appended.refused, topic_id)]
            if refused:
                quarantine.put_messages(connection, refused)
            if len(refused) > len(prepared.refused):
                counts = by_partition([one.message for one in refused[len(prepared.refused) :]])
                streams.count_quarantined(connection, self._group, self._topic, counts)
        # Only what was committed is counted.
        result = self.result
        result.batches += 1
        result.records += len(prepared.batch.messages)
        result.bytes += prepared.batch.size
        result.quarantined += len(refused)
        for change, count in appended.counts.items():
            setattr(result, change, getattr(result, change) + count)
        for one in refused:
            result.reasons[one.reason] = result.reasons.get(one.reason, 0) + 1
        result.repositories.update(appended.repositories)

    def _move(self, connection: Connection, moves: Mapping[int, Move], topic_id: str) -> None:
        if self._advance is not None:
            self._advance(connection, self._group, self._topic, moves)
        else:
            streams.advance(connection, self._group, self._topic, moves, topic_id=topic_id)

    def _keep(self, lost: PositionLost) -> None:
        """A topic that is missing before anything was read of it is no trouble: it may never be wanted."""
        with self._database.transaction() as connection:
            stored = streams.stream(connection, self._group, self._topic)
            if stored is not None and stored.topic_id is not None:
                now = datetime.now(UTC)
                streams.in_trouble(connection, self._group, self._topic, lost.reason, str(lost), now)

    def _publish_dead_letters(self) -> None:
        """What cannot be published waits in the database; it is no reason to land nothing."""
        try:
            self.result.dead_letters += dead_letters.publish(
                self._database, self._brokers, self._settings, self._topic
            )
        except StreamError as error:
            _log.warning("dead letters of %s wait: %s", self._topic, error)
