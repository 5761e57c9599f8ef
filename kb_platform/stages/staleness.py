"""What is left to do: repositories whose news the index does not have, and versions that only wait to be completed.

Read from the log and the index themselves, so that whoever asks, and however often, the answer is right. Who does the
work is said elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass

from kb_platform.stages.indexing import is_unfinished
from kb_platform.store import index_refresh, index_versions
from kb_platform.store.chunks import CUT
from kb_platform.store.database import Database
from kb_platform.store.log_summary import summaries
from kb_platform.store.repositories import repository_names


@dataclass(frozen=True)
class Work:
    """`repositories` (in alphabetical order) → their last observation; `versions`: those that are kept up to date."""

    repositories: dict[str, int]
    versions: tuple[int, ...]

    def fingerprint(self, names: Collection[str]) -> str:
        """Of the part of this work that concerns these repositories: the same until there is news, or it is done."""
        part = [[name, last] for name, last in self.repositories.items() if name in names]
        content = json.dumps([CUT, list(self.versions), sorted(part)])
        return hashlib.sha256(content.encode()).hexdigest()[:20]


def work_left(database: Database) -> Work:
    """What a refresh would do now; no repositories when there is nothing to do.

    A version that holds everything, but whose maker died before it could be examined and promoted, is completed by a
    refresh of any repository: the first one stands for it.
    """
    with database.snapshot() as connection:
        names = index_refresh.stale_repositories(connection)
        versions = tuple(sorted(version.version for version in index_versions.maintained(connection)))
        if not names and is_unfinished(connection):
            names = repository_names(connection)[:1]
        last = {name: summary.last_sequence for name, summary in summaries(connection, names).items()}
    return Work({name: last.get(name, 0) for name in names}, versions)
