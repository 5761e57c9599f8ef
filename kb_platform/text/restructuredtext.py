"""reStructuredText → blocks, with docutils.

Belongs here: recognising reStructuredText, and everything that knows docutils' tree. docutils reports the first
line of most blocks and no last lines: a block ends where the next one begins. Inline markup is not parsed.
Does not belong here: the meaning of a block (`outline`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kb_platform.text.blocks import BOLD_LEVEL, Block, Lines, Shape, trimmed
from kb_platform.text.cleaning import plain_text

if TYPE_CHECKING:
    from docutils import nodes

# Beyond these docutils needs too long. MAX_WORK is in lines plus steps of indentation; the largest of 201 real
# bodies has 10,717 code points and 807 of them.
MAX_LENGTH: Final = 100_000
MAX_WORK: Final = 2_500

_EVIDENCE: Final = re.compile(
    r"(?m):[a-z][a-z:+-]{1,30}:`[^`\n]"
    r"|^[ \t]*\.\. [a-z][\w-]*::"
    r"|^\.\. _[^\n:]+:"
    r"|`[^`<>\n]+<[^`<>\n]+>`_"
    r"|^(?:~{4,}|\^{4,}|\"{4,})[ \t]*$"
)
_COUNTER_EVIDENCE: Final = re.compile(r"(?m)\]\((?:https?:|#|/)|^[ ]{0,3}(?:```|~~~[^~])|^#{1,6} \S")
# docutils would end lines at these too, and then count differently.
_NO_LINE_ENDS: Final = dict.fromkeys(map(ord, "\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")
_MARK: Final = re.compile(r"(?:[-*+•‣⁃]|\(?(?:#|\w{1,9})[.)])[ \t]+")
_TITLE_RULE: Final = re.compile(r"([^\w\s])\1*[ \t]*[\r\n]*")


def is_restructuredtext(body: str) -> bool:
    """Whether a body has the marks of reStructuredText, and more of them than of Markdown."""
    evidence = sum(1 for _ in _EVIDENCE.finditer(body))
    return evidence > 0 and evidence > sum(1 for _ in _COUNTER_EVIDENCE.finditer(body))


def restructuredtext_blocks(body: str) -> list[Block] | None:
    """The blocks of a reStructuredText body, in order; None beyond what docutils can do in time.

    Raises ValueError where docutils loses its place, and whatever it raises on a text that it cannot take. Such
    a body can be read as Markdown, in which paragraphs and lists look the same.
    """
    if len(body) > MAX_LENGTH or body.count("\n") + body.count("  ") > MAX_WORK:
        return None
    return _Reader(body).blocks()


def _document(body: str) -> nodes.document:
    """docutils' tree of a body, made without touching files, networks or configuration."""
    from docutils import nodes
    from docutils.frontend import get_default_settings
    from docutils.parsers.rst import Parser
    from docutils.parsers.rst.states import Inliner
    from docutils.utils import new_document

    class Verbatim(Inliner):
        """Takes text as it stands: inline markup has no bearing on blocks."""

        def init_customizations(self, settings: object) -> None:
            """Compiles the patterns of inline markup, of which there is none here."""

        def adjust_uri(self, uri: str) -> str:
            """Addresses of targets stay as they are."""
            return uri

        def parse(
            self,
            text: str,
            lineno: int,  # noqa: ARG002
            memo: object,  # noqa: ARG002
            parent: nodes.Element,  # noqa: ARG002
        ) -> tuple[list[nodes.Node], list[nodes.system_message]]:
            return [nodes.Text(text)], []

    settings = get_default_settings(Parser())
    settings.report_level = settings.halt_level = 6
    settings.warning_stream = False
    settings.file_insertion_enabled = settings.raw_enabled = False
    settings.syntax_highlight = "none"
    document = new_document("release notes", settings)
    Parser(inliner=Verbatim()).parse(body.translate(_NO_LINE_ENDS), document)
    return document


class _Reader:
    """One pass over docutils' tree; blocks are given ends once the starts of all are known."""

    def __init__(self, body: str) -> None:
        self.lines = Lines(body)
        self.document = _document(body)
        self.order: list[Block] = []
        self.cursor = 0

    def blocks(self) -> list[Block]:
        found = self._flow(self.document, 1)
        self._close()
        return found

    def _flow(self, parent: nodes.Element, depth: int) -> list[Block]:
        from docutils import nodes

        found: list[Block] = []
        for node in parent.children:
            if isinstance(node, nodes.section):
                found.extend(self._flow(node, depth + 1))
            elif isinstance(node, nodes.title):
                found.append(self._title(node, depth - 1))
            elif isinstance(node, nodes.bullet_list | nodes.enumerated_list | nodes.block_quote):
                found.extend(self._flow(node, depth))
            elif isinstance(node, nodes.list_item):
                found.append(self._item(node, depth))
            elif isinstance(node, nodes.rubric):
                block = self._opened(Shape.HEADING, node)
                block.level, block.title = BOLD_LEVEL, plain_text(node.astext())
                found.append(block)
            elif isinstance(node, nodes.Element) and (shape := _shape(node)) and _line(node) is not None:
                # Code blocks of some directives come without a line and stay with what stands before them.
                found.append(self._opened(shape, node))
        return found

    def _opened(self, shape: Shape, node: nodes.Element) -> Block:
        line = _line(node)
        if line is None:
            raise ValueError(f"docutils gives no line for a {type(node).__name__}")
        return self._added(Block(shape, self.lines.span(line, self.lines.count, at_least=self.cursor)[0], -1))

    def _added(self, block: Block) -> Block:
        if self.order and block.start < self.order[-1].start:
            raise ValueError(f"docutils gives a block at {block.start} after one at {self.order[-1].start}")
        self.order.append(block)
        return block

    def _item(self, node: nodes.Element, depth: int) -> Block:
        item = self._opened(Shape.ITEM, node)
        if mark := _MARK.match(self.lines.body, item.start):
            self.cursor = mark.end()
        item.children = self._flow(node, depth)
        return item

    def _title(self, node: nodes.title, level: int) -> Block:
        """A section's heading: docutils gives the line of the title or of the rule below it."""
        line = _line(node) or 0
        title = node.rawsource.strip()
        near = range(max(line - 2, 0), line + 2)
        at = next((number for number in near if title and self.lines.text(number).strip() == title), None)
        if at is None:
            raise ValueError(
                f"the section title {title[:80]!r} is not at line {line + 1}, where docutils saw it"
            )
        first = at - 1 if at and _TITLE_RULE.fullmatch(self.lines.text(at - 1)) else at
        start, end = self.lines.span(first, at + 2, at_least=self.cursor)
        self.cursor = end
        return self._added(Block(Shape.HEADING, start, end, level, plain_text(title)))

    def _close(self) -> None:
        """Give every block its end: the start of the next one, without the blanks before it."""
        beyond = len(self.lines.body)
        for block in reversed(self.order):
            if block.end < 0:
                block.end = (
                    block.children[-1].end
                    if block.children
                    else trimmed(self.lines.body, block.start, max(beyond, block.start))[1]
                )
            beyond = block.start


def _line(node: nodes.Element) -> int | None:
    """The line (from 0) on which a node begins."""
    line = node.get("line") or node.line
    return line - 1 if line else None


def _shape(node: nodes.Element) -> Shape | None:
    """What a node is for the outline; None for what is not in the text."""
    from docutils import nodes

    if isinstance(node, nodes.system_message):
        # An unknown directive (Sphinx has many) comes as a complaint that quotes it.
        return Shape.PARAGRAPH if any(isinstance(child, nodes.literal_block) for child in node) else None
    if isinstance(node, nodes.literal_block | nodes.doctest_block):
        return Shape.CODE
    if isinstance(node, nodes.table):
        return Shape.TABLE
    if isinstance(node, nodes.Invisible | nodes.transition | nodes.pending):
        return Shape.MARKUP
    return Shape.PARAGRAPH if node.children or node.rawsource else None
