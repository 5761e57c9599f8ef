"""Polling a stand-in for GitHub on a simulated clock, and holding the log against the truth."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import httpx2
from pydantic import SecretStr

from kb_platform.settings import Settings
from kb_platform.sources.github import GitHub, github_from_settings
from kb_platform.stages.polling import PAGES_A_TURN
from kb_platform.stages.polling_lane import Attempt, Lane
from kb_platform.store import release_log, watch_list
from kb_platform.store.database import Database
from tests.github_stand_in import StandIn
from tests.github_weather import Rates, Weather
from tests.simulated_clock import SimulatedClock

TOKEN = "ghp_tokenofthestandin"
INTERVAL_S = 300

# number → (tag, body, pre-release, draft)
Releases = Mapping[int, tuple[str, str, bool, bool]]


class Watching:
    """A knowledge base that polls a stand-in, on one clock."""

    def __init__(
        self,
        database: Database,
        stand_in: StandIn,
        clock: SimulatedClock,
        *,
        tokens: Sequence[str] = (TOKEN,),
        interval_s: float = INTERVAL_S,
        seed: int = 1,
        pages_a_turn: int = PAGES_A_TURN,
        **settings: Any,
    ) -> None:
        self.database, self.stand_in, self.clock = database, stand_in, clock
        self.settings = Settings(
            github_api_url=stand_in.site.api,
            github_token=SecretStr(",".join(tokens)) if tokens else None,
            poll_interval_s=interval_s,
            **settings,
        )
        self.attempts: list[Attempt] = []
        self.attempted_at: list[datetime] = []
        self.forge: GitHub = github_from_settings(
            self.settings, clock, transport=httpx2.MockTransport(stand_in.handle)
        )
        self.lane = Lane(
            database, self.forge, self.settings, clock, tell=self._told, jitter=random.Random(seed),
            pages_a_turn=pages_a_turn,
        )  # fmt: skip

    def _told(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        self.attempted_at.append(self.clock.now())

    def close(self) -> None:
        """Close all connections."""
        self.lane.close()
        self.forge.close()

    def watch(self, *names: str) -> None:
        """Put repositories on the watch list."""
        with self.database.transaction() as connection:
            for name in names:
                watch_list.add(connection, name, at=self.clock.now())

    def poll(self, name: str) -> Attempt:
        """One turn of one repository, due or not."""
        with self.database.snapshot() as connection:
            watch = watch_list.find(connection, name)
        return self.lane.poll(watch)

    def poll_due(self, until: datetime | None = None) -> int:
        """Turns until nobody is due before `until` (now by default); the clock goes on while limits are waited for."""
        until = until or self.clock.now()
        turns = 0
        while True:
            idle_until = self.lane.step()
            if idle_until is None:
                turns += 1
            elif idle_until > until:
                return turns
            else:
                self.clock.sleep(max((idle_until - self.clock.now()).total_seconds(), 0.0))

    def run_for(self, seconds: float) -> int:
        """Turns for so long, by the simulated clock; the time that requests take is not counted."""
        ends = self.clock.now() + timedelta(seconds=seconds)
        turns = 0
        while self.clock.now() < ends:
            idle_until = self.lane.step()
            if idle_until is None:
                turns += 1
                continue
            self.clock.sleep(max((min(idle_until, ends) - self.clock.now()).total_seconds(), 0.001))
        return turns

    def log(self, name: str) -> dict[int, tuple[str, str, bool, bool]]:
        """What the log has now of a repository: number → (tag, body, pre-release, draft)."""
        with self.database.snapshot() as connection:
            repository_id = watch_list.find(connection, name).repository_id
            return {
                stored.release.release_id: (
                    stored.release.tag, stored.release.body, stored.release.prerelease, stored.release.draft,
                )
                for stored in release_log.current_releases(connection, repository_id)
            }  # fmt: skip

    def truth(self, number: int) -> dict[int, tuple[str, str, bool, bool]]:
        """What GitHub shows the public of a repository, in the same form."""
        return public(self.stand_in, number)


class Season:
    """Repositories of many sizes, watched over many polls."""

    def __init__(
        self, database: Database, *, seed: int, repositories: int, rates: Rates | None = None
    ) -> None:
        self.clock = SimulatedClock()
        self.stand_in, self.numbers = weathered_stand_in(self.clock, seed, repositories)
        self.names = [self.stand_in.find(number).name for number in self.numbers]
        self.weather = Weather(self.stand_in, seed, self.numbers, rates or Rates())
        self.watching = Watching(database, self.stand_in, self.clock, seed=seed)
        self.watching.watch(*self.names)

    def close(self) -> None:
        self.watching.close()

    def polls(self, count: int) -> None:
        """So many intervals, with what happens in them."""
        for _ in range(count):
            self.weather.step()
            self.watching.run_for(INTERVAL_S)

    def settle(self) -> None:
        """The weather ends; after that each repository is polled three times more, however long limits still hold."""
        self.weather.calm()
        self.clock.advance(4 * 3600)
        for _ in range(3):
            self.watching.poll_due(self.clock.now())
            self.clock.advance(INTERVAL_S)
        self.watching.poll_due(self.clock.now())

    def differences(self) -> Counter[str]:
        """Releases that the log lacks, has differently, or has though they are gone."""
        found = Counter[str](missing=0, stale=0, ghosts=0)
        for number, name in zip(self.numbers, self.names, strict=True):
            found.update(differences(self.watching.log(name), self.watching.truth(number)))
        return found

    def faults(self) -> dict[str, int]:
        """Requests that must not have been sent."""
        return {
            "forbidden": len(self.stand_in.forbidden_requests()),
            "at once": sum(request.overlapping for request in self.stand_in.log),
            "astray": len(self.stand_in.strays),
        }


def weathered_stand_in(clock: SimulatedClock, seed: int, repositories: int) -> tuple[StandIn, list[int]]:
    """A stand-in with repositories of many sizes, and their numbers."""
    stand_in = StandIn(clock, seed=seed, skew=seed % 7 - 3)
    sizes = [(7 * n * n) % 140 if n % 10 else 90 + n for n in range(repositories)]
    return stand_in, [stand_in.add_repository(f"acme/tool-{n}", size) for n, size in enumerate(sizes)]


def public(stand_in: StandIn, number: int) -> dict[int, tuple[str, str, bool, bool]]:
    """What a stand-in shows everybody of a repository."""
    return {
        release_id: (
            release["tag_name"], release["body"] or "", release["prerelease"], release["draft"],
        )
        for release_id, release in stand_in.truth(number).items()
        if not release["draft"]
    }  # fmt: skip


def differences(seen: Releases, truth: Releases) -> dict[str, int]:
    """How many releases somebody lacks, has differently, or has though they are gone."""
    return {
        "missing": len(truth.keys() - seen.keys()),
        "stale": sum(seen[key] != truth[key] for key in seen.keys() & truth.keys()),
        "ghosts": len(seen.keys() - truth.keys()),
    }
