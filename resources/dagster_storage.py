"""Where Dagster keeps its history: PostgreSQL, found through kb-platform's settings.

`dagster.yaml` names `KnowledgeBaseStorage` without any configuration, so one file serves every home folder and every
cluster, and no password stands in it. Does not belong here: what kb-platform itself stores (`kb_platform.store`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import dagster as dg
from dagster._config.config_schema import UserConfigSchema
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage, PostgresEventLogStorage
from dagster_postgres.utils import create_pg_engine
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from kb_platform.home import dagster_database_url, dagster_home, database_url
from kb_platform.settings import Settings, load_settings
from kb_platform.store.new_database import ensure_database

EVENTS_IN_BATCH = 200
# A ping for each query would double the statements of a run.
UNTRIED_S = 1.0


class KnowledgeBaseStorage(DagsterPostgresStorage):
    """Dagster's runs, events and schedules in the PostgreSQL that the settings name.

    Every process that makes a Dagster instance (webserver, daemon, code server, run) makes one of these; where no
    server is given it starts the embedded one, or joins it, and holds it until the process ends.
    """

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        self._event_log_storage = _EventLog(postgres_url)
        # By itself dagster-postgres makes a connection for each query: 260 in a run of four steps.
        engine = _pooled_engine(postgres_url)
        for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
            part._engine = engine  # pyright: ignore[reportPrivateUsage] - there is no other way
        # Dagster's own switch; it has no place in dagster.yaml.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(EVENTS_IN_BATCH))

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing: all of it is in the settings."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> KnowledgeBaseStorage:
        """Raises SettingsError, DatabaseUnavailable."""
        del config_value
        settings = load_settings()
        url = dagster_database_url(settings)
        if settings.database_url is not None or settings.dagster_database_url is not None:
            ensure_database(url, through=database_url(settings))
            return cls(_with_driver(url), inst_data)
        # On our own server history need not be on the disk before a step goes on: what the knowledge base knows is
        # committed apart from it, and what of it is lost in a power cut is half a second of log.
        return cls(f"{url}&options={quote('-c synchronous_commit=off', safe='')}", inst_data)

    @property
    def event_storage_data(self) -> ConfigurableClassData | None:
        """How another process makes the event log alone."""
        return self._part("LegacyEventLogStorage")

    @property
    def run_storage_data(self) -> ConfigurableClassData | None:
        """How another process makes the run storage alone."""
        return self._part("LegacyRunStorage")

    @property
    def schedule_storage_data(self) -> ConfigurableClassData | None:
        """How another process makes the schedule storage alone."""
        return self._part("LegacyScheduleStorage")

    def _part(self, name: str) -> ConfigurableClassData | None:
        """dagster-postgres would hand on a configuration without a URL; these wrappers make the whole storage anew."""
        whole = self.inst_data
        if whole is None:
            return None
        described = {
            "module_name": whole.module_name,
            "class_name": whole.class_name,
            "config_yaml": whole.config_yaml,
        }
        # JSON is YAML.
        return ConfigurableClassData("dagster._core.storage.legacy_storage", name, json.dumps(described))


def _pooled_engine(url: str) -> Engine:
    """Keeps a few connections, and tries one that was idle before it is used: the server may have been started anew."""
    engine = create_pg_engine(url, isolation_level="AUTOCOMMIT", pool_size=3, max_overflow=20)

    def checkin(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def checkout(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        idle_since = record.info.get("idle_since")
        if idle_since is None or time.monotonic() - idle_since < UNTRIED_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # SQLAlchemy's word for: make another one, and try again.
            raise DisconnectionError from error

    event.listen(engine, "checkin", checkin)
    event.listen(engine, "checkout", checkout)
    return engine


class _EventLog(PostgresEventLogStorage):
    """Dagster looks up its tables in the catalogue twice for every event that it stores."""

    def __init__(self, postgres_url: str) -> None:
        self._there: set[str] = set()
        super().__init__(postgres_url)

    def has_table(self, table_name: str) -> bool:
        """Whether the database has a table. One that is there stays there."""
        if table_name not in self._there and super().has_table(table_name):
            self._there.add(table_name)
        return table_name in self._there


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The Dagster instance of a home folder, for a command that runs jobs itself; use it as a context manager.

    It keeps no copy of what steps write to standard output: for that Dagster would put files in the place of this
    process's own output, and the progress bar with it.
    """
    silent = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    folder = str(dagster_home(settings))
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(folder, overrides={"compute_logs": silent}))


def _with_driver(url: str) -> str:
    # SQLAlchemy knows no postgres://, which libpq and many hosting companies write.
    return url.replace("postgres://", "postgresql://", 1)
