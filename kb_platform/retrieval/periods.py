"""Periods of publication that a question asks for.

Belongs here: the words that bound and join expressions of time ("since", "between … and …", "until").
Does not belong here: what one expression of time means (`retrieval.dates`). Everything is UTC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from kb_platform.retrieval.dates import DateWords, add_months, find_dates
from kb_platform.retrieval.reading import Reading

_RELATION = re.compile(
    r"""(?<!\w)(?:
      (?P<between>between)
    | (?P<of>(?:releases|versions|changes|release\ notes)\ (?:of|from|for))
    | (?P<not_after>until|till|through|thru|up\ to(?:\ and\ including)?|by|(?:no|not)\ later\ than|<=)
    | (?P<not_before>since|from|starting(?:\ (?:in|from|on|with))?|as\ of|(?:no|not)\ earlier\ than|not\ before|>=)
    | (?P<after>after|later\ than|newer\ than|past)
    | (?P<before>before|prior\ to|earlier\ than|older\ than)
    | (?P<within>in|on|during|within|throughout|over) | (?P<weak>of|for|dated)
    )\ (?:the\ |all\ of\ )?$""",
    re.VERBOSE | re.IGNORECASE,
)
_LONGEST_RELATION = 32
_JOIN = re.compile(
    r"\s*(?:,?\s*(?:and|to|until|till|through|thru|up to(?: and including)?)|-|\u2013|\u2014|\.\.+|\u2192|->)\s*",
    re.IGNORECASE,
)
_ONWARDS = re.compile(r"\ (?:on(?!\w)|onwards?|(?:or|and)\ (?:later|newer|after))(?!\w)", re.IGNORECASE)
_COUNTED = re.compile(
    r"\ (?:stable\ |minor\ |major\ |patch\ )?(?:releases|versions|changes|changelog)\b", re.IGNORECASE
)
_ZONE = re.compile(r"\s*\(?\bUTC\b\)?")
# No release was published before this year; "dates before 1970" in a question are about its subject.
_FIRST_YEAR = 2005
_LEAD_IN = re.compile(
    r"(?:(?:were|was|been)\ )?(?:published|released|shipped|tagged|issued)\ $", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Period:
    """Days from `start` on and before `end` (excluded); None is open. `words`: what was read so."""

    start: date | None
    end: date | None
    words: str

    @property
    def published_from(self) -> datetime | None:
        return datetime.combine(self.start, time.min, tzinfo=UTC) if self.start else None

    @property
    def published_before(self) -> datetime | None:
        return datetime.combine(self.end, time.min, tzinfo=UTC) if self.end else None


@dataclass(frozen=True, slots=True)
class _Bounds:
    start: date | None
    end: date | None
    span: tuple[int, int]


def take_period(reading: Reading, today: date) -> Period | None:
    """The period the question asks for, taken out of `reading`; None when it names none.

    Several expressions that bound it ("after March 2023 and before June 2024") all hold.
    """
    dates = [words for words in find_dates(reading.marked, today) if _plausible(reading.marked, words, today)]
    bounds: list[_Bounds] = []
    while dates:
        first = dates.pop(0)
        pair = _pair(reading.marked, first, dates[0]) if dates else None
        if pair is not None:
            dates.pop(0)
        found = pair or _single(reading.marked, first)
        if found is not None:
            bounds.append(found)
    if not bounds:
        return None
    words = ", ".join(reading.text[low:high].strip() for low, high in (found.span for found in bounds))
    for low, high in (found.span for found in bounds):
        lead, zone = _LEAD_IN.search(reading.marked[:low]), _ZONE.match(reading.marked, high)
        reading.blank(lead.start() if lead else low, zone.end() if zone else high)
    starts = [found.start for found in bounds if found.start]
    ends = [found.end for found in bounds if found.end]
    return Period(max(starts, default=None), min(ends, default=None), words)


def _plausible(text: str, words: DateWords, today: date) -> bool:
    """Whether releases may be dated so. "Published in March 2099" is believed, and nothing will be found."""
    relation = _relation(text, words.span[0])
    asked = _LEAD_IN.search(text[: relation.start() if relation else words.span[0]])
    return asked is not None or _FIRST_YEAR <= words.start.year <= today.year


def _relation(text: str, position: int) -> re.Match[str] | None:
    """The words just before `position` that state a relation. Positions in the match are the text's."""
    return _RELATION.search(text[:position], max(0, position - _LONGEST_RELATION))


def _pair(text: str, first: DateWords, second: DateWords) -> _Bounds | None:
    """`between A and B`, `from A to B`, `A - B`."""
    if not _JOIN.fullmatch(text, first.span[1], second.span[0]):
        return None
    relation = _relation(text, first.span[0])
    if relation is None and first.bare and second.bare and not _COUNTED.match(text, second.span[1]):
        return None
    start, end = first.start, second.end
    if first.yearless and not second.yearless:
        # "between October and February 2024" begins the year before.
        years = second.start.year - start.year - (start.month > second.start.month)
        start = add_months(start, 12 * years)
    elif second.yearless and not first.yearless:
        years = start.year - second.start.year + (second.start.month < start.month)
        end = add_months(end, 12 * years)
    if end <= start:
        return None
    return _Bounds(start, end, (relation.start() if relation else first.span[0], second.span[1]))


def _single(text: str, words: DateWords) -> _Bounds | None:
    relation, onwards = _relation(text, words.span[0]), _ONWARDS.match(text, words.span[1])
    named = relation.lastgroup if relation else None
    if words.bare and named in (None, "weak") and not onwards and not _COUNTED.match(text, words.span[1]):
        return None
    low = relation.start() if relation else words.span[0]
    if relation is not None and named == "of":
        low = relation.start() + relation[0].rstrip().rindex(" ") + 1
    span = (low, onwards.end() if onwards else words.span[1])
    if onwards or named == "not_before":
        return _Bounds(words.start, None, span)
    if named == "after":
        return _Bounds(words.end, None, span)
    if named == "before":
        return _Bounds(None, words.start, span)
    if named == "not_after":
        return _Bounds(None, words.end, span)
    return _Bounds(words.start, words.end, span)
