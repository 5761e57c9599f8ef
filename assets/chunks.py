"""The asset `chunks`: the current releases of each repository, cut into change items."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg

from assets import raw_releases
from assets.automation import when_upstream_is_new
from assets.placement import on_cpu
from assets.stage import check_result, failing_plainly, for_each, repositories_in_log, run_figures, stage
from kb_platform.progress import Progress
from kb_platform.settings import Settings
from kb_platform.stages.chunking import ChunkReport, chunk_repository
from kb_platform.store.chunks import CUT
from kb_platform.store.database import Database

KEY = dg.AssetKey("chunks")

DESCRIPTION = """\
**Release notes, cut along their structure.** One change item is one chunk: with its heading path, its kind (breaking,
security, deprecation, removal, feature, fix, performance, docs, other), its references (#1234, CVE, commits) and its exact
span in the body. An item is a chunk, however small; huge ones are split; no character is lost.

- *Rows*: `kb.current_chunks`; a chunk belongs to one observation and never changes.
- *Computed*: only observations that are not cut yet. A new chunker cuts all of them again, beside the old chunks, which
  the served index keeps until its successor is promoted.
- *Read by*: `embeddings`, `release_index`.
"""


def chunks(settings: Settings) -> dg.AssetsDefinition:
    """The asset, placed as the settings say."""

    @stage(
        "chunks",
        group="prepare",
        description=DESCRIPTION,
        code_version=CUT,
        kinds={"python", "postgres"},
        deps=[raw_releases.KEY],
        checks=[
            dg.AssetCheckSpec(
                "every_release_is_chunked",
                asset=KEY,
                description="Of each repository of the run, as many releases are chunked as the log has (drafts aside).",
            )
        ],
        op_tags=on_cpu(settings),
        relation="kb.current_chunks",
        automation=when_upstream_is_new(),
    )
    def chunks(
        context: dg.AssetExecutionContext,
        database: dg.ResourceParam[Database],
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult[Any]:
        started = time.monotonic()
        with failing_plainly():
            known = repositories_in_log(database, context.partition_keys)
            reports, failures = for_each(
                context, list(known), lambda key: chunk_repository(database, key, progress=progress)
            )
        for key, report in reports.items():
            context.add_asset_metadata(_metadata(report), partition_key=key)
            if report.counts.chunked != report.counts.releases:
                failures[key] = f"{report.counts.chunked} of {report.counts.releases} releases are chunked"
        seconds = time.monotonic() - started
        cut = sum(report.chunked for report in reports.values())
        total = sum(report.counts.chunks for report in reports.values())
        return dg.MaterializeResult(
            metadata=run_figures(
                releases_chunked=cut,
                chunks=total,
                seconds=round(seconds, 3),
                releases_per_second=round(cut / seconds, 1) if seconds else 0.0,
            ),
            check_results=[
                check_result(
                    "every_release_is_chunked",
                    failures,
                    passed=f"all releases of {len(reports)} repositories, {total:,} chunks",
                )
            ],
        )

    return chunks


def _metadata(report: ChunkReport) -> dict[str, Any]:
    counts = report.counts
    return {
        "dagster/partition_row_count": counts.chunks,
        "releases": counts.releases,
        "releases_chunked_now": report.chunked,
        "chunks": counts.chunks,
        "searchable_chunks": counts.searchable,
        "seconds": round(report.seconds, 3),
        **{f"kind/{kind}": count for kind, count in counts.by_kind.items()},
    }
