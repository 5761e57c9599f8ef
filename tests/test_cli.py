"""The `kb` command as people and scripts run it: real processes over the sample corpus, with the real model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kb_platform import sample_corpus
from kb_platform.cli.command import app
from kb_platform.cli.output import cell, printable
from kb_platform.text.versions import version_key

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs `kb` in a home of its own; the embedded server of that home ends with the module."""
    home = tmp_path_factory.mktemp("cli")

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("KB_", "DAGSTER_"))}
        return subprocess.run(
            [sys.executable, "-m", "kb_platform.cli", *map(str, arguments)],
            env=own | {"KB_HOME": str(home)} | environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    # One server for all commands of the module, instead of a start and a stop for each.
    assert run("database", "url").returncode == 0
    yield run
    assert run("database", "stop").returncode == 0


@pytest.fixture(scope="module")
def imported(kb: Run) -> dict[str, Any]:
    """What the import of the sample corpus said."""
    done = kb("import", sample_corpus.releases_folder(), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _sample() -> list[dict[str, Any]]:
    folder = sample_corpus.releases_folder()
    return [
        json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]


def test_import_builds_the_index_and_a_second_import_computes_nothing(
    kb: Run, imported: dict[str, Any]
) -> None:
    releases = _sample()
    assert imported["new"] == len(releases)
    assert imported["quarantined"] == 0
    assert imported["refreshed"]["embedded"] > len(releases)
    assert imported["refreshed"]["promoted_version"] == 1

    again = _json(kb("import", sample_corpus.releases_folder(), "--json"))

    assert again["appended"] == 0
    assert again["unchanged"] == len(releases)
    assert again["refreshed"]["nothing_to_do"] is True
    assert again["refreshed"]["embedded"] == 0


def test_status_counts_what_was_imported(kb: Run, imported: dict[str, Any]) -> None:
    status = _json(kb("status", "--json"))
    assert sorted(r["repository"] for r in status["repositories"]) == sorted(imported["repositories"])
    assert sum(r["releases"] for r in status["repositories"]) == len(_sample())
    assert all(
        r["chunks"] == r["vectors"] > 0 and r["verified_at"] and not r["pending"]
        for r in status["repositories"]
    )
    assert "up to date" in kb("status").stdout


def test_a_search_result_is_a_span_of_the_stored_body(kb: Run, imported: dict[str, Any]) -> None:
    found = _json(kb("search", "iterative index scans in pgvector", "--json"))
    assert found["filters"] == {"repositories": ["pgvector/pgvector"]}
    assert found["index_version"] == 1
    assert len(found["results"]) == 10
    first = found["results"][0]
    assert set(first) >= {"repository", "tag", "kind", "text", "span", "url", "published_at", "score"}
    release = _json(kb("show", first["repository"], first["tag"], "--json"))
    assert release["body"][first["span"][0] : first["span"][1]] == first["text"]
    assert first["tag"] == "v0.8.0"


def test_options_replace_the_filters_of_the_question(kb: Run, imported: dict[str, Any]) -> None:
    arguments = (
        "search",
        "what changed in pgvector",
        "--repo",
        "encode/httpx",
        "--versions",
        "0.27.0..0.28.0",
        "-k",
        "50",
    )
    results = _json(kb(*arguments, "--json"))["results"]
    assert results
    assert {r["repository"] for r in results} == {"encode/httpx"}
    bounds = [version_key(tag) or "" for tag in ("0.27.0", "0.28.0")]
    assert all(bounds[0] < (version_key(r["tag"]) or "") <= bounds[1] for r in results)


def test_an_answer_cites_what_it_says(kb: Run, imported: dict[str, Any]) -> None:
    for question in sample_corpus.demo_questions():
        answer = _json(kb("ask", question, "--json"))
        assert answer["found"] is True
        assert answer["releases"]
        assert answer["citations"]
        assert all(answer["verified_at"].values())
        for citation in answer["citations"][:2]:
            body = _json(kb("show", citation["repository"], citation["tag"], "--json"))["body"]
            assert body[citation["span"][0] : citation["span"][1]] == citation["text"]
        assert f"[{len(answer['citations'])}]" in answer["answer"]


def test_what_is_not_known_is_said_not_guessed(kb: Run, imported: dict[str, Any]) -> None:
    answer = _json(kb("ask", "Which pgvector release added quantum teleportation of rows to Mars?", "--json"))
    assert answer["found"] is False
    assert answer["releases"] == []
    assert answer["citations"] == []
    assert answer["answer"].startswith("Not in the knowledge base")


def test_a_batch_answers_in_order_and_fails_for_a_line_that_is_no_question(
    kb: Run, imported: dict[str, Any], tmp_path: Path
) -> None:
    batch = tmp_path / "questions.jsonl"
    lines = [{"id": f"q{n}", "question": text} for n, text in enumerate(sample_corpus.demo_questions())]
    batch.write_text("\n".join(map(json.dumps, lines)) + "\n")
    done = kb("ask", "--batch", batch)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["q0", "q1", "q2"]

    batch.write_text('{"id": 1, "question": "pgvector"}\nnot json\n{"id": 3, "question": "httpx"}\n')
    done = kb("search", "--batch", batch)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert ["results" in answer for answer in answers] == [True, False, True]
    assert "line 2" in answers[1]["error"]


def test_changes_exclude_the_lower_and_include_the_upper_version(kb: Run, imported: dict[str, Any]) -> None:
    found = _json(kb("changes", "pgvector/pgvector", "0.7.0..0.8.0", "--json"))
    assert found["from"] == "v0.7.0"
    assert found["to"] == "v0.8.0"
    assert found["releases"][-1] == "v0.8.0"
    assert "v0.7.0" not in found["releases"]
    keys = [version_key(tag) or "" for tag in found["releases"]]
    assert keys == sorted(keys)
    assert {change["tag"] for change in found["changes"]} <= set(found["releases"])
    shown = kb("changes", "strimzi/strimzi-kafka-operator", "0.49.0..1.0.1").stdout
    assert shown.index("BREAKING") < min(shown.index(kind) for kind in ("FEATURE", "FIX") if kind in shown)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("show", "pgvector/pgvector", "v99"), 1, "no release has the tag v99"),
        (("show", "nobody/nothing"), 1, "is not in the knowledge base"),
        (("changes", "pgvector/pgvector", "0.8.0"), 1, "A..B"),
        (("index", "promote", "77"), 1, "there is no index version 77"),
        (("quarantine", "show", "77"), 1, "no quarantined record 77"),
        (("import", "/no/such/file.json"), 1, "does not exist"),
        (("import", "x.json", "--repo", "not a name"), 2, "OWNER/REPO"),
        (("changes",), 2, "Missing argument"),
        (("search",), 2, "give a question"),
        (("no-such-command",), 2, "No such command"),
    ],
)
def test_errors_say_what_failed_and_exit_as_promised(
    kb: Run, imported: dict[str, Any], arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = kb(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_named_without_its_value(kb: Run) -> None:
    done = kb("status", KB_DATABASE_URL="mysql://me:hunter2@host/db")
    assert done.returncode == 2
    assert "KB_DATABASE_URL" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.slow
def test_bad_records_go_to_quarantine_and_come_back_when_the_cause_is_mended(
    kb: Run, imported: dict[str, Any], tmp_path: Path
) -> None:
    good = _sample()[0] | {
        "id": 4_711,
        "tag_name": "v900.0.0",
        "html_url": "https://github.com/acme/tool/releases/tag/x",
    }
    long = good | {"id": 4_712, "tag_name": "v900.0.1", "body": "- Fix a thing\n" * 400}
    file = tmp_path / "mixed.jsonl"
    file.write_text(f"{json.dumps(good)}\nthis is no JSON\n{json.dumps(long)}\n")

    done = kb("import", file, "--no-refresh", "--json", KB_MAX_BODY_BYTES="2048")
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert (result["new"], result["quarantined"]) == (1, 2)
    assert result["reasons"] == {"body-too-long": 1, "not-json": 1}

    waiting = _json(kb("quarantine", "list", "--json"))["records"]
    by_reason = {record["reason"]: record["number"] for record in waiting}
    assert kb("quarantine", "show", by_reason["not-json"], "--raw").stdout == "this is no JSON"

    assert kb("quarantine", "replay", by_reason["body-too-long"], "--no-refresh").returncode == 0
    assert kb("quarantine", "replay", by_reason["not-json"], "--no-refresh").returncode == 1
    assert _json(kb("show", "acme/tool", "v900.0.1", "--json"))["body"] == long["body"]
    assert [r["reason"] for r in _json(kb("quarantine", "list", "--json"))["records"]] == ["not-json"]
    assert "quarantine" in kb("doctor").stdout


def test_the_database_outlives_the_command_that_hands_out_its_address(
    kb: Run, imported: dict[str, Any]
) -> None:
    url = kb("database", "url").stdout.strip()
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(DISTINCT repository) FROM kb.current_releases").fetchone()
    assert row is not None
    assert row[0] >= len(imported["repositories"])


@pytest.mark.slow
def test_index_versions_can_be_listed_built_promoted_and_rolled_back(
    kb: Run, imported: dict[str, Any]
) -> None:
    assert kb("refresh").returncode == 0
    assert [v["status"] for v in _json(kb("index", "list", "--json"))["versions"]] == ["active"]
    assert kb("index", "rollback").returncode == 1
    built = _json(kb("index", "build", "--promote", "--json"))
    assert built["promoted"] is True
    statuses = {v["version"]: v["status"] for v in _json(kb("index", "list", "--json"))["versions"]}
    assert statuses == {built["version"]: "active", 1: "ready"}
    assert _json(kb("index", "rollback", "--json"))["version"] == 1
    assert _json(kb("search", "httpx timeout", "--json"))["index_version"] == 1


def test_every_command_and_option_explains_itself() -> None:
    import typer

    def walk(command: Any, path: str) -> Iterator[str]:
        assert command.help, f"{path} has no help"
        for parameter in command.params:
            if parameter.name != "help":
                assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}")
        yield path

    assert len(list(walk(typer.main.get_command(app), "kb"))) > 20


def test_the_command_line_starts_without_torch_or_dagster() -> None:
    probe = "import sys, kb_platform.cli; print([m for m in ('torch', 'transformers', 'dagster', 'streamlit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stored_text_cannot_talk_to_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\r\nc\td") == "a\ufffd[2Jb\ufffd\ufffd\nc\td"
    assert cell(None) == "-"
    assert cell(1_234) == "1,234"
