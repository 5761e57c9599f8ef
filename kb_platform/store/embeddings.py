"""Models and the vectors of passages, each stored once for ever under (model, passage)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql

from kb_platform.embedding.model import EmbeddingModel, model_from_json
from kb_platform.errors import EmbeddingError
from kb_platform.store.chunks import CUT, Passage
from kb_platform.store.database import Connection, scalar

# The passages that the current releases of some repositories need in some model and do not have yet.
_MISSING = """
    SELECT DISTINCT c.passage_hash FROM (
        SELECT DISTINCT ON (repository_id, release_id) sequence, deleted, draft FROM kb.observation
        WHERE repository_id = ANY(%(repositories)s)
        ORDER BY repository_id, release_id, observed_at DESC, sequence DESC
    ) o JOIN kb.chunk c USING (sequence)
    WHERE NOT o.deleted AND NOT o.draft AND c.chunker = %(cut)s AND c.passage_hash IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM kb.embedding e
                      WHERE e.model_id = %(model)s AND e.passage_hash = c.passage_hash)
"""


class Missing(NamedTuple):
    """How much is to embed."""

    passages: int
    characters: int


def ensure_model(connection: Connection, model: EmbeddingModel) -> int:
    """The id of a model, made on first sight."""
    found = scalar(connection, "SELECT model_id FROM kb.model WHERE key = %s", (model.key,))
    if found is None:
        found = scalar(
            connection,
            "INSERT INTO kb.model (key, dimension, description) VALUES (%s, %s, %s) "
            "ON CONFLICT (key) DO UPDATE SET key = excluded.key RETURNING model_id",
            (model.key, model.dimension, model.model_dump_json()),
        )
    return int(found)


def model(connection: Connection, model_id: int) -> EmbeddingModel:
    """The model with this id, as it was described when first used."""
    return model_from_json(
        scalar(connection, "SELECT description::text FROM kb.model WHERE model_id = %s", (model_id,))
    )


def missing(connection: Connection, model_id: int, repository_ids: Sequence[int]) -> Missing:
    """How many passages (and characters) of these repositories have no vector of this model."""
    row = connection.execute(
        f"SELECT count(*), coalesce(sum(length(p.text)), 0) FROM ({_MISSING}) m JOIN kb.passage p USING (passage_hash)",
        _parameters(model_id, repository_ids),
    ).fetchone()
    return Missing(int(row[0]), int(row[1])) if row else Missing(0, 0)


def next_missing(
    connection: Connection, model_id: int, repository_ids: Sequence[int], *, limit: int
) -> list[Passage]:
    """The longest passages without a vector. Alike in length, so that a batch pads little; the longest first, so that
    memory runs out at once or not at all."""
    rows = connection.execute(
        f"SELECT p.passage_hash, p.text FROM ({_MISSING}) m JOIN kb.passage p USING (passage_hash) "
        "ORDER BY length(p.text) DESC, p.passage_hash LIMIT %(limit)s",
        _parameters(model_id, repository_ids) | {"limit": limit},
    ).fetchall()
    return [Passage(bytes(row[0]), row[1]) for row in rows]


def put(connection: Connection, model_id: int, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
    """Store vectors, shape (len(keys), dimension); those that are there already stay as they are.

    Raises EmbeddingError for vectors of another dimension than the model's, and for a vector without length or with a
    value that is no number.
    """
    dimension = scalar(connection, "SELECT dimension FROM kb.model WHERE model_id = %s", (model_id,))
    if vectors.shape != (len(keys), dimension):
        raise EmbeddingError(
            f"vectors of shape {vectors.shape} for {len(keys)} texts of a model of dimension {dimension}",
            hint="the server has another model than before: give it its own name; nothing of this slice was stored",
        )
    norms = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(norms).all() or (norms < 1e-6).any():
        raise EmbeddingError(
            f"{int((~np.isfinite(norms) | (norms < 1e-6)).sum())} of {len(keys)} vectors have no length or are no numbers",
            hint="the model or its server is damaged; nothing of this slice was stored",
        )
    connection.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS incoming_embedding (passage_hash bytea, vector halfvec) "
        "ON COMMIT DELETE ROWS"
    )
    statement = sql.SQL("COPY pg_temp.incoming_embedding FROM STDIN (FORMAT binary)")
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(["bytea", "halfvec"])
        for key, vector in zip(keys, vectors, strict=True):
            copy.write_row((key, HalfVector(vector)))
    # Two writers of the same passages take them in one order, so neither waits in a circle.
    connection.execute(
        "INSERT INTO kb.embedding SELECT %s, p.passage_hash, i.vector FROM pg_temp.incoming_embedding i "
        # A repository that was forgotten while its texts were embedded took them along.
        "JOIN kb.passage p USING (passage_hash) ORDER BY p.passage_hash FOR KEY SHARE OF p ON CONFLICT DO NOTHING",
        (model_id,),
    )


def norms(connection: Connection, model_id: int, repository_id: int) -> tuple[int, float, float]:
    """(vectors, least norm, greatest norm) of one repository's current chunks."""
    row = connection.execute(
        "SELECT count(*), coalesce(min(l2_norm(e.vector)), 1), coalesce(max(l2_norm(e.vector)), 1) FROM ("
        "SELECT DISTINCT ON (release_id) sequence, deleted, draft FROM kb.observation WHERE repository_id = %s "
        "ORDER BY release_id, observed_at DESC, sequence DESC) o JOIN kb.chunk c USING (sequence) "
        "JOIN kb.embedding e ON e.passage_hash = c.passage_hash AND e.model_id = %s "
        "WHERE NOT o.deleted AND NOT o.draft AND c.chunker = %s",
        (repository_id, model_id, CUT),
    ).fetchone()
    return (int(row[0]), float(row[1]), float(row[2])) if row else (0, 1.0, 1.0)


def _parameters(model_id: int, repository_ids: Sequence[int]) -> dict[str, Any]:
    return {"model": model_id, "repositories": list(repository_ids), "cut": CUT}
