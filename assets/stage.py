"""What the four assets have in common: partitions, backfills in one run, retries, owners, and how they fail.

A failure of one repository holds up no other: the step goes on and names it in a check. What concerns all of them (no
database, no model) fails the step, and is tried again where that can help.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, get_type_hints

import dagster as dg

from assets.partitions import REPOSITORIES
from kb_platform.errors import KbError, MigrationError, ModelError, NotKnown, SettingsError, StoreError
from kb_platform.store.database import Database
from kb_platform.store.log_summary import LogSummary, summaries

OWNERS = ["team:knowledge-base"]
RETRIES = dg.RetryPolicy(max_retries=3, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
# Enough to see what is wrong; an event's metadata is stored once for each partition of a run.
MOST_NAMED = 20
# Figures of a run as a whole stand beside those of each partition under this prefix.
RUN = "run/"

Report = TypeVar("Report")


def stage(
    name: str,
    *,
    group: str,
    description: str,
    code_version: str,
    kinds: set[str],
    deps: Sequence[dg.AssetKey],
    checks: Sequence[dg.AssetCheckSpec],
    op_tags: Mapping[str, Any],
    relation: str,
    automation: dg.AutomationCondition[Any] | None = None,
    pool: str | None = None,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Decorate a step of the main job. `relation`: where its rows are, for people who want to look."""

    def decorate(step: Callable[..., Any]) -> dg.AssetsDefinition:
        # Dagster compares annotations with its classes, so text and MaterializeResult[…] are strangers to it.
        step.__annotations__ = get_type_hints(step, include_extras=True) | {"return": dg.MaterializeResult}
        with warnings.catch_warnings():
            # Backfill policies have been "beta" for years; this one makes one run take many repositories.
            warnings.simplefilter("ignore", dg.BetaWarning)
            decorator = dg.asset(
                name=name,
                group_name=group,
                description=description,
                code_version=code_version,
                kinds=kinds,
                deps=deps,
                check_specs=checks,
                op_tags=op_tags,
                pool=pool,
                owners=OWNERS,
                tags={"domain": "releases"},
                metadata={"dagster/relation_identifier": relation},
                partitions_def=REPOSITORIES,
                backfill_policy=dg.BackfillPolicy.single_run(),
                retry_policy=RETRIES,
                automation_condition=automation,
            )
            return decorator(step)

    return decorate


def repositories_in_log(database: Database, keys: Sequence[str]) -> dict[str, LogSummary]:
    """What the log says of the repositories of these partitions; those that it does not know are left out.

    Raises NotKnown when it knows none of them.
    """
    with database.snapshot() as connection:
        found = summaries(connection, keys)
    if keys and not found:
        raise NotKnown(
            f"the log has no releases of {named(keys)}",
            hint="import them first: `kb import PATH`; or delete the partition if its name is wrong",
        )
    return {key: found[key] for key in keys if key in found}


def for_each(
    context: dg.AssetExecutionContext, keys: Sequence[str], work: Callable[[str], Report]
) -> tuple[dict[str, Report], dict[str, str]]:
    """Do `work` for each partition: the reports of those that succeeded, the reasons of those that did not.

    Raises what concerns all of them: the database's errors, and the failure of every single one.
    """
    reports: dict[str, Report] = {}
    failures: dict[str, str] = {}
    for key in keys:
        try:
            reports[key] = work(key)
        except StoreError:
            raise
        except Exception as error:
            if _is_of_the_connection(error):
                raise
            failures[key] = f"{type(error).__name__}: {error}"[:500]
            context.log.exception("%s failed, the others go on", key)
    if failures and not reports:
        raise dg.Failure(
            f"failed for every repository of the run: {named(list(failures))}",
            metadata={"failures": dg.MetadataValue.json(_first(failures))},
            allow_retries=False,
        )
    return reports, failures


def check_result(
    name: str,
    failures: Mapping[str, str],
    *,
    passed: str,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    metadata: Mapping[str, Any] | None = None,
) -> dg.AssetCheckResult:
    """One result for all repositories of a run, that names those which fail and why. `passed`: what to say if none does."""
    description = passed if not failures else f"{len(failures)} fail: {named(list(failures))}"
    details = {"failing": dg.MetadataValue.json(_first(failures))} if failures else {}
    return dg.AssetCheckResult(
        check_name=name,
        passed=not failures,
        severity=severity,
        description=description,
        metadata={"failing_repositories": len(failures), **details, **(metadata or {})},
    )


@contextmanager
def failing_plainly() -> Generator[None]:
    """An error fails the step with its message and its advice, and again only where time may help.

    Steps whose process or pod is lost are tried again by the executor, which asks nobody here.
    """
    try:
        yield
    except dg.Failure:
        raise
    except KbError as error:
        hopeless = isinstance(error, SettingsError | MigrationError | ModelError | NotKnown)
        advice = f" → {error.hint}" if error.hint else ""
        raise dg.Failure(f"{error}{advice}", allow_retries=not hopeless) from error
    except Exception as error:
        may_pass = _is_of_the_connection(error) or isinstance(error, OSError | MemoryError)
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=may_pass) from error


def named(names: Sequence[str]) -> str:
    """A few names and how many more there are.

    >>> named(["a/b", "c/d"])
    'a/b, c/d'
    """
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED:,} more"


def run_figures(**figures: float | str) -> dict[str, float | str]:
    """Figures of the whole run, as metadata.

    >>> run_figures(rows=3)
    {'run/rows': 3}
    """
    return {f"{RUN}{name}": value for name, value in figures.items()}


def _is_of_the_connection(error: Exception) -> bool:
    import psycopg

    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def _first(failures: Mapping[str, str]) -> dict[str, str]:
    return dict(list(failures.items())[:MOST_NAMED])
