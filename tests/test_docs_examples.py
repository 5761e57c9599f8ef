"""The documents' SQL examples and JSON documents, tried on a small knowledge base.

As in `test_docs`, a check is a function of a text that returns what is wrong with it, and is tested on a doctored one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from kb_platform import sample_corpus
from kb_platform.retrieval.filters import Filters
from kb_platform.settings import Settings
from kb_platform.sources.budget import Budget
from kb_platform.stages import promotion
from kb_platform.stages.chunking import chunk_repository
from kb_platform.stages.embedding import embed_repositories
from kb_platform.stages.importing import import_files
from kb_platform.stages.indexing import complete_versions, ensure_version, index_repositories
from kb_platform.store import alerts, polls, watch_list
from kb_platform.store.credentials import save_budget
from kb_platform.store.database import Database
from tests.documents import DOCS, blocks, codes, read, rows, section
from tests.hashing_embedder import HashingEmbedder, hashing_model


@pytest.fixture
def small(database: Database, tmp_path: Path) -> Database:
    """A knowledge base of one repository of the sample corpus, indexed with the tests' model, and one bad record."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": 1, "tag_name": "1.0"\n')
    import_files(database, [sample_corpus.releases_folder() / "pgvector__pgvector.jsonl", bad], Settings())
    ensure_version(database, hashing_model)
    chunk_repository(database, "pgvector/pgvector")
    embed_repositories(database, ["pgvector/pgvector"], HashingEmbedder)
    index_repositories(database, ["pgvector/pgvector"])
    assert complete_versions(database).promoted is not None
    now = datetime.now(UTC)
    with database.transaction() as connection:
        watch_list.add(connection, "pgvector/pgvector", at=now)
        watch = watch_list.find(connection, "pgvector/pgvector")
        polls.failed(connection, watch.repository_id, "not-found", "gone", at=now, due_at=now)
        save_budget(connection, Budget("token-12345678", 5000, 4000, now))
        problem = alerts.Problem("polling-fails", "pgvector/pgvector", "error", "cannot be polled")
        alerts.bring_up_to_date(connection, {"polling-fails"}, [problem], now)
    return database


def test_the_sql_examples_run_and_find_something(small: Database) -> None:
    examples = [
        example for path in DOCS.glob("*.md") for example in blocks(path.read_text(encoding="utf-8"), "sql")
    ]
    assert len(examples) >= 5
    for example in examples:
        with small.snapshot() as connection:
            assert connection.execute(example.encode()).fetchall(), f"nothing is found by\n{example}"


TYPES: Mapping[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "null": lambda value: value is None,
}


def fields_in(document: object, path: str = "") -> Iterable[tuple[str, object]]:
    """Every field of a JSON document with its path: `results[].tag`."""
    if isinstance(document, dict):
        for name, value in cast("dict[str, object]", document).items():
            inside = f"{path}.{name}" if path else name
            yield inside, value
            yield from fields_in(value, inside)
    elif isinstance(document, list):
        for value in cast("list[object]", document):
            if not isinstance(value, dict):
                yield f"{path}[]", value
            yield from fields_in(cast("object", value), f"{path}[]")


def field_gaps(text: str, document: object) -> list[str]:
    """What a section gets wrong of a JSON document. A segment like `<name>` stands for any; `…` for anything within."""
    written = [(codes(row["field"])[0], row) for row in rows(text)]
    found = list(fields_in(document))
    gaps: list[str] = []
    seen: set[str] = set()
    for path, value in found:
        match = next(((name, row) for name, row in written if _covers(name, path)), None)
        if match is None:
            gaps.append(f"{path} is not there")
            continue
        name, row = match
        seen.add(name)
        if not name.endswith("…") and not any(TYPES[kind](value) for kind in row["type"].split(" or ")):
            gaps.append(f"{path} is {value!r:.40}, not {row['type']}")
    paths = [path for path, _ in found]
    gaps += [
        f"{name} does not exist"
        for name, row in written
        if row["present"] == "always" and name not in seen and _is_due(name, paths)
    ]
    return list(dict.fromkeys(gaps))


def _is_due(pattern: str, paths: Sequence[str]) -> bool:
    """Whether a field must be there: not where the list or map that it stands in is empty."""
    container = re.match(r".*(?:\[\](?=.)|<\w+>(?=.))", pattern)
    if container is None:
        return not pattern.endswith(("[]", ">"))
    return any(_covers(f"{container[0]}…", path) for path in paths)


def _covers(pattern: str, path: str) -> bool:
    parts = re.split(r"<\w+>", pattern.removesuffix("…"))
    anything = ".*" if pattern.endswith("…") else ""
    return re.fullmatch(".+".join(map(re.escape, parts)) + anything, path) is not None


def test_the_json_of_every_reading_command_is_as_documented(small: Database, tmp_path: Path) -> None:
    text = read("docs/interfaces.md")
    environment = {"KB_DATABASE_URL": small.url, "KB_HOME": str(tmp_path / "home")}
    runs = {
        "kb search": ["search", "hnsw index build in parallel", "--json"],
        "kb ask": ["ask", "Which pgvector release added iterative index scans?", "--json"],
        "kb changes": ["changes", "pgvector/pgvector", "0.6.0..0.8.0", "--json"],
        "kb show with a tag": ["show", "pgvector/pgvector", "v0.8.0", "--json"],
        "kb show without a tag": ["show", "pgvector/pgvector", "--json"],
        "kb status": ["status", "--json"],
        "kb doctor": ["doctor", "--json"],
        "kb init": ["init", "--json"],
        "kb index list": ["index", "list", "--json"],
        "kb quarantine list": ["quarantine", "list", "--json"],
        "kb quarantine show": ["quarantine", "show", "1", "--json"],
        "kb database url": ["database", "url", "--json"],
        "kb import": [
            "import",
            str(sample_corpus.releases_folder() / "encode__httpx.jsonl"),
            "--no-refresh",
            "--json",
        ],
    }
    for title, words in runs.items():
        document = run_json(words, environment)
        assert document.get("citations", True) and document.get("results", True), "nothing to compare with"
        assert field_gaps(section(text, title), document) == [], title


def test_the_json_of_a_refresh_is_as_documented() -> None:
    from kb_platform.cli.refreshing import as_json
    from kb_platform.definitions import RefreshResult

    done = RefreshResult(
        stage_seconds={"chunks": 1.5}, run_ids=["an id"], promoted_version=2, recall_at_10=1.0
    )
    for result in (done, RefreshResult(problems=["chunks: no connection"], warnings=["one record waits"])):
        assert field_gaps(section(read("docs/interfaces.md"), "kb refresh"), as_json(result)) == []


def test_the_json_of_gates_and_filters_is_as_documented(small: Database) -> None:
    text = read("docs/interfaces.md")
    assert field_gaps(section(text, "The gate"), promotion.examine(small, 1).as_json()) == []
    assert {codes(row["field"])[0] for row in rows(section(text, "Filters"))} == set(Filters.model_fields)


def run_json(words: Sequence[str], environment: Mapping[str, str]) -> Any:
    """The JSON document that a command prints."""
    from kb_platform.cli.command import app

    done = CliRunner().invoke(app, list(words), env=dict(environment), catch_exceptions=False)
    assert done.exit_code in (0, 1), done.output
    assert done.stdout.startswith("{"), done.output
    return json.loads(done.stdout)


def test_a_wrong_field_is_noticed() -> None:
    text = (
        "| field | type | present | meaning |\n|---|---|---|---|\n| `a` | array | always | x |\n"
        "| `a[].b` | string | always | x |\n| `c.<name>` | number | always | x |\n| `c` | object | always | x |\n"
    )
    assert field_gaps(text, {"a": [{"b": "x"}], "c": {"o/r": 1}}) == []
    assert field_gaps(text, {"a": [{"b": None}], "c": {"o/r": 1}}) == ["a[].b is None, not string"]
    assert field_gaps(text, {"a": [{"b": "x", "d": 1}], "c": {"o/r": 1}}) == ["a[].d is not there"]
    assert field_gaps(text, {"a": [{"d": 1}], "c": {}}) == ["a[].d is not there", "a[].b does not exist"]
    assert field_gaps(text, {"a": [], "c": {}}) == []
    assert field_gaps(text, {"c": {}}) == ["a does not exist"]
