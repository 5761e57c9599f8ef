"""The contract of chunks, on every shared release."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kb_platform.text.chunk import Chunk, Role, chunk_body
from kb_platform.text.cleaning import embedding_text
from tests.test_text_chunks import assert_contract

SEARCHED = {Role.ITEM, Role.TEXT}


@pytest.fixture(scope="module")
def chunked(shared_data: Path) -> dict[tuple[str, str], tuple[str, list[Chunk]]]:
    """(repository, tag) → (body, chunks) of every shared release."""
    found: dict[tuple[str, str], tuple[str, list[Chunk]]] = {}
    for path in sorted((shared_data / "releases").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            release: dict[str, Any] = json.loads(line)
            body = release["body"]
            found[path.stem.replace("__", "/", 1), release["tag_name"]] = body, chunk_body(body)
    return found


@pytest.mark.slow
def test_every_release_keeps_the_contract(
    chunked: dict[tuple[str, str], tuple[str, list[Chunk]]], caplog: pytest.LogCaptureFixture
) -> None:
    assert len(chunked) == 4_362
    for (repository, _), (body, chunks) in chunked.items():
        assert_contract(body, chunks)
        for chunk in chunks:
            if chunk.role in SEARCHED:
                assert embedding_text(repository, chunk).partition(": ")[2].strip()
    assert not caplog.records, "a parser gave up on a real release"


def test_real_releases_are_mostly_items(chunked: dict[tuple[str, str], tuple[str, list[Chunk]]]) -> None:
    roles = Counter(chunk.role for _, chunks in chunked.values() for chunk in chunks)
    assert roles[Role.ITEM] > 40_000
    assert roles[Role.TEXT] < 0.06 * roles[Role.ITEM]
    assert roles[Role.MARKUP] < 0.03 * roles[Role.ITEM]


def test_golden_answers_stand_whole_in_one_chunk(
    shared_data: Path, chunked: dict[tuple[str, str], tuple[str, list[Chunk]]]
) -> None:
    """The bullet that a golden question was cut from can be cited as one chunk."""
    torn: list[str] = []
    asked = 0
    for name in ("lookup.jsonl", "removed.jsonl"):
        for line in (shared_data / "golden" / name).read_text(encoding="utf-8").splitlines():
            question: dict[str, Any] = json.loads(line)
            key = str(question["repo"]), str(question.get("source_tag"))
            if key not in chunked:
                continue
            asked += 1
            bullet = " ".join(question["source_bullet"].split())
            texts = (" ".join(chunk.text.split()) for chunk in chunked[key][1] if chunk.role in SEARCHED)
            if not any(bullet in text for text in texts):
                torn.append(question["id"])
    assert asked > 300
    assert not torn
