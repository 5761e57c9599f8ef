"""A changelog → its sections, one for each version.

Belongs here: which headings divide the file, where a section ends, what belongs to its body. Does not belong here: what
a heading is (`headings`) or says (`version_headings`), reading files, and what becomes of a section (`stages.changelogs`).

The level of headings that has the most versions divides the file. A heading of another level divides it too where it is
a version and nothing else: many tools write minor releases one level above patch releases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from kb_platform.text.blocks import Lines
from kb_platform.text.cleaning import plain_text
from kb_platform.text.headings import Heading, Markup, find_headings
from kb_platform.text.version_headings import VersionHeading, read_heading, stated_date, states_unreleased

# What stands at the end of a section and belongs to the next heading: its anchor or label.
_ANCHOR: Final = re.compile(r"<a (?:name|id)=[^<>]*>(?:</a>)?|\.\. _[^:`]+:|\([\w.-]+\)=")
_TEXT: Final = re.compile(r"\S")
# What stands at the end of the file and belongs to all of it: the targets of its links.
_DEFINITION: Final = re.compile(r"\[[^\[\]]+\]:\s*\S.*|\.\. _[^:]+:.*|\.\. \|[^|]+\| .*|<!--.*-->")
_PACKAGE: Final = re.compile(r"@[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class Section:
    """One version of a changelog.

    `version`: as written, without brackets; empty for what has none yet. `heading`: its words. `body`: the very text
    below the heading up to the next version, without blank lines at its ends. `span`: of all of it, heading included,
    in code points of the text. `line`: of the heading, from 1.
    """

    version: str
    heading: str
    body: str
    published: date | None
    yanked: bool
    unreleased: bool
    span: tuple[int, int]
    line: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """A heading that says something of a version."""

    heading: Heading
    said: VersionHeading

    @property
    def key(self) -> tuple[str, str]:
        """The version however it is written; the package in front of it tells versions apart."""
        parsed = self.said.parsed
        return (parsed.prefix or self.said.lead, parsed.key) if parsed else ("", "")

    @property
    def is_bare(self) -> bool:
        """A version and nothing else."""
        return self.said.parsed is not None and self.said.bare

    @property
    def is_worded(self) -> bool:
        """A version among other words."""
        return self.said.parsed is not None and not self.said.bare

    @property
    def is_telling(self) -> bool:
        """Surely a release, whatever its level: it has its day, or all of its numbers."""
        parsed = self.said.parsed
        return (
            self.is_bare
            and parsed is not None
            and (self.said.published is not None or len(parsed.release) > 2)
        )


def parse_changelog(text: str, *, format: Markup) -> list[Section]:  # noqa: A002 - the word for it
    """The sections of a changelog in the order of the file; empty when no heading is a version.

    A version that two headings name has two sections. Time is linear in the text.
    """
    headings = find_headings(text, format)
    read = ((heading, read_heading(heading.title)) for heading in headings)
    marks = [_Mark(heading, said) for heading, said in read if said is not None]
    dividing = _dividing(text, marks, Counter(heading.level for heading in headings))
    names_package = len({mark.said.lead for mark in dividing if mark.said.lead}) > 1
    return [
        _section(text, mark, end, is_last=end == len(text), names_package=names_package)
        for mark, end in zip(dividing, _ends(dividing, len(text)), strict=True)
    ]


def package_of(text: str, *, format: Markup) -> str | None:  # noqa: A002 - the word for it
    """The package that a changelog is of, where its first heading is such a name and no more: `@scope/name`."""
    first = next(iter(find_headings(text[:4_000], format)), None)
    title = plain_text(first.title) if first else ""
    return title if _PACKAGE.fullmatch(title) or re.fullmatch(r"[\w.-]+", title) else None


def first_headings(text: str, *, format: Markup, count: int = 5) -> list[str]:  # noqa: A002 - the word for it
    """The first headings of a file, to say what was found instead of versions."""
    return [plain_text(heading.title[:200])[:60] for heading in find_headings(text, format)[:count]]


def _dividing(text: str, marks: Sequence[_Mark], headings: Counter[int]) -> list[_Mark]:
    """The headings at which sections begin. `headings`: how many there are of each level."""
    level = _main_level(marks, headings)
    at_level = [mark for mark in marks if mark.heading.level == level]
    bare = {mark.key for mark in at_level if mark.is_bare}
    versions = {key for _, key in bare}
    packages = {mark.said.parsed.prefix for mark in at_level if mark.said.parsed}
    leads = Counter(mark.said.lead for mark in at_level if mark.is_worded)

    def divides(mark: _Mark) -> bool:
        parsed = mark.said.parsed
        if parsed is None:
            return mark.heading.level == level
        if mark.heading.level != level:
            return mark.is_telling and mark.key not in bare and parsed.prefix in packages
        if mark.is_bare:
            return True
        named_alike = not mark.said.lead or not bare or leads[mark.said.lead] > 1
        return named_alike and parsed.key not in versions

    return _without_groups(text, [mark for mark in marks if divides(mark)], level)


def _main_level(marks: Sequence[_Mark], headings: Counter[int]) -> int:
    """The level with the most versions; those among other words count only where most of their level are versions."""
    bare: dict[int, set[tuple[str, str]]] = {}
    worded: dict[int, list[tuple[str, str]]] = {}
    for mark in marks:
        if mark.is_bare:
            bare.setdefault(mark.heading.level, set()).add(mark.key)
        elif mark.is_worded:
            worded.setdefault(mark.heading.level, []).append(mark.key)
    scores = {level: len(found) for level, found in bare.items()}
    for level, found in worded.items():
        if 2 * (len(found) + scores.get(level, 0)) > headings[level] or not bare:
            scores[level] = scores.get(level, 0) + len(set(found))
    return min(scores, key=lambda level: (-scores[level], level), default=0)


def _without_groups(text: str, marks: list[_Mark], level: int) -> list[_Mark]:
    """A version above the others with nothing of its own ("2.x" over 2.1 and 2.0) is the title of a group."""
    kept: list[_Mark] = []
    for mark, end in zip(marks, _ends(marks, len(text)), strict=True):
        above = mark.heading.level < level and mark.said.published is None
        if not (above and _TEXT.search(text, mark.heading.end, end) is None):
            kept.append(mark)
    return kept


def _ends(marks: Sequence[_Mark], length: int) -> list[int]:
    return [*(mark.heading.start for mark in marks[1:]), length] if marks else []


def _section(text: str, mark: _Mark, end: int, *, is_last: bool, names_package: bool) -> Section:
    said = mark.said
    start, stop = _body(text, mark.heading.end, end, is_last=is_last)
    body = text[start:stop]
    first = next(iter(body[:200].splitlines()), "").strip()
    published = said.published or stated_date(first)
    version = f"{said.lead} {said.version}" if names_package and said.lead else said.version
    unreleased = said.unreleased or (published is None and states_unreleased(first))
    return Section(
        version,
        said.words,
        body,
        published,
        said.yanked,
        unreleased,
        (mark.heading.start, end),
        mark.heading.line,
    )


def _body(text: str, start: int, end: int, *, is_last: bool) -> tuple[int, int]:
    """The span of the body: without blank lines around it, and without what belongs to the next heading or the file."""
    pattern = _DEFINITION if is_last else _ANCHOR
    lines = Lines(text[start:end])
    last = lines.count - 1
    while last >= 0 and ((bare := lines.text(last).strip()) == "" or pattern.fullmatch(bare)):
        last -= 1
    if last < 0:
        return start, start
    # The indentation of the first line may have a meaning; blanks behind the last have none.
    first = next(number for number in range(last + 1) if lines.text(number).strip())
    return start + lines.offset(first), start + lines.offset(last) + len(lines.text(last).rstrip())
