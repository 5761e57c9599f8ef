"""Long text → spans of bounded length, cut where it hurts least.

Belongs here: the sizes of chunks, and the use of semantic-text-splitter. Does not belong here: which text is cut.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from kb_platform.text.blocks import trimmed

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter

# Lengths in code points. 256 tokens, what the default embedding model reads, are about 1,000 of them.
PACKED: Final = 1_000
LONGEST_WHOLE: Final = 1_200
SPLIT_FROM: Final = 800

# The splitter's time grows with the square of what it is given (measured: 1 MiB of CJK text takes 125 s,
# 20,000 code points 62 ms, 4,000 5 ms), so that it is given slabs of this many.
_SLAB: Final = 4_000


def split_spans(body: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans within `body[start:end]`, in order, each at most LONGEST_WHOLE long, that leave out only blanks."""
    start, end = trimmed(body, start, end)
    if end - start <= LONGEST_WHOLE:
        return [(start, end)] if start < end else []
    spans: list[tuple[int, int]] = []
    while start < end:
        slab_end = min(start + _SLAB, end)
        found = [
            # The splitter trims what Unicode calls white space; Python has more of it.
            trimmed(body, start + offset, start + offset + len(text))
            for offset, text in _splitter().chunk_indices(body[start:slab_end])
        ]
        if slab_end < end and len(found) > 1:
            # The last piece ends where the slab does: it is cut again with what follows.
            slab_end = found.pop()[0]
        spans.extend(span for span in found if span[0] < span[1])
        start = slab_end
    return spans


@cache
def _splitter() -> TextSplitter:
    from semantic_text_splitter import TextSplitter

    return TextSplitter((SPLIT_FROM, LONGEST_WHOLE))
