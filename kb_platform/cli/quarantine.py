"""`kb quarantine …`: records that are no releases, and another try at them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kb_platform.cli import refreshing
from kb_platform.cli.output import Json, note, say, say_json, start_log, table
from kb_platform.home import open_database
from kb_platform.settings import load_settings
from kb_platform.stages.replaying import replay as replay_record
from kb_platform.store import quarantine

app = typer.Typer(
    no_args_is_help=True,
    help="Records that were refused: look at them, mend the cause, replay them. Nothing is ever dropped.",
)

Number = Annotated[
    int, typer.Argument(help="A record's number; `kb quarantine list` shows them.", metavar="NUMBER")
]


@app.command("list")
def list_records(
    *,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Those dealt with, instead of those waiting.")
    ] = False,
    json: Json = False,
) -> None:
    """The records that wait, with the reason for each."""
    with open_database(load_settings()).snapshot() as connection:
        found = quarantine.listed(connection, resolved=resolved)
    if json:
        say_json({"records": [_as_json(record) for record in found]})
        return
    table(
        ("number", "reason", "detail", "origin", "bytes", "attempts", "first seen", "resolution"),
        [
            (str(r.quarantine_id), r.reason, r.detail[:80], r.origin, r.raw_bytes, r.attempts, r.first_seen_at,
             r.resolution)
            for r in found
        ],
    )  # fmt: skip


@app.command()
def show(
    number: Number,
    *,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the record's bytes, unchanged, to standard output.")
    ] = False,
    json: Json = False,
) -> None:
    """One record: where it came from, why it was refused, and its bytes."""
    with open_database(load_settings()).snapshot() as connection:
        record = quarantine.get(connection, number)
    if raw:
        sys.stdout.buffer.write(record.raw)
        return
    if json:
        say_json(_as_json(record))
        return
    say(f"quarantined record {number}: {record.reason}")
    say(f"  why        {record.detail}")
    say(f"  from       {record.origin}" + (f" for {record.repository}" if record.repository else ""))
    say(f"  seen       {record.attempts} time(s), first {record.first_seen_at:%Y-%m-%d %H:%M}")
    say(f"  bytes      {record.raw_bytes:,}")
    say(f"  begins     {record.raw[:400].decode('utf-8', 'backslashreplace')}")


@app.command()
def replay(
    numbers: Annotated[
        list[int] | None, typer.Argument(help="Records to replay; none: all.", metavar="[NUMBER]...")
    ] = None,
    *,
    repository: Annotated[
        str | None, typer.Option("--repo", help="The repository, where the record names none.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh/--no-refresh", help="Bring the index up to date after.")
    ] = True,
    json: Json = False,
) -> None:
    """Read records again, with the present code and settings. Exits with 1 when some are refused again."""
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    with database.snapshot() as connection:
        chosen = numbers or [record.quarantine_id for record in quarantine.listed(connection)]
    results = {n: replay_record(database, n, settings, repository=repository) for n in chosen}
    taken = [n for n, result in results.items() if not result.quarantined]
    if taken and refresh:
        refreshing.refresh(settings)
    if json:
        say_json(
            {"replayed": taken, "refused": {n: list(r.reasons) for n, r in results.items() if r.quarantined}}
        )
    else:
        say(f"{len(taken)} of {len(chosen)} records are in the log now")
        for number, result in results.items():
            if result.quarantined:
                note(f"  {number} was refused again: {', '.join(result.reasons)}")
    if len(taken) < len(chosen):
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; made when missing.")],
    *,
    json: Json = False,
) -> None:
    """Write the bytes of every waiting record to a folder, one file each, to mend them by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    database = open_database(load_settings())
    with database.snapshot() as connection:
        for listed in quarantine.listed(connection):
            record = quarantine.get(connection, listed.quarantine_id)
            (folder / f"{record.quarantine_id:06d}-{record.reason}.bin").write_bytes(record.raw)
    written = sorted(path.name for path in folder.glob("*.bin"))
    if json:
        say_json({"folder": folder, "files": written})
    else:
        say(f"{len(written)} records in {folder}")


def _as_json(record: quarantine.Quarantined) -> dict[str, object]:
    return {
        "number": record.quarantine_id,
        "repository": record.repository,
        "origin": record.origin,
        "reason": record.reason,
        "detail": record.detail,
        "bytes": record.raw_bytes,
        "attempts": record.attempts,
        "first_seen_at": record.first_seen_at,
        "last_seen_at": record.last_seen_at,
        "resolved_at": record.resolved_at,
        "resolution": record.resolution,
        "begins": record.raw[:200].decode("utf-8", "backslashreplace"),
    }
