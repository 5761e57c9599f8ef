"""A text → its terms, the units that full-text retrieval compares.

Belongs here: where a term begins and ends, its folded form, the parts of an identifier, stems. Does not belong here: what
a term weighs, in a chunk or in a question (`words`).

An identifier (`rd_kafka_list_groups`, `httpx.AsyncClient`, `X-Forwarded-For`) is a term as a whole, and so is each part
of it; a plain word is a stem. The whole keeps exact questions exact; the parts find it for who writes it as words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

Sized = tuple[str, float]
"""A term and its share of the text's length: 1 for a word, 0 for its parts, references, authors and hashes."""

LONGEST_TOKEN: Final = 200
"""In code points. What is longer is encoded data, which nobody asks for word by word."""

_TOKEN = re.compile(
    r"""
      (?P<url>https?://[^\s<>"')\]]+)
    | (?P<advisory>\b(?:CVE[-\ _]\d{4}-\d+|GHSA(?:-[0-9a-z]{4}){3})\b)
    | (?P<number>(?<!\w)(?:\#|GH-)\d+\b)
    | (?P<version>(?<![\w.])[vV]?\d+(?:\.\d+)+(?:[-.+]?(?:alpha|beta|dev|post|pre|rc|a|b)[-.]?\d*|[a-z])?(?!\w))
    | (?P<handle>(?<!\w)@[A-Za-z0-9][\w-]*(?![\w/]))
    | (?P<flag>(?<![\w-])--?[A-Za-z][\w-]*)
    | (?P<language>\b[CcFf](?:\+\+|\#)(?!\w))
    | (?P<word>\w+(?:(?:[.\-/:]|::|->)\w+)*)
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Letters outside ASCII count as small ones: they never begin a part.
_PARTS = re.compile(
    r"[A-Z]{2,}s(?![^\W\d_A-Z])|[A-Z]+(?=[A-Z][^\W\d_A-Z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+(?:\.\d+)*"
)
_ACRONYMS = re.compile(r"[A-Z]{2,}s")
_URL_NUMBER = re.compile(r"/(?:pull|issues|merge_requests|discussions)/(\d+)")
_HASH = re.compile(r"(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}")
_POSSESSIVE = re.compile(r"(?<=\w)['’](?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)
_VOWEL = re.compile(r"[aeiouy]")
_PLAIN = re.compile(r"[a-z]+")
_NO_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]+")
# Too short a rest would fold words that have nothing to do with each other: "format" and "form".
_LEAST_REST: Final = 5
_DERIVATIONS: Final = (
    ("ization", "iz"),
    ("ation", ""),
    ("ator", ""),
    ("ate", ""),
    ("at", ""),
    ("ment", ""),
    ("ly", ""),
    ("ion", ""),
)
# What looks like an ending in them is none.
_UNTOUCHED: Final = frozenset({"alias", "always", "embed", "https", "kubernetes", "postgres", "setting"})
# Verbs of release notes whose past has another stem.
_IRREGULAR: Final = {
    past: verb
    for verb, pasts in {
        "break": "broke broken",
        "bring": "brought",
        "build": "built",
        "catch": "caught",
        "choose": "chose chosen",
        "draw": "drew drawn",
        "find": "found",
        "freeze": "froze frozen",
        "grow": "grew grown",
        "hide": "hid hidden",
        "hold": "held",
        "keep": "kept",
        "lose": "lost",
        "make": "made making",
        "overwrite": "overwrote overwritten",
        "override": "overrode overridden overriding",
        "rebuild": "rebuilt",
        "resend": "resent",
        "rewrite": "rewrote rewritten",
        "run": "ran",
        "send": "sent",
        "show": "shown",
        "shrink": "shrank shrunk",
        "take": "took taken taking",
        "throw": "threw thrown",
        "write": "wrote written writing",
    }.items()
    for past in pasts.split()
}


def terms(text: str) -> list[str]:
    """The terms of a text in reading order: an identifier whole, then its parts; plain words as stems."""
    return [term for term, _ in sized_terms(text)]


def sized_terms(text: str) -> Iterator[Sized]:
    """`terms`, each with its share of the text's length."""
    for group, token in tokens(text):
        yield from token_terms(group, token)


def tokens(text: str) -> list[tuple[str, str]]:
    """The tokens of a text as (group, token); the group says what it looks like: word, version, flag, …"""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    found = _TOKEN.finditer(_POSSESSIVE.sub("", text))
    return [(match.lastgroup or "", match.group()[:LONGEST_TOKEN]) for match in found]


@lru_cache(maxsize=200_000)
def token_terms(group: str, token: str) -> tuple[Sized, ...]:
    """The terms of one token, the whole first; none for an address that leads to no numbered thing."""
    match group:
        case "word":
            found = _word_terms(token)
        case "flag":
            found = _flag_terms(token)
        case "url":
            # Of an address only the number of what it leads to is worth finding.
            number = _URL_NUMBER.search(token)
            found = _number_terms(number[1]) if number else ()
        case "number":
            found = _number_terms(token.lstrip("#GHgh-"))
        case "handle":
            # An author, who does not make a text longer, or a decorator, which is asked for by its name.
            found = ((token.casefold(), 0.0), *((term, 0.0) for term, _ in _word_terms(token[1:])))
        case "version":
            found = ((token.casefold().removeprefix("v"), 1.0),)
        case _:
            found = ((re.sub("[ _]", "-", token.casefold()), 1.0),)
    return found


def _number_terms(digits: str) -> tuple[Sized, ...]:
    return ((f"#{digits}", 0.0), (digits, 0.0))


def _flag_terms(token: str) -> tuple[Sized, ...]:
    bare = token.lstrip("-")
    words = _word_terms(bare)
    if token.startswith("--") or len(bare) == 1:
        return ((token.casefold(), 1.0), *((term, 0.0) for term, _ in words))
    return words


def _word_terms(token: str) -> tuple[Sized, ...]:
    if not token.startswith("__"):
        token = token.strip("_")
    folded = token.casefold()
    if not folded:
        return ()
    if _HASH.fullmatch(folded):
        return ((folded, 0.0),)
    if _ACRONYMS.fullmatch(token):
        return ((stem(folded[:-1]), 1.0),)
    if _PLAIN.fullmatch(folded) and (token.islower() or token.isupper() or token[1:].islower()):
        return ((stem(folded), 1.0),)
    parts = [part for found in _PARTS.findall(token) for part in _pairs(found.casefold())]
    if parts in ([], [folded]):
        return ((folded, 1.0),)
    kept = [stem(part) if _PLAIN.fullmatch(part) else part for part in parts if len(part) > 1]
    return ((folded, 1.0), *((part, 0.0) for part in kept))


def _pairs(part: str) -> list[str]:
    """A run of Chinese or Japanese, which has no spaces, as its pairs of characters; anything else as it is."""
    if len(part) > 2 and _NO_SPACES.fullmatch(part):
        return [part[start : start + 2] for start in range(len(part) - 1)]
    return [part]


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Folds the usual endings of an English word, so that "fix", "fixes", "fixed" and "fixing" are one term.

    Rougher than Porter's, and shy of short words. `word` is in lower case.
    """
    bare = _without_plural(_IRREGULAR.get(word, word))
    if bare not in _UNTOUCHED:
        bare = _without_derivation(_without_participle(bare))
    if len(bare) >= 3 and bare.endswith("e"):
        bare = bare[:-1]
    if len(bare) > 3 and bare.endswith("y"):
        bare = bare[:-1] + "i"
    return bare


def _without_plural(word: str) -> str:
    if len(word) <= 3 or word in _UNTOUCHED:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes", "iases")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _without_participle(word: str) -> str:
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 2 and _VOWEL.search(rest) and not word.endswith("eed"):
            doubled = len(rest) > 3 and rest[-1] == rest[-2] and rest[-1] not in "lsz"
            return rest[:-1] if doubled else rest
    return word


def _without_derivation(word: str) -> str:
    for ending, kept in _DERIVATIONS:
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= _LEAST_REST:
            return rest + kept
    return word
