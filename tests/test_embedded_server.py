"""The embedded server: who starts it, who stops it, and what it survives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Generator
from pathlib import Path

import psycopg
import pytest

from kb_platform.errors import DatabaseUnavailable
from kb_platform.store.database import Database
from kb_platform.store.embedded import EmbeddedServer

# What a process of its own does; `home` is its first argument.
USE = """
import os, signal, sys, time
from pathlib import Path
from kb_platform.store import embedded
server = embedded.running(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def initialised() -> Generator[Path]:
    """A home folder with a server that was made and stopped."""
    home = Path(tempfile.mkdtemp(prefix="kbe-"))
    server = EmbeddedServer(home)
    server.start()
    server.leave()
    yield home
    shutil.rmtree(home)


@pytest.fixture
def home(initialised: Path) -> Generator[Path]:
    """That folder; whatever runs there is stopped after each test."""
    yield initialised
    EmbeddedServer(initialised).stop()


def test_the_last_user_to_leave_stops_it(home: Path) -> None:
    first, second = EmbeddedServer(home), EmbeddedServer(home)
    first.start()
    second.start()
    assert postmaster(home) is not None
    first.leave()
    assert second.is_ready()
    second.leave()
    assert not second.is_ready()
    assert postmaster(home) is None


def test_starting_twice_changes_nothing(home: Path) -> None:
    server = EmbeddedServer(home)
    server.start()
    pid = postmaster(home)
    server.start()
    assert postmaster(home) == pid
    server.leave()
    server.leave()
    assert postmaster(home) is None


def test_keep_running_outlives_its_users_until_stop(home: Path) -> None:
    server = EmbeddedServer(home)
    server.start()
    server.keep_running()
    server.leave()
    assert server.is_ready()
    assert server.stop()
    assert not server.is_ready()
    assert not server.stop()
    # The wish ends with the stop.
    server.start()
    server.leave()
    assert not server.is_ready()


def test_stopping_what_never_was(tmp_path: Path) -> None:
    assert not EmbeddedServer(tmp_path / "nowhere").stop()


def test_a_killed_server_recovers_and_has_what_was_committed(home: Path) -> None:
    server = EmbeddedServer(home)
    server.start()
    database = Database(server.url(), pool_size=2, revive=server.start)
    with database.transaction() as connection:
        connection.execute("DROP TABLE IF EXISTS kept")
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    kill_server(home)
    with database.transaction() as connection:
        row = connection.execute("SELECT answer FROM kept").fetchone()
    assert row == (42,)
    database.close()
    server.leave()
    assert postmaster(home) is None


def test_losing_the_connection_says_what_to_do(home: Path) -> None:
    server = EmbeddedServer(home)
    server.start()
    database = Database(server.url(), pool_size=1, revive=server.start)
    with pytest.raises(DatabaseUnavailable, match="was lost") as raised, database.transaction() as connection:
        kill_server(home)
        connection.execute("SELECT 1")
    assert raised.value.hint is not None
    assert "do the same again" in raised.value.hint
    with database.snapshot() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    database.close()
    server.leave()


def test_a_killed_backend_is_no_reason_to_give_up(home: Path) -> None:
    """PostgreSQL then ends all connections and recovers; meanwhile it runs and takes no connections."""
    server = EmbeddedServer(home)
    server.start()
    database = Database(server.url(), pool_size=2, revive=server.start)
    with database.snapshot() as connection:
        backend = connection.info.backend_pid
    for _ in range(3):
        os.kill(backend, signal.SIGKILL)
        server.start()
        with database.snapshot() as connection:
            backend = connection.info.backend_pid
    database.close()
    server.leave()


def test_a_user_that_is_killed_leaves_no_trace(home: Path) -> None:
    user = in_process(home, "os.kill(os.getpid(), signal.SIGKILL)")
    assert user.wait(60) == -signal.SIGKILL
    assert postmaster(home) is not None, "nobody was there to stop it"
    assert in_process(home).wait(60) == 0
    assert postmaster(home) is None


def test_a_forked_child_does_not_stop_its_parents_server(home: Path) -> None:
    parent = in_process(
        home,
        """
        child = os.fork()
        if child == 0:
            sys.exit(0)  # with atexit's functions, the parent's among them
        os.waitpid(child, 0)
        assert server.is_ready(), "the child stopped it"
        other = embedded.EmbeddedServer(Path(sys.argv[1]))
        other.start()
        other.leave()
        assert server.is_ready(), "the child gave up the parent's hold"
        child = os.fork()
        if child == 0:
            embedded.running(Path(sys.argv[1])).leave()
            os._exit(0)
        os.waitpid(child, 0)
        assert server.is_ready(), "the child's own hold was the parent's"
        """,
    )
    assert parent.wait(60) == 0
    assert postmaster(home) is None


def test_a_path_too_long_for_a_socket(initialised: Path) -> None:
    short = Path(tempfile.mkdtemp(prefix="kbe-"))
    home = short / ("a-rather-long-name-" * 6)
    home.mkdir()
    subprocess.run(["cp", "-a", f"{initialised}/.", home], check=True)
    server = EmbeddedServer(home)
    try:
        server.start()
        assert "a-rather-long-name" not in server.url()
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert server._socket_folder().stat().st_mode & 0o777 == 0o700  # pyright: ignore[reportPrivateUsage]
    finally:
        server.leave()
        shutil.rmtree(server._socket_folder(), ignore_errors=True)  # pyright: ignore[reportPrivateUsage]
        shutil.rmtree(short, ignore_errors=True)


def test_a_socket_folder_that_someone_else_prepared_is_refused() -> None:
    short = Path(tempfile.mkdtemp(prefix="kbe-"))
    server = EmbeddedServer(short / ("a-rather-long-name-" * 6))
    theirs = server._socket_folder()  # pyright: ignore[reportPrivateUsage]
    (server.data).mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("18\n")
    elsewhere = short / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    theirs.symlink_to(elsewhere)
    try:
        with pytest.raises(DatabaseUnavailable, match="belongs to someone else"):
            server.start()
        assert elsewhere.stat().st_uid == os.geteuid()
        assert elsewhere.stat().st_mode & 0o777 == 0o755
    finally:
        server.leave()
        theirs.unlink()
        shutil.rmtree(short)


def test_the_pid_file_of_a_dead_server_may_name_anybody(home: Path) -> None:
    server = EmbeddedServer(home)
    server.start()
    kill_server(home)
    server.leave()
    owner = server.data.stat().st_uid
    # PostgreSQL looks only at processes of its own user.
    bystander = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        file = server.data / "postmaster.pid"
        file.write_text(f"{bystander.pid}\n" + file.read_text().partition("\n")[2])
        assert not server.stop(), "there was nothing of ours to stop"
        assert bystander.poll() is None
        server.start()
        assert server.is_ready()
        assert postmaster(home) != bystander.pid
        server.leave()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_damaged_pid_file(home: Path) -> None:
    server = EmbeddedServer(home)
    (server.data / "postmaster.pid").write_text("")
    assert not server.stop()


def test_killed_while_making_the_data() -> None:
    home = Path(tempfile.mkdtemp(prefix="kbe-"))
    server = EmbeddedServer(home)
    try:
        maker = in_process(home)
        wait_for(lambda: any(server.folder.glob("new-*/PG_VERSION")))
        maker.kill()
        maker.wait()
        assert not server.data.exists(), "half a cluster must not look like one"
        # The `initdb` that was under way goes on beside ours.
        server.start()
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("kb",)
    finally:
        server.leave()
        wait_for(lambda: not any("initdb" in line and str(home) in line for line in processes()))
        shutil.rmtree(home)


def test_a_server_that_cannot_start_shows_its_log(home: Path) -> None:
    server = EmbeddedServer(home)
    (server.data / "custom.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(DatabaseUnavailable, match="no_such_setting"):
        server.start()
    (server.data / "custom.conf").unlink()
    server.start()
    server.leave()


def test_two_processes_make_and_start_it_at_once() -> None:
    home = Path(tempfile.mkdtemp(prefix="kbe-"))
    try:
        users = [in_process(home, "assert server.is_ready()") for _ in range(2)]
        assert [user.wait(120) for user in users] == [0, 0]
        assert postmaster(home) is None
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home)


def test_twenty_processes_come_and_go(home: Path) -> None:
    """Each writes one row; every fifth is killed before it can leave."""
    users = [
        in_process(
            home,
            f"""
            import psycopg
            time.sleep({number % 7} / 10)
            with psycopg.connect(server.url()) as connection:
                connection.execute("SELECT pg_advisory_xact_lock(1)")
                connection.execute("CREATE TABLE IF NOT EXISTS seen (number integer)")
                connection.execute("INSERT INTO seen VALUES ({number})")
            if {number} % 5 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            """,
        )
        for number in range(20)
    ]
    expected = [-signal.SIGKILL if number % 5 == 0 else 0 for number in range(20)]
    assert [user.wait(120) for user in users] == expected
    server = EmbeddedServer(home)
    server.start()
    with psycopg.connect(server.url()) as connection:
        rows = connection.execute("SELECT number FROM seen ORDER BY number").fetchall()
    assert [row[0] for row in rows] == list(range(20))
    server.leave()
    assert postmaster(home) is None


def in_process(home: Path, script: str = "") -> subprocess.Popen[bytes]:
    """A Python process of its own that uses the server of a home folder and then runs `script`."""
    return subprocess.Popen([sys.executable, "-c", USE + textwrap.dedent(script), str(home)])


def postmaster(home: Path) -> int | None:
    """The process id of the server of a home folder, if it is alive."""
    return EmbeddedServer(home).postmaster()


def kill_server(home: Path) -> None:
    """Kill the server; its backends serve on until they notice, a moment later."""
    pid = postmaster(home)
    assert pid is not None
    children = [line.split()[0] for line in processes() if line.split()[1] == str(pid)]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: postmaster(home) is None)
    wait_for(
        lambda: not any(line.split()[0] in children and line.split()[2][0] != "Z" for line in processes())
    )


def processes() -> list[str]:
    """Number, parent, state and command line of every process."""
    shown = subprocess.run(
        ["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True, check=True
    ).stdout
    return shown.splitlines()[1:]


def wait_for(is_so: Callable[[], bool], *, at_most_s: float = 30) -> None:
    deadline = time.monotonic() + at_most_s
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
