"""The sample corpus: true to its sources, in GitHub's shape, and answerable where its questions say so."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kb_platform.sample_corpus import demo_questions, questions_path, releases_folder
from kb_platform.sample_corpus.verify import (
    differences,
    facts,
    longest_shared_run,
    main,
    read_releases,
    verify,
    words,
)

RELEASES = {
    path.stem.replace("__", "/", 1): {release["tag_name"]: release for release in read_releases(path)}
    for path in sorted(releases_folder().glob("*.jsonl"))
}
QUESTIONS: list[dict[str, Any]] = [json.loads(line) for line in questions_path().read_text().splitlines()]
KINDS = re.compile(
    r"lookup_(no)?code|(removed|deprecated)_(no)?code|range_breaking(_none)?|range_dates|unanswerable"
)


def all_releases() -> list[dict[str, Any]]:
    return [release for by_tag in RELEASES.values() for release in by_tag.values()]


def without_required(schema: Any) -> Any:
    """The schema with every `required` dropped: the records leave out what no reader of them uses."""
    if isinstance(schema, dict):
        return {key: without_required(value) for key, value in schema.items() if key != "required"}
    return [without_required(value) for value in schema] if isinstance(schema, list) else schema


def source_release(shared_data: Path, repository: str, tag: str) -> dict[str, Any]:
    path = shared_data / "releases" / f"{repository.replace('/', '__')}.jsonl"
    return next(release for release in read_releases(path) if release["tag_name"] == tag)


def test_the_corpus_is_about_eighty_releases_of_several_projects() -> None:
    assert len(RELEASES) >= 6
    assert 80 <= len(all_releases()) <= 100
    assert sum(path.stat().st_size for path in releases_folder().iterdir()) < 200_000


def test_records_have_the_shape_of_githubs_releases(shared_data: Path) -> None:
    schema = json.loads((shared_data / "github_api" / "release.schema.json").read_text())
    validator = jsonschema.Draft202012Validator(without_required(schema))
    expected_keys = set(source_release(shared_data, "pgvector/pgvector", "v0.8.0"))
    for release in all_releases():
        assert list(validator.iter_errors(release)) == []
        assert set(release) == expected_keys


def test_records_name_their_repository_and_tag_and_have_their_own_id() -> None:
    for repository, by_tag in RELEASES.items():
        for tag, release in by_tag.items():
            assert release["html_url"] == f"https://github.com/{repository}/releases/tag/{tag}"
            assert release["url"] == f"https://api.github.com/repos/{repository}/releases/{release['id']}"
            assert 90 <= len(release["body"]) <= 1600, (repository, tag, len(release["body"]))
    assert max(Counter(release["id"] for release in all_releases()).values()) == 1


@pytest.mark.parametrize(
    ("shape", "pattern"),
    [
        ("breaking changes", r"^#+ Breaking changes$"),
        ("security", r"^#+ Security$"),
        ("deprecations", r"^#+ Deprecat"),
        ("nested list", r"^  [-*] "),
        ("table", r"^\| --- \|"),
        ("code fence", r"^ *```\w"),
        ("details block", r"^<details>$"),
        ("reStructuredText", r"^\.\. rubric:: "),
        ("conventional prefix", r"^- \w+\(\w+\): "),
        ("CRLF", r"\r\n"),
        ("CVE", r"CVE-\d{4}-\d+"),
    ],
)
def test_bodies_have_the_shapes_that_real_notes_have(shape: str, pattern: str) -> None:
    assert any(re.search(pattern, release["body"], re.MULTILINE) for release in all_releases()), shape


def test_there_are_prereleases_and_versions_published_out_of_order() -> None:
    assert any(release["prerelease"] for release in all_releases())
    prometheus = RELEASES["prometheus/prometheus"]
    assert prometheus["v2.53.5"]["published_at"] > prometheus["v3.1.0"]["published_at"]


def test_questions_expect_releases_and_texts_that_exist() -> None:
    assert len(QUESTIONS) >= 40
    assert len({question["id"] for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        assert KINDS.fullmatch(question["kind"]), question
        bodies = {tag: RELEASES[question["repo"]][tag]["body"] for tag in question["expected_tags"]}
        for text in question["expected_substrings"]:
            assert any(text in body for body in bodies.values()), (question["id"], text)
        if not question["kind"].endswith("dates"):
            for tag, body in bodies.items():
                assert any(text in body for text in question["expected_substrings"]), (question["id"], tag)
        nothing = question["kind"] in {"unanswerable", "range_breaking_none"}
        assert (question["expected_tags"] == []) == nothing, question


def test_a_lookup_expects_every_release_that_says_the_same() -> None:
    for question in QUESTIONS:
        if question["kind"].startswith("range") or not question["expected_substrings"]:
            continue
        by_tag = RELEASES[question["repo"]]
        matching = {
            tag
            for tag, release in by_tag.items()
            if all(text in release["body"] for text in question["expected_substrings"])
        }
        assert matching == set(question["expected_tags"]), question


def test_questions_about_months_list_all_releases_of_the_month_newest_first() -> None:
    for question in (question for question in QUESTIONS if question["kind"] == "range_dates"):
        month = question["range"][0]
        dated = [
            (release["published_at"], tag)
            for tag, release in RELEASES[question["repo"]].items()
            if release["published_at"].startswith(month)
        ]
        assert [tag for _, tag in sorted(dated, reverse=True)] == question["expected_tags"], question


def test_questions_about_breaking_changes_agree_with_the_headings() -> None:
    def number(tag: str) -> tuple[int, ...]:
        return tuple(int(part) for part in tag.lstrip("v").split("."))

    for question in (question for question in QUESTIONS if question["kind"].startswith("range_breaking")):
        after, upto = (number(version) for version in question["range"])
        breaking = [
            tag
            for tag, release in RELEASES[question["repo"]].items()
            if after < number(tag) <= upto
            and re.search(r"Breaking changes\r?$", release["body"], re.MULTILINE)
        ]
        assert sorted(breaking, key=number) == question["expected_tags"], question


def test_three_questions_are_for_the_demonstration() -> None:
    asked = demo_questions()
    assert len(asked) == 3
    demo = [question for question in QUESTIONS if question.get("demo")]
    assert [question["question"] for question in demo] == asked
    assert len({question["repo"] for question in demo}) == 3
    assert "range_breaking" in {question["kind"] for question in demo}


def test_the_corpus_is_true_to_its_sources(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [report.differences for report in verify(shared_data / "releases")] == [[]] * len(RELEASES)
    assert main([str(shared_data / "releases")]) == 0
    table = capsys.readouterr().out
    assert all(repository in table for repository in RELEASES)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"published_at": "2024-10-31T20:06:34Z"}, "published_at is '2024-10-31T20:06:34Z'"),
        ({"created_at": "2024-10-31T20:06:34Z"}, "created_at"),
        ({"id": 1}, "id is 1"),
        ({"prerelease": True}, "prerelease is True"),
        ({"html_url": "https://github.com/other/one/releases/tag/v0.8.0"}, "html_url"),
        ({"body": "Fixes a leak (#99999)."}, "#99999 is not in the source"),
        ({"body": "Closes CVE-2020-12345."}, "CVE-2020-12345 is not in the source"),
        ({"body": "Closes GHSA-aaaa-bbbb-cccc."}, "GHSA-aaaa-bbbb-cccc is not in the source"),
        ({"body": "Faster than 0.7.9."}, "0.7.9 is not in the source"),
        ({"body": "Adds `tinyvec`."}, "tinyvec is not in the source"),
        (
            {"body": "* IMPROVED cost estimation for *better* index selection when filtering."},
            "9 words in a row are copied",
        ),
    ],
)
def test_the_verifier_sees_a_doctored_record(
    shared_data: Path, change: dict[str, Any], complaint: str
) -> None:
    source = source_release(shared_data, "pgvector/pgvector", "v0.8.0")
    ours = RELEASES["pgvector/pgvector"]["v0.8.0"]
    assert differences(ours, source) == []
    found = differences({**ours, **change}, source)
    assert len(found) == 1
    assert complaint in found[0]


def test_the_verifier_reports_unknown_tags_and_missing_files(shared_data: Path, tmp_path: Path) -> None:
    release = RELEASES["pgvector/pgvector"]["v0.8.0"]
    (tmp_path / "pgvector__pgvector.jsonl").write_text(json.dumps({**release, "tag_name": "v9.9.9"}))
    (tmp_path / "no__such.jsonl").write_text(json.dumps(release))
    found = [report.differences for report in verify(shared_data / "releases", tmp_path)]
    assert found == [["the source has no file no__such.jsonl"], ["v9.9.9: the source has no such tag"]]


def test_exit_codes_of_the_verifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ([], [str(tmp_path)], [str(tmp_path / "absent")]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
    assert "SOURCE_RELEASES_FOLDER" in capsys.readouterr().err
    # A source that knows only one repository, and that one with another date.
    release = {**RELEASES["pgvector/pgvector"]["v0.8.0"], "published_at": "2000-01-01T00:00:00Z"}
    (tmp_path / "pgvector__pgvector.jsonl").write_text(json.dumps(release))
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "pgvector/pgvector v0.8.0: published_at is '2024-10-30T20:06:34Z'" in printed
    assert "encode/httpx the source has no file encode__httpx.jsonl" in printed


def test_words_leave_out_markup_and_fenced_code() -> None:
    body = (
        "* **Adds** [a link](https://x.example/y) to `rd_kafka_poll()`.\n```python\ncopied = True\n```\nEnd."
    )
    assert words(body) == ["adds", "a", "link", "to", "rd_kafka_poll", "end"]
    assert longest_shared_run("x a B, c y", "z A b (c) w") == ["a", "b", "c"]


def test_facts_are_references_advisories_versions_and_identifiers() -> None:
    body = "Since v1.2 `Cursor.copy()` works (#12, :ticket:`#13`), see CVE-2024-12345 &#39; and ``wait_c``."
    assert facts(body) == ["#12", "#13", "CVE-2024-12345", "Cursor.copy()", "v1.2", "wait_c"]
