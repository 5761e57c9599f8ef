"""An embedder for tests: vectors from hashed words, no model and no torch.

Texts that share words are near each other, so that searches have something to find; and everything is counted, so that
a test can tell what was computed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from kb_platform.embedding.embedder import Embedded, Vectors
from kb_platform.embedding.model import EmbeddingModel, LocalModel

DIMENSION = 32


def hashing_model(name: str = "hashing", *, dimension: int = DIMENSION) -> LocalModel:
    """The description of a model that only tests have."""
    return LocalModel(id=f"tests/{name}", revision="1", dimension=dimension, max_tokens=256)


class HashingEmbedder:
    """See kb_platform.embedding.embedder.Embedder. `calls`: the texts of each call to `embed_passages`."""

    def __init__(self, model: EmbeddingModel) -> None:
        self.model = model
        self.engine = "hashing"
        self.calls: list[list[str]] = []
        self.closed = False

    @property
    def embedded(self) -> list[str]:
        """All passages embedded so far."""
        return [text for call in self.calls for text in call]

    def embed_passages(self, texts: Sequence[str]) -> Embedded:
        """Sums of hashed word vectors, of length 1."""
        self.calls.append(list(texts))
        vectors = np.stack([self._vector(text) for text in texts]) if texts else self._none()
        return Embedded(vectors, sum(len(text.split()) for text in texts))

    def embed_query(self, text: str) -> Vectors:
        """The same for a question."""
        return self._vector(text)

    def close(self) -> None:
        """Nothing to give back; that it was asked is remembered."""
        self.closed = True

    def _none(self) -> Vectors:
        return np.zeros((0, self.model.dimension), dtype=np.float32)

    def _vector(self, text: str) -> Vectors:
        vector = np.full(self.model.dimension, 1e-3, dtype=np.float32)
        for word in re.findall(r"\w+", text.lower()):
            hashed = zlib.crc32(word.encode())
            vector[hashed % self.model.dimension] += 1.0 if hashed & 0x8000_0000 else -1.0
        return (vector / np.linalg.norm(vector)).astype(np.float32)
