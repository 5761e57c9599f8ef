"""Candidates out of an index: as many as were asked for, the right ones, whatever filters, by scan and by graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql

from kb_platform.stages import indexing
from kb_platform.store import index_versions, search
from kb_platform.store.chunks import CUT, sparsevec
from kb_platform.store.database import SEARCH_SETTINGS, Connection, Database, scalar
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.index_versions import IndexVersion
from kb_platform.store.search import Conditions, candidates
from tests.hashing_embedder import hashing_model

DIMENSION = 16
CHUNKS_OF_A_RELEASE = 20
FIRST_DAY = datetime(2020, 1, 1, tzinfo=UTC)
# Shares of the rows, and the conditions that keep them; each cuts along something else.
SHARES = {
    "100 %": Conditions(),
    "90 %": Conditions(prerelease=False),
    "10 %": Conditions(kinds=("feature",)),
    "10 % of repositories": Conditions(repositories=("acme/ten",)),
    "1 %": Conditions(kinds=("breaking",)),
    "1 % of repositories": Conditions(repositories=("ACME/one",)),
    "0.1 %": Conditions(kinds=("security",)),
    "0.1 % of time": Conditions(published_from=FIRST_DAY + timedelta(days=5), published_before=FIRST_DAY + timedelta(days=8)),
    "0.02 %": Conditions(kinds=("removal",)),
    "one release": Conditions(tags=("v7",)),
    "both": Conditions(repositories=("acme/ten",), kinds=("breaking", "security"), prerelease=True),
    "none": Conditions(repositories=("acme/unknown",)),
    "no tags": Conditions(tags=()),
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """What the table holds, as arrays: row i has ordinal i % 20 of observation i // 20 + 1."""

    vectors: NDArray[np.float32]
    repositories: list[str]
    kinds: list[str]
    terms: list[dict[int, float]]

    def __len__(self) -> int:
        return len(self.kinds)

    def release(self, row: int) -> int:
        """The observation's sequence; its tag is v<sequence>, its day the sequence'th."""
        return row // CHUNKS_OF_A_RELEASE + 1

    def meets(self, row: int, conditions: Conditions) -> bool:
        """The plain statement of what conditions mean."""
        release = self.release(row)
        day = FIRST_DAY + timedelta(days=release)
        names = {name.lower() for name in conditions.repositories}
        return (
            (not names or self.repositories[row] in names)
            and (conditions.tags is None or f"v{release}" in conditions.tags)
            and (not conditions.kinds or self.kinds[row] in conditions.kinds)
            and (conditions.published_from is None or day >= conditions.published_from)
            and (conditions.published_before is None or day < conditions.published_before)
            and (conditions.prerelease is None or (release % 10 == 0) == conditions.prerelease)
        )

    def matching(self, conditions: Conditions) -> list[int]:
        return [row for row in range(len(self)) if self.meets(row, conditions)]

    def nearest(self, conditions: Conditions, vector: NDArray[np.float32], k: int) -> list[int]:
        matching = np.array(self.matching(conditions), dtype=np.int64)
        order = np.argsort(-(self.vectors[matching] @ vector), kind="stable")
        return [int(row) for row in matching[order[:k]]]


@dataclass(frozen=True)
class Table:
    """A filled index version, served."""

    database: Database
    rows: Rows


def make_rows(count: int) -> Rows:
    generator = np.random.default_rng(11)
    repositories: list[str] = []
    kinds: list[str] = []
    for row in range(count):
        release = row // CHUNKS_OF_A_RELEASE + 1
        name = "ten" if release % 10 == 3 else "one" if release % 100 == 44 else "rest"
        repositories.append(f"acme/{name}")
        kinds.append(
            "removal" if row % 5_000 == 2_503
            else "security" if row % 1_000 == 4
            else "breaking" if row % 100 == 5
            else "feature" if row % 10 == 6
            else "fix"
        )  # fmt: skip
    # A repository is a cluster: its chunks speak of one thing.
    centers = {name: generator.normal(size=DIMENSION) for name in ("acme/ten", "acme/one", "acme/rest")}
    vectors = np.stack([centers[name] for name in repositories]) + generator.normal(size=(count, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # As stored: half precision.
    vectors = vectors.astype(np.float16).astype(np.float32)
    terms = [{1 + row % 7: 1.0, 100 + row % 501: 0.5 + row % 3} for row in range(count)]
    return Rows(vectors, repositories, kinds, terms)


def fill(database: Database, rows: Rows) -> None:
    """The rows of everything that a search reads, without the stages before it."""
    releases = len(rows) // CHUNKS_OF_A_RELEASE
    with database.transaction() as connection:
        number = index_versions.create(connection, hashing_model(dimension=DIMENSION), {"automatic": False})
        names = list(dict.fromkeys(rows.repositories))
        connection.execute("INSERT INTO kb.repository (name) SELECT unnest(%s::text[])", (names,))
        ids = dict(connection.execute("SELECT name, repository_id FROM kb.repository").fetchall())
        connection.execute(
            "INSERT INTO kb.observation (repository_id, release_id, observed_at, origin, content_hash, tag, name, body, "
            "published_at, prerelease, draft, url, raw) SELECT repository_id, n, now(), 'test', sha256(n::text::bytea), "
            "'v' || n, '', '', %s::timestamptz + n * interval '1 day', n %% 10 = 0, false, 'https://h/' || n, ''::bytea "
            "FROM unnest(%s::bigint[]) WITH ORDINALITY AS r (repository_id, n) ORDER BY n",
            (FIRST_DAY, [ids[rows.repositories[n * CHUNKS_OF_A_RELEASE]] for n in range(releases)]),
        )
        with (
            connection.cursor() as cursor,
            cursor.copy(
                sql.SQL(
                    "COPY {} (sequence, ordinal, repository_id, release_id, kind, prerelease, published_at, tag, vector, "
                    "words) FROM STDIN"
                ).format(index_versions.table_of(number))
            ) as copy,
        ):
            for row in range(len(rows)):
                release = rows.release(row)
                terms = rows.terms[row]
                copy.write_row((
                    release, row % CHUNKS_OF_A_RELEASE, ids[rows.repositories[row]], release, rows.kinds[row],
                    release % 10 == 0, FIRST_DAY + timedelta(days=release), f"v{release}",
                    HalfVector(rows.vectors[row]).to_text(), sparsevec(sorted(terms), [terms[t] for t in sorted(terms)]),
                ))  # fmt: skip
        connection.execute(
            sql.SQL(
                "INSERT INTO kb.chunk (sequence, chunker, ordinal, chunk_id, role, kind, span_start, span_end, text, "
                "headings, reference, words) SELECT sequence, %s, ordinal, ''::bytea, 'item', kind, 0, 0, "
                "sequence || '.' || ordinal, '{{}}', '{{}}', words FROM {}"
            ).format(index_versions.table_of(number)),
            (CUT,),
        )
        connection.execute(
            "INSERT INTO kb.indexed_observation SELECT %s, repository_id, sequence, release_id, %s FROM kb.observation",
            (number, CHUNKS_OF_A_RELEASE),
        )
        connection.execute(
            "INSERT INTO kb.index_repository SELECT version, repository_id, 1000000, count(*), sum(chunks) "
            "FROM kb.indexed_observation GROUP BY 1, 2"
        )
        connection.execute("UPDATE kb.index_version SET status = 'ready'")
        index_versions.promote(connection, number, gate={}, forced=True)
    assert index_versions.build_graph(database, number, least_rows=1)
    with database.transaction() as connection:
        connection.execute("ANALYZE")


@pytest.fixture(scope="module")
def make_table(server: EmbeddedServer, migrated_template: str) -> Generator[Callable[[int], Table]]:
    """Tables are made once for all tests, which only read."""
    made: dict[int, Table] = {}

    def make(count: int) -> Table:
        if count not in made:
            name = f"kb_search_{os.getpid()}_{count}"
            with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
                connection.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                        sql.Identifier(name), sql.Identifier(migrated_template)
                    )
                )
            made[count] = Table(Database(server.url(name), pool_size=2), make_rows(count))
            fill(made[count].database, made[count].rows)
        return made[count]

    yield make
    for count, table in made.items():
        table.database.close()
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            name = sql.Identifier(f"kb_search_{os.getpid()}_{count}")
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def table(make_table: Callable[[int], Table]) -> Table:
    """Small."""
    return make_table(5_000)


@pytest.fixture(params=[5_000, pytest.param(60_000, marks=pytest.mark.slow)], ids=["small", "large"])
def any_table(request: pytest.FixtureRequest, make_table: Callable[[int], Table]) -> Table:
    """Small, and as large as the design's measurements."""
    return make_table(request.param)


def query(seed: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    vector /= np.linalg.norm(vector)
    return vector.astype(np.float16).astype(np.float32)


def served(connection: Connection) -> IndexVersion:
    scope = search.open_scope(connection)
    assert scope is not None
    return scope.version


def number_of(row: search.Row) -> int:
    return (row.sequence - 1) * CHUNKS_OF_A_RELEASE + row.ordinal


@contextmanager
def reads_the_graph(connection: Connection, version: IndexVersion, *, times: int) -> Generator[None]:
    """Checks how often the graph is read."""
    before = graph_scans(connection, version)
    yield
    assert graph_scans(connection, version) - before == times


def graph_scans(connection: Connection, version: IndexVersion) -> int:
    """How often this connection has read the graph, lately."""
    graph = f"kb.index_{version.version}_graph"
    return int(scalar(connection, "SELECT pg_stat_get_xact_numscans(%s::regclass)", (graph,)))


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("share", SHARES)
def test_as_many_rows_as_there_are_up_to_k_and_the_nearest(any_table: Table, share: str, k: int) -> None:
    conditions, vector, rows = SHARES[share], query(k), any_table.rows
    matches = len(rows.matching(conditions))
    with any_table.database.snapshot() as connection:
        version = served(connection)
        with reads_the_graph(connection, version, times=int(conditions == Conditions())):
            found = candidates(
                connection, version, conditions, words={}, vector=vector, most_vectors=k, exact_scan_rows=100
            )
        assert search.count(connection, version, conditions) == matches
    assert len(found) == min(k, matches)
    assert all(rows.meets(number_of(row), conditions) for row in found)
    best = set(rows.nearest(conditions, vector, k))
    shared = len(best & {number_of(row) for row in found})
    if conditions == Conditions():
        assert shared >= 0.9 * len(best), "the graph is approximate"
    else:
        # Beyond equals, which half precision makes.
        worst = min((rows.vectors[number] @ vector for number in best), default=1.0)
        assert all(rows.vectors[number_of(row)] @ vector >= worst - 1e-3 for row in found)


@pytest.mark.parametrize("share", ["100 %", "10 %", "0.02 %", "none"])
def test_words_alone_fill_up_to_k_too(table: Table, share: str) -> None:
    matches = len(table.rows.matching(SHARES[share]))
    with table.database.snapshot() as connection:
        found = candidates(
            connection,
            served(connection),
            SHARES[share],
            words={103: 1.0},
            vector=None,
            most_words=5,
            most_vectors=50,
        )
    assert min(50, matches) <= len(found) <= min(55, matches)
    assert len({number_of(row) for row in found}) == len(found)


def test_where_the_graph_yields_too_few_the_scan_steps_in(table: Table) -> None:
    with table.database.snapshot() as connection:
        version = served(connection)
        # As pgvector below 0.8 searched: a fixed number of candidates, then nothing.
        connection.execute(
            "SELECT set_config('hnsw.iterative_scan', 'off', true), set_config('hnsw.ef_search', '10', true)"
        )
        # By the difference: a pooled connection still counts the scans of its last transaction.
        with reads_the_graph(connection, version, times=1):
            found = candidates(
                connection,
                version,
                Conditions(),
                words={},
                vector=query(3),
                most_vectors=100,
                exact_scan_rows=100,
            )
    assert {number_of(row) for row in found} == set(table.rows.nearest(Conditions(), query(3), 100))


def test_up_to_a_number_of_rows_the_graph_is_not_asked(table: Table) -> None:
    with table.database.snapshot() as connection:
        version = served(connection)
        with reads_the_graph(connection, version, times=0):
            candidates(connection, version, Conditions(), words={}, vector=query(4), exact_scan_rows=5_000)
        with reads_the_graph(connection, version, times=1):
            candidates(connection, version, Conditions(), words={}, vector=query(4), exact_scan_rows=4_999)


def test_what_is_returned_is_what_is_stored(table: Table) -> None:
    words: Mapping[int, float] = {3: 0.7, 105: 2.0}
    vector = query(5)
    with table.database.snapshot() as connection:
        found = candidates(connection, served(connection), Conditions(), words=words, vector=vector)
    assert len(found) >= 100
    for row in found:
        number = number_of(row)
        terms = table.rows.terms[number]
        assert row.text == f"{row.sequence}.{row.ordinal}"
        assert (row.repository, row.kind) == (table.rows.repositories[number], table.rows.kinds[number])
        assert (row.tag, row.url, row.prerelease) == (
            f"v{row.sequence}",
            f"https://h/{row.sequence}",
            row.sequence % 10 == 0,
        )
        assert row.published_at == FIRST_DAY + timedelta(days=row.sequence)
        assert row.bm25 == pytest.approx(sum(words[t] * terms.get(t, 0.0) for t in words), abs=1e-4)
        assert row.cosine == pytest.approx(float(table.rows.vectors[number] @ vector), abs=2e-3)


def test_the_best_by_words_are_all_there(table: Table) -> None:
    words = {2: 0.1, 110: 1.0, 111: 3.0}
    scores = [sum(words[t] * terms.get(t, 0.0) for t in words) for terms in table.rows.terms]
    with table.database.snapshot() as connection:
        found = candidates(
            connection,
            served(connection),
            Conditions(),
            words=words,
            vector=query(6),
            most_words=30,
            most_vectors=5,
        )
    best = sorted(scores, reverse=True)[:30]
    assert sorted((row.bm25 for row in found), reverse=True)[:30] == pytest.approx(best, abs=1e-4)


@given(
    st.builds(
        Conditions,
        repositories=st.lists(st.sampled_from(["acme/ten", "Acme/ONE", "acme/rest", "x/y"]), max_size=2, unique=True).map(tuple),
        tags=st.none() | st.lists(st.integers(1, 260).map("v{}".format), max_size=40).map(tuple),
        kinds=st.lists(st.sampled_from(["fix", "feature", "security", "removal"]), max_size=2, unique=True).map(tuple),
        published_from=st.none() | st.integers(0, 260).map(lambda day: FIRST_DAY + timedelta(days=day)),
        published_before=st.none() | st.integers(0, 260).map(lambda day: FIRST_DAY + timedelta(days=day)),
        prerelease=st.none() | st.booleans(),
    ),
    st.integers(1, 30),
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_conditions_mean_what_they_say(table: Table, conditions: Conditions, k: int) -> None:
    matching = table.rows.matching(conditions)
    with table.database.snapshot() as connection:
        version = served(connection)
        found = candidates(
            connection,
            version,
            conditions,
            words={1: 1.0},
            vector=query(k),
            most_words=3,
            most_vectors=k,
            exact_scan_rows=0,
        )
        assert search.count(connection, version, conditions) == len(matching)
    assert {number_of(row) for row in found} <= set(matching)
    assert len(found) >= min(k, len(matching))


@pytest.mark.slow
def test_a_version_that_grew_gets_the_graph_that_it_lacks(make_table: Callable[[int], Table]) -> None:
    table = make_table(60_000)
    with table.database.transaction() as connection:
        connection.execute("DROP INDEX kb.index_1_graph")
        assert indexing.is_unfinished(connection)
    indexing.complete_versions(table.database)
    with table.database.snapshot() as connection:
        assert index_versions.has_graph(connection, 1)
        assert not indexing.is_unfinished(connection)


def test_connections_are_set_up_for_searching(table: Table) -> None:
    with table.database.snapshot() as connection:
        assert connection.prepare_threshold is None
        for name, value in SEARCH_SETTINGS.items():
            assert scalar(connection, "SELECT current_setting(%s)", (name,)) == value


def test_scope_and_statistics(table: Table) -> None:
    with table.database.transaction() as connection:
        version = served(connection)
        assert version.chunks == 5_000
        assert search.rows_in_scope(connection, version, []) == 5_000
        assert search.rows_in_scope(connection, version, ["ACME/ten", "x/y"]) == 500
        assert search.document_frequencies(connection, version.version, [1, 2]) == {}
        sample = search.sample_vectors(connection, version, 40)
        assert sample.shape == (40, DIMENSION)
        exact = search.nearest(connection, version, sample[0], 10, exact=True)
        assert next((r - 1) * CHUNKS_OF_A_RELEASE + o for r, o in exact) in table.rows.nearest(
            Conditions(), sample[0], 3
        )


def test_nothing_served_is_no_scope(database: Database) -> None:
    with database.snapshot() as connection:
        assert search.open_scope(connection) is None
