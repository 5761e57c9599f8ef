"""When Dagster materialises the stages by itself: as soon as something upstream is new, repository by repository."""

from __future__ import annotations

from typing import Any

import dagster as dg


def when_upstream_is_new() -> dg.AutomationCondition[Any]:
    """Once for each news of an upstream asset in the same partition, and for partitions that were never made.

    Not while an upstream asset is missing or on its way, and not twice at a time. A run of the whole `refresh` job asks for
    nothing more: what it made upstream it has taken along.
    """
    return dg.AutomationCondition.eager().with_label("upstream_is_new")
