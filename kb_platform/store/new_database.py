"""Making a database on a server that people gave us, when it is missing."""

from __future__ import annotations

import psycopg
from psycopg import sql

from kb_platform.errors import DatabaseUnavailable
from kb_platform.store.database import CONNECT_TIMEOUT_S, database_name, without_password


def ensure_database(url: str, *, through: str) -> bool:
    """Make sure that the database of `url` exists; returns whether it was made now.

    `through`: the URL of a database on the same server that does exist. Raises DatabaseUnavailable when the server cannot
    be reached, or when the login may not make databases.
    """
    try:
        _connect(url).close()
    except psycopg.OperationalError as error:
        if not _is_missing(error):
            raise DatabaseUnavailable(
                f"no connection to {without_password(url)}: {str(error).strip()}",
                hint="check KB_DAGSTER_DATABASE_URL (or KB_DATABASE_URL) and that the server runs",
            ) from error
    else:
        return False
    return _create(url, through)


def _create(url: str, through: str) -> bool:
    name = database_name(url)
    try:
        with _connect(through) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.errors.DuplicateDatabase:
        return False
    except psycopg.errors.UniqueViolation:
        # Another process made it in the same moment; PostgreSQL says it with this when the two overlap.
        return False
    except psycopg.Error as error:
        raise DatabaseUnavailable(
            f"the database {name} for Dagster's history is missing and could not be made: {str(error).strip()}",
            hint=f"let an administrator run CREATE DATABASE {name} with this login as its owner, "
            "or set KB_DAGSTER_DATABASE_URL to a database that exists",
        ) from error
    return True


def _connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True, connect_timeout=int(CONNECT_TIMEOUT_S))


def _is_missing(error: psycopg.OperationalError) -> bool:
    # libpq gives no SQLSTATE for a refused connection, only the server's sentence (or its code, in newer ones).
    return error.sqlstate == "3D000" or "does not exist" in str(error)
