"""A release body → chunks, the units that are searched and cited.

Belongs here: the chunk and the way from a body to its chunks. Does not belong here: the steps of that way
(`markdown`, `restructuredtext`, `plain`, `outline`, `kinds`, `references`), and what is embedded (`cleaning`).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kb_platform.text.kinds import Kind
from kb_platform.text.labelling import kind_of_item, kind_of_text
from kb_platform.text.markdown import MAX_WORK, markdown_blocks, work
from kb_platform.text.outline import Piece, Role, outline
from kb_platform.text.plain import plain_blocks
from kb_platform.text.references import References, find_references
from kb_platform.text.restructuredtext import is_restructuredtext, restructuredtext_blocks
from kb_platform.text.splitting import split_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kb_platform.text.blocks import Block

__all__ = ["CHUNKER", "Chunk", "References", "Role", "chunk_body"]

CHUNKER: Final = "items-1"
"""Version of `chunk_body`: it changes whenever the same body would be cut or labelled differently."""

_log: Final = logging.getLogger(__name__)

_NOTHING: Final = References()
# What parsers leave out: link definitions, quote marks, borders.
_DEFINITION: Final = re.compile(r"[ \t>]*\[[^\[\]\n]+\]:")
_SIGNS: Final = re.compile(r"[\W_]*")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a release body: `body[start:end] == text`, offsets in Unicode code points.

    Chunks are numbered from 0 in the order of the body and do not overlap. `headings` is the path of headings
    above the text, outermost first, without markup.
    """

    ordinal: int
    role: Role
    kind: Kind
    start: int
    end: int
    text: str
    headings: tuple[str, ...]
    references: References


def chunk_body(body: str) -> list[Chunk]:
    """Cut a release body into chunks that together hold every character of it that is not blank.

    Never fails on a text without lone surrogates, needs time linear in its length, and always gives the same
    result for the same body. No chunk is longer than 1,200 code points.
    """
    chunks: list[Chunk] = []
    kinds: dict[int, Kind] = {}
    for index, piece in _without_gaps(body, outline(body, _blocks(body))):
        text = body[piece.start : piece.end]
        kind = _kind(piece, text, kinds)
        if index is not None:
            kinds[index] = kind
        references = _NOTHING if piece.role is Role.MARKUP else find_references(text)
        chunks.append(
            Chunk(len(chunks), piece.role, kind, piece.start, piece.end, text, piece.headings, references)
        )
    return chunks


def _blocks(body: str) -> list[Block]:
    """The blocks of a body by the best parser that can serve it."""
    if is_restructuredtext(body) and (blocks := _parsed(restructuredtext_blocks, body)) is not None:
        return blocks
    if work(body) <= MAX_WORK and (blocks := _parsed(markdown_blocks, body)) is not None:
        return blocks
    return plain_blocks(body)


def _parsed(parse: Callable[[str], list[Block] | None], body: str) -> list[Block] | None:
    """What a parser makes of a body; None when it cannot serve it."""
    try:
        return parse(body)
    except Exception as error:  # noqa: BLE001 - a defect of a third-party parser must not cost us the release
        _log.warning("%s failed on a body of %d code points: %r", parse.__name__, len(body), error)
        return None


def _kind(piece: Piece, text: str, kinds: dict[int, Kind]) -> Kind:
    inherited = Kind.OTHER if piece.owner is None else kinds[piece.owner]
    if piece.role is Role.ITEM:
        return kind_of_item(text, piece.headings, inherited)
    if piece.role is Role.TEXT:
        return kind_of_text(text, piece.headings, inherited)
    return Kind.OTHER


def _without_gaps(body: str, pieces: list[Piece]) -> Iterator[tuple[int | None, Piece]]:
    """The pieces with their indexes, and between them pieces for what no block claimed."""
    at = 0
    headings: tuple[str, ...] = ()
    for index, piece in enumerate(pieces):
        yield from ((None, gap) for gap in _gap(body, at, piece.start, headings))
        yield index, piece
        at, headings = piece.end, piece.headings
    yield from ((None, gap) for gap in _gap(body, at, len(body), headings))


def _gap(body: str, start: int, end: int, headings: tuple[str, ...]) -> Iterator[Piece]:
    text = body[start:end].strip()
    is_markup = _DEFINITION.match(text) or _SIGNS.fullmatch(text)
    for piece_start, piece_end in split_spans(body, start, end):
        yield Piece(Role.MARKUP if is_markup else Role.TEXT, piece_start, piece_end, headings)
