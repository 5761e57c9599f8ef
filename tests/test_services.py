"""What keeps services running, over small programs that misbehave."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psutil
import pytest

from kb_platform.errors import ServiceError
from kb_platform.home import dagster_home
from kb_platform.services import guardian, home_lock, port, processes, stack
from kb_platform.services.abandoned_runs import AbandonedRuns
from kb_platform.services.dagster_ui import FlyingRun
from kb_platform.services.postgresql import PostgresqlWatch
from kb_platform.services.service import CannotTell, News, NotWell, Service
from kb_platform.services.service_log import LONGEST_LINE, ServiceLog
from kb_platform.services.supervisor import Patience, Supervisor
from kb_platform.settings import Settings
from kb_platform.store.database import Database

QUICK = Patience(
    first_pause=0.05,
    longest_pause=0.2,
    settled=60,
    frozen=0.3,
    stopping=0.3,
    starting=5,
    tries=3,
    between_checks=0.05,
    between_first_checks=0.02,
    between_reports=0.2,
)
# Without the site's packages Python starts in 10 ms.
PYTHON = (sys.executable, "-S", "-E", "-c")
SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w'); time.sleep(60)"


def program(text: str, *arguments: object) -> tuple[str, ...]:
    return (*PYTHON, textwrap.dedent(text), *map(str, arguments))


def always_well(_started: float) -> None:
    pass


def when_there(path: Path) -> Callable[[float], None]:
    def check(_started: float) -> None:
        if not path.exists():
            raise NotWell(f"{path.name} is not there")

    return check


def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class Stack:
    """Supervised services, and all that was told of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = processes.mark(folder, "life")
        self.news: list[News] = []
        self.stop = threading.Event()
        self._made: list[Supervisor] = []

    def supervise(self, *services: Service, patience: Patience = QUICK) -> Supervisor:
        self._made.append(
            Supervisor(
                services,
                self.folder,
                self.mark,
                self.news.append,
                environment=dict(os.environ),
                patience=patience,
            )
        )
        return self._made[-1]

    def tick_until(self, supervisor: Supervisor, condition: Callable[[], object]) -> None:
        def look() -> object:
            supervisor.tick()
            return condition()

        until(look)

    def told(self, service: str) -> str:
        return "\n".join(news.text for news in self.news if news.service == service)

    def close(self) -> None:
        for supervisor in self._made:
            supervisor.stop()
        assert processes.marked(self.mark) == []


@pytest.fixture
def running(tmp_path: Path) -> Generator[Stack]:
    made = Stack(tmp_path)
    yield made
    made.close()


def service(
    name: str, text: str, *, check: Callable[[float], None] = always_well, needs: tuple[str, ...] = ()
) -> Service:
    return Service(name, program(text), check, needs=needs)


def test_services_start_in_the_order_of_their_needs_and_stop_in_the_other(
    running: Stack, tmp_path: Path
) -> None:
    order = tmp_path / "order"
    text = f"""
        import signal, sys, time
        def end(*_):
            open({str(order)!r}, "a").write("-%s"); sys.exit()
        signal.signal(signal.SIGTERM, end)
        open({str(order)!r}, "a").write("+%s"); open({str(tmp_path)!r} + "/%s", "w"); time.sleep(60)"""

    def one(name: str, *needs: str) -> Service:
        return service(name, text % (name, name, name), check=when_there(tmp_path / name), needs=needs)

    supervisor = running.supervise(one("b", "a"), one("c", "b"), one("a"))
    assert supervisor.start(running.stop)
    assert set(supervisor.pids()) == {"a", "b", "c"}
    supervisor.stop()
    assert order.read_text() == "+a+b+c-c-b-a"


def test_what_dies_is_started_again_after_growing_pauses_and_its_last_words_are_told(running: Stack) -> None:
    supervisor = running.supervise(service("frail", "import sys; print('no more milk'); sys.exit(3)"))
    running.tick_until(supervisor, lambda: running.told("frail").count("starts again") >= 4)
    told = running.told("frail")
    assert re.findall(r"exit status (\d+)\); starts again in ([\d.]+) s", told)[:4] == [
        ("3", "0.05"), ("3", "0.1"), ("3", "0.2"), ("3", "0.2")
    ]  # fmt: skip
    assert "no more milk" in told


@pytest.mark.slow
def test_the_pause_is_short_again_after_a_settled_life(running: Stack) -> None:
    patience = Patience(first_pause=0.05, longest_pause=60, settled=0.1, between_first_checks=0.01)
    supervisor = running.supervise(service("frail", "import time; time.sleep(0.12)"), patience=patience)
    running.tick_until(supervisor, lambda: running.told("frail").count("starts again in 0.05 s") >= 3)


def test_one_killed_from_outside_is_started_again(running: Stack) -> None:
    supervisor = running.supervise(service("good", SLEEP))
    assert supervisor.start(running.stop)
    first = supervisor.pids()["good"]
    os.kill(first, signal.SIGKILL)
    running.tick_until(supervisor, lambda: supervisor.pids().get("good", first) != first)
    assert "signal 9" in running.told("good")


def test_a_start_that_fails_is_given_up_with_the_last_lines_of_the_log(running: Stack) -> None:
    supervisor = running.supervise(
        service("broken", "raise SystemExit('the key does not fit')"), service("good", SLEEP)
    )
    with pytest.raises(
        ServiceError, match=r"(?s)broken does not come up: ended \(exit status 1\).*the key does not fit"
    ) as error:
        supervisor.start(running.stop)
    assert str(running.folder / "broken.log") in str(error.value.hint)


def test_one_that_is_never_healthy_is_reported_and_then_given_up(running: Stack, tmp_path: Path) -> None:
    patience = Patience(starting=0.3, stopping=0.3, between_reports=0.1, between_first_checks=0.02)
    supervisor = running.supervise(
        service("slow", SLEEP, check=when_there(tmp_path / "sign")), patience=patience
    )
    with pytest.raises(ServiceError, match="slow does not come up: sign is not there"):
        supervisor.start(running.stop)
    assert "not ready after" in running.told("slow")


def test_a_request_to_stop_ends_the_wait_for_health(running: Stack, tmp_path: Path) -> None:
    supervisor = running.supervise(service("slow", SLEEP, check=when_there(tmp_path / "sign")))
    threading.Timer(0.2, running.stop.set).start()
    assert not supervisor.start(running.stop)


def test_one_that_ignores_the_request_to_end_is_killed(running: Stack, tmp_path: Path) -> None:
    deaf = DEAF.replace("'deaf'", repr(str(tmp_path / "deaf")))
    supervisor = running.supervise(service("deaf", deaf, check=when_there(tmp_path / "deaf")))
    assert supervisor.start(running.stop)
    pid = supervisor.pids()["deaf"]
    begun = time.monotonic()
    supervisor.stop()
    assert 0.3 <= time.monotonic() - begun < 2
    assert not psutil.pid_exists(pid)
    assert "did not end when asked to" in running.told("kb up")


def test_a_second_request_to_stop_kills_at_once(running: Stack, tmp_path: Path) -> None:
    deaf = DEAF.replace("'deaf'", repr(str(tmp_path / "deaf")))
    patience = Patience(stopping=60, between_first_checks=0.02)
    supervisor = running.supervise(
        service("deaf", deaf, check=when_there(tmp_path / "deaf")), patience=patience
    )
    assert supervisor.start(running.stop)
    at_once = threading.Event()
    threading.Timer(0.1, at_once.set).start()
    begun = time.monotonic()
    supervisor.stop(at_once)
    assert time.monotonic() - begun < 2


def test_a_frozen_service_is_killed_and_started_again_but_not_one_that_nothing_can_be_told_of(
    running: Stack, tmp_path: Path
) -> None:
    def hidden(_started: float) -> None:
        raise CannotTell("the one to ask is away")

    sign = tmp_path / "sign"
    sign.touch()
    known = iter([None])
    supervisor = running.supervise(
        service("frozen", SLEEP, check=when_there(sign)),
        service("hidden", SLEEP, check=lambda started: next(known, "no") and hidden(started)),
    )
    assert supervisor.start(running.stop)
    before = supervisor.pids()
    sign.unlink()
    running.tick_until(
        supervisor, lambda: supervisor.pids().get("frozen", before["frozen"]) != before["frozen"]
    )
    assert "sign is not there" in running.told("frozen")
    assert supervisor.pids()["hidden"] == before["hidden"]


def test_a_check_that_hangs_holds_up_nothing_else(running: Stack) -> None:
    hangs = threading.Event()
    supervisor = running.supervise(
        service("hangs", SLEEP, check=lambda _: hangs.wait(30) and None),
        service("frail", "raise SystemExit(1)"),
    )
    running.tick_until(supervisor, lambda: running.told("frail").count("starts again") >= 2)
    hangs.set()


@pytest.mark.slow
def test_what_a_dead_service_had_started_ends_with_it(running: Stack, tmp_path: Path) -> None:
    text = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
        open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
        time.sleep(60)"""
    sign = tmp_path / "child"
    supervisor = running.supervise(service("parent", text, check=when_there(sign)))
    assert supervisor.start(running.stop)
    until(sign.read_text)
    child = psutil.Process(int(sign.read_text()))
    sign.unlink()
    os.kill(supervisor.pids()["parent"], signal.SIGKILL)
    running.tick_until(supervisor, lambda: not processes.living([child]))


def write(path: Path, *lines: bytes, **settings: int) -> tuple[ServiceLog, list[str]]:
    told: list[str] = []
    log = ServiceLog(path, told.append, hushed=("known trouble",), **settings)
    reading, writing = os.pipe()
    thread = log.follow(os.fdopen(reading, "rb"))
    with os.fdopen(writing, "wb") as output:
        output.writelines(line + b"\n" for line in lines)
    thread.join(10)
    assert not thread.is_alive()
    return log, told


def test_a_flood_of_output_is_kept_in_bounds(tmp_path: Path) -> None:
    path = tmp_path / "flood.log"
    log, told = write(path, *(b"%d " % number + b"x" * 1_000 for number in range(5_000)), most_bytes=100_000)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(sizes) == {"flood.log", "flood.log.1"}
    assert max(sizes.values()) <= 100_000
    assert log.last(1)[0].startswith("4999 ")
    assert told == []


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    log, _ = write(tmp_path / "long.log", b"y" * (3 * LONGEST_LINE), most_bytes=10 * LONGEST_LINE)
    assert (tmp_path / "long.log").stat().st_size == 3 * LONGEST_LINE + 1
    assert max(map(len, log.last(20))) <= LONGEST_LINE


def test_warnings_are_told_without_colours_and_never_as_a_flood(tmp_path: Path) -> None:
    lines = [
        b"\x1b[34mERROR\x1b[0m - the disk is full",
        b"INFO all is well",
        b"ERROR known trouble",
        b"ValueError: no",
    ]
    log, told = write(tmp_path / "a.log", *lines, *(b"WARNING %d" % number for number in range(1_000)))
    assert told[:2] == ["ERROR - the disk is full", "ValueError: no"]
    assert len(told) == 10
    assert log.last(1) == ["WARNING 999"]


def test_bytes_that_are_no_text_break_nothing(tmp_path: Path) -> None:
    log, told = write(tmp_path / "a.log", b"\xff\xfe ERROR \x00\x9b", b"last")
    assert len(told) == 1
    assert log.last(1) == ["last"]


def test_a_busy_port_is_named_with_the_process_that_holds_it() -> None:
    text = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(program(text), stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        number = int(holder.stdout.readline())
        with pytest.raises(ServiceError, match=f"held by process {holder.pid} .*create_server") as error:
            port.require_free("127.0.0.1", number, wanted_by="the app", setting="KB_APP_PORT")
        assert "KB_APP_PORT" in str(error.value.hint)
        with pytest.raises(ServiceError, match=f"process {holder.pid}"):
            port.require_free("0.0.0.0", number, wanted_by="the app", setting="KB_APP_PORT")
        holder.communicate("\n")
    port.require_free("127.0.0.1", number, wanted_by="the app", setting="KB_APP_PORT")


def test_an_address_that_is_not_ours_is_said_to_be() -> None:
    with pytest.raises(ServiceError, match=r"cannot listen on 192\.0\.2\.1:\d+"):
        port.require_free("192.0.2.1", 8501, wanted_by="the app", setting="KB_APP_PORT")


def test_one_port_for_both_is_refused() -> None:
    with pytest.raises(ServiceError, match="cannot both"):
        stack.require_free_ports(Settings(app_port=9_999, dagster_port=9_999))


def test_a_second_holder_of_a_home_is_told_who_the_first_is(tmp_path: Path) -> None:
    first = f"process {os.getpid()} "
    with (
        home_lock.held(tmp_path),
        pytest.raises(ServiceError, match=first) as error,
        home_lock.held(tmp_path),
    ):
        pass
    assert f"kill {os.getpid()}" in str(error.value.hint)
    # What the first left behind is no lock.
    with home_lock.held(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_lock_ends_with_its_killed_holder(tmp_path: Path) -> None:
    text = "from kb_platform.services import home_lock; from pathlib import Path; import sys\nwith home_lock.held(Path(sys.argv[1])): print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ServiceError, match=f"process {holder.pid} "), home_lock.held(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with home_lock.held(tmp_path):
            pass


# A `kb up` in small: two services, one of which has a child in a session of its own, and a guardian.
SUPERVISOR = """
import os, sys, threading
from pathlib import Path
from kb_platform.services import guardian, processes
from kb_platform.services.abandoned_runs import AbandonedRuns
from kb_platform.services.dagster_ui import FlyingRun
from kb_platform.services.service import Service
from kb_platform.services.supervisor import Supervisor
home = Path(sys.argv[1])
mark = processes.mark(home, str(os.getpid()))
sleep = (sys.executable, "-S", "-c", "import time; time.sleep(60)")
parent = (sys.executable, "-S", "-c", "import subprocess, sys, time; "
          "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'], start_new_session=True); time.sleep(60)")
services = [Service("one", sleep, lambda _: None), Service("two", parent, lambda _: None)]
with guardian.Guardian(home, mark) as guard:
    supervisor = Supervisor(services, home, mark, lambda news: None, environment=dict(os.environ))
    stop = threading.Event()
    supervisor.start(stop)
    print(guard.pid, flush=True)
    supervisor.watch(stop)
"""


@pytest.fixture
def supervisor_process(tmp_path: Path) -> Generator[tuple[subprocess.Popen[str], psutil.Process, str]]:
    """A process that supervises, its guardian, and the mark of what they started."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        guard = psutil.Process(int(process.stdout.readline()))
        mark = processes.mark(tmp_path)
        until(lambda: len(processes.marked(mark)) == 3)
        yield process, guard, mark
        process.kill()
        guardian.end_all(mark, within_s=0)


def test_a_killed_supervisor_leaves_no_process(
    supervisor_process: tuple[subprocess.Popen[str], psutil.Process, str],
) -> None:
    process, guard, mark = supervisor_process
    process.kill()
    process.wait()
    until(lambda: not processes.marked(mark))
    until(lambda: not processes.living([guard]))


@pytest.mark.slow
def test_a_killed_guardian_is_followed_by_another(
    supervisor_process: tuple[subprocess.Popen[str], psutil.Process, str],
) -> None:
    process, guard, mark = supervisor_process
    guard.kill()
    parent = psutil.Process(process.pid)

    def follower() -> list[psutil.Process]:
        children = [child for child in processes.living(parent.children()) if child != guard]
        return [child for child in children if "guardian" in processes.described(child.pid)]

    until(follower)
    process.kill()
    process.wait()
    until(lambda: not processes.marked(mark))


def test_the_next_start_ends_what_a_supervisor_killed_with_its_guardian_left(
    supervisor_process: tuple[subprocess.Popen[str], psutil.Process, str], tmp_path: Path
) -> None:
    process, guard, mark = supervisor_process
    guard.kill()
    process.kill()
    process.wait()
    time.sleep(0.2)
    assert len(processes.marked(mark)) == 3
    # Another home's processes have another mark, also when its name begins alike.
    other = subprocess.Popen(
        program(SLEEP), env=os.environ | {processes.MARK: processes.mark(Path(f"{tmp_path}2"))}
    )
    assert guardian.end_all(mark) == 3
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_socket_s_path_is_short_however_long_the_home_s_is(tmp_path: Path) -> None:
    assert stack.code_socket(tmp_path) == tmp_path / "code.sock"
    long = tmp_path / ("x" * 100)
    path = stack.code_socket(long)
    assert len(os.fsencode(path)) <= stack.LONGEST_SOCKET_PATH
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.unlink()
    path.parent.rmdir()


class RunsOnStage:
    """Dagster's webserver with runs that a test makes up."""

    def __init__(self) -> None:
        self.runs: list[FlyingRun] = []
        self.pids: dict[str, int] = {}
        self.closed: list[str] = []

    def runs_in_flight(self) -> list[FlyingRun]:
        return [run for run in self.runs if run.run_id not in self.closed]

    def process_of(self, run_id: str) -> int | None:
        return self.pids.get(run_id)

    def close(self, run_id: str) -> None:
        self.closed.append(run_id)


def test_only_runs_whose_process_is_gone_are_closed_and_only_at_the_second_look() -> None:
    now = time.time()
    dead = subprocess.Popen(program(""))
    dead.wait()
    ui = RunsOnStage()
    ui.pids = {"dead": dead.pid, "alive": os.getpid(), "older": os.getpid()}
    born = psutil.Process().create_time()
    ui.runs = [
        FlyingRun("dead", "STARTED", now, {}),
        FlyingRun("alive", "STARTED", born - 10, {}),
        # The number of its process is another's since a restart of the machine.
        FlyingRun("older", "STARTED", born + 3_600, {}),
        FlyingRun("just starting", "STARTING", now - 5, {}),
        FlyingRun("never started", "STARTING", now - 600, {}),
        FlyingRun("of a command", "STARTED", now - 600, {"kb/process": "host/1"}),
        FlyingRun("of Dagster's command", "STARTED", now - 600, {}),
    ]
    runs = AbandonedRuns(ui, lambda _: None)
    assert runs.look() == []
    assert runs.look() == ["dead", "never started", "older"]
    assert ui.closed == ["dead", "never started", "older"]
    assert runs.look() == []


def test_a_run_that_ended_between_two_looks_is_left_alone() -> None:
    dead = subprocess.Popen(program(""))
    dead.wait()
    ui = RunsOnStage()
    ui.runs, ui.pids = [FlyingRun("ended", "STARTED", time.time(), {})], {"ended": dead.pid}
    runs = AbandonedRuns(ui, lambda _: None)
    assert runs.look() == []
    ui.runs = []
    assert runs.look() == []
    assert ui.closed == []


@pytest.mark.parametrize(
    ("settings", "wanted", "on"),
    [
        (Settings(), True, True),
        (Settings(), False, False),
        (Settings(sensors_on=False), True, False),
        (Settings(sensors_on=True), False, False),
        (Settings(sensors_on=True), True, True),
    ],
)
def test_sensors_run_unless_somebody_says_no(settings: Settings, wanted: bool, on: bool) -> None:
    assert stack.sensors_on(settings, wanted=wanted) is on


def test_services_find_the_home_and_send_no_telemetry(tmp_path: Path) -> None:
    found = stack.environment(Settings(home=tmp_path), tmp_path / "dagster", sensors_on=False)
    assert found["KB_HOME"] == str(tmp_path)
    assert found["DAGSTER_HOME"] == str(tmp_path / "dagster")
    assert (found["KB_SENSORS_ON"], found["DAGSTER_DISABLE_TELEMETRY"]) == ("false", "1")


def test_services_depend_on_the_code_server_and_listen_where_they_are_told(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, dagster_host="::1", dagster_port=3_999, app_port=8_999)
    found = {service.name: service for service in stack.services(settings, tmp_path)}
    assert found["webserver"].needs == found["daemon"].needs == ("code-server",)
    assert found["webserver"].address == "http://[::1]:3999"
    assert found["app"].address == "http://127.0.0.1:8999"
    assert "app" not in [service.name for service in stack.services(settings, tmp_path, with_app=False)]
    assert str(stack.code_socket(tmp_path)) in (tmp_path / "workspace.yaml").read_text()


def test_a_dagster_yaml_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    file = dagster_home(Settings(home=tmp_path)) / "dagster.yaml"
    assert "dequeue_interval_seconds: 1\n" in file.read_text()
    file.write_text("mine: true\n")
    dagster_home(Settings(home=tmp_path))
    assert file.read_text() == "mine: true\n"


def test_a_watch_that_never_began_can_be_stopped(tmp_path: Path) -> None:
    """Because a start that fails stops everything, and its error must come through."""
    AbandonedRuns(RunsOnStage(), lambda _: None).stop()
    PostgresqlWatch(Database("postgresql:///nowhere"), lambda _: None).stop()


def test_a_lost_database_is_told_once_and_so_is_its_return(make_database: Callable[[], Database]) -> None:
    there = make_database()
    away = Database(there.url.replace("/kb_test", "/no_such_kb_test"))
    told: list[News] = []
    watch = PostgresqlWatch(away, told.append, between_s=0.01)
    watch.start()
    until(lambda: told)
    time.sleep(0.1)
    away.url = there.url
    until(lambda: len(told) > 1)
    watch.stop()
    away.close()
    assert ["does not answer" in told[0].text, "answers again after" in told[1].text, len(told)] == [
        True,
        True,
        2,
    ]
