"""What events say → the log: a batch over many repositories, in a handful of statements.

An event is a state, and when it began. The newest one of each release is kept as its head, also where it said nothing new; an
older one that comes late is put into the history at its time and is never the present state. What was landed once changes
nothing when it is read again, by whomever. Does not belong here: positions and the fence (`streams`), reading an event
(`sources`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg import Rollback

from kb_platform.errors import NotKnown
from kb_platform.sources.release import Observed
from kb_platform.sources.streamed import Streamed
from kb_platform.store import release_log, streamed_repositories
from kb_platform.store.database import Connection, scalar
from kb_platform.store.release_log import OUR_NUMBERS, Change
from kb_platform.store.streamed_history import Head, History, Key, Known, Last, State, histories, known
from kb_platform.text.versions import version_key

Counted = Change | Literal["late"]
_Place = Literal["newer", "equal", "older", "again"]

_COUNTED: tuple[Counted, ...] = ("new", "edited", "unchanged", "deleted", "reappeared", "late")
_TICK = timedelta(microseconds=1)


@dataclass
class AppendedStreamed:
    """What a batch did: a count of each kind of change, the events that PostgreSQL refused, the repositories spoken of.

    `late`: states that were over when their events came. `unchanged`: also events that were landed before.
    """

    counts: dict[Counted, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    refused: list[tuple[Streamed, str]] = field(default_factory=list[tuple[Streamed, str]])
    repositories: list[str] = field(default_factory=list[str])


def append_streamed(
    connection: Connection, items: Sequence[Streamed], *, now: datetime | None = None
) -> AppendedStreamed:
    """Append what is new in these events, in their order, within the caller's transaction.

    Locks names, then repositories; so it comes after positions and before the quarantine. Raises NotKnown, and has done
    nothing that a rollback does not undo, when one of the repositories is forgotten at this moment: do the same again.
    """
    appended = AppendedStreamed()
    if not items:
        return appended
    ids, renamed = streamed_repositories.resolve(connection, items)
    names = _lock(connection, sorted(set(ids.values())))
    moment = now or scalar(connection, "SELECT clock_timestamp()")
    keyed = [((ids[item.repository], item.release.release_id), item) for item in items]
    before = known(connection, {key for key, _ in keyed})
    overtaken = _overtaken(keyed, before, moment)
    refused: dict[int, str] = {}
    while True:
        past = histories(connection, overtaken, [item.place for key, item in keyed if key in overtaken])
        batch = _Batch(dict(before), past, moment)
        for index, (key, item) in enumerate(keyed):
            if index not in refused:
                batch.take(index, key, item)
        bad = _write(connection, batch)
        if not bad:
            break
        # What follows a refused state is compared anew with what the log has without it.
        refused |= bad
        overtaken = {key for key, _ in keyed}
    appended.counts = batch.counts
    appended.refused = [(items[index], reason) for index, reason in sorted(refused.items())]
    appended.repositories = sorted(names.values(), key=str.lower)
    present = [(key[0], item) for index, (key, item) in enumerate(keyed) if index in batch.present]
    appended.counts["deleted"] += _supersede(connection, present, names, moment)
    streamed_repositories.follow(connection, renamed)
    return appended


class _Batch:
    """Events one after the other, against what is known before them: the rows and heads that they come to."""

    def __init__(self, before: dict[Key, Known], past: Mapping[Key, History], now: datetime) -> None:
        self._known = before
        self._past = past
        self._now = now
        self.counts = AppendedStreamed().counts
        self.rows: list[list[Any]] = []
        self.row_indexes: list[int] = []
        self.heads: dict[Key, Head] = {}
        # Events that are the present state of their release, by their index.
        self.present: set[int] = set()

    def take(self, index: int, key: Key, item: Streamed) -> None:
        """One event."""
        there = self._known.get(key, Known())
        place = _place(item, there.head, self._now)
        if place == "again":
            self.counts["unchanged"] += 1
            return
        behind = _is_behind(item, there.last)
        if place == "newer" and behind:
            # The newest event all the same, though something else told more: it adds nothing when it is read again.
            self._lead(key, item, there, there.last)
        if place != "newer" or behind:
            at = min(item.revised_at, self._now)
            if self._past[key].has(_state(item), item.place, at):
                self.counts["unchanged"] += 1
                return
            if there.last is not None and (place != "equal" or behind):
                self._append("late", index, key, item, min(at, there.last.observed_at - _TICK))
                return
        self._follow(index, key, item, there)

    def _follow(self, index: int, key: Key, item: Streamed, there: Known) -> None:
        last = there.last
        change = _change(item, last)
        moment = min(item.revised_at, self._now)
        if last is not None:
            moment = max(moment, last.observed_at)
        if change == "unchanged":
            self.counts["unchanged"] += 1
        else:
            self._append(change, index, key, item, moment)
            last = Last(item.release.content_hash, item.deleted, moment, item.revised_at, streamed=True)
        self._lead(key, item, there, last)
        if not item.deleted:
            self.present.add(index)

    def _lead(self, key: Key, item: Streamed, there: Known, last: Last | None) -> None:
        head = self.heads[key] = _head(item, there.head, self._now)
        self._known[key] = Known(head, last)

    def _append(self, change: Counted, index: int, key: Key, item: Streamed, moment: datetime) -> None:
        self.counts[change] += 1
        self.rows.append(_row(key[0], item, moment))
        self.row_indexes.append(index)
        if key in self._past:
            self._past[key].add(_state(item), item.place, min(moment, item.revised_at))


def _overtaken(keyed: Sequence[tuple[Key, Streamed]], before: Mapping[Key, Known], now: datetime) -> set[Key]:
    """The releases of which some event is not newer than all that is known before it."""
    found: set[Key] = set()
    heads: dict[Key, Head | None] = {}
    for key, item in keyed:
        there = before.get(key, Known())
        head = heads.get(key, there.head)
        place = _place(item, head, now)
        if place in ("older", "equal") or _is_behind(item, there.last):
            found.add(key)
        if place in ("newer", "equal"):
            heads[key] = _head(item, head, now)
    return found


def _place(item: Streamed, head: Head | None, now: datetime) -> _Place:
    """Where an event stands to the newest one of its release; `again`: it is that one, or was landed before it."""
    if head is None:
        return "newer"
    same_partition = item.topic_id == head.topic_id and item.partition == head.partition
    if same_partition and item.offset == head.offset:
        return "again"
    order = (min(item.revised_at, now), min(item.event_at, now))
    if order < head[:2]:
        return "older"
    if same_partition and item.offset < head.offset:
        was_future = (
            head.future_until is not None and max(item.revised_at, item.event_at) <= head.future_until
        )
        if was_future:
            return "again"
        return "older" if order == head[:2] else "newer"
    return "newer" if order > head[:2] or same_partition else "equal"


def _head(item: Streamed, before: Head | None, now: datetime) -> Head:
    future = [item.revised_at, item.event_at]
    if before is not None and before.future_until is not None:
        future.append(before.future_until)
    latest = max(future)
    return Head(
        min(item.revised_at, now), min(item.event_at, now), item.topic_id, item.partition, item.offset,
        latest if latest > now or (before and before.future_until) else None,
    )  # fmt: skip


def _is_behind(item: Streamed, last: Last | None) -> bool:
    """Whether something else than an event has told a later state: a poll, a file."""
    return last is not None and not last.streamed and item.revised_at < (last.revised_at or last.observed_at)


def _state(item: Streamed) -> State:
    return None if item.deleted else item.release.content_hash


def _change(item: Streamed, last: Last | None) -> Change:
    if item.deleted:
        # Also of what the log never had: an older event may come yet, and must not be the present state.
        return "unchanged" if last is not None and last.deleted else "deleted"
    if last is None:
        return "new"
    if last.deleted:
        return "reappeared"
    return "unchanged" if last.content_hash == item.release.content_hash else "edited"


def _row(repository_id: int, item: Streamed, moment: datetime) -> list[Any]:
    release = item.release
    return [
        repository_id, release.release_id, moment, item.place, release.content_hash, item.deleted, release.tag,
        release.name, release.body, release.created_at, release.published_at, release.prerelease, release.draft,
        release.url, release.author, version_key(release.tag) if item.versioned else None, item.raw,
        item.revised_at,
    ]  # fmt: skip


def _lock(connection: Connection, repository_ids: list[int]) -> dict[int, str]:
    """One writer at a time for each of them, until the transaction ends; their present names."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('kb.repository', repository_id)) "
        "FROM unnest(%s::bigint[]) AS repository_id",
        (repository_ids,),
    )
    names = dict(
        connection.execute(
            "SELECT repository_id, name FROM kb.repository WHERE repository_id = ANY(%s)", (repository_ids,)
        ).fetchall()
    )
    if len(names) < len(repository_ids):
        raise NotKnown("a repository was forgotten while events of it were landed", hint="land them again")
    return names


def _write(connection: Connection, batch: _Batch) -> dict[int, str]:
    """Rows and heads; nothing, and why, where PostgreSQL refuses some of the rows."""
    with connection.transaction() as attempt:
        bad = release_log.copy_observations(connection, batch.rows)
        if bad:
            raise Rollback(attempt)
        _put_heads(connection, batch.heads)
        return {}
    return {batch.row_indexes[at]: reason for at, reason in bad}


def _put_heads(connection: Connection, heads: Mapping[Key, Head]) -> None:
    if not heads:
        return
    columns = list(zip(*((*key, *head) for key, head in heads.items()), strict=True))
    connection.execute(
        'INSERT INTO kb.stream_head (repository_id, release_id, revised_at, event_at, topic_id, partition, "offset", '
        "future_until) SELECT * FROM unnest(%b::bigint[], %b::bigint[], %b::timestamptz[], %b::timestamptz[], %s::text[], "
        "%b::integer[], %b::bigint[], %b::timestamptz[]) ON CONFLICT (repository_id, release_id) DO UPDATE SET "
        "revised_at = excluded.revised_at, event_at = excluded.event_at, topic_id = excluded.topic_id, "
        'partition = excluded.partition, "offset" = excluded."offset", future_until = excluded.future_until',
        [list(column) for column in columns],
    )


def _supersede(
    connection: Connection, present: Sequence[tuple[int, Streamed]], names: Mapping[int, str], now: datetime
) -> int:
    """Releases made from a changelog go where the forge has one of the same version; how many went."""
    rows = connection.execute(
        "SELECT repository_id FROM unnest(%s::bigint[]) AS repository_id WHERE EXISTS (SELECT FROM kb.observation o "
        "WHERE o.repository_id = repository_id.repository_id AND o.release_id >= %s)",
        (sorted({repository_id for repository_id, _ in present}), OUR_NUMBERS),
    ).fetchall()
    gone = 0
    for (repository_id,) in rows:
        observed = [
            Observed(names[repository_id], item.release, item.raw, item.place)
            for one, item in present
            if one == repository_id and item.versioned
        ]
        over = release_log.superseded(connection, repository_id, observed)
        if over:
            gone += release_log.append(connection, names[repository_id], over, at=now).counts["deleted"]
    return gone
