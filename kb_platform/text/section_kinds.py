"""What kind of change the heading above an item announces.

Belongs here: the vocabulary of headings. Does not belong here: the vocabulary of items (`evidence`), and which
of the two wins (`labelling`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import Final

from kb_platform.text.kinds import Kind


class Weight(StrEnum):
    """How much a heading's evidence counts.

    STRONG: it names one kind. MAJOR: Changesets' "Major Changes", breaking unless the item says otherwise.
    WEAK: a hint; the item's own words come first.
    """

    STRONG = "strong"
    MAJOR = "major"
    WEAK = "weak"


_BREAKING: Final = re.compile(
    r"\bbreaking\b|\b(?:backwards?[ -])?incompatible changes\b|\bbackwards?[ -]incompatib"
)
_UNLESS: Final = re.compile(r"\b(?:non?|not|beyond|besides|without|previous|other than|aside)\b")
_SECURITY: Final = re.compile(
    r"security(?: (?:fix(?:es)?|updates?|advisor(?:y|ies)|considerations|patch(?:es)?|improvements|changes|notes))?"
    r"|(?:security )?vulnerabilit(?:y|ies)(?: fix(?:es|ed)?)?|cves?(?: fix(?:es|ed)?)?"
)
_GONE: Final = re.compile(r"\bdeprecated\b.*\b(?:removed|dropped|deleted)\b")
_GOING: Final = (
    (Kind.DEPRECATION, re.compile(r"\bdeprecat")),
    (
        Kind.REMOVAL,
        re.compile(r"\bremov(?:ed|al|als)\b|\bdropped\b|\bdeleted\b|\bno longer (?:support|publish|provid)"),
    ),
)
_NAMED: Final = (
    (Kind.FIX, re.compile(r"\b(?:bug|hot)?fix(?:es|ed)?\b|\bbugs?\b")),
    (
        Kind.FEATURE,
        re.compile(
            r"\bfeatures?\b|\bstabili[sz](?:ed|ations?)\b|\badded\b|\badditions?\b|^new$"
            r"|^new (?:\w+ )?(?:functionality|rules|settings|options|commands|apis?)$"
            r"|(?<!performance )\b(?:enhance|improve)(?:ments?|d)\b"
        ),
    ),
    (Kind.PERFORMANCE, re.compile(r"\bperformance\b|\boptimi[sz]ations?\b|\bperf\b")),
    (Kind.DOCS, re.compile(r"\bdocs?\b|\bdocumentation\b|\btranslations?\b")),
    (
        Kind.OTHER,
        re.compile(
            r"^(?:internals?|upgrades|refactoring|chores?|build|ci|tests?|thanks|packaging|misc|miscellaneous"
            r"|maintenance|housekeeping|sponsors?|release|credits)\b"
            r"|\bdependenc(?:y|ies)\b|\brefactors?\b|\bcontributors?\b"
        ),
    ),
)
_CHANGESETS: Final = {
    "major changes": (Weight.MAJOR, Kind.BREAKING),
    "minor changes": (Weight.WEAK, Kind.FEATURE),
}
# Sections of everything that is not yet finished, or of everything: the items differ.
_MIXED: Final = re.compile(r"\b(?:preview|experimental|alpha|beta|changes|changed)\b")
# A longer heading is a sentence, in which "fixes" may be anything; what is gone or going is said outright.
_MAX_WORDS: Final = 8


def kind_of_headings(headings: tuple[str, ...]) -> tuple[Kind | None, Weight]:
    """The kind that the nearest telling heading announces, and its weight; (None, WEAK) when none tells.

    Below "Breaking changes", a heading that says what is deprecated or removed says what breaks.
    """
    nearest: tuple[Kind | None, Weight] = (None, Weight.WEAK)
    for heading in reversed(headings):
        weight, kind = _announced(heading)
        if kind is Kind.BREAKING and weight is Weight.STRONG:
            return kind, weight
        if kind is not None and nearest[0] is None:
            nearest = kind, weight
        if nearest[0] not in {None, Kind.DEPRECATION, Kind.REMOVAL} and nearest[1] is not Weight.WEAK:
            break
    return nearest


@lru_cache(maxsize=4096)
def _announced(heading: str) -> tuple[Weight, Kind | None]:
    """The kind that one heading announces."""
    words = " ".join(re.sub(r"[^\w\s&,-]", " ", heading.lower()).split())
    if words in _CHANGESETS:
        return _CHANGESETS[words]
    if _BREAKING.search(words):
        return (Weight.WEAK, None) if _UNLESS.search(words) else (Weight.STRONG, Kind.BREAKING)
    if _SECURITY.fullmatch(words):
        return Weight.STRONG, Kind.SECURITY
    return (Weight.STRONG, Kind.REMOVAL) if _GONE.search(words) else _named(words)


def _named(words: str) -> tuple[Weight, Kind | None]:
    """The one kind that the words of a heading name; None when there are several."""
    count = sum(1 for word in words.split() if not word[-1].isdecimal())
    vocabulary = (*_GOING, *_NAMED) if count <= _MAX_WORDS else _GOING
    kinds = tuple(kind for kind, pattern in vocabulary if pattern.search(words))
    mixed = _MIXED.search(words)
    if len(kinds) == 1:
        return (Weight.WEAK if mixed else Weight.STRONG), kinds[0]
    if kinds == (Kind.DEPRECATION, Kind.REMOVAL) and not mixed:
        return Weight.WEAK, Kind.DEPRECATION
    return Weight.WEAK, None
