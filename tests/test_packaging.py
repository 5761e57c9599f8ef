"""What is installed, what a wheel holds, and what the lock pins."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from email.parser import Parser
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from tests.documents import OURS, ROOT, project_files, read

# The folders whose names are fixed; another one beside them would be a mistake, or a decision.
FOLDERS = {".ci", ".github", "app_streamlit", "assets", "benchmarks", "docs", "helm", "kb_platform", "resources", "sensors",
           "terraform", "tests"}  # fmt: skip


def test_the_top_level_folders_are_those_that_are_fixed() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in project_files() if path.parent != ROOT}
    assert folders <= FOLDERS
    assert set(OURS) <= folders


# --- names ------------------------------------------------------------------------------------------------


def owners(installed: Iterable[Distribution]) -> dict[str, set[str]]:
    """Top-level package or module → the distributions that install it."""
    found: dict[str, set[str]] = {}
    for distribution in installed:
        for top in {Path(str(file)).parts[0].removesuffix(".py") for file in distribution.files or ()}:
            found.setdefault(top, set()).add(distribution.name.lower())
    return found


def test_only_our_distribution_owns_our_names() -> None:
    found = owners(distributions())
    assert {name: others for name in OURS if (others := found.get(name, set()) - {"kb-platform"})} == {}


@pytest.mark.parametrize("name", OURS)
def test_our_names_are_imported_from_here(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve().is_relative_to(ROOT)


def test_another_owner_of_a_name_is_noticed(tmp_path: Path) -> None:
    metadata = tmp_path / "other-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: Other\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("assets/__init__.py,,\nsensors.py,,\n")
    found = owners(distributions(path=[str(tmp_path)]))
    assert found == {"assets": {"other"}, "sensors": {"other"}}


# --- the wheel --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that this checkout builds, made by the locked hatchling without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def contents(wheel: zipfile.ZipFile) -> set[str]:
    """The files of a wheel, its metadata aside."""
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_our_packages_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    ours = {
        str(path.relative_to(ROOT))
        for path in project_files()
        if path.relative_to(ROOT).parts[0] in OURS and path.parent != ROOT
    }
    assert contents(wheel) == ours


def test_the_wheel_holds_what_is_not_code(wheel: zipfile.ZipFile) -> None:
    names = contents(wheel)
    assert any(re.fullmatch(r"kb_platform/store/migrations/\d{4}_\w+\.sql", name) for name in names)
    assert any(re.fullmatch(r"kb_platform/sample_corpus/releases/[\w.-]+\.jsonl", name) for name in names)
    assert "kb_platform/sample_corpus/questions.jsonl" in names


def test_a_wheel_that_says_typed_is_marked_so(wheel: zipfile.ZipFile) -> None:
    if "Typing :: Typed" in metadata_of(wheel)["Classifier"]:
        assert {f"{package}/py.typed" for package in OURS} <= contents(wheel)


def test_an_upload_by_mistake_is_refused(wheel: zipfile.ZipFile) -> None:
    assert "Private :: Do Not Upload" in metadata_of(wheel)["Classifier"]


def test_the_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "kb = kb_platform.cli:main" in wheel.read(name).decode()


def metadata_of(wheel: zipfile.ZipFile) -> Mapping[str, list[str]]:
    """The fields of a wheel's metadata."""
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    message = Parser().parsestr(wheel.read(name).decode())
    return {field: message.get_all(field, []) for field in ("Classifier", "Name", "Requires-Dist")}


# --- the lock ---------------------------------------------------------------------------------------------


def lock_gaps(text: str) -> list[str]:
    """Lines of a lock that pin nothing, pins without a hash, and anything that tells where packages come from."""
    gaps: list[str] = []
    for block in re.split(r"\n(?=\S)", text.strip()):
        first = block.splitlines()[0]
        if first.startswith("#"):
            continue
        if not re.match(r"[A-Za-z0-9][\w.-]*(\[[\w,-]+\])?==[\w.!+-]+( ;.*)? \\$", first):
            gaps.append(f"{first.split(' ')[0]} is not pinned")
        elif not re.search(r"--hash=sha256:[0-9a-f]{64}\b", block):
            gaps.append(f"{first.split('=')[0]} has no hash")
    return gaps + [
        f"it names {found}"
        for found in re.findall(r"https?://\S+|--(?:extra-)?index-url|--find-links|file:\S+", text)
    ]


def test_the_lock_pins_everything_with_hashes_and_names_no_index() -> None:
    assert lock_gaps(read("requirements.lock")) == []


def test_a_loose_lock_is_noticed() -> None:
    digest = "a" * 64
    sound = f"one==1.0 \\\n    --hash=sha256:{digest}\n    # via two\ntwo==2.0 ; python_version < '3.12' \\\n    --hash=sha256:{digest}\n"
    assert lock_gaps(sound) == []
    assert lock_gaps(sound.replace("one==1.0", "one>=1.0")) == ["one>=1.0 is not pinned"]
    assert lock_gaps(sound.replace(f"    --hash=sha256:{digest}\n    # via", "    # via")) == [
        "one has no hash"
    ]
    assert lock_gaps(f"--index-url https://example.org/simple\n{sound}") == [
        "--index-url is not pinned",
        "it names --index-url",
        "it names https://example.org/simple",
    ]


def test_the_lock_has_every_dependency() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(one for group in project["optional-dependencies"].values() for one in group),
    ]
    names = {re.split(r"[\[<>=!~ ;]", one)[0].lower() for one in wanted}
    locked = {
        match.lower()
        for match in re.findall(r"(?m)^([A-Za-z0-9][\w.-]*?)(?:\[.*?\])?==", read("requirements.lock"))
    }
    assert names - locked == set()
