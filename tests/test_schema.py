"""Migrations: once each, in order, whoever runs them; and refused where guessing would begin."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Generator

import psycopg
import pytest
from psycopg import sql

from kb_platform.errors import MigrationError
from kb_platform.store.database import Database, scalar
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.schema import migrate, migrations

VIEWS = {
    "current_releases": "repository, release_id, tag, name, body, published_at, prerelease, draft, url, content_hash, observed_at",
    "release_observations": "repository, release_id, tag, name, body, published_at, prerelease, draft, url, content_hash, "
    "observed_at, sequence, origin, deleted",
    "current_chunks": "repository, release_id, tag, chunk_id, kind, span_start, span_end, text",
    "index_versions": "version, status",
    "quarantine": "reason, raw, first_seen_at, attempts",
    "repositories": "repository, verified_at",
}  # fmt: skip


@pytest.fixture
def empty(server: EmbeddedServer) -> Generator[Callable[[], Database]]:
    """Opens the test's own database, in which nothing is; each call is one process's view of it."""
    name = f"kb_empty_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    admin = psycopg.connect(server.url("postgres"), autocommit=True)
    admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    opened: list[Database] = []

    def open_it() -> Database:
        opened.append(Database(server.url(name), pool_size=2))
        return opened[-1]

    yield open_it
    for database in opened:
        database.close()
    admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    admin.close()


def test_migrations_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_from_nothing_and_then_nothing_more(empty: Callable[[], Database]) -> None:
    database = empty()
    assert migrate(database) == list(migrations())
    assert migrate(database) == []
    assert migrate(empty()) == []
    with database.snapshot() as connection:
        rows = connection.execute("SELECT number, checksum FROM kb.migration ORDER BY number").fetchall()
        assert rows == [(m.number, m.checksum) for m in migrations()]


def test_the_views_that_others_read_have_their_columns(database: Database) -> None:
    with database.snapshot() as connection:
        for view, columns in VIEWS.items():
            connection.execute(
                sql.SQL("SELECT {} FROM {}").format(
                    sql.SQL(", ").join(map(sql.Identifier, columns.split(", "))), sql.Identifier("kb", view)
                )
            )


def test_vectors_can_be_used_on_connections_made_before_the_migration(empty: Callable[[], Database]) -> None:
    """Also when another process was the one that migrated."""
    early, late = empty(), empty()
    for database in (early, late):
        with database.snapshot() as connection:
            connection.execute("SELECT 1")
    assert migrate(late)
    assert migrate(early) == []
    for database in (early, late):
        with database.snapshot() as connection:
            assert hasattr(scalar(connection, "SELECT '[1,2]'::halfvec"), "to_numpy")
            assert scalar(connection, "SHOW hnsw.iterative_scan") == "strict_order"


def test_threads_that_migrate_at_once(empty: Callable[[], Database]) -> None:
    ran: list[int] = []
    errors: list[BaseException] = []

    def run(database: Database) -> None:
        try:
            ran.append(len(migrate(database)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(empty(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(ran) == [0, 0, 0, len(migrations())]


def test_processes_that_migrate_at_once(empty: Callable[[], Database]) -> None:
    script = textwrap.dedent(
        """
        import sys
        from kb_platform.store.database import Database, scalar
        from kb_platform.store.schema import migrate
        database = Database(sys.argv[1], pool_size=2)
        with database.snapshot() as connection:
            connection.execute("SELECT 1")
        print(len(migrate(database)))
        with database.snapshot() as connection:
            assert hasattr(scalar(connection, "SELECT '[1]'::halfvec"), "to_numpy")
        database.close()
        """
    )
    url = empty().url
    processes = [
        subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(map(int, outputs)) == [0, 0, 0, len(migrations())]


def test_a_migration_that_changed_is_refused(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("UPDATE kb.migration SET checksum = repeat('0', 64) WHERE number = 1")
    with pytest.raises(MigrationError, match=r"migration 1 .* is not the one that was run"):
        migrate(database)


def test_a_database_of_newer_code_is_refused(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO kb.migration (number, name, checksum) VALUES (9999, 'from_tomorrow', 'x')"
        )
    with pytest.raises(MigrationError, match="migration 9999") as refused:
        migrate(database)
    assert "upgrade kb-platform" in (refused.value.hint or "")


def test_a_migration_that_fails_leaves_nothing(empty: Callable[[], Database]) -> None:
    database = empty()
    with database.transaction() as connection:
        # In the way of the last statements of the first migration.
        connection.execute("CREATE SCHEMA kb")
        connection.execute("CREATE TABLE kb.repositories (taken integer)")
    with pytest.raises(psycopg.errors.DuplicateTable):
        migrate(database)
    with database.transaction() as connection:
        assert scalar(connection, "SELECT to_regclass('kb.observation')") is None
        assert scalar(connection, "SELECT to_regclass('kb.migration')") is None
        connection.execute("DROP TABLE kb.repositories")
    assert migrate(database) == list(migrations())


def test_an_old_pgvector_is_refused(empty: Callable[[], Database]) -> None:
    database = empty()
    with database.transaction() as connection:
        connection.execute("CREATE EXTENSION vector")
        # As a server that was not upgraded has it.
        connection.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    with pytest.raises(MigrationError, match=r"pgvector 0\.7\.4, and 0\.8 or later is needed"):
        migrate(database)
    with database.snapshot() as connection:
        assert scalar(connection, "SELECT to_regnamespace('kb')") is None
