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
from kb_platform.stages.changelogs import ChangelogImported, import_changelog
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
    paths: Annotated[list[Path] | None, typer.Argument(
        help="Files of GitHub release JSON (an array, or one object a line), or folders of such files. None with --changelog.",
        metavar="PATH...", show_default=False)] = None,
    *,
    repository: Annotated[str | None, typer.Option("--repo", metavar="OWNER/REPO", help="The repository of every record. "
                                                   "Default: what each record's html_url or url says.")] = None,
    changelog: Annotated[Path | None, typer.Option(metavar="FILE", help="Import the sections of a changelog (Markdown or "
        "reStructuredText) and the tags of its git clone, in the place of files of JSON. Needs --repo.")] = None,
    with_tags: Annotated[bool, typer.Option("--tags/--no-tags", help="With --changelog: tags that have no section are "
        "releases too.")] = True,
    refresh: Annotated[bool, typer.Option("--refresh/--no-refresh", help="Bring the index up to date before returning.")]
    = True,
    json: Json = False,
) -> None:  # fmt: skip
    """Import releases. The same file twice adds nothing; an edited body adds one observation.

    What is no release goes to quarantine with its bytes and the reason, the rest is imported, and the exit status is 1.

    Example:  gh api --paginate repos/pgvector/pgvector/releases > r.json && kb import r.json

    Example:  kb import --changelog tool/CHANGELOG.md --repo acme/tool
    """
    if bool(paths) == (changelog is not None):
        raise typer.BadParameter(
            "give files of JSON, or --changelog FILE, and not both", param_hint="PATH..."
        )
    if changelog is not None and repository is None:
        raise typer.BadParameter(
            "--changelog needs it: a changelog does not name its repository", param_hint="--repo"
        )
    if changelog is None and not with_tags:
        raise typer.BadParameter("goes with --changelog only", param_hint="--no-tags")
    if repository is not None:
        try:
            repository_name(repository)
        except BadRecord as error:
            raise typer.BadParameter(str(error), param_hint="--repo") from None
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    if changelog is not None and repository is not None:
        read = import_changelog(
            database, changelog, settings, repository=repository, with_tags=with_tags, progress=progress()
        )
        imported = read.imported
    else:
        read, imported = (
            None,
            import_files(database, paths or [], settings, repository=repository, progress=progress()),
        )
    log.info("imported %s records, %s new observations", imported.records, imported.appended)
    refreshed = refreshing.refresh(settings) if refresh else None
    if json:
        of_changelog = {} if read is None else {"sections": read.sections, "tags": read.tags, "skipped": read.skipped,
                                                "notes": read.notes}  # fmt: skip
        say_json(
            _as_json(imported)
            | of_changelog
            | {"refreshed": refreshing.as_json(refreshed) if refreshed else None}
        )
    else:
        _show(imported)
        if read is not None:
            _show_changelog(read)
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


def _show_changelog(read: ChangelogImported) -> None:
    skipped = ", ".join(f"{count:,} {why}" for why, count in sorted(read.skipped.items())) or "nothing"
    say(f"{read.sections:,} sections and {read.tags:,} tags read; passed over: {skipped}")
    for remark in read.notes:
        note(remark)


def _as_json(imported: Imported) -> dict[str, Any]:
    return vars(imported) | {"appended": imported.appended}
