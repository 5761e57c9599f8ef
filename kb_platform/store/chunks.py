"""Chunks and passages as they are stored: put once for an observation, never changed.

`CUT` names how chunks are made (chunker, words, passage text): a change of any of them is another cut, whose chunks lie
beside the old ones until no index version needs those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kb_platform.store.copying import copy_rows
from kb_platform.store.database import Connection
from kb_platform.store.release_log import CURRENT, StoredRelease, current_releases
from kb_platform.text.chunk import CHUNKER, Chunk
from kb_platform.text.cleaning import EMBEDDING_TEXT
from kb_platform.text.words import DIMENSIONS, WORDS, TermWeights

CUT = f"{CHUNKER}/{WORDS}/{EMBEDDING_TEXT}"


@dataclass(frozen=True)
class Passage:
    """A text as it is embedded; `key` is its sha256."""

    key: bytes
    text: str


@dataclass(frozen=True)
class CutChunk:
    """A chunk with what retrieval needs of it; `passage` and `words` are None for what is not searched."""

    chunk: Chunk
    chunk_id: bytes
    passage: Passage | None
    words: TermWeights | None


@dataclass(frozen=True)
class ChunkCounts:
    """What is stored for the current releases of one repository."""

    releases: int
    chunked: int
    chunks: int
    searchable: int
    by_kind: dict[str, int]


def not_chunked(connection: Connection, repository_id: int) -> list[StoredRelease]:
    """The current releases (drafts aside) whose observation has no chunks of the present cut yet."""
    done = {
        row[0]
        for row in connection.execute(
            "SELECT k.sequence FROM kb.chunked_observation k JOIN kb.observation o USING (sequence) "
            "WHERE o.repository_id = %s AND k.chunker = %s",
            (repository_id, CUT),
        )
    }
    releases = current_releases(connection, repository_id)
    return [found for found in releases if found.sequence not in done and not found.release.draft]


def put(connection: Connection, cut: Sequence[tuple[int, Sequence[CutChunk]]]) -> None:
    """Store the chunks of observations, given as (sequence, chunks). Idempotent by observation.

    The caller holds the repository's lock.
    """
    cut = _without_done(connection, cut)
    passages = {c.passage.key: c.passage.text for _, chunks in cut for c in chunks if c.passage}
    # In the order of their keys, so that two writers of the same passages never wait for each other in a circle.
    keys = sorted(passages)
    connection.execute(
        "INSERT INTO kb.passage (passage_hash, text) SELECT * FROM unnest(%s::bytea[], %s::text[]) "
        "ON CONFLICT DO NOTHING",
        (keys, [passages[key] for key in keys]),
    )
    columns = (
        "sequence", "chunker", "ordinal", "chunk_id", "role", "kind", "span_start", "span_end", "text", "headings",
        "reference", "passage_hash", "words", "terms",
    )  # fmt: skip
    copy_rows(connection, "chunk", columns, [_row(sequence, c) for sequence, chunks in cut for c in chunks])
    searchable = {sequence: sum(c.passage is not None for c in chunks) for sequence, chunks in cut}
    copy_rows(
        connection,
        "chunked_observation",
        ("sequence", "chunker", "chunks", "searchable"),
        [(sequence, CUT, len(chunks), searchable[sequence]) for sequence, chunks in cut],
    )


def counts(connection: Connection, repository_id: int) -> ChunkCounts:
    """Releases and chunks of a repository as of now."""
    row = connection.execute(
        f"""
        WITH current AS ({CURRENT})
        SELECT count(*), count(k.sequence), coalesce(sum(k.chunks), 0), coalesce(sum(k.searchable), 0)
        FROM current c LEFT JOIN kb.chunked_observation k ON k.sequence = c.sequence AND k.chunker = %(cut)s
        WHERE NOT c.deleted AND NOT c.draft
        """,
        {"repository_id": repository_id, "moment": None, "cut": CUT},
    ).fetchone()
    kinds = connection.execute(
        f"""
        WITH current AS ({CURRENT})
        SELECT ch.kind, count(*) FROM current c JOIN kb.chunk ch USING (sequence)
        WHERE NOT c.deleted AND NOT c.draft AND ch.chunker = %(cut)s AND ch.passage_hash IS NOT NULL
        GROUP BY ch.kind ORDER BY ch.kind
        """,
        {"repository_id": repository_id, "moment": None, "cut": CUT},
    ).fetchall()
    assert row is not None  # noqa: S101 - an aggregate without GROUP BY has one row
    return ChunkCounts(
        int(row[0]), int(row[1]), int(row[2]), int(row[3]), {kind: int(n) for kind, n in kinds}
    )


def _without_done(
    connection: Connection, cut: Sequence[tuple[int, Sequence[CutChunk]]]
) -> list[tuple[int, Sequence[CutChunk]]]:
    done = {
        row[0]
        for row in connection.execute(
            "SELECT sequence FROM kb.chunked_observation WHERE chunker = %s AND sequence = ANY(%s)",
            (CUT, [sequence for sequence, _ in cut]),
        )
    }
    return [(sequence, chunks) for sequence, chunks in cut if sequence not in done]


def _row(sequence: int, cut: CutChunk) -> tuple[Any, ...]:
    chunk, words = cut.chunk, cut.words
    return (
        sequence, CUT, chunk.ordinal, cut.chunk_id, str(chunk.role), str(chunk.kind), chunk.start, chunk.end,
        chunk.text, list(chunk.headings), json.dumps({k: v for k, v in asdict(chunk.references).items() if v}),
        cut.passage.key if cut.passage else None, words and sparsevec(words.ids, words.weights),
        words and list(words.ids),
    )  # fmt: skip


def sparsevec(ids: Sequence[int], weights: Sequence[float]) -> str:
    """pgvector's text form of a sparse vector: indices from 1, ascending."""
    pairs = ",".join(f"{i}:{w:.6g}" for i, w in zip(ids, weights, strict=True))
    return f"{{{pairs}}}/{DIMENSIONS}"
