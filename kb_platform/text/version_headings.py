"""What a heading says about a version: which one, of which day, and how sure that is.

Belongs here: one heading's words. Does not belong here: finding headings (`headings`), and which of them divide a
changelog into releases (`changelog`), for which one has to see them all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from kb_platform.text.cleaning import plain_text
from kb_platform.text.headings import LONGEST_TITLE
from kb_platform.text.versions import Version, parse_version
from kb_platform.text.written_dates import WrittenDate, find_dates

# Not a release yet, in the words of a heading or of the line below it.
_UNRELEASED: Final = re.compile(
    r"\b(?:unreleased|not (?:yet )?released|to be (?:released|announced|determined)|tb[ad]|under development"
    r"|in (?:development|progress)|work in progress|wip|upcoming|coming soon|release date:? pending)\b"
    r"|(?:yyyy|xxxx|20xx|\?{4})[-/.][\w?/.-]*",
    re.IGNORECASE,
)
# A heading that has no version and is of what comes next.
_NEXT: Final = re.compile(
    r"(?:the )?(?:unreleased|next|upcoming|future|latest|current|head|main|master|trunk|develop(?:ment)?|dev"
    r"|(?:unreleased|next|upcoming|future|latest|pending|development)(?: major| minor)?"
    r" (?:changes?|releases?|version)|not (?:yet )?released|to be released|in development|tb[ad])",
    re.IGNORECASE,
)
# Most headings of a changelog are neither, and their markup need not be taken off.
_CANDIDATE: Final = re.compile(
    r"(?i)[0-9]|unreleased|next|upcoming|future|latest|current|head|main|master|trunk|dev|pending|released|tb[ad]"
)
# Words that go with any version, at the end and at the beginning of what stands before it.
_PLAIN: Final = (
    r"(?:new|changes?|changelog|release|notes?|what(?:['’]?s| is)|version|ver|rel|v|tag|in|for|of|with|the)"
)
_PLAIN_END: Final = re.compile(rf"(?:^|\s){_PLAIN}[.:]?$", re.IGNORECASE)
_PLAIN_START: Final = re.compile(rf"^{_PLAIN}(?:[.:]?\s+|$)", re.IGNORECASE)
# These make it a heading about something else, which involves a version.
_OTHER_LEAD: Final = re.compile(
    r"(?i)\b(?:upgrad\w*|migrat\w*|from|to|since|before|until|till|through|between|via|requires?|support\w*|drop\w*"
    r"|bump\w*|updat\w*|downgrad\w*|deprecat\w*|remov\w*|install\w*|compatib\w*|after|than|prior|and|or|break\w*"
    r"|fix\w*|add\w*|known|issues?|requires?|minimum)\b"
)
_NAME: Final = re.compile(r"(?!\d)[\w@][\w@./+-]{0,99}(?: [\w./+-]{1,40}){0,2}")
_MARKS: Final = re.compile(
    r"(?i)\b(?:yanked|retracted|withdrawn|lts|current|latest|stable|final|released?|release date|on|hotfix|security|date)\b"
    r"|\"[^\"]*\"|“[^”]*”|«[^»]*»|'[^']*'|‘[^’]*’|\([^()]*\)|\[[^\[\]]*\]|@[\w-]+"
)
_EMOJI: Final = re.compile(r":[a-z][a-z0-9_+-]{1,30}:")
_WORDS: Final = re.compile(r"[@A-Za-z0-9\u00c0-\U0001efff](?:.*\w)?")
# Projects of two parts number both: "1.44.0/0.65b0".
_SECOND_VERSION: Final = re.compile(r"^/v?[0-9][\w.+-]*")
_YANKED: Final = re.compile(r"\b(?:yanked|retracted|withdrawn)\b", re.IGNORECASE)
_TOKEN: Final = re.compile(r"[^\s,;()\[\]{}<>\"“”«»|]+")
_PREFIX: Final = re.compile(r"(?:[A-Za-z@][\w@./+-]*)?")
_NUMBERED: Final = re.compile(r"(?:^|[-_/@])[vVrR][0-9]")
_REFERENCE: Final = re.compile(r"\]\[[^\[\]]*\]")
_SEPARATORS: Final = "-–—:,/|·•~.*#"
_STATED: Final = re.compile(
    r"[*_>(\[ :|-]*(?:(?:initial(?:ly)? |first )?(?:released?|publi(?:shed|cation)|date)(?: date)?(?: on)?)?[*_: ]*"
    r"(?P<date>[^*_]*?)[*_)\]. ]*",
    re.IGNORECASE,
)
_LONGEST_STATED: Final = 80


@dataclass(frozen=True, slots=True)
class VersionHeading:
    """What a heading says. `version` is as written, without brackets; empty for what is not released yet.

    `bare`: there is the version and what goes with one (a date, a mark, a codename) and no other words.
    `lead`: the name in front of it: `Psycopg` in "Psycopg 3.3.4". `parsed` is None where `version` is empty.
    """

    words: str
    version: str
    parsed: Version | None
    lead: str
    bare: bool
    published: date | None
    yanked: bool
    unreleased: bool


def read_heading(title: str) -> VersionHeading | None:
    """What a heading's markup says of a version; None when it is of something else."""
    if len(title) > LONGEST_TITLE or not _CANDIDATE.search(title):
        return None
    words = plain_text(_REFERENCE.sub("]", title))
    if not any("0" <= char <= "9" for char in words):
        bare = words.strip("[](){}*:.- ")
        return (
            VersionHeading(words, "", None, "", True, None, yanked=False, unreleased=True)
            if _NEXT.fullmatch(bare)
            else None
        )
    rest, published, calendar = _without_dates(words)
    token = _version_token(rest, has_date=published is not None or calendar is not None)
    if token is None and calendar is not None:
        # Only a date with dots: that is how calendar versions are written, and its parts need not be a day.
        rest, published = calendar, next((d.day for d in find_dates(words) if d.day and not d.dotted), None)
        token = _version_token(rest, has_date=True)
    elif token is None and published is not None and not rest.strip(_SEPARATORS + " ()[]"):
        return VersionHeading(words, str(published), parse_version(str(published)), "", True, published,
                              yanked=False, unreleased=False)  # fmt: skip
    if token is None:
        return None
    start, version, parsed = token
    return _judged(words, rest, start, version, parsed, published)


def stated_date(line: str) -> date | None:
    """The day that a line states when it does nothing else: "Released 2024-01-31", "*January 31, 2024*"."""
    if len(line) > _LONGEST_STATED:
        return None
    dates = find_dates(line)
    if len(dates) != 1 or dates[0].day is None:
        return None
    around = line[: dates[0].start] + line[dates[0].end :]
    match = _STATED.fullmatch(around)
    return dates[0].day if match and not match["date"].strip() else None


def states_unreleased(line: str) -> bool:
    """Whether a line says that this is not released, and no more."""
    return len(line) <= _LONGEST_STATED and _NEXT.fullmatch(line.strip("[](){}*_:. ")) is not None


def _without_dates(words: str) -> tuple[str, date | None, str | None]:
    """The words with blanks where dates were, the first day that is known, and the words with a dotted date kept."""
    dates = find_dates(words)
    plain = [found for found in dates if not found.dotted]
    rest = _blanked(words, dates)
    day = next((found.day for found in [*plain, *dates] if found.day), None)
    return rest, day, _blanked(words, plain) if len(plain) < len(dates) else None


def _blanked(words: str, dates: Sequence[WrittenDate]) -> str:
    for found in dates:
        words = words[: found.start] + " " * (found.end - found.start) + words[found.end :]
    return words


def _version_token(text: str, *, has_date: bool) -> tuple[int, str, Version] | None:
    """Where the first version stands, the version, and what it says."""
    for match in _TOKEN.finditer(text):
        token = match[0].rstrip(":.?!").lstrip(":'`~=")
        start = match.start() + len(match[0]) - len(match[0].lstrip(":'`~="))
        token = token.rstrip("'`")
        for part in (token, token.partition("/")[0]):
            parsed = _version(
                part, text[:start].rstrip(), alone=has_date and not text[:start].strip(_SEPARATORS + " ")
            )
            if parsed is not None:
                return start, part, parsed
    return None


def _version(token: str, before: str, *, alone: bool) -> Version | None:
    """A token as a version; a single number is one only where something says so."""
    if not any("0" <= char <= "9" for char in token) or "://" in token:
        return None
    parsed = parse_version(token)
    if parsed is None or not _PREFIX.fullmatch(parsed.prefix):
        return None
    if len(parsed.release) > 1 or _NUMBERED.search(token):
        return parsed
    says_so = alone or before.lower().endswith(("version", "release", "v", "v."))
    return parsed if says_so and not parsed.prefix else None


def _lead(text: str) -> str:
    """The name before a version: without signs, pictures and the words that go with any version."""
    lead = _without_signs(_EMOJI.sub(" ", text))
    while lead and (known := _PLAIN_END.search(lead) or _PLAIN_START.search(lead)):
        lead = _without_signs(lead[: known.start()] + lead[known.end() :])
    return lead


def _without_signs(text: str) -> str:
    """The text from its first letter, digit or @ to its last letter or digit."""
    words = _WORDS.search(text)
    return words[0] if words else ""


def _judged(
    words: str, rest: str, start: int, version: str, parsed: Version, published: date | None
) -> VersionHeading | None:
    lead, tail = _lead(rest[:start]), rest[start + len(version) :]
    if _OTHER_LEAD.search(lead) or (lead and not _NAME.fullmatch(lead)):
        return None
    unmarked = _without_signs(_MARKS.sub(" ", _UNRELEASED.sub(" ", _SECOND_VERSION.sub("", tail))))
    separated = not unmarked or tail.lstrip()[:1] in set(_SEPARATORS + "([{\"'“«")
    if not separated and (lead or len(unmarked.split()) > 3):
        return None
    return VersionHeading(
        words,
        version,
        parsed,
        lead,
        bare=not lead and not unmarked,
        published=published,
        yanked=_YANKED.search(tail) is not None,
        unreleased=_UNRELEASED.search(tail) is not None
        or _NEXT.fullmatch(tail.strip(" ()[]-–—:/")) is not None,
    )
