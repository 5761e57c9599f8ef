"""The job `housekeeping`: what piles up and nobody needs any more goes, once a night.

Dagster's old runs, counts of requests, pages of credentials that are used no longer. Nothing of the log of releases: that
is kept for ever.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_type_hints

import dagster as dg

from assets.history import prune
from assets.placement import on_cpu
from assets.stage import failing_plainly
from kb_platform.settings import Settings
from kb_platform.store import credentials, pages
from kb_platform.store.database import Database

HOUSEKEEPING = "housekeeping"
# ETags of a credential that nobody has used for so long are of no use.
PAGES_UNSEEN = timedelta(days=30)


def housekeeping_job(settings: Settings) -> dg.JobDefinition:
    """One op, so that it has a log and a place in the UI."""

    def tidy(
        context: dg.OpExecutionContext,
        settings: dg.ResourceParam[Settings],
        database: dg.ResourceParam[Database],
    ) -> None:
        now = datetime.now(UTC)
        before = now - timedelta(days=settings.history_days)
        with failing_plainly():
            with database.transaction() as connection:
                tallies = credentials.forget_tallies(connection, before)
                unseen = pages.forget_unseen(connection, now - PAGES_UNSEEN)
            pruned = prune(context.instance, before)
        context.log.info(
            "%s of Dagster's runs older than %s days went, %s stay because they hold the state of an asset; "
            "%s counts of requests and %s unused pages went",
            pruned.deleted, settings.history_days, pruned.kept, tallies, unseen,
        )  # fmt: skip
        figures: dict[str, Any] = {"runs_deleted": pruned.deleted, "runs_kept": pruned.kept}
        context.add_output_metadata(figures)

    # Dagster compares annotations with its classes, so text is a stranger to it.
    tidy.__annotations__ = get_type_hints(tidy, include_extras=True)
    op = dg.op(tags=on_cpu(settings), description="Delete what is old and not needed.")(tidy)

    @dg.job(  # pyright: ignore[reportUnknownMemberType] - a gap in dagster's own hints
        name=HOUSEKEEPING,
        description="Deletes Dagster's runs older than `KB_HISTORY_DAYS` that hold no asset's last state, and counts and "
        "pages that nobody needs. The schedule `housekeeping` runs it at night.",
    )
    def housekeeping() -> None:
        op()

    return housekeeping
