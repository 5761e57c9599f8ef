"""The asset `raw_releases`: the log of observations, as far as it is known for each repository."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from assets.landing import DOCUMENTS, RELEASES
from assets.placement import on_cpu
from assets.polling import GITHUB_RELEASES
from assets.stage import check_result, failing_plainly, repositories_in_log, run_figures, stage
from kb_platform.settings import Settings
from kb_platform.store import quarantine
from kb_platform.store.database import Database
from kb_platform.store.log_summary import LogSummary

KEY = dg.AssetKey("raw_releases")
# A record in quarantine is news for a day; then it is a known one, which `kb quarantine list` still shows.
NEWS = timedelta(hours=24)

DESCRIPTION = """\
**The append-only log of what the sources showed**, and when: every release of a repository, every edit, deletion and
reappearance, with the raw bytes it came in.

- *Rows*: `kb.release_observations` (the log), `kb.current_releases` (what holds now), `kb.releases_as_of(moment)`.
- *Written by*: imports and the sources' pollers, each in one transaction with what it quarantines. This asset reports on
  what is there; an import of the same bytes adds nothing.
- *Read by*: `chunks`.
"""


def raw_releases(settings: Settings) -> dg.AssetsDefinition:
    """The asset, placed as the settings say."""

    @stage(
        "raw_releases",
        group="ingest",
        description=DESCRIPTION,
        code_version="1",
        kinds={"python", "postgres"},
        deps=[GITHUB_RELEASES, RELEASES.key, DOCUMENTS.key],
        checks=[
            dg.AssetCheckSpec(
                "repositories_are_known",
                asset=KEY,
                description="The log has releases of every repository (partition) of the run.",
            ),
            dg.AssetCheckSpec(
                "quarantine_growth",
                asset=KEY,
                description="No record was put into quarantine for the first time in the last 24 hours, over all "
                "sources. `kb quarantine list` shows what waits and why; `kb quarantine replay` tries again.",
            ),
        ],
        op_tags=on_cpu(settings),
        relation="kb.release_observations",
    )
    def raw_releases(
        context: dg.AssetExecutionContext, database: dg.ResourceParam[Database]
    ) -> dg.MaterializeResult[Any]:
        started = time.monotonic()
        keys = context.partition_keys
        with failing_plainly():
            found = repositories_in_log(database, keys)
            with database.snapshot() as connection:
                waiting = quarantine.open_by_reason(connection)
                new = quarantine.seen_since(connection, datetime.now(UTC) - NEWS)
        for key, summary in found.items():
            context.add_asset_metadata(_metadata(summary), partition_key=key)
        unknown = {key: "the log has nothing of it" for key in keys if key not in found}
        return dg.MaterializeResult(
            metadata=run_figures(
                repositories=len(found),
                releases=sum(summary.releases for summary in found.values()),
                observations=sum(summary.observations for summary in found.values()),
                seconds=round(time.monotonic() - started, 3),
            ),
            data_version=data_version(found),
            check_results=[
                check_result("repositories_are_known", unknown, passed=f"all {len(found)} are in the log"),
                _quarantine_growth(waiting, new),
            ],
        )

    return raw_releases


def data_version(found: Mapping[str, LogSummary]) -> dg.DataVersion:
    """Changes when, and only when, the log of one of these repositories has grown."""
    state = sorted((summary.repository, summary.last_sequence) for summary in found.values())
    return dg.DataVersion(hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16])


def _metadata(summary: LogSummary) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": summary.observations,
        "releases": summary.releases,
        "observations": summary.observations,
        "quarantined": summary.quarantined,
    }
    if summary.newest_tag is not None:
        metadata["newest_release"] = summary.newest_tag
    if summary.newest_published_at is not None:
        metadata["newest_published_at"] = dg.MetadataValue.timestamp(summary.newest_published_at)
    if summary.verified_at is not None:
        metadata["verified_at"] = dg.MetadataValue.timestamp(summary.verified_at)
    return metadata


def _quarantine_growth(waiting: Mapping[str, int], new: int) -> dg.AssetCheckResult:
    total = sum(waiting.values())
    return dg.AssetCheckResult(
        check_name="quarantine_growth",
        passed=new == 0,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{total:,} records wait in quarantine, {new:,} of them since less than 24 hours",
        metadata={"open": total, "new": new, **{f"reason/{reason}": n for reason, n in waiting.items()}},
    )
