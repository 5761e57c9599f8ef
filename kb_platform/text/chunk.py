"""A release body → chunks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from kb_platform.text.kinds import Kind
from kb_platform.text.references import References

__all__ = ["CHUNKER", "Chunk", "References", "Role", "chunk_body"]

CHUNKER = "items-1"
_PART = re.compile(r"(?m)^(?:#{1,6} .*|[-*] .*(?:\n[ \t]+\S.*)*|\S.*(?:\n(?![-*#])\S.*)*)")


class Role(StrEnum):
    """What a chunk is for: items and text are searched, headings and markup are not."""

    ITEM = "item"
    TEXT = "text"
    HEADING = "heading"
    MARKUP = "markup"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a release body: `body[start:end] == text`, offsets in Unicode code points."""

    ordinal: int
    role: Role
    kind: Kind
    start: int
    end: int
    text: str
    headings: tuple[str, ...]
    references: References


def chunk_body(body: str) -> list[Chunk]:
    """Cut a release body into chunks that cover all its non-blank characters, in order."""
    chunks: list[Chunk] = []
    heading: tuple[str, ...] = ()
    for match in _PART.finditer(body):
        text = match.group()
        role = Role.HEADING if text.startswith("#") else Role.ITEM if text[0] in "-*" else Role.TEXT
        if role is Role.HEADING:
            heading = (text.lstrip("# "),)
        path = () if role is Role.HEADING else heading
        chunks.append(Chunk(len(chunks), role, Kind.OTHER, match.start(), match.end(), text, path, References()))
    return chunks
