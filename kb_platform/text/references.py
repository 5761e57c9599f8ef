"""What a text points at: issues, advisories, CVEs, commits, people.

Belongs here: recognising references as release notes write them (GitHub Markdown, release tools, Sphinx roles).
Does not belong here: following a reference, or knowing which repository a bare "#12" belongs to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class References:
    """What a text points at; every tuple is free of repeats and in order of appearance.

    `issues` are issues, pull requests and discussions: "#1234" where the text leaves the repository open,
    else "owner/repo#12". `commits` are hexadecimal, the longest form that the text has. `authors` are logins.
    """

    issues: tuple[str, ...] = ()
    advisories: tuple[str, ...] = ()
    cves: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()


_GITHUB: Final = r"https?://(?:www\.)?github\.com/"
# Alternatives in the order in which they claim a position. A link whose text is "#12" counts as "#12".
_ISSUE: Final = re.compile(
    r"\[#(?P<linked>\d{1,7})\]\([^()\s]*\)"
    r"|`#(?P<sphinx>\d{1,7}) <[^<>`]*>`_"
    rf"|{_GITHUB}(?P<place>[\w.-]{{1,39}}/[\w.-]{{1,100}})/(?:issues|pull|discussions)/(?P<path>\d{{1,7}})(?!\d)"
    r"|:(?:issue|pr|pull|ticket|gh):`#?(?P<role>\d{1,7})`"
    r"|(?<![\w/.@-])(?P<named>[A-Za-z0-9][\w.-]{0,38}/[\w.-]{1,100})#(?P<number>\d{1,7})(?!\w)"
    r"|(?<![\w/&#.\]-])(?:#|(?i:gh-))(?P<bare>[1-9]\d{0,6})(?![\w-]|\.\d)"
)
_ADVISORY: Final = re.compile(
    r"(?i)\bGHSA(?:-[23456789cfghjmpqrvwx]{4}){3}\b|\b(?:RUSTSEC|GO)-\d{4}-\d{4}\b|\bPYSEC-\d{4}-\d{1,6}\b"
)
_CVE: Final = re.compile(r"(?i)\bCVE-\d{4}-\d{4,7}\b")
_HEX: Final = r"(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}"
# A bare run of hexadecimal digits may be a word or a number: it needs a digit, a letter and a setting.
_COMMIT: Final = re.compile(
    rf"{_GITHUB}[\w.-]{{1,39}}/[\w.-]{{1,100}}/commits?/(?P<path>[0-9a-f]{{7,40}})(?!\w)"
    rf"|`(?P<code>{_HEX})`"
    rf"|[\[(](?P<bracket>{_HEX})(?=[\]),])|,[ ](?P<listed>{_HEX})(?=[\]),])"
    rf"|(?m:^)[ \t]*(?:[-*+][ \t]+)?(?P<lead>{_HEX})(?=:?[ \t])"
    r"|(?<![\w/.-])(?P<full>[0-9a-f]{40})(?![\w/-]|\.\w)"
)
_CODE: Final = re.compile(r"(`{1,3})[^`]+\1(?!`)")
_AUTHOR: Final = re.compile(
    rf"\]\({_GITHUB}(?:apps/)?(?P<profile>[A-Za-z0-9][A-Za-z0-9-]{{0,38}})/?\)"
    r"|(?<![\w/@.`\\:-])@(?P<handle>[A-Za-z0-9][A-Za-z0-9-]{0,38})(?![\w(=]|-\w|[/.:]\w)"
)
_NOT_PEOPLE: Final = frozenset(
    {
        "about",
        "apps",
        "enterprise",
        "features",
        "marketplace",
        "orgs",
        "pricing",
        "security",
        "sponsors",
        "topics",
    }
)


def find_references(text: str) -> References:
    """All references of a text. Handles inside code are decorators or package scopes and do not count."""
    return References(
        issues=_unique(_issues(text)) if "#" in text or "/" in text or "-" in text or ":" in text else (),
        advisories=_unique(_advisories(text)) if "-" in text else (),
        cves=_unique(match.group().upper() for match in _CVE.finditer(text)) if "-" in text else (),
        commits=_longest(_named_groups(_COMMIT, text)),
        authors=_unique(_authors(text)) if "@" in text or "github.com" in text else (),
    )


def _issues(text: str) -> Iterator[str]:
    for match in _ISSUE.finditer(text):
        number = match["linked"] or match["sphinx"] or match["role"] or match["bare"]
        yield (
            f"#{number}"
            if number
            else f"{match['place'] or match['named']}#{match['path'] or match['number']}"
        )


def _advisories(text: str) -> Iterator[str]:
    for match in _ADVISORY.finditer(text):
        prefix, rest = match.group().split("-", 1)
        yield f"{prefix.upper()}-{rest.lower()}"


def _authors(text: str) -> Iterator[str]:
    bare = _CODE.sub(lambda match: " " * len(match.group()), text) if "`" in text else text
    for match in _AUTHOR.finditer(bare):
        login = match["profile"] or match["handle"]
        if login.lower() not in _NOT_PEOPLE:
            yield login


def _named_groups(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    for match in pattern.finditer(text):
        yield match[match.lastgroup or 0]


def _unique(found: Iterable[str]) -> tuple[str, ...]:
    """Without repeats; logins and repositories that differ only in case are one, as on GitHub."""
    seen: dict[str, str] = {}
    for text in found:
        seen.setdefault(text.lower(), text)
    return tuple(seen.values())


def _longest(hashes: Iterable[str]) -> tuple[str, ...]:
    """Each commit once: a short hash and the long one that it begins are the same commit."""
    kept: list[str] = []
    for found in hashes:
        for place, known in enumerate(kept):
            if known.startswith(found) or found.startswith(known):
                kept[place] = max(known, found, key=len)
                break
        else:
            kept.append(found)
    return tuple(kept)
