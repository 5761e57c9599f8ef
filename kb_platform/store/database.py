"""Connections to the knowledge base's PostgreSQL.

`Database` is a pool with three ways to use it: `transaction` for writing, `snapshot` for reading a state that does not
move, `autocommit` for what PostgreSQL refuses inside a transaction. What is read or written is said elsewhere.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
from pgvector.psycopg import register_vector
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from kb_platform.errors import DatabaseUnavailable

Connection = psycopg.Connection[TupleRow]

CONNECT_TIMEOUT_S = 15.0
# Beyond the rows that an HNSW scan visits by itself, so that a filter still finds k rows; the search checks and
# falls back to the exact path, so these bound time, not correctness.
SEARCH_SETTINGS = {
    "hnsw.iterative_scan": "strict_order",
    "hnsw.max_scan_tuples": "40000",
    "hnsw.scan_mem_multiplier": "4",
    "hnsw.ef_search": "120",
}


class Database:
    """A pool of connections, opened when first used.

    `revive` is called when no connection can be made or one was lost; the embedded server starts again there. The
    transaction that lost its connection fails all the same: only its owner knows whether to do it again.
    """

    def __init__(self, url: str, *, pool_size: int = 8, revive: Callable[[], object] | None = None) -> None:
        self.url = url
        self._pool_size = pool_size
        self._revive = revive
        self._pool: ConnectionPool[Connection] | None = None
        self._opening = threading.Lock()

    @contextmanager
    def transaction(self) -> Generator[Connection]:
        """A connection inside one read-committed transaction; commits at the end, rolls back on an error."""
        with self._connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def snapshot(self) -> Generator[Connection]:
        """A read-only connection on which every statement sees the same state of the database."""
        with self._connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield connection

    @contextmanager
    def autocommit(self) -> Generator[Connection]:
        """A connection of its own outside any transaction (CREATE INDEX CONCURRENTLY, DROP with a lock timeout)."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=int(CONNECT_TIMEOUT_S)) as connection:
            yield connection

    def close(self) -> None:
        """Close the pool; the next use opens it again."""
        with self._opening:
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    @contextmanager
    def _connection(self) -> Generator[Connection]:
        pool = self._open_pool()
        try:
            connection = self._take(pool)
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise DatabaseUnavailable(
                f"no connection to {without_password(self.url)}: {error}",
                hint="check KB_DATABASE_URL and that the server runs; `kb doctor` looks closer",
            ) from error
        try:
            yield connection
        except psycopg.OperationalError as error:
            if not _is_lost(connection, error):
                raise
            if self._revive is not None:
                self._revive()
            raise DatabaseUnavailable(
                f"the connection to {without_password(self.url)} was lost: {str(error).strip()}",
                hint="the server stopped or restarted; do the same again, it goes on where it stopped",
            ) from error
        finally:
            pool.putconn(connection)

    def _take(self, pool: ConnectionPool[Connection]) -> Connection:
        try:
            return pool.getconn(timeout=CONNECT_TIMEOUT_S)
        except (PoolTimeout, psycopg.OperationalError):
            # The pool asks a dead server again and again; that it recovers may take longer than the pool waits.
            if self._revive is None:
                raise
            self._revive()
            return pool.getconn(timeout=CONNECT_TIMEOUT_S)

    def _open_pool(self) -> ConnectionPool[Connection]:
        with self._opening:
            if self._pool is None or self._pool.closed:
                self._probe()
                self._pool = ConnectionPool(
                    self.url,
                    min_size=1,
                    max_size=self._pool_size,
                    # A generic plan of a prepared vector search returned 0 of 10 rows.
                    kwargs={"prepare_threshold": None, "connect_timeout": int(CONNECT_TIMEOUT_S)},
                    configure=_configure,
                    check=self._check,
                    open=True,
                    reconnect_timeout=CONNECT_TIMEOUT_S,
                )
            return self._pool

    def _probe(self) -> None:
        """Find out at once, with the server's own words, whether a connection can be made."""
        try:
            psycopg.connect(self.url, connect_timeout=int(CONNECT_TIMEOUT_S)).close()
        except psycopg.OperationalError as error:
            if self._revive is not None:
                self._revive()
                return
            raise DatabaseUnavailable(
                f"no connection to {without_password(self.url)}: {str(error).strip()}",
                hint="check KB_DATABASE_URL and that the server runs; `kb doctor` looks closer",
            ) from error

    def _check(self, connection: Connection) -> None:
        """The pool replaces a connection for which this raises; a dead embedded server is started first."""
        try:
            connection.execute("SELECT 1")
            connection.rollback()
        except psycopg.OperationalError:
            if self._revive is not None:
                self._revive()
            raise


def _is_lost(connection: Connection, error: psycopg.OperationalError) -> bool:
    shut_down = (psycopg.errors.AdminShutdown, psycopg.errors.CrashShutdown, psycopg.errors.CannotConnectNow)
    return connection.closed or isinstance(error, shut_down)


def knows_vectors(connection: Connection) -> bool:
    """Whether pgvector's types were there when this connection was made."""
    return connection.adapters.types.get("halfvec") is not None


def _configure(connection: Connection) -> None:
    # The types exist once the schema is migrated; the migration itself uses no vector.
    known = connection.execute("SELECT 1 FROM pg_type WHERE typname = 'halfvec'").fetchone()
    if known is not None:
        register_vector(connection)
        for name, value in SEARCH_SETTINGS.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    connection.commit()


class ServerVersion(NamedTuple):
    """What the server is: its name for itself, its number (180004 for 18.4), pgvector's version."""

    name: str
    number: int
    pgvector: str | None


def server_version(connection: Connection) -> ServerVersion:
    """Which server answers."""
    return ServerVersion(
        scalar(connection, "SHOW server_version"),
        int(scalar(connection, "SHOW server_version_num")),
        scalar(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'"),
    )


def without_password(url: str) -> str:
    """A connection URL as it may be shown and logged.

    >>> without_password("postgresql://me:secret@db:5432/kb")
    'postgresql://me:***@db:5432/kb'
    """
    parts = urlsplit(url)
    # libpq takes passwords as parameters too.
    parts = parts._replace(query=re.sub(r"(?i)((?:^|&)\w*password=)[^&]*", r"\1***", parts.query))
    if parts.password is not None:
        host = parts.netloc.rpartition("@")[2]
        parts = parts._replace(netloc=f"{parts.username or ''}:***@{host}")
    return urlunsplit(parts)


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def database_name(url: str) -> str:
    """The database that a URL names."""
    return urlsplit(url).path.lstrip("/") or "postgres"


def scalar(connection: Connection, query: Any, parameters: Any = ()) -> Any:
    """The first column of the only row; None when there is no row."""
    row = connection.execute(query, parameters).fetchone()
    return None if row is None else row[0]
