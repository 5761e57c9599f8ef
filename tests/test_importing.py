"""Importing: what is sound goes into the log, the rest into quarantine with its bytes; and again changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kb_platform.errors import BadRecord, NotKnown, SourceError
from kb_platform.settings import Settings
from kb_platform.sources.release import Observed, Refused
from kb_platform.stages.importing import Imported, import_files, import_observed
from kb_platform.stages.replaying import replay
from kb_platform.store import quarantine, release_log
from kb_platform.store.database import Database, scalar
from kb_platform.store.quarantine import Quarantined
from kb_platform.store.repositories import find_repository, verified_at
from tests.records import as_bytes, observed, record, write_lines

SETTINGS = Settings(max_record_bytes=65_536, max_body_bytes=20_000)

# Each with the reason that it is refused for.
BAD_LINES = {
    b"{oops": "not-json",
    as_bytes(record(50))[:-20]: "not-json",
    b"12345": "not-a-release",
    b'["a", "b"]': "not-a-release",
    b'{"message": "Not Found"}': "not-a-release",
    b'{"id": 51}': "missing-field",
    b'{"tag_name": "v51"}': "missing-field",
    as_bytes(record(52, id="52")): "wrong-type",
    as_bytes(record(53, body=["a"])): "wrong-type",
    as_bytes(record(54, id=-54)): "absurd-value",
    as_bytes(record(55, id=2**63)): "absurd-value",
    as_bytes(record(56, published_at="9999-12-31T23:59:59Z")): "absurd-value",
    as_bytes(record(57, tag_name="v\x1b[2J")): "absurd-value",
    as_bytes(record(58, tag_name="v" * 10_240)): "absurd-value",
    as_bytes(record(59, html_url="javascript:alert(1)")): "absurd-value",
    as_bytes(record(60, body="long " * 5_000)): "body-too-long",
    as_bytes(record(61, body="a\0b")): "nul",
    as_bytes(record(62, body="\ud800")): "lone-surrogate",
    b'{"id": 63, "tag_name": "v63", "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}": "too-deep",
    b'{"id": 64, "tag_name": "v64", "tag_name": "v65"}': "duplicate-key",
    b'{"id": ' + b"6" * 60_000 + b', "tag_name": "v66"}': "absurd-number",
    b'{"id": NaN, "tag_name": "v67"}': "not-json",
    b'{"id": 68, "tag_name": "v68", "body": "\xff\xfe"}': "not-utf8",
    as_bytes(record(69, body="x" * 70_000)): "record-too-long",
}


def files_of(tmp_path: Path) -> list[Path]:
    """Good records around every bad one: as lines, in an array, and with the line ends of Windows."""
    good = [as_bytes(record(number)) for number in range(1, len(BAD_LINES) + 2)]
    mixed = [line for pair in zip(good, [*BAD_LINES, b""], strict=True) for line in pair if line]
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(mixed) + b"\r\n")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    closed = [line for line in mixed if line not in list(BAD_LINES)[:2]]
    (tmp_path / "array.json").write_bytes(b"[" + b", ".join(closed) + b"]")
    return [write_lines(tmp_path / "lines.jsonl", mixed), tmp_path]


def test_bad_records_are_quarantined_and_the_import_goes_on(database: Database, tmp_path: Path) -> None:
    done = import_files(database, files_of(tmp_path), SETTINGS, repository="acme/tool")
    assert done.files == 4
    assert done.new == len(BAD_LINES) + 1
    assert done.unchanged == 2 * done.new
    assert done.quarantined_new == len(BAD_LINES)
    assert done.quarantined == 3 * len(BAD_LINES) - 2
    assert done.records == done.new + done.unchanged + done.quarantined
    records = quarantined(database)
    assert {found.raw: found.reason for found in records} == {
        raw[: SETTINGS.max_record_bytes]: reason for raw, reason in BAD_LINES.items()
    }
    assert {found.raw_bytes for found in records} == {len(raw) for raw in BAD_LINES}
    assert {found.attempts for found in records} == {2, 3}
    assert done.reasons == {
        reason: sum(found.attempts for found in records if found.reason == reason)
        for reason in BAD_LINES.values()
    }
    assert {found.origin.partition(":")[0] for found in records} == {"import"}
    assert records[0].origin == "import:lines.jsonl:2"


def test_the_same_files_again_change_nothing_but_the_attempts(database: Database, tmp_path: Path) -> None:
    paths = files_of(tmp_path)
    import_files(database, paths, SETTINGS, repository="acme/tool")
    before, attempts = log_and_quarantine(database), total_attempts(database)
    again = import_files(database, paths, SETTINGS, repository="acme/tool")
    assert again.appended == 0
    assert again.quarantined_new == 0
    assert again.quarantined == 3 * len(BAD_LINES) - 2
    assert log_and_quarantine(database) == before
    assert total_attempts(database) == attempts + again.quarantined


def test_an_edited_body_adds_one_observation(database: Database, tmp_path: Path) -> None:
    releases = [record(number) for number in range(1, 6)]
    path = write_lines(tmp_path / "a.jsonl", releases)
    assert import_files(database, [path], SETTINGS).new == 5
    releases[2]["body"] += "- And one thing more\n"
    done = import_files(database, [write_lines(path, releases)], SETTINGS)
    assert (done.new, done.edited, done.unchanged) == (0, 1, 4)


def test_what_quarantine_keeps_is_enough_to_land_it_later(database: Database, tmp_path: Path) -> None:
    long = as_bytes(record(1, body="long " * 5_000))
    import_files(database, [write_lines(tmp_path / "a.jsonl", [long])], SETTINGS)
    (found,) = quarantined(database)
    again = replay(database, found.quarantine_id, SETTINGS)
    assert (again.quarantined, again.reasons) == (1, {"body-too-long": 1})
    assert quarantined(database)[0].attempts == 2
    mended = replay(database, found.quarantine_id, Settings(max_body_bytes=30_000))
    assert (mended.new, mended.repositories) == (1, ["acme/tool"])
    assert quarantined(database) == []
    with database.snapshot() as connection:
        (settled,) = quarantine.listed(connection, resolved=True)
        assert settled.resolution == "replayed"
        assert scalar(connection, "SELECT raw FROM kb.release_observations") == long
    # What was settled and turns up broken again is open again.
    import_files(database, [tmp_path / "a.jsonl"], SETTINGS)
    assert [found.attempts for found in quarantined(database)] == [3]


def test_the_repository_may_be_named_when_a_record_does_not(database: Database, tmp_path: Path) -> None:
    nameless = write_lines(tmp_path / "a.jsonl", [record(1, html_url="https://example.org/notes")])
    done = import_files(database, [nameless], SETTINGS)
    assert done.reasons == {"no-repository": 1}
    (found,) = quarantined(database)
    assert replay(database, found.quarantine_id, SETTINGS).reasons == {"no-repository": 1}
    assert replay(database, found.quarantine_id, SETTINGS, repository="acme/tool").new == 1


def test_a_record_too_long_to_keep_whole_says_so_when_replayed(database: Database, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [record(1, body="x" * 70_000)])
    import_files(database, [path], SETTINGS)
    (found,) = quarantined(database)
    assert len(found.raw) == SETTINGS.max_record_bytes
    larger = Settings(max_record_bytes=1 << 20)
    assert replay(database, found.quarantine_id, larger).reasons == {"record-too-long": 1}
    assert import_files(database, [path], larger).new == 1


def test_what_postgresql_alone_refuses_is_quarantined_too(database: Database) -> None:
    good, bad = observed(1), observed(2)
    bad = dataclasses.replace(bad, release=dataclasses.replace(bad.release, release_id=2**70))
    done = import_observed(database, [good, bad])
    assert (done.new, done.quarantined, done.reasons) == (1, 1, {"refused-by-database": 1})
    assert quarantined(database)[0].raw == bad.raw
    assert import_observed(database, [good, bad]).quarantined_new == 0


def test_a_replay_that_postgresql_refuses_stays_in_quarantine(database: Database, tmp_path: Path) -> None:
    long = record(1, body="long " * 5_000)
    import_files(database, [write_lines(tmp_path / "a.jsonl", [long])], SETTINGS)
    (found,) = quarantined(database)
    with database.transaction() as connection:
        connection.execute("ALTER TABLE kb.observation ADD CONSTRAINT short CHECK (length(body) < 9)")
    again = replay(database, found.quarantine_id, Settings())
    assert (again.new, again.quarantined, again.reasons) == (0, 1, {"refused-by-database": 1})
    assert [(f.reason, f.attempts) for f in quarantined(database)] == [("refused-by-database", 2)]


def test_replaying_what_is_not_there(database: Database) -> None:
    with pytest.raises(NotKnown, match="no quarantined record 7"):
        replay(database, 7, SETTINGS)


def test_records_of_several_repositories_in_one_file(database: Database, tmp_path: Path) -> None:
    lines = [record(n, repository=f"acme/{name}") for n in range(1, 4) for name in ("one", "Two", "two")]
    done = import_files(database, [write_lines(tmp_path / "a.jsonl", lines)], SETTINGS)
    assert done.repositories == ["acme/one", "acme/Two"], "names differ by more than their case"
    assert (done.new, done.unchanged, done.edited) == (6, 0, 3)
    with database.snapshot() as connection:
        assert set(verified_at(connection, ["acme/one", "acme/Two"])) == {"acme/one", "acme/Two"}
        assert None not in verified_at(connection, ["acme/one", "acme/Two"]).values()


def test_nothing_is_imported_where_a_path_is_wrong(database: Database, tmp_path: Path) -> None:
    good = write_lines(tmp_path / "a.jsonl", [record(1)])
    with pytest.raises(SourceError, match="does not exist"):
        import_files(database, [good, tmp_path / "b.jsonl"], SETTINGS)
    with pytest.raises(BadRecord, match="not a repository name"):
        import_files(database, [good], SETTINGS, repository="acme")
    assert log_and_quarantine(database) == ([], [])


def test_a_batch_is_bounded_whatever_it_holds(database: Database, tmp_path: Path) -> None:
    """More bad lines and releases than one batch takes: in order, nothing lost."""
    lines = [f"bad {n}".encode() if n % 4 else as_bytes(record(n)) for n in range(1, 1_201)]
    done = import_files(database, [write_lines(tmp_path / "a.jsonl", lines)], SETTINGS)
    assert (done.new, done.quarantined_new) == (300, 900)
    assert [found.raw for found in quarantined(database)] == [
        line for line in lines if line.startswith(b"bad")
    ]


def test_imports_at_once_do_not_get_in_each_others_way(database: Database, tmp_path: Path) -> None:
    """Four imports of the same records, each in another order: none fails, nothing is there twice."""
    lines = [as_bytes(record(n, repository=f"acme/{n % 3}")) for n in range(1, 31)] + list(BAD_LINES)
    results: list[Imported] = []
    errors: list[BaseException] = []

    def run(number: int) -> None:
        turned = lines[number * 11 :] + lines[: number * 11]
        path = write_lines(tmp_path / f"{number}.jsonl", turned if number % 2 else turned[::-1])
        try:
            results.append(import_files(database, [path], SETTINGS))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    log, refused = log_and_quarantine(database)
    assert len(log) == 30
    assert len(refused) == len(BAD_LINES) == sum(done.quarantined_new for done in results)
    assert sum(done.new for done in results) == 30


@given(st.lists(st.binary(max_size=60) | st.sampled_from(list(BAD_LINES)[:8]), max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_lines_stop_no_import(database: Database, tmp_path: Path, lines: list[bytes]) -> None:
    marker = record(1, body=hashlib.sha256(repr(lines).encode()).hexdigest())
    path = tmp_path / "any.jsonl"
    # Each line is one: its own line feeds, and a text that would be this marker, aside.
    bad = [line.replace(b"\n", b"") for line in lines]
    done = import_files(database, [write_lines(path, [*bad, marker, *bad])], SETTINGS, repository="any/thing")
    kept = [line for line in bad if line.strip()]
    assert done.appended <= 1
    assert done.quarantined == done.records - 1 <= 2 * len(kept)
    with database.snapshot() as connection:
        repository_id, _ = find_repository(connection, "any/thing")
        (stored,) = release_log.current_releases(connection, repository_id)
    assert stored.release.body == marker["body"]


def test_hostile_bodies_are_kept_word_for_word(database: Database, shared_data: Path, tmp_path: Path) -> None:
    payloads = [
        json.loads(line)["payload"]
        for line in (shared_data / "attacks.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    texts = [payload if isinstance(payload, str) else json.dumps(payload) for payload in payloads]
    lines: list[dict[str, Any]] = [record(n, body=text, name=text[:200]) for n, text in enumerate(texts, 1)]
    done = import_files(database, [write_lines(tmp_path / "a.jsonl", lines)], SETTINGS)
    assert done.new + done.quarantined == len(lines)
    with database.snapshot() as connection:
        repository_id, _ = find_repository(connection, "acme/tool")
        stored = {
            s.release.release_id: s.release.body
            for s in release_log.current_releases(connection, repository_id)
        }
    refused = {json.loads(found.raw)["id"] for found in quarantined(database)}
    assert refused.isdisjoint(stored)
    assert set(stored) | refused == set(range(1, len(lines) + 1))
    assert len(stored) >= len(lines) // 2


def test_a_source_that_is_no_file(database: Database) -> None:
    items: list[Observed | Refused] = [
        observed(1),
        Refused("not-json", "at character 0", b"x", "kafka:events/0/17", "acme/tool"),
        observed(1, deleted=True),
        observed(2),
    ]
    done = import_observed(database, items)
    assert (done.new, done.deleted, done.quarantined, done.records) == (2, 1, 1, 4)
    assert import_observed(database, []).records == 0
    with database.snapshot() as connection:
        assert quarantine.open_by_reason(connection, "ACME/tool") == {"not-json": 1}
        assert quarantine.open_by_reason(connection, "acme/other") == {}


def quarantined(database: Database) -> list[Quarantined]:
    """The open records, with all their bytes."""
    with database.snapshot() as connection:
        return [quarantine.get(connection, found.quarantine_id) for found in quarantine.listed(connection)]


def log_and_quarantine(database: Database) -> tuple[list[Any], list[Any]]:
    with database.snapshot() as connection:
        return (
            connection.execute(
                "SELECT sequence, content_hash, raw FROM kb.release_observations ORDER BY 1"
            ).fetchall(),
            connection.execute("SELECT quarantine_id, reason, raw FROM kb.quarantine ORDER BY 1").fetchall(),
        )


def total_attempts(database: Database) -> int:
    with database.snapshot() as connection:
        return int(scalar(connection, "SELECT sum(attempts) FROM kb.quarantine"))
