"""Lag: how far a topic was read and how far it goes, and whether reading can go on from there at all.

Reads watermarks, the topic's identity and stored positions; no record is read. What was seen is kept for `kb status`, the app
and alerts, which ask no broker. Does not belong here: reading on (`landing`), setting positions anew (`positions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from kb_platform.errors import BrokersUnavailable, PositionLost
from kb_platform.settings import Settings
from kb_platform.store import streams
from kb_platform.store.database import Database
from kb_platform.store.streams import Stream
from kb_platform.streams.topics import Topic, Topics, Watermarks, lost


@dataclass(frozen=True)
class Look:
    """What a look saw. `lag`: records that wait, as far as offsets tell (control records count too).

    `positions` are empty before the first landing. `trouble`: why reading cannot go on.
    """

    lag: int
    positions: Mapping[int, int]
    watermarks: Mapping[int, Watermarks]
    trouble: PositionLost | None
    landed_at: datetime | None


def look(database: Database, topics: Topics, settings: Settings, topic: str) -> Look:
    """Compare a topic with the stored positions. Raises BrokersUnavailable, BrokersRefused, after keeping that it did.

    A topic that is missing before anything was ever read of it raises PositionLost; afterwards that is `trouble`.
    """
    group, now = settings.kafka_group, datetime.now(UTC)
    with database.snapshot() as connection:
        stored = streams.stream(connection, group, topic)
    try:
        found, marks = topics.look(topic)
    except BrokersUnavailable:
        if stored is not None:
            with database.transaction() as connection:
                streams.unreachable(connection, group, topic, now)
        raise
    except PositionLost as gone:
        if stored is None or stored.topic_id is None:
            raise
        with database.transaction() as connection:
            streams.in_trouble(connection, group, topic, gone.reason, str(gone), now)
        return Look(0, stored.positions, {}, gone, stored.landed_at)
    if stored is None or stored.topic_id is None:
        return Look(sum(mark.high - mark.low for mark in marks.values()), {}, marks, None, None)
    wrong = trouble(stored, found, marks)
    with database.transaction() as connection:
        streams.looked(connection, group, topic, marks, now)
        if wrong is not None:
            streams.in_trouble(connection, group, topic, wrong.reason, str(wrong), now)
        elif stored.trouble is not None:
            streams.out_of_trouble(connection, group, topic)
    return Look(lag(stored.positions, marks), stored.positions, marks, wrong, stored.landed_at)


def lag(positions: Mapping[int, int], watermarks: Mapping[int, Watermarks]) -> int:
    """Offsets between positions and ends; a partition without a position counts from its beginning.

    >>> lag({0: 7}, {0: Watermarks(5, 10), 1: Watermarks(0, 2)})
    5
    """
    return sum(
        max(mark.high - max(positions.get(partition, mark.low), mark.low), 0)
        for partition, mark in watermarks.items()
    )


def trouble(stored: Stream, found: Topic, watermarks: Mapping[int, Watermarks]) -> PositionLost | None:
    """Why reading cannot go on from the stored positions; None: it can."""
    reset = f"`kb kafka reset --topic {found.name}` asks where to go on, and records it"
    if stored.topic_id != found.topic_id:
        return PositionLost(
            "recreated",
            f"{found.name} is another topic than the one that was read (id {found.topic_id}, before {stored.topic_id}); "
            "what had not been read of that one is gone",
            hint=reset,
        )
    for partition, position in sorted(stored.positions.items()):
        mark = watermarks.get(partition)
        if mark is not None and (wrong := lost(found.name, partition, position, mark)) is not None:
            return wrong
    return None
