"""The project's files as a whole: links, decision records, docstrings, traces of a machine, the CI script.

As in `test_docs`, a check is a function of a text that returns what is wrong with it, and is tested on a doctored one.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.documents import (
    DOCS,
    OURS,
    ROOT,
    anchors,
    headings,
    markdown_files,
    project_files,
    read,
    section,
    targets,
)

# --- the documents among themselves -----------------------------------------------------------------------


def dead_links(text: str, path: Path) -> list[str]:
    """Relative links and images that point at nothing, and fragments that no heading has."""
    dead: list[str] = []
    for target in targets(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        if name and not file.exists():
            dead.append(f"{target}: no such file")
        elif fragment and fragment not in anchors(text if file == path else file.read_text(encoding="utf-8")):
            dead.append(f"{target}: no such heading")
    return dead


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path.read_text(encoding="utf-8"), path) == []


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# There it is\n")
    text = "# Here\n[a](#here) [b](b.md#there-it-is) [c](b.md#gone) [d](c.md) ![e](e.png) [f](https://example.org/x)\n"
    assert dead_links(text, tmp_path / "a.md") == [
        "b.md#gone: no such heading",
        "c.md: no such file",
        "e.png: no such file",
    ]


def test_every_document_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in reached or not path.is_file() or path.suffix != ".md":
            continue
        reached.add(path)
        links = [target.partition("#")[0] for target in targets(path.read_text(encoding="utf-8"))]
        waiting += [(path.parent / unquote(link)).resolve() for link in links if link and ":" not in link]
    assert set(markdown_files()) - reached == set()


def decision_gaps(name: str, text: str) -> list[str]:
    """What a decision record lacks."""
    number = name.partition("-")[0]
    titles = [(level, title) for level, title, _ in headings(text)]
    gaps = (
        []
        if titles and titles[0][1].startswith(f"{number}: ")
        else [f"the title does not begin with {number}:"]
    )
    parts = [title for level, title in titles if level == 2]
    wanted = ["Context", "Decision", "Consequences", "Measured"]
    if parts != wanted:
        return [*gaps, f"the sections are {parts}, not {wanted}"]
    return gaps + [f"{part} is empty" for part in wanted if len(section(text, part).split()) < 8]


def test_decisions_are_whole_numbered_and_listed() -> None:
    files = sorted(path for path in (DOCS / "decisions").glob("*.md") if path.name != "README.md")
    assert [path.name[:5] for path in files] == [f"{number:04d}-" for number in range(1, len(files) + 1)]
    assert {path.name: gaps for path in files if (gaps := decision_gaps(path.name, path.read_text()))} == {}
    assert set(targets(read("docs/decisions/README.md"))) >= {path.name for path in files}


def test_a_decision_without_reasons_is_noticed() -> None:
    words = "one two three four five six seven eight"
    text = f"# 0009: x\n\n## Context\n{words}\n\n## Decision\n{words}\n\n## Consequences\n\n## Measured\n{words}\n"
    assert decision_gaps("0009-x.md", text) == ["Consequences is empty"]
    assert decision_gaps("0008-x.md", text.replace("## Consequences\n\n", "")) == [
        "the title does not begin with 0008:",
        "the sections are ['Context', 'Decision', 'Measured'], not ['Context', 'Decision', 'Consequences', 'Measured']",
    ]


def test_the_changelog_has_this_version() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert (
        next(title.split()[0] for level, title, _ in headings(read("CHANGELOG.md")) if level == 2) == version
    )


# --- the code as a document -------------------------------------------------------------------------------


def python_files() -> list[Path]:
    """Our modules: the packages, the tests, the benchmarks."""
    return [path for path in project_files() if path.suffix == ".py"]


def without_docstring(source: str) -> bool:
    """Whether a module does not say what it is for."""
    return len((ast.get_docstring(ast.parse(source)) or "").split()) < 3


def test_every_module_says_what_it_is_for() -> None:
    assert [
        str(path.relative_to(ROOT))
        for path in python_files()
        if without_docstring(path.read_text(encoding="utf-8"))
    ] == []


def test_a_module_without_a_docstring_is_noticed() -> None:
    assert without_docstring("")
    assert without_docstring("import os\n")
    assert not without_docstring('"""What it is for."""\n')


def modules_with_examples() -> list[str]:
    """Our modules whose docstrings have examples."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in python_files()
        if path.relative_to(ROOT).parts[0] in OURS
        and re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_are_true(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed


# --- what must not stand in any file ----------------------------------------------------------------------

# Folders of the machine that a file was written on, and addresses of an index that a lock was made with.
_FOLDER = re.compile(r"(?<![\w.~/-])/(?:work|root|Users|home/(?!user\b)\w+)/[\w.-]")
_INDEX = re.compile(r"--(?:extra-)?index-url|--find-links|https?://[\w.-]+(?::\d+)?/(?:[\w-]+/)*simple\b")


# Tests whose doctored texts have what must not be.
DOCTORED = ("test_project_files.py", "test_packaging.py")


def traces(text: str, hosts: Sequence[str] = ()) -> list[str]:
    """Paths of a machine and addresses of package indexes in a text."""
    found = [match.group() for pattern in (_FOLDER, _INDEX) for match in pattern.finditer(text)]
    return found + [host for host in hosts if host in text]


def index_hosts() -> list[str]:
    """The hosts of the package indexes that this machine is set up with, the public one aside."""
    names = (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "UV_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_EXTRA_INDEX_URL",
        "UV_INDEX",
    )
    text = " ".join(os.environ.get(name, "") for name in names)
    return sorted(set(re.findall(r"https?://(?:[^/@\s]*@)?([\w.-]+\.\w+)", text)))


def test_no_file_carries_traces_of_a_machine() -> None:
    found: dict[str, list[str]] = {}
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.name not in DOCTORED and (traced := traces(text, [str(ROOT), *index_hosts()])):
            found[str(path.relative_to(ROOT))] = traced[:3]
    assert found == {}


def test_a_trace_of_a_machine_is_noticed() -> None:
    assert traces("see /root/x and /home/anna/kb") == ["/root/x", "/home/anna/k"]
    assert traces("--index-url https://mirror.example.org/pypi/simple") == [
        "--index-url",
        "https://mirror.example.org/pypi/simple",
    ]
    assert traces("from inner.example.net", ["inner.example.net"]) == ["inner.example.net"]
    assert traces("cd ~/work/x; ls /home/user/x; https://example.org/home/work/x ./root/x /repos/o/r") == []


# --- the checks that are not tests ------------------------------------------------------------------------


def test_the_type_checker_is_strict_over_all_packages(tmp_path: Path) -> None:
    configuration = read("pyproject.toml")
    assert set(tomllib.loads(configuration)["tool"]["pyright"]["include"]) == set(OURS)
    (tmp_path / "pyproject.toml").write_text(re.sub(r"(?m)^venv(Path)? = .*\n", "", configuration))
    for package in OURS:
        (tmp_path / package).mkdir()
        # Only strict mode minds a parameter without a type.
        (tmp_path / package / "sample.py").write_text("def double(number):\n    return number * 2\n")
    checker = Path(sys.executable).with_name("basedpyright")
    done = subprocess.run(
        [checker, "--outputjson"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    errors = [
        found for found in json.loads(done.stdout)["generalDiagnostics"] if found["severity"] == "error"
    ]
    assert done.returncode == 1
    assert {Path(found["file"]).parent.name for found in errors} == set(OURS)


# --- continuous integration -------------------------------------------------------------------------------


def test_ci_is_a_sound_script_that_runs_every_part() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    for part in ("make setup", "make lock-check", "ruff check", "ruff format --check", "lint-imports", "basedpyright",
                 "make test", "make test-all", "git clone", "make demo"):  # fmt: skip
        assert part in text, part
