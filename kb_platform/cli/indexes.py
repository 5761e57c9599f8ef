"""`kb index …`: the versions of the index and which of them is served."""

from __future__ import annotations

from typing import Annotated

import typer

from kb_platform.cli import refreshing
from kb_platform.cli.output import Json, note, say, say_json, start_log, table
from kb_platform.home import configured_model, open_database
from kb_platform.settings import load_settings
from kb_platform.stages import indexing, promotion
from kb_platform.store import index_versions

app = typer.Typer(
    no_args_is_help=True,
    help="Versions of the index: build one beside the other, compare, promote, roll back.",
)

Version = Annotated[
    int, typer.Argument(help="A version's number; `kb index list` shows them.", metavar="VERSION")
]


@app.command("list")
def list_versions(*, json: Json = False) -> None:
    """The versions that have a table, newest first, and which one is served."""
    with open_database(load_settings()).snapshot() as connection:
        found = index_versions.versions(connection)
    if json:
        say_json({"versions": [_as_json(version) for version in found]})
        return
    table(
        ("version", "status", "model", "cut", "repositories", "releases", "chunks", "built", "promoted", "gate"),
        [
            (str(v.version), v.status, v.model, v.chunker, v.repositories, v.releases, v.chunks, v.ready_at, v.promoted_at,
             None if v.gate is None else "passed" if v.gate.get("passed", True) else "did not pass")
            for v in found
        ],
    )  # fmt: skip
    if not found:
        note("no version yet: `kb import PATH` builds the first one")


@app.command()
def build(
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Model of the version: a Hugging Face id, a folder, tei:URL or openai:MODEL@URL. "
                     "Default: KB_EMBEDDING_MODEL."),
    ] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Promote it at once if its gate lets it.")] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Build a version beside the served one. Readers notice nothing until it is promoted."""
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    if model is not None:
        settings = settings.model_copy(update={"embedding_model": model})
    number = indexing.build_version(database, configured_model(settings))
    refreshing.refresh(settings)
    gate = promotion.promote(database, number) if promote else promotion.examine(database, number)
    if json:
        say_json({"version": number, "promoted": promote, "gate": gate.as_json()})
        return
    say(f"index version {number} is {'served' if promote else 'ready'}")
    if not promote:
        note(f"`kb index promote {number}` serves it")


@app.command()
def promote(
    version: Version,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Although its gate did not let it; recorded.")
    ] = False,
    json: Json = False,
) -> None:
    """Serve a version, if its gate lets it. The one before stays ready for a rollback."""
    gate = promotion.promote(open_database(load_settings()), version, force=force)
    if json:
        say_json({"version": version, "gate": gate.as_json()})
        return
    say(f"index version {version} is served" + ("" if gate.passed else " although its gate did not let it"))


@app.command()
def rollback(*, json: Json = False) -> None:
    """Serve the version that was served before."""
    number = promotion.rollback(open_database(load_settings()))
    if json:
        say_json({"version": number})
    else:
        say(f"index version {number} is served again")


@app.command()
def retire(version: Version, *, json: Json = False) -> None:
    """Give up a version that is not served; its table is dropped a while later."""
    database = open_database(load_settings())
    with database.transaction() as connection:
        index_versions.retire(connection, version)
    dropped = index_versions.drop_retired(database)
    if json:
        say_json({"version": version, "dropped": dropped})
    else:
        say(f"index version {version} is retired")


def _as_json(version: index_versions.IndexVersion) -> dict[str, object]:
    """The model is named by its key; its number is the database's own."""
    return {name: value for name, value in vars(version).items() if name != "model_id"}
