"""`kb sync`: the watched repositories polled now, and the index brought up to date."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kb_platform.cli import refreshing
from kb_platform.cli.output import Json, log, note, progress, say, say_json, start_log, table
from kb_platform.clock import SystemClock
from kb_platform.home import Forges, open_database
from kb_platform.settings import Settings, load_settings
from kb_platform.stages.polling_lane import Attempt
from kb_platform.stages.polling_session import Totals, poll_now
from kb_platform.store import watch_list
from kb_platform.store.database import Database

MOST_SHOWN = 50


def register(app: typer.Typer) -> None:
    """Add the command to `kb`."""
    app.command()(sync)


def sync(
    repositories: Annotated[
        list[str] | None,
        typer.Argument(help="Watched repositories; none: all of them.", metavar="[OWNER/REPO]..."),
    ] = None,
    *,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait at most for a limit of the forge to end.", min=0)
    ] = 120.0,
    refresh: Annotated[
        bool, typer.Option("--refresh/--no-refresh", help="Bring the index up to date before returning.")
    ] = True,
    json: Json = False,
) -> None:
    """Poll watched repositories now, due or not. What cannot be polled is named, and the exit status is 1.

    Example:  kb watch add pgvector/pgvector && kb sync
    """
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    attempts = _poll(settings, database, repositories, wait)
    totals = Totals()
    for attempt in attempts:
        totals.count(attempt)
    refreshed = refreshing.refresh(settings) if refresh else None
    if json:
        say_json(
            {
                "repositories": [_as_json(attempt) for attempt in attempts],
                "requests": totals.requests,
                "answers": dict(totals.answers),
                "refreshed": refreshing.as_json(refreshed) if refreshed else None,
            }
        )
    else:
        _show(attempts, totals)
        if refreshed is not None:
            refreshing.show(refreshed)
    undone = any(attempt.outcome in ("failed", "waiting", "busy") for attempt in attempts)
    if undone or totals.quarantined or (refreshed is not None and not refreshed.success):
        raise typer.Exit(1)


def _poll(
    settings: Settings, database: Database, repositories: list[str] | None, wait: float
) -> list[Attempt]:
    with database.snapshot() as connection:
        total = len(repositories or watch_list.watched(connection))
    forges = Forges(settings)
    try:
        with progress().task("poll", total, "repositories") as task:
            return poll_now(
                database,
                forges,
                settings,
                SystemClock(),
                repositories=repositories or None,
                longest_wait_s=wait,
                tell=lambda _attempt: task.advance(),
            )
    finally:
        forges.close()


def _show(attempts: list[Attempt], totals: Totals) -> None:
    telling = [attempt for attempt in attempts if attempt.outcome != "unchanged" or attempt.truncated]
    if telling:
        table(
            ("repository", "outcome", "new", "edited", "deleted", "quarantined", "what to know"),
            [
                (a.repository, a.outcome, a.imported.new + a.imported.reappeared, a.imported.edited,
                 a.imported.deleted, a.imported.quarantined, _remark(a))
                for a in telling[:MOST_SHOWN]
            ],
        )  # fmt: skip
    if len(telling) > MOST_SHOWN:
        note(f"and {len(telling) - MOST_SHOWN:,} more: `kb watch list`, or --json")
    unchanged = len(attempts) - len(telling)
    say(
        f"{len(attempts):,} repositories polled, {unchanged:,} unchanged; {totals.requests:,} requests, "
        f"{totals.answers['304']:,} of them answered with 304 (not modified)"
    )
    log.info(
        "%s observations are new in the log", totals.new + totals.edited + totals.deleted + totals.reappeared
    )


def _remark(attempt: Attempt) -> str:
    if attempt.outcome == "waiting" and attempt.until is not None:
        return f"nobody may ask before {attempt.until:%H:%M:%S} UTC"
    if attempt.outcome == "partial":
        return "the list was not read to its end; the next poll goes on"
    if attempt.truncated:
        return "the forge does not list all releases"
    return (
        f"{attempt.reason}: {attempt.detail}" if attempt.reason and attempt.detail else attempt.reason or ""
    )


def _as_json(attempt: Attempt) -> dict[str, Any]:
    imported = attempt.imported
    return {
        "repository": attempt.repository,
        "outcome": attempt.outcome,
        "verified": attempt.verified,
        "truncated": attempt.truncated,
        "new": imported.new,
        "edited": imported.edited,
        "deleted": imported.deleted,
        "reappeared": imported.reappeared,
        "quarantined": imported.quarantined,
        "requests": sum(attempt.answers.values()),
        "reason": attempt.reason,
        "detail": attempt.detail,
        "until": attempt.until,
    }
