"""`kb up`: everything served by one command, until it is told to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from kb_platform.cli.output import Json, log, note, say, say_json, start_log
from kb_platform.home import dagster_home, open_database
from kb_platform.services import guardian, home_lock, port, processes, stack
from kb_platform.services.abandoned_runs import AbandonedRuns
from kb_platform.services.postgresql import NAME as POSTGRESQL
from kb_platform.services.postgresql import PostgresqlWatch
from kb_platform.services.service import News
from kb_platform.services.supervisor import Supervisor
from kb_platform.settings import Settings, load_settings
from kb_platform.store.database import Database, without_password


def register(app: typer.Typer) -> None:
    """Add the command to `kb`."""
    app.command()(up)


def up(
    *,
    app_port: Annotated[
        int | None, typer.Option("--port", min=1, max=65_535, help="Port of the app. Default: KB_APP_PORT.")
    ] = None,
    dagster_port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port of Dagster's UI. Default: KB_DAGSTER_PORT.")
    ] = None,
    no_app: Annotated[bool, typer.Option("--no-app", help="Serve Dagster alone.")] = False,
    no_sensors: Annotated[
        bool,
        typer.Option(
            "--no-sensors", help="Sensors start switched off. Else they run, unless KB_SENSORS_ON says no."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Serve everything: PostgreSQL, Dagster's UI and daemon, and the app. Ctrl-C stops it.

    With KB_WEBHOOK_SECRET and KB_KAFKA_BOOTSTRAP_SERVERS set, GitHub's webhooks are received too. What dies is started
    again. Logs lie in KB_HOME/up.
    """
    settings = _with_ports(load_settings(), app_port, dagster_port)
    start_log(settings)
    _warn_if_public(settings, with_app=not no_app)
    folder = settings.home_folder / "up"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with home_lock.held(folder):
        _end_what_was_left(settings.home_folder)
        stack.require_free_ports(settings, with_app=not no_app)
        with _opened(settings) as database:
            _serve(
                settings,
                database,
                folder,
                with_app=not no_app,
                sensors_on=stack.sensors_on(settings, wanted=not no_sensors),
                json=json,
            )


def _serve(
    settings: Settings, database: Database, folder: Path, *, with_app: bool, sensors_on: bool, json: bool
) -> None:
    mark = processes.mark(settings.home_folder, uuid.uuid4().hex)
    supervisor = Supervisor(
        stack.services(settings, folder, with_app=with_app),
        folder,
        mark,
        _tell,
        environment=stack.environment(settings, dagster_home(settings), sensors_on=sensors_on),
    )
    watch = PostgresqlWatch(database, _tell)
    runs = AbandonedRuns(stack.dagster_ui(settings), _tell)
    with _stopping() as (stop, at_once), guardian.Guardian(settings.home_folder, mark):
        try:
            watch.start()
            if supervisor.start(stop):
                _announce(settings, supervisor, with_app=with_app, json=json)
                runs.start()
                supervisor.watch(stop)
            note("stopping; once more Ctrl-C kills")
        finally:
            runs.stop()
            supervisor.stop(at_once)
            watch.stop()
            guardian.end_all(mark, within_s=0 if at_once.is_set() else guardian.PATIENCE_S)


@contextmanager
def _opened(settings: Settings) -> Generator[Database]:
    database = open_database(settings.model_copy(update={"database_pool_size": 1}))
    where = "embedded" if settings.database_url is None else without_password(settings.database_url)
    log.info("%s: ready (%s)", POSTGRESQL, where)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _stopping() -> Generator[tuple[threading.Event, threading.Event]]:
    """Two events: set by the first and by the second request to stop."""
    stop, at_once = threading.Event(), threading.Event()

    def request(_number: int, _frame: FrameType | None) -> None:
        (at_once if stop.is_set() else stop).set()

    # A script's background process inherits that SIGINT means nothing. Handed on, Dagster's processes would not stop at
    # all: they take SIGTERM for what SIGINT means to them.
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Under nohup it is, and the end of the terminal is not ours.
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, request) for number in numbers}
    try:
        yield stop, at_once
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(settings: Settings, supervisor: Supervisor, *, with_app: bool, json: bool) -> None:
    app = port.url(settings.app_host, settings.app_port) if with_app else None
    dagster = port.url(settings.dagster_host, settings.dagster_port)
    webhooks = port.url(settings.webhook_host, settings.webhook_port) + "/webhooks/github"
    webhooks = webhooks if stack.receives_webhooks(settings) else None
    if json:
        say_json({"app": app, "dagster": dagster, "webhooks": webhooks, "home": settings.home_folder,
                  "pid": os.getpid(), "services": supervisor.pids()})  # fmt: skip
    else:
        if app:
            say(f"the app         {app}")
        say(f"Dagster's UI    {dagster}")
        if webhooks:
            say(f"webhooks        {webhooks}")
        note(f"logs lie in {settings.home_folder / 'up'}; Ctrl-C stops everything")
    sys.stdout.flush()


def _tell(news: News) -> None:
    if news.level == "log":
        # Who reads standard error may have gone; that stops no service.
        with suppress(OSError):
            note(f"{news.service} | {news.text}")
    else:
        log.log({"info": 20, "warning": 30, "error": 40}[news.level], "%s: %s", news.service, news.text)


def _end_what_was_left(home: Path) -> None:
    """What a killed `kb up` and its killed guardian left; the lock says that nobody else's is among it."""
    if ended := guardian.end_all(processes.mark(home)):
        log.warning("%s processes of a `kb up` that was killed were ended", ended)


def _with_ports(settings: Settings, app_port: int | None, dagster_port: int | None) -> Settings:
    given = {"app_port": app_port, "dagster_port": dagster_port}
    return settings.model_copy(update={name: number for name, number in given.items() if number is not None})


def _warn_if_public(settings: Settings, *, with_app: bool) -> None:
    hosts = {"Dagster's UI": settings.dagster_host} | ({"the app": settings.app_host} if with_app else {})
    for what, host in hosts.items():
        if not port.is_private(host):
            log.warning("%s listens on %s: whoever reaches it is asked for no password", what, host)
