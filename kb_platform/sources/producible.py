"""A record that somebody has → the event that says it: a release, a whole webhook payload, or a document.

Pure. The event of one record and one action always has the same id, so that what is produced twice can be told. Nothing is
produced that landing would refuse: it is refused here, with the same reasons. Does not belong here: where records come
from (`files`, `forge`), and sending (`stages.producing`).
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid5

from kb_platform.errors import BadRecord
from kb_platform.sources import document_event, release_event
from kb_platform.sources.envelope import Envelope
from kb_platform.sources.github_json import state_of
from kb_platform.sources.sound_json import parse_object

# Ids are made within it; with another one all that was produced before would look new.
_OURS = UUID("5a9c1d3e-8f6b-4f0e-9c57-2f1f4f6b7c10")
_API_ROOT = re.compile(r"(https?://[^?#]*?)/repos/[^/?#]+/[^/?#]+/releases/")


class Known(NamedTuple):
    """What is known of a record's repository beside what the record says; None: the record says it, or nobody does."""

    name: str | None = None
    number: int | None = None
    api_root: str | None = None


class Producible(NamedTuple):
    """An event with its partition key."""

    kind: Literal["release", "document"]
    key: bytes | None
    envelope: Envelope


def producible(
    raw: bytes, known: Known, *, action: str, time: datetime, github_api_url: str, max_body_bytes: int
) -> Producible:
    """The event of a record. Raises BadRecord.

    `action`: what happened to a release; a webhook payload says that itself, and of a document only `deleted` counts.
    """
    fields = parse_object(raw)
    if isinstance(fields.get("release"), dict) and "action" in fields:
        return _payload(raw, time, github_api_url, max_body_bytes)
    if "tag_name" not in fields and "source" in fields:
        return _document(raw, deleted=action == "deleted", time=time, max_body_bytes=max_body_bytes)
    return _release(raw, fields, known, action, time, github_api_url, max_body_bytes)


def _release(
    raw: bytes,
    fields: dict[str, Any],
    known: Known,
    action: str,
    time: datetime,
    github_api_url: str,
    max_body_bytes: int,
) -> Producible:
    state = state_of(fields, repository=known.name, max_body_bytes=max_body_bytes)
    revised_at = state.revised_at.isoformat() if state.revised_at else ""
    event_id = _id(
        state.repository, state.release.release_id, action, state.release.content_hash.hex(), revised_at
    )
    event = release_event.event(
        raw,
        action=action,
        name=state.repository,
        number=known.number,
        api_root=known.api_root or _api_root(fields.get("url")) or github_api_url,
        time=time,
        event_id=event_id,
    )
    return Producible("release", release_event.key(number=known.number, name=state.repository), event)


def _payload(raw: bytes, time: datetime, github_api_url: str, max_body_bytes: int) -> Producible:
    key, event = release_event.from_webhook(raw, delivery="unknown", time=time)
    said = release_event.read(event, github_api_url=github_api_url, max_body_bytes=max_body_bytes)
    action = event.type.removeprefix(release_event.PREFIX)
    if action not in release_event.ACTIONS:
        raise BadRecord("unknown-type", f"{action!r} is no action of a release")
    revised_at = said.revised_at.isoformat() if said.revised_at else ""
    event_id = _id(
        said.repository.name, said.release.release_id, action, said.release.content_hash.hex(), revised_at
    )
    return Producible("release", key, event._replace(event_id=event_id))


def _document(raw: bytes, *, deleted: bool, time: datetime, max_body_bytes: int) -> Producible:
    content = hashlib.sha256(raw).hexdigest()
    fields = parse_object(raw)
    event_id = _id(fields.get("source"), fields.get("id"), "deleted" if deleted else "updated", content)
    event = document_event.event(raw, deleted=deleted, time=time, event_id=event_id)
    document_event.read(event, event_at=time, max_body_bytes=max_body_bytes)
    return Producible("document", document_event.key(fields["source"]), event)


def _id(repository: object, *parts: object) -> str:
    # Names of repositories are compared without regard to case.
    return str(uuid5(_OURS, "\n".join([str(repository).lower(), *map(str, parts)])))


def _api_root(url: object) -> str | None:
    """The root of the forge's API in a release's own address."""
    match = _API_ROOT.match(url) if isinstance(url, str) else None
    return match[1] if match else None
