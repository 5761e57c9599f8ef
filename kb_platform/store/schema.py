"""Migrations of the database schema.

Numbered `.sql` files in `migrations/`, each run once, in order, in one transaction, under an advisory lock. A file that
was run never changes again: its checksum is kept with its number, and a difference is an error, not a guess.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from psycopg import sql

from kb_platform.errors import MigrationError
from kb_platform.store.database import Connection, Database, knows_vectors, scalar

# Any number does, as long as it is ours alone; it is the one that all processes of a database agree on.
MIGRATION_LOCK = 7_261_409
LEAST_PGVECTOR = (0, 8)


@dataclass(frozen=True)
class Migration:
    """One `.sql` file."""

    number: int
    name: str
    statements: str

    @property
    def checksum(self) -> str:
        """sha256 of the file, as hex."""
        return hashlib.sha256(self.statements.encode()).hexdigest()


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of this version of the code, in order."""
    found: list[Migration] = []
    for file in files("kb_platform.store").joinpath("migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.number))


def migrate(database: Database, *, upto: int | None = None) -> list[Migration]:
    """Bring the schema up to date; returns what was run now.

    Safe to call from many processes at once. Raises MigrationError when the database was migrated by newer code, or by a
    file that has changed since.
    """
    wanted = [m for m in migrations() if upto is None or m.number <= upto]
    with database.transaction() as connection:
        made_before = not knows_vectors(connection)
        run = [] if _is_current(connection, wanted) else _run(connection, wanted)
    if made_before:
        # Connections from before the first migration, even if another process ran it, know no vectors.
        database.close()
    return run


def _run(connection: Connection, wanted: list[Migration]) -> list[Migration]:
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
    _prepare(connection)
    done = _done(connection)
    _refuse_unknown(done)
    run = [m for m in wanted if m.number not in done]
    for migration in run:
        connection.execute(sql.SQL(migration.statements))  # pyright: ignore[reportArgumentType] - our own file
        connection.execute(
            "INSERT INTO kb.migration (number, name, checksum) VALUES (%s, %s, %s)",
            (migration.number, migration.name, migration.checksum),
        )
    return run


def _is_current(connection: Connection, wanted: list[Migration]) -> bool:
    if scalar(connection, "SELECT to_regclass('kb.migration')") is None:
        return False
    done = _done(connection)
    _refuse_unknown(done)
    return len(done) >= len(wanted)


def _prepare(connection: Connection) -> None:
    connection.execute("CREATE SCHEMA IF NOT EXISTS kb")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS kb.migration (number integer PRIMARY KEY, name text NOT NULL, "
        "checksum text NOT NULL, run_at timestamptz NOT NULL DEFAULT now())"
    )
    available = scalar(
        connection, "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
    )
    installed = scalar(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    version = installed or available
    if version is None or tuple(int(part) for part in str(version).split(".")[:2]) < LEAST_PGVECTOR:
        raise MigrationError(
            f"the server offers pgvector {version or 'not at all'}, and 0.8 or later is needed",
            hint="install pgvector on the server, or leave KB_DATABASE_URL unset for the embedded one",
        )
    if installed is None:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")


def _done(connection: Connection) -> dict[int, str]:
    return dict(connection.execute("SELECT number, checksum FROM kb.migration ORDER BY number").fetchall())


def _refuse_unknown(done: dict[int, str]) -> None:
    known = {migration.number: migration for migration in migrations()}
    for number, checksum in done.items():
        if number not in known:
            raise MigrationError(
                f"the database has migration {number}, which this version of kb-platform does not know",
                hint="a newer version has used this database: upgrade kb-platform",
            )
        if known[number].checksum != checksum:
            raise MigrationError(
                f"migration {number} ({known[number].name}) is not the one that was run on this database",
                hint="install the released version of kb-platform; migrations never change once released",
            )
