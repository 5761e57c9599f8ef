"""How far each topic was read, for each consumer group: positions, the fence around them, and what brokers last said.

Positions move in the transaction that writes the records before them, and only from where that transaction began: of two
that read the same records one commits, and the other is told (`Fenced`). Does not belong here: what a record says
(`streamed_log`), whose turn it is to read (`loaders`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from kb_platform.errors import Fenced
from kb_platform.store.database import Connection, scalar
from kb_platform.store.quarantine import storable


class Move(NamedTuple):
    """One partition goes on from `start` to `next`: that many records, bytes of them, and refused ones among them."""

    start: int
    next: int
    records: int = 0
    bytes: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class Stream:
    """A topic as a group reads it. `positions`: the next offset of each partition; `topic_id` None: not read yet."""

    group: str
    topic: str
    topic_id: str | None
    positions: Mapping[int, int]
    landed_at: datetime | None
    looked_at: datetime | None
    unreachable_since: datetime | None
    trouble: str | None
    trouble_detail: str | None
    trouble_since: datetime | None


@dataclass(frozen=True)
class PartitionState:
    """One partition. `low`, `high`: as brokers last told them. `records`, `bytes`, `quarantined`: handed over so far."""

    partition: int
    next_offset: int
    low: int | None
    high: int | None
    lag: int
    records: int
    bytes: int
    quarantined: int
    landed_at: datetime | None


@dataclass(frozen=True)
class StreamState:
    """A topic as a group reads it, for people. `lag`: offsets that wait, as far as brokers have told."""

    group: str
    topic: str
    topic_id: str | None
    looked_at: datetime | None
    unreachable_since: datetime | None
    trouble: str | None
    trouble_detail: str | None
    trouble_since: datetime | None
    partitions: tuple[PartitionState, ...]

    @property
    def lag(self) -> int:
        """Of all partitions."""
        return sum(one.lag for one in self.partitions)

    @property
    def records(self) -> int:
        """Handed over by all partitions so far."""
        return sum(one.records for one in self.partitions)

    @property
    def bytes(self) -> int:
        """Bytes of them."""
        return sum(one.bytes for one in self.partitions)

    @property
    def quarantined(self) -> int:
        """Refused ones among them."""
        return sum(one.quarantined for one in self.partitions)

    @property
    def landed_at(self) -> datetime | None:
        """When a position last moved; None: never."""
        return max((one.landed_at for one in self.partitions if one.landed_at is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        """All of it in types that JSON has; times in ISO 8601."""
        fields = asdict(self) | {
            "lag": self.lag,
            "records": self.records,
            "bytes": self.bytes,
            "quarantined": self.quarantined,
            "landed_at": self.landed_at,
        }
        return _plain(fields) | {"partitions": [_plain(asdict(one)) for one in self.partitions]}


class Reset(NamedTuple):
    """A position that a person has set. `trouble`: what it resolved."""

    reset_id: int
    at: datetime
    group: str
    topic: str
    partition: int
    from_topic_id: str | None
    to_topic_id: str
    from_offset: int | None
    to_offset: int
    trouble: str | None
    requested_by: str


# --- positions ------------------------------------------------------------------------------------------------


def stream(connection: Connection, group: str, topic: str) -> Stream | None:
    """What is stored of a topic; None: nothing."""
    row = connection.execute(
        "SELECT topic_id, looked_at, unreachable_since, trouble, trouble_detail, trouble_since, "
        "(SELECT jsonb_object_agg(partition, next_offset) FROM kb.stream_partition p "
        "WHERE p.consumer_group = s.consumer_group AND p.topic = s.topic), "
        "(SELECT max(landed_at) FROM kb.stream_partition p "
        "WHERE p.consumer_group = s.consumer_group AND p.topic = s.topic) "
        "FROM kb.stream s WHERE consumer_group = %s AND topic = %s",
        (group, topic),
    ).fetchone()
    if row is None:
        return None
    topic_id, looked_at, unreachable_since, trouble, detail, since, offsets, landed_at = row
    stored: dict[str, int] = offsets or {}
    positions = {int(partition): offset for partition, offset in stored.items()}
    return Stream(
        group, topic, topic_id, dict(sorted(positions.items())), landed_at, looked_at, unreachable_since,
        trouble, detail, since,
    )  # fmt: skip


def adopt(
    connection: Connection, group: str, topic: str, topic_id: str, positions: Mapping[int, int]
) -> None:
    """Begin to read a topic there. Of several that begin at once the first decides; the others read what is stored."""
    adopted = connection.execute(
        "INSERT INTO kb.stream (consumer_group, topic, topic_id) VALUES (%s, %s, %s) "
        "ON CONFLICT (consumer_group, topic) DO UPDATE SET topic_id = excluded.topic_id "
        "WHERE kb.stream.topic_id IS NULL",
        (group, topic, topic_id),
    ).rowcount
    if adopted:
        add_partitions(connection, group, topic, positions)


def add_partitions(connection: Connection, group: str, topic: str, positions: Mapping[int, int]) -> None:
    """Begin to read further partitions there; those that have a position keep it."""
    connection.execute(
        "INSERT INTO kb.stream_partition (consumer_group, topic, partition, next_offset) "
        "SELECT %s, %s, * FROM unnest(%s::integer[], %s::bigint[]) AS p (partition, next_offset) ORDER BY partition "
        "ON CONFLICT DO NOTHING",
        (group, topic, list(positions), list(positions.values())),
    )


def advance(
    connection: Connection,
    group: str,
    topic: str,
    moves: Mapping[int, Move],
    *,
    topic_id: str | None = None,
) -> None:
    """Move positions on; they are this transaction's until it ends, and who wants the same ones waits.

    `topic_id`: of the topic that the records were read from. Raises Fenced when a position is not where the move starts any
    more, or is one in another topic: nothing may be written then, and the caller rolls back.
    """
    moving = sorted(moves)
    # In one order, or two that share two partitions would wait for each other.
    found = dict(
        connection.execute(
            "SELECT partition, next_offset FROM kb.stream_partition WHERE consumer_group = %s AND topic = %s "
            "AND partition = ANY(%s) ORDER BY partition FOR NO KEY UPDATE",
            (group, topic, moving),
        ).fetchall()
    )
    for partition in moving:
        if found.get(partition) != moves[partition].start:
            raise Fenced(
                f"{topic}, partition {partition}: the position is {found.get(partition)}, not {moves[partition].start} any "
                f"more: another loader of group {group} has gone on, or a person has set it",
            )
    if topic_id is not None:
        _require_topic(connection, group, topic, topic_id)
    chosen = [moves[partition] for partition in moving]
    moved = connection.execute(
        "UPDATE kb.stream_partition p SET next_offset = m.next, records = p.records + m.records, "
        "bytes = p.bytes + m.bytes, quarantined = p.quarantined + m.quarantined, landed_at = clock_timestamp() "
        "FROM unnest(%s::integer[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) "
        "AS m (partition, start, next, records, bytes, quarantined) "
        "WHERE p.consumer_group = %s AND p.topic = %s AND p.partition = m.partition AND p.next_offset = m.start",
        (moving, *([move[at] for move in chosen] for at in range(5)), group, topic),
    ).rowcount
    if moved != len(moving):
        raise Fenced(f"{topic}: {len(moving) - moved} positions have moved meanwhile")


def count_quarantined(connection: Connection, group: str, topic: str, counts: Mapping[int, int]) -> None:
    """More records of these partitions were refused than their moves said."""
    connection.execute(
        "UPDATE kb.stream_partition p SET quarantined = p.quarantined + m.quarantined "
        "FROM unnest(%s::integer[], %s::bigint[]) AS m (partition, quarantined) "
        "WHERE p.consumer_group = %s AND p.topic = %s AND p.partition = m.partition",
        (list(counts), list(counts.values()), group, topic),
    )


def reset(
    connection: Connection, group: str, topic: str, topic_id: str, positions: Mapping[int, int], by: str
) -> None:
    """Set positions because a person says so; it is recorded, and what was in the way is over.

    With another `topic_id` than before, partitions that are not among `positions` have no position any more.
    """
    connection.execute(
        "INSERT INTO kb.stream (consumer_group, topic) VALUES (%s, %s) ON CONFLICT DO NOTHING", (group, topic)
    )
    row = connection.execute(
        "SELECT topic_id, trouble FROM kb.stream WHERE consumer_group = %s AND topic = %s FOR UPDATE",
        (group, topic),
    ).fetchone()
    was_id, trouble = row or (None, None)
    before = dict(
        connection.execute(
            "SELECT partition, next_offset FROM kb.stream_partition WHERE consumer_group = %s AND topic = %s "
            "ORDER BY partition FOR UPDATE",
            (group, topic),
        ).fetchall()
    )
    if was_id != topic_id:
        connection.execute(
            "DELETE FROM kb.stream_partition WHERE consumer_group = %s AND topic = %s AND partition <> ALL(%s)",
            (group, topic, list(positions)),
        )
        connection.execute(
            "UPDATE kb.stream_partition SET low = NULL, high = NULL WHERE consumer_group = %s AND topic = %s",
            (group, topic),
        )
    for partition, offset in sorted(positions.items()):
        connection.execute(
            "INSERT INTO kb.stream_partition (consumer_group, topic, partition, next_offset) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
            (group, topic, partition, offset),
        )
        connection.execute(
            "INSERT INTO kb.stream_reset (consumer_group, topic, partition, from_topic_id, to_topic_id, from_offset, "
            "to_offset, trouble, requested_by) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (group, topic, partition, was_id, topic_id, before.get(partition), offset, trouble, storable(by)),
        )
    connection.execute(
        "UPDATE kb.stream SET topic_id = %s, trouble = NULL, trouble_detail = NULL, trouble_since = NULL "
        "WHERE consumer_group = %s AND topic = %s",
        (topic_id, group, topic),
    )


def resets(connection: Connection, *, limit: int = 100) -> list[Reset]:
    """Positions that people have set, the latest first."""
    rows = connection.execute(
        "SELECT reset_id, at, consumer_group, topic, partition, from_topic_id, to_topic_id, from_offset, to_offset, "
        "trouble, requested_by FROM kb.stream_reset ORDER BY reset_id DESC LIMIT %s",
        (limit,),
    )
    return [Reset(*row) for row in rows]


# --- what was seen of it --------------------------------------------------------------------------------------


def looked(
    connection: Connection, group: str, topic: str, watermarks: Mapping[int, tuple[int, int]], at: datetime
) -> None:
    """Brokers told (low, high) of these partitions; that they did not answer is over."""
    connection.execute(
        "UPDATE kb.stream SET looked_at = greatest(looked_at, %s), unreachable_since = NULL "
        "WHERE consumer_group = %s AND topic = %s",
        (at, group, topic),
    )
    # Who lands a batch at this moment looks by itself; a sensor does not wait for it.
    connection.execute(
        "UPDATE kb.stream_partition p SET low = m.low, high = m.high "
        "FROM unnest(%(partitions)s::integer[], %(low)s::bigint[], %(high)s::bigint[]) AS m (partition, low, high) "
        "WHERE p.consumer_group = %(group)s AND p.topic = %(topic)s AND p.partition = m.partition AND p.partition IN ("
        "SELECT partition FROM kb.stream_partition WHERE consumer_group = %(group)s AND topic = %(topic)s "
        "ORDER BY partition FOR NO KEY UPDATE SKIP LOCKED)",
        {
            "partitions": list(watermarks),
            "low": [mark[0] for mark in watermarks.values()],
            "high": [mark[1] for mark in watermarks.values()],
            "group": group,
            "topic": topic,
        },
    )


def unreachable(connection: Connection, group: str, topic: str, at: datetime) -> None:
    """No broker answered; the first such time stands until one does."""
    connection.execute(
        "UPDATE kb.stream SET unreachable_since = coalesce(unreachable_since, %s) "
        "WHERE consumer_group = %s AND topic = %s",
        (at, group, topic),
    )


def in_trouble(
    connection: Connection, group: str, topic: str, reason: str, detail: str, at: datetime
) -> None:
    """Reading cannot go on. The same reason again keeps its first time."""
    connection.execute(
        "UPDATE kb.stream SET trouble_since = CASE WHEN trouble = %(reason)s THEN trouble_since ELSE %(at)s END, "
        "trouble = %(reason)s, trouble_detail = %(detail)s WHERE consumer_group = %(group)s AND topic = %(topic)s",
        {"reason": reason, "detail": storable(detail), "at": at, "group": group, "topic": topic},
    )


def out_of_trouble(connection: Connection, group: str, topic: str) -> None:
    """Reading goes on after all."""
    connection.execute(
        "UPDATE kb.stream SET trouble = NULL, trouble_detail = NULL, trouble_since = NULL "
        "WHERE consumer_group = %s AND topic = %s",
        (group, topic),
    )


def states(connection: Connection) -> list[StreamState]:
    """Every topic of every group, with its partitions."""
    rows = connection.execute(
        "SELECT consumer_group, topic, topic_id, looked_at, unreachable_since, trouble, trouble_detail, trouble_since, "
        "partition, next_offset, low, high, lag, records, bytes, quarantined, landed_at FROM kb.streams "
        "ORDER BY consumer_group, topic, partition"
    ).fetchall()
    return [
        StreamState(*head, partitions=_partitions(row[8:] for row in group))
        for head, group in groupby(rows, key=lambda row: row[:8])
    ]


def _require_topic(connection: Connection, group: str, topic: str, topic_id: str) -> None:
    """Who sets positions anew waits for ours, which this transaction holds; so this cannot change any more."""
    stored = scalar(
        connection,
        "SELECT topic_id FROM kb.stream WHERE consumer_group = %s AND topic = %s",
        (group, topic),
    )
    if stored != topic_id:
        raise Fenced(f"{topic}: its positions are in the topic with id {stored} now, not {topic_id}")


def _partitions(rows: Iterable[tuple[Any, ...]]) -> tuple[PartitionState, ...]:
    return tuple(PartitionState(*row) for row in rows if row[0] is not None)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
        if name != "partitions"
    }
