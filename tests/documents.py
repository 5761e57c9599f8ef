"""The project's documents as the tests read them: sections, tables, code, links, commands.

Belongs here: taking Markdown apart. Does not belong here: what a document must say (`test_docs`).
"""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OURS = ("kb_platform", "assets", "sensors", "resources", "app_streamlit")

_MADE = frozenset({"__pycache__", "build", "dist", "artifacts"})
_CODE = re.compile(r"`([^`]+)`")
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")
_SEPARATORS = frozenset({"|", "||", "&&", ";", "&"})


@cache
def project_files() -> tuple[Path, ...]:
    """The files that are in git or would be added to it, so that a check also sees what is not committed yet.

    Without git (an unpacked archive): everything outside hidden and built folders.
    """
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        names = sorted(filter(None, listed.stdout.decode().split("\0")))
    else:
        names = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if not _is_made(path))
    return tuple(path for name in names if (path := ROOT / name).is_file())


def _is_made(path: Path) -> bool:
    folders = path.relative_to(ROOT).parts[:-1]
    return any((folder[0] == "." and folder != ".ci") or folder in _MADE for folder in folders)


def read(name: str) -> str:
    """A text file of the project, by its path from the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def markdown_files() -> list[Path]:
    """Every document of the project."""
    return [path for path in project_files() if path.suffix == ".md"]


def parse(text: str) -> list[Token]:
    """The block tokens of a document."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def headings(text: str) -> list[tuple[int, str, int]]:
    """(level, title without code marks, first line after it) of every heading."""
    tokens = parse(text)
    found: list[tuple[int, str, int]] = []
    for opening, title in itertools.pairwise(tokens):
        if opening.type == "heading_open" and opening.map is not None:
            found.append((int(opening.tag[1:]), title.content.replace("`", "").strip(), opening.map[1]))
    return found


def section(text: str, title: str) -> str:
    """What stands under a heading, its subsections included. Raises LookupError when there is no such heading."""
    lines = text.splitlines()
    found = headings(text)
    for index, (level, name, start) in enumerate(found):
        if name == title:
            following = [begin for deep, _, begin in found[index + 1 :] if deep <= level]
            return "\n".join(lines[start : following[0] - 1] if following else lines[start:])
    raise LookupError(f"no section {title!r}")


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table as its rows, each a mapping from the column's name (in lower case) to the cell as written."""
    found: list[list[dict[str, str]]] = []
    columns: list[str] = []
    cells: list[str] = []
    inside = ""
    for token in parse(text):
        if token.type == "table_open":
            found.append([])
            columns = []
        elif token.type in ("th_open", "td_open"):
            inside = token.type
        elif token.type == "inline" and inside == "th_open":
            columns.append(token.content.strip().lower())
        elif token.type == "inline" and inside == "td_open":
            cells.append(token.content.strip())
        elif token.type in ("th_close", "td_close"):
            inside = ""
        elif token.type == "tr_close" and cells:
            found[-1].append(dict(zip(columns, cells, strict=False)))
            cells = []
    return found


def rows(text: str) -> list[dict[str, str]]:
    """The rows of all tables of a text."""
    return [row for table in tables(text) for row in table]


def codes(text: str) -> list[str]:
    """What stands between backticks, in order."""
    return _CODE.findall(text)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [
        token.content for token in parse(text) if token.type == "fence" and token.info.strip() == language
    ]


def shell_commands(text: str) -> Iterator[list[str]]:
    """Each command of the `sh` blocks as its words: lines joined, pipes and lists taken apart, assignments dropped."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command: list[str] = []
            for word in [*_words(line), ";"]:
                if word not in _SEPARATORS:
                    command.append(word)
                    continue
                while command and _ASSIGNMENT.match(command[0]):
                    del command[0]
                if command:
                    yield command
                command = []


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def targets(text: str) -> list[str]:
    """Where the links and images of a document point."""
    found: list[str] = []
    for token in parse(text):
        for child in token.children or ():
            if child.type == "link_open":
                found.append(str(child.attrs["href"]))
            elif child.type == "image":
                found.append(str(child.attrs["src"]))
    return found


def anchors(text: str) -> set[str]:
    """The fragments that GitHub gives to a document's headings."""
    found: set[str] = set()
    for _, title, _ in headings(text):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found
