"""What each credential may still ask for, over all processes: one asks at a time, and all see the windows.

The budget's arithmetic is in `sources.budget`. A secret never comes here: a credential is its name.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime

import psycopg

from kb_platform.errors import DatabaseUnavailable
from kb_platform.sources.budget import Budget
from kb_platform.store.database import CONNECT_TIMEOUT_S, Connection, Database, scalar

# A walk of a long list takes minutes; a process that waits longer for its turn has met one that hangs.
LONGEST_WAIT_S = 900
SESSION = "kb.polling"


class Ledger:
    """Locks of this process on credentials and repositories, over a connection of its own: they go when it ends.

    Not for several threads at once: each lane of polling has its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._known: dict[str, Budget] = {}

    def close(self) -> None:
        """Give up all locks."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def budget(self, credential: str) -> Generator[Budget]:
        """The credential's budget, and the sole right to spend of it; what it is afterwards is kept.

        Raises DatabaseUnavailable, also when another process keeps the credential for too long.
        """
        connection = self._open()
        _lock(connection, "kb.credential", credential)
        budget = self._strictest(read_budget(connection, credential))
        self._known[credential] = budget
        try:
            yield budget
        finally:
            # Before another process may ask, it must see the window that this one was told of.
            if not connection.closed:
                save_budget(connection, budget)
            _unlock(connection, "kb.credential", credential)

    @contextmanager
    def repository(self, repository_id: int) -> Generator[bool]:
        """Whether this process may poll the repository now; False when another one does."""
        connection = self._open()
        mine = _try_lock(connection, "kb.poll", str(repository_id))
        try:
            yield mine
        finally:
            if mine:
                _unlock(connection, "kb.poll", str(repository_id))

    @contextmanager
    def session(self) -> Generator[bool]:
        """Whether this process is the one that polls what is due; False when another one is."""
        connection = self._open()
        mine = _try_lock(connection, SESSION, "")
        try:
            yield mine
        finally:
            if mine:
                _unlock(connection, SESSION, "")

    def _strictest(self, stored: Budget) -> Budget:
        """A window that could not be stored, because the database died first, still holds."""
        known = self._known.get(stored.credential)
        if (
            known is not None
            and known.blocked_until is not None
            and (stored.blocked_until is None or stored.blocked_until < known.blocked_until)
        ):
            stored.blocked_until, stored.blocked_reason = known.blocked_until, known.blocked_reason
        return stored

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            # Through the pool first: it starts a server of ours that is down.
            with self._database.snapshot():
                pass
            self._connection = psycopg.connect(
                self._database.url, autocommit=True, connect_timeout=int(CONNECT_TIMEOUT_S)
            )
            self._connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{LONGEST_WAIT_S}s",))
        return self._connection


def is_polling(connection: Connection) -> bool:
    """Whether some process polls what is due at this moment. Looks without touching the lock."""
    return bool(
        scalar(
            connection,
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND classid::bigint = hashtext(%s)::bigint & 4294967295 "
            "AND objid::bigint = hashtext(%s)::bigint & 4294967295 AND objsubid = 2)",
            _key(SESSION, ""),
        )
    )


def read_budget(connection: Connection, credential: str) -> Budget:
    """What is known of a credential; a fresh budget when nothing is."""
    row = connection.execute(
        "SELECT name, rate_limit, remaining, reset_at, blocked_until, blocked_reason, strikes FROM kb.credential "
        "WHERE name = %s",
        (credential,),
    ).fetchone()
    return Budget(*row) if row else Budget(credential)


def budgets(connection: Connection) -> dict[str, Budget]:
    """Every credential that was ever used."""
    rows = connection.execute(
        "SELECT name, rate_limit, remaining, reset_at, blocked_until, blocked_reason, strikes FROM kb.credential"
    )
    return {row[0]: Budget(*row) for row in rows}


def save_budget(connection: Connection, budget: Budget) -> None:
    """Keep what an answer said of a credential."""
    connection.execute(
        """
        INSERT INTO kb.credential (name, rate_limit, remaining, reset_at, blocked_until, blocked_reason, strikes,
                                   updated_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s, now())
        ON CONFLICT (name) DO UPDATE SET rate_limit = excluded.rate_limit, remaining = excluded.remaining,
            reset_at = excluded.reset_at, blocked_until = excluded.blocked_until,
            blocked_reason = excluded.blocked_reason, strikes = excluded.strikes, updated_at = now()
        """,
        (budget.credential, budget.rate_limit, budget.remaining, budget.reset_at, budget.blocked_until,
         budget.blocked_reason, budget.strikes),
    )  # fmt: skip


def tally(connection: Connection, credential: str, answers: Mapping[str, int], at: datetime) -> None:
    """Count requests by kind of answer in the hour of `at`."""
    for answer, requests in answers.items():
        connection.execute(
            """
            INSERT INTO kb.request_tally (hour, credential, answer, requests)
            VALUES (date_trunc('hour', %s::timestamptz, 'UTC'), %s, %s, %s)
            ON CONFLICT (hour, credential, answer)
            DO UPDATE SET requests = kb.request_tally.requests + excluded.requests
            """,
            (at, credential, answer, requests),
        )


def forget_tallies(connection: Connection, before: datetime) -> int:
    """Drop counts of hours before a time; returns how many rows went."""
    return connection.execute("DELETE FROM kb.request_tally WHERE hour < %s", (before,)).rowcount


def _key(space: str, name: str) -> tuple[str, str]:
    return space, name


def _lock(connection: Connection, space: str, name: str) -> None:
    try:
        connection.execute("SELECT pg_advisory_lock(hashtext(%s), hashtext(%s))", _key(space, name))
    except psycopg.errors.LockNotAvailable:
        raise DatabaseUnavailable(
            f"the credential {name} is in use by another process for over {LONGEST_WAIT_S} s",
            hint="find the process that polls and hangs, and end it",
        ) from None


def _try_lock(connection: Connection, space: str, name: str) -> bool:
    return bool(
        scalar(connection, "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", _key(space, name))
    )


def _unlock(connection: Connection, space: str, name: str) -> None:
    if connection.closed:
        # The lock went with its connection.
        return
    connection.execute("SELECT pg_advisory_unlock(hashtext(%s), hashtext(%s))", _key(space, name))
