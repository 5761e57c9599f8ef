"""Golden questions: questions whose right releases are known, and the score of what was found for them.

The file has one JSON object a line: `id`, `repo`, `question`, `expected_tags` (empty: "none" is right),
`expected_substrings`, `kind`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kb_platform.errors import SourceError


@dataclass(frozen=True)
class GoldenQuestion:
    """A question with its right answer. `expected_tags` are of `repository`."""

    id: str
    repository: str
    question: str
    expected_tags: tuple[str, ...]
    expected_substrings: tuple[str, ...]
    kind: str

    @property
    def family(self) -> str:
        """`lookup`, `removed`, `deprecated`, `range_breaking` …: the kind without how it is worded."""
        return self.kind.removesuffix("_nocode").removesuffix("_code").removesuffix("_cve")


def read_questions(path: Path) -> list[GoldenQuestion]:
    """The questions of a file. Raises SourceError with the line at fault."""
    found: list[GoldenQuestion] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}", hint="name a .jsonl file of questions"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record: dict[str, Any] = json.loads(line)
            found.append(
                GoldenQuestion(
                    str(record["id"]), record["repo"], record["question"], tuple(record["expected_tags"]),
                    tuple(record.get("expected_substrings", ())), record.get("kind", "lookup"),
                )
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{path}:{number} is no question: {error!r}", hint="see docs/interfaces.md"
            ) from None
    return found


def first_right(question: GoldenQuestion, releases: Sequence[tuple[str, str]]) -> int | None:
    """The rank (from 1) of the first right release among distinct (repository, tag) pairs; None when there is none."""
    distinct = dict.fromkeys((repository.lower(), tag) for repository, tag in releases)
    for rank, (repository, tag) in enumerate(distinct, 1):
        if repository == question.repository.lower() and tag in question.expected_tags:
            return rank
    return None


def exact_set(question: GoldenQuestion, releases: Iterable[tuple[str, str]]) -> bool:
    """Whether exactly the right releases were named, in any order."""
    return {(repository.lower(), tag) for repository, tag in releases} == {
        (question.repository.lower(), tag) for tag in question.expected_tags
    }


@dataclass
class Score:
    """Ranks of the first right release over some questions."""

    ranks: list[int | None] = field(default_factory=list[int | None])

    def add(self, rank: int | None) -> None:
        """One more question."""
        self.ranks.append(rank)

    def recall_at(self, k: int) -> float:
        """Share of the questions with a right release among the first k."""
        return (
            sum(rank is not None and rank <= k for rank in self.ranks) / len(self.ranks)
            if self.ranks
            else 0.0
        )

    @property
    def reciprocal_rank(self) -> float:
        """Mean of 1/rank (MRR); a question without a right release counts 0."""
        return sum(1 / rank for rank in self.ranks if rank) / len(self.ranks) if self.ranks else 0.0
