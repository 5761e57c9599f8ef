"""GitHub's release JSON: one record's bytes → a Release, or a BadRecord that says why not.

The shape is that of `GET /repos/{owner}/{repo}/releases`. What is no sound JSON is refused by `sound_json`, what no text,
time or link may be by `fields`; here is what makes a release.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, NamedTuple, NoReturn, cast
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kb_platform.errors import BadRecord
from kb_platform.sources.fields import line, link, moment, text
from kb_platform.sources.release import Release, repository_name
from kb_platform.sources.sound_json import parse_object

LONGEST_TAG = 500
LONGEST_NAME = 2_000
LONGEST_LOGIN = 200
# A tag of 500 code points of four bytes each, percent-encoded, behind the longest repository name.
LONGEST_LINK = 8_000

_API_URL = re.compile(r"/repos/([^/?#]+/[^/?#]+)/releases(?:/|$)")
_HTML_URL = re.compile(r"^https?://[^/]+/([^/?#]+/[^/?#]+)/(?:-/)?releases(?:/|$)")


class _Author(BaseModel):
    model_config = ConfigDict(strict=True)
    login: Annotated[str, Field(max_length=LONGEST_LOGIN)] | None = None


class _GitHubRelease(BaseModel):
    """The fields that are read; others may come and go."""

    model_config = ConfigDict(strict=True)
    id: Annotated[int, Field(ge=1, lt=2**63)]
    tag_name: Annotated[str, Field(min_length=1, max_length=LONGEST_TAG)]
    name: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None
    body: str | None = None
    created_at: str | None = None
    published_at: str | None = None
    updated_at: str | None = None
    prerelease: bool = False
    draft: bool = False
    url: str | None = None
    html_url: Annotated[str, Field(max_length=LONGEST_LINK)] | None = None
    author: _Author | None = None


class State(NamedTuple):
    """A release as its record shows it. `revised_at`: when the forge last changed it; None: the record does not say."""

    repository: str
    release: Release
    revised_at: datetime | None


def parse_release(raw: bytes, *, repository: str | None, max_body_bytes: int) -> tuple[str, Release]:
    """A record's bytes → its repository and release.

    `repository` as the caller knows it; None: it is read from the record's own URLs. Raises BadRecord.
    """
    return parse_state(raw, repository=repository, max_body_bytes=max_body_bytes)[:2]


def parse_state(raw: bytes, *, repository: str | None, max_body_bytes: int) -> State:
    """The same, with the time of its last change."""
    return state_of(parse_object(raw), repository=repository, max_body_bytes=max_body_bytes)


def state_of(record: dict[str, Any], *, repository: str | None, max_body_bytes: int) -> State:
    """The same, of a record that `sound_json` has parsed."""
    if "id" not in record and "tag_name" not in record:
        raise BadRecord("not-a-release", "an object with neither id nor tag_name")
    try:
        release = _GitHubRelease.model_validate(record)
    except ValidationError as error:
        explain(error, record)
    return _checked(release, repository, max_body_bytes)


def repository_in(record: object) -> str | None:
    """The repository that a parsed record's URLs name; None when they name none."""
    if not isinstance(record, dict):
        return None
    fields = cast("dict[str, Any]", record)
    for key, pattern in (("html_url", _HTML_URL), ("url", _API_URL), ("url", _HTML_URL)):
        value = fields.get(key)
        match = pattern.search(value) if isinstance(value, str) else None
        if match:
            return match[1]
    return None


def explain(error: ValidationError, record: dict[str, Any], *, within: str = "") -> NoReturn:
    """Raise the BadRecord that says what pydantic found first. `within`: the member that the record is."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in (*([within] if within else []), *first["loc"]))
    if first["type"] == "missing" or (first["loc"] and record.get(str(first["loc"][0]), 0) is None):
        raise BadRecord("missing-field", f"{field} is missing") from None
    if first["type"] == "string_unicode":
        raise BadRecord("lone-surrogate", f"{field} has half a surrogate pair") from None
    wrong_value = first["type"].startswith(("greater", "less", "string_too"))
    raise BadRecord("absurd-value" if wrong_value else "wrong-type", f"{field}: {first['msg']}") from None


def _checked(release: _GitHubRelease, repository: str | None, max_body_bytes: int) -> State:
    named = repository or repository_in({"url": release.url, "html_url": release.html_url})
    if named is None:
        raise BadRecord(
            "no-repository", "neither html_url nor url names the repository; give --repo OWNER/REPO"
        )
    named = repository_name(named)
    tag = line("tag_name", release.tag_name)
    body = checked_body("body", release.body or "", max_body_bytes)
    published = _moment("published_at", release.published_at)
    created = _moment("created_at", release.created_at)
    if published is None and created is None and not release.draft:
        raise BadRecord("missing-field", "published_at and created_at are both missing")
    found = Release(
        release_id=release.id,
        tag=tag,
        name=text("name", release.name or tag).strip(),
        body=body,
        created_at=created,
        published_at=published,
        prerelease=release.prerelease,
        draft=release.draft,
        url=_link(release, named, tag),
        author=text("author", release.author.login) if release.author and release.author.login else None,
    )
    return State(named, found, _moment("updated_at", release.updated_at))


def checked_body(field: str, value: str, max_body_bytes: int) -> str:
    """The notes in NFC. Raises BadRecord when they are longer than that."""
    body = text(field, value)
    size = len(body) if body.isascii() else len(body.encode())
    if size > max_body_bytes:
        raise BadRecord("body-too-long", f"a body of {size:,} bytes, over the limit of {max_body_bytes:,}")
    return body


def _moment(field: str, value: str | None) -> datetime | None:
    return None if value is None else moment(field, value)


def _link(release: _GitHubRelease, repository: str, tag: str) -> str:
    """Where a person can read the release; the record's own link unless it is missing."""
    if release.html_url is None:
        return f"https://github.com/{repository}/releases/tag/{quote(tag)}"
    return link("html_url", release.html_url)
