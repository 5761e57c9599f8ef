"""A release body → chunks: the contract that every body keeps, and each construct of release notes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb_platform.text.chunk import Chunk, Role, chunk_body
from kb_platform.text.kinds import Kind
from kb_platform.text.splitting import LONGEST_WHOLE

# What bodies are made of, so that random ones meet every branch of the parsers, malformed mixtures included.
FRAGMENTS = [
    "# ", "## Fixes\n", "- ", "* ", "  - ", "    ", "\t", "1. ", "> ", "```", "~~~", "\n", "\n\n", "\r\n", "\r",
    "**", "**Bold**", "__", "[a](b)", "[a]: b\n", "<details>", "</details>", "<summary>x</summary>", "<!--", "-->",
    "<li>", "<h2>t</h2>", "| a | b |\n|---|---|\n| 1 | 2 |\n", "word", "Label:", "fix: x", "BREAKING CHANGE: y",
    "💥", ":ref:`a <b>`", ".. note::\n\n   x\n", ".. _t: x\n", ".. rubric:: R\n", "~~~~\n", "====\n", "---\n",
    "Title\n=====\n", "\u2028", "\u00a0", "\x0c", "\x1c", "\u0301", "漢字", "🐛", "\\", "`", "``code``", "$",
    "&amp;", "&#9;", "@user", "#12", "CVE-2020-1234", "<script>x</script>", "<", ">", "(x)=", "::\n\n    lit\n",
    "+--+\n|a |\n+--+\n", ".. code-block:: x\n\n   y\n", "a)", "(a) ", "|", "=", "w " * 700, "x" * 1300,
    "- " + "y " * 900,
]  # fmt: skip
BODIES = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=400)


def assert_contract(body: str, chunks: list[Chunk]) -> None:
    """What `chunk_body` promises of every body."""
    at = 0
    for place, chunk in enumerate(chunks):
        assert chunk.ordinal == place
        assert chunk.text == body[chunk.start : chunk.end]
        assert chunk.text.strip() == chunk.text != ""
        assert len(chunk.text) <= LONGEST_WHOLE
        assert at <= chunk.start, "chunks overlap or are out of order"
        assert not body[at : chunk.start].strip(), "text that belongs to no chunk"
        assert all(heading == heading.strip() != "" for heading in chunk.headings)
        at = chunk.end
    assert not body[at:].strip(), "text that belongs to no chunk"


def items(body: str) -> list[str]:
    return [chunk.text for chunk in chunk_body(body) if chunk.role is Role.ITEM]


def under(body: str, text: str) -> tuple[str, ...]:
    """The heading path of the chunk that holds `text`."""
    return next(chunk.headings for chunk in chunk_body(body) if text in chunk.text)


def roles(body: str) -> list[tuple[Role, str]]:
    return [(chunk.role, chunk.text) for chunk in chunk_body(body)]


@settings(max_examples=150, deadline=None)
@given(BODIES | BODIES.map(":ref:`a`\n\n{}".format) | ANY_TEXT)
def test_every_character_is_in_one_chunk_and_again_the_same(body: str) -> None:
    chunks = chunk_body(body)
    assert_contract(body, chunks)
    assert chunk_body(body) == chunks


@given(st.sampled_from(["", " ", "\n\n", "\r\n \t", "\u2003\u00a0\x1c"]))
def test_blank_bodies_have_no_chunks(body: str) -> None:
    assert chunk_body(body) == []


def test_each_list_item_is_an_item_with_its_marker() -> None:
    assert items("- one\n- two\n  goes on\n\n* three\n+ four\n1. five\n2) six") == [
        "- one",
        "- two\n  goes on",
        "* three",
        "+ four",
        "1. five",
        "2) six",
    ]


def test_items_are_not_packed_but_paragraphs_are() -> None:
    body = "First words.\n\nSecond words.\n\n- a\n- b\n\nLast words."
    assert roles(body) == [
        (Role.TEXT, "First words.\n\nSecond words."),
        (Role.ITEM, "- a"),
        (Role.ITEM, "- b"),
        (Role.TEXT, "Last words."),
    ]


def test_headings_make_a_path() -> None:
    body = "# 2.0\n\n## Fixes ##\n\n### `core`\n\n- a\n\n## Added\n\n- b"
    assert under(body, "- a") == ("2.0", "Fixes", "core")
    assert under(body, "- b") == ("2.0", "Added")
    assert [text for role, text in roles(body) if role is Role.HEADING] == [
        "# 2.0",
        "## Fixes ##",
        "### `core`",
        "## Added",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "Bug fixes\n---------",
        "**Bug fixes**",
        "**Bug fixes:**",
        "**Bug fixes**:",
        "__Bug fixes__",
        "<h3>Bug fixes</h3>",
        "<b>Bug fixes</b>",
        "Bug fixes:",
        "### [Bug fixes](https://example.com/list)",
    ],
)
def test_lines_that_act_as_headings(line: str) -> None:
    chunks = chunk_body(f"{line}\n\n- repaired the gate")
    assert [chunk.role for chunk in chunks] == [Role.HEADING, Role.ITEM]
    assert chunks[1].headings == ("Bug fixes",)


def test_a_bold_line_directly_above_text_is_its_heading() -> None:
    body = "**Upgrading from 1.x**\nStop the server first.\n\n**Note**\nThis is a remark."
    assert under(body, "Stop the server") == ("Upgrading from 1.x",)
    assert under(body, "This is a remark.") == ("Upgrading from 1.x",)


def test_sentences_in_bold_or_before_a_rule_stay_text() -> None:
    assert roles("**Do not use this release.**\n\n- a")[0] == (Role.TEXT, "**Do not use this release.**")
    prose = "These words run on " * 8
    assert roles(f"{prose.strip()}\n---\n\nEnd.")[0] == (Role.TEXT, prose.strip())


def test_a_heading_with_nothing_under_it_is_text() -> None:
    assert roles("## Gone\n\n## Fixes\n\n- a\n\n## Last") == [
        (Role.TEXT, "## Gone"),
        (Role.HEADING, "## Fixes"),
        (Role.ITEM, "- a"),
        (Role.TEXT, "## Last"),
    ]


@pytest.mark.parametrize(
    "label",
    [
        "**Scope**",
        "**Scope:**",
        "`@acme/pkg`",
        "acme-pkg",
        "Storage engine:",
        "Updated dependencies [a1b2c3d]",
    ],
)
def test_children_of_a_label_are_items_under_it(label: str) -> None:
    chunks = chunk_body(f"- {label}\n  - left\n  - right")
    assert [chunk.role for chunk in chunks] == [Role.HEADING, Role.ITEM, Role.ITEM]
    assert chunks[0].text == f"- {label}"
    assert chunks[1].headings == chunks[2].headings
    assert len(chunks[1].headings) == 1
    assert "a1b2c3d" not in chunks[1].headings[0]


def test_a_sentence_keeps_its_children() -> None:
    body = "- The gate now closes by itself.\n  - Slowly at night.\n  - Never on Sundays."
    assert items(body) == [body]
    bold = "- **The gate was removed.**\n  - Use the door."
    assert items(bold) == [bold]


def test_a_long_item_is_taken_apart_at_its_children() -> None:
    children = "".join(f"  - part {number} {'of the story ' * 20}\n" for number in range(6))
    body = f"- The scheduler was rewritten. It is a long story.\n{children}"
    chunks = chunk_body(body)
    assert chunks[0].text == "- The scheduler was rewritten. It is a long story."
    assert [chunk.role for chunk in chunks] == [Role.ITEM] * 7
    assert {chunk.headings for chunk in chunks[1:]} == {("The scheduler was rewritten. It is a long story.",)}


def test_the_rest_of_a_long_item_is_text_of_the_same_kind() -> None:
    body = "- fix: the gate stays shut\n\n" + "".join(
        f"  Paragraph {n}. {'Words follow. ' * 30}\n\n" for n in range(5)
    )
    first, *rest = chunk_body(body)
    assert (first.role, first.kind) == (Role.ITEM, Kind.FIX)
    assert len(rest) >= 2
    assert {(chunk.role, chunk.kind, chunk.headings) for chunk in rest} == {
        (Role.TEXT, Kind.FIX, ("fix: the gate stays shut",))
    }


def test_items_and_fences_inside_an_item_stay_with_it() -> None:
    body = "- New `run` command:\n\n  ```sh\n  # not a heading\n  - not an item\n  ```\n- next"
    assert items(body)[0] == "- New `run` command:\n\n  ```sh\n  # not a heading\n  - not an item\n  ```"


def test_a_list_on_one_line_and_an_empty_item() -> None:
    assert_contract("- - deep\n-\n- last", chunk_body("- - deep\n-\n- last"))
    assert (Role.MARKUP, "-") in roles("- first\n-\n- last")


def test_markup_is_not_searched() -> None:
    body = (
        "<!-- made by a tool -->\n\nWords.\n\n---\n\n[ref]: https://example.com\n\n(v1_2)=\n\n"
        "**Full Changelog**: https://github.com/acme/tool/compare/v1...v2"
    )
    assert [text for role, text in roles(body) if role is Role.TEXT] == ["Words."]
    assert {role for role, _ in roles(body)} == {Role.TEXT, Role.MARKUP}


def test_a_details_block_is_a_section() -> None:
    body = "## Notes\n\n<details>\n<summary>For <b>packagers</b></summary>\n\n- a\n\n</details>\n\n- b"
    assert under(body, "- a") == ("Notes", "For packagers")
    assert under(body, "- b") == ("Notes",)


def test_html_lists_have_items() -> None:
    body = "<h2>Fixes</h2>\n<ul>\n<li>One <code>x</code></li>\n<li>Two\n</ul>\n<script>var a = 1</script>"
    assert items(body) == ["<li>One <code>x</code></li>", "<li>Two\n</ul>"]
    assert under(body, "One") == ("Fixes",)
    assert (Role.MARKUP, "<script>var a = 1</script>") in roles(body)


def test_quotations_are_read_through() -> None:
    body = "> [!WARNING]\n> The file moved.\n>\n> - from here\n> - to there"
    assert items(body) == ["> - from here", "> - to there"]
    assert_contract(body, chunk_body(body))


def test_a_table_is_cut_between_rows_and_keeps_its_columns() -> None:
    rows = "".join(f"| package-{number} | 1.{number}.0 | {'because ' * 6}|\n" for number in range(60))
    first, *rest = chunk_body(f"| Name | Version | Why |\n|---|---|---|\n{rows}")
    assert first.text.startswith("| Name | Version | Why |")
    assert rest
    for chunk in rest:
        assert chunk.headings == ("Name Version Why",)
        assert chunk.text.startswith("| package-")
        assert chunk.text.endswith("|")


def test_long_paragraphs_are_cut_at_sentences() -> None:
    chunks = chunk_body("The gate was painted green. " * 200)
    assert len(chunks) > 3
    assert all(chunk.text.endswith("green.") for chunk in chunks)


def test_windows_line_ends_and_wide_characters() -> None:
    body = "## 修正 🐛\r\n\r\n- 門を直した\r\n- café e\u0301t\u00e9\r\n"
    chunks = chunk_body(body)
    assert_contract(body, chunks)
    assert [chunk.text for chunk in chunks] == ["## 修正 🐛", "- 門を直した", "- café e\u0301t\u00e9"]
    assert chunks[1].headings == ("修正 🐛",)
