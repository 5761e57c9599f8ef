"""The composition root: everything Dagster knows of kb-platform, put together.

`defs` is what `dagster` and `dg` load; tests and the command line build their own with `build_defs`. Importing this
module opens no database, starts no server and loads no model: resources do that, in the process that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from assets.chunks import chunks
from assets.embeddings import embeddings
from assets.housekeeping import housekeeping_job
from assets.jobs import jobs
from assets.landing import Land, land_by_stage, landed_topics, landing_jobs
from assets.partitions import follow
from assets.placement import executor
from assets.polling import poll_job, polled_releases
from assets.producing import produce_job
from assets.raw_releases import raw_releases
from assets.refresh import RefreshResult, refresh
from assets.release_index import release_index
from assets.whole_base import whole_base_checks
from kb_platform.progress import Progress
from kb_platform.settings import Settings, load_settings
from kb_platform.stages.polling_session import ForgeFor
from kb_platform.store import forgetting, watch_list
from kb_platform.store.database import Database
from resources.brokers import BrokersResource
from resources.database import DatabaseResource
from resources.embedding import Configured, ConfiguredModelResource, EmbedderLoaderResource, Loader
from resources.forges import ForgesResource
from resources.progress import ProgressResource
from resources.settings import SettingsResource
from sensors.alerts import alert_sensors
from sensors.automation import automation_sensor
from sensors.landing import BrokerLooking, Looking, landing_sensors
from sensors.nightly import housekeeping_schedule
from sensors.polling import polling_sensor
from sensors.staleness import stale_index_sensor


def build_defs(
    *,
    settings: Settings | None = None,
    database: Database | None = None,
    load_embedder: Loader | None = None,
    configured_model: Configured | None = None,
    progress: Progress | None = None,
    forge_for: ForgeFor | None = None,
    brokers: Any = None,
    land: Land = land_by_stage,
    looking: Callable[[], Looking] = BrokerLooking,
) -> dg.Definitions:
    """All definitions; what is given takes the place of what the settings say.

    `settings`: those of the environment by default. They decide placement, the executor and whether sensors start
    switched on; the processes that run steps read their own. Raises SettingsError.
    """
    chosen = settings or load_settings()
    return dg.Definitions(
        assets=[
            polled_releases(),
            *landed_topics(land),
            raw_releases(chosen),
            chunks(chosen),
            embeddings(chosen),
            release_index(chosen),
        ],
        asset_checks=whole_base_checks(),
        jobs=[
            *jobs(),
            poll_job(chosen),
            *landing_jobs(chosen),
            produce_job(chosen),
            housekeeping_job(chosen),
        ],
        schedules=[housekeeping_schedule(chosen)],
        sensors=[
            polling_sensor(chosen, database),
            *landing_sensors(chosen, database, looking),
            stale_index_sensor(chosen, database),
            automation_sensor(chosen),
            *alert_sensors(chosen, database),
        ],
        resources=_resources(
            settings, database, load_embedder, configured_model, progress, forge_for, brokers
        ),
        executor=executor(chosen),
    )


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The Dagster instance of the home folder, for a command that runs jobs itself; use it as a context manager."""
    # SQLAlchemy and alembic take as long to import as all of this; only who needs the history pays.
    from resources.dagster_storage import open_instance

    return open_instance(settings)


def follow_watch_list(settings: Settings, database: Database) -> None:
    """Make Dagster's partitions those of the watch list at once; the sensor `polling` does so too, in its own time."""
    with database.snapshot() as connection:
        watched = [watch.name for watch in watch_list.watched(connection)]
        gone = forgetting.names_without_repository(connection)
    with open_instance(settings) as instance:
        follow(instance, watched, gone)


def refresh_in_process(
    repositories: Sequence[str] | None = None,
    *,
    instance: dg.DagsterInstance,
    database: Database,
    settings: Settings | None = None,
    load_embedder: Loader | None = None,
    configured_model: Configured | None = None,
    progress: Progress | None = None,
) -> RefreshResult:
    """Bring stale repositories (of these, or all) up to date in this process; the runs are recorded in `instance`
    (see `open_instance`).

    Raises NotKnown for a repository that is not in the log; what fails in a run is in the result.
    """
    defs = build_defs(
        settings=settings,
        database=database,
        load_embedder=load_embedder,
        configured_model=configured_model,
        progress=progress,
    )
    return refresh(defs, database, instance, repositories)


def _resources(
    settings: Settings | None,
    database: Database | None,
    load_embedder: Loader | None,
    configured_model: Configured | None,
    progress: Progress | None,
    forge_for: ForgeFor | None,
    brokers: Any,
) -> Mapping[str, Any]:
    read: Any = settings or SettingsResource()
    return {
        "settings": read,
        "database": database or DatabaseResource(settings=read),
        "load_embedder": load_embedder or EmbedderLoaderResource(settings=read),
        "configured_model": configured_model or ConfiguredModelResource(settings=read),
        "progress": progress or ProgressResource(),
        "forge_for": forge_for or ForgesResource(settings=read),
        "brokers": brokers or BrokersResource(settings=read),
    }


defs = build_defs()
