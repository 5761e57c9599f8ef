"""The schedule of the checks that look at everything."""

from __future__ import annotations

import dagster as dg

from assets.jobs import CHECKS
from kb_platform.settings import Settings
from sensors.status import default_schedule_status


def nightly_checks(settings: Settings) -> dg.ScheduleDefinition:
    """Every night at 03:17 UTC, away from the full hours at which everyone else's schedules run."""
    return dg.ScheduleDefinition(
        name="nightly_checks",
        job_name=CHECKS,
        cron_schedule="17 3 * * *",
        execution_timezone="UTC",
        default_status=default_schedule_status(settings),
        description="Checks that the whole knowledge base adds up.",
    )
