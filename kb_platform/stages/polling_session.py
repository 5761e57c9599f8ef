"""Polling for a while: a lane for each forge, side by side, until the time is up or somebody says stop.

Only one session polls at a time, over all processes; a lock in PostgreSQL, gone with its holder, says so.
Does not belong here: whose turn it is (`polling_lane`), and what a poll does (`polling`).
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kb_platform.clock import Clock, SystemClock
from kb_platform.errors import NotKnown, StoreError
from kb_platform.settings import Settings
from kb_platform.sources.forge import Forge
from kb_platform.stages.polling_lane import Attempt, Lane
from kb_platform.store import polls, watch_list
from kb_platform.store.credentials import Ledger
from kb_platform.store.database import Database
from kb_platform.store.watch_list import Watch

# (source, address or None for the settings' own) → the forge.
ForgeFor = Callable[[str, str | None], Forge]

# What was just put on the watch list need not wait longer than that for its first poll.
LONGEST_NAP_S = 5.0
# How often the session says what it did, and looks for forges that are new on the watch list.
BEAT_S = 2.0


@dataclass
class Totals:
    """What came of many turns. `answers`: requests by kind of answer; `late_s`: the longest that one waited past due."""

    turns: int = 0
    changed: int = 0
    unchanged: int = 0
    partial: int = 0
    failed: int = 0
    new: int = 0
    edited: int = 0
    deleted: int = 0
    reappeared: int = 0
    quarantined: int = 0
    late_s: float = 0.0
    answers: Counter[str] = field(default_factory=Counter[str])
    changed_repositories: set[str] = field(default_factory=set[str])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def count(self, attempt: Attempt) -> None:
        """Add one turn."""
        self.answers.update(attempt.answers)
        for name in ("new", "edited", "deleted", "reappeared", "quarantined"):
            setattr(self, name, getattr(self, name) + getattr(attempt.imported, name))
        if attempt.imported.appended:
            self.changed_repositories.add(attempt.repository)
        if attempt.outcome not in ("changed", "unchanged", "partial", "failed"):
            return
        self.turns += 1
        setattr(self, attempt.outcome, getattr(self, attempt.outcome) + 1)
        self.late_s = max(self.late_s, attempt.late_s)
        if attempt.outcome == "failed":
            self.failures[attempt.repository] = f"{attempt.reason}: {attempt.detail}"
        else:
            self.failures.pop(attempt.repository, None)

    @property
    def requests(self) -> int:
        """Requests sent."""
        return self.answers.total()

    @property
    def not_modified_share(self) -> float:
        """Of the requests that were answered, the share of "not modified"; 1 when there were none."""
        return self.answers["304"] / self.requests if self.requests else 1.0


class Session:
    """Polls what is due until the time is up. Use once."""

    def __init__(
        self,
        database: Database,
        forge_for: ForgeFor,
        settings: Settings,
        *,
        stop: threading.Event | None = None,
        tell: Callable[[Attempt], object] = lambda _attempt: None,
        beat: Callable[[], object] = lambda: None,
    ) -> None:
        """`tell` is called in the lanes' threads, after each turn; `beat` every few seconds in the thread that runs."""
        self._database = database
        self._forge_for = forge_for
        self._settings = settings
        self._stop = stop or threading.Event()
        self._clock: Clock = SystemClock(self._stop)
        self._tell = tell
        self._beat = beat
        self._counting = threading.Lock()
        self._errors: list[BaseException] = []
        self.totals = Totals()

    def run(self, seconds: float | None = None) -> bool:
        """Poll for so long (the settings' by default; 0: until nothing is due any more).

        Returns False at once when another process is polling. Raises StoreError; at its end, what ended a lane (SettingsError).
        """
        until = self._clock.now() + timedelta(
            seconds=self._settings.poll_session_s if seconds is None else seconds
        )
        ledger = Ledger(self._database)
        try:
            with ledger.session() as mine:
                if mine:
                    self._run_lanes(until)
                return mine
        finally:
            ledger.close()

    def _run_lanes(self, until: datetime) -> None:
        lanes: dict[tuple[str, str | None], threading.Thread] = {}
        try:
            while not self._stop.is_set():
                with self._database.snapshot() as connection:
                    wanted = polls.forges(connection)
                for key in wanted:
                    if key not in lanes:
                        lanes[key] = self._start(key, until)
                alive = any(thread.is_alive() for thread in lanes.values())
                if not alive and (self._errors or self._clock.now() >= until):
                    break
                self._stop.wait(BEAT_S)
                self._beat()
        finally:
            self._stop.set()
            for thread in lanes.values():
                thread.join()
        self._beat()
        if self._errors:
            raise self._errors[0]

    def _start(self, key: tuple[str, str | None], until: datetime) -> threading.Thread:
        thread = threading.Thread(
            target=self._run_lane, args=(*key, until), name=f"poll-{key[0]}", daemon=True
        )
        thread.start()
        return thread

    def _run_lane(self, source: str, api_url: str | None, until: datetime) -> None:
        lane: Lane | None = None
        try:
            lane = Lane(
                self._database,
                self._forge_for(source, api_url),
                self._settings,
                self._clock,
                tell=self._count,
            )
            while not self._stop.is_set():
                idle_until = lane.step()
                now = self._clock.now()
                if idle_until is not None and now < until:
                    ends = min(idle_until, until, now + timedelta(seconds=LONGEST_NAP_S))
                    self._clock.sleep(max((ends - now).total_seconds(), 0.0))
                elif idle_until is not None or (now >= until and self._settings.poll_session_s > 0):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that runs the session
            self._errors.append(error)
            # What is wrong with one forge holds up no other; what is wrong with the database does.
            if isinstance(error, StoreError):
                self._stop.set()
        finally:
            if lane is not None:
                lane.close()

    def take(self) -> Totals:
        """What was counted since the last time; counting begins anew."""
        with self._counting:
            taken, self.totals = self.totals, Totals()
        return taken

    def _count(self, attempt: Attempt) -> None:
        with self._counting:
            self.totals.count(attempt)
        self._tell(attempt)


def poll_now(
    database: Database,
    forge_for: ForgeFor,
    settings: Settings,
    clock: Clock,
    *,
    repositories: Sequence[str] | None = None,
    longest_wait_s: float = 120.0,
    tell: Callable[[Attempt], object] = lambda _attempt: None,
    jitter: random.Random | None = None,
) -> list[Attempt]:
    """Poll these watched repositories (or all) once, due or not; each one's last attempt, in their order.

    Waits for a limit's end when that is near; what could not be asked is an attempt with outcome `waiting`.
    Raises NotKnown for a repository that is not watched, StoreError.
    """
    with database.snapshot() as connection:
        watches = watch_list.watched(connection)
        if repositories is not None:
            watches = [watch_list.find(connection, name) for name in repositories]
    if repositories is None and not watches:
        raise NotKnown("nothing is watched", hint="`kb watch add OWNER/REPO`")
    lanes: dict[tuple[str, str | None], Lane] = {}
    found: list[Attempt] = []
    try:
        for watch in watches:
            key = (watch.source, watch.api_url)
            if key not in lanes:
                lanes[key] = Lane(database, forge_for(*key), settings, clock, jitter=jitter, reserve=0.0)
            attempt = _patiently(database, lanes[key], watch, clock, longest_wait_s)
            tell(attempt)
            found.append(attempt)
    finally:
        for lane in lanes.values():
            lane.close()
    return found


def _patiently(database: Database, lane: Lane, watch: Watch, clock: Clock, longest_wait_s: float) -> Attempt:
    """One repository to the end of its list, over limits that end soon; all attempts as one."""
    deadline = clock.now() + timedelta(seconds=longest_wait_s)
    whole: Attempt | None = None
    while True:
        attempt = lane.poll(watch)
        if whole is not None:
            attempt.imported.add(whole.imported)
            for answer, count in whole.answers.items():
                attempt.answers[answer] = attempt.answers.get(answer, 0) + count
        whole = attempt
        if attempt.until is not None and attempt.until <= deadline:
            clock.sleep(max((attempt.until - clock.now()).total_seconds(), 0.0))
        elif attempt.outcome == "busy" and clock.now() < deadline:
            clock.sleep(1.0)
        elif not attempt.more:
            return attempt
        with database.snapshot() as connection:
            watch = watch_list.find(connection, attempt.repository)
