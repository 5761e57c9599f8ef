"""Plain lines → blocks: for bodies that a real parser refuses or would need too long for.

Belongs here: the three things that a line shows by itself (a heading, a list mark, a blank line), found in one
pass. Does not belong here: anything that needs to know a second line.
"""

from __future__ import annotations

import re
from typing import Final

from kb_platform.text.blocks import Block, Lines, Shape, trimmed
from kb_platform.text.cleaning import plain_text

# Beyond this many blocks the body is no release note; whole stretches of lines are reported instead, so that
# a megabyte of two-letter lines does not become half a million chunks.
_MAX_BLOCKS: Final = 8_000
_MAX_LINES: Final = 60_000
_STRETCH: Final = 1_000

_BLOCK: Final = re.compile(
    r"^(?P<heading>#{1,6}[ \t][^\r\n]*)"
    r"|^(?P<item>[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+[^\r\n]*)"
    r"|^(?P<blank>[ \t]*)(?=[\r\n]|\Z)"
    r"|^(?P<text>[^\r\n]+)",
    re.MULTILINE,
)


def plain_blocks(body: str) -> list[Block]:
    """The blocks of a body of any shape, in order, in time linear in its length."""
    blocks: list[Block] = []
    opened: Block | None = None
    if body.count("\n") > _MAX_LINES:
        return _stretches(body)
    for match in _BLOCK.finditer(body):
        kind, text = match.lastgroup, match.group()
        if kind == "blank" or not text.strip():
            opened = None
            continue
        end = match.start() + len(text.rstrip())
        if kind == "text" and opened is not None:
            opened.end = end
            continue
        start = match.end() - len(text.lstrip())
        if kind == "heading" and len(text) <= _STRETCH:
            title = plain_text(text.lstrip("#"))
            blocks.append(Block(Shape.HEADING, start, end, len(text) - len(text.lstrip("#")), title))
            opened = None
        else:
            opened = Block(Shape.ITEM if kind == "item" else Shape.PARAGRAPH, start, end)
            blocks.append(opened)
        if len(blocks) > _MAX_BLOCKS:
            return _stretches(body)
    return blocks


def _stretches(body: str) -> list[Block]:
    """The body in paragraphs of about _STRETCH code points, cut at ends of lines where there are some."""
    lines = Lines(body)
    blocks: list[Block] = []
    begin = 0
    for offset in lines.starts[1:]:
        if offset - begin >= _STRETCH or offset == len(body):
            start, end = trimmed(body, begin, offset)
            if end > start:
                blocks.append(Block(Shape.PARAGRAPH, start, end))
            begin = offset
    return blocks
