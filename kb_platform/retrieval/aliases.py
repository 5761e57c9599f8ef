"""What release notes call their project.

Belongs here: aliases read from the notes of one repository. Does not belong here: names that follow from
the repository's owner and name (`retrieval.repository_names`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from kb_platform.retrieval.repository_names import letters, owner_stem

MOST_ALIASES: Final = 3
_PROSE = r"[A-Z][A-Za-z0-9]*"
_HEADING = re.compile(rf"^\W*({_PROSE}(?: {_PROSE}){{0,2}}) v?[0-9]+\.[0-9]", re.MULTILINE)
_KIND_OF_THING = "SDK|CLI|DB|UI|Framework|Toolkit|Library|Server|Engine"
_THING = re.compile(rf"\b({_PROSE}) (?:{_KIND_OF_THING})\b")
_NO_NAMES = re.compile(r"(?:Version|Release|Releases|Changes|Changelog|What|New|From|In|Since|Upgrad\w+)\b")


def aliases_from_bodies(name: str, bodies_sample: Sequence[str]) -> tuple[str, ...]:
    """What the notes of 'owner/repo' call the project, the most frequent first, at most three.

    Taken is a capitalised name that opens a heading with a version (`Psycopg 3.2`) in half of the bodies, or
    in a twentieth of them if it is the owner's; and the repository's own word with the kind of thing it is
    (`AI SDK` for vercel/ai) in a twentieth. Two bodies at least must agree.
    """
    owner, _, repo = name.partition("/")
    own = {letters(owner), letters(owner_stem(owner)), letters(repo)}
    titles: Counter[str] = Counter()
    things: Counter[str] = Counter()
    for body in bodies_sample:
        titles.update({match[1] for match in _HEADING.finditer(body) if not _NO_NAMES.match(match[1])})
        things.update({match[0] for match in _THING.finditer(body) if letters(match[1]) in own})
    few, many = max(2, len(bodies_sample) // 20), max(2, len(bodies_sample) // 2)
    found = {
        title: count for title, count in titles.items() if count >= (few if letters(title) in own else many)
    }
    found |= {thing: count for thing, count in things.items() if count >= few}
    ordered = sorted(found, key=lambda alias: (-found[alias], alias))
    return tuple(alias for alias in ordered if letters(alias) != letters(repo))[:MOST_ALIASES]
