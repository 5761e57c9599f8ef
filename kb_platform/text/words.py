"""Words of a text: what full-text retrieval compares.

Belongs here: how a text becomes terms, the weights of a chunk's terms (BM25 without idf), the terms of a
question. Does not belong here: which rows are searched (`store`), or how candidates are ordered
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
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from kb_platform.text.thesaurus import GROUPS

WORDS: Final = "words-1"
"""Name of this analysis. Stored beside the weights; a change of output needs a new name."""

DIMENSIONS: Final = 1_000_000_000
"""Size of the term space: the largest dimension that pgvector's `sparsevec` accepts."""

SATURATION: Final = 0.9
LENGTH_INFLUENCE: Final = 0.4
AVERAGE_LENGTH: Final = 16.0
REPOSITORY_WEIGHT: Final = 3.0
HEADING_WEIGHT: Final = 0.5
IDENTIFIER_WEIGHT: Final = 1.0
PART_SHARE: Final = 0.3
SYNONYM_SHARE: Final = 0.5
JOINED_SHARE: Final = 0.8

_TOKEN = re.compile(
    r"""
      (?P<url>https?://[^\s<>"')\]]+)
    | (?P<advisory>\b(?:CVE[-\ _]\d{4}-\d+|GHSA(?:-[0-9a-z]{4}){3})\b)
    | (?P<number>(?<!\w)(?:\#|GH-)\d+\b)
    | (?P<version>(?<![\w.])[vV]?\d+(?:\.\d+)+(?:[-.+]?(?:alpha|beta|dev|post|pre|rc|a|b)[-.]?\d*)?(?!\w))
    | (?P<handle>(?<!\w)@[A-Za-z0-9][\w-]*(?![\w/]))
    | (?P<flag>(?<![\w-])--?[A-Za-z][\w-]*)
    | (?P<language>\b[CcFf](?:\+\+|\#)(?!\w))
    | (?P<word>\w+(?:(?:[.\-/:]|::|->)\w+)*)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+(?:\.\d+)*|[^\W\d_a-zA-Z]+")
_URL_NUMBER = re.compile(r"/(?:pull|issues|merge_requests|discussions)/(\d+)")
_HASH = re.compile(r"(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}")
_POSSESSIVE = re.compile(r"(?<=\w)['’](?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)
_VOWEL = re.compile(r"[aeiouy]")
_PLAIN = re.compile(r"[a-z]+")

_STOP: Final = frozenset(
    """
    a an and any are as at be been being but by can could do does doing for from had has have having he her him his
    how i if in into is it its itself just me might must my of on or our ours own please shall she should so some such
    than that the their them then there these they this those to too us was we were what when where whether which while
    who whom whose why will with would you your yours
    also ever first get gets getting give given got keep keeps list lists mention mentioned mentions note notes running
    tell since start started starts begin began begins appear appeared appears happen happened
    release released releases version versions changelog
    """.split()
)


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that a question asks for.

    `alternatives` are terms that may stand for `term`, each with the share of `weight` that it is worth: the parts of an
    identifier, synonyms of a word. `identifier` is true of anything that is not a plain word.
    """

    term: str
    weight: float
    alternatives: dict[str, float]
    identifier: bool


@dataclass(frozen=True, slots=True)
class TermWeights:
    """A sparse vector: `ids` ascending in 1 … `DIMENSIONS`, `weights` beside them, both of one length."""

    ids: list[int]
    weights: list[float]


def terms(text: str) -> list[str]:
    """The terms of a text in reading order: an identifier whole, then its parts; plain words stemmed."""
    return [term for term, _ in _analysed(text)]


def query_terms(question_topic: str) -> dict[str, float]:
    """The terms to look for, each with its weight in the inner product: `concepts`, flattened."""
    weights: dict[str, float] = {}
    for concept in concepts(question_topic):
        weights[concept.term] = max(concept.weight, weights.get(concept.term, 0.0))
        for term, share in concept.alternatives.items():
            weights[term] = max(concept.weight * share, weights.get(term, 0.0))
    return weights


def concepts(question_topic: str) -> list[Concept]:
    """What a question asks for, in reading order; words of the question's own form are dropped."""
    found: list[Concept] = []
    tokens = [match for match in _tokens(question_topic)]
    words = [_single(group, token) for group, token in tokens]
    for position, (group, token) in enumerate(tokens):
        analysed = _token_terms(group, token)
        if not analysed or (words[position] or "") in _STOP_STEMS:
            continue
        term, parts = analysed[0][0], [part for part, _ in analysed[1:] if part not in _STOP_STEMS]
        alternatives = {part: PART_SHARE for part in parts}
        if words[position] is not None:
            alternatives |= {other: SYNONYM_SHARE for other in _alternatives().get((term,), ())}
            for neighbour in (position - 1, position + 1):
                if 0 <= neighbour < len(words) and words[neighbour] is not None:
                    first, second = sorted((position, neighbour))
                    pair = (words[first] or "", words[second] or "")
                    alternatives |= {other: SYNONYM_SHARE for other in _alternatives().get(pair, ())}
                    alternatives[_stem(tokens[first][1].casefold() + tokens[second][1].casefold())] = JOINED_SHARE
        alternatives.pop(term, None)
        weight = 1.0 if words[position] is not None else IDENTIFIER_WEIGHT
        found.append(Concept(term, weight, alternatives, words[position] is None))
    return found


def term_id(term: str) -> int:
    """A stable number for a term, 1 … `DIMENSIONS` (it fits `int4` and the index of a `sparsevec`)."""
    return _term_id(term)


def index_terms(repository: str, version: str, headings: Sequence[str], text: str) -> TermWeights:
    """The terms of one chunk with its context, as BM25 weights without idf.

    `repository` is `owner/name`; `version` the tag or the version in it; `headings` the path from the release's
    title down. Weights are in (0, 1 + SATURATION).
    """
    frequencies: dict[str, float] = {}
    length = 0.0
    for term, size in _analysed(text):
        frequencies[term] = frequencies.get(term, 0.0) + 1.0
        length += size
    for heading in headings:
        for term, _ in _analysed(heading):
            frequencies[term] = frequencies.get(term, 0.0) + HEADING_WEIGHT
    for context in (repository, version):
        for term in dict.fromkeys(terms(context)):
            frequencies[term] = frequencies.get(term, 0.0) + REPOSITORY_WEIGHT
    norm = SATURATION * (1 - LENGTH_INFLUENCE + LENGTH_INFLUENCE * length / AVERAGE_LENGTH)
    weighted = sorted(
        (_term_id(term), frequency * (1 + SATURATION) / (frequency + norm))
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


def _analysed(text: str) -> Iterator[tuple[str, float]]:
    """Terms with their share of the text's length. References, hashes and parts of identifiers have none."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    for match in _TOKEN.finditer(_POSSESSIVE.sub("", text)):
        yield from _token_terms(match.lastgroup or "", match.group())


def _tokens(text: str) -> list[tuple[str, str]]:
    text = _POSSESSIVE.sub("", unicodedata.normalize("NFKC", text))
    return [(match.lastgroup or "", match.group()) for match in _TOKEN.finditer(text)]


def _single(group: str, token: str) -> str | None:
    """The term of a plain word; None for whatever has parts or is not a word."""
    if group != "word" or not _PLAIN.fullmatch(token.casefold()):
        return None
    analysed = _token_terms(group, token)
    return analysed[0][0] if len(analysed) == 1 and analysed[0][1] else None


@cache
def _alternatives() -> dict[tuple[str, ...], frozenset[str]]:
    """Synonyms by the terms of the word or phrase that they replace; only single terms are put in its place."""
    found: dict[tuple[str, ...], frozenset[str]] = {}
    for group in GROUPS:
        members = [tuple(_stem(word) for word in phrase.split()) for phrase in group.split(", ")]
        single = frozenset(_stem(phrase[0]) for phrase in members if len(phrase) == 1) - _STOP_STEMS
        for member in members:
            found[member] = found.get(member, frozenset()) | single
    return found


@lru_cache(maxsize=200_000)
def _token_terms(group: str, token: str) -> tuple[tuple[str, float], ...]:
    if group == "word":
        return _word_terms(token)
    if group == "url":
        number = _URL_NUMBER.search(token)
        return ((f"#{number[1]}", 0.0), (number[1], 0.0)) if number else ()
    if group == "number":
        digits = token.lstrip("#GHgh-")
        return ((f"#{digits}", 0.0), (digits, 0.0))
    if group == "version":
        return ((token.casefold().removeprefix("v"), 1.0),)
    if group == "handle":
        return ((token.casefold(), 0.0),)
    if group == "flag":
        bare = token.lstrip("-")
        whole = ((token.casefold(), 1.0),) if len(token) - len(bare) == 2 or len(bare) == 1 else ()
        return whole + tuple((term, 0.0 if whole else size) for term, size in _word_terms(bare))
    if group == "advisory":
        return ((re.sub("[ _]", "-", token.casefold()), 1.0),)
    return ((token.casefold(), 1.0),)


def _word_terms(token: str) -> tuple[tuple[str, float], ...]:
    token = token.rstrip("_") if not token.startswith("__") else token
    token = token.lstrip("_") if not token.startswith("__") else token
    if not token:
        return ()
    folded = token.casefold()
    if _HASH.fullmatch(folded):
        return ((folded, 0.0),)
    if _PLAIN.fullmatch(folded) and (token.islower() or token.isupper() or token[1:].islower()):
        return ((_stem(folded), 1.0),)
    parts = [part.casefold() for part in _PARTS.findall(token)]
    if parts == [folded] or not parts:
        return ((folded, 1.0),)
    kept = [_stem(part) if _PLAIN.fullmatch(part) else part for part in parts if len(part) > 1]
    return ((folded, 1.0), *((part, 0.0) for part in kept))


@lru_cache(maxsize=100_000)
def _term_id(term: str) -> int:
    digest = hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % DIMENSIONS + 1


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    """Folds the usual endings of an English word, so that "fix", "fixes", "fixed" and "fixing" are one term."""
    if len(word) <= 3:
        return word
    stem = word
    if stem.endswith("ies") and len(stem) > 4:
        stem = stem[:-3] + "y"
    elif stem.endswith(("sses", "shes", "ches", "xes", "zes")):
        stem = stem[:-2]
    elif stem.endswith("s") and not stem.endswith(("ss", "us", "is")):
        stem = stem[:-1]
    for ending in ("ing", "ed"):
        if stem.endswith(ending) and len(stem) - len(ending) >= 2 and _VOWEL.search(stem[: -len(ending)]):
            stem = stem[: -len(ending)]
            if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz":
                stem = stem[:-1]
            break
    for ending, kept in (("ization", "iz"), ("ations", ""), ("ation", ""), ("ator", ""), ("ate", ""), ("at", "")):
        if stem.endswith(ending) and len(stem) - len(ending) >= 4:
            stem = stem[: -len(ending)] + kept
            break
    else:
        for ending in ("ment", "ly", "ion"):
            if stem.endswith(ending) and len(stem) - len(ending) >= 5:
                stem = stem[: -len(ending)]
                break
    if stem.endswith("e") and len(stem) > 3:
        stem = stem[:-1]
    if stem.endswith("y") and len(stem) > 3:
        stem = stem[:-1] + "i"
    return stem


_STOP_STEMS: Final = frozenset(_STOP | {_stem(word) for word in _STOP})
