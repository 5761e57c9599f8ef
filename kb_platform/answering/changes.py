"""Everything between two versions: computed from typed changes and version arithmetic, not from similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kb_platform.answering.citation import Citation
from kb_platform.errors import NotKnown
from kb_platform.retrieval.filters import Filters
from kb_platform.store import served
from kb_platform.store.database import Connection, Database
from kb_platform.store.index_versions import IndexVersion, active
from kb_platform.store.repositories import find_repository
from kb_platform.store.served import ServedRelease
from kb_platform.text.kinds import Kind
from kb_platform.text.versions import parse_range

KINDS_IN_ORDER = tuple(str(kind) for kind in Kind)


@dataclass(frozen=True)
class Changes:
    """The changes of a repository after one version, up to and including another, in version order."""

    repository: str
    lower: str | None
    upper: str | None
    releases: tuple[str, ...]
    changes: tuple[Citation, ...]
    index_version: int

    def by_kind(self) -> dict[str, list[Citation]]:
        """The same by kind, the gravest first, each in version order."""
        grouped = {
            kind: [change for change in self.changes if change.kind == kind] for kind in KINDS_IN_ORDER
        }
        return {kind: found for kind, found in grouped.items() if found}

    def as_json(self) -> dict[str, Any]:
        """The document of `kb changes --json`."""
        return {
            "repository": self.repository,
            "from": self.lower,
            "to": self.upper,
            "releases": list(self.releases),
            "changes": [
                {"kind": c.kind, "tag": c.tag, "text": c.text, "span": list(c.span), "url": c.url}
                for c in self.changes
            ],
            "index_version": self.index_version,
        }


def changes_between(
    database: Database,
    repository: str,
    versions: str,
    *,
    kinds: Sequence[str] = (),
    prereleases: bool = True,
) -> Changes:
    """What `A..B` brings: A excluded, B included. Raises NotKnown for the repository, VersionError for the range.

    `kinds`: of these kinds only. `prereleases`: whether pre-releases on the way are read too.
    """
    with database.snapshot() as connection:
        _, name = find_repository(connection, repository)
        version = served_version(connection)
        releases = served.releases(connection, version, [name])
        wanted = parse_range(versions, [release.tag for release in releases])
        inside = [r for r in releases if wanted.contains(r.tag) and (prereleases or not r.prerelease)]
        found = served.changes(connection, version, [release.sequence for release in inside], list(kinds))
    return Changes(
        repository=name,
        lower=wanted.after,
        upper=wanted.upto,
        releases=tuple(dict.fromkeys(release.tag for release in inside)),
        changes=tuple(Citation.of_change(change) for change in found),
        index_version=version.version,
    )


def releases_within(connection: Connection, version: IndexVersion, filters: Filters) -> list[ServedRelease]:
    """The served releases that filters admit, by repository and version order."""
    return [
        release
        for release in served.releases(connection, version, filters.repositories)
        if filters.admits(
            # `served.releases` has matched names without regard to case already.
            repository=_as_asked(release.repository, filters.repositories),
            tag=release.tag,
            published_at=release.published_at,
            prerelease=release.prerelease,
        )
    ]


def served_version(connection: Connection) -> IndexVersion:
    """The served index version. Raises NotKnown while there is none."""
    version = active(connection)
    if version is None:
        raise NotKnown("nothing is indexed yet", hint="`kb import PATH` imports and indexes releases")
    return version


def _as_asked(name: str, asked: Sequence[str]) -> str:
    return next((other for other in asked if other.lower() == name.lower()), name)
