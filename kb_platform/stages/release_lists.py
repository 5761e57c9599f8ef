"""Whole lists of releases, read from GitHub as polling reads them, for whoever wants the records themselves.

Every request is made within its credential's budget, under the same lock as those of polling; between two pages the
credential is free, so that a slow taker holds up nobody. Nothing is recorded but the budget and the counts of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeVar

from kb_platform.clock import Clock
from kb_platform.errors import RateLimited, SourceError, SourceRefused
from kb_platform.sources.files import Record
from kb_platform.sources.forge import Forge, Identity, ListPage, Reader
from kb_platform.stages.polling_lane import REFUSED_CREDENTIAL_WAITS
from kb_platform.store import watch_list
from kb_platform.store.credentials import Ledger, tally
from kb_platform.store.database import Database

GITHUB = "github"

_T = TypeVar("_T")


class Wanted(NamedTuple):
    """A repository: its number where it is known, which finds it under any name."""

    name: str
    number: int | None = None


class Listed(NamedTuple):
    """One record of a list, and whose it is."""

    record: Record
    identity: Identity


class NotListed(NamedTuple):
    """A repository whose list could not be read (to its end), and why."""

    repository: str
    reason: str
    detail: str


def watched_at_github(database: Database) -> tuple[list[Wanted], int]:
    """What is watched at GitHub, and how many repositories are watched elsewhere."""
    with database.snapshot() as connection:
        watched = watch_list.watched(connection)
    here = [Wanted(watch.name, watch.external_id) for watch in watched if watch.source == GITHUB]
    return here, len(watched) - len(here)


class ReleaseLists:
    """Reads lists with the credentials of a forge. Close it: it holds locks over a connection of its own."""

    def __init__(
        self, database: Database, forge: Forge, clock: Clock, *, longest_wait_s: float, max_record_bytes: int
    ) -> None:
        """`longest_wait_s`: for a limit of the forge to end, each time."""
        self._database = database
        self._forge = forge
        self._clock = clock
        self._longest_wait = timedelta(seconds=longest_wait_s)
        self._max_record_bytes = max_record_bytes
        self._ledger = Ledger(database)
        self._answers: dict[str, dict[str, int]] = {}

    def read(
        self, repositories: Sequence[Wanted], advance: Callable[[int], object] = lambda _repositories: None
    ) -> Generator[Listed | NotListed]:
        """The records of one repository after the other; what cannot be read is told, and the rest goes on.

        `advance` is called with 1 for each repository that is done. Raises StoreError, SettingsError.
        """
        for wanted in repositories:
            try:
                yield from self._one(wanted)
            except SourceRefused as error:
                yield NotListed(wanted.name, error.reason, _said(error))
            except RateLimited as error:
                yield NotListed(wanted.name, "rate-limited", _said(error))
            advance(1)

    def close(self) -> None:
        """Give up all locks, and write down what was counted."""
        try:
            with self._database.transaction() as connection:
                for credential, answers in self._answers.items():
                    tally(connection, credential, answers, self._clock.now())
        finally:
            self._ledger.close()

    def _one(self, wanted: Wanted) -> Generator[Listed | NotListed]:
        identity = self._ask(lambda reader: reader.identify(wanted.number or wanted.name))
        url: str | None = self._ask(lambda reader: reader.first_url(identity))
        seen: set[str] = set()
        index = 0
        while url is not None:
            if url in seen:
                raise SourceRefused("garbled", f"the pages of {identity.name} lead in a circle to {url}")
            seen.add(url)
            page = self._page(url)
            for raw in page.records:
                kept = raw[: self._max_record_bytes]
                yield Listed(Record(kept, f"{GITHUB}:{identity.name}[{index}]", len(raw)), identity)
                index += 1
            if page.truncated:
                yield NotListed(identity.name, "truncated", "GitHub lists no more releases than these")
                return
            url = page.next_url

    def _page(self, url: str) -> ListPage:
        page = self._ask(lambda reader: reader.page(url, etag=None))
        if page is None:
            raise SourceRefused("garbled", f"{url} is answered with `not modified`, which was not asked for")
        return page

    def _ask(self, ask: Callable[[Reader], _T]) -> _T:
        """With whichever credential may ask and is told. Raises RateLimited, SourceRefused."""
        while True:
            limits: list[RateLimited] = []
            refused: SourceRefused | None = None
            for credential in self._forge.credentials():
                try:
                    return self._ask_with(credential, ask)
                except RateLimited as limit:
                    limits.append(limit)
                except SourceRefused as error:
                    if not error.of_credential:
                        raise
                    refused = error
            if refused is not None and not limits:
                raise refused
            first = min(limits, key=lambda limit: limit.until)
            wait = first.until - self._clock.now()
            if wait > self._longest_wait:
                raise first
            self._clock.sleep(max(wait.total_seconds(), 0.0))

    def _ask_with(self, credential: str, ask: Callable[[Reader], _T]) -> _T:
        with self._ledger.budget(credential) as budget, self._forge.reader(credential, budget) as reader:
            try:
                return ask(reader)
            except SourceRefused as error:
                if error.reason == "unauthorized":
                    budget.block(self._clock.now() + REFUSED_CREDENTIAL_WAITS, f"unauthorized: {error}")
                raise
            finally:
                counts = self._answers.setdefault(credential, {})
                for answer, count in reader.answers.items():
                    counts[answer] = counts.get(answer, 0) + count


def _said(error: SourceError) -> str:
    return f"{error} → {error.hint}" if error.hint else str(error)
