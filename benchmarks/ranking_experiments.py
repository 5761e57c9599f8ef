"""Learns the weights and the bar of `kb_platform.retrieval.ranking`, and measures them against baselines.

    python benchmarks/ranking_experiments.py [--data ../shared/data] [--cache FILE.npz] [--bar-only]

Everything happens in memory, over all shared releases at once, with the same cutting, words, vectors, understanding and
ranking as the product; only the search itself is done here instead of by PostgreSQL. What is learned is learned on one
half of the repositories; the tables show both halves, and a gap between them is a defect. The bar learns from the packaged
sample as well, which is indexed by itself: words are worth something else in a small corpus. With the vectors in `--cache`
all of it takes a few minutes on one core and the bar alone about one; without them add eight.

Belongs here: the experiments. Does not belong here: their material (`ranking_corpus`).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from ranking_corpus import Asked, Corpus, WordIndex, answerable, best, embed, unanswerable, understood

from kb_platform import sample_corpus
from kb_platform.retrieval import ranking
from kb_platform.retrieval.ranking import READ, Evidence, Features, evidence, measure, passes, rank
from kb_platform.text import words
from kb_platform.text.cleaning import embedding_text
from kb_platform.text.words import index_terms, query_terms

NAMES = tuple(Features.__dataclass_fields__)
# Paraphrases are few (48 of some 1,500 questions) and the only ones that say what vectors are for.
IMPORTANCE = {"paraphrase": 4.0}
# How much a question says to the bar. Questions cut from notes repeat them, which people do not: 32 questions that somebody
# wrote about the sample outweigh some 1,500 of those. A twisted question differs from a true one in a single word.
BAR_IMPORTANCE = {
    "lookup": 0.3,
    "removed": 0.3,
    "cut": 0.3,
    "paraphrase": 1.0,
    "sample": 8.0,
    "swapped": 0.5,
    "invented": 1.0,
    "twisted": 0.2,
    "sample none": 4.0,
    "sample swapped": 0.5,
    "sample invented": 0.6,
    "sample twisted": 0.2,
}
EVIDENCE = tuple(Evidence.__dataclass_fields__)
Ranks = list[int]


@dataclass(frozen=True)
class Example:
    """A question with its candidates: features (n, f), which of them stand in an expected release, their releases."""

    asked: Asked
    features: np.ndarray
    right: np.ndarray
    releases: list[tuple[str, str]]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    options.add_argument("--cache", type=Path, default=None, help="an .npz file that keeps the vectors")
    options.add_argument("--bar-only", action="store_true", help="leave weights and tables out")
    arguments = options.parse_args()

    corpus = Corpus.read(arguments.data)
    texts = [embedding_text(corpus.releases[r].repository, chunk) for r, chunk in corpus.chunks]
    corpus.vectors = embed(texts, arguments.cache)
    asked = answerable(corpus, arguments.data)
    golden = [question for question in asked if question.kind in ("lookup", "removed")]
    nothing = unanswerable(corpus, golden)
    vectors = embed([q.topic for q in [*asked, *nothing]], arguments.cache, queries=True)
    tuning = set(sorted(corpus.rows)[::2])
    print(f"{len(corpus.releases)} releases, {len(corpus.chunks)} chunks, {len(corpus.words.ids)} terms")
    print(f"tuning half: {', '.join(sorted(tuning))}\n")

    if not arguments.bar_only:
        order(corpus, asked, vectors, tuning)
    sample, about_sample, sample_vectors = small_corpus(arguments.cache)
    refusals(
        [
            *judged(corpus, [*asked, *nothing], vectors),
            *judged(sample, about_sample, sample_vectors),
        ],
        tuning,
    )


def order(corpus: Corpus, asked: Sequence[Asked], vectors: np.ndarray, tuning: set[str]) -> None:
    """Learns the weights and compares the order they make with the baselines."""
    found = [q.repositories == (q.repository,) for q in asked if q.kind in ("lookup", "removed")]
    print(f"the repository is understood in {np.mean(found):.3f} of the golden questions\n")
    examples = [example(corpus, q, vector) for q, vector in zip(asked, vectors, strict=False)]
    learned = learn([e for e in examples if e.asked.repository in tuning])
    rounded = dict(zip(NAMES, np.round(learned, 1).tolist(), strict=True))
    print("learned", rounded, " in use", dict(ranking.WEIGHTS))
    table(corpus, asked, vectors, tuning, examples, learned)


def small_corpus(cache: Path | None) -> tuple[Corpus, list[Asked], np.ndarray]:
    """The packaged sample, as small as corpora begin, with its questions and with some that nothing answers."""
    folder = Path(sample_corpus.__file__).parent
    corpus = Corpus.read(folder)
    texts = [embedding_text(corpus.releases[r].repository, chunk) for r, chunk in corpus.chunks]
    corpus.vectors = embed(texts, cache)
    records = map(json.loads, (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines())
    written = [
        understood(
            corpus,
            Asked(
                "sample" if record["expected_tags"] else "sample none",
                record["repo"],
                record["question"],
                frozenset(record["expected_tags"]),
            ),
        )
        for record in records
        if not record["kind"].startswith("range")
    ]
    nothing = unanswerable(corpus, [q for q in written if q.expected])
    asked = [*written, *(replace(q, kind=f"sample {q.kind}") for q in nothing)]
    return corpus, asked, embed([q.topic for q in asked], cache, queries=True)


def example(corpus: Corpus, asked: Asked, vector: np.ndarray) -> Example:
    inquiry, candidates = corpus.candidates(asked.topic, vector, asked.repositories)
    inquiry = replace(inquiry, kinds=frozenset(asked.kinds))
    return Example(
        asked,
        np.array([astuple(measure(inquiry, candidate)[0]) for candidate in candidates]).reshape(
            -1, len(NAMES)
        ),
        np.array(
            [c.repository == asked.repository and c.tag in asked.expected for c in candidates], dtype=bool
        ),
        [(candidate.repository, candidate.tag) for candidate in candidates],
    )


def learn(
    examples: Sequence[Example], *, steps: int = 400, rate: float = 0.1, decay: float = 1e-3
) -> np.ndarray:
    """Weights that make a right candidate likely under a softmax over all candidates of its question (Adam).

    ListNet's top-one probability (Cao et al. 2007) with several right ones: loss −log Σ right / Σ all.
    """
    usable = [e for e in examples if e.right.any()]
    stacked, right = np.concatenate([e.features for e in usable]), np.concatenate([e.right for e in usable])
    counts = np.array([len(e.right) for e in usable])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    importance = np.array([IMPORTANCE.get(e.asked.kind, 1.0) for e in usable])
    importance = np.repeat(importance / importance.sum(), counts)
    weights, first, second = (np.zeros(len(NAMES)) for _ in range(3))
    for step in range(1, steps + 1):
        scores = stacked @ weights
        likely = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), counts))
        wanted = likely * right
        pull = likely / np.repeat(np.add.reduceat(likely, starts), counts)
        pull -= wanted / np.repeat(np.maximum(np.add.reduceat(wanted, starts), 1e-12), counts)
        gradient = stacked.T @ (pull * importance) + decay * weights
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weights -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weights


def table(
    corpus: Corpus,
    asked: Sequence[Asked],
    vectors: np.ndarray,
    tuning: set[str],
    examples: Sequence[Example],
    learned: np.ndarray,
) -> None:
    whole = whole_releases(corpus)
    release = corpus.release_of
    own_rows = np.array([r.repository for r in corpus.releases])

    def by_scores(
        score: Callable[[Asked, np.ndarray], np.ndarray], *, filtered: bool, chunks: bool = True
    ) -> Ranks:
        found: Ranks = []
        for question, vector in zip(asked, vectors, strict=False):
            wanted = question.repositories if filtered else ()
            mask = corpus.within(wanted) if chunks else (np.isin(own_rows, wanted) if wanted else None)
            rows = best(score(question, vector), mask, 400, above=-1.0)
            found.append(place(corpus, question, release[rows] if chunks else rows))
        return found

    def ours(*, filtered: bool, fresh: list[float]) -> Ranks:
        found: Ranks = []
        for question, vector in zip(asked, vectors, strict=False):
            topic = question.topic if filtered else question.question
            wanted = question.repositories if filtered else ()
            inquiry, candidates = corpus.candidates(topic, vector, wanted)
            inquiry = replace(inquiry, kinds=frozenset(question.kinds))
            started = time.process_time()
            ordered = rank(inquiry, candidates)
            fresh.append(time.process_time() - started)
            found.append(place(corpus, question, [release[r.candidate.key] for r in ordered]))  # type: ignore[index]
        return found

    def with_weights(weights: np.ndarray) -> Ranks:
        found: Ranks = []
        for e in examples:
            order = np.argsort(-(e.features @ weights), kind="stable")
            seen = list(dict.fromkeys(e.releases[int(i)] for i in order))
            found.append(
                first([repo == e.asked.repository and tag in e.asked.expected for repo, tag in seen])
            )
        return found

    seconds: list[float] = []
    print(f"\n{'':44}{'':12}tuning half: @1 @5 @10 MRR    held-out half: @1 @5 @10 MRR")
    for title, ranks in (
        (
            "BM25 over whole releases",
            by_scores(lambda q, _: whole.scores(query_terms(q.question)), filtered=False, chunks=False),
        ),
        (
            "BM25 over whole releases, understood",
            by_scores(lambda q, _: whole.scores(query_terms(q.topic)), filtered=True, chunks=False),
        ),
        (
            "BM25 over chunks",
            by_scores(lambda q, _: corpus.words.scores(query_terms(q.question)), filtered=False),
        ),
        (
            "BM25 over chunks, understood",
            by_scores(lambda q, _: corpus.words.scores(query_terms(q.topic)), filtered=True),
        ),
        ("vectors alone, understood", by_scores(lambda _, vector: corpus.vectors @ vector, filtered=True)),
        ("ours", ours(filtered=False, fresh=seconds)),
        ("ours, understood", ours(filtered=True, fresh=seconds)),
        ("learned just now, understood", with_weights(learned)),
    ):
        for line, kind in enumerate(("lookup", "removed", "paraphrase", "cut")):
            halves = [
                [
                    r
                    for r, q in zip(ranks, asked, strict=True)
                    if q.kind == kind and (q.repository in tuning) == half
                ]
                for half in (True, False)
            ]
            print(f"{'' if line else title:44}{kind:12}{metrics(halves[0])}   {metrics(halves[1])}")
    print(
        f"\nrank(): p50 {1e3 * np.percentile(seconds, 50):.1f} ms, p99 {1e3 * np.percentile(seconds, 99):.1f} ms"
    )


def whole_releases(corpus: Corpus) -> WordIndex:
    """The baseline: a release is one document, BM25 with the usual k1 = 1.2, b = 0.75."""
    usual = {"SATURATION": 1.2, "LENGTH_INFLUENCE": 0.75, "AVERAGE_LENGTH": 300.0}
    kept = {name: getattr(words, name) for name in usual}
    for name, value in usual.items():
        setattr(words, name, value)
    index = WordIndex(index_terms(r.repository, r.tag, [r.name], r.body) for r in corpus.releases)
    for name, value in kept.items():
        setattr(words, name, value)
    return index


def place(corpus: Corpus, asked: Asked, releases: Iterable[int]) -> int:
    """Where the first expected release stands among distinct releases, from 1; 0 when it does not."""
    seen = dict.fromkeys(int(r) for r in releases)
    found = (corpus.releases[r] for r in seen)
    return first([r.repository == asked.repository and r.tag in asked.expected for r in found])


def first(right: Sequence[bool]) -> int:
    return right.index(True) + 1 if True in right else 0


def metrics(ranks: Ranks) -> str:
    places = np.array([rank or math.inf for rank in ranks])
    figures = [np.mean(places <= 1), np.mean(places <= 5), np.mean(places <= 10), np.mean(1 / places)]
    return " ".join(f"{figure:.3f}" for figure in figures)


@dataclass(frozen=True)
class Judged:
    """A question with the evidence of its first candidate, whether that stands in an expected release, and whether the
    bar in use lets the first three pass."""

    asked: Asked
    known: Evidence
    right: bool
    passed: bool


def judged(corpus: Corpus, asked: Sequence[Asked], vectors: np.ndarray) -> list[Judged]:
    rows: list[Judged] = []
    for question, vector in zip(asked, vectors, strict=True):
        inquiry, candidates = corpus.candidates(question.topic, vector, question.repositories)
        inquiry = replace(inquiry, kinds=frozenset(question.kinds))
        ordered = rank(inquiry, candidates)
        if ordered and inquiry.concepts:
            top = ordered[0].candidate
            right = top.repository == question.repository and top.tag in question.expected
            known = evidence(inquiry, [found.candidate for found in ordered[:READ]])[0]
            rows.append(Judged(question, known, right, passes(inquiry, ordered)))
    return rows


def refusals(rows: Sequence[Judged], tuning: set[str]) -> None:
    """Fits the bar on the tuning half and on the sample, and shows who would be refused, with the bar fitted, with a bar
    that has not seen the repository's sample questions, and with the one in use."""
    known = np.array([astuple(row.known) for row in rows])
    truth = np.array([bool(row.asked.expected) for row in rows])
    kinds = np.array([row.asked.kind for row in rows])
    names = np.array([row.asked.repository for row in rows])
    sample = np.char.startswith(kinds, "sample")
    tuned = np.isin(names, sorted(tuning))
    # Wrong first candidates of true questions are no example of an answer.
    taught = (sample | tuned) & (np.array([row.right for row in rows]) | ~truth)
    importance = np.array([BAR_IMPORTANCE[kind] for kind in kinds])

    def fit(chosen: np.ndarray) -> np.ndarray:
        return logistic(known[chosen], truth[chosen], importance[chosen])

    fitted = fit(taught)
    refused = known @ fitted[:-1] + fitted[-1] < 0
    unseen = refused.copy()
    for name in sorted(set(names[sample])):
        without = fit(taught & ~(sample & (names == name)))
        own = sample & (names == name)
        unseen[own] = known[own] @ without[:-1] + without[-1] < 0
    print(f"\nbar: {dict(zip(EVIDENCE, np.round(fitted[:-1], 1).tolist(), strict=True))}, {fitted[-1]:.1f}")
    print(f"in use: {dict(ranking.BAR_WEIGHTS)}, {ranking.BAR_CONSTANT}")
    in_use = np.array([not row.passed for row in rows])
    right = np.array([row.right for row in rows])
    print(
        f"{'refused':18}{'questions':>10}{'learned from':>14}{'held out':>10}{'in use, all':>13}{'first right':>13}"
    )
    for kind in dict.fromkeys(kinds.tolist()):
        of_kind = kinds == kind
        first_half = refused[of_kind & (sample | tuned)]
        other_half = unseen[of_kind & (sample | ~tuned)]
        answers = f"{in_use[of_kind & right].mean():13.3f}" if (of_kind & right).any() else ""
        print(
            f"{kind:18}{of_kind.sum():10}{first_half.mean():14.3f}{other_half.mean():10.3f}"
            f"{in_use[of_kind].mean():13.3f}{answers}"
        )


def logistic(
    known: np.ndarray, truth: np.ndarray, importance: np.ndarray, *, decay: float = 1e-3
) -> np.ndarray:
    """Logistic regression by Newton's method; the constant comes last."""
    middle: np.ndarray = known.mean(0)
    spread: np.ndarray = known.std(0) + 1e-9
    scaled: np.ndarray = np.c_[(known - middle) / spread, np.ones(len(known))]
    share: np.ndarray = importance / importance.sum()
    steady = decay * np.eye(scaled.shape[1])
    weights = np.zeros(scaled.shape[1])
    for _ in range(30):
        likely: np.ndarray = 1 / (1 + np.exp(-(scaled @ weights)))
        slope = np.asarray(scaled.T @ ((likely - truth) * share) + steady @ weights, dtype=np.float64)
        bend = np.asarray((scaled.T * (likely * (1 - likely) * share)) @ scaled + steady, dtype=np.float64)
        weights = weights - np.linalg.solve(bend, slope)
    plain: np.ndarray = weights[:-1] / spread
    return np.r_[plain, weights[-1] - float(plain @ middle)]


if __name__ == "__main__":
    main()
