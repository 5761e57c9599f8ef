"""GitHub's limits on one credential: the hour's budget, and when nothing may be asked at all.

Belongs here: counting, and the windows in which a request is a fault of the one who asks. Does not belong here: how a
refusal is worded (`github_answers`). Times are seconds since 1970 by the stand-in's clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

WINDOW = 3_600
# What GitHub asks for where a refusal does not say how long.
UNSAID_WAIT = 60.0

RetryAfter = Literal["seconds", "date", "none"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A secondary refusal: its status, how it tells the wait, and the wait in seconds."""

    status: int
    retry_after: RetryAfter
    wait: float


@dataclass(slots=True)
class Allowance:
    """What one credential has left.

    The hour begins with the first request that counts. `refused_until`: until when a secondary refusal holds.
    """

    limit: int
    used: int = 0
    reset: int | None = None
    refusal: Refusal | None = None
    refused_until: float = 0.0

    @property
    def remaining(self) -> int:
        """Requests left in this hour."""
        return max(self.limit - self.used, 0)

    def forbidden(self, now: float) -> Literal["primary", "secondary"] | None:
        """Whether a request now is one that must not have been sent, and by which limit."""
        self._roll(now)
        if self.refusal is not None and now < self.refused_until:
            return "secondary"
        return "primary" if self.remaining == 0 else None

    def charge(self, now: float) -> None:
        """Count a request."""
        self._roll(now)
        if self.reset is None:
            self.reset = math.floor(now) + WINDOW
        self.used += 1

    def spend(self, now: float, until: float | None) -> None:
        """All that is left is gone; until then, or else until the hour is over."""
        self._roll(now)
        if until is not None:
            self.reset = math.ceil(until)
        elif self.reset is None:
            self.reset = math.floor(now) + WINDOW
        self.used = self.limit

    def refuse(self, now: float, refusal: Refusal) -> None:
        """A secondary refusal; the wait begins anew with each.

        An HTTP date has whole seconds: who obeys it comes at that second, and must not be blamed.
        """
        self.refusal = refusal
        wait = refusal.wait if refusal.retry_after != "none" else UNSAID_WAIT
        self.refused_until = math.floor(now) + wait if refusal.retry_after == "date" else now + wait

    def shown_reset(self, now: float) -> int:
        """The end of the hour as the headers show it."""
        return math.floor(now) + WINDOW if self.reset is None else self.reset

    def _roll(self, now: float) -> None:
        if self.reset is not None and now >= self.reset:
            self.used, self.reset = 0, None
