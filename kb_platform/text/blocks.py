"""The blocks of a release body: headings, paragraphs, list items, code, tables, with their spans.

Belongs here: the shape in which every parser (Markdown, reStructuredText, plain lines) reports what it found,
and the table of lines with which a parser turns line numbers into code point offsets.
Does not belong here: what a block means for the reader (`outline`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

# The line ends of CommonMark. str.splitlines() would also cut at U+2028, form feeds and the like, and line
# numbers would then disagree with those of the parsers.
_LINE_END: Final = re.compile(r"\r\n?|\n")

# Depths of headings in a heading path: 1 to 6 are those of Markdown and HTML, sections of reStructuredText
# count from 1; the rest are lines that act as headings.
SUMMARY_LEVEL: Final = 20
BOLD_LEVEL: Final = 21
LABEL_LEVEL: Final = 22


class Shape(StrEnum):
    """What a block is in the markup."""

    HEADING = "heading"
    PARAGRAPH = "paragraph"
    ITEM = "item"
    CODE = "code"
    TABLE = "table"
    MARKUP = "markup"
    FOLD = "fold"
    UNFOLD = "unfold"


@dataclass(slots=True)
class Block:
    """One block of a body; `start` and `end` are code point offsets without surrounding blanks.

    `level` and `title` are those of a heading. `children` are what a list item contains, its own first
    paragraph included. FOLD and UNFOLD are the tags that open and close an HTML `<details>`.
    """

    shape: Shape
    start: int
    end: int
    level: int = 0
    title: str = ""
    children: list[Block] = field(default_factory=list["Block"])


class Lines:
    """Line numbers (from 0) of a body → code point offsets."""

    def __init__(self, body: str) -> None:
        self.body = body
        self.starts = [0, *(match.end() for match in _LINE_END.finditer(body))]
        self.count = len(self.starts)
        self.starts.append(len(body))

    def offset(self, line: int) -> int:
        """Where a line begins; the end of the body for lines beyond it."""
        return self.starts[min(line, self.count)]

    def text(self, line: int) -> str:
        """A line with its line end; empty beyond the last."""
        return self.body[self.offset(line) : self.offset(line + 1)]

    def span(self, first: int, beyond: int, *, at_least: int = 0) -> tuple[int, int]:
        """The span of lines first … beyond-1 without the blanks at its ends, from `at_least` on."""
        return trimmed(self.body, max(self.offset(first), at_least), max(self.offset(beyond), at_least))


def trimmed(body: str, start: int, end: int) -> tuple[int, int]:
    """The span without the blanks at its ends; empty at its end when there is nothing else."""
    text = body[start:end]
    bare = text.lstrip()
    start += len(text) - len(bare)
    return start, start + len(bare.rstrip())
