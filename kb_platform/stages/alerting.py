"""Alerts: from the state of the world to what should be open, and from what is new to a message.

The rules are functions of what was read and of the time. Does not belong here: reading Dagster's runs (`sensors`), SQL
(`store.alerts`), the request itself (`webhook`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Final

from kb_platform.stages.webhook import Post, slack_escaped
from kb_platform.store import alerts, index_versions, status_summary, streams
from kb_platform.store.alerts import Alert, Changes, Problem
from kb_platform.store.database import Database
from kb_platform.store.index_versions import IndexVersion
from kb_platform.store.status_summary import FAILING_FROM, Credential, Watched
from kb_platform.store.streams import StreamState

RUN_FAILED: Final = "run-failed"
STALE: Final = "stale-repository"
POLLING_FAILS: Final = "polling-fails"
CREDENTIAL: Final = "credential"
QUARANTINE: Final = "quarantine"
PROMOTION: Final = "promotion"
STREAM: Final = "stream"
BROKERS: Final = "brokers"
# Between what failed and what to do, as polling writes it.
_ADVICE: Final = " → "
# What the freshness sensor keeps up; failed runs are the other's.
FRESHNESS_KINDS: Final = (STALE, POLLING_FAILS, CREDENTIAL, QUARANTINE, PROMOTION, STREAM, BROKERS)

GROWTH_OVER: Final = timedelta(days=1)
# A broker that is restarted, or whose partitions move, answers again before that.
UNREACHABLE_FOR: Final = timedelta(minutes=5)
# A credential that was taken off the list is not used, and nobody will mend it.
CREDENTIAL_IN_USE: Final = timedelta(days=1)
MOST_NAMED: Final = 10
_LONGEST_DETAIL: Final = 300
_LONGEST_LINE: Final = 400
# Slack cuts a message at 40,000 characters and nobody reads 4,000.
_LONGEST_MESSAGE: Final = 4_000

# What errors quote may try to talk to the terminal that shows the log.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_TO_DO: Final = {
    "not-found": "it is gone, or the credential may not see it: check the token, or `kb watch remove` it",
    "unauthorized": "the credential is refused: check the token",
    "forbidden": "the credential may not read it: check the token's rights",
    "blocked": "the forge has blocked it: `kb watch remove` it, or wait",
    "redirected": "it was moved: `kb watch add` it under its new name",
}
_BY_ITSELF: Final = "it is tried again by itself; `kb sync` tries at once"
_NOT_POLLED: Final = (
    "nothing polls it: are Dagster's daemon and the sensors on (`kb up`)? `kb sync` polls at once"
)


@dataclass(frozen=True)
class FailedRun:
    """Work that failed and was not done since. `subject` is the same for each try at the same work."""

    subject: str
    run_id: str
    step: str | None
    error: str | None


def run_problems(failed: Sequence[FailedRun]) -> list[Problem]:
    """An alert for each piece of work that failed."""
    return [
        Problem(
            RUN_FAILED,
            run.subject,
            "error",
            f"{f'step {run.step} failed' if run.step else 'the run failed'}"
            f"{f': {clipped(run.error, _LONGEST_DETAIL)}' if run.error else ''} (run {run.run_id})",
        )
        for run in failed
    ]


def freshness_problems(
    database: Database, now: datetime, stale_after: timedelta, *, kafka_is_on: bool = True
) -> list[Problem]:
    """What the database says is wrong: repositories, credentials, the quarantine, index versions, streams.

    `kafka_is_on`: with Kafka off nobody looks at topics any more, and nothing about them can be mended.
    """
    with database.snapshot() as connection:
        watched = status_summary.troubled(connection, now, stale_after)
        credentials = status_summary.credentials(connection)
        quarantined = status_summary.quarantined_since(connection, now - GROWTH_OVER)
        versions = index_versions.versions(connection)
        states = streams.states(connection) if kafka_is_on else []
    return [
        *stale_problems(watched, now, stale_after),
        *polling_problems(watched),
        *credential_problems(credentials, now),
        *quarantine_problems(quarantined),
        *promotion_problems(versions),
        *stream_problems(states),
        *broker_problems(states, now),
    ]


def stale_problems(watched: Sequence[Watched], now: datetime, stale_after: timedelta) -> list[Problem]:
    """Watched repositories whose answers may be out of date."""
    found: list[Problem] = []
    for one in watched:
        if not one.is_stale(now, stale_after):
            continue
        since = f"not verified since {_minute(one.known_since)}"
        if one.verified_at is None:
            since = f"never verified since it was put on the watch list on {_minute(one.added_at)}"
        why = f"; {_why(one)}" if one.failures else ""
        found.append(Problem(STALE, one.repository, "error", f"{since}{why}. {_to_do(one)}"))
    return found


def polling_problems(watched: Sequence[Watched]) -> list[Problem]:
    """Watched repositories that polling failed for several times in a row."""
    return [
        Problem(POLLING_FAILS, one.repository, "warning", f"{_why(one)}. {_to_do(one)}")
        for one in watched
        if one.failures >= FAILING_FROM
    ]


def credential_problems(credentials: Sequence[Credential], now: datetime) -> list[Problem]:
    """Credentials that a forge refuses; a spent budget is none, it comes back by itself."""
    return [
        Problem(
            CREDENTIAL,
            one.name,
            "error",
            f"refused ({clipped(one.blocked_reason, 200).rstrip('.')}). Check that it has not expired and may read the repositories, "
            "set it anew and restart",
        )
        for one in credentials
        # What the forge said may stand behind it.
        if (one.blocked_reason or "").partition(":")[0] in ("unauthorized", "forbidden")
        and (_is_after(one.blocked_until, now) or now - one.updated_at < CREDENTIAL_IN_USE)
    ]


def quarantine_problems(growth: Mapping[str, int]) -> list[Problem]:
    """Records that were refused of late and wait."""
    return [
        Problem(
            QUARANTINE,
            reason,
            "warning",
            f"{count:,} {'record was' if count == 1 else 'records were'} refused in the last 24 h: `kb quarantine list` shows why",
        )
        for reason, count in growth.items()
        if count
    ]


def promotion_problems(versions: Sequence[IndexVersion]) -> list[Problem]:
    """Index versions newer than the served one that their gate holds back."""
    served = max((version.version for version in versions if version.status == "active"), default=0)
    return [
        Problem(
            PROMOTION,
            f"index version {version.version}",
            "error",
            f"its gate does not let it be served: {clipped(_reasons(version.gate), _LONGEST_DETAIL)}. "
            "`kb refresh` completes it, `kb index retire` gives it up",
        )
        for version in versions
        if version.version > served and version.status in ("building", "ready")
        if version.gate is not None and not version.gate.get("passed", True)
    ]


def stream_problems(states: Sequence[StreamState]) -> list[Problem]:
    """Topics that cannot be read on from where they were left."""
    return [
        Problem(
            STREAM,
            f"{one.topic} for {one.group}",
            "error",
            f"nothing is landed since {_minute(one.trouble_since)} ({one.trouble}): "
            f"{clipped(one.trouble_detail, _LONGEST_DETAIL).rstrip('.')}. {stream_advice(one)}",
        )
        for one in states
        if one.trouble is not None and one.trouble_since is not None
    ]


def stream_advice(one: StreamState) -> str:
    """What a person does about a topic that cannot be read on."""
    return f"`kb kafka reset --topic {one.topic}` asks where to go on, and records it"


def broker_problems(states: Sequence[StreamState], now: datetime) -> list[Problem]:
    """Brokers that have not answered for a while: one problem, however many topics they hold."""
    silent = [
        one
        for one in states
        if one.unreachable_since is not None and now - one.unreachable_since > UNREACHABLE_FOR
    ]
    if not silent:
        return []
    since = min(one.unreachable_since for one in silent if one.unreachable_since is not None)
    names = ", ".join(sorted({one.topic for one in silent})[:MOST_NAMED])
    return [
        Problem(
            BROKERS,
            "Kafka",
            "warning",
            f"no broker answers since {_minute(since)} ({clipped(names, _LONGEST_DETAIL)}). What was landed stays, and landing "
            "goes on by itself when they answer; `kb kafka status` says why they do not",
        )
    ]


def keep_up(
    database: Database,
    kinds: Sequence[str],
    problems: Sequence[Problem],
    now: datetime,
    *,
    resolve: bool = True,
) -> Changes:
    """Record the problems; see `store.alerts.bring_up_to_date`."""
    with database.transaction() as connection:
        return alerts.bring_up_to_date(connection, kinds, problems, now, resolve=resolve)


def tell(database: Database, post: Post, now: datetime) -> str | None:
    """Tell the webhook what it does not know yet, in one message. What went wrong; None: nothing did.

    At least once: who is killed after the webhook took the message and before that is recorded, tells it again.
    """
    with database.transaction() as connection:
        if not alerts.only_teller(connection):
            return None
        news = alerts.untold(connection, now)
        if not news:
            return None
        error = post(message(news))
        if error is None:
            alerts.mark_told(connection, news, now)
        else:
            alerts.mark_untold(connection, news, error)
        return error


def message(news: Sequence[Alert]) -> str:
    """The message for the webhook: each alert, or the first ten names and the count of many of a kind."""
    return bounded(lines(news, escape=slack_escaped), _LONGEST_MESSAGE)


def lines(news: Sequence[Alert], *, escape: Callable[[str], str] = str) -> list[str]:
    """What is new in a few lines: the first says how much."""
    raised = [alert for alert in news if alert.resolved_at is None]
    over = [alert for alert in news if alert.resolved_at is not None]
    counts = [f"{len(raised):,} new"] * bool(raised) + [f"{len(over):,} resolved"] * bool(over)
    found = [f"kb-platform alerts: {', '.join(counts)}"]
    for kind, group in _by_kind(raised):
        if len(group) > MOST_NAMED:
            first = clipped(group[0].message, _LONGEST_DETAIL)
            found.append(
                f"{group[0].severity.upper()} {kind}: {escape(f'{_names(group)}. The first: {first}')}"
            )
            continue
        found += [
            f"{alert.severity.upper()} {kind} {escape(clipped(f'{alert.subject}: {alert.message}', _LONGEST_LINE))}"
            for alert in group
        ]
    found += [f"resolved {kind}: {escape(_names(group))}" for kind, group in _by_kind(over)]
    return found


def bounded(parts: Sequence[str], longest: int) -> str:
    """The lines that fit, and how many do not."""
    kept: list[str] = []
    length = 0
    for part in parts:
        length += len(part) + 1
        if length > longest:
            break
        kept.append(part)
    if len(kept) < len(parts):
        kept.append(f"and {len(parts) - len(kept)} more lines: `kb alerts` lists all")
    return "\n".join(kept)


def clipped(text: str | None, longest: int) -> str:
    """A text on one line, cut when long."""
    line = " ".join(_CONTROL.sub(" ", text or "").split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def _by_kind(news: Sequence[Alert]) -> list[tuple[str, list[Alert]]]:
    ordered = sorted(news, key=lambda alert: (alert.severity != "error", alert.kind, alert.subject))
    return [(kind, list(group)) for kind, group in groupby(ordered, key=lambda alert: alert.kind)]


def _names(group: Sequence[Alert]) -> str:
    named = ", ".join(clipped(alert.subject, 80) for alert in group[:MOST_NAMED])
    if len(group) <= MOST_NAMED:
        return named
    return f"{len(group):,}: {named} and {len(group) - MOST_NAMED:,} more"


def _why(one: Watched) -> str:
    since = f" since {_minute(one.failing_since)}" if one.failing_since else ""
    what = (one.detail or "").partition(_ADVICE)[0]
    detail = f": {clipped(what, _LONGEST_DETAIL).rstrip('.')}" if what else ""
    return f"failing{since} ({one.reason or 'no reason given'}){detail}"


def _to_do(one: Watched) -> str:
    if not one.failures:
        return _sentence(_NOT_POLLED)
    # What failed knows best what to do about it.
    if advice := (one.detail or "").partition(_ADVICE)[2]:
        return _sentence(clipped(advice, _LONGEST_DETAIL).rstrip("."))
    return _sentence(_TO_DO.get(one.reason or "", _BY_ITSELF))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _reasons(gate: Mapping[str, Any] | None) -> str:
    findings = (gate or {}).get("findings", [])
    return "; ".join(f"{one['name']}: {one['detail']}" for one in findings if not one.get("passed", True))


def _is_after(moment: datetime | None, now: datetime) -> bool:
    return moment is not None and moment > now


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
