"""The gate before an index version is served, and the two ways over it: promotion and rollback.

The gate looks at the version itself: that it is complete, that its rows are those that the log and the chunks call for,
that its vectors are vectors, that the served path finds what an exact scan finds, and that it does not hold less than the
version it replaces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kb_platform.errors import IndexStateError
from kb_platform.store import index_refresh, index_versions, search
from kb_platform.store.database import Connection, Database

# On real notes HNSW at ef 40 reached 0.87 to 0.94 and at the ef used here more; below 0.9 something is broken.
LEAST_RECALL = 0.90
RECALL_SAMPLE = 40
RECALL_AT = 10


@dataclass(frozen=True)
class Finding:
    """One thing that the gate looked at."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Gate:
    """All that the gate looked at; it lets the version pass when every finding does."""

    version: int
    findings: tuple[Finding, ...]
    recall_at_10: float

    @property
    def passed(self) -> bool:
        """Whether the version may be served."""
        return all(finding.passed for finding in self.findings)

    @property
    def reasons(self) -> list[str]:
        """Why not."""
        return [f"{finding.name}: {finding.detail}" for finding in self.findings if not finding.passed]

    def as_json(self) -> dict[str, Any]:
        """For `kb.index_versions.gate`."""
        return {
            "passed": self.passed,
            "recall_at_10": round(self.recall_at_10, 4),
            "findings": [vars(finding) for finding in self.findings],
        }


def examine(database: Database, number: int) -> Gate:
    """Look at a version. Raises NotKnown."""
    with database.snapshot() as connection:
        version = index_versions.version(connection, number)
        if version.status in ("retired", "dropped"):
            raise IndexStateError(
                f"index version {number} is {version.status}", hint="build a new one: `kb index build`"
            )
        served = index_versions.active(connection)
        recall = recall_at_10(connection, version)
        findings = (
            _is_complete(connection, version),
            _rows_reconcile(connection, version),
            _has_rows(version),
            _vectors_have_length(connection, version),
            Finding(
                "recall",
                recall >= LEAST_RECALL,
                f"recall@10 of the served path against a scan is {recall:.3f}",
            ),
            _is_no_loss(version, served),
        )
    return Gate(number, findings, recall)


def promote(database: Database, number: int, *, force: bool = False) -> Gate:
    """Serve a version, if its gate lets it or `force` is given (which is recorded). Raises IndexStateError with why not."""
    gate = examine(database, number)
    with database.transaction() as connection:
        if not gate.passed and not force:
            index_versions.record_gate(connection, number, gate.as_json())
        else:
            index_versions.promote(connection, number, gate=gate.as_json(), forced=not gate.passed)
            return gate
    raise IndexStateError(
        f"index version {number} did not pass its gate: {'; '.join(gate.reasons)}",
        hint="`kb refresh` completes it; --force serves it all the same, and that is recorded",
    )


def rollback(database: Database) -> int:
    """Serve the version that was served before; returns its number. Raises IndexStateError when there is none."""
    with database.transaction() as connection:
        number = index_versions.previous(connection)
        if number is None:
            raise IndexStateError(
                "there is no version to roll back to", hint="`kb index list` shows what there is"
            )
        index_versions.promote(connection, number, gate={"rollback": True}, forced=False, action="rollback")
    return number


def recall_at_10(connection: Connection, version: index_versions.IndexVersion) -> float:
    """Share of the 10 exactly nearest rows that the served path finds, over sampled vectors; 1.0 without a graph.

    Each sample is moved a little, so that a row does not merely find itself.
    """
    if not index_versions.has_graph(connection, version.version):
        return 1.0
    sample = search.sample_vectors(connection, version, RECALL_SAMPLE)
    noise = np.random.default_rng(7).normal(0.0, 0.02, sample.shape).astype(np.float32)
    found = wanted = 0
    for vector in sample + noise:
        exact = set(search.nearest(connection, version, vector, RECALL_AT, exact=True))
        served = set(search.nearest(connection, version, vector, RECALL_AT, exact=False))
        found += len(exact & served)
        wanted += len(exact)
    return found / wanted if wanted else 1.0


def _is_complete(connection: Connection, version: index_versions.IndexVersion) -> Finding:
    complete, known = index_refresh.complete_repositories(connection, version.version)
    return Finding("complete", complete == known, f"{complete} of {known} repositories are up to date in it")


def _rows_reconcile(connection: Connection, version: index_versions.IndexVersion) -> Finding:
    rows = index_versions.count_rows(connection, version.version)
    return Finding(
        "rows", rows == version.chunks, f"{rows:,} rows where {version.chunks:,} chunks call for them"
    )


def _has_rows(version: index_versions.IndexVersion) -> Finding:
    return Finding("content", version.chunks > 0, f"{version.chunks:,} chunks")


def _vectors_have_length(connection: Connection, version: index_versions.IndexVersion) -> Finding:
    without = index_versions.count_without_length(connection, version.version)
    return Finding("vectors", without == 0, f"{without:,} vectors have no length")


def _is_no_loss(version: index_versions.IndexVersion, served: index_versions.IndexVersion | None) -> Finding:
    if served is None or served.version == version.version:
        return Finding("releases", True, f"{version.releases:,} releases")
    return Finding(
        "releases",
        version.releases >= served.releases,
        f"{version.releases:,} releases where the served version has {served.releases:,}",
    )
