"""Replaying: another try at quarantined records, with the present code and settings.

A record of a file or a poll is read as a new observation; a message of a topic as what it was, at its place and time: an
event that was overtaken while it waited does not become the present state. Does not belong here: why records are refused.
"""

from __future__ import annotations

from kb_platform.errors import BadRecord
from kb_platform.settings import Settings
from kb_platform.sources.events import parse_event
from kb_platform.sources.files import Record
from kb_platform.sources.message import Message
from kb_platform.sources.release import Refused
from kb_platform.stages.importing import Imported, parse_record
from kb_platform.store import quarantine, release_log, streamed_log
from kb_platform.store.database import Database


def replay(
    database: Database, quarantine_id: int, settings: Settings, *, repository: str | None = None
) -> Imported:
    """Read a quarantined record again. `repository`: whose it is, for records that do not say it (messages do).

    The record stays in quarantine when it is refused again (an attempt more), and is marked as replayed otherwise.
    """
    with database.snapshot() as connection:
        record = quarantine.get(connection, quarantine_id)
        message = quarantine.message_of(connection, quarantine_id)
    if message is not None:
        return _replay_message(database, quarantine_id, *message, settings=settings)
    return _replay_record(database, record, settings, repository or record.repository)


def _replay_record(
    database: Database, record: quarantine.Quarantined, settings: Settings, repository: str | None
) -> Imported:
    again = Record(record.raw, record.origin, record.raw_bytes)
    read = parse_record(again, settings, repository, origin=record.origin)
    if isinstance(read, Refused):
        return _refused(database, record.quarantine_id, read.reason, read.detail)
    result = Imported(records=1)
    with database.transaction() as connection:
        appended = release_log.append(connection, read.repository, [read])
        if appended.refused:
            quarantine.retried(
                connection, record.quarantine_id, "refused-by-database", appended.refused[0][1]
            )
            return _count_refused(result, "refused-by-database")
        for change, count in appended.counts.items():
            setattr(result, change, count)
        quarantine.resolve(connection, record.quarantine_id, "replayed")
    result.repositories = [read.repository]
    return result


def _replay_message(
    database: Database, quarantine_id: int, message: Message, topic_id: str, *, settings: Settings
) -> Imported:
    try:
        state = parse_event(
            message,
            topic_id=topic_id,
            github_api_url=settings.github_api_url,
            max_body_bytes=settings.max_body_bytes,
            max_record_bytes=settings.max_record_bytes,
        )
    except BadRecord as error:
        return _refused(database, quarantine_id, error.reason, str(error))
    result = Imported(records=1)
    with database.transaction() as connection:
        appended = streamed_log.append_streamed(connection, [state])
        if appended.refused:
            quarantine.retried(connection, quarantine_id, "refused-by-database", appended.refused[0][1])
            return _count_refused(result, "refused-by-database")
        for change, count in appended.counts.items():
            setattr(result, change, count)
        quarantine.resolve(connection, quarantine_id, "replayed")
    result.repositories = list(appended.repositories)
    return result


def _refused(database: Database, quarantine_id: int, reason: str, detail: str) -> Imported:
    with database.transaction() as connection:
        quarantine.retried(connection, quarantine_id, reason, detail)
    return _count_refused(Imported(records=1), reason)


def _count_refused(result: Imported, reason: str) -> Imported:
    result.quarantined += 1
    result.reasons[reason] = result.reasons.get(reason, 0) + 1
    return result
