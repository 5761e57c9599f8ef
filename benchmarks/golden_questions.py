"""How often the golden questions are answered right, through the same search and answers that people get.

    python benchmarks/golden_questions.py [--questions FOLDER] [--no-filters]

Works on the knowledge base of KB_HOME; import the repositories of the questions first (`kb import`). Prints recall per
kind of question, with the filters that the question's own words give, the share of exact answers, and latency.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

from kb_platform.answering.answer import Answerer
from kb_platform.evaluation.golden import Score, exact_set, first_right, read_questions
from kb_platform.home import embedder, open_database
from kb_platform.retrieval.filters import Filters
from kb_platform.retrieval.searcher import Searcher
from kb_platform.settings import load_settings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=Path, default=Path("../shared/data/golden"))
    parser.add_argument(
        "--no-filters", action="store_true", help="search everything, whatever the question names"
    )
    parser.add_argument("--json", type=Path, help="write each question's outcome here")
    arguments = parser.parse_args()
    settings = load_settings()
    searcher = Searcher(open_database(settings), lambda model: embedder(settings, model))
    answerer = Answerer(searcher)
    files = (
        sorted(arguments.questions.glob("*.jsonl")) if arguments.questions.is_dir() else [arguments.questions]
    )
    if not files:
        raise SystemExit(f"no questions at {arguments.questions}")
    scores: dict[str, Score] = defaultdict(Score)
    exact: dict[str, list[bool]] = defaultdict(list)
    searching: list[float] = []
    outcomes: list[dict[str, object]] = []
    searcher.search("warm up")
    for question in (question for file in files for question in read_questions(file)):
        started = time.perf_counter()
        found = searcher.search(question.question, k=50, filters=Filters() if arguments.no_filters else None)
        searching.append(time.perf_counter() - started)
        rank = first_right(question, [(passage.repository, passage.tag) for passage in found.passages])
        answer = answerer.answer(question.question)
        right = exact_set(question, answer.releases)
        named = bool(set(answer.releases) & {(question.repository, tag) for tag in question.expected_tags})
        if question.expected_tags:
            scores[question.family].add(rank)
        exact[question.family].append(right)
        outcomes.append(
            {"id": question.id, "rank": rank, "exact": right, "named": named, "found": answer.found,
             "releases": [tag for _, tag in answer.releases[:10]], "expected": question.expected_tags,
             "filters": answer.filters.as_json(), "rule": answer.rule}
        )  # fmt: skip
    print(f"{'kind':<22}{'n':>5}{'@1':>8}{'@5':>8}{'@10':>8}{'MRR':>8}{'exact answer':>14}")
    for family in sorted(exact):
        score = scores[family]
        print(
            f"{family:<22}{len(exact[family]):>5}{score.recall_at(1):>8.3f}{score.recall_at(5):>8.3f}"
            f"{score.recall_at(10):>8.3f}{score.reciprocal_rank:>8.3f}{statistics.mean(exact[family]):>14.3f}"
        )
    milliseconds = sorted(1000 * seconds for seconds in searching)
    print(
        f"search: p50 {statistics.median(milliseconds):.1f} ms, p99 {milliseconds[int(len(milliseconds) * 0.99)]:.1f} ms"
    )
    if arguments.json:
        arguments.json.write_text("\n".join(json.dumps(outcome) for outcome in outcomes) + "\n")


if __name__ == "__main__":
    main()
