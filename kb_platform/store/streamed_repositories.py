"""From the repositories that events name to rows of the knowledge base: known ones found, others made, some renamed.

A number says which repository it is, whatever its name; a name alone finds the repository that has or had it. Works on a whole
batch at once. Does not belong here: what polling learns of names and numbers (`repositories`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from kb_platform.errors import NotKnown
from kb_platform.sources.streamed import Origin, Streamed
from kb_platform.store import quarantine
from kb_platform.store.database import Connection, scalar
from kb_platform.store.repositories import lock_names

# What `repository_name` takes for the part behind the slash.
_LONGEST_PART = 100
# Others make repositories too: what was free may be taken when it is to be written.
_MOST_TRIES = 5

_ROW = """
    SELECT r.repository_id, r.name, r.forge, r.external_id, r.named_at,
           EXISTS (SELECT FROM kb.watch w WHERE w.repository_id = r.repository_id)
    FROM kb.repository r
"""
_KNOWN = f"""{_ROW} WHERE r.repository_id IN (
    SELECT n.repository_id FROM kb.repository n
    JOIN unnest(%(forges)s::text[], %(numbers)s::bigint[]) AS wanted (forge, external_id) USING (forge, external_id)
    UNION ALL SELECT n.repository_id FROM kb.repository n WHERE lower(n.name) = ANY(%(names)s)
    UNION ALL SELECT f.repository_id FROM kb.former_name f WHERE lower(f.former_name) = ANY(%(names)s))
"""
_FORMER = "SELECT lower(former_name), repository_id FROM kb.former_name WHERE lower(former_name) = ANY(%s)"


class _Told(NamedTuple):
    """An origin, and when an event last spoke of it."""

    origin: Origin
    at: datetime


@dataclass(eq=False)
class _Repository:
    """A row as it is to be; `repository_id` None: it is to be made. `was`: the name that it has."""

    repository_id: int | None
    name: str
    forge: str
    number: int | None
    named_at: datetime | None
    is_watched: bool
    was: str = ""

    def __post_init__(self) -> None:
        self.was = self.name


@dataclass
class _Plan:
    """The rows of a batch's repositories by origin, and which of them are to be made or changed, in an order that works."""

    found: dict[Origin, _Repository] = field(default_factory=dict[Origin, _Repository])
    made: list[_Repository] = field(default_factory=list[_Repository])
    changed: list[_Repository] = field(default_factory=list[_Repository])

    def change(self, one: _Repository) -> None:
        """What is made is written as it is at the end; of changes, the last ones come last: they may need a name set free."""
        if one.repository_id is not None:
            if one in self.changed:
                self.changed.remove(one)
            self.changed.append(one)


def resolve(
    connection: Connection, items: Sequence[Streamed]
) -> tuple[dict[Origin, int], list[tuple[str, str]]]:
    """The id of each event's repository, made where there is none; and (former, present) names of those that were renamed.

    To be called before any repository is locked. Raises NotKnown when some are made and forgotten all the while.
    """
    told = _told(items)
    plan = _Directory(connection, told).plan(told)
    renamed: list[tuple[str, str]] = []
    for _ in range(_MOST_TRIES):
        if not plan.made and not plan.changed:
            return {origin: one.repository_id or 0 for origin, one in plan.found.items()}, renamed
        lock_names(connection)
        # What was read before the lock was another's to change.
        plan = _Directory(connection, told).plan(told)
        _change(connection, plan.changed)
        renamed += [(one.was, one.name) for one in plan.changed if one.was != one.name]
        _make(connection, plan.made)
        plan = _Directory(connection, told).plan(told)
    raise NotKnown(
        "repositories of these events were forgotten while they were looked up", hint="do the same again"
    )


def follow(connection: Connection, renamed: Sequence[tuple[str, str]]) -> None:
    """Refused records know their repository by its name alone. Waits for who writes to the quarantine."""
    if renamed:
        quarantine.lock(connection)
    for former, present in renamed:
        connection.execute(
            "UPDATE kb.quarantined_record SET repository = %s WHERE lower(repository) = lower(%s)",
            (present, former),
        )


def _told(items: Iterable[Streamed]) -> list[_Told]:
    told: dict[Origin, datetime] = {}
    for item in items:
        known = told.get(item.repository)
        if known is None or item.event_at > known:
            told[item.repository] = item.event_at
    return sorted((_Told(origin, at) for origin, at in told.items()), key=lambda one: one.at)


class _Directory:
    """The repositories that a batch could mean, by number and by name, and after it."""

    def __init__(self, connection: Connection, told: Sequence[_Told]) -> None:
        self._connection = connection
        self._by_number: dict[tuple[str, int], _Repository] = {}
        self._by_name: dict[str, _Repository | None] = {}
        self._by_former: dict[str, _Repository] = {}
        numbered = {(one.origin.forge, one.origin.number) for one in told if one.origin.number is not None}
        names = sorted({one.origin.name.lower() for one in told})
        # A name that is looked up and not found is free.
        self._by_name.update(dict.fromkeys(names))
        by_id: dict[int, _Repository] = {}
        for row in connection.execute(
            _KNOWN,
            {
                "forges": [forge for forge, _ in numbered],
                "numbers": [one for _, one in numbered],
                "names": names,
            },
        ):
            by_id[row[0]] = _Repository(*row)
            self._keep(by_id[row[0]])
        for former, repository_id in connection.execute(_FORMER, (names,)):
            if repository_id in by_id:
                self._by_former[former] = by_id[repository_id]

    def plan(self, told: Sequence[_Told]) -> _Plan:
        """Which repository each origin is."""
        plan = _Plan()
        for origin, at in told:
            one = self._find(origin)
            if one is None:
                one = _Repository(
                    None, self._free_name(origin), origin.forge, origin.number, at, is_watched=False
                )
                self._keep(one)
                plan.made.append(one)
            elif origin.number is not None:
                self._learn_number(plan, one, origin.number)
                self._learn_name(plan, one, origin, at)
            plan.found[origin] = one
        return plan

    def _find(self, origin: Origin) -> _Repository | None:
        if origin.number is not None:
            known = self._by_number.get((origin.forge, origin.number))
            if known is not None:
                return known
            named = self._holder(origin.name)
            return named if named and named.forge == origin.forge and named.number is None else None
        for name in _names(origin):
            named = self._holder(name) or self._by_former.get(name.lower())
            if named is None or named.forge == origin.forge:
                return named
        return None

    def _learn_number(self, plan: _Plan, one: _Repository, number: int) -> None:
        if one.number is None:
            one.number = number
            self._keep(one)
            plan.change(one)

    def _learn_name(self, plan: _Plan, one: _Repository, origin: Origin, at: datetime) -> None:
        if one.name == origin.name or one.is_watched or not self._is_news(one, at):
            return
        name = self._free_name(origin, one)
        if name == one.name:
            return
        self._by_name[one.name.lower()] = None
        one.name, one.named_at = name, at
        self._keep(one)
        plan.change(one)

    def _is_news(self, one: _Repository, at: datetime) -> bool:
        """Whether no event so far spoke of the repository as late as that: each that did has named it."""
        if one.named_at is not None and at <= one.named_at:
            return False
        last = one.repository_id and scalar(
            self._connection,
            "SELECT max(event_at) FROM kb.stream_head WHERE repository_id = %s",
            (one.repository_id,),
        )
        return not last or at > last

    def _free_name(self, origin: Origin, for_one: _Repository | None = None) -> str:
        return next(name for name in _names(origin) if self._holder(name) in (None, for_one))

    def _holder(self, name: str) -> _Repository | None:
        key = name.lower()
        if key not in self._by_name:
            row = self._connection.execute(f"{_ROW} WHERE lower(r.name) = %s", (key,)).fetchone()
            self._by_name[key] = _Repository(*row) if row else None
        return self._by_name[key]

    def _keep(self, one: _Repository) -> None:
        self._by_name[one.name.lower()] = one
        if one.number is not None:
            self._by_number[one.forge, one.number] = one


def _names(origin: Origin) -> Generator[str]:
    """What a repository may be called, best first: its name, or that with what tells it from the holder of the name."""
    yield origin.name
    told_by = origin.forge if origin.number is None else f"{origin.forge} {origin.number}"
    digest = hashlib.sha256(told_by.encode()).hexdigest()
    if origin.number is not None:
        yield _with_suffix(origin.name, f".{origin.number}")
    yield _with_suffix(origin.name, f".{digest[:6]}")
    for count in itertools.count(2):
        yield _with_suffix(origin.name, f".{digest[:12]}-{count}")


def _with_suffix(name: str, suffix: str) -> str:
    owner, _, part = name.partition("/")
    return f"{owner}/{part[: _LONGEST_PART - len(suffix)].rstrip('.')}{suffix}"


def _make(connection: Connection, made: Sequence[_Repository]) -> None:
    if not made:
        return
    # Imports make repositories without the lock on names, one at a time; in one order, two of us cannot wait in a circle.
    connection.execute(
        "INSERT INTO kb.repository (name, forge, external_id, named_at) SELECT name, forge, external_id, named_at "
        "FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::timestamptz[]) AS made (name, forge, external_id, named_at) "
        "ORDER BY lower(name) ON CONFLICT DO NOTHING",
        (
            [one.name for one in made],
            [one.forge for one in made],
            [one.number for one in made],
            [one.named_at for one in made],
        ),
    )
    _take_names(connection, [one.name for one in made])


def _change(connection: Connection, changed: Sequence[_Repository]) -> None:
    for one in changed:
        connection.execute(
            "UPDATE kb.repository SET name = %s, external_id = %s, named_at = %s WHERE repository_id = %s",
            (one.name, one.number, one.named_at, one.repository_id),
        )
        if one.was.lower() != one.name.lower():
            _take_names(connection, [one.name])
            connection.execute(
                "INSERT INTO kb.former_name (former_name, repository_id) VALUES (%s, %s) "
                "ON CONFLICT (lower(former_name)) DO UPDATE SET repository_id = excluded.repository_id, "
                "renamed_at = excluded.renamed_at",
                (one.was, one.repository_id),
            )


def _take_names(connection: Connection, names: Sequence[str]) -> None:
    """Who has a name now is found by it, and not who had it."""
    connection.execute(
        "DELETE FROM kb.former_name WHERE lower(former_name) = ANY(%s)", ([name.lower() for name in names],)
    )
