"""Bad times at GitHub: refusals and faults that come over requests for a while.

Belongs here: which storm takes which request. Does not belong here: what the request is told (`github_stand_in`), and
when storms come (`github_weather`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tests.github_limits import RetryAfter

Kind = Literal[
    "primary",
    "secondary",
    "secondary-no-retry-after",
    "429",
    "500",
    "502-html",
    "truncated",
    "garbage",
    "slow",
    "reset",
    "redirect-circle",
    "redirect-away",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass
class Storm:
    """Over when its time is up or it took its requests, whichever is first; None: not limited by that.

    `credential` None: it takes requests of all. `wait`: seconds that a refusal asks for. `retry_after` None: drawn for
    each refusal. `delay`: seconds until a slow answer.
    """

    kind: Kind
    until: float | None
    requests: int | None
    credential: str | None
    wait: float
    retry_after: RetryAfter | None
    delay: float

    def over(self, now: float) -> bool:
        """Whether it has ended."""
        return (self.until is not None and now >= self.until) or (
            self.requests is not None and self.requests <= 0
        )


class Storms:
    """All storms that go on, the oldest first."""

    def __init__(self) -> None:
        self._storms: list[Storm] = []

    def add(self, storm: Storm) -> None:
        """It begins now."""
        self._storms.append(storm)

    def clear(self) -> None:
        """All end now. A refusal that was given holds on."""
        self._storms.clear()

    def take(self, credential: str, now: float) -> Storm | None:
        """The storm that this request falls into, which counts it."""
        if not self._storms:
            return None
        self._storms = [storm for storm in self._storms if not storm.over(now)]
        for storm in self._storms:
            if storm.credential in (None, credential):
                if storm.requests is not None:
                    storm.requests -= 1
                return storm
        return None
