"""One `kb up` for each home folder.

The lock is the operating system's (`flock`): it ends with the process that holds it, however that ends, so it cannot be
stale. The file's text only tells people who it is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from kb_platform.errors import ServiceError
from kb_platform.services.processes import described


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Hold a folder. Raises ServiceError that names the process which holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise _taken(folder, lock.read().strip()) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _taken(folder: Path, pid: str) -> ServiceError:
    holder = described(int(pid)) if pid.isdigit() else "a process that has just begun"
    return ServiceError(
        f"`kb up` already serves {folder.parent}: {holder}",
        hint=f"use that one, or stop it first: kill {pid}" if pid else "try again in a moment",
    )
