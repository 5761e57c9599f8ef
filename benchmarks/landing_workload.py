"""What is produced for `kills_of_landing.py`, and what landing must make of it.

Belongs here: events, poison, and a plain model of the rules of order, written down a second time so that it shares no mistake
with the code under test. Does not belong here: brokers, processes, PostgreSQL.
"""

from __future__ import annotations

import hashlib
import json
import random
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from kb_platform.sources import envelope, release_event
from tests.records import as_bytes, record

REPOSITORIES = 300
POISON_SHARE = 0.01
START = datetime(2025, 1, 1, tzinfo=UTC)
STEP_S = 7

# What happens, and how often. A ghost is deleted before anything else is told of it.
CHANCES = {
    "new": 49, "ghost": 1, "edited": 20, "back": 5, "deleted": 5, "again": 4, "unpublished": 2, "repeated": 8, "late": 6,
}  # fmt: skip
SOUND_HEADERS: tuple[tuple[str, bytes], ...] = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"poison"),
    ("ce_source", b"https://api.github.com/repos/acme/poison"),
    ("ce_type", b"com.github.release.published"),
    ("content-type", b"application/json"),
)

Header = tuple[str, bytes]


class Told(NamedTuple):
    """What an event says of a release, and of which moment. `draft` and `body` are all that changes of one."""

    repository: str
    release_id: int
    body: str
    draft: bool
    deleted: bool
    revised_at: datetime
    event_at: datetime

    @property
    def release(self) -> tuple[str, int]:
        """Of which release."""
        return self.repository, self.release_id

    def says_the_same(self, other: Told) -> bool:
        """Whether both tell the same state of one release."""
        if self.deleted or other.deleted:
            return self.deleted == other.deleted
        return (self.body, self.draft) == (other.body, other.draft)


class Record(NamedTuple):
    """A record to be sent: what it says, or the reason that it is to be refused for."""

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    told: Told | None
    reason: str | None


class Workload:
    """Makes records, always the same ones of one seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._told: dict[tuple[str, int], list[Record]] = {}
        self._releases: list[tuple[str, int]] = []
        self._clock = START
        self._made = 0
        self.kinds: Counter[str] = Counter()

    def next(self) -> Record:
        """The next record that is to be committed."""
        self._made += 1
        if self._chance.random() < POISON_SHARE:
            self.kinds["poison"] += 1
            return self._poison()
        kind = self._chance.choices(list(CHANCES), list(CHANCES.values()))[0] if self._releases else "new"
        self.kinds[kind] += 1
        self._clock += timedelta(seconds=STEP_S)
        if kind in ("new", "ghost"):
            return self._new(is_ghost=kind == "ghost")
        release = self._chance.choice(self._releases)
        records = self._told[release]
        if kind == "repeated":
            return self._chance.choice(records)
        made = self._event(kind, release, [one.told for one in records if one.told])
        records.append(made)
        return made

    def never(self) -> Record:
        """A record for a transaction that is aborted; the log must not have it."""
        self._made += 1
        if self._chance.random() < 0.1:
            return self._poison()
        name = f"acme-{self._chance.randrange(REPOSITORIES)}/tool"
        moment = self._clock + timedelta(seconds=1)
        return self._written(
            Told(name, 10_000_000 + self._made, "never", False, False, moment, moment), "published"
        )

    def _new(self, *, is_ghost: bool) -> Record:
        release = (f"acme-{self._chance.randrange(REPOSITORIES)}/tool", 1 + len(self._releases))
        self._releases.append(release)
        event_at = self._clock + timedelta(seconds=2)
        told = Told(*release, self._body(), False, is_ghost, event_at if is_ghost else self._clock, event_at)
        made = self._written(told, "deleted" if is_ghost else "published")
        self._told[release] = [made]
        return made

    def _event(self, kind: str, release: tuple[str, int], before: Sequence[Told]) -> Record:
        last, at = before[-1], self._clock
        if kind == "late":
            # Behind an event that was, before whatever came after it.
            at = self._chance.choice(before).revised_at + timedelta(seconds=1)
        if kind in ("deleted", "unpublished"):
            body = last.body
        elif kind == "back" or (kind == "late" and self._chance.random() < 0.3):
            body = self._chance.choice(before).body
        else:
            body = self._body()
        deleted = kind == "deleted" or (kind == "late" and self._chance.random() < 0.15)
        event_at = at + timedelta(seconds=2)
        revised_at = event_at if deleted else at
        told = Told(*release, body, kind == "unpublished", deleted, revised_at, event_at)
        action = "deleted" if deleted else "unpublished" if kind == "unpublished" else "edited"
        return self._written(told, action)

    def _written(self, told: Told, action: str) -> Record:
        number = _number(told.repository)
        times = {} if told.deleted else {"updated_at": told.revised_at.isoformat()}
        raw = as_bytes(record(told.release_id, repository=told.repository, body=told.body, **times))
        event = release_event.event(
            raw,
            action=action,
            name=told.repository,
            number=number,
            api_root=release_event.GITHUB_API,
            time=told.event_at,
            event_id=f"event-{self._made}",
        )
        written = envelope.write(event, mode=self._chance.choice(("binary", "structured")))
        key = release_event.key(number=number, name=told.repository)
        return Record(key, written.value, tuple(written.headers), told, None)

    def _body(self) -> str:
        return f"State {self._made}\n\n- the widget turns {self._chance.randrange(100)} times\n"

    def _poison(self) -> Record:
        name = f"acme-{self._chance.randrange(REPOSITORIES)}/tool"
        moment = self._clock
        sound = self._written(Told(name, 1, "poison", False, False, moment, moment), "published")
        data = json.loads(sound.value or b"{}")
        released = dict(data.get("data", data)["release"], body="a\0b")
        choices: list[tuple[str, bytes | None, bytes | None, tuple[Header, ...]]] = [
            ("no-value", sound.key, None, SOUND_HEADERS),
            ("no-value", None, b"", ()),
            # Byte for byte the same at many offsets.
            ("not-json", b"1", b"oops", SOUND_HEADERS),
            ("not-json", sound.key, (sound.value or b"")[:-7], SOUND_HEADERS),
            ("not-utf8", sound.key, b'{"action": "\xff"}', SOUND_HEADERS),
            ("not-an-event", sound.key, b'{"hello": "world"}', ()),
            ("unknown-type", sound.key, b"{}", _with(ce_type=b"com.github.push")),
            ("duplicate-header", sound.key, b"{}", (*SOUND_HEADERS, ("ce_id", b"another"))),
            ("mismatched-event", sound.key, b'{"action": "deleted"}', SOUND_HEADERS),
            ("nul", sound.key, _payload(name, released), SOUND_HEADERS),
        ]
        reason, key, value, headers = self._chance.choice(choices)
        return Record(key, value, headers, None, reason)


# --- what must come of it -------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a record stands."""

    partition: int
    offset: int


@dataclass(order=True)
class _Observation:
    """A row of a release's history. Rows of one moment stand in the order in which they came."""

    at: datetime
    number: int
    told: Told
    place: Place

    @property
    def since(self) -> datetime:
        """When this state began, as far as the log knows."""
        return min(self.at, self.told.revised_at)


@dataclass
class Expected:
    """The tables as they must be; each row as often as it must be there."""

    observations: Counter[Any]
    current: Counter[Any]
    quarantine: Counter[Any]
    letters: Counter[Any]
    records: Counter[Any]
    quarantined: Counter[Any]


def expected(topic: str, committed: Mapping[Place, Record]) -> Expected:
    """What the topic's committed records must come to."""
    events: dict[tuple[str, int], list[tuple[Place, Told]]] = defaultdict(list)
    found = Expected(Counter(), Counter(), Counter(), Counter(), Counter(), Counter())
    for place, item in sorted(committed.items()):
        found.records[place.partition] += 1
        if item.told is not None:
            events[item.told.release].append((place, item.told))
            continue
        found.quarantined[place.partition] += 1
        found.quarantine[*place, item.reason, digest(item.value), 1] += 1
        found.letters[*place, item.reason, digest(item.value)] += 1
    for release, told in events.items():
        if len({place.partition for place, _ in told}) > 1:
            raise SystemExit(f"{release} stands in several partitions: its events have no order")
        rows = history(told)
        for number, row in enumerate(rows):
            origin = f"kafka:{topic}/{row.place.partition}@{row.place.offset}"
            found.observations[*release, number, row.told.body, row.told.draft, row.told.deleted, origin] += 1
        if rows and not rows[-1].told.deleted:
            found.current[*release, rows[-1].told.body, rows[-1].told.draft] += 1
    return found


def history(events: Sequence[tuple[Place, Told]]) -> list[_Observation]:
    """The history of one release whose events came in this order.

    The newest event so far decides the current state. One that comes after it and is older goes into the past, unless the
    release was in that state already, then or before.
    """
    rows: list[_Observation] = []
    newest: tuple[datetime, datetime, int] | None = None
    for number, (place, told) in enumerate(events):
        order = (told.revised_at, told.event_at, place.offset)
        last = rows[-1] if rows else None
        if newest is None or order > newest:
            newest = order
            at = max(told.revised_at, last.at) if last else told.revised_at
            is_known = last is not None and last.told.says_the_same(told)
        else:
            at = min(told.revised_at, rows[-1].at - timedelta(microseconds=1))
            is_known = any(row.told.says_the_same(told) and row.since <= told.revised_at for row in rows)
        if not is_known:
            insort(rows, _Observation(at, number, told, place))
    return rows


def digest(value: bytes | None) -> str:
    """A value in short; a missing one is as an empty one."""
    return hashlib.sha256(value or b"").hexdigest()[:16]


def _number(repository: str) -> int | None:
    """The repository's number; every seventh is known by its name alone."""
    number = 1_000 + int(repository.removeprefix("acme-").partition("/")[0])
    return None if number % 7 == 0 else number


def _with(**headers: bytes) -> tuple[Header, ...]:
    return tuple((name, headers.get(name, value)) for name, value in SOUND_HEADERS)


def _payload(name: str, release: dict[str, Any]) -> bytes:
    url = f"{release_event.GITHUB_API}/repos/{name}"
    told = {"action": "published", "release": release, "repository": {"full_name": name, "url": url}}
    return json.dumps(told).encode()
