"""Checks over the whole knowledge base, for the job `checks`.

Those that come with a materialisation speak of the repositories of that run, and the next run's result replaces theirs.
These look at every repository: their result is the state of all. They cost a few queries a repository, for the night.
"""

from __future__ import annotations

from typing import Any, cast

import dagster as dg

from assets import release_index as index
from assets.stage import check_result, failing_plainly, named
from kb_platform.store import index_refresh
from kb_platform.store.database import Database
from kb_platform.store.repositories import repository_names

# At night, away from the full hours at which everyone else's work starts. A check with a condition of its own does not
# ride along with the materialisations that automation asks for.
NIGHTLY = cast("dg.AutomationCondition[Any]", dg.AutomationCondition.cron_tick_passed("17 3 * * *", "UTC"))


def whole_base_checks() -> list[dg.AssetChecksDefinition]:
    """Both checks."""
    return [all_counts_reconcile, nothing_is_stale]


@dg.asset_check(
    asset=index.KEY,
    name="all_counts_reconcile",
    automation_condition=NIGHTLY,
    description="`counts_reconcile`, over every repository that the log knows.",
)
def all_counts_reconcile(database: dg.ResourceParam[Database]) -> dg.AssetCheckResult:
    """Rows that are missing anywhere between the log and the index."""
    with failing_plainly(), database.snapshot() as connection:
        names = repository_names(connection)
        found = {name: index.difference(connection, name) for name in names}
    failures = {name: why for name, why in found.items() if why is not None}
    return check_result(
        "all_counts_reconcile", failures, passed=f"all {len(names):,} repositories, log to index"
    )


@dg.asset_check(
    asset=index.KEY,
    name="nothing_is_stale",
    automation_condition=NIGHTLY,
    description="Every repository's newest observations are in every maintained index version. A short while after news "
    "this fails as it should; if it goes on, the staleness sensor is off or its runs fail.",
)
def nothing_is_stale(database: dg.ResourceParam[Database]) -> dg.AssetCheckResult:
    """Repositories that wait for a refresh."""
    with failing_plainly(), database.snapshot() as connection:
        stale = index_refresh.stale_repositories(connection)
    return dg.AssetCheckResult(
        check_name="nothing_is_stale",
        passed=not stale,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(stale):,} wait: {named(stale)}" if stale else "the index reflects the whole log",
        metadata={"stale": len(stale)},
    )
