"""Index versions: building → ready → active → (ready) → retired → dropped.

A version is one typed table, `kb.index_<version>`, of one model and one cut of chunks. Readers resolve the row of
`kb.serving`; promotion and rollback flip that row. Whether a version may be promoted is decided elsewhere (its gate);
what a version holds of each repository is `index_refresh`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from kb_platform.embedding.model import EmbeddingModel
from kb_platform.errors import IndexStateError, NotKnown
from kb_platform.store.chunks import CUT
from kb_platform.store.database import Connection, Database, scalar
from kb_platform.store.embeddings import ensure_model
from kb_platform.text.words import DIMENSIONS

# A reader resolves the pointer and then reads the table, within one statement timeout; a table goes long after that.
DROP_AFTER = timedelta(minutes=10)
# Up to this many rows (the default of KB_EXACT_SCAN_ROWS) a search reads them all, and a graph would never be used;
# over 46,000 real chunks it took 18 s to build.
LEAST_ROWS_FOR_GRAPH = 50_000
LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class IndexVersion:
    """One index version. `status` is 'active' for the one that is served."""

    version: int
    status: str
    model_id: int
    model: str
    dimension: int
    chunker: str
    created_at: datetime
    ready_at: datetime | None
    promoted_at: datetime | None
    repositories: int
    releases: int
    chunks: int
    provenance: dict[str, Any]
    gate: dict[str, Any] | None

    @property
    def table(self) -> sql.Identifier:
        """The table of its rows."""
        return table_of(self.version)


def table_of(version: int) -> sql.Identifier:
    """The table of a version's rows."""
    return sql.Identifier("kb", f"index_{version}")


_SELECT = """
    SELECT v.version, v.status, r.model_id, v.model, v.dimension, v.chunker, v.created_at, v.ready_at, v.promoted_at,
           v.repositories, v.releases, v.chunks, v.provenance, v.gate
    FROM kb.index_versions v JOIN kb.index_version r USING (version)
"""


def versions(connection: Connection) -> list[IndexVersion]:
    """All versions that still have a table, newest first."""
    rows = connection.execute(f"{_SELECT} WHERE v.status <> 'dropped' ORDER BY v.version DESC").fetchall()
    return [IndexVersion(*row) for row in rows]


def version(connection: Connection, number: int) -> IndexVersion:
    """One version. Raises NotKnown."""
    row = connection.execute(f"{_SELECT} WHERE v.version = %s", (number,)).fetchone()
    if row is None:
        raise NotKnown(f"there is no index version {number}", hint="`kb index list` shows them")
    return IndexVersion(*row)


def active(connection: Connection) -> IndexVersion | None:
    """The version that is served; None before the first promotion."""
    row = connection.execute(f"{_SELECT} WHERE v.status = 'active'").fetchone()
    return IndexVersion(*row) if row else None


def maintained(connection: Connection) -> list[IndexVersion]:
    """The versions that refreshes keep up to date: of the present cut, being built, ready or active."""
    return [
        found
        for found in versions(connection)
        if found.chunker == CUT and found.status in ("building", "ready", "active")
    ]


def create(connection: Connection, model: EmbeddingModel, provenance: dict[str, Any]) -> int:
    """A new, empty version of this model and the present cut."""
    model_id = ensure_model(connection, model)
    number = int(
        scalar(
            connection,
            "INSERT INTO kb.index_version (model_id, chunker, status, provenance) VALUES (%s, %s, 'building', %s) "
            "RETURNING version",
            (model_id, CUT, json.dumps(provenance)),
        )
    )
    # By default PostgreSQL moves values of rows over 2 kB, as those of large models are, out of the table; scanning them
    # took three times as long (1,024 dimensions).
    connection.execute(
        sql.SQL(
            """
            CREATE TABLE {table} (
                sequence bigint NOT NULL,
                ordinal integer NOT NULL,
                repository_id bigint NOT NULL,
                release_id bigint NOT NULL,
                kind text NOT NULL,
                prerelease boolean NOT NULL,
                published_at timestamptz,
                version_key text COLLATE "C",
                tag text NOT NULL,
                vector halfvec({dimension}) NOT NULL,
                words sparsevec({dimensions}) NOT NULL,
                PRIMARY KEY (sequence, ordinal)
            ) WITH (toast_tuple_target = 8160)
            """
        ).format(
            table=table_of(number), dimension=sql.Literal(model.dimension), dimensions=sql.Literal(DIMENSIONS)
        )
    )
    connection.execute(
        sql.SQL("CREATE INDEX {} ON {} (repository_id, version_key)").format(
            sql.Identifier(f"index_{number}_repository"), table_of(number)
        )
    )
    return number


def mark_ready(database: Database, number: int) -> None:
    """A version that holds everything: build its graph where it pays, gather statistics, call it ready."""
    build_graph(database, number)
    with database.transaction() as connection:
        connection.execute(sql.SQL("ANALYZE {}").format(table_of(number)))
        connection.execute(
            "UPDATE kb.index_version SET status = 'ready', ready_at = now() WHERE version = %s AND status = 'building'",
            (number,),
        )


def build_graph(database: Database, number: int, *, least_rows: int = LEAST_ROWS_FOR_GRAPH) -> bool:
    """The HNSW graph over a version's vectors, unless it has too few rows. Returns whether there is one now.

    Built concurrently, so refreshes go on. A build that died leaves an invalid index that `IF NOT EXISTS` would accept:
    it is dropped first.
    """
    name = f"index_{number}_graph"
    with database.autocommit() as connection:
        # One builder at a time, over all processes; the lock ends with the connection. Nobody may wait inside the
        # statement: a concurrent build waits for every statement that began before it, and the two would never end.
        while not scalar(
            connection, "SELECT pg_try_advisory_lock(hashtextextended('kb.index_graph', %s))", (number,)
        ):
            time.sleep(LOCK_POLL_S)
        valid = scalar(
            connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (f"kb.{name}",)
        )
        if valid:
            return True
        if valid is False:
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier("kb", name)))
        if count_rows(connection, number) < least_rows:
            return False
        connection.execute(
            sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING hnsw (vector halfvec_cosine_ops)").format(
                sql.Identifier(name), table_of(number)
            )
        )
        return True


def has_graph(connection: Connection, number: int) -> bool:
    """Whether a version has a valid HNSW graph."""
    return bool(
        scalar(
            connection,
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)",
            (f"kb.index_{number}_graph",),
        )
    )


def invalid_indexes(connection: Connection) -> list[str]:
    """Indexes whose concurrent build died; PostgreSQL keeps them up to date and never uses them."""
    rows = connection.execute(
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'kb' AND NOT i.indisvalid ORDER BY 1"
    ).fetchall()
    return [row[0] for row in rows]


def count_rows(connection: Connection, number: int) -> int:
    """The rows of a version's table."""
    return int(scalar(connection, sql.SQL("SELECT count(*) FROM {}").format(table_of(number))))


def count_without_length(connection: Connection, number: int) -> int:
    """The rows of a version whose vector has no length: a cosine distance to them is no number."""
    return int(
        scalar(
            connection,
            sql.SQL("SELECT count(*) FROM {} WHERE l2_norm(vector) < 1e-6").format(table_of(number)),
        )
    )


def promote(
    connection: Connection, number: int, *, gate: dict[str, Any], forced: bool, action: str = "promote"
) -> None:
    """Serve this version from the end of this transaction on; the one before stays ready, older ones retire.

    Raises IndexStateError unless the version is ready (or active already, which changes nothing).
    """
    _lock_serving(connection)
    wanted = version(connection, number)
    now = active(connection)
    if wanted.status == "active":
        return
    if wanted.status != "ready":
        raise IndexStateError(
            f"index version {number} is {wanted.status}, not ready",
            hint="`kb refresh` completes a version being built; a retired one must be built anew",
        )
    previous = now.version if now else None
    connection.execute(
        "INSERT INTO kb.serving (version, previous_version) VALUES (%s, %s) ON CONFLICT (only_row) "
        "DO UPDATE SET version = excluded.version, previous_version = excluded.previous_version",
        (number, previous),
    )
    connection.execute(
        "UPDATE kb.index_version SET promoted_at = now(), gate = %s WHERE version = %s",
        (json.dumps(gate), number),
    )
    connection.execute(
        "INSERT INTO kb.promotion (version, previous_version, action, forced, gate) VALUES (%s, %s, %s, %s, %s)",
        (number, previous, action, forced, json.dumps(gate)),
    )
    connection.execute(
        "UPDATE kb.index_version SET status = 'retired', retired_at = now() "
        "WHERE status = 'ready' AND promoted_at IS NOT NULL AND version <> %s AND version IS DISTINCT FROM %s",
        (number, previous),
    )


def record_gate(connection: Connection, number: int, gate: dict[str, Any]) -> None:
    """Keep what the gate found, whether or not it let the version pass."""
    connection.execute("UPDATE kb.index_version SET gate = %s WHERE version = %s", (json.dumps(gate), number))


def previous(connection: Connection) -> int | None:
    """The version that was served before the active one."""
    return scalar(connection, "SELECT previous_version FROM kb.serving")


def retire(connection: Connection, number: int) -> None:
    """Give up a version that is not served; its table goes later. Raises IndexStateError for the active one."""
    _lock_serving(connection)
    if version(connection, number).status == "active":
        raise IndexStateError(f"index version {number} is served", hint="promote another one first")
    connection.execute(
        "UPDATE kb.index_version SET status = 'retired', retired_at = now() WHERE version = %s "
        "AND status IN ('building', 'ready')",
        (number,),
    )
    connection.execute("UPDATE kb.serving SET previous_version = NULL WHERE previous_version = %s", (number,))


def _lock_serving(connection: Connection) -> None:
    """No version is promoted while another changes its status, or the pointer could end on a retired one."""
    connection.execute("LOCK TABLE kb.serving IN SHARE ROW EXCLUSIVE MODE")


def drop_retired(database: Database, *, older_than: timedelta = DROP_AFTER) -> list[int]:
    """Drop the tables of versions retired for a while. One that a reader still holds is left for the next time."""
    with database.snapshot() as connection:
        due = [
            row[0]
            for row in connection.execute(
                "SELECT version FROM kb.index_version WHERE status = 'retired' AND retired_at <= now() - %s "
                "ORDER BY version",
                (older_than,),
            )
        ]
    return [number for number in due if _drop(database, number)]


def _drop(database: Database, number: int) -> bool:
    try:
        with database.transaction() as connection:
            connection.execute("SET LOCAL lock_timeout = '2s'")
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table_of(number)))
            for table in ("index_term", "indexed_observation", "index_repository"):
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE version = %s").format(sql.Identifier("kb", table)),
                    (number,),
                )
            connection.execute("UPDATE kb.index_version SET status = 'dropped' WHERE version = %s", (number,))
    except psycopg.errors.LockNotAvailable:
        return False
    return True
