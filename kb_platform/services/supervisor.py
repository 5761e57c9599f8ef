"""Keeps services running: starts them in order, waits until they are healthy, starts again what ends, stops them all.

One thread, that of `start`, `watch` and `stop`, decides everything; health is looked at in others, because a service that
hangs must not hold up the rest.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from kb_platform.errors import ServiceError
from kb_platform.services import processes
from kb_platform.services.service import CannotTell, News, NotWell, Service, Tell
from kb_platform.services.service_log import ServiceLog

TICK_S = 0.1


@dataclass(frozen=True)
class Patience:
    """How long what may take; all in seconds.

    `first_pause` doubles up to `longest_pause` from restart to restart, and is the first again after a life of
    `settled`. `frozen`: a service that was well and is not for so long is killed. `stopping`: from SIGTERM to SIGKILL.
    `starting`: until all are healthy. `tries`: ends before it was ever healthy, after which the start has failed.
    """

    first_pause: float = 1.0
    longest_pause: float = 60.0
    settled: float = 60.0
    frozen: float = 120.0
    stopping: float = 15.0
    starting: float = 300.0
    tries: int = 3
    between_checks: float = 5.0
    between_first_checks: float = 0.3
    between_reports: float = 10.0


class Supervisor:
    """Runs services; `mark` tells their processes from all others (see `processes`)."""

    def __init__(
        self,
        services: Sequence[Service],
        folder: Path,
        mark: str,
        tell: Tell,
        *,
        environment: Mapping[str, str],
        patience: Patience | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._tell = tell
        self._checks = ThreadPoolExecutor(max_workers=max(len(services), 1), thread_name_prefix="health")
        self._kept = {
            service.name: _Kept(service, folder, mark, tell, environment, self._patience)
            for service in services
        }
        self._leaving: list[tuple[float, psutil.Process]] = []

    def start(self, stop: threading.Event) -> bool:
        """Start everything and wait until all of it is healthy; False when `stop` was set before.

        Raises ServiceError with the last lines of the log of the service that does not come up.
        """
        begun = reported = time.monotonic()
        while not stop.is_set():
            self.tick()
            waiting = [kept for kept in self._kept.values() if not kept.was_healthy]
            if not waiting:
                return True
            now = time.monotonic()
            for kept in waiting:
                if kept.ends >= self._patience.tries or now - begun > self._patience.starting:
                    raise kept.failure()
            if now - reported >= self._patience.between_reports:
                reported = now
                for kept in waiting:
                    self._tell(
                        News(kept.service.name, "info", f"not ready after {now - begun:.0f} s: {kept.unwell}")
                    )
            stop.wait(TICK_S)
        return False

    def watch(self, stop: threading.Event) -> None:
        """Keep everything running until `stop` is set."""
        while not stop.wait(TICK_S):
            self.tick()

    def tick(self) -> None:
        """Look at each service once and do what is due. Quick."""
        healthy = {name for name, kept in self._kept.items() if kept.was_healthy}
        for kept in self._kept.values():
            if kept.process is None:
                if kept.is_due() and healthy.issuperset(kept.service.needs):
                    kept.launch()
            elif kept.process.poll() is not None:
                deadline = time.monotonic() + self._patience.stopping
                self._leaving += [(deadline, left) for left in processes.ask_to_end(kept.ended())]
            else:
                kept.look(self._checks)
        self._kill_who_stays()

    def stop(self, at_once: threading.Event | None = None) -> None:
        """End everything, the needy before what they need; with `at_once` set, also later, without waiting."""
        hurry = at_once or threading.Event()
        left = dict(self._kept)
        while left:
            needed = {need for kept in left.values() for need in kept.service.needs}
            wave = [left.pop(name) for name in reversed(list(left)) if name not in needed]
            asked = processes.ask_to_end(one for kept in wave for one in kept.processes())
            stayed = processes.wait(asked, within_s=self._patience.stopping, unless=hurry.is_set)
            for killed in processes.kill(stayed):
                self._tell(
                    News(
                        "kb up", "warning", f"process {killed.pid} did not end when asked to, and was killed"
                    )
                )
            processes.wait(stayed, within_s=5)
            for kept in wave:
                kept.forget()
        self._checks.shutdown(wait=False, cancel_futures=True)

    def pids(self) -> dict[str, int]:
        """The processes that run now, by service."""
        return {name: kept.process.pid for name, kept in self._kept.items() if kept.process is not None}

    def _kill_who_stays(self) -> None:
        if not self._leaving:
            return
        now = time.monotonic()
        processes.kill(process for deadline, process in self._leaving if deadline <= now)
        self._leaving = [(deadline, process) for deadline, process in self._leaving if deadline > now]


class _Kept:
    """One service through all its lives."""

    def __init__(
        self,
        service: Service,
        folder: Path,
        mark: str,
        tell: Tell,
        environment: Mapping[str, str],
        patience: Patience,
    ) -> None:
        self.service = service
        self.process: subprocess.Popen[bytes] | None = None
        self.was_healthy = False
        self.ends = 0
        self.unwell = "waits for " + ", ".join(service.needs) if service.needs else "starting"
        self._mark = f"{mark}{service.name}|"
        self._tell = tell
        self._patience = patience
        self._environment = {**environment, **service.environment, processes.MARK: self._mark}
        self._log = ServiceLog(
            folder / f"{service.name}.log", lambda line: self._say("log", line), hushed=service.hushed
        )
        self._reader: threading.Thread | None = None
        self._started = 0.0
        self._started_at = 0.0
        self._due = 0.0
        self._pauses = 0
        self._healthy = False
        self._last_well = 0.0
        self._next_look = 0.0
        self._looking: Future[None] | None = None

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def launch(self) -> None:
        self._started, self._started_at = time.monotonic(), time.time()
        self._healthy, self._looking, self._next_look = False, None, 0.0
        self.unwell = "starting"
        self.process = subprocess.Popen(  # noqa: S603 - our own services
            self.service.command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C goes to the whole group of the terminal; services are told to stop in their turn.
            start_new_session=True,
        )
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        self._reader = self._log.follow(self.process.stdout)

    def look(self, threads: ThreadPoolExecutor) -> None:
        """Take what the last look at its health found, or have another one made."""
        now = time.monotonic()
        if self._looking is None:
            if now >= self._next_look:
                self._looking = threads.submit(self.service.check, self._started_at)
            return
        if not self._looking.done():
            return
        error, self._looking = self._looking.exception(), None
        if error is None:
            self._found_well(now)
        elif isinstance(error, NotWell | CannotTell):
            self._found_unwell(now, str(error), certain=isinstance(error, NotWell))
        else:
            raise error
        self._next_look = now + (
            self._patience.between_checks if self._healthy else self._patience.between_first_checks
        )

    def ended(self) -> list[psutil.Process]:
        """Note the end of its process; returns what that left behind."""
        assert self.process is not None  # noqa: S101 - only called then
        lived, code = time.monotonic() - self._started, self.process.returncode
        if self._reader is not None:
            # What it said last is still in the pipe.
            self._reader.join(1.0)
        self.ends += 1
        if lived >= self._patience.settled:
            self._pauses = 0
        pause = min(self._patience.first_pause * 2**self._pauses, self._patience.longest_pause)
        self._pauses = min(self._pauses + 1, 20)
        self._due = time.monotonic() + pause
        self._say("warning", f"ended after {lived:.0f} s ({_exit(code)}); starts again in {pause:g} s")
        for line in self._log.last():
            self._say("log", line)
        self.process, self._looking = None, None
        self.unwell = f"ended ({_exit(code)})"
        return processes.marked(self._mark)

    def processes(self) -> list[psutil.Process]:
        """Its process and all that came of it."""
        return processes.marked(self._mark)

    def forget(self) -> None:
        """Collect the dead process."""
        if self.process is not None:
            self.process.wait(1)
            self.process = None

    def failure(self) -> ServiceError:
        """Why the start is given up."""
        last = "\n".join(f"    {line}" for line in self._log.last(15))
        return ServiceError(
            f"{self.service.name} does not come up: {self.unwell}" + (f"\n{last}" if last else ""),
            hint=f"read {self._log.path}",
        )

    def _found_well(self, now: float) -> None:
        self._last_well = now
        if self._healthy:
            return
        self._healthy, self.was_healthy = True, True
        self._say("info", f"ready after {now - self._started:.1f} s" + self._address())

    def _found_unwell(self, now: float, reason: str, *, certain: bool) -> None:
        self.unwell = reason
        if not certain:
            self._last_well = now
        # One that is still starting may take its time; the pause before the next try is no cure for slowness.
        elif self._healthy and now - self._last_well > self._patience.frozen and self.process is not None:
            self._say("warning", f"not well for {now - self._last_well:.0f} s ({reason}); it is killed")
            self.process.kill()

    def _address(self) -> str:
        return f": {self.service.address}" if self.service.address else ""

    def _say(self, level: Literal["info", "warning", "error", "log"], text: str) -> None:
        self._tell(News(self.service.name, level, text))


def _exit(code: int) -> str:
    """How a process ended.

    >>> _exit(3), _exit(-9)
    ('exit status 3', 'signal 9')
    """
    return f"signal {-code}" if code < 0 else f"exit status {code}"
