"""The order of the passages that were found for a question, and whether any of them answers it.

Belongs here: what is measured of a candidate (its features), the learned weights, the bar for refusals. Pure
functions. Does not belong here: finding candidates (`store`), understanding the question (`question`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final

from kb_platform.text.words import Concept, concepts, terms

ANALYSED: Final = 48
"""How many candidates, the best by words and vectors alone, are read in full. The rest keep that order below them."""
READ_CHARACTERS: Final = 2_000
NEAR: Final = 4
CONTEXT_SHARE: Final = 0.6

FEATURES: Final = (
    "words", "cosine", "coverage", "order", "focus", "identifiers", "kind", "rescue", "lead",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that may answer. `key` is the caller's own; `bm25` the inner product with `words.query_terms` × idf
    (0 when it was found by its vector only); `cosine` −1 … 1 (None: no vector to compare)."""

    key: object
    repository: str
    tag: str
    bm25: float
    cosine: float | None
    kind: str
    text: str
    headings: tuple[str, ...]
    published_at: datetime | None
    prerelease: bool


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is asked: the topic's concepts, the idf of every term in them, and the kinds of change that were named."""

    concepts: tuple[Concept, ...]
    idf: Mapping[str, float]
    kinds: frozenset[str] = frozenset()

    @classmethod
    def about(cls, topic: str, idf: Mapping[str, float], kinds: Iterable[str] = ()) -> Inquiry:
        return cls(tuple(concepts(topic)), idf, frozenset(kinds))

    def worth(self, concept: Concept) -> float:
        """idf × weight of a concept; of a word that may be said otherwise: of the commonest way to say it."""
        values = [self.idf[concept.term]] if concept.term in self.idf else []
        if not concept.identifier:
            values += [self.idf[other] for other in concept.alternatives if other in self.idf]
        return concept.weight * min(values, default=0.0)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its score and the features that it is made of (zeros for one that was not read)."""

    candidate: Candidate
    score: float
    features: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Reading:
    terms: tuple[str, ...]
    known: frozenset[str]
    context: frozenset[str]


@lru_cache(maxsize=20_000)
def _read(text: str, headings: tuple[str, ...], context: str) -> _Reading:
    found = tuple(terms(text[:READ_CHARACTERS]))
    around = [term for heading in headings for term in terms(heading)] + terms(context)
    return _Reading(found, frozenset(found), frozenset(around))


def features(inquiry: Inquiry, candidates: Sequence[Candidate]) -> list[tuple[float, ...]]:
    worth = [inquiry.worth(concept) for concept in inquiry.concepts]
    total = sum(worth) or 1.0
    attainable = sum(c.weight * inquiry.idf.get(c.term, 0.0) for c in inquiry.concepts) or 1.0
    rows = [_features(inquiry, worth, total, attainable, candidate) for candidate in candidates]
    best = max((row[2] for row in rows), default=0.0)
    return [(*row[:7], row[1] * (1 - best), row[7]) for row in rows]


def _features(inquiry: Inquiry, worth: list[float], total: float, attainable: float, candidate: Candidate) -> tuple[float, ...]:
    reading = _read(candidate.text, candidate.headings, f"{candidate.repository} {candidate.tag}")
    matched = [_match(concept, reading) for concept in inquiry.concepts]
    coverage = sum(w * m for w, m in zip(worth, matched, strict=True)) / total
    identifier_worth = sum(w for w, c in zip(worth, inquiry.concepts, strict=True) if c.identifier)
    identifiers = (
        sum(w * (m >= 1.0) for w, m, c in zip(worth, matched, inquiry.concepts, strict=True) if c.identifier) / identifier_worth
        if identifier_worth else 0.0
    )
    plain = [term for term in reading.known if term.isalpha() and len(term) > 2][:60]
    wanted = {t for c in inquiry.concepts for t in (c.term, *c.alternatives)}
    focus = sum(term in wanted for term in plain) / (len(plain) + 2)
    first = reading.terms[:30]
    lead = sum(w for w, c in zip(worth, inquiry.concepts, strict=True) if c.term in first) / total
    return (
        candidate.bm25 / attainable,
        candidate.cosine or 0.0,
        coverage,
        _order(inquiry.concepts, worth, reading),
        focus,
        identifiers,
        1.0 if candidate.kind in inquiry.kinds else 0.0,
        lead,
    )


def _match(concept: Concept, reading: _Reading) -> float:
    if concept.term in reading.known:
        return 1.0
    if concept.term in reading.context:
        return CONTEXT_SHARE
    if concept.identifier:
        parts = [part in reading.known for part in concept.alternatives]
        return 0.6 * sum(parts) / len(parts) if parts else 0.0
    return 0.6 if any(other in reading.known for other in concept.alternatives) else 0.0


def _order(asked: Sequence[Concept], worth: Sequence[float], reading: _Reading) -> float:
    """Share of the neighbours in the question that are near each other, in this order, in the text."""
    places: dict[str, list[int]] = {}
    for place, term in enumerate(reading.terms):
        places.setdefault(term, []).append(place)
    gained = possible = 0.0
    where = [
        places.get(c.term) or [p for other in c.alternatives for p in places.get(other, ())] for c in asked
    ]
    for index in range(len(asked) - 1):
        value = math.sqrt(worth[index] * worth[index + 1])
        possible += value
        if any(0 < later - earlier <= NEAR for earlier in where[index] for later in where[index + 1]):
            gained += value
    return gained / possible if possible else 0.0
