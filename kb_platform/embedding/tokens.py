"""Texts as tokens, and tokens as batches.

Belongs here: the tokenizer (the bare `tokenizers` library: 20 ms to import, where transformers takes seconds),
and the grouping of texts into batches of about equal work. Does not belong here: what a batch is computed with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from kb_platform.errors import ModelError

TokenIds = list[int]


class TokenReader:
    """Turns texts into token ids as the model was trained on them, special tokens included."""

    def __init__(self, file: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            # The library raises bare Exception for a file that it cannot read.
            raise ModelError(f"{file} cannot be read: {error}", hint="Download the model again.") from error
        # The file carries the settings of whoever saved it last: all-MiniLM-L6-v2's pads everything to 128
        # tokens and cuts there, while the model takes 256.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)  # pyright: ignore[reportUnknownMemberType] - untyped

    def read(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text, cut to the model's limit."""
        encodings = self._tokenizer.encode_batch_fast([encodable(text) for text in texts])
        return [encoding.ids for encoding in encodings]


def encodable(text: str) -> str:
    """`text` with lone surrogates replaced: the tokenizer takes UTF-8 only and refuses the whole batch."""
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode()


def ascending(lengths: Sequence[int]) -> list[int]:
    """Indices of texts from the shortest to the longest.

    Neighbours of about equal length need little padding, and make long runs for engines that do without.
    """
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def batch_end(lengths: Sequence[int], start: int, budget: int) -> int:
    """Where the batch that begins at `start` ends, so that it takes at most `budget` tokens when padded.

    `lengths` ascend, so the newest text is the longest and decides what the batch takes. A text longer than the
    budget is a batch of its own.
    """
    end = start + 1
    while end < len(lengths) and (end - start + 1) * lengths[end] <= budget:
        end += 1
    return end
