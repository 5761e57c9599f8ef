"""JSON of strangers: bytes → an object that everybody reads alike, or a BadRecord that says why not.

Refused by name: what is not UTF-8, not JSON (NaN and Infinity are not), nested too deep, keys that stand twice in one
object, numbers without end. What the object means belongs to its reader; cutting bytes without parsing them is
`json_bytes`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn, cast

from kb_platform.errors import BadRecord

# A release of GitHub's is 4 levels deep (assets → uploader), 5 inside an event.
DEEPEST = 32
# The largest number in a release is a 64-bit id.
LONGEST_NUMBER = 40

_CONTAINERS = frozenset((dict, list))
_BLANK = re.compile(r"[ \t\n\r]*+")
_COLON = re.compile(r"[ \t\n\r]*+:[ \t\n\r]*+")
_FOLLOWS = re.compile(r"[ \t\n\r]*+([,}])[ \t\n\r]*+")


def parse_object(raw: bytes, *, meaning: str = "a release", reason: str = "not-a-release") -> dict[str, Any]:
    """The object that the bytes are. `meaning`, `reason`: for what is JSON but no object. Raises BadRecord."""
    return _parsed(raw, None, meaning, reason)[0]


def parse_with_source(
    raw: bytes, key: str, *, meaning: str, reason: str
) -> tuple[dict[str, Any], bytes | None]:
    """The object, and the very bytes of its member `key`; None when it has none. Raises BadRecord.

    The members of the outer object are decoded one by one, so that it is known where each stands: nothing is parsed twice.
    """
    return _parsed(raw, key, meaning, reason)


def bare(raw: bytes) -> bytes:
    """The bytes without a byte order mark and blanks around them."""
    return raw.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")


def _parsed(raw: bytes, key: str | None, meaning: str, reason: str) -> tuple[dict[str, Any], bytes | None]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord("not-utf8", f"byte {error.start} is not UTF-8") from None
    source: str | None = None
    try:
        start = _after_blanks(text, 0)
        if key is not None and text[start : start + 1] == "{":
            pairs, source = _members(text, start + 1, key)
            value: Any = _object(pairs)
        else:
            value, end = _DECODER.raw_decode(text, start)
            _refuse_more(text, end)
    except json.JSONDecodeError as error:
        raise BadRecord("not-json", f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        # json recurses in C for each level, and gives up near 1,000.
        raise _too_deep() from None
    _refuse_depth(value)
    if not isinstance(value, dict):
        raise BadRecord(reason, f"a JSON {type(value).__name__}, where {meaning} is an object")
    return cast("dict[str, Any]", value), None if source is None else source.encode()


def _members(text: str, at: int, wanted: str) -> tuple[list[tuple[str, Any]], str | None]:
    """The members from behind the opening brace to the end of the text, and the source of the wanted one."""
    decode = _DECODER.raw_decode
    pairs: list[tuple[str, Any]] = []
    source: str | None = None
    at = _after_blanks(text, at)
    if text.startswith("}", at):
        _refuse_more(text, at + 1)
        return pairs, source
    while True:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        key, at = decode(text, at)
        colon = _COLON.match(text, at)
        if colon is None:
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        value, end = decode(text, colon.end())
        pairs.append((key, value))
        if key == wanted:
            source = text[colon.end() : end]
        follows = _FOLLOWS.match(text, end)
        if follows is None:
            raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        at = follows.end()
        if follows[1] == "}":
            _refuse_more(text, at)
            return pairs, source


def _after_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _refuse_more(text: str, end: int) -> None:
    rest = _after_blanks(text, end)
    if rest != len(text):
        raise BadRecord("not-json", f"Extra data at character {rest}")


def _refuse_depth(value: Any) -> None:
    """Looked at when it is parsed, level by level: to tell brackets from those in texts before takes five times as long."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer) if type(inner) in _CONTAINERS]
        if not level:
            return
    raise _too_deep()


def _inside(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _too_deep() -> BadRecord:
    return BadRecord("too-deep", f"nested deeper than {DEEPEST} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadRecord("duplicate-key", f"the key {twice[:80]!r} stands twice in one object")
    return fields


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise BadRecord("absurd-number", f"a number of {len(digits):,} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits) if len(digits) <= 400 else float("inf")
    if value in (float("inf"), float("-inf")):
        raise BadRecord("absurd-number", f"a number that no float holds ({digits[:40]})")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise BadRecord("not-json", f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_refuse_constant
)
