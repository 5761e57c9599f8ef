"""Where in a sentence the name of a project stands.

Belongs here: the places, from "the name of something else" to "exactly what is asked about", and the words
around a name that make them. Does not belong here: which name in a question wins (`retrieval.mentions`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from kb_platform.retrieval.dates import COUNT
from kb_platform.retrieval.repository_names import (
    LANGUAGES,
    Evidence,
    Name,
    Occurrence,
    RepositoryNames,
    letters,
)


class Place(IntEnum):
    """Where in a sentence a name stands, the clearest last."""

    REFUSED = 0  # part of another project's name: `Prometheus` in "Prometheus Operator"
    ANYWHERE = 1
    PREPOSITION = 2  # "… in Traefik …", or the first word
    VERSIONED = 3  # "Astro 4.2"
    TOPIC = 4  # "changes in uv since …", "Ruff's …", "Traefik between …"
    RELEASES = 5  # "the Prometheus release", "version of etcd", "upgrading uv from …"
    ACTOR = 6  # "did Pydantic add …", "running into this with Strimzi: …"
    ASKED = 7  # "Which Ruff release …", "what is the first HTTPX version …"
    SPELT_OUT = 8  # owner/repo


RELEASE: Final = r"(?:pre-?)?(?:releases?|versions?|changelogs?|tags?|release notes)"
# "The AI SDK" is the project `ai`; "the Kafka operator" is not the project `kafka`.
ITSELF: Final = (
    r"(?:SDK|CLI|library|lib|framework|project|package|tool|toolkit|repo|repository|extension|database)"
)
QUALITY: Final = r"(?:stable|minor|major|patch|bugfix|feature|new|newer|old|older|beta|alpha|canary|rc|lts|security|v?[0-9][\w.]*)"
ASIDE: Final = r"(?:\s*\([^()]{1,60}\))?"
VERB: Final = (
    r"(?:add|allow|avoid|begin|break|bring|change|deprecate|disable|drop|enable|ensure|expose|fix|gain|get|handle|have|implement"
    r"|improve|include|introduce|learn|make|move|no longer|offer|prevent|provide|raise|remove|rename|replace|require|respect"
    r"|return|ship|skip|start|stop|support|switch|treat|upgrade|use)(?:s|d|ed|es|ing)?"
)
_CLAUSE = (
    r"(?:did|does|do|has|have|had|is|was|were|are|am|can|could|will|would|should|may|might|must|to|on|in|at|by|with|for|that|which"
    r"|who|where|when|while|and|or|but|if|as|first|last|list\w*|mention\w*|still|also|now|no|not|than|between|through|until|after"
    r"|since|before|from|up|later|newer|older|published|released|came|come|shipped|so|during|over|this|these|please|we|i|you|it)"
)
_QUOTE = "[\"'`*]*"
_NAME_END = rf"{_QUOTE}{ASIDE}(?: {ITSELF})?{ASIDE}"

_OTHER_THING = re.compile(
    rf"{_QUOTE}[ -](?:operator|exporter|collector|plugin|provider|driver|adapter|connector|client|server|chart|action|bridge"
    r"|agent|gateway|dashboard|image|integration)s?\b",
    re.IGNORECASE,
)
_CAPITALISED_BEFORE = re.compile(r"(?<=\w )(?P<word>[A-Z][\w.]*) $")
_CAPITALISED_AFTER = re.compile(rf"{_QUOTE} (?!{ITSELF}\b|I\b|CVE)(?P<word>[A-Z]\w+)")

_AFTER_RELEASES = re.compile(rf"{_NAME_END}(?:'s)?(?: {QUALITY}){{0,3}} {RELEASE}\b", re.IGNORECASE)
_BEFORE_RELEASES = re.compile(
    rf"(?:\b{RELEASE} (?:of|for|from)|\bwhat(?: i|')s new in|\bchangelog of)(?: the)? {_QUOTE}$",
    re.IGNORECASE,
)
# "version of astro starlight …": a word that no clause begins with belongs to the name.
_AFTER_LONGER_NAME = re.compile(
    rf"{_QUOTE} (?!{ITSELF}\b|{VERB}\b|{RELEASE}\b|{_CLAUSE}\b)[a-z][a-z-]+(?:\s|$)"
)
_BEFORE_UPGRADE = re.compile(
    rf"\b(?:upgrad|updat|migrat|mov|go)\w*(?: our| my| the)? {_QUOTE}$", re.IGNORECASE
)
_AFTER_UPGRADE = re.compile(rf"{_QUOTE}{ASIDE}(?: {ITSELF})? (?:from|to|past|beyond)\b", re.IGNORECASE)
_BEFORE_LATEST = re.compile(rf"\b(?:latest|newest|most recent|current)(?: stable)? {_QUOTE}$", re.IGNORECASE)
_AFTER_LATEST = re.compile(rf"{_NAME_END}\W*(?:$|[?,:;.])", re.IGNORECASE)
_ASKING = re.compile(
    r"\b(?:which|what|first|latest|newest|last|earliest|oldest|every|all|any|list|many|recent|stable)\b[^,;:?]{0,24}$",
    re.IGNORECASE,
)
_DETERMINER = re.compile(
    r"\b(?:which|what|the|our|my|your|this|that|first|latest|newest|last|earliest|oldest|final|current|next|previous|upcoming|every"
    rf"|each|all|any|recent|an?|of|pre-?release|{QUALITY}|{COUNT}) $",
    re.IGNORECASE,
)

_NO_NAME = re.compile(r"When|Since|Did|Does|And|Or|In|For|With|On|From|To|Is|Are|Has|I", re.IGNORECASE)
_BEFORE_ACTOR = re.compile(
    r"(?:\b(?P<auxiliary>did|does|do|has|have|is|was|were|will|can|could|when|since) (?P<the>the )?"
    rf"|\b(?:this|problems?|trouble|issues?) (?:in|with) (?:the )?(?={_QUOTE}$)){_QUOTE}$",
    re.IGNORECASE,
)
_AFTER_NOUN = re.compile(r" (?:of|to|for|with|and|or|via|by|that|which|are|were)\b|[-/]", re.IGNORECASE)
_AFTER_COMMON_ACTOR = re.compile(
    rf"{_NAME_END}(?:$|[,:?;]|'s\b| (?:{VERB}|v?[0-9][\w.]*|first|ever|between|from|since|after|before|until|in|on|when|last|this"
    r"|past|over|during|within|so far|recently|lately|today)\b)",
    re.IGNORECASE,
)
_AFTER_SOFTWARE = re.compile(rf"{_QUOTE}{ASIDE} (?:SDK|CLI)\b")
_AFTER_ITSELF = re.compile(rf"{_QUOTE}{ASIDE} {ITSELF}\b", re.IGNORECASE)
_BEFORE_TOPIC = re.compile(
    r"\b(?:new|changed?|changes?|happened|broken?|breaks?|breaking|introduced|landed|shipped|released|removed|deprecated|added|fixed"
    rf"|differs?) (?:in|with|to|for|about|on) (?:the )?{_QUOTE}$",
    re.IGNORECASE,
)
_AFTER_TOPIC = re.compile(
    rf"{_NAME_END}(?:'s\b|:| (?:between|from|since|after|before|until|up to|prior|later|in v?[0-9])\b)",
    re.IGNORECASE,
)
_AFTER_CHANGES = re.compile(
    rf"{_NAME_END}(?:'s)? (?:(?:breaking|security|notable|bug|recent|latest|all) )?"
    r"(?:changes|fixes|updates|deprecations|removals|bugfixes)\b",
    re.IGNORECASE,
)
_OPENING = re.compile(rf"(?:(?:in|for|with|on|regarding|about|using) (?:the )?)?{_QUOTE}$", re.IGNORECASE)
_AFTER_OPENING = re.compile(rf"{_QUOTE}{ASIDE}[,:]")
_AFTER_VERSIONED = re.compile(
    rf"{_QUOTE}{ASIDE}(?: version| release)?(?: ?(?:==|>=|<=|~=|@|<|>) ?| )v?[0-9]+(?:\.|\b)", re.IGNORECASE
)
_PREPOSITION = re.compile(
    rf"\b(?:in|with|for|of|using|by|from|on|into|to|about|inside|via|does|did|upgrade|use)(?: the)? {_QUOTE}$",
    re.IGNORECASE,
)
_APPENDIX = re.compile(rf"(?:{_QUOTE} {ITSELF}\b)?(?:'s\b)?(?P<aside> \([^()]{{1,60}}\))?", re.IGNORECASE)
_SAYS_WHAT = re.compile(rf"^ \((?:the|an?) .*\b{ITSELF}\)$", re.IGNORECASE)


def place_of(text: str, occurrence: Occurrence, names: RepositoryNames) -> Place:
    """The place of a name that was found in `text`."""
    start, end = occurrence.start, occurrence.end
    if "/" in occurrence.text and any(name.evidence is Evidence.FULL for name in occurrence.names):
        return Place.SPELT_OUT
    before, after = text[max(0, start - 80) : start], text[end : end + 120]
    if _is_part_of_another(before, after, occurrence, names):
        return Place.REFUSED
    at_releases = _place_at_releases(before, after, occurrence, names)
    return at_releases or _place_in_clause(
        before, after, occurrence, opening=_OPENING.fullmatch(text[:start]) is not None
    )


def length_of_appendix(after: str, occurrence: Occurrence, names: RepositoryNames) -> int:
    """How much of the text `after` a name says only what the project is: "AI SDK", "LLM (the simonw CLI)"."""
    match = _APPENDIX.match(after)
    if match is None:
        return 0
    aside = match["aside"] or ""
    owned = any(is_owner(word, occurrence.names, names) for word in re.findall(r"[\w-]+", aside))
    return match.end() if not aside or owned or _SAYS_WHAT.search(aside) else match.start("aside")


def is_owner(word: str, candidates: Sequence[Name], names: RepositoryNames) -> bool:
    """Whether `word` names the owner of one of the repositories."""
    return any(letters(word) in names.owners[name.repository] for name in candidates)


def _is_part_of_another(before: str, after: str, occurrence: Occurrence, names: RepositoryNames) -> bool:
    """`Prometheus` in "Prometheus Operator", `AI` in "Pydantic AI", `OpenTelemetry` in "OpenTelemetry Go"."""
    if _OTHER_THING.match(after) or (_CAPITALISED_AFTER.match(after) and not _AFTER_RELEASES.match(after)):
        return True
    shortened = all(name.evidence is Evidence.SHORTENED for name in occurrence.names)
    if shortened and (language := re.match(r"[ -](\w+)", after)) and language[1].lower() in LANGUAGES:
        return True
    precedes = _CAPITALISED_BEFORE.search(before)
    if precedes is None or _DETERMINER.search(before) or _NO_NAME.fullmatch(precedes["word"]):
        return False
    return not is_owner(precedes["word"], occurrence.names, names)


def _place_at_releases(
    before: str, after: str, occurrence: Occurrence, names: RepositoryNames
) -> Place | None:
    follows = _AFTER_RELEASES.match(after) and (
        not _is_common(occurrence) or _introduced(before, occurrence, names)
    )
    upgraded = _BEFORE_UPGRADE.search(before) and _AFTER_UPGRADE.match(after)
    named = _BEFORE_RELEASES.search(before) and not _AFTER_LONGER_NAME.match(after)
    latest = _BEFORE_LATEST.search(before) and _AFTER_LATEST.match(after)
    if follows or upgraded or latest or named:
        return Place.ASKED if _ASKING.search(before) else Place.RELEASES
    return None


def _introduced(before: str, occurrence: Occurrence, names: RepositoryNames) -> bool:
    """Whether a plain word begins the phrase it stands in: "which uv release", not "which mobile ai release"."""
    if not before or _DETERMINER.search(before):
        return True
    word = re.search(r"(\S+?)(?:'s)? $", before)
    return word is not None and is_owner(word[1], occurrence.names, names)


def _place_in_clause(before: str, after: str, occurrence: Occurrence, *, opening: bool) -> Place:
    if _is_actor(before, after, occurrence) or (opening and _AFTER_OPENING.match(after)):
        return Place.ACTOR
    if _is_topic(before, after, occurrence):
        return Place.TOPIC
    if _AFTER_VERSIONED.match(after):
        return Place.VERSIONED
    # A name written as one, `Datasette` or `llama.cpp`, needs no preposition.
    if (
        opening
        or _PREPOSITION.search(before)
        or occurrence.text != occurrence.text.lower()
        or not occurrence.text.isalpha()
    ):
        return Place.PREPOSITION
    return Place.ANYWHERE


def _is_actor(before: str, after: str, occurrence: Occurrence) -> bool:
    leads = _BEFORE_ACTOR.search(before)
    if leads is None or not _is_common(occurrence):
        return leads is not None
    # "did requests to the registry …" is not about the project, "did the Transformers library …" is.
    acts = leads["auxiliary"] and not leads["the"] and not _AFTER_NOUN.match(after)
    named = occurrence.text.istitle() and _AFTER_ITSELF.match(after)
    return bool(acts or named or _AFTER_COMMON_ACTOR.match(after) or _AFTER_SOFTWARE.match(after))


def _is_topic(before: str, after: str, occurrence: Occurrence) -> bool:
    if _AFTER_TOPIC.match(after):
        return True
    if not _is_common(occurrence):
        return bool(_BEFORE_TOPIC.search(before) or _AFTER_CHANGES.match(after))
    return bool(
        _BEFORE_TOPIC.search(before) and (_AFTER_COMMON_ACTOR.match(after) or _AFTER_SOFTWARE.match(after))
    )


def _is_common(occurrence: Occurrence) -> bool:
    return all(name.evidence is Evidence.COMMON for name in occurrence.names)
