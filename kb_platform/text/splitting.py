"""Long text → spans of bounded length, cut where it hurts least.

Belongs here: the sizes of chunks, and the use of semantic-text-splitter. Does not belong here: which text is cut.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from kb_platform.text.blocks import trimmed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semantic_text_splitter import TextSplitter

# Lengths in code points. 256 tokens, what the default embedding model reads, are about 1,000 of them.
PACKED: Final = 1_000
LONGEST_WHOLE: Final = 1_200
SPLIT_FROM: Final = 800

# The splitter's time grows with the square of what it is given (measured: 1 MiB of CJK text takes 125 s,
# 20,000 code points 62 ms, 4,000 3 ms), so that it is given slabs.
_SLAB: Final = 4_000


def split_spans(body: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans within `body[start:end]`, in order, each at most LONGEST_WHOLE long, that leave out only blanks."""
    start, end = trimmed(body, start, end)
    if end - start <= LONGEST_WHOLE:
        return [(start, end)] if start < end else []
    spans: list[tuple[int, int]] = []
    for slab_start, slab_end in _slabs(body, start, end):
        for offset, text in _splitter().chunk_indices(body[slab_start:slab_end]):
            # The splitter trims what Unicode calls white space; Python has more of it.
            first, beyond = trimmed(body, slab_start + offset, slab_start + offset + len(text))
            if first < beyond:
                spans.append((first, beyond))
    return spans


@cache
def _splitter() -> TextSplitter:
    from semantic_text_splitter import TextSplitter

    return TextSplitter((SPLIT_FROM, LONGEST_WHOLE))


def _slabs(body: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Stretches of at most _SLAB code points, cut after a line, else after a word, else anywhere."""
    while end - start > _SLAB:
        cut = max(body.rfind("\n", start, start + _SLAB), 0)
        if cut < start + _SLAB // 2:
            cut = body.rfind(" ", start + _SLAB // 2, start + _SLAB)
        beyond = cut + 1 if cut > start else start + _SLAB
        yield start, beyond
        start = beyond
    yield start, end
