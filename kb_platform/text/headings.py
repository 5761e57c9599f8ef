"""The headings of a whole document, with their spans: Markdown and reStructuredText, in one pass over the lines.

Belongs here: what is a heading and what only looks like one (code, comments, lists, quotations). A document may have
many megabytes and come from a stranger: the parsers of release bodies (`markdown`, `restructuredtext`) need too long
for that, so lines are all that is looked at, each once. Does not belong here: what a heading says (`version_headings`).

Where this differs from CommonMark, it is for what changelogs hold: a heading right below an HTML tag such as
`<a name="1.2.3"></a>` counts, as does `##1.2.3` without a blank, code in a list may be closed at the margin, and front
matter is passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from kb_platform.text.blocks import Lines

Markup = Literal["markdown", "restructuredtext"]

# A line of more code points is no title that a person wrote.
LONGEST_TITLE: Final = 500


@dataclass(frozen=True, slots=True)
class Heading:
    """One heading. `level` counts from 1; `title` is its markup; `start` and `end` span its lines, the line end
    included; `line` counts from 1."""

    level: int
    title: str
    start: int
    end: int
    line: int


def find_headings(text: str, markup: Markup) -> list[Heading]:
    """The headings of a document in order. Time is linear in the text, whatever it is."""
    return _Markdown(text).headings() if markup == "markdown" else _restructuredtext(text)


_LIST_MARK: Final = re.compile(r"(?:[-+*]|[0-9]{1,9}[.)])(?:[ \t]+|$)")
_FENCE: Final = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_HASHES: Final = re.compile(r"#{1,6}(?:[ \t]|$)")
# What ends a list without a blank line before it; other text goes on with the last item.
_INTERRUPTS: Final = re.compile(r"#{1,6}(?:[ \t]|$)|>|`{3}|~{3}|<|([-*_])[ \t]*\1[ \t]*\1[ \t*_-]*$")
_RAW_TAG: Final = re.compile(r"<(script|pre|style|textarea)(?:[\s>]|$)", re.IGNORECASE)
_HTML_HEADING: Final = re.compile(r"<h([1-6])(?:\s[^<>]*)?>(.*)</h\1>$", re.IGNORECASE)
_UNSPACED: Final = re.compile(r"#{2,6}(?=\[?[vV]?[0-9])")


class _Markdown:
    """One pass over the lines; the fields are the construct that is open."""

    def __init__(self, text: str) -> None:
        self.lines = Lines(text)
        self.found: list[Heading] = []
        self.fence = ""
        self.fence_column = 0
        self.closing = ""
        self.list_column = 0
        # The line of a paragraph that an underline would make a heading; -1: there is none.
        self.paragraph = -1
        self.in_paragraph = False
        self.after_blank = True

    def headings(self) -> list[Heading]:
        for number in range(self._first(), self.lines.count):
            line = self.lines.text(number).rstrip("\r\n")
            bare = line.strip()
            if self.closing:
                self._skip(bare)
            elif not bare:
                # In a fence, a blank line has no indentation to tell anything by.
                if not self.fence:
                    self._end_paragraph()
                    self.after_blank = True
            elif not self._in_fence(line, bare):
                self._line(number, line, bare)
                self.after_blank = False
        return self.found

    def _first(self) -> int:
        """The line after front matter, which stands between two rules at the very start."""
        if self.lines.text(0).rstrip() != "---":
            return 0
        ends = (
            n for n in range(1, min(self.lines.count, 200)) if self.lines.text(n).rstrip() in {"---", "..."}
        )
        return next(ends, -1) + 1

    def _skip(self, bare: str) -> None:
        if self.closing in bare.lower():
            self.closing = ""

    def _in_fence(self, line: str, bare: str) -> bool:
        """Whether the line belongs to open code. A fence inside a list ends with the list."""
        if not self.fence:
            return False
        if bare.startswith(self.fence) and not bare.strip(self.fence[0]):
            self.fence = ""
            return True
        if _indent(line) < self.fence_column:
            self.fence = ""
            return False
        return True

    def _line(self, number: int, line: str, bare: str) -> None:
        indent = _indent(line)
        if (
            self.list_column
            and indent < self.list_column
            and (self.after_blank or not self.in_paragraph or _INTERRUPTS.match(bare))
        ):
            self.list_column = 0
        inside = bool(self.list_column) and indent >= self.list_column
        if not inside and indent >= 4:
            # Indented code, or the continuation of a paragraph.
            if self.in_paragraph:
                self.paragraph = -1
            return
        if inside or bare[0] == ">":
            self._contained(bare)
            return
        self._flow(number, indent, bare)

    def _contained(self, bare: str) -> None:
        """A line of a list item or a quotation: it holds no heading, but code may begin in it."""
        if bare[0] != ">":
            marked = _LIST_MARK.match(bare)
            inner = bare[marked.end() :] if marked else bare
            self._open(inner, self.list_column)
        self.paragraph, self.in_paragraph = -1, not _HASHES.match(bare.lstrip("> \t"))

    def _flow(self, number: int, indent: int, bare: str) -> None:
        if (
            self._rule(number, bare)
            or self._hashes(number, bare)
            or self._open(bare)
            or self._html(number, bare)
        ):
            self._end_paragraph()
        elif mark := _LIST_MARK.match(bare):
            self.list_column = indent + max(len(mark[0].expandtabs(4)), 2)
            self._open(bare[mark.end() :], self.list_column)
            self.paragraph, self.in_paragraph = -1, True
        else:
            self.paragraph = -1 if self.in_paragraph else number
            self.in_paragraph = True

    def _open(self, bare: str, column: int = 0) -> bool:
        """Whether code begins here, whose end is to be found; in a list it is left of `column` at the latest."""
        fence = _FENCE.match(bare) if bare[:3] in {"```", "~~~"} else None
        if fence:
            self.fence, self.fence_column = fence[1] or fence[2], column
        return fence is not None

    def _html(self, number: int, bare: str) -> bool:
        """Whether the line is HTML and no text; comments and the like hide what follows up to their end."""
        if bare[0] != "<":
            return False
        if bare.startswith("<!--"):
            self.closing = "" if "-->" in bare[4:] else "-->"
            return True
        if raw := _RAW_TAG.match(bare):
            end = f"</{raw[1].lower()}"
            self.closing = "" if end in bare.lower() else end
            return True
        if len(bare) <= LONGEST_TITLE and (heading := _HTML_HEADING.match(bare)):
            self._found(int(heading[1]), heading[2].strip(), number, number)
            return True
        return bare[-1] == ">"

    def _hashes(self, number: int, bare: str) -> bool:
        if bare[0] != "#":
            return False
        level = len(bare) - len(bare.lstrip("#"))
        rest = bare[level:]
        if not (_HASHES.match(bare) or _UNSPACED.match(bare)):
            return False
        title = rest.strip()
        without = title.rstrip("#")
        # Closing hashes count only behind a blank: "C#" keeps its own.
        title = without.rstrip() if not without or without[-1] in " \t" else title
        self._found(level, title, number, number)
        return True

    def _rule(self, number: int, bare: str) -> bool:
        """Whether the line underlines a title, or divides what stands around it."""
        if bare[0] in "*_-" and bare.strip(bare[0]) and not bare.strip(f"{bare[0]} \t"):
            return bare.count(bare[0]) > 2
        if bare[0] in "*_":
            return len(bare) > 2 and not bare.strip(bare[0])
        if bare[0] not in "=-" or bare.strip(bare[0]) or (self.paragraph < 0 and bare[0] == "="):
            return False
        if self.paragraph >= 0:
            title = self.lines.text(self.paragraph).strip()
            self._found(1 if bare[0] == "=" else 2, title, self.paragraph, number)
        return True

    def _found(self, level: int, title: str, first: int, last: int) -> None:
        start, end = self.lines.offset(first), self.lines.offset(last + 1)
        self.found.append(Heading(level, title, start, end, first + 1))

    def _end_paragraph(self) -> None:
        self.paragraph, self.in_paragraph = -1, False


def _indent(line: str) -> int:
    blanks = line[: len(line) - len(line.lstrip(" \t"))]
    return len(blanks.expandtabs(4))


# What opens something else than a paragraph, so that a rule below it makes no title of it.
_NO_TITLE: Final = re.compile(r"[-*+•‣⁃] |:[^:\s][^:]*:(?: |$)|\.\.(?: |$)|__ |\| |>>> ")
_SIGNS: Final = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def _restructuredtext(text: str) -> list[Heading]:
    """Titles with a rule below, or above and below; a style of rule is a level, in the order of first use."""
    lines = Lines(text)
    found: list[Heading] = []
    levels: dict[tuple[str, bool], int] = {}
    number, in_paragraph = 0, False
    while number < lines.count:
        line = lines.text(number).rstrip()
        over = _is_rule(line)
        title = lines.text(number + 1).strip() if over else line
        rule = lines.text(number + 1 + over).rstrip()
        framed = (
            rule == line and bool(title) and not _is_rule(title)
            if over
            else _may_be_title(line) and _is_rule(rule)
        )
        if framed and not in_paragraph and _reaches(rule, title):
            level = levels.setdefault((rule[0], over), len(levels) + 1)
            last = number + 1 + over
            found.append(Heading(level, title, lines.offset(number), lines.offset(last + 1), number + 1))
            number = last + 1
        else:
            # A paragraph goes on to a blank or indented line, whatever stands in it.
            in_paragraph = (
                bool(line) and not line[0].isspace() and (in_paragraph or not _NO_TITLE.match(line))
            )
            number += 1
    return found


def _is_rule(line: str) -> bool:
    return bool(line) and line[0] in _SIGNS and not line.strip(line[0])


def _reaches(rule: str, title: str) -> bool:
    """docutils takes a rule that is too short for its title, but not one of three signs or less."""
    return len(rule) >= len(title) or len(rule) >= 4


def _may_be_title(line: str) -> bool:
    """A title stands at the margin."""
    return bool(line) and not line[0].isspace() and not _NO_TITLE.match(line)
