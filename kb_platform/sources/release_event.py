"""Events of releases: GitHub's `release` webhook payload in an envelope ↔ a release at one moment.

Type `com.github.release.ACTION`, as CloudEvents' GitHub adapter maps it. Reading refuses what does not agree with itself;
`from_webhook` takes whatever GitHub sent, so that nothing is lost before it is landed. The envelope is `envelope`'s concern.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kb_platform.errors import BadRecord
from kb_platform.sources.envelope import Envelope, is_sound
from kb_platform.sources.github_json import LONGEST_LINK, explain, repository_in, state_of
from kb_platform.sources.release import Release, repository_name
from kb_platform.sources.sound_json import bare, parse_object, parse_with_source
from kb_platform.sources.streamed import GITHUB, Origin

PREFIX = "com.github.release."
ACTIONS = frozenset(("published", "edited", "deleted", "prereleased", "released", "unpublished", "created"))
GITHUB_API = "https://api.github.com"
# Numbers from here on are not a forge's: they are made from names (number_of_name).
OURS = 2**62

# What an event is said to be of when nothing in it says so. Landing quarantines it.
_NOWHERE = "/webhooks/github"
_ACTION = re.compile(r"[a-z_]{1,40}")
_API_REPOSITORY = re.compile(r"((?i:https?)://[^?#]*?)/repos/([^/?#]+/[^/?#]+)/?")
_LONGEST_DIGITS = 40


class _Repository(BaseModel):
    """The fields that are read; others may come and go."""

    model_config = ConfigDict(strict=True)
    id: Annotated[int, Field(ge=1)] | None = None
    full_name: Annotated[str, Field(max_length=300)] | None = None
    url: Annotated[str, Field(max_length=LONGEST_LINK)] | None = None


class ReleaseEvent(NamedTuple):
    """What an event says. `raw`: the release's own bytes; `revised_at` is None where only the event's time tells."""

    repository: Origin
    release: Release
    raw: bytes
    deleted: bool
    revised_at: datetime | None


def read(envelope: Envelope, *, github_api_url: str, max_body_bytes: int) -> ReleaseEvent:
    """The release that an event is about. Raises BadRecord."""
    action = envelope.type.removeprefix(PREFIX)
    fields, raw = parse_with_source(
        envelope.data, "release", meaning="a release event", reason="not-a-release"
    )
    if fields.get("action") != action:
        raise BadRecord(
            "mismatched-event",
            f"the type says {action!r}, the data's action {_shown(fields.get('action'))}",
        )
    record = fields.get("release")
    if raw is None or not isinstance(record, dict):
        raise BadRecord("not-a-release", f"release is {_shown(record)}, where it is an object")
    release_fields = cast("dict[str, Any]", record)
    repository = _repository(fields.get("repository"), release_fields, envelope.source, github_api_url)
    state = state_of(release_fields, repository=repository.name, max_body_bytes=max_body_bytes)
    release = state.release
    if envelope.subject is not None and envelope.subject != str(release.release_id):
        raise BadRecord(
            "mismatched-event", f"the subject is {envelope.subject[:80]!r}, the release {release.release_id}"
        )
    if action == "unpublished" and not release.draft:
        release = replace(release, draft=True)
    deleted = action == "deleted"
    return ReleaseEvent(repository, release, raw, deleted, None if deleted else state.revised_at)


def event(
    raw_release: bytes,
    *,
    action: str,
    name: str,
    number: int | None,
    api_root: str,
    time: datetime,
    event_id: str,
) -> Envelope:
    """The event of a release whose bytes are known: they stand in the data as they are.

    `name`, `number`: the repository's; `api_root`: the address of its forge's API, such as https://api.github.com.
    Raises BadRecord when the bytes are no JSON object, or the action is none of ACTIONS.
    """
    if action not in ACTIONS:
        raise BadRecord("unknown-type", f"{action!r} is no action of a release: {', '.join(sorted(ACTIONS))}")
    release_id = parse_object(raw_release).get("id")
    url = f"{api_root.rstrip('/')}/repos/{repository_name(name)}"
    told: dict[str, Any] = {} if number is None else {"id": number}
    told |= {"name": name.partition("/")[2], "full_name": name, "url": url}
    data = b'{"action": "%b", "release": %b, "repository": %b}' % (
        action.encode(),
        bare(raw_release),
        json.dumps(told).encode(),
    )
    subject = str(release_id) if type(release_id) is int else None
    return Envelope(event_id, url, PREFIX + action, subject, time, data)


def from_webhook(body: bytes, *, delivery: str, time: datetime) -> tuple[bytes | None, Envelope]:
    """The key and the event of a webhook's body, which is its data as it is.

    `delivery`: the header `X-GitHub-Delivery`; `time`: when it was received. Where the body does not say what it is about,
    the event says something harmless, to be quarantined with the body when it is landed. Raises BadRecord for a body that
    is no JSON object with an action.
    """
    fields = _lenient(body)
    action = fields.get("action")
    if not isinstance(action, str):
        raise BadRecord("not-an-event", "the body has no text `action`; send GitHub's `release` events")
    repository, release = _object(fields.get("repository")), _object(fields.get("release"))
    source, release_id = repository.get("url"), release.get("id")
    event_id = delivery if is_sound(delivery) else hashlib.sha256(body).hexdigest()
    made = Envelope(
        event_id,
        source if isinstance(source, str) and is_sound(source) else _NOWHERE,
        PREFIX + (action if _ACTION.fullmatch(action) else "unreadable"),
        str(release_id) if type(release_id) is int else None,
        time,
        body,
    )
    number, name = repository.get("id"), repository.get("full_name")
    if type(number) is int and 0 < number < OURS:
        return key(number=number, name=""), made
    return (key(number=None, name=name) if isinstance(name, str) and is_sound(name) else None), made


def key(*, number: int | None, name: str) -> bytes:
    """The partition key: events of one repository keep their order. `name` counts where there is no number."""
    return str(number_of_name(name) if number is None else number).encode()


def number_of_name(name: str) -> int:
    """A number for a repository of which only the name is known; none that a forge gives."""
    return OURS + (int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:8]) >> 3)


def _repository(told: object, release: dict[str, Any], source: str, github_api_url: str) -> Origin:
    """The repository of an event; what its object leaves out is looked for in the release's links and the source."""
    if told is not None and not isinstance(told, dict):
        raise BadRecord("wrong-type", f"repository is {_shown(told)}, where it is an object")
    fields = _object(cast("object", told))
    try:
        found = _Repository.model_validate(fields)
    except ValidationError as error:
        explain(error, fields, within="repository")
    number = found.id if found.id is not None and found.id < OURS else None
    forge = GITHUB if found.url is None else _forge(found.url, github_api_url)
    name = found.full_name
    if name is None:
        name = _name_in(found.url) or repository_in(release) or _name_in(source)
    if name is None:
        raise BadRecord("no-repository", "neither repository.full_name nor an address names the repository")
    return Origin(forge, number, repository_name(name))


def _name_in(address: str | None) -> str | None:
    match = _API_REPOSITORY.fullmatch(address) if address else None
    return match[2] if match else None


def _forge(address: str, github_api_url: str) -> str:
    match = _API_REPOSITORY.fullmatch(address)
    return _forge_of(match[1] if match else address, bool(match), github_api_url)


@lru_cache(maxsize=256)
def _forge_of(address: str, is_root: bool, github_api_url: str) -> str:
    """`github`, or the address of another forge's API, in one way of writing. An address of a page stands for its host."""
    try:
        parts = urlsplit(address)
        host = f"{parts.scheme.lower()}://{parts.netloc.lower()}"
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and is_sound(address)
    except ValueError:
        is_plain, host, parts = False, "", urlsplit("")
    if not is_plain or "@" in parts.netloc:
        raise BadRecord("absurd-value", "repository.url is not a plain http or https address")
    root = host + parts.path.rstrip("/") if is_root else host
    if root == github_api_url or (
        root in (GITHUB_API, "https://github.com") and not github_api_url.endswith("/api/v3")
    ):
        return GITHUB
    return root


def _lenient(body: bytes) -> dict[str, Any]:
    """The object that a body is, whatever else is wrong with it."""
    try:
        parsed = json.loads(body, parse_int=_short_integer)
    except RecursionError:
        raise BadRecord("too-deep", "the body is nested too deep") from None
    except ValueError:
        raise BadRecord("not-json", "the body is not JSON") from None
    if not isinstance(parsed, dict):
        raise BadRecord("not-an-event", f"the body is a JSON {type(parsed).__name__}, where it is an object")
    return cast("dict[str, Any]", parsed)


def _short_integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= _LONGEST_DIGITS else None


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(value[:80])
    return "missing" if value is None else f"a JSON {type(value).__name__}"
