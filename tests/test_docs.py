"""The documents say all there is and nothing that is not.

Each check is a function of a text that returns what is wrong with it, so that it is tested on a doctored text too: a
check that finds nothing wrong in a document with a line missing is no check.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from kb_platform.settings import Settings
from kb_platform.store.database import Database
from tests.documents import (
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

VIEWS = (
    "current_releases", "release_observations", "current_chunks", "index_versions", "quarantine", "repositories",
    "watched_repositories", "credentials", "alerts", "streams", "stream_resets",
)  # fmt: skip


# --- settings ---------------------------------------------------------------------------------------------


def default_of(field: FieldInfo) -> str:
    """A default as the document writes it."""
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return "unset"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


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
            if name is None and words[-1] in ("--help", "-h"):
                wrong += (
                    []
                    if any(f"{one} ".startswith(" ".join(words[:-1]) + " ") for one in known)
                    else [" ".join(words)]
                )
                continue
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


def test_every_benchmark_that_is_named_exists_and_every_one_is_named() -> None:
    named = {
        name
        for path in markdown_files()
        for name in re.findall(r"benchmarks/\w+\.py", path.read_text(encoding="utf-8"))
    }
    files = {
        f"benchmarks/{path.name}": path for path in project_files() if path.parent == ROOT / "benchmarks"
    }
    run_by_hand = {
        name
        for name, path in files.items()
        if path.suffix == ".py" and "__main__" in path.read_text(encoding="utf-8")
    }
    assert named - files.keys() == set()
    assert run_by_hand - named == set()


# --- quarantine -------------------------------------------------------------------------------------------


def reasons_in(source: str) -> set[str]:
    """The reasons that a module refuses records for: what stands first in `BadRecord(…)` and `Refused(…)`, or is handed
    to `parse_object(…, reason=…)`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    first = [call.args[0] for call in calls if getattr(call.func, "id", "") in ("BadRecord", "Refused")]
    first += [
        word.value
        for call in calls
        if getattr(call.func, "id", "") == "parse_object"
        for word in call.keywords
        if word.arg == "reason"
    ]
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
    text = "## Jobs\n\n| Job | What |\n|---|---|\n| `wash` | x |\n| `dry` | y |\n"
    assert definition_gaps(text, {"Jobs": {"wash", "dry"}, "Sensors": set()}) == []
    assert definition_gaps(text, {"Jobs": {"wash", "iron"}, "Sensors": {"rain"}}) == [
        "Jobs: iron is not there",
        "Jobs: dry does not exist",
        "no table of Sensors",
    ]


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
