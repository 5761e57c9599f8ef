"""The process that outlives a killed `kb up` for a moment, to end what it left behind.

`kill -9` leaves no time for goodbyes, and Linux's parent-death signal reaches children only, not the runs that a code
server has started, and does not exist elsewhere. So a small process waits at the end of a pipe. The pipe breaks when
`kb up` ends, in whatever way; then all that bears its mark is asked to end and, after a while, killed, and the embedded
server, which nobody uses any more, is stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from kb_platform.services import processes

PATIENCE_S = 15.0
# A process that waits for a broken disk cannot be killed, and must not be waited for in turn.
ROUNDS = 5


class Guardian:
    """Guards the processes with a mark, as long as the block lasts that it is used for; starts anew when it is killed.

    A block that ends well has left nothing to end. One that ends with an error may have: then the guardian does its work.
    """

    def __init__(self, home: Path, mark: str) -> None:
        self._arguments = [sys.executable, "-m", "kb_platform.services.guardian", str(home), mark]
        self._ended = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="guardian")

    def __enter__(self) -> Guardian:
        self._thread.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if error is None:
            self._process.kill()
        elif self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._thread.join()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def _keep(self) -> None:
        while not self._ended.is_set():
            self._process.wait()
            # One that cannot start would be started without end.
            if not self._ended.wait(1.0):
                self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own arguments
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Not from a folder `kb_platform` that happens to be where the command was typed.
            env=os.environ | {"PYTHONSAFEPATH": "1"},
            # Ctrl-C goes to the whole group of the terminal.
            start_new_session=True,
        )


def end_all(mark: str, *, within_s: float = PATIENCE_S) -> int:
    """End every process with a mark, and what they start meanwhile; returns how many there were."""
    ended = 0
    for _ in range(ROUNDS):
        found = processes.marked(mark)
        if not found:
            break
        ended += len(found)
        processes.end(found, within_s=within_s)
    return ended


def main(home: Path, mark: str) -> None:
    """Wait for the end of whoever started this, then clean up after it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_all(mark)
    # Only now: until here it need not be in memory.
    from kb_platform.store.embedded import EmbeddedServer

    server = EmbeddedServer(home)
    if server.postmaster() is not None:
        server.start()
        server.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
