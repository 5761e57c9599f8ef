"""`kb demo`, `status`, `doctor`, `app` and `database …`: running the platform and looking after it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from kb_platform import sample_corpus
from kb_platform.answering.answer import Answerer
from kb_platform.cli import refreshing
from kb_platform.cli.asking import searcher, show_answer
from kb_platform.cli.diagnosis import diagnose
from kb_platform.cli.output import Json, log, note, progress, say, say_json, start_log, table
from kb_platform.home import dagster_home, database_url, open_database
from kb_platform.services.stack import app_command
from kb_platform.settings import load_settings
from kb_platform.stages.importing import import_files
from kb_platform.store import alerts, embedded, index_versions, quarantine, streams
from kb_platform.store.repositories import repositories

database = typer.Typer(no_args_is_help=True, help="The database: its address, and the embedded server.")


def register(app: typer.Typer) -> None:
    """Add the commands to `kb`."""
    app.command()(demo)
    app.command()(status)
    app.command()(doctor)
    app.command("app")(app_)


def demo(*, json: Json = False) -> None:
    """The main job over the sample corpus: import, materialize the asset graph, answer three questions.

    A second run computes nothing and says so.
    """
    settings = load_settings()
    start_log(settings)
    dagster_home(settings)
    opened = open_database(settings)
    imported = import_files(opened, [sample_corpus.releases_folder()], settings, progress=progress())
    refreshed = refreshing.refresh(settings)
    answers = [Answerer(searcher(settings, opened)).answer(text) for text in sample_corpus.demo_questions()]
    if json:
        say_json(
            {
                "imported": imported.appended,
                "refreshed": refreshing.as_json(refreshed),
                "answers": [answer.as_json() for answer in answers],
            }
        )
    else:
        say(f"sample corpus: {imported.records} releases of {len(imported.repositories)} projects, "
            f"{imported.appended} of them new to the log")  # fmt: skip
        refreshing.show(refreshed)
        for answer in answers:
            say(f"\n? {answer.question}")
            show_answer(answer)
        note('\nnext: kb ask "…"   kb status   kb import PATH   make app')
    if not refreshed.success:
        raise typer.Exit(1)


def status(*, json: Json = False) -> None:
    """Per repository: releases, chunks, vectors, when last verified, and whether the index is behind the log."""
    opened = open_database(load_settings())
    found = repositories(opened)
    with opened.snapshot() as connection:
        served = index_versions.active(connection)
        waiting = quarantine.open_by_reason(connection)
        wrong = alerts.count_open(connection)
        followed = streams.states(connection)
    if json:
        say_json(
            {
                "repositories": [
                    {"repository": r.name, "releases": r.releases, "chunks": r.chunks, "vectors": r.vectors,
                     "verified_at": r.verified_at, "refreshed_at": r.refreshed_at, "pending": r.pending}
                    for r in found
                ],
                "index_version": served and served.version,
                "model": served and served.model,
                "quarantine": waiting,
                "alerts": wrong,
                "streams": [state.as_json() for state in followed],
            }
        )  # fmt: skip
        return
    table(
        ("repository", "releases", "chunks", "vectors", "last verified", "index"),
        [
            (r.name, r.releases, r.chunks, r.vectors, r.verified_at, "behind" if r.pending else "up to date")
            for r in found
        ],
    )
    if served is None:
        note("nothing is indexed yet: `kb demo`, or `kb import PATH`")
    else:
        note(
            f"index version {served.version} of {served.model}: {served.releases:,} releases, {served.chunks:,} chunks"
        )
    if waiting:
        reasons = ", ".join(f"{count} {reason}" for reason, count in waiting.items())
        note(f"quarantine: {reasons} (`kb quarantine list`)")
    for state in followed:
        note(f"stream {state.topic} (group {state.group}): lag {state.lag:,}, {state.trouble or 'ok'}"
             " (`kb kafka status`)")  # fmt: skip
    if wrong:
        note(f"{wrong:,} alerts are open (`kb alerts`)")


def doctor(*, json: Json = False) -> None:
    """What is wrong, and what to do. Exits with 1 when something is."""
    findings = diagnose(load_settings())
    if json:
        say_json(
            {"findings": [vars(finding) for finding in findings], "healthy": all(f.ok for f in findings)}
        )
    else:
        for finding in findings:
            say(f"{'ok   ' if finding.ok else 'WRONG'} {finding.name}: {finding.detail}")
            if not finding.ok and finding.remedy:
                say(f"      what to do: {finding.remedy}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def app_(
    *,
    port: Annotated[int | None, typer.Option(help="Default: KB_APP_PORT.")] = None,
) -> None:
    """Serve the app, on 127.0.0.1 unless KB_APP_HOST says otherwise. Ctrl-C stops it."""
    settings = load_settings()
    start_log(settings)
    open_database(settings).close()
    settings = settings.model_copy(update={"app_port": port or settings.app_port})
    log.info("the app is at http://%s:%s", settings.app_host, settings.app_port)
    # The same process, so that signals reach the server itself; the app holds the embedded database on its own.
    os.execv(sys.executable, app_command(settings))  # noqa: S606 - our own arguments


@database.command()
def url(*, json: Json = False) -> None:
    """The connection URL. An embedded server is started for it and stays up until `kb database stop`."""
    settings = load_settings()
    open_database(settings).close()
    if settings.database_url is None:
        embedded.running(settings.home_folder).keep_running()
    if json:
        say_json({"url": database_url(settings)})
    else:
        say(database_url(settings))


@database.command()
def stop(*, json: Json = False) -> None:
    """Stop the embedded server, whoever uses it. It starts again with the next command."""
    settings = load_settings()
    stopped = embedded.EmbeddedServer(settings.home_folder).stop()
    if json:
        say_json({"stopped": stopped})
    else:
        say("stopped" if stopped else "no embedded server was running")
