"""The sensors that raise alerts: work that failed, and a knowledge base that is not as fresh as it should be.

They ask for no run. What they find is compared with the alerts in the database, so a tick that is lost or made twice
does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from kb_platform.errors import KbError
from kb_platform.settings import Settings
from kb_platform.stages import alerting
from kb_platform.stages.staleness import work_left
from kb_platform.stages.webhook import Post, webhook
from kb_platform.store.alerts import Alert, Changes
from kb_platform.store.database import Database
from sensors.failed_runs import failed_work
from sensors.opening import Open, opened_once
from sensors.patience import NoAnswer, Patience
from sensors.status import default_sensor_status

SECONDS_BETWEEN = 30
# Together below the 5 s that a tick may take. A message that takes longer is on its way all the same: its thread goes on.
MOST_SECONDS_LOOKING = 3.0
MOST_SECONDS_TELLING = 1.5

_log = logging.getLogger("kb")


def alert_sensors(
    settings: Settings, database: Database | None = None, post: Post | None = None
) -> list[dg.SensorDefinition]:
    """Both sensors. `database`: of the settings of the process that evaluates, by default; `post`: to the address in
    `settings`, if there is one."""
    url = settings.alert_webhook_url
    if post is None and url is not None and url.get_secret_value():
        post = webhook(url)
    opened = opened_once(database)
    return [_run_failures(settings, opened, post), _freshness(settings, opened, post)]


def _run_failures(settings: Settings, opened: Open, post: Post | None) -> dg.SensorDefinition:
    def look(context: dg.SensorEvaluationContext) -> Changes:
        now = datetime.now(UTC)
        database = opened()
        failed = failed_work(context.instance, work_left(database).repositories, now)
        problems = alerting.run_problems(failed.runs)
        return alerting.keep_up(database, [alerting.RUN_FAILED], problems, now, resolve=failed.complete)

    return _sensor(
        "run_failures",
        settings,
        _Tick(look, opened, post),
        "Raises an alert for work whose run failed and that no later run did, and ends it when it is done.",
    )


def _freshness(settings: Settings, opened: Open, post: Post | None) -> dg.SensorDefinition:
    stale_after = timedelta(hours=settings.stale_after_hours)
    kafka_is_on = bool(settings.kafka_bootstrap_servers)

    def look(_context: dg.SensorEvaluationContext) -> Changes:
        now = datetime.now(UTC)
        database = opened()
        problems = alerting.freshness_problems(database, now, stale_after, kafka_is_on=kafka_is_on)
        return alerting.keep_up(database, alerting.FRESHNESS_KINDS, problems, now)

    return _sensor(
        "freshness",
        settings,
        _Tick(look, opened, post),
        "Raises an alert for watched repositories that were not verified within their limit or that polling fails for, "
        "for refused credentials, quarantined records, index versions that their gate holds back, topics that cannot be read on and "
        "brokers that do not answer.",
    )


class _Tick:
    """One evaluation: look and record, then tell the webhook, each for a bounded time."""

    def __init__(
        self, look: Callable[[dg.SensorEvaluationContext], Changes], opened: Open, post: Post | None
    ) -> None:
        self._look = look
        self._opened = opened
        self._post = post
        self._looking: Patience[Changes] = Patience(MOST_SECONDS_LOOKING)
        self._telling: Patience[str | None] = Patience(MOST_SECONDS_TELLING)

    def __call__(self, context: dg.SensorEvaluationContext) -> dg.SkipReason:
        try:
            changes = self._looking.ask(lambda: self._record(context))
        except NoAnswer as error:
            return dg.SkipReason(f"the database is not looked at: {error}")
        news = [*changes.raised, *changes.resolved]
        for line in _lines(news):
            context.log.warning(line)
        return dg.SkipReason("; ".join([_summary(changes), *self._tell()]))

    def _record(self, context: dg.SensorEvaluationContext) -> Changes:
        changes = self._look(context)
        # Here, not in the tick: it may have been given up by now, and what was recorded is news only once.
        for line in _lines([*changes.raised, *changes.resolved]):
            _log.warning(line)
        return changes

    def _tell(self) -> Sequence[str]:
        """What there is to say of the webhook."""
        post = self._post
        if post is None:
            return []
        try:
            error = self._telling.ask(lambda: alerting.tell(self._opened(), post, datetime.now(UTC)))
        except NoAnswer as late:
            return [f"the webhook is waited for: {late}"]
        except KbError as failure:
            return [f"the webhook was not told: {failure}"]
        if error is None:
            return []
        _log.warning("the alert webhook was not told, the next try follows: %s", error)
        return [f"the webhook was not told: {error}"]


def _sensor(name: str, settings: Settings, tick: _Tick, description: str) -> dg.SensorDefinition:
    @dg.sensor(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
        name=name,
        minimum_interval_seconds=SECONDS_BETWEEN,
        default_status=default_sensor_status(settings),
        description=description,
    )
    def evaluate(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return tick(context)

    return evaluate


def _lines(news: Sequence[Alert]) -> list[str]:
    return alerting.lines(news)[1:]


def _summary(changes: Changes) -> str:
    if not changes.raised and not changes.resolved:
        return "nothing new"
    return f"{len(changes.raised):,} alerts raised, {len(changes.resolved):,} resolved"
