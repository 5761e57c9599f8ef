"""Chunking and embedding as stages: each thing once, resumable, and only what changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kb_platform.embedding.embedder import Embedded, Embedder
from kb_platform.embedding.model import EmbeddingModel
from kb_platform.errors import EmbeddingError, NotKnown
from kb_platform.settings import Settings
from kb_platform.sources.release import Release
from kb_platform.stages import indexing
from kb_platform.stages.chunking import chunk_repository, cut_release
from kb_platform.stages.embedding import embed_repositories
from kb_platform.stages.importing import import_files
from kb_platform.store import chunks, embeddings
from kb_platform.store.database import Database, scalar
from kb_platform.store.repositories import find_repository
from tests.hashing_embedder import HashingEmbedder, hashing_model
from tests.job import Job
from tests.releases import notes, observe, release

REPOSITORY = "acme/tool"


class Failing(HashingEmbedder):
    """Fails at its `fails_at`-th call."""

    fails_at = 2

    def embed_passages(self, texts: Sequence[str]) -> Embedded:
        """See HashingEmbedder."""
        if len(self.calls) + 1 == self.fails_at:
            self.calls.append([])
            raise EmbeddingError("the server is gone")
        return super().embed_passages(texts)


@pytest.fixture
def job(database: Database) -> Job:
    return Job(database)


def many(count: int) -> list[Release]:
    return [
        release(n, notes(f"Widget {n} spins", f"Gadget {n} hums", "Nothing else breaks"))
        for n in range(1, count + 1)
    ]


class TestChunking:
    def test_each_observation_once(self, database: Database) -> None:
        observe(database, REPOSITORY, *many(7))
        first = chunk_repository(database, REPOSITORY)
        assert (first.chunked, first.counts.releases, first.counts.chunked) == (7, 7, 7)
        assert first.counts.searchable == 21
        assert first.counts.by_kind == {"fix": 21}
        again = chunk_repository(database, REPOSITORY.upper())
        assert (again.repository, again.chunked, again.counts) == (REPOSITORY, 0, first.counts)

    def test_only_what_changed_is_cut_again(self, database: Database) -> None:
        observe(database, REPOSITORY, *many(7))
        chunk_repository(database, REPOSITORY)
        observe(database, REPOSITORY, release(3, notes("Another")), release(8, notes("More")))
        observe(database, REPOSITORY, many(7)[4], deleted=True)
        report = chunk_repository(database, REPOSITORY)
        assert (report.chunked, report.counts.releases, report.counts.chunked) == (2, 7, 7)

    def test_drafts_wait_and_empty_bodies_are_done(self, database: Database) -> None:
        observe(database, REPOSITORY, release(1, notes("Secret"), draft=True), release(2, ""))
        assert chunk_repository(database, REPOSITORY).counts.searchable == 0
        assert chunk_repository(database, REPOSITORY).chunked == 0
        observe(database, REPOSITORY, release(1, notes("Secret")))
        assert chunk_repository(database, REPOSITORY).counts.searchable == 1

    def test_unknown_repositories_are_named(self, database: Database) -> None:
        observe(database, REPOSITORY, *many(1))
        with pytest.raises(NotKnown, match="acme/tol") as unknown:
            chunk_repository(database, "acme/tol")
        assert REPOSITORY in (unknown.value.hint or "")

    def test_what_is_stored_is_what_was_cut(self, database: Database) -> None:
        body = "# 2.0\n\n## Breaking changes\n\n- `run()` is gone (#12, thanks @ann)\n\n| a | b |\n|---|---|\n| é | 🎉 |\n"
        observe(database, REPOSITORY, release(1, body))
        chunk_repository(database, REPOSITORY)
        wanted = cut_release(REPOSITORY, release(1, body))
        with database.snapshot() as connection:
            rows = connection.execute(
                "SELECT ordinal, kind, role, span_start, span_end, text, headings, reference, chunk_id "
                "FROM kb.current_chunks WHERE repository = %s ORDER BY ordinal",
                (REPOSITORY,),
            ).fetchall()
            stored = connection.execute("SELECT passage_hash, text FROM kb.passage").fetchall()
        assert [row[5] for row in rows] == [body[row[3] : row[4]] for row in rows]
        assert [(row[0], row[1], row[2], tuple(row[6]), bytes.fromhex(row[8])) for row in rows] == [
            (c.chunk.ordinal, c.chunk.kind, c.chunk.role, c.chunk.headings, c.chunk_id) for c in wanted
        ]
        assert any(row[7].get("issues") for row in rows)
        assert {(bytes(key), text) for key, text in stored} == {
            (c.passage.key, c.passage.text) for c in wanted if c.passage
        }

    def test_putting_the_same_observation_twice_changes_nothing(self, database: Database) -> None:
        observe(database, REPOSITORY, *many(1))
        cut = [(1, cut_release(REPOSITORY, many(1)[0]))]
        with database.transaction() as connection:
            chunks.put(connection, cut)
            chunks.put(connection, cut)
            assert scalar(connection, "SELECT count(*) FROM kb.chunk") == len(cut[0][1])

    def test_a_body_of_one_mebibyte_under_deep_headings_stays_small(self, database: Database) -> None:
        """What is stored beside a chunk (headings, words) must not multiply with the number of chunks."""
        heading = "# " + "long heading " * 20_000 + "\n"
        body = heading + "".join(f"- item {n} does a thing\n" for n in range(20_000))
        observe(database, REPOSITORY, release(1, body))
        chunk_repository(database, REPOSITORY)
        with database.snapshot() as connection:
            size = scalar(
                connection, "SELECT sum(pg_column_size(headings)) + sum(pg_column_size(words)) FROM kb.chunk"
            )
        assert size < 40 * len(body)


class TestEmbedding:
    def test_each_text_once_whichever_release_has_it(self, job: Job) -> None:
        observe(job.database, REPOSITORY, *many(30))
        observe(job.database, "acme/other", release(1, notes("Widget 1 spins")))
        job.run()
        # The third item is the same in all; the other repository's name is part of its text.
        assert job.embedded == 30 * 2 + 1 + 1
        job.run()
        assert job.embedded == 62
        assert job.problems() == []

    def test_an_edit_embeds_its_changed_items_only(self, job: Job) -> None:
        observe(job.database, REPOSITORY, *many(30))
        job.run()
        observe(
            job.database,
            REPOSITORY,
            release(3, notes("Widget 3 spins", "Gadget 3 is silent", "Nothing else breaks")),
        )
        before = job.embedded
        done = job.run()
        assert job.embedders[job.model.key].embedded[before:] == ["tool: Bug fixes: Gadget 3 is silent"]
        assert done.ready == []
        # There and back: nothing is new.
        observe(job.database, REPOSITORY, many(3)[2])
        job.run()
        assert job.embedded == before + 1
        assert job.problems() == []

    def test_the_longest_come_first_and_slices_are_committed(self, job: Job) -> None:
        observe(
            job.database, REPOSITORY, release(1, notes(*(f"item {'x' * n} of many" for n in range(1, 101))))
        )
        job.chunk()
        failing = Failing(job.model)
        with pytest.raises(EmbeddingError, match="is gone"):
            embed_repositories(
                job.database, [REPOSITORY], lambda _: failing, models=[job.model], slice_size=30
            )
        lengths = [len(text) for text in failing.calls[0]]
        assert lengths == sorted(lengths, reverse=True)
        (report,) = embed_repositories(
            job.database, [REPOSITORY], job.load, models=[job.model], slice_size=30
        )
        assert report.embedded == 70, "the slice before the failure was kept"
        assert set(job.embedders[job.model.key].embedded).isdisjoint(failing.calls[0])
        (again,) = embed_repositories(job.database, [REPOSITORY], job.load, models=[job.model])
        assert (again.embedded, again.engine) == (0, "none")

    def test_no_model_is_loaded_for_nothing(self, job: Job) -> None:
        def load(_: EmbeddingModel) -> Embedder:
            raise AssertionError("nothing is missing")

        observe(job.database, REPOSITORY, *many(2))
        assert embed_repositories(job.database, [REPOSITORY], load) == [], "no version asks for vectors yet"
        job.run()
        (report,) = embed_repositories(job.database, [REPOSITORY], load)
        assert report.embedded == 0

    @pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
    def test_vectors_that_cannot_be_searched_are_refused(self, job: Job, bad: float) -> None:
        observe(job.database, REPOSITORY, *many(2))
        job.chunk()
        with job.database.transaction() as connection:
            repository_id, _ = find_repository(connection, REPOSITORY)
            model_id = embeddings.ensure_model(connection, job.model)
            page = embeddings.next_missing(connection, model_id, [repository_id], limit=9)
        vectors = np.ones((len(page), job.model.dimension), dtype=np.float32)
        vectors[1] = bad
        with (
            pytest.raises(EmbeddingError, match=f"1 of {len(page)} vectors"),
            job.database.transaction() as connection,
        ):
            embeddings.put(connection, model_id, [passage.key for passage in page], vectors)

    def test_vectors_of_another_dimension_are_refused(self, job: Job) -> None:
        observe(job.database, REPOSITORY, *many(2))
        indexing.ensure_version(job.database, lambda: job.model)
        job.chunk()
        other = HashingEmbedder(hashing_model(dimension=job.model.dimension + 1))
        with pytest.raises(EmbeddingError, match="dimension"):
            embed_repositories(job.database, [REPOSITORY], lambda _: other)

    def test_each_model_has_its_own_vectors(self, job: Job) -> None:
        observe(job.database, REPOSITORY, *many(3))
        job.chunk()
        other = hashing_model("other", dimension=48)
        for model in (job.model, other, job.model):
            embed_repositories(job.database, [REPOSITORY], job.load, models=[model])
        assert {key: len(e.embedded) for key, e in job.embedders.items()} == {job.model.key: 7, other.key: 7}
        with job.database.snapshot() as connection:
            rows = connection.execute(
                "SELECT m.key, vector_dims(vector), count(*) FROM kb.embedding JOIN kb.model m USING (model_id) "
                "GROUP BY 1, 2 ORDER BY 1"
            ).fetchall()
            model_id = scalar(connection, "SELECT model_id FROM kb.model WHERE key = %s", (other.key,))
            assert embeddings.model(connection, model_id) == other
            repository_id, _ = find_repository(connection, REPOSITORY)
            vectors, least, greatest = embeddings.norms(connection, model_id, repository_id)
        assert sorted(rows) == sorted([(job.model.key, 32, 7), (other.key, 48, 7)])
        assert vectors == 9
        assert least == pytest.approx(1, abs=1e-2)
        assert greatest == pytest.approx(1, abs=1e-2)


def test_the_sample_of_real_releases_goes_all_the_way(job: Job, shared_data: Path, tmp_path: Path) -> None:
    """A few of each repository: every stage, twice; the audit finds nothing, spans are right, nothing is computed twice."""
    for path in sorted((shared_data / "releases").glob("*.jsonl")):
        lines = path.read_bytes().splitlines()
        (tmp_path / path.name).write_bytes(b"\n".join(lines[:: max(1, len(lines) // 4)]) + b"\n")
    done = import_files(job.database, [tmp_path], Settings())
    assert done.quarantined == 0
    completed = job.run()
    assert completed.promoted == 1
    embedded = job.embedded
    assert import_files(job.database, [tmp_path], Settings()).appended == 0
    assert job.run().ready == []
    assert job.embedded == embedded
    assert job.problems() == []
    with job.database.snapshot() as connection:
        names = {row[0] for row in connection.execute("SELECT DISTINCT repository FROM kb.current_chunks")}
        assert len(names) == 20
        raw = scalar(connection, "SELECT raw FROM kb.release_observations ORDER BY sequence LIMIT 1")
        assert json.loads(raw)["tag_name"]
