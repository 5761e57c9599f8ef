"""Events of documents: a page, an issue, a decision in the shape of a release."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_platform.errors import BadRecord
from kb_platform.sources import document_event, envelope
from kb_platform.sources.message import Message
from kb_platform.sources.release import repository_name
from kb_platform.sources.streamed import Origin
from tests.stream_events import START, document, document_message, message, read, with_data, with_headers


def bits(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) >> 195


def reason(found: Message, **limits: int) -> str:
    with pytest.raises(BadRecord) as refused:
        read(found, **limits)
    return refused.value.reason


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_every_part(mode: envelope.Mode) -> None:
    found = read(document_message("page-1", source="acme/wiki", mode=mode, partition=1, offset=4))
    assert found.repository == Origin("documents", bits("acme/wiki"), "acme/wiki")
    release = found.release
    assert (release.release_id, release.tag, release.name) == (
        1 + bits("page-1"),
        "page-1",
        "How we do page-1",
    )
    assert release.body == "## Steps\n\n- Turn the widget of page-1\n"
    assert (
        release.published_at == release.created_at == found.revised_at == datetime(2026, 2, 1, 8, tzinfo=UTC)
    )
    assert (release.prerelease, release.draft, release.author) == (False, False, None)
    assert release.url == "https://wiki.example.org/team/page-1"
    assert (found.event_at, found.deleted, found.versioned) == (START, False, False)
    assert json.loads(found.raw) == document("page-1", source="acme/wiki")
    assert found.place == "kafka:kb.documents/1@4"


def test_its_time_is_that_of_the_event_where_it_says_none() -> None:
    found = read(document_message(revised=None))
    assert found.revised_at == found.event_at == found.release.published_at == START


def test_a_deletion_needs_an_id_and_a_source() -> None:
    found = read(document_message(deleted=True, title=None, body=None, url=None, revised=None))
    assert found.deleted
    assert (found.release.tag, found.release.name, found.release.body, found.release.url) == (
        "page-1",
        "page-1",
        "",
        "",
    )
    assert found.release.release_id == read(document_message()).release.release_id
    assert found.repository == read(document_message()).repository


@pytest.mark.parametrize("field", ["id", "source", "title", "body", "url"])
@pytest.mark.parametrize(
    ("value", "expected"), [(None, "missing-field"), (5, "wrong-type"), ([], "wrong-type")]
)
def test_a_field_that_is_no_text(field: str, value: Any, expected: str) -> None:
    raw = json.dumps(document() | {field: value}).encode()
    assert reason(document_message()._replace(value=raw)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"id": ""}, "absurd-value"), ({"id": "  "}, "absurd-value"), ({"id": "a\nb"}, "absurd-value"), ({"id": "x" * 501}, "absurd-value"),
        ({"id": "\ud800"}, "lone-surrogate"), ({"id": "a\0"}, "nul"), ({"source": ""}, "absurd-value"), ({"source": "\t"}, "absurd-value"),
        ({"source": "x" * 2_001}, "absurd-value"), ({"source": "\ud800"}, "lone-surrogate"), ({"title": "x" * 2_001}, "absurd-value"),
        ({"title": "a\0"}, "nul"), ({"body": "a\0"}, "nul"), ({"body": "\ud800"}, "lone-surrogate"), ({"body": "x" * 99}, "body-too-long"),
        ({"url": ""}, "absurd-value"), ({"url": "wiki/page"}, "absurd-value"), ({"url": "javascript:alert(1)"}, "absurd-value"),
        ({"url": "https://u@h/"}, "absurd-value"), ({"time": "yesterday"}, "absurd-value"), ({"time": "2026-01-01T00:00:00"}, "absurd-value"),
        ({"time": 5}, "wrong-type"), ({"time": "1960-01-01T00:00:00Z"}, "absurd-value"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be(fields: dict[str, Any], expected: str) -> None:
    raw = json.dumps(document(body="short") | fields).encode()
    found = with_headers(document_message(body="short")._replace(value=raw), subject=None)
    assert reason(found, max_body_bytes=50) == expected


def test_texts_are_nfc_and_an_id_is_the_same_however_it_is_written() -> None:
    composed, apart = (
        read(document_message("Café")),
        read(document_message("Cafe\u0301 ", title=" Cafe\u0301")),
    )
    assert composed.release.release_id == apart.release.release_id
    assert (apart.release.tag, apart.release.name) == ("Café", "Café")
    assert read(document_message(title=" ")).release.name == "page-1"


def test_subject_and_id_agree() -> None:
    assert reason(with_headers(document_message(), subject=b"page-2")) == "mismatched-event"
    assert read(with_headers(document_message(), subject=None)).release.tag == "page-1"
    assert reason(with_headers(document_message(), type=b"io.kb-platform.document.created")) == "unknown-type"


def test_more_fields_are_let_be() -> None:
    assert read(with_data(document_message(), labels=["a"], draft="x", tag_name=5)).release.tag == "page-1"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("acme/wiki", "acme/wiki"),
        ("Acme/wiki.v2_x", "Acme/wiki.v2_x"),
        ("https://wiki.example.org/team", "wiki.example.org/team"),
        ("https://wiki.example.org/team/handbook/", "wiki.example.org/team-handbook"),
        ("https://wiki.example.org:8443/?space=A&b", "wiki.example.org-8443/space-A-b"),
        ("https://wiki.example.org", "wiki.example.org/documents"),
        ("urn:acme:wiki", "urn-acme-wiki/documents"),
        ("wiki", "wiki/documents"),
        ("Team Wiki / Réseau", "Team-Wiki/R-seau"),
        ("日本語", "documents/documents"),
        ("a/b...c", "a/b.c"),
        ("../..", "documents/documents"),
        ("a|b/c", "a-b/c"),
        ("x" * 2_000 + "/" + "y" * 9, "x" * 60 + "/" + "y" * 9),
    ],
)
def test_the_name_of_a_source(source: str, expected: str) -> None:
    found = document_event.origin(source)
    assert found == document_event.origin(f" {source} ")
    digits = "" if source == expected else f"-{hashlib.sha256(source.encode()).hexdigest()[:6]}"
    assert found.name == expected + digits
    assert found.number == bits(source)
    assert document_event.key(source) == str(found.number).encode()


@given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("ab/.:-_ |?#", max_size=20))
def test_any_source_has_a_name_or_is_refused(source: str) -> None:
    try:
        found = document_event.origin(source)
    except BadRecord as refused:
        assert refused.reason in ("absurd-value", "nul")
        return
    assert repository_name(found.name) == found.name
    assert document_event.origin(source + "x").name != found.name


@given(st.text(st.characters(), min_size=1, max_size=40), st.text(st.characters(), min_size=1, max_size=40))
def test_whatever_is_made_is_sound(document_id: str, source: str) -> None:
    raw = json.dumps(document(document_id, source=source)).encode()
    made = document_event.event(b" " + raw + b"\n", deleted=False, time=START, event_id="e")
    assert made.data == raw
    written = envelope.write(made)
    assert envelope.read(message(written.value, written.headers)) == made


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"oops", "not-json"),
        (b"[]", "not-a-document"),
        (b"{}", "missing-field"),
        (b'{"id": "a", "source": 5}', "missing-field"),
    ],
)
def test_what_is_no_document_is_not_made(raw: bytes, expected: str) -> None:
    with pytest.raises(BadRecord) as refused:
        document_event.event(raw, deleted=False, time=START, event_id="e")
    assert refused.value.reason == expected
