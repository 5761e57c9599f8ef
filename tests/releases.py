"""Releases for tests: made in a line, put into the log in another."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from kb_platform.sources.release import Observed, Release
from kb_platform.stages.importing import Imported, import_observed
from kb_platform.store.database import Database

FIRST_DAY = datetime(2025, 1, 1, tzinfo=UTC)


def release(number: int, body: str, *, tag: str | None = None, draft: bool = False) -> Release:
    """The release number `number` (its id, and its day since 1 January 2025)."""
    published = FIRST_DAY + timedelta(days=number)
    return Release(
        release_id=number,
        tag=tag or f"v1.{number}.0",
        name="",
        body=body,
        created_at=published,
        published_at=published,
        prerelease=False,
        draft=draft,
        url=f"https://github.com/tests/repository/releases/{number}",
        author=None,
    )


def notes(*items: str, heading: str = "Bug fixes") -> str:
    """Release notes in Markdown with one list."""
    return f"## {heading}\n\n" + "\n".join(f"- {item}" for item in items) + "\n"


def observe(database: Database, repository: str, *releases: Release, deleted: bool = False) -> Imported:
    """Put observations of these releases into the log."""
    return import_observed(
        database,
        [
            Observed(repository, item, json.dumps({"id": item.release_id}).encode(), "test", deleted=deleted)
            for item in releases
        ],
    )
