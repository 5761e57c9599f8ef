"""A real `kb up` in a process of its own, as tests and benchmarks start, question and kill it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from kb_platform.services import processes, stack
from kb_platform.services.dagster_ui import DagsterUi, get
from kb_platform.services.service import CannotTell, NotWell
from kb_platform.store.embedded import EmbeddedServer

KB = (sys.executable, "-m", "kb_platform.cli")
SERVICES = ("code-server", "webserver", "daemon", "app")
TOKEN = "ghp_tokenofthestandin"

_UNDER_WAY = """
query($job: String!) { runsOrError(filter: {pipelineName: $job, statuses: [STARTING, STARTED, CANCELING]}, limit: 20) {
    ... on Runs { results { id } } } }"""


def polling_from(url: str, *, every_s: float) -> dict[str, str]:
    """The settings of one who polls a stand-in for GitHub at this address."""
    return {"KB_GITHUB_API_URL": url, "KB_GITHUB_TOKEN": TOKEN, "KB_POLL_INTERVAL_S": str(every_s)}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class KbUp:
    """`kb up` over a home folder of its own, on free ports. `started`: what it said with `--json`."""

    def __init__(self, home: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.server = EmbeddedServer(home)
        self.app_port, self.dagster_port = free_port(), free_port()
        self.ui = DagsterUi("127.0.0.1", self.dagster_port)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("KB_", "DAGSTER_"))
        } | {"KB_HOME": str(home), **(environment or {})}
        self._options = (
            "--port",
            str(self.app_port),
            "--dagster-port",
            str(self.dagster_port),
            "--json",
            *options,
        )
        self.started: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._output, self._errors = home.with_suffix(".out"), home.with_suffix(".err")

    def start(self, within_s: float = 120) -> None:
        """Start it and wait until it says that all is healthy."""
        # As in the background of a script, where nothing can be stopped by what it inherits.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        with self._output.open("wb") as output, self._errors.open("ab") as errors:
            process = self.process = subprocess.Popen(
                [*KB, "up", *self._options], env=self.environment, stdout=output, stderr=errors
            )
        signal.signal(signal.SIGINT, before)

        def is_ready() -> bool:
            assert process.poll() is None, f"it ended: {self.errors()}"
            return self._output.read_text().endswith("}\n")

        self.until(is_ready, within_s)
        self.started = json.loads(self._output.read_text())

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command over the same home."""
        return subprocess.run(
            [*KB, *arguments], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def until(self, condition: Callable[[], object], within_s: float = 60) -> float:
        """Wait; returns how many seconds it took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < within_s, f"not in {within_s} s: {self.errors()}"
            time.sleep(0.1)
        return time.monotonic() - begun

    def errors(self) -> str:
        """What it said on standard error."""
        return self._errors.read_text()[-6_000:]

    def pid(self, service: str) -> int | None:
        """The process of a service; None when there is none."""
        if service == "postgresql":
            return self.server.postmaster()
        mark = f"|{service}|"
        found = [
            process
            for process in processes.marked(processes.mark(self.home))
            if _mark(process).endswith(mark)
        ]
        # The others are its children.
        mine = {process.pid for process in found}
        roots = [process.pid for process in found if self.process and _parent(process) == self.process.pid]
        return roots[0] if roots else min(mine, default=None)

    def workers(self) -> list[psutil.Process]:
        """The processes that execute Dagster's runs."""
        return [
            process
            for process in processes.marked(processes.mark(self.home))
            if re.search("spawn_main|execute_run", _command(process))
        ]

    def executing(self, job: str) -> list[int]:
        """The processes that execute runs of a job. Raises CannotTell."""
        runs = self.ui.ask(_UNDER_WAY, job=job)["runsOrError"]["results"]
        said = {self.ui.process_of(run["id"]) for run in runs}
        return [worker.pid for worker in self.workers() if worker.pid in said]

    def is_healthy(self, *, with_app: bool = True) -> bool:
        """Whether the app answers, our code is loaded, the daemon lives, and PostgreSQL runs."""
        try:
            if with_app:
                get("127.0.0.1", self.app_port, "/_stcore/health")
            self.ui.require_code()
            # The webserver goes on with what it knows while the code server is away.
            with socket.socket(socket.AF_UNIX) as trial:
                trial.connect(str(stack.code_socket(self.home / "up")))
            daemon = self.pid("daemon")
            if daemon is None or self.server.postmaster() is None:
                return False
            since = psutil.Process(daemon).create_time()
            self.ui.require_daemon(since=since, within_s=60, now=time.time())
        except (NotWell, CannotTell, OSError, psutil.Error):
            return False
        return True

    def left(self) -> list[str]:
        """Every process that was started for this home and lives."""
        found: list[str] = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("KB_HOME") == str(self.home):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
            except (psutil.Error, OSError):
                continue
        if (server := self.server.postmaster()) is not None:
            found.append(f"{server} PostgreSQL")
        return found

    def remove(self) -> None:
        """End it, whatever it does, and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._output.unlink(missing_ok=True)
        self._errors.unlink(missing_ok=True)
        self.server.stop()
        shutil.rmtree(self.home, ignore_errors=True)


# A process may end between being found and being asked.
def _mark(process: psutil.Process) -> str:
    with suppress(psutil.Error, OSError):
        return process.environ().get(processes.MARK, "")
    return ""


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error, OSError):
        return " ".join(process.cmdline())
    return ""


def _parent(process: psutil.Process) -> int | None:
    with suppress(psutil.Error, OSError):
        return process.ppid()
    return None
