"""How long the embedded PostgreSQL takes to start, join, stop, and recover from `kill -9`.

    python benchmarks/embedded_server.py

Uses a home folder of its own, which it removes.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kb_platform.store.embedded import EmbeddedServer


def timed(name: str, act: Callable[[], object]) -> None:
    """Do it and print how long it took."""
    begun = time.perf_counter()
    act()
    print(f"{name:<34} {time.perf_counter() - begun:6.2f} s")


def main() -> None:
    """Print one line for each."""
    home = Path(tempfile.mkdtemp(prefix="kbb-"))
    server = EmbeddedServer(home)
    try:
        timed("first start, initdb included", server.start)
        timed("join one that runs", EmbeddedServer(home).start)
        timed("stop", server.stop)
        timed("start again", server.start)
        pid = int((server.data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        timed("start after kill -9 of the server", server.start)
    finally:
        server.leave()
        server.stop()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
