"""The release, as every source speaks of it, and the names of repositories.

Pure values. Reading them out of a source's format is the source's module; keeping them is `store.release_log`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from json.encoder import encode_basestring

from kb_platform.errors import BadRecord

# GitHub: an owner has at most 39 characters, a repository 100; other forges allow '_' and '.' in owners too.
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}/[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True)
class Release:
    """One release at one moment. Times are in UTC; `release_id` is the source's own number, unique in its repository."""

    release_id: int
    tag: str
    name: str
    body: str
    created_at: datetime | None
    published_at: datetime | None
    prerelease: bool
    draft: bool
    url: str
    author: str | None

    @cached_property
    def content_hash(self) -> bytes:
        """sha256 of everything above: two observations with the same hash say the same.

        Download counts, reactions and the like are not part of it, or every poll would be an edit.
        """
        # JSON with sorted keys and no blanks, written by hand: json.dumps takes three times as long, and landing does
        # little else as often.
        text = (
            f'{{"author":{_json(self.author)},"body":{_json(self.body)},"created_at":{_json_time(self.created_at)},'
            f'"draft":{_json_truth(self.draft)},"name":{_json(self.name)},"prerelease":{_json_truth(self.prerelease)},'
            f'"published_at":{_json_time(self.published_at)},"release_id":{self.release_id},"tag":{_json(self.tag)},'
            f'"url":{_json(self.url)}}}'
        )
        return hashlib.sha256(text.encode()).digest()


def _json(text: str | None) -> str:
    return "null" if text is None else encode_basestring(text)


def _json_time(moment: datetime | None) -> str:
    return "null" if moment is None else f'"{moment.astimezone(UTC).isoformat()}"'


def _json_truth(value: bool) -> str:
    return "true" if value else "false"


@dataclass(frozen=True)
class Observed:
    """A release as a source showed it: where, and the very bytes.

    `deleted`: the source says that it is gone. `revised_at`: when it says that it last changed it; None: it does not say.
    """

    repository: str
    release: Release
    raw: bytes
    origin: str
    deleted: bool = False
    revised_at: datetime | None = None


@dataclass(frozen=True)
class Refused:
    """A record that is not a release, for quarantine."""

    reason: str
    detail: str
    raw: bytes
    origin: str
    repository: str | None = None
    raw_bytes: int | None = None


def repository_name(text: str) -> str:
    """`OWNER/REPO`, checked. It is used as a partition key, so `...` (a range in Dagster) is refused too.

    Raises BadRecord with reason `bad-repository`.
    """
    if not _REPOSITORY.fullmatch(text) or "..." in text or text.endswith(("/.", "/..")):
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise BadRecord("bad-repository", f"{shown!r} is not a repository name like OWNER/REPO")
    return text
