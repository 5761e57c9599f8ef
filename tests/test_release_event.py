"""Events of releases: what they say, what they may not say, and that nothing else gets out of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb_platform.errors import BadRecord
from kb_platform.sources import envelope, release_event
from kb_platform.sources.files import find_files, read_records
from kb_platform.sources.github_json import parse_release, parse_state
from kb_platform.sources.message import Message
from kb_platform.sources.release import Release
from kb_platform.sources.release_event import OURS, from_webhook, number_of_name
from kb_platform.sources.sound_json import DEEPEST, parse_object, parse_with_source
from kb_platform.sources.streamed import Origin
from tests.records import as_bytes, record
from tests.stream_events import (
    API,
    START,
    document_message,
    message,
    number_of,
    poison,
    read,
    release_message,
    with_data,
    with_headers,
    with_release,
)

LIMIT = 1 << 20


def reason(found: Message, **options: Any) -> str:
    with pytest.raises(BadRecord) as refused:
        read(found, **options)
    return refused.value.reason


class TestWhatItSays:
    @pytest.mark.parametrize("mode", ["binary", "structured"])
    def test_every_part(self, mode: envelope.Mode) -> None:
        found = read(release_message(release_id=7, body="notes", time=5, partition=2, offset=9, mode=mode))
        assert found.repository == Origin("github", number_of("acme/tool"), "acme/tool")
        assert (found.release.release_id, found.release.tag, found.release.body) == (7, "v1.7.0", "notes")
        assert found.release == parse_release(found.raw, repository="acme/tool", max_body_bytes=LIMIT)[1]
        assert (found.deleted, found.versioned) == (False, True)
        assert found.event_at == found.revised_at == START + timedelta(seconds=5)
        assert (found.place, found.topic_id, found.partition, found.offset) == (
            "kafka:kb.releases/2@9",
            "topic-id-1",
            2,
            9,
        )

    @pytest.mark.parametrize("action", sorted(release_event.ACTIONS))
    def test_every_action(self, action: str) -> None:
        found = read(release_message(action=action, updated_at="2026-02-01T00:00:00Z"))
        assert found.deleted == (action == "deleted")
        assert found.release.draft == (action == "unpublished")
        revised = START if action == "deleted" else datetime(2026, 2, 1, tzinfo=UTC)
        assert found.revised_at == revised, "the time of a deletion is not in the release"

    def test_its_own_time_or_that_of_the_message(self) -> None:
        late = START + timedelta(days=1)
        found = release_message()._replace(timestamp=late)
        assert read(found).event_at == START
        assert read(with_headers(found, time=None)).event_at == late
        assert reason(with_headers(found, time=None)._replace(timestamp=None)) == "missing-field"
        assert (
            reason(with_headers(found, time=None)._replace(timestamp=datetime(1970, 1, 1, tzinfo=UTC)))
            == "absurd-value"
        )

    def test_the_bytes_of_the_release_are_those_that_were_sent(self) -> None:
        raw = b'{ "id" :7,\t"tag_name":"v\\u0031","n":1.50e0,"release":{"id":2}, "created_at":"2024-01-01T00:00:00Z","a":"}\\\\" }'
        value = (
            b'\xef\xbb\xbf{"x":{"release":{"id":1}},"y":"release","\\u0072elease"\n:\r'
            + raw
            + b' , "action":"edited",'
        )
        value += b'"repository":{"full_name":"acme/tool"}}'
        found = with_headers(release_message(action="edited"), subject=b"7")._replace(value=value)
        assert read(found).raw == raw
        assert read(found).release.tag == "v1"

    @pytest.mark.parametrize(
        "value",
        [
            b'{"release": {}, "\\u0072elease": {}}',
            b'{"release": {"id": 1, "id": 2}}',
            b'{"action": "published", "repository": {"id": 1, "id": 1}}',
            b'{"a": [[{"b": 1, "b": 1}]]}',
        ],
    )
    def test_a_key_that_stands_twice(self, value: bytes) -> None:
        assert reason(release_message()._replace(value=value)) == "duplicate-key"

    def test_type_and_data_agree(self) -> None:
        found = release_message()
        assert reason(with_data(found, action="edited")) == "mismatched-event"
        assert reason(with_data(found, action=None)) == "mismatched-event"
        assert reason(with_data(found, action=["published"])) == "mismatched-event"
        assert reason(with_headers(found, subject=b"2")) == "mismatched-event"
        assert reason(with_headers(found, subject=b"01")) == "mismatched-event"
        assert read(with_headers(found, subject=None)).release.release_id == 1

    @pytest.mark.parametrize(
        "kind", ["com.github.release", "com.github.release.", "com.github.release.PUBLISHED", "com.github.push", "x", "io.kb-platform.document"]
    )  # fmt: skip
    def test_other_types_are_not_for_here(self, kind: str) -> None:
        assert reason(with_headers(release_message(), type=kind.encode())) == "unknown-type"

    def test_a_record_over_the_limit(self) -> None:
        found = release_message()
        assert read(found, max_record_bytes=found.size).release
        assert reason(found, max_record_bytes=found.size - 1) == "record-too-long"
        flood = found._replace(headers=(*found.headers, *((f"x{n}", b"y" * 100) for n in range(1_000))))
        assert reason(flood, max_record_bytes=65_536) == "record-too-long"
        assert reason(found, max_body_bytes=5) == "body-too-long"

    @pytest.mark.parametrize("field", ["updated_at", "published_at"])
    def test_times_that_cannot_be(self, field: str) -> None:
        assert reason(with_release(release_message(), **{field: "soon"})) == "absurd-value"
        assert reason(with_release(release_message(), **{field: 5})) == "wrong-type"


class TestRepository:
    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ({"id": 5, "full_name": "a/b", "url": f"{API}/repos/a/b"}, Origin("github", 5, "a/b")),
            ({"id": 5, "url": f"{API}/repos/a/b"}, Origin("github", 5, "a/b")),
            ({"full_name": "a/b"}, Origin("github", None, "a/b")),
            ({"id": None, "full_name": "a/b", "url": None}, Origin("github", None, "a/b")),
            ({"id": OURS - 1, "full_name": "a/b"}, Origin("github", OURS - 1, "a/b")),
            ({"id": OURS, "full_name": "a/b"}, Origin("github", None, "a/b")),
            ({"id": 5}, Origin("github", 5, "acme/tool")),
            (None, Origin("github", None, "acme/tool")),
            ({"url": "https://codeberg.org/api/v1/repos/a/b"}, Origin("https://codeberg.org/api/v1", None, "a/b")),
            ({"url": "HTTPS://CodeBerg.org/api/v1/repos/a/b/"}, Origin("https://codeberg.org/api/v1", None, "a/b")),
            ({"url": "https://ghe.example/api/v3/repos/a/b"}, Origin("https://ghe.example/api/v3", None, "a/b")),
            ({"full_name": "a/b", "url": "https://github.com/a/b"}, Origin("github", None, "a/b")),
            ({"full_name": "a/b", "url": "https://git.example:8443/a/b"}, Origin("https://git.example:8443", None, "a/b")),
            ({"url": "http://api.github.com/repos/a/b"}, Origin("http://api.github.com", None, "a/b")),
        ],
    )  # fmt: skip
    def test_which_it_is(self, told: Any, expected: Origin) -> None:
        assert read(with_data(release_message(), repository=told)).repository == expected

    def test_of_github_enterprise_server(self) -> None:
        ghe = "https://ghe.example/api/v3"
        own, public = release_message(api_root=ghe), release_message()
        assert read(own, github_api_url=ghe).repository.forge == "github"
        assert read(public, github_api_url=ghe).repository.forge == API, "another forge, as seen from there"
        assert read(public, github_api_url="http://127.0.0.1:8080").repository.forge == "github"

    def test_it_is_looked_for_in_the_links_and_the_source(self) -> None:
        bare = with_release(with_data(release_message(), repository=None), html_url=None)
        assert read(bare).repository.name == "acme/tool"
        assert reason(with_headers(bare, source=b"/elsewhere")) == "no-repository"

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            ("a/b", "wrong-type"), ([], "wrong-type"), ({"id": "5"}, "wrong-type"), ({"id": True}, "wrong-type"),
            ({"id": 0}, "absurd-value"), ({"id": -5}, "absurd-value"), ({"full_name": 5}, "wrong-type"), ({"full_name": ""}, "bad-repository"),
            ({"full_name": "a"}, "bad-repository"), ({"full_name": "a/b...c"}, "bad-repository"), ({"full_name": "a" * 301}, "absurd-value"),
            ({"full_name": "\ud800/x"}, "lone-surrogate"), ({"url": "ftp://x/repos/a/b"}, "absurd-value"),
            ({"url": "https://u:p@x/repos/a/b"}, "absurd-value"), ({"url": "https://[x/repos/a/b"}, "absurd-value"),
            ({"url": "https:///repos/a/b"}, "absurd-value"), ({"url": "https://x\n/repos/a/b"}, "absurd-value"), ({"url": 5}, "wrong-type"),
            ({"url": "https://x/repos/a/b/releases"}, None),
        ],
    )  # fmt: skip
    def test_that_cannot_be(self, told: Any, expected: str | None) -> None:
        found = with_data(release_message(), repository=told)
        if expected is None:
            assert read(found).repository == Origin("https://x", None, "acme/tool")
        else:
            assert reason(found) == expected

    def test_keys(self) -> None:
        assert release_event.key(number=5, name="a/b") == b"5"
        unknown = release_event.key(number=None, name="Acme/Tool")
        assert (
            unknown
            == release_event.key(number=None, name="acme/tool")
            == str(number_of_name("acme/tool")).encode()
        )
        assert OURS <= int(unknown) < 2**63


class TestMaking:
    def test_the_release_stands_in_the_data_as_it_is(self) -> None:
        raw = b'\xef\xbb\xbf\n{"id": 3, "tag_name" : "v\\u0031", "created_at": "2024-01-01T00:00:00Z"} \r\n'
        made = release_event.event(
            raw, action="published", name="a/b", number=None, api_root=f"{API}/", time=START, event_id="e"
        )
        assert (made.source, made.subject, made.type) == (
            f"{API}/repos/a/b",
            "3",
            "com.github.release.published",
        )
        assert raw.strip(b"\xef\xbb\xbf \r\n") in made.data
        found = read(message(made.data, envelope.write(made).headers))
        assert found.repository == Origin("github", None, "a/b")

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [(b"oops", "not-json"), (b"[1]", "not-a-release"), (b'1, "action": "deleted"', "not-json"), (b'{"a": 1, "a": 2}', "duplicate-key")],
    )  # fmt: skip
    def test_what_is_no_object_is_not_made(self, raw: bytes, expected: str) -> None:
        with pytest.raises(BadRecord) as refused:
            release_event.event(
                raw, action="edited", name="a/b", number=1, api_root=API, time=START, event_id="e"
            )
        assert refused.value.reason == expected

    def test_no_action_is_made_up(self) -> None:
        with pytest.raises(BadRecord, match="published"):
            release_event.event(
                b"{}", action="x", name="a/b", number=1, api_root=API, time=START, event_id="e"
            )


class TestWebhook:
    def body(self, **members: Any) -> bytes:
        made = {
            "action": "published",
            "release": record(7),
            "repository": {"id": 5, "full_name": "acme/tool", "url": f"{API}/repos/acme/tool"},
        }
        return json.dumps(made | members).encode()  # fmt: skip

    def test_as_the_adapter_maps_it(self) -> None:
        body = self.body()
        key, made = from_webhook(body, delivery="d-1", time=START)
        assert key == b"5"
        assert made == ("d-1", f"{API}/repos/acme/tool", "com.github.release.published", "7", START, body)
        assert made.data is body, "what was signed is what is sent"

    @pytest.mark.parametrize(
        ("members", "key", "expected"),
        [
            ({"repository": None}, None, None),
            ({"repository": {"full_name": "acme/tool"}}, str(number_of_name("acme/tool")).encode(), None),
            ({"repository": {"id": 2**62, "full_name": "a/b"}}, str(number_of_name("a/b")).encode(), None),
            ({"repository": {"id": True, "url": "\ud800", "full_name": "\0"}}, None, "wrong-type"),
            ({"repository": [1]}, None, "wrong-type"),
            ({"release": None}, b"5", "not-a-release"),
            ({"release": {"id": "x"}}, b"5", "wrong-type"),
            ({"action": "exploded"}, b"5", "unknown-type"),
            ({"action": "\0\n" * 9_000}, b"5", "unknown-type"),
            ({"action": ""}, b"5", "unknown-type"),
        ],
    )
    def test_what_cannot_be_read_is_landed_to_be_quarantined(
        self, members: dict[str, Any], key: bytes | None, expected: str | None
    ) -> None:
        found_key, made = from_webhook(self.body(**members), delivery="d", time=START)
        assert found_key == key
        landed = message(made.data, envelope.write(made).headers)
        if expected is None:
            assert read(landed).repository.name
        else:
            assert reason(landed) == expected

    @pytest.mark.parametrize("delivery", ["", "a\nb", "\ud800", "x" * 9_000])
    def test_a_delivery_without_a_sound_number(self, delivery: str) -> None:
        made = from_webhook(self.body(), delivery=delivery, time=START)[1]
        assert len(made.event_id) == 64
        assert made == from_webhook(self.body(), delivery=delivery, time=START)[1]

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b"", "not-json"), (b"oops", "not-json"), (b"\xff\xfe", "not-json"), (b"[]", "not-an-event"), (b"{}", "not-an-event"),
            (b'{"action": 5}', "not-an-event"), (b"[" * 1_000_000, "too-deep"), (b"payload=%7B%7D", "not-json"),
        ],
    )  # fmt: skip
    def test_what_is_no_event(self, body: bytes, expected: str) -> None:
        with pytest.raises(BadRecord) as refused:
            from_webhook(body, delivery="d", time=START)
        assert refused.value.reason == expected

    def test_a_number_of_ten_megabytes_takes_no_time(self) -> None:
        body = b'{"action": "published", "release": {"id": ' + b"9" * 10_000_000 + b"}}"
        started = time.process_time()
        assert from_webhook(body, delivery="d", time=START)[1].subject is None
        assert time.process_time() - started < 1

    @given(
        st.dictionaries(
            st.sampled_from(["action", "release", "repository"]),
            st.text(st.characters(), max_size=9) | st.integers() | st.none()
            | st.dictionaries(
                st.sampled_from(["id", "url", "full_name"]), st.text(st.characters(), max_size=9) | st.integers() | st.booleans() | st.none()
            ),
        ),
        st.text(st.characters(), max_size=9),
    )  # fmt: skip
    @settings(max_examples=200, deadline=None)
    def test_whatever_is_made_is_sound(self, body: dict[str, Any], delivery: str) -> None:
        try:
            key, made = from_webhook(json.dumps(body).encode(), delivery=delivery, time=START)
        except BadRecord as refused:
            assert refused.reason == "not-an-event"
            return
        assert key is None or 0 < int(key) < 2**63
        written = envelope.write(made)
        assert envelope.read(message(written.value, written.headers)) == made


class TestHostile:
    @pytest.mark.parametrize(
        ("expected", "found"), poison(), ids=lambda value: value if isinstance(value, str) else ""
    )
    def test_poison_has_its_reason(self, expected: str, found: Message) -> None:
        assert reason(found) == expected

    @pytest.mark.parametrize(
        "value",
        [
            b'{"action": ' + b"[" * 1_000_000, b'{"release":' * 200_000, b'{"a": "' + b'\\"' * 2_000_000, b"{" + b" " * 8_000_000,
            b'{"action": "published", "release": {"id": ' + b"9" * 10_000_000 + b"}}", b'{"a": [' + b"{}," * 600_000, b'{"": ' * 300,
            b"{" + b",".join(b'"k%d": [{}]' % number for number in range(80_000)) + b"}", b'{"a": "' + b"[" * 5_000_000 + b'"}',
        ],
        ids=range(9),
    )  # fmt: skip
    def test_time_is_linear_in_the_value(self, value: bytes) -> None:
        started = time.process_time()
        assert reason(release_message()._replace(value=value)) in (
            "not-json",
            "too-deep",
            "absurd-number",
            "mismatched-event",
        )
        assert time.process_time() - started < 3

    @pytest.mark.parametrize("around", [0, 600])
    def test_the_deepest(self, around: int) -> None:
        """Brackets in a text are no depth."""
        for depth, is_sound in ((DEEPEST, True), (DEEPEST + 1, False)):
            for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
                inner = opening * (depth - 1) + b"1" + closing * (depth - 1)
                raw = b'{"text": "' + b"[" * (around + 40) + b'", "x": ' + inner + b"}"
                if is_sound:
                    assert parse_object(raw) == parse_with_source(raw, "x", meaning="", reason="")[0]
                    continue
                for parse in (parse_object, lambda raw: parse_with_source(raw, "x", meaning="", reason="")):
                    with pytest.raises(BadRecord) as refused:
                        parse(raw)
                    assert refused.value.reason == "too-deep"

    @given(
        st.dictionaries(
            st.text(max_size=4) | st.just("release"),
            st.recursive(
                st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("release"), inner, max_size=3),
            ),
            max_size=5,
        ),
        st.sampled_from([None, 1, "\t"]),
        st.sampled_from([(",", ":"), (" , ", " : "), (",\n", ":\r\n")]),
        st.booleans(),
        st.sampled_from([b"", b" ", b"\xef\xbb\xbf"]),
        st.integers(0, 200),
    )  # fmt: skip
    @settings(max_examples=300, deadline=None)
    def test_members_are_parsed_like_the_whole(
        self,
        value: dict[str, Any],
        indent: Any,
        separators: tuple[str, str],
        ascii_only: bool,
        before: bytes,
        cut: int,
    ) -> None:
        raw = (
            before + json.dumps(value, indent=indent, separators=separators, ensure_ascii=ascii_only).encode()
        )
        fields, source = parse_with_source(raw, "release", meaning="", reason="")
        assert fields == value
        assert (source is not None) == ("release" in value)
        if source is not None:
            assert json.loads(source) == value["release"]
            assert source in raw
        if 0 < cut < len(raw) - len(before):
            with pytest.raises(BadRecord) as refused:
                parse_with_source(raw[:-cut], "release", meaning="", reason="")
            assert refused.value.reason in ("not-json", "not-utf8")

    @given(st.data())
    @settings(max_examples=150, deadline=None)
    def test_any_bytes_any_headers(self, data: st.DataObject) -> None:
        start = data.draw(
            st.sampled_from([release_message(), release_message(mode="structured"), document_message()])
        )
        value = bytearray(start.value or b"")
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(value)))
            value[at : at + data.draw(st.integers(0, 40))] = data.draw(
                st.binary(max_size=9)
                | st.sampled_from(
                    [b'"', b"{", b"]", b"null", b"1e999", b'"\\ud800"', b'"\\u0000"', b"-1", b"[]"]
                )
            )
        headers = list(start.headers)
        for _ in range(data.draw(st.integers(0, 2))):
            name, kept = data.draw(st.sampled_from(headers))
            headers.append(
                (
                    data.draw(st.sampled_from([name, name.upper()])),
                    data.draw(st.none() | st.binary(max_size=9) | st.just(kept)),
                )
            )
            headers.pop(data.draw(st.integers(0, len(headers) - 1)))
        found = message(bytes(value) if data.draw(st.booleans()) else start.value, tuple(headers))
        try:
            said = read(found)
        except BadRecord as refused:
            str(refused).encode()
            assert "\0" not in str(refused)
            return
        assert said.raw in (found.value or b"")
        for text in (
            said.release.tag,
            said.release.name,
            said.release.body,
            said.repository.name,
            said.repository.forge,
        ):
            assert "\0" not in text
            text.encode()

    def test_attacks_in_the_notes_come_through_as_they_are(self, shared_data: Path) -> None:
        """Cleaning is the reader's side: the log keeps what was said, and refuses what an import refuses."""
        outcomes: set[str] = set()
        for line in (shared_data / "attacks.jsonl").read_bytes().splitlines():
            payload = json.loads(line)["payload"]
            body = payload if isinstance(payload, str) else json.dumps(payload)
            imported = outcome(lambda body=body: import_of(as_bytes(record(1, body=body))))
            assert outcome(lambda body=body: read(release_message(body=body)).release) == imported
            outcomes.add(imported if isinstance(imported, str) else "sound")
            for made in (
                lambda body=body: release_message(tag=body[:9] or "x"),
                lambda body=body: document_message(body, source=body, body=body, title=body, event_id="e"),
            ):
                assert outcome(lambda made=made: read(made())) is not None
        assert outcomes == {"sound", "nul"}


def import_of(raw: bytes) -> Release:
    return parse_release(raw, repository="acme/tool", max_body_bytes=LIMIT)[1]


def outcome(make: Callable[[], Any]) -> Any:
    """What is made, or the reason why not."""
    try:
        return make()
    except BadRecord as refused:
        return refused.reason


def test_every_shared_release_is_what_an_import_makes_of_it(shared_data: Path) -> None:
    count = 0
    for path in find_files([shared_data / "releases"]):
        for found in read_records(path, max_record_bytes=1 << 24):
            if count % 4 == 0:
                name, release, revised = parse_state(found.raw, repository=None, max_body_bytes=LIMIT)
                made = release_event.event(
                    found.raw, action="published", name=name, number=1, api_root=API, time=START, event_id="e"
                )
                said = read(message(made.data, envelope.write(made).headers))
                assert (said.raw, said.release, said.repository.name) == (found.raw, release, name)
                assert said.revised_at == (revised or START)
            count += 1
    assert count == 4_362
