"""JSON that came over the network, cut by its brackets: an array's elements as the bytes that were sent.

Whether an element is a release is `github_json`'s concern: what is garbage inside a sound array comes out as it is, to be
quarantined. Does not belong here: files, which are read without holding them in memory (`files`).
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any, cast

_BOM = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"
# A quote that opens a string without an end is a token of its own, so that it is found in one pass.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
# A document longer than this is no error message.
_LONGEST_DOCUMENT = 1 << 20


class CutShortError(ValueError):
    """The bytes are not one whole array, or not one whole object."""


def array_elements(body: bytes) -> tuple[bytes, ...]:
    """The elements of one array, each without the blanks around it. Raises CutShortError."""
    body = body.removeprefix(_BOM).strip(_BLANKS)
    cuts = _cuts(body, b"[", b"]")
    if len(cuts) == 2 and not body[1:-1].strip(_BLANKS):
        return ()
    elements = tuple(body[start + 1 : stop].strip(_BLANKS) for start, stop in pairwise(cuts))
    if not all(elements):
        raise CutShortError("an array with a gap between two commas")
    return elements


def whole_object(body: bytes) -> bytes:
    """The bytes of one object, without the blanks around it. Raises CutShortError."""
    body = body.removeprefix(_BOM).strip(_BLANKS)
    _cuts(body, b"{", b"}")
    return body


def document(body: bytes) -> dict[str, Any]:
    """A small object, parsed; empty when the bytes are anything else."""
    if len(body) > _LONGEST_DOCUMENT:
        return {}
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}


def _cuts(body: bytes, opening: bytes, closing: bytes) -> list[int]:
    """Where the outer value begins, where its commas stand, and where it ends: at the last byte."""
    if not (body.startswith(opening) and body.endswith(closing)):
        raise CutShortError(f"no {'array' if opening == b'[' else 'object'}")
    cuts: list[int] = []
    depth = 0
    for match in _TOKEN.finditer(body):
        token = match[0]
        if token == b",":
            if depth == 1:
                cuts.append(match.start())
        elif token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                if match.end() != len(body):
                    raise CutShortError("more behind the end")
                return [0, *cuts, match.start()]
        elif token == b'"':
            raise CutShortError("a string without an end")
    raise CutShortError("brackets without an end")
