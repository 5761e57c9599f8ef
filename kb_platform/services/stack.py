"""Which services `kb up` runs, and how each is started and asked for its health.

The webserver, the daemon and one code server for both are processes of their own, and not `dagster dev`, which hides them
behind a parent. Measured on two cores: `dagster dev` was healthy after 12.6 s, took 631 MB in five processes (a proxy
and a second copy of the command among them), ended in 7 s, and gives up all of them when one dies; these three took 10.2 s
and 430 MB, end in 1 s each, and each is started again by itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

from kb_platform.errors import ServiceError
from kb_platform.services import port
from kb_platform.services.dagster_ui import DagsterUi, get
from kb_platform.services.service import NotWell, Service
from kb_platform.settings import Settings

CODE_SERVER, WEBSERVER, DAEMON, APP, WEBHOOKS = "code-server", "webserver", "daemon", "app", "webhooks"
LOCATION = "kb_platform"
# The daemon gives a sign of life every 30 s, from each of its threads.
DAEMON_SILENCE_S = 90.0
# sockaddr_un holds 104 bytes on macOS and 108 on Linux.
LONGEST_SOCKET_PATH = 100


def services(settings: Settings, folder: Path, *, with_app: bool = True) -> list[Service]:
    """The services over a home, in the order in which they are started. `folder`: where their files lie."""
    ui = dagster_ui(settings)
    socket_path = code_socket(folder)
    workspace = _write_workspace(folder, socket_path)
    found = [
        _code_server(folder, socket_path),
        _webserver(settings, workspace, ui),
        _daemon(workspace, ui),
    ]
    if receives_webhooks(settings):
        found.append(_webhooks(settings))
    return [*found, _app(settings)] if with_app else found


def receives_webhooks(settings: Settings) -> bool:
    """Whether webhooks are received: they are signed, and there is somewhere to put them."""
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else ""
    return bool(secret.strip() and (settings.kafka_bootstrap_servers or "").strip())


def dagster_ui(settings: Settings) -> DagsterUi:
    """Dagster's webserver, as this machine reaches it."""
    return DagsterUi(port.reachable_at(settings.dagster_host), settings.dagster_port)


def environment(settings: Settings, dagster_home: Path, *, sensors_on: bool) -> dict[str, str]:
    """What all services find in their environment."""
    return {
        **os.environ,
        "KB_HOME": str(settings.home_folder),
        "KB_SENSORS_ON": str(sensors_on).lower(),
        "DAGSTER_HOME": str(dagster_home),
        # Said in our dagster.yaml too; a home may have an older one.
        "DAGSTER_DISABLE_TELEMETRY": "1",
        # `python -m` would search the folder where the command was typed first, and any project may have a folder
        # `assets` or `resources`.
        "PYTHONSAFEPATH": "1",
        # What is still in a buffer when a process is killed is what one would have liked to read.
        "PYTHONUNBUFFERED": "1",
    }


def sensors_on(settings: Settings, *, wanted: bool) -> bool:
    """Whether sensors run from the start. Not wanted is not; else KB_SENSORS_ON decides, where it is set."""
    return wanted and (settings.sensors_on or "sensors_on" not in settings.model_fields_set)


def require_free_ports(settings: Settings, *, with_app: bool = True) -> None:
    """Raises ServiceError that names the holder of a port which we need."""
    wanted = {"Dagster's UI": (settings.dagster_port, "KB_DAGSTER_PORT")}
    if with_app:
        wanted["the app"] = (settings.app_port, "KB_APP_PORT")
    if receives_webhooks(settings):
        wanted["the receiver of webhooks"] = (settings.webhook_port, "KB_WEBHOOK_PORT")
    for (one, (number, setting)), (other, (same, another)) in combinations(wanted.items(), 2):
        if number == same:
            raise ServiceError(
                f"{other} and {one} cannot both listen on port {number}", hint=f"set {another} or {setting}"
            )
    port.require_free(
        settings.dagster_host, settings.dagster_port, wanted_by="Dagster's UI",
        setting="--dagster-port or KB_DAGSTER_PORT",
    )  # fmt: skip
    if with_app:
        port.require_free(
            settings.app_host, settings.app_port, wanted_by="the app", setting="--port or KB_APP_PORT"
        )
    if receives_webhooks(settings):
        port.require_free(
            settings.webhook_host, settings.webhook_port, wanted_by="the receiver of webhooks",
            setting="KB_WEBHOOK_PORT",
        )  # fmt: skip


def code_socket(folder: Path) -> Path:
    """Where the code server listens: a Unix socket, because who reaches a code server can start runs.

    In a folder for temporary files when the path is too long; only we may look into either.
    """
    path = folder / "code.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    short = Path(tempfile.gettempdir()) / f"kb-platform-up-{os.geteuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    # In such a folder anybody may have been there first.
    if short.is_symlink() or short.stat().st_uid != os.geteuid():
        raise ServiceError(
            f"the folder {short} for the code server's socket belongs to someone else",
            hint="remove it, or choose a KB_HOME with a shorter path",
        )
    return short / "code.sock"


def app_command(settings: Settings) -> tuple[str, ...]:
    """How the app is started. Raises ServiceError where it is not installed."""
    package = find_spec("app_streamlit")
    if package is None or package.origin is None:
        raise ServiceError("the app is not installed", hint="install kb-platform whole, or use --no-app")
    script = Path(package.origin).parent / "app.py"
    return (
        sys.executable, "-m", "streamlit", "run", str(script),
        "--server.address", settings.app_host, "--server.port", str(settings.app_port),
        "--server.headless", "true", "--browser.gatherUsageStats", "false",
    )  # fmt: skip


def _code_server(folder: Path, socket_path: Path) -> Service:
    def listens(_started: float) -> None:
        # It listens only when it has loaded the code.
        with socket.socket(socket.AF_UNIX) as trial:
            trial.settimeout(2.0)
            try:
                trial.connect(str(socket_path))
            except OSError as error:
                raise NotWell(f"does not listen yet: {error}") from error

    return Service(
        CODE_SERVER,
        (
            sys.executable, "-m", "dagster", "api", "grpc", "--socket", str(socket_path),
            "--module-name", "kb_platform.definitions", "--location-name", LOCATION, "--empty-working-directory",
        ),
        listens,
        # Dagster takes the first entry of the path for the script's folder and drops it while it loads the code; with
        # PYTHONSAFEPATH that would be the first folder of PYTHONPATH. So it gets one to drop.
        {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))},
    )  # fmt: skip


def _webserver(settings: Settings, workspace: Path, ui: DagsterUi) -> Service:
    return Service(
        WEBSERVER,
        (
            sys.executable, "-m", "dagster_webserver", "--workspace", str(workspace),
            "--host", settings.dagster_host, "--port", str(settings.dagster_port),
        ),
        lambda _started: _require_ui(ui, port.reachable_at(settings.dagster_host), settings.dagster_port),
        needs=(CODE_SERVER,),
        address=port.url(settings.dagster_host, settings.dagster_port),
    )  # fmt: skip


def _daemon(workspace: Path, ui: DagsterUi) -> Service:
    return Service(
        DAEMON,
        (sys.executable, "-m", "dagster._daemon", "run", "--workspace", str(workspace)),
        lambda started: ui.require_daemon(since=started, within_s=DAEMON_SILENCE_S, now=time.time()),
        needs=(CODE_SERVER,),
        # Said for half a minute by each daemon that follows on another.
        hushed=("daemon is still sending heartbeats",),
    )


def _app(settings: Settings) -> Service:
    host = port.reachable_at(settings.app_host)
    return Service(
        APP,
        app_command(settings),
        lambda _started: _require_ok(host, settings.app_port),
        address=port.url(settings.app_host, settings.app_port),
    )


def _webhooks(settings: Settings) -> Service:
    host = port.reachable_at(settings.webhook_host)

    def answers(_started: float) -> None:
        # Without brokers it is well all the same: it says so to those who deliver, and a restart brings none back.
        get(host, settings.webhook_port, "/healthz")

    return Service(
        WEBHOOKS,
        (sys.executable, "-m", "kb_platform.cli", "receive", "--wait-for-brokers"),
        answers,
        address=f"{port.url(settings.webhook_host, settings.webhook_port)}/webhooks/github",
    )


def _require_ui(ui: DagsterUi, host: str, number: int) -> None:
    get(host, number, "/server_info")
    ui.require_code()


def _require_ok(host: str, number: int) -> None:
    if get(host, number, "/_stcore/health").strip() != b"ok":
        raise NotWell("does not call itself healthy")


def _write_workspace(folder: Path, socket_path: Path) -> Path:
    """Tells webserver and daemon of the code server that both use."""
    path = folder / "workspace.yaml"
    location: Mapping[str, object] = {"socket": str(socket_path), "location_name": LOCATION}
    # JSON is YAML.
    path.write_text(json.dumps({"load_from": [{"grpc_server": location}]}, indent=2) + "\n")
    return path
