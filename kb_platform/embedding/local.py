"""The embedder of models on this machine.

Belongs here: which engine computes what, batches under a token budget, and what happens when memory runs out.
Does not belong here: the engines (`bert`, `torch_engine`) and the model's files (`folder`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from kb_platform.embedding.bert import BertShape, NumpyBert
from kb_platform.embedding.embedder import Device, Embedded, Precision, Vectors, checked_vectors, excerpt
from kb_platform.embedding.folder import model_folder, read_config, tokenizer_file, verify_files, weights_files
from kb_platform.embedding.model import LocalModel
from kb_platform.embedding.tokens import TokenReader, batches
from kb_platform.errors import EmbeddingError, ModelError

NUMPY_TOKENS = 12_000
"""Tokens that one embedder computes with numpy before it imports torch.

Importing torch takes about 3 s, in which numpy computes about this many tokens (two cores of an EPYC, 2026-11).
Like renting until the rent has reached the price: whatever comes, it takes at most twice the best choice.
"""


class Engine(Protocol):
    """Computes pooled vectors of token ids."""

    @property
    def name(self) -> str: ...

    @property
    def token_budget(self) -> int:
        """Tokens a batch that it works best with."""
        ...

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        """Vectors [texts, hidden], not normalised. Raises MemoryError or RuntimeError when memory runs out."""
        ...

    def free(self) -> None:
        """Give cached memory back, after it ran out."""
        ...


class LocalEmbedder:
    """Embeds with numpy while little is asked, and with torch from then on."""

    def __init__(
        self,
        model: LocalModel,
        reader: TokenReader,
        *,
        small: Engine | None,
        large: LargeEngine,
        token_budget: int | None = None,
    ) -> None:
        """`small` computes questions and small batches (None: `large` does); `large` is loaded when needed."""
        if small is None and large is None:
            raise ValueError("an embedder needs an engine")
        self._model = model
        self._reader = reader
        self._small = small
        self._load_large = large
        self._large: Engine | None = None
        self._budget = token_budget
        self._computed_small = 0
        self._lock = threading.Lock()
