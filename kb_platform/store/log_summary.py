"""What the log says of repositories in a few numbers, without reading a release's body."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from kb_platform.store.database import Connection


class LogSummary(NamedTuple):
    """One repository. `newest_*`: the current, published release with the latest date; `quarantined`: open records."""

    repository: str
    releases: int
    observations: int
    last_sequence: int
    last_observed_at: datetime | None
    newest_tag: str | None
    newest_published_at: datetime | None
    verified_at: datetime | None
    quarantined: int


def summaries(connection: Connection, names: Sequence[str]) -> dict[str, LogSummary]:
    """The summary of each of these repositories that is known, under the name it was asked by."""
    rows = connection.execute(
        """
        WITH asked AS (
            SELECT n.name AS asked, r.* FROM unnest(%(names)s::text[]) AS n (name)
            JOIN kb.repository r ON lower(r.name) = lower(n.name)),
        log AS (
            SELECT repository_id, count(*) AS observations, max(sequence) AS last_sequence,
                   max(observed_at) AS last_observed_at
            FROM kb.observation WHERE repository_id IN (SELECT repository_id FROM asked) GROUP BY repository_id),
        current AS (
            SELECT DISTINCT ON (repository_id, release_id) repository_id, tag, published_at, deleted, draft
            FROM kb.observation WHERE repository_id IN (SELECT repository_id FROM asked)
            ORDER BY repository_id, release_id, observed_at DESC, sequence DESC),
        newest AS (
            SELECT DISTINCT ON (repository_id) repository_id, tag, published_at FROM current
            WHERE NOT deleted AND NOT draft ORDER BY repository_id, published_at DESC NULLS LAST, tag DESC),
        counted AS (
            SELECT repository_id, count(*) AS releases FROM current WHERE NOT deleted GROUP BY repository_id),
        quarantined AS (
            SELECT lower(repository) AS name, count(*) AS records FROM kb.quarantined_record
            WHERE resolved_at IS NULL AND repository IS NOT NULL GROUP BY lower(repository))
        SELECT a.asked, a.name, coalesce(c.releases, 0), coalesce(l.observations, 0), coalesce(l.last_sequence, 0),
               l.last_observed_at, n.tag, n.published_at, a.verified_at, coalesce(q.records, 0)
        FROM asked a LEFT JOIN log l USING (repository_id) LEFT JOIN counted c USING (repository_id)
        LEFT JOIN newest n USING (repository_id) LEFT JOIN quarantined q ON q.name = lower(a.name)
        """,
        {"names": list(names)},
    ).fetchall()
    return {row[0]: LogSummary(*row[1:]) for row in rows}
