"""The job `produce`: records into the topics, as `kb produce` does it; on a cluster its run is the producer's Job.

Given at its start: files, repositories of GitHub, or neither, which is all that is watched there. A run that is repeated
produces the same events with the same ids, and landing takes them once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import dagster as dg

from assets.placement import on_cpu
from assets.stage import MOST_NAMED, OWNERS, RETRIES, failing_plainly
from kb_platform.clock import SystemClock
from kb_platform.errors import BadRecord, NotKnown, SettingsError
from kb_platform.progress import SECONDS_BETWEEN_LINES, Progress
from kb_platform.settings import Settings
from kb_platform.sources.files import find_files, read_records
from kb_platform.sources.producible import Known
from kb_platform.sources.release import repository_name
from kb_platform.sources.release_event import ACTIONS
from kb_platform.stages.polling_session import ForgeFor
from kb_platform.stages.producing import (
    Given,
    Outcome,
    Produced,
    Producer,
    Producing,
    Unreadable,
    broken_down,
)
from kb_platform.stages.release_lists import GITHUB, Listed, ReleaseLists, Wanted, watched_at_github
from kb_platform.store.database import Database

PRODUCE = "produce"
# A run has time: the hour's budget of a credential is waited for.
LONGEST_WAIT_S = 3_700.0

_CONFIG = {
    "repositories": dg.Field(
        [str], default_value=[], description="Repositories of GitHub whose whole lists are produced."
    ),
    "paths": dg.Field(
        [str],
        default_value=[],
        description="Files and folders of JSON. Neither these nor repositories: all that is watched at GitHub.",
    ),
    "action": dg.Field(
        dg.Enum("Action", [dg.EnumValue(action) for action in sorted(ACTIONS)]),
        default_value="published",
        description="What happened to the releases.",
    ),
}


class Line(NamedTuple):
    """Where a run sends to: a producer, and asking whether a topic is there (raises PositionLost)."""

    producer: Producer
    require_topic: Callable[[str], object]


OpenLine = Callable[[Settings], AbstractContextManager[Line]]


@contextmanager
def brokers_line(settings: Settings) -> Generator[Line]:
    """The brokers of the settings. Raises SettingsError, StreamError."""
    # librdkafka is loaded by the runs that need it.
    from kb_platform.streams.broker import Brokers
    from kb_platform.streams.sender import Sender
    from kb_platform.streams.topics import Topics

    brokers = Brokers(settings)
    with closing(Sender(brokers)) as sender, closing(Topics(brokers)) as topics:
        yield Line(sender, topics.describe)


def produce_job(settings: Settings, open_line: OpenLine = brokers_line) -> dg.JobDefinition:
    """One op in one process: it waits more than it works. `open_line`: for tests without brokers."""

    def produce_records(
        context: dg.OpExecutionContext,
        settings: dg.ResourceParam[Settings],
        database: dg.ResourceParam[Database],
        forge_for: dg.ResourceParam[ForgeFor],
        progress: dg.ResourceParam[Progress],
    ) -> None:
        wanted: Mapping[str, Any] = context.op_config
        told = _Telling(context)
        with failing_plainly(), open_line(settings) as line:
            producing = Producing(
                line.producer, settings, action=wanted["action"], tell=told.outcome, require_topic=line.require_topic
            )  # fmt: skip
            try:
                with _records(settings, database, forge_for, progress, wanted) as records:
                    producing.run(records)
            finally:
                totals = producing.totals
                context.log.info(
                    "%s records: %s acknowledged, %s failed, %s refused", totals.records, totals.acknowledged,
                    totals.failed, totals.refused,
                )  # fmt: skip
        if not totals.complete:
            raise _failure(totals, told)
        context.add_output_metadata(_figures(totals))

    # Dagster compares annotations with its classes, so text is a stranger to it.
    produce_records.__annotations__ = get_type_hints(produce_records, include_extras=True)
    op = dg.op(
        tags=on_cpu(settings), config_schema=_CONFIG, retry_policy=RETRIES, description="Produce records as events."
    )(produce_records)  # fmt: skip

    @dg.job(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
        name=PRODUCE,
        executor_def=dg.in_process_executor,
        tags=on_cpu(settings) if settings.kubernetes else {},
        description="Produces releases of GitHub, or of files, as events into the topics, as `kb produce` does. Started by hand "
        "or from outside; sensors do not ask for it.",
        metadata={"owners": ", ".join(OWNERS)},
    )
    def produce() -> None:
        op()

    return produce


@contextmanager
def _records(
    settings: Settings, database: Database, forge_for: ForgeFor, progress: Progress, wanted: Mapping[str, Any]
) -> Generator[Iterable[Given | Unreadable]]:
    """All that is wanted, files first."""
    paths: Sequence[str] = wanted["paths"]
    names: Sequence[str] = wanted["repositories"]
    files = find_files(Path(path) for path in paths)
    repositories = [Wanted(_checked(name)) for name in names]
    if not paths and not names:
        repositories, _ = watched_at_github(database)
        if not repositories:
            raise NotKnown(
                "nothing is watched at GitHub, and neither files nor repositories are given",
                hint="`kb watch add OWNER/REPO`, or start the run with `repositories` or `paths`",
            )

    def records() -> Generator[Given | Unreadable]:
        with progress.task("produce", len(files) + len(repositories), "files and repositories") as task:
            for file in files:
                for record in read_records(file, max_record_bytes=settings.max_record_bytes):
                    yield Given(record)
                task.advance()
            if not repositories:
                return
            lists = ReleaseLists(
                database, forge_for(GITHUB, None), SystemClock(), longest_wait_s=LONGEST_WAIT_S,
                max_record_bytes=settings.max_record_bytes,
            )  # fmt: skip
            with closing(lists):
                for item in lists.read(repositories, task.advance):
                    yield (
                        _given(item, settings)
                        if isinstance(item, Listed)
                        else Unreadable(f"{GITHUB}:{item.repository}", item.reason, item.detail)
                    )

    with closing(records()) as made:
        yield made


def _given(listed: Listed, settings: Settings) -> Given:
    identity = listed.identity
    return Given(listed.record, Known(identity.name, identity.external_id, settings.github_api_url))


def _checked(name: str) -> str:
    try:
        return repository_name(name)
    except BadRecord as error:
        raise SettingsError(str(error), hint="name repositories as OWNER/REPO") from None


class _Telling:
    """What went wrong, in the run's log: the first of it by name."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._context = context
        self._said_at = time.monotonic()
        self.wrong: dict[str, str] = {}
        self._done = 0

    def outcome(self, outcome: Outcome) -> None:
        self._done += 1
        if outcome.error is not None and len(self.wrong) < MOST_NAMED:
            self.wrong[outcome.place] = outcome.error
            self._context.log.warning("%s: %s", outcome.place, outcome.error)
        now = time.monotonic()
        if now - self._said_at >= SECONDS_BETWEEN_LINES:
            self._said_at = now
            self._context.log.info("%s records are answered for", self._done)


def _failure(totals: Produced, told: _Telling) -> dg.Failure:
    """Deliveries that failed may succeed with the next try; records that are no events stay what they are."""
    said = f"{totals.acknowledged:,} of {totals.records:,} records were acknowledged"
    if totals.failed:
        said += f", {totals.failed:,} failed"
    if totals.refused:
        said += f", {totals.refused:,} are refused: {broken_down(totals.reasons)}"
    wrong = dg.MetadataValue.json(told.wrong)
    return dg.Failure(
        said + (f"; {totals.ended_by}" if totals.ended_by else ""),
        metadata={**_figures(totals), "wrong": wrong},
        allow_retries=bool(totals.failed),
    )


def _figures(totals: Produced) -> dict[str, Any]:
    return {
        "records": totals.records,
        "acknowledged": totals.acknowledged,
        "failed": totals.failed,
        "refused": totals.refused,
        "bytes": totals.bytes,
        "seconds": round(totals.seconds, 2),
        "records_a_second": round(totals.rate, 1),
    }
