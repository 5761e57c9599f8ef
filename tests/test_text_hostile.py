"""Bodies made to hurt: any shape of 1 MiB is cut within two seconds of one core, and none fails."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from kb_platform.text.chunk import Role, chunk_body
from kb_platform.text.cleaning import embedding_text, plain_text
from kb_platform.text.markdown import MAX_WORK, work
from tests.test_text_chunks import assert_contract

T = TypeVar("T")
MIB = 1 << 20
SECONDS = 2.0

SHAPES: dict[str, str] = {
    "one word": "a" * MIB,
    "one line": "word " * (MIB // 5),
    "short lines": "a\n" * (MIB // 2),
    "paragraphs": "a\n\n" * (MIB // 3),
    "carriage returns": "a\r" * (MIB // 2),
    "blanks": " " * MIB,
    "blank lines": "\n" * MIB,
    "blanks at the end": "- a" + " " * MIB + "b",
    **{f"only {sign}": sign * MIB for sign in "[*|<>`_~(!\\&$#-="},
    **{f"lines of {sign}": f"{sign}\n" * (MIB // 2) for sign in "[*|<>-="},
    "nested quotes": "> " * 20_000,
    "nested quotes, lazy": "> " * 15 + "a\n" + "b\n" * (MIB // 2),
    "nested lists on a line": "- " * (MIB // 2),
    "nested lists": "".join("  " * level + "- a\n" for level in range(700)),
    "nested brackets": "[" * 100_000 + "]" * 100_000,
    "nested backticks": "".join("`" * (level % 900) + "a" for level in range(2_300))[:MIB],
    "bullets": "- a\n" * (MIB // 4),
    "bullets of three levels": "* * * a\n" * (MIB // 8),
    "long bullets": ("- " + "x" * 3000 + "\n") * (MIB // 3003),
    "change items": "- fix: close the gate by @octocat in https://github.com/acme/tool/pull/1\n"
    * (MIB // 73),
    "headings": "# a\n\n" * (MIB // 5),
    "a long heading": "# " + "a" * MIB,
    "rules of titles": "a\n=\n" * (MIB // 4),
    "labels": "a:\n- b\n\n" * (MIB // 8),
    "bold lines": "**a**\n\n" * (MIB // 7),
    "table": "|a|b|\n|-|-|\n" + "|a|b|\n" * (MIB // 6),
    "wide table": "|" * 1000 + "\n" + "|-" * 1000 + "|\n" + "|\n" * 200_000,
    "one row": "|a|b|\n|-|-|\n|" + "a" * MIB,
    "fences": "```\n" * (MIB // 4),
    "definitions": "".join(f"[a{number}]: b\n" for number in range(MIB // 12)),
    "open definition": "[a]: <b> '\n" + "x\n" * (MIB // 2),
    "open links": "[a](b" * (MIB // 5),
    "open brackets of links": "[a]((" * (MIB // 5),
    "links": "[a](http://b) " * (MIB // 14),
    "comments": "<!-- a " * (MIB // 7),
    "open tags": "<li>a" * (MIB // 5),
    "html headings": "<h2>a" * (MIB // 5),
    "details": "<details>\n\n" * (MIB // 11),
    "hashes": "a1" * (MIB // 2),
    "handles": "@a " * (MIB // 3),
    "issues": "#1 " * (MIB // 3),
    "advisories": "GHSA-" * (MIB // 5) + "CVE-2020-" * 1000,
    "breaking": "breaking change " * (MIB // 16),
    "almost breaking": ("- this release " + "is " * 300 + "\n") * (MIB // 916),
    "entities": "&#" * (MIB // 2),
    "CJK": "漢字" * (MIB // 2),
    "combining": "e\u0301" * (MIB // 2),
    "joined emoji": "👩\u200d" * (MIB // 2),
    "file separators": "\x1c" * MIB,
    "roles": ":a:`b` " * (MIB // 7),
    "titles of reStructuredText": "ab\n~~~~\n\n" * (MIB // 9),
    "directives": ".. a::\n\n   b\n\n" * (MIB // 14),
    "small reStructuredText, substitutions": ":a:`b`\n\n" + ".. |a| replace:: b\n" * 2_400,
    "small reStructuredText, nested": ":a:`b`\n" + "".join(" " * level + "- a\n\n" for level in range(400)),
    "small reStructuredText, definitions": ":a:`b`\n\n" + "a\n b\n" * 1_200,
    "small reStructuredText, grid": ":a:`b`\n\n" + "+--+--+\n|a |b |\n" * 1_200,
    "small reStructuredText, sections": ":a:`b`\n" + "ab\n~~\n\n" * 800,
}
# Each costs the parser the most that its limit on work lets through.
AT_THE_LIMIT: dict[str, str] = {
    "lazy quotation": "> " * 15 + "a\n" + "b\n" * (MAX_WORK - 40),
    "bullets": "- a\n" * (MAX_WORK // 2 - 1),
    "lists in lists": ("* " * 9 + "a\n") * (MAX_WORK // 10 - 1),
    "long bullets": ("- fix: close the gate (#12) by @octocat " + "x" * 55 + "\n") * (MAX_WORK // 2 - 1),
    "table": "|a" * 50 + "|\n" + "|-" * 50 + "|\n" + ("|a" * 50 + "|\n") * (MAX_WORK // 52 - 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [pytest.param(SHAPES[name], id=name) for name in SHAPES])
def test_any_shape_is_cut_in_time(shape: str) -> None:
    check(shape[:MIB])


# The quick form of the above; a cost that grows with the square shows at full size.
@pytest.mark.parametrize("shape", [pytest.param(SHAPES[name], id=name) for name in SHAPES])
def test_an_eighth_of_any_shape_is_cut_in_time(shape: str) -> None:
    check(shape[: MIB // 8])


@pytest.mark.parametrize("shape", [pytest.param(AT_THE_LIMIT[name], id=name) for name in AT_THE_LIMIT])
def test_shapes_at_the_limit_of_the_parser(shape: str) -> None:
    assert 0.9 * MAX_WORK < work(shape) <= MAX_WORK
    check(shape)


def check(body: str) -> None:
    assert_contract(body, timed(chunk_body, body))
    timed(plain_text, body)


def timed(work_on: Callable[[str], T], body: str) -> T:
    """The result, made within SECONDS; a busy machine gets a second chance."""
    taken = 0.0
    for _ in range(2):
        started = time.process_time()
        result = work_on(body)
        taken = time.process_time() - started
        if taken < SECONDS:
            return result
    pytest.fail(f"{taken:.1f} s for {len(body):,} code points")


def test_attacks_are_only_text(shared_data: Path) -> None:
    lines = (shared_data / "attacks.jsonl").read_text(encoding="utf-8").splitlines()
    payloads = [json.loads(line)["payload"] for line in lines]
    assert len(payloads) > 20
    for payload in payloads:
        body = payload.replace("\0", "").encode("utf-8", "ignore").decode()
        chunks = chunk_body(body)
        assert_contract(body, chunks)
        for chunk in chunks:
            if chunk.role in {Role.ITEM, Role.TEXT}:
                assert embedding_text("acme/tool", chunk)
