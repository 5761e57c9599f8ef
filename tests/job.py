"""The main job over a test's database: log → chunks → vectors → index, with an embedder that is no model."""

from __future__ import annotations

from collections.abc import Sequence

from kb_platform.embedding.embedder import Embedder
from kb_platform.embedding.model import EmbeddingModel
from kb_platform.stages import indexing
from kb_platform.stages.chunking import ChunkReport, chunk_repository
from kb_platform.stages.embedding import EmbeddingReport, embed_repositories
from kb_platform.stages.indexing import Completed, IndexReport
from kb_platform.store.audit import audit
from kb_platform.store.database import Database
from kb_platform.store.repositories import repository_names
from tests.hashing_embedder import HashingEmbedder, hashing_model


class Job:
    """Runs stages; keeps the embedders that it loaded, by the model's key."""

    def __init__(self, database: Database, model: EmbeddingModel | None = None) -> None:
        self.database = database
        self.model = model or hashing_model()
        self.embedders: dict[str, HashingEmbedder] = {}

    def run(self, *names: str) -> Completed:
        """All stages, for these repositories or for all."""
        indexing.ensure_version(self.database, lambda: self.model)
        self.chunk(*names)
        self.embed(*names)
        self.index(*names)
        return indexing.complete_versions(self.database)

    def chunk(self, *names: str) -> list[ChunkReport]:
        return [chunk_repository(self.database, name) for name in self._names(names)]

    def embed(self, *names: str) -> list[EmbeddingReport]:
        return embed_repositories(self.database, self._names(names), self.load, slice_size=64)

    def index(self, *names: str) -> list[IndexReport]:
        return indexing.index_repositories(self.database, self._names(names))

    def load(self, model: EmbeddingModel) -> Embedder:
        return self.embedders.setdefault(model.key, HashingEmbedder(model))

    @property
    def embedded(self) -> int:
        """Passages embedded so far, in all models."""
        return sum(len(embedder.embedded) for embedder in self.embedders.values())

    def problems(self) -> list[str]:
        """What the audit finds."""
        with self.database.snapshot() as connection:
            return [str(violation) for violation in audit(connection)]

    def _names(self, names: Sequence[str]) -> list[str]:
        with self.database.snapshot() as connection:
            return list(names) or repository_names(connection)
