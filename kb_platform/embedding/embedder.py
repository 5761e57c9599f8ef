"""The embedder: what the rest of the system asks for vectors, whatever computes them.

Belongs here: the `Embedder` protocol, its result, the last check that every vector passes, and `load_embedder`,
which chooses. Does not belong here: any engine (`local` on this machine, `remote` over HTTP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kb_platform.errors import EmbeddingError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from kb_platform.embedding.model import EmbeddingModel

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Vectors of a batch, in the order of its texts.

    `vectors` is float32 of shape (texts, model.dimension), of length 1 when the model normalises. `tokens`
    counts the tokens that were computed, special tokens included and after cutting; a server that does not
    report them leaves 0.
    """

    vectors: Vectors
    tokens: int


class Embedder(Protocol):
    """Computes vectors with one model. May be called from several threads."""

    @property
    def model(self) -> EmbeddingModel: ...

    @property
    def engine(self) -> str:
        """What computes, for provenance: `numpy float32`, `torch bfloat16 on cpu`, `tei http://…`."""
        ...

    def embed_passages(self, texts: Sequence[str]) -> Embedded:
        """Vectors of texts that will be searched; any number, also none. Raises EmbeddingError."""
        ...

    def embed_query(self, text: str) -> Vectors:
        """Vector of a question, shape (model.dimension,). Raises EmbeddingError."""
        ...

    def close(self) -> None:
        """Give back memory, threads and connections."""
        ...


def load_embedder(
    model: EmbeddingModel,
    *,
    threads: int | None = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    token_budget: int | None = None,
    api_key: SecretStr | None = None,
    concurrency: int = 4,
    timeout_s: float = 30,
) -> Embedder:
    """An embedder for `model`, its files found and verified, without computing anything yet.

    For models on this machine: `threads` on a CPU (default: one for each core), `device` and `dtype` (`auto`: a
    GPU where there is one; bfloat16 where the hardware computes it), `token_budget` tokens a batch (default: by
    device). For servers: `api_key`, `concurrency` requests at a time, `timeout_s` for each one.

    Raises ModelError when the model is missing, damaged or not the one that was asked for.
    """
    if model.provider == "local":
        from kb_platform.embedding.local import LocalEmbedder

        return LocalEmbedder.load(
            model, threads=threads, device=device, dtype=dtype, token_budget=token_budget
        )
    from kb_platform.embedding.remote import RemoteEmbedder

    return RemoteEmbedder(model, api_key=api_key, concurrency=concurrency, timeout_s=timeout_s)


def checked_vectors(vectors: Vectors, texts: Sequence[str], *, normalize: bool) -> Vectors:
    """`vectors` (n, dimension) as contiguous float32, scaled to length 1 when `normalize`.

    Raises EmbeddingError, naming the text, for a vector that is not finite or has no length: an index cannot
    rank either (cosine distance to a zero vector is NaN in pgvector, which sorts it unpredictably).
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    # float64: a vector of large but finite numbers must not overflow to an infinite length.
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if (bad := np.flatnonzero(~np.isfinite(lengths) | (lengths < 1e-12))).size:
        row = int(bad[0])
        what = "has no length" if np.isfinite(lengths[row]) else "is not finite"
        raise EmbeddingError(
            f"the vector of {bad.size} of {len(texts)} texts {what}, first of {excerpt(texts[row])}",
            hint="The model or its server is broken: compare `kb doctor`, or try another model.",
        )
    if normalize:
        vectors = (vectors / lengths[:, np.newaxis]).astype(np.float32)
    return vectors


def excerpt(text: str, limit: int = 80) -> str:
    """The beginning of `text`, quoted, for an error message."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
