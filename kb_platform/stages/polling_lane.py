"""Whose turn it is: the repositories of one forge polled one after the other, the longest overdue first.

A lane asks a forge serially, with whichever credential may ask; each repository keeps to one as long as it may, because
ETags are a credential's own. One that fails waits, longer each time, and holds up no other. Lanes of different forges do
not wait for each other (`polling_session`).
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from kb_platform.clock import Clock
from kb_platform.errors import KbError, NotKnown, RateLimited, SourceRefused, StoreError
from kb_platform.settings import Settings
from kb_platform.sources.budget import Budget
from kb_platform.sources.forge import Forge
from kb_platform.stages.importing import Imported
from kb_platform.stages.polling import PAGES_A_TURN, Poll, Polled, TurnOver
from kb_platform.store import polls
from kb_platform.store.credentials import Ledger, tally
from kb_platform.store.database import Database
from kb_platform.store.repositories import mark_verified
from kb_platform.store.watch_list import Watch

SHORTEST_BACK_OFF = timedelta(seconds=30)
LONGEST_BACK_OFF = timedelta(hours=1)
# A token that was refused is tried again, in case somebody has mended it where it was made.
REFUSED_CREDENTIAL_WAITS = timedelta(minutes=15)
# Polling that spends all of an hour's budget would leave nothing for what a person asks for.
RESERVE = 0.05
FORGE_FAILED_WAITS = timedelta(minutes=1)
# Somebody else is at it (`kb sync`): look again soon.
BUSY_ELSEWHERE = timedelta(seconds=5)
TALLIED_EVERY = 50
# Read ahead, so that a round of thousands does not ask the database for each.
DUE_AT_ONCE = 100

log = logging.getLogger("kb")


@dataclass
class Attempt:
    """What one turn of one repository came to.

    `until`: nobody may ask for it before then; nothing was decided. `alone`: that is so of this repository, not of all.
    `more`: its list goes on, with the next turn.
    """

    repository: str
    outcome: polls.Outcome | str
    imported: Imported = field(default_factory=Imported)
    answers: dict[str, int] = field(default_factory=dict[str, int])
    by_credential: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    late_s: float = 0.0
    truncated: bool = False
    verified: bool = False
    reason: str | None = None
    detail: str | None = None
    until: datetime | None = None
    alone: bool = False
    more: bool = False


class Lane:
    """The turns of one forge. For one thread; it has locks of its own."""

    def __init__(
        self,
        database: Database,
        forge: Forge,
        settings: Settings,
        clock: Clock,
        *,
        tell: Callable[[Attempt], object] = lambda _attempt: None,
        jitter: random.Random | None = None,
        pages_a_turn: int = PAGES_A_TURN,
        reserve: float = RESERVE,
    ) -> None:
        """`reserve`: the share of each hour's budget that is left to others, such as a person's `kb sync`."""
        self._reserve = reserve
        self._database = database
        self._forge = forge
        self._settings = settings
        self._clock = clock
        self._tell = tell
        self._jitter = jitter or random.Random()  # noqa: S311 - nobody gains by guessing it
        self._pages_a_turn = pages_a_turn
        self._ledger = Ledger(database)
        self._queue: list[Watch] = []
        self._shut_until: datetime | None = None
        self._turns = 0
        self._uncounted: dict[str, dict[str, int]] = {}

    def close(self) -> None:
        """Give up all locks, and write down what was counted."""
        try:
            self._write_tallies()
        finally:
            self._ledger.close()

    def step(self) -> datetime | None:
        """Poll whose turn it is. Returns None when there may be more to do at once, else until when there is nothing:
        nobody is due, or nobody may ask (None watched: far away)."""
        now = self._clock.now()
        if self._shut_until is not None and now < self._shut_until:
            return self._shut_until
        self._shut_until = None
        watch = self._next(now)
        if watch is None:
            self._write_tallies()
            with self._database.snapshot() as connection:
                return polls.next_due(connection, self._forge.name) or now + LONGEST_BACK_OFF
        attempt = self.poll(watch)
        if attempt.until is not None and not attempt.alone:
            self._queue.clear()
            self._shut_until = attempt.until
        return self._shut_until

    def poll(self, watch: Watch) -> Attempt:
        """One repository's turn, now, whether it is due or not.

        What fails is in the result and in the database; raises only what concerns all (StoreError).
        """
        with self._ledger.repository(watch.repository_id) as mine:
            if not mine:
                with self._database.transaction() as connection:
                    polls.postpone(connection, watch.repository_id, self._clock.now() + BUSY_ELSEWHERE)
                return Attempt(watch.name, "busy", reason="another process is polling it")
            attempt = self._attempt(watch)
            self._tally(attempt)
        attempt.late_s = max((self._clock.now() - watch.due_at).total_seconds(), 0.0)
        self._tell(attempt)
        return attempt

    def _tally(self, attempt: Attempt) -> None:
        """Keep the counts of a while together: a row for each poll would be most of what polling writes."""
        for credential, answers in attempt.by_credential.items():
            _add(self._uncounted.setdefault(credential, {}), answers)
        self._turns += 1
        if self._turns % TALLIED_EVERY == 0:
            self._write_tallies()

    def _write_tallies(self) -> None:
        if self._uncounted:
            with self._database.transaction() as connection:
                for credential, answers in self._uncounted.items():
                    tally(connection, credential, answers, self._clock.now())
            self._uncounted.clear()

    def _next(self, now: datetime) -> Watch | None:
        if not self._queue:
            with self._database.snapshot() as connection:
                self._queue = polls.due(connection, self._forge.name, now, limit=DUE_AT_ONCE)
        return self._queue.pop(0) if self._queue else None

    def _attempt(self, watch: Watch) -> Attempt:
        """Ask with one credential after the other until one is told something."""
        waits: list[datetime] = []
        refused: SourceRefused | None = None
        attempt = Attempt(watch.name, "failed")
        try:
            credentials = self._in_order(watch)
        except RateLimited as limit:
            attempt.outcome, attempt.until = "waiting", limit.until
            return attempt
        except SourceRefused as error:
            # Of an App whose installations cannot be listed: no other repository would fare better.
            self._failed(watch, attempt, error.reason, error)
            attempt.until = self._clock.now() + FORGE_FAILED_WAITS
            return attempt
        for credential in credentials:
            with self._ledger.budget(credential) as budget:
                if (until := self._may_not_ask_before(budget)) is not None:
                    waits.append(until)
                    continue
                try:
                    return self._ask(watch, credential, budget, attempt)
                except RateLimited as limit:
                    waits.append(limit.until)
                    log.info("%s may not ask before %s: %s", credential, limit.until.isoformat(), limit)
                except SourceRefused as error:
                    refused = error
                    if error.reason == "unauthorized":
                        budget.blocked_until = self._clock.now() + REFUSED_CREDENTIAL_WAITS
                        budget.blocked_reason = f"unauthorized: {error}"
                    if not error.of_credential:
                        break
        if refused is not None and (not waits or not refused.of_credential):
            return self._failed(watch, attempt, refused.reason, refused)
        # Some credential may be told more, once it may ask.
        attempt.outcome, attempt.until = "waiting", min(waits)
        if refused is not None:
            # The others were told nothing of this one; of the next they may be.
            attempt.alone = True
            with self._database.transaction() as connection:
                polls.postpone(connection, watch.repository_id, attempt.until)
        return attempt

    def _ask(self, watch: Watch, credential: str, budget: Budget, attempt: Attempt) -> Attempt:
        with self._forge.reader(credential, budget) as reader:
            poll = Poll(
                self._database, self._forge, reader, watch, self._settings, self._clock,
                pages_a_turn=self._pages_a_turn,
            )  # fmt: skip
            try:
                return self._polled(watch, attempt, poll, poll.run())
            except TurnOver:
                attempt.more = True
                return self._polled(watch, attempt, poll, replace(poll.result, outcome="partial"))
            except (RateLimited, SourceRefused, StoreError):
                self._count(attempt, poll)
                raise
            except NotKnown as error:
                attempt.outcome, attempt.reason = "removed", str(error)
                return attempt
            except Exception as error:
                # One repository's oddity must not end the polling of all others.
                log.exception("polling %s failed", watch.name)
                self._count(attempt, poll)
                return self._failed(watch, attempt, "error", error)
            finally:
                _add(attempt.answers, reader.answers)
                _add(attempt.by_credential.setdefault(credential, {}), reader.answers)

    def _polled(self, watch: Watch, attempt: Attempt, poll: Poll, polled: Polled) -> Attempt:
        self._count(attempt, poll)
        attempt.outcome, attempt.truncated = polled.outcome, polled.truncated
        attempt.verified = polled.verified_at is not None
        now = self._clock.now()
        wait = timedelta(0) if attempt.more else self._interval(watch) * self._jitter.uniform(0.95, 1.0)
        with self._database.transaction() as connection:
            if polled.verified_at is not None:
                mark_verified(connection, [watch.repository_id], at=polled.verified_at)
            polls.succeeded(
                connection,
                watch.repository_id,
                polled.outcome,
                truncated=polled.truncated,
                at=now,
                due_at=now + wait,
            )
        return attempt

    def _failed(self, watch: Watch, attempt: Attempt, reason: str, error: Exception) -> Attempt:
        hint = f" → {error.hint}" if isinstance(error, KbError) and error.hint else ""
        attempt.outcome, attempt.reason, attempt.detail = "failed", reason, f"{error}{hint}"
        now = self._clock.now()
        with self._database.transaction() as connection:
            polls.failed(
                connection, watch.repository_id, reason, attempt.detail, at=now,
                due_at=now + self._back_off(watch) * self._jitter.uniform(0.8, 1.2),
            )  # fmt: skip
        log.warning("%s cannot be polled (%s, %s times in a row): %s",
                    watch.name, reason, watch.failures + 1, attempt.detail)  # fmt: skip
        return attempt

    def _count(self, attempt: Attempt, poll: Poll) -> None:
        attempt.imported.add(poll.result.imported)
        attempt.repository = poll.result.repository

    def _may_not_ask_before(self, budget: Budget) -> datetime | None:
        now = self._clock.now()
        until = budget.forbidden_until(now)
        if (
            until is None
            and budget.remaining is not None
            and budget.reset_at is not None
            and now < budget.reset_at
        ):
            kept = int((budget.rate_limit or 0) * self._reserve)
            return budget.reset_at if budget.remaining <= kept else None
        return until

    def _in_order(self, watch: Watch) -> list[str]:
        """The credentials, those first that this repository keeps to; repositories spread evenly over them."""
        return sorted(
            self._forge.credentials(),
            key=lambda name: hashlib.sha256(f"{watch.repository_id} {name}".encode()).digest(),
        )

    def _interval(self, watch: Watch) -> timedelta:
        return timedelta(seconds=watch.every_s or self._settings.poll_interval_s)

    def _back_off(self, watch: Watch) -> timedelta:
        first = max(self._interval(watch), SHORTEST_BACK_OFF)
        return min(first * 2 ** min(watch.failures, 20), max(first, LONGEST_BACK_OFF))


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count
