"""Setting positions anew: where reading a topic goes on, when a person says so.

Reading again what was landed before changes nothing in the log, so `earliest` is always safe; what is jumped over is lost to
the log, and the plan says how many records that are. A landing under way notices and goes on from the new positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from kb_platform.errors import NotKnown, PositionLost
from kb_platform.settings import Settings
from kb_platform.stages.lag import trouble
from kb_platform.store import streams
from kb_platform.store.database import Database
from kb_platform.streams.topics import Topic, Topics, Watermarks

EARLIEST: Final = "earliest"
LATEST: Final = "latest"

Target = str | int | datetime


@dataclass(frozen=True)
class Step:
    """One partition: its position (None: it was never read), where it is to go on, and what the topic holds of it."""

    partition: int
    before: int | None
    after: int
    low: int
    high: int

    @property
    def skipped(self) -> int:
        """Records that are there, were not read, and would not be."""
        return max(self.after - max(self.before if self.before is not None else self.low, self.low), 0)


@dataclass(frozen=True)
class Plan:
    """What a reset would do. `trouble`: what it resolves."""

    topic: str
    topic_id: str
    was_topic_id: str | None
    trouble: str | None
    steps: tuple[Step, ...]

    @property
    def skipped(self) -> int:
        """Records that would never be read. Of a topic that was made anew, all offsets count from its beginning."""
        return sum(step.skipped for step in self.steps)


def plan(
    database: Database,
    topics: Topics,
    settings: Settings,
    topic: str,
    to: Target,
    *,
    partition: int | None = None,
) -> Plan:
    """Where reading would go on. `to`: `earliest`, `latest`, an offset, or a time; `partition`: that one alone.

    Raises PositionLost for a topic that is not there, NotKnown for a partition or an offset that it does not have.
    """
    found, marks = topics.look(topic)
    with database.snapshot() as connection:
        stored = streams.stream(connection, settings.kafka_group, topic)
    anew = stored is not None and stored.topic_id not in (None, found.topic_id)
    if partition is not None:
        _require_partition(found, partition, anew=anew)
    wrong = trouble(stored, found, marks) if stored is not None and stored.topic_id is not None else None
    before: Mapping[int, int] = stored.positions if stored is not None and not anew else {}
    targets = _targets(topics, found, marks, to)
    steps = tuple(
        Step(one, before.get(one), targets[one], mark.low, mark.high)
        for one, mark in sorted(marks.items())
        if partition is None or one == partition
    )
    return Plan(
        topic,
        found.topic_id,
        stored.topic_id if stored is not None else None,
        wrong.reason if wrong is not None else None,
        steps,
    )


def carry_out(database: Database, settings: Settings, chosen: Plan, *, by: str) -> None:
    """Set the positions, and record who did."""
    positions = {step.partition: step.after for step in chosen.steps}
    with database.transaction() as connection:
        streams.reset(connection, settings.kafka_group, chosen.topic, chosen.topic_id, positions, by)


def target(text: str) -> Target:
    """What a person writes: `earliest`, `latest`, an offset, or a time (ISO 8601; UTC where no zone is given).

    Raises NotKnown.
    """
    if text in (EARLIEST, LATEST):
        return text
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise NotKnown(
            f"{text!r} is no place in a topic",
            hint="earliest, latest, an offset, or a time like 2026-05-03T12:00",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _targets(topics: Topics, found: Topic, marks: Mapping[int, Watermarks], to: Target) -> dict[int, int]:
    if to == EARLIEST:
        return {one: mark.low for one, mark in marks.items()}
    if to == LATEST:
        return {one: mark.high for one, mark in marks.items()}
    if isinstance(to, datetime):
        return topics.offsets_at(found, to)
    if isinstance(to, int):
        return {one: min(max(to, mark.low), mark.high) for one, mark in marks.items()}
    raise NotKnown(f"{to!r} is no place in a topic", hint="earliest, latest, an offset, or a time")


def _require_partition(found: Topic, partition: int, *, anew: bool) -> None:
    if partition not in found.partitions:
        raise NotKnown(
            f"{found.name} has no partition {partition}",
            hint=f"it has {', '.join(map(str, found.partitions))}",
        )
    if anew:
        raise PositionLost(
            "recreated",
            f"{found.name} is another topic than before: all its partitions begin anew, not one",
            hint="leave out --partition",
        )
