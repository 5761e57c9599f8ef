"""What happens at GitHub while nobody looks: a seeded sequence of events over many repositories.

Belongs here: which event comes when. Does not belong here: what an event does (`github_world`, `github_stand_in`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import NamedTuple

from tests.github_stand_in import StandIn
from tests.github_storms import Kind

# How often each storm is drawn. The two redirects are left out: they are attacks, not weather.
STORMS: dict[Kind, int] = {
    "primary": 1,
    "secondary": 3,
    "secondary-no-retry-after": 2,
    "429": 3,
    "500": 3,
    "502-html": 2,
    "truncated": 2,
    "garbage": 2,
    "slow": 1,
    "reset": 2,
}


@dataclass(frozen=True)
class Rates:
    """Events per repository and step; `reappear` and `publish_draft`: per candidate and step; `storm`: per step.

    With these about 3 % of the repositories change in a step, and a storm comes every tenth.
    """

    insert: float = 0.008
    backport: float = 0.002
    edit: float = 0.006
    delete: float = 0.002
    move_tag: float = 0.001
    flip_prerelease: float = 0.002
    rename: float = 0.0005
    reuse_name: float = 0.0002
    draft: float = 0.001
    hide: float = 0.001
    drift: float = 0.003
    count_downloads: float = 0.002
    reappear: float = 0.05
    publish_draft: float = 0.2
    storm: float = 0.1


class Event(NamedTuple):
    """Something that happened: in which step, what, to which repository and release (None: to none)."""

    step: int
    kind: str
    repository: int | None
    release: int | None = None


@dataclass
class Weather:
    """Events over some repositories of a stand-in; the same seed and the same requests give the same events.

    Drifts happen while somebody walks a list, and are in `events` when they do. A release that a stale replica hides
    is back after one or two steps.
    """

    stand_in: StandIn
    seed: int
    repositories: Sequence[int]
    rates: Rates = field(default_factory=Rates)
    events: list[Event] = field(default_factory=list)
    _step: int = 0
    _withdrawn: list[tuple[int, int]] = field(default_factory=list)
    _drafts: list[tuple[int, int]] = field(default_factory=list)
    _hidden: list[tuple[int, int]] = field(default_factory=list)
    _left_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.seed}: weather")

    def step(self) -> list[Event]:
        """As much as happens between two polls; returns what happened at once (drifts and storms come later)."""
        self._step += 1
        before = len(self.events)
        self._clear_replicas()
        self._return_some()
        events: dict[str, Callable[[int], None]] = {
            "insert": self._insert,
            "backport": self._backport,
            "edit": self._edit,
            "delete": self._delete,
            "move_tag": self._move_tag,
            "flip_prerelease": self._flip_prerelease,
            "rename": self._rename,
            "reuse_name": self._reuse_name,
            "draft": self._draft,
            "hide": self._hide,
            "drift": self._drift,
            "count_downloads": self._count_downloads,
        }
        rates = asdict(self.rates)
        for kind, happen in events.items():
            for _ in range(self._count(rates[kind] * len(self.repositories))):
                happen(self._chance.choice(self.repositories))
        for _ in range(self._count(self.rates.storm)):
            self._storm()
        return self.events[before:]

    def calm(self) -> None:
        """Nothing more happens by itself: storms end, replicas catch up, drifts that waited are called off."""
        self.stand_in.calm()
        while self._hidden:
            self._clear_replicas()
        for number in self.repositories:
            self.stand_in.find(number).drifts.clear()

    def _count(self, expected: float) -> int:
        """How many events: so many on average, and hardly more or fewer at once."""
        return int(expected) + (self._chance.random() < expected % 1)

    def _note(self, kind: str, repository: int | None, release: int | None = None) -> None:
        self.events.append(Event(self._step, kind, repository, release))

    def _some_release(self, repository: int) -> int | None:
        """A release that the public can see: now and then an old one, else one of the newest."""
        listed = self.stand_in.find(repository).listed(drafts=False)
        if not listed:
            return None
        among = listed if self._chance.random() < 0.5 else listed[:5]
        return self._chance.choice(among).number

    def _insert(self, repository: int) -> None:
        made = self.stand_in.publish(repository, prerelease=self._chance.random() < 0.2)
        self._note("insert", repository, made["id"])

    def _backport(self, repository: int) -> None:
        past = self.stand_in.clock.now() - timedelta(days=self._chance.randint(1, 900))
        made = self.stand_in.publish(repository, created_at=past)
        self._note("backport", repository, made["id"])

    def _edit(self, repository: int) -> None:
        release = self._some_release(repository)
        if release is not None:
            self.stand_in.edit(repository, release, body=self.stand_in.find(repository).inventor.notes())
            self._note("edit", repository, release)

    def _delete(self, repository: int) -> None:
        release = self._some_release(repository)
        if release is not None:
            self.stand_in.delete(repository, release)
            self._withdrawn.append((repository, release))
            self._note("delete", repository, release)

    def _move_tag(self, repository: int) -> None:
        release = self._some_release(repository)
        if release is not None:
            self.stand_in.move_tag(repository, release, f"moved-{self._step}-{release}")
            self._note("move_tag", repository, release)

    def _flip_prerelease(self, repository: int) -> None:
        release = self._some_release(repository)
        if release is not None:
            self.stand_in.flip_prerelease(repository, release)
            self._note("flip_prerelease", repository, release)

    def _rename(self, repository: int) -> None:
        old = self.stand_in.find(repository).name
        owner = old.split("/")[0]
        self.stand_in.rename(repository, f"{owner}/renamed-{repository}-{self._step}")
        self._left_names.append(old)
        self._note("rename", repository)

    def _reuse_name(self, _: int) -> None:
        """A stranger takes a name that was left; the stranger is not one of our repositories."""
        if self._left_names:
            name = self._left_names.pop(self._chance.randrange(len(self._left_names)))
            self._note("reuse_name", self.stand_in.reuse_name(name, releases=3))

    def _draft(self, repository: int) -> None:
        made = self.stand_in.publish(repository, draft=True)
        self._drafts.append((repository, made["id"]))
        self._note("draft", repository, made["id"])

    def _hide(self, repository: int) -> None:
        release = self._some_release(repository)
        if release is not None:
            self.stand_in.hide(repository, release)
            self._hidden.append((repository, release))
            self._note("hide", repository, release)

    def _count_downloads(self, repository: int) -> None:
        release = self._some_release(repository)
        if release is not None:
            self.stand_in.count_downloads(repository, release)
            self._note("count_downloads", repository, release)

    def _drift(self, repository: int) -> None:
        """The list moves under somebody who walks it: a page gains a release, or loses one."""
        happen = self._insert if self._chance.random() < 0.5 else self._delete
        pages = -(-len(self.stand_in.find(repository).listed(drafts=False)) // 100)
        self.stand_in.drift(repository, self._chance.randint(1, max(pages, 1)), lambda: happen(repository))

    def _clear_replicas(self) -> None:
        waiting, self._hidden = self._hidden, []
        for repository, release in waiting:
            if release not in self.stand_in.find(repository).releases:
                continue
            if self._chance.random() < 0.3:
                self._hidden.append((repository, release))
                continue
            self.stand_in.hide(repository, release, hidden=False)
            self._note("show", repository, release)

    def _return_some(self) -> None:
        for pair in [pair for pair in self._withdrawn if self._chance.random() < self.rates.reappear]:
            self._withdrawn.remove(pair)
            self.stand_in.restore(*pair)
            self._note("reappear", *pair)
        for pair in [pair for pair in self._drafts if self._chance.random() < self.rates.publish_draft]:
            self._drafts.remove(pair)
            self.stand_in.edit(*pair, draft=False)
            self._note("publish_draft", *pair)

    def _storm(self) -> None:
        kind = self._chance.choices(list(STORMS), weights=list(STORMS.values()))[0]
        if kind == "slow":
            self.stand_in.storm(
                kind, requests=self._chance.randint(1, 3), delay=self._chance.choice((4.0, 90.0))
            )
        elif kind == "primary":
            self.stand_in.storm(kind, requests=1, seconds=float(self._chance.randint(30, 900)))
        elif self._chance.random() < 0.5:
            self.stand_in.storm(kind, requests=self._chance.randint(1, 12), wait=self._wait())
        else:
            self.stand_in.storm(kind, seconds=float(self._chance.randint(5, 120)), wait=self._wait())
        self._note(f"storm: {kind}", None)

    def _wait(self) -> float:
        return float(self._chance.choice((5, 30, 60, 120)))
