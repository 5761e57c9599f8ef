"""Does landing survive `kill -9` of its loaders, of PostgreSQL and of brokers, at any moment, with nothing lost or doubled?

    python benchmarks/kills_of_landing.py [--kills 200] [--records 100000] [--loaders 1] [--postgres-crashes 0]
        [--broker-kills 0] [--without-fence] [--seed 1]

Brokers: KB_KAFKA_BOOTSTRAP_SERVERS or KB_TEST_KAFKA_BOOTSTRAP_SERVERS; to be killed they must run on this machine. Release
events of 300 repositories go to a new topic of three partitions, in transactions of which every tenth is aborted: new
releases, edits and edits taken back, deletions, late and repeated events, one in a hundred not to be understood. Meanwhile
loaders land them, are killed at random moments or die at named points (`mortal_loader.POINTS`), and are started again. In
the end positions, counts, the log, the quarantine and the dead letters are compared with what must have come of the records
that the topic holds (`landing_workload.expected`).

Prints a table; exits 1 when anything is lost, doubled or different. `--without-fence` (two loaders that move offsets without
looking where they are) is for this harness itself: it exits 1 when it finds nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, LiteralString

from benchmarks.landing_topic import Feed, Topic, new_topic
from benchmarks.landing_workload import Expected, digest, expected
from benchmarks.mortal_loader import ENDED, LOG, OF_LETTERS, POINTS, Life, live
from kb_platform.store.audit import audit
from kb_platform.store.database import Connection, Database
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.schema import migrate
from tests.kafka_brokers import LocalBrokers

ADDRESSES = ("KB_KAFKA_BOOTSTRAP_SERVERS", "KB_TEST_KAFKA_BOOTSTRAP_SERVERS")
# Before the first kill; the rest comes while loaders die.
FIRST_SHARE = 0.1
# The first commit of a life comes after 0.7 s.
LONGEST_LIFE_S = 1.6
LONGEST_WAIT_FOR_DEATH_S = 4.0
LONGEST_RECOVERY_S = 300.0
BATCHES = (20, 100, 400)

GROUP = "kills"
# What is compared, each row as `landing_workload.Expected` has it.
OBSERVATIONS: LiteralString = """
    SELECT r.name, release_id, row_number() OVER (PARTITION BY repository_id, release_id ORDER BY observed_at, sequence) - 1,
           body, draft, deleted, origin
    FROM kb.observation JOIN kb.repository r USING (repository_id)"""
CURRENT: LiteralString = "SELECT repository, release_id, body, draft FROM kb.current_releases"
QUARANTINE: LiteralString = (
    'SELECT partition, "offset", reason, raw, attempts FROM kb.quarantine WHERE topic = %s'
)
RECORDS: LiteralString = (
    "SELECT partition, records, quarantined, next_offset FROM kb.streams WHERE topic = %s"
)


@dataclass
class Faults:
    """What is done to landing."""

    kills: int
    loaders: int = 1
    postgres_crashes: int = 0
    broker_kills: int = 0
    fence: bool = True


@dataclass
class Outcome:
    """What came of it. `rows`, `lost`, `extra`: by table. `wrong`: what must not happen, in words."""

    killed: Counter[str] = field(default_factory=Counter[str])
    restarts: int = 0
    records: int = 0
    seconds: float = 0.0
    recovered_s: float = 0.0
    rows: Counter[str] = field(default_factory=Counter[str])
    lost: Counter[str] = field(default_factory=Counter[str])
    extra: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    kinds: Counter[str] = field(default_factory=Counter[str])

    @property
    def is_clean(self) -> bool:
        """Whether everything is as it must be."""
        return not (self.lost.total() or self.extra.total() or self.wrong)


class Loaders:
    """The loaders that are alive. Each is forked off a process that has imported all they need."""

    def __init__(
        self, home: Path, environment: dict[str, str], faults: Faults, chance: random.Random
    ) -> None:
        self._home = home
        self._environment = environment
        self._faults = faults
        self._chance = chance
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(["benchmarks.mortal_loader"])
        self._living: list[tuple[BaseProcess, Life]] = []
        self.started = 0

    def start(self, *, mortal: bool = True) -> None:
        """One more."""
        self.started += 1
        death = self._chance.choice(POINTS) if mortal and self._chance.random() < 0.5 else None
        batch = self._chance.choice(BATCHES)
        of_letters = death in OF_LETTERS
        life = Life(
            self._home,
            self._environment | {"KB_KAFKA_BATCH_RECORDS": str(batch)},
            self._chance.randrange(1 << 30),
            death,
            1 if of_letters else self._chance.randint(1, 3),
            # Letters are published now and then, and when there is nothing left to land.
            0.0 if of_letters or self._chance.random() < 0.3 else 3_600.0,
            self._faults.fence,
        )
        process = self._forks.Process(target=live, args=(life,), daemon=True)
        process.start()
        self._living.append((process, life))

    def kill(self) -> tuple[str, int | None]:
        """The oldest one dies: at its point, or at a random moment. Returns how, and with which status."""
        process, life = self._living.pop(0)
        if life.death is not None:
            process.join(LONGEST_WAIT_FOR_DEATH_S)
        else:
            process.join(self._chance.uniform(0.0, LONGEST_LIFE_S))
        at_point = not process.is_alive()
        process.kill()
        process.join()
        return life.death if at_point and life.death else "at a random moment", process.exitcode

    def end(self) -> None:
        """All of them."""
        for process, _ in self._living:
            process.kill()
            process.join()
        self._living.clear()


def disturb(topic: Topic, feed: Feed, home: Path, records: int, faults: Faults, seed: int) -> Outcome:
    """Produce and land that many records while all that is done, wait until all is landed, and judge."""
    outcome = Outcome(records=records)
    begun = time.monotonic()
    server = EmbeddedServer(home)
    server.start()
    database = Database(server.url(), pool_size=2, revive=server.start)
    migrate(database)
    chance = random.Random(seed)
    loaders = Loaders(
        home, topic.environment | {"KB_HOME": str(home), "KB_KAFKA_GROUP": GROUP}, faults, chance
    )
    try:
        feed.send_up_to(int(records * FIRST_SHARE))
        for _ in range(faults.loaders):
            loaders.start()
        _kill_all(topic, feed, server, loaders, faults, outcome, records, chance)
        feed.send_up_to(records)
        loaders.end()
        for _ in range(faults.loaders):
            loaders.start(mortal=False)
        ended = time.monotonic()
        committed, ends = feed.committed(), topic.ends()
        _wait_until_landed(database, topic, ends, outcome)
        outcome.recovered_s = time.monotonic() - ended
        loaders.end()
        with database.snapshot() as connection:
            judge(connection, topic, expected(topic.name, committed), ends, outcome)
    finally:
        loaders.end()
        database.close()
        server.leave()
    outcome.restarts = loaders.started - faults.loaders
    outcome.kinds = feed.kinds
    outcome.seconds = time.monotonic() - begun
    return outcome


def _kill_all(
    topic: Topic,
    feed: Feed,
    server: EmbeddedServer,
    loaders: Loaders,
    faults: Faults,
    outcome: Outcome,
    records: int,
    chance: random.Random,
) -> None:
    crashes = _spread(faults.postgres_crashes, faults.kills, chance)
    broken = _spread(faults.broker_kills, faults.kills, chance)
    brokers = LocalBrokers(topic.address) if broken else None
    for number in range(faults.kills):
        feed.send_up_to(int(records * (FIRST_SHARE + (1 - FIRST_SHARE) * number / faults.kills)))
        if number in crashes:
            outcome.killed["PostgreSQL"] += _crash(server, chance)
        if brokers is not None and number in broken:
            chance.choice(list(brokers.all())).kill()
            outcome.killed["broker"] += 1
            time.sleep(chance.uniform(0, 4))
        how, code = loaders.kill()
        if code == -signal.SIGKILL:
            outcome.killed[f"loader {how}"] += 1
        else:
            outcome.wrong.append(f"a loader ended with status {code}")
        loaders.start()
        if brokers is not None and number in broken:
            brokers.mend(120)
        if number % 20 == 19:
            print(f"{number + 1} of {faults.kills} kills", file=sys.stderr)


def _spread(times: int, over: int, chance: random.Random) -> set[int]:
    return set(chance.sample(range(over), min(times, over)))


def _crash(server: EmbeddedServer, chance: random.Random) -> int:
    """As `pg_ctl stop -m immediate` does it, or harder; loaders start it again."""
    pid = server.postmaster()
    if pid is None:
        return 0
    os.kill(pid, chance.choice((signal.SIGQUIT, signal.SIGKILL)))
    return 1


def _wait_until_landed(database: Database, topic: Topic, ends: dict[int, int], outcome: Outcome) -> None:
    """Until the loaders are at the topic's ends and no dead letter waits; what then is missing is judged."""
    until = time.monotonic() + LONGEST_RECOVERY_S
    positions: dict[int, int] = {}
    while time.monotonic() < until:
        with database.snapshot() as connection:
            positions = {row[0]: row[3] for row in connection.execute(RECORDS, (topic.name,))}
            waiting = connection.execute(
                "SELECT 1 FROM kb.dead_letter WHERE published_at IS NULL LIMIT 1"
            ).fetchone()
        if positions == ends and waiting is None:
            # A loader without a fence may still set it back.
            time.sleep(1.0)
            return
        time.sleep(0.2)
    outcome.wrong.append(f"after {LONGEST_RECOVERY_S:.0f} s the positions are {positions}, the ends {ends}")


# --- judging --------------------------------------------------------------------------------------------------


def judge(
    connection: Connection, topic: Topic, wanted: Expected, ends: dict[int, int], outcome: Outcome
) -> None:
    """Compare all of it, and look whether a rule between the tables is broken."""
    outcome.wrong += [str(violation) for violation in audit(connection)]
    counts = connection.execute(RECORDS, (topic.name,)).fetchall()
    found = {
        "records handed over": (wanted.records, Counter({row[0]: row[1] for row in counts})),
        "of them quarantined": (wanted.quarantined, Counter({row[0]: row[2] for row in counts})),
        "positions": (Counter(ends.items()), Counter((row[0], row[3]) for row in counts)),
        "observations": (wanted.observations, _rows(connection, OBSERVATIONS)),
        "current releases": (wanted.current, _rows(connection, CURRENT)),
        "quarantine": (wanted.quarantine, _quarantine(connection, topic)),
        "dead letters": (wanted.letters, topic.dead_letters()),
    }
    for table, (right, real) in found.items():
        lost, extra = right - real, real - right
        outcome.rows[table], outcome.lost[table], outcome.extra[table] = (
            right.total(),
            lost.total(),
            extra.total(),
        )
        for what, rows in (("lost from", lost), ("too much in", extra)):
            for row in sorted(rows, key=repr)[:3]:
                print(f"{what} {table}: {row!r:.300}", file=sys.stderr)


def _rows(connection: Connection, query: LiteralString) -> Counter[Any]:
    return Counter(connection.execute(query).fetchall())


def _quarantine(connection: Connection, topic: Topic) -> Counter[Any]:
    rows = connection.execute(QUARANTINE, (topic.name,))
    return Counter(
        (partition, offset, reason, digest(raw), tries) for partition, offset, reason, raw, tries in rows
    )


def show(outcome: Outcome) -> None:
    """The table."""
    print(f"\n{'':22} {'rows':>9} {'lost':>7} {'extra':>7}")
    for table, rows in outcome.rows.items():
        print(f"{table:22} {rows:>9,} {outcome.lost[table]:>7,} {outcome.extra[table]:>7,}")
    for wrong, times in Counter(outcome.wrong).items():
        print(f"WRONG: {wrong} ({times} times)")
    print(f"\nproduced: {_listed(outcome.kinds)}")
    print(f"killed: {_listed(outcome.killed)}; {outcome.restarts} restarts")
    print(
        f"{outcome.records:,} records, {outcome.killed.total()} kills, {outcome.seconds:.0f} s "
        f"({outcome.recovered_s:.0f} s from the last kill to the end of all lag): {outcome.lost.total()} lost, "
        f"{outcome.extra.total()} duplicated or different, {len(outcome.wrong)} wrong"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items()))


def run(address: str, *, records: int, faults: Faults, seed: int) -> Outcome:
    """All of it, with a topic and a home folder of its own; both go in the end."""
    with new_topic(address) as topic, _home() as home:
        outcome = disturb(topic, Feed(topic, seed), home, records, faults, seed)
        if not outcome.is_clean:
            for name, most in ((ENDED, 20_000), (LOG, 4_000)):
                said = (home / name).read_text(errors="replace") if (home / name).exists() else ""
                print(f"{name}:\n{said[-most:]}", file=sys.stderr)
    return outcome


@contextmanager
def _home() -> Generator[Path]:
    home = Path(tempfile.mkdtemp(prefix="kbk-"))
    try:
        yield home
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--loaders", type=int, choices=(1, 2), default=1)
    parser.add_argument("--postgres-crashes", type=int, default=0)
    parser.add_argument("--broker-kills", type=int, default=0)
    parser.add_argument("--without-fence", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    address = next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if address is None:
        parser.error(f"no brokers: set {' or '.join(ADDRESSES)}")
    faults = Faults(
        given.kills,
        2 if given.without_fence else given.loaders,
        given.postgres_crashes,
        given.broker_kills,
        not given.without_fence,
    )
    outcome = run(address, records=given.records, faults=faults, seed=given.seed)
    show(outcome)
    if given.without_fence:
        print(
            "without the fence "
            + ("nothing is found: this harness is blind" if outcome.is_clean else "it shows")
        )
        return 1 if outcome.is_clean else 0
    return 0 if outcome.is_clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
