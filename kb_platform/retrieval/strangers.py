"""Names that stand where a project must stand.

Belongs here: finding such names by the grammar of the question, whether or not anybody knows them. Does not
belong here: comparing them with the repositories known (`retrieval.mentions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kb_platform.retrieval.places import ASIDE, ITSELF, QUALITY, RELEASE, VERB, Place

_NO_PROJECT = (
    rf"(?:{RELEASE}|the|an?|it|we|you|they|this|that|these|those|there|support|is|are|was|were|of|in|and|or|to|on|from|with|by|for|since|at"
    r"|as|stable|new|first|last|latest|breaking|changes?|security|our|my|fix|fixes|bug|bugs|which|what|notes|minor|major|patch|many"
    r"|projects?|packages?|library|libraries)"
)
_WORD = rf"(?!{_NO_PROJECT}(?![\w.+/@-]))[\w@][\w.+/@-]{{0,40}}"
_PROJECT = rf"(?P<name>{_WORD}(?: {_WORD}){{0,3}}?)"
_QUALITIES = rf"(?: {QUALITY}){{0,3}}"
_ENDS = r"(?=$|[?,:;.]| (?:between|from|since|after|before|in|until|up|v?[0-9][\w.]*)\b)"
_GOES_ON = (
    r"(?=$|[?,:;.]| (?:did|does|do|has|have|is|was|were|can|will|on|in|that|which|first|list|mention|between|after|since|before|from"
    rf"|{VERB})\b)"
)
_WORDINGS: Final[tuple[tuple[Place, str], ...]] = (
    (Place.ASKED, rf"^(?:the )?{_PROJECT}(?: {ITSELF})?{_QUALITIES} {RELEASE}\b"),
    (Place.ASKED, rf"\b(?:which|what|first|latest|newest|earliest|stable){_QUALITIES} {_PROJECT}{ASIDE}(?: {ITSELF})?{_QUALITIES} {RELEASE}\b"),
    (Place.ASKED, rf"\b{RELEASE} of (?:the )?{_PROJECT}(?: {ITSELF})?{ASIDE}{_GOES_ON}"),
    (Place.ASKED, rf"\b(?:this|problems?|trouble) (?:in|with) (?:the )?{_PROJECT}{ASIDE}:"),
    (Place.TOPIC, rf"\b(?:did|does|has|have) (?:the )?{_PROJECT}(?: {ITSELF})?{ASIDE} {VERB}\b"),
    (Place.TOPIC, rf"\bupgrad\w* (?:our |my |the )?{_PROJECT}{ASIDE} (?:from|to)\b"),
    (Place.TOPIC, rf"\b(?:changed?|changes|new|broken?|breaks|happened) (?:in|with|to|for) (?:the )?{_PROJECT}{ASIDE}{_ENDS}"),
)  # fmt: skip
_PATTERNS: Final = tuple((place, re.compile(wording, re.IGNORECASE)) for place, wording in _WORDINGS)


@dataclass(frozen=True, slots=True)
class Stranger:
    """A name in a project's place: ASKED where nothing but a project can stand, TOPIC where a thing might."""

    name: str
    start: int
    end: int
    place: Place


def find_strangers(text: str) -> Iterator[Stranger]:
    """Names in a project's place, the clearest places first, each name once."""
    seen: set[str] = set()
    for place, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            name = match["name"]
            if name not in seen:
                seen.add(name)
                yield Stranger(name, match.start("name"), match.end("name"), place)
