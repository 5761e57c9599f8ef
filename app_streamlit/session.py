"""What the pages ask of the knowledge base, and the one object of a process that answers it.

Belongs here: opening the database and the searcher once, what the pages read of them, as plain values. Does not belong here:
anything that is shown. Importing this module imports no model and opens nothing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

import streamlit as st

from kb_platform import sample_corpus
from kb_platform.errors import KbError, NotKnown
from kb_platform.home import embedder, open_database
from kb_platform.settings import Settings, load_settings
from kb_platform.store import embedded, index_versions, release_log, status_summary
from kb_platform.store.repositories import find_repository, repositories, verified_at
from kb_platform.store.status_summary import Status, WatchedPage

if TYPE_CHECKING:
    from kb_platform.answering.answer import Answer
    from kb_platform.answering.citation import Citation
    from kb_platform.retrieval.filters import Filters
    from kb_platform.retrieval.searcher import Searcher
    from kb_platform.store.database import Database

_log: Final = logging.getLogger(__name__)

# Every visitor's every click asks for it, and it counts releases.
_FRESHNESS_KEPT_S: Final = 15.0
# Every open status page asks for it four times a minute.
_STATUS_KEPT_S: Final = 3.0
_MOST_EXAMPLES: Final = 3
_OPENING_TAKES_S: Final = 30.0


@dataclass(frozen=True)
class Freshness:
    """How much the served index knows and how fresh that is. `verified_at`: by repository, None for never."""

    index_version: int
    model: str
    releases: int
    verified_at: Mapping[str, datetime | None]
    behind: tuple[str, ...]
    """Repositories whose log has observations that the index does not reflect yet."""
    stale_after: timedelta


@dataclass(frozen=True)
class Notes:
    """The notes that a citation is a span of. `current`: whether they still read like that."""

    body: str
    observed_at: datetime
    verified_at: datetime | None
    current: bool


class Knowledge(Protocol):
    """What a page needs of the knowledge base. Every method may raise KbError."""

    def answer(self, question: str, filters: Filters | None) -> Answer:
        """The answer to a question; `filters` replace those of its words."""
        ...

    def freshness(self) -> Freshness | None:
        """How fresh the served index is; None while nothing is indexed."""
        ...

    def notes(self, citation: Citation) -> Notes | None:
        """The notes that hold a citation at its span, now or before; None when the log has none."""
        ...

    def examples(self) -> list[str]:
        """Questions that this knowledge base has something to say about."""
        ...

    def status(self) -> Status:
        """How the platform is doing: alerts, counts, credentials, requests, the index, the quarantine."""
        ...

    def watched(self, search: str, *, offset: int, limit: int) -> WatchedPage:
        """Watched repositories whose name contains `search`, those that fail first."""
        ...


class KnowledgeBase:
    """The knowledge base that the settings name. Safe to share between threads."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        searcher: Searcher,
        *,
        leave: Callable[[], None] | None = None,
    ) -> None:
        """`leave` gives up the hold on an embedded server, when this one is closed."""
        # Not at the top: `pages` is read before the first paint, and this needs numpy and the parsers of questions.
        from kb_platform.answering.answer import Answerer

        self._database = database
        self._searcher = searcher
        self._answerer = Answerer(searcher)
        self._stale_after = timedelta(hours=settings.stale_after_hours)
        self._freshness: tuple[float, Freshness | None] | None = None
        self._status: tuple[float, Status] | None = None
        self._leave = leave

    def close(self) -> None:
        """Close the connections and give up the hold on an embedded server; the last to do so stops it."""
        self._database.close()
        if self._leave is not None:
            self._leave()

    def answer(self, question: str, filters: Filters | None) -> Answer:
        """See Knowledge."""
        return self._answerer.answer(question, filters=filters)

    def freshness(self) -> Freshness | None:
        """See Knowledge; at most `_FRESHNESS_KEPT_S` old."""
        now = time.monotonic()
        if (
            self._freshness is None
            or now - self._freshness[0] > _FRESHNESS_KEPT_S
            or self._freshness[1] is None
        ):
            self._freshness = (now, self._read_freshness())
        return self._freshness[1]

    def notes(self, citation: Citation) -> Notes | None:
        """See Knowledge."""
        start, end = citation.span
        with self._database.snapshot() as connection:
            try:
                repository_id, name = find_repository(connection, citation.repository)
                found = release_log.release_by_tag(connection, repository_id, citation.tag)
            except NotKnown:
                return None
            verified = verified_at(connection, [name]).get(name)
            if found.release.body[start:end] == citation.text:
                return Notes(found.release.body, found.observed_at, verified, current=True)
            # The index may be a little behind the log, and an answer that is still open may be long behind it.
            earlier = release_log.history(connection, repository_id, found.release.release_id)
        for stored in reversed(earlier):
            if stored.release.body[start:end] == citation.text:
                return Notes(stored.release.body, stored.observed_at, verified, current=False)
        return None

    def examples(self) -> list[str]:
        """See Knowledge: the sample corpus' own where it is loaded, else the latest release of some repositories."""
        fresh = self.freshness()
        known = {name.lower(): name for name in fresh.verified_at} if fresh else {}
        prepared = [question for repository, question in _sample_questions() if repository.lower() in known]
        # Of one that was never verified, such as a mistyped name on the watch list, there may be no release at all.
        likely = sorted(known.values(), key=lambda name: fresh is None or fresh.verified_at[name] is None)
        made = [f"What is the latest release of {name}?" for name in likely]
        return (prepared or made)[:_MOST_EXAMPLES]

    def status(self) -> Status:
        """See Knowledge; at most `_STATUS_KEPT_S` old."""
        now = time.monotonic()
        kept = self._status
        if kept is None or now - kept[0] > _STATUS_KEPT_S:
            with self._database.snapshot() as connection:
                kept = (now, status_summary.status(connection, datetime.now(UTC), self._stale_after))
            self._status = kept
        return kept[1]

    def watched(self, search: str, *, offset: int, limit: int) -> WatchedPage:
        """See Knowledge."""
        with self._database.snapshot() as connection:
            return status_summary.watched_page(connection, search, offset=offset, limit=limit)

    def warm_up(self) -> None:
        """Load the model of the served index, so that the first question need not wait for it."""
        try:
            self._searcher.search("warm up", k=1)
        except KbError as error:
            _log.info("not warmed up: %s", error)

    def _read_freshness(self) -> Freshness | None:
        with self._database.snapshot() as connection:
            version = index_versions.active(connection)
        if version is None:
            return None
        found = repositories(self._database)
        return Freshness(
            index_version=version.version,
            model=version.model,
            releases=version.releases,
            verified_at={repository.name: repository.verified_at for repository in found},
            behind=tuple(repository.name for repository in found if repository.pending),
            stale_after=self._stale_after,
        )


@st.cache_resource(show_spinner=False, on_release=KnowledgeBase.close)
def knowledge_base() -> KnowledgeBase:
    """The knowledge base of this process, opened when first asked for. Raises SettingsError, DatabaseUnavailable, MigrationError.

    An error is not kept: the next visit tries again. `knowledge_base.clear()` closes it.
    """
    from kb_platform.retrieval.searcher import Searcher

    settings = load_settings()
    database = open_database(settings)
    searcher = Searcher(
        database, lambda model: embedder(settings, model), exact_scan_rows=settings.exact_scan_rows
    )
    leave = None if settings.database_url else embedded.running(settings.home_folder).leave
    return KnowledgeBase(settings, database, searcher, leave=leave)


@asynccontextmanager
async def open_while_serving(_app: object) -> AsyncGenerator[None]:
    """Open the knowledge base when the server starts and close it when it stops.

    A server that is told to end by a signal ends without its exit handlers, so the embedded PostgreSQL is given up here.
    """
    opening = threading.Thread(target=_open_early, name="open-early", daemon=True)
    opening.start()
    yield
    # Closed while it is being opened, it would stay open.
    opening.join(_OPENING_TAKES_S)
    knowledge_base.clear()


def _open_early() -> None:
    """So that the first visitor waits neither for the database nor for the model."""
    try:
        knowledge_base().warm_up()
    except KbError as error:
        # Visitors are shown it, with what to do.
        _log.warning("the knowledge base cannot be opened: %s", error)


def _sample_questions() -> list[tuple[str, str]]:
    """(repository, question) of the demonstration's questions."""
    lines = sample_corpus.questions_path().read_text(encoding="utf-8").splitlines()
    questions: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [(question["repo"], question["question"]) for question in questions if question.get("demo", False)]
