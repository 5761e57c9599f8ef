"""Markdown → blocks, with markdown-it.

Belongs here: everything that knows markdown-it's tokens. Only its block parser runs: its inline parser is slow
on hostile text and gives no offsets. Does not belong here: the meaning of a block (`outline`), HTML (`html`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

from kb_platform.text.blocks import BOLD_LEVEL, Block, Lines, Shape, trimmed
from kb_platform.text.cleaning import plain_text
from kb_platform.text.html import html_blocks

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# Work that the block parser may be given, in lines plus list and quote marks plus table cells plus tags. The
# worst measured shape (a paragraph that continues a quotation 15 levels deep) costs 42 µs a unit, so that this is
# half a second; the largest of 4,362 real bodies has 1,591 units.
MAX_WORK: Final = 12_000

_MARKS: Final = re.compile(r"(?m)^[ \t]*((?:(?:[-+*>]|\d{1,9}[.)])[ \t]*)+)")
_ITEM_MARK: Final = re.compile(r"[ \t>]*(?:[-+*]|\d{1,9}[.)])[ \t]*")
_BOLD_LINE: Final = re.compile(
    r"(?:\*\*([^*\n]{1,80})\*\*|__([^_\n]{1,80})__|<(?:b|strong)>([^<>\n]{1,80})</(?:b|strong)>):?\s*"
)
_SENTENCE_END: Final = (".", "!", "?", ",", ";")
# These introduce a remark about what stands before it.
_NOTICES: Final = frozenset(
    {"note", "notes", "please note", "warning", "important", "caution", "tip", "attention"}
)
# A paragraph that only says where else to look: a target of MyST, a link to the diff.
_POINTER: Final = re.compile(
    r"\([\w.-]+\)="
    r"|(?:\*\*)?Full Changelog(?:\*\*)?:?(?:\*\*)? *\S+"
    r"|\[[^\[\]\n]*\]\(https?://[^()\s]+/compare/[^()\s]+\)"
)
# "text\n---" makes the text a heading; real ones are short, and prose above a rule is not one.
_MAX_SETEXT_TITLE: Final = 100


def work(body: str) -> int:
    """How much the block parser would have to do, in the units of MAX_WORK; at least that, when it is more."""
    signs = sum(body.count(sign) for sign in "\n\r|<")
    if signs > MAX_WORK:
        return signs
    return signs + sum(len(match.split()) + match.count(">") for match in _MARKS.findall(body))


def markdown_blocks(body: str) -> list[Block]:
    """The blocks of a Markdown body, in order. The caller has checked `work(body) <= MAX_WORK`."""
    return _Reader(body).blocks()


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"maxNesting": 14}).enable("table")


class _Reader:
    """One pass over the tokens of a body."""

    def __init__(self, body: str) -> None:
        parser = _parser()
        self.tokens: list[Token] = []
        # What markdown-it's own `normalize` rule does; the block parser expects it.
        source = body.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
        parser.block.parse(source, parser, {}, self.tokens)
        self.lines = Lines(body)
        self.body = body
        self.at = 0
        # Where the text after the last list mark begins: "- - a" opens two items on one line.
        self.cursor = 0

    def blocks(self) -> list[Block]:
        return self._until(None)

    def _until(self, closing: str | None) -> list[Block]:
        """The blocks up to the closing token, which is consumed."""
        found: list[Block] = []
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            if token.type == closing:
                break
            self._block(token, found)
        return found

    def _block(self, token: Token, found: list[Block]) -> None:
        match token.type:
            case "heading_open":
                found.extend(self._heading(token))
            case "paragraph_open":
                found.extend(self._paragraph(token))
            case "list_item_open":
                found.append(self._item(token))
            case "fence" | "code_block":
                found.append(self._leaf(Shape.CODE, token))
            case "table_open":
                found.append(self._leaf(Shape.TABLE, token))
                self._until("table_close")
            case "hr":
                found.append(self._leaf(Shape.MARKUP, token))
            case "html_block":
                found.extend(html_blocks(self.body, *self._span(token)))
            case _:
                # Lists and quotations are transparent: what they contain stands in the flow.
                pass

    def _span(self, token: Token) -> tuple[int, int]:
        first, beyond = token.map or (self.lines.count, self.lines.count)
        return self.lines.span(first, beyond, at_least=self.cursor)

    def _leaf(self, shape: Shape, token: Token) -> Block:
        return Block(shape, *self._span(token))

    def _heading(self, token: Token) -> list[Block]:
        start, end = self._span(token)
        inline = self.tokens[self.at].content
        self._until("heading_close")
        if token.markup in {"=", "-"} and (len(inline) > _MAX_SETEXT_TITLE or "\n" in inline):
            rule = max(start, self.lines.offset((token.map or (0, 1))[1] - 1))
            return [
                Block(Shape.PARAGRAPH, *trimmed(self.body, start, rule)),
                Block(Shape.MARKUP, *trimmed(self.body, rule, end)),
            ]
        return [Block(Shape.HEADING, start, end, int(token.tag[1:]), plain_text(inline))]

    def _paragraph(self, token: Token) -> list[Block]:
        start, end = self._span(token)
        self._until("paragraph_close")
        text = self.body[start:end]
        if _POINTER.fullmatch(text):
            return [Block(Shape.MARKUP, start, end)]
        first = text.splitlines()[0] if text else ""
        title = bold_title(first)
        if not title:
            return [Block(Shape.PARAGRAPH, start, end)]
        heading = Block(Shape.HEADING, start, start + len(first.rstrip()), BOLD_LEVEL, title)
        rest = trimmed(self.body, heading.end, end)
        return [heading, Block(Shape.PARAGRAPH, *rest)] if rest[0] < rest[1] else [heading]

    def _item(self, token: Token) -> Block:
        start, end = self._span(token)
        if mark := _ITEM_MARK.match(self.body, start):
            self.cursor = min(mark.end(), end)
        children = self._until("list_item_close")
        self.cursor = max(self.cursor, end)
        return Block(Shape.ITEM, start, end, children=children)


def bold_title(line: str) -> str:
    """The title that a line in bold gives to what follows it; empty when the line is no heading."""
    match = _BOLD_LINE.fullmatch(line)
    if not match:
        return ""
    title = (match[1] or match[2] or match[3]).strip()
    is_prose = title.endswith(_SENTENCE_END) or title.rstrip(":").lower() in _NOTICES
    return "" if is_prose else plain_text(title).rstrip(": ")
