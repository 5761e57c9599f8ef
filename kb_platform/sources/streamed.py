"""What an event says of a release or a document: a state, of which repository, and when it began to hold.

Pure values. Reading them out of an event is `release_event` and `document_event`; comparing them with the log is
`store.streamed_log`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kb_platform.sources.release import Release

GITHUB = "github"
DOCUMENTS = "documents"


@dataclass(frozen=True, slots=True)
class Origin:
    """A repository, or a collection of documents, as an event names it.

    `forge`: `github`, the address of another forge's API, or `documents`. `number`: the repository's own at that forge (for
    documents: one made from the event's source); None where the event does not tell it. `name`: `OWNER/REPO`, checked.
    """

    forge: str
    number: int | None
    name: str


@dataclass(frozen=True, slots=True)
class Streamed:
    """A release (or a document in the shape of one) at one moment.

    `raw`: the very bytes that describe it. `revised_at`: when this state began, by the source's own clock; of two events
    of one release the one with the later (revised_at, event_at) is the newer state. `event_at`: the event's own time.
    `versioned`: whether the tag is a version; a document's is not. `topic_id`, `partition`, `offset`: where it stood.
    """

    repository: Origin
    release: Release
    raw: bytes
    deleted: bool
    revised_at: datetime
    event_at: datetime
    versioned: bool
    place: str
    topic_id: str
    partition: int
    offset: int
