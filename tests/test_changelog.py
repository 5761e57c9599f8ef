"""Changelogs: which headings are versions, where a section ends, and that no text takes more than linear time."""

from __future__ import annotations

import json
import re
import time
from datetime import date, datetime
from pathlib import Path

import pytest
from docutils.nodes import section as docutils_section
from docutils.nodes import title as docutils_title
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kb_platform.errors import SourceError
from kb_platform.sources.changelog import read_changelog
from kb_platform.text.changelog import Section, first_headings, package_of, parse_changelog
from kb_platform.text.headings import Markup, find_headings
from kb_platform.text.restructuredtext import _document  # pyright: ignore[reportPrivateUsage] - the oracle's settings
from kb_platform.text.version_headings import read_heading, stated_date
from kb_platform.text.versions import parse_version
from kb_platform.text.written_dates import find_dates

DAY = date(2024, 1, 31)
MARKDOWN, RST = "markdown", "restructuredtext"

HEADINGS = {
    "[1.2.3] - 2024-01-31": ("1.2.3", DAY),
    "1.2.3 (2024-01-31)": ("1.2.3", DAY),
    "v1.2.3": ("v1.2.3", None),
    "Version 1.2.3 - January 31, 2024": ("1.2.3", DAY),
    "1.2.3 / 2024-01-31": ("1.2.3", DAY),
    "1.2.3-rc1": ("1.2.3-rc1", None),
    "@scope/pkg@1.2.3": ("@scope/pkg@1.2.3", None),
    "pkg 1.2.3": ("1.2.3", None),
    "Psycopg 3.3.4": ("3.3.4", None),
    'Release 2.0 "Codename"': ("2.0", None),
    "[1.2.3](https://example.com/compare/v1.2.2...v1.2.3) (2024-01-31)": ("1.2.3", DAY),
    '<a name="1.2.3"></a> [1.2.3](https://example.com) "Fish" (2024-01-31)': ("1.2.3", DAY),
    "[1.2.3][diff] - 31/12/2024": ("1.2.3", date(2024, 12, 31)),
    "[1.2.3] - 12/31/2024": ("1.2.3", date(2024, 12, 31)),
    "[1.2.3] - 05/05/2024": ("1.2.3", date(2024, 5, 5)),
    "[1.2.3] - 01/02/2024": ("1.2.3", None),
    "1.2.3 - 01.02.2024": ("1.2.3", None),
    "2024-01-31, Version 20.11.0 (Current), @someone": ("20.11.0", DAY),
    "`1.2.3 <https://example.com>`_ (31 Jan 2024)": ("1.2.3", DAY),
    "1.2.3 (31st of January, 2024)": ("1.2.3", DAY),
    "Wed, 31 Jan 2024 - 1.2.3": ("1.2.3", DAY),
    "1.2.3 | 2024-01-31T10:00:00Z": ("1.2.3", DAY),
    "v1.2.3 (January 2024)": ("v1.2.3", None),
    "2.0.0 (2024-02-30)": ("2.0.0", None),
    "2024.1.31": ("2024.1.31", None),
    "2024.1.3 (2024-01-31)": ("2024.1.3", DAY),
    "2024-01-31": ("2024-01-31", DAY),
    "7 (2024-01-31)": ("7", DAY),
    "Version 7": ("7", None),
    "\N{PARTY POPPER} 1.2.3": ("1.2.3", None),
    "What's new in 3.2.1?": ("3.2.1", None),
    "Version 1.44.0/0.65b0": ("1.44.0", None),
    "REL_16_2": ("REL_16_2", None),
}  # fmt: skip
NO_VERSIONS = (
    "Features", "Upgrading from 1.x to 2.0", "Support for Python 3.8", "Breaking changes in 2.0", "3 things", "utf8", "1.2.x",
    "2.0 Migration guide for everyone now", "log4j2 fixes", "https://example.com/1.2.3", "Fixes since 1.2", "", "#1234",
)  # fmt: skip


@pytest.mark.parametrize("title", HEADINGS)
def test_a_heading_names_its_version_and_day(title: str) -> None:
    said = read_heading(title)
    assert said is not None
    assert (said.version, said.published) == HEADINGS[title]
    assert parse_version(said.version) == said.parsed


@pytest.mark.parametrize("title", NO_VERSIONS)
def test_a_heading_of_something_else_is_none(title: str) -> None:
    assert read_heading(title) is None


@pytest.mark.parametrize(
    "title",
    ["[Unreleased]", "Unreleased", "1.3.0 (unreleased)", "1.3.0 - YYYY-MM-DD", "[1.3.0] - TBD", "Next", "Latest Changes",
     "[Unreleased](https://example.com/compare/v1...HEAD)", "1.3.0 (not yet released)"],
)  # fmt: skip
def test_what_is_not_released_is_told_apart(title: str) -> None:
    said = read_heading(title)
    assert said is not None
    assert said.unreleased


def test_a_yanked_version_is_marked() -> None:
    said = read_heading("[0.0.5] - 2014-12-13 [YANKED]")
    assert said is not None
    assert said.yanked
    assert not said.unreleased


def test_dates_outside_of_this_age_are_none() -> None:
    assert [found.day for found in find_dates("0001-01-01 9999-12-31 2024-01-31")] == [None, None, DAY]


@pytest.mark.parametrize(
    "line", ["Released 2024-01-31", "*January 31, 2024*", ":Date: 2024-01-31", "_2024-01-31_"]
)
def test_the_line_below_a_heading_may_state_the_day(line: str) -> None:
    assert stated_date(line) == DAY
    assert parse_changelog(f"## 1.0\n\n{line}\n\n- a\n", format=MARKDOWN)[0].published == DAY


def test_a_sentence_with_a_date_states_no_day() -> None:
    assert stated_date("Fixed on 2024-01-31") is None
    assert stated_date("2024-01-31: fixed") is None


def versions(text: str, markup: Markup = MARKDOWN) -> list[str]:
    return [section.version for section in parse_changelog(text, format=markup)]


def test_sections_hold_the_very_text_between_the_headings() -> None:
    text = "# Log\n\nWords.\n\n## [1.1] - 2024-01-31\n\n### Added\n\n- e\u0301 x  \n  - y\r\n\n## 1.0\n    code\n\n[1.1]: https://example.com\n"
    first, second = parse_changelog(text, format=MARKDOWN)
    assert first == Section(
        "1.1", "[1.1] - 2024-01-31", "### Added\n\n- e\u0301 x  \n  - y", DAY, yanked=False, unreleased=False,
        span=(text.index("## [1.1]"), text.index("## 1.0")), line=5,
    )  # fmt: skip
    assert second.body == "    code"
    assert second.span == (first.span[1], len(text))


def test_only_headings_count() -> None:
    text = (
        "# 2.0\n\n```sh\n# 1.9\n```\n\n~~~~\n# 1.8\n~~~\n# 1.7\n~~~~\n\n<!--\n# 1.6\n-->\n\n    # 1.5\n\n> # 1.4\n\n"
        "- item\n\n  # 1.3\n\n  ```\n# 1.2\n\n1.1\n\nVersion 1.05 is old\n\n<pre>\n# 1.02\n</pre>\n\n# 1.0\n"
    )
    # The code in the list ends with the list, as CommonMark has it.
    assert versions(text) == ["2.0", "1.2", "1.0"]


def test_underlined_anchored_and_unspaced_headings() -> None:
    text = '1.3 / 2024-01-31\n======\n\n<a name="1.2"></a>\n# 1.2\n\n<h1>1.1</h1>\n\n##1.0.0\n- a\n\ntext\n---\n- b\n'
    found = parse_changelog(text, format=MARKDOWN)
    assert [section.version for section in found] == ["1.3", "1.2", "1.1", "1.0.0"]
    assert found[0].body == ""
    assert found[3].body == "- a\n\ntext\n---\n- b"


def test_the_level_with_most_versions_divides() -> None:
    text = "# 2.x\n\n## 2.1\n\n### Python 3.11\n\n- a\n\n### Django 4.2\n\n## 2.0\n\n### 3 fixes\n\n# Older\n\n## 1.0\n"
    assert versions(text) == ["2.1", "2.0", "1.0"]
    assert "### Python 3.11" in parse_changelog(text, format=MARKDOWN)[0].body


def test_minor_and_patch_releases_at_two_levels() -> None:
    text = (
        "# [1.1.0](https://example.com) (2024-01-31)\n\n### Bug Fixes\n\n* a\n\n"
        "## [1.0.1](https://example.com) (2024-01-30)\n\n### Bug Fixes\n\n* b\n\n# 1.0.0 (2024-01-29)\n\n* c\n"
    )
    assert [(s.version, s.body[-3:]) for s in parse_changelog(text, format=MARKDOWN)] == [
        ("1.1.0", "* a"), ("1.0.1", "* b"), ("1.0.0", "* c"),
    ]  # fmt: skip


def test_a_group_title_over_versions_is_no_release() -> None:
    assert versions("# 1.2\n\n## 1.2.1\n\n- a\n\n## 1.2.0\n\n- b\n\n# 1.1\n\n## 1.1.0\n\n- c\n") == [
        "1.2.1",
        "1.2.0",
        "1.1.0",
    ]


def test_names_in_front_tell_packages_apart() -> None:
    assert versions("## one 1.0\n\n## two 1.0\n\n## one 0.9\n") == ["one 1.0", "two 1.0", "one 0.9"]
    assert versions("## Tool 1.0\n\n## Tool 0.9\n") == ["1.0", "0.9"]
    assert package_of("# @scope/pkg\n\n## 1.0\n", format=MARKDOWN) == "@scope/pkg"
    assert package_of("# All the changes\n", format=MARKDOWN) is None


def test_a_guide_to_a_version_is_part_of_what_stands_above() -> None:
    text = "## 2.0.0\n\n- a\n\n## 2.0.0 - how to migrate\n\n- b\n\n## 1.0.0\n"
    found = parse_changelog(text, format=MARKDOWN)
    assert [section.version for section in found] == ["2.0.0", "1.0.0"]
    assert found[0].body.endswith("- b")


def test_restructuredtext() -> None:
    text = (
        "#######\nChanges\n#######\n\n.. towncrier release notes start\n\n.. _v1-1:\n\nVersion 1.1 (2024-01-31)\n"
        "========================\n\nAdded\n-----\n\n- a::\n\n    0.9\n    ===\n\n* 0.8\n=====\n\n.. _v1-0:\n\n1.0\n===\n\nReleased 2024-01-30\n\n"
        "- b\n\ntext\n0.7\n===\n"
    )
    first, second = parse_changelog(text, format=RST)
    assert (first.version, first.published, second.version, second.published) == (
        "1.1",
        DAY,
        "1.0",
        date(2024, 1, 30),
    )
    assert first.body.startswith("Added\n-----")
    assert first.body.endswith("* 0.8\n=====")
    assert second.body.endswith("text\n0.7\n===")


def test_no_version_at_all() -> None:
    assert parse_changelog("# Guide\n\n## Install\n", format=MARKDOWN) == []
    assert first_headings("# Guide\n\n## Install\n", format=MARKDOWN) == ["Guide", "Install"]
    assert parse_changelog("", format=RST) == []


# --- against the parsers that know all of the markup ------------------------------------------------------

LINES = st.sampled_from(
    ["# 1.0", "## 1.1 ##", "1.2", "===", "---", "- a", "  - b", "  # 1.3", "    # 1.4", "```", "~~~", "", "", "",
     "text", "> # 1.5", "1. x", "   # 1.6", "<!-- a", "b -->", "#", "#x", "   ## 1.7", "\t# 1.8", "* * *", "<pre>"]
)  # fmt: skip


@given(st.lists(LINES, max_size=12))
def test_headings_are_those_of_markdown_it(lines: list[str]) -> None:
    text = "\n".join(["text", "", *lines])
    tokens = MarkdownIt("commonmark").parse(text)
    nested, expected = 0, []
    for index, token in enumerate(tokens):
        nested += (
            token.nesting
            if token.type in {"list_item_open", "list_item_close", "blockquote_open", "blockquote_close"}
            else 0
        )
        if token.type == "heading_open" and not nested and token.map:
            inline = tokens[index + 1].content
            if "\n" not in inline:
                expected.append((token.map[0] + 1, int(token.tag[1:]), inline))
    assert [(found.line, found.level, found.title) for found in find_headings(text, MARKDOWN)] == expected


RST_PARTS = st.sampled_from(
    ["1.0\n====", "1.1\n----", "=====\n 1.2\n=====", "longer title\n===", "other title\n~~~~", "- a", "  b", ".. _x:", "text",
     ".. note::\n\n   c", "::\n\n  1.3\n  ===", "* 1.4\n=====\n", "\n----\n", "text\n1.5\n==="]
)  # fmt: skip


@given(st.lists(st.tuples(RST_PARTS, st.sampled_from(["\n", "\n\n"])), max_size=6))
def test_titles_are_those_of_docutils(parts: list[tuple[str, str]]) -> None:
    text = "".join(part + end for part, end in parts)
    try:
        titles = [
            node
            for node in _document(text).findall(docutils_title)
            if isinstance(node.parent, docutils_section)
        ]
    except Exception:
        return
    expected = [node.rawsource.strip() for node in titles]
    found = [heading.title for heading in find_headings(text, RST)]
    # docutils drops a title whose level does not fit; for a changelog that is still a version.
    assert [title for title in found if title in expected] == expected


# --- any text, any size -----------------------------------------------------------------------------------


@given(
    st.text(alphabet="#=-1.2v0 \n\r\t[]()`<>!a@/:_*\N{BELL}é", max_size=200), st.sampled_from([MARKDOWN, RST])
)
def test_any_text_gives_sections_that_lie_in_it(text: str, markup: Markup) -> None:
    end = 0
    for section in parse_changelog(text, format=markup):
        start, stop = section.span
        assert end <= start < stop <= len(text)
        assert section.body in text[start:stop]
        assert section.version or section.unreleased
        end = stop


HOSTILE = {
    "hashes": "#" * 200_000, "underlines": "1\n=\n" * 10_000, "labels": "# 1.0\n" + ".. _a:\n" * 15_000,
    "definitions": "# 1.0\n" + "[a]: b\n" * 15_000, "returns": "# 1.0\r" + "\r" * 200_000, "blanks": "# 1.0\n" + " " * 200_000,
    "anchors": "# 1.0\n" + "<a id='x'>\n" * 20_000 + "# 1.1\n", "fences": "```\n" * 50_000, "comments": "<!--\n" * 40_000,
    "quotes": "> " * 100_000, "titles": ("## " + "1.2.3 (" * 70 + "\n") * 100, "links": ("## " + "a [b](c 1" * 49 + "\n") * 100,
    "words": ("## " + "release " * 60 + "1.2\n") * 100, "versions": "# 1.0\n" * 8_000,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("markup", [MARKDOWN, RST])
def test_time_grows_with_the_text_and_no_faster(name: str, markup: Markup) -> None:
    def seconds(text: str) -> float:
        best = 9e9
        for _ in range(3):
            started = time.process_time()
            parse_changelog(text, format=markup)
            best = min(best, time.process_time() - started)
        return best

    once = seconds(HOSTILE[name])
    assert seconds(HOSTILE[name] * 4) < 0.1 + 8 * once


@pytest.mark.slow
def test_a_large_changelog_takes_seconds() -> None:
    text = "".join(f"## [1.{n}.0](https://example.com/a...b) (2024-01-31)\n\n- x\n\n" for n in range(100_000))
    started = time.process_time()
    assert len(parse_changelog(text, format=MARKDOWN)) == 100_000
    assert time.process_time() - started < 30


STYLES: dict[Markup, list[str]] = {
    MARKDOWN: ["## [{v}] - {d}", "## {v} ({d})", "# {v}", "## Version {v} - {d:%B %d, %Y}", "{v} ({d})\n=====", "# {v} / {d}",
               "## [{v}](https://example.com/a...b) ({d})", '<a name="{v}"></a>\n## {v} ({d})'],
    RST: ["{v} ({d})\n############################", "########################################\n {v}\n########################################", ".. _r-{v}:\n\nVersion {v} ({d:%d %B %Y})\n############################################"],
}  # fmt: skip


@pytest.mark.slow
def test_real_sections_come_back_as_they_were(shared_data: Path) -> None:
    total = found = exact = dated = 0
    for path in sorted((shared_data / "releases").glob("*.jsonl")):
        releases = [json.loads(line) for line in path.read_text().splitlines()]
        for markup, styles in STYLES.items():
            if markup == MARKDOWN and path.stem == "simonw__datasette":
                # Its notes are reStructuredText, in which ~~~ is no code.
                continue
            for style in styles:
                text = "Changelog\n*********\n\n" if markup == RST else "# Changelog\n\n"
                for release in releases:
                    day = datetime.fromisoformat(release["published_at"]).date()
                    text += f"{style.format(v=release['tag_name'], d=day)}\n\n{release['body']}\n\n"
                sections = {section.version: section for section in parse_changelog(text, format=markup)}
                for release in releases:
                    section = sections.get(release["tag_name"])
                    total += 1
                    found += section is not None
                    exact += section is not None and section.body == _without_labels(release["body"])
                    day = datetime.fromisoformat(release["published_at"]).date()
                    dated += section is not None and ("{d" not in style or section.published == day)
    assert total > 40_000
    # The very last section of one changelog ends with the targets of links, in each of three styles.
    assert (found, exact, dated) == (total, total - 3, total)


def _without_labels(body: str) -> str:
    """Some of the real bodies end with the label of the section that followed."""
    return re.sub(r"(?:\s+(?:\.\. _[^:]*:|\([\w.-]+\)=|<a [^<>]*></a>))+$", "", body.strip("\r\n").rstrip())


# --- files ------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "CHANGES.txt").write_bytes(b"\xef\xbb\xbf1.0\n")
    assert read_changelog(tmp_path / "CHANGES.txt").text == "1.0\n"
    assert read_changelog(tmp_path / "CHANGES.txt").markup is None
    (tmp_path / "latin.md").write_bytes(b"# 1.0\n\xe9")
    for path, words in (
        ("latin.md", "not UTF-8: byte 6"),
        ("none.md", "does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            read_changelog(tmp_path / path)
        assert caught.value.hint
    assert "CHANGES.txt" in str(caught.value.hint)
    with pytest.raises(SourceError, match="more than"):
        read_changelog(tmp_path / "CHANGES.txt", max_bytes=3)
