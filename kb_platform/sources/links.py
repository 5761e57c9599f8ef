"""`Link` headers (RFC 8288): where a list goes on.

Belongs here: reading the header. Does not belong here: whether the address may be asked (`connection`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A header of one link and its relatives is 500 characters; beyond this nobody means well.
_LONGEST_HEADER = 100_000
_TARGET = re.compile(r"[\s,]*+<([^<>]*+)>")
_PARAMETER = re.compile(
    r"""\s*+;\s*+(?:
        (?P<name>[^\s=;,<>"]++)
        (?:\s*+=\s*+(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<token>[^\s;,"]*+)))?
    )?""",
    re.VERBOSE | re.DOTALL,
)
_LINK_END = re.compile(r"\s*+(?:,|\Z)")
_HEADER_END = re.compile(r"[\s,]*+\Z")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


class UnreadableLinkError(ValueError):
    """The header cannot be read to its end, so nobody knows whether the list goes on."""


@dataclass(frozen=True)
class Link:
    """Another address and what it is to this one; `relations` in lower case."""

    target: str
    relations: frozenset[str]


def parse_links(header: str) -> list[Link]:
    """The links of a header that speak of the page itself. Raises UnreadableLinkError."""
    if len(header) > _LONGEST_HEADER:
        raise UnreadableLinkError(f"a Link header of {len(header):,} characters")
    links: list[Link] = []
    at = 0
    while not _HEADER_END.match(header, at):
        target = _TARGET.match(header, at)
        if target is None:
            raise UnreadableLinkError(f"no link at character {at} of the Link header")
        parameters, at = _parameters(header, target.end())
        if not _LINK_END.match(header, at):
            raise UnreadableLinkError(f"no parameter at character {at} of the Link header")
        # RFC 8288, 3.2: with `anchor` a link speaks of some other page.
        if "anchor" not in parameters:
            links.append(Link(target[1].strip(), frozenset(parameters.get("rel", "").lower().split())))
    return links


def next_target(header: str | None) -> str | None:
    """Where the list goes on; None at its end. Raises UnreadableLinkError."""
    links = parse_links(header) if header is not None else []
    return next((link.target for link in links if "next" in link.relations), None)


def _parameters(header: str, at: int) -> tuple[dict[str, str], int]:
    """The parameters from `at` on, and where they end."""
    parameters: dict[str, str] = {}
    while match := _PARAMETER.match(header, at):
        at = match.end()
        quoted = match["quoted"]
        value = _ESCAPE.sub(r"\1", quoted) if quoted is not None else match["token"] or ""
        # RFC 8288, 3.3: of several `rel` the first one counts.
        if match["name"]:
            parameters.setdefault(match["name"].lower(), value)
    return parameters, at
