"""A service's output: kept in a file of bounded size, its last lines at hand, its warnings passed on.

Does not belong here: what a line means.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

MOST_BYTES = 5_000_000
# A line without an end must not be held in memory.
LONGEST_LINE = 65_536
LAST_LINES = 20
MOST_TOLD = 10
TOLD_PERIOD_S = 30.0

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TROUBLE = re.compile(r"\b(?:WARNING|ERROR|CRITICAL)\b|^\S*(?:Error|Exception)\b.*:")


class ServiceLog:
    """Reads one process's output until it ends. `tell` gets the lines that say WARNING or worse, not more than ten in
    half a minute."""

    def __init__(
        self,
        path: Path,
        tell: Callable[[str], None],
        *,
        hushed: tuple[str, ...] = (),
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.path = path
        self._tell = tell
        self._hushed = hushed
        self._most_bytes = most_bytes
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._told: deque[float] = deque(maxlen=MOST_TOLD)
        self._untold = 0

    def follow(self, output: IO[bytes]) -> threading.Thread:
        """Read in a thread of its own; it ends when nobody can write any more."""
        thread = threading.Thread(
            target=self._read, args=(output,), daemon=True, name=f"log of {self.path.stem}"
        )
        thread.start()
        return thread

    def last(self, lines: int = 8) -> list[str]:
        """The last lines, without colours."""
        return list(self._last)[-lines:]

    def _read(self, output: IO[bytes]) -> None:
        with output:
            file = self.path.open("ab")
            size = file.tell()
            while line := output.readline(LONGEST_LINE):
                if size + len(line) > self._most_bytes:
                    file.close()
                    self.path.replace(self.path.with_suffix(".log.1"))
                    file, size = self.path.open("wb"), 0
                file.write(line)
                file.flush()
                size += len(line)
                self._look(_COLOUR.sub("", line.decode(errors="replace")).rstrip())
            file.close()

    def _look(self, line: str) -> None:
        if not line:
            return
        self._last.append(line)
        if not _TROUBLE.search(line) or any(part in line for part in self._hushed):
            return
        now = time.monotonic()
        if len(self._told) == MOST_TOLD and now - self._told[0] < TOLD_PERIOD_S:
            self._untold += 1
            return
        if self._untold:
            self._tell(f"({self._untold} more such lines in {self.path})")
            self._untold = 0
        self._told.append(now)
        self._tell(line)
