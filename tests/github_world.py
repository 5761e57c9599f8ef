"""The repositories of the stand-in and all that can happen to them.

Belongs here: what is true, and how it changes. Does not belong here: what a request is told about it
(`github_stand_in`), and what happens when (`github_weather`).
"""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from kb_platform.clock import Clock
from tests.github_answers import as_json
from tests.github_releases import Inventor, Release, Site, account, node_id, timestamp

EDITABLE = {
    "tag",
    "name",
    "body",
    "prerelease",
    "draft",
    "created_at",
    "author",
    "target_commitish",
    "downloads",
}


@dataclass
class Repository:
    """A repository. `withdrawn`: deleted releases that may reappear. `private_to`: None where all may read it."""

    number: int
    name: str
    created_at: datetime
    inventor: Inventor
    releases: dict[int, Release]
    private_to: set[str] | None = None
    withdrawn: dict[int, Release] = field(default_factory=dict)
    pushers: set[str] = field(default_factory=set)
    blocked_for: str | None = None
    removed: bool = False
    drifts: list[tuple[int, Callable[[], object]]] = field(default_factory=list)
    _lists: dict[bool, list[Release]] = field(default_factory=dict)
    _digests: dict[tuple[bool, int, int], bytes] = field(default_factory=dict)

    def changed(self) -> None:
        """Forget what was computed from the releases."""
        self._lists.clear()
        self._digests.clear()

    def listed(self, *, drafts: bool) -> list[Release]:
        """The releases as the list has them: by `created_at`, newest first, then by number.

        GitHub promises no order; this is the one it is seen to have.
        """
        if drafts not in self._lists:
            seen = (item for item in self.releases.values() if not item.hidden and (drafts or not item.draft))
            self._lists[drafts] = sorted(seen, key=lambda item: (item.created_at, item.number), reverse=True)
        return self._lists[drafts]

    def page(self, site: Site, *, drafts: bool, start: int, stop: int) -> bytes:
        """These releases of the list as JSON."""
        documents = (item.document(self.name, site) for item in self.listed(drafts=drafts)[start:stop])
        return b"[" + b",".join(as_json(document) for document in documents) + b"]"

    def digest(self, site: Site, *, drafts: bool, start: int, stop: int) -> tuple[bytes, bytes | None]:
        """A hash of the page, and the page itself where it had to be written to know it.

        Pages are not kept: those of 200 repositories with 300 releases each are 200 MB.
        """
        key = (drafts, start, stop)
        known = self._digests.get(key)
        if known is not None:
            return known, None
        body = self.page(site, drafts=drafts, start=start, stop=stop)
        self._digests[key] = hashlib.sha256(body).digest()
        return self._digests[key], body


class World:
    """Repositories by number and name. Safe to change from several threads.

    Wherever a repository is asked for, its number, its name or a former name does; KeyError for what is none of them,
    and for a release that is not there.
    """

    def __init__(self, clock: Clock, *, seed: int, base_url: str) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.repositories: dict[int, Repository] = {}
        self._seed = seed
        self._numbers: dict[str, int] = {}
        self._former: dict[str, int] = {}
        self._repository_numbers = _growing(random.Random(f"{seed}: repositories"), 1_000_000, 5_000)
        self._release_numbers = _growing(random.Random(f"{seed}: releases"), 20_000_000, 50)
        self.move_to(base_url)

    def move_to(self, base_url: str) -> None:
        """Serve under this address; every URL in every answer changes."""
        self._prefix = urlsplit(base_url).path
        pages = base_url.replace("//api.", "//", 1)
        self.site = Site(base_url, pages, base_url.replace("//api.", "//uploads.", 1))
        for repository in self.repositories.values():
            repository.changed()

    def add_repository(self, name: str, releases: int = 0, *, private_to: set[str] | None = None) -> int:
        """A new repository with so many releases in its past; returns its number.

        The name may be one that a rename or a removed repository left behind.
        """
        with self.lock:
            holder = self.repositories.get(self._numbers.get(name.lower(), -1))
            if holder is not None and not holder.removed:
                raise ValueError(f"there is a {name} already")
            number = next(self._repository_numbers)
            inventor = Inventor(random.Random(f"{self._seed}: {number}"), self._release_numbers)
            history = inventor.history(releases, self.clock.now())
            created = history[0].created_at if history else self.clock.now()
            self.repositories[number] = Repository(
                number, name, created, inventor, {item.number: item for item in history}, private_to
            )
            self._numbers[name.lower()] = number
            return number

    def find(self, repo: str | int) -> Repository:
        """The repository of this number, name or former name."""
        if isinstance(repo, int):
            return self.repositories[repo]
        name = repo.lower()
        return self.repositories[self._numbers[name] if name in self._numbers else self._former[name]]

    def number_named(self, name: str) -> tuple[int | None, bool]:
        """The number behind a name, and whether the repository has that name today."""
        if name.lower() in self._numbers:
            return self._numbers[name.lower()], True
        return self._former.get(name.lower()), False

    def publish(
        self,
        repo: str | int,
        *,
        tag: str | None = None,
        body: str | None = None,
        created_at: datetime | None = None,
        prerelease: bool = False,
        draft: bool = False,
    ) -> dict[str, Any]:
        """A new release as JSON; a `created_at` in the past makes it a backport. Without a body one is invented."""
        with self.lock:
            repository, now = self.find(repo), self.clock.now()
            made = repository.inventor.release(created_at or now, now, backport=created_at is not None)
            made.tag = tag or made.tag
            made.body = made.body if body is None else body
            made.prerelease, made.draft = prerelease, draft
            made.published_at = None if draft else made.published_at
            repository.releases[made.number] = made
            repository.changed()
            return made.document(repository.name, self.site)

    def edit(self, repo: str | int, release_id: int, **fields: Any) -> dict[str, Any]:
        """Change fields of a release (see EDITABLE); the number stays. A draft that is none any more is published."""
        unknown = fields.keys() - EDITABLE
        if unknown:
            raise TypeError(f"a release has no {', '.join(sorted(unknown))} to edit")
        with self._changing(repo) as repository:
            release = repository.releases[release_id]
            for name, value in fields.items():
                setattr(release, name, value)
            release.updated_at = self.clock.now().replace(microsecond=0)
            if not release.draft and release.published_at is None:
                release.published_at = release.updated_at
            return release.document(repository.name, self.site)

    def move_tag(self, repo: str | int, release_id: int, tag: str) -> dict[str, Any]:
        """The release is another tag's now."""
        return self.edit(repo, release_id, tag=tag)

    def flip_prerelease(self, repo: str | int, release_id: int) -> dict[str, Any]:
        """A pre-release becomes a release, or the other way."""
        return self.edit(repo, release_id, prerelease=not self.find(repo).releases[release_id].prerelease)

    def count_downloads(self, repo: str | int, release_id: int, downloads: int = 1) -> None:
        """Somebody downloads an asset: the bytes of a release with assets change, and nothing that matters does."""
        with self._changing(repo) as repository:
            repository.releases[release_id].downloads += downloads

    def delete(self, repo: str | int, release_id: int) -> None:
        """The release is gone; `restore` brings it back."""
        with self._changing(repo) as repository:
            repository.withdrawn[release_id] = repository.releases.pop(release_id)

    def restore(self, repo: str | int, release_id: int) -> dict[str, Any]:
        """A deleted release reappears under its number."""
        with self._changing(repo) as repository:
            release = repository.releases[release_id] = repository.withdrawn.pop(release_id)
            return release.document(repository.name, self.site)

    def hide(self, repo: str | int, release_id: int, *, hidden: bool = True) -> None:
        """A stale replica: the list lacks a release that exists, and that a request by its number finds."""
        with self._changing(repo) as repository:
            repository.releases[release_id].hidden = hidden

    def rename(self, repo: str | int, new_name: str) -> None:
        """Another name; the old one redirects. Every URL in its releases changes."""
        with self._changing(repo) as repository:
            if self._numbers.get(new_name.lower(), repository.number) != repository.number:
                raise ValueError(f"there is a {new_name} already")
            del self._numbers[repository.name.lower()]
            self._former[repository.name.lower()] = repository.number
            self._numbers[new_name.lower()] = repository.number
            repository.name = new_name

    def reuse_name(self, old_name: str, releases: int = 1) -> int:
        """Another repository takes a name that a rename left behind; returns the new one's number."""
        if old_name.lower() not in self._former:
            raise KeyError(f"no rename left {old_name} behind")
        return self.add_repository(old_name, releases)

    def remove_repository(self, repo: str | int, *, removed: bool = True) -> None:
        """The repository is gone (404), or back again."""
        self.find(repo).removed = removed

    def make_private(self, repo: str | int, private_to: set[str] | None) -> None:
        """Only these credentials may read it from now on; None: all may."""
        self.find(repo).private_to = private_to

    def block(self, repo: str | int, reason: str | None = "dmca") -> None:
        """GitHub takes it down: `dmca` answers 451, any other reason 403; None ends it."""
        self.find(repo).blocked_for = reason

    def grant_push(self, credential: str, repo: str | int) -> None:
        """This credential may push to the repository: it is shown drafts."""
        self.find(repo).pushers.add(credential)

    def drift(self, repo: str | int, after_page: int, action: Callable[[], object]) -> None:
        """Do this once, right after the next answer (200 or 304) to a request for that page of the list."""
        self.find(repo).drifts.append((after_page, action))

    def truth(self, repo: str | int) -> dict[int, dict[str, Any]]:
        """Every release by its number, as JSON, as it is now: with drafts, and with what a stale replica hides."""
        with self.lock:
            repository = self.find(repo)
            return {
                number: item.document(repository.name, self.site)
                for number, item in repository.releases.items()
            }

    def repository_document(self, repository: Repository, credential: str) -> dict[str, Any]:
        """The repository itself as JSON."""
        owner, name = repository.name.split("/")
        here, page = f"{self.site.api}/repos/{repository.name}", f"{self.site.pages}/{repository.name}"
        pushes = credential in repository.pushers
        return {
            "id": repository.number,
            "node_id": node_id("Repository", repository.number),
            "name": name,
            "full_name": repository.name,
            "private": repository.private_to is not None,
            "owner": account(repository.number % 9_000 + 1_000, self.site, owner),
            "html_url": page,
            "description": None,
            "fork": False,
            "url": here,
            "releases_url": f"{here}/releases{{/id}}",
            "created_at": timestamp(repository.created_at),
            "archived": False,
            "disabled": False,
            "visibility": "public" if repository.private_to is None else "private",
            "default_branch": "main",
            "permissions": {"admin": False, "push": pushes, "pull": True},
        }

    @contextmanager
    def _changing(self, repo: str | int) -> Iterator[Repository]:
        with self.lock:
            repository = self.find(repo)
            yield repository
            repository.changed()


def _growing(chance: random.Random, first: int, widest: int) -> Iterator[int]:
    """Numbers that grow with gaps, as ids do that others share."""
    return itertools.accumulate(iter(lambda: chance.randint(1, widest), 0), initial=first)
