"""The documents say all there is and nothing that is not.

Each check is a function of a text that returns what is wrong with it, so that it is tested on a doctored text too: a
check that finds nothing wrong in a document with a line missing is no check.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from kb_platform import sample_corpus
from kb_platform.retrieval.filters import Filters
from kb_platform.settings import Settings
from kb_platform.stages import promotion
from kb_platform.stages.chunking import chunk_repository
from kb_platform.stages.embedding import embed_repositories
from kb_platform.stages.importing import import_files
from kb_platform.stages.indexing import complete_versions, ensure_version, index_repositories
from kb_platform.store.database import Database
from tests.documents import (
    DOCS,
    ROOT,
    blocks,
    codes,
    headings,
    markdown_files,
    project_files,
    read,
    rows,
    section,
    shell_commands,
    tables,
    targets,
)
from tests.hashing_embedder import HashingEmbedder, hashing_model

VIEWS = (
    "current_releases", "release_observations", "current_chunks", "index_versions", "quarantine", "repositories",
)  # fmt: skip


# --- settings ---------------------------------------------------------------------------------------------


def default_of(field: FieldInfo) -> str:
    """A default as the document writes it."""
    if field.default is None:
        return "unset"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def limits_of(field: FieldInfo) -> list[str]:
    """What the document must say of the values that a setting takes."""
    limits: list[str] = []
    for limit in field.metadata:
        for kind, name in ((Ge, "ge"), (Gt, "gt"), (Le, "le"), (Lt, "lt")):
            if isinstance(limit, kind):
                limits.append(str(getattr(limit, name)))
    return limits + [str(value) for value in get_args(field.annotation) if isinstance(value, str)]


def settings_gaps(text: str) -> list[str]:
    """Settings that a text leaves out or gets wrong, and those that it makes up."""
    written = {codes(row["variable"])[0]: row for row in rows(text) if codes(row.get("variable", ""))}
    gaps: list[str] = []
    for name, field in Settings.model_fields.items():
        row = written.pop(f"KB_{name.upper()}", None)
        if row is None:
            gaps.append(f"KB_{name.upper()} is not there")
        elif row["default"] != default_of(field):
            gaps.append(f"KB_{name.upper()}: default {row['default']}, in the code {default_of(field)}")
        elif missing := [limit for limit in limits_of(field) if limit not in row["values"].replace(",", "")]:
            gaps.append(f"KB_{name.upper()}: values do not say {', '.join(missing)}")
        elif len(row["meaning"]) < 20:
            gaps.append(f"KB_{name.upper()}: no meaning")
    return gaps + [f"{name} is no setting" for name in written]


def test_every_setting_is_documented() -> None:
    assert settings_gaps(read("docs/settings.md")) == []


def test_a_wrong_or_missing_setting_is_noticed() -> None:
    text = read("docs/settings.md")
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "`KB_APP_PORT`" in line)
    assert settings_gaps("\n".join(lines[:at] + lines[at + 1 :])) == ["KB_APP_PORT is not there"]
    assert settings_gaps(text.replace("`KB_APP_PORT`", "`KB_APPLICATION_PORT`")) == [
        "KB_APP_PORT is not there",
        "KB_APPLICATION_PORT is no setting",
    ]
    assert settings_gaps(text.replace("`8501`", "`8502`")) == [
        "KB_APP_PORT: default `8502`, in the code `8501`"
    ]
    assert settings_gaps(text.replace("1 to 200 |", "any |")) == [
        "KB_DATABASE_POOL_SIZE: values do not say 1, 200"
    ]


# --- commands ---------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command by its words (`kb index list`), as click has it."""
    from kb_platform.cli.command import app

    found: dict[str, Any] = {}

    def walk(words: str, command: Any) -> None:
        inner: Mapping[str, Any] | None = getattr(command, "commands", None)
        if inner is None:
            found[words] = command
        for name, child in (inner or {}).items():
            walk(f"{words} {name}", child)

    walk("kb", typer.main.get_command(app))
    return found


def options_of(command: Any) -> set[str]:
    """Every spelling of every option of a command."""
    return {
        name
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.hidden
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def command_gaps(text: str, known: Mapping[str, Any]) -> list[str]:
    """Commands, options and arguments that a text leaves out, and those that it makes up."""
    gaps: list[str] = []
    written = {title for _, title, _ in headings(text) if title.startswith("kb ")}
    for words, command in known.items():
        if words not in written:
            gaps.append(f"{words} is not there")
            continue
        part = section(text, words)
        options = {
            word
            for row in rows(part)
            for code in codes(row.get("option", ""))
            for word in re.findall(r"--?[a-z][\w-]*", code)
        }
        gaps += [f"{words} {name} is not there" for name in sorted(options_of(command) - options)]
        gaps += [f"{words} has no {name}" for name in sorted(options - options_of(command))]
        usage = " ".join(code for code in blocks(part, "text"))
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                metavar = (parameter.metavar or parameter.name.upper()).strip("[].")
                gaps += [f"{words}: the usage does not show {metavar}"] if metavar not in usage else []
    return gaps + [f"{words} is no command" for words in sorted(written - known.keys())]


def test_every_command_and_option_is_documented() -> None:
    assert command_gaps(read("docs/commands.md"), commands()) == []


def test_a_wrong_or_missing_command_is_noticed() -> None:
    text = read("docs/commands.md")
    known = commands()
    assert "kb changes is not there" in command_gaps(text.replace("`kb changes`", "`kb differences`"), known)
    assert "kb differences is no command" in command_gaps(
        text.replace("`kb changes`", "`kb differences`"), known
    )
    assert "kb ask --versions is not there" in command_gaps(text.replace("`--versions ", "`--range "), known)
    assert "kb ask has no --range" in command_gaps(text.replace("`--versions ", "`--range "), known)
    assert command_gaps(text.replace("OWNER/REPO A..B", "OWNER/REPO"), known) == [
        "kb changes: the usage does not show A..B"
    ]


# --- what people are told to type -------------------------------------------------------------------------


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), re.MULTILINE))


def unknown_commands(text: str, known: Mapping[str, Any], made: set[str]) -> list[str]:
    """`make` and `kb` commands of a text's shell blocks that do not exist, options included."""
    wrong: list[str] = []
    for words in shell_commands(text):
        if words[0] == "make":
            wrong += [f"make {word}" for word in words[1:] if "=" not in word and word not in made]
        elif words[0] == "kb":
            name = next((" ".join(words[:n]) for n in (3, 2) if " ".join(words[:n]) in known), None)
            if name is None:
                wrong.append(" ".join(words[:3]))
                continue
            allowed = options_of(known[name]) | {"--help", "-h"}
            given = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            wrong += [f"{name} {option}" for option in sorted(given - allowed)]
    return wrong


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_documents_exist(path: Path) -> None:
    assert unknown_commands(path.read_text(encoding="utf-8"), commands(), make_targets()) == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    text = '```sh\nmake demo deploy\nKB_HOME=x kb ask "what | broke" --jsn && kb indx list\nkb status --json | jq .\n```'
    assert unknown_commands(text, commands(), {"demo"}) == ["make deploy", "kb ask --jsn", "kb indx list"]


def test_the_readme_leads_with_the_two_commands_and_the_pictures() -> None:
    text = read("README.md")
    first = [" ".join(words) for words in shell_commands(text)]
    assert first[:2] == ["make demo", "make test"]
    assert {"docs/images/asset-graph.png", "docs/images/app.png"} <= set(targets(text))


def test_every_benchmark_that_is_named_exists_and_is_named() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in markdown_files())
    named = set(re.findall(r"benchmarks/\w+\.py", text))
    there = {
        f"benchmarks/{path.name}"
        for path in project_files()
        if path.parent == ROOT / "benchmarks" and path.suffix == ".py"
    }
    assert named == {name for name in there if not name.endswith("__init__.py")}


# --- quarantine -------------------------------------------------------------------------------------------


def reasons_in(source: str) -> set[str]:
    """The reasons that a module refuses records for: what stands first in `BadRecord(…)` and `Refused(…)`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    first = [call.args[0] for call in calls if getattr(call.func, "id", "") in ("BadRecord", "Refused")]
    constants = [
        node.value for argument in first for node in ast.walk(argument) if isinstance(node, ast.Constant)
    ]
    return {value for value in constants if isinstance(value, str)}


def test_every_reason_for_quarantine_is_documented() -> None:
    files = [
        path for path in project_files() if path.suffix == ".py" and path.is_relative_to(ROOT / "kb_platform")
    ]
    found = {reason for path in files for reason in reasons_in(path.read_text(encoding="utf-8"))}
    listed = {codes(row["reason"])[0] for row in rows(section(read("docs/operation.md"), "Quarantine"))}
    assert listed == found
    assert reasons_in('raise BadRecord("a" if x else "b", f"c {d}")\nRefused("e", f)\nprint("g")') == {
        "a",
        "b",
        "e",
    }


# --- the asset graph --------------------------------------------------------------------------------------


def definitions() -> dict[str, set[str]]:
    """The names of everything in the code location, by the section of the document that has them."""
    from kb_platform.definitions import defs

    repository = defs.get_repository_def()
    graph = repository.asset_graph
    return {
        "Assets": {key.to_user_string() for key in graph.get_all_asset_keys()},
        "Checks": {f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys},
        "Jobs": {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")},
        "Sensors": {sensor.name for sensor in repository.sensor_defs},
        "Schedules": {schedule.name for schedule in repository.schedule_defs},
    }


def definition_gaps(text: str, known: Mapping[str, set[str]]) -> list[str]:
    """Names of definitions that the tables of a text leave out or make up."""
    gaps: list[str] = []
    for title, names in known.items():
        if not names:
            continue
        try:
            written = {codes(next(iter(row.values())))[0] for row in tables(section(text, title))[0]}
        except LookupError:
            gaps.append(f"no table of {title}")
            continue
        gaps += [f"{title}: {name} is not there" for name in sorted(names - written)]
        gaps += [f"{title}: {name} does not exist" for name in sorted(written - names)]
    return gaps


def test_every_definition_is_documented() -> None:
    assert definition_gaps(read("docs/assets.md"), definitions()) == []


def test_a_missing_definition_is_noticed() -> None:
    text = read("docs/assets.md")
    assert definition_gaps(text.replace("| `release_index` |", "| `index` |"), definitions()) == [
        "Assets: release_index is not there",
        "Assets: index does not exist",
    ]
    assert definition_gaps(text, definitions() | {"Jobs": {"polish"}})[0] == "Jobs: polish is not there"
    assert "no table of Checks" in definition_gaps("# Assets\n", definitions())


# --- the database -----------------------------------------------------------------------------------------


def columns_of(database: Database, relation: str) -> list[tuple[str, str]]:
    """(name, type) of the columns of a table or view of the schema `kb`, in order."""
    with database.snapshot() as connection:
        found = connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass "
            "AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            (f"kb.{relation}",),
        ).fetchall()
    return [(row[0], row[1]) for row in found]


def column_gaps(text: str, relation: str, columns: Sequence[tuple[str, str]]) -> list[str]:
    """What a text gets wrong of a view: columns, their types, their order, and whether each is explained."""
    written = [
        (codes(row["column"])[0], codes(row["type"])[0], row["meaning"])
        for row in rows(section(text, f"kb.{relation}"))
    ]
    gaps = [f"{relation}.{name}: no meaning" for name, _, meaning in written if len(meaning) < 5]
    found = [(name, kind) for name, kind, _ in written]
    gaps += [
        f"{relation}.{name} ({kind}) is not there" for name, kind in columns if (name, kind) not in found
    ]
    gaps += [
        f"{relation}.{name} ({kind}) does not exist" for name, kind in found if (name, kind) not in columns
    ]
    return gaps or ([] if found == list(columns) else [f"{relation}: the columns stand in another order"])


def test_every_column_of_every_view_is_documented(database: Database) -> None:
    text = read("docs/data-model.md")
    assert [gap for view in VIEWS for gap in column_gaps(text, view, columns_of(database, view))] == []


def test_a_missing_column_is_noticed() -> None:
    text = "## kb.v\n\n| column | type | meaning |\n|---|---|---|\n| `a` | `text` | the first one |\n| `b` | `text` | |\n"
    assert column_gaps(text, "v", [("a", "text"), ("b", "text")]) == ["v.b: no meaning"]
    assert column_gaps(text.replace("| |", "| the other |"), "v", [("b", "text"), ("a", "text")]) == [
        "v: the columns stand in another order"
    ]
    assert column_gaps(text.replace("| |", "| the other |"), "v", [("a", "bytea")]) == [
        "v.a (bytea) is not there",
        "v.a (text) does not exist",
        "v.b (text) does not exist",
    ]


def test_every_table_view_and_function_is_documented(database: Database) -> None:
    with database.snapshot() as connection:
        relations = connection.execute(
            "SELECT relname, relkind = 'v' FROM pg_class WHERE relnamespace = 'kb'::regnamespace AND relkind IN ('r', 'v')"
        ).fetchall()
        functions = connection.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'kb'::regnamespace AND prorettype <> 'trigger'::regtype"
        ).fetchall()
    text = read("docs/data-model.md")
    listed = {codes(row["table"])[0] for row in rows(section(text, "Tables"))}
    assert listed == {f"kb.{name}" for name, is_view in relations if not is_view} | {"kb.index_<version>"}
    assert {name for name, is_view in relations if is_view} == set(VIEWS)
    titles = {title.partition("(")[0] for _, title, _ in headings(text)}
    assert {f"kb.{name}" for (name,) in functions} <= titles


# --- a small knowledge base, on which the documents' examples run -----------------------------------------


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
        for name, value in document.items():
            inside = f"{path}.{name}" if path else str(name)
            yield inside, value
            yield from fields_in(value, inside)
    elif isinstance(document, list):
        for value in document:
            yield from fields_in(value, f"{path}[]")


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
    gaps += [
        f"{name} does not exist" for name, row in written if row["present"] == "always" and name not in seen
    ]
    return list(dict.fromkeys(gaps))


def _covers(pattern: str, path: str) -> bool:
    if pattern.endswith("…"):
        return path.startswith(pattern.removesuffix("…"))
    parts = re.split(r"<\w+>", pattern)
    return re.fullmatch(".+".join(map(re.escape, parts)), path) is not None


def test_the_json_of_every_reading_command_is_as_documented(small: Database, tmp_path: Path) -> None:
    text = read("docs/interfaces.md")
    environment = {"KB_DATABASE_URL": small.url, "KB_HOME": str(tmp_path / "home")}
    runs = {
        "kb search": ["search", "hnsw index build in parallel", "--json"],
        "kb ask": ["ask", "Which pgvector version added parallel builds for HNSW?", "--json"],
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
    assert field_gaps(text, {"a": [], "c": {"o/r": 1}}) == ["a[].b does not exist"]
