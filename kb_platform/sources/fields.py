"""Texts, times and links of strangers: checked, or refused by name.

What PostgreSQL, Dagster or a reader would choke on is refused here: NUL, lone surrogates, absurd dates, links that are
none. Which fields there are belongs to the format (`github_json`, `document_event`).
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from itertools import groupby
from urllib.parse import urlsplit

from kb_platform.errors import BadRecord

# NFC sorts the marks behind one letter in quadratic time: 100,000 of them took 12 s, 1,000 take a millisecond.
MOST_MARKS = 1_000
EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)

# No mark is below U+0300. Runs are taken whole, so that this is one pass.
_MAYBE_MARKS = re.compile(r"[\u0300-\U0010ffff]++")
# Tibetan vowel signs that count as letters until NFC takes them apart into marks (UAX 15, section 6).
_HIDDEN_MARKS = frozenset("\u0f73\u0f75\u0f81")
# What nearly every link is; taking it apart takes as long as all other checks of a release together.
_PLAIN_LINK = re.compile(r"https?://[a-z0-9.-]++(?::[0-9]{1,5})?(?:/[\x21-\x7e]*+)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def text(field: str, value: str) -> str:
    """NFC, so that equal texts are equal bytes."""
    if "\x00" in value:
        raise BadRecord("nul", f"{field} has a NUL character")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(
            "lone-surrogate", f"{field} has half a surrogate pair at character {error.start}"
        ) from None
    if len(value) > MOST_MARKS and _most_marks(value) > MOST_MARKS:
        raise BadRecord("absurd-value", f"{field} has more than {MOST_MARKS:,} combining marks in a row")
    return unicodedata.normalize("NFC", value)


def line(field: str, value: str) -> str:
    """One line that says something, without blanks around it."""
    found = text(field, value)
    if _CONTROL.search(found) or not (found := found.strip()):
        raise BadRecord("absurd-value", f"{field} is blank or has control characters")
    return unicodedata.normalize("NFC", found)


def moment(field: str, value: str) -> datetime:
    """A time in UTC; one without a zone is taken for UTC."""
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        raise BadRecord("absurd-value", f"{field} is not a time: {value[:80]!r}") from None
    return bounded(field, parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))


def bounded(field: str, value: datetime) -> datetime:
    """The same time in UTC, if software was published then."""
    if not EARLIEST <= value < LATEST:
        raise BadRecord("absurd-value", f"{field} is in the year {value.year}")
    return value.astimezone(UTC)


def link(field: str, value: str) -> str:
    """An address that a browser may be sent to."""
    if _PLAIN_LINK.fullmatch(value):
        return value
    found = line(field, value)
    try:
        parts = urlsplit(found)
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        is_plain = False
    if not is_plain:
        raise BadRecord("absurd-value", f"{field} is not a plain http or https link")
    return found


def _most_marks(value: str) -> int:
    """Length of the longest run of combining marks, where it may be over the limit."""
    longest = 0
    for found in _MAYBE_MARKS.finditer(value):
        if found.end() - found.start() > MOST_MARKS:
            runs = groupby(found[0], lambda char: unicodedata.combining(char) > 0 or char in _HIDDEN_MARKS)
            longest = max(longest, max((sum(1 for _ in run) for marks, run in runs if marks), default=0))
    return longest
