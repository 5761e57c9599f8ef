"""The sensors that keep landing going: one for each topic. They read no record, only where the topic ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import dagster as dg

from assets.landing import CHANNELS, POSITION_HOLDS, Channel, in_words, sensor_name
from kb_platform.errors import KbError, PositionLost
from kb_platform.settings import Settings
from kb_platform.store import loaders
from kb_platform.store.database import Database
from resources.brokers import brokers_of
from sensors.opening import Open, opened_once
from sensors.patience import NoAnswer, Patience
from sensors.status import default_sensor_status
from sensors.under_way import failed_in_a_row

# The daemon looks at its sensors every 5 seconds, and leaves out one whose interval is not quite over.
SECONDS_BETWEEN = 3
MOST_SECONDS = 4.0
MOST_RUNS = 20
# Lag that changes is plotted so often, lag that stays the same so seldom.
OBSERVED_AFTER_S = 30.0
OBSERVED_ANYWAY_AFTER_S = 600.0

_BEGINNING = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
_BEGUN = [dg.DagsterRunStatus.STARTED]
# From a run's first word to its turn at the topic: imports, on a machine that is busy with other runs.
LONGEST_IMPORT = timedelta(minutes=1)

AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


class LagSeen(Protocol):
    """See kb_platform.stages.lag.Look, which is one."""

    @property
    def lag(self) -> int: ...
    @property
    def trouble(self) -> PositionLost | None: ...
    @property
    def landed_at(self) -> datetime | None: ...


class Looking(Protocol):
    """Asks brokers and database how far a topic was read; keeps its connections open between questions."""

    def look(self, database: Database, settings: Settings, topic: str) -> LagSeen:
        """Raises BrokersUnavailable, BrokersRefused, PositionLost for a topic that never was, SettingsError."""
        ...


class BrokerLooking:
    """Looks through one client that stays connected; after an error through a new one. Asked by one thread at a time."""

    def __init__(self) -> None:
        self._topics: Any = None

    def look(self, database: Database, settings: Settings, topic: str) -> LagSeen:
        """See Looking."""
        # The client's library is loaded where it is used.
        from kb_platform.stages import lag
        from kb_platform.streams.topics import Topics

        if self._topics is None:
            self._topics = Topics(brokers_of(settings))  # pyright: ignore[reportArgumentType] - Kafka is on
        try:
            return lag.look(database, self._topics, settings, topic)
        except PositionLost:
            raise
        except BaseException:
            # A client that has lost its controller asks on for a minute, where a new one is answered at once.
            broken, self._topics = self._topics, None
            broken.close()
            raise


class _State(NamedTuple):
    """What was seen. `landing`: somebody lands the topic at this moment."""

    lag: int
    trouble: PositionLost | None
    landed_at: datetime | None
    landing: bool


def landing_sensors(
    settings: Settings,
    database: Database | None = None,
    looking: Callable[[], Looking] = BrokerLooking,
) -> list[dg.SensorDefinition]:
    """A sensor for each topic. `database`: of the settings of the process that evaluates, by default."""
    return [_sensor(channel, settings, opened_once(database), looking()) for channel in CHANNELS]


def _sensor(channel: Channel, settings: Settings, opened: Open, looking: Looking) -> dg.SensorDefinition:
    tick = _Tick(channel, settings, opened, looking)

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
        name=sensor_name(channel),
        job_name=channel.job,
        minimum_interval_seconds=SECONDS_BETWEEN,
        default_status=default_sensor_status(settings),
        description=f"Keeps one landing run going while {channel.what} wait in their topic, and plots how many. Reads no record. "
        "Runs that fail are asked for again after a pause that doubles; nothing is asked for when the position is lost.",
    )
    def landing(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return tick(context.instance)

    return landing


class _Tick:
    """One evaluation after the other; remembers what it told Dagster last, so as not to repeat it."""

    def __init__(
        self,
        channel: Channel,
        settings: Settings,
        opened: Open,
        looking: Looking,
    ) -> None:
        self._channel = channel
        self._settings = settings
        self._opened = opened
        self._looking = looking
        self._patience: Patience[_State] = Patience(MOST_SECONDS)
        self._plot = Plot()

    def __call__(self, instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
        if not self._settings.kafka_bootstrap_servers:
            return dg.SkipReason("Kafka is off: KB_KAFKA_BOOTSTRAP_SERVERS is not set")
        topic = self._channel.topic(self._settings)
        try:
            state = self._patience.ask(lambda: self._look(topic))
        except NoAnswer as error:
            return dg.SkipReason(f"{topic} is not looked at: {error}")
        except PositionLost as lost:
            state = _State(0, lost, None, landing=False)
        except KbError as error:
            return dg.SkipReason(
                f"{topic} is not looked at: {error}" + (f" → {error.hint}" if error.hint else "")
            )
        events = self._events(instance, state)
        why_not = _why_not(instance, self._channel, state, self._settings)
        if why_not is not None:
            return dg.SensorResult(skip_reason=why_not, asset_events=events)
        return dg.SensorResult(run_requests=[dg.RunRequest()], asset_events=events)

    def _look(self, topic: str) -> _State:
        settings, database = self._settings, self._opened()
        seen = self._looking.look(database, settings, topic)
        with database.snapshot() as connection:
            landing = loaders.is_landing(connection, settings.kafka_group, topic)
        return _State(seen.lag, seen.trouble, seen.landed_at, landing)

    def _events(self, instance: dg.DagsterInstance, state: _State) -> list[AssetEvent]:
        return [*self._check(instance, state), *self._observation(state)]

    def _check(self, instance: dg.DagsterInstance, state: _State) -> list[AssetEvent]:
        """The check as it is now, where the last evaluation said otherwise. A run that works says so itself at its end."""
        last = _last_evaluation(instance, self._channel)
        if state.trouble is None and (last is None or last.passed):
            return []
        words = in_words(state.trouble) if state.trouble else "the position is in the topic again"
        if last is not None and (last.passed, last.description) == (state.trouble is None, words):
            return []
        return [
            dg.AssetCheckEvaluation(
                asset_key=self._channel.key,
                check_name=POSITION_HOLDS,
                passed=state.trouble is None,
                description=words,
            )
        ]

    def _observation(self, state: _State) -> list[AssetEvent]:
        if state.trouble is not None or not self._plot.is_due(state.lag):
            return []
        return [dg.AssetObservation(self._channel.key, metadata={"lag": state.lag})]


class Plot:
    """Which lags are plotted: those that changed, not too often, and now and then one that did not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[float, int] | None = None

    def is_due(self, lag: int) -> bool:
        """Whether this one is; if so, it is the last."""
        now = self._clock()
        if self._last is not None:
            at, known = self._last
            if now - at < (OBSERVED_AFTER_S if lag != known else OBSERVED_ANYWAY_AFTER_S):
                return False
        self._last = (now, lag)
        return True


def _why_not(instance: dg.DagsterInstance, channel: Channel, state: _State, settings: Settings) -> str | None:
    """Why no run is asked for; None when one is."""
    now = datetime.now(UTC)
    if state.trouble is not None:
        return in_words(state.trouble)
    if state.landing:
        return f"a run is landing; {state.lag:,} records wait"
    if not state.lag:
        return "all is landed"
    if _is_about_to_land(instance, channel, now, longest_start(settings)):
        return f"a run is about to land; {state.lag:,} records wait"
    pause = failed_in_a_row(instance, channel.job, state.landed_at).pause_left(now).total_seconds()
    if pause:
        return f"{state.lag:,} records wait; the last runs failed, the next try is in {pause:,.0f} s"
    return None


def longest_start(settings: Settings) -> timedelta:
    """How long a run may take from when it was made, or left the queue, to its first word. On a cluster its node may have to
    be started first, and its image pulled."""
    return timedelta(minutes=20) if settings.kubernetes else timedelta(minutes=1)


def _is_about_to_land(
    instance: dg.DagsterInstance, channel: Channel, now: datetime, longest: timedelta
) -> bool:
    queued = dg.RunsFilter(job_name=channel.job, statuses=[dg.DagsterRunStatus.QUEUED])
    if instance.get_run_records(queued, limit=1):
        return True
    # Whoever lands has a lock in the database. A run without it is about to take it, or its process is gone: a daemon that
    # is killed after it made a run, or as it starts one, leaves a record that nothing belongs to.
    return any(
        now - record.update_timestamp.replace(tzinfo=UTC) < limit
        for statuses, limit in ((_BEGINNING, longest), (_BEGUN, LONGEST_IMPORT))
        for record in instance.get_run_records(
            dg.RunsFilter(job_name=channel.job, statuses=statuses), limit=MOST_RUNS
        )
    )


def _last_evaluation(instance: dg.DagsterInstance, channel: Channel) -> dg.AssetCheckEvaluation | None:
    key = dg.AssetCheckKey(channel.key, POSITION_HOLDS)
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    event = records[0].event if records else None
    if event is None or event.dagster_event is None:
        return None
    found = event.dagster_event.event_specific_data
    return found if isinstance(found, dg.AssetCheckEvaluation) else None
