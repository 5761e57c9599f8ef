"""The repositories that the knowledge base knows: names, numbers and when each was last verified.

A repository keeps its row, and so its log, for ever; its name may change. Names are compared without regard to case, and a
name that a repository had finds it until another repository takes that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kb_platform.errors import NotKnown, SourceRefused
from kb_platform.sources.release import repository_name
from kb_platform.store.database import Connection, Database, scalar

# What `repository_name` takes for the part behind the slash.
_LONGEST_PART = 100
_BY_NAME = """
    SELECT repository_id, name FROM kb.repository WHERE repository_id = coalesce(
        (SELECT repository_id FROM kb.repository WHERE lower(name) = lower(%(name)s)),
        (SELECT repository_id FROM kb.former_name WHERE lower(former_name) = lower(%(name)s)))
"""


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
    """The id of the repository with this name, or that had it; made on first sight."""
    found = connection.execute(_BY_NAME, {"name": name}).fetchone()
    if found is not None:
        return int(found[0])
    return int(
        scalar(
            connection,
            "INSERT INTO kb.repository (name) VALUES (%s) "
            "ON CONFLICT (lower(name)) DO UPDATE SET name = kb.repository.name RETURNING repository_id",
            (name,),
        )
    )


def find_repository(connection: Connection, name: str) -> tuple[int, str]:
    """The id and the present name of the repository with this name, or that had it.

    Raises NotKnown that names the nearest ones.
    """
    row = connection.execute(_BY_NAME, {"name": name}).fetchone()
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
    """One writer at a time for one repository, until the transaction ends.

    Raises NotKnown when the repository was forgotten meanwhile: whoever held the lock may have been the one who did it.
    """
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('kb.repository', %s))", (repository_id,)
    )
    if (
        connection.execute("SELECT FROM kb.repository WHERE repository_id = %s", (repository_id,)).rowcount
        == 0
    ):
        raise NotKnown(
            "the repository was forgotten while this was under way",
            hint="do it again if it is wanted after all",
        )


def lock_names(connection: Connection) -> None:
    """One at a time changes names, numbers or the watch list, until the transaction ends.

    Each of them touches several repositories, in orders of their own; without it two would wait for each other.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('kb.names', 0))")


# --- names and numbers ----------------------------------------------------------------------------------------


def identify(connection: Connection, repository_id: int, external_id: int) -> str | None:
    """Keep the number that a repository has at its forge.

    Returns None, or, with nothing kept, the name of another repository that has this number: the same one, known under
    two names. Raises SourceRefused when the repository has another number already: somebody else took its name, and
    their releases are not for its log.
    """
    lock_names(connection)
    row = connection.execute(
        "SELECT name, external_id FROM kb.repository WHERE repository_id = %s", (repository_id,)
    ).fetchone()
    if row is None:
        raise NotKnown("there is no repository to identify", hint="it was forgotten meanwhile")
    name, known = row
    if known is not None and known != external_id:
        raise SourceRefused(
            "replaced",
            f"{name} is another repository at its forge now (number {external_id}, in the log {known})",
            hint=f"`kb watch remove {name} --forget` and `kb watch add {name}` start anew with that one",
        )
    twin = scalar(
        connection,
        "SELECT other.name FROM kb.repository other JOIN kb.repository this USING (forge) "
        "WHERE this.repository_id = %s AND other.external_id = %s AND other.repository_id <> this.repository_id",
        (repository_id, external_id),
    )
    if twin is None and known is None:
        connection.execute(
            "UPDATE kb.repository SET external_id = %s WHERE repository_id = %s", (external_id, repository_id)
        )
    return twin


def rename_repository(connection: Connection, repository_id: int, new_name: str, at: datetime) -> None:
    """The forge calls a repository by a new name; the old one finds it still.

    Another repository that has the new name here gives way: the forge says whose it is. Raises BadRecord for what is no
    name, and SourceRefused where the name is that of a repository of another forge, which may keep it as well.
    """
    new_name = repository_name(new_name)
    lock_names(connection)
    row = connection.execute(
        "SELECT name, forge FROM kb.repository WHERE repository_id = %s", (repository_id,)
    ).fetchone()
    if row is None:
        raise NotKnown(f"there is no repository to call {new_name}", hint="it was forgotten meanwhile")
    old_name, forge = row
    if old_name == new_name:
        return
    if old_name.lower() != new_name.lower():
        _give_way(connection, new_name, forge, repository_id)
        connection.execute("DELETE FROM kb.former_name WHERE lower(former_name) = lower(%s)", (new_name,))
        connection.execute(
            "INSERT INTO kb.former_name (former_name, repository_id, renamed_at) VALUES (%s, %s, %s)",
            (old_name, repository_id, at),
        )
    _set_name(connection, repository_id, old_name, new_name)


def former_names(connection: Connection, repository_id: int) -> list[str]:
    """The names that a repository had and that still find it, sorted."""
    rows = connection.execute(
        "SELECT former_name FROM kb.former_name WHERE repository_id = %s ORDER BY lower(former_name)",
        (repository_id,),
    )
    return [row[0] for row in rows]


def present_names(connection: Connection) -> dict[str, str]:
    """Former name, in lower case → what the repository is called now; without names that another repository has now."""
    rows = connection.execute(
        "SELECT lower(f.former_name), r.name FROM kb.former_name f JOIN kb.repository r USING (repository_id) "
        "WHERE NOT EXISTS (SELECT FROM kb.repository other WHERE lower(other.name) = lower(f.former_name))"
    )
    return {row[0]: row[1] for row in rows}


def _give_way(connection: Connection, name: str, forge: str, for_id: int) -> None:
    """Whoever has `name` is called `OWNER/REPO.former-ID` from now on.

    It has a number of its own: the forge gave its name away, and as soon as it is looked up by its number it gets the name
    that it has now, so its watch stays. It has none: it was only ever known by its name, from files, most likely of the
    very repository that has the name now. The log is append-only, so the two cannot become one; what is left of it stays
    to be read until somebody has it forgotten. Its watch would ask for a name that no forge knows: it goes where the
    repository that gets the name is watched.
    """
    row = connection.execute(
        "SELECT repository_id, name, forge, external_id FROM kb.repository WHERE lower(name) = lower(%s)",
        (name,),
    ).fetchone()
    if row is None:
        return
    holder, held, its_forge, external_id = row
    if its_forge != forge:
        raise SourceRefused(
            "name-taken",
            f"the forge calls it {name} now, and that is the name of a repository of {its_forge} here",
            hint=f"`kb watch remove {name} --forget`, or watch only one of the two",
        )
    suffix = f".former-{holder}"
    owner, _, part = held.partition("/")
    _set_name(connection, holder, held, f"{owner}/{part[: _LONGEST_PART - len(suffix)].rstrip('.')}{suffix}")
    if external_id is None:
        connection.execute(
            "DELETE FROM kb.watch WHERE repository_id = %s "
            "AND EXISTS (SELECT FROM kb.watch WHERE repository_id = %s)",
            (holder, for_id),
        )


def _set_name(connection: Connection, repository_id: int, old_name: str, new_name: str) -> None:
    connection.execute(
        "UPDATE kb.repository SET name = %s WHERE repository_id = %s", (new_name, repository_id)
    )
    # Refused records know their repository by its name alone.
    connection.execute(
        "UPDATE kb.quarantined_record SET repository = %s WHERE lower(repository) = lower(%s)",
        (new_name, old_name),
    )


# --- what is known of them ------------------------------------------------------------------------------------


def mark_verified(connection: Connection, repository_ids: Sequence[int], at: datetime | None = None) -> None:
    """The whole of what the source says of these repositories at a time (now by default) was read and is in the log.

    Never moves back: of two who verify, the one that asked earlier may finish later.
    """
    # One order for all, or two imports of the same repositories would wait for each other.
    connection.execute(
        "UPDATE kb.repository SET verified_at = greatest(verified_at, coalesce(%s, now())) WHERE repository_id IN ("
        "SELECT repository_id FROM kb.repository WHERE repository_id = ANY(%s) ORDER BY repository_id "
        "FOR NO KEY UPDATE)",
        (at, list(repository_ids)),
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


def state_of_names(connection: Connection) -> int:
    """A number that is another one whenever a repository, its name or its tags may have changed."""
    return int(
        scalar(
            connection,
            "SELECT hashtextextended(concat_ws(' ', (SELECT max(sequence) FROM kb.observation), "
            "(SELECT count(*) FROM kb.forgotten_repository), (SELECT max(renamed_at) FROM kb.former_name)), 0)",
        )
    )
