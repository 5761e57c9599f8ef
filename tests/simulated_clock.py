"""A clock that tests move: sleeping takes no time, it only becomes later.

Does not belong here: anything that happens at a time.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

FIRST_MOMENT = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)


class SimulatedClock:
    """See kb_platform.clock.Clock. Safe to share between threads; time only goes forward.

    Threads that sleep at once each move the clock: it has no idea that they wait together. `slept` is the sum
    of all sleeps, in seconds.
    """

    def __init__(self, start: datetime = FIRST_MOMENT) -> None:
        self._now = start
        self._lock = threading.Lock()
        self.slept = 0.0

    def now(self) -> datetime:
        """The simulated time, aware and in UTC."""
        with self._lock:
            return self._now

    def sleep(self, seconds: float) -> None:
        """It is `seconds` later at once. ValueError for less than none, as `time.sleep` has it."""
        self.advance(seconds)
        with self._lock:
            self.slept += seconds

    def advance(self, seconds: float) -> datetime:
        """Let `seconds` pass without anybody sleeping; returns the new time."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        with self._lock:
            self._now += timedelta(seconds=seconds)
            return self._now
