"""Progress of long steps: lines in the run's log."""

from __future__ import annotations

import dagster as dg

from kb_platform.progress import Lines, Progress
from resources.plain import PlainResource


class ProgressResource(PlainResource[Progress]):
    """A line every few seconds with what is done, the rate and the time left, in the run's log."""

    def create_resource(self, context: dg.InitResourceContext) -> Progress:
        """Silent outside a run, where there is no log."""
        return Lines(context.log.info) if context.log else Lines(lambda _line: None)
