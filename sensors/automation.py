"""The sensor that evaluates the assets' automation conditions."""

from __future__ import annotations

import dagster as dg

from assets.jobs import REFRESH_TAGS, STAGES
from kb_platform.settings import Settings
from sensors.status import default_sensor_status


def automation_sensor(settings: Settings) -> dg.AutomationConditionSensorDefinition:
    """Materialises what its upstream assets' news ask for, by the conditions in `assets.automation`."""
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.assets(*STAGES),
        default_status=default_sensor_status(settings),
        minimum_interval_seconds=30,
        run_tags=REFRESH_TAGS,
        description="New raw releases flow to the index: whatever is materialised upstream is followed downstream, "
        "repository by repository. At night it has the whole knowledge base checked.",
    )
