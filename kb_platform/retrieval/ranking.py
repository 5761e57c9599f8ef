"""The order of the passages that were found for a question, and whether any of them answers it.

Belongs here: what is measured of a candidate (its features), the learned weights, the bar for refusals. Pure
functions. Does not belong here: finding candidates (`store`), understanding the question (`question`).

Weights and bar come from `benchmarks/ranking_experiments.py`: a softmax over the candidates of each question, learned on
ten of the twenty shared repositories (golden questions, questions cut from items, paraphrases with four times the weight).
Measured over all 4,362 shared releases at once, recall @1/@5 on the ten repositories learned from | on the other ten:

    (2026-11)                                lookup                      removed                     paraphrases
    BM25 over whole releases                 0.806/0.972 | 0.703/0.956   0.727/0.909 | 0.816/0.947   0.192/0.231 | 0.091/0.364
    BM25 over chunks (`words`)               1.000/1.000 | 0.975/1.000   1.000/1.000 | 1.000/1.000   0.115/0.192 | 0.045/0.318
    vectors alone, repository understood     0.958/0.993 | 0.842/0.930   0.864/0.955 | 0.921/0.947   0.308/0.462 | 0.182/0.545
    this, no filter                          1.000/1.000 | 0.994/1.000   1.000/1.000 | 1.000/1.000   0.115/0.192 | 0.091/0.409
    this, repository understood              1.000/1.000 | 1.000/1.000   1.000/1.000 | 1.000/1.000   0.269/0.385 | 0.136/0.545

The halves separate the learned numbers only: terms, stems and the thesaurus were made while looking at all twenty.
Paraphrases share no identifier and hardly a word with the notes: there vectors lead, as they do alone.

The bar is a logistic regression on the first candidates of one half and of the packaged sample (478 chunks, so other idf),
whose 32 questions are in a person's own words and weigh most. Held out: the other half, and each of the sample's
repositories in turn; but what counts as evidence, and how much a question weighs, was chosen looking at all of them. Share
refused (2026-11):

                                         learned from   held out   as in use
    golden lookup and removed            0.000          0.000      0.000
    cut from items                       0.003          0.003      0.003
    fact of another project              0.988          0.990      0.989
    invented feature                     1.000          0.988      0.991
    rarest word exchanged                0.540          0.520      0.464
    paraphrase                           1.000          1.000      1.000
    sample: answerable (32)              0.031          0.062      0.031
    sample: unanswerable (6)             0.833          0.833      1.000
    sample: rarest word exchanged        0.172          0.207      0.172
    sample: invented feature             1.000          1.000      1.000

A bar fitted on golden and cut questions alone refused nearly all of the exchanged words, and with them 15 of the 32 questions: who
words a question freely leaves a word unmatched as well. Of the 48 paraphrases, 10 have the right passage first; neither words
nor this model's cosines tell those from inventions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, pairwise
from operator import mul
from typing import Final

from kb_platform.text.terms import sized_terms, stem, terms
from kb_platform.text.words import Concept, concepts

WEIGHTS: Final[Mapping[str, float]] = {
    "words": 1.8,
    "cosine": 5.4,
    "coverage": 4.8,
    "order": 2.8,
    "kind": 0.5,
}
"""Feature → weight, as `benchmarks/ranking_experiments.py` learned them, rounded."""
BAR: Final = 0.5
BAR_WEIGHTS: Final[Mapping[str, float]] = {"coverage": 6.5, "gap": -3.6, "unnamed": -5.3, "lead": 7.2}
BAR_CONSTANT: Final = -3.1
"""Evidence → log-odds that it answers, learned as the weights were. Cosines themselves were offered as well and came out with
little weight: what tells is by how much the best one is ahead of what other releases say."""
READ: Final = 48
"""How many candidates, the best by words and vectors alone, are read in full. The rest keep that order below them."""
READ_CHARACTERS: Final = 2_000
NEAR: Final = 4
"""How many terms apart neighbours of the question may stand in a text that still says them together."""
PARTIAL: Final = 0.6
"""Worth of a concept that only the context (repository, tag, headings), a synonym or the parts of an identifier match."""

MISSING: Final = 0.3
"""A concept matched by less than this counts as not said at all."""

DEEDS: Final = frozenset(
    stem(word)
    for word in ("add", "introduce", "implement", "fix", "resolve", "solve", "correct", "remove", "drop", "delete",
                 "deprecate", "change", "update")
)  # fmt: skip
"""What releases do to things. The kind of a change says it too, so a note need not."""

_FAR_FUTURE: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that may answer.

    `key` is the caller's own. `bm25` is the inner product of the chunk's `words.index_terms` with `words.query_terms` ×
    idf, 0 when no word matches; `cosine` is in −1 … 1, None where there is no vector to compare with.
    """

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
    """What is asked: the topic's concepts, what each is worth, and the kinds of change that were named.

    `worths` are idf; of a concept that may be said otherwise: of the commonest way to say it. `attainable` is the sum of
    idf over the topic's own terms, which `words.query_terms` weighs with 1.
    """

    concepts: tuple[Concept, ...]
    worths: tuple[float, ...]
    attainable: float
    kinds: frozenset[str] = frozenset()

    @classmethod
    def about(cls, topic: str, idf: Mapping[str, float], kinds: Iterable[str] = ()) -> Inquiry:
        """`idf` of the terms of `terms_of(topic)`; a term that it lacks adds nothing."""
        asked = tuple(concepts(topic))
        ways = [[idf[term] for term in (c.term, *c.others) if term in idf] for c in asked]
        return cls(
            concepts=asked,
            worths=tuple(min(values, default=0.0) for values in ways),
            attainable=sum(idf.get(concept.term, 0.0) for concept in asked),
            kinds=frozenset(str(kind) for kind in kinds),
        )

    @staticmethod
    def terms_of(topic: str) -> frozenset[str]:
        """The terms whose idf a ranking needs."""
        return frozenset(term for concept in concepts(topic) for term in concept.shares)


@dataclass(frozen=True, slots=True)
class Features:
    """What is measured of a candidate; each about 0 … 1.

    `words`: BM25 as a share of what the question's own terms could give, squared. `coverage`: share of the question that the
    chunk speaks of, by idf, squared. `order`: share of the question's neighbouring concepts that stand together in the
    text, times coverage. The squares say that half of the words is much less than half of the evidence: they let vectors
    decide where words match badly.
    """

    words: float
    cosine: float
    coverage: float
    order: float
    kind: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the bar looks at; free of the size of the corpus, because every idf is a share of the question's sum.

    `coverage`: share of the question, by idf, that the chunk speaks of. `gap`: the largest share that one concept has of
    which the chunk says nothing. `unnamed`: the largest share that an identifier loses by not being said as asked: people
    put plain words their own way, names they copy. `lead`: the cosine, less the highest of a chunk that says something else
    in another release; 0 where there are no vectors or no other release.
    """

    coverage: float
    gap: float
    unnamed: float
    lead: float = 0.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its score (higher is better, comparable within one question) and its `relevance` in [0, 1],
    which is comparable between questions: `BAR` and above counts as an answer."""

    candidate: Candidate
    score: float
    relevance: float


def rank(inquiry: Inquiry, candidates: Sequence[Candidate]) -> list[Ranked]:
    """All candidates, best first. Of those that say the same in several releases, the earliest published comes first."""
    if not inquiry.concepts:
        return [Ranked(candidate, 0.0, 1.0) for candidate in candidates]
    ordered = sorted(candidates, key=lambda candidate: -_first_guess(inquiry, candidate))
    read = _ranked(inquiry, ordered[:READ])
    best: dict[frozenset[str], float] = {}
    for found in read:
        signature = _signature(found.candidate)
        best[signature] = max(found.score, best.get(signature, -math.inf))
    read.sort(
        key=lambda found: (
            -best[_signature(found.candidate)],
            found.candidate.published_at or _FAR_FUTURE,
            -found.score,
        )
    )
    floor = min((found.score for found in read), default=0.0)
    rest = [
        Ranked(candidate, min(floor, _first_guess(inquiry, candidate)), 0.0) for candidate in ordered[READ:]
    ]
    return read + rest


def passes(inquiry: Inquiry, ranked: Sequence[Ranked]) -> bool:
    """Whether any of the first three counts as an answer. A question with no words of its own is answered by its filters."""
    return any(found.relevance >= BAR for found in ranked[:3]) or (not inquiry.concepts and bool(ranked))


def measure(inquiry: Inquiry, candidate: Candidate) -> tuple[Features, Evidence]:
    """What is measured of one candidate, for its order and for the bar; reads its text. `evidence` adds the lead."""
    reading = _reading(candidate)
    matched = [_match(concept, reading) for concept in inquiry.concepts]
    total = sum(inquiry.worths) or 1.0
    coverage = sum(map(mul, inquiry.worths, matched)) / total
    found = Features(
        words=_words(inquiry, candidate) ** 2,
        cosine=candidate.cosine or 0.0,
        coverage=coverage**2,
        order=coverage * _order(inquiry, reading),
        kind=1.0 if candidate.kind in inquiry.kinds else 0.0,
    )
    return found, _evidence(inquiry, matched)


def evidence(inquiry: Inquiry, candidates: Sequence[Candidate]) -> list[Evidence]:
    """What the bar sees of each of the candidates among these, in their order."""
    return [
        replace(measure(inquiry, candidate)[1], lead=lead)
        for candidate, lead in zip(candidates, _leads(candidates), strict=True)
    ]


def _evidence(inquiry: Inquiry, matched: Sequence[float]) -> Evidence:
    """Without the deed, unless nothing else is asked: a heading says "fixed" as well as a note does, and in a corpus of a
    hundred releases the word is rare enough to refuse the right answer (2026-11: 2 of the 3 demo questions)."""
    everything = list(zip(inquiry.concepts, inquiry.worths, matched, strict=True))
    asked = [entry for entry in everything if entry[0].term not in DEEDS] or everything
    total = sum(worth for _, worth, _ in asked) or 1.0
    missing = (worth for _, worth, match in asked if match < MISSING)
    unnamed = (worth * (1 - match) for concept, worth, match in asked if concept.identifier)
    return Evidence(
        coverage=sum(worth * match for _, worth, match in asked) / total,
        gap=max(missing, default=0.0) / total,
        unnamed=max(unnamed, default=0.0) / total,
    )


def _leads(candidates: Sequence[Candidate]) -> list[float]:
    """Of each candidate: how far its cosine is above that of the best rival, another text in another release."""
    signatures = {place: _signature(candidate) for place, candidate in enumerate(candidates)}
    cosines = {place: c.cosine for place, c in enumerate(candidates) if c.cosine is not None}
    nearest = sorted(cosines, key=lambda place: -cosines[place])

    def rivals(place: int) -> Iterator[float]:
        own = candidates[place]
        for other in nearest:
            elsewhere = (candidates[other].repository, candidates[other].tag) != (own.repository, own.tag)
            if elsewhere and signatures[other] != signatures[place]:
                yield cosines[other]

    return [
        cosines[place] - next(rivals(place), cosines[place]) if place in cosines else 0.0
        for place in range(len(candidates))
    ]


def _ranked(inquiry: Inquiry, candidates: Sequence[Candidate]) -> list[Ranked]:
    read: list[Ranked] = []
    for candidate, lead in zip(candidates, _leads(candidates), strict=True):
        found, seen = measure(inquiry, candidate)
        score = sum(weight * getattr(found, name) for name, weight in WEIGHTS.items())
        read.append(Ranked(candidate, score, _relevance(replace(seen, lead=lead))))
    return read


def _relevance(found: Evidence) -> float:
    odds = BAR_CONSTANT + sum(weight * getattr(found, name) for name, weight in BAR_WEIGHTS.items())
    return 1 / (1 + math.exp(-odds))


def _first_guess(inquiry: Inquiry, candidate: Candidate) -> float:
    words = (WEIGHTS["words"] + WEIGHTS["coverage"]) * _words(inquiry, candidate) ** 2
    return words + WEIGHTS["cosine"] * (candidate.cosine or 0.0)


def _words(inquiry: Inquiry, candidate: Candidate) -> float:
    return candidate.bm25 / inquiry.attainable if inquiry.attainable > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Reading:
    """`places`: where each term of the text stands. `said`: its terms without references, authors, hashes and parts.
    `context`: the terms of headings, repository and tag."""

    places: Mapping[str, Sequence[int]]
    said: frozenset[str]
    context: frozenset[str]


def _reading(candidate: Candidate) -> _Reading:
    return _read(candidate.text, candidate.headings, candidate.repository, candidate.tag)


@lru_cache(maxsize=20_000)
def _read(text: str, *around: str | tuple[str, ...]) -> _Reading:
    places: dict[str, list[int]] = {}
    said: list[str] = []
    for place, (term, size) in enumerate(sized_terms(text[:READ_CHARACTERS])):
        places.setdefault(term, []).append(place)
        if size:
            said.append(term)
    return _Reading(places, frozenset(said), frozenset(chain.from_iterable(map(_terms_around, around))))


@lru_cache(maxsize=20_000)
def _terms_around(around: str | tuple[str, ...]) -> frozenset[str]:
    parts = (around,) if isinstance(around, str) else around
    return frozenset(term for part in parts for term in terms(part))


def _signature(candidate: Candidate) -> frozenset[str]:
    """Equal for one change that the notes of several releases mention."""
    return _reading(candidate).said | {candidate.repository}


def _match(concept: Concept, reading: _Reading) -> float:
    if concept.term in reading.places:
        return 1.0
    if concept.term in reading.context or any(other in reading.places for other in concept.others):
        return PARTIAL
    parts = [part in reading.places for part in concept.parts]
    return PARTIAL * sum(parts) / len(parts) if parts else 0.0


def _order(inquiry: Inquiry, reading: _Reading) -> float:
    """Share of the neighbours in the question that are near each other, in this order, in the text."""
    where = [_places(concept, reading) for concept in inquiry.concepts]
    gained = possible = 0.0
    for first, second in pairwise(range(len(where))):
        value = math.sqrt(inquiry.worths[first] * inquiry.worths[second])
        possible += value
        if any(0 < later - earlier <= NEAR for earlier in where[first] for later in where[second]):
            gained += value
    return gained / possible if possible else 0.0


def _places(concept: Concept, reading: _Reading) -> Sequence[int]:
    own = reading.places.get(concept.term)
    if own is not None:
        return own
    return [place for other in (*concept.others, *concept.parts) for place in reading.places.get(other, ())]
