"""A watch list as somebody wants it against the one that there is: the difference, and making it so.

Does not belong here: how a list is written down (`sources.watch_file`), and polling it (`polling_session`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from kb_platform.errors import SourceError
from kb_platform.sources.watch_file import Wanted
from kb_platform.store import watch_list
from kb_platform.store.database import Database
from kb_platform.store.repositories import present_names
from kb_platform.store.watch_list import Watch


@dataclass(frozen=True)
class Plan:
    """What it takes to get from one list to another, each part by name. `changed`: (as it is, as it is wanted)."""

    added: tuple[Wanted, ...] = ()
    changed: tuple[tuple[Watch, Wanted], ...] = ()
    removed: tuple[Watch, ...] = ()
    unchanged: tuple[Watch, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether the list is as it is wanted."""
        return not (self.added or self.changed or self.removed)


def plan(current: Sequence[Watch], desired: Sequence[Wanted]) -> Plan:
    """The difference. Names are compared without regard to case; `desired` names repositories as they are called now."""
    wanted = {item.repository.lower(): item for item in desired}
    there = {watch.name.lower(): watch for watch in current}
    both = [(there[name], wanted[name]) for name in sorted(there.keys() & wanted.keys())]
    return Plan(
        added=tuple(wanted[name] for name in sorted(wanted.keys() - there.keys())),
        changed=tuple((watch, item) for watch, item in both if not is_like(watch, item)),
        removed=tuple(there[name] for name in sorted(there.keys() - wanted.keys())),
        unchanged=tuple(watch for watch, item in both if is_like(watch, item)),
    )


def is_like(watch: Watch, wanted: Wanted) -> bool:
    """Whether a repository is watched as somebody wants it."""
    return (watch.source, watch.api_url, watch.every_s, watch.stale_after_s) == (
        wanted.source, wanted.api_url, wanted.every_s, wanted.stale_after_s,
    )  # fmt: skip


def plan_for(database: Database, desired: Sequence[Wanted]) -> Plan:
    """The difference to what is watched now. A repository that was renamed may be wanted by the name that it had.

    Raises SourceError where two names of `desired` are one repository's.
    """
    with database.snapshot() as connection:
        current = watch_list.watched(connection)
        present = present_names(connection)
    return plan(current, _as_called_now(desired, present))


def apply(database: Database, plan: Plan, at: datetime) -> None:
    """Make it so, all of it or nothing; what is removed keeps its data. Doing it twice changes nothing more.

    Raises StoreError where a repository is known from another forge.
    """
    with database.transaction() as connection:
        for watch in plan.removed:
            watch_list.remove(connection, watch.repository_id)
        for item in (*plan.added, *(wanted for _, wanted in plan.changed)):
            watch_list.add(
                connection, item.repository, source=item.source, api_url=item.api_url, every_s=item.every_s,
                stale_after_s=item.stale_after_s, at=at,
            )  # fmt: skip


def _as_called_now(desired: Sequence[Wanted], present: Mapping[str, str]) -> list[Wanted]:
    found: dict[str, Wanted] = {}
    asked: dict[str, str] = {}
    for item in desired:
        name = present.get(item.repository.lower(), item.repository)
        if name.lower() in found:
            raise SourceError(
                f"{asked[name.lower()]} and {item.repository} are the same repository, which was renamed to {name}",
                hint="keep the new name only",
            )
        found[name.lower()] = replace(item, repository=name)
        asked[name.lower()] = item.repository
    return list(found.values())
