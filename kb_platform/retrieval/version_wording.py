"""Versions and ranges of versions as questions word them.

Belongs here: "between 1.4 and 2.1", "after A up to and including B", "since 3.0", "in 2.x", "the last three
releases", and what they mean for the tags of a repository. Does not belong here: the order of versions
(`text.versions`), dates (`retrieval.periods`).

"Between A and B", "from A to B" and `A..B` leave A out and take B in: that is what an upgrade from A brings.
"Since A" leaves A out for someone who asks what changed, and takes it in for someone who lists releases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

from kb_platform.retrieval.dates import COUNT, count_of
from kb_platform.retrieval.reading import REPOSITORY, REST, VERSION, Reading
from kb_platform.text.versions import FLOOR, Tags, Version, parse_version

Side = Literal["after", "from", "upto", "before"]

_PIECE = re.compile(r"(?:(?!\.\.|->)[^\s,;:()\[\]{}\"'`?!<>=~|\u2192\u2013\u2014\ue000\ue001])+")
_NUMBER = re.compile(r"[vV]?[0-9]+(?:\.[0-9]+)*(?:\.[xX*])*")
_LINE = re.compile(r"(?P<line>.*?[0-9])(?:\.[xX*])+")
_WHOLE = re.compile(r"[0-9]{1,4}")
_BEFORE_WHOLE = re.compile(
    rf"(?:\b(?:versions?|releases?|from|to|between|and|since|before|after|until|through|past|v|in|than|of)|{REPOSITORY}{REST}*) $",
    re.IGNORECASE,
)
_AFTER_WHOLE = re.compile(
    rf"(?:$|[?.,;:)]|\s?(?:\.\.|->|\u2192|\u2013)|\+|'s\b| (?:and|to|or|through|until|up|releases?|versions?|series|line|branch|on|onwards|{REPOSITORY}))",
    re.IGNORECASE,
)

_REPO = f"{REPOSITORY}{REST}*"
_LEAD = rf"(?:the )?(?:(?:stable |pre-?)?(?:versions?|releases?|tags?) |{_REPO} )*"


def _version(name: str) -> str:
    return rf"{_LEAD}(?P<{name}>{VERSION})(?: (?:release|version)\b)?"


_TO = r"\s*(?:,? ?(?:all the way )?(?:up )?to(?:,? and including)?|,? ?through|,? ?thru|,? ?until|,? ?till|\.\.+|->|=>|\u2192|\u2013|\u2014|-)\s*"
_PAIRS: Final = (
    re.compile(
        rf"\bbetween {_version('low')},? (?:and|to|&) {_version('high')}"
        r"(?P<inclusive>[ ,(]*(?:both )?(?:inclusive(?:ly)?|included)\)?)?",
        re.IGNORECASE,
    ),
    re.compile(rf"(?:\bfrom )?{_version('low')}{_TO}{_version('high')}", re.IGNORECASE),
    re.compile(
        rf"\b(?:on|at|running|using|use|have|with) {_version('low')}[^.?]{{0,60}}?"
        rf"\b(?:go|going|upgrad\w+|updat\w+|mov\w+|migrat\w+|get|bump|jump|switch) to {_version('high')}",
        re.IGNORECASE,
    ),
)
# In this order: "not later than" is read before "later than".
_BOUND_WORDINGS: Final[tuple[tuple[Side, str], ...]] = (
    ("before", rf"\bup to,? but (?:not including|excluding) {_version('bound')}"),
    ("upto", rf"(?:\b(?:up to(?:,? and including)?|until|till|through|thru|at most|(?:no|not) (?:later|newer|higher|greater) than)|<=|\u2264) ?{_version('bound')}"),
    ("upto", rf"{_version('bound')},? (?:and|or) (?:earlier|older|below|lower)\b"),
    ("from", rf"(?:\b(?:starting (?:with|at|from|in)|as of|beginning (?:with|at|in)|at least|(?:no|not) (?:earlier|older|lower) than)|>=|\u2265) ?{_version('bound')}"),
    ("from", rf"(?:\b(?:from|since|after) )?{_version('bound')}(?:\+| ?(?:and|or) (?:later|newer|above|higher|up|greater|onwards?|after)\b| onwards?\b)"),
    ("from", rf"\bfrom {_version('bound')}(?: on\b| upwards?\b)?"),
    ("before", rf"(?:\b(?:before|prior to|(?:earlier|older|lower|less) than|below|under|preceding)|<) ?{_version('bound')}"),
    ("after", rf"(?:\b(?:after|(?:later|newer|greater|higher) than|above|beyond|past|following)|>) ?{_version('bound')}"),
)  # fmt: skip
_BOUNDS: Final[tuple[tuple[Side, re.Pattern[str]], ...]] = tuple(
    (side, re.compile(wording, re.IGNORECASE)) for side, wording in _BOUND_WORDINGS
)
_SINCE = re.compile(rf"\bsince {_version('bound')}", re.IGNORECASE)
_EXACT = re.compile(rf"{_version('exact')}(?P<line> (?:series|line|branch|releases)\b)?", re.IGNORECASE)
# "Which Vite 5.x releases fixed …": the only place where a search for a deed names a version of its own.
_QUALIFIED = re.compile(
    rf"(?<=[{REPOSITORY}{REST}]) (?P<exact>{VERSION})(?P<line> (?:releases|versions|series|line|branch)\b)",
    re.IGNORECASE,
)
_NAMED = re.compile(rf"(?:{_REPO}|\b(?:versions?|releases?|tags?))\s*$", re.IGNORECASE)
_INTRODUCED = re.compile(
    r"(?:^|[(:]|\b(?:in|of|for|within|on|by|with|is|was|about|at|into|to|from)(?: the)?)\s*$", re.IGNORECASE
)
_CONTINUED = re.compile(r"(?:,|\band|\bor|&|,\ ?and)\s*$", re.IGNORECASE)
# Where a bound belongs to the releases asked about, not to what they changed ("with mypy before 1.0").
_ATTACHED = re.compile(
    rf"(?:^|[,;:(]|\b(?:releases?|versions?|published|released|out|shipped|and|but|when|upgrad\w+|updat\w+|migrat\w+)|{_REPO})\s*$",
    re.IGNORECASE,
)
_QUALITY = rf"(?:(?:stable|minor|major|patch|final|{_REPO}) )*"
_NEWEST = re.compile(
    rf"(?P<in>\b(?:in|of|with|from|by|over|across|within|for) )?(?:\bthe |\bits |\btheir )?\b(?P<which>last|latest|newest|most recent|current|past)"
    rf" (?:(?P<count>{COUNT}) )?{_QUALITY}(?:releases?|versions?)\b(?: (?:of|for) (?:the )?{_REPO})?",
    re.IGNORECASE,
)
_NEWEST_NAME = re.compile(
    rf"(?P<in>\b(?:in|of|with|from) )?\b(?:the )?(?P<which>latest|newest) (?:stable )?{_REPO}(?! \w)",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Versions:
    """Which versions are meant: bounds (see `Filters`) and exact tags.

    `unknown`: versions that the repository does not have; a bound may lie between releases, an exact one not.
    """

    bounds: dict[Side, str] = field(default_factory=dict[Side, str])
    exact: list[str] = field(default_factory=list[str])
    package: str | None = None
    unknown: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Newest:
    """The question speaks of the latest release, or the last `count`. `within`: it asks about something in
    them ("in the latest release") instead of for them."""

    count: int
    within: bool
    span: tuple[int, int]


def mark_versions(reading: Reading, tags: Tags | None) -> None:
    """Mark every version in `reading`. A whole number is one only where a version must stand and the
    repository has such releases."""
    for match in _PIECE.finditer(reading.marked):
        text = match[0].lstrip(".")
        start = match.end() - len(text)
        if tags is None or not tags.has(text):
            name, at, rest = text.rpartition("@")
            if at and (not name or (tags is not None and name.rpartition("/")[2].casefold() == tags.name)):
                # `ruff@0.5.0`, or what is left of it behind the repository's mark.
                reading.blank(start, start + len(name) + 1)
                start, text = start + len(name) + 1, rest
            text = text if text.endswith(".*") else text.rstrip(".+*/-")
        if text and _is_version(reading.marked, start, text, tags):
            reading.mark_version(start, start + len(text))


def _is_version(marked: str, start: int, text: str, tags: Tags | None) -> bool:
    if _WHOLE.fullmatch(text):
        parsed = parse_version(text)
        if tags is None or parsed is None or not tags.line(parsed):
            return False
        place = _BEFORE_WHOLE.search(marked[max(0, start - 60) : start])
        return place is not None and _AFTER_WHOLE.match(marked, start + len(text)) is not None
    if tags is not None and tags.has(text):
        return True
    parsed = parse_version(text)
    if parsed is None:
        return _LINE.fullmatch(text) is not None and _NUMBER.fullmatch(text) is not None
    if parsed.prefix:
        return tags is not None and parsed.prefix in tags.packages
    return text.lstrip("vV")[:1].isdecimal()


def take_versions(
    reading: Reading, tags: Tags | None, *, lookup: bool, lists: bool, package: str | None
) -> Versions:
    """The versions asked for, taken out of `reading`, whose versions are marked.

    `lookup`: the question looks for a release that did something, so a version elsewhere in it belongs to
    what was done. `lists`: it lists releases.
    """
    taker = _Taker(reading, tags, lookup=lookup, package=package)
    for pattern in _PAIRS:
        taker.take(pattern, low="after", high="upto")
    for side, pattern in _BOUNDS:
        taker.take(pattern, bound=side)
    taker.take(_SINCE, bound="from" if lists else "after")
    if not taker.versions.bounds:
        taker.take_exact(_QUALIFIED if lookup else _EXACT)
    return taker.finish()


class _Taker:
    """Turns matches into bounds and takes them out of the reading."""

    def __init__(self, reading: Reading, tags: Tags | None, *, lookup: bool, package: str | None) -> None:
        self.versions = Versions(package=package)
        self._reading = reading
        self._tags = tags
        self._lookup = lookup
        self._asked_package = package

    def take(self, pattern: re.Pattern[str], **sides: Side) -> None:
        """Make the groups of every match of `pattern` bounds on their sides."""
        position = 0
        while (match := pattern.search(self._reading.marked, position)) is not None:
            position = match.end()
            if self._lookup and not self._is_attached(match):
                continue
            if match.groupdict().get("inclusive"):
                sides |= {"low": "from"}
            for name, side in sides.items():
                self._bound(side, self._reading.version_at(match.start(name)))
            self._reading.blank(*match.span())

    def _is_attached(self, match: re.Match[str]) -> bool:
        versions = [
            self._reading.version_at(match.start(name))
            for name in match.re.groupindex
            if name in ("low", "high", "bound")
        ]
        before = self._reading.marked[: match.start()]
        return _ATTACHED.search(before) is not None and all(self._known(text) for text in versions)

    def _known(self, text: str) -> bool:
        if self._tags is None:
            return False
        return self._resolve(text) is not None or bool(self._members(text))

    def _bound(self, side: Side, text: str) -> None:
        resolved = None if _LINE.fullmatch(text) else self._resolve(text)
        if resolved is not None:
            self._settle_package(resolved)
            text = resolved.text
        else:
            self._report_unknown(text)
            side, text = self._bound_of_line(side, text)
        # "Between A and B (after A, up to and including B)" says it twice: the first counts.
        self.versions.bounds.setdefault(side, text)

    def _bound_of_line(self, side: Side, text: str) -> tuple[Side, str]:
        """`2.x` begins below 2.0's first pre-release; after it comes 3's."""
        parsed = parse_version(_bare(text))
        is_line = _LINE.fullmatch(text) or (self._tags is not None and self._members(text))
        if parsed is None or not is_line or parsed.prerelease:
            return side, text
        first, following = _line_bounds(parsed)
        if side in ("after", "upto"):
            return ("from" if side == "after" else "before"), following
        return side, first

    def take_exact(self, pattern: re.Pattern[str]) -> None:
        """Versions named for themselves: "in 0.15.2", "Astro 4.0 and 4.1", "the 2.x series". A version that
        follows another word ("Python 3.8") is that word's."""
        position = 0
        while (match := pattern.search(self._reading.marked, position)) is not None:
            position = match.end()
            before = self._reading.marked[: match.start()]
            text = self._reading.version_at(match.start("exact"))
            named = _NAMED.search(before) or pattern is _QUALIFIED or match.start() < match.start("exact")
            continued = bool(self.versions.exact) and _CONTINUED.search(before)
            if named or ((_INTRODUCED.search(before) or continued) and self._known(text)):
                self._exact(text, whole_line=match["line"] is not None)
                self._reading.blank(*match.span())

    def _exact(self, text: str, *, whole_line: bool) -> None:
        parsed = parse_version(_bare(text))
        if parsed is None:
            return
        whole_line = whole_line or _LINE.fullmatch(text) is not None
        resolved = None if whole_line else self._resolve(text)
        if whole_line or self._is_short(parsed, self._members(text)):
            first, following = _line_bounds(parsed)
            self.versions.bounds = {"from": first, "before": following}
        else:
            self.versions.exact.append(resolved.text if resolved else text)
        if resolved is None:
            self._report_unknown(text)

    def _is_short(self, version: Version, members: list[Version]) -> bool:
        """`0.15` where tags are `0.15.3`: the line is meant, when it has more than one release."""
        return self._tags is not None and len(version.release) < self._tags.width and len(members) > 1

    def _resolve(self, text: str) -> Version | None:
        if self._tags is None:
            return None
        if self._asked_package:
            return self._tags.resolve(f"{self._asked_package}@{text}") or self._tags.resolve(text)
        return self._tags.resolve(text)

    def _members(self, text: str) -> list[Version]:
        parsed = parse_version(_bare(text))
        return self._tags.line(parsed) if self._tags is not None and parsed is not None else []

    def _settle_package(self, version: Version) -> None:
        if self._tags is not None and len(self._tags.packages) > 1:
            self.versions.package = version.prefix

    def _report_unknown(self, text: str) -> None:
        if self._tags is not None and self._tags.versions and not self._members(text):
            self.versions.unknown.append(text)

    def finish(self) -> Versions:
        found = self.versions
        if found.bounds and found.package is None and self._tags is not None and len(self._tags.packages) > 1:
            found.package = self._tags.main
        found.exact = list(dict.fromkeys(found.exact))
        return found


def find_newest(reading: Reading) -> Newest | None:
    """Whether the question speaks of the latest release, or the last few."""
    match = _NEWEST.search(reading.marked) or _NEWEST_NAME.search(reading.marked)
    if match is None:
        return None
    count = match.groupdict().get("count")
    return Newest(count_of(count) if count else 1, match["in"] is not None, match.span())


def _bare(text: str) -> str:
    line = _LINE.fullmatch(text)
    return line["line"] if line else text


def _line_bounds(version: Version) -> tuple[str, str]:
    """The lowest version of the line, and the lowest of the next one."""
    numbers = version.release
    first, following = (".".join(map(str, part)) for part in (numbers, (*numbers[:-1], numbers[-1] + 1)))
    return first + FLOOR, following + FLOOR
