"""`kb up` as people start it: all of it, killed part by part, and stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from dagster._core.instance.config import dagster_instance_config

from kb_platform.home import dagster_home
from kb_platform.services.dagster_ui import get
from kb_platform.settings import Settings
from tests.kb_up import KB, SERVICES, KbUp

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def serving() -> Generator[KbUp]:
    """One `kb up` for the tests of this module, which follow on each other."""
    up = KbUp(Path(tempfile.mkdtemp(prefix="kbu-")))
    try:
        up.start()
        yield up
    finally:
        up.remove()


def test_it_is_healthy_when_it_says_so(serving: KbUp) -> None:
    assert serving.is_healthy()
    assert get("127.0.0.1", serving.app_port, "/_stcore/health") == b"ok"
    assert serving.started["app"] == f"http://127.0.0.1:{serving.app_port}"
    assert serving.started["dagster"] == f"http://127.0.0.1:{serving.dagster_port}"
    assert set(serving.started["services"]) == set(SERVICES)


def test_sensors_run_from_the_start(serving: KbUp) -> None:
    query = """{ sensorsOrError(repositorySelector: {repositoryLocationName: "kb_platform", repositoryName: "__repository__"})
        { ... on Sensors { results { name sensorState { status } } } } }"""
    sensors = serving.ui.ask(query)["sensorsOrError"]["results"]
    assert {sensor["sensorState"]["status"] for sensor in sensors} == {"RUNNING"}


def test_a_second_one_is_told_who_the_first_is(serving: KbUp) -> None:
    second = serving.run("up", "--port", "1")
    assert second.returncode == 1
    assert f"already serves {serving.home}: process {serving.process.pid}" in second.stderr


def test_every_part_killed_at_once_is_up_again(serving: KbUp) -> None:
    parts = (*SERVICES, "postgresql")
    before = {part: serving.pid(part) for part in parts}
    for pid in before.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    serving.until(lambda: all(serving.pid(part) not in (None, before[part]) for part in parts))
    serving.until(serving.is_healthy)
    assert serving.process.poll() is None
    told = serving.errors()
    for service in SERVICES:
        assert f"{service}: ended after" in told


def test_killed_itself_it_leaves_nothing(serving: KbUp) -> None:
    serving.process.kill()
    serving.process.wait()
    serving.until(lambda: not serving.left(), within_s=30)


def test_it_starts_again_over_what_was_killed_and_stops_cleanly(serving: KbUp) -> None:
    serving.start()
    assert serving.is_healthy()
    serving.process.terminate()
    assert serving.process.wait(30) == 0
    assert serving.left() == []


def test_a_busy_port_is_named_before_anything_is_started(tmp_path: Path) -> None:
    text = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        number = holder.stdout.readline().strip()
        environment = os.environ | {"KB_HOME": str(tmp_path)}
        refused = subprocess.run(
            [*KB, "up", "--dagster-port", number],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        holder.communicate("\n")
    assert refused.returncode == 1
    assert f"the port is held by process {holder.pid}" in refused.stderr
    assert not (tmp_path / "postgres").exists()


def test_dagster_takes_the_configuration_that_is_written(tmp_path: Path) -> None:
    configuration, _ = dagster_instance_config(str(dagster_home(Settings(home=tmp_path))))
    assert configuration["run_queue"]["dequeue_interval_seconds"] == 1
    assert configuration["concurrency"]["runs"]["max_concurrent_runs"] == 5


def test_a_start_that_fails_says_why_and_leaves_nothing() -> None:
    home = Path(tempfile.mkdtemp(prefix="kbu-"))
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").write_text("run_queue: {no_such_key: 1}\n")
    up = KbUp(home, "--no-app")
    try:
        failed = up.run("up", "--no-app", "--dagster-port", str(up.dagster_port))
        assert failed.returncode == 1
        assert re.search(r"(daemon|webserver) does not come up: ended \(exit status 1\)", failed.stderr)
        assert "no_such_key" in failed.stderr
        assert up.left() == []
    finally:
        up.remove()
