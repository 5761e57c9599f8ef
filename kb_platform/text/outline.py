"""Blocks → pieces: what becomes a chunk of its own, under which headings.

Belongs here: the rules of packing small blocks, splitting large ones, and taking lists apart. Does not belong
here: parsing (`markdown`, `restructuredtext`), how a long text is cut (`splitting`), kinds and references.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from kb_platform.text.blocks import LABEL_LEVEL, Block, Shape, trimmed
from kb_platform.text.cleaning import bare_words, plain_text
from kb_platform.text.splitting import LONGEST_WHOLE, PACKED, split_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

# A heading longer than this is a sentence; it stays in the text.
_MAX_TITLE: Final = 160
_MAX_LABEL: Final = 90
# Of the item that a piece belongs to, this much goes into the piece's heading path.
_MAX_LEAD: Final = 120

# A bold sentence, one with a full stop, is the change itself.
_BOLD: Final = re.compile(r"(?:\*\*[^*\n]*[^*\n.!?]\*\*|__[^_\n]*[^_\n.!?]__):?")
_CHECKBOX: Final = re.compile(r"[-*+][ \t]+(?:\[[ xX]\][ \t]+)?|\d{1,9}[.)][ \t]+")
_NAME: Final = re.compile(r"[\w@/.*+-]+")
_DEPENDENCIES: Final = re.compile(r"(?i)updated dependencies\b")


class Role(StrEnum):
    """What a chunk is for: items and text are searched, headings and markup are not.

    ITEM is one change; what does not fit into the chunk of a very long item follows as TEXT under its name.
    """

    ITEM = "item"
    TEXT = "text"
    HEADING = "heading"
    MARKUP = "markup"


@dataclass(frozen=True, slots=True)
class Piece:
    """A span that becomes a chunk. `owner` is the index of the piece that holds the item it continues."""

    role: Role
    start: int
    end: int
    headings: tuple[str, ...]
    owner: int | None = None


def outline(body: str, blocks: Sequence[Block]) -> list[Piece]:
    """The pieces of a body, in order, each within the size limits of `splitting`."""
    writer = _Writer(body)
    writer.flow(blocks, (), None)
    return writer.pieces


class _Writer:
    """Collects pieces; `flow` is one run of blocks under a common path."""

    def __init__(self, body: str) -> None:
        self.body = body
        self.pieces: list[Piece] = []
        self.packed: tuple[int, int] | None = None

    def flow(self, blocks: Sequence[Block], path: tuple[str, ...], owner: int | None) -> None:
        """Write a run of blocks: headings nest below `path` and end with the run."""
        above = _Path(path)
        for block, following in zip(blocks, _following(blocks), strict=True):
            if block.shape is Shape.UNFOLD or (block.shape is not Shape.ITEM and above.ends_in_label):
                self._flush(above.titles(), owner)
                above.leave(block)
            if level := self._heading_level(block, following):
                self._flush(above.titles(), owner)
                above.leave_level(level)
                self._write(Role.HEADING, block.start, block.end, above.titles(), owner)
                above.enter(level, block.title or _label(self.body[block.start : block.end]))
                continue
            if block.shape is Shape.FOLD:
                above.fold()
            self._block(block, above.titles(), owner)
        self._flush(above.titles(), owner)

    def _heading_level(self, block: Block, following: Block | None) -> int:
        """The level at which a block heads what follows it; 0 when it does not."""
        if following is None:
            return 0
        if block.shape is Shape.HEADING:
            is_title = 0 < len(block.title) <= _MAX_TITLE and block.end - block.start <= LONGEST_WHOLE
            is_empty = following.shape is Shape.HEADING and following.level <= block.level
            return block.level if is_title and not is_empty else 0
        if block.shape is Shape.PARAGRAPH and following.shape is Shape.ITEM:
            text = self.body[block.start : block.end]
            return LABEL_LEVEL if text.endswith(":") and _is_label(text) else 0
        return 0

    def _block(self, block: Block, headings: tuple[str, ...], owner: int | None) -> None:
        match block.shape:
            case Shape.ITEM:
                self._flush(headings, owner)
                self._item(block, headings, owner)
            case Shape.MARKUP | Shape.FOLD | Shape.UNFOLD:
                self._flush(headings, owner)
                self._write(Role.MARKUP, block.start, block.end, headings, owner)
            case Shape.TABLE:
                self._flush(headings, owner)
                self._table(block, headings, owner)
            case _:
                self._pack(block.start, block.end, headings, owner)

    def _pack(self, start: int, end: int, headings: tuple[str, ...], owner: int | None) -> None:
        """Add a span to the text that is being gathered, or begin anew with it."""
        if self.packed is not None and end - self.packed[0] <= PACKED:
            self.packed = (self.packed[0], end)
            return
        self._flush(headings, owner)
        self.packed = (start, end)

    def _flush(self, headings: tuple[str, ...], owner: int | None) -> None:
        if self.packed is not None:
            start, end = self.packed
            self.packed = None
            self._write(Role.TEXT, start, end, headings, owner)

    def _write(
        self, role: Role, start: int, end: int, headings: tuple[str, ...], owner: int | None
    ) -> int | None:
        """Write a span, in several pieces when it is too long; the index of the first."""
        first: int | None = None
        for piece_start, piece_end in split_spans(self.body, start, end):
            if first is not None and role is Role.ITEM:
                role, owner = Role.TEXT, first
                headings = (*headings, *_lead(self.body[start:end]))
            self.pieces.append(Piece(role, piece_start, piece_end, headings, owner))
            first = len(self.pieces) - 1 if first is None else first
        return first

    def _item(self, item: Block, headings: tuple[str, ...], owner: int | None) -> None:
        children = item.children
        nested = next((i for i, child in enumerate(children) if child.shape is Shape.ITEM), None)
        lead_end = children[nested - 1].end if nested else item.start
        if nested and _is_label(label := self.body[item.start : lead_end]):
            self._write(Role.HEADING, item.start, lead_end, headings, owner)
            self.flow(children[nested:], (*headings, _label(label)), owner)
        elif not _has_words(self.body[item.start : item.end]):
            self._write(Role.MARKUP, item.start, item.end, headings, owner)
        elif item.end - item.start <= LONGEST_WHOLE or not children:
            self._write(Role.ITEM, item.start, item.end, headings, owner)
        else:
            self._long_item(item, headings, owner)

    def _long_item(self, item: Block, headings: tuple[str, ...], owner: int | None) -> None:
        """As many of the first blocks as fit are the item; the rest stands under its first words."""
        children = item.children
        own = 1
        while (
            own < len(children)
            and children[own].shape not in {Shape.ITEM, Shape.HEADING}
            and children[own].end - item.start <= LONGEST_WHOLE
        ):
            own += 1
        if children[0].shape is Shape.ITEM:
            # "- - a": the outer mark has no text of its own.
            self.flow(children, headings, owner)
            return
        index = self._write(Role.ITEM, item.start, children[own - 1].end, headings, owner)
        lead = _lead(self.body[children[0].start : children[0].end])
        self.flow(children[own:], (*headings, *lead), index)

    def _table(self, table: Block, headings: tuple[str, ...], owner: int | None) -> None:
        """A table in groups of rows; the column names go into the heading path of the groups after the first."""
        text = self.body[table.start : table.end]
        columns = plain_text(text.split("\n", 1)[0])[:_MAX_TITLE].strip()
        begin, offset = table.start, table.start
        for row in text.splitlines(keepends=True):
            if offset + len(row.rstrip()) - begin > PACKED and offset > begin:
                self._write(Role.TEXT, begin, trimmed(self.body, begin, offset)[1], headings, owner)
                if begin == table.start and columns:
                    headings = (*headings, columns)
                begin = offset
            offset += len(row)
        self._write(Role.TEXT, begin, table.end, headings, owner)


class _Path:
    """The headings above the next block of a run, which begins below `base`."""

    def __init__(self, base: tuple[str, ...]) -> None:
        self.base = base
        self.open: list[tuple[int, str]] = []
        self.folds: list[int] = []

    @property
    def ends_in_label(self) -> bool:
        """Whether the last heading is a label, which heads one list and nothing else."""
        return bool(self.open) and self.open[-1][0] == LABEL_LEVEL

    def titles(self) -> tuple[str, ...]:
        return (*self.base, *(title for _, title in self.open if title))

    def enter(self, level: int, title: str) -> None:
        self.open.append((level, title))

    def leave_level(self, level: int) -> None:
        """Close what a heading of this level ends; never what stands outside the current `<details>`."""
        floor = self.folds[-1] if self.folds else 0
        while len(self.open) > floor and self.open[-1][0] >= level:
            self.open.pop()

    def leave(self, block: Block) -> None:
        """Close the label that `block` no longer belongs to, and the `<details>` that it closes."""
        if self.ends_in_label:
            self.open.pop()
        if block.shape is Shape.UNFOLD and self.folds:
            del self.open[self.folds.pop() :]

    def fold(self) -> None:
        self.folds.append(len(self.open))


def _following(blocks: Sequence[Block]) -> list[Block | None]:
    """For each block the next one that is not mere markup."""
    found: list[Block | None] = []
    following: Block | None = None
    for block in reversed(blocks):
        found.append(following)
        if block.shape not in {Shape.MARKUP, Shape.FOLD, Shape.UNFOLD}:
            following = block
    return found[::-1]


def _is_label(text: str) -> bool:
    """Whether the text before a list names what the list is about, and says nothing by itself."""
    bare = _unmarked_item(text)
    if len(bare) > 4 * _MAX_TITLE or "\n\n" in bare:
        return bool(_DEPENDENCIES.match(bare))
    if _DEPENDENCIES.match(bare) or _BOLD.fullmatch(bare):
        return True
    words = plain_text(bare)
    if len(words) > _MAX_LABEL or not words:
        return False
    return (words.endswith(":") and ". " not in words) or bool(_NAME.fullmatch(words))


def _label(text: str) -> str:
    """The title that a label gives; the hashes after "Updated dependencies" are not part of it."""
    words = plain_text(_unmarked_item(text)).strip(":. ")
    match = _DEPENDENCIES.match(words)
    return match.group() if match else words


def _unmarked_item(text: str) -> str:
    match = _CHECKBOX.match(text)
    return text[match.end() :] if match else text


def _lead(text: str) -> tuple[str, ...]:
    """The first words of a long item, to stand in the heading path of the rest; empty when it has none."""
    words = bare_words(text[: 4 * _MAX_LEAD])
    if len(words) > _MAX_LEAD:
        sentence = words.find(". ", 0, _MAX_LEAD)
        words = (
            words[:sentence].rstrip() if sentence > 20 else words[:_MAX_LEAD].rsplit(" ", 1)[0].rstrip() + "…"
        )
    return (words,) if words else ()


def _has_words(text: str) -> bool:
    return bool(_unmarked_item(text).strip("-*+ \t\r\n>"))
