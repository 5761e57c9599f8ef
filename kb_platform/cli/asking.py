"""`kb search`, `ask`, `changes` and `show`: reading the knowledge base."""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from kb_platform.answering.answer import Answer, Answerer
from kb_platform.answering.changes import changes_between
from kb_platform.answering.citation import day
from kb_platform.cli.output import Json, json_line, log, note, say, say_json, start_log, table
from kb_platform.errors import KbError, NotKnown, SourceError
from kb_platform.home import embedder, open_database
from kb_platform.retrieval.filters import Filters
from kb_platform.retrieval.searcher import Found, Searcher
from kb_platform.settings import Settings, load_settings
from kb_platform.store import release_log
from kb_platform.store.database import Database
from kb_platform.store.repositories import find_repository
from kb_platform.text.kinds import Kind

Batch = Annotated[
    Path | None,
    typer.Option("--batch", metavar="FILE", help='Answer every {"id", "question"} line of a file, one JSON line each, '
                 "in order; - reads standard input."),
]  # fmt: skip
Words = Annotated[
    list[str] | None, typer.Argument(help="The question; quotes are optional.", metavar="QUESTION")
]
Repo = Annotated[
    list[str] | None, typer.Option("--repo", metavar="OWNER/REPO", help="Only this repository (repeatable).")
]
Since = Annotated[
    datetime | None, typer.Option(help="Published on this day (UTC) or later.", formats=["%Y-%m-%d"])
]
Before = Annotated[
    datetime | None, typer.Option(help="Published before this day (UTC).", formats=["%Y-%m-%d"])
]
Kinds = Annotated[list[Kind] | None, typer.Option("--kind", help="Only changes of this kind (repeatable).")]
Versions = Annotated[
    str | None, typer.Option("--versions", metavar="A..B", help="Only after A, up to and including B.")
]
Stable = Annotated[
    bool | None, typer.Option("--stable/--prereleases", help="Stable releases only, or pre-releases only.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `kb`."""
    for command in (search, ask, changes, show):
        app.command()(command)


def searcher(settings: Settings, database: Database) -> Searcher:
    """A searcher as the settings describe it."""
    return Searcher(
        database, lambda model: embedder(settings, model), exact_scan_rows=settings.exact_scan_rows
    )


def search(
    words: Words = None,
    *,
    k: Annotated[int, typer.Option("-k", "--limit", min=1, max=1000, help="How many passages.")] = 10,
    repo: Repo = None,
    versions: Versions = None,
    since: Since = None,
    before: Before = None,
    kind: Kinds = None,
    stable: Stable = None,
    no_filters: Annotated[
        bool, typer.Option("--no-filters", help="Ignore the filters that the question asks for.")
    ] = False,
    batch: Batch = None,
    json: Json = False,
) -> None:
    """Find passages. Repository, versions and dates named in the question become filters, shown with the results.

    Options replace what the question says: --repo, --versions, --since, --before, --kind, --stable.
    """
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    found_by = searcher(settings, database)

    def one(question: str) -> Found:
        filters = _filters(found_by, question, repo, versions, since, before, kind, stable, none=no_filters)
        return found_by.search(question, k=k, filters=filters)

    if batch is not None:
        _answer_all(batch, lambda question: one(question).as_json())
        return
    found = one(_question(words))
    if json:
        say_json(found.as_json())
        return
    _show_filters(found.filters, found.notes)
    for number, passage in enumerate(found.passages, 1):
        say(f"{number:>2}. {passage.repository} {passage.tag}  ({day(passage.published_at)}, {passage.kind})")
        say(_indented(passage.text))
        say(f"    {passage.url}  [{passage.span[0]}:{passage.span[1]}]")
    if not found.passages:
        note("nothing meets these filters")


def ask(
    words: Words = None,
    *,
    repo: Repo = None,
    versions: Versions = None,
    since: Since = None,
    before: Before = None,
    kind: Kinds = None,
    stable: Stable = None,
    batch: Batch = None,
    json: Json = False,
) -> None:
    """Answer a question from the index, every statement cited. Says so when the knowledge base has no answer.

    Example:  kb ask "What broke in Strimzi between 0.49.0 and 1.0.1?"
    """
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    found_by = searcher(settings, database)
    answerer = Answerer(found_by)

    def one(question: str) -> Answer:
        filters = _filters(found_by, question, repo, versions, since, before, kind, stable, none=False)
        return answerer.answer(question, filters=filters)

    if batch is not None:
        _answer_all(batch, lambda question: one(question).as_json())
        return
    answer = one(_question(words))
    if json:
        say_json(answer.as_json())
    else:
        show_answer(answer)


def changes(
    repository: Annotated[str, typer.Argument(help="The repository.", metavar="OWNER/REPO")],
    versions: Annotated[
        str, typer.Argument(help="After A, up to and including B; either may be left out.", metavar="A..B")
    ],
    *,
    kind: Kinds = None,
    stable: Annotated[bool, typer.Option("--stable", help="Leave pre-releases out.")] = False,
    json: Json = False,
) -> None:
    """Everything that changed between two versions, breaking changes first.

    Example:  kb changes pgvector/pgvector 0.7.0..0.8.0
    """
    database = open_database(load_settings())
    found = changes_between(
        database, repository, versions, kinds=[str(one) for one in kind or ()], prereleases=not stable
    )
    if json:
        say_json(found.as_json())
        return
    say(
        f"{found.repository}: after {found.lower or 'the beginning'}, up to and including {found.upper or 'the newest'}"
    )
    say(f"{len(found.releases)} releases: {', '.join(found.releases) or 'none'}")
    for name, group in found.by_kind().items():
        say(f"\n{name.upper()} ({len(group)})")
        for change in group:
            say(f"  {change.tag}")
            say(_indented(change.text))
    if not found.changes:
        say("no changes are recorded in between")


def show(
    repository: Annotated[str, typer.Argument(help="The repository.", metavar="OWNER/REPO")],
    tag: Annotated[
        str | None, typer.Argument(help="The release's tag; none lists them.", metavar="[TAG]")
    ] = None,
    *,
    as_of: Annotated[
        datetime | None, typer.Option("--as-of", help="As the log had it at this time (UTC).")
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="Every observation of the release.")] = False,
    json: Json = False,
) -> None:
    """A release as it is in the log, now or as of a time; without a tag, the repository's releases."""
    as_of = as_of and (as_of if as_of.tzinfo else as_of.replace(tzinfo=UTC))
    database = open_database(load_settings())
    with database.snapshot() as connection:
        repository_id, name = find_repository(connection, repository)
        if tag is None:
            found = release_log.current_releases(connection, repository_id, as_of=as_of)
        else:
            tag = _known_tag(
                tag,
                [r.release.tag for r in release_log.current_releases(connection, repository_id, as_of=as_of)],
            )
            found = [release_log.release_by_tag(connection, repository_id, tag, as_of=as_of)]
            if history:
                found = release_log.history(connection, repository_id, found[0].release.release_id)
    documents = [_release_json(stored) for stored in found]
    if json:
        say_json({"repository": name, "releases": documents} if tag is None or history else documents[0])
    elif tag is None or history:
        table(
            ("tag", "name", "published", "pre-release", "observed", "sequence", "deleted"),
            [(r.release.tag, r.release.name, day(r.release.published_at), r.release.prerelease, r.observed_at,
              str(r.sequence), r.deleted) for r in found],
        )  # fmt: skip
    else:
        release = found[0].release
        say(f"{name} {release.tag}  {release.name}")
        say(
            f"published {day(release.published_at)}{', pre-release' if release.prerelease else ''}   {release.url}"
        )
        say(f"observed  {found[0].observed_at:%Y-%m-%d %H:%M} UTC (observation {found[0].sequence})\n")
        say(release.body)


def show_answer(answer: Answer) -> None:
    """An answer for people: text, numbered citations with their links, and how far it can be trusted."""
    say(answer.text)
    if answer.citations:
        say()
    for number, citation in enumerate(answer.citations, 1):
        say(
            f"  [{number}] {citation.repository} {citation.tag}, {day(citation.published_at)}  {citation.url}"
        )
    say()
    _show_filters(answer.filters, answer.notes)
    verified = [f"{name} {moment:%Y-%m-%d %H:%M} UTC" if moment else f"{name} never"
                for name, moment in answer.verified_at.items()]  # fmt: skip
    note(f"index version {answer.index_version}; verified: {', '.join(verified) or 'nothing'}")
    note("extractive: every sentence is taken from the release notes cited (no language model is configured)")


def _question(words: list[str] | None) -> str:
    text = " ".join(words or []).strip()
    if not text:
        raise typer.BadParameter("give a question, or --batch FILE", param_hint="QUESTION")
    return text


def _filters(
    found_by: Searcher,
    question: str,
    repo: list[str] | None,
    versions: str | None,
    since: datetime | None,
    before: datetime | None,
    kind: list[Kind] | None,
    stable: bool | None,
    *,
    none: bool,
) -> Filters | None:
    """The question's filters with those replaced that options give; None when no option is given."""
    changes: dict[str, Any] = {}
    if repo:
        changes["repositories"] = tuple(_known_name(found_by.database, name) for name in repo)
    if versions is not None:
        lower, _, upper = versions.partition("..")
        changes |= {"after_version": lower or None, "upto_version": upper or None}
        changes |= {"from_version": None, "before_version": None, "versions": ()}
    if since is not None:
        changes["published_from"] = since
    if before is not None:
        changes["published_before"] = before
    if kind:
        changes["kinds"] = tuple(kind)
    if stable is not None:
        changes["prerelease"] = not stable
    if not changes:
        return Filters() if none else None
    base = Filters() if none else found_by.understand(question).filters
    try:
        return Filters(**(base.model_dump() | changes))
    except ValueError as error:
        raise typer.BadParameter(str(error).splitlines()[-2].strip()) from None


def _known_name(database: Database, name: str) -> str:
    with database.snapshot() as connection:
        return find_repository(connection, name)[1]


def _answer_all(file: Path, answer: Callable[[str], dict[str, Any]]) -> None:
    """One JSON line for each line of the file, in order; a line that cannot be answered says why and fails the command."""
    failed = count = 0
    started = time.monotonic()
    for number, text in enumerate(_lines(file), 1):
        if not text.strip():
            continue
        count += 1
        identifier: object = None
        try:
            line = json_module.loads(text)
            identifier, question = line.get("id"), line["question"]
            json_line({"id": identifier} | answer(str(question)))
        except (KbError, ValueError, KeyError, AttributeError, TypeError) as error:
            failed += 1
            json_line({"id": identifier, "error": f"line {number}: {error}"})
    seconds = time.monotonic() - started
    log.info(
        "%s questions in %.1f s, %.0f a second, %s failed", count, seconds, count / max(seconds, 1e-6), failed
    )
    if failed:
        raise typer.Exit(1)


def _lines(file: Path) -> Iterator[str]:
    if str(file) == "-":
        yield from typer.get_text_stream("stdin")
        return
    try:
        with file.open(encoding="utf-8") as opened:
            yield from opened
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{file} cannot be read: {error}", hint="it must be a text file of JSON lines"
        ) from None


def _known_tag(text: str, tags: list[str]) -> str:
    from kb_platform.text.versions import resolve

    found = text if text in tags else resolve(text, tags)
    if found is None:
        near = (
            f"the newest tags are {', '.join(tags[:8])}" if tags else "nothing was known of it at that time"
        )
        raise NotKnown(f"no release has the tag {text}", hint=near)
    return found


def _release_json(stored: release_log.StoredRelease) -> dict[str, Any]:
    return asdict(stored.release) | {
        "repository": stored.repository,
        "sequence": stored.sequence,
        "observed_at": stored.observed_at,
        "deleted": stored.deleted,
        "content_hash": stored.release.content_hash.hex(),
    }


def _show_filters(filters: Filters, notes: tuple[str, ...]) -> None:
    described = filters.describe()
    note(f"filters: {'; '.join(described) if described else 'none'}")
    for text in notes:
        note(f"  {text}")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())
