"""`kb alerts`: what is wrong now, and what was."""

from __future__ import annotations

from typing import Annotated

import typer

from kb_platform.cli.output import Json, note, say_json, table
from kb_platform.home import open_database
from kb_platform.settings import load_settings
from kb_platform.store.alerts import Alert, open_alerts, resolved_alerts

MOST_RESOLVED = 100


def register(app: typer.Typer) -> None:
    """Add the command to `kb`."""
    app.command()(alerts)


def alerts(
    *,
    all_: Annotated[
        bool, typer.Option("--all", help=f"Also the last {MOST_RESOLVED} that are over.")
    ] = False,
    json: Json = False,
) -> None:
    """What is wrong: work that failed, repositories that are not fresh, refused credentials. Exits with 0 all the same."""
    with open_database(load_settings()).snapshot() as connection:
        found = open_alerts(connection)
        over = resolved_alerts(connection, limit=MOST_RESOLVED) if all_ else []
    if json:
        say_json(
            {"open": [_as_json(alert) for alert in found], "resolved": [_as_json(alert) for alert in over]}
        )
        return
    if found:
        table(
            ("severity", "kind", "subject", "since", "message"),
            [(alert.severity, alert.kind, alert.subject, alert.raised_at, alert.message) for alert in found],
        )
    else:
        note("no alert is open")
    if over:
        table(
            ("kind", "subject", "since", "until", "message"),
            [
                (alert.kind, alert.subject, alert.raised_at, alert.resolved_at, alert.message)
                for alert in over
            ],
            title="over",
        )
    untold = [alert for alert in (*found, *over) if alert.last_error]
    if untold:
        note(f"the webhook was not told of {len(untold)}: {untold[0].last_error}")


def _as_json(alert: Alert) -> dict[str, object]:
    return {
        "severity": alert.severity,
        "kind": alert.kind,
        "subject": alert.subject,
        "message": alert.message,
        "raised_at": alert.raised_at,
        "last_seen_at": alert.last_seen_at,
        "resolved_at": alert.resolved_at,
        "told_at": alert.told_at,
        "last_error": alert.last_error,
    }
