"""The settings of the process that runs a step, read from its environment."""

from __future__ import annotations

import dagster as dg

from kb_platform.settings import Settings, load_settings
from resources.plain import PlainResource


class SettingsResource(PlainResource[Settings]):
    """All settings of kb-platform (`KB_…` variables of the process; see docs/settings.md)."""

    def create_resource(self, context: dg.InitResourceContext) -> Settings:
        """Raises SettingsError."""
        del context
        return load_settings()
