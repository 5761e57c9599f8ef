"""What lies outside and is read by `raw_releases`: named here so that lineage begins where the data does.

Dagster does not materialise these. They have no partitions: one list of releases, one topic; which repository a record
belongs to is known once it is read.
"""

from __future__ import annotations

import dagster as dg

from assets.stage import OWNERS

GITHUB_RELEASES = dg.AssetKey(["github", "releases"])
KAFKA_EVENTS = dg.AssetKey(["kafka", "release_events"])


def external_assets() -> list[dg.AssetSpec]:
    """The sources."""
    return [
        dg.AssetSpec(
            GITHUB_RELEASES,
            group_name="sources",
            kinds={"github"},
            owners=OWNERS,
            description=(
                "**Releases as GitHub shows them**, in the JSON of its REST API. They come as files (`kb import`). "
                "They are edited, deleted, re-tagged and back-ported without notice; that is why the log keeps "
                "every observation."
            ),
        ),
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
