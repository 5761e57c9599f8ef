"""Processes that belong to one `kb up`, told by a mark in their environment, and their end.

The mark is inherited, so it finds what a service has started too (Dagster's runs are children of the code server, and
outlive it when it is killed), after any number of parents died. A number alone would not do: numbers are used again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "KB_UP_MARK"
POLL_S = 0.05
# A server that a service revived inherits the mark, and is neither its child nor its property.
_POSTGRESQL = frozenset({"postgres", "pg_ctl", "initdb"})


def mark(home: Path, life: str = "", service: str = "") -> str:
    """The mark of a home's processes, of one life of its `kb up`, or of one service of that; each begins as the one
    before it does."""
    return "|".join(part for part in (str(home), life, service) if part) + "|"


def marked(beginning: str) -> list[psutil.Process]:
    """The living processes whose mark begins so; never this one."""
    return [process for process in psutil.process_iter() if _has(process, beginning)]


def end(processes: Iterable[psutil.Process], *, within_s: float) -> list[psutil.Process]:
    """Ask processes to end (SIGTERM) and kill those that have not after so many seconds; returns what was killed."""
    killed = kill(wait(ask_to_end(processes), within_s=within_s))
    wait(killed, within_s=5)
    return killed


def wait(
    processes: Iterable[psutil.Process], *, within_s: float, unless: Callable[[], bool] = lambda: False
) -> list[psutil.Process]:
    """Wait until processes have ended, or for so many seconds, or until `unless` is true; returns those that live."""
    deadline = time.monotonic() + within_s
    while (left := living(processes)) and time.monotonic() < deadline and not unless():
        time.sleep(POLL_S)
    return left


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. One whose end nobody has collected (the first process of a container may not be an
    init) still has its number, and is dead all the same; psutil's own waiting waits for it."""
    found: list[psutil.Process] = []
    for process in processes:
        with suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ask_to_end(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Send SIGTERM; returns the processes that were there to get it."""
    return _send(processes, signal.SIGTERM)


def kill(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Send SIGKILL; returns the processes that were there to get it."""
    return _send(processes, signal.SIGKILL)


def described(pid: int) -> str:
    """A process for people: its number and how it was called, as far as that can be seen."""
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    return f"process {pid} ({command[:120]})" if command else f"process {pid}"


def _send(processes: Iterable[psutil.Process], number: int) -> list[psutil.Process]:
    reached: list[psutil.Process] = []
    for process in processes:
        # psutil compares when the process was started, so a number that was used again is not hit.
        with suppress(psutil.Error):
            process.send_signal(number)
            reached.append(process)
    return reached


def _has(process: psutil.Process, beginning: str) -> bool:
    if process.pid == os.getpid():
        return False
    # Of other people's processes and of those that are just ending there is nothing to read.
    with suppress(psutil.Error, OSError):
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get(MARK, "").startswith(beginning)
            and process.name() not in _POSTGRESQL
        )
    return False
