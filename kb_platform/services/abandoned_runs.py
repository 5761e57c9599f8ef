"""Runs that Dagster believes to be at work while their process is gone, closed.

A run's end is recorded by itself, or by the code server that started it. When the code server was killed, and then the
run, nobody is left to do it; a daemon killed between "starting" and the call to the code server leaves a run that starts
for 20 minutes. Until such a run is closed the sensors take its repositories for busy, and its place in the queue for taken.

What the run had to do is not lost: progress lies in the database, and the sensors ask for what is missing.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

import psutil

from kb_platform.services.dagster_ui import FlyingRun
from kb_platform.services.service import CannotTell, News, Tell

BETWEEN_S = 5.0
# From "starting" to the process's own word: imports, on a machine that is busy with other runs.
STARTING_S = 60.0
# Runs in the process of a command (`kb refresh`); the staleness sensor closes those (`assets.refresh`).
OWN_PROCESS_TAG = "kb/process"


class RunsUnderWay(Protocol):
    """What Dagster says of runs; see DagsterUi, which is one."""

    def runs_in_flight(self) -> list[FlyingRun]:
        """Raises CannotTell."""
        ...

    def process_of(self, run_id: str) -> int | None:
        """Raises CannotTell."""
        ...

    def close(self, run_id: str) -> None:
        """Raises CannotTell."""
        ...


class AbandonedRuns:
    """Looks at the runs in flight every few seconds, in a thread of its own."""

    def __init__(self, ui: RunsUnderWay, tell: Tell, *, between_s: float = BETWEEN_S) -> None:
        self._ui = ui
        self._tell = tell
        self._between_s = between_s
        self._pids: dict[str, int] = {}
        self._suspected: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="abandoned runs")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; before the services do, since runs that are ending now will say so themselves."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def look(self) -> list[str]:
        """One round; returns the runs that were closed. Raises CannotTell."""
        flying = {run.run_id: run for run in self._ui.runs_in_flight() if OWN_PROCESS_TAG not in run.tags}
        self._pids = {run_id: pid for run_id, pid in self._pids.items() if run_id in flying}
        gone = {run_id for run_id, run in flying.items() if self._is_gone(run)}
        # Twice, because a run that has just ended well has no process either, and the code server's own word on a run
        # that crashed ("exit code -9") is better than ours.
        closed = sorted(gone & self._suspected)
        for run_id in closed:
            self._ui.close(run_id)
        self._suspected = gone - set(closed)
        return closed

    def _is_gone(self, run: FlyingRun) -> bool:
        if run.run_id not in self._pids and (pid := self._ui.process_of(run.run_id)) is not None:
            self._pids[run.run_id] = pid
        if run.run_id in self._pids:
            return not _lives(self._pids[run.run_id], run.created)
        # A run in the process of a command (`dagster asset materialize`) never says where it is, and is not ours.
        return run.status == "STARTING" and time.time() - run.created > STARTING_S

    def _watch(self) -> None:
        while not self._ended.wait(self._between_s):
            try:
                for run_id in self.look():
                    self._tell(
                        News(
                            "runs",
                            "warning",
                            f"run {run_id[:8]} was closed: its process is gone; what it had done is kept",
                        )
                    )
            except CannotTell:
                # The webserver is starting again; its own watch says so.
                continue


def _lives(pid: int, created: float) -> bool:
    """Whether a run's process lives. A process from before the run was made has got its number since a restart."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() >= created - 1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
