"""The fourth stage: chunks and vectors → the index versions, and the life of a version.

Which version is built: the first one, of the configured model; one for each change of the cut (a new chunker in the code),
of the model that is served; and those that a person asks for (`kb index build`), which wait for that person's promotion.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version

from kb_platform.embedding.model import EmbeddingModel
from kb_platform.progress import Progress, Silence
from kb_platform.stages.promotion import Gate, examine
from kb_platform.store import embeddings, index_refresh, index_versions
from kb_platform.store.database import Connection, Database
from kb_platform.store.index_refresh import Refreshed
from kb_platform.store.repositories import find_repository


@dataclass(frozen=True)
class IndexReport:
    """What refreshing one repository did, in every maintained version."""

    repository: str
    versions: list[Refreshed]
    seconds: float


@dataclass
class Completed:
    """Versions that became ready, what their gates found, and which one is served since."""

    ready: list[int] = field(default_factory=list[int])
    gates: dict[int, Gate] = field(default_factory=dict[int, Gate])
    promoted: int | None = None
    dropped: list[int] = field(default_factory=list[int])


def ensure_version(database: Database, configured: Callable[[], EmbeddingModel]) -> int | None:
    """Make sure that some version of the present cut is maintained; returns the one made now, if any.

    `configured` describes the configured model; it is called only when the first version is made.
    """
    with database.transaction() as connection:
        # Two runs that start at once make one version between them.
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('kb.index_version', 0))")
        if index_versions.maintained(connection):
            return None
        served = index_versions.active(connection)
        model = embeddings.model(connection, served.model_id) if served else configured()
        return index_versions.create(connection, model, provenance(automatic=True))


def build_version(database: Database, model: EmbeddingModel) -> int:
    """A new version beside the served one, to be filled by the next refresh and promoted by a person."""
    with database.transaction() as connection:
        return index_versions.create(connection, model, provenance(automatic=False))


def provenance(*, automatic: bool) -> dict[str, object]:
    """What made a version: the code and the libraries whose change could change its rows."""
    return {
        "automatic": automatic,
        "kb_platform": installed_version("kb-platform"),
        "python": platform.python_version(),
        "tokenizers": installed_version("tokenizers"),
        "torch": installed_version("torch"),
    }


def index_repository(database: Database, name: str) -> IndexReport:
    """Refresh one repository in all maintained versions, in one transaction."""
    started = time.monotonic()
    with database.transaction() as connection:
        repository_id, name = find_repository(connection, name)
        refreshed = index_refresh.refresh_repository(connection, repository_id)
    return IndexReport(name, refreshed, time.monotonic() - started)


def index_repositories(
    database: Database, names: Sequence[str], *, progress: Progress | None = None
) -> list[IndexReport]:
    """Refresh repositories one after the other."""
    reports: list[IndexReport] = []
    with (progress or Silence()).task("index", len(names), "repositories") as task:
        for name in names:
            reports.append(index_repository(database, name))
            task.advance()
    return reports


def complete_versions(database: Database) -> Completed:
    """Versions being built that hold everything become ready; automatic ones are promoted if their gate lets them.

    Also gives versions the graph that they lack (they grew, or its build died), and drops the tables of versions retired
    for a while.
    """
    done = Completed()
    with database.snapshot() as connection:
        complete, without_graph = _complete(connection), _without_graph(connection)
    for version in without_graph:
        index_versions.build_graph(database, version)
    for version in complete:
        index_versions.mark_ready(database, version)
        done.ready.append(version)
    with database.snapshot() as connection:
        waiting = [v for v in index_versions.versions(connection) if _awaits_promotion(v)]
    for version in sorted(waiting, key=lambda v: v.version):
        gate = examine(database, version.version)
        done.gates[version.version] = gate
        with database.transaction() as connection:
            if gate.passed:
                index_versions.promote(connection, version.version, gate=gate.as_json(), forced=False)
                done.promoted = version.version
            else:
                index_versions.record_gate(connection, version.version, gate.as_json())
    done.dropped = index_versions.drop_retired(database)
    return done


def is_unfinished(connection: Connection) -> bool:
    """Whether `complete_versions` has something to do that nobody has looked at yet."""
    if _complete(connection) or _without_graph(connection):
        return True
    return any(_awaits_promotion(v) and v.gate is None for v in index_versions.versions(connection))


def _complete(connection: Connection) -> list[int]:
    found: list[int] = []
    for version in index_versions.maintained(connection):
        complete, known = index_refresh.complete_repositories(connection, version.version)
        if version.status == "building" and known and complete == known:
            found.append(version.version)
    return found


def _without_graph(connection: Connection) -> list[int]:
    return [
        version.version
        for version in index_versions.maintained(connection)
        if version.status != "building"
        and version.chunks >= index_versions.LEAST_ROWS_FOR_GRAPH
        and not index_versions.has_graph(connection, version.version)
    ]


def _awaits_promotion(version: index_versions.IndexVersion) -> bool:
    return (
        version.status == "ready"
        and version.promoted_at is None
        and bool(version.provenance.get("automatic"))
    )
