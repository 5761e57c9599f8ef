"""What must hold between the tables, whatever was killed, repeated or refreshed; and where it does not.

Reads everything: for `kb doctor`, tests and benchmarks, not for every request. Repairs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from kb_platform.store import index_versions
from kb_platform.store.database import Connection, scalar
from kb_platform.store.index_versions import IndexVersion

# Each query counts what breaks its rule. An event that came late stands in the history before what was appended earlier.
_RULES: dict[str, LiteralString] = {
    "observations that repeat the one before": """
        SELECT count(*) FROM (
            SELECT content_hash, deleted, lag(content_hash) OVER steps AS before, lag(deleted) OVER steps AS was_deleted,
                   sequence, lag(sequence) OVER steps AS number
            FROM kb.observation
            WINDOW steps AS (PARTITION BY repository_id, release_id ORDER BY observed_at, sequence)) o
        WHERE content_hash = before AND deleted = was_deleted AND sequence > number
    """,
    "observations before the one that they follow": """
        SELECT count(*) FROM (
            SELECT observed_at, origin,
                   lag(observed_at) OVER (PARTITION BY repository_id, release_id ORDER BY sequence) AS before
            FROM kb.observation) o
        WHERE observed_at < before AND NOT starts_with(origin, 'kafka:')
    """,
    "chunks of observations not known as chunked": """
        SELECT count(*) FROM kb.chunk c
        WHERE NOT EXISTS (SELECT 1 FROM kb.chunked_observation k
                          WHERE k.sequence = c.sequence AND k.chunker = c.chunker)
    """,
    "observations whose chunks are not all there": """
        SELECT count(*) FROM kb.chunked_observation k
        LEFT JOIN (SELECT sequence, chunker, count(*) AS chunks, count(passage_hash) AS searchable, max(ordinal) AS last
                   FROM kb.chunk GROUP BY sequence, chunker) c USING (sequence, chunker)
        WHERE k.chunks <> coalesce(c.chunks, 0) OR k.searchable <> coalesce(c.searchable, 0)
           OR k.chunks <> coalesce(c.last, -1) + 1
    """,
    "chunks that are not their span of the body": """
        SELECT count(*) FROM kb.chunk c JOIN kb.observation o USING (sequence)
        WHERE c.text <> substring(o.body FROM c.span_start + 1 FOR c.span_end - c.span_start)
    """,
    "vectors of another dimension than their model's, or of no length": """
        SELECT count(*) FROM kb.embedding e JOIN kb.model m USING (model_id)
        WHERE vector_dims(e.vector) <> m.dimension OR l2_norm(e.vector) < 1e-6
    """,
    "served versions that are not ready": """
        SELECT count(*) FROM kb.serving s JOIN kb.index_version v USING (version) WHERE v.status <> 'ready'
    """,
}

_RULES_OF_A_VERSION: dict[str, LiteralString] = {
    "rows without their chunk or vector, or unlike them": """
        SELECT count(*) FROM {table} i
        LEFT JOIN kb.indexed_observation x
            ON x.version = %(version)s AND x.repository_id = i.repository_id AND x.sequence = i.sequence
        LEFT JOIN kb.observation o ON o.sequence = i.sequence
        LEFT JOIN kb.chunk c ON c.sequence = i.sequence AND c.ordinal = i.ordinal AND c.chunker = %(chunker)s
        LEFT JOIN kb.embedding e ON e.model_id = %(model)s AND e.passage_hash = c.passage_hash
        WHERE (x.release_id = i.release_id AND o.repository_id = i.repository_id AND o.tag = i.tag
               AND o.prerelease = i.prerelease AND o.published_at IS NOT DISTINCT FROM i.published_at
               AND c.kind = i.kind AND c.words = i.words AND e.vector = i.vector) IS NOT TRUE
    """,
    "chunks without a row": """
        SELECT count(*) FROM kb.indexed_observation x
        JOIN kb.chunk c ON c.sequence = x.sequence AND c.chunker = %(chunker)s
        LEFT JOIN {table} i ON i.sequence = c.sequence AND i.ordinal = c.ordinal
        WHERE x.version = %(version)s AND c.passage_hash IS NOT NULL AND i.sequence IS NULL
    """,
    "observations counted wrongly": """
        SELECT count(*) FROM kb.indexed_observation x
        LEFT JOIN (SELECT sequence, count(*) AS rows FROM {table} GROUP BY sequence) i USING (sequence)
        WHERE x.version = %(version)s AND x.chunks <> coalesce(i.rows, 0)
    """,
    "releases held twice": """
        SELECT count(*) FROM (SELECT FROM kb.indexed_observation WHERE version = %(version)s
                              GROUP BY repository_id, release_id HAVING count(*) > 1) twice
    """,
    "repositories counted wrongly": """
        SELECT count(*) FROM kb.index_repository r
        FULL JOIN (SELECT repository_id, count(*) AS releases, sum(chunks) AS chunks FROM kb.indexed_observation
                   WHERE version = %(version)s GROUP BY repository_id) x USING (repository_id)
        WHERE (r.version = %(version)s OR r.version IS NULL)
          AND (coalesce(r.releases, 0), coalesce(r.chunks, 0)) <> (coalesce(x.releases, 0), coalesce(x.chunks, 0))
    """,
    "releases missing or outdated in repositories that are up to date": """
        SELECT count(*) FROM (
            SELECT DISTINCT ON (repository_id, release_id) repository_id, release_id, sequence, deleted, draft
            FROM kb.observation ORDER BY repository_id, release_id, observed_at DESC, sequence DESC) o
        JOIN kb.index_repository r ON r.version = %(version)s AND r.repository_id = o.repository_id
        LEFT JOIN kb.indexed_observation x
            ON x.version = %(version)s AND x.repository_id = o.repository_id AND x.release_id = o.release_id
        WHERE r.log_sequence >= (SELECT max(sequence) FROM kb.observation n WHERE n.repository_id = o.repository_id)
          AND x.sequence IS DISTINCT FROM CASE WHEN NOT o.deleted AND NOT o.draft THEN o.sequence END
    """,
    "document frequencies unlike a recount": """
        SELECT count(*) FROM (SELECT repository_id, term, documents FROM kb.index_term WHERE version = %(version)s) t
        FULL JOIN (SELECT i.repository_id, term, count(*) AS documents FROM {table} i
                   JOIN kb.chunk c ON c.sequence = i.sequence AND c.ordinal = i.ordinal AND c.chunker = %(chunker)s
                   CROSS JOIN unnest(c.terms) AS term GROUP BY i.repository_id, term) recount
            USING (repository_id, term)
        WHERE t.documents IS DISTINCT FROM recount.documents
    """,
}


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold, and how often. `version`: the index version that it is about."""

    rule: str
    count: int
    version: int | None = None

    def __str__(self) -> str:
        """For people."""
        where = "" if self.version is None else f" in index version {self.version}"
        return f"{self.count:,} {self.rule}{where}"


def audit(connection: Connection) -> list[Violation]:
    """All violations, over the whole log and every version that can be served. Call inside a snapshot."""
    found = [Violation(rule, int(scalar(connection, query))) for rule, query in _RULES.items()]
    for version in index_versions.versions(connection):
        if version.status in ("building", "ready", "active"):
            found += _of_version(connection, version)
    return [violation for violation in found if violation.count]


def _of_version(connection: Connection, version: IndexVersion) -> list[Violation]:
    parameters = {"version": version.version, "chunker": version.chunker, "model": version.model_id}
    return [
        Violation(
            rule,
            int(scalar(connection, sql.SQL(query).format(table=version.table), parameters)),
            version.version,
        )
        for rule, query in _RULES_OF_A_VERSION.items()
    ]
