"""Forgetting a repository: all of it goes, nothing of another one does, and who works on it meanwhile is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kb_platform.errors import KbError, NotKnown
from kb_platform.retrieval.searcher import Searcher
from kb_platform.settings import Settings
from kb_platform.sources.message import Message
from kb_platform.sources.release import Observed, Refused
from kb_platform.stages import indexing, promotion
from kb_platform.stages.chunking import chunk_repository, cut_release
from kb_platform.stages.importing import import_files
from kb_platform.store import (
    chunks,
    embeddings,
    forgetting,
    index_refresh,
    index_versions,
    pages,
    polls,
    quarantine,
    release_log,
    repositories,
    streamed_log,
    watch_list,
)
from kb_platform.store.database import Connection, Database, scalar
from kb_platform.store.forgetting import Forgotten
from kb_platform.store.quarantine import RefusedMessage
from kb_platform.store.repositories import find_repository
from tests.hashing_embedder import hashing_model
from tests.job import Job
from tests.releases import notes, observe, release
from tests.test_streamed_log import event

NOW = datetime(2026, 5, 1, tzinfo=UTC)
GONE, STAYS = "acme/secret", "acme/tool"
SHARED = "Both of them say the very same thing"


def number_of(database: Database, name: str) -> int:
    with database.snapshot() as connection:
        return find_repository(connection, name)[0]


def forget(database: Database, name: str) -> Forgotten:
    with database.transaction() as connection:
        return forgetting.forget(connection, find_repository(connection, name)[0])


def rows_of(database: Database, repository_id: int) -> dict[str, int]:
    """How many rows each table of the schema has that name this repository or one of its observations."""
    found: dict[str, int] = {}
    with database.snapshot() as connection:
        tables = connection.execute(
            "SELECT table_name, array_agg(column_name::text) FROM information_schema.columns "
            "JOIN information_schema.tables USING (table_schema, table_name) "
            "WHERE table_schema = 'kb' AND table_type = 'BASE TABLE' GROUP BY table_name"
        ).fetchall()
        for table, columns in tables:
            if "repository_id" in columns:
                condition = sql.SQL("repository_id = %s")
            elif "sequence" in columns:
                condition = sql.SQL(
                    "sequence IN (SELECT sequence FROM kb.observation WHERE repository_id = %s)"
                )
            else:
                continue
            query = sql.SQL("SELECT count(*) FROM {} WHERE ").format(sql.Identifier("kb", table)) + condition
            found[table] = scalar(connection, query, (repository_id,))
    return found


def everything_of(database: Database, *names: str) -> dict[str, list[Any]]:
    """What there is of these repositories, row by row, vectors and words included."""
    with database.snapshot() as connection:
        ids = [find_repository(connection, name)[0] for name in names]
        queries = {
            "log": "SELECT o.*::text FROM kb.observation o WHERE repository_id = ANY(%s) ORDER BY sequence",
            "chunks": "SELECT c.*::text FROM kb.chunk c JOIN kb.observation USING (sequence) "
            "WHERE repository_id = ANY(%s) ORDER BY 1",
            "passages": "SELECT DISTINCT p.passage_hash, p.text, e.model_id, e.vector::text FROM kb.chunk c "
            "JOIN kb.observation USING (sequence) JOIN kb.passage p USING (passage_hash) "
            "LEFT JOIN kb.embedding e USING (passage_hash) WHERE repository_id = ANY(%s) ORDER BY 1, 3",
            "terms": "SELECT t.*::text FROM kb.index_term t WHERE repository_id = ANY(%s) ORDER BY 1",
            "held": "SELECT i.*::text FROM kb.indexed_observation i WHERE repository_id = ANY(%s) ORDER BY 1",
        } | {
            f"index {version.version}": f"SELECT i.*::text FROM kb.index_{version.version} i "
            "WHERE repository_id = ANY(%s) ORDER BY 1"
            for version in index_versions.versions(connection)
        }
        return {name: connection.execute(query, (ids,)).fetchall() for name, query in queries.items()}  # pyright: ignore[reportArgumentType]


@pytest.fixture
def job(database: Database) -> Job:
    """Two repositories in a served index; one item of their notes is the same."""
    observe(database, GONE, release(1, notes("The password of the vault is kept in a drawer", SHARED)))
    observe(database, GONE, release(2, notes("The drawer is open")))
    observe(database, GONE, release(2, notes("The drawer is shut")))
    observe(
        database, STAYS, release(1, notes("A widget hums", SHARED)), release(2, notes("A widget is quiet"))
    )
    job = Job(database)
    job.run()
    return job


# --- all of it ------------------------------------------------------------------------------------------------


def test_all_of_it_goes_and_nothing_else(job: Job) -> None:
    database = job.database
    repository_id = number_of(database, GONE)
    with database.transaction() as connection:
        watch_list.add(connection, GONE, at=NOW)
        watch_list.add(connection, STAYS, at=NOW)
        page = pages.StoredPage("https://api.example.com/1", "etag", None, 2, (1, 2))
        pages.save_page(connection, repository_id, "token", 0, page, NOW)
        pages.miss(connection, repository_id, [1], NOW)
        repositories.rename_repository(connection, repository_id, "acme/renamed", NOW)
        told = event(9, repository="acme/renamed", repository_number=77)
        streamed_log.append_streamed(connection, [told])
        refused = [Message("kb.releases", 0, at, None, b"77", b"the password", ()) for at in range(3)]
        whose = ("acme/renamed", None, STAYS)
        quarantine.put_messages(
            connection,
            [
                RefusedMessage(one, "id", "not-json", "x", name)
                for one, name in zip(refused, whose, strict=True)
            ],
        )
        quarantine.put(
            connection,
            [
                Refused("not-json", "x", b"the password", "test", "ACME/renamed"),
                Refused("not-json", "x", b"of another", "test", STAYS),
            ],
        )
    before = everything_of(database, STAYS)
    had = rows_of(database, repository_id)
    assert all(had.values()), f"the test puts nothing into {[name for name, rows in had.items() if not rows]}"

    done = forget(database, GONE)

    assert done.name == "acme/renamed"
    assert (done.observations, done.quarantined, done.index_rows) == (4, 3, had["index_1"])
    assert not any(rows_of(database, repository_id).values())
    assert everything_of(database, STAYS) == before
    assert job.problems() == []
    with database.snapshot() as connection:
        texts = [row[0] for row in connection.execute("SELECT text FROM kb.passage")]
        assert not any("drawer" in text for text in texts)
        # The short name is part of a passage, so even the same item is not the same text.
        assert sum(SHARED in text for text in texts) == 1
        assert [r.repository for r in quarantine.listed(connection)] == [STAYS, STAYS]
        assert [watch.name for watch in watch_list.watched(connection)] == [STAYS]
        noted = connection.execute(
            "SELECT name, observations FROM kb.forgotten_repository ORDER BY name"
        ).fetchall()
        assert noted == [("acme/renamed", 4), (GONE, 0)]
        assert forgetting.names_without_repository(connection) == ["acme/renamed", GONE]
        with pytest.raises(NotKnown):
            find_repository(connection, GONE)


def test_a_text_that_another_repository_has_too_stays_with_its_vector(database: Database) -> None:
    for owner in ("acme", "other"):
        observe(database, f"{owner}/tool", release(1, notes(SHARED, f"Only {owner} says this")))
    job = Job(database)
    job.run()
    before = everything_of(database, "other/tool")
    done = forget(database, "acme/tool")
    assert (done.passages, done.vectors) == (1, 1)
    assert everything_of(database, "other/tool") == before
    assert job.problems() == []
    assert forget(database, "other/tool").passages == 2
    with database.snapshot() as connection:
        assert (
            scalar(
                connection, "SELECT (SELECT count(*) FROM kb.passage) + (SELECT count(*) FROM kb.embedding)"
            )
            == 0
        )


@pytest.mark.slow
def test_every_version_with_a_table_loses_it_and_a_dropped_one_is_passed_over(job: Job) -> None:
    database = job.database
    dropped = indexing.build_version(database, hashing_model("dropped", dimension=8))
    retired = indexing.build_version(database, hashing_model("retired", dimension=16))
    ready = indexing.build_version(database, hashing_model("ready", dimension=24))
    job.run()
    with database.transaction() as connection:
        index_versions.retire(connection, dropped)
        index_versions.retire(connection, retired)
        connection.execute(
            "UPDATE kb.index_version SET retired_at = now() - interval '1 day' WHERE version = %s", (dropped,)
        )
    assert index_versions.drop_retired(database) == [dropped]
    building = indexing.build_version(database, hashing_model("building", dimension=40))
    job.embed(GONE)
    job.index(GONE)
    repository_id = number_of(database, GONE)
    had = rows_of(database, repository_id)
    tables = {f"index_{version}" for version in (1, retired, ready, building)}
    assert all(had[table] for table in tables)

    done = forget(database, GONE)

    assert done.index_rows == sum(had[table] for table in tables)
    assert not any(rows_of(database, repository_id).values())
    assert job.problems() == []
    # Nothing of it holds up the version that was being built.
    assert job.run().ready == [building]
    assert promotion.promote(database, building).passed
    assert job.problems() == []


def test_a_version_that_only_lacked_the_forgotten_repository_is_completed(job: Job) -> None:
    database = job.database
    building = indexing.build_version(database, hashing_model("building", dimension=40))
    job.embed(STAYS)
    job.index(STAYS)
    assert indexing.complete_versions(database).ready == []
    forget(database, GONE)
    with database.snapshot() as connection:
        assert indexing.is_unfinished(connection)
    assert indexing.complete_versions(database).ready == [building]


@pytest.mark.slow
def test_the_last_repository_may_go_and_come_back(job: Job) -> None:
    forget(job.database, STAYS)
    forget(job.database, GONE)
    assert job.problems() == []
    with job.database.snapshot() as connection:
        version = index_versions.active(connection)
        assert version is not None
        assert (version.repositories, version.releases, version.chunks) == (0, 0, 0)
        assert index_refresh.stale_repositories(connection) == []
    assert indexing.complete_versions(job.database).ready == []
    assert repositories.repositories(job.database) == []
    observe(job.database, STAYS, release(1, notes("A widget hums")))
    job.run()
    assert job.problems() == []
    assert [found.name for found in repositories.repositories(job.database)] == [STAYS]


@pytest.mark.slow
def test_a_forgotten_repository_comes_back_as_a_new_one(job: Job) -> None:
    database = job.database
    old = number_of(database, GONE)
    with database.transaction() as connection:
        repositories.identify(connection, old, 77)
    forget(database, GONE)
    with database.transaction() as connection:
        assert watch_list.add(connection, GONE, at=NOW) == "added"
        watch = watch_list.find(connection, GONE)
        assert watch.repository_id != old
        assert (watch.external_id, watch.verified_at, watch.polled_at) == (None, None, None)
        assert repositories.identify(connection, watch.repository_id, 77) is None
    observe(database, GONE, release(1, notes("The password of the vault is kept in a drawer")))
    job.run()
    assert job.problems() == []
    with database.snapshot() as connection:
        assert (
            scalar(
                connection,
                "SELECT count(*) FROM kb.observation WHERE repository_id = %s",
                (number_of(database, GONE),),
            )
            == 1
        )


@pytest.mark.slow
def test_a_search_that_was_open_before_does_not_know_it_after(job: Job) -> None:
    searcher = Searcher(job.database, job.load)
    assert searcher.search("where is the password of the vault").passages[0].repository == GONE
    forget(job.database, GONE)
    found = searcher.search("where is the password of the vault")
    assert {passage.repository for passage in found.passages} <= {STAYS}
    assert searcher.search("which widget hums").passages[0].repository == STAYS


@pytest.mark.slow
def test_names_are_another_state_after_forgetting_and_renaming(job: Job) -> None:
    database = job.database
    states: list[int] = []

    def look() -> None:
        with database.snapshot() as connection:
            states.append(repositories.state_of_names(connection))

    look()
    with database.transaction() as connection:
        repositories.rename_repository(connection, number_of(database, GONE), "acme/x", NOW)
    look()
    with database.transaction() as connection:
        repositories.rename_repository(connection, number_of(database, GONE), GONE, datetime.now(UTC))
    look()
    forget(database, GONE)
    look()
    observe(database, STAYS, release(9, notes("New")))
    look()
    assert len(set(states)) == 5


@pytest.mark.slow
def test_an_error_on_the_way_leaves_everything(job: Job) -> None:
    before = everything_of(job.database, GONE, STAYS)
    with pytest.raises(ZeroDivisionError), job.database.transaction() as connection:
        forgetting.forget(connection, find_repository(connection, GONE)[0])
        raise ZeroDivisionError
    assert everything_of(job.database, GONE, STAYS) == before
    assert job.problems() == []


@pytest.mark.slow
def test_what_is_not_there_cannot_be_forgotten(database: Database) -> None:
    with pytest.raises(NotKnown), database.transaction() as connection:
        forgetting.forget(connection, 4_711)


@pytest.mark.slow
def test_only_an_empty_repository_is_forgotten_unasked(job: Job) -> None:
    with job.database.transaction() as connection:
        watch_list.add(connection, "acme/new", at=NOW)
        watch_list.add(connection, GONE, at=NOW)
    before = everything_of(job.database, GONE)
    with job.database.transaction() as connection:
        assert forgetting.forget_if_empty(connection, find_repository(connection, GONE)[0]) is None
        assert watch_list.find(connection, GONE).name == GONE
        empty = forgetting.forget_if_empty(connection, find_repository(connection, "acme/new")[0])
        assert empty == Forgotten("acme/new", 0, 0, 0, 0, 0, 0)
    assert everything_of(job.database, GONE) == before


@pytest.mark.slow
def test_what_would_be_forgotten_is_counted(job: Job) -> None:
    observe(job.database, GONE, release(1, notes("x")), deleted=True)
    with job.database.snapshot() as connection:
        held = forgetting.held(connection, find_repository(connection, GONE)[0])
    assert held == forgetting.Held(releases=1, observations=4)


# --- the log stays append-only ---------------------------------------------------------------------------------


def test_the_log_can_be_deleted_from_only_with_the_word_and_changed_not_even_with_it(job: Job) -> None:
    refused: list[tuple[str | None, str]] = []
    statements = (
        "DELETE FROM kb.observation",
        "UPDATE kb.observation SET tag = 'x'",
        "UPDATE kb.observation SET tag = 'x' WHERE false",
        "TRUNCATE kb.observation CASCADE",
    )
    for word in (None, "off", "ON", "yes", "on"):
        for statement in statements:
            try:
                with job.database.transaction() as connection:
                    if word is not None:
                        connection.execute("SELECT set_config('kb.forgetting', %s, true)", (word,))
                    connection.execute(statement)  # pyright: ignore[reportArgumentType]
            except psycopg.errors.RaiseException as error:
                assert "append-only" in str(error)
                refused.append((word, statement))
            except psycopg.errors.ForeignKeyViolation:
                # The trigger let it pass; the chunks still refer to the log.
                assert (word, statement) == ("on", "DELETE FROM kb.observation")
    assert len(refused) == 5 * len(statements) - 1


@pytest.mark.slow
def test_the_word_ends_with_the_forgetting_and_with_its_transaction(job: Job) -> None:
    with pytest.raises(psycopg.errors.RaiseException), job.database.transaction() as connection:
        forgetting.forget(connection, find_repository(connection, GONE)[0])
        connection.execute("DELETE FROM kb.observation")
    forget(job.database, GONE)
    # Each connection of the pool in turn.
    for _ in range(4):
        with pytest.raises(psycopg.errors.RaiseException), job.database.transaction() as connection:
            connection.execute("DELETE FROM kb.observation")


# --- at the same time -----------------------------------------------------------------------------------------


class Beside:
    """Does something in a thread of its own; `wait` gives what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, args=(work,))
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
        except Exception as error:
            self.result = error

    def wait(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive(), "it waits for ever"
        return self.result


def until_someone_waits(connection: Connection) -> None:
    """Until somebody waits for a lock that another holds."""
    for _ in range(500):
        if scalar(connection, "SELECT count(*) FROM pg_locks WHERE NOT granted"):
            return
        time.sleep(0.01)
    pytest.fail("nobody waits")


@pytest.mark.slow
def test_a_refresh_under_way_is_waited_for(job: Job) -> None:
    database = job.database
    observe(database, GONE, release(3, notes("Newer than the rest")))
    job.chunk(GONE)
    job.embed(GONE)
    repository_id = number_of(database, GONE)
    with database.transaction() as connection:
        index_refresh.refresh_repository(connection, repository_id)
        forgetter = Beside(lambda: forget(database, GONE))
        until_someone_waits(connection)
    assert isinstance(forgetter.wait(), Forgotten)
    assert not any(rows_of(database, repository_id).values())
    assert job.problems() == []


@pytest.mark.slow
@pytest.mark.parametrize("work", ["refresh", "import", "chunk", "watch", "identify"])
def test_work_that_comes_second_is_told_or_starts_anew(job: Job, work: str) -> None:
    database = job.database
    repository_id = number_of(database, GONE)
    with database.transaction() as connection:
        watch_list.add(connection, GONE, at=NOW)
    observe(database, GONE, release(3, notes("Newer than the rest")))

    def refresh(connection: Connection) -> object:
        return index_refresh.refresh_repository(connection, repository_id)

    def append(connection: Connection) -> object:
        [stored] = release_log.current_releases(connection, number_of(database, STAYS))[:1]
        return release_log.append(connection, GONE, [Observed(GONE, stored.release, b"", "test")])

    def chunk(connection: Connection) -> object:
        return chunk_repository(database, GONE)

    def watch(connection: Connection) -> object:
        return watch_list.add(connection, GONE, every_s=60, at=NOW)

    def identify(connection: Connection) -> object:
        found = repositories.identify(connection, repository_id, 77)
        polls.identified(connection, repository_id, NOW)
        return found

    doing = {"refresh": refresh, "import": append, "chunk": chunk, "watch": watch, "identify": identify}[work]

    def run() -> object:
        with database.transaction() as connection:
            return doing(connection)

    with database.transaction() as connection:
        forgetting.forget(connection, repository_id)
        second = Beside(run)
        until_someone_waits(connection)
    result = second.wait()
    if work in ("refresh", "import", "chunk"):
        assert isinstance(result, NotKnown), result
        assert "forgotten while" in str(result)
    elif work == "watch":
        assert result == "added"
    else:
        assert result is None
    assert not any(rows_of(database, repository_id).values())
    assert job.problems() == []


@pytest.mark.slow
def test_a_poll_under_way_is_waited_for_and_the_next_page_is_refused(job: Job) -> None:
    database = job.database
    repository_id = number_of(database, GONE)
    with database.transaction() as connection:
        watch_list.add(connection, GONE, at=NOW)

    item = Observed(GONE, release(7, "- Something else\n"), b"{}", "test")

    with database.transaction() as connection:
        polls.require_watched(connection, repository_id)
        forgetter = Beside(lambda: forget(database, GONE))
        until_someone_waits(connection)
        release_log.append(connection, GONE, [item])
        page = pages.StoredPage("https://api.example.com/1", "etag", None, 1, (7,))
        pages.save_page(connection, repository_id, "token", 0, page, NOW)
    assert forgetter.wait().observations == 4
    with pytest.raises(NotKnown), database.transaction() as connection:
        polls.require_watched(connection, repository_id)
    assert not any(rows_of(database, repository_id).values())


def _current(database: Database, name: str) -> list[release_log.StoredRelease]:
    with database.snapshot() as connection:
        return release_log.current_releases(connection, find_repository(connection, name)[0])


@pytest.mark.slow
def test_another_repository_that_takes_up_the_same_text_meanwhile_keeps_it(database: Database) -> None:
    """It found the text among the passages; had that gone then, its chunk would refer to nothing."""
    observe(database, "acme/tool", release(1, notes(SHARED)))
    job = Job(database)
    job.run()
    observe(database, "other/tool", release(1, notes(SHARED)))
    [stored] = _current(database, "other/tool")
    cut = cut_release("other/tool", stored.release)
    with database.transaction() as connection:
        chunks.put(connection, [(stored.sequence, cut)])
        forgetter = Beside(lambda: forget(database, "acme/tool"))
        until_someone_waits(connection)
    assert forgetter.wait().passages == 0
    job.run("other/tool")
    assert job.problems() == []

    observe(database, "third/tool", release(1, notes(SHARED)))
    with database.transaction() as connection:
        forgetting.forget(connection, find_repository(connection, "other/tool")[0])
        chunker = Beside(lambda: job.run("third/tool"))
        until_someone_waits(connection)
    assert not isinstance(chunker.wait(), Exception), chunker.result
    assert job.problems() == []
    assert [row.chunks for row in repositories.repositories(database)] == [1]


@pytest.mark.slow
def test_vectors_that_come_for_texts_that_are_gone_are_left_out(database: Database) -> None:
    """Embedding takes minutes, and holds nothing meanwhile. The vectors of others in the same slice are kept."""
    names = (GONE, "acme/also-gone", STAYS)
    for name in names:
        observe(database, name, release(1, notes(f"Only {name} says this")))
    job = Job(database)
    indexing.ensure_version(database, lambda: job.model)
    job.chunk()
    with database.snapshot() as connection:
        ids = [find_repository(connection, name)[0] for name in names]
        missing = embeddings.next_missing(connection, 1, ids, limit=10)
    assert len(missing) == 3

    def put() -> None:
        with database.transaction() as connection:
            embeddings.put(connection, 1, [text.key for text in missing], job.load(job.model).embed_passages(
                [text.text for text in missing]).vectors)  # fmt: skip

    forget(database, GONE)
    with database.transaction() as connection:
        forgetting.forget(connection, ids[1])
        second = Beside(put)
        until_someone_waits(connection)
    assert second.wait() is None
    with database.snapshot() as connection:
        assert scalar(connection, "SELECT count(*) FROM kb.embedding") == 1
    job.run()
    assert job.problems() == []


@pytest.mark.slow
def test_several_at_once_do_not_wait_in_a_circle(job: Job) -> None:
    database = job.database
    names = [f"acme/many{n}" for n in range(6)]
    for name in names:
        observe(database, name, *(release(n, notes(SHARED, f"Number {n}")) for n in range(5)))
    with database.transaction() as connection:
        for name in names:
            watch_list.add(connection, name, at=NOW)

    def work() -> None:
        job.run(*names, STAYS)

    def watch() -> None:
        for name in reversed(names):
            with database.transaction() as connection:
                watch_list.add(connection, name, every_s=60, at=NOW)

    others = [Beside(work), Beside(watch)]
    forgetters = [Beside(lambda name=name: forget(database, name)) for name in names]
    results = [one.wait() for one in (*forgetters, *others)]
    assert [r for r in results if isinstance(r, Exception) and not isinstance(r, KbError)] == []
    assert [r for r in results[: len(names)] if isinstance(r, Exception)] == []
    assert job.problems() == []


@pytest.mark.slow
def test_real_releases_are_forgotten_while_a_version_is_being_built(
    database: Database, shared_data: Path
) -> None:
    files = sorted((shared_data / "releases").glob("*.jsonl"), key=lambda path: path.stat().st_size)[2:8]
    import_files(database, files, Settings())
    job = Job(database)
    job.run()
    with database.snapshot() as connection:
        names = repositories.repository_names(connection)
    gone, *stay = names
    indexing.build_version(database, hashing_model("second", dimension=48))
    job.embed(*names[:3])
    job.index(*names[:3])
    before = everything_of(database, *stay)
    done = forget(database, gone)
    assert done.observations > 10
    assert done.passages
    assert done.vectors >= done.passages
    assert everything_of(database, *stay) == before
    assert job.problems() == []
    completed = job.run()
    assert completed.ready
    assert promotion.promote(database, completed.ready[0]).passed
    assert job.problems() == []
    import_files(database, files, Settings())
    job.run()
    assert job.problems() == []
    with database.snapshot() as connection:
        assert repositories.repository_names(connection) == names
        assert index_refresh.stale_repositories(connection) == []
