"""The sample corpus that ships with the project: what `make demo` builds its knowledge base from.

Belongs here: ninety release records in GitHub's JSON shape (`releases/OWNER__REPO.jsonl`, one record a
line), golden questions over them (`questions.jsonl`), the paths of both, and `verify`, which compares the
records with the real ones. Versions, dates, identifiers, pull request numbers and advisories are those of
the real releases; the prose is written for this project.

Does not belong here: reading releases (`sources`), asking the questions (`evaluation`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def releases_folder() -> Path:
    """The folder of `OWNER__REPO.jsonl` files; `kb import` takes it as it stands."""
    return _HERE / "releases"


def questions_path() -> Path:
    """The file of golden questions, one JSON object a line.

    Each has `id`, `repo`, `question`, `kind`, `expected_tags` (by version, for months newest first; empty
    when "none" is the right answer) and `expected_substrings`, verbatim from the bodies of those releases.
    Questions about ranges have `range`: two versions, the first excluded, or two months, both included. The
    kind `unanswerable` marks questions that the corpus has no answer to. `demo` marks the demonstration's.
    """
    return _HERE / "questions.jsonl"


def demo_questions() -> list[str]:
    """The three questions that a demonstration asks: a lookup, what broke between two versions, a security fix."""
    lines = questions_path().read_text(encoding="utf-8").splitlines()
    questions: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [question["question"] for question in questions if question.get("demo", False)]
