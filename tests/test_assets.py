"""The asset graph, run by Dagster against a real PostgreSQL: what it stores, reports, checks and survives."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from syrupy.assertion import SnapshotAssertion

from assets.partitions import known_partitions, partitions_of, range_tags, ranges, register
from assets.refresh import PROCESS_TAG, close_abandoned
from assets.stage import failing_plainly, for_each
from kb_platform.definitions import RefreshResult, build_defs, refresh_in_process
from kb_platform.embedding.embedder import Embedded
from kb_platform.errors import BadRecord, DatabaseUnavailable, EmbeddingError, ModelError, NotKnown
from kb_platform.settings import Settings
from kb_platform.sources.release import Refused
from kb_platform.stages.chunking import chunk_repository
from kb_platform.stages.embedding import embed_repositories
from kb_platform.stages.importing import import_observed
from kb_platform.stages.indexing import ensure_version, index_repositories
from kb_platform.store import index_versions
from kb_platform.store.database import Database
from tests.hashing_embedder import HashingEmbedder
from tests.releases import notes, observe, release


class Platform:
    """A knowledge base with its Dagster instance, as the command line uses them."""

    def __init__(self, database: Database, instance: dg.DagsterInstance, embedder: HashingEmbedder) -> None:
        self.database = database
        self.instance = instance
        self.embedder = embedder
        self.parts: dict[str, Any] = {
            "database": database,
            "load_embedder": lambda _model: self.embedder,
            "configured_model": lambda: self.embedder.model,
        }

    @property
    def defs(self) -> dg.Definitions:
        return build_defs(settings=Settings(), **self.parts)

    def refresh(self, *repositories: str) -> RefreshResult:
        return refresh_in_process(
            repositories or None, instance=self.instance, settings=Settings(), **self.parts
        )

    def served_rows(self) -> int:
        with self.database.snapshot() as connection:
            served = index_versions.active(connection)
            return index_versions.count_rows(connection, served.version) if served else 0

    def materialization(self, asset: str, partition: str) -> Mapping[str, Any]:
        """The metadata of the last materialisation of a partition."""
        found = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition]), limit=1
        ).records
        materialization = found[0].asset_materialization
        assert materialization is not None
        return {name: item.value for name, item in materialization.metadata.items()}

    def evaluate_automation(
        self, cursor: Any, *, checks: bool = False, at: datetime | None = None
    ) -> dg.EvaluateAutomationConditionsResult:
        """One tick of the automation sensor, for the assets or for the checks."""
        selection = (
            dg.AssetSelection.all_asset_checks() if checks else dg.AssetSelection.all().without_checks()
        )
        return dg.evaluate_automation_conditions(
            self.defs, instance=self.instance, asset_selection=selection, cursor=cursor, evaluation_time=at
        )

    def check(self, asset: str, name: str) -> Any:
        """The last evaluation of a check."""
        records = self.instance.event_log_storage.get_asset_check_execution_history(
            dg.AssetCheckKey(dg.AssetKey(asset), name), limit=1
        )
        assert records[0].event is not None
        return records[0].event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]


@pytest.fixture
def platform(database: Database, hashing_embedder: HashingEmbedder) -> Generator[Platform]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(database, instance, hashing_embedder)


def three_repositories(database: Database) -> None:
    observe(
        database, "one/alpha", release(1, notes("fix the parser", "fix the lexer")), release(2, notes("a"))
    )
    observe(database, "two/beta", release(1, notes("drop old servers", heading="Breaking changes")))
    observe(database, "three/gamma", release(1, notes("faster start")), release(2, notes("x"), draft=True))


# --- what a refresh does ---


def test_a_refresh_brings_all_repositories_from_the_log_to_the_served_index_in_one_run(
    platform: Platform,
) -> None:
    three_repositories(platform.database)
    result = platform.refresh()
    assert result.success, result.problems
    assert (result.repositories, result.releases, result.releases_chunked) == (3, 5, 4)
    assert len(result.run_ids) == 1
    assert result.promoted_version == result.served_version == 1
    assert result.embedded == len(platform.embedder.embedded) == 5
    assert platform.served_rows() == result.rows_inserted == 5
    # Every stage says how long it took, and none is forgotten.
    assert list(result.stage_seconds) == ["raw_releases", "chunks", "embeddings", "release_index"]
    assert all(seconds > 0 for seconds in result.stage_seconds.values())


def test_passages_of_all_repositories_are_embedded_together(platform: Platform) -> None:
    three_repositories(platform.database)
    platform.refresh()
    assert len(platform.embedder.calls) == 1


def test_a_second_refresh_starts_no_run_and_says_so(platform: Platform) -> None:
    three_repositories(platform.database)
    platform.refresh()
    again = platform.refresh()
    assert again.nothing_to_do
    assert again.success
    assert platform.instance.get_runs_count() == 1


def test_an_edit_refreshes_its_repository_alone_and_embeds_what_changed(platform: Platform) -> None:
    three_repositories(platform.database)
    platform.refresh()
    platform.embedder.calls.clear()
    observe(
        platform.database, "one/alpha", release(1, notes("fix the parser", "fix the lexer", "and the linker"))
    )
    result = platform.refresh()
    assert result.repositories == 1
    assert [text for text in platform.embedder.embedded if "linker" in text] == platform.embedder.embedded
    assert result.embedded == 1
    assert result.reused == 3
    assert platform.served_rows() == 6


def test_a_refresh_may_be_asked_for_some_repositories(platform: Platform) -> None:
    three_repositories(platform.database)
    first = platform.refresh("TWO/beta")
    assert first.repositories == 1
    # Nothing is served before the version holds everything.
    assert first.promoted_version is None
    assert platform.refresh().promoted_version == 1
    with pytest.raises(NotKnown, match="no/where"):
        platform.refresh("no/where")


def test_what_a_killed_refresh_left_undone_is_completed(platform: Platform) -> None:
    three_repositories(platform.database)
    names = ["one/alpha", "two/beta", "three/gamma"]
    ensure_version(platform.database, lambda: platform.embedder.model)
    for name in names:
        chunk_repository(platform.database, name)
    embed_repositories(platform.database, names, lambda _model: platform.embedder)
    index_repositories(platform.database, names)
    # Killed here: all rows are there, and nobody has examined and promoted the version.
    result = platform.refresh()
    assert result.promoted_version == 1
    assert platform.refresh().nothing_to_do


# --- what it reports ---


def test_each_partition_has_its_own_figures_and_those_of_the_run(platform: Platform) -> None:
    three_repositories(platform.database)
    platform.refresh()
    alpha = platform.materialization("raw_releases", "one/alpha")
    assert (alpha["releases"], alpha["newest_release"], alpha["run/repositories"]) == (2, "v1.2.0", 3)
    assert platform.materialization("raw_releases", "three/gamma")["newest_release"] == "v1.1.0"
    beta = platform.materialization("chunks", "two/beta")
    assert beta["kind/breaking"] == 1
    assert beta["dagster/partition_row_count"] == beta["chunks"]
    embedded = platform.materialization("embeddings", "two/beta")
    assert embedded["chunks_with_vector"] == 1
    assert embedded["run/embedded"] == 5
    assert embedded["run/tokens_per_second"] > 0
    index = platform.materialization("release_index", "one/alpha")
    assert (index["rows"], index["releases"], index["run/recall_at_10"]) == (3, 2, 1.0)


def test_the_data_version_of_raw_releases_follows_the_log(platform: Platform) -> None:
    three_repositories(platform.database)
    versions: list[str] = []
    for body in ("a", "a", "b"):
        observe(platform.database, "two/beta", release(1, notes(body)))
        register(platform.instance, ["two/beta"])
        platform.defs.resolve_job_def("refresh").execute_in_process(
            instance=platform.instance, partition_key="two/beta"
        )
        record = platform.instance.get_latest_data_version_record(
            dg.AssetKey("raw_releases"), partition_key="two/beta"
        )
        assert record is not None
        versions.append(record.event_log_entry.dagster_event.step_materialization_data.materialization.tags["dagster/data_version"])  # type: ignore[union-attr]  # fmt: skip
    assert versions[0] == versions[1] != versions[2]


# --- checks ---


def test_all_checks_pass_on_a_sound_knowledge_base(platform: Platform) -> None:
    three_repositories(platform.database)
    platform.refresh()
    expected = {
        ("raw_releases", "repositories_are_known"),
        ("raw_releases", "quarantine_growth"),
        ("chunks", "every_release_is_chunked"),
        ("embeddings", "every_passage_has_a_vector"),
        ("embeddings", "norms"),
        ("release_index", "counts_reconcile"),
        ("release_index", "promotion_gate"),
        ("release_index", "recall_at_10"),
    }
    assert {(asset, name): platform.check(asset, name).passed for asset, name in expected} == dict.fromkeys(
        expected, True
    )
    nightly = platform.defs.resolve_job_def("checks").execute_in_process(instance=platform.instance)
    assert {e.check_name: e.passed for e in nightly.get_asset_check_evaluations()} == {
        "all_counts_reconcile": True,
        "nothing_is_stale": True,
    }


def test_quarantine_growth_is_a_warning(platform: Platform) -> None:
    three_repositories(platform.database)
    import_observed(platform.database, [Refused("not-json", "a brace is missing", b"{", "test")])
    result = platform.refresh()
    assert result.success
    assert "1 records wait" in result.warnings[0]
    check = platform.check("raw_releases", "quarantine_growth")
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert check.metadata["reason/not-json"].value == 1


def test_lost_rows_are_found_and_the_repository_named(platform: Platform) -> None:
    three_repositories(platform.database)
    platform.refresh()
    with platform.database.transaction() as connection:
        connection.execute(
            "DELETE FROM kb.index_1 WHERE repository_id = "
            "(SELECT repository_id FROM kb.repository WHERE name = 'one/alpha')"
        )
    observe(platform.database, "one/alpha", release(7, notes("new")))
    observe(platform.database, "two/beta", release(7, notes("also new")))
    result = platform.refresh()
    assert not result.success
    assert list(platform.check("release_index", "counts_reconcile").metadata["failing"].data) == ["one/alpha"]
    nightly = platform.defs.resolve_job_def("checks").execute_in_process(instance=platform.instance)
    found = {e.check_name: e for e in nightly.get_asset_check_evaluations()}
    assert list(found["all_counts_reconcile"].metadata["failing"].data) == ["one/alpha"]  # type: ignore[union-attr]


def test_vectors_of_the_wrong_length_are_found(platform: Platform) -> None:
    class TwiceAsLong(HashingEmbedder):
        def embed_passages(self, texts: Sequence[str]) -> Embedded:
            done = super().embed_passages(texts)
            return Embedded(done.vectors * 2, done.tokens)

    three_repositories(platform.database)
    platform.embedder = TwiceAsLong(platform.embedder.model)
    platform.refresh()
    check = platform.check("embeddings", "norms")
    assert not check.passed
    assert check.metadata["failing_repositories"].value == 3


def test_when_nothing_can_be_served_the_run_fails_and_says_why(platform: Platform) -> None:
    observe(platform.database, "one/empty", release(1, ""))
    result = platform.refresh()
    assert not result.success
    assert "nothing can be served" in result.problems[-1]
    assert "0 chunks" in result.problems[-1]


# --- failures ---


def test_a_partition_that_the_log_does_not_know_holds_up_no_other(platform: Platform) -> None:
    observe(platform.database, "one/alpha", release(1, notes("a")))
    observe(platform.database, "two/beta", release(1, notes("b")))
    register(platform.instance, ["one/alpha", "no/where", "two/beta"])
    result = platform.refresh()
    assert len(result.run_ids) == 1
    assert platform.served_rows() == 2
    assert result.problems == ["raw_releases, repositories_are_known: 1 fail: no/where"]


def test_a_run_of_unknown_partitions_alone_fails_with_advice(platform: Platform) -> None:
    register(platform.instance, ["no/where"])
    run = platform.defs.resolve_job_def("refresh").execute_in_process(
        instance=platform.instance, partition_key="no/where", raise_on_error=False
    )
    assert not run.success
    failure = run.failure_data_for_node("raw_releases")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "kb import" in str(failure.user_failure_data.description)


def test_one_repository_s_failure_is_told_and_the_others_are_done(platform: Platform) -> None:
    done: list[str] = []

    def work(key: str) -> int:
        if key == "b/b":
            raise ValueError("a body that no parser has seen")
        done.append(key)
        return len(done)

    context = dg.build_asset_context(instance=platform.instance)
    reports, failures = for_each(context, ["a/a", "b/b", "c/c"], work)
    assert reports == {"a/a": 1, "c/c": 2}
    assert failures == {"b/b": "ValueError: a body that no parser has seen"}
    with pytest.raises(dg.Failure, match="every repository"):
        for_each(context, ["b/b"], work)


def test_a_lost_database_is_no_repository_s_failure(platform: Platform) -> None:
    def work(key: str) -> int:
        raise DatabaseUnavailable(f"gone while at {key}")

    with pytest.raises(DatabaseUnavailable):
        for_each(dg.build_asset_context(instance=platform.instance), ["a/a", "b/b"], work)


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (ModelError("the weights are damaged", hint="download them again"), False),
        (NotKnown("no such repository"), False),
        (EmbeddingError("the server is busy"), True),
        (DatabaseUnavailable("no connection"), True),
        (psycopg.OperationalError("the server closed the connection"), True),
        (ConnectionResetError("reset by peer"), True),
        (psycopg.DataError("expected 384 dimensions, not 32"), False),
        (ValueError("a mistake in the code"), False),
        (dg.Failure("as it is", allow_retries=False), False),
    ],
)
def test_only_failures_that_may_pass_are_tried_again(error: Exception, retried: bool) -> None:
    with pytest.raises(dg.Failure) as caught, failing_plainly():
        raise error
    assert caught.value.allow_retries is retried
    assert str(error.args[0] if error.args else error) in str(caught.value.description)


def test_a_model_that_cannot_be_loaded_fails_the_run_at_once_and_the_next_one_goes_on(
    platform: Platform,
) -> None:
    three_repositories(platform.database)
    sound = platform.parts["load_embedder"]

    def damaged(_model: object) -> HashingEmbedder:
        raise ModelError("the weights are damaged", hint="download them again")

    platform.parts["load_embedder"] = damaged
    result = platform.refresh()
    assert result.problems == ["embeddings: the weights are damaged → download them again"]
    assert platform.instance.get_runs()[0].status == dg.DagsterRunStatus.FAILURE
    platform.parts["load_embedder"] = sound
    assert platform.refresh().promoted_version == 1


def test_an_embedder_that_fails_for_a_moment_is_tried_again(platform: Platform) -> None:
    class Hesitant(HashingEmbedder):
        def embed_passages(self, texts: Sequence[str]) -> Embedded:
            if not self.calls:
                self.calls.append([])
                raise EmbeddingError("the server is busy")
            return super().embed_passages(texts)

    observe(platform.database, "one/alpha", release(1, notes("a")))
    platform.embedder = Hesitant(platform.embedder.model)
    result = platform.refresh()
    assert result.success
    assert result.embedded == 1


def test_runs_whose_process_was_killed_are_closed(platform: Platform) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    job = platform.defs.resolve_job_def("refresh")
    runs = {
        pid: platform.instance.create_run_for_job(
            job, status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: f"{host}/{pid}"}
        ).run_id
        for pid in (gone.pid, os.getpid())
    }
    assert close_abandoned(platform.instance) == [runs[gone.pid]]
    closed = platform.instance.get_run_by_id(runs[gone.pid])
    assert closed is not None
    assert closed.status == dg.DagsterRunStatus.FAILURE


# --- partitions ---

KEYS = [f"o/{n}" for n in range(40)]


@given(st.sets(st.sampled_from(KEYS)), st.integers(0, 45))
def test_ranges_hold_what_is_wanted_and_little_else(wanted: set[str], most_taken_along: int) -> None:
    found = ranges(KEYS, wanted, most_taken_along=most_taken_along)
    held = [partitions_of(KEYS, range_tags(keys)) for keys in found]
    assert wanted <= {key for part in held for key in part}
    assert all(part[0] in wanted and part[-1] in wanted for part in held)
    for part in held:
        idle = [key in wanted for key in part]
        assert longest_run_of_false(idle) <= most_taken_along
    for before, after in itertools.pairwise(held):
        assert KEYS.index(after[0]) - KEYS.index(before[-1]) - 1 > most_taken_along


def longest_run_of_false(flags: Iterable[bool]) -> int:
    longest = current = 0
    for flag in flags:
        current = 0 if flag else current + 1
        longest = max(longest, current)
    return longest


def test_a_run_without_partition_tags_takes_all_and_one_with_a_key_takes_that() -> None:
    assert partitions_of(KEYS, {}) == KEYS
    assert partitions_of(KEYS, {"dagster/partition": "o/3"}) == ["o/3"]
    assert partitions_of(KEYS, {"dagster/asset_partition_range_start": "x", "dagster/asset_partition_range_end": "y"}) == []  # fmt: skip


@pytest.mark.parametrize("name", ["a|b/c", "a/b...c", "a/b\n", "a", "a/b/c", f"a/{'b' * 300}", "a/\x07"])
def test_names_that_dagster_would_misread_never_become_partitions(name: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises(BadRecord):
            register(instance, ["good/name", name])
        assert known_partitions(instance) == []


def test_partitions_are_added_once() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert register(instance, ["a/a", "b/b", "a/a"]) == ["a/a", "b/b"]
        assert register(instance, ["b/b", "c/c"]) == ["c/c"]
        assert known_partitions(instance) == ["a/a", "b/b", "c/c"]


# --- automation ---


def test_new_raw_releases_flow_to_the_index_by_repository(platform: Platform) -> None:
    three_repositories(platform.database)
    platform.refresh()
    first = platform.evaluate_automation(None)
    # The refresh took everything along; nothing is left to ask for.
    assert first.total_requested == 0
    platform.instance.report_runless_asset_event(
        dg.AssetMaterialization("raw_releases", partition="two/beta")
    )
    second = platform.evaluate_automation(first.cursor)
    asked = {
        asset: second.get_requested_partitions(dg.AssetKey(asset))
        for asset in ("raw_releases", "chunks", "embeddings", "release_index")
    }
    assert asked == {
        "raw_releases": set(),
        "chunks": {"two/beta"},
        "embeddings": {"two/beta"},
        "release_index": {"two/beta"},
    }
    assert platform.evaluate_automation(second.cursor).total_requested == 0


def test_a_repository_whose_releases_are_not_in_yet_is_waited_for(platform: Platform) -> None:
    register(platform.instance, ["one/alpha"])
    first = platform.evaluate_automation(None)
    assert first.total_requested == 0
    platform.instance.report_runless_asset_event(
        dg.AssetMaterialization("raw_releases", partition="one/alpha")
    )
    assert platform.evaluate_automation(first.cursor).total_requested == 3


def test_the_whole_knowledge_base_is_checked_once_a_night(platform: Platform) -> None:
    evening = datetime(2026, 3, 1, 22, tzinfo=UTC)
    tick = platform.evaluate_automation(None, checks=True, at=evening)
    requested = [tick.total_requested]
    for hours in (4, 6, 8, 27, 30):
        tick = platform.evaluate_automation(tick.cursor, checks=True, at=evening + timedelta(hours=hours))
        requested.append(tick.total_requested)
    # At 02:00, 04:00, 06:00, and the next night at 01:00 and 04:00.
    assert requested == [0, 0, 2, 0, 0, 2]


# --- the graph ---


def test_the_specs_of_all_assets(snapshot: SnapshotAssertion) -> None:
    defs = build_defs(settings=Settings())
    graph = defs.resolve_asset_graph()
    found: dict[str, Any] = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        found[key.to_user_string()] = {
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "owners": list(node.owners),
            "upstream": sorted(parent.to_user_string() for parent in node.parent_keys),
            "partitions": getattr(node.partitions_def, "name", None),
            "backfill": repr(node.backfill_policy),
            "code_version": node.code_version is not None,
            "automation": node.automation_condition and node.automation_condition.get_label(),
            "checks": sorted(check.name for check in node.check_keys),
            "pools": sorted(node.pools or ()),
            "tags": {k: v for k, v in node.tags.items() if not k.startswith("dagster/kind")},
            "description": node.description,
        }
    assert found == snapshot
