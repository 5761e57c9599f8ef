"""What a day of polling 1,000 repositories leaves behind: in memory, in the sensors' ticks, in Dagster's tables.

    python benchmarks/polling_day.py [--full] [--hours 2] [--repositories 200] [--ticks 500] [--days 40] [--seed 1]

1. Hours on a simulated clock: one lane polls every repository each 15 minutes at a stand-in for GitHub whose answers
   take 0.15 s; notes are edited, downloads counted, and now and then requests are refused. How much memory does the
   process have, and who was polled late? The stand-in is part of the process, but what happens there makes it no bigger.
2. Ticks of the four sensors against a real Dagster instance on PostgreSQL whose tables hold `--days` days: a real run of
   `poll` and one of `refresh`, copied 144 times and 20 times a day, and one refresh of every partition. Every tick is
   recorded as the daemon does. In half of them a repository is stale.
3. Night: `assets.history.prune` with a retention of 30 days. What goes, how long that takes, and whether Dagster still
   knows of every partition what it knew. (Ticks are the daemon's to prune: `retention` in `dagster.yaml`.)

`--full`: 24 hours, 1,000 repositories, 60 days. A home folder of its own, which it removes. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import httpx2
import psutil
import psycopg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus

from assets.history import prune
from assets.partitions import register
from assets.polling import POLL
from kb_platform.definitions import build_defs, refresh_in_process
from kb_platform.home import dagster_database_url, open_database
from kb_platform.settings import Settings, load_settings
from kb_platform.stages.polling_session import Totals
from kb_platform.store.database import Database
from kb_platform.store.embedded import EmbeddedServer
from resources.dagster_storage import open_instance
from sensors.alerts import alert_sensors
from sensors.polling import polling_sensor
from sensors.staleness import stale_index_sensor
from tests.github_stand_in import StandIn
from tests.github_weather import Rates, Weather
from tests.hashing_embedder import hashing_model
from tests.job import Job
from tests.polled import Watching
from tests.simulated_clock import SimulatedClock

INTERVAL_S = 900
LATENCY_S = 0.15
RELEASES = 3
# Nothing that makes the stand-in bigger.
RATES = Rates(
    insert=0, backport=0, delete=0, move_tag=0, rename=0, reuse_name=0, draft=0, hide=0, drift=0,
    edit=0.002, flip_prerelease=0.001, count_downloads=0.01, storm=0.05,
)  # fmt: skip
RUNS_A_DAY = {"poll": 144, "refresh": 20}
OBSERVATIONS_A_POLL = 10
RETENTION = timedelta(days=30)
PATTERN = "acme/pattern"
TICKS_A_DAY = 17_280
TABLES = ("runs", "run_tags", "event_logs", "job_ticks")

# Targets.
MOST_MB_A_DAY = 10.0
MOST_SECONDS_A_TICK = 5.0
# In fewer samples the allocator's steps are all that there is to see.
FEWEST_HOURS = 12

COPY_RUNS = """
    INSERT INTO runs (run_id, snapshot_id, pipeline_name, mode, status, run_body, partition, partition_set,
                      create_timestamp, update_timestamp, start_time, end_time)
    SELECT c.run_id, snapshot_id, pipeline_name, mode, status,
           replace(replace(run_body, c.original, c.run_id), %(pattern)s, c.partition),
           replace(r.partition, %(pattern)s, c.partition), partition_set,
           c.at, c.at + interval '1 min', extract(epoch FROM c.at), extract(epoch FROM c.at) + 60
    FROM copies c JOIN runs r ON r.run_id = c.original ORDER BY c.at"""
COPY_TAGS = """
    INSERT INTO run_tags (run_id, key, value)
    SELECT c.run_id, t.key, replace(t.value, %(pattern)s, c.partition)
    FROM copies c JOIN run_tags t ON t.run_id = c.original"""
COPY_EVENTS = """
    INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    SELECT c.run_id, replace(replace(e.event, c.original, c.run_id), %(pattern)s, c.partition),
           e.dagster_event_type, c.at, e.step_key, e.asset_key, replace(e.partition, %(pattern)s, c.partition)
    FROM copies c JOIN event_logs e ON e.run_id = c.original
    CROSS JOIN LATERAL generate_series(
        1, CASE e.dagster_event_type WHEN 'ASSET_OBSERVATION' THEN %(observations)s ELSE 1 END)
    ORDER BY c.at, e.id"""


class Distant(StandIn):
    """A stand-in whose answers take as long as those of a host far away."""

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        """See StandIn."""
        self.clock.sleep(LATENCY_S)
        return super().handle(request)


class Verdicts:
    """What was measured against what was wanted."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def check(self, is_met: bool, what: str) -> None:
        """Print and remember."""
        print(f"{'ok    ' if is_met else 'MISSED'} {what}", flush=True)
        if not is_met:
            self.missed.append(what)


class Plant:
    """A knowledge base that watches repositories at a stand-in."""

    def __init__(self, database: Database, *, repositories: int, hours: float, seed: int) -> None:
        # It ends about now, because sensors look at the real clock.
        self.clock = SimulatedClock(datetime.now(UTC) - timedelta(hours=hours, minutes=5))
        self.stand_in = Distant(self.clock, seed=seed, log_limit=1_000)
        self.names = [PATTERN, *(f"acme/tool-{n}" for n in range(repositories - 1))]
        self.numbers = [self.stand_in.add_repository(name, RELEASES) for name in self.names]
        self.weather = Weather(self.stand_in, seed, self.numbers, RATES)
        self.watching = Watching(database, self.stand_in, self.clock, interval_s=INTERVAL_S, seed=seed)
        self.watching.watch(*self.names)
        self.chance = random.Random(seed)

    def close(self) -> None:
        """Close connections."""
        self.watching.close()

    def interval(self) -> Totals:
        """What happens in an interval, and what its polls came to."""
        self.weather.step()
        self.weather.events.clear()
        self.watching.run_for(INTERVAL_S)
        totals = Totals()
        for attempt in self.watching.attempts:
            totals.count(attempt)
        self.watching.attempts.clear()
        return totals

    def make_stale(self, name: str) -> None:
        """Another text in a release, and the poll that sees it."""
        number = self.numbers[self.names.index(name)]
        release = next(iter(self.stand_in.find(number).releases))
        self.stand_in.edit(number, release, body=self.stand_in.find(number).inventor.notes())
        self.watching.poll(name)


def resident_mb() -> float:
    """Memory of this process in MB, without what only waits to be collected."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def poll_hours(plant: Plant, hours: int, verdicts: Verdicts) -> None:
    """Part 1."""
    print(
        f"{'hour':>4} {'polls':>7} {'requests':>8} {'304':>6} {'latest poll':>11} {'memory':>9} {'ms a poll':>9}"
    )
    samples: list[tuple[float, float]] = []
    latest, polls, refused = 0.0, 0, 0
    for hour in range(1, hours + 1):
        begun = time.perf_counter()
        intervals = [plant.interval() for _ in range(3600 // INTERVAL_S)]
        seconds = time.perf_counter() - begun
        turns, requests = sum(one.turns for one in intervals), sum(one.requests for one in intervals)
        not_modified = sum(one.answers["304"] for one in intervals)
        late = max(one.late_s for one in intervals)
        latest, polls = max(latest, late), polls + turns
        refused += sum(one.answers[kind] for one in intervals for kind in ("403", "429"))
        samples.append((float(hour), resident_mb()))
        print(
            f"{hour:>4} {turns:>7,} {requests:>8,} {not_modified / max(requests, 1):>6.1%} {late:>9.0f} s "
            f"{samples[-1][1]:>6.1f} MB {1000 * seconds / max(turns, 1):>9.1f}",
            flush=True,
        )
    settled = samples[2:]
    if len(settled) >= FEWEST_HOURS:
        slope = 24 * statistics.linear_regression(*zip(*settled, strict=True)).slope
        verdicts.check(
            slope < MOST_MB_A_DAY, f"memory grows by {slope:.1f} MB a day, the first two hours left out"
        )
    verdicts.check(
        latest <= INTERVAL_S,
        f"nobody was polled later than {latest:.0f} s past due, of an interval of {INTERVAL_S} s; "
        f"{polls:,} polls, {refused} refusals",
    )
    forbidden = len(plant.stand_in.forbidden_requests())
    verdicts.check(forbidden == 0, f"{forbidden} requests in a forbidden window")


def real_runs(plant: Plant, instance: dg.DagsterInstance, job: Job, settings: Settings) -> dict[str, str]:
    """The index up to date, and a real run of `poll` and of `refresh` by name → run id."""
    database = plant.watching.database
    job.run()
    register(instance, plant.names)
    plant.make_stale(PATTERN)
    refreshed = refresh_in_process(
        [PATTERN], instance=instance, database=database, settings=settings, load_embedder=job.load,
        configured_model=lambda: job.model,
    )  # fmt: skip
    if refreshed.problems:
        raise SystemExit(f"the refresh failed: {refreshed.problems}")
    one_round = settings.model_copy(update={"poll_session_s": 0.0, "poll_interval_s": float(INTERVAL_S)})
    defs = build_defs(
        settings=one_round, database=database, forge_for=lambda _source, _url: plant.watching.forge
    )
    polled = defs.resolve_job_def(POLL).execute_in_process(
        instance=instance, run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    )
    return {"poll": polled.run_id, "refresh": refreshed.run_ids[0]}


def copy_runs(url: str, originals: dict[str, str], plan: Sequence[tuple[str, str, datetime]]) -> None:
    """Write runs into Dagster's tables, oldest first. `plan`: (which, partition, when it was)."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TEMP TABLE copies (run_id text, original text, partition text, at timestamp) ON COMMIT DROP"
        )
        with connection.cursor().copy("COPY copies FROM STDIN") as copy:
            for which, partition, at in plan:
                copy.write_row((str(uuid.uuid4()), originals[which], partition, at.replace(tzinfo=None)))
        given = {"pattern": PATTERN, "observations": OBSERVATIONS_A_POLL}
        connection.execute("ANALYZE copies")
        for statement in (COPY_RUNS, COPY_TAGS, COPY_EVENTS):
            connection.execute(statement.encode(), given)


def days_of_runs(names: Sequence[str], days: int, chance: random.Random) -> list[tuple[str, str, datetime]]:
    """Every partition was made on some day; then the runs of each day."""
    now = datetime.now(UTC)
    plan = [("refresh", name, now - timedelta(days=chance.uniform(1, days))) for name in names]
    for which, count in RUNS_A_DAY.items():
        gap = timedelta(days=1) / count
        plan += [(which, chance.choice(names), now - gap * place) for place in range(count * days)]
    return sorted(plan, key=lambda item: item[2])


def rows(url: str) -> dict[str, tuple[int, float]]:
    """Rows and MB, indexes included, of Dagster's tables that grow."""
    found: dict[str, tuple[int, float]] = {}
    with psycopg.connect(url) as connection:
        for table in TABLES:
            row = connection.execute(
                f"SELECT count(*), pg_total_relation_size('{table}') / 1e6 FROM {table}".encode()
            ).fetchone()
            assert row is not None
            found[table] = (int(row[0]), float(row[1]))
    return found


def tick(plant: Plant, instance: dg.DagsterInstance, job: Job, ticks: int, verdicts: Verdicts) -> None:
    """Part 2."""
    database, settings = plant.watching.database, load_settings()
    sensors = [
        polling_sensor(settings, database), stale_index_sensor(settings, database), *alert_sensors(settings, database),
    ]  # fmt: skip
    seconds: dict[str, list[float]] = {sensor.name: [] for sensor in sensors}
    requested: Counter[str] = Counter()
    samples: list[tuple[float, float]] = []
    stale: str | None = None
    for number in range(ticks):
        if number % 25 == 0:
            # As many ticks with something stale as without.
            if stale is not None:
                job.run(stale)
                stale = None
            else:
                stale = plant.chance.choice(plant.names)
                plant.make_stale(stale)
        for sensor in sensors:
            begun = time.perf_counter()
            with dg.build_sensor_context(instance=instance) as context:
                result = sensor.evaluate_tick(context)
            requested[sensor.name] += len(result.run_requests or [])
            record_tick(instance, sensor.name, result.skip_message)
            seconds[sensor.name].append(time.perf_counter() - begun)
        if number % max(ticks // 25, 1) == 0:
            samples.append((float(number), resident_mb()))
    print(f"\n{'sensor':<14} {'p50 ms':>8} {'max ms':>8} {'requests of runs':>16}   ({ticks:,} ticks each)")
    for name, taken in seconds.items():
        print(
            f"{name:<14} {1000 * statistics.median(taken):>8.1f} {1000 * max(taken):>8.1f} {requested[name]:>16,}"
        )
    longest = max(max(taken) for taken in seconds.values())
    verdicts.check(longest < MOST_SECONDS_A_TICK, f"the longest tick took {longest:.2f} s")
    settled = samples[len(samples) // 4 :]
    growth = settled[-1][1] - settled[0][1]
    slope = TICKS_A_DAY * statistics.linear_regression(*zip(*settled, strict=True)).slope
    said = f"memory {growth:+.1f} MB over the last {settled[-1][0] - settled[0][0]:,.0f} ticks, a slope of {slope:.1f} MB a day"
    if ticks >= TICKS_A_DAY // 4:
        verdicts.check(slope < MOST_MB_A_DAY, said)
    else:
        print(f"       {said}")


def record_tick(instance: dg.DagsterInstance, name: str, skipped: str | None) -> None:
    """As the daemon does: before a tick, and once it is over."""
    now = time.time()
    begun = TickData(name, name, InstigatorType.SENSOR, TickStatus.STARTED, now, selector_id=name)
    status = TickStatus.SKIPPED if skipped else TickStatus.SUCCESS
    instance.update_tick(
        instance.create_tick(begun).with_status(status, skip_reason=skipped, end_timestamp=now)
    )


def night(instance: dg.DagsterInstance, url: str, verdicts: Verdicts) -> None:
    """Part 3."""
    known, before = _known(instance), rows(url)
    begun = time.perf_counter()
    pruned = prune(instance, datetime.now(UTC) - RETENTION)
    seconds = time.perf_counter() - begun
    after = rows(url)
    print(f"\n{'table':<12} {'rows':>10} {'MB':>8} {'after':>10}   (prune, older than {RETENTION.days} days)")
    for table, (count, size) in before.items():
        print(f"{table:<12} {count:>10,} {size:>8.1f} {after[table][0]:>10,}")
    handled = pruned.deleted + pruned.kept
    print(
        f"{pruned.deleted:,} runs deleted, {pruned.kept:,} kept in {seconds:.1f} s, "
        f"{1000 * seconds / max(handled, 1):.1f} ms a run"
    )
    verdicts.check(_known(instance) == known, "every partition's last materialization is what it was")
    verdicts.check(prune(instance, datetime.now(UTC) - RETENTION).deleted == 0, "a second time nothing goes")


def _known(instance: dg.DagsterInstance) -> dict[str, tuple[set[str], dict[str, int]]]:
    """By asset: its partitions, and the event by which each was made last."""
    made = dg.DagsterEventType.ASSET_MATERIALIZATION
    return {
        key.to_user_string(): (
            set(instance.get_materialized_partitions(key)),
            dict(instance.event_log_storage.get_latest_storage_id_by_partition(key, made)),
        )
        for key in instance.all_asset_keys()
    }


@contextmanager
def home() -> Generator[Path]:
    """A home folder that nobody else's settings reach."""
    folder = Path(tempfile.mkdtemp(prefix="kbd-"))
    for name in [name for name in os.environ if name.startswith("KB_")]:
        del os.environ[name]
    os.environ["KB_HOME"] = str(folder)
    try:
        yield folder
    finally:
        EmbeddedServer(folder).stop()
        shutil.rmtree(folder, ignore_errors=True)


def measure(given: argparse.Namespace) -> list[str]:
    """All parts; what was missed."""
    verdicts = Verdicts()
    settings = load_settings()
    with closing(open_database(settings)) as database, open_instance(settings) as instance:
        plant = Plant(database, repositories=given.repositories, hours=given.hours, seed=given.seed)
        with closing(plant):
            print(f"{given.repositories:,} repositories, each polled every {INTERVAL_S // 60} minutes")
            poll_hours(plant, given.hours, verdicts)
            job = Job(database, hashing_model())
            url = dagster_database_url(settings)
            originals = real_runs(plant, instance, job, settings)
            copy_runs(url, originals, days_of_runs(plant.names, given.days, plant.chance))
            tick(plant, instance, job, given.ticks, verdicts)
            night(instance, url, verdicts)
    return verdicts.missed


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--hours", type=int, default=2)
    parser.add_argument("--repositories", type=int, default=200)
    parser.add_argument("--ticks", type=int, default=500)
    parser.add_argument("--days", type=int, default=40, help="of Dagster's history")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.full:
        given.hours, given.repositories, given.days = 24, 1_000, max(given.days, 60)
    # A storm has a warning for every poll that it meets.
    logging.getLogger("kb").setLevel(logging.ERROR)
    with home():
        missed = measure(given)
    print(f"\n{len(missed)} targets missed" if missed else "\nall targets met", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
