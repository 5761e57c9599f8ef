"""Whether sensors are switched on from the start (`KB_SENSORS_ON`)."""

from __future__ import annotations

import dagster as dg

from kb_platform.settings import Settings


def default_sensor_status(settings: Settings) -> dg.DefaultSensorStatus:
    """What a sensor does until a person switches it in the UI."""
    return dg.DefaultSensorStatus.RUNNING if settings.sensors_on else dg.DefaultSensorStatus.STOPPED
