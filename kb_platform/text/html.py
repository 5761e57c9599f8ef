"""Blocks of HTML inside Markdown → blocks.

Belongs here: the few tags that carry structure in release notes (headings, `<details>`, `<summary>`, `<li>`,
comments). Does not belong here: showing HTML, or making it safe to show.
"""

from __future__ import annotations

import re
from typing import Final

from kb_platform.text.blocks import SUMMARY_LEVEL, Block, Shape, trimmed
from kb_platform.text.cleaning import plain_text

# `[^<>]*` stops at the next bracket, so that a run of "<" is scanned once.
_TAG: Final = re.compile(r"<!--|<(/?)([a-zA-Z][a-zA-Z0-9-]*)\b[^<>]*>")
_BREAKS: Final = frozenset({"p", "div", "ul", "ol", "table", "tr", "hr", "pre", "blockquote"})
_HIDDEN: Final = frozenset({"script", "style"})


def html_blocks(body: str, start: int, end: int) -> list[Block]:
    """The blocks of the HTML in `body[start:end]`, in order; tags without text are MARKUP."""
    return _Reader(body, start, end).blocks()


class _Reader:
    """One pass over the tags; `since` is where the text that is not yet reported begins."""

    def __init__(self, body: str, start: int, end: int) -> None:
        self.body = body
        self.end = end
        self.since = start
        self.shape = Shape.PARAGRAPH
        self.level = 0
        self.found: list[Block] = []

    def blocks(self) -> list[Block]:
        at = self.since
        while match := _TAG.search(self.body, at, self.end):
            at = self._tag(match)
        self._report(self.end)
        return self.found

    def _tag(self, match: re.Match[str]) -> int:
        """Act on one tag or comment; the offset from which to go on."""
        name = (match[2] or "").lower()
        closing = bool(match[1])
        if not name or (name in _HIDDEN and not closing):
            return self._skip(match, "-->" if not name else f"</{name}>")
        if name in {"details", "br"}:
            if name == "details":
                self._report(match.start())
                self.found.append(Block(Shape.UNFOLD if closing else Shape.FOLD, match.start(), match.end()))
                self.since = match.end()
            return match.end()
        level = SUMMARY_LEVEL if name == "summary" else int(name[1]) if re.fullmatch("h[1-6]", name) else 0
        if level or name == "li" or name in _BREAKS:
            self._report(match.end() if closing else match.start())
            if not closing:
                self.shape = Shape.HEADING if level else Shape.ITEM if name == "li" else Shape.PARAGRAPH
                self.level = level
        return match.end()

    def _skip(self, match: re.Match[str], until: str) -> int:
        """Report a comment, script or style as markup, up to its end or that of the block."""
        self._report(match.start())
        close = self.body.find(until, match.end(), self.end)
        close = self.end if close < 0 else close + len(until)
        self.found.append(Block(Shape.MARKUP, match.start(), close))
        self.since = close
        return close

    def _report(self, until: int) -> None:
        """Report the text since the last block, which ends here."""
        start, end = trimmed(self.body, self.since, until)
        shape, self.shape, self.since = self.shape, Shape.PARAGRAPH, until
        if start == end:
            return
        title = plain_text(self.body[start:end]) if shape is Shape.HEADING else ""
        if shape is Shape.HEADING and title:
            self.found.append(Block(shape, start, end, self.level, title))
        elif _TAG.sub("", self.body[start:end]).strip():
            self.found.append(Block(Shape.ITEM if shape is Shape.ITEM else Shape.PARAGRAPH, start, end))
        else:
            self.found.append(Block(Shape.MARKUP, start, end))
