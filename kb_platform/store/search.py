"""Reading candidates out of the served index: by words (BM25) and by vectors, under conditions.

Hands out numbers and stored columns; what they are worth together is `retrieval.ranking`'s. Up to a number of rows in
scope the scan is exact (2 M rows a second and core, recall 1.0); beyond, and only where nothing filters,
vectors come from the HNSW graph, and the exact scan steps in when the graph yields too few rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql

from kb_platform.store import index_versions
from kb_platform.store.chunks import sparsevec
from kb_platform.store.database import Connection, scalar
from kb_platform.store.index_versions import IndexVersion, has_graph

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Conditions:
    """What a row must be like. Empty tuples and None ask for nothing.

    `tags` are exact; a version range is resolved to its tags by whoever knows versions.
    """

    repositories: tuple[str, ...] = ()
    tags: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = ()
    published_from: datetime | None = None
    published_before: datetime | None = None
    prerelease: bool | None = None


class Row(NamedTuple):
    """A chunk of the index with all that is shown of it. `bm25` ≥ 0; `cosine` in [-1, 1]."""

    sequence: int
    ordinal: int
    repository: str
    release_id: int
    tag: str
    name: str
    kind: str
    role: str
    text: str
    headings: list[str]
    span_start: int
    span_end: int
    chunk_id: str
    url: str
    published_at: datetime | None
    prerelease: bool
    version_key: str | None
    bm25: float
    cosine: float


class Scope(NamedTuple):
    """The served version as a snapshot sees it, and the statistics that BM25 needs."""

    version: IndexVersion
    rows: int


def open_scope(connection: Connection) -> Scope | None:
    """The served version; None before the first promotion. Call inside a snapshot."""
    version = index_versions.active(connection)
    return Scope(version, version.chunks) if version else None


def document_frequencies(connection: Connection, version: int, terms: Sequence[int]) -> dict[int, int]:
    """In how many chunks of a version each term stands."""
    rows = connection.execute(
        "SELECT term, sum(documents) FROM kb.index_term WHERE version = %s AND term = ANY(%s) GROUP BY term",
        (version, list(terms)),
    ).fetchall()
    return {int(row[0]): int(row[1]) for row in rows}


def candidates(
    connection: Connection,
    version: IndexVersion,
    conditions: Conditions,
    *,
    words: Mapping[int, float],
    vector: Vector | None,
    most_words: int = 200,
    most_vectors: int = 100,
    exact_scan_rows: int = 50_000,
) -> list[Row]:
    """The best rows by BM25 and the nearest by cosine, each once, in no order.

    `words`: term id → query weight × idf. `vector`: of length 1, or None to search by words alone, in which case rows
    without any of the words fill up to `most_vectors`. Returns at least min(most_vectors, matching rows) rows.
    """
    use_graph = vector is not None and _graph_pays(connection, version, conditions, exact_scan_rows)
    rows = _fetch(
        connection, version, conditions, words, vector, most_words, most_vectors, exact=not use_graph
    )
    if use_graph and len(rows) < most_vectors:
        rows = _fetch(connection, version, conditions, words, vector, most_words, most_vectors, exact=True)
    return rows


def rows_in_scope(connection: Connection, version: IndexVersion, repositories: Sequence[str]) -> int:
    """How many rows the named repositories (none: all) have in a version."""
    return int(
        scalar(
            connection,
            "SELECT coalesce(sum(i.chunks), 0) FROM kb.index_repository i JOIN kb.repository r USING (repository_id) "
            "WHERE i.version = %s AND (%s OR lower(r.name) = ANY(%s))",
            (version.version, not repositories, [name.lower() for name in repositories]),
        )
    )


def count(connection: Connection, version: IndexVersion, conditions: Conditions) -> int:
    """How many rows meet the conditions."""
    where, parameters = _where(connection, conditions)
    return int(
        scalar(
            connection, sql.SQL("SELECT count(*) FROM {} WHERE {}").format(version.table, where), parameters
        )
    )


def nearest(
    connection: Connection, version: IndexVersion, vector: Vector, k: int, *, exact: bool
) -> list[tuple[int, int]]:
    """The keys (sequence, ordinal) of the k nearest rows, by scan or by graph; for measuring recall."""
    _choose_path(connection, exact=exact)
    rows = connection.execute(
        sql.SQL("SELECT sequence, ordinal FROM {} ORDER BY vector <=> %s LIMIT %s").format(version.table),
        (HalfVector(vector), k),
    ).fetchall()
    return [(int(row[0]), int(row[1])) for row in rows]


def sample_vectors(connection: Connection, version: IndexVersion, most: int) -> Vector:
    """Some stored vectors, spread evenly over the table; shape (n, dimension)."""
    rows = connection.execute(
        sql.SQL(
            "SELECT vector FROM (SELECT vector, row_number() OVER (ORDER BY sequence, ordinal) AS n FROM {}) v "
            "WHERE n %% greatest(1, (SELECT count(*) FROM {}) / %s) = 0 LIMIT %s"
        ).format(version.table, version.table),
        (most, most),
    ).fetchall()
    vectors = [row[0].to_numpy() for row in rows]
    return np.asarray(vectors, dtype=np.float32).reshape(len(vectors), version.dimension)


def _graph_pays(connection: Connection, version: IndexVersion, conditions: Conditions, limit: int) -> bool:
    # A filter makes a cluster of the matches: HNSW's iterative scan took 85 ms for a recall of 0.26 there. Whole-table
    # questions are what the graph is for.
    if conditions != Conditions():
        return False
    return version.chunks > limit and has_graph(connection, version.version)


def _fetch(
    connection: Connection,
    version: IndexVersion,
    conditions: Conditions,
    words: Mapping[int, float],
    vector: Vector | None,
    most_words: int,
    most_vectors: int,
    *,
    exact: bool,
) -> list[Row]:
    where, parameters = _where(connection, conditions)
    ids = sorted(words)
    parameters |= {
        "words": sparsevec(ids, [words[i] for i in ids]),
        "vector": None if vector is None else HalfVector(vector),
        "most_words": most_words,
        "most_vectors": most_vectors,
    }
    by_vector = sql.SQL("vector <=> %(vector)s") if vector is not None else sql.SQL("sequence DESC, ordinal")
    cosine = sql.SQL("1 - (i.vector <=> %(vector)s)") if vector is not None else sql.SQL("0.0")
    query = sql.SQL(
        """
        WITH chosen AS (
            (SELECT sequence, ordinal FROM {table} WHERE {where} AND (words <#> %(words)s::sparsevec) < 0
             ORDER BY words <#> %(words)s::sparsevec, sequence, ordinal LIMIT %(most_words)s)
            UNION
            (SELECT sequence, ordinal FROM {table} WHERE {where} ORDER BY {by_vector} LIMIT %(most_vectors)s)
        )
        SELECT i.sequence, i.ordinal, r.name, i.release_id, i.tag, o.name, i.kind, c.role, c.text, c.headings,
               c.span_start, c.span_end, encode(c.chunk_id, 'hex'), o.url, i.published_at, i.prerelease, i.version_key,
               -(i.words <#> %(words)s::sparsevec), {cosine}
        FROM chosen JOIN {table} i USING (sequence, ordinal)
        JOIN kb.chunk c ON c.sequence = i.sequence AND c.ordinal = i.ordinal AND c.chunker = %(cut)s
        JOIN kb.observation o ON o.sequence = i.sequence
        JOIN kb.repository r ON r.repository_id = i.repository_id
        """
    ).format(table=version.table, where=where, by_vector=by_vector, cosine=cosine)
    _choose_path(connection, exact=exact)
    parameters["cut"] = version.chunker
    return [Row(*row) for row in connection.execute(query, parameters)]


def _choose_path(connection: Connection, *, exact: bool) -> None:
    """Only the graph is an index scan by distance; without index scans the planner reads and sorts."""
    connection.execute("SELECT set_config('enable_indexscan', %s, true)", ("off" if exact else "on",))


def _where(connection: Connection, conditions: Conditions) -> tuple[sql.Composable, dict[str, Any]]:
    clauses: list[sql.SQL] = []
    parameters: dict[str, Any] = {}
    if conditions.repositories:
        clauses.append(sql.SQL("repository_id = ANY(%(repository_ids)s)"))
        parameters["repository_ids"] = _ids(connection, conditions.repositories)
    if conditions.tags is not None:
        clauses.append(sql.SQL("tag = ANY(%(tags)s)"))
        parameters["tags"] = list(conditions.tags)
    if conditions.kinds:
        clauses.append(sql.SQL("kind = ANY(%(kinds)s)"))
        parameters["kinds"] = list(conditions.kinds)
    if conditions.published_from is not None:
        clauses.append(sql.SQL("published_at >= %(published_from)s"))
        parameters["published_from"] = conditions.published_from
    if conditions.published_before is not None:
        clauses.append(sql.SQL("published_at < %(published_before)s"))
        parameters["published_before"] = conditions.published_before
    if conditions.prerelease is not None:
        clauses.append(sql.SQL("prerelease = %(prerelease)s"))
        parameters["prerelease"] = conditions.prerelease
    return (sql.SQL(" AND ").join(clauses) if clauses else sql.SQL("true")), parameters


def _ids(connection: Connection, names: Sequence[str]) -> list[int]:
    rows = connection.execute(
        "SELECT repository_id FROM kb.repository WHERE lower(name) = ANY(%s)",
        ([name.lower() for name in names],),
    ).fetchall()
    return [row[0] for row in rows]
