"""What `kb doctor` looks at: each finding says whether it is well, and what to do when it is not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kb_platform.errors import KbError
from kb_platform.home import Forges, configured_model, dagster_home, database_url, embedder, open_database
from kb_platform.settings import Settings
from kb_platform.store import alerts, index_refresh, index_versions, quarantine, streams, watch_list
from kb_platform.store.chunks import CUT
from kb_platform.store.credentials import budgets
from kb_platform.store.database import Database, server_version, without_password
from kb_platform.store.repositories import repositories
from kb_platform.streams.broker import Brokers

LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None


def diagnose(settings: Settings) -> list[Finding]:
    """Look at everything; a part that cannot be looked at is a finding, never an exception."""
    findings = [
        _python(),
        _attempt("disk", lambda: _disk(settings)),
        _attempt("brokers", lambda: _brokers(settings)),
    ]
    try:
        database = open_database(settings)
    except KbError as error:
        return [*findings, Finding("database", False, str(error), error.hint)]
    looks: dict[str, Callable[[], Finding]] = {
        "database": lambda: _database(settings, database),
        "dagster": lambda: _dagster(settings),
        "model": lambda: _model(settings),
        "repositories": lambda: _repositories(database),
        "watch list": lambda: _watched(settings, database),
        "credentials": lambda: _credentials(settings, database),
        "index": lambda: _index(database),
        "index tables": lambda: _index_tables(database),
        "graph": lambda: _graphs(database),
        "streams": lambda: _streams(database),
        "quarantine": lambda: _quarantine(database),
        "alerts": lambda: _alerts(database),
    }
    return findings + [_attempt(name, look) for name, look in looks.items()]


def _attempt(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except KbError as error:
        return Finding(name, False, str(error), error.hint)
    except OSError as error:
        return Finding(name, False, str(error), "check the path and its permissions")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "Python 3.11, 3.12 or 3.13 is needed")


def _disk(settings: Settings) -> Finding:
    folder = settings.home_folder
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    return Finding(
        "disk",
        free >= LEAST_FREE_BYTES,
        f"{free >> 30} GiB free at {folder}",
        "free some space, or move KB_HOME",
    )


def _database(settings: Settings, database: Database) -> Finding:
    with database.snapshot() as connection:
        server = server_version(connection)
    where = "embedded" if settings.database_url is None else without_password(database_url(settings))
    detail = f"PostgreSQL {server.name}, pgvector {server.pgvector}, {where}"
    return Finding("database", server.number >= 160_000, detail, "use PostgreSQL 16 or later")


def _dagster(settings: Settings) -> Finding:
    return Finding("dagster", True, f"DAGSTER_HOME={dagster_home(settings)}")


def _brokers(settings: Settings) -> Finding:
    if settings.kafka_bootstrap_servers is None:
        return Finding("brokers", True, "Kafka is off")
    cluster = Brokers(settings).require()
    return Finding("brokers", True, f"{cluster.brokers} brokers of cluster {cluster.cluster_id}")


def _streams(database: Database) -> Finding:
    with database.snapshot() as connection:
        states = streams.states(connection)
    stuck = [f"{state.topic}: {state.trouble_detail}" for state in states if state.trouble]
    shown = [f"{state.topic} lag {state.lag:,}" for state in states]
    return Finding(
        "streams",
        not stuck,
        "; ".join(stuck or shown) or "none",
        "`kb kafka reset` says where reading goes on",
    )


def _model(settings: Settings) -> Finding:
    model = configured_model(settings)
    loaded = embedder(settings, model)
    vector = loaded.embed_query("does this model answer?")
    loaded.close()
    return Finding(
        "model",
        vector.shape[-1] == model.dimension,
        f"{model.key}, {model.dimension} dimensions, {loaded.engine}",
    )


def _repositories(database: Database) -> Finding:
    found = repositories(database)
    return Finding("repositories", bool(found), f"{len(found)} known, {sum(r.releases for r in found):,} releases",
                   "import some: `kb demo`, or `kb import PATH`")  # fmt: skip


def _watched(settings: Settings, database: Database) -> Finding:
    with database.snapshot() as connection:
        watches = watch_list.watched(connection)
    now = datetime.now(UTC)
    failing = [watch.name for watch in watches if watch.failures]
    longest = timedelta(hours=settings.stale_after_hours)
    stale = [
        watch.name
        for watch in watches
        if now - (watch.verified_at or watch.added_at)
        > (timedelta(seconds=watch.stale_after_s) if watch.stale_after_s else longest)
    ]
    detail = f"{len(watches):,} watched, {len(failing):,} cannot be polled, {len(stale):,} stale"
    if failing or stale:
        detail += f": {', '.join(dict.fromkeys(failing + stale))[:200]}"
    return Finding("watch list", not failing and not stale, detail,
                   "`kb watch list` has the reasons; `kb up` keeps polling, `kb sync` polls now")  # fmt: skip


def _credentials(settings: Settings, database: Database) -> Finding:
    """Those that are configured; only what the last answers said of them: nothing is asked here."""
    forges = Forges(settings)
    try:
        names = forges("github", None).credentials() if settings.github_app_id is None else ()
    finally:
        forges.close()
    with database.snapshot() as connection:
        known = budgets(connection)
    now = datetime.now(UTC)
    waiting = [
        f"{name} may not ask before {budget.blocked_until:%H:%M} UTC ({budget.blocked_reason})"
        for name, budget in known.items()
        if budget.blocked_until is not None and budget.blocked_until > now
    ]
    refused = any((budget.blocked_reason or "").startswith("unauthorized") for name, budget in known.items()
                  if name in names and budget.blocked_until is not None and budget.blocked_until > now)  # fmt: skip
    shown = ", ".join(names) or f"the App {settings.github_app_id}"
    return Finding("credentials", not refused, "; ".join([shown, *waiting]),
                   "a token was refused: make a new one and set KB_GITHUB_TOKEN")  # fmt: skip


def _alerts(database: Database) -> Finding:
    with database.snapshot() as connection:
        wrong = alerts.count_open(connection)
    return Finding("alerts", not wrong, f"{wrong:,} open" if wrong else "none", "`kb alerts`")


def _index(database: Database) -> Finding:
    with database.snapshot() as connection:
        served = index_versions.active(connection)
        stale = index_refresh.stale_repositories(connection)
    if served is None:
        return Finding(
            "index",
            False,
            "no version is served",
            "`kb refresh`; `kb index list` shows why a gate did not pass",
        )
    if served.chunker != CUT:
        return Finding("index", False, f"version {served.version} was cut by {served.chunker}, the code has {CUT}",
                       "`kb refresh` builds a new version; the old one is served until it is ready")  # fmt: skip
    if stale:
        return Finding(
            "index", False, f"{len(stale)} repositories are behind: {', '.join(stale[:5])}", "`kb refresh`"
        )
    return Finding("index", True, f"version {served.version} of {served.model}, up to date")


def _index_tables(database: Database) -> Finding:
    with database.snapshot() as connection:
        wrong = [
            f"version {version.version} has {rows:,} rows and should have {version.chunks:,}"
            for version in index_versions.versions(connection)
            if version.status in ("ready", "active")
            and (rows := index_versions.count_rows(connection, version.version)) != version.chunks
        ]
    return Finding("index tables", not wrong, "; ".join(wrong) or "rows and chunks agree",
                   "`kb index build --promote` builds a sound version")  # fmt: skip


def _graphs(database: Database) -> Finding:
    with database.snapshot() as connection:
        broken = index_versions.invalid_indexes(connection)
    return Finding("graph", not broken, f"invalid: {', '.join(broken)}" if broken else "no invalid index",
                   "an index build died: `kb refresh` builds it anew")  # fmt: skip


def _quarantine(database: Database) -> Finding:
    with database.snapshot() as connection:
        waiting = quarantine.open_by_reason(connection)
    detail = ", ".join(f"{count} {reason}" for reason, count in waiting.items())
    return Finding(
        "quarantine",
        not waiting,
        detail or "empty",
        "`kb quarantine list`, mend the cause, `kb quarantine replay`",
    )
