"""GitHub's release JSON: one record's bytes → a Release, or a BadRecord that says why not.

The shape is that of `GET /repos/{owner}/{repo}/releases`. Everything that PostgreSQL, Dagster or the reader would choke
on is refused here, by name: NUL, lone surrogates, depth, duplicate keys, numbers without end, absurd dates and URLs.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from datetime import UTC, datetime
from itertools import groupby
from typing import Annotated, Any, NoReturn, cast
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kb_platform.errors import BadRecord
from kb_platform.sources.release import Release, repository_name

# A release of GitHub's is 4 levels deep (assets → uploader); json.loads recurses in C and would fail near 1,000.
DEEPEST = 32
# The largest number in a release is a 64-bit id.
LONGEST_NUMBER = 40
LONGEST_TAG = 500
LONGEST_NAME = 2_000
LONGEST_LOGIN = 200
# A tag of 500 code points of four bytes each, percent-encoded, behind the longest repository name.
LONGEST_LINK = 8_000
# NFC sorts the marks behind one letter in quadratic time: 100,000 of them took 12 s, 1,000 take a millisecond.
MOST_MARKS = 1_000
EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)

# A string that never ends reaches to the end: tried anew from each of its quotes, it would take quadratic time.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
# Tibetan vowel signs that count as letters until NFC takes them apart into marks (UAX 15, section 6).
_HIDDEN_MARKS = frozenset("\u0f73\u0f75\u0f81")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
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
    prerelease: bool = False
    draft: bool = False
    url: str | None = None
    html_url: Annotated[str, Field(max_length=LONGEST_LINK)] | None = None
    author: _Author | None = None


def parse_release(raw: bytes, *, repository: str | None, max_body_bytes: int) -> tuple[str, Release]:
    """A record's bytes → its repository and release.

    `repository` as the caller knows it; None: it is read from the record's own URLs. Raises BadRecord.
    """
    record = _parse_json(raw)
    try:
        release = _GitHubRelease.model_validate(record)
    except ValidationError as error:
        _explain(error, record)
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


def _parse_json(raw: bytes) -> dict[str, Any]:
    if raw.count(b"[") + raw.count(b"{") > DEEPEST:
        _refuse_depth(raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord("not-utf8", f"byte {error.start} is not UTF-8") from None
    try:
        record = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise BadRecord("not-json", f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise BadRecord("too-deep", f"nested deeper than {DEEPEST} levels") from None
    if not isinstance(record, dict):
        raise BadRecord("not-a-release", f"a JSON {type(record).__name__}, where a release is an object")
    fields = cast("dict[str, Any]", record)
    if "id" not in fields and "tag_name" not in fields:
        raise BadRecord("not-a-release", "an object with neither id nor tag_name")
    return fields


def _refuse_depth(raw: bytes) -> None:
    depth = 0
    for match in _STRUCTURE.finditer(raw):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > DEEPEST:
                raise BadRecord("too-deep", f"nested deeper than {DEEPEST} levels")
        elif token in (b"]", b"}"):
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadRecord("duplicate-key", f"the key {twice[:80]!r} stands twice in one object")
    return fields


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise BadRecord("absurd-number", f"a number of {len(digits):,} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits) if len(digits) <= 400 else float("inf")
    if value in (float("inf"), float("-inf")):
        raise BadRecord("absurd-number", f"a number that no float holds ({digits[:40]})")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise BadRecord("not-json", f"{name} is not JSON")


def _explain(error: ValidationError, record: dict[str, Any]) -> NoReturn:
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing" or (first["loc"] and record.get(str(first["loc"][0]), 0) is None):
        raise BadRecord("missing-field", f"{field} is missing") from None
    if first["type"] == "string_unicode":
        raise BadRecord("lone-surrogate", f"{field} has half a surrogate pair") from None
    wrong_value = first["type"].startswith(("greater", "less", "string_too"))
    raise BadRecord("absurd-value" if wrong_value else "wrong-type", f"{field}: {first['msg']}") from None


def _checked(release: _GitHubRelease, repository: str | None, max_body_bytes: int) -> tuple[str, Release]:
    named = repository or repository_in(release.model_dump(include={"url", "html_url"}))
    if named is None:
        raise BadRecord(
            "no-repository", "neither html_url nor url names the repository; give --repo OWNER/REPO"
        )
    named = repository_name(named)
    tag = _line("tag_name", release.tag_name)
    body = _text("body", release.body or "")
    size = len(body.encode())
    if size > max_body_bytes:
        raise BadRecord("body-too-long", f"a body of {size:,} bytes, over the limit of {max_body_bytes:,}")
    published = _moment("published_at", release.published_at)
    created = _moment("created_at", release.created_at)
    if published is None and created is None and not release.draft:
        raise BadRecord("missing-field", "published_at and created_at are both missing")
    return named, Release(
        release_id=release.id,
        tag=tag,
        name=_text("name", release.name or tag).strip(),
        body=body,
        created_at=created,
        published_at=published,
        prerelease=release.prerelease,
        draft=release.draft,
        url=_link(release, named, tag),
        author=_text("author", release.author.login) if release.author and release.author.login else None,
    )


def _text(field: str, value: str) -> str:
    """NFC, so that equal texts are equal bytes."""
    if "\x00" in value:
        raise BadRecord("nul", f"{field} has a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(
            "lone-surrogate", f"{field} has half a surrogate pair at character {error.start}"
        ) from None
    if len(value) > MOST_MARKS and not value.isascii() and _most_marks(value) > MOST_MARKS:
        raise BadRecord("absurd-value", f"{field} has more than {MOST_MARKS:,} combining marks in a row")
    return unicodedata.normalize("NFC", value)


def _most_marks(text: str) -> int:
    """Length of the longest run of combining marks."""
    runs = groupby(text, lambda char: unicodedata.combining(char) > 0 or char in _HIDDEN_MARKS)
    return max((sum(1 for _ in run) for marks, run in runs if marks), default=0)


def _line(field: str, value: str) -> str:
    if _CONTROL.search(_text(field, value)) or not value.strip():
        raise BadRecord("absurd-value", f"{field} is blank or has control characters")
    return unicodedata.normalize("NFC", value.strip())


def _moment(field: str, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        raise BadRecord("absurd-value", f"{field} is not a time: {value[:80]!r}") from None
    moment = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    if not EARLIEST <= moment < LATEST:
        raise BadRecord("absurd-value", f"{field} is in the year {moment.year}")
    return moment.astimezone(UTC)


def _link(release: _GitHubRelease, repository: str, tag: str) -> str:
    """Where a person can read the release; the record's own link unless it is missing."""
    if release.html_url is None:
        return f"https://github.com/{repository}/releases/tag/{quote(tag)}"
    link = _line("html_url", release.html_url)
    try:
        parts = urlsplit(link)
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        is_plain = False
    if not is_plain:
        raise BadRecord("absurd-value", "html_url is not a plain http or https link")
    return link
