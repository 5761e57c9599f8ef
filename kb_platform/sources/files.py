"""Files of releases: paths → records' bytes, in order, without holding a file in memory.

A `.json` file is an array, or several one after the other as `gh api --paginate` prints them, or an object spread over
lines; all others have one object a line. A folder stands for the `.json`, `.jsonl` and `.ndjson` files in it. What a
record says is `github_json`'s concern; here a record is cut out of its file even when it is damaged.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kb_platform.errors import SourceError

SUFFIXES = (".json", ".jsonl", ".ndjson")
_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20
# JSON's strings hold no line feed, so a quote that is never closed spoils the rest of its line and no more.
_TOKEN = re.compile(rb'"[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+(?:"|\\?(?=\n|\Z))|[\[\]{},]')

_NOT_BLANK = re.compile(rb"\S")


@dataclass(frozen=True)
class Record:
    """The bytes of one record and where they stand: `place` is `FILE:LINE` or `FILE[INDEX]`.

    `size` is the record's full length in bytes; `raw` is shorter where it was over the limit.
    """

    raw: bytes
    place: str
    size: int

    @property
    def is_cut(self) -> bool:
        """Whether `raw` is only the beginning."""
        return self.size > len(self.raw)


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files that `paths` stand for, folders searched to any depth, in a stable order.

    Raises SourceError for a path that is absent, and for a folder without a file of releases.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file() and not _is_manifest(p)
            )
            if not inside:
                raise SourceError(
                    f"no {', '.join(SUFFIXES)} file in {path}", hint="name a file, or another folder"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise SourceError(
                f"{path} does not exist", hint="check the path; shells expand * only where files match"
            )
    return list(dict.fromkeys(found))


def read_records(path: Path, *, max_record_bytes: int) -> Generator[Record]:
    """The records of one file. Raises SourceError when it cannot be read."""
    try:
        yield from (_values if _holds_values(path) else _lines)(path, max_record_bytes)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error


def _is_manifest(path: Path) -> bool:
    """A description of the files beside it, not a file of releases."""
    return path.name == "manifest.json"


def _holds_values(path: Path) -> bool:
    """Whether a file holds arrays or objects spread over lines, and not one object a line.

    Of lines, one that is damaged harms no other: that is how a file is read unless it clearly is not lines.
    """
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        starts = _line_starts(file)
        first, second = next(starts, b""), next(starts, b"")
    return first == b"[" or (first == b"{" and second not in (b"", b"{"))


def _line_starts(file: IO[bytes]) -> Generator[bytes]:
    """The first byte of each line that is not blank."""
    at_start = True
    while piece := file.readline(_PIECE):
        bare = piece.removeprefix(_BOM).lstrip()
        if at_start and bare:
            yield bare[:1]
        at_start = piece.endswith(b"\n") or (at_start and not bare)


def _lines(path: Path, limit: int) -> Generator[Record]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            kept, size = line, len(line.rstrip(b"\r\n"))
            while not line.endswith(b"\n") and (line := file.readline(_PIECE)):
                size += len(line.rstrip(b"\r\n"))
                # Blanks before a record are no part of it, however many.
                kept = kept if kept.strip() else line
            kept = (kept.removeprefix(_BOM) if number == 1 else kept).strip()
            if kept:
                yield Record(kept[:limit], f"{_shown(path)}:{number}", size if size > limit else len(kept))


def _values(path: Path, limit: int) -> Generator[Record]:
    """The elements of arrays, and objects outside of arrays, one after the other; found by their brackets alone.

    What stands between them is a record too: nothing is lost, it is refused by name.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        spans = _value_spans(content, len(_BOM) if content[:3] == _BOM else 0)
        records = (_cut(content, start, stop, limit) for start, stop in spans)
        for index, (raw, size) in enumerate(record for record in records if record[0]):
            yield Record(raw, f"{_shown(path)}[{index}]", size)


def _value_spans(content: mmap.mmap, start: int) -> Generator[tuple[int, int]]:
    depth, in_array = 0, False
    for match in _TOKEN.finditer(content, start):
        at = match.start()
        token = content[at : at + 1]
        if token in b"{[":
            if token == b"[" and depth == 0 and not in_array:
                yield start, at
                start, in_array = at + 1, True
            else:
                depth += 1
        elif token in b"}]" and depth:
            depth -= 1
            if depth == 0 and not in_array:
                yield start, at + 1
                start = at + 1
        elif token == b"]" or (token == b"," and depth == 0 and in_array):
            yield start, at
            start, in_array = at + 1, token == b","
    yield start, len(content)


def _cut(content: mmap.mmap, start: int, stop: int, limit: int) -> tuple[bytes, int]:
    """The bytes between, without blanks around them and cut to the limit; and their length before that."""
    begin = _NOT_BLANK.search(content, start, stop)
    if begin is None:
        return b"", 0
    start = begin.start()
    raw = content[start : min(stop, start + limit)].rstrip()
    size = stop - start
    return raw, size if size > limit else len(raw)


def _shown(path: Path) -> str:
    """The file's name as text; a name may be any bytes."""
    return os.fsencode(path.name).decode(errors="backslashreplace")
