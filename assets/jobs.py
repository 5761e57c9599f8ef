"""The jobs that people, sensors and schedules start by name."""

from __future__ import annotations

import dagster as dg

from assets import chunks, embeddings, raw_releases, release_index
from assets.whole_base import whole_base_checks

REFRESH = "refresh"
CHECKS = "checks"
# Of runs with this tag only so many go on at a time, whoever asked for them; see DAGSTER_YAML in kb_platform.home.
REFRESH_TAGS = {"kb/refresh": "refresh"}
STAGES = (raw_releases.KEY, chunks.KEY, embeddings.KEY, release_index.KEY)


def jobs() -> list[dg.UnresolvedAssetJobDefinition]:
    """Both jobs."""
    checks = dg.AssetSelection.checks(*whole_base_checks())
    return [
        dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
            REFRESH,
            selection=dg.AssetSelection.assets(*STAGES) - checks,
            tags=REFRESH_TAGS,
            description="Bring repositories up to date from the log to the served index. Takes one repository or a range "
            "of them; what is up to date is only looked at.",
        ),
        dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType]
            CHECKS,
            selection=checks,
            description="Check that the whole knowledge base adds up, every repository.",
        ),
    ]
