"""Files of releases: paths → records' bytes, in order, without holding a file in memory.

A `.json` file is an array or one object, others have one object a line; a folder stands for the `.json`, `.jsonl` and `.ndjson` files in it. What a
record says is `github_json`'s concern; here a record is cut out of its file even when it is damaged.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from kb_platform.errors import SourceError

SUFFIXES = (".json", ".jsonl", ".ndjson")
_BOM = b"\xef\xbb\xbf"
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)


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
            inside = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file() and not _is_manifest(p))
            if not inside:
                raise SourceError(f"no {', '.join(SUFFIXES)} file in {path}", hint="name a file, or another folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise SourceError(f"{path} does not exist", hint="check the path; shells expand * only where files match")
    return list(dict.fromkeys(found))


def read_records(path: Path, *, max_record_bytes: int) -> Generator[Record]:
    """The records of one file. Raises SourceError when it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64).removeprefix(_BOM).lstrip()
            if not start and path.stat().st_size <= 64:
                return
            if path.suffix == ".json" and (start[:1] == b"[" or _is_one_value(path)):
                yield from _values(path, max_record_bytes)
            else:
                yield from _lines(path, max_record_bytes)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint="check its permissions") from error


def _is_manifest(path: Path) -> bool:
    """A description of the files beside it, not a file of releases."""
    return path.name == "manifest.json"


def _is_one_value(path: Path) -> bool:
    """Whether a file that begins with an object holds one, spread over lines."""
    with path.open("rb") as file:
        first = file.readline(1_000_000).removeprefix(_BOM).strip()
        return first.startswith(b"{") and not first.endswith(b"}") and bool(file.readline(1))


def _lines(path: Path, limit: int) -> Generator[Record]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            size = len(line)
            kept = line
            while not line.endswith(b"\n") and (line := file.readline(1 << 20)):
                size += len(line)
            kept = (kept.removeprefix(_BOM) if number == 1 else kept).strip()
            if kept:
                yield Record(kept[:limit], f"{path.name}:{number}", size if size > limit + 1 else len(kept))


def _values(path: Path, limit: int) -> Generator[Record]:
    """Top-level values of an array (or of values one after the other), found by their brackets alone."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        depth, index = 0, 0
        first = len(_BOM) if content[:3] == _BOM else 0
        in_array = content[first : first + 64].lstrip()[:1] == b"["
        base = 1 if in_array else 0
        start = content.find(b"[", first) + 1 if in_array else first
        for match in _TOKEN.finditer(content, start):
            token = match[0]
            if token in (b"{", b"["):
                depth += 1
            elif token in (b"}", b"]"):
                depth -= 1
            ends_value = (base and depth == 0 and token == b",") or depth < 0
            if not base and depth == 0 and token == b"}":
                ends_value, stop = True, match.end()
            else:
                stop = match.start()
            if ends_value:
                record = _cut(content, start, stop, limit, f"{path.name}[{index}]")
                if record:
                    yield record
                    index += 1
                start = match.end()
                if depth < 0:
                    break
        # Behind the array's end, or in a file cut short, nothing is lost: what is there is refused by name.
        rest = _cut(content, start, len(content), limit, f"{path.name}[{index}]")
        if rest:
            yield rest


def _cut(content: mmap.mmap, start: int, stop: int, limit: int, place: str) -> Record | None:
    raw = content[start : min(stop, start + limit)].strip()
    if not raw:
        return None
    size = stop - start
    return Record(raw, place, size if size > limit else len(raw))
