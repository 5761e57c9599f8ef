"""Days, weeks, months, quarters and years as people write them.

Belongs here: one expression of time ("5 March 2024", "Q1", "last week") and the days it covers. Does not
belong here: the words that bound or join expressions (`retrieval.periods`), and versions, even those that
look like dates (`2024.1`).

A month, quarter or day without a year is the most recent one that has begun. "Last week", "last month" and
so on are calendar units; "the last month", "the past week" and "last 30 days" end today.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"jan(?:uary|\.)?|feb(?:ruary|\.)?|mar(?:ch|\.)?|apr(?:il|\.)?|may|june?|july?|aug(?:ust|\.)?"
    r"|sept?(?:ember|\.)?|oct(?:ober|\.)?|nov(?:ember|\.)?|dec(?:ember|\.)?"
)
_YEAR = r"(?:19|20)[0-9]{2}"
_WORDS_OF_COUNTS: Final = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
COUNT: Final = "[0-9]{1,3}|" + "|".join(_WORDS_OF_COUNTS)
_ORDINALS: Final = {
    "first": 1,
    "second": 2,
    "third": 3,
    "fourth": 4,
    "last": 4,
    "1st": 1,
    "2nd": 2,
    "3rd": 3,
    "4th": 4,
}
_LENGTHS: Final = {"month": 1, "quarter": 3, "half": 6, "year": 12}
_DATE = re.compile(
    rf"""(?<![\w\-/@])(?<!\w\.) (?P<the>the\ )? (?:
      (?P<iso>{_YEAR}([-/])[01]?[0-9]\3[0-3]?[0-9])
    | (?P<iso_month>{_YEAR}-(?:0[1-9]|1[0-2]))
    | (?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?\ (?:of\ )?(?P<day_month>{_MONTH}),?(?:\ (?P<day_year>{_YEAR}))?
    | (?P<us_month>{_MONTH})\ (?P<us_day>[0-3]?[0-9])(?:st|nd|rd|th)?(?:,?\ (?P<us_year>{_YEAR}))?
    | (?P<month>{_MONTH})(?:,?\ (?:of\ )?(?P<month_year>{_YEAR}))?
    | (?P<year_quarter>{_YEAR})[ \-/]?Q(?P<quarter_of_year>[1-4])
    | Q(?P<quarter>[1-4])(?:[ \-/,]{{0,2}}(?:of\ )?(?P<quarter_year>{_YEAR}))?
    | (?P<nth>first|second|third|fourth|last|1st|2nd|3rd|4th)\ (?P<part>quarter|half)(?:\ of)?\ (?P<nth_year>{_YEAR})
    | H(?P<half>[12])[ \-/]?(?P<half_year>{_YEAR})
    | (?:(?:early|mid|late)[ \-]|(?:start|beginning|middle|end)\ of\ )?(?:year\ )?(?P<year>{_YEAR})
    | (?P<named>today|yesterday)
    | (?P<ago>{COUNT})\ (?P<ago_unit>day|week|month|year)s?\ ago
    | (?:last|past|previous)\ (?P<rolling>{COUNT})\ (?P<rolling_unit>day|week|month|quarter|year)s?
    | (?P<which>last|past|previous|this|current)\ (?P<calendar>week|month|quarter|year)
    ) (?![\w@]|[-./]\w|:[0-9])""",
    re.VERBOSE | re.IGNORECASE,
)

Days = tuple[date, date]
"""First day, and the day after the last."""


@dataclass(frozen=True, slots=True)
class DateWords:
    """An expression of time in a text: where it stands and the days it covers (`end` excluded)."""

    span: tuple[int, int]
    start: date
    end: date
    bare: bool
    """A date only beside words that say so: `2024`, `May`."""
    yearless: bool


def find_dates(text: str, today: date) -> Iterator[DateWords]:
    """The expressions of time in `text`, in order. Numbers that are no date (31 February) are left out."""
    for match in _DATE.finditer(text):
        # The verbs "may" and "march" are not written with a capital inside a sentence.
        if match["month"] and not match["month_year"] and not match["month"][0].isupper():
            continue
        group = next(name for name in _READERS if match[name])
        try:
            start, end = _READERS[group](match, today)
        except ValueError:  # 31 February
            continue
        yearless = group in _OPTIONAL_YEARS and not match[_OPTIONAL_YEARS[group]]
        yield DateWords(match.span(), start, end, bare=yearless or group == "year", yearless=yearless)


def add_months(day: date, months: int) -> date:
    """The same day `months` later, or the last day of a month that is shorter."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


def count_of(text: str) -> int:
    """'3' or 'three' as a number."""
    return int(text) if text.isdecimal() else _WORDS_OF_COUNTS.index(text.lower()) + 1


def _day(day: date) -> Days:
    return day, day + timedelta(days=1)


def _months(year: int, month: int, length: int = 1) -> Days:
    first = date(year, month, 1)
    return first, add_months(first, length)


def _iso(match: re.Match[str], _today: date) -> Days:
    year, month, day = map(int, re.split("[-/]", match["iso"]))
    return _day(date(year, month, day))


def _iso_month(match: re.Match[str], _today: date) -> Days:
    year, month = map(int, match["iso_month"].split("-"))
    return _months(year, month)


def _day_of_month(day: str, name: str, year: str | None, today: date) -> Days:
    month = _MONTHS.index(name[:3].lower()) + 1
    if year:
        return _day(date(int(year), month, int(day)))
    this_year = date(today.year, month, int(day))
    return _day(this_year if this_year <= today else date(today.year - 1, month, int(day)))


def _part_of_year(month: int, length: int, year: str | None, today: date) -> Days:
    return _months(int(year) if year else today.year - (month > today.month), month, length)


def _month(match: re.Match[str], today: date) -> Days:
    return _part_of_year(_MONTHS.index(match["month"][:3].lower()) + 1, 1, match["month_year"], today)


def _nth(match: re.Match[str], today: date) -> Days:
    length = _LENGTHS[match["part"].lower()]
    nth = min(_ORDINALS[match["nth"].lower()], 12 // length)
    return _part_of_year(length * (nth - 1) + 1, length, match["nth_year"], today)


def _back(today: date, count: int, unit: str) -> date:
    unit = unit.lower()
    if unit in ("day", "week"):
        return today - timedelta(days=count * (7 if unit == "week" else 1))
    return add_months(today, -count * _LENGTHS[unit])


def _rolling(match: re.Match[str], today: date) -> Days:
    return _back(today, count_of(match["rolling"]), match["rolling_unit"]), today + timedelta(days=1)


def _calendar(match: re.Match[str], today: date) -> Days:
    unit, which = match["calendar"].lower(), match["which"].lower()
    if which == "past" or (which == "last" and match["the"]):
        return _back(today, 1, unit), today + timedelta(days=1)
    back = 0 if which in ("this", "current") else 1
    if unit == "week":
        monday = today - timedelta(days=today.weekday() + 7 * back)
        return monday, monday + timedelta(days=7)
    length = _LENGTHS[unit]
    first = date(today.year, (today.month - 1) // length * length + 1, 1)
    return add_months(first, -length * back), add_months(first, length * (1 - back))


_READERS: Final[dict[str, Callable[[re.Match[str], date], Days]]] = {
    "iso": _iso,
    "iso_month": _iso_month,
    "day": lambda m, today: _day_of_month(m["day"], m["day_month"], m["day_year"], today),
    "us_day": lambda m, today: _day_of_month(m["us_day"], m["us_month"], m["us_year"], today),
    "month": _month,
    "year_quarter": lambda m, today: _part_of_year(
        3 * int(m["quarter_of_year"]) - 2, 3, m["year_quarter"], today
    ),
    "quarter": lambda m, today: _part_of_year(3 * int(m["quarter"]) - 2, 3, m["quarter_year"], today),
    "nth": _nth,
    "half": lambda m, today: _part_of_year(6 * int(m["half"]) - 5, 6, m["half_year"], today),
    "year": lambda m, _today: _months(int(m["year"]), 1, 12),
    "named": lambda m, today: _day(today - timedelta(days=m["named"].lower() == "yesterday")),
    "ago": lambda m, today: _day(_back(today, count_of(m["ago"]), m["ago_unit"])),
    "rolling": _rolling,
    "calendar": _calendar,
}
_OPTIONAL_YEARS: Final = {
    "day": "day_year",
    "us_day": "us_year",
    "month": "month_year",
    "quarter": "quarter_year",
}
