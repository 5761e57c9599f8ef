"""The external assets `kafka/release_events` and `kafka/document_events`, observed by landing what their topics hold.

One run goes on while records come and a while longer, then makes way for the next: starting one takes seconds. Rows and
offsets are written by `kb_platform.stages.landing`, in the database; Dagster's observations are for people who look.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_type_hints

import dagster as dg

from assets.placement import on_cpu
from assets.stage import OWNERS, failing_plainly
from kb_platform.errors import PositionLost
from kb_platform.settings import Settings
from kb_platform.store import dead_letters, loaders, streams
from kb_platform.store.database import Database
from resources.brokers import required

SECONDS_BETWEEN_OBSERVATIONS = 60.0
LANDING_TAG = "kb/landing"

POSITION_HOLDS = "position_holds"
UNDERSTOOD = "records_are_understood"
PUBLISHED = "dead_letters_are_published"

_LANDED = """\
- *Landed* by the job `{job}`: what the events say goes into the log, what cannot be understood into quarantine, and the offset moves
  with both in one transaction. The sensor of the same name asks for a run when records wait.
- *Figures* of an observation are of the time since the one before, a minute mostly; `lag` is what waits.
- *Off* until `KB_KAFKA_BOOTSTRAP_SERVERS` is set.
"""


class Channel(NamedTuple):
    """A topic as an asset. `setting`: the name of the setting that names the topic."""

    key: dg.AssetKey
    job: str
    setting: str
    what: str
    description: str

    def topic(self, settings: Settings) -> str:
        """The topic's name."""
        name: str = getattr(settings, self.setting)
        return name


RELEASES = Channel(
    dg.AssetKey(["kafka", "release_events"]),
    "land_releases",
    "kafka_release_topic",
    "release events",
    "**Release events of a Kafka topic** (`KB_KAFKA_RELEASE_TOPIC`), for producers who push instead of being polled: CloudEvents "
    "that carry GitHub's own `release` webhooks.\n\n" + _LANDED.format(job="land_releases"),
)
DOCUMENTS = Channel(
    dg.AssetKey(["kafka", "document_events"]),
    "land_documents",
    "kafka_document_topic",
    "document events",
    "**Document events of a Kafka topic** (`KB_KAFKA_DOCUMENT_TOPIC`): pages of a wiki, issues of a tracker, whatever has an id, a "
    "source, a title and a body. They are chunked, embedded and cited like releases.\n\n"
    + _LANDED.format(job="land_documents"),
)
CHANNELS = (RELEASES, DOCUMENTS)


class LandedSoFar(Protocol):
    """What a landing says of itself; see kb_platform.stages.landing.Landed, which is one."""

    records: int
    bytes: int
    new: int
    edited: int
    deleted: int
    reappeared: int
    late: int
    quarantined: int
    dead_letters: int
    lag: int
    reasons: dict[str, int]


class Land(Protocol):
    """See kb_platform.stages.landing.land, which is one."""

    def __call__(
        self,
        database: Database,
        brokers: Any,
        settings: Settings,
        topic: str,
        *,
        linger_s: float,
        tell: Callable[[Any], None],
    ) -> LandedSoFar:
        """Land until nothing comes any more, or it is time to make way."""
        ...


def land_by_stage(
    database: Database,
    brokers: Any,
    settings: Settings,
    topic: str,
    *,
    linger_s: float,
    tell: Callable[[Any], None],
) -> LandedSoFar:
    """The stage's own landing; the client's library is loaded where it is used."""
    from kb_platform.stages.landing import land

    return land(database, brokers, settings, topic, linger_s=linger_s, tell=tell)


def landed_topics(
    land: Land = land_by_stage, *, seconds_between: float = SECONDS_BETWEEN_OBSERVATIONS
) -> list[dg.AssetsDefinition]:
    """The external assets with their observations, one every `seconds_between` and one at a run's end."""
    return [_observed(channel, land, seconds_between) for channel in CHANNELS]


def landing_jobs(settings: Settings) -> list[Any]:
    """A job for each topic. In one process everywhere: it waits more than it works, so a pod of its own is enough."""
    return [
        dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
            channel.job,
            selection=dg.AssetSelection.assets(channel.key),
            executor_def=dg.in_process_executor,
            # One place in the queue for each topic, however many runs are asked for; see DAGSTER_YAML in kb_platform.home.
            tags={LANDING_TAG: channel.job, **(on_cpu(settings) if settings.kubernetes else {})},
            description=f"Land {channel.what} until none have come for `KB_KAFKA_LINGER_S` seconds, or the bounds of a run are "
            f"met (`KB_KAFKA_RUN_S`, …). One run lands a topic at a time; a second one ends at once. The sensor "
            f"`{sensor_name(channel)}` asks for it.",
        )
        for channel in CHANNELS
    ]


def sensor_name(channel: Channel) -> str:
    """The sensor that asks for the channel's job.

    >>> sensor_name(RELEASES)
    'landing_releases'
    """
    return channel.job.replace("land_", "landing_", 1)


@dataclass
class _Outcome:
    """How a run of landing ended."""

    mine: bool = True
    lost: PositionLost | None = None


def _observed(channel: Channel, land: Land, seconds_between: float) -> dg.AssetsDefinition:
    def observe(
        context: dg.AssetExecutionContext,
        settings: dg.ResourceParam[Settings],
        database: dg.ResourceParam[Database],
        brokers: dg.ResourceParam[Any],
    ) -> dg.ObserveResult:
        told = _Telling(context, channel.key, seconds_between)
        outcome, topic = _Outcome(), channel.topic(settings)
        try:
            with failing_plainly():
                _land(land, database, required(brokers), settings, topic, told, outcome)
        except dg.DagsterExecutionInterruptedError:
            # What was landed is committed, and the next run goes on: told to stop, a landing has not failed.
            context.log.info("told to stop")
        with failing_plainly():
            checks = _checks(database, settings, topic, told, outcome)
        return dg.ObserveResult(asset_key=channel.key, metadata=told.figures(), check_results=checks)

    observe.__annotations__ = get_type_hints(observe, include_extras=True) | {"return": dg.ObserveResult}
    with warnings.catch_warnings():
        # "Beta" like the backfill policies; the older decorator warns of its own deprecated parts.
        warnings.simplefilter("ignore", dg.BetaWarning)
        spec = dg.AssetSpec(
            channel.key,
            group_name="sources",
            kinds={"kafka"},
            owners=OWNERS,
            description=channel.description,
        )
        decorate: Callable[[Any], dg.AssetsDefinition] = dg.multi_observable_source_asset(
            name=f"land_{channel.key.path[-1]}", specs=[spec], check_specs=_specs(channel)
        )
        return decorate(observe)


def _land(
    land: Land,
    database: Database,
    brokers: Any,
    settings: Settings,
    topic: str,
    told: _Telling,
    outcome: _Outcome,
) -> None:
    with loaders.turn(database, settings.kafka_group, topic) as outcome.mine:
        if not outcome.mine:
            told.say(f"another run is landing {topic}; nothing to do here")
            return
        try:
            told.last = land(database, brokers, settings, topic, linger_s=settings.kafka_linger_s, tell=told)
        except PositionLost as lost:
            # Trying again cannot help: a person says where to go on. The check is red, and the sensor asks for nothing.
            outcome.lost = lost
            told.say(f"{topic}: {in_words(lost)}")


def _specs(channel: Channel) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            POSITION_HOLDS,
            asset=channel.key,
            description="The topic is the one that was read before, and the record to read next is still in it. Nothing is "
            "skipped by itself: `kb kafka reset` says where to go on, asks, and records it.",
        ),
        dg.AssetCheckSpec(
            UNDERSTOOD,
            asset=channel.key,
            description="No record of the run was put into quarantine. `kb quarantine list` shows what waits and why.",
        ),
        dg.AssetCheckSpec(
            PUBLISHED,
            asset=channel.key,
            description="Every record that was put into quarantine is in the dead-letter topic.",
        ),
    ]


def _checks(
    database: Database, settings: Settings, topic: str, told: _Telling, outcome: _Outcome
) -> list[dg.AssetCheckResult]:
    from kb_platform.streams.topics import dead_letter_topic

    dlq = dead_letter_topic(topic)
    with database.snapshot() as connection:
        stored = streams.stream(connection, settings.kafka_group, topic)
        waiting = dead_letters.count_waiting(connection, dlq)
    trouble = in_words(outcome.lost) if outcome.lost else None
    if not outcome.mine and stored is not None and stored.trouble is not None:
        trouble = f"{stored.trouble}: {stored.trouble_detail}. {how_to_go_on(topic)}"
    return [
        dg.AssetCheckResult(
            check_name=POSITION_HOLDS,
            passed=trouble is None,
            description=trouble or f"{topic} can be read on from where it was left",
        ),
        _understood(told.last),
        dg.AssetCheckResult(
            check_name=PUBLISHED,
            passed=not waiting,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{waiting:,} wait to be sent to {dlq}; `kb kafka init` makes it where it is missing"
            if waiting
            else "none waits",
            metadata={"waiting": waiting},
        ),
    ]


def _understood(landed: LandedSoFar | None) -> dg.AssetCheckResult:
    quarantined, reasons = (landed.quarantined, landed.reasons) if landed else (0, {})
    return dg.AssetCheckResult(
        check_name=UNDERSTOOD,
        passed=not quarantined,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{quarantined:,} records of this run are in quarantine: `kb quarantine list` shows why"
        if quarantined
        else "every record of this run was understood",
        metadata={"quarantined": quarantined, **{f"reason/{reason}": n for reason, n in reasons.items()}},
    )


def in_words(lost: PositionLost) -> str:
    """What happened, and what to do about it.

    >>> in_words(PositionLost("missing", "there is no topic kb.releases", hint="`kb kafka init` makes it"))
    'missing: there is no topic kb.releases → `kb kafka init` makes it'
    """
    return f"{lost.reason}: {lost}" + (f" → {lost.hint}" if lost.hint else "")


def how_to_go_on(topic: str) -> str:
    """The command that resolves a lost position."""
    return f"`kb kafka reset --topic {topic}` asks where to go on, and records it"


class _Telling:
    """What a landing says of itself while it runs: observations for the plots, a line for each in the run's log."""

    def __init__(self, context: dg.AssetExecutionContext, key: dg.AssetKey, seconds_between: float) -> None:
        self._context = context
        self._seconds_between = seconds_between
        self._key = key
        self._before: Mapping[str, int] = dict.fromkeys(_COUNTED, 0)
        self._observed_at = time.monotonic()
        self.last: LandedSoFar | None = None

    def __call__(self, landed: LandedSoFar) -> None:
        """Called after each batch, and every second while nothing comes, in the run's own thread."""
        self.last = landed
        if time.monotonic() - self._observed_at >= self._seconds_between:
            self._context.log_event(dg.AssetObservation(self._key, metadata=self.figures()))

    def say(self, line: str) -> None:
        """A line in the run's log."""
        self._context.log.info(line)

    def figures(self) -> dict[str, float]:
        """Of the time since the last observation: sums over a run would be saw teeth in the plots. `lag` is of now."""
        now = time.monotonic()
        seconds, self._observed_at = now - self._observed_at, now
        counts = {name: getattr(self.last, name) if self.last else 0 for name in _COUNTED}
        since = {name: count - self._before[name] for name, count in counts.items()}
        self._before = counts
        lag = self.last.lag if self.last else 0
        self.say(f"{since['records']:,} records in {seconds:,.0f} s, {lag:,} wait")
        return {
            **since,
            "records_per_second": round(since["records"] / seconds, 1) if seconds else 0.0,
            "lag": lag,
            "seconds": round(seconds, 3),
        }


_COUNTED = (
    "records",
    "bytes",
    "new",
    "edited",
    "deleted",
    "reappeared",
    "late",
    "quarantined",
    "dead_letters",
)
