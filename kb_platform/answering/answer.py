"""A question → an answer: computed where the question asks for versions or dates, extracted from passages otherwise.

An answer is made of cited passages, or it says that the knowledge base has none. Which rule made it is part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kb_platform.answering import extract
from kb_platform.answering.changes import releases_within, served_version
from kb_platform.answering.citation import Citation, day
from kb_platform.retrieval.filters import Filters
from kb_platform.retrieval.question import Intent, Question
from kb_platform.retrieval.searcher import Found, Passage, Searcher
from kb_platform.store import served
from kb_platform.store.repositories import verified_at
from kb_platform.store.served import ServedChange, ServedRelease

# A list beyond this is no answer; the count and the filters that produce the whole are.
MOST_LISTED = 50
MOST_CITED = 60
NOT_KNOWN = "Not in the knowledge base."


@dataclass(frozen=True)
class Answer:
    """An answer, its proof, and how far it can be trusted."""

    question: str
    found: bool
    text: str
    releases: tuple[tuple[str, str], ...]
    citations: tuple[Citation, ...]
    filters: Filters
    index_version: int
    verified_at: dict[str, datetime | None]
    rule: str
    notes: tuple[str, ...] = ()
    nearby: tuple[Passage, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The document of `kb ask --json`."""
        return {
            "question": self.question,
            "found": self.found,
            "answer": self.text,
            "releases": [{"repository": repository, "tag": tag} for repository, tag in self.releases],
            "citations": [citation.as_json() for citation in self.citations],
            "filters": self.filters.as_json(),
            "index_version": self.index_version,
            "verified_at": self.verified_at,
            "rule": self.rule,
            "notes": list(self.notes),
            "nearby": [passage.as_json() for passage in self.nearby],
        }


@dataclass(frozen=True)
class _Draft:
    found: bool
    text: str
    releases: list[tuple[str, str]]
    citations: list[Citation]
    rule: str
    nearby: tuple[Passage, ...] = ()


class Answerer:
    """Answers questions from one knowledge base."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def answer(self, text: str, *, filters: Filters | None = None) -> Answer:
        """The answer to a question; `filters` replace those of its words. Raises NotKnown while nothing is indexed."""
        found = self._searcher.search(text, k=20, filters=filters)
        draft = self._computed(found) or _extracted(found)
        concerned = {repository for repository, _ in draft.releases} | set(found.filters.repositories)
        with self._searcher.database.snapshot() as connection:
            verified = verified_at(connection, sorted(concerned))
        return Answer(
            question=text,
            found=draft.found,
            text=draft.text,
            releases=tuple(draft.releases),
            citations=tuple(draft.citations),
            filters=found.filters,
            index_version=found.index_version,
            verified_at=verified,
            rule=draft.rule,
            notes=found.notes,
            nearby=draft.nearby,
        )

    def _computed(self, found: Found) -> _Draft | None:
        """Version and date questions are arithmetic; None when the question is none of them."""
        question, filters = found.question, found.filters
        if question.intent is Intent.LOOKUP or not (filters.repositories or filters.published_from):
            return None
        with self._searcher.database.snapshot() as connection:
            version = served_version(connection)
            releases = releases_within(connection, version, filters)
            kinds = [str(kind) for kind in filters.kinds]
            changes = served.changes(connection, version, [release.sequence for release in releases], kinds)
        if question.mentions:
            changes = [change for change in changes if any(word in change.text for word in question.mentions)]
        if question.intent is Intent.CHANGES:
            return _changes_draft(filters, releases, changes)
        if kinds or question.mentions:
            having = {change.sequence for change in changes}
            releases = [release for release in releases if release.sequence in having]
        # "The last release with breaking changes": the condition comes first, then the choice.
        return _releases_draft(question, filters, _chosen(question, releases), changes)


def _chosen(question: Question, releases: list[ServedRelease]) -> list[ServedRelease]:
    """For the latest and the first: the one that is meant, by version order, stable before pre-release."""
    if question.intent not in (Intent.LATEST, Intent.FIRST) or not releases:
        return releases
    stable = [release for release in releases if not release.prerelease] or releases
    ordered = sorted(
        stable, key=lambda release: (release.version_key or "", release.published_at is not None)
    )
    return [ordered[-1] if question.intent is Intent.LATEST else ordered[0]]


def _changes_draft(filters: Filters, releases: list[ServedRelease], changes: list[ServedChange]) -> _Draft:
    named = " and ".join(str(kind) for kind in filters.kinds) or "recorded"
    scope = "; ".join(filters.describe())
    rule = f"all {named} changes of the {len(releases)} releases that meet: {scope}; in version order"
    if not releases:
        return _Draft(False, f"{NOT_KNOWN} No release meets: {scope}.", [], [], rule)
    concerned = [release for release in releases if any(c.sequence == release.sequence for c in changes)]
    citations = [Citation.of_change(change) for change in changes[:MOST_CITED]]
    if not changes:
        return _Draft(
            True, f"None of the {len(releases)} releases in between lists {named} changes.", [], [], rule
        )
    lines = [f"{len(changes)} {named} changes in {len(concerned)} of {len(releases)} releases:"]
    number = 0
    for release in concerned:
        lines.append(f"\n{release.tag} ({day(release.published_at)})")
        for change in [c for c in changes[:MOST_CITED] if c.sequence == release.sequence]:
            number += 1
            lines.append(f"- {extract.sentence(change.text)} [{number}]")
    if len(changes) > MOST_CITED:
        lines.append(f"\n… and {len(changes) - MOST_CITED} more; `kb changes` lists them all.")
    return _Draft(True, "\n".join(lines), _names(concerned), citations, rule)


def _releases_draft(
    question: Question, filters: Filters, releases: list[ServedRelease], changes: list[ServedChange]
) -> _Draft:
    scope = "; ".join(filters.describe())
    rule = f"the releases that meet: {scope}; counted and ordered by version"
    if not releases:
        return _Draft(False, f"{NOT_KNOWN} No release meets: {scope}.", [], [], rule)
    first_of: dict[int, ServedChange] = {}
    for change in changes:
        first_of.setdefault(change.sequence, change)
    citations: list[Citation] = []
    lines = [f"{len(releases)} {'release' if len(releases) == 1 else 'releases'}:"]
    if question.intent is Intent.LATEST:
        lines = ["The latest release:"]
    elif question.intent is Intent.FIRST:
        lines = ["The first release:"]
    for release in releases[:MOST_LISTED]:
        change = first_of.get(release.sequence)
        line = f"- {release.repository} {release.tag} ({day(release.published_at)})"
        if change is not None:
            citations.append(Citation.of_change(change))
            line += f": {extract.sentence(change.text)} [{len(citations)}]"
        lines.append(line)
    if len(releases) > MOST_LISTED:
        lines.append(f"… and {len(releases) - MOST_LISTED} more")
    return _Draft(True, "\n".join(lines), _names(releases), citations, rule)


def _extracted(found: Found) -> _Draft:
    rule = "the passages nearest to the question by words and meaning, each quoted"
    if not found.answerable or not found.passages:
        text = NOT_KNOWN
        if found.passages:
            nearest = found.passages[0]
            text += f" The nearest release notes are those of {nearest.repository} {nearest.tag}, and they do not answer this."
        return _Draft(False, text, [], [], rule, found.passages[:3])
    chosen = extract.answering(found.passages, plural=extract.asks_for_several(found.question.text))
    citations = [Citation.of_passage(passage) for passage in chosen]
    lines = [
        f"{passage.repository} {passage.tag} ({day(passage.published_at)}): {extract.sentence(passage.text)} [{number}]"
        for number, passage in enumerate(chosen, 1)
    ]
    releases = list(dict.fromkeys((passage.repository, passage.tag) for passage in chosen))
    return _Draft(True, "\n".join(lines), releases, citations, rule)


def _names(releases: Sequence[ServedRelease]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((release.repository, release.tag) for release in releases))
