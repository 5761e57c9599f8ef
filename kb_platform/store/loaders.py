"""Whose turn it is to land a topic for a consumer group, over all processes: a lock that goes with its holder.

It keeps runs from doing the same work twice and tells a sensor that a run is alive; nothing is safe only because of it: two
that land at once are told apart by their offsets (`store.streams`).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import psycopg

from kb_platform.store.database import CONNECT_TIMEOUT_S, Connection, Database, scalar

SPACE = "kb.landing"


@contextmanager
def turn(database: Database, group: str, topic: str) -> Generator[bool]:
    """Whether the topic is this caller's to land now; False when another one lands it. Raises DatabaseUnavailable."""
    # Through the pool first: it starts a server of ours that is down.
    with database.snapshot():
        pass
    with psycopg.connect(database.url, autocommit=True, connect_timeout=int(CONNECT_TIMEOUT_S)) as connection:
        # It goes with the connection: nothing has to be given back.
        yield bool(
            scalar(connection, "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", _key(group, topic))
        )


def is_landing(connection: Connection, group: str, topic: str) -> bool:
    """Whether somebody has the turn at this moment. Looks without touching the lock."""
    return bool(
        scalar(
            connection,
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND classid::bigint = hashtext(%s)::bigint & 4294967295 "
            "AND objid::bigint = hashtext(%s)::bigint & 4294967295 AND objsubid = 2)",
            _key(group, topic),
        )
    )


def _key(group: str, topic: str) -> tuple[str, str]:
    return SPACE, f"{group}\n{topic}"
