"""Connections: what is committed, what is seen, and what an error says."""

from __future__ import annotations

import psycopg
import pytest

from kb_platform.errors import DatabaseUnavailable
from kb_platform.store.database import (
    Database,
    database_name,
    scalar,
    server_version,
    with_database,
    without_password,
)


def test_a_transaction_commits_or_leaves_nothing(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("CREATE TABLE seen (number integer)")
    with pytest.raises(ZeroDivisionError), database.transaction() as connection:
        connection.execute("INSERT INTO seen VALUES (1)")
        raise ZeroDivisionError
    with pytest.raises(psycopg.errors.UndefinedColumn), database.transaction() as connection:
        connection.execute("INSERT INTO seen VALUES (2)")
        connection.execute("SELECT nothing")
    with database.snapshot() as connection:
        assert scalar(connection, "SELECT count(*) FROM seen") == 0


def test_a_snapshot_stands_still_and_writes_nothing(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute("CREATE TABLE seen (number integer)")
    with database.snapshot() as connection:
        assert scalar(connection, "SELECT count(*) FROM seen") == 0
        with database.transaction() as other:
            other.execute("INSERT INTO seen VALUES (1)")
        assert scalar(connection, "SELECT count(*) FROM seen") == 0
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("INSERT INTO seen VALUES (2)")
    with database.snapshot() as connection:
        assert scalar(connection, "SELECT count(*) FROM seen") == 1


def test_autocommit_is_outside_of_any_transaction(database: Database) -> None:
    with database.autocommit() as connection:
        connection.execute("CREATE TABLE seen (number integer)")
        # PostgreSQL refuses this inside a transaction.
        connection.execute("CREATE INDEX CONCURRENTLY seen_number ON seen (number)")
    with database.snapshot() as connection:
        assert scalar(
            connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'seen_number'::regclass"
        )


def test_it_opens_again_after_it_was_closed(database: Database) -> None:
    for _ in range(2):
        with database.snapshot() as connection:
            assert server_version(connection).number >= 160_000
        database.close()
    database.close()


def test_no_connection_is_an_error_for_people_and_shows_no_password() -> None:
    database = Database("postgresql://me:secret@127.0.0.1:1/kb?connect_timeout=2")
    with pytest.raises(DatabaseUnavailable, match="no connection to") as raised, database.snapshot():
        pass
    assert "secret" not in str(raised.value)
    assert "KB_DATABASE_URL" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@db:5432/kb", "postgresql://me:***@db:5432/kb"),
        ("postgresql://db/kb?user=me&password=secret&x=1", "postgresql://db/kb?user=me&password=***&x=1"),
        ("postgresql://db/kb?sslpassword=secret", "postgresql://db/kb?sslpassword=***"),
        ("postgresql://me:se%40cret@a:1,b:2/kb?password=x", "postgresql://me:***@a:1,b:2/kb?password=***"),
        (
            "postgresql://postgres@/kb?host=%2Ftmp%2Fpassword%3D",
            "postgresql://postgres@/kb?host=%2Ftmp%2Fpassword%3D",
        ),
    ],
)
def test_passwords_are_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_another_database_on_the_same_server() -> None:
    url = "postgresql://me@/kb?host=%2Ftmp%2Fx"
    assert with_database(url, "kb_dagster") == "postgresql://me@/kb_dagster?host=%2Ftmp%2Fx"
    assert database_name(url) == "kb"
    assert database_name("postgresql://me@db") == "postgres"
