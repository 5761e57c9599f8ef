"""Dates as people write them in the headings of changelogs.

Belongs here: finding them, and knowing the day where it can only be one. 01/02/2024 is a date of which nobody can say
the day, so it has none. Does not belong here: periods in questions (`retrieval.dates`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Final

EARLIEST_YEAR: Final = 1980
LATEST_YEAR: Final = 2199

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH: Final = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY: Final = r"[0-3]?[0-9](?:st|nd|rd|th)?"
_CLOCK: Final = r"(?:[T ,]{1,2}[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(?: ?(?:Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}))?)?"
_WEEKDAY: Final = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? )?"
_WRITTEN: Final = re.compile(
    rf"(?<![A-Za-z0-9.])(?:{_WEEKDAY}(?:"
    rf"(?P<month_a>{_MONTH})[ -]?(?P<day_a>{_DAY}),?[ -](?P<year_a>[0-9]{{4}})"
    rf"|(?P<day_b>{_DAY})(?: of)?[ -]?(?P<month_b>{_MONTH}),?[ -](?P<year_b>[0-9]{{4}})"
    rf"|(?P<year_c>[0-9]{{4}})[ -](?P<month_c>{_MONTH})[ -](?P<day_c>{_DAY}))"
    r"|(?P<year>[0-9]{4})(?P<between>[-/.])(?P<month>[0-9]{1,2})(?P=between)(?P<day>[0-9]{1,2})"
    r"|(?P<compact>(?:19|20)[0-9]{2}[01][0-9][0-3][0-9])"
    r"|(?P<first>[0-9]{1,2})(?P<sign>[-/.])(?P<second>[0-9]{1,2})(?P=sign)(?P<last>[0-9]{4}))"
    rf"{_CLOCK}(?![A-Za-z0-9/]|[.-][0-9A-Za-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class WrittenDate:
    """A date in a text. `day` is None where the order of day and month is anyone's guess or there is no such day.
    `dotted`: numbers with dots between, which may as well be a version."""

    start: int
    end: int
    day: date | None
    dotted: bool


def find_dates(text: str) -> list[WrittenDate]:
    """The dates in a line, in order.

    >>> [found.day for found in find_dates("1.2.3 / 31 January 2024 (01/02/2024)")]
    [datetime.date(2024, 1, 31), None]
    """
    return [_read(match) for match in _WRITTEN.finditer(text)]


def _read(match: re.Match[str]) -> WrittenDate:
    dotted = "." in {match["between"], match["sign"]}
    return WrittenDate(match.start(), match.end(), _day(match), dotted)


def _day(match: re.Match[str]) -> date | None:
    if compact := match["compact"]:
        return _date(compact[:4], compact[4:6], compact[6:])
    if match["last"]:
        return _of_two_numbers(match["first"], match["second"], match["last"])
    if match["year"]:
        return _date(match["year"], match["month"], match["day"])
    kind = next(kind for kind in "abc" if match[f"year_{kind}"])
    month = _MONTHS.index(match[f"month_{kind}"][:3].lower()) + 1
    return _date(match[f"year_{kind}"], str(month), re.sub(r"\D", "", match[f"day_{kind}"]))


def _of_two_numbers(first: str, second: str, year: str) -> date | None:
    if first != second and int(first) <= 12 and int(second) <= 12:
        return None
    day, month = (first, second) if int(first) > 12 else (second, first)
    return _date(year, month, day)


def _date(year: str, month: str, day: str) -> date | None:
    try:
        found = date(int(year), int(month), int(day))
    except ValueError:
        return None
    return found if EARLIEST_YEAR <= found.year <= LATEST_YEAR else None
