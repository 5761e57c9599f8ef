"""Markup → readable text, and the text that is embedded.

Belongs here: what is left out of a text before a person, a word index or a model reads it. Every pattern takes
time linear in the text, because titles and texts come from strangers.
Does not belong here: making text safe to show (the app's renderer), finding references (`references`).
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from kb_platform.text.chunk import Chunk

EMBEDDING_TEXT: Final = "plain-1"
"""Version of `embedding_text`: it changes whenever the same chunk would be embedded differently."""

# Markup inside a code span is content. Its characters hide behind noncharacters, which no text contains
# (Unicode 16, section 23.7), until the rest is done.
_SPECIAL: Final = "<>*_[]()@#\\&!~`|:$+-"
_HIDE: Final = {ord(char): chr(0xFDD0 + index) for index, char in enumerate(_SPECIAL)}
_SHOW: Final = {0xFDD0 + index: char for index, char in enumerate(_SPECIAL)}

_FENCE: Final = re.compile(r"(?m)^[ \t>]*(?:`{3,}|~{3,})[^\n]*$")
_DEFINITION: Final = re.compile(r"(?m)^[ ]{0,3}\[[^\[\]\n]+\]:[ \t]*\S[^\n]*$")
# Lines of punctuation only: rules, underlines of titles, the second row of a table.
_RULE: Final = re.compile(r"(?m)^[ \t|:=~^\"+*_-]{3,}$")
_LEADING: Final = re.compile(
    r"(?m)^[ \t>]*(?:(?:[-*+•]|\d{1,9}[.)])[ \t]+)?(?:\[[ xX]\][ \t]+)?(?:#{1,6}(?=[ \t]))?[ \t]*"
)

_RST_TARGET: Final = re.compile(r"(?m)^[ \t]*\.\. _[^\n]*$|^\([\w.-]+\)=$")
_RST_DIRECTIVE: Final = re.compile(r"(?m)^([ \t]*)\.\. ([\w-]+)::")
_RST_LITERAL: Final = re.compile(r"(?m)(?<=[\w)`.])::[ \t]*$")
_RST_ROLE: Final = re.compile(r":([a-zA-Z][\w.+:-]{0,40}):`([^`<>]*)(?:<([^`<>]*)>)?`")
_RST_JOIN: Final = re.compile(r"\\ ")
_RST_LINK: Final = re.compile(r"`([^`<>]*)(?:<[^`<>]*>)?`__?(?!\w)")

_CODE: Final = re.compile(r"(`{1,2})([^`]+)\1(?!`)")
_HASH: Final = r"(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}"
_HASH_CODE: Final = re.compile(_HASH)
_BARE_HASH: Final = re.compile(r"(?<![\w/#.-])" + _HASH + r"(?![\w/.-]):?")
_RST_NAME: Final = re.compile(r"[!~]\.?([A-Za-z_][\w.]*(?:\(\))?)")
_ESCAPE: Final = re.compile(r"\\([\\`*_{}\[\]()#+\-.!~<>|&$:@])")

_HANDLE_LINK: Final = re.compile(
    r"\[@?([\w-]{1,39})(?:\\?\[bot\\?\])?\]\(https?://github\.com/(?:apps/)?\1/?\)"
)
# The lookbehind keeps an escaped bracket from starting a link, and with it the time linear.
_LINK: Final = re.compile(
    r"!?(?<!\\)\[((?:[^\[\]\\]|\\.)*)\]"
    r"\((?:<[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+\"[^\"\n]*\")?\)"
)
_AUTOLINK: Final = re.compile(r"<((?:https?|mailto|ftp):[^<>\s]*)>")
_ISSUE_URL: Final = re.compile(
    r"https?://(?:www\.)?github\.com/[\w.-]+/[\w.-]+/(?:issues|pull|discussions)/(\d+)(?:#[\w-]*)?(?![\w/])"
)
_COMMIT_URL: Final = re.compile(r"https?://(?:www\.)?github\.com/[\w.-]+/[\w.-]+/commit/[0-9a-f]{7,40}\b")
_URL: Final = re.compile(r"https?://[^\s<>()\[\]`\"]+")
_TAG: Final = re.compile(
    r"</?(?:a|abbr|b|blockquote|br|button|center|code|dd|del|details|div|dl|dt|em|figure|font|form|h[1-6]|hr|i"
    r"|iframe|img|input|ins|kbd|li|link|mark|ol|p|picture|pre|q|s|script|small|source|span|strong|style|sub"
    r"|summary|sup|svg|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|video)(?:[\s/][^<>]*)?>",
    re.IGNORECASE,
)
_ENTITY: Final = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_EMPHASIS: Final = re.compile(r"(?<![\w/.*])\*{1,3}(?=[^\s*/.])|(?<=[^\s*/])\*{1,3}(?!\w)|~~")
_UNDERLINED: Final = re.compile(r"(?<!\w)_([^_\n]+)_(?!\w)")
_EMPTY: Final = re.compile(r"[\[(][\s,;:.]*[\])]")
_CELL: Final = re.compile(r" ?\| ?")
_SPACED: Final = re.compile(r" ([,.;:!?)\]](?=[\s)\]]|$))")

_HANDLE: Final = re.compile(
    r"(?:[,(]? ?\b(?:[Tt]hanks?(?: you)?(?: to)?,?|[Bb]y) )?(?<![\w/@.])@[A-Za-z0-9][\w-]*(?![\w-]*[/.]\w)(?:\[bot\])?"
)
_ISSUE: Final = re.compile(
    r"(?i)(?:\b(?:PRs?|pull|issues?|fix(?:es|ed)?|close[sd]?|resolves|see|in|tickets?|GH)[ :-]{1,2})?"
    r"(?:(?<![\w./-])[\w.-]+/[\w.-]+)?(?<!&)#\d+\b"
)
_PICTURE: Final = re.compile(
    r"[\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe0f\u200d]+"
    r"|(?<!\w):[a-z][a-z0-9_+-]{1,30}:(?!\w)"
)
_STUB: Final = re.compile(r"^(?:[\s!,.;:–—]|-(?=\s))+")
_DOUBLED: Final = re.compile(r"([.,;])(?: ?[.,;])+(?=\s|$)")
_VERSION_HEADING: Final = re.compile(
    r"(?i)[\[(]?(?:version |release |v\.?)?\d+(?:\.\w+)+[\w.+-]*[\])]?[ \-–—:|/(]*"
    r"(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\w+ \d{1,2},? \d{4}|\d{1,2} \w+ \d{4}|unreleased)?\)?"
    r"|[\[(]?\d{4}[-/.]\d{1,2}[-/.]\d{1,2}[\])]?"
    r"|what.?s (?:changed|new)|changelog|change log|release notes"
)


def plain_text(text: str) -> str:
    """The words of a piece of Markdown or reStructuredText, on one line.

    Kept: link texts, code, identifiers, issue numbers, addresses that stand by themselves (that of an issue
    becomes "#12"). Dropped: link targets, commit hashes, HTML tags and comments, emphasis and list marks.
    """
    return _revealed(_tidy(_unmarked(text)))


def bare_words(text: str) -> str:
    """`plain_text` without what means nothing to a language model: addresses, handles, issue numbers, emoji."""
    words = _unmarked(text)
    for boilerplate in (_URL, _HANDLE, _ISSUE, _PICTURE):
        words = boilerplate.sub(" ", words)
    return _revealed(_DOUBLED.sub(r"\1", _STUB.sub("", _tidy(words)))).rstrip(" ,;:–—")


def embedding_text(repository: str, chunk: Chunk) -> str:
    """What is embedded for a chunk: the repository's short name, its headings and its bare words.

    Headings that are a version or a date say nothing about the text. Never empty; a chunk without words keeps
    its signs.
    """
    words = bare_words(chunk.text)
    if not any(map(str.isalnum, words)):
        words = plain_text(chunk.text) or chunk.text.strip()
    headings = (_PICTURE.sub(" ", heading).strip() for heading in chunk.headings)
    telling = [heading for heading in headings if heading and not _VERSION_HEADING.fullmatch(heading)]
    return ": ".join([repository.rsplit("/", 1)[-1], *telling, words])


def _unmarked(text: str) -> str:
    """The text on one line and without markup; special characters of code and escapes are still hidden."""
    text = _without_comments(text)
    for trigger, pattern, replacement in _STEPS:
        if trigger in text:
            text = pattern.sub(replacement, text)
    return _without_empty(" ".join(text.split()))


def _without_comments(text: str) -> str:
    """The text without HTML comments; one that is never closed stays."""
    pieces: list[str] = []
    at = 0
    while (begin := text.find("<!--", at)) >= 0 and (close := text.find("-->", begin + 4)) >= 0:
        pieces.append(text[at:begin])
        at = close + 3
    return "".join([*pieces, text[at:]]) if pieces else text


def _role(match: re.Match[str]) -> str:
    """The words of an interpreted text of reStructuredText: its title, else its target."""
    words = match[2].strip() or (match[3] or "").strip()
    if words.isdecimal():
        return f"#{words}" if match[1] in {"issue", "pr", "pull", "ticket", "gh"} else f"{match[1]} {words}"
    return words.lstrip("!~") if match[3] is None else words


def _code(match: re.Match[str]) -> str:
    code = match[2].strip()
    if _HASH_CODE.fullmatch(code):
        return ""
    if named := _RST_NAME.fullmatch(code):
        code = named[1]
    return code.translate(_HIDE)


def _escaped(match: re.Match[str]) -> str:
    return match[1].translate(_HIDE)


def _entity(match: re.Match[str]) -> str:
    return html.unescape(match.group())


def _tidy(text: str) -> str:
    """The text without what dropped markup leaves behind: empty brackets, cell borders, gaps."""
    if "|" in text:
        text = _CELL.sub(" ", text)
    return _SPACED.sub(r"\1", " ".join(_without_empty(text).split()))


def _without_empty(text: str) -> str:
    """The text without brackets that hold nothing, also where they hold only such brackets."""
    if "[" not in text and "(" not in text:
        return text
    return _EMPTY.sub("", _EMPTY.sub("", text))


def _revealed(text: str) -> str:
    return text.translate(_SHOW).strip()


# In this order. A step is tried only where its trigger occurs: most texts have little markup.
_STEPS: Final[tuple[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    ("```", _FENCE, ""),
    ("~~~", _FENCE, ""),
    ("_", _RST_TARGET, ""),
    (")=", _RST_TARGET, ""),
    (".. ", _RST_DIRECTIVE, r"\1\2:"),
    ("::", _RST_LITERAL, ":"),
    ("]:", _DEFINITION, ""),
    ("\n", _RULE, ""),
    ("", _LEADING, ""),
    (":`", _RST_ROLE, _role),
    ("`_", _RST_LINK, r"\1"),
    ("`", _CODE, _code),
    ("\\ ", _RST_JOIN, ""),
    ("\\", _ESCAPE, _escaped),
    ("](", _HANDLE_LINK, r"@\1"),
    ("](", _LINK, r"\1"),
    ("](", _LINK, r"\1"),
    ("<", _AUTOLINK, r"\1"),
    ("://", _ISSUE_URL, r"#\1"),
    ("://", _COMMIT_URL, ""),
    ("<", _TAG, " "),
    ("*", _EMPHASIS, ""),
    ("~~", _EMPHASIS, ""),
    ("_", _UNDERLINED, r"\1"),
    ("", _BARE_HASH, ""),
    ("&", _ENTITY, _entity),
)
