"""Invented releases in GitHub's shape: their text, their tags, their JSON.

Belongs here: what a release is and how it is written down. Does not belong here: who may see it and how it is asked
for (`github_stand_in`). Everything is drawn from a seed; no text is taken from a real project.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

HEADINGS = ("Fixes", "New", "Breaking changes", "Performance", "Deprecated", "Security", "Internal")
VERBS = ("Fixed", "Added", "Removed", "Sped up", "Renamed", "Rewrote", "Hardened", "Documented")
THINGS = (
    "widget",
    "parser",
    "scheduler",
    "cache",
    "exporter",
    "reader",
    "index",
    "planner",
    "socket",
    "lock",
)
WHEN = ("on start", "under load", "without a network", "with an empty list", "after midnight", "on Windows")
TAG_FORMS = ("v{}", "v{}", "v{}", "{}", "release-{}", "core@{}", "packages/cli/v{}")
# Rare on GitHub, and each has broken a reader: accounts that are gone, notes never written, notes written on Windows.
AUTHOR_GONE = 0.03
BODY_MISSING = 0.04
BODY_EMPTY = 0.03
CRLF = 0.3


class Site(NamedTuple):
    """Where the API and the pages of this GitHub are."""

    api: str
    pages: str
    uploads: str


@dataclass(slots=True)
class Release:
    """One release; times aware, in UTC. `author` and the accounts of assets are numbers of accounts."""

    number: int
    tag: str
    name: str | None
    body: str | None
    created_at: datetime
    published_at: datetime | None
    updated_at: datetime
    prerelease: bool
    draft: bool
    author: int | None
    target_commitish: str = "main"
    assets: tuple[str, ...] = ()
    downloads: int = 0
    hidden: bool = False

    def document(self, repository: str, site: Site) -> dict[str, Any]:
        """Its JSON, as the API writes it for a repository of this name."""
        here = f"{site.api}/repos/{repository}/releases/{self.number}"
        page = f"{site.pages}/{repository}"
        document: dict[str, Any] = {
            "url": here,
            "assets_url": f"{here}/assets",
            "upload_url": f"{site.uploads}/repos/{repository}/releases/{self.number}/assets{{?name,label}}",
            # A draft's page has an address of its own: its tag need not exist yet.
            "html_url": f"{page}/releases/tag/{f'untagged-{self.number:x}' if self.draft else self.tag}",
            "id": self.number,
            "author": None if self.author is None else account(self.author, site),
            "node_id": node_id("Release", self.number),
            "tag_name": self.tag,
            "target_commitish": self.target_commitish,
            "name": self.name,
            "draft": self.draft,
            "immutable": False,
            "prerelease": self.prerelease,
            "created_at": timestamp(self.created_at),
            "updated_at": timestamp(self.updated_at),
            "published_at": timestamp(self.published_at) if self.published_at else None,
            "assets": [self._asset(place, repository, site) for place in range(len(self.assets))],
            "tarball_url": f"{site.api}/repos/{repository}/tarball/{self.tag}",
            "zipball_url": f"{site.api}/repos/{repository}/zipball/{self.tag}",
            "body": self.body,
        }
        if self.number % 11 == 0:
            document["reactions"] = _reactions(here, self.number)
        return document

    def _asset(self, place: int, repository: str, site: Site) -> dict[str, Any]:
        number, name = self.number * 10 + place, self.assets[place]
        return {
            "url": f"{site.api}/repos/{repository}/releases/assets/{number}",
            "id": number,
            "node_id": node_id("ReleaseAsset", number),
            "name": name,
            "label": None if place % 2 else "",
            "uploader": None if self.author is None else account(self.author, site),
            "content_type": "application/gzip",
            "state": "uploaded",
            "size": 1_000 + number % 9_999_999,
            "digest": f"sha256:{number:064x}",
            "download_count": self.downloads,
            "created_at": timestamp(self.created_at),
            "updated_at": timestamp(self.created_at),
            "browser_download_url": f"{site.pages}/{repository}/releases/download/{self.tag}/{name}",
        }


@dataclass
class Inventor:
    """Invents the releases of one repository: tags in one form, versions that grow, mostly one way to end lines."""

    chance: random.Random
    numbers: Iterator[int]
    tag_form: str = field(init=False)
    crlf: bool = field(init=False)
    _version: tuple[int, int, int] = field(init=False, default=(0, 1, 0))
    _backports: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.tag_form = self.chance.choice(TAG_FORMS)
        self.crlf = self.chance.random() < CRLF

    def history(self, count: int, until: datetime) -> list[Release]:
        """`count` releases, the oldest first, over the years before `until`."""
        gaps = [self.chance.randint(3_600, 20 * 86_400) for _ in range(count)]
        moment = until - timedelta(seconds=sum(gaps))
        made: list[Release] = []
        for gap in gaps:
            made.append(self.release(moment, moment + timedelta(seconds=self.chance.randint(0, 3_000))))
            moment += timedelta(seconds=gap)
        return made

    def release(self, created_at: datetime, published_at: datetime, *, backport: bool = False) -> Release:
        """The next release, or one of an older line."""
        chance = self.chance
        version = self._older_version() if backport else self._next_version()
        tag = self.tag_form.format(version)
        created_at, published_at = created_at.replace(microsecond=0), published_at.replace(microsecond=0)
        return Release(
            number=next(self.numbers),
            tag=tag,
            name=chance.choice((tag, tag, f"Release {version}", "", None)),
            body=self.body(),
            created_at=created_at,
            published_at=published_at,
            updated_at=published_at,
            prerelease=chance.random() < 0.1,
            draft=False,
            author=None if chance.random() < AUTHOR_GONE else chance.randint(1, 40),
            assets=tuple(f"tool-{place}.tar.gz" for place in range(chance.choice((0, 0, 0, 1, 2)))),
            downloads=chance.randint(0, 90_000),
        )

    def body(self) -> str | None:
        """Release notes; sometimes none, sometimes empty, sometimes with CRLF."""
        draw = self.chance.random()
        if draw < BODY_MISSING:
            return None
        if draw < BODY_MISSING + BODY_EMPTY:
            return ""
        return self.notes()

    def notes(self) -> str:
        """Release notes with text in them."""
        chance = self.chance
        sections = (
            f"## {heading}\n\n" + "".join(f"- {self._item()}\n" for _ in range(chance.randint(1, 4)))
            for heading in chance.sample(HEADINGS, chance.randint(1, 3))
        )
        text = "\n".join(sections)
        return text.replace("\n", "\r\n") if self.crlf else text

    def _item(self) -> str:
        chance = self.chance
        return f"{chance.choice(VERBS)} the {chance.choice(THINGS)} {chance.choice(WHEN)} (#{chance.randint(1, 9_999)})"

    def _next_version(self) -> str:
        major, minor, patch = self._version
        step = self.chance.random()
        if step < 0.03:
            self._version = (major + 1, 0, 0)
        elif step < 0.4:
            self._version = (major, minor + 1, 0)
        else:
            self._version = (major, minor, patch + 1)
        return ".".join(map(str, self._version))

    def _older_version(self) -> str:
        self._backports += 1
        return f"{max(self._version[0] - 1, 0)}.0.{1_000 + self._backports}"


def timestamp(moment: datetime) -> str:
    """As the API writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_id(kind: str, number: int) -> str:
    """The opaque id of the other API."""
    return base64.b64encode(f"{len(kind):03}:{kind}{number}".encode()).decode()


def account(number: int, site: Site, login: str | None = None) -> dict[str, Any]:
    """A person's account, or an organisation's under its own name."""
    login = login or f"person-{number}"
    here = f"{site.api}/users/{login}"
    return {
        "login": login,
        "id": number,
        "node_id": node_id("User", number),
        "avatar_url": f"{site.pages}/avatars/{number}?v=4",
        "gravatar_id": "",
        "url": here,
        "html_url": f"{site.pages}/{login}",
        "followers_url": f"{here}/followers",
        "following_url": f"{here}/following{{/other_user}}",
        "gists_url": f"{here}/gists{{/gist_id}}",
        "starred_url": f"{here}/starred{{/owner}}{{/repo}}",
        "subscriptions_url": f"{here}/subscriptions",
        "organizations_url": f"{here}/orgs",
        "repos_url": f"{here}/repos",
        "events_url": f"{here}/events{{/privacy}}",
        "received_events_url": f"{here}/received_events",
        "type": "User",
        "user_view_type": "public",
        "site_admin": False,
    }


def _reactions(release_url: str, number: int) -> dict[str, Any]:
    kinds = ("+1", "-1", "laugh", "hooray", "confused", "heart", "rocket", "eyes")
    counts = {kind: (number >> place) % 3 for place, kind in enumerate(kinds)}
    return {"url": f"{release_url}/reactions", "total_count": sum(counts.values()), **counts}
