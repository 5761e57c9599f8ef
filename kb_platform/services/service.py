"""What a service is: a command, when it is healthy, and where people reach it.

Does not belong here: which services there are (`stack`), and what is done when one ends (`supervisor`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


class NotWell(Exception):
    """The service does not do its work (yet); the text says what is missing."""


class CannotTell(Exception):
    """Whether the service is well cannot be seen now, through no fault of its own."""


# Raises NotWell or CannotTell; returns when the service is well. The argument: when its process was started, in seconds
# since the epoch. It may take some seconds, and is called in a thread of its own.
Check = Callable[[float], None]


@dataclass(frozen=True)
class Service:
    """One process that `kb up` keeps running.

    `environment` is added to that of `kb up`. `needs`: services that must have been healthy once before this one is
    started, and that stop only after it. `hushed`: parts of log lines that are no news although they say ERROR.
    """

    name: str
    command: tuple[str, ...]
    check: Check
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    needs: tuple[str, ...] = ()
    address: str | None = None
    hushed: tuple[str, ...] = ()


class News(NamedTuple):
    """Something that happened to a service. `log`: a line of its own log that says WARNING or worse."""

    service: str
    level: Literal["info", "warning", "error", "log"]
    text: str


Tell = Callable[[News], None]
