"""The schemas of events say what is read: no more, no less, and as the document says it."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kb_platform.errors import BadRecord
from kb_platform.sources import document_event, envelope, release_event
from kb_platform.sources.document_event import LONGEST_SOURCE
from kb_platform.sources.events import DOCUMENT_TYPES, RELEASE_TYPES
from kb_platform.sources.github_json import LONGEST_LINK, LONGEST_LOGIN, LONGEST_NAME, LONGEST_TAG
from tests.documents import ROOT, blocks, rows
from tests.stream_events import API, START, document_message, message, poison, read, release_message
from tests.test_sources import releases_in

FOLDER = ROOT / "docs" / "events"
DOCUMENT = (ROOT / "docs" / "events.md").read_text()
STRUCTURED = [("content-type", b"application/cloudevents+json")]


def schema(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.schema.json").read_bytes())


def validator(name: str, part: str | None = None) -> Draft202012Validator:
    """Of an event in structured mode; `part`: of one of its definitions alone."""
    whole = schema(name)
    if part is None:
        return Draft202012Validator(whole)
    return Draft202012Validator(
        {"$schema": whole["$schema"], "$ref": f"#/$defs/{part}", "$defs": whole["$defs"]}
    )


def is_read(event: dict[str, Any]) -> bool:
    try:
        read(message(json.dumps(event).encode(), STRUCTURED))
    except BadRecord:
        return False
    return True


def event_of(kind: str, **fields: Any) -> dict[str, Any]:
    """A sound event in structured mode, parsed; `fields` go into the release or document."""
    made = (
        release_message(mode="structured", **fields)
        if kind == "release"
        else document_message(mode="structured", **fields)
    )
    return json.loads(made.value or b"")


@pytest.mark.parametrize("name", ["release", "document"])
def test_they_are_schemas(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert {path.name for path in FOLDER.iterdir()} == {"release.schema.json", "document.schema.json"}
    assert f"events/{name}.schema.json" in DOCUMENT


def test_they_know_every_type_and_every_limit() -> None:
    release, document = schema("release"), schema("document")
    assert set(release["properties"]["type"]["enum"]) == RELEASE_TYPES
    assert set(document["properties"]["type"]["enum"]) == DOCUMENT_TYPES
    assert set(release["$defs"]["data"]["properties"]["action"]["enum"]) == release_event.ACTIONS
    fields = release["$defs"]["release"]["properties"]
    assert fields["tag_name"]["maxLength"] == LONGEST_TAG
    assert fields["name"]["anyOf"][0]["maxLength"] == LONGEST_NAME
    assert fields["html_url"]["anyOf"][0]["maxLength"] == LONGEST_LINK
    assert fields["author"]["anyOf"][0]["properties"]["login"]["anyOf"][0]["maxLength"] == LONGEST_LOGIN
    fields = document["$defs"]["deleted"]["properties"]
    assert (fields["id"]["maxLength"], fields["source"]["maxLength"]) == (LONGEST_TAG, LONGEST_SOURCE)
    for event in (release, document):
        assert event["properties"]["id"]["maxLength"] == envelope.LONGEST_ATTRIBUTE


@pytest.mark.parametrize("action", sorted(release_event.ACTIONS))
def test_events_of_releases_that_are_written(action: str) -> None:
    validator("release").validate(event_of("release", action=action))
    validator("release", "data").validate(json.loads(release_message(action=action).value or b""))
    unnamed = event_of("release", action=action, has_number=False)
    validator("release").validate(unnamed)
    for other in release_event.ACTIONS - {action}:
        unnamed["data"]["action"] = other
        assert not validator("release").is_valid(unnamed)
        assert not is_read(unnamed)


def test_events_of_documents_that_are_written() -> None:
    validator("document").validate(event_of("document"))
    validator("document", "updated").validate(json.loads(document_message().value or b""))
    gone = event_of("document", deleted=True, title=None, body=None, url=None, revised=None)
    validator("document").validate(gone)
    validator("document", "deleted").validate(gone["data"])
    assert not validator("document", "updated").is_valid(gone["data"])


def test_data_in_base64() -> None:
    event = event_of("release")
    event["data_base64"] = base64.b64encode(json.dumps(event["data"]).encode()).decode()
    assert not validator("release").is_valid(event)
    assert not is_read(event)
    del event["data"]
    assert validator("release").is_valid(event)
    assert is_read(event)


# Places in an event, and what is put there. None takes it away, NULL says null.
NULL = object()
VALUES = st.sampled_from(
    [None, NULL, 0, -1, 1, 2**63, 1.5, True, [], {}, "", " ", "x", "a\nb", "a\0", "x" * 501, "x" * 2_001, "x" * 8_001,
     "2026-03-01T09:00:00Z", "2026-03-01T09:00:00", "2026-03-01", "http://h/x", "ftp://h/x", "https://u@h/x", "1.0", "0.3", "acme/tool",
     "application/json", "text/json; charset=utf-8", "application/xml", "deleted", "com.github.release.deleted"]
)  # fmt: skip
PLACES = {
    "release": [
        *((name,) for name in ("specversion", "id", "source", "type", "time", "datacontenttype", "data", "traceid")),
        *(("data", name) for name in ("action", "release", "repository", "sender")),
        *(("data", "release", name) for name in (
            "id", "tag_name", "name", "body", "created_at", "published_at", "updated_at", "draft", "prerelease", "html_url", "author", "assets")),
        *(("data", "repository", name) for name in ("id", "full_name", "url", "html_url", "owner")),
        ("data", "release", "author", "login"),
    ],
    "document": [
        *((name,) for name in ("specversion", "id", "source", "type", "time", "datacontenttype", "data", "traceid")),
        *(("data", name) for name in ("id", "source", "title", "body", "time", "url", "labels")),
    ],
}  # fmt: skip
# What a schema cannot say, or says more loosely: dates as ISO 8601 has them, and one line of text.
LOOSE = {
    "created_at",
    "published_at",
    "updated_at",
    "tag_name",
    "html_url",
    "id",
    "source",
    "url",
    "full_name",
}


@pytest.mark.parametrize("kind", ["release", "document"])
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_what_a_schema_refuses_is_refused(kind: str, data: st.DataObject) -> None:
    """And what it takes is read, but for what a schema cannot say."""
    event = event_of(kind)
    event.pop("subject")
    place = data.draw(st.sampled_from(PLACES[kind]))
    value = data.draw(VALUES)
    *way, last = place
    holder = cast("dict[str, Any]", copy.deepcopy(event))
    event = holder
    for name in way:
        holder = holder[name]
    if value is None:
        holder.pop(last, None)
    else:
        holder[last] = None if value is NULL else value
    valid = validator(kind).is_valid(event)
    if valid != is_read(event):
        assert valid, "what is read, the schema takes"
        assert last in LOOSE


def test_poison_in_the_data_is_refused_by_the_schema() -> None:
    refused = [
        (reason, found)
        for reason, found in poison()
        if reason in ("not-a-release", "wrong-type", "bad-repository")
    ]
    assert len(refused) >= 6
    for _, found in refused:
        assert not validator("release", "data").is_valid(json.loads(found.value or b""))


# --- the document -----------------------------------------------------------------------------------------


def test_its_examples_are_events() -> None:
    examples = [json.loads(block) for block in blocks(DOCUMENT, "json")]
    kinds = {example["type"] for example in examples}
    assert kinds == {"com.github.release.published", document_event.UPDATED, document_event.DELETED}
    for example in examples:
        validator("release" if "github" in example["type"] else "document").validate(example)
        found = read(message(json.dumps(example).encode(), STRUCTURED))
        assert found.deleted == example["type"].endswith("deleted")
        if found.repository.forge == "documents":
            assert f"`{found.repository.name}`" in DOCUMENT


def test_its_example_in_python_is_an_event() -> None:
    """With a producer that only keeps what it is given."""
    kept: list[dict[str, Any]] = []

    class Producer:
        def __init__(self, settings: dict[str, Any]) -> None:
            assert "bootstrap.servers" in settings

        def produce(self, topic: str, **parts: Any) -> None:
            kept.append(parts | {"topic": topic})

        def flush(self) -> None: ...

    (code,) = blocks(DOCUMENT, "python")
    exec(code.replace("from confluent_kafka import Producer\n", ""), {"Producer": Producer})
    (sent,) = kept
    assert sent["topic"] == "kb.documents"
    found = read(message(sent["value"].encode(), sent["headers"]))
    validator("document", "updated").validate(json.loads(sent["value"]))
    assert (found.release.tag, found.event_at.second) == ("on-call", 2)


def test_it_lists_every_type_and_every_reason() -> None:
    listed = {
        cell.strip("`")
        for row in rows(DOCUMENT)
        for cell in (row.get("type", ""), row.get("reason", ""))
        if cell
    }
    assert listed >= RELEASE_TYPES | DOCUMENT_TYPES
    known = {
        cell.strip("`")
        for row in rows((ROOT / "docs" / "operation.md").read_text())
        for cell in [row.get("reason", "")]
    }
    assert {reason for reason, _ in poison()} <= listed | known


# --- real releases ----------------------------------------------------------------------------------------


def test_events_of_shared_releases(shared_data: Path) -> None:
    checked = validator("release")
    for path in sorted((shared_data / "releases").glob("*.jsonl")):
        for raw in path.read_bytes().splitlines()[:25]:
            made = release_event.event(
                raw, action="published", name="a/b", number=1, api_root=API, time=START, event_id="e"
            )
            checked.validate(json.loads(envelope.write(made, mode="structured").value))


def test_releases_keep_to_githubs_own_schema(shared_data: Path) -> None:
    """What was complete when it was recorded is complete in the event, by the schema of its time."""
    folder = shared_data / "github_api"
    schemas = [
        Draft202012Validator(json.loads(path.read_bytes()))
        for path in sorted(folder.glob("release.*schema.json"))
    ]
    assert len(schemas) == 3
    complete = 0
    for path in sorted((folder / "recorded").glob("*.json")):
        for release in releases_in(json.loads(path.read_bytes())):
            fitting = [schema for schema in schemas if schema.is_valid(release)]
            if not fitting:
                continue
            complete += 1
            made = release_event.event(
                json.dumps(release).encode(),
                action="released",
                name="a/b",
                number=1,
                api_root=API,
                time=START,
                event_id="e",
            )
            said = read(message(made.data, envelope.write(made).headers))
            for found in (json.loads(made.data)["release"], json.loads(said.raw)):
                for schema in fitting:
                    schema.validate(found)
            validator("release").validate(json.loads(envelope.write(made, mode="structured").value))
    assert complete >= 10
