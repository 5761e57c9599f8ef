"""What lies outside and is read by `raw_releases`: named here so that lineage begins where the data does.

Dagster neither materialises nor observes these; `github/releases` is observed, by polling (`assets.polling`). They have no
partitions: one topic; which repository a record belongs to is known once it is read.
"""

from __future__ import annotations

import dagster as dg

from assets.stage import OWNERS

KAFKA_EVENTS = dg.AssetKey(["kafka", "release_events"])


def external_assets() -> list[dg.AssetSpec]:
    """The sources."""
    return [
        dg.AssetSpec(
            KAFKA_EVENTS,
            group_name="sources",
            kinds={"kafka"},
            owners=OWNERS,
            description=(
                "**Release events of a Kafka topic**, for producers who push instead of being polled. Nothing lands from "
                "it yet: the place in the lineage is kept for the consumer."
            ),
        ),
    ]
