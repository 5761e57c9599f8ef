"""`kb watch …` as people and scripts run it."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from typer.testing import CliRunner

from kb_platform.cli import watching
from kb_platform.store import polls, repositories, watch_list
from kb_platform.store.database import Database, database_name, scalar, with_database
from kb_platform.store.repositories import find_repository
from tests.job import Job
from tests.releases import notes, observe, release

NOW = datetime.now(UTC)
FORGE = "https://git.example.com/api/v1"
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
# The group by itself, with what the command's root does of errors.
SCRIPT = "from kb_platform.cli import command, watching; command.app.add_typer(watching.app, name='watch'); command.main()"


def environment(database: Database, home: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("KB_", "DAGSTER_"))}
    return own | {"KB_DATABASE_URL": database.url, "KB_HOME": str(home)}


@pytest.fixture
def kb(database: Database, tmp_path: Path) -> Iterator[Run]:
    """Runs `kb watch …`; Dagster's history is in a database that goes with the test."""

    def run(*words: object) -> Done:
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, "watch", *map(str, words)], env=environment(database, tmp_path / "home"),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    yield run
    with psycopg.connect(with_database(database.url, "postgres"), autocommit=True) as connection:
        history = sql.Identifier(f"{database_name(database.url)}_dagster")
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(history))


@pytest.fixture
def watched(database: Database) -> Database:
    """Two watched repositories, one with releases, and one that is only imported."""
    observe(database, "acme/tool", release(1, notes("x")), release(2, notes("y")))
    observe(database, "acme/imported", release(1, notes("z")))
    with database.transaction() as connection:
        watch_list.add(connection, "acme/tool", every_s=900, at=NOW)
        watch_list.add(connection, "acme/new", at=NOW)
    return database


def names(database: Database) -> list[str]:
    with database.snapshot() as connection:
        return [watch.name for watch in watch_list.watched(connection)]


def known(database: Database) -> list[str]:
    with database.snapshot() as connection:
        return repositories.repository_names(connection)


def partitions(home: Path, database: Database) -> list[str]:
    """Dagster's partitions, as another process sees them."""
    script = (
        "from kb_platform.definitions import open_instance\nfrom kb_platform.settings import load_settings\n"
        "from assets.partitions import known_partitions\n"
        "with open_instance(load_settings()) as instance: print(*sorted(known_partitions(instance)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(database, home), capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    return done.stdout.split()


def fails(done: Done, status: int, *said: str) -> None:
    """Nothing but an error, for a person."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert "Traceback" not in done.stderr
    text = " ".join(done.stderr.replace("│", " ").split())
    assert [words for words in said if words not in text] == [], text


# --- what needs nothing of Dagster ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "acme"), "is not a repository name"),
        (("add", "acme/tool", "https://git.example.com/a/b"), "github.com"),
        (("add", "acme/tool", "--every", "15"), "is no duration"),
        (("add", "acme/tool", "--stale-after", "1w"), "is no duration"),
        (("add", "acme/tool", "--source", "gitlab"), "is no source"),
        (("add", "acme/tool", "--source", "gitea"), "needs a url"),
        (("add", "acme/tool", "--url", FORGE), "url is for gitea"),
        (("add",), "Missing argument"),
        (("remove", "acme/tool", "--keep", "--forget"), "one or the other"),
    ],
)
def test_wrong_usage_is_told_before_any_database_is_opened(words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(
        watching.app, list(words), env={"KB_DATABASE_URL": "postgresql://nowhere:1/kb"}
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.slow
def test_without_a_terminal_it_must_be_said_what_becomes_of_the_data(kb: Run, watched: Database) -> None:
    for more in ((), ("--yes",), ("--json",)):
        fails(kb("remove", "acme/tool", *more), 2, "2 observations of 2 releases", "--keep / --forget")
    assert names(watched) == ["acme/new", "acme/tool"]


@pytest.mark.slow
def test_the_list_says_how_it_goes(kb: Run, watched: Database) -> None:
    with watched.transaction() as connection:
        tool, new = (find_repository(connection, name)[0] for name in ("acme/tool", "acme/new"))
        later = NOW + timedelta(hours=1)
        polls.succeeded(connection, tool, "unchanged", truncated=True, at=NOW, due_at=later)
        repositories.mark_verified(connection, [tool], at=NOW - timedelta(hours=5))
        polls.failed(connection, new, "not-found", "no such\x1b[2J thing", at=NOW, due_at=later)
    documents = {
        found["repository"]: found for found in json.loads(kb("list", "--json").stdout)["repositories"]
    }
    tool_now, new_now = documents["acme/tool"], documents["acme/new"]
    assert (tool_now["state"], tool_now["every_s"], tool_now["truncated"]) == ("ok", 900, True)
    assert tool_now["verified_at"].endswith("Z")
    assert (new_now["state"], new_now["failures"], new_now["reason"]) == ("failing", 1, "not-found")
    shown = kb("list").stdout
    assert "15m" in shown
    assert "the forge does not list all releases" in shown
    assert "not-found since" in shown
    assert "\x1b" not in shown
    with watched.transaction() as connection:
        watch_list.add(connection, "acme/tool", every_s=900, stale_after_s=3_600, at=NOW)
    states = {
        found["repository"]: found["state"]
        for found in json.loads(kb("list", "--json").stdout)["repositories"]
    }
    assert states == {"acme/tool": "stale", "acme/new": "failing"}


@pytest.mark.slow
def test_an_empty_list_says_what_to_do(kb: Run) -> None:
    result = kb("list")
    assert (result.returncode, result.stdout) == (0, "")
    assert "kb watch add" in result.stderr
    assert json.loads(kb("list", "--json").stdout) == {"repositories": []}


@pytest.mark.slow
def test_a_dry_run_shows_the_difference_and_changes_nothing(
    kb: Run, watched: Database, tmp_path: Path
) -> None:
    file = tmp_path / "watch.yaml"
    file.write_text("repositories:\n- acme/tool\n- {repository: acme/more, every: 1h, stale_after: 2d}\n")
    result = kb("apply", file, "--dry-run")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "+ acme/more (every 1h, stale after 2d)",
        "~ acme/tool: every 15m → default",
        "- acme/new (its releases stay)",
        "1 would be added, 1 changed, 1 removed; 0 unchanged",
    ]
    document = json.loads(kb("apply", file, "--dry-run", "--json").stdout)
    assert [item["repository"] for item in document["added"]] == ["acme/more"]
    assert document["changed"] == [
        {"repository": "acme/tool", "source": "github", "url": None, "every_s": None, "stale_after_s": None}
    ]
    assert (document["removed"], document["unchanged"], document["dry_run"]) == (["acme/new"], [], True)
    assert names(watched) == ["acme/new", "acme/tool"]


@pytest.mark.slow
def test_an_emptied_file_does_not_end_all_watching(kb: Run, watched: Database, tmp_path: Path) -> None:
    file = tmp_path / "watch.txt"
    file.write_text("# all gone\n")
    fails(kb("apply", file), 1, "names no repository, and 2 are watched", "--allow-empty")
    assert names(watched) == ["acme/new", "acme/tool"]
    assert kb("apply", file, "--allow-empty", "--dry-run").returncode == 0
    with watched.transaction() as connection:
        for watch in watch_list.watched(connection):
            watch_list.remove(connection, watch.repository_id)
    assert "nothing to do" in kb("apply", file).stdout


@pytest.mark.slow
def test_what_cannot_be_done_is_not_half_done(kb: Run, watched: Database, tmp_path: Path) -> None:
    file = tmp_path / "watch.yaml"
    file.write_text(f"repositories:\n- acme/more\n- {{repository: acme/tool, source: gitea, url: {FORGE}}}\n")
    fails(kb("apply", file), 1, "known from GitHub")
    fails(kb("remove", "acme/new", "acme/imported", "--keep"), 1, "acme/imported is not watched")
    fails(kb("remove", "acme/none", "--forget"), 1, "not in the knowledge base")
    file.write_text("repositories:\n- acme\n")
    fails(kb("apply", file), 1, "line 2: 'acme' is not a repository name")
    fails(kb("apply", tmp_path / "none"), 1, "cannot be read")
    assert names(watched) == ["acme/new", "acme/tool"]


@pytest.mark.slow
def test_removal_that_keeps_the_releases(kb: Run, watched: Database) -> None:
    result = kb("remove", "ACME/tool", "--keep")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "- acme/tool (its releases stay)\n"
    assert names(watched) == ["acme/new"]
    assert known(watched) == ["acme/imported", "acme/new", "acme/tool"]


@pytest.mark.slow
def test_the_group_starts_without_dagster() -> None:
    probe = "import sys, kb_platform.cli.watching; print([m for m in ('torch', 'dagster', 'streamlit') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- with Dagster's partitions --------------------------------------------------------------------------------


@pytest.mark.slow
def test_partitions_follow_the_list(kb: Run, database: Database, tmp_path: Path) -> None:
    result = kb("add", "acme/tool", "https://github.com/acme/Gadget", "acme/Tool", "--every", "15m", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert [(item["repository"], item["every_s"]) for item in document["added"]] == [
        ("acme/Gadget", 900), ("acme/tool", 900),
    ]  # fmt: skip
    assert partitions(tmp_path / "home", database) == ["acme/Gadget", "acme/tool"]

    result = kb("add", "acme/tool", "acme/gadget", "--every", "15m")
    assert result.stdout.splitlines() == [
        "= acme/Gadget is watched like this already", "= acme/tool is watched like this already",
    ]  # fmt: skip
    result = kb("add", "acme/tool")
    assert result.stdout == "~ acme/tool: every 15m → default\n"
    assert "`kb sync`" in result.stderr
    assert kb("add", "acme/else", "--source", "gitea", "--url", FORGE).stdout == f"+ acme/else (at {FORGE})\n"

    file = tmp_path / "watch.txt"
    file.write_text("acme/tool\nacme/more\n")
    result = kb("apply", file)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("1 were added, 0 changed, 2 removed; 1 unchanged\n")
    assert "nothing to do: 2 repositories" in kb("apply", file).stdout
    assert names(database) == ["acme/more", "acme/tool"]
    assert partitions(tmp_path / "home", database) == ["acme/Gadget", "acme/else", "acme/more", "acme/tool"]

    # Without releases there is nothing to ask about.
    assert kb("remove", "acme/more").stdout == "- acme/more\n"
    assert known(database) == ["acme/else", "acme/Gadget", "acme/tool"]
    assert "acme/more" not in partitions(tmp_path / "home", database)


@pytest.mark.slow
def test_removal_that_forgets_the_releases(kb: Run, watched: Database) -> None:
    job = Job(watched)
    job.run()
    result = kb("remove", "acme/tool", "acme/imported", "--forget", "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["removed"] == ["acme/tool", "acme/imported"]
    assert [one["observations"] for one in document["forgotten"]] == [2, 1]
    assert known(watched) == ["acme/new"]
    assert job.problems() == []


class Terminal:
    """`kb watch …` on a terminal: what it says on it, and what somebody types."""

    def __init__(self, database: Database, home: Path, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, "watch", *words], env=environment(database, home),
            stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.said = ""

    def answer(self, question: str, text: str) -> None:
        ends = time.monotonic() + 60
        while question not in self.said and time.monotonic() < ends:
            if select.select([self._ours], [], [], 1)[0]:
                self.said += os.read(self._ours, 4096).decode()
        assert question in self.said
        os.write(self._ours, f"{text}\n".encode())

    def end(self) -> tuple[int, str]:
        """(exit status, standard output)."""
        output, _ = self._process.communicate(timeout=120)
        os.close(self._ours)
        return self._process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "question", "typed", "status", "stays"),
    [
        ((), "Keep them or forget them?", "keep", 0, True),
        ((), "Keep them or forget them?", "", 2, None),
        ((), "Keep them or forget them?", "what", 2, None),
        ((), "Keep them or forget them?", "forget", 0, False),
        (("--forget",), "Forget 2 observations of 2 releases for good?", "y", 0, False),
        (("--forget",), "Forget 2 observations of 2 releases for good?", "n", 1, None),
        (("--forget",), "Forget 2 observations of 2 releases for good?", "", 1, None),
    ],
)
def test_a_person_is_asked_before_anything_is_forgotten(
    watched: Database, kb: Run, tmp_path: Path, words: tuple[str, ...], question: str, typed: str, status: int,
    stays: bool | None,
) -> None:  # fmt: skip
    terminal = Terminal(watched, tmp_path / "home", "remove", "acme/tool", "--json", *words)
    terminal.answer(question, typed)
    code, output = terminal.end()
    assert code == status, terminal.said
    if stays is None:
        assert output == ""
        assert names(watched) == ["acme/new", "acme/tool"]
        return
    assert [one["name"] for one in json.loads(output)["forgotten"]] == ([] if stays else ["acme/tool"])
    assert names(watched) == ["acme/new"]
    with watched.snapshot() as connection:
        assert scalar(connection, "SELECT count(*) FROM kb.observation") == (3 if stays else 1)


@pytest.mark.slow
def test_on_a_terminal_yes_forgets_without_asking(watched: Database, kb: Run, tmp_path: Path) -> None:
    code, _ = Terminal(watched, tmp_path / "home", "remove", "acme/tool", "--forget", "--yes").end()
    assert code == 0
    assert known(watched) == ["acme/imported", "acme/new"]
