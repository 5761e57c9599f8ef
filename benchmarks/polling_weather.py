"""Does polling miss, forget or keep anything that a forge did, and does it ask where it may not?

    python benchmarks/polling_weather.py [--seeds 1] [--repositories 200] [--polls 31]

Repositories of a stand-in for GitHub are polled on a simulated clock while releases come, come late, are edited, deleted,
re-tagged, hidden by a stale replica and published again, lists move under the walk, repositories are renamed, and requests
are refused (403, 429), answered with errors or cut off. After the last poll the weather ends, each repository is polled
three times more, and the log is held against the truth.

Beside it, in the same weather: a poller as one would write it in an afternoon. It has no ETags, reads a list until it meets
a release that it knows, and waits as it is told when it is refused.

Prints a table; exits 1 when a target is missed: nothing missing, stale or left over, no request inside a forbidden window,
none at once with another, none to another host, and at least 95 % of conditional requests answered by 304.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from kb_platform.store.audit import audit
from kb_platform.store.database import Database
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.schema import migrate
from tests.github_stand_in import StandIn
from tests.github_weather import Rates, Weather
from tests.polled import INTERVAL_S, TOKEN, Season, differences, public, weathered_stand_in
from tests.simulated_clock import SimulatedClock

LEAST_NOT_MODIFIED = 0.95
# A storm in every fifth interval; the pauses that refusals ask for are long, so more would leave few polls.
RATES = Rates(rename=0.001, storm=0.2)
UNSAID_WAIT_S = 60.0
MOST_TRIES = 3
KINDS = ("200", "304", "301", "403", "429", "404", "500", "502", "none")

Release = tuple[str, str, bool, bool]


@dataclass
class Result:
    """What one poller came to in one weather."""

    poller: str
    seed: int
    polls: int
    seconds: float
    differences: Mapping[str, int]
    answers: Counter[str]
    forbidden: int
    missed_targets: list[str] = field(default_factory=list[str])
    steady: float | None = None

    @property
    def requests(self) -> int:
        """All that were sent."""
        return self.answers.total()

    @property
    def paid(self) -> int:
        """Requests that an hour's budget is charged for: "not modified" is free."""
        return self.requests - self.answers["304"]


class NaivePoller:
    """Polls as is usual: the newest page, further only while all of it is news."""

    def __init__(self, stand_in: StandIn, clock: SimulatedClock, names: list[str]) -> None:
        self.names, self.clock = names, clock
        self.base = stand_in.site.api
        self.seen: dict[str, dict[int, Release]] = {name: {} for name in names}
        self.polls = 0
        self.client = httpx2.Client(
            transport=httpx2.MockTransport(stand_in.handle),
            headers={"Authorization": f"Bearer {TOKEN}", "User-Agent": "naive"},
            follow_redirects=True,
        )

    def round(self) -> None:
        """Every repository once."""
        for name in self.names:
            self.polls += 1
            try:
                self._poll(name)
            except (httpx2.HTTPError, ValueError, KeyError, TypeError):
                # The next round will do it.
                continue

    def _poll(self, name: str) -> None:
        known, url = self.seen[name], f"{self.base}/repos/{name}/releases?per_page=100"
        before = set(known)
        while url:
            answer = self._ask(url)
            listed = {
                item["id"]: (item["tag_name"], item["body"] or "", item["prerelease"], item["draft"])
                for item in json.loads(answer.content)
            }
            known.update(listed)
            if before & listed.keys():
                return
            url = answer.links.get("next", {}).get("url", "")

    def _ask(self, url: str) -> httpx2.Response:
        answer = self.client.get(url)
        for _ in range(MOST_TRIES - 1):
            if answer.status_code not in (403, 429):
                break
            self.clock.sleep(self._wait(answer))
            answer = self.client.get(url)
        return answer.raise_for_status()

    def _wait(self, answer: httpx2.Response) -> float:
        said = answer.headers.get("Retry-After", "")
        if said.isdecimal():
            return float(said)
        if said:
            ends = parsedate_to_datetime(said) - parsedate_to_datetime(answer.headers["Date"])
            return max(ends.total_seconds(), 1.0)
        if answer.headers.get("X-RateLimit-Remaining") == "0":
            return max(float(answer.headers["X-RateLimit-Reset"]) - self.clock.now().timestamp(), 1.0)
        return UNSAID_WAIT_S


def ours(database: Database, *, seed: int, repositories: int, polls: int) -> Result:
    """A season with kb-platform's lane."""
    with closing(Season(database, seed=seed, repositories=repositories, rates=RATES)) as season:
        begun = time.perf_counter()
        season.polls(polls)
        season.settle()
        seconds = time.perf_counter() - begun
        turns = [
            one for one in season.watching.attempts if one.outcome in ("changed", "unchanged", "partial")
        ]
        steady = [one for one in season.stand_in.log if one.conditional and one.status in (200, 304)]
        result = Result(
            "kb-platform", seed, len(turns), seconds, season.differences(), answers(season.stand_in),
            len(season.stand_in.forbidden_requests()),
        )  # fmt: skip
        result.steady = sum(one.status == 304 for one in steady) / max(len(steady), 1)
        wrong = dict(result.differences) | season.faults()
        with database.snapshot() as connection:
            wrong["broken rules"] = len(audit(connection))
        result.missed_targets = [f"{count} {what}" for what, count in wrong.items() if count]
        if result.steady < LEAST_NOT_MODIFIED:
            result.missed_targets.append(f"only {result.steady:.1%} answered by 304")
    return result


def naive(*, seed: int, repositories: int, polls: int) -> Result:
    """The same weather, polled as often in the usual way."""
    clock = SimulatedClock()
    stand_in, numbers = weathered_stand_in(clock, seed, repositories)
    weather = Weather(stand_in, seed, numbers, RATES)
    poller = NaivePoller(stand_in, clock, [stand_in.find(number).name for number in numbers])
    begun = time.perf_counter()
    with closing(poller.client):
        for _ in range(polls):
            weather.step()
            ends = clock.now().timestamp() + INTERVAL_S
            poller.round()
            clock.advance(max(ends - clock.now().timestamp(), 0.0))
        weather.calm()
        clock.advance(4 * 3600)
        for _ in range(4):
            poller.round()
            clock.advance(INTERVAL_S)
    seconds = time.perf_counter() - begun
    found = Counter[str]()
    for name, number in zip(poller.names, numbers, strict=True):
        found.update(differences(poller.seen[name], public(stand_in, number)))
    return Result(
        "naive", seed, poller.polls, seconds, found, answers(stand_in), len(stand_in.forbidden_requests())
    )


def answers(stand_in: StandIn) -> Counter[str]:
    """Requests by answer; `none`: none came."""
    found = Counter[str]()
    for (_, status), count in stand_in.statuses.items():
        found[str(status) if status else "none"] += count
    return found


def show_heading() -> None:
    """The columns of `show`."""
    kinds = "".join(f"{kind:>7}" for kind in KINDS)
    print(f"{'':12} {'seed':>4} {'polls':>7} {'requests':>8} {'paid':>7}{kinds} {'missing':>8} {'stale':>6} {'ghosts':>7} "
          f"{'forbidden':>9} {'304':>7} {'s':>6} {'ms a poll':>9}")  # fmt: skip


def show(one: Result) -> Result:
    """A line of the table."""
    counts = "".join(f"{one.answers[kind]:>7,}" for kind in KINDS)
    steady = "" if one.steady is None else f"{one.steady:.1%}"
    print(f"{one.poller:12} {one.seed:>4} {one.polls:>7,} {one.requests:>8,} {one.paid:>7,}{counts} "
          f"{one.differences['missing']:>8,} {one.differences['stale']:>6,} {one.differences['ghosts']:>7,} "
          f"{one.forbidden:>9,} {steady:>7} {one.seconds:>6.1f} {1000 * one.seconds / max(one.polls, 1):>9.1f}", flush=True)  # fmt: skip
    return one


def show_comparison(results: list[Result]) -> None:
    """Both pollers side by side, and what missed its target."""
    mine = [one for one in results if one.steady is not None]
    theirs = [one for one in results if one.steady is None]
    ratio = sum(one.paid for one in theirs) / max(sum(one.paid for one in mine), 1)
    lost = Counter[str]()
    for one in theirs:
        lost.update(one.differences)
    print(f"\nthe naive poller pays {ratio:.1f} times as many requests, and in the end {lost['missing']:,} releases are "
          f"missing, {lost['stale']:,} stale and {lost['ghosts']:,} ghosts")  # fmt: skip
    for one in mine:
        for missed in one.missed_targets:
            print(f"seed {one.seed}: {missed}")


@contextmanager
def database_server() -> Generator[EmbeddedServer]:
    """A PostgreSQL of its own, which goes afterwards."""
    home = Path(tempfile.mkdtemp(prefix="kbw-"))
    server = EmbeddedServer(home)
    try:
        server.start()
        yield server
    finally:
        server.leave()
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--repositories", type=int, default=200)
    parser.add_argument("--polls", type=int, default=31)
    given = parser.parse_args()
    # A storm has a warning for every poll that it meets.
    logging.getLogger("kb").setLevel(logging.ERROR)
    size = {"repositories": given.repositories, "polls": given.polls}
    results: list[Result] = []
    show_heading()
    for seed in range(1, given.seeds + 1):
        with database_server() as server, closing(Database(server.url())) as database:
            migrate(database)
            results.append(show(ours(database, seed=seed, **size)))
        results.append(show(naive(seed=seed, **size)))
    show_comparison(results)
    return 1 if any(result.missed_targets for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
