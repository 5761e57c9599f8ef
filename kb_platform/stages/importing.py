"""The first stage: records of a source → observations in the log, and what is no release → quarantine.

A batch (of one repository) and its quarantined records go in one transaction. Importing the same bytes again appends
nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kb_platform.errors import BadRecord
from kb_platform.progress import Progress, Silence
from kb_platform.settings import Settings
from kb_platform.sources.files import Record, find_files, read_records
from kb_platform.sources.github_json import parse_state
from kb_platform.sources.release import Observed, Refused, repository_name
from kb_platform.store import quarantine, release_log
from kb_platform.store.database import Connection, Database
from kb_platform.store.repositories import find_repository, mark_verified

BATCH_RECORDS = 500
BATCH_BYTES = 8 * 1_048_576


@dataclass
class Imported:
    """What an import did. `repositories`: those that it touched, changed or not."""

    files: int = 0
    records: int = 0
    new: int = 0
    edited: int = 0
    reappeared: int = 0
    deleted: int = 0
    unchanged: int = 0
    late: int = 0
    quarantined: int = 0
    quarantined_new: int = 0
    repositories: list[str] = field(default_factory=list[str])
    reasons: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def appended(self) -> int:
        """Observations that the log did not have."""
        return self.new + self.edited + self.reappeared + self.deleted + self.late

    def add(self, other: Imported) -> None:
        """Count what another import (of the same files) did to this one."""
        for name in (
            "records",
            "new",
            "edited",
            "reappeared",
            "deleted",
            "unchanged",
            "late",
            "quarantined",
            "quarantined_new",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        self.repositories += [name for name in other.repositories if name not in self.repositories]


@dataclass
class _Batch:
    observed: list[Observed] = field(default_factory=list[Observed])
    refused: list[Refused] = field(default_factory=list[Refused])
    size: int = 0

    @property
    def records(self) -> int:
        """Records of either kind."""
        return len(self.observed) + len(self.refused)


def import_files(
    database: Database,
    paths: Sequence[Path],
    settings: Settings,
    *,
    repository: str | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Import files of GitHub release JSON.

    `repository`: the repository of every record; None: each record's own URLs say it. Raises SourceError for a path that
    cannot be read, before anything is imported where that is known before.
    """
    if repository is not None:
        repository = repository_name(repository)
    files = find_files(paths)
    result = Imported(files=len(files))
    with (progress or Silence()).task("import", sum(f.stat().st_size for f in files) >> 10, "KiB") as task:
        spent = 0
        for batch in _batches(_read(files, settings, repository), repository):
            _store(database, batch, result)
            spent += batch.size
            task.advance(spent >> 10)
            spent &= 1023
    _verified(database, result)
    return result


def import_observed(database: Database, observed: Iterable[Observed | Refused]) -> Imported:
    """Append what a source showed, in its order; for sources that are no files."""
    result = Imported()
    for batch in _batches(observed, None):
        _store(database, batch, result)
    return result


def _read(files: Sequence[Path], settings: Settings, repository: str | None) -> Generator[Observed | Refused]:
    for path in files:
        for record in read_records(path, max_record_bytes=settings.max_record_bytes):
            yield parse_record(record, settings, repository, origin=f"import:{record.place}")


def parse_record(
    record: Record, settings: Settings, repository: str | None, *, origin: str
) -> Observed | Refused:
    """What a record says. `repository`: whose it is, where the record need not say it."""
    try:
        if record.is_cut:
            raise BadRecord("record-too-long", f"a record of {record.size:,} bytes, over the limit")
        state = parse_state(record.raw, repository=repository, max_body_bytes=settings.max_body_bytes)
    except BadRecord as error:
        return Refused(error.reason, str(error), record.raw, origin, repository, record.size)
    return Observed(state.repository, state.release, record.raw, origin, revised_at=state.revised_at)


def _batches(items: Iterable[Observed | Refused], repository: str | None) -> Generator[_Batch]:
    """Consecutive records of one repository, bounded in number and bytes."""
    batch, current = _Batch(), repository
    for item in items:
        changes = (
            isinstance(item, Observed) and current is not None and item.repository.lower() != current.lower()
        )
        if changes or batch.records >= BATCH_RECORDS or batch.size >= BATCH_BYTES:
            yield batch
            batch = _Batch()
        if isinstance(item, Observed):
            current = item.repository
            batch.observed.append(item)
        else:
            batch.refused.append(item)
        batch.size += len(item.raw)
    if batch.records:
        yield batch


def record(
    connection: Connection,
    observed: Sequence[Observed],
    refused: Sequence[Refused],
    *,
    at: datetime | None = None,
) -> Imported:
    """Append records of one repository to the log, and set apart those that are no release, in the caller's transaction.

    `at`: when they were seen; now by default. For sources that commit their position with their records.
    """
    result = Imported(records=len(observed) + len(refused))
    apart = list(refused)
    if observed:
        appended = release_log.append(connection, observed[0].repository, observed, at=at)
        for change, count in appended.counts.items():
            setattr(result, change, count)
        apart += [
            Refused("refused-by-database", reason, item.raw, item.origin, item.repository)
            for item, reason in appended.refused
        ]
        result.repositories.append(observed[0].repository)
    result.quarantined_new = quarantine.put(connection, apart)
    result.quarantined = len(apart)
    for item in apart:
        result.reasons[item.reason] = result.reasons.get(item.reason, 0) + 1
    return result


def _store(database: Database, batch: _Batch, result: Imported) -> None:
    with database.transaction() as connection:
        recorded = record(connection, batch.observed, batch.refused)
    # Only what was committed is counted.
    result.add(recorded)


def _verified(database: Database, result: Imported) -> None:
    """Every record of the import is in the log or in quarantine now."""
    with database.transaction() as connection:
        found = [find_repository(connection, name) for name in result.repositories]
        mark_verified(connection, [repository_id for repository_id, _ in found])
    result.repositories = list(dict.fromkeys(name for _, name in found))
