"""A message → what it says of a release or a document, or a BadRecord that says why nothing can be made of it.

Belongs here: which event is which, and when it happened. Does not belong here: how each is read.
"""

from __future__ import annotations

from kb_platform.errors import BadRecord
from kb_platform.sources import document_event, envelope, release_event
from kb_platform.sources.fields import bounded
from kb_platform.sources.message import Message
from kb_platform.sources.streamed import Streamed

RELEASE_TYPES = frozenset(release_event.PREFIX + action for action in release_event.ACTIONS)
DOCUMENT_TYPES = frozenset((document_event.UPDATED, document_event.DELETED))


def parse_event(
    message: Message, *, topic_id: str, github_api_url: str, max_body_bytes: int, max_record_bytes: int
) -> Streamed:
    """What a message says. `topic_id`: of the topic it stood in. Raises BadRecord, and nothing else."""
    if message.size > max_record_bytes:
        raise BadRecord(
            "record-too-long", f"a message of {message.size:,} bytes, over the limit of {max_record_bytes:,}"
        )
    event = envelope.read(message)
    if event.type not in RELEASE_TYPES and event.type not in DOCUMENT_TYPES:
        raise BadRecord("unknown-type", f"events of the type {event.type[:80]!r} are not for this topic")
    event_at = event.time
    if event_at is None:
        if message.timestamp is None:
            raise BadRecord("missing-field", "neither the event nor the message has a time")
        event_at = bounded("the message's timestamp", message.timestamp)
    if event.type in DOCUMENT_TYPES:
        said = document_event.read(event, event_at=event_at, max_body_bytes=max_body_bytes)
    else:
        said = release_event.read(event, github_api_url=github_api_url, max_body_bytes=max_body_bytes)
    return Streamed(
        repository=said.repository,
        release=said.release,
        raw=said.raw,
        deleted=said.deleted,
        revised_at=said.revised_at or event_at,
        event_at=event_at,
        versioned=event.type in RELEASE_TYPES,
        place=message.place,
        topic_id=topic_id,
        partition=message.partition,
        offset=message.offset,
    )
