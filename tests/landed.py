"""Topics that are lists in memory, landed through the real tables: what Dagster's side of landing is tested with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from kb_platform.errors import KbError, PositionLost
from kb_platform.settings import Settings
from kb_platform.sources.streamed import Origin, Streamed
from kb_platform.stages.lag import Look
from kb_platform.stages.landing import Landed
from kb_platform.store import streamed_log, streams
from kb_platform.store.database import Database
from kb_platform.store.streams import Move
from tests.releases import notes, release

TOPIC_ID = "topic-of-a-test"
BATCH = 10


class FakeTopics:
    """One partition each. `sent`: the release ids, in order. `error`: what landing and looking raise, `landing_error`: what
    only landing does."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._events: dict[str, list[Streamed]] = {}
        self.sent: list[int] = []
        self.error: KbError | None = None
        self.landing_error: KbError | None = None
        self.trouble: PositionLost | None = None
        self.looks = 0
        self.landings = 0
        # Set: a look is answered. Cleared: brokers are frozen.
        self.answering = threading.Event()
        self.answering.set()

    def fill(self, topic: str, count: int) -> None:
        """So many events more."""
        events = self._events.setdefault(topic, [])
        for _ in range(count):
            offset = len(events)
            at = datetime.now(UTC) - timedelta(hours=1) + timedelta(milliseconds=offset)
            found = release(offset + 1, notes(f"change {offset}"))
            self.sent.append(found.release_id)
            events.append(
                Streamed(
                    Origin("github", 77, "acme/streamed"), found, b"{}", deleted=False, revised_at=at, event_at=at, versioned=True,
                    place=f"kafka:{topic}/0@{offset}", topic_id=TOPIC_ID, partition=0, offset=offset,
                )
            )  # fmt: skip

    def land(
        self,
        database: Database,
        brokers: Any,
        settings: Settings,
        topic: str,
        *,
        linger_s: float,
        tell: Callable[[Any], None],
    ) -> Landed:
        """See kb_platform.stages.landing.land."""
        del database, brokers, settings, linger_s
        self.landings += 1
        if error := self.error or self.landing_error:
            raise error
        landed = Landed()
        while count := self.land_one_batch(topic):
            landed.records += count
            landed.new += count
            landed.lag = self._lag(topic)
            tell(landed)
        return landed

    def land_one_batch(self, topic: str) -> int:
        """One transaction; how many events were in it."""
        group = self._settings.kafka_group
        with self._database.transaction() as connection:
            if streams.stream(connection, group, topic) is None:
                streams.adopt(connection, group, topic, TOPIC_ID, {0: 0})
            stored = streams.stream(connection, group, topic)
            assert stored is not None
            at = stored.positions[0]
            batch = self._events.get(topic, [])[at : at + BATCH]
            if batch:
                move = Move(at, at + len(batch), len(batch), 100 * len(batch), 0)
                streams.advance(connection, group, topic, {0: move})
                streamed_log.append_streamed(connection, batch)
        return len(batch)

    def look(self, database: Database, settings: Settings, topic: str) -> Look:
        """See sensors.landing.Looking."""
        del settings
        self.looks += 1
        self.answering.wait(60)
        if self.error is not None:
            raise self.error
        with database.snapshot() as connection:
            stored = streams.stream(connection, self._settings.kafka_group, topic)
        positions = dict(stored.positions) if stored else {}
        return Look(self._lag(topic), positions, {}, self.trouble, stored.landed_at if stored else None)

    def _lag(self, topic: str) -> int:
        with self._database.snapshot() as connection:
            stored = streams.stream(connection, self._settings.kafka_group, topic)
        return len(self._events.get(topic, [])) - (stored.positions[0] if stored else 0)
