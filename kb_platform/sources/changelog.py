"""A changelog file: its text, and which markup it is written in.

Belongs here: reading the file within bounds. Does not belong here: what its text says (`text.changelog`, which knows
versions) and the git clone around it (`clone`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from kb_platform.errors import SourceError

# The largest changelog known has 8 MB.
MAX_BYTES: Final = 64 * 1_048_576

_SUFFIXES: Final[dict[str, Literal["markdown", "restructuredtext"]]] = {
    ".md": "markdown", ".markdown": "markdown", ".mdown": "markdown", ".mkd": "markdown", ".mdx": "markdown",
    ".rst": "restructuredtext", ".rest": "restructuredtext",
}  # fmt: skip
_NAMES: Final = ("change", "history", "news", "release")


@dataclass(frozen=True)
class ChangelogFile:
    """A changelog as read. `markup`: what the name says it is; None: the text must tell."""

    name: str
    text: str
    markup: Literal["markdown", "restructuredtext"] | None


def read_changelog(path: Path, *, max_bytes: int = MAX_BYTES) -> ChangelogFile:
    """Read a changelog. Raises SourceError for what is no file, too large, or not UTF-8."""
    shown = os.fsencode(path).decode(errors="backslashreplace")
    if path.is_dir():
        raise SourceError(f"{shown} is a folder, where one file is wanted", hint=_hint(path))
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise SourceError(f"{shown} does not exist", hint=_hint(path.parent)) from None
    except OSError as error:
        raise SourceError(
            f"{shown} cannot be read: {error.strerror}", hint="check its permissions"
        ) from error
    if len(raw) > max_bytes:
        raise SourceError(
            f"{shown} has more than {max_bytes >> 20:,} MiB", hint="split the file, or import a part of it"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{shown} is not UTF-8: byte {error.start:,} is not",
            hint="convert it first, for example with iconv",
        ) from None
    return ChangelogFile(
        path.name.encode(errors="backslashreplace").decode(), text, _SUFFIXES.get(path.suffix.lower())
    )


def _hint(folder: Path) -> str:
    """The files of a folder that look like changelogs."""
    try:
        names = sorted(
            path.name for path in folder.iterdir() if path.name.lower().startswith(_NAMES) and path.is_file()
        )
    except OSError:
        names = []
    return f"there are {', '.join(names[:8])}" if names else "name the file, such as CHANGELOG.md"
