"""How well are questions understood? Prints precision, recall and exactness for each half of the repositories.

    python benchmarks/question_understanding.py [DATA] [--paraphrases FILE] [--wrong]

DATA is the folder with releases/*.jsonl and golden/*.jsonl. `--wrong` lists what was misunderstood.

- repository: of the questions whose filter names repositories, how many name exactly the right one (precision);
  of all questions, how many do (recall);
- absent: the same questions with their repository taken out of the knowledge base: how many are given a
  filter all the same, which must be wrong;
- range ends: both bounds of "between A and B" in all its wordings, the kind, stable only, nothing else;
- dates: the releases that the filters admit are exactly the expected ones;
- CVE: the releases that the filters admit and whose notes contain what `mentions` says, exactly;
- clean: questions that look for a deed get no filter but the repository, and a topic to search for;
- transferred: the same wordings with the names of other projects, as they are spoken of (project_names.json),
  all of them known at once; here too, absent ones must get no filter.

Repositories at even places of the sorted list were used to choose wordings and rules ("tuned"); the others
("held out") were not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from kb_platform.retrieval.mentions import find_subject
from kb_platform.retrieval.question import Intent, KnownRepository, Question, Understanding
from kb_platform.retrieval.reading import Reading
from kb_platform.retrieval.repository_names import RepositoryNames
from kb_platform.text.versions import Tags, parse_version

HALVES = ("tuned", "held out")
TODAY = date(2026, 11, 21)
Releases = dict[str, list[dict[str, Any]]]


@dataclass
class Score:
    """Right of asked, per figure."""

    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong: list[str] = field(default_factory=list)

    def count(self, figure: str, right: bool, what: str) -> None:
        self.asked[figure] += 1
        self.right[figure] += right
        if not right:
            self.wrong.append(f"{figure}: {what}")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_releases(data: Path) -> Releases:
    """The releases of every repository, by 'owner/repo'."""
    return {
        path.stem.replace("__", "/", 1): list(read_lines(path))
        for path in sorted((data / "releases").glob("*.jsonl"))
    }


def known(releases: Releases, *, without: str = "") -> list[KnownRepository]:
    """The repositories, one left out if asked for."""
    return [
        KnownRepository(name, tuple(release["tag_name"] for release in of_repository))
        for name, of_repository in releases.items()
        if name != without
    ]


def admitted(question: Question, repository: str, releases: Releases) -> set[str]:
    """Tags of the releases that the filters admit and whose notes contain what the question demands."""
    return {
        release["tag_name"]
        for release in releases[repository]
        if question.filters.admits(
            repository=repository,
            tag=release["tag_name"],
            published_at=datetime.fromisoformat(release["published_at"]),
            prerelease=release["prerelease"],
        )
        and all(text in release["body"] for text in question.mentions)
    }


def judge(score: Score, golden: dict[str, Any], question: Question, releases: Releases) -> None:
    """Count what was understood of one golden question."""
    repository, kind, what = (
        golden["repo"],
        golden["kind"],
        f"{golden['question']} -> {question.filters.as_json()}",
    )
    right = question.filters.repositories == (repository,)
    score.count("repository recall", right, what)
    if question.filters.repositories:
        score.count("repository precision", right, what)
    others = question.filters.as_json().keys() - {"repositories", "package"}
    if kind.startswith(("range_breaking", "range_cve")):
        bounds = (question.filters.after_version, question.filters.upto_version)
        kinds = ["breaking"] if kind.startswith("range_breaking") else ["security"]
        ends = bounds == tuple(golden["range"]) and others == {
            "after_version",
            "upto_version",
            "kinds",
            "prerelease",
        }
        said = list(question.filters.kinds) == kinds and question.filters.prerelease is False
        package = parse_version(golden["range"][0])
        named = question.filters.package in (None, package.prefix if package else None)
        whole = question.intent is Intent.CHANGES and not question.topic
        score.count("range ends", ends and said and named and whole, what)
    if kind in ("range_cve", "range_dates"):
        exact = admitted(question, repository, releases) == set(golden["expected_tags"])
        score.count("CVE exact" if kind == "range_cve" else "dates exact", exact, what)
    if not kind.startswith("range"):
        clean = question.intent is Intent.LOOKUP and not others and bool(question.topic)
        score.count("clean", clean, f"{what} {question.intent} {question.topic!r}")


def wordings(questions: list[dict[str, Any]], repositories: list[KnownRepository]) -> list[str]:
    """The questions with `{}` for the name of their project."""
    names = RepositoryNames((repository, Tags(repository.tags)) for repository in repositories)
    found: list[str] = []
    for record in questions:
        text = Reading(record["question"]).text
        subject = find_subject(text, names)
        if len(subject.mentions) == 1:
            mention = subject.mentions[0]
            found.append(
                text[: mention.start].replace("{", "{{") + "{}" + text[mention.end :].replace("{", "{{")
            )
    return found


def judge_transferred(templates: list[str], spoken: dict[str, list[str]], each: int) -> Score:
    """`each` wordings for each name of each project; the same sample every time."""
    tags = tuple(
        f"{major}.{minor}.{patch}" for major in range(4) for minor in range(20) for patch in range(4)
    )
    repositories = [KnownRepository(name, tags) for name in spoken]
    understanding, score, sample = Understanding(repositories, TODAY), Score(), random.Random(8)
    for name, forms in spoken.items():
        without = Understanding([repository for repository in repositories if repository.name != name], TODAY)
        for text in (template.format(form) for form in forms for template in sample.sample(templates, each)):
            found = understanding.understand(text).filters.repositories
            score.count("repository recall", found == (name,), f"{name}: {text}")
            if found:
                score.count("repository precision", found == (name,), f"{name} {found}: {text}")
            unfiltered = not without.understand(text).filters.repositories
            score.count("absent: no filter", unfiltered, f"{text} (without {name})")
    return score


def show(scores: dict[str, Score]) -> None:
    """Print a table: a line for each figure, a column for each half."""
    figures = dict.fromkeys(figure for score in scores.values() for figure in score.asked)
    print(f"{'':<24}" + "".join(f"{half:>22}" for half in scores))
    for figure in figures:
        cells = [f"{score.right[figure]}/{score.asked[figure]}" for score in scores.values()]
        shares = [score.right[figure] / max(1, score.asked[figure]) for score in scores.values()]
        print(
            f"{figure:<24}"
            + "".join(f"{cell:>14}{share:>8.3f}" for cell, share in zip(cells, shares, strict=True))
        )


def time_construction(repositories: list[KnownRepository]) -> float:
    """Milliseconds, the best of five, with nothing remembered."""
    best = float("inf")
    for _ in range(5):
        parse_version.cache_clear()
        start = time.perf_counter()
        Understanding(repositories, TODAY)
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def time_questions(understanding: Understanding, questions: list[str]) -> list[float]:
    """Microseconds a question, the best of five each, in ascending order."""
    times: list[float] = []
    for text in questions:
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            understanding.understand(text)
            best = min(best, time.perf_counter() - start)
        times.append(best * 1e6)
    return sorted(times)


def main() -> None:
    """Read the data, judge every question, print the tables."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="How well are questions understood?")
    parser.add_argument("data", nargs="?", type=Path, default=here.parents[1] / "shared" / "data")
    parser.add_argument("--paraphrases", type=Path, default=here / "paraphrases.jsonl")
    parser.add_argument("--wrong", action="store_true", help="list what was misunderstood")
    options = parser.parse_args()
    if not (options.data / "releases").is_dir():
        sys.exit(f"no releases at {options.data}; name the folder that has releases/ and golden/")
    releases = read_releases(options.data)
    golden = [
        record for path in sorted((options.data / "golden").glob("*.jsonl")) for record in read_lines(path)
    ]
    paraphrases = list(read_lines(options.paraphrases)) if options.paraphrases.is_file() else []
    half_of = {name: HALVES[place % 2] for place, name in enumerate(sorted(releases))}
    understanding = Understanding(known(releases), TODAY)
    absent = {name: Understanding(known(releases, without=name), TODAY) for name in releases}

    for title, questions in (("golden", golden), ("paraphrases", paraphrases)):
        scores = {half: Score() for half in HALVES}
        for record in questions:
            score, text = scores[half_of[record["repo"]]], record["question"]
            judge(score, record, understanding.understand(text), releases)
            unfiltered = not absent[record["repo"]].understand(text).filters.repositories
            score.count("absent: no filter", unfiltered, f"{text} (without {record['repo']})")
        print(f"\n{title}: {len(questions)} questions")
        show(scores)
        if options.wrong:
            print(
                *(f"  {half}: {wrong}" for half, score in scores.items() for wrong in score.wrong), sep="\n"
            )

    spoken = json.loads((here / "project_names.json").read_text(encoding="utf-8"))
    transferred = judge_transferred(wordings(golden + paraphrases, known(releases)), spoken, each=25)
    print(
        f"\ntransferred to {len(spoken)} other projects: {transferred.asked['repository recall']} questions"
    )
    show({"all": transferred})
    if options.wrong:
        print(*(f"  {wrong}" for wrong in transferred.wrong), sep="\n")

    times = time_questions(understanding, [record["question"] for record in golden])
    tags = sum(map(len, releases.values()))
    print(
        f"\nconstruction: {time_construction(known(releases)):.0f} ms for {len(releases)} repositories, {tags} tags"
    )
    print(
        f"understanding: p50 {times[len(times) // 2]:.0f} µs, p99 {times[len(times) * 99 // 100]:.0f} µs, max {times[-1]:.0f} µs"
    )


if __name__ == "__main__":
    main()
