"""Bringing index versions up to date with the log, one repository in one transaction.

All maintained versions move together, so that rolling back loses nothing. A release whose newest observation is not
chunked and embedded yet keeps its former rows: a reader sees a repository before or after, never between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg import sql

from kb_platform.store.chunks import CUT
from kb_platform.store.database import Connection, scalar
from kb_platform.store.index_versions import IndexVersion, maintained
from kb_platform.store.release_log import newest_sequence
from kb_platform.store.repositories import lock_repository


@dataclass(frozen=True)
class Refreshed:
    """What a refresh changed in one version: rows in and out, and releases that wait for chunks or vectors."""

    version: int
    inserted: int
    deleted: int
    chunks: int
    releases: int
    waiting: int

    @property
    def changed(self) -> bool:
        """Whether any row moved."""
        return bool(self.inserted or self.deleted)


class _Held(NamedTuple):
    sequence: int
    release_id: int


def refresh_repository(
    connection: Connection, repository_id: int, *, only: Sequence[int] | None = None
) -> list[Refreshed]:
    """Refresh one repository in every maintained version (or in those named). The caller's transaction is the unit."""
    lock_repository(connection, repository_id)
    newest = newest_sequence(connection, repository_id)
    current = _current(connection, repository_id)
    refreshed = [
        _refresh(connection, version, repository_id, current, newest)
        for version in maintained(connection)
        if only is None or version.version in only
    ]
    if only is None:
        _forget_superseded(connection, repository_id)
    return refreshed


def complete_repositories(connection: Connection, version: int) -> tuple[int, int]:
    """(repositories that the version holds up to their newest observation, repositories there are)."""
    row = connection.execute(
        """
        SELECT count(*) FILTER (WHERE i.log_sequence >= o.newest), count(*)
        FROM (SELECT repository_id, max(sequence) AS newest FROM kb.observation GROUP BY repository_id) o
        LEFT JOIN kb.index_repository i ON i.repository_id = o.repository_id AND i.version = %s
        """,
        (version,),
    ).fetchone()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def stale_repositories(connection: Connection) -> list[str]:
    """Repositories whose newest observations are missing from some maintained version, and those that no version has."""
    versions = [version.version for version in maintained(connection)]
    rows = connection.execute(
        """
        SELECT r.name FROM kb.repository r
        -- One look into the index for each repository: 26 ms for 5,000 of them, where grouping a million rows took 55.
        CROSS JOIN LATERAL (SELECT max(sequence) AS newest FROM kb.observation o
                            WHERE o.repository_id = r.repository_id) o
        WHERE o.newest IS NOT NULL AND (cardinality(%(versions)s::int[]) = 0 OR EXISTS (
            SELECT 1 FROM unnest(%(versions)s::int[]) AS v (version)
            LEFT JOIN kb.index_repository i ON i.version = v.version AND i.repository_id = r.repository_id
            WHERE coalesce(i.log_sequence, 0) < o.newest))
        ORDER BY lower(r.name)
        """,
        {"versions": versions},
    ).fetchall()
    return [row[0] for row in rows]


def _current(connection: Connection, repository_id: int) -> dict[int, int]:
    """sequence → release id of the releases that an index should hold."""
    rows = connection.execute(
        "SELECT sequence, release_id FROM (SELECT DISTINCT ON (release_id) sequence, release_id, deleted, draft "
        "FROM kb.observation WHERE repository_id = %s ORDER BY release_id, observed_at DESC, sequence DESC) o "
        "WHERE NOT deleted AND NOT draft",
        (repository_id,),
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def _refresh(
    connection: Connection, version: IndexVersion, repository_id: int, current: dict[int, int], newest: int
) -> Refreshed:
    held = [
        _Held(*row)
        for row in connection.execute(
            "SELECT sequence, release_id FROM kb.indexed_observation WHERE version = %s AND repository_id = %s",
            (version.version, repository_id),
        )
    ]
    wanted = sorted(current.keys() - {item.sequence for item in held})
    ready = _ready(connection, version.model_id, wanted)
    waiting = [sequence for sequence in wanted if sequence not in ready]
    waiting_releases = {current[sequence] for sequence in waiting}
    obsolete = [
        h.sequence for h in held if h.sequence not in current and h.release_id not in waiting_releases
    ]
    deleted = _delete(connection, version, repository_id, obsolete)
    inserted = _insert(connection, version, repository_id, sorted(ready))
    reflected = min(waiting) - 1 if waiting else newest
    row = connection.execute(
        """
        INSERT INTO kb.index_repository (version, repository_id, log_sequence, releases, chunks)
        SELECT %(version)s, %(repository)s, %(reflected)s, count(*), coalesce(sum(chunks), 0)
        FROM kb.indexed_observation WHERE version = %(version)s AND repository_id = %(repository)s
        ON CONFLICT (version, repository_id) DO UPDATE SET log_sequence = excluded.log_sequence,
            releases = excluded.releases, chunks = excluded.chunks, refreshed_at = now()
        RETURNING releases, chunks
        """,
        {"version": version.version, "repository": repository_id, "reflected": reflected},
    ).fetchone()
    releases, chunks = (int(row[0]), int(row[1])) if row else (0, 0)
    return Refreshed(version.version, inserted, deleted, chunks, releases, len(waiting))


def _ready(connection: Connection, model_id: int, sequences: Sequence[int]) -> set[int]:
    """Of these observations, those that are chunked and whose every passage has a vector of the model."""
    if not sequences:
        return set()
    rows = connection.execute(
        """
        SELECT k.sequence FROM kb.chunked_observation k
        LEFT JOIN kb.chunk c ON c.sequence = k.sequence AND c.chunker = k.chunker AND c.passage_hash IS NOT NULL
        LEFT JOIN kb.embedding e ON e.model_id = %s AND e.passage_hash = c.passage_hash
        WHERE k.chunker = %s AND k.sequence = ANY(%s)
        GROUP BY k.sequence HAVING count(c.passage_hash) = count(e.passage_hash)
        """,
        (model_id, CUT, list(sequences)),
    ).fetchall()
    return {row[0] for row in rows}


def _delete(
    connection: Connection, version: IndexVersion, repository_id: int, sequences: Sequence[int]
) -> int:
    if not sequences:
        return 0
    parameters = _parameters(version, repository_id, sequences)
    connection.execute(
        """
        WITH gone AS (
            SELECT term, count(*)::int AS documents FROM kb.chunk c CROSS JOIN unnest(c.terms) AS term
            WHERE c.sequence = ANY(%(sequences)s) AND c.chunker = %(cut)s GROUP BY term)
        UPDATE kb.index_term t SET documents = t.documents - gone.documents FROM gone
        WHERE t.version = %(version)s AND t.repository_id = %(repository)s AND t.term = gone.term
        """,
        parameters,
    )
    connection.execute(
        "DELETE FROM kb.index_term WHERE version = %(version)s AND repository_id = %(repository)s AND documents <= 0",
        parameters,
    )
    connection.execute(
        "DELETE FROM kb.indexed_observation WHERE version = %(version)s AND repository_id = %(repository)s "
        "AND sequence = ANY(%(sequences)s)",
        parameters,
    )
    done = connection.execute(
        sql.SQL("DELETE FROM {} WHERE sequence = ANY(%(sequences)s)").format(version.table), parameters
    )
    return done.rowcount


def _insert(
    connection: Connection, version: IndexVersion, repository_id: int, sequences: Sequence[int]
) -> int:
    if not sequences:
        return 0
    parameters = _parameters(version, repository_id, sequences)
    done = connection.execute(
        sql.SQL(
            """
            INSERT INTO {} (sequence, ordinal, repository_id, release_id, kind, prerelease, published_at, version_key,
                            tag, vector, words)
            SELECT c.sequence, c.ordinal, o.repository_id, o.release_id, c.kind, o.prerelease, o.published_at,
                   o.version_key, o.tag, e.vector, c.words
            FROM kb.chunk c JOIN kb.observation o USING (sequence)
            JOIN kb.embedding e ON e.model_id = %(model)s AND e.passage_hash = c.passage_hash
            WHERE c.sequence = ANY(%(sequences)s) AND c.chunker = %(cut)s AND c.passage_hash IS NOT NULL
            """
        ).format(version.table),
        parameters,
    )
    connection.execute(
        """
        INSERT INTO kb.index_term (version, term, repository_id, documents)
        SELECT %(version)s, term, %(repository)s, count(*) FROM kb.chunk c CROSS JOIN unnest(c.terms) AS term
        WHERE c.sequence = ANY(%(sequences)s) AND c.chunker = %(cut)s GROUP BY term
        ON CONFLICT (version, term, repository_id)
        DO UPDATE SET documents = kb.index_term.documents + excluded.documents
        """,
        parameters,
    )
    connection.execute(
        """
        INSERT INTO kb.indexed_observation (version, repository_id, sequence, release_id, chunks)
        SELECT %(version)s, o.repository_id, o.sequence, o.release_id, k.searchable
        FROM kb.observation o JOIN kb.chunked_observation k USING (sequence)
        WHERE o.sequence = ANY(%(sequences)s) AND k.chunker = %(cut)s
        """,
        parameters,
    )
    return done.rowcount


def _forget_superseded(connection: Connection, repository_id: int) -> None:
    """Chunks of observations that are neither current nor in any version that can be read go; the log keeps the bytes."""
    connection.execute(
        """
        WITH superseded AS (
            SELECT k.sequence, k.chunker FROM kb.chunked_observation k JOIN kb.observation o USING (sequence)
            WHERE o.repository_id = %(repository)s
            EXCEPT
            SELECT sequence, %(cut)s FROM (
                SELECT DISTINCT ON (release_id) sequence FROM kb.observation WHERE repository_id = %(repository)s
                ORDER BY release_id, observed_at DESC, sequence DESC) current
            EXCEPT
            SELECT i.sequence, v.chunker FROM kb.indexed_observation i JOIN kb.index_version v USING (version)
            WHERE i.repository_id = %(repository)s AND v.status IN ('building', 'ready')),
        chunks AS (DELETE FROM kb.chunk c USING superseded s WHERE c.sequence = s.sequence AND c.chunker = s.chunker)
        DELETE FROM kb.chunked_observation k USING superseded s
        WHERE k.sequence = s.sequence AND k.chunker = s.chunker
        """,
        {"repository": repository_id, "cut": CUT},
    )


def missing_rows(connection: Connection, version: IndexVersion, repository_id: int) -> tuple[int, int]:
    """(rows of the version's table, rows there should be) of one repository; for the check that counts reconcile."""
    rows = scalar(
        connection,
        sql.SQL("SELECT count(*) FROM {} WHERE repository_id = %s").format(version.table),
        (repository_id,),
    )
    wanted = scalar(
        connection,
        "SELECT coalesce(sum(chunks), 0) FROM kb.indexed_observation WHERE version = %s AND repository_id = %s",
        (version.version, repository_id),
    )
    return int(rows), int(wanted)


def _parameters(version: IndexVersion, repository_id: int, sequences: Sequence[int]) -> dict[str, Any]:
    return {
        "version": version.version,
        "model": version.model_id,
        "repository": repository_id,
        "sequences": list(sequences),
        "cut": CUT,
    }
