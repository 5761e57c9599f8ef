"""Slips of the pen: whether one word is another, misspelt.

Belongs here: distances between spellings and how much is forgiven. Does not belong here: which words are
compared.
"""

from __future__ import annotations

from typing import Final

SHORTEST: Final = 5
"""Letters that a word must have; shorter words have too many neighbours that are words themselves."""

SHORT: Final = 7
"""Letters up to which none may be changed for another."""

LONG: Final = 12
"""Letters from which on two slips are forgiven."""


def is_slip(written: str, meant: str) -> bool:
    """Whether `written` is probably a misspelt `meant`; both in lower case.

    One slip is forgiven, in words of twelve letters and more two: a letter left out, added, changed, or
    swapped with its neighbour. The first letter and all digits must be right. Short words have neighbours
    that are words: with up to seven letters no letter may be changed (`nextjs` is not `nestjs`), in a word
    of five only a swap is forgiven (`atsro` is `astro`); nor are `datasets` a slip of `datasette`.
    """
    allowed = 1 if len(meant) < LONG else 2
    if min(len(written), len(meant)) < SHORTEST or abs(len(written) - len(meant)) > allowed:
        return False
    if written[0] != meant[0] or _digits(written) != _digits(meant):
        return False
    if len(meant) == SHORTEST != len(written):
        return False
    if len(written) == len(meant) <= SHORT and sorted(written) != sorted(meant):
        return False
    return 0 < distance(written, meant) <= allowed


def distance(first: str, second: str) -> int:
    """Damerau-Levenshtein distance, in the form (optimal string alignment) that edits no part twice."""
    last: list[int] = []
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        last, before, row = before, row, [i]
        for j, b in enumerate(second, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _digits(text: str) -> list[str]:
    return [character for character in text if character.isdecimal()]
