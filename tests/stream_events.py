"""Messages of topics, for tests: sound events of releases and documents, and poison of every kind."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from kb_platform.sources import document_event, envelope, release_event
from kb_platform.sources.events import parse_event
from kb_platform.sources.message import Header, Message
from kb_platform.sources.streamed import Streamed
from tests.records import as_bytes, record

API = "https://api.github.com"
TOPIC = "kb.releases"
DOCUMENT_TOPIC = "kb.documents"
TOPIC_ID = "topic-id-1"
START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
# Of parse_event, as the settings have them.
LIMITS = {"max_body_bytes": 1_048_576, "max_record_bytes": 16 * 1_048_576}


def number_of(repository: str) -> int:
    """A number that a forge might have given, always the same one for a name."""
    return 1 + int.from_bytes(hashlib.sha256(repository.encode()).digest()[:4])


def message(
    value: bytes | None,
    headers: list[tuple[str, bytes]] | tuple[Header, ...] = (),
    *,
    key: bytes | None = None,
    topic: str = TOPIC,
    partition: int = 0,
    offset: int = 0,
    timestamp: datetime | None = START,
) -> Message:
    """A message with these bytes."""
    return Message(topic, partition, offset, timestamp, key, value, tuple(headers))


def release_message(
    *,
    repository: str = "acme/tool",
    number: int | None = None,
    release_id: int = 1,
    tag: str | None = None,
    body: str | None = None,
    action: str = "published",
    time: datetime | int = START,
    mode: envelope.Mode = "binary",
    api_root: str = API,
    event_id: str | None = None,
    partition: int = 0,
    offset: int = 0,
    topic: str = TOPIC,
    has_number: bool = True,
    **fields: Any,
) -> Message:
    """An event of one release. `time`: when it happened, or how many seconds after START; `fields` go into the release.

    `updated_at` is only in it when it is given; `number` is made from the name unless it is given.
    """
    moment = time if isinstance(time, datetime) else START + timedelta(seconds=time)
    told = {"body": body} if body is not None else {}
    raw = as_bytes(
        record(release_id, repository=repository, **told, **fields, tag_name=tag or f"v1.{release_id}.0")
    )
    known = (number or number_of(repository)) if has_number else None
    event = release_event.event(
        raw,
        action=action,
        name=repository,
        number=known,
        api_root=api_root,
        time=moment,
        event_id=event_id or f"{repository}-{release_id}-{action}-{moment.timestamp()}",
    )
    written = envelope.write(event, mode=mode)
    return message(
        written.value,
        written.headers,
        key=release_event.key(number=known, name=repository),
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp=moment,
    )


def document(
    document_id: str = "page-1", *, source: str = "https://wiki.example.org/team", **fields: Any
) -> dict[str, Any]:
    """A document's data; `fields` replace or add, and those that are None are left out."""
    made = {
        "id": document_id,
        "source": source,
        "title": f"How we do {document_id}",
        "body": f"## Steps\n\n- Turn the widget of {document_id}\n",
        "time": "2026-02-01T08:00:00Z",
        "url": f"https://wiki.example.org/team/{document_id}",
    }
    return {key: value for key, value in (made | fields).items() if value is not None}


def document_message(
    document_id: str = "page-1",
    *,
    source: str = "https://wiki.example.org/team",
    deleted: bool = False,
    time: datetime | int = START,
    mode: envelope.Mode = "binary",
    event_id: str | None = None,
    partition: int = 0,
    offset: int = 0,
    topic: str = DOCUMENT_TOPIC,
    **fields: Any,
) -> Message:
    """An event of one document. `time`: the event's; the document's own goes into `fields` by its words: `revised="…"`."""
    moment = time if isinstance(time, datetime) else START + timedelta(seconds=time)
    if "revised" in fields:
        fields["time"] = fields.pop("revised")
    raw = json.dumps(document(document_id, source=source, **fields)).encode()
    event = document_event.event(
        raw,
        deleted=deleted,
        time=moment,
        event_id=event_id or f"{document_id}-{deleted}-{moment.timestamp()}",
    )
    written = envelope.write(event, mode=mode)
    return message(
        written.value,
        written.headers,
        key=document_event.key(source),
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp=moment,
    )


def read(found: Message, *, github_api_url: str = API, topic_id: str = TOPIC_ID, **limits: int) -> Streamed:
    """What a message says, under the settings' limits."""
    return parse_event(found, topic_id=topic_id, github_api_url=github_api_url, **(LIMITS | limits))


def with_headers(found: Message, **headers: bytes | None) -> Message:
    """The message with headers replaced, by attribute (`id`, `time`, …; `content_type`); None: without it."""
    names = {
        ("content-type" if name == "content_type" else f"ce_{name}"): value for name, value in headers.items()
    }
    kept = [(name, value) for name, value in found.headers if name not in names]
    return found._replace(
        headers=(*kept, *((name, value) for name, value in names.items() if value is not None))
    )


def with_data(found: Message, **members: Any) -> Message:
    """A binary event with members of its data replaced; None: without it."""
    data = json.loads(found.value or b"{}") | members
    return found._replace(
        value=json.dumps({name: value for name, value in data.items() if value is not None}).encode()
    )


def with_release(found: Message, **fields: Any) -> Message:
    """A binary event with fields of its release replaced."""
    return with_data(found, release=json.loads(found.value or b"{}")["release"] | fields)


def poison(*, offset: int = 0, partition: int = 0) -> list[tuple[str, Message]]:
    """Messages that nothing can be made of, each with the reason that it is refused for."""
    sound = release_message()
    page = document_message(topic=TOPIC)
    value = sound.value or b""
    structured = release_message(mode="structured")
    batch = (
        (b"application/cloudevents-batch+json", "batched-events"),
        (b"application/cloudevents+avro", "unknown-format"),
    )
    made: list[tuple[str, Message]] = [
        ("no-value", sound._replace(value=None)),
        ("no-value", sound._replace(value=b"")),
        ("not-json", sound._replace(value=b"oops")),
        ("not-json", sound._replace(value=value[:-9])),
        ("not-json", sound._replace(value=value + b"}")),
        ("not-json", sound._replace(value=value.replace(b'"draft": false', b'"draft": NaN'))),
        ("not-json", structured._replace(value=(structured.value or b"")[:-1])),
        ("not-utf8", sound._replace(value=value.replace(b"widget", b"w\xefdget"))),
        ("not-utf8", with_headers(sound, id=b"\xff")),
        ("not-utf8", with_headers(sound, content_type=b"application/json; charset=latin1")),
        ("not-an-event", sound._replace(headers=())),
        ("not-an-event", sound._replace(headers=(("content-type", b"application/json"),))),
        ("not-an-event", sound._replace(value=b'{"hello": "world"}', headers=())),
        ("not-an-event", structured._replace(value=b"[]")),
        ("not-an-event", with_headers(sound, specversion=b"0.3")),
        *(
            ("not-an-event", with_headers(sound, **{name: None}))
            for name in ("specversion", "id", "source", "type")
        ),
        *(
            ("not-an-event", with_headers(sound, **{name: b""}))
            for name in ("id", "source", "type", "subject")
        ),
        ("unknown-type", with_headers(sound, type=b"com.github.push")),
        ("unknown-type", with_headers(sound, type=b"com.github.release.exploded")),
        ("unknown-format", with_headers(sound, content_type=b"application/avro")),
        *((reason, with_headers(sound, content_type=kind)) for kind, reason in batch),
        ("duplicate-header", sound._replace(headers=(*sound.headers, ("CE_ID", b"another")))),
        ("mismatched-event", with_headers(sound, subject=b"77")),
        ("mismatched-event", with_data(sound, action="deleted")),
        ("mismatched-event", with_headers(page, subject=b"another")),
        ("duplicate-key", sound._replace(value=value.replace(b'"draft"', b'"id": 1, "draft"', 1))),
        ("duplicate-key", sound._replace(value=b'{"action": "published", ' + value[1:])),
        ("too-deep", sound._replace(value=b'{"a":' * 10_000 + b"1" + b"}" * 10_000)),
        (
            "absurd-number",
            sound._replace(value=value.replace(b'"id": 1,', b'"id": ' + b"9" * 10_000 + b",", 1)),
        ),
        ("absurd-value", with_headers(sound, time=b"yesterday")),
        ("absurd-value", with_headers(sound, time=b"2026-03-01T09:00:00")),
        ("absurd-value", with_headers(sound, source=b"x" * 1_000_000)),
        ("absurd-value", with_headers(sound, id=b"a\nb")),
        ("nul", with_headers(sound, id=b"a\0b")),
        ("nul", with_release(sound, body="a\0b")),
        ("lone-surrogate", with_release(sound, body="\ud83d alone")),
        ("not-a-release", with_data(sound, release=None)),
        ("not-a-release", with_data(sound, release=[1])),
        ("not-a-release", sound._replace(value=b"[]")),
        ("missing-field", with_release(sound, tag_name=None)),
        ("missing-field", with_headers(sound, time=None)._replace(timestamp=None)),
        ("wrong-type", with_release(sound, body=["x"])),
        ("wrong-type", with_data(sound, repository="acme/tool")),
        ("bad-repository", with_data(sound, repository={"full_name": "a/b...c"})),
        ("body-too-long", with_release(sound, body="x" * 1_048_577)),
        ("not-a-document", page._replace(value=b"[]")),
        ("missing-field", with_data(page, body=None)),
        ("missing-field", with_data(page, source=None)),
        ("absurd-value", with_data(page, url="javascript:alert(1)")),
    ]
    return [
        (reason, item._replace(partition=partition, offset=offset + at))
        for at, (reason, item) in enumerate(made)
    ]
