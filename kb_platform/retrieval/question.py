"""What a question asks for.

Belongs here: putting together what its words say (repositories, versions, dates, kinds, the answer wanted)
into filters and a topic to search for, with a note for people on each. Does not belong here: reading any
one of these (`mentions`, `version_wording`, `periods`, `wording`), searching.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from kb_platform.retrieval.aliases import aliases_from_bodies
from kb_platform.retrieval.filters import Filters
from kb_platform.retrieval.mentions import Subject, find_subject
from kb_platform.retrieval.periods import Period, take_period
from kb_platform.retrieval.reading import VERSION, Reading
from kb_platform.retrieval.repository_names import KnownRepository, Name, RepositoryNames
from kb_platform.retrieval.version_wording import Newest, Versions, find_newest, mark_versions, take_versions
from kb_platform.retrieval.wording import (
    Intent,
    asks_for_changes,
    intent_of,
    kind_hinted,
    kinds_asked,
    lists_releases,
    take_prerelease,
    topic_of,
)
from kb_platform.text.kinds import Kind
from kb_platform.text.versions import Tags

__all__ = ["Intent", "KnownRepository", "Question", "Understanding", "aliases_from_bodies"]

_VERSION_FOLLOWS = re.compile(r"@v?[0-9]")
_ANY_CVE = re.compile(r"\bCVEs?\b(?!-)", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question as it was understood."""

    text: str
    topic: str
    """What is left to search for; empty when the filters say it all."""
    filters: Filters
    intent: Intent
    ambiguous: tuple[tuple[str, ...], ...] = ()
    """Repositories that one name in the question may mean; the filters hold them all."""
    notes: tuple[str, ...] = ()
    """How each filter was understood, for people."""
    kind_hint: Kind | None = None
    """What the release looked for is said to have done. A hint only: notes file changes as they please."""
    mentions: tuple[str, ...] = ()
    """Text that the notes must contain: ('CVE-',) for "which releases mention a CVE"."""
    unknown_projects: tuple[str, ...] = ()
    """Names in a project's place that are no repository's here."""
    unknown_versions: tuple[str, ...] = ()
    """Versions that the repository asked about does not have."""


class Understanding:
    """Understands questions about the repositories `known`. `today` is what "last week" is relative to.

    Construction costs about 10 µs a tag; build it once for a state of the knowledge base.
    """

    def __init__(self, known: Sequence[KnownRepository], today: date) -> None:
        self._tags = {
            repository.name: Tags(repository.tags, repository=repository.name) for repository in known
        }
        self._names = RepositoryNames((repository, self._tags[repository.name]) for repository in known)
        self._telling_tags = _telling_tags(self._tags)
        self._today = today

    def understand(self, text: str) -> Question:
        """`text` as a question. Never fails: what is not understood is left to search for."""
        reading = Reading(text)
        subject = find_subject(reading.text, self._names)
        period = take_period(reading, self._today)
        subject = self._told_by_tags(self._disambiguate(subject, reading), reading)
        tags = self._tags.get(subject.repositories[0]) if len(subject.repositories) == 1 else None
        for mention in subject.mentions:
            # `astro@5.0.0` is a tag, and read as one.
            if not _VERSION_FOLLOWS.match(reading.marked, mention.end):
                reading.mark_repository(mention.start, mention.end)
        mark_versions(reading, tags)
        wording = reading.marked
        prerelease, prerelease_words = take_prerelease(reading)
        newest = find_newest(reading)
        versions = take_versions(
            reading,
            tags,
            lookup=not asks_for_changes(wording) and _has_topic(reading, newest),
            lists=lists_releases(wording) and not asks_for_changes(wording),
            package=subject.package,
        )
        reading.restore_versions()
        _restore_repeated(reading, subject)
        newest = _settled(newest, reading)
        topic = " ".join(filter(None, [topic_of(reading.marked), reading.remainder.strip()]))
        kinds = kinds_asked(reading.marked)
        has_versions = bool(versions.bounds or versions.exact)
        intent = intent_of(
            wording,
            topic=topic,
            kinds=bool(kinds),
            versions=has_versions,
            period=period is not None,
            newest=newest,
        )
        if newest and tags and not (has_versions or period) and (newest.within or not kinds):
            found = tags.newest(newest.count, package=subject.package, prereleases=prerelease is True)
            versions.exact = [version.text for version in found]
        looks_up = intent is Intent.LOOKUP
        filters = _filters(subject, versions, period, () if looks_up else kinds, prerelease)
        return Question(
            text=text,
            topic=topic,
            filters=filters,
            intent=intent,
            ambiguous=subject.ambiguous,
            notes=tuple(_notes(reading, subject, versions, period, newest, filters, prerelease_words)),
            kind_hint=kind_hinted(reading.marked, topic) if looks_up else None,
            mentions=("CVE-",) if not looks_up and _ANY_CVE.search(wording) else (),
            unknown_projects=subject.unknown,
            unknown_versions=tuple(versions.unknown),
        )

    def _disambiguate(self, subject: Subject, reading: Reading) -> Subject:
        """Of repositories with one name, the one that has the versions the question names."""
        if len(subject.ambiguous) != 1 or len(subject.repositories) < 2:
            return subject
        having: list[str] = []
        for name in subject.repositories:
            probe = Reading(reading.text)
            mark_versions(probe, self._tags[name])
            named = [probe.version_at(match.start()) for match in re.finditer(VERSION, probe.marked)]
            if named and all(self._tags[name].resolve(text) for text in named):
                having.append(name)
        if len(having) != 1:
            return subject
        return replace(subject, repositories=tuple(having), ambiguous=())

    def _told_by_tags(self, subject: Subject, reading: Reading) -> Subject:
        """A question that names no repository, but a tag that only one has: `REL_16_2`, `astro@4.0.1`."""
        if subject.repositories or subject.unknown:
            return subject
        words = (word.strip("\"'`()[],:;?!").casefold() for word in re.split(r"\s|\.\.|->", reading.text))
        owners = {self._telling_tags[word] for word in words if word in self._telling_tags}
        return replace(subject, repositories=tuple(owners)) if len(owners) == 1 else subject


def _telling_tags(tags: Mapping[str, Tags]) -> dict[str, str]:
    """Tags that name their repository: not numbers alone, and of one repository only."""
    bearers: dict[str, set[str]] = {}
    for name, of_repository in tags.items():
        for version in of_repository.versions:
            if version.prefix or version.text[:1] not in "vV0123456789":
                bearers.setdefault(version.text.casefold(), set()).add(name)
    return {tag: names.pop() for tag, names in bearers.items() if len(names) == 1 and len(tag) > 3}


def _restore_repeated(reading: Reading, subject: Subject) -> None:
    """A name that is said again is part of the topic: "in Traefik did the Traefik provider …"."""
    seen: set[frozenset[Name]] = set()
    for mention in subject.mentions:
        names = frozenset(mention.names)
        if names in seen:
            reading.restore_repository(mention.start, mention.end)
        seen.add(names)


def _has_topic(reading: Reading, newest: Newest | None) -> bool:
    """Whether something is left to search for once versions are taken out."""
    marked = reading.marked
    if newest is not None:
        marked = marked[: newest.span[0]] + " " + marked[newest.span[1] :]
    return bool(topic_of(re.sub(VERSION, " ", marked)))


def _settled(newest: Newest | None, reading: Reading) -> Newest | None:
    """ "The latest release" counts when it is asked for, or when the question is about something in it; in
    "the latest version that supports Python 3.7" it is a way of asking which one does."""
    if newest is None:
        return None
    start, end = newest.span
    without = reading.marked[:start] + " " * (end - start) + reading.marked[end:]
    if not newest.within and topic_of(without):
        return None
    reading.blank(start, end)
    return newest


def _filters(
    subject: Subject,
    versions: Versions,
    period: Period | None,
    kinds: tuple[Kind, ...],
    prerelease: bool | None,
) -> Filters:
    return Filters(
        repositories=subject.repositories,
        package=versions.package,
        after_version=versions.bounds.get("after"),
        from_version=versions.bounds.get("from"),
        upto_version=versions.bounds.get("upto"),
        before_version=versions.bounds.get("before"),
        versions=tuple(versions.exact),
        published_from=period.published_from if period else None,
        published_before=period.published_before if period else None,
        kinds=kinds,
        prerelease=prerelease,
    )


def _notes(
    reading: Reading,
    subject: Subject,
    versions: Versions,
    period: Period | None,
    newest: Newest | None,
    filters: Filters,
    prerelease_words: str | None,
) -> list[str]:
    notes: list[str] = []
    for mention in subject.mentions:
        words = reading.text[mention.start : mention.end]
        meant = " or ".join(sorted({name.repository for name in mention.names} & set(subject.repositories)))
        if mention.guess:
            notes.append(f"read “{words}” as {meant}")
        elif meant:
            notes.append(f"“{words}” is {meant}")
    notes = list(dict.fromkeys(notes))
    notes += [f"{' and '.join(group)} share a name; both are searched" for group in subject.ambiguous]
    notes += [
        f"“{name}” may be {' or '.join(found)}; not restricted to it" for name, found in subject.perhaps
    ]
    notes += [f"“{name}” is not a repository of the knowledge base" for name in subject.unknown]
    only: dict[str, Any] = {"versions": filters.versions} if newest else {}
    if newest and only["versions"]:
        notes.append(f"“{reading.text[slice(*newest.span)].strip()}” is {', '.join(filters.versions)}")
    elif versions.bounds or versions.exact or versions.package:
        bounds = Filters(**filters.model_dump(include=_VERSION_FIELDS))
        notes.extend(bounds.describe())
    notes += [f"{version} is not a version of {subject.repositories[0]}" for version in versions.unknown]
    if period is not None:
        bounds = Filters(published_from=filters.published_from, published_before=filters.published_before)
        notes += [f"“{period.words}”: {phrase}" for phrase in bounds.describe()]
    if filters.kinds:
        notes += Filters(kinds=filters.kinds).describe()
    if prerelease_words:
        meaning = {None: "pre-releases too", False: "stable releases only", True: "pre-releases only"}
        notes.append(f"“{prerelease_words}”: {meaning[filters.prerelease]}")
    return notes


_VERSION_FIELDS = {"package", "after_version", "from_version", "upto_version", "before_version", "versions"}
