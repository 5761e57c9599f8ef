"""Text from strangers → Markdown that shows it and can do nothing else.

Belongs here: what Streamlit's Markdown would act on, and how each is stilled; the inline markup of release notes that is
kept (code, bold, italics, links by the rule of `links`). Does not belong here: blocks of a release (`notes`), calls to
Streamlit (`rendering`).

Two layers of Streamlit's renderer act on text (1.67, read in its bundle). Its parser acts on punctuation: a backslash
before every sign stills it. Afterwards it looks through the plain text for `:emoji:` and `:material/icon:`, addresses,
e-mail addresses and arrows, where a backslash is gone already: an invisible word joiner (U+2060) takes those apart.
"""

from __future__ import annotations

import html
import re
from typing import Final

from app_streamlit.links import HOME_HOSTS, clickable, spelled_out

JOINER: Final = "\u2060"
_LONGEST_LABEL: Final = 160
_DEEPEST: Final = 4

_LINE_ENDS: Final = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Control characters, marks that turn the direction of writing, tag characters, lone surrogates, noncharacters.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ufdd0-\ufdef"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_SIGN: Final = re.compile(r"([!-/:-@\[-`{-~])")
_BACKSLASH: Final = r"\\\1"
# `:name:`, `:material/name:` and `:material_name:` turn into pictures, in links too.
_PICTURE: Final = re.compile(r":(?=[\w+-]{1,64}:|material[/_])")
_OUTSIDE_LINKS: Final = (
    # Addresses and e-mail addresses turn into links; `left-pad@1.3.0` is none and stays as it is, to be copied.
    re.compile(r"(?i)https?(?=://)|www(?=\.)"),
    re.compile(r"[\w.+-](?=@[\w-]++(?:\.[\w-]++)++(?<![\d_-]))"),
    # Arrows and comparisons between blanks turn into other characters; copied options would no longer work.
    re.compile(r"(?<!\S)(?:<-(?=>(?!\S))|[-<>~](?=[-=>](?!\S)))"),
)


def visible(text: str) -> str:
    """The text with one kind of line end and without the characters that nobody sees and that may deceive."""
    return _UNSEEN.sub("", _LINE_ENDS.sub("\n", text))


def escape(text: str) -> str:
    r"""Markdown that shows a text as it is, on one line.

    >>> print(escape("*not bold* :red[no] ![x](y)"))
    \*not bold\* \:red\[no\] \!\[x\]\(y\)
    """
    text = " ".join(visible(text).split())
    for pattern in (_PICTURE, *_OUTSIDE_LINKS):
        text = pattern.sub(_parted, text)
    return _SIGN.sub(_BACKSLASH, text)


def label(text: str) -> str:
    """`escape` for the labels of widgets, which are one line and Markdown too; cut when long."""
    text = " ".join(visible(text).split())
    return escape(text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1].rstrip() + "…")


def code(text: str) -> str:
    """Markdown that shows a text as code, on one line.

    >>> print(code("a`b"))
    ``a`b``
    """
    text = " ".join(visible(text).split())
    if not text:
        return ""
    # Streamlit rewrites this one in the whole source, code included.
    text = text.replace(":material/", f":{JOINER}material/")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def link(text: str, address: str) -> str:
    """Markdown for a link with its host beside it; only its text, and a foreign address as code, where it may not be clicked.

    `text` is Markdown that was made here already.
    """
    found = clickable(address)
    if found is not None:
        beside = "" if found.host in HOME_HOSTS else f" \\({escape(found.host)}\\)"
        return f"[{text}](<{_target(found.url)}>){beside}" if text else bare_link(address)
    if re.match(r"(?i)(?:https?:)?//", address):
        shown = code(spelled_out(visible(address)))
        return f"{text} {shown}" if text else shown
    return text


def bare_link(address: str) -> str:
    """Markdown for an address that stands in a text by itself."""
    found = clickable(address)
    if found is None:
        return code(spelled_out(visible(address)))
    return f"[{_SIGN.sub(_BACKSLASH, _PICTURE.sub(_parted, address))}](<{_target(found.url)}>)"


def inline(text: str) -> str:
    """The Markdown (or reStructuredText) of one paragraph or list item → Markdown that keeps code, emphasis and safe links.

    Images become their alternative text, HTML tags that only arrange text go, all others are shown as they are written.
    Takes time linear in the text.
    """
    return _Inline(" ".join(visible(text).split())).read()


def _parted(match: re.Match[str]) -> str:
    return match[0] + JOINER


def _target(url: str) -> str:
    """An address between < and >: `_PLAIN` has neither; entities must not be read into it, nor backslashes."""
    return url.replace("&", "&amp;").replace(":material/", "%3Amaterial/")


_CODE_RUN: Final = re.compile(r"`+")
_BRACKETED: Final = r"\[(?:[^\[\]\\]|\\.){0,300}+\]"
_ADDRESS: Final = r"\((?:[^()\s\\]|\\.|\([^()\s]{0,300}+\)){0,2000}+\)"
_LINK: Final = re.compile(
    rf"(?P<image>!)?\[(?P<text>(?:[^\[\]\\]|\\.|{_BRACKETED}(?:{_ADDRESS})?+){{0,500}}+)\]"
    r"\( ?(?P<address><[^<>]{0,2000}+>|(?:[^()\s\\]|\\.|\([^()\s]{0,300}+\)){0,2000}+)"
    r"(?: (?:\"[^\"]{0,300}+\"|'[^']{0,300}+'))?+ ?\)",
    re.DOTALL,
)
_RST_LINK: Final = re.compile(r"`(?P<text>[^`<>]{1,300}+)<(?P<address>[^`<>\s]{1,2000}+)>`__?(?!\w)")
_RST_ROLE: Final = re.compile(r":[a-z][\w.+:-]{0,40}:(?=`[^`])")
_BARE: Final = re.compile(r"(?i)(?:https?://|www\.)[^\s<>\"`\[\]{}|^]{1,2000}+")
_TAG: Final = re.compile(
    r"<(?P<close>/)?(?P<name>[a-zA-Z][a-zA-Z0-9-]{0,20})(?P<rest>(?:[\s/][^<>]{0,2000}+)?)>"
)
_ALT: Final = re.compile(r"""(?i)\balt\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_ENTITY: Final = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_EMPHASIS: Final = re.compile(
    r"(?P<mark>\*\*|__)(?=\S)(?P<bold>(?:(?!(?P=mark)).){1,300}+)(?<=\S)(?P=mark)(?![\w*])"
    r"|(?P<thin>[*_])(?=[^\s*_])(?P<italic>[^*_]{1,300}+)(?<=\S)(?P=thin)(?![\w*_])"
)
_ARRANGING: Final = re.compile(
    r"(?i)a|abbr|b|blockquote|br|center|code|dd|del|details|div|dl|dt|em|font|h[1-6]|hr|i|img|ins|kbd|li|ol|p|picture|pre|q|s"
    r"|small|source|span|strong|sub|summary|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul"
)
_SPECIAL: Final = re.compile(r"[\\`!\[<&*_:]|(?i:https?://|www\.)")


class _Inline:
    """One pass over a line. What is recognised is written as Markdown, all else is collected and escaped."""

    def __init__(self, text: str, depth: int = 0) -> None:
        self.text = text
        self.depth = depth
        self.at = 0
        self.plain: list[str] = []
        self.written: list[str] = []
        self.runs: dict[int, list[int]] = {}
        for match in _CODE_RUN.finditer(text):
            self.runs.setdefault(len(match[0]), []).append(match.start())
        for starts in self.runs.values():
            starts.reverse()
        self.unclosed_comment = False

    def read(self) -> str:
        while match := _SPECIAL.search(self.text, self.at):
            self.plain.append(self.text[self.at : match.start()])
            self.at = match.start()
            if not self._special(match[0]):
                self.plain.append(self.text[self.at])
                self.at += 1
        self.plain.append(self.text[self.at :])
        self._flush()
        return "".join(self.written).strip()

    def _special(self, sign: str) -> bool:
        """Act on what begins here; False when it is only a character."""
        actions = {
            "\\": self._escaped,
            "`": self._code,
            "[": self._link,
            "!": self._link,
            "<": self._tag,
            "&": self._entity,
            ":": self._role,
            "*": self._emphasis,
            "_": self._emphasis,
        }
        return actions.get(sign, self._bare)()

    def _flush(self) -> None:
        text = "".join(self.plain)
        self.plain.clear()
        if text:
            before = " " if text[0].isspace() else ""
            after = " " if text[-1].isspace() and text.strip() else ""
            self.written.append(before + escape(text) + after)

    def _write(self, markdown: str, until: int) -> bool:
        self._flush()
        # Two code spans that touch would be read as one, and what was code could come out as Markdown.
        if markdown.startswith("`") and self.written and self.written[-1].endswith("`"):
            self.written.append(JOINER)
        self.written.append(markdown)
        self.at = until
        return True

    def _within(self, text: str) -> str:
        return _Inline(text, self.depth + 1).read() if self.depth < _DEEPEST else escape(text)

    def _role(self) -> bool:
        if match := _RST_ROLE.match(self.text, self.at):
            self.at = match.end()
        return match is not None

    def _escaped(self) -> bool:
        following = self.text[self.at + 1 : self.at + 2]
        if not _SIGN.fullmatch(following):
            return False
        self.plain.append(following)
        self.at += 2
        return True

    def _code(self) -> bool:
        if self._rst_link():
            return True
        run = _CODE_RUN.match(self.text, self.at)
        if run is None:
            return False
        starts = self.runs.get(len(run[0]), [])
        while starts and starts[-1] < run.end():
            starts.pop()
        if not starts:
            self.plain.append(run[0])
            self.at = run.end()
            return True
        close = starts[-1]
        return self._write(code(self.text[run.end() : close]), close + len(run[0]))

    def _rst_link(self) -> bool:
        match = _RST_LINK.match(self.text, self.at)
        return match is not None and self._write(link(escape(match["text"]), match["address"]), match.end())

    def _link(self) -> bool:
        match = _LINK.match(self.text, self.at)
        if match is None:
            return False
        if match["image"]:
            self.plain.append(match["text"])
            self.at = match.end()
            return True
        text = self._within(match["text"])
        # A link inside a link is none of Markdown's; the outer one's text stays and is not clicked.
        if "](<" in text:
            return self._write(text, match.end())
        address = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", match["address"].strip("<>")))
        return self._write(link(text, address), match.end())

    def _comment(self) -> bool:
        if self.unclosed_comment or not self.text.startswith("<!--", self.at):
            return False
        close = self.text.find("-->", self.at + 4)
        if close < 0:
            self.unclosed_comment = True
            return False
        self.at = close + 3
        return True

    def _tag(self) -> bool:
        if self._comment():
            return True
        close = self.text.find(">", self.at, self.at + 2_010)
        address = self.text[self.at + 1 : close] if close > 0 else ""
        if re.match(r"(?i)https?://\S+$", address):
            return self._write(bare_link(address), close + 1)
        match = _TAG.match(self.text, self.at)
        if match is None:
            return False
        if not _ARRANGING.fullmatch(match["name"]):
            # As it is written, and nothing in it is a link.
            self.plain.append(match[0])
            self.at = match.end()
            return True
        if match["name"].lower() == "img" and (alt := _ALT.search(match["rest"])):
            self.plain.append(html.unescape(alt[1] or alt[2] or ""))
        elif match["name"].lower() in ("br", "li", "p", "div", "tr", "td", "summary"):
            self.plain.append(" ")
        self.at = match.end()
        return True

    def _entity(self) -> bool:
        match = _ENTITY.match(self.text, self.at)
        if match is None:
            return False
        self.plain.append(visible(html.unescape(match[0])))
        self.at = match.end()
        return True

    def _emphasis(self) -> bool:
        before = self.text[self.at - 1 : self.at]
        match = (
            None if before and (before.isalnum() or before in "*_") else _EMPHASIS.match(self.text, self.at)
        )
        if match is None:
            return False
        mark, text = ("**", match["bold"]) if match["bold"] else ("*", match["italic"])
        within = self._within(text)
        return self._write(f"{mark}{within}{mark}" if within else "", match.end())

    def _bare(self) -> bool:
        match = _BARE.match(self.text, self.at)
        if match is None:
            return False
        address = match[0].rstrip(".,;:!?'*_~")
        while address.endswith(")") and address.count(")") > address.count("("):
            address = address[:-1].rstrip(".,;:!?'*_~")
        shown = code(address) if address.lower().startswith("www.") else bare_link(address)
        return self._write(shown, self.at + len(address))
