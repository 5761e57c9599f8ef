"""Which repository a question asks about.

Belongs here: telling the subject of a question from names that merely occur in it, ambiguity, and projects
that are not known. Does not belong here: which names a repository has (`retrieval.repository_names`), the
grammar around a name (`retrieval.places`, `retrieval.strangers`).

A wrong repository makes the answer unfindable, a missing one only makes it harder: in doubt there is none.
Only the names in the best place are the subject ("Which Ruff release made uv faster?" is about Ruff), and
the plainer a word is, the better its place must be: `uv` counts where a project must stand,
`opentelemetry-python` nearly everywhere. Where a project must stand and an unknown one does, the question
is about that one, whatever else it names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from kb_platform.retrieval.places import Place, length_of_appendix, place_of
from kb_platform.retrieval.repository_names import Evidence, Name, Occurrence, RepositoryNames, letters
from kb_platform.retrieval.strangers import Stranger, find_strangers

_LEAST_PLACE: Final = {
    Evidence.FULL: Place.ANYWHERE,
    Evidence.DISTINCT: Place.PREPOSITION,
    Evidence.SHORTENED: Place.PREPOSITION,
    Evidence.COMMON: Place.TOPIC,
}
_JOINED = re.compile(r"\s*(?:,|,? ?and|,? ?or|&|/|vs\.?|versus)\s*", re.IGNORECASE)
_VERSION_AFTER = re.compile(r"[ @=<>~]*(v?[0-9]+(?:\.[0-9]+)+[a-z0-9]*)", re.IGNORECASE)


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
    mentions = _counting(text, [_mention(text, occurrence, names) for occurrence in names.find(text)], names)
    best = max((mention.place for mention in mentions), default=Place.REFUSED)
    strangers = _strangers(text, mentions, best)
    if strangers:
        mentions = [guess for stranger in strangers if (guess := _guess(stranger, names))]
        best = Place.ASKED
        if not mentions:
            return _without_subject(strangers, names)
    chosen = [mention for mention in mentions if mention.place == best]
    chosen += [other for other in mentions if other not in chosen and _says_again(other, chosen)]
    return _subject(text, chosen, names) if chosen else Subject()


def _mention(text: str, occurrence: Occurrence, names: RepositoryNames) -> Mention:
    start, end = occurrence.start, occurrence.end
    if text[start - 1 : start] == "@":  # of a scoped package
        start -= 1
    end += length_of_appendix(text[end : end + 80], occurrence, names)
    return Mention(start, end, occurrence.names, place_of(text, replace(occurrence, start=start), names))


def _counting(text: str, mentions: list[Mention], names: RepositoryNames) -> list[Mention]:
    """The mentions whose place is clear enough for how plain the name is. Names that "and" joins stand in one
    place, the better of theirs, and count together."""
    pairs = [
        (right - 1, right)
        for right in range(1, len(mentions))
        if _JOINED.fullmatch(text, mentions[right - 1].end, mentions[right].start)
        and Place.REFUSED not in (mentions[right - 1].place, mentions[right].place)
    ]
    for left, right in pairs:
        place = max(mentions[left].place, mentions[right].place)
        mentions[left], mentions[right] = (
            replace(mentions[left], place=place),
            replace(mentions[right], place=place),
        )
    counts = [_counts(text, mention, names) for mention in mentions]
    for left, right in pairs:
        counts[left] = counts[right] = counts[left] or counts[right]
    return [mention for mention, does in zip(mentions, counts, strict=True) if does]


def _counts(text: str, mention: Mention, names: RepositoryNames) -> bool:
    if any(mention.place >= _LEAST_PLACE[name.evidence] for name in mention.names):
        return True
    # "uv 0.4.1" is the project uv when uv has a 0.4.1.
    version = _VERSION_AFTER.match(text, mention.end) if mention.place is Place.VERSIONED else None
    return version is not None and any(
        names.has_version(name.repository, version[1]) for name in mention.names
    )


def _strangers(text: str, mentions: Sequence[Mention], best: Place) -> list[Stranger]:
    """Names that no known repository has, in places at least as telling as the best of the known ones."""
    if best >= Place.ACTOR:
        return []
    found: list[Stranger] = []
    for stranger in find_strangers(text):
        overlapping = [m for m in mentions if stranger.start < m.end and m.start < stranger.end]
        if any(mention.place >= Place.TOPIC or mention.end >= stranger.end for mention in overlapping):
            continue
        if stranger.place is Place.ASKED or best < Place.TOPIC:
            found.append(stranger)
    return found


def _guess(stranger: Stranger, names: RepositoryNames) -> Mention | None:
    """The repository whose name was misspelt."""
    near = names.near(stranger.name)
    return Mention(stranger.start, stranger.end, (near,), Place.ASKED, guess=True) if near else None


def _without_subject(strangers: Sequence[Stranger], names: RepositoryNames) -> Subject:
    headed = {stranger.name: names.headed_by(stranger.name) for stranger in strangers}
    return Subject(
        perhaps=tuple((name, found) for name, found in headed.items() if found),
        unknown=tuple(name for name, found in headed.items() if not found),
    )


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
