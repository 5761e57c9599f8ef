"""The append-only log of observations, and reading releases from it.

A release is known by (repository, release id). Its state at a time is its last observation up to then; observations that
say nothing new are not appended. Deletions are observations too. Nothing here is ever updated or removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg import sql

from kb_platform.errors import NotKnown
from kb_platform.sources.release import Observed, Release
from kb_platform.sources.streamed import DOCUMENTS
from kb_platform.store.copying import GatheringWriter, copy_sound_rows
from kb_platform.store.database import Connection, scalar
from kb_platform.store.repositories import ensure_repository, lock_repository
from kb_platform.text.versions import version_key

Change = Literal["new", "edited", "unchanged", "deleted", "reappeared"]

COLUMNS = (
    "repository_id", "release_id", "observed_at", "origin", "content_hash", "deleted", "tag", "name", "body",
    "created_at", "published_at", "prerelease", "draft", "url", "author", "version_key", "raw", "revised_at",
)  # fmt: skip

_TYPES = (
    "int8", "int8", "timestamptz", "text", "bytea", "bool", "text", "text", "text", "timestamptz", "timestamptz",
    "bool", "bool", "text", "text", "text", "bytea", "timestamptz",
)  # fmt: skip

# Releases that are made from a changelog or a tag have numbers from here on; no forge has counted so far.
OUR_NUMBERS = 2**62

CURRENT = (
    "SELECT DISTINCT ON (repository_id, release_id) * FROM kb.observation WHERE repository_id = %(repository_id)s "
    "AND (%(moment)s::timestamptz IS NULL OR observed_at <= %(moment)s) "
    "ORDER BY repository_id, release_id, observed_at DESC, sequence DESC"
)


@dataclass
class Appended:
    """What an append did: a count of each kind of change that is in the log now, and the records that PostgreSQL
    refused."""

    counts: dict[Change, int] = field(
        default_factory=lambda: {"new": 0, "edited": 0, "unchanged": 0, "deleted": 0, "reappeared": 0}
    )
    refused: list[tuple[Observed, str]] = field(default_factory=list[tuple[Observed, str]])


class _Last(NamedTuple):
    content_hash: bytes
    deleted: bool
    observed_at: datetime


class StoredRelease(NamedTuple):
    """A release as the log has it. `is_document`: it is a document in the shape of one; its name is a title."""

    repository: str
    sequence: int
    observed_at: datetime
    release: Release
    version_key: str | None
    deleted: bool = False
    is_document: bool = False


def append(
    connection: Connection, repository: str, observed: Sequence[Observed], *, at: datetime | None = None
) -> Appended:
    """Append what is new in `observed` (all of one repository, in the order seen) to the log.

    `at`: when it was seen; now, unless the source knows better. An observation is never put before one that the log
    already has of the same release, so a clock that steps back hides nothing.
    """
    repository_id = ensure_repository(connection, repository)
    lock_repository(connection, repository_id)
    now = at or scalar(connection, "SELECT clock_timestamp()")
    last = _last_known(connection, repository_id, [item.release.release_id for item in observed])
    appended = Appended()
    rows: list[list[Any]] = []
    sources: list[tuple[Observed, Change]] = []
    for item in observed:
        known = last.get(item.release.release_id)
        change = _change(item, known)
        appended.counts[change] += 1
        if change == "unchanged":
            continue
        moment = max(now, known.observed_at) if known else now
        last[item.release.release_id] = _Last(item.release.content_hash, item.deleted, moment)
        rows.append(_row(repository_id, item, moment))
        sources.append((item, change))
    for index, reason in copy_observations(connection, rows):
        item, change = sources[index]
        appended.counts[change] -= 1
        appended.refused.append((item, reason))
    return appended


def current_releases(
    connection: Connection, repository_id: int, *, as_of: datetime | None = None
) -> list[StoredRelease]:
    """A repository's releases, now or as the log had them at a time, newest version first; drafts included."""
    rows = connection.execute(
        f"SELECT r.name, r.forge, o.* FROM ({CURRENT}) o JOIN kb.repository r USING (repository_id) "
        "WHERE NOT o.deleted ORDER BY o.version_key DESC NULLS LAST, o.published_at DESC NULLS LAST, o.sequence DESC",
        {"repository_id": repository_id, "moment": as_of},
    )
    return _stored(rows)


def history(connection: Connection, repository_id: int, release_id: int) -> list[StoredRelease]:
    """Every observation of one release, oldest first."""
    rows = connection.execute(
        "SELECT r.name, o.* FROM kb.observation o JOIN kb.repository r USING (repository_id) "
        "WHERE o.repository_id = %s AND o.release_id = %s ORDER BY o.observed_at, o.sequence",
        (repository_id, release_id),
    )
    return _stored(rows)


def release_by_tag(
    connection: Connection, repository_id: int, tag: str, *, as_of: datetime | None = None
) -> StoredRelease:
    """The release with this very tag. Raises NotKnown. Of several (a draft beside it) the last observed."""
    rows = connection.execute(
        f"SELECT r.name, o.* FROM ({CURRENT}) o JOIN kb.repository r USING (repository_id) "
        "WHERE NOT o.deleted AND o.tag = %(tag)s ORDER BY o.draft, o.observed_at DESC, o.sequence DESC LIMIT 1",
        {"repository_id": repository_id, "moment": as_of, "tag": tag},
    )
    found = _stored(rows)
    if not found:
        raise NotKnown(f"no release has the tag {tag}", hint="`kb show OWNER/REPO` lists the tags")
    return found[0]


def superseded(connection: Connection, repository_id: int, observed: Sequence[Observed]) -> list[Observed]:
    """Deletions of releases made from a changelog whose version the forge has a release of: one version, one release."""
    tags = [item.release.tag for item in observed]
    keys = [key for key in map(version_key, tags) if key is not None]
    rows = connection.execute(
        f"SELECT r.name, o.* FROM ({CURRENT}) o JOIN kb.repository r USING (repository_id) "
        "WHERE NOT o.deleted AND o.release_id >= %(ours)s AND (o.tag = ANY(%(tags)s) OR o.version_key = ANY(%(keys)s))",
        {"repository_id": repository_id, "moment": None, "tags": tags, "keys": keys, "ours": OUR_NUMBERS},
    )
    return [
        Observed(stored.repository, stored.release, b"", "changelog:superseded", deleted=True)
        for stored in _stored(rows)
    ]


def as_deleted(connection: Connection, repository_id: int, release_id: int, origin: str) -> list[Observed]:
    """A release's last state as an observation that it is gone; empty when it is not there anyway."""
    rows = connection.execute(
        f"SELECT r.name, o.* FROM ({CURRENT}) o JOIN kb.repository r USING (repository_id) "
        "WHERE NOT o.deleted AND o.release_id = %(release_id)s",
        {"repository_id": repository_id, "moment": None, "release_id": release_id},
    )
    # The source sent no bytes: that it has none is what it said.
    return [
        Observed(stored.repository, stored.release, b"", origin, deleted=True) for stored in _stored(rows)
    ]


def newest_sequence(connection: Connection, repository_id: int) -> int:
    """The last observation of a repository; 0 when there is none."""
    return int(
        scalar(
            connection,
            "SELECT coalesce(max(sequence), 0) FROM kb.observation WHERE repository_id = %s",
            (repository_id,),
        )
    )


def copy_observations(connection: Connection, rows: Sequence[Sequence[Any]]) -> list[tuple[int, str]]:
    """COPY rows of COLUMNS; the index and the reason of each that PostgreSQL refuses, with the others in the log."""
    try:
        with connection.transaction():
            _copy_binary(connection, rows)
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, ValueError, OverflowError):
        return copy_sound_rows(connection, "observation", COLUMNS, rows)
    return []


def _copy_binary(connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
    """As text, bytes are written as hexadecimal digits: 4,362 releases took 96 us each, and take 62."""
    statement = sql.SQL("COPY kb.observation ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
    )
    with connection.cursor() as cursor, cursor.copy(statement, writer=GatheringWriter(cursor)) as copy:
        copy.set_types(_TYPES)
        for row in rows:
            copy.write_row(row)


def _change(item: Observed, known: _Last | None) -> Change:
    if item.deleted:
        return "unchanged" if known is None or known.deleted else "deleted"
    if known is None:
        return "new"
    if known.deleted:
        return "reappeared"
    return "unchanged" if known.content_hash == item.release.content_hash else "edited"


def _last_known(connection: Connection, repository_id: int, release_ids: list[int]) -> dict[int, _Last]:
    rows = connection.execute(
        "SELECT DISTINCT ON (release_id) release_id, content_hash, deleted, observed_at FROM kb.observation "
        "WHERE repository_id = %s AND release_id = ANY(%s) ORDER BY release_id, observed_at DESC, sequence DESC",
        (repository_id, release_ids),
    )
    return {row[0]: _Last(bytes(row[1]), row[2], row[3]) for row in rows}


def _row(repository_id: int, item: Observed, moment: datetime) -> list[Any]:
    release = item.release
    return [
        repository_id, release.release_id, moment, item.origin, release.content_hash, item.deleted, release.tag,
        release.name, release.body, release.created_at, release.published_at, release.prerelease, release.draft,
        release.url, release.author, version_key(release.tag), item.raw,
        item.revised_at,
    ]  # fmt: skip


def _stored(rows: Any) -> list[StoredRelease]:
    names = [column.name for column in rows.description]
    found: list[StoredRelease] = []
    for values in rows:
        row = dict(zip(["repository", *names[1:]], values, strict=True))
        release = Release(
            release_id=row["release_id"],
            tag=row["tag"],
            name=row["name"],
            body=row["body"],
            created_at=_utc(row["created_at"]),
            published_at=_utc(row["published_at"]),
            prerelease=row["prerelease"],
            draft=row["draft"],
            url=row["url"],
            author=row["author"],
        )
        found.append(
            StoredRelease(
                row["repository"],
                row["sequence"],
                row["observed_at"],
                release,
                row["version_key"],
                row["deleted"],
                row.get("forge") == DOCUMENTS,
            )
        )
    return found


def _utc(moment: datetime | None) -> datetime | None:
    return moment and moment.astimezone(UTC)
