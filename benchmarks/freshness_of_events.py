"""How long after it was produced is an event answerable, with `kb up` left to itself; and does a flood hold up polling?

    python benchmarks/freshness_of_events.py [--events 20] [--every 6] [--flood 0] [--seed 1]

Brokers: KB_KAFKA_BOOTSTRAP_SERVERS, else KB_TEST_KAFKA_BOOTSTRAP_SERVERS; the topics are the benchmark's own. `kb up` serves a new
home, lands from them and polls 10 repositories at a stand-in for GitHub every 5 s. Release events of 20 other repositories are
produced at random moments, with `--every` seconds between two on average. An event is answerable when the served index holds
its release; at the end a search for a word that only it has must find each. With `--flood` so many events of 500 further
repositories are produced first, all at once; then printed is also how late polls came while those were landed.

Exits 1 when p95 is over 30 s, when a release was not found, or when a flood made a poll come over 30 s late.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from confluent_kafka.admin import AdminClient

from kb_platform.cli.asking import searcher
from kb_platform.clock import SystemClock
from kb_platform.errors import QueueFull
from kb_platform.settings import Settings, load_settings
from kb_platform.sources import envelope, release_event
from kb_platform.store import index_refresh
from kb_platform.store.database import Connection, Database
from kb_platform.streams.broker import Brokers
from kb_platform.streams.sender import Sender
from tests.github_server import GitHubServer
from tests.github_stand_in import StandIn
from tests.kb_up import KbUp, polling_from

WATCHED = 10
EVENTFUL = 20
FLOODED = 500
POLL_INTERVAL_S = 5
LIMIT_P95_S = 30.0
LIMIT_LATE_S = 30.0
LONGEST_S = 240.0


@dataclass
class Produced:
    """An event and its moments, in seconds since the epoch. `word`: in its notes and in no others."""

    repository: str
    release_id: int
    tag: str
    word: str
    at: float
    landed: float = 0.0
    answerable: float = 0.0


class Producer:
    """Produces release events that nobody else could have."""

    def __init__(self, settings: Settings, sender: Sender, chance: random.Random) -> None:
        self._settings = settings
        self._sender = sender
        self._chance = chance
        self._made = 0

    def produce(self, *, repositories: int = EVENTFUL, owner: str = "pushed") -> Produced:
        """A release of a random repository, acknowledged by the brokers."""
        made = self._send(repositories, owner)
        if self._sender.flush(20):
            raise SystemExit("the brokers do not acknowledge")
        made.at = time.time()
        return made

    def flood(self, count: int) -> None:
        """So many, as fast as brokers take them."""
        for _ in range(count):
            self._send(FLOODED, "flood")
        if self._sender.flush(120):
            raise SystemExit("the brokers do not acknowledge")

    def _send(self, repositories: int, owner: str) -> Produced:
        self._made += 1
        place = self._chance.randrange(repositories)
        name, word = f"{owner}/tool-{place}", _word(self._chance)
        tag = f"v{self._made}.0.0"
        release = {
            "id": self._made,
            "tag_name": tag,
            "name": tag,
            "body": f"## Fixes\n\n- Fixed a stall of the {word} when its queue is empty\n- Documented the {_word(self._chance)}\n",
            "published_at": datetime.now(UTC).isoformat(),
            "html_url": f"https://github.com/{name}/releases/tag/{tag}",
        }
        number = 1_000 + place if owner == "pushed" else 10_000 + place
        event = release_event.event(
            json.dumps(release).encode(),
            action="published",
            name=name,
            number=number,
            api_root="https://api.github.com",
            time=datetime.now(UTC),
            event_id=str(uuid.uuid4()),
        )
        written = envelope.write(event)
        key = release_event.key(number=number, name=name)
        while True:
            try:
                self._sender.send(self._settings.kafka_release_topic, key, written.value, written.headers)
                break
            except QueueFull:
                self._sender.poll(0.1)
        return Produced(name, self._made, tag, word, time.time())


class Lateness(threading.Thread):
    """Looks every second how far past its time the longest waiting repository is."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self._database = database
        self._over = threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        """Until told to stop."""
        while not self._over.wait(1.0):
            with self._database.snapshot() as connection:
                row = connection.execute(
                    "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(due_at)), 0)::float8 FROM kb.watch"
                ).fetchone()
            self.seconds.append(max(row[0], 0.0) if row else 0.0)

    def stop(self) -> float:
        """The longest, in seconds."""
        self._over.set()
        self.join(10)
        return max(self.seconds, default=0.0)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--every", type=float, default=6.0, help="seconds between two events, on average")
    parser.add_argument("--flood", type=int, default=0, help="events produced at once before")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    address = os.environ.get("KB_KAFKA_BOOTSTRAP_SERVERS") or os.environ.get(
        "KB_TEST_KAFKA_BOOTSTRAP_SERVERS"
    )
    if not address:
        parser.error("set KB_KAFKA_BOOTSTRAP_SERVERS")
    chance = random.Random(arguments.seed)
    stand_in = StandIn(SystemClock(), seed=arguments.seed)
    names = [f"acme/tool-{place}" for place in range(WATCHED)]
    for name in names:
        stand_in.add_repository(name, 5)
    topic = f"kb-freshness-{uuid.uuid4().hex[:8]}"
    kafka = {
        "KB_KAFKA_BOOTSTRAP_SERVERS": address,
        "KB_KAFKA_RELEASE_TOPIC": topic,
        "KB_KAFKA_DOCUMENT_TOPIC": f"{topic}-documents",
    }
    with GitHubServer(stand_in) as github:
        polling = polling_from(github.url, every_s=POLL_INTERVAL_S)
        up = KbUp(Path(tempfile.mkdtemp(prefix="kbf-")), "--no-app", environment={**polling, **kafka})
        _settle_in(up.environment)
        try:
            return _run(up, names, arguments, chance)
        finally:
            errors = up.errors()
            up.remove()
            _delete(address, topic)
            if errors:
                print(errors[-2_000:], file=sys.stderr)


def _run(up: KbUp, names: list[str], arguments: argparse.Namespace, chance: random.Random) -> int:
    for command in (("kafka", "init"), ("watch", "add", *names), ("sync",)):
        done = up.run(*command)
        if done.returncode != 0:
            raise SystemExit(f"kb {' '.join(command)} failed: {done.stderr}")
    up.start()
    settings = load_settings()
    database = Database(up.server.url(), pool_size=3)
    with closing(database), Sender(Brokers(settings)) as sender:
        producer = Producer(settings, sender, chance)
        up.until(lambda: _is_fresh(database), LONGEST_S)
        late = _flood(producer, database, up, arguments.flood) if arguments.flood else 0.0
        done = _measure(producer, database, arguments.events, arguments.every, chance)
        missing = _not_found(done, database)
    seconds = [made.answerable - made.at for made in done]
    p50, p95 = (float(np.percentile(seconds, share)) for share in (50, 95))
    in_log = float(np.percentile([made.landed - made.at for made in done], 95))
    print(f"{len(done)} events, produced → in the log: p95 {in_log:.1f} s")
    print(
        f"produced → answerable: p50 {p50:.1f} s, p95 {p95:.1f} s, max {max(seconds):.1f} s (limit {LIMIT_P95_S:.0f})"
    )
    for name in missing:
        print(f"NOT FOUND by a search: {name}")
    return int(p95 > LIMIT_P95_S or bool(missing) or late > LIMIT_LATE_S)


def _flood(producer: Producer, database: Database, up: KbUp, count: int) -> float:
    """Land a flood; how late the latest poll came meanwhile."""
    watching = Lateness(database)
    watching.start()
    began = time.time()
    producer.flood(count)
    produced = time.time() - began

    def is_landed() -> bool:
        with database.snapshot() as connection:
            row = connection.execute("SELECT coalesce(sum(records), 0) FROM kb.streams").fetchone()
        return row is not None and row[0] >= count

    up.until(is_landed, 600)
    seconds = time.time() - began
    late = watching.stop()
    print(
        f"a flood of {count:,} events, produced in {produced:.1f} s, was landed after {seconds:.1f} s "
        f"({count / seconds:,.0f}/s from the first one produced); the latest poll meanwhile came {late:.1f} s late"
    )
    return late


def _measure(
    producer: Producer, database: Database, events: int, every_s: float, chance: random.Random
) -> list[Produced]:
    waiting: dict[int, Produced] = {}
    done: list[Produced] = []
    next_at = time.time()
    while len(done) < events:
        now = time.time()
        if now >= next_at and len(done) + len(waiting) < events:
            made = producer.produce()
            waiting[made.release_id] = made
            next_at = now + chance.uniform(0, 2 * every_s)
        with database.snapshot() as connection:
            landed, served = _arrived(connection, list(waiting))
        for release_id in landed:
            waiting[release_id].landed = waiting[release_id].landed or time.time()
        for release_id in served:
            made = waiting.pop(release_id)
            made.answerable = time.time()
            done.append(made)
            print(f"{len(done)} of {events}: {made.answerable - made.at:.1f} s", file=sys.stderr)
        if any(now - made.at > LONGEST_S for made in waiting.values()):
            raise SystemExit(f"not answerable after {LONGEST_S:.0f} s: {waiting}")
        time.sleep(0.1)
    return done


def _arrived(connection: Connection, release_ids: list[int]) -> tuple[set[int], set[int]]:
    """Those that the log has, and those that the served index holds."""
    mine = "o.release_id = ANY(%s) AND r.name LIKE 'pushed/%%'"
    landed = connection.execute(
        f"SELECT o.release_id FROM kb.observation o JOIN kb.repository r USING (repository_id) WHERE {mine}",
        (release_ids,),
    )
    served = connection.execute(
        "SELECT i.release_id FROM kb.serving JOIN kb.indexed_observation i USING (version) "
        f"JOIN kb.observation o USING (sequence) JOIN kb.repository r ON r.repository_id = o.repository_id WHERE {mine}",
        (release_ids,),
    )
    return {row[0] for row in landed}, {row[0] for row in served}


def _is_fresh(database: Database) -> bool:
    with database.snapshot() as connection:
        served = connection.execute("SELECT count(*) FROM kb.serving").fetchone()
        return served == (1,) and not index_refresh.stale_repositories(connection)


def _not_found(done: list[Produced], database: Database) -> list[str]:
    found_by = searcher(load_settings(), database)
    missing: list[str] = []
    for made in done:
        passages = found_by.search(f"What was fixed about the {made.word} in {made.repository}?").passages
        if not passages or (passages[0].repository, passages[0].tag) != (made.repository, made.tag):
            missing.append(f"{made.repository} {made.tag}")
    return missing


def _word(chance: random.Random) -> str:
    return "".join(chance.choice("bdfgklmnprtvz") + chance.choice("aeiou") for _ in range(5))


def _settle_in(environment: Mapping[str, str]) -> None:
    """Read settings as the home's own processes do, whatever this shell has set."""
    for name in [name for name in os.environ if name.startswith(("KB_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ.update(environment)


def _delete(address: str, topic: str) -> None:
    names = [f"{topic}{kind}{dead}" for kind in ("", "-documents") for dead in ("", ".dlq")]
    admin = AdminClient({"bootstrap.servers": address})
    there = admin.list_topics(timeout=10).topics
    for future in admin.delete_topics([one for one in names if one in there]).values():
        future.result(20)


if __name__ == "__main__":
    raise SystemExit(main())
