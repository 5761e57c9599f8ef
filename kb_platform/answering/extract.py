"""Extracting: which passages answer, and which sentence of each. Pure functions; nothing is reworded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kb_platform.retrieval.searcher import Passage
from kb_platform.text.cleaning import plain_text

LONGEST_SENTENCE = 400
# A passage within this share of the best score answers the same question, where several are asked for.
AS_GOOD = 0.92
MOST_SINGLE = 3
MOST_SEVERAL = 12

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")
_SEVERAL = re.compile(r"\b(?:which|what|list|all)\b[^?.]*\b(?:releases|versions)\b", re.IGNORECASE)


def asks_for_several(question: str) -> bool:
    """Whether a question asks for releases in the plural.

    >>> asks_for_several("Which releases mention CVE-2024-1?"), asks_for_several("Which release fixed it?")
    (True, False)
    """
    return _SEVERAL.search(question) is not None


def answering(passages: Sequence[Passage], *, plural: bool) -> list[Passage]:
    """The passages that answer: the best one and those that say the very same; where several are asked for, those as good.

    The same change is often noted in a pre-release and in the release after it; both are releases that answer.
    """
    best = passages[0]
    said = plain_text(best.text)
    same = [p for p in passages if p.repository == best.repository and plain_text(p.text) == said]
    chosen = _one_of_each_release(same)[:MOST_SINGLE]
    if plural:
        as_good = [p for p in passages if p.score >= best.score * AS_GOOD and p.repository == best.repository]
        chosen = _one_of_each_release([*chosen, *as_good])[:MOST_SEVERAL]
    return chosen


def sentence(text: str, *, longest: int = LONGEST_SENTENCE) -> str:
    """The first sentences of a passage, without markup, up to a length; cut at a word where one is longer."""
    plain = " ".join(plain_text(text).split())
    if len(plain) <= longest:
        return plain
    taken = ""
    for part in _SENTENCE_END.split(plain):
        if taken and len(taken) + len(part) + 1 > longest:
            break
        taken = f"{taken} {part}".strip()
        if len(taken) > longest:
            return taken[:longest].rsplit(" ", 1)[0] + " …"
    return taken


def _one_of_each_release(passages: Sequence[Passage]) -> list[Passage]:
    first: dict[tuple[str, str], Passage] = {}
    for passage in passages:
        first.setdefault((passage.repository, passage.tag), passage)
    return list(first.values())
