"""What happens every night by the clock."""

from __future__ import annotations

import dagster as dg

from assets.housekeeping import HOUSEKEEPING
from kb_platform.settings import Settings


def housekeeping_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """The job `housekeeping`, after the nightly checks and away from full hours."""
    return dg.ScheduleDefinition(
        name="housekeeping",
        job_name=HOUSEKEEPING,
        cron_schedule="41 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.sensors_on
        else dg.DefaultScheduleStatus.STOPPED,
        description="Once a night: what is old and not needed goes.",
    )
