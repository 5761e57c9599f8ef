"""The asset `release_index`: the index versions, brought up to date and promoted when their gate lets them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from assets import chunks, embeddings
from assets.automation import when_upstream_is_new
from assets.placement import on_cpu
from assets.stage import check_result, failing_plainly, for_each, repositories_in_log, run_figures, stage
from kb_platform.progress import Progress
from kb_platform.settings import Settings
from kb_platform.stages.indexing import Completed, IndexReport, complete_versions, index_repository
from kb_platform.stages.promotion import LEAST_RECALL, recall_at_10
from kb_platform.store import chunks as stored_chunks
from kb_platform.store import index_refresh, index_versions
from kb_platform.store.chunks import CUT
from kb_platform.store.database import Connection, Database
from kb_platform.store.index_refresh import Refreshed
from kb_platform.store.index_versions import IndexVersion
from kb_platform.store.repositories import find_repository

KEY = dg.AssetKey("release_index")

DESCRIPTION = """\
**What people search**: each chunk with its words (for BM25) and its vector, in one typed table per index version.

- *Refreshed*: every version that is kept up to date, one repository in one transaction. Readers see a repository before or
  after, never between; a release that is not chunked and embedded yet keeps its former rows.
- *Promoted*: a version that holds everything is examined (complete, counts, recall, no loss) and served when its gate lets
  it. `kb index list|promote|rollback` does it by hand.
- *Rows*: `kb.index_versions` says which table is served.
- *Read by*: the app, `kb search`, `kb ask`.
"""


def release_index(settings: Settings) -> dg.AssetsDefinition:
    """The asset, placed as the settings say."""

    @stage(
        "release_index",
        group="serve",
        description=DESCRIPTION,
        code_version=CUT,
        kinds={"pgvector", "postgres"},
        deps=[chunks.KEY, embeddings.KEY],
        checks=[
            dg.AssetCheckSpec(
                "counts_reconcile",
                asset=KEY,
                description="Of each repository of the run: releases in the log = releases chunked = releases indexed, "
                "and searchable chunks = chunks with a vector = rows of the index, in every maintained version.",
            ),
            dg.AssetCheckSpec(
                "promotion_gate",
                asset=KEY,
                description="Every version that is ready and was made by the platform itself passed its gate.",
            ),
            dg.AssetCheckSpec(
                "recall_at_10",
                asset=KEY,
                description="Of the 10 exactly nearest rows the served path finds nearly all, over sampled vectors.",
            ),
        ],
        op_tags=on_cpu(settings),
        relation="kb.index_versions",
        automation=when_upstream_is_new(),
    )
    def release_index(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[Database],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult[Any]:
        started = time.monotonic()
        with failing_plainly():
            known = repositories_in_log(database, context.partition_keys)
            with progress.task("index", len(known), "repositories") as task:

                def refresh(key: str) -> IndexReport:
                    task.advance()
                    return index_repository(database, key)

                reports, failures = for_each(context, list(known), refresh)
            completed = complete_versions(database)
            with database.snapshot() as connection:
                served = index_versions.active(connection)
                for key in reports:
                    if why := difference(connection, key):
                        failures[key] = why
                recall = recall_at_10(connection, served) if served else None
        _refuse_to_serve_nothing(completed, served)
        for key, report in reports.items():
            context.add_asset_metadata(_metadata(report, served), partition_key=key)
        if completed.promoted is not None:
            context.log.info("index version %s is served from now on", completed.promoted)
        return dg.MaterializeResult(
            metadata=_figures(reports, completed, served, recall, time.monotonic() - started),
            check_results=[
                check_result(
                    "counts_reconcile", failures, passed=f"{len(reports)} repositories, log to index"
                ),
                _promotion_gate(completed),
                _recall(recall),
            ],
        )

    return release_index


def difference(connection: Connection, name: str) -> str | None:
    """What does not add up for a repository between the log, the chunks and the index; None when all does."""
    repository_id, _ = find_repository(connection, name)
    counts = stored_chunks.counts(connection, repository_id)
    if counts.chunked != counts.releases:
        return f"{counts.chunked:,} of {counts.releases:,} releases are chunked"
    for version in index_versions.maintained(connection):
        rows, wanted = index_refresh.missing_rows(connection, version, repository_id)
        if not rows == wanted == counts.searchable:
            return f"version {version.version} has {rows:,} rows where {counts.searchable:,} chunks are searchable"
    return None


def _refuse_to_serve_nothing(completed: Completed, served: IndexVersion | None) -> None:
    """A gate that holds back a successor is a check; one that leaves people with nothing to search fails the run."""
    refused = _refused(completed)
    if refused and served is None:
        raise dg.Failure(
            f"nothing can be served: {'; '.join(refused)}",
            metadata={
                "gates": dg.MetadataValue.json({str(n): g.as_json() for n, g in completed.gates.items()})
            },
            allow_retries=False,
        )


def _refused(completed: Completed) -> list[str]:
    return [
        f"version {number} did not pass ({', '.join(gate.reasons)})"
        for number, gate in completed.gates.items()
        if not gate.passed
    ]


def _metadata(report: IndexReport, served: IndexVersion | None) -> dict[str, Any]:
    shown = _shown(report.versions, served)
    if shown is None:
        return {"seconds": round(report.seconds, 3)}
    return {
        "dagster/partition_row_count": shown.chunks,
        "index_version": shown.version,
        "rows": shown.chunks,
        "releases": shown.releases,
        "releases_waiting": shown.waiting,
        "rows_inserted": shown.inserted,
        "rows_deleted": shown.deleted,
        "seconds": round(report.seconds, 3),
    }


def _shown(versions: Sequence[Refreshed], served: IndexVersion | None) -> Refreshed | None:
    """The served version; before there is one, the newest."""
    for refreshed in versions:
        if served is not None and refreshed.version == served.version:
            return refreshed
    return max(versions, key=lambda refreshed: refreshed.version, default=None)


def _figures(
    reports: Mapping[str, IndexReport],
    completed: Completed,
    served: IndexVersion | None,
    recall: float | None,
    seconds: float,
) -> dict[str, float | str]:
    moved = [refreshed for report in reports.values() for refreshed in report.versions]
    figures = run_figures(
        rows_inserted=sum(refreshed.inserted for refreshed in moved),
        rows_deleted=sum(refreshed.deleted for refreshed in moved),
        seconds=round(seconds, 3),
    )
    if served is not None:
        figures |= run_figures(
            served_version=served.version, served_releases=served.releases, served_rows=served.chunks
        )
    if recall is not None:
        figures |= run_figures(recall_at_10=round(recall, 4))
    if completed.promoted is not None:
        figures |= run_figures(promoted_version=completed.promoted)
    if refused := _refused(completed):
        figures |= run_figures(refused="; ".join(refused))
    return figures


def _promotion_gate(completed: Completed) -> dg.AssetCheckResult:
    refused = _refused(completed)
    examined = ", ".join(str(number) for number in completed.gates)
    return dg.AssetCheckResult(
        check_name="promotion_gate",
        passed=not refused,
        # People go on with the version that is served; where there is none, the run has failed before this.
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(refused)
        or (f"version {examined} passed" if examined else "no version waits for its promotion"),
        metadata={
            f"version_{number}": dg.MetadataValue.json(gate.as_json())
            for number, gate in completed.gates.items()
        },
    )


def _recall(recall: float | None) -> dg.AssetCheckResult:
    if recall is None:
        return dg.AssetCheckResult(
            check_name="recall_at_10", passed=True, description="no version is served yet"
        )
    return dg.AssetCheckResult(
        check_name="recall_at_10",
        passed=recall >= LEAST_RECALL,
        description=f"{recall:.3f} of the exactly nearest rows are found; {LEAST_RECALL} are asked for",
        metadata={"recall_at_10": round(recall, 4)},
    )
