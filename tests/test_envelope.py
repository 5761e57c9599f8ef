"""CloudEvents on Kafka: what is read, what is refused, and whether the SDK agrees."""

from __future__ import annotations

import base64
import json
import string
import time
import tracemalloc
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings.kafka import (
    KafkaMessage,
    from_kafka_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from kb_platform.errors import BadRecord
from kb_platform.sources.envelope import LONGEST_ATTRIBUTE, Envelope, Mode, Written, read, write
from kb_platform.sources.message import Message
from tests.stream_events import START, message, release_message, with_headers

DATA = b'{"hello": "w\xc3\xb6rld", "n": [1, 2]}'
EVENT = Envelope("id-1", "/source", "com.example.type", "subject-1", START, DATA)
MODES: tuple[Mode, ...] = ("binary", "structured")
STRUCTURED = b"application/cloudevents+json"


def as_message(written: Written, *, key: bytes | None = None) -> Message:
    return message(written.value, written.headers, key=key)


def structured(content_type: bytes | None = STRUCTURED, **members: Any) -> Message:
    """An event in structured mode with these members besides those it needs; None: without it."""
    made = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"a": 1}} | members
    value = json.dumps({name: member for name, member in made.items() if member is not None}).encode()
    return message(value, [] if content_type is None else [("content-type", content_type)])


def binary(*headers: tuple[str, bytes], value: bytes = DATA) -> Message:
    made = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/s"), ("ce_type", b"t")]
    return message(value, [*made, *headers])


def reason(found: Message) -> str:
    with pytest.raises(BadRecord) as refused:
        read(found)
    return refused.value.reason


class TestBothModes:
    @pytest.mark.parametrize("mode", MODES)
    def test_what_is_written_is_read(self, mode: Mode) -> None:
        assert read(as_message(write(EVENT, mode=mode))) == EVENT

    def test_what_stands_on_the_wire(self) -> None:
        written = write(EVENT)
        assert written.value == DATA
        assert dict(written.headers) == {
            "ce_specversion": b"1.0", "ce_id": b"id-1", "ce_source": b"/source", "ce_type": b"com.example.type",
            "ce_subject": b"subject-1", "ce_time": b"2026-03-01T09:00:00Z", "content-type": b"application/json",
        }  # fmt: skip
        written = write(EVENT, mode="structured")
        assert written.headers == [("content-type", STRUCTURED)]
        assert written.value.endswith(b'"data": ' + DATA + b"}"), "as it was, byte for byte"

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize(
        "data",
        [b"oops", b"\xff\xfe", b'{"a": 1', b"\xef\xbb\xbf\xff", b"[" * 5_000, '{"ö": 1}'.encode("utf-16")],
    )
    def test_data_that_is_no_json_is_carried_as_it_is(self, mode: Mode, data: bytes) -> None:
        assert read(as_message(write(EVENT._replace(data=data), mode=mode))).data == data

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize(
        "change",
        [
            {"event_id": ""}, {"source": ""}, {"type": ""}, {"subject": ""}, {"event_id": "a\nb"}, {"subject": "\ud800"},
            {"source": "x" * 8_001}, {"time": None}, {"time": START.replace(tzinfo=None)}, {"time": datetime(1970, 1, 1, tzinfo=UTC)},
        ],
    )  # fmt: skip
    def test_what_could_not_be_read_is_not_written(self, mode: Mode, change: dict[str, Any]) -> None:
        with pytest.raises(BadRecord):
            write(EVENT._replace(**change), mode=mode)


class TestHeaders:
    def test_their_names_are_compared_without_case(self) -> None:
        found = message(
            DATA, [("CE_SpecVersion", b"1.0"), ("Ce_Id", b"1"), ("ce_SOURCE", b"/s"), ("CE_TYPE", b"t")]
        )
        assert read(found) == Envelope("1", "/s", "t", None, None, DATA)

    def test_values_are_utf8_and_not_percent_encoded(self) -> None:
        """Unlike over HTTP: the Kafka binding says UTF-8."""
        found = read(binary(("ce_subject", "Größe %41 €".encode())))
        assert found.subject == "Größe %41 €"

    def test_those_of_others_are_not_looked_at(self) -> None:
        others = [
            ("traceparent", b"\xff"),
            ("traceparent", b"\xff"),
            ("ce_custom", b"\xff"),
            ("ce_", b""),
            ("", b"\0"),
        ]
        assert read(binary(*others, ("ce_dataschema", b"x" * 999_999))).event_id == "1"

    def test_one_without_a_value_is_not_there(self) -> None:
        assert read(binary()._replace(headers=(*binary().headers, ("ce_subject", None)))).subject is None

    @pytest.mark.parametrize("name", ["ce_id", "CE_ID", "ce_Time", "content-type"])
    def test_none_may_stand_there_twice(self, name: str) -> None:
        value = {"ce_id": b"1", "ce_time": b"2026-03-01T09:00:00Z"}.get(name.lower(), b"application/json")
        assert reason(binary((name.lower(), value), (name, value))) == "duplicate-header"

    @pytest.mark.parametrize("name", ["ce_specversion", "ce_id", "ce_source", "ce_type"])
    def test_none_is_made_up(self, name: str) -> None:
        whole = binary()
        for broken in (
            [h for h in whole.headers if h[0] != name],
            [(n, b"" if n == name else v) for n, v in whole.headers],
        ):
            assert reason(whole._replace(headers=tuple(broken))) == "not-an-event"

    def test_no_time_is_made_up(self) -> None:
        assert read(binary()).time is None
        assert read(structured()).time is None

    def test_a_list_without_end_takes_no_time(self) -> None:
        started = time.process_time()
        read(binary(*((f"x{number}", b"y") for number in range(100_000))))
        assert time.process_time() - started < 1

    @pytest.mark.parametrize(
        "name", ["ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "content-type"]
    )
    def test_a_value_of_a_megabyte(self, name: str) -> None:
        rest = [h for h in binary().headers if h[0] != name]
        assert reason(message(DATA, [*rest, (name, b"x" * 1_000_000)])) == "absurd-value"  # type: ignore[list-item]
        assert reason(message(DATA, [*rest, (name, b"\xff" * 1_000_000)])) == "absurd-value"  # type: ignore[list-item]

    def test_the_longest_attribute(self) -> None:
        assert (
            len(read(binary(("ce_subject", "é".encode() * LONGEST_ATTRIBUTE))).subject or "")
            == LONGEST_ATTRIBUTE
        )
        assert reason(binary(("ce_subject", b"x" * (LONGEST_ATTRIBUTE + 1)))) == "absurd-value"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (b"\xff", "not-utf8"), (b"a\xed\xa0\x80", "not-utf8"), (b"a\0", "nul"), (b"a\x1fb", "absurd-value"),
            (b"a\x7f", "absurd-value"), ("a\x85".encode(), "absurd-value"), ("a\ufffe".encode(), "absurd-value"),
            ("a\ufdd0".encode(), "absurd-value"), ("a\U0010ffff".encode(), "absurd-value"),
        ],
    )  # fmt: skip
    def test_characters_that_are_barred(self, value: bytes, expected: str) -> None:
        assert reason(binary(("ce_subject", value))) == expected


class TestContentType:
    @pytest.mark.parametrize(
        "content_type",
        [
            STRUCTURED, b"application/cloudevents+json; charset=utf-8", b"Application/CloudEvents+JSON;charset=UTF-8",
            b'application/cloudevents+json ; charset="utf8"; x=y', b"application/cloudevents+json;", None,
        ],
    )  # fmt: skip
    def test_of_an_event_that_is_its_value(self, content_type: bytes | None) -> None:
        assert read(structured(content_type)).type == "t"

    @pytest.mark.parametrize(
        ("content_type", "expected"),
        [
            (b"application/cloudevents-batch+json", "batched-events"),
            (b"APPLICATION/CLOUDEVENTS-BATCH+JSON; charset=utf-8", "batched-events"),
            (b"application/cloudevents+avro", "unknown-format"),
            (b"application/cloudevents+protobuf", "unknown-format"),
            (b"application/cloudevents", "unknown-format"),
            (b"application/cloudevents+jsonx", "unknown-format"),
            (b"application/cloudevents+json; charset=latin1", "not-utf8"),
            (b"application/cloudevents+json; charset=utf-16", "not-utf8"),
            (b"application/json", "not-an-event"),
            (b"\xff", "not-utf8"),
        ],
    )
    def test_of_one_that_is_not_read(self, content_type: bytes, expected: str) -> None:
        assert reason(structured(content_type)) == expected

    @pytest.mark.parametrize(
        "content_type",
        [b"application/json", b"application/json; charset=utf-8", b"text/json", b"application/vnd.github.v3+json", b"APPLICATION/JSON"],
    )  # fmt: skip
    def test_of_data(self, content_type: bytes) -> None:
        assert read(binary(("content-type", content_type))).data == DATA
        assert read(structured(datacontenttype=content_type.decode())).data

    @pytest.mark.parametrize(
        ("content_type", "expected"),
        [
            (b"application/xml", "unknown-format"),
            (b"", "unknown-format"),
            (b"application/json; charset=utf-16", "not-utf8"),
        ],
    )
    def test_of_data_that_is_not_read(self, content_type: bytes, expected: str) -> None:
        assert reason(binary(("content-type", content_type))) == expected
        assert reason(structured(datacontenttype=content_type.decode())) == expected

    def test_headers_may_repeat_what_the_value_says(self) -> None:
        found = structured()
        assert (
            read(found._replace(headers=(*found.headers, ("ce_id", b"another"), ("ce_id", b"\xff")))).event_id
            == "1"
        )


class TestStructured:
    def test_data_is_taken_verbatim(self) -> None:
        value = (
            b'\xef\xbb\xbf { "x":{"data": 1},"specversion":"1.0","id":"1","source":"/s", "d\\u0061ta" : {"data" :"}" ,'
            b'"a":1.50, "b": "\\u00e9"} ,"type":"t"}\n'
        )
        assert (
            read(message(value, [("content-type", STRUCTURED)])).data
            == b'{"data" :"}" ,"a":1.50, "b": "\\u00e9"}'
        )

    def test_data_in_base64(self) -> None:
        encoded = base64.b64encode(DATA).decode()
        assert read(structured(data=None, data_base64=encoded)).data == DATA
        assert reason(structured(data_base64=encoded)) == "not-an-event"
        assert reason(structured(data=None, data_base64=encoded + "!")) == "absurd-value"
        assert reason(structured(data=None, data_base64="ö")) == "absurd-value"
        assert reason(structured(data=None, data_base64=5)) == "wrong-type"

    @pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
    @pytest.mark.parametrize(
        ("value", "expected"), [(None, "not-an-event"), ("", "not-an-event"), (5, "wrong-type")]
    )
    def test_an_attribute_that_is_none(self, name: str, value: Any, expected: str) -> None:
        assert reason(structured(**{name: value})) == expected

    def test_null_is_as_if_it_were_not_there(self) -> None:
        value = b'{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": null, "time": null, "data": {}}'
        assert read(message(value, [("content-type", STRUCTURED)])) == Envelope(
            "1", "/s", "t", None, None, b"{}"
        )

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (b"[]", "not-an-event"), (b"7", "not-an-event"), (b"{", "not-json"), (b"", "no-value"), (b'{"a" 1}', "not-json"),
            (b'{"id": "1", "id": "2"}', "duplicate-key"), (b'{"a": 1,}', "not-json"), (b"{1: 2}", "not-json"),
            (b'{"a": 1 "b": 2}', "not-json"), (b'{"a": 1} x', "not-json"), (b"{} {}", "not-json"), (b"{}", "not-an-event"),
            (b'{"data": {"a": {"b": 1, "b": 2}}}', "duplicate-key"), (b'{"id": "\xff"}', "not-utf8"),
            (b"[" * 1_000_000, "too-deep"), (b'{"a":' * 400 + b"1" + b"}" * 400, "too-deep"), (b'{"a": Infinity}', "not-json"),
            (b'{"data": ' + b"9" * 10_000_000 + b"}", "absurd-number"), (b'{"id": "\\ud800", "specversion": "1.0"', "not-json"),
        ],
    )  # fmt: skip
    def test_a_value_that_is_no_event(self, value: bytes, expected: str) -> None:
        assert reason(message(value, [("content-type", STRUCTURED)])) == expected

    def test_half_a_surrogate_pair(self) -> None:
        assert reason(structured(id="\ud800")) == "lone-surrogate"
        assert reason(structured(id="\0")) == "nul"

    def test_no_data(self) -> None:
        assert reason(structured(data=None)) == "no-value"


class TestTime:
    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("2026-03-01T09:00:00Z", START),
            ("2026-03-01t09:00:00z", START),
            ("2026-03-01 09:00:00Z", START),
            ("2026-03-01T10:00:00+01:00", START),
            ("2026-03-01T09:00:00-00:00", START),
            ("2026-03-01T09:00:00.5Z", START.replace(microsecond=500_000)),
            ("2026-03-01T09:00:00.123456789Z", START.replace(microsecond=123_456)),
            ("2026-03-01T08:59:60Z", START - timedelta(seconds=1)),
        ],
    )
    def test_of_rfc3339(self, written: str, expected: datetime) -> None:
        for found in (binary(("ce_time", written.encode())), structured(time=written)):
            moment = read(found).time
            assert moment == expected
            assert moment is not None
            assert moment.utcoffset() == timedelta(0)

    @pytest.mark.parametrize(
        "written",
        [
            "2026-03-01", "2026-03-01T09:00:00", "2026-03-01T09:00Z", "20260301T090000Z", "2026-W09-7T09:00:00Z", "now", "1772355600",
            "2026-02-30T09:00:00Z", "2026-03-01T24:00:00Z", "2026-03-01T09:00:00+24:00", "2026-03-01T09:00:00+0100",
            "1970-01-01T00:00:00Z", "2200-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
            "２０２６-03-01T09:00:00Z", "2026-03-01T09:00:00Z ",
        ],
    )  # fmt: skip
    def test_that_is_none(self, written: str) -> None:
        assert reason(binary(("ce_time", written.encode()))) == "absurd-value"
        assert reason(structured(time=written)) == "absurd-value"

    def test_that_is_no_text(self) -> None:
        assert reason(structured(time=1_772_355_600)) == "wrong-type"


# What an attribute may be, with what gives codecs trouble.
ATTRIBUTES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=30
) | st.sampled_from(["1", "ü%20€", '"quoted"', "a\\b", "\U0001f680", " "])
TIMES = st.datetimes(
    min_value=START.replace(year=1981, tzinfo=None),
    max_value=START.replace(year=2199, tzinfo=None),
    timezones=st.sampled_from(
        [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))]
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), JSON, max_size=4)


@given(
    ATTRIBUTES,
    ATTRIBUTES,
    ATTRIBUTES,
    st.none() | ATTRIBUTES,
    TIMES,
    OBJECTS,
    st.sampled_from(MODES),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_what_the_sdk_writes_is_read(
    event_id: str,
    source: str,
    kind: str,
    subject: str | None,
    at: datetime,
    data: dict[str, Any],
    mode: Mode,
    extra: bool,
) -> None:
    attributes: dict[str, Any] = {"id": event_id, "source": source, "type": kind, "time": at}
    attributes |= {} if subject is None else {"subject": subject}
    attributes |= (
        {"partitionkey": "5", "traceid": "abc", "datacontenttype": "application/json"} if extra else {}
    )
    made = (to_binary_event if mode == "binary" else to_structured_event)(CloudEvent(attributes, data))
    found = read(message(made.value, list(made.headers.items())))
    assert found[:5] == (event_id, source, kind, subject, at)
    assert json.loads(found.data) == data


@given(ATTRIBUTES, ATTRIBUTES, ATTRIBUTES, st.none() | ATTRIBUTES, TIMES, OBJECTS, st.sampled_from(MODES))
@settings(max_examples=200, deadline=None)
def test_what_is_written_the_sdk_reads(
    event_id: str, source: str, kind: str, subject: str | None, at: datetime, data: dict[str, Any], mode: Mode
) -> None:
    envelope = Envelope(event_id, source, kind, subject, at, json.dumps(data, ensure_ascii=False).encode())
    written = write(envelope, mode=mode)
    found = from_kafka_event(KafkaMessage(dict(written.headers), None, written.value))
    assert (found.get_id(), found.get_source(), found.get_type()) == (event_id, source, kind)
    assert (found.get_subject(), found.get_time(), found.get_specversion()) == (subject, at, "1.0")
    assert found.get_data() == data
    assert read(as_message(written)) == envelope._replace(time=at.astimezone(UTC))


HEADER_NAMES = st.sampled_from(
    ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_subject", "ce_time", "content-type", "CE_Id"]
) | st.text(max_size=8)
HEADER_VALUES = st.none() | st.binary(max_size=12) | st.sampled_from(
    [b"1.0", b"com.github.release.published", b"io.kb-platform.document.updated", b"2026-03-01T09:00:00Z", STRUCTURED, b"application/json"]
)  # fmt: skip
VALUES = (
    st.none()
    | st.binary(max_size=60)
    | OBJECTS.map(lambda value: json.dumps(value).encode())
    | st.text(string.printable, max_size=30).map(str.encode)
)


@given(VALUES, st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=9))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_an_event_or_refused(
    value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    try:
        found = read(message(value, tuple(headers)))
    except BadRecord as refused:
        str(refused).encode()
        assert "\0" not in str(refused)
        return
    assert isinstance(found.data, bytes)
    assert found.event_id
    assert found.source
    assert found.type


def test_what_the_sdk_does_that_must_not_be() -> None:
    """Why it does not read here. When one of these no longer holds, decision 0014 may be looked at anew."""
    made = from_kafka_event(KafkaMessage({"ce_type": b"t", "ce_source": b"/s"}, None, b"{}"))
    assert made.get_id(), "an id is made up"
    broken: list[tuple[dict[str, bytes], bytes, type[Exception]]] = [
        ({"content-type": STRUCTURED}, b"[]", AttributeError),
        ({"content-type": STRUCTURED}, b"[" * 100_000, RecursionError),
        ({"ce_type": b"\xff"}, b"{}", UnicodeDecodeError),
    ]
    for headers, value, error in broken:
        with pytest.raises(error):
            from_kafka_event(KafkaMessage(headers, None, value))
        with pytest.raises(BadRecord):
            read(message(value, list(headers.items())))


def test_memory_stays_with_a_hostile_value() -> None:
    hostile = with_headers(release_message())._replace(value=b'{"release": ' + b"9" * 10_000_000 + b"}")
    tracemalloc.start()
    try:
        assert read(hostile).data is hostile.value
        assert reason(hostile._replace(headers=(("content-type", STRUCTURED),))) == "absurd-number"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 10_000_000
