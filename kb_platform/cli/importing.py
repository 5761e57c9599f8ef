"""`kb init`, `import`, `refresh` and `demo`: getting releases in and the index up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kb_platform.cli import refreshing
from kb_platform.cli.output import Json, log, note, progress, say, say_json, start_log, table
from kb_platform.errors import BadRecord
from kb_platform.home import dagster_home, database_url, open_database
from kb_platform.settings import load_settings
from kb_platform.sources.release import repository_name
from kb_platform.stages.importing import Imported, import_files
from kb_platform.store.database import without_password
from kb_platform.store.schema import migrate


def register(app: typer.Typer) -> None:
    """Add the commands to `kb`."""
    app.command()(init)
    app.command("import")(import_)
    app.command()(refresh)


def init(
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
    json: Json = False,
) -> None:
    """Make the home folder, the database and its schema. Every other command does so too when needed."""
    settings = load_settings()
    database = open_database(settings, migrated=False)
    run = migrate(database)
    folder = dagster_home(settings)
    document = {
        "home": settings.home_folder,
        "database": without_password(database_url(settings)),
        "migrations": [f"{migration.number:04d}_{migration.name}" for migration in run],
        "dagster_home": folder,
    }
    if json:
        say_json(document)
    elif not quiet:
        say(f"home          {document['home']}")
        say(f"database      {document['database']}")
        say(f"migrations    {', '.join(m.name for m in run) or 'up to date'}")
        say(f"dagster home  {folder} (export DAGSTER_HOME={folder} to run `dagster dev` over it)")


def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files of GitHub release JSON (an array, or one object a line), or "
                                                "folders of such files.", metavar="PATH...")],
    *,
    repository: Annotated[str | None, typer.Option("--repo", metavar="OWNER/REPO", help="The repository of every record. "
                                                   "Default: what each record's html_url or url says.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh/--no-refresh", help="Bring the index up to date before returning.")]
    = True,
    json: Json = False,
) -> None:  # fmt: skip
    """Import releases. The same file twice adds nothing; an edited body adds one observation.

    What is no release goes to quarantine with its bytes and the reason, the rest is imported, and the exit status is 1.

    Example:  gh api --paginate repos/pgvector/pgvector/releases > r.json && kb import r.json
    """
    if repository is not None:
        try:
            repository_name(repository)
        except BadRecord as error:
            raise typer.BadParameter(str(error), param_hint="--repo") from None
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    imported = import_files(database, paths, settings, repository=repository, progress=progress())
    log.info("imported %s records, %s new observations", imported.records, imported.appended)
    refreshed = refreshing.refresh(settings) if refresh else None
    if json:
        say_json(_as_json(imported) | {"refreshed": refreshing.as_json(refreshed) if refreshed else None})
    else:
        _show(imported)
        if refreshed is not None:
            refreshing.show(refreshed)
    if imported.quarantined or (refreshed is not None and not refreshed.success):
        raise typer.Exit(1)


def refresh(*, json: Json = False) -> None:
    """Bring the index up to date with the log, through Dagster. Computes nothing that is there already."""
    settings = load_settings()
    start_log(settings)
    open_database(settings)
    refreshed = refreshing.refresh(settings)
    if json:
        say_json(refreshing.as_json(refreshed))
    else:
        refreshing.show(refreshed)
    if not refreshed.success:
        raise typer.Exit(1)


def _show(imported: Imported) -> None:
    table(
        ("files", "records", "new", "edited", "unchanged", "quarantined", "repositories"),
        [(imported.files, imported.records, imported.new + imported.reappeared, imported.edited, imported.unchanged,
          imported.quarantined, len(imported.repositories))],
    )  # fmt: skip
    if imported.quarantined:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(imported.reasons.items()))
        note(f"{imported.quarantined} records are in quarantine ({reasons}): `kb quarantine list` shows them")


def _as_json(imported: Imported) -> dict[str, Any]:
    return vars(imported) | {"appended": imported.appended}
