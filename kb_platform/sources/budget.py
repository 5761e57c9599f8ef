"""What a credential may still ask a forge for, and when: GitHub's primary and secondary limits as pure arithmetic.

Belongs here: reading an answer's status and headers, and saying until when nothing may be asked. Does not belong here:
sending requests, and keeping budgets between processes (`store.credentials`).

Every header may be anything at all. What cannot be read counts as absent, and no wait is longer than LONGEST_WAIT.
"""

from __future__ import annotations

import email.utils
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

PRIMARY = "primary"
SECONDARY = "secondary"
UNREACHABLE = "unreachable"

LONGEST_WAIT = timedelta(hours=2)
# GitHub counts by the hour: a reset that is farther away is a mistake, and an hour is what it can have meant.
_HOUR = timedelta(hours=1)
# What a forge says in whole seconds may end up to a second later.
_MARGIN = timedelta(seconds=1)
# GitHub: at least one minute after a secondary limit that says no time, and exponentially more if it goes on.
_FIRST_WAIT = timedelta(minutes=1)
_FIRST_OUTAGE = timedelta(seconds=30)
_LONGEST_OUTAGE = timedelta(minutes=10)
_FAILURES_BEFORE_OUTAGE = 3
_MOST_STRIKES = 100
_JITTER = 0.25

_COUNT = re.compile(r"[0-9]{1,9}")
_SECONDS = re.compile(r"[0-9]{1,15}")
_LIMIT_WORDS = re.compile(r"rate limit|abuse detection", re.IGNORECASE)


@dataclass
class Budget:
    """The state of one credential. All times aware, in UTC, by our own clock.

    `remaining`: requests left until `reset_at`; None: not known, or the forge counts none. `strikes`: secondary limits
    (or failures to answer) in a row, by which waiting grows; `blocked_reason` is the kind of the last one.
    """

    credential: str
    rate_limit: int | None = None
    remaining: int | None = None
    reset_at: datetime | None = None
    blocked_until: datetime | None = None
    blocked_reason: str | None = None
    strikes: int = 0

    def forbidden_until(self, now: datetime) -> datetime | None:
        """Until when nothing may be asked; None: now is fine."""
        ends = [self.blocked_until] if self.blocked_until is not None else []
        if self.remaining is not None and self.remaining <= 0 and self.reset_at is not None:
            ends.append(self.reset_at)
        return max((end for end in ends if end > now), default=None)

    def forbidden_kind(self, now: datetime) -> str:
        """Why nothing may be asked: `primary`, `secondary` or `unreachable`, whichever lasts longest."""
        is_blocked = self.blocked_until is not None and self.forbidden_until(now) == self.blocked_until
        if not is_blocked:
            return PRIMARY
        # Polling blocks credentials for reasons of its own, in words.
        return self.blocked_reason if self.blocked_reason in (PRIMARY, UNREACHABLE) else SECONDARY

    def observe(
        self, status: int, headers: Mapping[str, str], message: str, now: datetime, jitter: random.Random
    ) -> str | None:
        """Take in an answer. Returns the kind of limit that it is, or None when it is none.

        `message`: what the answer says in words, if it is no success. After a limit `forbidden_until(now)` is a time.
        """
        said = {name.lower(): value for name, value in headers.items()}
        clock_skew = _clock_skew(said, now)
        counts = said.get("x-ratelimit-resource", "core") == "core"
        if counts:
            self._count(said, clock_skew, now)
        asked = _retry_after(said.get("retry-after"), clock_skew, now)
        if status >= 500:
            self.fail(now, jitter)
            if asked is not None:
                self.block(asked, UNREACHABLE)
            return None if asked is None else UNREACHABLE
        is_spent = counts and _number(said.get("x-ratelimit-remaining"), _COUNT) == 0
        is_worded = asked is not None or is_spent or bool(_LIMIT_WORDS.search(message))
        if status == 429 or (status == 403 and is_worded):
            return self._limit(asked, is_spent=is_spent, now=now, jitter=jitter)
        self.strikes = 0
        self.blocked_until = self.blocked_reason = None
        return None

    def fail(self, now: datetime, jitter: random.Random) -> None:
        """Take in that there was no answer. The third failure in a row forbids asking: each would cost a time-out."""
        self._strike(UNREACHABLE)
        if self.strikes >= _FAILURES_BEFORE_OUTAGE:
            doublings = self.strikes - _FAILURES_BEFORE_OUTAGE
            self.block(now + _growing(_FIRST_OUTAGE, doublings, _LONGEST_OUTAGE, jitter), UNREACHABLE)

    def _count(self, said: Mapping[str, str], clock_skew: timedelta, now: datetime) -> None:
        limit = _number(said.get("x-ratelimit-limit"), _COUNT)
        remaining = _number(said.get("x-ratelimit-remaining"), _COUNT)
        if limit is not None:
            self.rate_limit = limit
        if remaining is not None:
            self.remaining = remaining
            self.reset_at = _reset(said.get("x-ratelimit-reset"), clock_skew, now)

    def _limit(self, asked: datetime | None, *, is_spent: bool, now: datetime, jitter: random.Random) -> str:
        kind = PRIMARY if is_spent else SECONDARY
        if is_spent and asked is None and self.reset_at is not None:
            self.block(self.reset_at, kind)
            return kind
        self._strike(kind)
        self.block(asked or now + _growing(_FIRST_WAIT, self.strikes - 1, _HOUR, jitter), kind)
        return kind

    def _strike(self, kind: str) -> None:
        # Failures of one kind say little of the other: a night's outage must not make an hour of the first secondary
        # limit after it. Nor may one between two limits make the wait short again.
        other = (self.blocked_reason == UNREACHABLE) != (kind == UNREACHABLE)
        strikes = min(self.strikes, 2) if other and self.blocked_reason is not None else self.strikes
        self.strikes = min(strikes + 1, _MOST_STRIKES)
        self.blocked_reason = kind

    def block(self, until: datetime, kind: str) -> None:
        """Nothing may be asked before `until`."""
        self.blocked_until, self.blocked_reason = until, kind


def _growing(first: timedelta, doublings: int, longest: timedelta, jitter: random.Random) -> timedelta:
    wait = first * 2 ** min(doublings, 20) * (1 + _JITTER * jitter.random())
    return min(wait, longest)


def _number(value: str | None, shape: re.Pattern[str]) -> int | None:
    return int(value) if value is not None and shape.fullmatch(value.strip()) else None


def _clock_skew(said: Mapping[str, str], now: datetime) -> timedelta:
    """How far our clock is before the forge's; nothing when it does not say its time."""
    date = _date(said.get("date"))
    return timedelta(0) if date is None else now - date


def _date(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        date = email.utils.parsedate_to_datetime(value)
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _retry_after(value: str | None, clock_skew: timedelta, now: datetime) -> datetime | None:
    """When `Retry-After` (seconds, or a date by the forge's clock; RFC 9110, 10.2.3) ends; None unless it is ahead."""
    seconds = _number(value, _SECONDS)
    if seconds is not None:
        wait = timedelta(seconds=min(seconds, 10**6))
    elif (date := _date(value)) is not None:
        wait = _ahead(date, clock_skew, now) + _MARGIN
        wait = wait if wait > _MARGIN else timedelta(0)
    else:
        return None
    return now + min(wait, LONGEST_WAIT) if wait > timedelta(0) else None


def _reset(value: str | None, clock_skew: timedelta, now: datetime) -> datetime | None:
    """When the hour's budget is full again, by our clock; None when that is unreadable or past."""
    seconds = _number(value, _SECONDS)
    if seconds is None:
        return None
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return now + _HOUR
    wait = _ahead(moment, clock_skew, now)
    if wait <= timedelta(0):
        return None
    return now + (wait + _MARGIN if wait <= LONGEST_WAIT - _MARGIN else _HOUR)


def _ahead(moment: datetime, clock_skew: timedelta, now: datetime) -> timedelta:
    # Differences, not moments: a skew of centuries added to a moment would leave the calendar.
    return (moment - now) + clock_skew
