"""A forge: a service that publishes the releases of repositories. What polling needs of any of them.

Belongs here: the words that polling and a forge's client share. Does not belong here: how one forge is asked (`github`,
`gitea`), and what becomes of the answers (`stages.polling`).

A *reader* asks with one credential. Requests of one credential go one after the other, over all processes: who holds its
budget (`store.credentials`) may ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from kb_platform.sources.budget import Budget


@dataclass(frozen=True)
class Identity:
    """A repository as its forge knows it: the number stays when the name changes."""

    external_id: int
    name: str


@dataclass(frozen=True)
class ListPage:
    """One page of a repository's list of releases: the bytes of each record, and where the next page is.

    `truncated`: the forge says that there is more which it does not list.
    """

    url: str
    etag: str | None
    next_url: str | None
    records: tuple[bytes, ...]
    truncated: bool = False


class Reader(Protocol):
    """Asks a forge with one credential. Every method may raise RateLimited and SourceRefused."""

    @property
    def credential(self) -> str:
        """The credential's name; no secret."""
        ...

    @property
    def answers(self) -> dict[str, int]:
        """How many requests were answered how (`200`, `304`, `429`, `unreachable` …) since the reader was made."""
        ...

    def identify(self, repository: str | int) -> Identity:
        """Look a repository up by name or number."""
        ...

    def first_url(self, identity: Identity) -> str:
        """Where the list of releases begins. Asks nothing."""
        ...

    def page(self, url: str, *, etag: str | None) -> ListPage | None:
        """A page of the list; None when it is as it was under that ETag."""
        ...

    def release(self, identity: Identity, release_id: int) -> bytes | None:
        """One release by its number; None when the forge says that it does not exist."""
        ...


class Forge(Protocol):
    """A service with the credentials that we have for it."""

    @property
    def name(self) -> str:
        """`github`, or the address of the API: what `kb.repository.forge` says."""
        ...

    @property
    def page_size(self) -> int:
        """Releases on a full page."""
        ...

    def credentials(self) -> Sequence[str]:
        """The names of the credentials to ask with, the preferred ones first; never empty."""
        ...

    def reader(self, credential: str, budget: Budget) -> AbstractContextManager[Reader]:
        """A reader for as long as the context lasts; it keeps `budget` up to date with every answer."""
        ...
