"""The asset `embeddings`: a vector for every passage of the chunks, in every model in use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg

from assets import chunks
from assets.automation import when_upstream_is_new
from assets.placement import GPU_POOL, on_gpu
from assets.stage import check_result, failing_plainly, repositories_in_log, run_figures, stage
from kb_platform.embedding.model import EmbeddingModel
from kb_platform.progress import Progress
from kb_platform.settings import Settings
from kb_platform.stages.embedding import EmbeddingReport, embed_repositories
from kb_platform.stages.indexing import ensure_version
from kb_platform.store import embeddings as stored
from kb_platform.store import index_versions
from kb_platform.store.chunks import CUT
from kb_platform.store.database import Database
from kb_platform.store.repositories import find_repository
from resources.embedding import Configured, Loader

KEY = dg.AssetKey("embeddings")
# Half precision keeps a vector of length 1 within about 0.001 of it.
NORM_TOLERANCE = 0.01

DESCRIPTION = """\
**A vector for every passage**, stored once for ever under (model, text). Text that did not change is never embedded again,
whichever release, run or index asks.

- *Models*: those of the index versions that are kept up to date: usually one, two while a successor is built.
- *Computed*: what is missing for all repositories of the run together, in batches of like length, longest first, committed
  in slices. A killed run goes on where it stopped.
- *On a cluster*: on the GPU nodes, one run at a time for each GPU (pool `gpu`). On a laptop: numpy for a little, torch for
  much.
- *Read by*: `release_index`.
"""


class _Vectors(NamedTuple):
    """The vectors of one repository in one model: how many chunks have one, and the range of their lengths."""

    model: EmbeddingModel
    chunks: int
    least_norm: float
    greatest_norm: float


def embeddings(settings: Settings) -> dg.AssetsDefinition:
    """The asset, placed as the settings say."""
    slice_size = settings.embedding_slice

    @stage(
        "embeddings",
        group="prepare",
        description=DESCRIPTION,
        code_version=CUT,
        kinds={"huggingface", "pytorch", "postgres"},
        deps=[chunks.KEY],
        checks=[
            dg.AssetCheckSpec(
                "every_passage_has_a_vector",
                asset=KEY,
                description="No searchable chunk of the run's repositories lacks a vector, in any model in use.",
            ),
            dg.AssetCheckSpec(
                "norms",
                asset=KEY,
                description="Every vector of the run's repositories has a length: 1, where the model normalises.",
            ),
        ],
        op_tags=on_gpu(settings),
        relation="kb.embedding",
        automation=when_upstream_is_new(),
        pool=GPU_POOL,
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[Database],
        load_embedder: dg.ResourceParam[Loader],
        configured_model: dg.ResourceParam[Configured],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult[Any]:
        started = time.monotonic()
        with failing_plainly():
            names = list(repositories_in_log(database, context.partition_keys))
            if (made := ensure_version(database, configured_model)) is not None:
                context.log.info("index version %s is new and will be filled", made)
            reports = embed_repositories(
                database, names, load_embedder, slice_size=slice_size, progress=progress
            )
            missing, vectors = _stored(database, names)
        for key, found in vectors.items():
            count = max((v.chunks for v in found), default=0)
            context.add_asset_metadata(
                {"dagster/partition_row_count": count, "chunks_with_vector": count}, partition_key=key
            )
        return dg.MaterializeResult(
            metadata=_figures(reports, vectors, time.monotonic() - started),
            check_results=[_every_passage(missing, len(names)), _norms(vectors)],
        )

    return embeddings


def _stored(database: Database, names: Sequence[str]) -> tuple[dict[str, int], dict[str, list[_Vectors]]]:
    """(model key → passages without a vector, repository → its vectors in each model)."""
    missing: dict[str, int] = {}
    vectors: dict[str, list[_Vectors]] = {name: [] for name in names}
    with database.snapshot() as connection:
        ids = {name: find_repository(connection, name)[0] for name in names}
        for model_id in dict.fromkeys(v.model_id for v in index_versions.maintained(connection)):
            model = stored.model(connection, model_id)
            missing[model.key] = stored.missing(connection, model_id, list(ids.values())).passages
            for name, repository_id in ids.items():
                vectors[name].append(_Vectors(model, *stored.norms(connection, model_id, repository_id)))
    return missing, vectors


def _figures(
    reports: Sequence[EmbeddingReport], vectors: Mapping[str, Sequence[_Vectors]], seconds: float
) -> dict[str, float | str]:
    embedded = sum(report.embedded for report in reports)
    tokens = sum(report.tokens for report in reports)
    computing = sum(report.embedding_seconds for report in reports)
    have = sum(v.chunks for found in vectors.values() for v in found)
    return run_figures(
        embedded=embedded,
        # Chunks whose vector was there: unchanged text, or the same text in another chunk.
        reused=max(0, have - embedded),
        tokens=tokens,
        seconds=round(seconds, 3),
        embedding_seconds=round(computing, 3),
        tokens_per_second=round(tokens / computing, 1) if computing else 0.0,
        models=", ".join(report.model for report in reports),
        engines=", ".join(report.engine for report in reports),
    )


def _every_passage(missing: Mapping[str, int], repositories: int) -> dg.AssetCheckResult:
    lacking = {model: f"{count:,} passages" for model, count in missing.items() if count}
    return dg.AssetCheckResult(
        check_name="every_passage_has_a_vector",
        passed=not lacking,
        description="; ".join(f"{model} lacks {what}" for model, what in lacking.items())
        or f"all passages of {repositories} repositories, in {len(missing)} models",
        metadata={"missing": sum(missing.values())},
    )


def _norms(vectors: Mapping[str, Sequence[_Vectors]]) -> dg.AssetCheckResult:
    wrong = {
        name: f"lengths from {v.least_norm:.4f} to {v.greatest_norm:.4f} in {v.model.key}"
        for name, found in vectors.items()
        for v in found
        if not _is_sound(v)
    }
    all_found = [v for found in vectors.values() for v in found]
    return check_result(
        "norms",
        wrong,
        passed=f"{sum(v.chunks for v in all_found):,} vectors",
        metadata={
            "least_norm": min((v.least_norm for v in all_found), default=1.0),
            "greatest_norm": max((v.greatest_norm for v in all_found), default=1.0),
        },
    )


def _is_sound(vectors: _Vectors) -> bool:
    if not vectors.model.normalize:
        return vectors.least_norm > 0
    return vectors.least_norm > 1 - NORM_TOLERANCE and vectors.greatest_norm < 1 + NORM_TOLERANCE
