"""Which repository a question asks about.

Belongs here: telling the subject of a question from names that merely occur in it, ambiguity, and projects
that are not known. Does not belong here: which names a repository has (`retrieval.repository_names`).

A wrong repository makes the answer unfindable, a missing one only makes it harder: in doubt there is none.
A name counts by its place in the sentence. `Place` lists the places; only the names in the best place are
the subject ("Which Ruff release made uv faster?" is about Ruff), and the plainer a word is, the better its
place must be: `uv` counts where a project must stand, `opentelemetry-python` nearly everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    ACTOR = 4  # "did Pydantic add …", "running into this with Strimzi: …", "changes in uv since …"
    RELEASES = 5  # "the Prometheus release", "version of etcd", "upgrading uv from …"
    ASKED = 6  # "Which Ruff release …", "what is the first HTTPX version …"
    SPELT_OUT = 7  # owner/repo


_LEAST_PLACE: Final = {
    Evidence.FULL: Place.ANYWHERE,
    Evidence.DISTINCT: Place.PREPOSITION,
    Evidence.SHORTENED: Place.PREPOSITION,
    Evidence.COMMON: Place.ACTOR,
}

_RELEASE = r"(?:pre-?)?(?:releases?|versions?|changelogs?|tags?|release notes)"
# "The AI SDK" is the project `ai`; "the Kafka operator" is not the project `kafka`.
_ITSELF = r"(?:SDK|CLI|library|lib|framework|project|package|tool|toolkit|repo|repository|extension|database)"
_QUALITY = r"(?:stable|minor|major|patch|bugfix|feature|new|newer|old|older|beta|alpha|canary|rc|lts|security|v?[0-9][\w.]*)"
_ASIDE = r"(?:\s*\([^()]{1,60}\))?"
_QUOTE = "[\"'`*]*"
_OTHER_THING = re.compile(
    rf"{_QUOTE}[ -](?:operator|exporter|collector|plugin|provider|driver|adapter|connector|client|server|chart|action|bridge"
    r"|agent|gateway|dashboard|image|integration)s?\b",
    re.IGNORECASE,
)
_VERB = (
    r"(?:add|allow|avoid|begin|break|bring|change|deprecate|disable|drop|enable|ensure|expose|fix|gain|get|handle|have|implement"
    r"|improve|include|introduce|learn|make|move|no longer|offer|prevent|provide|raise|remove|rename|replace|require|respect"
    r"|return|ship|skip|start|stop|support|switch|treat|upgrade|use)(?:s|d|ed|es|ing)?"
)
_AFTER_RELEASES = re.compile(
    rf"{_QUOTE}{_ASIDE}(?: {_ITSELF})?{_ASIDE}(?:['’]s)?(?: {_QUALITY}){{0,3}} {_RELEASE}\b", re.IGNORECASE
)
_BEFORE_RELEASES = re.compile(
    rf"(?:\b{_RELEASE} (?:of|for|from)|\bwhat(?: i|')s new in|\bchangelog of)(?: the)? {_QUOTE}$",
    re.IGNORECASE,
)
# "version of astro starlight …": a word that no clause begins with belongs to the name.
_AFTER_LONGER_NAME = re.compile(
    rf"{_QUOTE} (?!{_ITSELF}\b|{_VERB}\b|{_RELEASE}\b|(?:did|does|do|has|have|had|is|was|were|are|am|can|could|will|would|should|may"
    r"|might|must|to|on|in|at|by|with|for|that|which|who|where|when|while|and|or|but|if|as|first|last|list\w*|mention\w*|still|also|now"
    r"|no|not|than|between|through|until|after|since|before|from|up|later|newer|older|published|released|came|come|shipped|so|since|during"
    r"|over|this|these|please|we|i|you|it)\b)[a-z][a-z-]+(?:\s|$)",
)
_AFTER_CHANGES = re.compile(
    rf"{_QUOTE}{_ASIDE}(?: {_ITSELF})?(?:'s)? (?:(?:breaking|security|notable|bug|recent|latest|all) )?"
    r"(?:changes|fixes|updates|deprecations|removals|bugfixes)\b",
    re.IGNORECASE,
)
_BEFORE_UPGRADE = re.compile(
    rf"\b(?:upgrad|updat|migrat|mov|go)\w*(?: our| my| the)? {_QUOTE}$", re.IGNORECASE
)
_BEFORE_LATEST = re.compile(rf"\b(?:latest|newest|most recent|current)(?: stable)? {_QUOTE}$", re.IGNORECASE)
_AFTER_LATEST = re.compile(rf"{_QUOTE}{_ASIDE}(?: {_ITSELF})?\W*(?:$|[?,:;.])", re.IGNORECASE)
_AFTER_UPGRADE = re.compile(rf"{_QUOTE}{_ASIDE}(?: {_ITSELF})? (?:from|to|past|beyond)\b", re.IGNORECASE)
_BEFORE_ACTOR = re.compile(
    rf"(?:\b(?P<auxiliary>did|does|do|has|have|is|was|were|will|can|could|when|since) (?P<the>the )?"
    rf"|\b(?:new|changed?|changes?|happened|broken?|breaks?|breaking|introduced|landed|shipped|released|removed|deprecated"
    rf"|added|fixed|differs?|this|problem|trouble) "
    rf"(?:in|with|to|for|about|on) (?:the )?){_QUOTE}$",
    re.IGNORECASE,
)
_AFTER_ACTOR = re.compile(
    rf"{_QUOTE}{_ASIDE}(?: {_ITSELF})?{_ASIDE}(?:['’]s\b|:| (?:between|from|since|after|before|until|up to|prior|later|in v?[0-9])\b)",
    re.IGNORECASE,
)
_AFTER_COMMON_ACTOR = re.compile(
    rf"{_QUOTE}{_ASIDE}(?: {_ITSELF})?{_ASIDE}(?:$|[,:?;]|['’]s\b| (?:{_VERB}|v?[0-9][\w.]*|first|ever|between|from|since|after|before|until|in|on|when|last|this|past|over|during|within|so far|recently|lately|today)\b)",
    re.IGNORECASE,
)
_AFTER_ITSELF = re.compile(rf"{_QUOTE}{_ASIDE} (?:SDK|CLI)\b")
_APPENDIX = re.compile(rf"(?:{_QUOTE} {_ITSELF}\b)?(?:'s\b)?(?P<aside> \([^()]{{1,60}}\))?", re.IGNORECASE)
_SAYS_WHAT = re.compile(rf"^ \((?:the|an?) .*\b{_ITSELF}\)$", re.IGNORECASE)
_AFTER_NOUN = re.compile(r" (?:of|to|for|with|and|or|via|by|that|which|are|were)\b|[-/]", re.IGNORECASE)
_OPENING = re.compile(rf"(?:(?:in|for|with|on|regarding|about|using) (?:the )?)?{_QUOTE}$", re.IGNORECASE)
_AFTER_OPENING = re.compile(rf"{_QUOTE}{_ASIDE}[,:]")
_AFTER_VERSIONED = re.compile(
    rf"{_QUOTE}{_ASIDE}(?: version| release)?(?: ?(?:==|>=|<=|~=|@|<|>) ?| )v?[0-9]+(?:\.|\b)", re.IGNORECASE
)
_VERSION_AFTER = re.compile(r"[ @=<>~]*(v?[0-9]+(?:\.[0-9]+)+[a-z0-9]*)", re.IGNORECASE)
_PREPOSITION = re.compile(
    rf"\b(?:in|with|for|of|using|by|from|on|into|to|about|inside|via|does|did|upgrade|use)(?: the)? {_QUOTE}$",
    re.IGNORECASE,
)
_ASKING = re.compile(
    r"\b(?:which|what|first|latest|newest|last|earliest|oldest|every|all|any|list|many|recent|stable)\b[^,;:?]{0,24}$",
    re.IGNORECASE,
)
_CAPITALISED_BEFORE = re.compile(r"(?<=\w )(?P<word>[A-Z][\w.]*|\w+-\w[\w-]*) $")
_CAPITALISED_AFTER = re.compile(rf"{_QUOTE} (?!{_ITSELF}\b|I\b|CVE)(?P<word>[A-Z]\w+)")
_DETERMINER = re.compile(
    rf"\b(?:which|what|the|our|first|latest|newest|last|earliest|oldest|every|all|any|stable|recent|an?|of|new|{COUNT}) $",
    re.IGNORECASE,
)
_JOINED = re.compile(r"\s*(?:,|,? ?and|,? ?or|&|/|vs\.?|versus)\s*", re.IGNORECASE)
# Where a project must stand, for the names of projects that are not known.
_PROJECT = rf"(?P<name>(?!{_RELEASE}\b)[\w@][\w.+/@-]*(?: [\w@][\w.+/-]*){{0,3}}?)"
_SUBJECTS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^(?:the )?{_PROJECT}(?: {_ITSELF})?(?: {_QUALITY})* {_RELEASE}\b",
        rf"\b(?:which|what|first|latest|newest|earliest|stable)(?: {_QUALITY})* {_PROJECT}{_ASIDE}(?: {_ITSELF})?(?: {_QUALITY})* {_RELEASE}\b",
        rf"\b{_RELEASE} of (?:the )?{_PROJECT}(?: {_ITSELF})?{_ASIDE}(?=$|[?,:;.]| (?:did|does|do|has|have|is|was|were|can|will|on|in|that|which|first|list|mention|between|after|since|before|from|{_VERB})\b)",
        rf"\b(?:did|does|has|have) (?:the )?{_PROJECT}(?: {_ITSELF})?{_ASIDE} {_VERB}\b",
        rf"\bupgrad\w* (?:our |my |the )?{_PROJECT}{_ASIDE} (?:from|to)\b",
        rf"\b(?:changed?|changes|new|broken?|breaks|happened) (?:in|with|to|for) (?:the )?{_PROJECT}{_ASIDE}(?=$|[?,:;.]| (?:between|from|since|after|before|in|until|up|v?[0-9][\w.]*)\b)",
        rf"\b(?:this|problems?|trouble) (?:in|with) (?:the )?{_PROJECT}{_ASIDE}:",
    )
)
_NO_PROJECT = re.compile(
    r"(?:releases?|versions?|the|an?|it|we|you|they|this|that|these|those|there|support|is|are|was|were|of|in|and|or|to|on|from|with|by|for|since|at|as"
    r"|stable|new|first|last|latest|breaking|changes?|security|our|my|version|fix|fixes|bug|bugs|pre-releases?|which|what"
    r"|notes|release|minor|major|patch|many|project|projects|package|packages|library|libraries)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in its place; `end` lies behind words that only say what it is: "AI SDK", "LLM (the simonw CLI)"."""

    start: int
    end: int
    names: tuple[Name, ...]
    place: Place
    guess: bool = False
    """Read through a misspelling."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a question asks about. `mentions`: the names that say so; the others stay in the text.

    `ambiguous`: names that several repositories bear, with no way to tell which is meant; all of them are
    the subject then. `perhaps`: repositories whose name only begins with what was said; no filter is made of
    them. `unknown`: names in a project's place that no known repository has.
    """

    mentions: tuple[Mention, ...] = ()
    repositories: tuple[str, ...] = ()
    package: str | None = None
    ambiguous: tuple[tuple[str, ...], ...] = ()
    perhaps: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unknown: tuple[str, ...] = ()


def find_subject(text: str, names: RepositoryNames) -> Subject:
    """The repositories that `text` asks about; none where that is not clear."""
    mentions = [_placed(text, occurrence, names) for occurrence in names.find(text)]
    mentions = _counting(text, _coordinate(text, mentions), names)
    best = max((mention.place for mention in mentions), default=Place.REFUSED)
    if best < Place.ACTOR and (unknown := _unknown(text, mentions)):
        if best is not Place.REFUSED and best is not Place.SPELT_OUT:
            return _without_subject(unknown, names)
        guesses = [_guess(name, start, names) for name, start in unknown]
        mentions = [guess for guess in guesses if guess is not None]
        if not mentions:
            return _without_subject(unknown, names)
        best = Place.ACTOR
    chosen = [mention for mention in mentions if mention.place == best]
    chosen += [other for other in mentions if other not in chosen and _says_again(other, chosen)]
    return _subject(text, chosen, names) if chosen else Subject()


def _without_subject(unknown: Sequence[tuple[str, int]], names: RepositoryNames) -> Subject:
    perhaps = tuple((name, headed) for name, _ in unknown if (headed := names.headed_by(name)))
    return Subject(perhaps=perhaps, unknown=tuple(name for name, _ in unknown if not names.headed_by(name)))


def _placed(text: str, occurrence: Occurrence, names: RepositoryNames) -> Mention:
    start, end = occurrence.start, occurrence.end
    if text[start - 1 : start] == "@":
        start -= 1
    before, after = text[max(0, start - 80) : start], text[end : end + 120]
    if "/" in text[start:end] and any(name.evidence is Evidence.FULL for name in occurrence.names):
        place = Place.SPELT_OUT
    elif _is_part_of_another(before, after, occurrence, names):
        place = Place.REFUSED
    else:
        place = _place_at_releases(before, after, occurrence, names) or _place_in_clause(
            before, after, occurrence, opening=_OPENING.fullmatch(text[:start]) is not None
        )
    return Mention(start, end + _appendix(after, occurrence, names), occurrence.names, place)


def _appendix(after: str, occurrence: Occurrence, names: RepositoryNames) -> int:
    """Length of what follows a name and says only what it is."""
    match = _APPENDIX.match(after)
    if match is None:
        return 0
    aside = match["aside"]
    if (
        aside is None
        or _SAYS_WHAT.search(aside)
        or any(_is_owner(word, occurrence.names, names) for word in re.findall(r"[\w-]+", aside))
    ):
        return match.end()
    return match.start("aside")


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


def _place_in_clause(before: str, after: str, occurrence: Occurrence, *, opening: bool) -> Place:
    if _is_actor(before, after, occurrence) or (opening and _AFTER_OPENING.match(after)):
        return Place.ACTOR
    if _AFTER_VERSIONED.match(after):
        return Place.VERSIONED
    if opening or _PREPOSITION.search(before) or _looks_like_a_name(occurrence.text):
        return Place.PREPOSITION
    return Place.ANYWHERE


def _is_actor(before: str, after: str, occurrence: Occurrence) -> bool:
    if _AFTER_ACTOR.match(after) or (_AFTER_CHANGES.match(after) and not _is_common(occurrence)):
        return True
    leads = _BEFORE_ACTOR.search(before)
    if leads is None or not _is_common(occurrence):
        return leads is not None
    # "did requests to the registry …" is not about the project.
    asks_what_it_does = leads["auxiliary"] and not leads["the"] and not _AFTER_NOUN.match(after)
    return bool(asks_what_it_does or _AFTER_COMMON_ACTOR.match(after) or _AFTER_ITSELF.match(after))


def _is_common(occurrence: Occurrence) -> bool:
    return all(name.evidence is Evidence.COMMON for name in occurrence.names)


def _looks_like_a_name(text: str) -> bool:
    return text != text.lower() or not text.isalpha()


def _is_part_of_another(before: str, after: str, occurrence: Occurrence, names: RepositoryNames) -> bool:
    """`Prometheus` in "Prometheus Operator", `AI` in "Pydantic AI", `OpenTelemetry` in "OpenTelemetry Go"."""
    if _OTHER_THING.match(after):
        return True
    follows = _CAPITALISED_AFTER.match(after)
    if follows and not _AFTER_RELEASES.match(after):
        return True
    shortened = all(name.evidence is Evidence.SHORTENED for name in occurrence.names)
    if shortened and (language := re.match(r"[ -](\w+)", after)) and language[1].lower() in LANGUAGES:
        return True
    precedes = _CAPITALISED_BEFORE.search(before)
    if precedes is None or _NO_PROJECT.fullmatch(precedes["word"]):
        return False
    return not _is_owner(precedes["word"], occurrence.names, names)


def _introduced(before: str, occurrence: Occurrence, names: RepositoryNames) -> bool:
    """Whether a plain word begins the phrase it stands in: "which uv release", not "which mobile ai release"."""
    if not before or _DETERMINER.search(before):
        return True
    word = re.search(r"(\S+?)(?:'s)? $", before)
    return word is not None and _is_owner(word[1], occurrence.names, names)


def _is_owner(word: str, candidates: Sequence[Name], names: RepositoryNames) -> bool:
    return any(letters(word) in names.owners[name.repository] for name in candidates)


def _coordinate(text: str, mentions: list[Mention]) -> list[Mention]:
    """ "ruff and uv" stand in one place, the better of the two."""
    for left, right in zip(range(len(mentions)), range(1, len(mentions)), strict=False):
        first, second = mentions[left], mentions[right]
        if _JOINED.fullmatch(text, first.end, second.start) and Place.REFUSED not in (
            first.place,
            second.place,
        ):
            place = max(first.place, second.place)
            mentions[left], mentions[right] = replace(first, place=place), replace(second, place=place)
    return mentions


def _counting(text: str, mentions: list[Mention], names: RepositoryNames) -> list[Mention]:
    """Those whose place is clear enough for how plain the name is, and what "and" joins to them."""
    counts = [_counts(text, mention, names) for mention in mentions]
    for index in range(1, len(mentions)):
        first, second = mentions[index - 1], mentions[index]
        if _JOINED.fullmatch(text, first.end, second.start) and Place.REFUSED not in (
            first.place,
            second.place,
        ):
            counts[index] = counts[index - 1] = counts[index] or counts[index - 1]
    return [mention for mention, does in zip(mentions, counts, strict=True) if does]


def _counts(text: str, mention: Mention, names: RepositoryNames) -> bool:
    if any(mention.place >= _LEAST_PLACE[name.evidence] for name in mention.names):
        return True
    # "uv 0.4.1" is the project uv when uv has a 0.4.1.
    version = _VERSION_AFTER.match(text, mention.end) if mention.place is Place.VERSIONED else None
    return version is not None and any(
        names.has_version(name.repository, version[1]) for name in mention.names
    )


def _unknown(text: str, mentions: Sequence[Mention]) -> list[tuple[str, int]]:
    """Names in a project's place that are no known repository's, with their positions."""
    found: dict[str, int] = {}
    for pattern in _SUBJECTS:
        for match in pattern.finditer(text):
            name, start = match["name"], match.start("name")
            words = name.split()
            if any(_NO_PROJECT.fullmatch(word) for word in words):
                continue
            end = match.end("name")
            overlapping = [mention for mention in mentions if start < mention.end and mention.start < end]
            if any(mention.place >= Place.ACTOR or mention.end >= end for mention in overlapping):
                continue
            found.setdefault(name, start)
    return list(found.items())


def _guess(name: str, start: int, names: RepositoryNames) -> Mention | None:
    """The repository whose name was misspelt."""
    near = names.near(name)
    return Mention(start, start + len(name), (near,), Place.ACTOR, guess=True) if near else None


def _says_again(mention: Mention, chosen: Sequence[Mention]) -> bool:
    """Another name of what was chosen: "facebook/react … React", "the Airflow helm chart". The same name said
    twice is not: it belongs to what is asked ("in Traefik did the Traefik provider …")."""
    repositories = {name.repository for other in chosen for name in other.names}
    if not all(name.repository in repositories for name in mention.names):
        return False
    return all(set(mention.names) != set(other.names) for other in chosen) and (
        mention.place >= Place.PREPOSITION or any(mention.start == other.end + 1 for other in chosen)
    )


def _subject(text: str, chosen: Sequence[Mention], names: RepositoryNames) -> Subject:
    repositories: dict[str, None] = {}
    packages: set[str] = set()
    ambiguous: dict[tuple[str, ...], None] = {}
    words = {letters(word) for word in re.findall(r"[\w-]+", text)}
    for mention in chosen:
        clear = [name for name in mention.names if mention.place >= _LEAST_PLACE[name.evidence]]
        bearers = clear or list(mention.names)
        if len(bearers) > 1:
            bearers = [name for name in bearers if names.owners[name.repository] & words] or bearers
        if len(bearers) > 1:
            ambiguous.setdefault(tuple(sorted(name.repository for name in bearers)))
        for name in bearers:
            repositories.setdefault(name.repository)
            packages |= {name.package} if name.package else set()
    package = packages.pop() if len(packages) == 1 and len(repositories) == 1 else None
    return Subject(tuple(chosen), tuple(repositories), package, tuple(ambiguous))
