"""Learns the weights and the bar of `kb_platform.retrieval.ranking`, and measures them against baselines.

    python benchmarks/ranking_experiments.py [--data ../shared/data] [--cache FILE.npz]

Everything happens in memory, over all shared releases at once, with the same cutting, words, vectors, understanding and
ranking as the product; only the search itself is done here instead of by PostgreSQL. What is learned is learned on one
half of the repositories; the tables show both halves, and a gap between them is a defect. With the vectors in `--cache` it
takes about two minutes on one core, without them about ten.

Belongs here: the experiments. Does not belong here: their material (`ranking_corpus`).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from ranking_corpus import Asked, Corpus, WordIndex, answerable, best, embed, unanswerable

from kb_platform.retrieval import ranking
from kb_platform.retrieval.ranking import Evidence, Features, measure, passes, rank
from kb_platform.text import words
from kb_platform.text.cleaning import embedding_text
from kb_platform.text.words import index_terms, query_terms

NAMES = tuple(Features.__dataclass_fields__)
# Paraphrases are few (48 of some 1,500 questions) and the only ones that say what vectors are for.
IMPORTANCE = {"paraphrase": 4.0}
# To refuse what has an answer costs more than to show a near miss: people see the passage either way.
FALSE_REFUSAL = 2.0
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

    understood = [q.repositories == (q.repository,) for q in golden]
    print(f"the repository is understood in {np.mean(understood):.3f} of the golden questions\n")

    examples = [example(corpus, q, vector) for q, vector in zip(asked, vectors, strict=False)]
    learned = learn([e for e in examples if e.asked.repository in tuning])
    print(
        "learned",
        dict(zip(NAMES, np.round(learned, 1).tolist(), strict=True)),
        " in use",
        dict(ranking.WEIGHTS),
    )
    table(corpus, asked, vectors, tuning, examples, learned)
    refusals(corpus, [*asked, *nothing], vectors, tuning)


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


def refusals(corpus: Corpus, asked: Sequence[Asked], vectors: np.ndarray, tuning: set[str]) -> None:
    """Fits the bar on the tuning half and shows who would be refused, with the bar fitted and with the one in use."""
    rows: list[tuple[Asked, Evidence, float | None, bool]] = []
    for question, vector in zip(asked, vectors, strict=True):
        inquiry, candidates = corpus.candidates(question.topic, vector, question.repositories)
        ordered = rank(inquiry, candidates)
        if ordered and inquiry.concepts:
            top = ordered[0].candidate
            rows.append((question, measure(inquiry, top)[1], top.cosine, passes(inquiry, ordered)))
    known = np.array([[e.coverage, e.gap, cosine or 0.0] for _, e, cosine, _ in rows])
    truth = np.array([bool(q.expected) for q, *_ in rows])
    # Paraphrases look like invented questions to words and to this model alike, so they teach the bar nothing.
    taught = np.array([q.repository in tuning and q.kind != "paraphrase" for q, *_ in rows])
    importance = np.array(
        [FALSE_REFUSAL * (0.5 if q.kind == "cut" else 1.0) if q.expected else 1.0 for q, *_ in rows]
    )
    fitted = logistic(known[taught][:, :2], truth[taught], importance[taught])
    offered = logistic(known[taught], truth[taught], importance[taught])
    print(
        f"\nbar: coverage, gap, constant = {np.round(fitted, 1).tolist()}, in use {list(ranking.BAR_WEIGHTS)}"
    )
    print(f"with the cosine: coverage, gap, cosine, constant = {np.round(offered, 1).tolist()}")
    print(f"{'refused':14}{'tuning':>9}{'held out':>10}{'in use, both':>15}")
    refused = known[:, :2] @ fitted[:-1] + fitted[-1] < 0
    for kind in dict.fromkeys(q.kind for q in asked):
        of_kind = np.array([q.kind == kind for q, *_ in rows])
        tuned = np.array([q.repository in tuning for q, *_ in rows])
        used = np.mean([not passed for q, _, _, passed in rows if q.kind == kind])
        print(
            f"{kind:14}{refused[of_kind & tuned].mean():9.3f}{refused[of_kind & ~tuned].mean():10.3f}{used:15.3f}"
        )


def logistic(
    known: np.ndarray, truth: np.ndarray, importance: np.ndarray, *, decay: float = 1e-3
) -> np.ndarray:
    """Logistic regression by gradient descent; the constant comes last."""
    middle, spread = known.mean(0), known.std(0) + 1e-9
    scaled = np.c_[(known - middle) / spread, np.ones(len(known))]
    weights = np.zeros(scaled.shape[1])
    for _ in range(4_000):
        likely = 1 / (1 + np.exp(-scaled @ weights))
        weights -= 0.5 * (scaled.T @ ((likely - truth) * importance) / importance.sum() + decay * weights)
    return np.r_[weights[:-1] / spread, weights[-1] - (weights[:-1] * middle / spread).sum()]


if __name__ == "__main__":
    main()
