"""The life of index versions: built, examined, promoted, rolled back, retired, dropped; and kept up to date."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from kb_platform.errors import IndexStateError, NotKnown
from kb_platform.stages import indexing, promotion
from kb_platform.stages.promotion import examine
from kb_platform.store import index_refresh, index_versions
from kb_platform.store.audit import audit
from kb_platform.store.database import Connection, Database, scalar
from kb_platform.store.index_versions import IndexVersion
from kb_platform.store.repositories import find_repository
from tests.hashing_embedder import hashing_model
from tests.job import Job
from tests.releases import notes, observe, release

TOOL, OTHER = "acme/tool", "acme/other"
WIDE = hashing_model("wide", dimension=48)
AT_ONCE = timedelta(0)
REPEATED = (
    "INSERT INTO kb.observation (repository_id, release_id, observed_at, origin, content_hash, tag, name, body, prerelease, "
    "draft, url, raw) SELECT repository_id, release_id, observed_at, origin, content_hash, tag, name, body, prerelease, "
    "draft, url, raw FROM kb.observation WHERE sequence = 1"
)


@pytest.fixture
def job(database: Database) -> Job:
    """Two repositories, one version, served."""
    job = Job(database)
    observe(database, TOOL, *(release(n, notes(f"Widget {n} spins", "It is faster")) for n in range(1, 6)))
    observe(database, OTHER, release(1, notes("Other things")), release(2, ""))
    job.run()
    return job


def served(database: Database) -> int | None:
    with database.snapshot() as connection:
        version = index_versions.active(connection)
        return version and version.version


def version_of(database: Database, number: int) -> IndexVersion:
    with database.snapshot() as connection:
        return index_versions.version(connection, number)


def second_version(job: Job) -> int:
    """A version of another model, complete and ready."""
    number = indexing.build_version(job.database, WIDE)
    job.run()
    return number


def rows_by_sequence(database: Database, number: int) -> dict[int, set[str]]:
    """sequence → where its rows lie in the table (ctid), which changes when a row is written anew."""
    found: dict[int, set[str]] = {}
    with database.snapshot() as connection:
        for sequence, place in connection.execute(
            sql.SQL("SELECT sequence, ctid::text FROM {}").format(index_versions.table_of(number))
        ):
            found.setdefault(sequence, set()).add(place)
    return found


class TestFirstVersion:
    def test_is_built_examined_and_served_by_itself(self, database: Database) -> None:
        observe(database, TOOL, release(1, notes("A thing")))
        job = Job(database)
        done = job.run()
        assert (done.ready, done.promoted) == ([1], 1)
        assert done.gates[1].passed
        version = version_of(database, 1)
        assert (version.status, version.model, version.repositories, version.releases, version.chunks) == (
            "active", job.model.key, 1, 1, 1,
        )  # fmt: skip
        assert version.gate is not None
        assert version.gate["passed"] is True
        assert version.provenance["automatic"] is True
        assert job.problems() == []

    def test_nothing_is_served_before(self, database: Database) -> None:
        assert served(database) is None
        job = Job(database)
        assert job.run().ready == [], "there is nothing to index"
        with pytest.raises(IndexStateError, match="no version to roll back to"):
            promotion.rollback(database)

    def test_two_runs_at_once_make_one(self, database: Database) -> None:
        job = Job(database)
        made: list[int | None] = []
        threads = [
            threading.Thread(target=lambda: made.append(indexing.ensure_version(database, lambda: job.model)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(made, key=str) == [1, None, None, None]

    def test_a_version_without_rows_is_not_served(self, database: Database) -> None:
        observe(database, TOOL, release(1, ""))
        done = Job(database).run()
        assert done.promoted is None
        assert done.gates[1].reasons == ["content: 0 chunks"]
        # And is, once there is something.
        observe(database, TOOL, release(2, notes("A thing")))
        assert Job(database).run().promoted == 1


class TestRefresh:
    def test_again_changes_nothing(self, job: Job) -> None:
        before = rows_by_sequence(job.database, 1)
        reports = job.index()
        assert all(not refreshed.changed for report in reports for refreshed in report.versions)
        assert rows_by_sequence(job.database, 1) == before
        with job.database.snapshot() as connection:
            assert index_refresh.stale_repositories(connection) == []

    def test_an_edit_moves_its_own_rows_only(self, job: Job) -> None:
        before = rows_by_sequence(job.database, 1)
        observe(job.database, TOOL, release(3, notes("Widget 3 turns", "It is faster", "It is green")))
        with job.database.snapshot() as connection:
            assert index_refresh.stale_repositories(connection) == [TOOL]
        job.run()
        after = rows_by_sequence(job.database, 1)
        gone, come = before.keys() - after.keys(), after.keys() - before.keys()
        assert len(gone) == len(come) == 1
        assert {sequence: after[sequence] for sequence in after.keys() - come} == {
            sequence: before[sequence] for sequence in before.keys() - gone
        }
        assert [len(after[sequence]) for sequence in come] == [3]
        assert job.problems() == []

    def test_a_deleted_release_disappears(self, job: Job) -> None:
        observe(job.database, TOOL, release(3, notes("x")), deleted=True)
        job.run()
        with job.database.snapshot() as connection:
            tags = connection.execute(
                "SELECT DISTINCT tag FROM kb.index_1 WHERE repository_id = 1 ORDER BY 1"
            ).fetchall()
        assert tags == [("v1.1.0",), ("v1.2.0",), ("v1.4.0",), ("v1.5.0",)]
        assert job.problems() == []
        observe(job.database, TOOL, release(3, notes("Back")))
        job.run()
        assert version_of(job.database, 1).releases == 7
        assert job.problems() == []

    def test_a_release_that_waits_keeps_its_former_rows(self, job: Job) -> None:
        before = rows_by_sequence(job.database, 1)
        observe(job.database, TOOL, release(3, notes("Widget 3 turns")), release(6, notes("New")))
        observe(job.database, TOOL, release(4, notes("x")), deleted=True)
        report = job.index(TOOL)[0].versions[0]
        assert (report.waiting, report.inserted) == (2, 0)
        assert len(rows_by_sequence(job.database, 1)) == len(before) - 1, (
            "the deleted one needs nothing and is gone"
        )
        with job.database.snapshot() as connection:
            assert index_refresh.stale_repositories(connection) == [TOOL]
            assert index_refresh.complete_repositories(connection, 1) == (1, 2)
        # Chunked, but not embedded: it waits on.
        job.chunk(TOOL)
        assert job.index(TOOL)[0].versions[0].waiting == 2
        assert job.problems() == []
        job.embed(TOOL)
        assert job.index(TOOL)[0].versions[0].waiting == 0
        with job.database.snapshot() as connection:
            assert index_refresh.stale_repositories(connection) == []
        assert job.problems() == []

    def test_drafts_are_not_indexed(self, job: Job) -> None:
        observe(job.database, TOOL, release(3, notes("Hidden again"), draft=True))
        job.run()
        assert version_of(job.database, 1).releases == 6
        assert job.problems() == []

    def test_chunks_of_superseded_observations_are_forgotten(self, job: Job) -> None:
        observe(job.database, TOOL, release(3, notes("Widget 3 turns")))
        job.run()
        with job.database.snapshot() as connection:
            assert scalar(connection, "SELECT count(DISTINCT sequence) FROM kb.chunk") == 6
            assert scalar(connection, "SELECT count(*) FROM kb.chunked_observation") == 7
            assert scalar(connection, "SELECT count(*) FROM kb.observation") == 8

    def test_chunks_that_some_version_still_shows_are_kept(self, job: Job) -> None:
        """The served version may wait for its vectors while another one has moved on."""
        second_version(job)
        observe(job.database, TOOL, release(3, notes("Widget 3 turns")))
        job.chunk(TOOL)
        from kb_platform.stages.embedding import embed_repositories

        embed_repositories(job.database, [TOOL], job.load, models=[WIDE])
        waiting = {refreshed.version: refreshed.waiting for refreshed in job.index(TOOL)[0].versions}
        assert waiting == {1: 1, 2: 0}
        assert job.problems() == []
        job.run()
        assert job.problems() == []

    @given(
        st.lists(
            st.one_of(
                st.tuples(
                    st.just("observe"), st.integers(1, 4), st.sampled_from(["a", "b", "a b", "b b c", ""])
                ),
                st.tuples(st.just("delete"), st.integers(1, 4), st.just("")),
                st.tuples(st.just("draft"), st.integers(1, 4), st.just("a")),
                st.tuples(st.sampled_from(["chunk", "embed", "index", "run"]), st.just(0), st.just("")),
            ),
            max_size=14,
        )
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_order_of_events_and_stages_reconciles(
        self, job: Job, events: list[tuple[str, int, str]]
    ) -> None:
        """Document frequencies, counts and rows equal a recount after every step, and the log in the end."""
        for what, number, words in events:
            body = notes(*(f"Word {word} is meant" for word in words.split()))
            if what in ("observe", "draft", "delete"):
                item = release(number, body, draft=what == "draft")
                observe(job.database, TOOL, item, deleted=what == "delete")
            else:
                getattr(job, what)()
                assert job.problems() == []
        job.run()
        assert job.problems() == []
        with job.database.snapshot() as connection:
            assert index_refresh.stale_repositories(connection) == []


class TestGate:
    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            ("DELETE FROM kb.index_1 WHERE (sequence, ordinal) IN (SELECT sequence, ordinal FROM kb.index_1 LIMIT 1)", "rows"),
            ("UPDATE kb.index_1 SET vector = (SELECT array_agg(0) FROM generate_series(1, 32))::halfvec", "vectors"),
            ("UPDATE kb.index_repository SET log_sequence = 0", "complete"),
        ],
    )  # fmt: skip
    def test_a_damaged_version_does_not_pass(self, job: Job, damage: LiteralString, reason: str) -> None:
        assert examine(job.database, 1).passed
        with job.database.transaction() as connection:
            connection.execute(damage)
        gate = examine(job.database, 1)
        assert not gate.passed
        assert [found.partition(":")[0] for found in gate.reasons] == [reason]

    def test_holds_a_version_back_until_it_is_forced(self, job: Job) -> None:
        number = second_version(job)
        with job.database.transaction() as connection:
            connection.execute("DELETE FROM kb.index_2")
        with pytest.raises(IndexStateError, match="did not pass its gate: rows: 0 rows where"):
            promotion.promote(job.database, number)
        assert served(job.database) == 1
        assert (version_of(job.database, number).gate or {})["passed"] is False
        assert not promotion.promote(job.database, number, force=True).passed
        assert served(job.database) == number
        with job.database.snapshot() as connection:
            assert connection.execute(
                "SELECT version, previous_version, action, forced FROM kb.promotion"
            ).fetchall() == [
                (1, None, "promote", False),
                (2, 1, "promote", True),
            ]

    def test_holds_less_than_what_it_replaces(self, job: Job) -> None:
        number = second_version(job)
        with job.database.transaction() as connection:
            # As if the other had never seen one release.
            connection.execute("DELETE FROM kb.index_2 WHERE sequence = 1")
            connection.execute("DELETE FROM kb.indexed_observation WHERE version = 2 AND sequence = 1")
            connection.execute(
                "UPDATE kb.index_repository SET releases = 4, chunks = 8 WHERE version = 2 AND repository_id = 1"
            )
        gate = examine(job.database, number)
        assert gate.reasons == ["releases: 6 releases where the served version has 7"]

    def test_an_automatic_version_that_fails_is_not_served(self, job: Job) -> None:
        with job.database.transaction() as connection:
            connection.execute("UPDATE kb.index_version SET chunker = 'of old'")
        indexing.ensure_version(job.database, lambda: job.model)
        job.chunk()
        job.embed()
        job.index()
        with job.database.transaction() as connection:
            connection.execute("DELETE FROM kb.index_2")
        done = indexing.complete_versions(job.database)
        assert (done.ready, done.promoted, done.gates[2].passed) == ([2], None, False)
        assert served(job.database) == 1

    def test_a_new_cut_replaces_the_old_one(self, job: Job) -> None:
        """Code that cuts otherwise builds a version of its own, of the served model, and the old one is served meanwhile."""
        with job.database.transaction() as connection:
            for table in ("chunk", "chunked_observation", "index_version"):
                connection.execute(
                    sql.SQL("UPDATE {} SET chunker = 'of old'").format(sql.Identifier("kb", table))
                )
        job.model = WIDE
        done = job.run()
        assert done.promoted == 2
        assert version_of(job.database, 2).model == version_of(job.database, 1).model
        assert job.problems() == []
        promotion.rollback(job.database)
        assert served(job.database) == 1
        assert job.problems() == []


class TestPromotion:
    def test_a_second_model_beside_the_first(self, job: Job) -> None:
        number = second_version(job)
        assert served(job.database) == 1
        assert version_of(job.database, number).status == "ready"
        promotion.promote(job.database, number)
        assert served(job.database) == number
        assert version_of(job.database, 1).status == "ready"
        # Both move on together, so that rolling back loses nothing.
        observe(job.database, TOOL, release(9, notes("Nine")))
        job.run()
        assert {version_of(job.database, n).releases for n in (1, number)} == {8}
        assert promotion.rollback(job.database) == 1
        assert served(job.database) == 1
        assert promotion.rollback(job.database) == number
        assert job.problems() == []

    def test_what_a_person_builds_waits_for_the_person(self, job: Job) -> None:
        number = second_version(job)
        for _ in range(2):
            assert job.run().promoted is None
        assert served(job.database) == 1
        assert version_of(job.database, number).provenance["automatic"] is False

    def test_only_the_one_before_stays(self, job: Job) -> None:
        second = second_version(job)
        third = second_version(job)
        promotion.promote(job.database, second)
        promotion.promote(job.database, third)
        assert [version_of(job.database, n).status for n in (1, second, third)] == [
            "retired",
            "ready",
            "active",
        ]
        with pytest.raises(IndexStateError, match="is retired"):
            promotion.promote(job.database, 1)
        assert promotion.rollback(job.database) == second

    def test_an_unfinished_or_unknown_version_is_not_served(self, job: Job) -> None:
        number = indexing.build_version(job.database, WIDE)
        with pytest.raises(IndexStateError, match="complete: 0 of 2"):
            promotion.promote(job.database, number)
        with pytest.raises(IndexStateError, match="is building, not ready"):
            promotion.promote(job.database, number, force=True)
        with pytest.raises(NotKnown, match="no index version 9"):
            promotion.promote(job.database, 9)
        assert promotion.promote(job.database, 1).passed, (
            "what is served already may be promoted: nothing changes"
        )
        assert served(job.database) == 1


class TestRetiring:
    def test_the_served_version_stays(self, job: Job) -> None:
        with pytest.raises(IndexStateError, match="is served"), job.database.transaction() as connection:
            index_versions.retire(connection, 1)

    def test_its_table_goes_later_and_its_name_stays(self, job: Job) -> None:
        number = second_version(job)
        promotion.promote(job.database, number)
        with job.database.transaction() as connection:
            index_versions.retire(connection, 1)
        with pytest.raises(IndexStateError, match="no version to roll back to"):
            promotion.rollback(job.database)
        assert index_versions.drop_retired(job.database) == [], "a reader may have resolved it a moment ago"
        assert index_versions.drop_retired(job.database, older_than=AT_ONCE) == [1]
        assert index_versions.drop_retired(job.database, older_than=AT_ONCE) == []
        with job.database.snapshot() as connection:
            assert scalar(connection, "SELECT to_regclass('kb.index_1')") is None
            assert scalar(connection, "SELECT count(*) FROM kb.index_term WHERE version = 1") == 0
            assert scalar(connection, "SELECT status FROM kb.index_versions WHERE version = 1") == "dropped"
            assert [version.version for version in index_versions.versions(connection)] == [number]
        job.run()
        assert job.problems() == []

    def test_a_table_that_a_reader_holds_is_left_for_the_next_time(self, job: Job) -> None:
        promotion.promote(job.database, second_version(job))
        with job.database.transaction() as connection:
            index_versions.retire(connection, 1)
        with job.database.snapshot() as reader:
            assert index_versions.count_rows(reader, 1) == 11
            assert index_versions.drop_retired(job.database, older_than=AT_ONCE) == []
            assert index_versions.count_rows(reader, 1) == 11
        assert index_versions.drop_retired(job.database, older_than=AT_ONCE) == [1]

    def test_retiring_and_promoting_at_once_never_serves_a_retired_version(self, job: Job) -> None:
        number = second_version(job)
        with job.database.transaction() as promoting:
            index_versions.promote(promoting, number, gate={}, forced=True)
            failed: list[Exception] = []

            def retire() -> None:
                try:
                    with job.database.transaction() as connection:
                        index_versions.retire(connection, number)
                except IndexStateError as error:
                    failed.append(error)

            thread = threading.Thread(target=retire)
            thread.start()
            time.sleep(0.3)
        thread.join()
        assert len(failed) == 1
        assert job.problems() == []


class TestGraph:
    def test_is_built_where_there_are_rows_enough(self, job: Job) -> None:
        assert not index_versions.build_graph(job.database, 1)
        assert index_versions.build_graph(job.database, 1, least_rows=11)
        assert index_versions.build_graph(job.database, 1, least_rows=11)
        with job.database.snapshot() as connection:
            assert index_versions.has_graph(connection, 1)
        assert examine(job.database, 1).passed

    def test_one_whose_build_died_is_made_anew(self, job: Job) -> None:
        with job.database.autocommit() as blocker, job.database.autocommit() as builder:
            # A transaction that has the table keeps a concurrent build waiting; there it dies.
            blocker.execute("BEGIN")
            blocker.execute("INSERT INTO kb.index_1 SELECT * FROM kb.index_1 WHERE false")
            builder.execute("SET statement_timeout = '300ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                builder.execute(
                    "CREATE INDEX CONCURRENTLY index_1_graph ON kb.index_1 USING hnsw (vector halfvec_cosine_ops)"
                )
            blocker.execute("ROLLBACK")
        with job.database.snapshot() as connection:
            assert not index_versions.has_graph(connection, 1)
            assert index_versions.invalid_indexes(connection) == ["index_1_graph"]
        assert index_versions.build_graph(job.database, 1, least_rows=11)
        with job.database.snapshot() as connection:
            assert index_versions.has_graph(connection, 1)
            assert index_versions.invalid_indexes(connection) == []

    def test_builders_at_once_do_not_wait_for_each_other_in_a_circle(self, job: Job) -> None:
        errors: list[BaseException] = []
        built: list[bool] = []

        def build() -> None:
            try:
                built.append(index_versions.build_graph(job.database, 1, least_rows=1))
            except BaseException as error:
                errors.append(error)

        with job.database.autocommit() as blocker:
            # Holds the first builder until the others are waiting for it.
            blocker.execute("BEGIN")
            blocker.execute("INSERT INTO kb.index_1 SELECT * FROM kb.index_1 WHERE false")
            threads = [threading.Thread(target=build) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(0.7)
            blocker.execute("ROLLBACK")
        for thread in threads:
            thread.join()
        assert errors == []
        assert built == [True] * 3

    def test_refreshes_go_on_while_it_is_built(self, job: Job) -> None:
        index_versions.build_graph(job.database, 1, least_rows=1)
        observe(job.database, TOOL, release(3, notes("Widget 3 turns")))
        job.run()
        assert job.problems() == []


class TestAudit:
    @pytest.mark.parametrize(
        ("damage", "rule"),
        [
            ("DELETE FROM kb.index_1 WHERE sequence = 1 AND ordinal = 1", "chunks without a row"),
            ("UPDATE kb.index_1 SET kind = 'other' WHERE sequence = 1", "rows without their chunk"),
            ("UPDATE kb.index_1 SET tag = 'v0' WHERE sequence = 1", "rows without their chunk"),
            ("UPDATE kb.index_term SET documents = documents + 1 WHERE term = (SELECT min(term) FROM kb.index_term)", "document frequencies"),
            ("DELETE FROM kb.index_term WHERE term = (SELECT min(term) FROM kb.index_term)", "document frequencies"),
            ("DELETE FROM kb.chunk WHERE sequence = 2 AND ordinal = 1", "observations whose chunks are not all there"),
            ("DELETE FROM kb.chunked_observation WHERE sequence = 2", "chunks of observations not known as chunked"),
            ("UPDATE kb.chunk SET text = text || ' '", "chunks that are not their span"),
            ("UPDATE kb.index_repository SET chunks = chunks + 1", "repositories counted wrongly"),
            ("DELETE FROM kb.index_repository", "repositories counted wrongly"),
            ("UPDATE kb.indexed_observation SET release_id = 2 WHERE sequence = 1", "releases held twice"),
            ("UPDATE kb.embedding SET vector = '[1,0]' ", "vectors of another dimension"),
            ("UPDATE kb.index_version SET status = 'retired'", "served versions that are not ready"),
            (REPEATED, "observations that repeat"),
        ],
    )  # fmt: skip
    def test_finds_each_damage(self, job: Job, damage: LiteralString, rule: str) -> None:
        assert job.problems() == []
        with job.database.transaction() as connection:
            connection.execute(damage)
            assert any(rule in str(violation) for violation in audit(connection)), [
                *map(str, audit(connection))
            ]

    def test_finds_an_outdated_release(self, job: Job) -> None:
        observe(job.database, TOOL, release(3, notes("Widget 3 turns")))
        assert job.problems() == [], "a repository that says that it is behind is no damage"
        with job.database.transaction() as connection:
            connection.execute("UPDATE kb.index_repository SET log_sequence = 1000")
        assert job.problems() == [
            "1 releases missing or outdated in repositories that are up to date in index version 1"
        ]


def test_rows_to_reconcile(job: Job) -> None:
    with job.database.transaction() as connection:
        repository_id, _ = find_repository(connection, TOOL)
        version = index_versions.version(connection, 1)
        assert index_refresh.missing_rows(connection, version, repository_id) == (10, 10)
        _remove_one(connection)
        assert index_refresh.missing_rows(connection, version, repository_id) == (9, 10)


def _remove_one(connection: Connection) -> Any:
    return connection.execute("DELETE FROM kb.index_1 WHERE sequence = 1 AND ordinal = 1")
