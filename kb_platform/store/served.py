"""Releases and typed changes as the served index version holds them, for answers that are computed, not searched.

Reads through the served version, so that a computed answer and a searched one speak of the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from kb_platform.store.database import Connection
from kb_platform.store.index_versions import IndexVersion


class ServedRelease(NamedTuple):
    """A release of the served version, without its body."""

    repository: str
    sequence: int
    release_id: int
    tag: str
    name: str
    published_at: datetime | None
    prerelease: bool
    url: str
    version_key: str | None


class ServedChange(NamedTuple):
    """One searchable chunk of a served release."""

    repository: str
    sequence: int
    ordinal: int
    tag: str
    kind: str
    role: str
    text: str
    headings: list[str]
    span_start: int
    span_end: int
    url: str
    published_at: datetime | None
    reference: dict[str, list[str]]


def releases(
    connection: Connection, version: IndexVersion, repositories: Sequence[str] = ()
) -> list[ServedRelease]:
    """The releases of the named repositories (none: of all), in version order within each."""
    rows = connection.execute(
        """
        SELECT r.name, o.sequence, o.release_id, o.tag, o.name, o.published_at, o.prerelease, o.url, o.version_key
        FROM kb.indexed_observation i JOIN kb.observation o USING (sequence)
        JOIN kb.repository r ON r.repository_id = o.repository_id
        WHERE i.version = %s AND (%s OR lower(r.name) = ANY(%s))
        ORDER BY lower(r.name), o.version_key NULLS FIRST, o.published_at NULLS FIRST, o.sequence
        """,
        (version.version, not repositories, [name.lower() for name in repositories]),
    ).fetchall()
    return [ServedRelease(*row) for row in rows]


def changes(
    connection: Connection, version: IndexVersion, sequences: Sequence[int], kinds: Sequence[str] = ()
) -> list[ServedChange]:
    """The searchable chunks of some observations, of the named kinds (none: of all), in the order given and written."""
    rows = connection.execute(
        """
        SELECT r.name, o.sequence, c.ordinal, o.tag, c.kind, c.role, c.text, c.headings, c.span_start, c.span_end,
               o.url, o.published_at, c.reference
        FROM unnest(%s::bigint[]) WITH ORDINALITY AS wanted (sequence, place)
        JOIN kb.observation o USING (sequence) JOIN kb.repository r USING (repository_id)
        JOIN kb.chunk c ON c.sequence = o.sequence AND c.chunker = %s
        WHERE c.passage_hash IS NOT NULL AND (%s OR c.kind = ANY(%s))
        ORDER BY wanted.place, c.ordinal
        """,
        (list(sequences), version.chunker, not kinds, list(kinds)),
    ).fetchall()
    return [ServedChange(*row) for row in rows]
