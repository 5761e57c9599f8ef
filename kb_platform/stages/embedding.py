"""The third stage: passages without a vector → vectors, for every model that a maintained index version uses.

Committed in slices: a killed run repeats one slice at most. The same text is embedded once per model, whichever
release, run or index asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kb_platform.embedding.embedder import Embedder
from kb_platform.embedding.model import EmbeddingModel
from kb_platform.progress import Progress, Silence
from kb_platform.store import embeddings, index_versions
from kb_platform.store.chunks import Passage
from kb_platform.store.database import Database
from kb_platform.store.repositories import find_repository

Loader = Callable[[EmbeddingModel], Embedder]

# Passages fetched at once: finding what is missing costs a join over the repositories' chunks.
PAGE_SLICES = 8


@dataclass(frozen=True)
class EmbeddingReport:
    """What embedding did with one model. `seconds` is the whole stage, `embedding_seconds` the model's share."""

    model: str
    engine: str
    embedded: int
    tokens: int
    seconds: float
    embedding_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of the model's share; 0 when nothing was embedded."""
        return self.tokens / self.embedding_seconds if self.embedding_seconds else 0.0


def embed_repositories(
    database: Database,
    names: Sequence[str],
    load: Loader,
    *,
    models: Sequence[EmbeddingModel] | None = None,
    slice_size: int = 2_048,
    progress: Progress | None = None,
) -> list[EmbeddingReport]:
    """Embed what these repositories' current chunks lack, in every model in use (or in `models`).

    A model is loaded only when something is missing. Raises EmbeddingError, with all slices before it kept.
    """
    with database.transaction() as connection:
        repository_ids = [find_repository(connection, name)[0] for name in names]
        if models is None:
            used = dict.fromkeys(version.model_id for version in index_versions.maintained(connection))
            chosen = [(model_id, embeddings.model(connection, model_id)) for model_id in used]
        else:
            chosen = [(embeddings.ensure_model(connection, model), model) for model in models]
    return [
        _embed(database, model_id, model, repository_ids, load, slice_size, progress or Silence())
        for model_id, model in chosen
    ]


def _embed(
    database: Database,
    model_id: int,
    model: EmbeddingModel,
    repository_ids: Sequence[int],
    load: Loader,
    slice_size: int,
    progress: Progress,
) -> EmbeddingReport:
    started = time.monotonic()
    with database.snapshot() as connection:
        missing = embeddings.missing(connection, model_id, repository_ids)
    if not missing.passages:
        return EmbeddingReport(model.key, "none", 0, 0, time.monotonic() - started, 0.0)
    embedder = load(model)
    embedded = tokens = 0
    embedding_seconds = 0.0
    # Characters, not passages: the longest come first, and a rate in passages would promise a far too distant end.
    with progress.task(f"embed with {model.key}", missing.characters, "characters") as task:
        while page := _page(database, model_id, repository_ids, slice_size * PAGE_SLICES):
            for start in range(0, len(page), slice_size):
                part = page[start : start + slice_size]
                begun = time.monotonic()
                result = embedder.embed_passages([passage.text for passage in part])
                embedding_seconds += time.monotonic() - begun
                with database.transaction() as connection:
                    embeddings.put(connection, model_id, [passage.key for passage in part], result.vectors)
                embedded += len(part)
                tokens += result.tokens
                task.advance(sum(len(passage.text) for passage in part))
    return EmbeddingReport(
        model.key, embedder.engine, embedded, tokens, time.monotonic() - started, embedding_seconds
    )


def _page(database: Database, model_id: int, repository_ids: Sequence[int], limit: int) -> list[Passage]:
    with database.snapshot() as connection:
        return embeddings.next_missing(connection, model_id, repository_ids, limit=limit)
