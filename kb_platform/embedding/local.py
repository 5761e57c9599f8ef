"""The embedder of models on this machine.

Belongs here: which engine computes what, batches under a token budget, and what happens when memory runs out.
Does not belong here: the engines (`numpy_engine`, `torch_engine`) and the model's files (`folder`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from kb_platform.embedding.bert import BertShape
from kb_platform.embedding.embedder import Device, Embedded, Precision, Vectors, checked_vectors, excerpt
from kb_platform.embedding.folder import (
    model_folder,
    read_config,
    tokenizer_file,
    verify_files,
    weights_files,
)
from kb_platform.embedding.model import LocalModel
from kb_platform.embedding.numpy_engine import NumpyBert
from kb_platform.embedding.tokens import TokenIds, TokenReader, ascending, batch_end
from kb_platform.errors import EmbeddingError, ModelError

NUMPY_TOKENS = 16_000
"""Tokens that one embedder computes with numpy before it imports torch: some five hundred change items.

Importing torch takes 2.7 s, in which numpy computes about this many tokens (3,000 a second and core, torch 6,800
in bfloat16; two cores of an EPYC, 2026-11). It is the rule for renting or buying skis: whatever comes, it takes at
most twice as long as the best choice.
"""

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """Computes pooled vectors of token ids."""

    @property
    def name(self) -> str: ...

    @property
    def token_budget(self) -> int:
        """Tokens a batch that it works best with."""
        ...

    @property
    def streams(self) -> int:
        """Batches that it computes best at a time, each in a thread of its own."""
        ...

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        """Vectors [texts, hidden], not normalised. Raises MemoryError or RuntimeError when memory runs out."""
        ...

    def free(self) -> None:
        """Give cached memory back, after it ran out."""
        ...


class LocalEmbedder:
    """Embeds questions and the first few texts with one engine, and many texts with another, loaded when needed."""

    def __init__(
        self,
        model: LocalModel,
        reader: TokenReader,
        *,
        small: Engine | None,
        large: Callable[[], Engine],
        small_tokens: int = NUMPY_TOKENS,
        token_budget: int | None = None,
    ) -> None:
        """`small` computes questions, and passages until they have reached `small_tokens`; None: `large` does."""
        self._model = model
        self._reader = reader
        self._small = small
        self._small_tokens = small_tokens if small is not None else 0
        self._load_large = large
        self._large: Engine | None = None
        self._budget = token_budget
        self._lock = threading.Lock()
        self._name = small.name if small is not None else "torch"

    @classmethod
    def load(
        cls,
        model: LocalModel,
        *,
        threads: int | None = None,
        device: Device = "auto",
        dtype: Precision = "auto",
        token_budget: int | None = None,
    ) -> LocalEmbedder:
        """Find and verify the model's files. Raises ModelError.

        `threads` batches are computed at a time on a CPU (default: as many as this process may use cores).
        """
        streams = threads or available_cores()
        folder = model_folder(model)
        verify_files(model, folder)
        shape = BertShape.from_config(read_config(folder))

        def large() -> Engine:
            from kb_platform.embedding.torch_engine import load_engine

            return load_engine(folder, shape, model.pooling, device=device, dtype=dtype, streams=streams)

        # A device or a precision that numpy does not have is meant for passages; a question stays with numpy.
        numpy_serves = device != "cuda" and dtype in ("auto", "float32")
        return cls(
            model,
            TokenReader(tokenizer_file(folder), model.max_tokens),
            small=_numpy_engine(folder, shape, model, streams),
            large=large,
            small_tokens=NUMPY_TOKENS if numpy_serves else 0,
            token_budget=token_budget,
        )

    @property
    def model(self) -> LocalModel:
        return self._model

    @property
    def engine(self) -> str:
        """The engine that computed the latest passages."""
        return self._name

    def embed_passages(self, texts: Sequence[str]) -> Embedded:
        """Vectors of `texts`, in batches under the token budget. Raises EmbeddingError."""
        ids = self._reader.read([self._model.passage_prefix + text for text in texts])
        tokens = sum(map(len, ids))
        if not texts:
            return Embedded(np.empty((0, self._model.dimension), dtype=np.float32), 0)
        engine = self._engine_for(tokens)
        self._name = engine.name
        vectors = self._compute(engine, ids, texts)
        return Embedded(checked_vectors(vectors, texts, normalize=self._model.normalize), tokens)

    def embed_query(self, text: str) -> Vectors:
        """Vector of a question. Raises EmbeddingError."""
        ids = self._reader.read([self._model.query_prefix + text])
        vectors = self._compute(self._small or self._torch(), ids, [text])
        return checked_vectors(vectors, [text], normalize=self._model.normalize)[0]

    def close(self) -> None:
        """Let go of the weights."""
        self._small = self._large = None

    def _engine_for(self, tokens: int) -> Engine:
        with self._lock:
            if self._small is not None and self._large is None and tokens <= self._small_tokens:
                self._small_tokens -= tokens
                return self._small
        return self._torch()

    def _torch(self) -> Engine:
        with self._lock:
            if self._large is None:
                self._large = self._load_large()
            return self._large

    def _compute(self, engine: Engine, ids: list[TokenIds], texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(ids), self._model.dimension), dtype=np.float32)
        pending: list[int] = ascending([len(tokens) for tokens in ids])
        while pending:
            groups = self._grouped(pending, ids, engine)
            computed = self._map(
                engine, lambda rows: self._try(engine, [ids[row] for row in rows], texts[rows[0]]), groups
            )
            pending = []
            for rows, part in zip(groups, computed, strict=True):
                if part is None:
                    pending.extend(rows)
                    # Half of what failed, for good: the next batch would fail like this one.
                    self._budget = min(self._budget_for(engine), len(rows) * len(ids[rows[-1]]) // 2)
                else:
                    vectors[rows] = part
        return vectors

    def _budget_for(self, engine: Engine) -> int:
        return self._budget if self._budget is not None else engine.token_budget

    def _grouped(self, order: list[int], ids: list[TokenIds], engine: Engine) -> list[list[int]]:
        """Batches of the indices `order`, which ascend by length."""
        lengths = [len(ids[index]) for index in order]
        budget = self._budget_for(engine)
        groups: list[list[int]] = []
        start = 0
        while start < len(order):
            end = batch_end(lengths, start, budget)
            groups.append(order[start:end])
            start = end
        return groups

    def _map(
        self, engine: Engine, compute: Callable[[list[int]], Vectors | None], groups: list[list[int]]
    ) -> list[Vectors | None]:
        streams = min(engine.streams, len(groups))
        if streams <= 1:
            return [compute(rows) for rows in groups]
        with ThreadPoolExecutor(streams, thread_name_prefix="embedding") as pool:
            # The longest texts first: a large batch that starts last would leave the other threads idle.
            futures = [pool.submit(compute, rows) for rows in reversed(groups)]
            try:
                return [future.result() for future in reversed(futures)]
            finally:
                for future in futures:
                    future.cancel()

    def _try(self, engine: Engine, batch: list[TokenIds], first_text: str) -> Vectors | None:
        """Vectors of a batch; None when memory ran out and a smaller one may fit."""
        try:
            vectors = engine.encode(batch)
        except (MemoryError, RuntimeError, IndexError) as error:
            if not is_out_of_memory(error):
                raise EmbeddingError(
                    f"{engine.name} failed on {len(batch)} texts, first of {excerpt(first_text)}: {error}",
                    hint="Try again on the CPU (device cpu, dtype float32); if it persists, the model is broken.",
                ) from error
            if len(batch) == 1:
                raise EmbeddingError(
                    f"memory ran out on a single text of {len(batch[0])} tokens, {excerpt(first_text)}",
                    hint="Free memory, use a smaller model, or set a lower limit of tokens a text.",
                ) from error
        else:
            if vectors.shape != (len(batch), self._model.dimension):
                raise ModelError(
                    f"the model {self._model.id} gave vectors of {vectors.shape[1]} dimensions, not of "
                    f"{self._model.dimension}",
                    hint="Describe the model anew from its files (model_from_id), and build a new index version.",
                )
            return vectors
        # Outside the handler: the error's traceback would keep the failed batch's memory alive.
        engine.free()
        _log.warning("memory ran out on a batch of %d texts; halving batches", len(batch))
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: numpy raises MemoryError, torch RuntimeErrors of several texts."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "defaultcpuallocator" in text or "not enough memory" in text)
    )


def available_cores() -> int:
    """Cores that this process may use (container quotas of CPU time are not seen: set the threads there)."""
    # Only Linux tells a process's own cores.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _numpy_engine(folder: Path, shape: BertShape | None, model: LocalModel, streams: int) -> NumpyBert | None:
    files = weights_files(folder)
    if shape is None or any(file.suffix != ".safetensors" for file in files):
        return None
    return NumpyBert.load(files, shape, model.pooling, streams=streams)
