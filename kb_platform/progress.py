"""Progress of long work: a bar with rate and time left on a terminal, lines in a log.

Work reports through the `Progress` protocol and knows nothing of where it is shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

# A line now and then tells that a job lives; one a slice would bury everything else.
SECONDS_BETWEEN_LINES = 5.0


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, amount: int = 1) -> None:
        """`amount` more units are done."""
        ...


class Progress(Protocol):
    """Where work reports to."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str) -> Generator[Task]:
        """Work of `total` units (None: unknown) begins; it ends with the context."""
        ...


class Silence:
    """Reports nothing."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str) -> Generator[Task]:  # noqa: ARG002 - Progress
        """See Progress."""
        yield _Count(lambda _done: None)


class Lines:
    """A line every few seconds and one at the end, through `write` (a logger's method)."""

    def __init__(self, write: Callable[[str], object], *, every_s: float = SECONDS_BETWEEN_LINES) -> None:
        self._write = write
        self._every_s = every_s

    @contextmanager
    def task(self, name: str, total: int | None, unit: str) -> Generator[Task]:
        """See Progress."""
        started = time.monotonic()
        written = started

        def report(done: int, *, last: bool = False) -> None:
            nonlocal written
            now = time.monotonic()
            if last or now - written >= self._every_s:
                written = now
                self._write(line(name, done, total, unit, now - started))

        count = _Count(report)
        yield count
        if count.done:
            report(count.done, last=True)


class Bar:
    """A bar on a terminal."""

    def __init__(self) -> None:
        self._bars: RichProgress | None = None

    @contextmanager
    def task(self, name: str, total: int | None, unit: str) -> Generator[Task]:
        """See Progress."""
        with self._shown() as bars:
            number = bars.add_task(name, total=total, unit=unit, rate="")
            started = time.monotonic()

            def report(done: int) -> None:
                rate = done / max(time.monotonic() - started, 1e-6)
                bars.update(number, completed=done, rate=f"{rate:,.0f} {unit} a second")

            try:
                yield _Count(report)
            finally:
                bars.remove_task(number)

    @contextmanager
    def _shown(self) -> Generator[RichProgress]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        if self._bars is not None:
            yield self._bars
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TextColumn("{task.fields[rate]}", style="dim"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None


class _Count:
    def __init__(self, report: Callable[[int], object]) -> None:
        self.done = 0
        self._report = report

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        self._report(self.done)


def line(name: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """One line of progress.

    >>> line("embed", 500, 2000, "texts", 10.0)
    'embed: 500 of 2,000 texts (25 %), 50 a second, 30 s left'
    """
    rate = done / seconds if seconds > 0 else 0.0
    shown = f"{rate:,.0f} a second" if rate >= 1 else f"{rate * 60:,.1f} a minute"
    if total is None:
        return f"{name}: {done:,} {unit}, {shown}"
    percent = 100 * done // total if total else 100
    left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
    return f"{name}: {done:,} of {total:,} {unit} ({percent} %), {shown}{left}"


def for_terminal(write: Callable[[str], object]) -> Progress:
    """A bar where a person watches standard error, lines otherwise."""
    return Bar() if sys.stderr.isatty() else Lines(write)
