"""`kb watch …`: which repositories are polled for new releases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from kb_platform.cli.output import Json, note, say, say_json, table
from kb_platform.errors import NotKnown, SourceError
from kb_platform.home import open_database
from kb_platform.settings import Settings, load_settings
from kb_platform.sources.watch_file import (
    Wanted,
    duration_s,
    duration_text,
    place_of,
    read_watch_file,
    repository_in,
)
from kb_platform.stages import watching
from kb_platform.stages.watching import Plan
from kb_platform.store import forgetting, watch_list
from kb_platform.store.database import Database
from kb_platform.store.forgetting import Forgotten, Held
from kb_platform.store.repositories import find_repository
from kb_platform.store.watch_list import Watch

app = typer.Typer(
    no_args_is_help=True,
    help="The repositories that are polled for new releases: add and remove them, or keep the list in a file.",
)

Fate = Literal["keep", "forget"]
Read = TypeVar("Read")
Names = Annotated[list[str], typer.Argument(help="Repositories.", metavar="OWNER/REPO...")]


@app.command()
def add(
    names: Annotated[list[str], typer.Argument(help="Repositories, or the addresses of their pages at GitHub.",
                                               metavar="OWNER/REPO...")],
    *,
    source: Annotated[str, typer.Option(help="Where they are: `github`, or `gitea` (which is for Forgejo too).")]
    = "github",
    url: Annotated[str | None, typer.Option(metavar="URL", help="Address of the API of a Gitea or Forgejo server, such as "
                                            "https://HOST/api/v1.")] = None,
    every: Annotated[str | None, typer.Option(metavar="DURATION", help="Time between two polls (30s, 15m, 2h, 1d). Default: "
                                              "KB_POLL_INTERVAL_S.")] = None,
    stale_after: Annotated[str | None, typer.Option(metavar="DURATION", help="Not verified for so long, they are reported "
                                                    "as stale. Default: KB_STALE_AFTER_HOURS.")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Watch repositories, or watch them differently: what is not given is as the settings say.

    Example:  kb watch add pgvector/pgvector --every 15m && kb sync
    """
    kind, api_url = _read(
        "--url" if source in ("github", "gitea") else "--source", lambda: place_of(source, url)
    )
    every_s = _read("--every", lambda: duration_s(every)) if every else None
    stale_after_s = _read("--stale-after", lambda: duration_s(stale_after)) if stale_after else None
    asked = [_read("OWNER/REPO", lambda name=name: repository_in(name)) for name in names]
    each_once = {name.lower(): name for name in reversed(asked)}.values()
    wanted = [Wanted(name, kind, api_url, every_s, stale_after_s) for name in each_once]
    settings = load_settings()
    database = open_database(settings)
    everything = watching.plan_for(database, wanted)
    plan = Plan(everything.added, everything.changed, (), everything.unchanged)
    _apply(settings, database, plan)
    if json:
        say_json(_plan_as_json(plan))
        return
    _show_plan(plan)
    for watch in plan.unchanged:
        say(f"= {watch.name} is watched like this already")
    if not plan.nothing_to_do:
        note("`kb sync` polls them now; `kb up` goes on polling")


@app.command()
def remove(
    names: Names,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the releases in the log and the index.")] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Forget all of it: log, index, refused records. There is no way back."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Forget without asking.")] = False,
    json: Json = False,
) -> None:
    """Watch repositories no more. Asks what becomes of their releases, unless told.

    With --forget it takes repositories that are not watched, too.
    """
    if keep and forget:
        raise typer.BadParameter("it is one or the other", param_hint="--keep / --forget")
    settings = load_settings()
    database = open_database(settings)
    found = _held(database, names, also_unwatched=forget)
    fate = _fate(found, "keep" if keep else "forget" if forget else None, yes=yes)
    forgotten: list[Forgotten] = []
    for repository_id, name, _ in found:
        gone = _remove(database, repository_id, fate)
        forgotten += [gone] if gone else []
        if not json:
            say(f"- {name}" + ("" if gone else " (its releases stay)"))
    if forgotten:
        _follow(settings, database)
    if json:
        say_json(
            {"removed": [name for _, name, _ in found], "forgotten": [one._asdict() for one in forgotten]}
        )
        return
    observations = sum(one.observations for one in forgotten)
    if observations:
        rows = sum(one.index_rows for one in forgotten)
        say(f"forgotten: {observations:,} observations, {rows:,} rows of the index")


@app.command("list")
def list_watched(*, json: Json = False) -> None:
    """What is watched, and how polling it goes."""
    settings = load_settings()
    with open_database(settings).snapshot() as connection:
        watches = watch_list.watched(connection)
    now = datetime.now(UTC)
    if json:
        say_json({"repositories": [_watch_as_json(watch, settings, now) for watch in watches]})
        return
    if not watches:
        note("nothing is watched: `kb watch add OWNER/REPO`")
        return
    table(
        ("repository", "at", "every", "state", "verified", "next poll", "what to know"),
        [
            (w.name, w.forge, _every(w.every_s, settings), _state(w, settings, now), w.verified_at,
             "now" if w.due_at <= now else w.due_at, _remark(w))
            for w in watches
        ],
    )  # fmt: skip


@app.command("apply")
def apply_file(
    file: Annotated[
        Path,
        typer.Argument(help="The watch list: YAML, or one name a line (docs/watching.md).", metavar="FILE"),
    ],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the difference.")] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Let a list without a repository end all watching.")
    ] = False,
    json: Json = False,
) -> None:
    """Make the watch list the one in a file. What is removed keeps its releases; a second time changes nothing."""
    desired = read_watch_file(file)
    settings = load_settings()
    database = open_database(settings)
    plan = watching.plan_for(database, desired)
    if plan.removed and not desired and not allow_empty:
        raise SourceError(
            f"{file} names no repository, and {len(plan.removed):,} are watched",
            hint="check the file; --allow-empty if nothing is to be watched any more",
        )
    if not dry_run:
        _apply(settings, database, plan)
    if json:
        say_json(_plan_as_json(plan) | {"dry_run": dry_run})
        return
    _show_plan(plan)
    if plan.nothing_to_do:
        say(f"nothing to do: {len(plan.unchanged):,} repositories are watched as {file} says")
        return
    done = "would be" if dry_run else "were"
    say(
        f"{len(plan.added):,} {done} added, {len(plan.changed):,} changed, {len(plan.removed):,} removed; "
        f"{len(plan.unchanged):,} unchanged"
    )


def _read(option: str, parse: Callable[[], Read]) -> Read:
    try:
        return parse()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _apply(settings: Settings, database: Database, plan: Plan) -> None:
    if plan.nothing_to_do:
        return
    watching.apply(database, plan, datetime.now(UTC))
    _follow(settings, database)


def _follow(settings: Settings, database: Database) -> None:
    # Dagster takes about a second to import; a list that is as it should be does without it.
    from kb_platform.definitions import follow_watch_list

    follow_watch_list(settings, database)


# --- what becomes of the data ---------------------------------------------------------------------------------


def _held(database: Database, names: Sequence[str], *, also_unwatched: bool) -> list[tuple[int, str, Held]]:
    """(id, name, what the log has) of each. Raises NotKnown before anything is removed."""
    found: dict[int, tuple[int, str, Held]] = {}
    with database.snapshot() as connection:
        watched = {watch.repository_id for watch in watch_list.watched(connection)}
        for text in names:
            repository_id, name = find_repository(
                connection, _read("OWNER/REPO", lambda text=text: repository_in(text))
            )
            if repository_id not in watched and not also_unwatched:
                raise NotKnown(
                    f"{name} is not watched",
                    hint="`kb watch list` shows what is; --forget takes it all the same",
                )
            found[repository_id] = (repository_id, name, forgetting.held(connection, repository_id))
    return list(found.values())


def _remove(database: Database, repository_id: int, fate: Fate | None) -> Forgotten | None:
    """`fate` None: nobody was asked, because there was nothing to keep."""
    with database.transaction() as connection:
        if fate == "forget":
            return forgetting.forget(connection, repository_id)
        gone = forgetting.forget_if_empty(connection, repository_id) if fate is None else None
        if gone is None:
            watch_list.remove(connection, repository_id)
        return gone


def _fate(found: Sequence[tuple[int, str, Held]], said: Fate | None, *, yes: bool) -> Fate | None:
    """What a person wants to become of the releases; asked on a terminal where it was not said."""
    observations = sum(held.observations for _, _, held in found)
    if said == "keep" or not observations:
        return said
    data = f"{observations:,} observations of {sum(held.releases for _, _, held in found):,} releases"
    is_terminal = sys.stdin.isatty() and not yes
    if said is None:
        if not is_terminal:
            raise typer.BadParameter(
                f"the log has {data}: say what becomes of them", param_hint="--keep / --forget"
            )
        note(f"The log has {data}. Forgotten, they are gone from the log and the index for good.")
        answer = _ask("Keep them or forget them? [keep/forget]")
        if answer not in ("keep", "forget"):
            raise typer.BadParameter(f"{answer!r} is neither keep nor forget", param_hint="the answer")
        return answer
    if is_terminal and _ask(f"Forget {data} for good? [yes/no]") not in ("y", "yes"):
        note("nothing was removed")
        raise typer.Exit(1)
    return said


def _ask(question: str) -> str:
    # typer's own prompts write to standard output, where the JSON document goes, whatever they are told.
    sys.stderr.write(f"{question} ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower()


# --- what people and scripts see ------------------------------------------------------------------------------


def _show_plan(plan: Plan) -> None:
    for item in plan.added:
        say(f"+ {item.repository}{_with(item)}")
    for watch, item in plan.changed:
        say(f"~ {watch.name}: {'; '.join(_differences(watch, item))}")
    for watch in plan.removed:
        say(f"- {watch.name} (its releases stay)")


def _with(item: Wanted) -> str:
    parts = [
        f"at {item.api_url}" if item.api_url else "",
        f"every {duration_text(item.every_s)}" if item.every_s else "",
        f"stale after {duration_text(item.stale_after_s)}" if item.stale_after_s else "",
    ]
    said = ", ".join(part for part in parts if part)
    return f" ({said})" if said else ""


def _differences(watch: Watch, item: Wanted) -> list[str]:
    pairs = [
        ("at", watch.api_url or watch.source, item.api_url or item.source),
        ("every", _duration(watch.every_s), _duration(item.every_s)),
        ("stale after", _duration(watch.stale_after_s), _duration(item.stale_after_s)),
    ]
    return [f"{name} {before} → {after}" for name, before, after in pairs if before != after]


def _duration(seconds: int | None) -> str:
    return "default" if seconds is None else duration_text(seconds)


def _every(seconds: int | None, settings: Settings) -> str:
    return duration_text(seconds or max(round(settings.poll_interval_s), 1))


def _state(watch: Watch, settings: Settings, now: datetime) -> str:
    """One word: `new`, `failing`, `stale`, `partial` or `ok`, the worst that holds."""
    limit = (
        timedelta(hours=settings.stale_after_hours)
        if watch.stale_after_s is None
        else timedelta(seconds=watch.stale_after_s)
    )
    if watch.failures:
        return "failing"
    if now - (watch.verified_at or watch.added_at) > limit:
        return "stale"
    if watch.polled_at is None:
        return "new"
    return "partial" if watch.outcome == "partial" else "ok"


def _remark(watch: Watch) -> str | None:
    if watch.failures:
        since = f" since {watch.failing_since:%Y-%m-%d %H:%M}" if watch.failing_since else ""
        return f"{watch.reason}{since} ({watch.failures}x): {watch.detail}"
    return "the forge does not list all releases" if watch.truncated else None


def _plan_as_json(plan: Plan) -> dict[str, Any]:
    return {
        "added": [_wanted_as_json(item) for item in plan.added],
        "changed": [_wanted_as_json(item) | {"repository": watch.name} for watch, item in plan.changed],
        "removed": [watch.name for watch in plan.removed],
        "unchanged": [watch.name for watch in plan.unchanged],
    }


def _wanted_as_json(item: Wanted) -> dict[str, Any]:
    return {
        "repository": item.repository,
        "source": item.source,
        "url": item.api_url,
        "every_s": item.every_s,
        "stale_after_s": item.stale_after_s,
    }


def _watch_as_json(watch: Watch, settings: Settings, now: datetime) -> dict[str, Any]:
    return {
        "repository": watch.name,
        "source": watch.source,
        "url": watch.api_url,
        "external_id": watch.external_id,
        "every_s": watch.every_s,
        "stale_after_s": watch.stale_after_s,
        "state": _state(watch, settings, now),
        "added_at": watch.added_at,
        "due_at": watch.due_at,
        "polled_at": watch.polled_at,
        "verified_at": watch.verified_at,
        "outcome": watch.outcome,
        "truncated": watch.truncated,
        "failures": watch.failures,
        "reason": watch.reason,
        "detail": watch.detail,
        "failing_since": watch.failing_since,
    }
