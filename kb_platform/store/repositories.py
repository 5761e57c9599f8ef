"""The repositories that the knowledge base knows: names, numbers and when each was last verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kb_platform.errors import NotKnown
from kb_platform.store.database import Connection, Database, scalar


@dataclass(frozen=True)
class Repository:
    """A repository and what the served index holds of it."""

    name: str
    releases: int
    chunks: int
    vectors: int
    verified_at: datetime | None
    refreshed_at: datetime | None
    pending: bool
    """Whether the log has observations that the served index does not reflect yet."""


def ensure_repository(connection: Connection, name: str) -> int:
    """The id of a repository, made on first sight. Names are compared without regard to case."""
    found = scalar(
        connection, "SELECT repository_id FROM kb.repository WHERE lower(name) = lower(%s)", (name,)
    )
    if found is None:
        found = scalar(
            connection,
            "INSERT INTO kb.repository (name) VALUES (%s) "
            "ON CONFLICT (lower(name)) DO UPDATE SET name = kb.repository.name RETURNING repository_id",
            (name,),
        )
    return int(found)


def find_repository(connection: Connection, name: str) -> tuple[int, str]:
    """The id and the stored spelling of a repository. Raises NotKnown that names the nearest ones."""
    row = connection.execute(
        "SELECT repository_id, name FROM kb.repository WHERE lower(name) = lower(%s)", (name,)
    ).fetchone()
    if row is not None:
        return int(row[0]), str(row[1])
    known = repository_names(connection)
    part = name.rpartition("/")[2].lower()
    near = [other for other in known if part and part in other.lower()] or known[:8]
    hint = f"known are {', '.join(near)}" if near else "nothing is imported yet: `kb import PATH`"
    raise NotKnown(f"the repository {name} is not in the knowledge base", hint=hint)


def repository_names(connection: Connection) -> list[str]:
    """All names, sorted."""
    return [row[0] for row in connection.execute("SELECT name FROM kb.repository ORDER BY lower(name)")]


def lock_repository(connection: Connection, repository_id: int) -> None:
    """One writer at a time for one repository, until the transaction ends."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('kb.repository', %s))", (repository_id,)
    )


def mark_verified(connection: Connection, repository_ids: Sequence[int]) -> None:
    """The whole of what the source says of these repositories was read and is in the log now."""
    connection.execute(
        "UPDATE kb.repository SET verified_at = now() WHERE repository_id = ANY(%s)", (list(repository_ids),)
    )


def verified_at(connection: Connection, names: Sequence[str]) -> dict[str, datetime | None]:
    """When each repository was last verified."""
    rows = connection.execute(
        "SELECT name, verified_at FROM kb.repository WHERE name = ANY(%s)", (list(names),)
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def tags_by_repository(connection: Connection) -> dict[str, list[str]]:
    """The tags of every repository's current releases, newest first; for understanding questions."""
    rows = connection.execute(
        "SELECT r.name, array_agg(o.tag ORDER BY o.published_at DESC NULLS LAST, o.sequence DESC) FROM ("
        "SELECT DISTINCT ON (repository_id, release_id) * FROM kb.observation "
        "ORDER BY repository_id, release_id, observed_at DESC, sequence DESC) o "
        "JOIN kb.repository r USING (repository_id) WHERE NOT o.deleted AND NOT o.draft GROUP BY r.name ORDER BY r.name"
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def repositories(database: Database) -> list[Repository]:
    """Every repository with its counts, sorted by name."""
    with database.snapshot() as connection:
        rows = connection.execute(
            """
            SELECT r.name, v.releases, coalesce(i.chunks, 0), r.verified_at, i.refreshed_at,
                   coalesce((SELECT max(o.sequence) FROM kb.observation o WHERE o.repository_id = r.repository_id), 0)
                       > coalesce(i.log_sequence, 0)
            FROM kb.repository r JOIN kb.repositories v ON v.repository = r.name
            LEFT JOIN kb.serving s ON true
            LEFT JOIN kb.index_repository i ON i.version = s.version AND i.repository_id = r.repository_id
            ORDER BY lower(r.name)
            """
        ).fetchall()
    return [Repository(row[0], row[1], row[2], row[2], row[3], row[4], row[5]) for row in rows]


def newest_observation(connection: Connection) -> int:
    """The last observation of any repository; when it moves, names and tags may have."""
    return int(scalar(connection, "SELECT coalesce(max(sequence), 0) FROM kb.observation"))
