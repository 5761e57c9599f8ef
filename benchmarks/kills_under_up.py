"""Does what `kb up` keeps fresh survive `kill -9` of its parts, at any moment?

    python benchmarks/kills_under_up.py [--kills 1] [--seed 1]

`kb up` serves a new home and watches repositories at a stand-in for GitHub on this machine (`tests.github_server`), with
KB_POLL_INTERVAL_S=5. There releases are published, edited and deleted all the time, and now and then requests are refused or
cut off. The daemon, the webserver, the code server, the process of a run that polls or of one that refreshes, and the code
server together with its runs are killed so many times each, in random order at random moments. Then nothing happens at the
stand-in any more. Once the log has what is there, and three ticks of the staleness sensor in a row found nothing to do,
everything must be right: the log equal to the stand-in's truth, each state in it once, the newest of each release in the
index, every rule between the tables kept, no run that Dagster believes to be under way without a process, no request sent
where the stand-in had forbidden it, and never two at once.

Prints a table; exits 1 when anything is lost, doubled, stuck or forbidden.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from assets.jobs import REFRESH
from assets.polling import POLL
from kb_platform.clock import SystemClock
from kb_platform.services.service import CannotTell
from kb_platform.store import index_refresh
from kb_platform.store.audit import audit
from kb_platform.store.credentials import is_polling
from kb_platform.store.database import Database
from tests.github_server import GitHubServer
from tests.github_stand_in import StandIn
from tests.github_storms import Kind
from tests.kb_up import KbUp, polling_from

REPOSITORIES, RELEASES_BEFORE, LEAST_RELEASES = 12, 4, 3
POLL_INTERVAL_S = 5
SERVICES = ("daemon", "webserver", "code-server")
POLLING_RUN, REFRESHING_RUN = "polling run", "refreshing run"
# Nobody is left then to record the end of the runs.
ORPHANS = "code-server+runs"
VICTIMS = (*SERVICES, POLLING_RUN, REFRESHING_RUN, ORPHANS)
STORMS: tuple[Kind, ...] = ("secondary", "429", "500", "reset", "truncated")
LONGEST_RECOVERY_S = 120
LONGEST_WAIT_S = 600
CLEAN_TICKS = 3
# What `stale_index` says when there is nothing to do.
CLEAN = "the index reflects the whole log"

_TICKS = """
query($limit: Int!) { sensorOrError(sensorSelector: {repositoryLocationName: "kb_platform",
    repositoryName: "__repository__", sensorName: "stale_index"}) {
    ... on Sensor { sensorState { ticks(limit: $limit) { timestamp status skipReason } } } } }"""
_RUNS = """
{ runsOrError(filter: {}, limit: 1000) { ... on Runs { results { id status pipelineName } } } }"""
_UNFINISHED = frozenset({"NOT_STARTED", "QUEUED", "STARTING", "STARTED", "CANCELING"})


class State(NamedTuple):
    """What matters of a release."""

    release_id: int
    tag: str
    body: str


class Happenings(threading.Thread):
    """What happens at the stand-in until `ended`. `were`: every state that a release ever had."""

    def __init__(self, stand_in: StandIn, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.counts: Counter[str] = Counter()
        self._stand_in = stand_in
        self._chance = chance
        self.were = self.truth()

    def truth(self) -> set[State]:
        """Every release as it is now."""
        return {
            State(number, release["tag_name"], release["body"] or "")
            for repository in self._stand_in.repositories
            for number, release in self._stand_in.truth(repository).items()
        }

    def run(self) -> None:
        """One thing after the other."""
        while not self.ended.wait(self._chance.uniform(0, 2)):
            kind = self._chance.choices(("published", "edited", "deleted", "storms"), (40, 40, 15, 5))[0]
            getattr(self, f"_{kind}")(self._chance.choice(list(self._stand_in.repositories)))
            self.counts[kind] += 1

    def _published(self, repository: int) -> None:
        self._published_as(self._stand_in.publish(repository))

    def _edited(self, repository: int) -> None:
        release = self._chance.choice(list(self._stand_in.find(repository).releases))
        body = f"{self._stand_in.find(repository).inventor.notes()}\n- Fixed a slip, edit {self.counts.total()}\n"
        self._published_as(self._stand_in.edit(repository, release, body=body))

    def _deleted(self, repository: int) -> None:
        releases = list(self._stand_in.find(repository).releases)
        if len(releases) > LEAST_RELEASES:
            self._stand_in.delete(repository, self._chance.choice(releases))

    def _storms(self, _: int) -> None:
        # One that nobody has met is over: after a while without polls the next would meet all of them in a row.
        self._stand_in.calm()
        wait = float(self._chance.randint(2, 10))
        self._stand_in.storm(self._chance.choice(STORMS), requests=1, wait=wait, retry_after="seconds")

    def _published_as(self, release: dict[str, object]) -> None:
        self.were.add(State(int(str(release["id"])), str(release["tag_name"]), str(release["body"] or "")))


class Gaps(threading.Thread):
    """For how long nobody polled, each time, until `ended`."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.seconds: list[float] = []
        self._database = database

    def run(self) -> None:
        """Look twice a second."""
        since: float | None = None
        while not self.ended.wait(0.5):
            with self._database.snapshot() as connection:
                polls = is_polling(connection)
            if not polls:
                since = since or time.monotonic()
            elif since is not None:
                self.seconds.append(time.monotonic() - since)
                since = None


@dataclass
class Outcome:
    """What the kills did. `recovery`: seconds from a kill until everything was healthy, by victim."""

    recovery: dict[str, list[float]] = field(default_factory=lambda: {victim: [] for victim in VICTIMS})
    clean_after_s: float = 0.0
    observations: int = 0
    requests: int = 0
    wrong: list[str] = field(default_factory=list[str])
    runs: Counter[str] = field(default_factory=Counter[str])


def disturb(up: KbUp, outcome: Outcome, *, kills: int, chance: random.Random) -> None:
    """Kill each victim so many times."""
    victims = [victim for victim in VICTIMS for _ in range(kills)]
    chance.shuffle(victims)
    for number, victim in enumerate(victims):
        time.sleep(chance.uniform(0, 4))
        killed = _kill(up, victim, chance)
        begun = time.monotonic()
        # For a moment what was killed is still to be seen.
        time.sleep(0.5)
        up.until(lambda: _is_over(up, victim, killed), LONGEST_RECOVERY_S)  # noqa: B023 - called before they change
        outcome.recovery[victim].append(time.monotonic() - begun)
        print(
            f"{number + 1} of {len(victims)}: {victim}, well after {time.monotonic() - begun:.1f} s",
            file=sys.stderr,
        )


def _kill(up: KbUp, victim: str, chance: random.Random) -> set[int]:
    """Kill one victim at its work; returns its processes."""
    while True:
        up.until(lambda: _pids(up, victim), LONGEST_WAIT_S)
        if victim not in SERVICES:
            # Some way into its work.
            time.sleep(chance.uniform(0, 3))
        found = _pids(up, victim)
        killed: set[int] = set()
        for pid in found:
            # It may be over before.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        if killed:
            return killed


def _pids(up: KbUp, victim: str) -> list[int]:
    """The processes to kill, in order; none when it is not the moment."""
    if victim in SERVICES:
        return [pid for pid in [up.pid(victim)] if pid is not None]
    try:
        if victim == POLLING_RUN:
            return up.executing(POLL)[:1]
        if victim == REFRESHING_RUN:
            return up.executing(REFRESH)[:1]
    except CannotTell:
        return []
    parent, runs = up.pid("code-server"), [worker.pid for worker in up.workers()]
    return [parent, *runs] if parent is not None and runs else []


def _is_over(up: KbUp, victim: str, killed: Iterable[int]) -> bool:
    """Whether the kill is no longer to be seen."""
    living = {worker.pid for worker in up.workers()}
    if victim in SERVICES:
        living |= {pid for pid in [up.pid(victim)] if pid is not None}
    return living.isdisjoint(killed) and up.is_healthy(with_app=False)


def wait_until_clean(up: KbUp, database: Database, happenings: Happenings) -> float:
    """Until the log has the truth, and so many ticks in a row then found nothing to do; returns the seconds it took.

    A log that never has it is judged later.
    """
    begun = time.monotonic()
    truth = happenings.truth()
    with suppress(AssertionError):
        up.until(lambda: _current(database) == truth, LONGEST_WAIT_S)
    after = time.time()

    def is_clean() -> bool:
        try:
            state = up.ui.ask(_TICKS, limit=CLEAN_TICKS)["sensorOrError"]["sensorState"]
        except CannotTell:
            return False
        ticks = [tick for tick in state["ticks"] if tick["timestamp"] > after]
        return len(ticks) == CLEAN_TICKS and all(tick["skipReason"] == CLEAN for tick in ticks)

    up.until(is_clean, LONGEST_WAIT_S)
    return time.monotonic() - begun


def _current(database: Database) -> set[State]:
    with database.snapshot() as connection:
        rows = connection.execute("SELECT release_id, tag, body FROM kb.current_releases WHERE NOT draft")
        return {State(*row) for row in rows}


def judge_tables(database: Database, happenings: Happenings, outcome: Outcome) -> None:
    """Add what is wrong in the log and the index."""
    truth, current = happenings.truth(), _current(database)
    has = {state.release_id for state in current}
    there = {state.release_id for state in truth}
    with database.snapshot() as connection:
        outcome.wrong += [str(violation) for violation in audit(connection)]
        outcome.wrong += [f"{name} is stale" for name in index_refresh.stale_repositories(connection)]
        logged = Counter(
            connection.execute("SELECT release_id, tag, body, deleted FROM kb.observation").fetchall()
        )
        rows = connection.execute(
            "SELECT o.release_id, o.tag, o.body FROM kb.serving JOIN kb.indexed_observation USING (version) "
            "JOIN kb.observation o USING (sequence)"
        )
        indexed = Counter(State(*row) for row in rows)
    outcome.observations = logged.total()
    never = {State(*row[:3]) for row in logged} - happenings.were
    wrong = {
        "missing in the log": there - has,
        "stale in the log": {state.release_id for state in truth - current} & has,
        "ghosts in the log": has - there,
        "too often in the log": {row[0] for row, times in logged.items() if times > 1},
        "in the log, and never was": {state.release_id for state in never},
        "not in the index": {state.release_id for state in truth - indexed.keys()},
        "in the index, and not there any more": {state.release_id for state in indexed.keys() - truth},
        "twice in the index": {state.release_id for state, times in indexed.items() if times > 1},
    }
    outcome.wrong += [f"{what}: release {number}" for what, numbers in wrong.items() for number in numbers]


def judge_requests(stand_in: StandIn, outcome: Outcome) -> None:
    """Add what must not have been sent."""
    outcome.requests = len(stand_in.log)
    outcome.wrong += [f"sent while forbidden: {entry}" for entry in stand_in.forbidden_requests()]
    outcome.wrong += [f"sent while another was: {entry}" for entry in stand_in.log if entry.overlapping]


def judge_runs(up: KbUp, outcome: Outcome) -> None:
    """Add the runs that are under way and have no process. One that polls is under way, and right so."""

    def stuck() -> list[str]:
        runs = up.ui.ask(_RUNS)["runsOrError"]["results"]
        outcome.runs = Counter(f"{run['pipelineName']} {run['status']}" for run in runs)
        unfinished = [run for run in runs if run["status"] in _UNFINISHED]
        living = {worker.pid for worker in up.workers()}
        return [
            f"run {run['id']} ({run['pipelineName']}) is {run['status']}, and has no process"
            for run in unfinished
            if up.ui.process_of(run["id"]) not in living
        ]

    # A run that is just being started has no process yet.
    with suppress(AssertionError):
        up.until(lambda: not stuck(), LONGEST_RECOVERY_S)
    outcome.wrong += stuck()


def show(outcome: Outcome, happenings: Happenings, gaps: list[float]) -> None:
    """The table."""
    print(f"\n{'killed':18} {'times':>6} {'well again after, mean':>24} {'longest':>9}")
    for victim, seconds in outcome.recovery.items():
        mean = sum(seconds) / max(len(seconds), 1)
        print(f"{victim:18} {len(seconds):>6} {mean:>22.1f} s {max(seconds, default=0):>7.1f} s")
    print(f"\nat the stand-in: {_listed(happenings.counts)}; {outcome.requests} requests")
    print(f"{outcome.observations} observations recorded; runs: {_listed(outcome.runs)}")
    mean = sum(gaps) / max(len(gaps), 1)
    print(
        f"nobody polled {len(gaps)} times, for {mean:.0f} s on average, {max(gaps, default=0):.0f} s at most"
    )
    print(f"equal, and {CLEAN_TICKS} clean ticks, {outcome.clean_after_s:.0f} s after the last change")
    for wrong in outcome.wrong[:20]:
        print(f"WRONG: {wrong}")
    print(
        f"{len(outcome.wrong)} things are wrong"
        if outcome.wrong
        else "nothing missing, stale, ghostly, doubled, stuck or forbidden"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1, help="of each part")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    stand_in = StandIn(SystemClock(), seed=arguments.seed)
    names = [f"acme/tool-{place}" for place in range(REPOSITORIES)]
    for name in names:
        stand_in.add_repository(name, RELEASES_BEFORE)
    outcome = Outcome()
    happenings = Happenings(stand_in, random.Random(arguments.seed))
    with GitHubServer(stand_in) as github:
        environment = polling_from(github.url, every_s=POLL_INTERVAL_S)
        up = KbUp(Path(tempfile.mkdtemp(prefix="kbk-")), "--no-app", environment=environment)
        try:
            up.start()
            database = Database(up.server.url(), pool_size=2)
            gaps = Gaps(database)
            added = up.run("watch", "add", *names)
            if added.returncode != 0:
                raise SystemExit(f"kb watch add failed: {added.stderr}")
            happenings.start()
            gaps.start()
            disturb(up, outcome, kills=arguments.kills, chance=random.Random(arguments.seed + 1))
            happenings.ended.set()
            happenings.join()
            stand_in.calm()
            outcome.clean_after_s = wait_until_clean(up, database, happenings)
            gaps.ended.set()
            gaps.join()
            judge_tables(database, happenings, outcome)
            judge_requests(stand_in, outcome)
            judge_runs(up, outcome)
            database.close()
        finally:
            errors = up.errors()
            up.remove()
    show(outcome, happenings, gaps.seconds)
    if outcome.wrong:
        print(errors, file=sys.stderr)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
