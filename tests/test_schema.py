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
    "observed_at, sequence, origin, deleted, revised_at",
    "current_chunks": "repository, release_id, tag, chunk_id, kind, span_start, span_end, text",
    "index_versions": "version, status",
    "quarantine": "reason, raw, first_seen_at, attempts, topic, topic_id, partition, offset, timestamp, key, headers, has_value, "
    "dead_letter_at",
    "repositories": "repository, verified_at",
    "watched_repositories": "repository, source, api_url, external_id, every_s, stale_after_s, added_at, due_at, polled_at, "
    "verified_at, outcome, truncated, failures, reason, detail, failing_since",
    "credentials": "credential, rate_limit, remaining, reset_at, blocked_until, blocked_reason, updated_at",
    "alerts": "alert_id, kind, subject, severity, message, raised_at, last_seen_at, resolved_at, told_at, last_error",
    "streams": "consumer_group, topic, partition, topic_id, next_offset, low, high, lag, records, bytes, quarantined, landed_at, "
    "looked_at, unreachable_since, trouble, trouble_detail, trouble_since",
    "stream_resets": "reset_id, at, consumer_group, topic, partition, from_topic_id, to_topic_id, from_offset, to_offset, trouble, "
    "requested_by",
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


# A log of the first schema: numbers, an edit, a deletion, chunks, a vector, a refused record.
FIRST = (
    "INSERT INTO kb.repository (name, external_id, verified_at) VALUES ('acme/tool', 7, '2026-05-01Z'), ('acme/b', NULL, NULL)",
    (
        "INSERT INTO kb.observation (repository_id, release_id, observed_at, origin, content_hash, deleted, tag, name, body, "
        "prerelease, draft, url, raw) SELECT repository_id, n % 2, '2026-05-01Z'::timestamptz + n * interval '1 h', 'test', "
        "sha256(n::text::bytea), n = 3, 'v' || n, '', 'body ' || n, false, false, '', 'raw' "
        "FROM kb.repository, generate_series(1, 3) n"
    ),
    "INSERT INTO kb.passage VALUES ('\\x01', 'a passage')",
    "INSERT INTO kb.model (key, dimension, description) VALUES ('m', 2, '{}')",
    "INSERT INTO kb.embedding VALUES (1, '\\x01', '[1,2]')",
    (
        "INSERT INTO kb.chunk (sequence, chunker, ordinal, chunk_id, role, kind, span_start, span_end, text, headings, reference, "
        "passage_hash) SELECT sequence, 'cut', 0, '\\x02', 'item', 'fix', 0, 4, 'body', '{}', '{}', '\\x01' FROM kb.observation"
    ),
    "INSERT INTO kb.chunked_observation SELECT sequence, 'cut', 1, 1 FROM kb.observation",
    (
        "INSERT INTO kb.quarantined_record (fingerprint, repository, origin, reason, detail, raw, raw_bytes) "
        "VALUES ('\\x03', 'acme/tool', 'test', 'not-json', '', 'x', 1)"
    ),
)


FIRST_NAMES = (
    "repository", "observation", "quarantined_record", "passage", "chunk", "chunked_observation", "model", "embedding",
    "release_observations", "current_releases", "current_chunks", "quarantine", "repositories",
)  # fmt: skip


def columns_of(database: Database) -> dict[str, list[str]]:
    """The columns of the tables and views of the first schema, as they are now, in their order."""
    with database.snapshot() as connection:
        rows = connection.execute(
            "SELECT table_name, array_agg(column_name::text ORDER BY ordinal_position) FROM information_schema.columns "
            "WHERE table_schema = 'kb' AND table_name = ANY(%s) GROUP BY table_name",
            (list(FIRST_NAMES),),
        )
        return dict(rows.fetchall())


def contents(database: Database, columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """Every row of these tables and views, of these columns."""
    with database.snapshot() as connection:
        return {
            name: sorted(
                str(row)
                for row in connection.execute(
                    sql.SQL("SELECT ROW({})::text FROM {}").format(
                        sql.SQL(", ").join(map(sql.Identifier, chosen)), sql.Identifier("kb", name)
                    )
                )
            )
            for name, chosen in columns.items()
        }


def test_the_first_schema_is_migrated_with_all_that_is_in_it(empty: Callable[[], Database]) -> None:
    database = empty()
    assert [m.number for m in migrate(database, upto=1)] == [1]
    with database.transaction() as connection:
        for statement in FIRST:
            connection.execute(statement)  # pyright: ignore[reportArgumentType]
    columns = columns_of(database)
    before = contents(database, columns)
    assert len(before) == len(FIRST_NAMES)
    assert all(before.values())
    # It is in use: a reader has its connection open all the while.
    reader = empty()
    with reader.snapshot() as connection:
        assert scalar(connection, "SELECT count(*) FROM kb.observation") == 6
    assert [m.number for m in migrate(database)] == [m.number for m in migrations()[1:]]
    assert contents(database, columns) == before
    assert contents(reader, columns) == before
    # Views only get columns behind those that they had.
    assert all(now[: len(columns[name])] == columns[name] for name, now in columns_of(database).items())
    with database.transaction() as connection:
        # What was there is GitHub's, and another forge may use the same numbers.
        assert connection.execute("SELECT DISTINCT forge FROM kb.repository").fetchall() == [("github",)]
        connection.execute(
            "INSERT INTO kb.repository (name, forge, external_id) VALUES ('acme/c', 'elsewhere', 7)"
        )
    with pytest.raises(psycopg.errors.UniqueViolation), database.transaction() as connection:
        connection.execute("INSERT INTO kb.repository (name, external_id) VALUES ('acme/d', 7)")
    for statement in (
        "DELETE FROM kb.observation",
        "UPDATE kb.observation SET tag = 'x'",
        "TRUNCATE kb.observation CASCADE",
    ):
        with (
            pytest.raises(psycopg.errors.RaiseException, match="append-only"),
            database.transaction() as connection,
        ):
            connection.execute(statement)  # pyright: ignore[reportArgumentType]
    # The number goes on where it was.
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO kb.observation (repository_id, release_id, observed_at, origin, content_hash, tag, name, body, "
            "prerelease, draft, url, raw) VALUES (1, 9, now(), 'test', '', 'v9', '', '', false, false, '', '')"
        )
        assert scalar(connection, "SELECT max(sequence) FROM kb.observation") == 7


def test_what_is_watched_is_a_repository_and_goes_with_it(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO kb.repository (name) VALUES ('acme/tool')")
        connection.execute(
            "INSERT INTO kb.watch (repository_id, source, added_at, due_at) VALUES (1, 'github', now(), now())"
        )
        connection.execute("INSERT INTO kb.former_name (former_name, repository_id) VALUES ('acme/old', 1)")
        connection.execute("INSERT INTO kb.absence VALUES (1, 1, 0, now(), NULL)")
        connection.execute("INSERT INTO kb.page VALUES (1, 'token', 0, 'x', NULL, NULL, 0, '{}', now())")
    wrong = (
        "UPDATE kb.watch SET source = 'elsewhere'",
        "UPDATE kb.watch SET every_s = 0",
        "UPDATE kb.watch SET stale_after_s = -1",
        "UPDATE kb.watch SET outcome = 'fine'",
        "INSERT INTO kb.watch (repository_id, source, added_at, due_at) VALUES (2, 'github', now(), now())",
        "INSERT INTO kb.former_name (former_name, repository_id) VALUES ('ACME/Old', 1)",
    )
    for statement in wrong:
        with pytest.raises(psycopg.IntegrityError), database.transaction() as connection:
            connection.execute(statement)  # pyright: ignore[reportArgumentType]
    with database.transaction() as connection:
        connection.execute("DELETE FROM kb.repository")
        for table in ("watch", "former_name", "absence", "page"):
            assert scalar(connection, f"SELECT count(*) FROM kb.{table}") == 0


def test_of_an_alert_that_lasts_there_is_one_row(database: Database) -> None:
    raise_it = (
        "INSERT INTO kb.alert (kind, subject, severity, message, raised_at, last_seen_at) "
        "VALUES ('stale', 'acme/tool', 'error', 'x', now(), now())"
    )
    with database.transaction() as connection:
        connection.execute(raise_it)
    with pytest.raises(psycopg.errors.UniqueViolation), database.transaction() as connection:
        connection.execute(raise_it)
    with database.transaction() as connection:
        connection.execute("UPDATE kb.alert SET resolved_at = now()")
        connection.execute(raise_it)
        assert scalar(connection, "SELECT count(*) FROM kb.alerts") == 2


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
