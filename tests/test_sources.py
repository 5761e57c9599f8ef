"""From files to records to releases: what is read, what is refused and by which name."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kb_platform.errors import BadRecord, SourceError
from kb_platform.sources.files import Record, find_files, read_records
from kb_platform.sources.github_json import parse_release, repository_in
from kb_platform.sources.release import Release, repository_name
from tests.records import as_bytes, record, write_lines

LIMIT = 65_536
# Checks and people count by these; they are stable.
REASONS = {
    "absurd-number", "absurd-value", "bad-repository", "body-too-long", "duplicate-key", "lone-surrogate", "missing-field",
    "no-repository", "not-a-release", "not-json", "not-utf8", "nul", "too-deep", "wrong-type",
}  # fmt: skip
ONE, TWO, THREE = (as_bytes(record(number)) for number in (1, 2, 3))


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)


def read(path: Path, *, limit: int = LIMIT) -> list[Record]:
    return list(read_records(path, max_record_bytes=limit))


def raws(path: Path) -> list[bytes]:
    return [found.raw for found in read(path)]


def parse(raw: bytes, *, repository: str | None = None, limit: int = 1 << 20) -> Release:
    return parse_release(raw, repository=repository, max_body_bytes=limit)[1]


def reason(raw: bytes, *, repository: str | None = None, limit: int = 1 << 20) -> str:
    with pytest.raises(BadRecord) as refused:
        parse(raw, repository=repository, limit=limit)
    return refused.value.reason


class TestFiles:
    """Which files, and where one record ends and the next begins."""

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("lines.jsonl", ONE + b"\n" + TWO + b"\n", [ONE, TWO]),
            ("no-end.jsonl", ONE + b"\n" + TWO, [ONE, TWO]),
            ("crlf.jsonl", ONE + b"\r\n" + TWO + b"\r\n", [ONE, TWO]),
            ("blank-lines.ndjson", b"\n\n" + ONE + b"\n  \n\t\r\n" + TWO + b"\n\n", [ONE, TWO]),
            ("bom.jsonl", b"\xef\xbb\xbf" + ONE + b"\n" + TWO, [ONE, TWO]),
            ("bom.json", b"\xef\xbb\xbf[" + ONE + b"]", [ONE]),
            ("lines.json", ONE + b"\n" + TWO, [ONE, TWO]),
            ("one.json", ONE, [ONE]),
            ("one-pretty.json", json.dumps(record(1), indent=2).encode(), [record(1)]),
            ("two-pretty.json", 2 * (json.dumps(record(1), indent=2).encode() + b"\n"), [record(1), record(1)]),
            ("array.json", b"[" + ONE + b"," + TWO + b"]", [ONE, TWO]),
            ("array-pretty.json", json.dumps([record(1), record(2)], indent=4).encode(), [record(1), record(2)]),
            ("pages.json", b"[" + ONE + b"][" + TWO + b"]\n[]\n[" + THREE + b"]", [ONE, TWO, THREE]),
            ("far.json", b" \n" * 100 + b"[\n" + ONE + b"\n]", [ONE]),
            ("empty.jsonl", b"", []),
            ("empty.json", b"", []),
            ("blank.json", b" \n\t" * 100, []),
            ("empty-array.json", b" [ ] ", []),
            ("tricky.json", b'[{"a": "]}{[,\\"", "b": "\\\\"},{"c": []}]', [b'{"a": "]}{[,\\"", "b": "\\\\"}', b'{"c": []}']),
        ],
    )  # fmt: skip
    def test_records_of_a_file(
        self, tmp_path: Path, name: str, content: bytes, expected: list[bytes | dict[str, Any]]
    ) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        found = read(path)
        assert [
            json.loads(f.raw) if isinstance(w, dict) else f.raw for f, w in zip(found, expected, strict=True)
        ] == expected
        assert not any(item.is_cut for item in found)

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("bad-between.jsonl", ONE + b"\n{oops\n" + TWO, [ONE, b"{oops", TWO]),
            ("bad-first.json", b'{"id": 1, "tag\n' + ONE + b"\n" + TWO, [b'{"id": 1, "tag', ONE, TWO]),
            ("bomb-between.jsonl", ONE + b"\n[[[[\n" + TWO, [ONE, b"[[[[", TWO]),
            ("cut-array.json", b"[" + ONE + b"," + TWO[:-9], [ONE, TWO[:-9]]),
            ("scalars.json", b"[1," + ONE + b',"x",,null]', [b"1", ONE, b'"x"', b"null"]),
            ("tail.json", b"[" + ONE + b"] and more", [ONE, b"and more"]),
            ("open-quote.json", b'[\n{"a": "oops}\n},\n' + ONE + b"\n]", [b'{"a": "oops}\n}', ONE]),
            ("closed-twice.json", b"[" + ONE + b"]]", [ONE]),
            ("text.json", b"hello\n" + ONE, [b"hello", ONE]),
        ],
    )
    def test_a_damaged_file_gives_what_is_sound_and_loses_nothing(
        self, tmp_path: Path, name: str, content: bytes, expected: list[bytes]
    ) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        assert raws(path) == expected

    def test_a_record_says_where_it_stands(self, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "a.jsonl", [ONE, b"", TWO])
        (tmp_path / "b.json").write_bytes(b"[" + ONE + b"," + TWO + b"]")
        assert [r.place for r in read(lines)] == ["a.jsonl:1", "a.jsonl:3"]
        assert [r.place for r in read(tmp_path / "b.json")] == ["b.json[0]", "b.json[1]"]

    def test_a_file_name_may_be_any_bytes(self, tmp_path: Path) -> None:
        path = Path(str(tmp_path).encode().decode() + "/caf\udce9.jsonl")
        try:
            path.write_bytes(ONE)
        except (OSError, UnicodeError):
            pytest.skip("this file system takes no such name")
        assert [r.place for r in read(path)] == ["caf\\xe9.jsonl:1"]

    @pytest.mark.parametrize("name", ["long.jsonl", "long.json"])
    def test_a_record_over_the_limit_is_cut_and_the_next_one_is_whole(
        self, tmp_path: Path, name: str
    ) -> None:
        long = b'{"x": "' + b"y" * LIMIT + b'"}'
        content = (
            b"[" + ONE + b"," + long + b"," + TWO + b"]"
            if name.endswith("json")
            else b"\n".join((ONE, long, TWO))
        )
        (tmp_path / name).write_bytes(content)
        found = read(tmp_path / name)
        assert [r.is_cut for r in found] == [False, True, False]
        assert found[1].raw == long[:LIMIT]
        assert found[1].size == len(long)
        assert found[2].raw == TWO

    @pytest.mark.parametrize("extra", [-1, 0, 1, 2])
    @pytest.mark.parametrize("end", [b"", b"\n", b"\n" + ONE])
    def test_the_limit_itself(self, tmp_path: Path, extra: int, end: bytes) -> None:
        line = b'"' + b"y" * (LIMIT - 2 + extra) + b'"'
        (tmp_path / "lines.jsonl").write_bytes(line + end)
        found = read(tmp_path / "lines.jsonl")[0]
        assert found.is_cut == (extra > 0)
        assert found.size == len(line)

    def test_blanks_hide_no_record(self, tmp_path: Path) -> None:
        (tmp_path / "blanks.jsonl").write_bytes(
            b" " * 3 * LIMIT + ONE + b"\n" + b" " * 3 * LIMIT + b"\n" + TWO
        )
        assert [r.raw for r in read(tmp_path / "blanks.jsonl")] == [ONE, TWO]

    @pytest.mark.parametrize("name", ["huge.jsonl", "huge.json"])
    def test_memory_does_not_grow_with_the_record(self, tmp_path: Path, name: str) -> None:
        with (tmp_path / name).open("wb") as file:
            file.write(b"[" + ONE + b',{"x": "' if name.endswith("json") else b'{"x": "')
            for _ in range(64):
                file.write(b"y" * (1 << 20))
            file.write(b'"}]' if name.endswith("json") else b'"}')
        tracemalloc.start()
        try:
            found = [(r.size, r.is_cut) for r in read_records(tmp_path / name, max_record_bytes=LIMIT)]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert found[-1] == (64 * (1 << 20) + 9, True)
        assert peak < 8 << 20

    @pytest.mark.parametrize(
        "content",
        [b'[{"x": "' + b'\\"' * 1_000_000, b'["' * 500_000, b"[" * 1_000_000, b"\\" * 1_000_000 + b'"['],
    )
    def test_time_is_linear_in_the_file(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bomb.json"
        path.write_bytes(b"[" + content)
        started = time.process_time()
        assert read(path)
        assert time.process_time() - started < 5

    def test_folders_stand_for_their_files(self, tmp_path: Path) -> None:
        inner = tmp_path / "inner"
        inner.mkdir()
        for path in (tmp_path / "b.jsonl", tmp_path / "a.ndjson", inner / "c.json"):
            path.write_bytes(ONE)
        for path in (tmp_path / "notes.txt", tmp_path / "manifest.json"):
            path.write_text("{}")
        expected = [tmp_path / "a.ndjson", tmp_path / "b.jsonl", inner / "c.json"]
        assert find_files([tmp_path]) == expected
        assert find_files([tmp_path, tmp_path / "a.ndjson"]) == expected, "each once"
        assert find_files([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"], (
            "a file that is named is meant"
        )

    def test_what_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="does not exist"):
            find_files([tmp_path / "nothing.json"])
        with pytest.raises(SourceError, match=r"no \.json"):
            find_files([tmp_path])
        with pytest.raises(SourceError, match="cannot be read"):
            read(tmp_path)

    @given(st.binary(max_size=400), st.sampled_from([".json", ".jsonl"]))
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(b'["\\', ".json")
    def test_any_bytes_are_records_and_none_is_lost(
        self, tmp_path: Path, content: bytes, suffix: str
    ) -> None:
        path = tmp_path / f"any{suffix}"
        path.write_bytes(content)
        rest = content
        for found in read(path):
            assert found.raw
            at = rest.find(found.raw)
            assert at >= 0, "records come in order, as they stand"
            assert not rest[:at].strip(b"[], \t\n\r\v\f\xef\xbb\xbf"), (
                "and nothing but separators lies between"
            )
            rest = rest[at + len(found.raw) :]
        assert not rest.strip(b"[], \t\n\r\v\f\xef\xbb\xbf")


class TestReleases:
    """One record → a release, or a reason."""

    def test_every_field(self) -> None:
        found = parse(as_bytes(record(7, name=" Seven ", prerelease=True)))
        assert (found.release_id, found.tag, found.name, found.author) == (7, "v1.7.0", "Seven", "someone")
        assert found.published_at is not None
        assert found.published_at.isoformat() == "2024-03-08T10:00:00+00:00"
        assert (found.prerelease, found.draft) == (True, False)
        assert found.url == "https://github.com/acme/tool/releases/tag/v1.7.0"

    def test_what_may_be_missing(self) -> None:
        bare = {"id": 1, "tag_name": "v1 β", "created_at": "2024-01-01T00:00:00Z"}
        found = parse(as_bytes(bare), repository="acme/tool")
        assert (found.name, found.body, found.author, found.published_at) == ("v1 β", "", None, None)
        assert found.url == "https://github.com/acme/tool/releases/tag/v1%20%CE%B2"
        assert parse(as_bytes({"id": 1, "tag_name": "x", "draft": True}), repository="a/b").created_at is None
        assert (
            parse(as_bytes(record(name=None, body=None, author=None, html_url=None)), repository="a/b").body
            == ""
        )

    @pytest.mark.parametrize(
        ("urls", "expected"),
        [
            ({"html_url": "https://github.com/acme/tool/releases/tag/v1"}, "acme/tool"),
            ({"url": "https://api.github.com/repos/acme/tool/releases/5"}, "acme/tool"),
            ({"url": "https://ghe.example/api/v3/repos/acme/tool/releases/5"}, "acme/tool"),
            ({"html_url": "https://gitlab.example/acme/tool/-/releases/v1"}, "acme/tool"),
            ({"html_url": "https://example.org/elsewhere"}, None),
            ({"html_url": 5, "url": None}, None),
        ],
    )
    def test_the_repository_is_in_the_urls(self, urls: dict[str, Any], expected: str | None) -> None:
        assert repository_in(urls) == expected

    def test_the_repository_that_is_given_wins(self) -> None:
        assert parse_release(ONE, repository="other/name", max_body_bytes=9_999)[0] == "other/name"

    def test_texts_are_nfc_and_keep_their_line_ends(self) -> None:
        found = parse(as_bytes(record(body="Cafe\u0301\r\n\tend ", name="e\u0301")))
        assert (found.body, found.name) == ("Café\r\n\tend ", "é")

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"oops", "not-json"),
            (ONE[:-5], "not-json"),
            (ONE + ONE, "not-json"),
            (b"", "not-json"),
            (b'{"id": NaN, "tag_name": "v1"}', "not-json"),
            (b'{"id": 1, "tag_name": "v1", "x": [-Infinity]}', "not-json"),
            (b'{"id": 1, "tag_name": "a\nb"}', "not-json"),
            (b"7", "not-a-release"),
            (b"null", "not-a-release"),
            (b'"text"', "not-a-release"),
            (b"[" + ONE + b"]", "not-a-release"),
            (b'{"message": "Not Found"}', "not-a-release"),
            (as_bytes(record(body="Café")).replace(b"\\u00e9", b"\xe9"), "not-utf8"),
            (ONE.decode().encode("utf-16"), "not-utf8"),
            (b"[" * 100_000, "too-deep"),
            (b'{"id": 1, "tag_name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too-deep"),
            (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too-deep"),
            (b'{"id": 1, "id": 2, "tag_name": "v1"}', "duplicate-key"),
            (b'{"id": 1, "tag_name": "v1", "x": [{"y": {"z": 1, "z": 1}}]}', "duplicate-key"),
            (b'{"id": ' + b"9" * 1_000_000 + b', "tag_name": "v1"}', "absurd-number"),
            (b'{"id": 1, "tag_name": "v1", "x": -' + b"1" * 1_000_000 + b"}", "absurd-number"),
            (b'{"id": 1, "tag_name": "v1", "x": 0.' + b"1" * 1_000_000 + b"}", "absurd-number"),
            (b'{"id": 1, "tag_name": "v1", "x": 1e999}', "absurd-number"),
        ],
    )  # fmt: skip
    def test_what_is_no_release_at_all(self, raw: bytes, expected: str) -> None:
        assert reason(raw) == expected

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"id": None}, "missing-field"),
            ({"tag_name": None}, "missing-field"),
            ({"published_at": None, "created_at": None}, "missing-field"),
            ({"id": "1"}, "wrong-type"),
            ({"id": 1.0}, "wrong-type"),
            ({"id": True}, "wrong-type"),
            ({"tag_name": 1.0}, "wrong-type"),
            ({"name": ["v1"]}, "wrong-type"),
            ({"body": {"text": "x"}}, "wrong-type"),
            ({"draft": "false"}, "wrong-type"),
            ({"author": "someone"}, "wrong-type"),
            ({"author": {"login": 5}}, "wrong-type"),
            ({"published_at": 1_700_000_000}, "wrong-type"),
            ({"published_at": False}, "wrong-type"),
            ({"html_url": 5}, "wrong-type"),
            ({"id": -1}, "absurd-value"),
            ({"id": 0}, "absurd-value"),
            ({"id": 2**63}, "absurd-value"),
            ({"published_at": "9999-12-31T23:59:59Z"}, "absurd-value"),
            ({"published_at": "9999-12-31T23:59:59-23:59"}, "absurd-value"),
            ({"published_at": "0001-01-01T00:00:00+23:59"}, "absurd-value"),
            ({"created_at": "1970-01-01T00:00:00Z"}, "absurd-value"),
            ({"published_at": "yesterday"}, "absurd-value"),
            ({"published_at": "1700000000"}, "absurd-value"),
            ({"published_at": ""}, "absurd-value"),
            ({"tag_name": ""}, "absurd-value"),
            ({"tag_name": "  "}, "absurd-value"),
            ({"tag_name": "v1\nv2"}, "absurd-value"),
            ({"tag_name": "v1\x1b[31m"}, "absurd-value"),
            ({"tag_name": "v" * 10_240}, "absurd-value"),
            ({"name": "n" * 10_240}, "absurd-value"),
            ({"author": {"login": "l" * 10_240}}, "absurd-value"),
            ({"html_url": "https://github.com/acme/tool/releases/" + "x" * 10_240}, "absurd-value"),
            ({"html_url": "javascript:alert(1)//github.com/acme/tool/releases/"}, "absurd-value"),
            ({"html_url": "data:text/html,x"}, "absurd-value"),
            ({"html_url": "https:///releases"}, "absurd-value"),
            ({"html_url": "https://github.com@evil.test/acme/tool/releases/"}, "absurd-value"),
            ({"html_url": "https://[oops/acme/tool/releases/1"}, "absurd-value"),
            ({"html_url": "https://ex\u2100mple.test/acme/tool/releases/1"}, "absurd-value"),
            ({"html_url": "https://github.com/acme/tool/releases/\n1"}, "absurd-value"),
            ({"body": "x" * 3_001}, "body-too-long"),
            ({"body": "é" * 1_501}, "body-too-long"),
            ({"body": "a" + "\u0315\u0300" * 600}, "absurd-value"),
            ({"body": "\u0f73" * 1_200 + "x"}, "absurd-value"),
            ({"body": "a\0b"}, "nul"),
            ({"tag_name": "v\0"}, "nul"),
            ({"name": "\0"}, "nul"),
            ({"author": {"login": "\0"}}, "nul"),
            ({"html_url": "https://github.com/acme/tool/releases/\0"}, "nul"),
            ({"body": "\ud83d alone"}, "lone-surrogate"),
            ({"tag_name": "\udc00"}, "lone-surrogate"),
            ({"name": "\ud800"}, "lone-surrogate"),
            ({"author": {"login": "\ud800"}}, "lone-surrogate"),
        ],
    )  # fmt: skip
    def test_a_field_that_cannot_be(self, fields: dict[str, Any], expected: str) -> None:
        # Marks count by the run, so these bodies are let through by the limit.
        limit = 10_000 if "body" in fields and expected == "absurd-value" else 3_000
        assert reason(as_bytes(record(**fields)), repository="acme/tool", limit=limit) == expected

    def test_no_repository_anywhere(self) -> None:
        assert reason(as_bytes(record(html_url="https://example.org/x"))) == "no-repository"
        assert reason(as_bytes(record(html_url="https://h/a/b...c/releases/1"))) == "bad-repository"

    def test_a_body_at_the_limit(self) -> None:
        assert parse(as_bytes(record(body="é" * 1_500)), limit=3_000).body == "é" * 1_500

    def test_brackets_in_a_text_are_no_depth(self) -> None:
        assert parse(as_bytes(record(body="[" * 1_000 + '"{' * 1_000))).body.startswith("[[")

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"a": "' + b"[" * 40 + b'\\"' * 2_000_000,
            b"{" + b",".join(b'"k%d": 1' % number for number in range(100_000)) + b', "k99999": 1}',
            as_bytes(record(body="a" + "\u0315\u0300" * 260_000)),
            as_bytes(record(body="\u1112\u1161\u11ab" * 110_000)),
            as_bytes(record(body="e\u0301" * 170_000)),
        ],
        ids=["open-string", "keys", "marks", "hangul", "accents"],
    )
    def test_time_is_linear_in_the_record(self, raw: bytes) -> None:
        started = time.process_time()
        try:
            parse(raw)
        except BadRecord as refused:
            assert refused.reason in ("not-json", "duplicate-key", "absurd-value")
        assert time.process_time() - started < 5

    def test_memory_stays_with_an_absurd_number(self) -> None:
        raw = b'{"id": ' + b"9" * 10_000_000 + b', "tag_name": "v1"}'
        tracemalloc.start()
        try:
            assert reason(raw) == "absurd-number"
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 5 * len(raw)

    @given(
        st.one_of(
            st.binary(max_size=300),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                _nested,
                max_leaves=12,
            ).map(lambda value: json.dumps(value).encode()),
            st.fixed_dictionaries(
                {"id": st.integers(1, 9) | st.text(max_size=2), "tag_name": st.text(st.characters(), max_size=9)},
                optional={
                    "body": st.text(st.characters(), max_size=30) | st.none(),
                    "name": st.text(st.characters()) | st.lists(st.text(max_size=2), max_size=2),
                    "published_at": st.datetimes().map(str) | st.text(max_size=25) | st.integers(),
                    "html_url": st.text(max_size=30).map("https://github.com/acme/tool/releases/".__add__)
                    | st.text(max_size=30).map("http://".__add__),
                    "author": st.none() | st.dictionaries(st.sampled_from(["login"]), st.text(max_size=5)),
                },
            ).map(as_bytes),
        )
    )  # fmt: skip
    @settings(max_examples=500, deadline=None)
    def test_any_bytes_are_a_release_or_refused_by_name(self, raw: bytes) -> None:
        try:
            found = parse(raw, repository="acme/tool")
        except BadRecord as refused:
            assert refused.reason in REASONS
            return
        for text in (found.tag, found.name, found.body, found.url, found.author or ""):
            assert "\0" not in text
            text.encode()
        assert 1 <= found.release_id < 2**63
        assert found.url.startswith(("http://", "https://"))


@pytest.mark.parametrize("name", ["acme/tool", "a/b", "A-1/b.c_d", "_x/y"])
def test_repository_names(name: str) -> None:
    assert repository_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "acme",
        "acme/",
        "/tool",
        "a/b/c",
        "a b/c",
        "a|b/c",
        "a/b...c",
        "a/..",
        "a/.",
        "a\n/b",
        "é/x",
        "a/b\n",
    ],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadRecord) as refused:
        repository_name(name)
    assert refused.value.reason == "bad-repository"


def test_the_shared_releases_are_all_sound(shared_data: Path) -> None:
    count = 0
    for path in find_files([shared_data / "releases"]):
        for found in read_records(path, max_record_bytes=1 << 24):
            parse(found.raw)
            count += 1
    assert count == 4_362


def test_recorded_pages_of_the_api_are_sound(shared_data: Path) -> None:
    """Real answers have null authors, CRLF bodies and fields that are not read."""
    pages = [
        path
        for path in (shared_data / "github_api" / "recorded").rglob("*.json")
        if b'"tag_name"' in path.read_bytes()
    ]
    assert pages
    for path in pages:
        exchange = json.loads(path.read_bytes())
        for release in releases_in(exchange):
            parse(as_bytes(release))


def releases_in(value: Any) -> list[dict[str, Any]]:
    """All objects with a tag, however deep; a recorded body may be JSON in a string."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return releases_in(json.loads(value))
        except ValueError:
            return []
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        if "tag_name" in fields and "id" in fields:
            return [fields]
        return [found for inner in fields.values() for found in releases_in(inner)]
    if isinstance(value, list):
        return [found for inner in cast("list[Any]", value) for found in releases_in(inner)]
    return []
