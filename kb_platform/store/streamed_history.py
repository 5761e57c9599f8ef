"""What the log knows of the releases that a batch of events speaks of: their newest events, their present states, and, for
events that come late, what was in the log at some time.

Reads only; deciding what an event changes is `streamed_log`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from kb_platform.store.database import Connection

# (repository id, release id)
Key = tuple[int, int]
# A release's content, or None: it was deleted.
State = bytes | None
LARGEST_ID = 2**63 - 1


class Head(NamedTuple):
    """The newest event of a release. `future_until`: the latest time, of those after the clock, that was taken for "now"."""

    revised_at: datetime
    event_at: datetime
    topic_id: str
    partition: int
    offset: int
    future_until: datetime | None


class Last(NamedTuple):
    """The last observation of a release. `streamed`: an event made it."""

    content_hash: bytes
    deleted: bool
    observed_at: datetime
    revised_at: datetime | None
    streamed: bool

    @property
    def state(self) -> State:
        """What it says."""
        return None if self.deleted else self.content_hash


class Known(NamedTuple):
    """What is known of a release before an event."""

    head: Head | None = None
    last: Last | None = None


@dataclass
class History:
    """Since when the log has each state of a release, and the places of events that made it."""

    since: dict[State, datetime] = field(default_factory=dict[State, datetime])
    places: dict[State, set[str]] = field(default_factory=dict[State, set[str]])

    def has(self, state: State, place: str, at: datetime) -> bool:
        """Whether the log has had this state up to that time, or from this very event.

        The answer is the same for ever after: an event that added nothing once adds nothing when it is read again.
        """
        since = self.since.get(state)
        return (since is not None and since <= at) or place in self.places.get(state, ())

    def add(self, state: State, place: str, since: datetime) -> None:
        """The log gets this state."""
        self.since[state] = min(since, self.since.get(state, since))
        self.places.setdefault(state, set()).add(place)


_KNOWN = """
    SELECT k.repository_id, k.release_id,
           h.revised_at, h.event_at, h.topic_id, h.partition, h."offset", h.future_until,
           o.content_hash, o.deleted, o.observed_at, o.revised_at, o.streamed
    FROM unnest(%b::bigint[], %b::bigint[]) AS k (repository_id, release_id)
    LEFT JOIN LATERAL (
        SELECT * FROM kb.stream_head h WHERE h.repository_id = k.repository_id AND h.release_id = k.release_id LIMIT 1
    ) h ON true
    LEFT JOIN LATERAL (
        SELECT content_hash, deleted, observed_at, revised_at, starts_with(origin, 'kafka:') AS streamed
        FROM kb.observation o WHERE o.repository_id = k.repository_id AND o.release_id = k.release_id
        ORDER BY o.observed_at DESC, o.sequence DESC LIMIT 1
    ) o ON true
"""
_HISTORIES = """
    SELECT o.repository_id, o.release_id, CASE WHEN NOT o.deleted THEN o.content_hash END,
           min(least(o.observed_at, o.revised_at)), array_agg(o.origin) FILTER (WHERE o.origin = ANY(%b))
    FROM unnest(%b::bigint[], %b::bigint[]) AS k (repository_id, release_id)
    JOIN kb.observation o USING (repository_id, release_id)
    GROUP BY 1, 2, 3
"""


def known(connection: Connection, keys: Collection[Key]) -> dict[Key, Known]:
    """The newest event and the last observation of these releases, those that there are."""
    chosen = [key for key in keys if 0 < key[1] <= LARGEST_ID]
    found: dict[Key, Known] = {}
    for row in connection.execute(_KNOWN, ([key[0] for key in chosen], [key[1] for key in chosen])):
        head = Head(*row[2:8]) if row[2] is not None else None
        last = Last(bytes(row[8]), *row[9:13]) if row[8] is not None else None
        if head is not None or last is not None:
            found[row[0], row[1]] = Known(head, last)
    return found


def histories(
    connection: Connection, keys: Collection[Key], places: Collection[str]
) -> Mapping[Key, History]:
    """What the log has of these releases; of places, only these are looked for."""
    found = {key: History() for key in keys}
    chosen = [key for key in keys if 0 < key[1] <= LARGEST_ID]
    if not chosen:
        return found
    for repository_id, release_id, content_hash, since, origins in connection.execute(
        _HISTORIES, (list(places), [key[0] for key in chosen], [key[1] for key in chosen])
    ):
        state = None if content_hash is None else bytes(content_hash)
        history = found[repository_id, release_id]
        history.since[state] = since
        history.places[state] = set(origins or ())
    return found
