"""`kb produce`: records into the topics, from files, standard input or GitHub."""

from __future__ import annotations

import json as json_
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any, Literal

import typer

from kb_platform.cli.output import Json, log, note, progress, say, say_json, start_log, table
from kb_platform.clock import SystemClock
from kb_platform.errors import BadRecord, NotKnown
from kb_platform.home import Forges, open_database
from kb_platform.progress import Task
from kb_platform.settings import TOPIC_NAME, Settings, load_settings
from kb_platform.sources.files import Record, find_files, read_records
from kb_platform.sources.producible import Known
from kb_platform.sources.release import repository_name
from kb_platform.sources.release_event import ACTIONS, OURS
from kb_platform.stages.producing import (
    Given,
    Outcome,
    Produced,
    Producing,
    Unreadable,
    broken_down,
    read_lines,
)
from kb_platform.stages.release_lists import GITHUB, Listed, ReleaseLists, Wanted, watched_at_github

STANDARD_INPUT = "-"
MOST_NOTED = 50
FLUSHED_EVERY_S = 1.0

Items = Iterable[Given | Unreadable]


def register(app: typer.Typer) -> None:
    """Add the command to `kb`."""
    app.command()(produce)


def produce(
    sources: Annotated[list[str] | None, typer.Argument(
        help="Files of JSON or folders of such files, `-` for standard input; with --from github: repositories, none for all "
        "that are watched there.", metavar="[PATH...]", show_default=False)] = None,
    *,
    from_: Annotated[Literal["github"] | None, typer.Option("--from", help="Read whole release lists from GitHub, and no "
        "files.", show_default=False)] = None,
    repository: Annotated[str | None, typer.Option("--repo", metavar="OWNER/REPO", help="The repository of every release. "
        "Default: what each record says.")] = None,
    number: Annotated[int | None, typer.Option("--repo-number", min=1, help="The number that the repository of --repo has at "
        "GitHub. Default: one made from its name.")] = None,
    action: Annotated[str, typer.Option(help=f"What happened to the releases: {', '.join(sorted(ACTIONS))}.")] = "published",
    topic: Annotated[str | None, typer.Option(help="Topic of all events. Default: KB_KAFKA_RELEASE_TOPIC for releases, "
        "KB_KAFKA_DOCUMENT_TOPIC for documents.")] = None,
    mode: Annotated[Literal["binary", "structured"], typer.Option(help="How events are written: attributes as headers, or all "
        "in one JSON document.")] = "binary",
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what became of each record, one JSON object a "
        "line.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait at most for a limit of GitHub to end.")] = 120.0,
    json: Json = False,
) -> None:  # fmt: skip
    """Produce releases, webhook payloads and documents as events. Same records, same event ids: twice does no harm.

    What is no event is named and the rest goes on; the exit status is 1 unless all was acknowledged. Ctrl-C waits for what is
    under way.

    Example:  kb produce releases.jsonl --report delivered.jsonl

    Example:  kb produce --from github pgvector/pgvector
    """
    _check(sources, from_, repository, number, action, topic)
    settings = load_settings()
    start_log(settings)
    with ExitStack() as stack:
        tell = stack.enter_context(_reported(report))
        producing, stop = _producing(stack, settings, action, topic, mode, tell)
        if from_ is None:
            work = _from_files(settings, sources or [], Known(repository, number))
        else:
            work = _from_github(stack, settings, sources or [], wait)
        unit, total, items = work
        try:
            with progress().task("produce", total, unit) as task, _stopped_by_signals(producing, stop):
                producing.run(items(task))
        except KeyboardInterrupt:
            note("stopped at once: what was under way may have been delivered or not")
        finally:
            _show(producing.totals, json=json)
    if not producing.totals.complete:
        raise typer.Exit(1)


def _check(
    sources: list[str] | None, from_: str | None, repository: str | None, number: int | None, action: str, topic: str | None
) -> None:  # fmt: skip
    """Raises BadParameter for what does not go together."""
    if from_ is None and not sources:
        raise typer.BadParameter("give files, `-`, or --from github", param_hint="PATH")
    if from_ is not None and (repository is not None or number is not None):
        raise typer.BadParameter("goes with files only: GitHub says it itself", param_hint="--repo")
    if number is not None and (repository is None or number >= OURS):
        raise typer.BadParameter("goes with --repo, and is less than 2^62", param_hint="--repo-number")
    if action not in ACTIONS:
        raise typer.BadParameter(f"is none of {', '.join(sorted(ACTIONS))}", param_hint="--action")
    if topic is not None and not _is_topic(topic):
        raise typer.BadParameter(
            "a topic has 1 to 240 letters, digits, dots, underscores and hyphens", param_hint="--topic"
        )
    for name in [repository] if repository is not None else (sources or []) if from_ else []:
        try:
            repository_name(name)
        except BadRecord as error:
            raise typer.BadParameter(str(error), param_hint="OWNER/REPO" if from_ else "--repo") from None
    if from_ is None and (sources or []).count(STANDARD_INPUT) > 1:
        raise typer.BadParameter("standard input can be read once", param_hint="-")


def _is_topic(name: str) -> bool:
    return re.fullmatch(TOPIC_NAME, name) is not None and name not in (".", "..")


def _producing(
    stack: ExitStack,
    settings: Settings,
    action: str,
    topic: str | None,
    mode: Literal["binary", "structured"],
    tell: Callable[[Outcome], None],
) -> tuple[Producing, threading.Event]:
    """Ready to produce: brokers answer and take us. Raises StreamError, SettingsError."""
    from kb_platform.streams.broker import Brokers
    from kb_platform.streams.sender import Sender
    from kb_platform.streams.topics import Topics

    brokers = Brokers(settings)
    brokers.require()
    topics = stack.enter_context(closing(Topics(brokers)))
    sender = stack.enter_context(closing(Sender(brokers, queue=None)))
    stop = threading.Event()
    producing = Producing(
        sender, settings, action=action, topic=topic, mode=mode, tell=tell, require_topic=topics.describe, stop=stop
    )  # fmt: skip
    return producing, stop


Work = tuple[str, int | None, Callable[[Task], Items]]


def _from_files(settings: Settings, sources: Sequence[str], known: Known) -> Work:
    """Unit and total of the progress, and the records. Raises SourceError for a path that is not there."""
    paths = [source for source in sources if source != STANDARD_INPUT]
    files = {path: find_files([Path(path)]) for path in paths}
    limit = settings.max_record_bytes
    by_size = STANDARD_INPUT not in sources

    def read(source: str) -> Iterator[Record]:
        if source == STANDARD_INPUT:
            yield from read_lines(sys.stdin.buffer, name="standard input", max_record_bytes=limit)
        for path in files.get(source, []):
            yield from read_records(path, max_record_bytes=limit)

    def items(task: Task) -> Items:
        left = 0
        for source in sources:
            for record in read(source):
                yield Given(record, known)
                left += record.size if by_size else 1024
                task.advance(left >> 10)
                left &= 1023

    if not by_size:
        return "records", None, items
    return "KiB", sum(path.stat().st_size for found in files.values() for path in found) >> 10, items


def _from_github(stack: ExitStack, settings: Settings, names: Sequence[str], wait: float) -> Work:
    """The same for release lists. Raises NotKnown where nothing is watched."""
    database = stack.enter_context(closing(open_database(settings)))
    forges = stack.enter_context(closing(Forges(settings)))
    wanted = [Wanted(name) for name in names]
    if not names:
        wanted, elsewhere = watched_at_github(database)
        if elsewhere:
            log.warning("%s watched repositories are not at GitHub, and are left out", elsewhere)
        if not wanted:
            raise NotKnown(
                "nothing is watched at GitHub", hint="name repositories, or `kb watch add OWNER/REPO`"
            )
    lists = stack.enter_context(
        closing(
            ReleaseLists(
                database, forges(GITHUB, None), SystemClock(), longest_wait_s=wait,
                max_record_bytes=settings.max_record_bytes,
            )
        )
    )  # fmt: skip

    def listed(task: Task) -> Items:
        for item in lists.read(wanted, task.advance):
            if isinstance(item, Listed):
                known = Known(item.identity.name, item.identity.external_id, settings.github_api_url)
                yield Given(item.record, known)
            else:
                yield Unreadable(f"{GITHUB}:{item.repository}", item.reason, item.detail)

    return "repositories", len(wanted), listed


@contextmanager
def _stopped_by_signals(producing: Producing, stop: threading.Event) -> Generator[None]:
    """Ctrl-C and SIGTERM end reading, and wait for what is under way; a second time they end all at once."""

    def request(_number: int, _frame: FrameType | None) -> None:
        again = stop.is_set()
        stop.set()
        if again or producing.reading:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _reported(path: Path | None) -> Generator[Callable[[Outcome], None]]:
    """Takes what became of each record: into the file, and what went wrong onto standard error as well."""
    file: IO[str] | None = None
    if path is not None:
        try:
            file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--report") from None
    noted = 0
    flushed = time.monotonic()

    def tell(outcome: Outcome) -> None:
        nonlocal noted, flushed
        if outcome.error is not None:
            noted += 1
            if noted <= MOST_NOTED:
                note(f"{outcome.place}: {outcome.error}")
            elif noted == MOST_NOTED + 1:
                note("and more; `--report FILE` has all of them")
        if file is not None:
            file.write(json_.dumps(outcome._asdict(), ensure_ascii=False) + "\n")
            if time.monotonic() - flushed >= FLUSHED_EVERY_S:
                file.flush()
                flushed = time.monotonic()

    try:
        yield tell
    finally:
        if file is not None:
            file.close()


def _show(totals: Produced, *, json: bool) -> None:
    if json:
        say_json(_as_json(totals))
        return
    table(
        ("records", "produced", "acknowledged", "failed", "refused", "seconds", "records a second"),
        [(totals.records, totals.produced, totals.acknowledged, totals.failed, totals.refused,
          round(totals.seconds, 1), round(totals.rate))],
    )  # fmt: skip
    if totals.refused:
        say(f"refused: {broken_down(totals.reasons)}")
    if totals.ended_by is not None:
        note(f"ended before all was read: {totals.ended_by}")


def _as_json(totals: Produced) -> dict[str, Any]:
    return vars(totals) | {"seconds": round(totals.seconds, 3), "rate": round(totals.rate, 1)}
