"""Words of a text: what full-text retrieval compares.

Belongs here: the weights of a chunk's terms (BM25 without idf), the terms of a question and what may stand for
them. Does not belong here: what a term is (`terms`), which rows are searched (`store`), or how candidates are ordered
(`retrieval.ranking`).

A chunk's score for a question is the sum over the question's terms of `query weight × idf × chunk weight`:
an inner product, so PostgreSQL computes it over stored `sparsevec` rows. idf is left out of the stored
weights because it changes with every release that arrives.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), in its BM25F
form: fields are weighted before saturation, the length is normalised against a fixed constant so that a
stored weight never depends on other rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from kb_platform.text.terms import sized_terms, stem, terms, token_terms, tokens
from kb_platform.text.thesaurus import GROUPS

__all__ = [
    "DIMENSIONS",
    "WORDS",
    "Concept",
    "TermWeights",
    "concepts",
    "idf",
    "index_terms",
    "query_terms",
    "term_id",
    "terms",
]

WORDS: Final = "words-1"
"""Name of this analysis. Stored beside the weights; a change of output needs a new name."""

DIMENSIONS: Final = 1_000_000_000
"""Size of the term space: the largest dimension that pgvector's `sparsevec` accepts."""

SATURATION: Final = 0.9
LENGTH_INFLUENCE: Final = 0.4
AVERAGE_LENGTH: Final = 16.0
REPOSITORY_WEIGHT: Final = 3.0
HEADING_WEIGHT: Final = 0.5
PART_SHARE: Final = 0.3
SYNONYM_SHARE: Final = 0.5
JOINED_SHARE: Final = 0.8

_STOP_WORDS = """
a an and any are as at be been being but by can could did do does doing done for from had has have having he her him his how i if
in into is it its itself just me might must my of on or our ours own please shall she should so some such than that the
their them then there these they this those to too us was we were what when where whether which while who whom whose why
will with would you your yours
also ever first get gets getting give given got keep keeps list lists mention mentioned mentions note notes running tell
since start started starts begin began begins appear appeared appears happen happened
release released releases version versions changelog
"""
_STOP: Final = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that a question asks for.

    `parts` are the terms that an identifier is made of; `others` are terms that may stand for it, each with the share of
    its weight that it is worth. `identifier` is true of anything that is not a plain word.
    """

    term: str
    parts: tuple[str, ...]
    others: dict[str, float]
    identifier: bool

    @property
    def shares(self) -> dict[str, float]:
        """Every term to look for → its weight in the question."""
        return dict.fromkeys(self.parts, PART_SHARE) | self.others | {self.term: 1.0}


@dataclass(frozen=True, slots=True)
class TermWeights:
    """A sparse vector: `ids` ascending in 1 … `DIMENSIONS`, `weights` beside them, both of one length."""

    ids: list[int]
    weights: list[float]


def query_terms(question_topic: str) -> dict[str, float]:
    """The terms to look for, each with its weight in the inner product: `concepts`, flattened."""
    weights: dict[str, float] = {}
    for concept in concepts(question_topic):
        for term, share in concept.shares.items():
            weights[term] = max(share, weights.get(term, 0.0))
    return weights


def concepts(question_topic: str) -> list[Concept]:
    """What a question asks for, in reading order; words of the question's own form are dropped."""
    asked_tokens = tokens(question_topic)
    analysed = [token_terms(group, token) for group, token in asked_tokens]
    plain = [_plain_term(group, found) for (group, _), found in zip(asked_tokens, analysed, strict=True)]
    asked: dict[str, Concept] = {}
    for position, found in enumerate(analysed):
        if not found or asked_tokens[position][1].casefold() in _STOP:
            continue
        term = found[0][0]
        parts = tuple(part for part, _ in found[1:] if part not in _STOP)
        others = dict.fromkeys(_synonyms().get((term,), ()), SYNONYM_SHARE)
        if plain[position]:
            others |= _of_neighbours(asked_tokens, plain, position)
        others.pop(term, None)
        asked.setdefault(term, Concept(term, parts, others, identifier=not plain[position]))
    return list(asked.values())


@lru_cache(maxsize=200_000)
def term_id(term: str) -> int:
    """A stable number for a term, 1 … `DIMENSIONS` (it fits `int4` and the index of a `sparsevec`)."""
    digest = hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % DIMENSIONS + 1


def index_terms(repository: str, version: str, headings: Sequence[str], text: str) -> TermWeights:
    """The terms of one chunk with its context, as BM25 weights without idf.

    `repository` is `owner/name`; `version` the tag or the version in it; `headings` the path from the release's
    title down. Weights are in (0, 1 + SATURATION).
    """
    frequencies: dict[str, float] = {}
    length = 0.0
    for term, size in sized_terms(text):
        frequencies[term] = frequencies.get(term, 0.0) + 1.0
        length += size
    for heading in headings:
        for term, _ in sized_terms(heading):
            frequencies[term] = frequencies.get(term, 0.0) + HEADING_WEIGHT
    for context in (repository, version):
        for term in dict.fromkeys(terms(context)):
            frequencies[term] = frequencies.get(term, 0.0) + REPOSITORY_WEIGHT
    norm = SATURATION * (1 - LENGTH_INFLUENCE + LENGTH_INFLUENCE * length / AVERAGE_LENGTH)
    weighted = sorted(
        (term_id(term), frequency * (1 + SATURATION) / (frequency + norm))
        for term, frequency in frequencies.items()
    )
    merged: dict[int, float] = {}
    for identity, weight in weighted:
        merged[identity] = max(weight, merged.get(identity, 0.0))
    return TermWeights(list(merged), list(merged.values()))


def idf(document_frequency: int, documents: int) -> float:
    """How much a term says: ln(1 + (N − n + ½) / (n + ½)), never negative."""
    n = min(max(document_frequency, 0), documents)
    return math.log1p((documents - n + 0.5) / (n + 0.5))


def _plain_term(group: str, found: Sequence[tuple[str, float]]) -> str:
    """The term of a token that is a plain word; empty for whatever has parts or is not a word."""
    return found[0][0] if group == "word" and len(found) == 1 and found[0][0].isalpha() else ""


def _of_neighbours(
    asked_tokens: Sequence[tuple[str, str]], plain: Sequence[str], position: int
) -> dict[str, float]:
    """What may stand for a word together with the one before or after it: "time limit", "web socket"."""
    found: dict[str, float] = {}
    for first in (position - 1, position):
        second = first + 1
        if first >= 0 and second < len(plain) and plain[first] and plain[second]:
            found |= dict.fromkeys(_synonyms().get((plain[first], plain[second]), ()), SYNONYM_SHARE)
            found[stem((asked_tokens[first][1] + asked_tokens[second][1]).casefold())] = JOINED_SHARE
    return found


@cache
def _synonyms() -> dict[tuple[str, ...], frozenset[str]]:
    """Synonyms by the terms of the word or phrase that they replace; only single terms are put in its place."""
    found: dict[tuple[str, ...], frozenset[str]] = {}
    for group in GROUPS:
        members = [tuple(_first_term(word) for word in phrase.split()) for phrase in group.split(", ")]
        single = frozenset(member[0] for member in members if len(member) == 1) - _STOP
        for member in members:
            found[member] = found.get(member, frozenset()) | single
    return found


def _first_term(word: str) -> str:
    return token_terms("word", word)[0][0]
