"""Partitions by repository: their names, and which of them one run takes.

A partition is a repository (`owner/repo`); releases are rows. Dagster advises at most 100,000 partitions an asset, and a
run takes a *range* of them, in the order in which they were added.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import dagster as dg

from kb_platform.sources.release import repository_name

REPOSITORIES = dg.DynamicPartitionsDefinition(name="repositories")

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
PARTITION_TAG = "dagster/partition"

# A repository that is up to date costs a run about 60 ms (20 in all stages together, the rest are Dagster's events), a
# run in a process of its own 3 s and more (two cores, 2026-11): as many are taken along before a second run pays.
MOST_TAKEN_ALONG = 50


def partition_key(name: str) -> str:
    """The partition of a repository. Raises BadRecord for a name that is none, or that Dagster would misread."""
    return repository_name(name)


def register(instance: dg.DagsterInstance, names: Iterable[str]) -> list[str]:
    """Make sure that these repositories are partitions; returns those that were added now."""
    wanted = [partition_key(name) for name in names]
    known = set(instance.get_dynamic_partitions(_name()))
    missing = [name for name in dict.fromkeys(wanted) if name not in known]
    if missing:
        instance.add_dynamic_partitions(_name(), missing)
    return missing


def follow(instance: dg.DagsterInstance, watched: Iterable[str], gone: Iterable[str]) -> None:
    """Add the partitions of what is watched, and remove those of names that no repository has any more."""
    register(instance, watched)
    for name in set(gone) & set(known_partitions(instance)):
        instance.delete_dynamic_partition(_name(), name)


def known_partitions(instance: dg.DagsterInstance) -> list[str]:
    """All partitions, in the order of ranges."""
    return list(instance.get_dynamic_partitions(_name()))


def ranges(
    order: Sequence[str], wanted: Collection[str], *, most_taken_along: int = MOST_TAKEN_ALONG
) -> list[dg.PartitionKeyRange]:
    """Few ranges that hold all `wanted` partitions, each from one wanted partition to another.

    `order`: all partitions, as Dagster orders them. A gap of up to `most_taken_along` others is bridged.

    >>> [(r.start, r.end) for r in ranges("abcdefgh", "bch", most_taken_along=3)]
    [('b', 'c'), ('h', 'h')]
    """
    found: list[tuple[int, int]] = []
    for place in (n for n, key in enumerate(order) if key in wanted):
        if found and place - found[-1][1] - 1 <= most_taken_along:
            found[-1] = (found[-1][0], place)
        else:
            found.append((place, place))
    return [dg.PartitionKeyRange(order[start], order[end]) for start, end in found]


def range_tags(keys: dg.PartitionKeyRange) -> dict[str, str]:
    """The run tags by which a run takes a range of partitions, or the one that it consists of."""
    if keys.start == keys.end:
        return {PARTITION_TAG: keys.start}
    return {RANGE_START_TAG: keys.start, RANGE_END_TAG: keys.end}


def partitions_of(order: Sequence[str], tags: dict[str, str]) -> list[str]:
    """The partitions that a run with these tags takes; all of them when the tags name none."""
    if PARTITION_TAG in tags:
        return [tags[PARTITION_TAG]]
    start, end = tags.get(RANGE_START_TAG), tags.get(RANGE_END_TAG)
    if start is None or end is None:
        return list(order)
    if start not in order or end not in order:
        return []
    return list(order[order.index(start) : order.index(end) + 1])


def _name() -> str:
    assert REPOSITORIES.name is not None  # noqa: S101 - it is given above
    return REPOSITORIES.name
