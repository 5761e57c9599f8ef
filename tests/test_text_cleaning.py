"""Readable text and embedding text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_platform.text.chunk import Chunk, References, Role, chunk_body
from kb_platform.text.cleaning import embedding_text, plain_text
from kb_platform.text.kinds import Kind


def embedded(text: str, headings: tuple[str, ...] = ()) -> str:
    chunk = Chunk(0, Role.ITEM, Kind.OTHER, 0, len(text), text, headings, References((), (), (), (), ()))
    return embedding_text("acme/tool", chunk)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("- **Bold** and *soft* and ~~gone~~ and _this_", "Bold and soft and gone and this"),
        ("[the docs](https://example.com/a_(b) \"title\")!", "the docs!"),
        ("[![badge](https://x.test/b.svg)](https://x.test)", "badge"),
        ("use `a_b[0] <T>` and `__init__` and snake_case_name", "use a_b[0] <T> and __init__ and snake_case_name"),
        ("\\[`gate`\\] close \\*all\\*", "[gate] close *all*"),
        ("a <b>bold</b><br/>line &amp; Vec<u8> &#39;x&#39;", "a bold line & Vec<u8> 'x'"),
        ("<!-- hidden -->shown<!-- open", "shown<!-- open"),
        ("## Title\n\n> quoted\n> - item\n\n1. one", "Title quoted item one"),
        ("[`0a1b2c3`](https://github.com/a/b/commit/0a1b2c3) fixed ([#1](https://github.com/a/b/pull/1))", "fixed (#1)"),
        ("see https://github.com/acme/tool/pull/12 and https://example.com/x", "see #12 and https://example.com/x"),
        ("```py\nx = a * b * c\n```", "x = a * b * c"),
        ("| a | b |\n|---|---|\n| 1 | 2 |", "a b 1 2"),
        (":ref:`gates <the-gates>` (:ticket:`#12`, :issue:`13`)", "gates (#12, #13)"),
        ("`Gate.open()`\\ ``(key)`` raises `!KeyError`, `~gates.Gate`", "Gate.open()(key) raises KeyError, gates.Gate"),
        ("`docs <https://example.com>`__::\n\n    code", "docs: code"),
        (".. warning::\n\n   Mind the step.\n\n.. _x: y", "warning: Mind the step."),
        ("~/.toolrc and **/*.py and 2 * 3", "~/.toolrc and **/*.py and 2 * 3"),
        ("", ""),
    ],
)  # fmt: skip
def test_plain_text(text: str, plain: str) -> None:
    assert plain_text(text) == plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* Add a lock by @octocat in https://github.com/acme/tool/pull/12", "tool: Add a lock"),
        ("- [#12](https://github.com/acme/tool/pull/12) [`0a1b2c3`](https://github.com/acme/tool/commit/0a1b2c3) Thanks [@octocat](https://github.com/octocat)! - Adds a lock", "tool: Adds a lock"),
        ("* **[acme]** Add a lock ([#12](https://github.com/a/b/pull/12) by [ldez](https://github.com/ldez))", "tool: [acme] Add a lock"),
        ("* ✨ Add a lock. PR [#12](https://github.com/a/b/pull/12) by [@octocat](https://github.com/octocat).", "tool: Add a lock."),
        ("- `@acme/pkg` needs `#fragment`", "tool: @acme/pkg needs #fragment"),
        ("- `--flag` is new", "tool: --flag is new"),
    ],
)  # fmt: skip
def test_embedding_text_leaves_boilerplate_out(text: str, expected: str) -> None:
    assert embedded(text) == expected


def test_embedding_text_has_the_telling_headings() -> None:
    headings = ("[1.2.0](2024-03-04)", "2.0.0 (2024-03-04)", "What's Changed", "🚀 Fixes", "v1.2", "Gate 2")
    assert embedded("- closed", headings[1:]) == "tool: Fixes: Gate 2: closed"


@pytest.mark.parametrize("text", ["- #12", "- @octocat", "- 0a1b2c3", "https://example.com", "!!!", "🐛"])
def test_embedding_text_is_never_only_the_repository(text: str) -> None:
    assert len(embedded(text)) > len("tool: ")


@given(st.text(max_size=200) | st.text(alphabet="[]()*_`<>!#@&;:/\\-. \na1", max_size=200))
def test_any_text_becomes_one_line(text: str) -> None:
    plain = plain_text(text)
    assert plain == " ".join(plain.split())
    for chunk in chunk_body(text.replace("\0", "")):
        assert embedding_text("acme/tool", chunk).removeprefix("tool:").strip()
