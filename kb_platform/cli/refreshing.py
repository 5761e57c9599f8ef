"""Bringing the index up to date from the command line: through Dagster, in this process, recorded for its UI."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kb_platform.cli.output import note, progress, say, table
from kb_platform.home import embedder, open_database
from kb_platform.settings import Settings

if TYPE_CHECKING:
    from kb_platform.definitions import RefreshResult


def refresh(settings: Settings) -> RefreshResult:
    """Refresh what is stale. Raises DatabaseUnavailable; what fails in a run is in the result."""
    # Dagster takes about a second to import; commands that only read do without it.
    from kb_platform.definitions import open_instance, refresh_in_process

    database = open_database(settings)
    with open_instance(settings) as instance:
        return refresh_in_process(
            instance=instance,
            database=database,
            settings=settings,
            load_embedder=lambda model: embedder(settings, model),
            progress=progress(),
        )


def show(result: RefreshResult) -> None:
    """What a refresh did, for people."""
    if result.nothing_to_do:
        say("nothing to compute: the index is up to date")
        return
    table(
        (
            "repositories",
            "releases",
            "chunks",
            "vectors",
            "embedded now",
            "reused",
            "tokens",
            "tokens/s",
            "seconds",
        ),
        [
            (
                result.repositories,
                result.releases,
                result.chunks,
                result.embedded + result.reused,
                result.embedded,
                result.reused,
                result.tokens,
                round(result.tokens_per_second),
                round(result.wall_seconds, 2),
            )
        ],
    )
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.stage_seconds.items())
    note(f"stages: {stages}")
    if result.promoted_version is not None:
        say(f"index version {result.promoted_version} is served now")
    for warning in result.warnings:
        note(f"warning: {warning}")
    for problem in result.problems:
        note(f"error: {problem}")


def as_json(result: RefreshResult) -> dict[str, Any]:
    """The same for scripts."""
    return asdict(result) | {
        "nothing_to_do": result.nothing_to_do,
        "success": result.success,
        "tokens_per_second": round(result.tokens_per_second, 1),
    }
