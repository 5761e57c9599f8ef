"""A question while it is being read.

Belongs here: the text with the parts that are understood marked, so that one reader (dates, repositories,
versions) does not read what another has understood. Does not belong here: any reader.

A mark keeps the length of what it covers: positions in `marked` are positions in `text`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

LONGEST: Final = 1_000
"""In code points. What follows (a pasted log) is searched for, not read for filters."""

REPOSITORY: Final = "\ue000"
REST: Final = "\ue001"
"""Fills a mark up to the length of what it covers."""

_TYPOGRAPHY = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "\ue000": " ", "\ue001": " "}
)
_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?github\.com/(?P<name>[\w.-]+/[\w.-]+)(?:/releases)?(?:/tag/(?P<tag>[^\s?#]*))?/?",
    re.IGNORECASE,
)
_FIRST_VERSION: Final = 0xE100
_MOST_VERSIONS: Final = 64

VERSION: Final = f"[{chr(_FIRST_VERSION)}-{chr(_FIRST_VERSION + _MOST_VERSIONS - 1)}]{REST}*"
"""Pattern of a marked version. `Reading.version_at` gives its text."""


class Reading:
    """`text`: the question, NFC, with plain quotes and single spaces, and `owner/repo tag` for addresses of GitHub. `marked`: the same, with marks."""

    def __init__(self, text: str) -> None:
        plain = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)
        clean = " ".join(_ADDRESS.sub(r"\g<name> \g<tag>", plain).split())
        self.text, self.remainder = clean[:LONGEST], clean[LONGEST:]
        self.marked = self.text
        self._versions: list[str] = []

    def blank(self, start: int, end: int) -> None:
        """Take a part out: it is understood and nothing is left to search for."""
        self.marked = self.marked[:start] + " " * (end - start) + self.marked[end:]

    def mark_repository(self, start: int, end: int) -> None:
        self._mark(start, end, REPOSITORY)

    def mark_version(self, start: int, end: int) -> None:
        """Marks at most 64 versions; more stay text."""
        if len(self._versions) < _MOST_VERSIONS:
            self._mark(start, end, chr(_FIRST_VERSION + len(self._versions)))
            self._versions.append(self.text[start:end])

    def version_at(self, position: int) -> str:
        return self._versions[ord(self.marked[position]) - _FIRST_VERSION]

    def restore_versions(self) -> None:
        """Give marked versions their text back: those that became no filter are searched for."""
        self.marked = re.sub(VERSION, lambda match: self.text[match.start() : match.end()], self.marked)

    def restore_repository(self, start: int, end: int) -> None:
        """Give a marked repository its text back, unless it was taken out since."""
        if self.marked[start] == REPOSITORY:
            self.marked = self.marked[:start] + self.text[start:end] + self.marked[end:]

    def _mark(self, start: int, end: int, mark: str) -> None:
        self.marked = self.marked[:start] + mark + REST * (end - start - 1) + self.marked[end:]
