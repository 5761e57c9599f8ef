"""One repository polled: its list of releases walked to the end, and what it shows recorded in the log.

A walk is *complete* when a pass over all pages met no change: only then is every release either listed or missed, and
only then is the repository verified. A page and its releases are written in one transaction, so a walk that is broken off
(a limit, a kill) goes on later where it stopped: the pages it has seen answer "not modified".

Does not belong here: when a repository is polled, and with which credential (`polling_lane`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from kb_platform.clock import Clock
from kb_platform.errors import BadRecord, SourceRefused
from kb_platform.settings import Settings
from kb_platform.sources.forge import Forge, Identity, ListPage, Reader
from kb_platform.sources.github_json import parse_state, repository_in
from kb_platform.sources.release import Observed, Refused
from kb_platform.stages.importing import Imported, record
from kb_platform.store import pages, polls, release_log, repositories
from kb_platform.store.database import Connection, Database
from kb_platform.store.pages import StoredPage
from kb_platform.store.watch_list import Watch

# A list that changes while it is walked is walked again; one that still does is left for the next poll.
MOST_PASSES = 4
# A list of many pages is read in turns, or one repository of 10,000 releases would hold up thousands of others.
PAGES_A_TURN = 25
# Each missed release costs a request; of a mass deletion the next polls take the rest.
MOST_ASKED = 100
# The forge is asked for name and number again so often, and for releases that it has but does not list.
LOOKED_UP_AGAIN = timedelta(days=1)
ABSENCES_THAT_DELETE = 2


class TurnOver(Exception):
    """The repository has had its share of requests; the rest of its list comes with its next turn."""


@dataclass
class Polled:
    """What a poll came to. `imported` counts what is new in the log; `verified_at`: the list was complete then."""

    repository: str
    outcome: polls.Outcome = "unchanged"
    imported: Imported = field(default_factory=Imported)
    pages: int = 0
    not_modified: int = 0
    truncated: bool = False
    verified_at: datetime | None = None

    @property
    def changed(self) -> bool:
        """Whether the log has something that it had not."""
        return self.imported.appended > 0


@dataclass
class _Pass:
    """One walk from the first page to the last."""

    listed: set[int] = field(default_factory=set[int])
    changes: int = 0
    pages: int = 0
    truncated: bool = False


class Poll:
    """A poll of one repository with one reader. Use once."""

    def __init__(
        self,
        database: Database,
        forge: Forge,
        reader: Reader,
        watch: Watch,
        settings: Settings,
        clock: Clock,
        *,
        pages_a_turn: int = PAGES_A_TURN,
    ) -> None:
        self._pages_a_turn = pages_a_turn
        self._database = database
        self._reader = reader
        self._watch = watch
        self._settings = settings
        self._clock = clock
        self._page_size = forge.page_size
        self._origin = f"{forge.name}:{reader.credential}"
        self._fetched = 0
        self._looked_up = False
        self._waiting: list[pages.Absence] = []
        self.result = Polled(watch.name)

    def run(self) -> Polled:
        """Walk, record, ask for what is missed.

        Raises RateLimited, SourceRefused and TurnOver; what was recorded until then stays, and `result` counts it.
        """
        identity = self._identity()
        complete = self._complete_walk(identity)
        if complete is None:
            self.result.outcome = "partial"
            return self.result
        walk, began = complete
        all_asked = self._missed(identity, walk)
        self.result.truncated = walk.truncated
        self.result.outcome = "changed" if self.result.changed else "unchanged"
        if all_asked:
            self.result.verified_at = began
        else:
            self.result.outcome = "partial"
        return self.result

    # --- who it is -------------------------------------------------------------------------------------

    def _identity(self) -> Identity:
        watch, now = self._watch, self._clock.now()
        if watch.external_id is not None and watch.identified_at is not None:
            if now - watch.identified_at < LOOKED_UP_AGAIN:
                return Identity(watch.external_id, watch.name)
            return self._look_up(watch.external_id)
        return self._look_up(watch.external_id or watch.name)

    def _look_up(self, repository: str | int) -> Identity:
        """Ask for number and present name, and keep both."""
        identity = self._reader.identify(repository)
        self._looked_up = True
        watch, now = self._watch, self._clock.now()
        with self._database.transaction() as connection:
            twin = repositories.identify(connection, watch.repository_id, identity.external_id)
            if twin is not None:
                raise SourceRefused(
                    "duplicate",
                    f"{watch.name} is the repository that is watched as {twin}",
                    hint=f"`kb watch remove {watch.name}`",
                )
            if identity.name != watch.name:
                repositories.rename_repository(connection, watch.repository_id, identity.name, now)
            polls.identified(connection, watch.repository_id, now)
        self.result.repository = identity.name
        return identity

    # --- walking ---------------------------------------------------------------------------------------

    def _complete_walk(self, identity: Identity) -> tuple[_Pass, datetime] | None:
        """The last pass, in which nothing changed, and when it began; None when the list would not hold still."""
        for _ in range(MOST_PASSES):
            began = self._clock.now()
            walk = self._walk(identity)
            # A page that is alone is a state of the whole list by itself.
            if walk.changes == 0 or walk.pages == 1:
                return walk, began
        return None

    def _walk(self, identity: Identity) -> _Pass:
        walk = _Pass()
        with self._database.snapshot() as connection:
            known = pages.pages(connection, self._watch.repository_id, self._reader.credential)
            self._waiting = pages.absences(connection, self._watch.repository_id)
        url: str | None = self._reader.first_url(identity)
        seen: set[str] = set()
        while url is not None:
            if url in seen:
                raise SourceRefused("garbled", f"the pages of {identity.name} lead in a circle to {url}")
            seen.add(url)
            page = self._page(identity, walk, url, known[walk.pages] if walk.pages < len(known) else None)
            if page is None:
                walk.truncated = True
                break
            walk.listed.update(page.release_ids)
            walk.pages += 1
            url = page.next_url
        if walk.pages < len(known):
            walk.changes += 1
            with self._database.transaction() as connection:
                pages.cut_pages(connection, self._watch.repository_id, self._reader.credential, walk.pages)
        return walk

    def _page(self, identity: Identity, walk: _Pass, url: str, known: StoredPage | None) -> StoredPage | None:
        """One page as it is now, its releases recorded; None when the forge lists no further."""
        if known is not None and known.url != url:
            known = None
        if self._fetched >= self._pages_a_turn:
            raise TurnOver
        got = self._reader.page(url, etag=self._etag(known))
        self.result.pages += 1
        if got is None:
            assert known is not None  # noqa: S101 - only its ETag can be answered with "not modified"
            self.result.not_modified += 1
            return known
        if got.truncated and not got.records:
            return None
        # Without an ETag there is no going on later: such a list is read in one go.
        self._fetched += got.etag is not None
        page = self._record(identity, walk.pages, got)
        walk.truncated = walk.truncated or got.truncated
        if known is None or known != page:
            walk.changes += 1
        return page

    def _etag(self, known: StoredPage | None) -> str | None:
        """A full last page is asked for anew: "not modified" does not say that another page follows it now."""
        if known is None or (known.next_url is None and known.records >= self._page_size):
            return None
        return known.etag

    # --- recording -------------------------------------------------------------------------------------

    def _record(self, identity: Identity, ordinal: int, got: ListPage) -> StoredPage:
        name = self._name(identity, got.records)
        observed, refused, ids = self._read(got.records, name)
        page = StoredPage(got.url, got.etag, got.next_url, len(got.records), tuple(ids))
        now = self._clock.now()
        with self._database.transaction() as connection:
            self._append(connection, observed, refused, now)
            pages.save_page(
                connection, self._watch.repository_id, self._reader.credential, ordinal, page, now
            )
        return page

    def _append(
        self, connection: Connection, observed: Sequence[Observed], refused: Sequence[Refused], at: datetime
    ) -> None:
        # The log is written by name, and another lane may have given this one's name away a moment ago.
        name = polls.require_watched(connection, self._watch.repository_id)
        observed = [replace(item, repository=name) for item in observed]
        refused = [replace(item, repository=name) for item in refused]
        self.result.imported.add(record(connection, observed, refused, at=at))
        if observed:
            superseded = release_log.superseded(connection, self._watch.repository_id, observed)
            self.result.imported.add(record(connection, superseded, [], at=at))

    def _name(self, identity: Identity, records: Sequence[bytes]) -> str:
        """The repository's present name: where its releases say another one, it is asked for."""
        said = _repository_of(records[0]) if records else None
        if said is None or said.lower() == self.result.repository.lower() or self._looked_up:
            return self.result.repository
        return self._look_up(identity.external_id).name

    def _read(self, records: Sequence[bytes], name: str) -> tuple[list[Observed], list[Refused], list[int]]:
        observed: list[Observed] = []
        refused: list[Refused] = []
        ids: list[int] = []
        for raw in records:
            item = self._parse(raw, name)
            if isinstance(item, Observed):
                observed.append(item)
                ids.append(item.release.release_id)
            else:
                refused.append(item)
                ids += _number_of(raw)
        return observed, refused, ids

    def _parse(self, raw: bytes, name: str) -> Observed | Refused:
        try:
            if len(raw) > self._settings.max_record_bytes:
                raise BadRecord("record-too-long", f"a record of {len(raw):,} bytes, over the limit")
            state = parse_state(raw, repository=name, max_body_bytes=self._settings.max_body_bytes)
        except BadRecord as error:
            kept = raw[: self._settings.max_record_bytes]
            return Refused(error.reason, str(error), kept, self._origin, name, len(raw))
        return Observed(name, state.release, raw, self._origin, revised_at=state.revised_at)

    # --- what is missed --------------------------------------------------------------------------------

    def _missed(self, identity: Identity, walk: _Pass) -> bool:
        """Ask for each release that the log has and the list has not; returns whether all could be asked.

        A release is gone when the forge has said so of itself in two polls. One that is there after all (beyond the
        list's cap) is asked for again after a day.
        """
        repository_id, now = self._watch.repository_id, self._clock.now()
        if self.result.pages == self.result.not_modified and not self._waiting and not self._looked_up:
            return True
        with self._database.snapshot() as connection:
            missing = pages.listable_releases(connection, repository_id, self._origin) - walk.listed
        if not missing and not self._waiting:
            return True
        with self._database.transaction() as connection:
            pages.miss(connection, repository_id, missing, now)
            waiting = pages.absences(connection, repository_id)
        asking = [
            one for one in waiting
            if one.absences or one.asked_at is None or now - one.asked_at >= LOOKED_UP_AGAIN
        ]  # fmt: skip
        for one in asking[:MOST_ASKED]:
            self._ask(identity, one, now)
        return len(asking) <= MOST_ASKED

    def _ask(self, identity: Identity, missed: pages.Absence, at: datetime) -> None:
        raw = self._reader.release(identity, missed.release_id)
        repository_id = self._watch.repository_id
        with self._database.transaction() as connection:
            pages.asked(connection, repository_id, missed.release_id, is_there=raw is not None, at=at)
            if raw is not None:
                item = self._parse(raw, self.result.repository)
                if isinstance(item, Observed) and item.release.release_id != missed.release_id:
                    raise SourceRefused(
                        "garbled",
                        f"asked for release {missed.release_id}, was given {item.release.release_id}",
                    )
                observed, refused = ([item], []) if isinstance(item, Observed) else ([], [item])
                self._append(connection, observed, refused, at)
            elif missed.absences + 1 >= ABSENCES_THAT_DELETE:
                gone = release_log.as_deleted(connection, repository_id, missed.release_id, self._origin)
                self._append(connection, gone, [], at)


def _repository_of(raw: bytes) -> str | None:
    """The repository that a record's own addresses name."""
    try:
        return repository_in(json.loads(raw))
    except (ValueError, RecursionError):
        return None


def _number_of(raw: bytes) -> list[int]:
    """The number of a record that is otherwise no release, so that its release is not taken for missing."""
    try:
        document: object = json.loads(raw)
    except (ValueError, RecursionError):
        return []
    number: object = document.get("id") if isinstance(document, dict) else None  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
    return [number] if isinstance(number, int) and 0 < number < 2**63 else []
