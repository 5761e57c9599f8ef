"""A clone and its changelog: tags that are read without running anything of the clone, and what becomes of it all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kb_platform.errors import BadRecord, SourceError
from kb_platform.settings import Settings
from kb_platform.sources.clone import Forge, forge_of, read_clone
from kb_platform.stages.changelogs import FIRST_ID, ChangelogImported, import_changelog, release_id
from kb_platform.stages.importing import import_observed
from kb_platform.stages.replaying import replay
from kb_platform.store import quarantine, release_log
from kb_platform.store.database import Database
from kb_platform.store.release_log import StoredRelease
from kb_platform.store.repositories import find_repository
from kb_platform.text.versions import Version, parse_version
from tests.job import Job
from tests.records import observed

SETTINGS = Settings(max_body_bytes=2_000)
NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)

CHANGELOG = """\
# Changelog

## [Unreleased]

- Soon

## [1.2.0] - 2024-03-01

### Added

- A widget that spins

## 1.1.0

- The gadget hums

## 1.0.0 (01/02/2024)

- First

[1.2.0]: https://example.com/1.2.0
"""


@dataclass
class Made:
    """A clone made for a test."""

    folder: Path

    def git(self, *arguments: str) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        fixed = {
            "GIT_AUTHOR_DATE": NOON.isoformat(),
            "GIT_COMMITTER_DATE": NOON.isoformat(),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        subprocess.run(
            ["git", "-C", str(self.folder), "-c", "user.name=Someone", "-c", "user.email=someone@example.com",
             "-c", "init.defaultBranch=main", *arguments],
            env=own | fixed, check=True, capture_output=True, timeout=30,
        )  # fmt: skip

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.git("add", "--force", name)
        return path

    def commit(self, *tags: str) -> None:
        """A commit, and tags on it; with words behind a colon they are annotated."""
        self.git("commit", "--allow-empty", "-m", "Words of a commit")
        for tag in tags:
            name, _, words = tag.partition(":")
            self.git("tag", *(["-a", "-m", words] if words else []), name)


@pytest.fixture
def clone(tmp_path: Path) -> Made:
    made = Made(tmp_path / "tool")
    made.folder.mkdir()
    made.git("init")
    made.git("remote", "add", "origin", "git@git.example.com:acme/tool.git")
    return made


@pytest.fixture
def changelog(clone: Made) -> Path:
    path = clone.write("CHANGELOG.md", CHANGELOG)
    clone.commit("v1.2.0", "v1.1.0:Eleven", "v0.9.0:The old one\n\n- It did x", "latest")
    return path


def importing(
    database: Database, path: Path, repository: str = "acme/tool", **options: bool
) -> ChangelogImported:
    return import_changelog(database, path, SETTINGS, repository=repository, **options)


def current(database: Database, repository: str = "acme/tool") -> dict[str, StoredRelease]:
    with database.snapshot() as connection:
        number, _ = find_repository(connection, repository)
        return {stored.release.tag: stored for stored in release_log.current_releases(connection, number)}


def version(text: str) -> Version:
    found = parse_version(text)
    assert found is not None
    return found


# --- the clone --------------------------------------------------------------------------------------------


def test_tags_with_dates_and_annotations(clone: Made, changelog: Path) -> None:
    found = read_clone(changelog)
    assert found is not None
    assert found.path == "CHANGELOG.md"
    assert {tag.name: (tag.dated, tag.annotation) for tag in found.tags} == {
        "v1.2.0": (NOON, ""), "v1.1.0": (NOON, "Eleven"), "v0.9.0": (NOON, "The old one\n\n- It did x"), "latest": (NOON, ""),
    }  # fmt: skip
    assert found.forge("acme/tool") == Forge("https://git.example.com", "acme/tool")


def test_a_file_that_the_clone_does_not_track_has_no_clone(
    clone: Made, changelog: Path, tmp_path: Path
) -> None:
    (clone.folder / "OTHER.md").write_text("# 1.0")
    assert read_clone(clone.folder / "OTHER.md") is None
    (tmp_path / "alone.md").write_text("# 1.0")
    assert read_clone(tmp_path / "alone.md") is None
    (tmp_path / "link.md").symlink_to(changelog)
    assert read_clone(tmp_path / "link.md") == read_clone(changelog)


@pytest.mark.slow
def test_names_that_git_would_take_for_patterns(clone: Made) -> None:
    for name in ("--help", ":(glob)*", "a b\nc.md", "\N{SNOWMAN}.md"):
        (clone.folder / name).write_text("# 1.0")
        clone.git("add", "--", f"./{name}" if name[0] != ":" else f":(literal){name}")
    clone.commit("v1")
    for name in ("--help", ":(glob)*", "a b\nc.md", "\N{SNOWMAN}.md"):
        found = read_clone(clone.folder / name)
        assert found is not None
        assert found.path == name


def test_nothing_of_the_clone_is_run(clone: Made, changelog: Path, tmp_path: Path) -> None:
    """Every setting that names a program, and the hooks, leave a trace when they are run."""
    trace = tmp_path / "trace"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $@" >> {trace}\n')
    program.chmod(0o755)
    for key in (
        "core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.askPass", "core.gitProxy", "core.alternateRefsCommand",
        "diff.external", "gpg.program", "pager.for-each-ref", "pager.ls-files", "pager.config", "pager.tag", "credential.helper",
        "filter.x.clean", "filter.x.smudge", "filter.x.process", "uploadpack.packObjectsHook", "sequence.editor",
    ):  # fmt: skip
        clone.git("config", key, str(program))
    clone.git("config", "core.hooksPath", str(tmp_path))
    clone.git("config", "alias.ls-files", f"!{program}")
    clone.git("config", "remote.evil.url", f"ext::{program} %S")
    clone.git("config", "remote.evil.promisor", "true")
    (clone.folder / ".gitattributes").write_text("* filter=x diff=x\n")
    for hook in (
        "post-checkout",
        "post-index-change",
        "pre-auto-gc",
        "reference-transaction",
        "fsmonitor-watchman",
    ):
        (tmp_path / hook).symlink_to(program)
    trace.unlink(missing_ok=True)
    changelog.write_text(CHANGELOG + "\n")
    found = read_clone(changelog)
    assert found is not None
    assert len(found.tags) == 4
    assert set(found.remotes) == {"origin"}
    assert not trace.exists(), trace.read_text()
    # The trap works: what git does by itself here runs the program.
    subprocess.run(["git", "-C", str(clone.folder), "status"], capture_output=True, timeout=30, check=False)
    assert trace.exists()


@pytest.mark.slow
def test_variables_of_the_caller_do_not_lead_elsewhere(clone: Made, changelog: Path, tmp_path: Path) -> None:
    other = Made(tmp_path / "other")
    other.folder.mkdir()
    other.git("init")
    code = f"from pathlib import Path; from kb_platform.sources.clone import read_clone; print(len(read_clone(Path({str(changelog)!r})).tags))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"GIT_DIR": str(other.folder / ".git"), "GIT_INDEX_FILE": os.devnull},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "4\n", done.stderr


@pytest.mark.slow
def test_a_damaged_clone_is_an_error_and_not_a_clone_without_tags(clone: Made, changelog: Path) -> None:
    (clone.folder / ".git" / "index").write_bytes(b"nonsense")
    with pytest.raises(SourceError, match="git cannot read the clone") as caught:
        read_clone(changelog)
    assert caught.value.hint


@pytest.mark.slow
def test_a_git_that_hangs_or_talks_without_end(changelog: Path, tmp_path: Path) -> None:
    program = tmp_path / "git"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(SourceError, match="did not answer within"):
        read_clone(changelog, git=str(program), timeout_s=0.2)
    program.write_text("#!/bin/sh\nexec yes\n")
    with pytest.raises(SourceError, match="more than 1,000 bytes"):
        read_clone(changelog, git=str(program), max_output_bytes=1_000)
    program.write_text("#!/bin/sh\necho 'fatal: detected dubious ownership in repository' >&2; exit 128\n")
    with pytest.raises(SourceError, match="belongs to someone else") as caught:
        read_clone(changelog, git=str(program))
    assert "safe.directory" in str(caught.value.hint)
    program.write_text("#!/bin/sh\nprintf 'a\\0b\\0c\\0d\\0e\\0f\\0'\n")
    with pytest.raises(SourceError, match="garbled"):
        read_clone(changelog, git=str(program))
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("https://github.com/acme/tool.git", Forge("https://github.com", "acme/tool")),
        ("https://someone:secret@git.example.com:8443/acme/tool", Forge("https://git.example.com:8443", "acme/tool")),
        ("http://git.example.com:3000/acme/tool/", Forge("http://git.example.com:3000", "acme/tool")),
        ("ssh://git@git.example.com:2222/acme/tool.git", Forge("https://git.example.com", "acme/tool")),
        ("git@gitlab.example.com:group/part/tool.git", Forge("https://gitlab.example.com", "group/part/tool")),
        ("git://git.example.com/acme/tool", Forge("https://git.example.com", "acme/tool")),
        ("ext::sh -c touch%20x", None), ("/srv/git/tool.git", None), ("../tool", None), ("file:///srv/acme/tool", None),
        ("https://[bad/acme/tool", None), ("https://git.example.com:port/a/b", None), ("https:///acme/tool", None),
        ("https://git.example.com/acme/../tool", None), ("javascript://x/acme/tool", None), ("", None),
    ],
)  # fmt: skip
def test_the_forge_behind_a_remote(remote: str, expected: Forge | None) -> None:
    assert forge_of(remote) == expected


def test_a_clone_of_a_fork_links_to_the_project(clone: Made, changelog: Path) -> None:
    clone.git("remote", "set-url", "origin", "https://git.example.com/someone/tool")
    found = read_clone(changelog)
    assert found is not None
    assert found.forge("acme/tool") == Forge("https://git.example.com", "acme/tool")
    clone.git("remote", "add", "upstream", "https://github.com/Acme/Tool")
    found = read_clone(changelog)
    assert found is not None
    assert found.forge("acme/tool") == Forge("https://github.com", "Acme/Tool")
    gitlab = Forge("https://gitlab.example.com", "group/part/tool")
    assert gitlab.release_url("v1#2") == "https://gitlab.example.com/group/part/tool/-/tags/v1%232"


# --- what becomes of it -----------------------------------------------------------------------------------


def test_sections_and_tags_become_releases(database: Database, changelog: Path) -> None:
    done = importing(database, changelog)
    assert (done.sections, done.tags, done.imported.new, done.imported.quarantined) == (4, 4, 4, 0)
    assert done.skipped == {"unreleased": 1, "tag that is no version": 1}
    found = current(database)
    assert list(found) == ["v1.2.0", "v1.1.0", "1.0.0", "v0.9.0"]
    dates = {tag: (stored.release.created_at, stored.release.published_at) for tag, stored in found.items()}
    assert dates == {
        "v1.2.0": (NOON, datetime(2024, 3, 1, tzinfo=UTC)), "v1.1.0": (NOON, NOON), "1.0.0": (None, None), "v0.9.0": (NOON, NOON),
    }  # fmt: skip
    assert found["v1.2.0"].release.body == "### Added\n\n- A widget that spins"
    assert found["v0.9.0"].release.body == "The old one\n\n- It did x"
    assert found["v1.2.0"].release.url == "https://git.example.com/acme/tool/releases/tag/v1.2.0"
    assert found["1.0.0"].release.url == "https://git.example.com/acme/tool/blob/HEAD/CHANGELOG.md"
    assert all(not stored.release.draft for stored in found.values())
    with database.snapshot() as connection:
        rows = connection.execute("SELECT tag, origin, raw FROM kb.observation ORDER BY sequence").fetchall()
    assert [row[1] for row in rows] == [
        "changelog:CHANGELOG.md:7", "changelog:CHANGELOG.md:13", "changelog:CHANGELOG.md:17", "tag:v0.9.0",
    ]  # fmt: skip
    assert bytes(rows[1][2]) == b"## 1.1.0\n\n- The gadget hums\n\n"


def test_again_nothing_and_an_edit_is_an_edit(database: Database, clone: Made, changelog: Path) -> None:
    importing(database, changelog)
    again = importing(database, changelog)
    assert (again.imported.appended, again.imported.unchanged) == (0, 4)
    changelog.write_text(
        "# Changelog\n\n## 1.3.0rc1\n\n- New\n"
        + CHANGELOG[11:].replace("hums", "sings").replace("## 1.0.0 (01/02/2024)\n\n- First\n", "")
    )
    edited = importing(database, changelog)
    assert (edited.imported.new, edited.imported.edited, edited.imported.deleted) == (1, 1, 0)
    found = current(database)
    assert found["v1.1.0"].release.body == "- The gadget sings"
    assert found["1.3.0rc1"].release.prerelease
    # Gone from the file, and still here.
    assert "1.0.0" in found


@pytest.mark.slow
def test_a_tag_that_comes_later_keeps_the_release(database: Database, clone: Made, changelog: Path) -> None:
    importing(database, changelog)
    clone.commit("tool-1.0.0")
    done = importing(database, changelog)
    assert (done.imported.new, done.imported.edited) == (0, 1)
    assert "tool-1.0.0" in current(database)
    assert "1.0.0" not in current(database)


@pytest.mark.slow
def test_without_tags(database: Database, changelog: Path) -> None:
    done = importing(database, changelog, with_tags=False)
    assert list(current(database)) == ["v1.2.0", "v1.1.0", "1.0.0"]
    assert done.tags == 0


def test_what_a_forge_knows_is_left_to_it(database: Database, changelog: Path) -> None:
    import_observed(
        database,
        [
            observed(1, tag_name="1.2"),
            observed(2, tag_name="v0.9.0"),
            observed(3, tag_name="v1.0.0", draft=True),
        ],
    )
    done = importing(database, changelog)
    assert done.imported.new == 2
    assert done.skipped["known as a release"] == 2
    assert sorted(current(database)) == ["1.0.0", "1.2", "v0.9.0", "v1.0.0", "v1.1.0"]


def test_a_release_that_comes_later_takes_the_place_of_the_section(
    database: Database, changelog: Path
) -> None:
    importing(database, changelog)
    import_observed(database, [observed(1, tag_name="v1.2.0")])
    done = importing(database, changelog)
    assert (done.imported.deleted, done.imported.new) == (1, 0)
    assert current(database)["v1.2.0"].release.release_id == 1
    assert importing(database, changelog).imported.appended == 0
    import_observed(database, [observed(1, tag_name="v1.2.0", deleted=True)])
    assert importing(database, changelog).imported.reappeared == 1


@pytest.mark.slow
def test_unreleased_that_has_a_tag_was_released(database: Database, clone: Made) -> None:
    path = clone.write(
        "HISTORY.rst",
        "1.1 (unreleased)\n================\n\n- a\n\n1.0 (unreleased)\n================\n\n- b\n",
    )
    clone.commit("release/1.0")
    assert importing(database, path).skipped == {"unreleased": 1}
    assert current(database)["release/1.0"].release.published_at == NOON


@pytest.mark.slow
def test_packages_of_one_repository(database: Database, clone: Made) -> None:
    one = clone.write(
        "packages/one/CHANGELOG.md", "# @acme/one\n\n## 1.0.0\n\n- of one\n\n## 0.9.0\n\n- old\n"
    )
    two = clone.write("packages/two/CHANGELOG.md", "# @acme/two\n\n## 1.0.0\n\n- of two\n")
    clone.commit("@acme/one@1.0.0", "@acme/two@1.0.0:Of the tag")
    importing(database, one)
    assert current(database)["@acme/two@1.0.0"].release.body == "Of the tag"
    importing(database, two)
    assert importing(database, one).imported.appended == 0
    assert {tag: stored.release.body for tag, stored in current(database).items()} == {
        "@acme/one@1.0.0": "- of one", "@acme/two@1.0.0": "- of two", "@acme/one@0.9.0": "- old",
    }  # fmt: skip


@pytest.mark.slow
def test_a_line_is_not_one_of_its_versions(database: Database, clone: Made) -> None:
    path = clone.write("CHANGES.md", "## 1.4 (2024-01-31)\n\n- a\n")
    clone.commit("v1.4.2")
    importing(database, path)
    assert sorted(current(database)) == ["1.4", "v1.4.2"]


def test_second_sections_and_poison(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "CHANGES"
    path.write_text(
        f"2.0\n===\n\n- a\n\n2.0.0\n=====\n\n- b\n\n1.0 (2024-01-31)\n================\n\n{'long ' * 500}\n\n0.9\n===\n\na\0b\n\n0.8\n===\n\ne\u0301\n"
    )
    done = importing(database, path)
    assert done.skipped == {"second section of a version": 1}
    assert "line 6 begins a second section of 2.0.0" in " ".join(done.notes)
    assert done.imported.reasons == {"body-too-long": 1, "nul": 1}
    assert {tag: stored.release.body for tag, stored in current(database).items()} == {
        "2.0": "- a",
        "0.8": "é",
    }
    with database.snapshot() as connection:
        kept = {record.reason: record.quarantine_id for record in quarantine.listed(connection)}
    assert replay(database, kept["body-too-long"], Settings()).new == 1
    assert importing(database, path, "acme/tool").imported.appended == 0


@pytest.mark.slow
def test_files_without_versions_and_names_that_are_none(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "README"
    path.write_text("# Guide\n\n## Install\n")
    with pytest.raises(SourceError, match=r"no heading of README is a version.*'Guide', 'Install'"):
        importing(database, path)
    path.write_text("words")
    with pytest.raises(SourceError, match="no headings at all"):
        importing(database, path)
    with pytest.raises(BadRecord):
        importing(database, path, "tool")


def test_numbers_are_those_of_the_version() -> None:
    same = {
        release_id(version(text), "acme/tool")
        for text in ("1.2.0", "v1.2", "tool-1.2.0", "Tool@1.2.0", "release/1.2.0")
    }
    assert len(same) == 1
    assert same.pop() >= FIRST_ID
    others = {
        release_id(version(text), "acme/tool")
        for text in ("1.2.0", "1.2.1", "1.2.0rc1", "other@1.2.0", "1.2.0.post1")
    }
    assert len(others) == 5
    assert all(FIRST_ID <= number < 2**63 for number in others)


@pytest.mark.slow
def test_releases_without_a_date_go_through_the_whole_job(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "CHANGELOG.md"
    path.write_text("## 1.1.0\n\n- The gadget hums\n\n## 1.0.0 - 2024-01-31\n\n- The widget spins\n")
    importing(database, path)
    job = Job(database)
    assert job.run().promoted is not None
    assert job.problems() == []
    with database.snapshot() as connection:
        rows = connection.execute("SELECT tag, text FROM kb.current_chunks ORDER BY tag").fetchall()
    assert [row[0] for row in rows] == ["1.0.0", "1.1.0"]
