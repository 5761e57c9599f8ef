"""The notes of a release → blocks that a page can show, with the cited span marked.

Belongs here: headings, items, paragraphs, code and where each stands in the body; which of them lie around a span. Read
line by line: it must take any body of any size, and it decides nothing but looks (`kb_platform.text` cuts what is cited).
Does not belong here: markup inside a block (`inert`), calls to Streamlit (`rendering`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

Shape = Literal["heading", "item", "text", "code"]
Span = tuple[int, int]

# A body may hold 1 MiB; a browser should not be given more than this of it at once.
MOST_SHOWN: Final = 60_000
_AROUND: Final = 3

_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n?|\n|\Z)")
# Three marks and a blank are a prompt of Python's, seldom a quotation of a quotation of a quotation.
_QUOTED: Final = re.compile(r"(?![ \t]*>>> )(?:[ \t]*>)+[ \t]?")
_FENCE: Final = re.compile(r"[ \t]*(`{3,}|~{3,})")
_HEADING: Final = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+(?=\S)")
_ITEM: Final = re.compile(r"(?P<indent>[ \t]*)(?P<mark>[-*+•]|\d{1,9}[.)])[ \t]+(?=\S)")
_TABLE: Final = re.compile(r"[ \t]*\|.*\|[ \t]*$|[ \t]*[+][-=+]++(?<=[+])[ \t]*$")
_RULE: Final = re.compile(r"[ \t]*([-=~^*_+\"#])\1{2,}+[ \t]*$|[ \t]*(?:[-*_][ \t]*+){3,}+$")
_INDENTED: Final = re.compile(r"(?: {4}|\t)")
_BOLD_LINE: Final = re.compile(r"[ \t]*(\*\*|__)(?!\s)[^*_]{1,80}(\*\*|__):?[ \t]*$")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a body: `body[start:end]` without marks at its beginning. `depth` is that of an item, from 0."""

    shape: Shape
    start: int
    end: int
    depth: int = 0
    number: str = ""
    """The number of an item in an ordered list, without its dot."""
    cited: bool = False

    def content(self, body: str) -> str:
        """The text, without quotation marks and, of code, without the indentation that all its lines share."""
        lines = re.split(r"\r\n?|\n", body[self.start : self.end])
        if self.shape != "code":
            return "\n".join(_QUOTED.sub("", line, count=1) for line in lines).strip()
        bare = [line.expandtabs(4) for line in lines]
        margin = min((len(line) - len(line.lstrip()) for line in bare if line.strip()), default=0)
        return "\n".join(line[margin:].rstrip() for line in bare).strip("\n")


def blocks(body: str) -> list[Block]:
    """The blocks of a body, in order; every character outside of marks, fences and rules is in one."""
    return _Reader(body).read()


def with_citation(found: Sequence[Block], body: str, span: Span) -> list[Block]:
    """The same blocks, those inside the span marked as cited; one that reaches over its border is cut there."""
    result: list[Block] = []
    for block in found:
        first = True
        for start, end in _cut(block, span):
            if body[start:end].strip():
                cited = span[0] <= start and end <= span[1]
                piece = replace(block, start=start, end=end, cited=cited)
                # The rest of an item goes on without a second bullet.
                again = block.shape == "item" and not first
                result.append(replace(piece, shape="text", depth=block.depth + 1) if again else piece)
                first = False
    return result


def around(found: Sequence[Block]) -> list[Block]:
    """The cited blocks with a few before and behind, and the heading that they stand under; all when none is cited."""
    cited = [place for place, block in enumerate(found) if block.cited]
    if not cited:
        return list(found)
    first, last = max(0, cited[0] - _AROUND), cited[-1] + _AROUND + 1
    heading = next((block for block in reversed(found[:first]) if block.shape == "heading"), None)
    needed = heading is not None and not any(
        block.shape == "heading" for block in found[first : cited[0] + 1]
    )
    return [*([heading] if heading is not None and needed else []), *found[first:last]]


def shortened(found: Sequence[Block]) -> list[Block]:
    """As many of the first blocks as a page should hold, and the cited ones in any case."""
    shown: list[Block] = []
    length = 0
    for block in found:
        length += block.end - block.start
        if length <= MOST_SHOWN:
            shown.append(block)
        elif block.cited or not shown:
            shown.append(replace(block, end=min(block.end, block.start + MOST_SHOWN)))
    return shown


def _cut(block: Block, span: Span) -> Iterator[Span]:
    borders = sorted({block.start, block.end, *(at for at in span if block.start < at < block.end)})
    yield from pairwise(borders)


def _title_end(line: str) -> int:
    """Where the title of a `## title ##` line ends."""
    bare = line.rstrip()
    title = bare.rstrip("#")
    return len(title.rstrip()) if title.endswith((" ", "\t")) else len(bare)


class _Reader:
    """One pass over the lines; `open` is the block that a following line may continue."""

    def __init__(self, body: str) -> None:
        self.body = body
        self.found: list[Block] = []
        self.open: Block | None = None
        self.fence = ""
        self.indents: list[int] = []

    def read(self) -> list[Block]:
        for match in _LINE.finditer(self.body):
            if match.end() == match.start():
                break
            line = match[0].rstrip("\r\n")
            quoted = None if self.fence else _QUOTED.match(line)
            start = match.start() + (quoted.end() if quoted else 0)
            self._line(line[quoted.end() :] if quoted else line, start, match.start() + len(line))
        self._close()
        return self.found

    def _line(self, line: str, start: int, end: int) -> None:
        if self.fence:
            self._fenced(line, start, end)
        elif not line.strip():
            self._close()
        elif fence := _FENCE.match(line):
            self._close()
            self.fence = fence[1]
        elif heading := _HEADING.match(line):
            self._close()
            self.found.append(Block("heading", start + heading.end(), start + _title_end(line)))
            self.indents.clear()
        elif _RULE.match(line):
            self._rule()
        elif item := _ITEM.match(line):
            self._item(item, start, end)
        elif _TABLE.match(line) or self._is_indented(line):
            self._continue("code", start, end)
        elif self.open is None and _BOLD_LINE.match(line):
            self.found.append(Block("heading", start, end))
        else:
            self._text(line, start, end)

    def _is_indented(self, line: str) -> bool:
        fits = self.open is None or self.open.shape == "code"
        return fits and not self.indents and _INDENTED.match(line) is not None

    def _fenced(self, line: str, start: int, end: int) -> None:
        fence = _FENCE.match(line)
        if fence and fence[1].startswith(self.fence) and not line[fence.end() :].strip():
            self._close()
            self.fence = ""
        else:
            self._continue("code", start, end)

    def _rule(self) -> None:
        """A line of signs underlines one line of text, which is a title then, or stands for itself."""
        if (
            self.open is not None
            and self.open.shape == "text"
            and "\n" not in self.body[self.open.start : self.open.end]
        ):
            self.open = replace(self.open, shape="heading")
        self._close()

    def _item(self, item: re.Match[str], start: int, end: int) -> None:
        self._close()
        indent = len(item["indent"].expandtabs(4))
        while self.indents and self.indents[-1] >= indent:
            self.indents.pop()
        self.indents.append(indent)
        number = item["mark"][:-1] if item["mark"][0].isdigit() else ""
        self.open = Block("item", start + item.end(), end, min(len(self.indents) - 1, 5), number)

    def _text(self, line: str, start: int, end: int) -> None:
        if self.open is not None and self.open.shape in ("item", "text"):
            self.open = replace(self.open, end=end)
            return
        # A paragraph of an item stands below it; any other ends the list.
        indented = bool(self.indents) and line[:1] in (" ", "\t")
        if not indented:
            self.indents.clear()
        self._continue("text", start, end, depth=len(self.indents))

    def _continue(self, shape: Shape, start: int, end: int, depth: int = 0) -> None:
        if self.open is not None and self.open.shape == shape:
            self.open = replace(self.open, end=end)
        else:
            self._close()
            self.open = Block(shape, start, end, depth)

    def _close(self) -> None:
        if self.open is not None and self.body[self.open.start : self.open.end].strip():
            self.found.append(self.open)
        self.open = None
