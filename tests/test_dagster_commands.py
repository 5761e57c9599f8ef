"""Dagster's own commands over this project, as people and CI type them, on the sample corpus.

Each is a process of its own with the real model; only PostgreSQL is the test run's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from assets.partitions import register
from kb_platform.home import dagster_home
from kb_platform.sample_corpus import releases_folder
from kb_platform.settings import Settings
from kb_platform.stages.importing import import_files
from kb_platform.store import index_refresh, index_versions
from kb_platform.store.database import Database
from kb_platform.store.embedded import EmbeddedServer

CHECKOUT = Path(__file__).parents[1]
PROGRAMS = Path(sys.executable).parent
# The step of each asset logs this when it is done.
STAGES = ("raw_releases", "chunks", "embeddings", "release_index")


class Home:
    """A home folder with the sample corpus imported and its repositories known to Dagster, and nothing computed."""

    def __init__(self, folder: Path, database: Database, history_url: str) -> None:
        self.database = database
        self.environment = {
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(PROGRAMS.parent),
            "HOME": str(folder),
            "KB_HOME": str(folder),
            "KB_DATABASE_URL": database.url,
            "KB_DAGSTER_DATABASE_URL": history_url,
            "DAGSTER_HOME": str(dagster_home(Settings(home=folder))),
            "DO_NOT_TRACK": "1",
        }

    def run(self, *command: str) -> str:
        """The output of a command that must succeed."""
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4_000:]
        return done.stdout

    def up_to_date(self) -> set[str]:
        """The repositories that the newest index version holds in full."""
        with self.database.snapshot() as connection:
            newest = max(version.version for version in index_versions.versions(connection))
            names = connection.execute(
                "SELECT r.name FROM kb.index_repository i JOIN kb.repository r USING (repository_id) "
                "WHERE i.version = %s AND i.releases > 0",
                (newest,),
            ).fetchall()
            stale = index_refresh.stale_repositories(connection)
        return {name for (name,) in names} - set(stale)


@pytest.fixture(scope="module")
def home(
    server: EmbeddedServer, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Home]:
    names = ("kb_commands", "kb_commands_history")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {names[0]} TEMPLATE {migrated_template}")
    database = Database(server.url(names[0]), pool_size=2)
    made = Home(tmp_path_factory.mktemp("home"), database, server.url(names[1]))
    imported = import_files(database, [releases_folder()], Settings())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            register(instance, sorted(imported.repositories))
    yield made
    database.close()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_dagster_definitions_validate(home: Home) -> None:
    assert "All code locations passed validation" in home.run("dagster", "definitions", "validate")


def test_dg_check_defs(home: Home) -> None:
    assert "All definitions loaded successfully" in home.run("dg", "check", "defs")


def test_dagster_asset_list(home: Home) -> None:
    listed = home.run("dagster", "asset", "list", "-m", "kb_platform.definitions").splitlines()
    assert set(STAGES) <= set(listed)


def test_dg_launch_takes_one_repository_to_the_index(home: Home) -> None:
    told = home.run("dg", "launch", "--assets", ",".join(STAGES), "--partition", "pgvector/pgvector")
    assert "RUN_SUCCESS" in told
    assert home.up_to_date() == {"pgvector/pgvector"}


def test_dagster_asset_materialize_takes_a_range_of_repositories_in_one_run(home: Home) -> None:
    told = home.run(
        "dagster", "asset", "materialize", "-m", "kb_platform.definitions", "--select", ",".join(STAGES),
        "--partition-range", "confluentinc/librdkafka...encode/httpx",
    )  # fmt: skip
    assert told.count("RUN_SUCCESS") == 1
    assert {"confluentinc/librdkafka", "encode/httpx"} <= home.up_to_date()
