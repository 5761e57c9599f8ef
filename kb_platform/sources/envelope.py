"""CloudEvents 1.0 on Kafka: a message's bytes ↔ an envelope with its data.

Attributes are read from the headers (binary mode) or from the value (structured mode), by the rules of the Kafka protocol
binding and the JSON event format; a message that breaks them is a BadRecord, never an envelope with made-up parts. What
the data says is for `release_event` and `document_event`; decision 0014 says why the SDK writes and does not read.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, NamedTuple

from kb_platform.errors import BadRecord
from kb_platform.sources.fields import bounded
from kb_platform.sources.message import Header, Message
from kb_platform.sources.sound_json import bare, parse_with_source

VERSION = "1.0"
# A release's page is the longest thing that an attribute names (github_json.LONGEST_LINK).
LONGEST_ATTRIBUTE = 8_000

Mode = Literal["binary", "structured"]

_READ = frozenset(("specversion", "id", "source", "type", "subject", "time"))
_HEADERS = {"ce_" + name: name for name in _READ}
_STRUCTURED = "application/cloudevents"
_STRUCTURED_JSON = re.compile(r"application/cloudevents\+json *(?:;.*)?", re.IGNORECASE | re.DOTALL)
_JSON = re.compile(
    r"(?:application|text)/(?:[\w.+-]+\+)?json *(?:;(?P<parameters>.*))?", re.IGNORECASE | re.DOTALL
)
_CHARSET = re.compile(r"charset *= *\"?(?:utf-?8|us-ascii)\"? *(?:;|$)", re.IGNORECASE)
# Characters that the specification bars from attributes: controls, halves of surrogate pairs, noncharacters.
_BARRED = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(p << 16 | 0xFFFE)}{chr(p << 16 | 0xFFFF)}" for p in range(17))
    + "]"
)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d):(\d\d)(\.\d{1,30})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


class Envelope(NamedTuple):
    """An event: what it is about, and its data as it was sent. `time`: when it happened, in UTC."""

    event_id: str
    source: str
    type: str
    subject: str | None
    time: datetime | None
    data: bytes


class Written(NamedTuple):
    """An event as Kafka takes it."""

    value: bytes
    headers: list[tuple[str, bytes]]


def read(message: Message) -> Envelope:
    """The event that a message is, in either mode. Raises BadRecord."""
    value = message.value
    if not value:
        raise BadRecord("no-value", "the message has no value; what is deleted is said by an event's type")
    content_type = _header(message.headers, "content-type")
    if content_type is not None and content_type[: len(_STRUCTURED)].lower() == _STRUCTURED:
        _check_format(content_type)
        return _structured(value)
    attributes = _attribute_headers(message.headers)
    if content_type is None and not attributes and value[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        # A producer that cannot write headers (Kafka 0.10, a plain console) has only this mode.
        return _structured(value)
    _check_content_type(content_type)
    return _envelope(attributes, value)


def write(envelope: Envelope, *, mode: Mode = "binary") -> Written:
    """The event as a message's value and headers; the data as it is. Raises BadRecord for attributes that cannot be."""
    attributes = _attributes(envelope)
    if mode == "binary":
        from cloudevents.core.bindings.kafka import to_binary_event
        from cloudevents.core.v1.event import CloudEvent

        made = to_binary_event(CloudEvent(attributes, envelope.data))
        return Written(made.value, list(made.headers.items()))
    from cloudevents.core.formats.json import JSONFormat
    from cloudevents.core.v1.event import CloudEvent

    # The SDK would parse the data and write it anew; it is put in behind the attributes instead.
    head = JSONFormat().write(CloudEvent(attributes))
    data = _embedded(envelope.data)
    return Written(head[:-1] + b", " + data + b"}", [("content-type", b"application/cloudevents+json")])


def is_sound(attribute: str) -> bool:
    """Whether a text may be an attribute: not empty, not absurdly long, none of the characters that are barred."""
    return 0 < len(attribute) <= LONGEST_ATTRIBUTE and not _BARRED.search(attribute)


def rfc3339(field: str, value: str) -> datetime:
    """A time with seconds and a zone. Digits beyond microseconds are dropped; a leap second is the one before it."""
    match = _RFC3339.fullmatch(value)
    if not match:
        raise BadRecord(
            "absurd-value", f"{field} is not one of RFC 3339 (2026-03-01T09:00:00Z): {value[:80]!r}"
        )
    day, minute, second, fraction, zone = match.groups()
    plain = f"{day}T{minute}:{'59' if second == '60' else second}{(fraction or '')[:7]}{zone.upper()}"
    try:
        return bounded(field, datetime.fromisoformat(plain))
    except ValueError:
        raise BadRecord("absurd-value", f"{field} does not exist: {value[:80]!r}") from None


def _header(headers: Iterable[Header], wanted: str) -> str | None:
    """The one header of that name; names are compared without regard to case. One without a value is none."""
    found = [value for name, value in headers if value is not None and name.lower() == wanted]
    if len(found) > 1:
        raise _twice(wanted)
    return _header_text(wanted, found[0]) if found else None


def _attribute_headers(headers: Iterable[Header]) -> dict[str, str]:
    """The attributes that are read, from their headers. Others are somebody else's, and are not looked at."""
    found: dict[str, str] = {}
    for name, value in headers:
        header = name.lower()
        attribute = _HEADERS.get(header)
        if attribute is None or value is None:
            continue
        if attribute in found:
            raise _twice(header)
        found[attribute] = _header_text(header, value)
    return found


def _twice(header: str) -> BadRecord:
    # Kafka takes a header twice, and readers differ in which one they believe.
    return BadRecord("duplicate-header", f"the header {header!r} stands there twice")


def _header_text(header: str, value: bytes) -> str:
    if len(value) > 4 * LONGEST_ATTRIBUTE:
        raise BadRecord("absurd-value", f"the header {header!r} has {len(value):,} bytes")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRecord("not-utf8", f"the header {header!r}: byte {error.start} is not UTF-8") from None


def _check_format(content_type: str) -> None:
    if not _STRUCTURED_JSON.fullmatch(content_type):
        if content_type.lower().startswith("application/cloudevents-batch"):
            raise BadRecord("batched-events", "a batch of events in one message; send each in one of its own")
        raise BadRecord(
            "unknown-format", f"events in the format {content_type[:80]!r}; send application/cloudevents+json"
        )
    _check_charset(content_type.partition(";")[2])


def _check_content_type(content_type: str | None) -> None:
    if content_type is None or content_type == "application/json":
        return
    match = _JSON.fullmatch(content_type)
    if not match:
        raise BadRecord(
            "unknown-format", f"data of the type {content_type[:80]!r}, where it is application/json"
        )
    _check_charset(match["parameters"] or "")


def _check_charset(parameters: str) -> None:
    if "charset" in parameters.lower() and not _CHARSET.search(parameters):
        raise BadRecord("not-utf8", f"JSON in another character set than UTF-8: {parameters.strip()[:80]!r}")


def _structured(value: bytes) -> Envelope:
    """The event that a value is by itself. Headers are not looked at: they may repeat the attributes."""
    fields, data = parse_with_source(value, "data", meaning="an event", reason="not-an-event")
    attributes: dict[str, str] = {}
    for name in _READ:
        attribute = fields.get(name)
        if isinstance(attribute, str):
            attributes[name] = attribute
        elif attribute is not None:
            raise BadRecord("wrong-type", f"the event's {name} is no text")
    content_type = fields.get("datacontenttype")
    if content_type is not None and not isinstance(content_type, str):
        raise BadRecord("wrong-type", "the event's datacontenttype is no text")
    _check_content_type(content_type)
    encoded = fields.get("data_base64")
    if encoded is not None:
        if data is not None:
            raise BadRecord("not-an-event", "an event with both data and data_base64")
        data = _decoded(encoded)
    if data is None:
        if "specversion" not in attributes:
            raise BadRecord(
                "not-an-event", "a JSON object without specversion; no header says what it is either"
            )
        raise BadRecord("no-value", "the event has no data; one that deletes says so in its type")
    return _envelope(attributes, data)


def _decoded(encoded: Any) -> bytes:
    if not isinstance(encoded, str):
        raise BadRecord("wrong-type", "the event's data_base64 is no text")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadRecord("absurd-value", "the event's data_base64 is not Base64") from None


def _envelope(attributes: dict[str, str], data: bytes) -> Envelope:
    version = attributes.get("specversion")
    if version != VERSION:
        said = "no specversion" if version is None else f"specversion {version[:40]!r}"
        raise BadRecord("not-an-event", f"{said}, where a CloudEvent of version {VERSION} is wanted")
    for name in ("id", "source", "type"):
        if name not in attributes:
            raise BadRecord("not-an-event", f"an event without {name}")
    for name, value in attributes.items():
        _check_attribute(name, value)
    time = attributes.get("time")
    return Envelope(
        attributes["id"],
        attributes["source"],
        attributes["type"],
        attributes.get("subject"),
        None if time is None else rfc3339("the event's time", time),
        data,
    )


def _check_attribute(name: str, value: str) -> None:
    if value.isascii() and value.isprintable() and 0 < len(value) <= LONGEST_ATTRIBUTE:
        return
    if not value:
        raise BadRecord("not-an-event", f"an event whose {name} is empty")
    if len(value) > LONGEST_ATTRIBUTE:
        raise BadRecord("absurd-value", f"the event's {name} has more than {LONGEST_ATTRIBUTE:,} characters")
    if barred := _BARRED.search(value):
        reason = {"\x00": "nul"}.get(barred[0], "absurd-value")
        if "\ud800" <= barred[0] <= "\udfff":
            reason = "lone-surrogate"
        raise BadRecord(reason, f"the event's {name} has the character U+{ord(barred[0]):04X}")


def _attributes(envelope: Envelope) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "specversion": VERSION,
        "id": envelope.event_id,
        "source": envelope.source,
        "type": envelope.type,
        "datacontenttype": "application/json",
    }
    if envelope.subject is not None:
        attributes["subject"] = envelope.subject
    for name, value in attributes.items():
        _check_attribute(name, value)
    if envelope.time is None:
        # The SDK makes up a time where there is none; so an event is not written without one.
        raise BadRecord("not-an-event", "an event that says no time")
    if envelope.time.tzinfo is None:
        raise BadRecord("absurd-value", f"the event's time has no zone: {envelope.time}")
    attributes["time"] = bounded("the event's time", envelope.time)
    return attributes


def _embedded(data: bytes) -> bytes:
    """The data as a member of the event: as it is if that is JSON, else in Base64."""
    try:
        json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return b'"data_base64": "' + base64.b64encode(data) + b'"'
    return b'"data": ' + bare(data)
