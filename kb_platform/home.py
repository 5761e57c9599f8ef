"""The home folder and what a process finds there: the database, the embedder, Dagster's instance.

Turns settings into objects. Knows which PostgreSQL is meant and starts the embedded one; what is in it is `store`'s.
"""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.parse import urlsplit

from kb_platform.clock import Clock, SystemClock
from kb_platform.embedding.embedder import Embedder, load_embedder
from kb_platform.embedding.model import EmbeddingModel, model_from_id
from kb_platform.errors import SettingsError
from kb_platform.settings import Settings
from kb_platform.sources.forge import Forge
from kb_platform.sources.gitea import Gitea
from kb_platform.sources.github import GitHub, github_from_settings
from kb_platform.store import embedded
from kb_platform.store.database import Database, database_name, with_database
from kb_platform.store.schema import migrate

DAGSTER_YAML = """\
# Dagster's instance, written by kb-platform when it is missing; yours to edit.
#
# History lies in PostgreSQL: the embedded server of the home folder (KB_HOME; started when needed), or
# KB_DAGSTER_DATABASE_URL / KB_DATABASE_URL where they are set. Logs and files of runs lie beside this file.
storage:
  custom:
    module: resources.dagster_storage
    class: KnowledgeBaseStorage
    config: {}

concurrency:
  runs:
    # Two places for what embeds: each is a process that may do so on all cores, and a laptop has two. One for the run that
    # polls, and one for each topic that is landed: those mostly wait.
    max_concurrent_runs: 5
    tag_concurrency_limits:
      # However many are asked for, they leave the other places free.
      - key: kb/refresh
        limit: 2
      - key: kb/landing
        value: {applyLimitPerUniqueValue: true}
        limit: 1
run_queue:
  # By default a run waits up to 5 s for its start.
  dequeue_interval_seconds: 1
  # Starting a run takes seconds, and another must not wait for it.
  dequeue_use_threads: true
  dequeue_num_workers: 2
  # A code server that is just starting again is no reason to fail a run; by default it is.
  max_user_code_failure_retries: 5
  user_code_failure_retry_delay: 5
sensors:
  # One slow sensor holds up no other.
  use_threads: true
  num_workers: 4
run_monitoring:
  enabled: true
  poll_interval_seconds: 30
  # A GPU node takes minutes to come up; the default of 180 s fails the run before.
  start_timeout_seconds: 1200
  max_runtime_seconds: 86400
  free_slots_after_run_end_seconds: 60
run_retries:
  enabled: true
  max_retries: 2
  # Only for run processes that died: the assets have their own retries, with the right delays.
  retry_on_asset_or_op_failure: false
retention:
  schedule:
    purge_after_days: 30
  sensor:
    purge_after_days:
      skipped: 2
      failure: 30
      success: 7
  auto_materialize:
    purge_after_days:
      skipped: 2
      failure: 30
      success: 7
# No questions about newsletters.
nux:
  enabled: false
telemetry:
  enabled: false
"""


def open_database(settings: Settings, *, migrated: bool = True) -> Database:
    """The knowledge base's database, its schema up to date. Starts the embedded server where no URL is set.

    Raises DatabaseUnavailable, MigrationError.
    """
    if settings.database_url is not None:
        database = Database(settings.database_url, pool_size=settings.database_pool_size)
    else:
        server = embedded.running(settings.home_folder)
        database = Database(server.url(), pool_size=settings.database_pool_size, revive=server.start)
    if migrated:
        migrate(database)
    return database


def database_url(settings: Settings) -> str:
    """Where the knowledge base is; starts the embedded server."""
    return settings.database_url or embedded.running(settings.home_folder).url()


def dagster_database_url(settings: Settings) -> str:
    """Where Dagster's history is: its own database on the same server, unless set otherwise."""
    if settings.dagster_database_url is not None:
        return settings.dagster_database_url
    url = database_url(settings)
    return with_database(url, f"{database_name(url)}_dagster")


def dagster_home(settings: Settings) -> Path:
    """The folder of Dagster's instance, with a `dagster.yaml` that works as it stands."""
    folder = settings.home_folder / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "dagster.yaml"
    if not configuration.exists():
        configuration.write_text(DAGSTER_YAML)
    return folder


class Forges:
    """The forges that the settings reach, each made once: called with (source, address or None for the settings' own)."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._made: dict[tuple[str, str | None], GitHub | Gitea] = {}
        self._making = threading.Lock()

    def __call__(self, source: str, api_url: str | None) -> Forge:
        """Raises SettingsError."""
        with self._making:
            key = (source, api_url)
            if key not in self._made:
                self._made[key] = self._make(source, api_url)
            return self._made[key]

    def close(self) -> None:
        """Close all connections."""
        for forge in self._made.values():
            forge.close()
        self._made.clear()

    def _make(self, source: str, api_url: str | None) -> GitHub | Gitea:
        if source == "github":
            return github_from_settings(self._settings, self._clock)
        if api_url is None:
            raise SettingsError(f"no address is known for {source}", hint="`kb watch add --url` gives it")
        token = self._settings.gitea_tokens.get(urlsplit(api_url).hostname or "")
        return Gitea(api_url, token, timeout_s=self._settings.poll_timeout_s, clock=self._clock)


def configured_model(settings: Settings) -> EmbeddingModel:
    """The model that the settings name. Raises ModelError."""
    return model_from_id(settings.embedding_model, api_key=settings.embedding_api_key)


def embedder(settings: Settings, model: EmbeddingModel) -> Embedder:
    """An embedder for a model, on the device and within the limits that the settings give."""
    return load_embedder(
        model,
        threads=settings.embedding_threads,
        device=settings.embedding_device,
        token_budget=settings.embedding_token_budget,
        api_key=settings.embedding_api_key,
        concurrency=settings.embedding_concurrency,
        timeout_s=settings.embedding_timeout_s,
    )
