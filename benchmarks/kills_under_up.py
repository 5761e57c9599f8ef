"""Does what `kb up` keeps fresh survive `kill -9` of its parts, at any moment?

    python benchmarks/kills_under_up.py [--kills 3] [--seed 1]

`kb up` serves a new home with the sample corpus; beside it `kb import --no-refresh` records edited notes again and again,
and the sensors have them indexed. The daemon, the webserver, the code server, a process that executes a run, and the last two at
once are killed so many times each, in random order at random moments. Then nothing is edited any more, and once three ticks of the
staleness sensor in a row found nothing to do, everything must be there: every edit in the log once, the newest of each
release in the index, every rule between the tables kept, and no run that Dagster believes to be under way.

Prints a table; exits 1 when anything is lost, doubled or stuck.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kb_platform.sample_corpus import releases_folder
from kb_platform.services.service import CannotTell
from kb_platform.sources.github_json import parse_release
from kb_platform.store import index_refresh, index_versions
from kb_platform.store.audit import audit
from kb_platform.store.database import Database
from tests.kb_up import KbUp

RUN = "run"
# Nobody is left then to record the end of the run.
ORPHAN = "code-server+run"
VICTIMS = ("daemon", "webserver", "code-server", RUN, ORPHAN)
LONGEST_RECOVERY_S = 120
LONGEST_WAIT_S = 900
CLEAN_TICKS = 3
# What `stale_index` says when there is nothing to do.
CLEAN = "the index reflects the whole log"
EDITED_AT_ONCE = 3

_TICKS = """
query($limit: Int!) { sensorOrError(sensorSelector: {repositoryLocationName: "kb_platform",
    repositoryName: "__repository__", sensorName: "stale_index"}) {
    ... on Sensor { sensorState { ticks(limit: $limit) { timestamp status skipReason } } } } }"""
_RUNS = """
{ runsOrError(filter: {}, limit: 1000) { ... on Runs { results { id status } } } }"""
_UNFINISHED = frozenset({"NOT_STARTED", "QUEUED", "STARTING", "STARTED", "CANCELING"})


class Edits(threading.Thread):
    """Records edited notes again and again; `bodies` is what must be in the log at the end."""

    def __init__(self, up: KbUp, folder: Path, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.bodies: Counter[tuple[str, str]] = Counter()
        self.newest: dict[str, str] = {}
        self.imports = 0
        self._up = up
        self._folder = folder
        self._chance = chance
        self._releases: list[dict[str, Any]] = [
            json.loads(line)
            for file in sorted(releases_folder().glob("*.jsonl"))
            for line in file.read_text().splitlines()
        ]

    def record(self, releases: list[dict[str, Any]]) -> None:
        """One import."""
        file = self._folder / "edited.jsonl"
        file.write_text("\n".join(json.dumps(release) for release in releases))
        done = self._up.run("import", "--no-refresh", "--json", str(file))
        if done.returncode != 0:
            raise SystemExit(f"an import failed: {done.stderr}")
        self.imports += 1
        for release in releases:
            # As it is stored: bodies are cleaned.
            _, stored = parse_release(json.dumps(release).encode(), repository=None, max_body_bytes=1 << 20)
            self.bodies[stored.url, stored.body] += 1
            self.newest[stored.url] = stored.body

    def run(self) -> None:
        """Everything once, then edits until `ended`."""
        self.record(self._releases)
        while not self.ended.wait(self._chance.uniform(0, 3)):
            chosen = self._chance.sample(self._releases, EDITED_AT_ONCE)
            for release in chosen:
                release["body"] += f"\n- Fixed a slip in edit {self.imports} of these notes\n"
            self.record(chosen)


@dataclass
class Outcome:
    """What the kills did. `recovery`: seconds from a kill until everything was healthy, by victim."""

    recovery: dict[str, list[float]] = field(default_factory=lambda: {victim: [] for victim in VICTIMS})
    clean_after_s: float = 0.0
    edits: int = 0
    wrong: list[str] = field(default_factory=list[str])
    runs: Counter[str] = field(default_factory=Counter[str])


def disturb(up: KbUp, outcome: Outcome, *, kills: int, chance: random.Random) -> None:
    """Kill each victim so many times."""
    victims = [victim for victim in VICTIMS for _ in range(kills)]
    chance.shuffle(victims)
    for number, victim in enumerate(victims):
        time.sleep(chance.uniform(0, 6))
        pid = _kill(up, victim, chance)
        begun = time.monotonic()
        # For a moment what was killed is still to be seen.
        time.sleep(0.5)
        up.until(lambda: _is_over(up, victim, pid), LONGEST_RECOVERY_S)  # noqa: B023 - called before they change
        outcome.recovery[victim].append(time.monotonic() - begun)
        print(
            f"{number + 1} of {len(victims)}: {victim}, well after {time.monotonic() - begun:.1f} s",
            file=sys.stderr,
        )


def _kill(up: KbUp, victim: str, chance: random.Random) -> int:
    while True:
        pid = _find(up, victim)
        if victim in (RUN, ORPHAN):
            # Some way into its work.
            time.sleep(chance.uniform(0, 4))
        try:
            if victim == ORPHAN and (parent := up.pid("code-server")) is not None:
                os.kill(parent, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            # It was over before.
            continue
        return pid


def _is_over(up: KbUp, victim: str, pid: int) -> bool:
    """Whether the kill is no longer to be seen."""
    if victim in (RUN, ORPHAN):
        is_gone = pid not in {worker.pid for worker in up.workers()}
    else:
        is_gone = up.pid(victim) not in {None, pid}
    return is_gone and up.is_healthy(with_app=False)


def _find(up: KbUp, victim: str) -> int:
    found: list[int] = []

    def look() -> bool:
        found[:] = (
            [worker.pid for worker in up.workers()]
            if victim in (RUN, ORPHAN)
            else [pid for pid in [up.pid(victim)] if pid is not None]
        )
        return bool(found)

    up.until(look, LONGEST_WAIT_S)
    return found[0]


def wait_until_clean(up: KbUp) -> float:
    """Until so many ticks in a row found nothing to do and no run is under way; returns the seconds it took."""
    after = time.time()

    def is_clean() -> bool:
        try:
            state = up.ui.ask(_TICKS, limit=CLEAN_TICKS)["sensorOrError"]["sensorState"]
        except CannotTell:
            return False
        ticks = [tick for tick in state["ticks"] if tick["timestamp"] > after]
        return len(ticks) == CLEAN_TICKS and all(tick["skipReason"] == CLEAN for tick in ticks)

    return up.until(is_clean, LONGEST_WAIT_S)


def judge(up: KbUp, edits: Edits, outcome: Outcome) -> None:
    """Add everything that is not as it must be."""
    for run in up.ui.ask(_RUNS)["runsOrError"]["results"]:
        outcome.runs[run["status"]] += 1
        if run["status"] in _UNFINISHED:
            outcome.wrong.append(f"run {run['id']} is {run['status']}")
    database = Database(up.server.url(), pool_size=1)
    with database.snapshot() as connection:
        outcome.wrong += [str(violation) for violation in audit(connection)]
        outcome.wrong += [f"{name} is stale" for name in index_refresh.stale_repositories(connection)]
        served = index_versions.active(connection)
        if served is None:
            outcome.wrong.append("nothing is served")
        rows = connection.execute("SELECT url, body FROM kb.release_observations").fetchall()
        logged = Counter((url, body) for url, body in rows)
        current = dict(connection.execute("SELECT url, body FROM kb.current_releases").fetchall())
        held = connection.execute(
            "SELECT count(*) FROM kb.indexed_observation WHERE version = %s",
            (served.version if served else 0,),
        ).fetchone()
    database.close()
    lost, extra = edits.bodies - logged, logged - edits.bodies
    outcome.edits = edits.bodies.total()
    outcome.wrong += [f"lost from the log: {url}" for url, _ in lost]
    outcome.wrong += [f"too often in the log: {url}" for url, _ in extra]
    outcome.wrong += [f"not current: {url}" for url, body in edits.newest.items() if current.get(url) != body]
    if held is None or held[0] != len(edits.newest):
        outcome.wrong.append(f"{held and held[0]} releases are indexed instead of {len(edits.newest)}")


def show(outcome: Outcome) -> None:
    """The table."""
    print(f"\n{'killed':16} {'times':>6} {'well again after, mean':>24} {'longest':>9}")
    for victim, seconds in outcome.recovery.items():
        mean = sum(seconds) / max(len(seconds), 1)
        print(f"{victim:16} {len(seconds):>6} {mean:>22.1f} s {max(seconds, default=0):>7.1f} s")
    runs = ", ".join(f"{count} {status}" for status, count in sorted(outcome.runs.items()))
    print(f"\n{outcome.edits} observations recorded; runs: {runs}")
    print(f"{CLEAN_TICKS} clean ticks {outcome.clean_after_s:.0f} s after the last edit")
    for wrong in outcome.wrong[:20]:
        print(f"WRONG: {wrong}")
    print(
        "nothing lost, nothing doubled, nothing stuck"
        if not outcome.wrong
        else f"{len(outcome.wrong)} things are wrong"
    )


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=3, help="of each part")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    outcome = Outcome()
    up = KbUp(Path(tempfile.mkdtemp(prefix="kbk-")), "--no-app")
    try:
        up.start()
        with tempfile.TemporaryDirectory(prefix="kbk-data-") as folder:
            edits = Edits(up, Path(folder), random.Random(arguments.seed))
            edits.start()
            disturb(up, outcome, kills=arguments.kills, chance=random.Random(arguments.seed + 1))
            edits.ended.set()
            edits.join()
        outcome.clean_after_s = wait_until_clean(up)
        judge(up, edits, outcome)
    finally:
        errors = up.errors()
        up.remove()
    show(outcome)
    if outcome.wrong:
        print(errors, file=sys.stderr)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
