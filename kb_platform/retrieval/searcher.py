"""A question → the passages that answer it best: understanding, candidates, order, in one snapshot of the database.

`Searcher` is what the command line, the app and answering call. What a question means is `question`, what a candidate is
worth is `ranking`, how rows are found is `store.search`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from kb_platform.embedding.embedder import Embedder
from kb_platform.embedding.model import EmbeddingModel
from kb_platform.errors import EmbeddingError, NotKnown
from kb_platform.retrieval import ranking
from kb_platform.retrieval.filters import Filters
from kb_platform.retrieval.question import KnownRepository, Question, Understanding
from kb_platform.retrieval.ranking import Candidate, Inquiry
from kb_platform.store import embeddings, repositories, search
from kb_platform.store.database import Connection, Database
from kb_platform.store.index_versions import IndexVersion
from kb_platform.store.search import Conditions, Row
from kb_platform.text.kinds import Kind
from kb_platform.text.words import idf, query_terms, term_id

GRAVITY = {str(kind): place for place, kind in enumerate(Kind)}
# One release may fill this many of the first places; the rest of it follows behind the other releases.
MOST_OF_ONE_RELEASE = 2


@dataclass(frozen=True)
class Passage:
    """A chunk that was found: where it stands, its text, its score."""

    repository: str
    tag: str
    kind: str
    text: str
    span: tuple[int, int]
    url: str
    published_at: datetime | None
    score: float
    headings: tuple[str, ...] = ()
    sequence: int = 0
    chunk_id: str = ""
    prerelease: bool = False
    relevance: float = 1.0
    """How well it answers, in [0, 1], as the bar for refusals reads it."""

    def as_json(self) -> dict[str, Any]:
        """The fields that scripts rely on."""
        return {
            "repository": self.repository,
            "tag": self.tag,
            "kind": self.kind,
            "text": self.text,
            "span": list(self.span),
            "url": self.url,
            "published_at": self.published_at,
            "score": round(self.score, 6),
        }


@dataclass(frozen=True)
class Found:
    """What a search found. `answerable`: something passed the bar under which nothing counts as an answer."""

    question: Question
    filters: Filters
    passages: tuple[Passage, ...]
    index_version: int
    answerable: bool
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document of `kb search --json`."""
        return {
            "question": self.question.text,
            "filters": self.filters.as_json(),
            "index_version": self.index_version,
            "results": [passage.as_json() for passage in self.passages],
            "notes": list(self.notes),
        }


@dataclass
class _Known:
    """The repositories as of an observation, with the understanding built from them."""

    stamp: tuple[int, date]
    tags: dict[str, list[str]]
    understanding: Understanding


@dataclass
class Searcher:
    """Searches the served index. Safe to share between threads; keeps one embedder and the repositories in memory."""

    database: Database
    load: Callable[[EmbeddingModel], Embedder]
    exact_scan_rows: int = 50_000
    today: Callable[[], date] = field(default=lambda: datetime.now(UTC).date())

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._embedders: dict[int, Embedder] = {}

    def search(self, text: str, *, k: int = 10, filters: Filters | None = None) -> Found:
        """The k best passages for a question; fewer only when fewer rows meet the filters.

        `filters`: used instead of those that the question's words ask for. Raises NotKnown while nothing is indexed.
        """
        with self.database.snapshot() as connection:
            scope = search.open_scope(connection)
            if scope is None:
                raise NotKnown("nothing is indexed yet", hint="`kb import PATH` imports and indexes releases")
            known = self._repositories(connection)
            question = known.understanding.understand(text)
            chosen = question.filters if filters is None else filters
            return self._ranked(connection, scope.version, known, question, chosen, k)

    def understand(self, text: str) -> Question:
        """What a question asks for, without searching."""
        with self.database.snapshot() as connection:
            return self._repositories(connection).understanding.understand(text)

    def _ranked(
        self,
        connection: Connection,
        version: IndexVersion,
        known: _Known,
        question: Question,
        filters: Filters,
        k: int,
    ) -> Found:
        # A question that is all filters ("what broke between A and B") still has words to choose candidates by, but no
        # topic that a passage could miss.
        words_of = question.topic or question.text
        terms = query_terms(words_of)
        ids = {term: term_id(term) for term in terms}
        inquiry_terms = Inquiry.terms_of(question.topic)
        frequencies = search.document_frequencies(
            connection, version.version, sorted({*ids.values(), *(term_id(term) for term in inquiry_terms)})
        )
        worth = {
            term: idf(frequencies.get(term_id(term), 0), version.chunks) for term in {*terms, *inquiry_terms}
        }
        words: dict[int, float] = {}
        for term, weight in terms.items():
            words[ids[term]] = words.get(ids[term], 0.0) + weight * worth[term]
        notes = list(question.notes)
        vector = self._vector(connection, version, words_of, notes)
        rows = search.candidates(
            connection,
            version,
            self._conditions(known, filters),
            words=words,
            vector=vector,
            most_vectors=max(k, 100),
            exact_scan_rows=self.exact_scan_rows,
        )
        kinds = [question.kind_hint] if question.kind_hint else [str(kind) for kind in filters.kinds]
        inquiry = Inquiry.about(question.topic, worth, kinds)
        rows.sort(key=_reading_order)
        ranked = ranking.rank(inquiry, [_candidate(row, scored=vector is not None) for row in rows])
        passages = [_passage(found) for found in ranked]
        return Found(
            question=question,
            filters=filters,
            passages=tuple(_spread(passages)[:k]),
            index_version=version.version,
            answerable=ranking.passes(inquiry, ranked) and not _asks_elsewhere(question, ranked[:3]),
            notes=tuple(notes),
        )

    def _repositories(self, connection: Connection) -> _Known:
        stamp = (repositories.state_of_names(connection), self.today())
        with self._lock:
            if self._known is None or self._known.stamp != stamp:
                tags = repositories.tags_by_repository(connection)
                known = [KnownRepository(name, tuple(found)) for name, found in tags.items()]
                self._known = _Known(stamp, tags, Understanding(known, stamp[1]))
            return self._known

    def _vector(
        self, connection: Connection, version: IndexVersion, topic: str, notes: list[str]
    ) -> search.Vector | None:
        try:
            return self._embedder(connection, version).embed_query(topic)
        except EmbeddingError as error:
            # Words alone still find most of it (0.752 against 0.438 with equal weights); a reader gets that and is told.
            notes.append(f"searched by words alone: {error}")
            return None

    def _embedder(self, connection: Connection, version: IndexVersion) -> Embedder:
        with self._lock:
            if version.model_id not in self._embedders:
                model = embeddings.model(connection, version.model_id)
                self._embedders[version.model_id] = self.load(model)
            return self._embedders[version.model_id]

    def _conditions(self, known: _Known, filters: Filters) -> Conditions:
        return Conditions(
            repositories=filters.repositories,
            tags=wanted_tags(known.tags, filters),
            kinds=tuple(str(kind) for kind in filters.kinds),
            published_from=filters.published_from,
            published_before=filters.published_before,
            prerelease=filters.prerelease,
        )


def wanted_tags(tags: dict[str, list[str]], filters: Filters) -> tuple[str, ...] | None:
    """The tags that a version range and a list of versions leave; None when neither is asked for."""
    versions = filters.version_range()
    if versions is None and not filters.versions:
        return None
    wanted = {name.lower() for name in filters.repositories}
    inside = (tag for name, found in tags.items() if not wanted or name.lower() in wanted for tag in found)
    return tuple(
        sorted(
            {
                tag
                for tag in inside
                if (versions is None or versions.contains(tag))
                and (not filters.versions or tag in filters.versions)
            }
        )
    )


def _candidate(row: Row, *, scored: bool) -> Candidate:
    return Candidate(
        key=row,
        repository=row.repository,
        tag=row.tag,
        bm25=row.bm25,
        cosine=row.cosine if scored else None,
        kind=row.kind,
        text=row.text,
        headings=tuple(row.headings),
        published_at=row.published_at,
        prerelease=row.prerelease,
    )


def _passage(found: ranking.Ranked) -> Passage:
    row = found.candidate.key
    assert isinstance(row, Row)  # noqa: S101 - put there by _candidate
    return Passage(
        repository=row.repository,
        tag=row.tag,
        kind=row.kind,
        text=row.text,
        span=(row.span_start, row.span_end),
        url=row.url,
        published_at=row.published_at,
        score=found.score,
        relevance=found.relevance,
        headings=tuple(row.headings),
        sequence=row.sequence,
        chunk_id=row.chunk_id,
        prerelease=row.prerelease,
    )


def _asks_elsewhere(question: Question, ranked: Sequence[ranking.Ranked]) -> bool:
    """Whether a question is about a project that is not here: it names one, and what was found never speaks of that name.

    "The Cloudflare adapter" is no repository, but a package of one, and its tags say so.
    """
    if not question.unknown_projects or question.filters.repositories:
        return False
    said = [
        " ".join((c.repository, c.tag, *c.headings, c.text)).casefold()
        for c in (found.candidate for found in ranked)
    ]
    names = [name.casefold() for project in question.unknown_projects for name in project.split()]
    return not any(name in text for name in names for text in said)


def _reading_order(row: Row) -> tuple[object, ...]:
    """The gravest first, then by version; the order of rows that nothing in the question tells apart."""
    return (GRAVITY[row.kind], row.repository, row.version_key or "", row.sequence, row.ordinal)


def _spread(passages: Sequence[Passage]) -> list[Passage]:
    """Best first, but no release fills more than its share of the first places."""
    seen: dict[tuple[str, str], int] = {}
    first: list[Passage] = []
    behind: list[Passage] = []
    for passage in passages:
        release = (passage.repository, passage.tag)
        seen[release] = seen.get(release, 0) + 1
        (first if seen[release] <= MOST_OF_ONE_RELEASE else behind).append(passage)
    return first + behind
