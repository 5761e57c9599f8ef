"""The shared releases in memory, cut, indexed and embedded as the knowledge base does it, and questions about them.

Belongs here: what the experiments on ranking are made with. Does not belong here: the experiments
(`ranking_experiments`).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from kb_platform.embedding.embedder import load_embedder
from kb_platform.embedding.model import DEFAULT_MODEL
from kb_platform.retrieval.question import KnownRepository, Understanding
from kb_platform.retrieval.ranking import Candidate, Inquiry
from kb_platform.text.chunk import Chunk, Role, chunk_body
from kb_platform.text.cleaning import embedding_text, plain_text
from kb_platform.text.words import TermWeights, idf, index_terms, query_terms, term_id

HERE = Path(__file__).parent
BY_WORDS, BY_VECTORS = 200, 100
SEED = 20261121


@dataclass(frozen=True)
class Release:
    repository: str
    tag: str
    name: str
    body: str
    published_at: datetime | None
    prerelease: bool


@dataclass(frozen=True)
class Asked:
    """A question. `expected` is empty where nothing answers it; `topic` and `repositories` are what was understood."""

    kind: str
    repository: str
    question: str
    expected: frozenset[str]
    topic: str = ""
    repositories: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


class WordIndex:
    """BM25 over rows of term weights: the inner product that PostgreSQL computes, with idf in the question."""

    def __init__(self, rows: Iterable[TermWeights]) -> None:
        lengths: list[int] = []
        ids: list[int] = []
        weights: list[float] = []
        for row in rows:
            lengths.append(len(row.ids))
            ids.extend(row.ids)
            weights.extend(row.weights)
        self.size = len(lengths)
        owner = np.repeat(np.arange(self.size, dtype=np.int32), lengths)
        self.ids, inverse = np.unique(np.array(ids, dtype=np.int64), return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        self.owner, self.weights = owner[order], np.array(weights, dtype=np.float32)[order]
        self.starts = np.searchsorted(inverse[order], np.arange(len(self.ids) + 1))

    def postings(self, term: str) -> slice:
        place = int(np.searchsorted(self.ids, term_id(term)))
        if place == len(self.ids) or self.ids[place] != term_id(term):
            return slice(0, 0)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def idf(self, term: str) -> float:
        found = self.postings(term)
        return idf(found.stop - found.start, self.size)

    def scores(self, asked: Mapping[str, float]) -> np.ndarray:
        total = np.zeros(self.size, dtype=np.float32)
        for term, weight in asked.items():
            found = self.postings(term)
            total[self.owner[found]] += np.float32(weight * self.idf(term)) * self.weights[found]
        return total


@dataclass
class Corpus:
    """All releases of the shared data with their searchable chunks."""

    releases: list[Release]
    chunks: list[tuple[int, Chunk]]
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))

    @classmethod
    def read(cls, data: Path) -> Corpus:
        releases: list[Release] = []
        chunks: list[tuple[int, Chunk]] = []
        for file in sorted((data / "releases").glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                published = record["published_at"]
                release = Release(
                    repository=file.stem.replace("__", "/"),
                    tag=record["tag_name"],
                    name=record["name"] or "",
                    body=record["body"] or "",
                    published_at=datetime.fromisoformat(published) if published else None,
                    prerelease=record["prerelease"],
                )
                chunks += [
                    (len(releases), chunk)
                    for chunk in chunk_body(release.body)
                    if chunk.role in (Role.ITEM, Role.TEXT)
                    and embedding_text(release.repository, chunk).strip()
                ]
                releases.append(release)
        return cls(releases, chunks)

    @cached_property
    def words(self) -> WordIndex:
        return WordIndex(
            index_terms(self.releases[r].repository, self.releases[r].tag, chunk.headings, chunk.text)
            for r, chunk in self.chunks
        )

    @cached_property
    def release_of(self) -> np.ndarray:
        return np.array([r for r, _ in self.chunks])

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Repository → which chunks are its own."""
        names = np.array([release.repository for release in self.releases])
        return {name: names[self.release_of] == name for name in sorted(set(names))}

    @cached_property
    def text_of(self) -> dict[str, str]:
        bodies: dict[str, list[str]] = defaultdict(list)
        for release in self.releases:
            bodies[release.repository].append(release.body.casefold())
        return {name: "\n".join(parts) for name, parts in bodies.items()}

    @cached_property
    def understanding(self) -> Understanding:
        tags: dict[str, list[str]] = defaultdict(list)
        for release in self.releases:
            tags[release.repository].append(release.tag)
        return Understanding(
            [KnownRepository(name, tuple(found)) for name, found in tags.items()], date(2026, 11, 21)
        )

    def within(self, repositories: Sequence[str]) -> np.ndarray | None:
        return np.logical_or.reduce([self.rows[name] for name in repositories]) if repositories else None

    def candidates(
        self, topic: str, vector: np.ndarray, repositories: Sequence[str]
    ) -> tuple[Inquiry, list[Candidate]]:
        """What PostgreSQL hands to `ranking.rank`: the best by words, united with the best by vectors."""
        asked = query_terms(topic)
        scores, cosines = self.words.scores(asked), self.vectors @ vector
        chosen = best(scores, self.within(repositories), BY_WORDS, above=0.0)
        chosen = np.union1d(chosen, best(cosines, self.within(repositories), BY_VECTORS, above=-1.0))
        found = [self._candidate(int(row), float(scores[row]), float(cosines[row])) for row in chosen]
        return Inquiry.about(topic, {term: self.words.idf(term) for term in asked}), found

    def _candidate(self, row: int, score: float, cosine: float) -> Candidate:
        index, chunk = self.chunks[row]
        release = self.releases[index]
        return Candidate(
            key=row,
            repository=release.repository,
            tag=release.tag,
            bm25=score,
            cosine=cosine,
            kind=str(chunk.kind),
            text=chunk.text,
            headings=chunk.headings,
            published_at=release.published_at,
            prerelease=release.prerelease,
        )


def best(scores: np.ndarray, mask: np.ndarray | None, most: int, *, above: float) -> np.ndarray:
    """The rows with the highest scores, best first, of those in the mask that score above a bound."""
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    rows = np.argpartition(-scores, min(most, len(scores) - 1))[:most]
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    return rows[scores[rows] > above]


def embed(texts: Sequence[str], cache: Path | None, *, queries: bool = False) -> np.ndarray:
    """Vectors (n, 384) of texts with the default model; what `cache` (an .npz file) has is not computed again."""
    keys = [hashlib.sha256(f"{queries}\n{text}".encode()).hexdigest() for text in texts]
    known: dict[str, np.ndarray] = {}
    if cache is not None and cache.exists():
        with np.load(cache) as stored:
            known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        embedder = load_embedder(DEFAULT_MODEL, threads=1, device="cpu")
        computed = (
            np.stack([embedder.embed_query(text) for text in missing.values()])
            if queries
            else embedder.embed_passages(list(missing.values())).vectors
        )
        known |= dict(zip(missing, computed.astype(np.float16), strict=True))
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache, keys=np.array(list(known)), vectors=np.stack(list(known.values())))
    return np.stack([known[key] for key in keys]).astype(np.float32)


def answerable(corpus: Corpus, data: Path) -> list[Asked]:
    """The golden questions of kinds lookup and removed, paraphrases without shared words, and questions cut from items."""
    asked: list[Asked] = []
    for kind, file in (
        ("lookup", data / "golden" / "lookup.jsonl"),
        ("removed", data / "golden" / "removed.jsonl"),
        ("paraphrase", HERE / "paraphrases.jsonl"),
    ):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            asked.append(Asked(kind, record["repo"], record["question"], frozenset(record["expected_tags"])))
    return [understood(corpus, question) for question in [*asked, *_cut(corpus)]]


def understood(corpus: Corpus, asked: Asked) -> Asked:
    question = corpus.understanding.understand(asked.question)
    kinds = (str(question.kind_hint),) if question.kind_hint else ()
    topic = question.topic or question.text
    return replace(asked, topic=topic, repositories=question.filters.repositories, kinds=kinds)


def _cut(corpus: Corpus) -> list[Asked]:
    """Questions that keep some of an item's words: 60 of every repository, expected wherever the same item stands."""
    draw = random.Random(SEED)
    said: dict[tuple[str, str], set[str]] = defaultdict(set)
    items: dict[str, list[str]] = defaultdict(list)
    for index, chunk in corpus.chunks:
        release, words = corpus.releases[index], plain_text(chunk.text).casefold()
        said[release.repository, words].add(release.tag)
        if 6 <= len(words.split()) <= 60:
            items[release.repository].append(plain_text(chunk.text))
    asked: list[Asked] = []
    for repository, texts in sorted(items.items()):
        for text in draw.sample(texts, min(60, len(texts))):
            identifiers_kept = draw.choice([0.3, 0.9])
            kept = [
                word
                for word in text.split(". ")[0].split()[:18]
                if draw.random() < (identifiers_kept if re.search(r"\w[._/:-]\w|[a-z][A-Z]", word) else 0.6)
            ]
            if len(query_terms(" ".join(kept))) >= 3 and len(said[repository, text.casefold()]) <= 4:
                name = repository.split("/")[1]
                question = f"Which {name} release has {' '.join(kept)}?"
                asked.append(Asked("cut", repository, question, frozenset(said[repository, text.casefold()])))
    return asked


def unanswerable(corpus: Corpus, golden: Sequence[Asked]) -> list[Asked]:
    """Questions that nothing answers: `swapped` (a fact of another project), `twisted` (the rarest word of a true one
    exchanged for another project's), `invented` (a feature that nobody has)."""
    draw = random.Random(SEED)
    names = sorted(corpus.rows)
    asked: list[Asked] = []
    for question in golden:
        advisories = re.findall(r"cve-[\d-]+", question.topic.casefold())
        asked += [
            replace(question, kind="swapped", repository=name, expected=frozenset(), repositories=(name,))
            for name in draw.sample([name for name in names if name != question.repository], 2)
            if not any(advisory in corpus.text_of[name] for advisory in advisories)
        ]
        if twisted := _twisted(corpus, question, draw.sample(golden, 20)):
            asked.append(twisted)
    for place, topic in enumerate((HERE / "invented_topics.txt").read_text(encoding="utf-8").splitlines()):
        for turn in range(4):
            name = names[(4 * place + 7 * turn) % len(names)]
            question = f"Which {name.split('/')[1]} release added {topic}?"
            found = understood(corpus, Asked("invented", name, question, frozenset()))
            asked.append(replace(found, repositories=(name,)))
    return asked


def _twisted(corpus: Corpus, question: Asked, others: Sequence[Asked]) -> Asked | None:
    own = _rarest(corpus, question.topic)
    for other in others:
        foreign = _rarest(corpus, other.topic)
        if own and foreign and other.repository != question.repository:
            if (
                "CVE" in question.topic + other.topic
                or foreign.casefold() in corpus.text_of[question.repository]
            ):
                continue
            topic = question.topic.replace(own, foreign)
            return replace(question, kind="twisted", topic=topic, expected=frozenset())
    return None


def _rarest(corpus: Corpus, topic: str) -> str | None:
    words = [word for word in re.findall(r"[\w./-]{4,}", topic) if query_terms(word)]
    return max(words, key=lambda word: max(map(corpus.words.idf, query_terms(word))), default=None)
