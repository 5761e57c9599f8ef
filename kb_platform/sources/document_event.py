"""Events of documents: a page of a wiki, an issue, a decision ↔ a document in the shape of a release.

Types `io.kb-platform.document.updated` and `.deleted`. A document's id stands for the tag, its source for the repository,
so that the log, the index and the citations know it like any release. The envelope is `envelope`'s concern.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import Annotated, NamedTuple
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kb_platform.errors import BadRecord
from kb_platform.sources.envelope import Envelope, is_sound, rfc3339
from kb_platform.sources.fields import line, link, text
from kb_platform.sources.github_json import (
    LONGEST_LINK,
    LONGEST_NAME,
    LONGEST_TAG,
    checked_body,
    explain,
)
from kb_platform.sources.release import Release, repository_name
from kb_platform.sources.sound_json import bare, parse_object
from kb_platform.sources.streamed import DOCUMENTS, Origin

UPDATED = "io.kb-platform.document.updated"
DELETED = "io.kb-platform.document.deleted"
LONGEST_SOURCE = 2_000

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE | re.ASCII)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._]+")
_LONGEST_PART = 60


class _Document(BaseModel):
    """The fields that are read; others may come and go."""

    model_config = ConfigDict(strict=True)
    id: Annotated[str, Field(min_length=1, max_length=LONGEST_TAG)]
    source: Annotated[str, Field(min_length=1, max_length=LONGEST_SOURCE)]
    title: Annotated[str, Field(max_length=LONGEST_NAME)] | None = None
    body: str | None = None
    time: str | None = None
    url: Annotated[str, Field(max_length=LONGEST_LINK)] | None = None


class DocumentEvent(NamedTuple):
    """What an event says. `revised_at`: the document's own time."""

    repository: Origin
    release: Release
    raw: bytes
    deleted: bool
    revised_at: datetime


def read(envelope: Envelope, *, event_at: datetime, max_body_bytes: int) -> DocumentEvent:
    """The document that an event is about. `event_at` is its time where it says none. Raises BadRecord."""
    record = parse_object(envelope.data, meaning="a document", reason="not-a-document")
    try:
        document = _Document.model_validate(record)
    except ValidationError as error:
        explain(error, record)
    deleted = envelope.type == DELETED
    if not deleted:
        for field in ("title", "body", "url"):
            if getattr(document, field) is None:
                raise BadRecord("missing-field", f"{field} is missing")
    document_id = line("id", document.id)
    if envelope.subject is not None and envelope.subject not in (document.id, document_id):
        raise BadRecord(
            "mismatched-event", f"the subject is {envelope.subject[:80]!r}, the document {document_id[:80]!r}"
        )
    moment = event_at if document.time is None else rfc3339("time", document.time)
    release = Release(
        release_id=1 + _bits(document_id),
        tag=document_id,
        name=text("title", document.title or "").strip() or document_id,
        body=checked_body("body", document.body or "", max_body_bytes),
        created_at=moment,
        published_at=moment,
        prerelease=False,
        draft=False,
        url="" if document.url is None else link("url", document.url),
        author=None,
    )
    return DocumentEvent(origin(document.source), release, envelope.data, deleted, moment)


def event(raw_document: bytes, *, deleted: bool, time: datetime, event_id: str) -> Envelope:
    """The event of a document whose bytes are known; they are its data as they are.

    Raises BadRecord when they are no JSON object with an id and a source.
    """
    record = parse_object(raw_document, meaning="a document", reason="not-a-document")
    document_id, source = record.get("id"), record.get("source")
    if not isinstance(document_id, str) or not isinstance(source, str):
        raise BadRecord("missing-field", "a document has an `id` and a `source`, both texts")
    subject = document_id if is_sound(document_id) else None
    return Envelope(
        event_id, _reference(source), DELETED if deleted else UPDATED, subject, time, bare(raw_document)
    )


def key(source: str) -> bytes:
    """The partition key: events of one source keep their order. Raises BadRecord for a source that cannot be."""
    return str(_bits(line("source", source))).encode()


def origin(source: str) -> Origin:
    """Whose document it is: the source in the place of a repository. Raises BadRecord.

    A source that is a name like OWNER/REPO keeps it. Any other gets a readable one with six digits of its hash, because
    what a name cannot say is lost: `https://wiki.example.org/team/handbook` is `wiki.example.org/team-handbook-` and six.
    """
    found = line("source", source)
    return Origin(DOCUMENTS, _bits(found), _name(found))


def _name(source: str) -> str:
    try:
        return repository_name(source)
    except BadRecord:
        digits = hashlib.sha256(source.encode()).hexdigest()[:6]
    scheme = _SCHEME.match(source)
    plain = source[scheme.end() :] if scheme else source
    first, *others = [part for part in re.split(r"[/?#]+", plain) if part] or [""]
    owner = _part(first) or "documents"
    rest = "-".join(part for part in map(_part, others) if part)[:_LONGEST_PART].strip("-._")
    return repository_name(f"{owner}/{rest or 'documents'}-{digits}")


def _part(part: str) -> str:
    """What of a part may stand in a name; two dots in a row may not."""
    return re.sub(r"\.{2,}", ".", _NOT_IN_NAMES.sub("-", part))[:_LONGEST_PART].strip("-._")


def _bits(value: str) -> int:
    """61 bits that stand for a text."""
    return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8]) >> 3


def _reference(source: str) -> str:
    """A source as an attribute, which must be a URI reference."""
    return quote(source, safe="/:?#[]@!$&'()*+,;=%~", errors="replace")[:2_000] or "/"
