"""Forgetting a repository: everything that the knowledge base has of it goes, in one transaction.

The only place that deletes from the log. What stays is that it was forgotten, and when. PostgreSQL gives the bytes on disk
free with its next VACUUM, and write-ahead logs and backups are the operator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import Rollback, sql

from kb_platform.errors import NotKnown
from kb_platform.store import index_versions
from kb_platform.store.database import Connection
from kb_platform.store.repositories import former_names, lock_repository


class Held(NamedTuple):
    """What the log has of a repository; `releases`: the current ones."""

    releases: int
    observations: int


class Forgotten(NamedTuple):
    """How many rows went. `passages`: texts that no other repository uses, and with them their `vectors`.

    `index_rows`: of all index versions together. `quarantined`: refused records.
    """

    name: str
    observations: int
    chunks: int
    passages: int
    vectors: int
    index_rows: int
    quarantined: int


def held(connection: Connection, repository_id: int) -> Held:
    """What would be forgotten."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM (SELECT DISTINCT ON (release_id) deleted FROM kb.observation "
        "WHERE repository_id = %(id)s ORDER BY release_id, observed_at DESC, sequence DESC) o WHERE NOT deleted), "
        "(SELECT count(*) FROM kb.observation WHERE repository_id = %(id)s)",
        {"id": repository_id},
    ).fetchone()
    return Held(*row) if row else Held(0, 0)


def names_without_repository(connection: Connection) -> list[str]:
    """Names of repositories that were forgotten or renamed, and that no repository has now: their partitions may go."""
    rows = connection.execute(
        "SELECT name FROM kb.forgotten_repository UNION SELECT former_name FROM kb.former_name ORDER BY 1"
    ).fetchall()
    known = {row[0].lower() for row in connection.execute("SELECT name FROM kb.repository")}
    return [row[0] for row in rows if row[0].lower() not in known]


def forget(connection: Connection, repository_id: int) -> Forgotten:
    """Remove everything of one repository. The caller's transaction is the unit; searches of others do not notice.

    Waits for whoever writes to the repository; work on it that is under way and writes later raises NotKnown there.
    Raises NotKnown for a repository that is not there.
    """
    return _forget(connection, repository_id, _claim(connection, repository_id))


def forget_if_empty(connection: Connection, repository_id: int) -> Forgotten | None:
    """Forget a repository of which the log has nothing; None, and nothing done, where it has something (by now)."""
    with connection.transaction() as attempt:
        name = _claim(connection, repository_id)
        if held(connection, repository_id).observations:
            raise Rollback(attempt)
        return _forget(connection, repository_id, name)
    return None


def _forget(connection: Connection, repository_id: int, name: str) -> Forgotten:
    former = former_names(connection, repository_id)
    index_rows = _from_versions(connection, repository_id)
    chunks, passages, vectors = _chunks(connection, repository_id)
    quarantined = _quarantined(connection, repository_id, [name, *former])
    observations = _observations(connection, repository_id)
    _note(connection, repository_id, observations)
    # Pages, absences, former names and the newest events of its releases go with the row.
    connection.execute("DELETE FROM kb.repository WHERE repository_id = %s", (repository_id,))
    return Forgotten(name, observations, chunks, passages, vectors, index_rows, quarantined)


def _claim(connection: Connection, repository_id: int) -> str:
    """Keep everybody else from the repository, in the order in which they lock it: its row, its watch, its log.

    The lock on the row lets others refer to it, or a poll that holds the watch would wait for us and we for it.
    """
    row = connection.execute(
        "SELECT name FROM kb.repository WHERE repository_id = %s FOR NO KEY UPDATE", (repository_id,)
    ).fetchone()
    if row is None:
        raise NotKnown("there is no repository to forget", hint="it was forgotten meanwhile")
    connection.execute("DELETE FROM kb.watch WHERE repository_id = %s", (repository_id,))
    lock_repository(connection, repository_id)
    return str(row[0])


def _quarantined(connection: Connection, repository_id: int, names: Sequence[str]) -> int:
    """Refused records of these names, and refused messages that name nobody and have the repository's number as their key.

    With a message go its headers and its dead letter; what was published of it is in the brokers' hands.
    """
    return connection.execute(
        "DELETE FROM kb.quarantined_record WHERE lower(repository) = ANY(%s) OR (repository IS NULL AND quarantine_id IN ("
        "SELECT m.quarantine_id FROM kb.quarantined_message m JOIN kb.repository r "
        "ON m.key = convert_to(r.external_id::text, 'UTF8') WHERE r.repository_id = %s))",
        ([one.lower() for one in names], repository_id),
    ).rowcount


def _from_versions(connection: Connection, repository_id: int) -> int:
    """From every version that has a table, served or not."""
    rows = 0
    for version in index_versions.versions(connection):
        try:
            with connection.transaction():
                rows += connection.execute(
                    sql.SQL("DELETE FROM {} WHERE repository_id = %s").format(version.table), (repository_id,)
                ).rowcount
        except psycopg.errors.UndefinedTable:
            # A retired version, dropped since it was listed.
            continue
    for table in ("index_term", "indexed_observation", "index_repository"):
        connection.execute(
            sql.SQL("DELETE FROM {} WHERE repository_id = %s").format(sql.Identifier("kb", table)),
            (repository_id,),
        )
    return rows


def _chunks(connection: Connection, repository_id: int) -> tuple[int, int, int]:
    """(chunks, passages that nobody else uses, their vectors) that went."""
    parameters = {"id": repository_id}
    connection.execute(
        "CREATE TEMPORARY TABLE forgotten_passage ON COMMIT DROP AS SELECT DISTINCT c.passage_hash FROM kb.chunk c "
        "JOIN kb.observation o USING (sequence) WHERE o.repository_id = %(id)s AND c.passage_hash IS NOT NULL",
        parameters,
    )
    chunks = connection.execute(
        "DELETE FROM kb.chunk c USING kb.observation o WHERE o.sequence = c.sequence AND o.repository_id = %(id)s",
        parameters,
    ).rowcount
    connection.execute(
        "DELETE FROM kb.chunked_observation k USING kb.observation o "
        "WHERE o.sequence = k.sequence AND o.repository_id = %(id)s",
        parameters,
    )
    # Another repository that is being cut may just find its text among the passages, and refer to it; one that is being
    # embedded may add a vector. Both hold these tables while they do.
    connection.execute("LOCK TABLE kb.passage, kb.embedding IN SHARE ROW EXCLUSIVE MODE")
    connection.execute(
        "DELETE FROM forgotten_passage f WHERE EXISTS (SELECT FROM kb.chunk c WHERE c.passage_hash = f.passage_hash)"
    )
    vectors = connection.execute(
        "DELETE FROM kb.embedding e USING forgotten_passage f WHERE e.passage_hash = f.passage_hash"
    ).rowcount
    passages = connection.execute(
        "DELETE FROM kb.passage p USING forgotten_passage f WHERE p.passage_hash = f.passage_hash"
    ).rowcount
    connection.execute("DROP TABLE forgotten_passage")
    return chunks, passages, vectors


def _observations(connection: Connection, repository_id: int) -> int:
    """The log's trigger lets these go, and nothing else of the same transaction."""
    connection.execute("SET LOCAL kb.forgetting = 'on'")
    observations = connection.execute(
        "DELETE FROM kb.observation WHERE repository_id = %s", (repository_id,)
    ).rowcount
    connection.execute("SET LOCAL kb.forgetting = 'off'")
    return observations


def _note(connection: Connection, repository_id: int, observations: int) -> None:
    """That it was forgotten, under each name that it had: whoever keeps something by a name can let go of it."""
    connection.execute(
        "INSERT INTO kb.forgotten_repository (name, forge, external_id, observations) "
        "SELECT n.name, r.forge, r.external_id, n.observations FROM kb.repository r CROSS JOIN LATERAL ("
        "SELECT r.name, %(observations)s::bigint UNION ALL "
        "SELECT f.former_name, 0 FROM kb.former_name f WHERE f.repository_id = r.repository_id"
        ") AS n (name, observations) WHERE r.repository_id = %(id)s",
        {"id": repository_id, "observations": observations},
    )
