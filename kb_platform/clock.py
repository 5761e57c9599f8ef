"""The time, and waiting for it: passed in where a test must be able to move it.

Does not belong here: what is done at a time.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Says what time it is and waits."""

    def now(self) -> datetime:
        """The time, aware and in UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after so many seconds, or earlier when waiting is called off."""
        ...


class SystemClock:
    """The machine's own. `stop` ends a wait early: a process that is told to end need not sleep first."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop

    def now(self) -> datetime:
        """See Clock."""
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        """See Clock."""
        if self._stop is not None:
            self._stop.wait(seconds)
        else:
            time.sleep(seconds)
