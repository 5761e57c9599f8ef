"""The pages of a repository's list as a credential last saw them, and the releases that a walk did not find.

Pages are written in the transaction that writes their releases: "not modified" then speaks of what is in the log.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from kb_platform.store.database import Connection
from kb_platform.store.release_log import OUR_NUMBERS


class StoredPage(NamedTuple):
    """A page of the list; `release_ids` are those of all its records that have one, sound or not."""

    url: str
    etag: str | None
    next_url: str | None
    records: int
    release_ids: tuple[int, ...]


class Absence(NamedTuple):
    """A release that a complete walk did not find. `absences`: polls in which the source said that it is not there."""

    release_id: int
    absences: int
    asked_at: datetime | None


def pages(connection: Connection, repository_id: int, credential: str) -> list[StoredPage]:
    """The list as this credential last saw it, first page first."""
    rows = connection.execute(
        "SELECT url, etag, next_url, records, release_ids FROM kb.page "
        "WHERE repository_id = %s AND credential = %s ORDER BY ordinal",
        (repository_id, credential),
    )
    return [StoredPage(row[0], row[1], row[2], row[3], tuple(row[4])) for row in rows]


def save_page(
    connection: Connection, repository_id: int, credential: str, ordinal: int, page: StoredPage, at: datetime
) -> None:
    """What the page is now."""
    connection.execute(
        """
        INSERT INTO kb.page (repository_id, credential, ordinal, url, etag, next_url, records, release_ids, seen_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (repository_id, credential, ordinal) DO UPDATE SET url = excluded.url, etag = excluded.etag,
            next_url = excluded.next_url, records = excluded.records, release_ids = excluded.release_ids,
            seen_at = excluded.seen_at
        """,
        (repository_id, credential, ordinal, page.url, page.etag, page.next_url, page.records,
         list(page.release_ids), at),
    )  # fmt: skip


def cut_pages(connection: Connection, repository_id: int, credential: str, count: int) -> None:
    """The list has only so many pages now."""
    connection.execute(
        "DELETE FROM kb.page WHERE repository_id = %s AND credential = %s AND ordinal >= %s",
        (repository_id, credential, count),
    )


def forget_unseen(connection: Connection, before: datetime) -> int:
    """Drop pages that no walk has fetched since, where the same list was seen by another credential in the meantime."""
    return connection.execute(
        """
        DELETE FROM kb.page p WHERE p.seen_at < %(before)s AND EXISTS (
            SELECT FROM kb.page q WHERE q.repository_id = p.repository_id AND q.credential <> p.credential
            AND q.seen_at >= %(before)s)
        """,
        {"before": before},
    ).rowcount


def listable_releases(connection: Connection, repository_id: int, credential_origin: str) -> set[int]:
    """The numbers of the current releases that a list seen by this credential should show.

    Left out: what came from a changelog, which the forge does not know; and drafts that another credential saw, since a
    draft is shown only to those who may write.
    """
    rows = connection.execute(
        """
        SELECT release_id FROM (
            SELECT DISTINCT ON (release_id) release_id, deleted, draft, origin FROM kb.observation
            WHERE repository_id = %s AND release_id < %s ORDER BY release_id, observed_at DESC, sequence DESC) o
        WHERE NOT deleted AND (NOT draft OR origin = %s)
        """,
        (repository_id, OUR_NUMBERS, credential_origin),
    )
    return {row[0] for row in rows}


def absences(connection: Connection, repository_id: int) -> list[Absence]:
    """Releases that are missed, those first that were asked for longest ago."""
    rows = connection.execute(
        "SELECT release_id, absences, asked_at FROM kb.absence WHERE repository_id = %s "
        "ORDER BY asked_at NULLS FIRST, release_id",
        (repository_id,),
    )
    return [Absence(*row) for row in rows]


def miss(connection: Connection, repository_id: int, release_ids: Collection[int], at: datetime) -> None:
    """Exactly these releases are missed now; what was missed before and is not any more is forgotten."""
    ids = list(release_ids)
    connection.execute(
        "DELETE FROM kb.absence WHERE repository_id = %s AND release_id <> ALL(%s)", (repository_id, ids)
    )
    connection.execute(
        "INSERT INTO kb.absence (repository_id, release_id, absences, first_missed_at) "
        "SELECT %s, id, 0, %s FROM unnest(%s::bigint[]) AS id ON CONFLICT DO NOTHING",
        (repository_id, at, ids),
    )


def asked(
    connection: Connection, repository_id: int, release_id: int, *, is_there: bool, at: datetime
) -> None:
    """The source was asked for a missed release itself."""
    connection.execute(
        "UPDATE kb.absence SET absences = CASE WHEN %s THEN 0 ELSE absences + 1 END, asked_at = %s "
        "WHERE repository_id = %s AND release_id = %s",
        (is_there, at, repository_id, release_id),
    )
