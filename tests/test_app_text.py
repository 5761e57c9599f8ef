"""Foreign text in the app: what `inert`, `links` and `notes` make of it."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from app_streamlit import inert
from app_streamlit.links import clickable, spelled_out
from app_streamlit.notes import around, blocks, shortened, with_citation
from app_streamlit.rendering import alarming, markdown_of, with_code

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# What Streamlit's renderer does to plain text after parsing (its bundle, 1.67), as regular expressions of its own.
LATER = {
    "emoji": r":\+1:|:-1:|:[\w-]+:",
    "icon": r":material_(\w+):",
    "logo": r":streamlit:",
    "address": r"(?i)(https?://|www(?=\.))([-.\w]+)([^ \t\r\n]*)",
    "e-mail": r"[-.\w+]+@(?>[-\w]+(?:\.[-\w]+)+)(?<![-\d_])",
    "arrow": r"(^|\s)(<->|->|<-|--|>=|<=|~=)(\s|$)",
}
ALLOWED = {
    "text", "code_inline", "strong_open", "strong_close", "em_open", "em_close", "link_open", "link_close",
}  # fmt: skip
# Signs that mean something, in the shapes that they mean it in, between letters that mean nothing.
PIECES = st.lists(
    st.sampled_from(
        [
            "`", "``", "```", "[", "]", "(", ")", "![", "](", "<", ">", "</a>", "<b>", "<!--", "-->", "<script>", "&amp;", "&lt;",
            "&#58;", "*", "**", "_", "__", "~~", ":", ":material/lock:", ":red[", ":red-background[", ":streamlit:", "$", "$$",
            "\\", "|", "# ", "- ", "1. ", "> ", "\n", "\n\n", "    ", "\t", "www.", "https://", "https://evil.test/a", "http:", "//",
            "javascript:", "me@evil.test", " -- ", " -> ", "a", "bc", "1", " ", ".", "`x`", "[a](https://github.com/a)",
            "`a <https://github.com>`_", ":role:`x`", "{", "}", "é", "\u202e", "\u0443", "\x00", "^", "=", "---", "==="
        ]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@pytest.fixture
def attacks(shared_data: Path) -> list[dict[str, str]]:
    """Payloads that try to make a page do something; the generated one is written out."""
    found = [json.loads(line) for line in (shared_data / "attacks.jsonl").read_text("utf-8").splitlines()]
    for attack in found:
        if attack["payload"] == "@@GEN:nested_quotes:20000":
            attack["payload"] = "> " * 20_000 + "deep"
    assert len(found) >= 30
    return found


def parsed(markdown: str) -> list[Token]:
    """All tokens, inline ones in their places."""
    return [
        part
        for token in MARKDOWN.parse(markdown)
        for part in (token.children if token.type == "inline" else [token]) or []
    ]


def shown(markdown: str) -> str:
    return "".join(token.content for token in parsed(markdown)).replace(inert.JOINER, "")


def unescaped_outside_code(markdown: str, signs: str) -> list[str]:
    """The signs in Markdown that no backslash stills."""
    bare = re.sub(r"\\.|(`+)(?!`).*?(?<!`)\1(?!`)|\]\(<[^<>]*>\)", "", markdown)
    return re.findall(f"[{re.escape(signs)}]", bare)


def assert_is_inert(markdown: str) -> None:
    """Markdown of `inert` parses into text, code, emphasis and safe links, and nothing in it would be acted on later."""
    tokens = parsed(markdown)
    inside_link = False
    for token in tokens:
        assert token.type in ALLOWED or token.type in ("paragraph_open", "paragraph_close"), (
            token.type,
            markdown,
        )
        if token.type in ("link_open", "link_close"):
            inside_link = token.type == "link_open"
        if token.type == "link_open":
            assert clickable(str(token.attrs["href"]).replace("&amp;", "&")), markdown
        if token.type == "text":
            for name, pattern in LATER.items():
                if inside_link and name in ("address", "e-mail", "arrow"):
                    continue
                assert not re.search(pattern, token.content), (name, token.content, markdown)
    # Directives, mathematics and tables are not CommonMark's: their signs must never stand bare.
    assert not unescaped_outside_code(markdown, ":$|{}~"), markdown
    # Rewritten in the whole source, in code too.
    assert ":material/" not in markdown


def words(text: str) -> str:
    return " ".join(inert.visible(text).split()).replace(inert.JOINER, "")


@given(PIECES)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    markdown = inert.escape(text)
    assert_is_inert(markdown)
    assert {token.type for token in parsed(markdown)} <= {"text", "paragraph_open", "paragraph_close"}
    assert shown(markdown) == words(text)


@given(st.text(max_size=80))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    assert shown(inert.escape(text)) == words(text)
    assert_is_inert(inert.inline(text))


@given(PIECES)
def test_inline_markup_becomes_nothing_but_code_emphasis_and_safe_links(text: str) -> None:
    assert_is_inert(inert.inline(text))


@given(PIECES)
def test_code_shows_any_text(text: str) -> None:
    assert shown(inert.code(text)) == words(text)


@given(PIECES)
def test_commands_in_stored_text_are_code_and_nothing_else(text: str) -> None:
    markdown = str(with_code(text))
    assert_is_inert(markdown)
    assert {token.type for token in parsed(markdown)} <= {
        "text",
        "code_inline",
        "paragraph_open",
        "paragraph_close",
    }


def test_a_command_between_backticks_is_code() -> None:
    markdown = str(with_code("run `kb sync` or `kb up`, not :red[x] ![a](u)"))
    assert [token.content for token in parsed(markdown) if token.type == "code_inline"] == [
        "kb sync",
        "kb up",
    ]
    assert_is_inert(markdown)


@given(PIECES)
def test_text_in_the_colour_of_errors_does_not_leave_it(text: str) -> None:
    markdown = str(alarming(text))
    if not markdown:
        return
    assert (markdown[:5], markdown[-1]) == (":red[", "]")
    assert_is_inert(markdown[5:-1])
    assert not unescaped_outside_code(markdown[5:-1], "[]")


def test_code_spans_that_touch_stay_apart() -> None:
    """Between them stood tags, which go. Read as one, fences of different lengths would let `:red[…]` out."""
    markdown = inert.inline("``:red[x]`y``<b>`:red[z]`<b>``` :red[w]``v ```<!-- -->`u`")
    codes = [token.content for token in parsed(markdown) if token.type == "code_inline"]
    assert codes == [":red[x]`y", ":red[z]", ":red[w]``v", "u"]
    assert_is_inert(markdown)


def test_an_address_cannot_carry_an_icon() -> None:
    markdown = inert.inline("https://github.com/:material/lock: and [x](https://github.com/:material/lock:)")
    assert sum(token.type == "link_open" for token in parsed(markdown)) == 2
    assert_is_inert(markdown)


def test_attacks_are_inert_as_text_and_as_notes(attacks: list[dict[str, str]]) -> None:
    for attack in attacks:
        payload = attack["payload"]
        assert_is_inert(inert.escape(payload))
        assert_is_inert(inert.label(payload))
        assert_is_inert(inert.inline(payload))
        for block in blocks(payload):
            assert_is_inert(inert.inline(block.content(payload)))


def test_attacks_would_not_be_inert_unescaped(attacks: list[dict[str, str]]) -> None:
    """The assertions above have teeth: most payloads fail them when nothing is done."""

    def passes(text: str) -> bool:
        try:
            assert_is_inert(text)
        except (AssertionError, ValueError):
            return False
        return True

    kinds = {attack["kind"] for attack in attacks if not passes(attack["payload"])}
    assert kinds >= {"ui_directive", "image_beacon", "js_link", "xss_html", "css_injection", "link_spoof"}


def test_links_of_attacks_lead_nowhere_else(attacks: list[dict[str, str]]) -> None:
    by_id = {attack["id"]: inert.inline(attack["payload"]) for attack in attacks}
    for name in ("lnk-01", "lnk-02", "lnk-03", "lnk-07", "lnk-08", "img-04", "img-06", "xss-08", "xss-09"):
        assert not any(token.type == "link_open" for token in parsed(by_id[name])), by_id[name]
    assert "xn--githb-hze.com" in by_id["lnk-07"]
    # A badge is a link with an image for its text: the text stays, and the link is GitHub's.
    assert by_id["img-03"] == "[build](<https://github.com/acme/tool>)"
    assert "beacon" not in by_id["img-01"]


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("Fixes `a*b` (#12)", r"Fixes `a*b` \(\#12\)"),
        ("**Breaking:** `x`", r"**Breaking\:** `x`"),
        ("see [the guide](https://docs.example.org/x?a=1&b=2)", r"see [the guide](<https://docs.example.org/x?a=1&amp;b=2>) \(docs\.example\.org\)"),
        ("[docs](../docs/x.md)", "docs"),
        ("a<br>b <kbd>Ctrl</kbd>", "a b Ctrl"),
        ("an <iframe> stays visible", r"an \<iframe\> stays visible"),
        ("<!-- hidden --> seen", "seen"),
        ("``wait_c`` of `psycopg <https://psycopg.org>`__ (:issue:`645`)", r"`wait_c` of [psycopg](<https://psycopg.org>) \(psycopg\.org\) \(`645`\)"),
        ("snake_case_name and 2*3*4", r"snake\_case\_name and 2\*3\*4"),
        ("npm i left-pad@1.3.0", r"npm i left\-pad\@1\.3\.0"),
        ("AT&amp;T &lt;b&gt;", r"AT\&T \<b\>"),
    ],
)  # fmt: skip
def test_inline_markup_of_release_notes(text: str, markdown: str) -> None:
    assert inert.inline(text) == markdown


def test_a_label_is_cut() -> None:
    assert len(inert.label("word " * 200)) <= 165
    assert inert.label("a\n# b") == r"a \# b"


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "//evil.test/z", "https:evil.test", "https://",
        "https://user@github.com/", "https://user:pass@github.com/", "https://github.com\\@evil.test/", "https://github.com:8443/",
        "https://10.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f.1/", "http://[::1]/", "http://localhost/",
        "http://printer.local/", "https://gith\u0443b.com/", "https://xn--githb-hze.com/", "https://attacker.test\u2215github.com/",
        "https://exa mple.org/", "https://example.org/\n", "https://-a.org/", "https://a..org/", "ftp://example.org/", "",
        "https://example.org/" + "a" * 3_000,
    ],
)  # fmt: skip
def test_addresses_that_may_not_be_clicked(address: str) -> None:
    assert clickable(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/pgvector/pgvector/releases/tag/v0.8.0", "http://example.org", "https://example.org:443/a?b=c#d",
        "HTTPS://Example.ORG/Path_(x)", "https://docs.python.org/3/library/re.html#re.A",
    ],
)  # fmt: skip
def test_addresses_that_may_be_clicked(address: str) -> None:
    found = clickable(address)
    assert found is not None
    assert found.url == address


def test_a_host_in_another_script_is_spelled_out() -> None:
    assert spelled_out("https://gith\u0443b.com/acme/tool") == "https://xn--githb-hze.com/acme/tool"
    assert spelled_out("https://github.com/\u0443") == "https://github.com/\u0443"


BODY = """\
## What's new ##

Some *prose*
over two lines.

- First `item`
  goes on
  * nested
- Second item
1. counted

> quoted
> lines

```python
>>> print(1)
```
Title
-----
| a | b |
|---|---|

**Bold line**
"""


def test_blocks_of_a_body() -> None:
    found = [(block.shape, block.content(BODY), block.depth) for block in blocks(BODY)]
    assert found == [
        ("heading", "What's new", 0),
        ("text", "Some *prose*\nover two lines.", 0),
        ("item", "First `item`\n  goes on", 0),
        ("item", "nested", 1),
        ("item", "Second item", 0),
        ("item", "counted", 0),
        ("text", "quoted\nlines", 0),
        ("code", ">>> print(1)", 0),
        ("heading", "Title", 0),
        ("code", "| a | b |\n|---|---|", 0),
        ("heading", "**Bold line**", 0),
    ]


def test_markdown_of_blocks_keeps_lists() -> None:
    group = [block for block in blocks(BODY) if block.shape != "code"]
    assert markdown_of(BODY, group).split("\n\n")[:3] == [
        r"###### What\'s new",
        "Some *prose* over two lines\\.",
        "- First `item` goes on\n    - nested\n- Second item\n1. counted",
    ]


def test_the_citation_is_marked_to_the_character() -> None:
    start = BODY.index("goes on")
    found = with_citation(blocks(BODY), BODY, (start, start + len("goes on")))
    cited = [block for block in found if block.cited]
    assert [(block.content(BODY), block.shape) for block in cited] == [("goes on", "text")]
    whole = BODY.index("- Second item")
    found = with_citation(blocks(BODY), BODY, (whole, whole + len("- Second item")))
    assert [block.content(BODY) for block in found if block.cited] == ["Second item"]
    assert [block.content(BODY) for block in around(found)] == [
        "What's new",
        "Some *prose*\nover two lines.",
        "First `item`\n  goes on",
        "nested",
        "Second item",
        "counted",
        "quoted\nlines",
        ">>> print(1)",
    ]


@given(PIECES, st.integers(0, 60), st.integers(0, 60))
def test_no_text_is_lost_between_blocks(body: str, one: int, two: int) -> None:
    span = (min(one, two), max(one, two))
    whole = blocks(body)
    for found in (whole, with_citation(whole, body, span)):
        assert all(a.end <= b.start for a, b in pairwise(found))
        covered = {at for block in found for at in range(block.start, block.end)}
        lost = [body[at] for at in range(len(body)) if at not in covered and body[at].isalpha()]
        # Names of languages behind the signs of a fence are not shown.
        assert not lost or re.search("```|~~~", body)


@pytest.mark.parametrize(
    "body",
    [
        "> " * 300_000 + "x", "- " * 300_000, "`" * 500_000 + "x", "[" * 200_000, "[a](" * 100_000, "<" * 300_000, "<!--" * 100_000,
        "**a" * 150_000, "*" * 300_000, ("a" * 70 + " ") * 8_000, "&" * 300_000, ("`" * 5 + "a") * 50_000, "\\" * 400_000,
        "| a " * 120_000, "https://" * 60_000, " " * 300_000 + "x", "# " + " #" * 200_000 + "x", "_a" * 200_000, "![" * 150_000,
        "a\n" * 250_000, ":a" * 200_000,
    ],
    ids=lambda body: repr(body[:6]),
)  # fmt: skip
def test_hostile_bodies_are_read_in_linear_time(body: str) -> None:
    began = time.monotonic()
    found = with_citation(blocks(body), body, (10, 20))
    for block in shortened(found):
        inert.inline(block.content(body))
    assert time.monotonic() - began < 4


def test_real_notes_are_inert_and_complete(shared_data: Path) -> None:
    """Every tenth real release: inert, and all of its words are there."""
    lines = [
        line
        for file in sorted((shared_data / "releases").glob("*.jsonl"))
        for line in file.read_text("utf-8").splitlines()[::25]
    ]
    for line in lines:
        release: dict[str, Any] = json.loads(line)
        body = release["body"] or ""
        for block in blocks(body)[:60]:
            if block.shape != "code":
                assert_is_inert(inert.inline(block.content(body)))
