"""Fixtures that more than one test module needs."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from kb_platform.store.database import Database
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.schema import migrate
from tests.hashing_embedder import HashingEmbedder, hashing_model

TEMPLATE = "kb_template"
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors, except those that a dependency causes in itself."""
    # dagster 1.13 reads a field that pydantic 2 has renamed, whenever a resource is made.
    config.addinivalue_line("filterwarnings", "ignore:The `__fields__` attribute is deprecated")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real releases and golden questions, beside the checkout.

    Outside CI its absence skips the test; in CI it fails, because a check that CI skips is no check.
    """
    folder = Path(os.environ.get("KB_TEST_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "releases").is_dir():
        message = (
            f"no real releases at {folder}; set KB_TEST_SHARED_DATA to a folder that has releases/*.jsonl"
        )
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def server() -> Generator[EmbeddedServer]:
    """An embedded PostgreSQL for the whole test run.

    Its durability is off: what is tested here is what it computes. Tests that kill a server start their own.
    """
    # pytest's own folders have long names, and the path of a Unix socket holds about 100 bytes.
    home = Path(tempfile.mkdtemp(prefix="kbt-"))
    server = EmbeddedServer(home)
    server.start()
    (server.data / "custom.conf").write_text(
        "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"
    )
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")
    yield server
    server.leave()
    server.stop()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_template(server: EmbeddedServer) -> str:
    """The name of a database with the schema and nothing in it, to clone."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    database = Database(server.url(TEMPLATE), pool_size=1)
    migrate(database)
    # A template that someone is connected to cannot be cloned.
    database.close()
    return TEMPLATE


@pytest.fixture
def make_database(server: EmbeddedServer, migrated_template: str) -> Generator[Callable[[], Database]]:
    """Makes fresh, migrated databases for tests that need more than one; they go with the test."""
    made: list[tuple[str, Database]] = []

    def make() -> Database:
        name = f"kb_test_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(name), sql.Identifier(migrated_template)
                )
            )
        made.append((name, Database(server.url(name), pool_size=8)))
        return made[-1][1]

    yield make
    for _, database in made:
        database.close()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name, _ in made:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(make_database: Callable[[], Database]) -> Database:
    """A fresh, migrated database."""
    return make_database()


@pytest.fixture
def hashing_embedder() -> HashingEmbedder:
    """An embedder without a model: quick, and the same text always has the same vector."""
    return HashingEmbedder(hashing_model())
