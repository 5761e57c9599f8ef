"""The watch list in the database, and the names and numbers of what is on it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from kb_platform.errors import BadRecord, KbError, NotKnown, SourceError, SourceRefused
from kb_platform.sources.release import Refused, repository_name
from kb_platform.sources.watch_file import Wanted
from kb_platform.stages import watching
from kb_platform.store import pages, polls, quarantine, release_log, repositories, watch_list
from kb_platform.store.database import Connection, Database
from kb_platform.store.pages import StoredPage
from tests.releases import notes, observe, release

NOW = datetime(2026, 5, 1, tzinfo=UTC)
FORGE = "https://git.example.com/api/v1"


def minutes(count: int) -> timedelta:
    return timedelta(minutes=count)


def names(connection: Connection) -> list[str]:
    return [watch.name for watch in watch_list.watched(connection)]


def add(connection: Connection, *added: str) -> list[int]:
    for name in added:
        watch_list.add(connection, name, at=NOW)
    return [repositories.find_repository(connection, name)[0] for name in added]


def put_page(connection: Connection, repository_id: int) -> None:
    pages.save_page(
        connection, repository_id, "token", 0, StoredPage(f"{FORGE}/x", "etag", None, 1, (1,)), NOW
    )


# --- the list -------------------------------------------------------------------------------------------------


def test_what_is_added_is_due_at_once_and_the_same_again_is_nothing(database: Database) -> None:
    with database.transaction() as connection:
        assert watch_list.add(connection, "acme/Tool", at=NOW) == "added"
        assert watch_list.add(connection, "ACME/tool", at=NOW + minutes(5)) == "unchanged"
        watch = watch_list.find(connection, "acme/tool")
        assert (watch.name, watch.forge, watch.source, watch.api_url) == (
            "acme/Tool",
            "github",
            "github",
            None,
        )
        assert (watch.every_s, watch.stale_after_s, watch.failures, watch.truncated) == (None, None, 0, False)
        assert (watch.added_at, watch.due_at) == (NOW, NOW)
        assert (watch.polled_at, watch.verified_at, watch.outcome, watch.identified_at) == (
            None,
            None,
            None,
            None,
        )


def test_a_change_keeps_the_state_and_is_due_at_once(database: Database) -> None:
    with database.transaction() as connection:
        [number] = add(connection, "acme/tool")
        polls.failed(connection, number, "not-found", "gone", at=NOW, due_at=NOW + minutes(60))
        later = NOW + minutes(5)
        assert watch_list.add(connection, "acme/tool", every_s=60, stale_after_s=90, at=later) == "changed"
        watch = watch_list.find(connection, "acme/tool")
        assert (watch.every_s, watch.stale_after_s, watch.added_at, watch.due_at) == (60, 90, NOW, later)
        assert (watch.failures, watch.reason, watch.failing_since) == (1, "not-found", NOW)
        assert watch_list.add(connection, "acme/tool", at=later) == "changed"
        assert watch_list.find(connection, "acme/tool").every_s is None


def test_the_longest_overdue_come_first(database: Database) -> None:
    with database.transaction() as connection:
        assert polls.next_due(connection) is None
        for place, name in enumerate(("acme/b", "acme/a", "acme/c", "acme/later")):
            [number] = add(connection, name)
            polls.postpone(connection, number, NOW + minutes(place) if place < 3 else NOW + minutes(90))
        assert polls.next_due(connection) == NOW
        now = NOW + minutes(10)
        assert [w.name for w in polls.due(connection, "github", now, limit=9)] == [
            "acme/b",
            "acme/a",
            "acme/c",
        ]
        assert [w.name for w in polls.due(connection, "github", now, limit=2)] == ["acme/b", "acme/a"]
        assert names(connection) == ["acme/a", "acme/b", "acme/c", "acme/later"]


def test_removal_keeps_the_data_and_lets_go_of_what_polling_remembered(database: Database) -> None:
    observe(database, "acme/tool", release(1, notes("x")))
    with database.transaction() as connection:
        number, other = add(connection, "acme/tool", "acme/other")
        for each in (number, other):
            put_page(connection, each)
            pages.miss(connection, each, [1], NOW)
        watch_list.remove(connection, number)
        watch_list.remove(connection, number)
        assert names(connection) == ["acme/other"]
        assert len(release_log.current_releases(connection, number)) == 1
        assert pages.pages(connection, number, "token") == []
        assert pages.absences(connection, number) == []
        assert pages.pages(connection, other, "token")
        assert pages.absences(connection, other)
        with pytest.raises(NotKnown, match="acme/tool is not watched") as caught:
            watch_list.find(connection, "ACME/tool")
        assert caught.value.hint == "`kb watch add acme/tool`"
        with pytest.raises(NotKnown, match="nobody/nothing is not watched"):
            watch_list.find(connection, "nobody/nothing")
        assert watch_list.add(connection, "acme/tool", at=NOW) == "added"


# --- forges ---------------------------------------------------------------------------------------------------


def test_an_imported_repository_is_of_the_forge_where_it_is_first_watched(database: Database) -> None:
    observe(database, "acme/tool", release(1, notes("x")))
    with database.transaction() as connection:
        assert watch_list.add(connection, "acme/tool", source="gitea", api_url=f"{FORGE}/", at=NOW) == "added"
        watch = watch_list.find(connection, "acme/tool")
        assert (watch.forge, watch.source, watch.api_url) == (FORGE, "gitea", FORGE)
        assert [w.name for w in polls.due(connection, FORGE, NOW, limit=5)] == ["acme/tool"]
        assert watch_list.add(connection, "acme/tool", source="gitea", api_url=FORGE, at=NOW) == "unchanged"


def test_one_name_at_two_forges_is_refused(database: Database) -> None:
    with database.transaction() as connection:
        [number] = add(connection, "acme/tool")
        with pytest.raises(
            KbError, match="known from GitHub, and cannot be watched at https://git"
        ) as caught:
            watch_list.add(connection, "acme/Tool", source="gitea", api_url=FORGE, at=NOW)
        assert "--forget" in str(caught.value.hint)
        # Nobody has looked yet whether GitHub knows it: a slip of the hand can be put right.
        watch_list.remove(connection, number)
        assert watch_list.add(connection, "acme/tool", source="gitea", api_url=FORGE, at=NOW) == "added"
        repositories.identify(connection, number, 7)
        watch_list.remove(connection, number)
        with pytest.raises(KbError, match="known from https://git"):
            add(connection, "acme/tool")


@pytest.mark.parametrize(
    ("source", "url", "said"),
    [
        ("gitlab", None, "no source 'gitlab'"),
        ("github", FORGE, "GitHub's address"),
        ("gitea", None, "where is"),
    ],
)
def test_a_source_has_its_address(source: str, url: str | None, said: str) -> None:
    with pytest.raises(KbError, match=said):
        watch_list.forge_of(source, url)


def test_what_cannot_be_a_partition_is_not_watched(database: Database) -> None:
    for name in ("acme", "acme/a...b", "acme/tool/x", "acme/to\nol"):
        with pytest.raises(BadRecord), database.transaction() as connection:
            watch_list.add(connection, name, at=NOW)
    with database.snapshot() as connection:
        assert repositories.repository_names(connection) == []


# --- numbers --------------------------------------------------------------------------------------------------


def test_a_number_is_kept_and_two_names_of_one_repository_are_noticed(database: Database) -> None:
    with database.transaction() as connection:
        first, second = add(connection, "acme/new", "acme/old")
        watch_list.add(connection, "acme/elsewhere", source="gitea", api_url=FORGE, at=NOW)
        elsewhere = watch_list.find(connection, "acme/elsewhere").repository_id
        assert repositories.identify(connection, first, 77) is None
        assert repositories.identify(connection, first, 77) is None
        assert repositories.identify(connection, second, 77) == "acme/new"
        assert watch_list.find(connection, "acme/old").external_id is None
        # Each forge counts by itself.
        assert repositories.identify(connection, elsewhere, 77) is None
        assert {w.name: w.external_id for w in watch_list.watched(connection)} == {
            "acme/new": 77, "acme/old": None, "acme/elsewhere": 77,
        }  # fmt: skip


def test_a_repository_never_gets_another_number(database: Database) -> None:
    with database.transaction() as connection:
        [number] = add(connection, "acme/tool")
        repositories.identify(connection, number, 77)
        with pytest.raises(SourceRefused, match="number 78, in the log 77") as caught:
            repositories.identify(connection, number, 78)
        assert caught.value.reason == "replaced"
        assert watch_list.find(connection, "acme/tool").external_id == 77


def test_verified_never_moves_back(database: Database) -> None:
    with database.transaction() as connection:
        [number] = add(connection, "acme/tool")
        for at, expected in ((NOW, NOW), (NOW - minutes(5), NOW), (NOW + minutes(5), NOW + minutes(5))):
            repositories.mark_verified(connection, [number], at=at)
            assert watch_list.find(connection, "acme/tool").verified_at == expected
        repositories.mark_verified(connection, [number, number, 4_711])
        verified = watch_list.find(connection, "acme/tool").verified_at
        assert verified is not None
        assert abs(verified - datetime.now(UTC)) < minutes(5)
        repositories.mark_verified(connection, [])


# --- names ----------------------------------------------------------------------------------------------------


def test_the_old_name_finds_a_renamed_repository_everywhere(database: Database) -> None:
    observe(database, "acme/tool", release(1, notes("x")))
    with database.transaction() as connection:
        [number] = add(connection, "acme/tool")
        quarantine.put(connection, [Refused("not-json", "x", b"1", "test", "ACME/Tool")])
        repositories.rename_repository(connection, number, "acme/gadget", NOW)
    # An import from a file that was written before.
    observe(database, "acme/TOOL", release(2, notes("y")))
    with database.transaction() as connection:
        assert repositories.repository_names(connection) == ["acme/gadget"]
        assert repositories.find_repository(connection, "Acme/Tool") == (number, "acme/gadget")
        assert watch_list.find(connection, "acme/tool").name == "acme/gadget"
        assert len(release_log.current_releases(connection, number)) == 2
        assert quarantine.open_by_reason(connection, "acme/gadget") == {"not-json": 1}
        assert repositories.former_names(connection, number) == ["acme/tool"]
        assert watch_list.add(connection, "acme/tool", at=NOW) == "unchanged"


def test_there_and_back_again(database: Database) -> None:
    with database.transaction() as connection:
        [number] = add(connection, "acme/tool")
        for name in ("acme/gadget", "acme/thing", "acme/tool", "acme/tool", "ACME/Tool"):
            repositories.rename_repository(connection, number, name, NOW)
        assert repositories.former_names(connection, number) == ["acme/gadget", "acme/thing"]
        for name in ("acme/gadget", "acme/thing", "acme/tool"):
            assert repositories.find_repository(connection, name) == (number, "ACME/Tool")


def test_whoever_has_the_new_name_gives_way_and_gets_its_own_when_it_is_looked_up(database: Database) -> None:
    """acme/tool became acme/gadget, after the old acme/gadget had become something that nobody has asked for yet."""
    with database.transaction() as connection:
        tool, gadget = add(connection, "acme/tool", "acme/gadget")
        repositories.identify(connection, tool, 1)
        repositories.identify(connection, gadget, 2)
        quarantine.put(connection, [Refused("not-json", "x", b"1", "test", "acme/gadget")])
        repositories.rename_repository(connection, tool, "acme/gadget", NOW)
        moved = f"acme/gadget.former-{gadget}"
        assert repository_name(moved) == moved
        assert names(connection) == ["acme/gadget", moved]
        assert repositories.find_repository(connection, "acme/gadget")[0] == tool
        assert quarantine.open_by_reason(connection, moved) == {"not-json": 1}
        repositories.rename_repository(connection, gadget, "acme/thing", NOW)
        assert repositories.find_repository(connection, "acme/thing")[0] == gadget
        assert repositories.find_repository(connection, moved)[0] == gadget
        # The two change names once more.
        repositories.rename_repository(connection, gadget, "acme/tool", NOW)
        assert repositories.find_repository(connection, "acme/tool")[0] == gadget
        assert repositories.former_names(connection, tool) == []


def test_what_was_only_imported_gives_way_with_its_releases(database: Database) -> None:
    observe(database, "acme/gadget", release(1, notes("x")))
    with database.transaction() as connection:
        [tool] = add(connection, "acme/tool")
        repositories.identify(connection, tool, 1)
        [imported] = add(connection, "acme/gadget")
        repositories.rename_repository(connection, tool, "acme/gadget", NOW)
        # Its watch asked for the very repository that is watched under this name now.
        assert names(connection) == ["acme/gadget"]
        moved = f"acme/gadget.former-{imported}"
        assert repositories.find_repository(connection, moved) == (imported, moved)
        assert len(release_log.current_releases(connection, imported)) == 1


def test_what_gives_way_keeps_its_watch_where_the_other_has_none(database: Database) -> None:
    observe(database, "acme/tool", release(1, notes("x")))
    with database.transaction() as connection:
        tool, _ = repositories.find_repository(connection, "acme/tool")
        [gadget] = add(connection, "acme/gadget")
        repositories.rename_repository(connection, tool, "acme/gadget", NOW)
        assert names(connection) == [f"acme/gadget.former-{gadget}"]


@pytest.mark.parametrize("part", ["x" * 100, "x" * 89 + ".."])
def test_the_name_of_what_gives_way_is_a_name(database: Database, part: str) -> None:
    with database.transaction() as connection:
        number = repositories.ensure_repository(connection, f"acme/{part}")
        [tool] = add(connection, "acme/tool")
        repositories.rename_repository(connection, tool, f"acme/{part}", NOW)
        moved = next(n for n in repositories.repository_names(connection) if n.endswith(f".former-{number}"))
        assert repository_name(moved) == moved


def test_a_repository_of_another_forge_keeps_its_name(database: Database) -> None:
    with database.transaction() as connection:
        [tool] = add(connection, "acme/tool")
        watch_list.add(connection, "acme/gadget", source="gitea", api_url=FORGE, at=NOW)
        with pytest.raises(
            SourceRefused, match="acme/gadget now, and that is the name of a repository of https"
        ):
            repositories.rename_repository(connection, tool, "acme/gadget", NOW)
        assert names(connection) == ["acme/gadget", "acme/tool"]


def test_a_name_that_is_none_is_not_taken(database: Database) -> None:
    with database.transaction() as connection:
        [tool] = add(connection, "acme/tool")
        with pytest.raises(BadRecord):
            repositories.rename_repository(connection, tool, "acme/a...b", NOW)
        with pytest.raises(NotKnown):
            repositories.rename_repository(connection, 4_711, "acme/gadget", NOW)
        with pytest.raises(NotKnown):
            repositories.identify(connection, 4_711, 1)


# --- a list that somebody wants -------------------------------------------------------------------------------


def make(database: Database, desired: Sequence[Wanted]) -> watching.Plan:
    plan = watching.plan_for(database, desired)
    watching.apply(database, plan, NOW)
    return plan


def summary(plan: watching.Plan) -> tuple[list[str], list[str], list[str], list[str]]:
    return (
        [item.repository for item in plan.added],
        [watch.name for watch, _ in plan.changed],
        [watch.name for watch in plan.removed],
        [watch.name for watch in plan.unchanged],
    )


def test_a_list_is_made_so_and_then_there_is_nothing_to_do(database: Database) -> None:
    observe(database, "acme/gone", release(1, notes("x")))
    first = [Wanted("acme/gone"), Wanted("acme/b"), Wanted("acme/a", every_s=60)]
    assert summary(make(database, first)) == (["acme/a", "acme/b", "acme/gone"], [], [], [])
    wanted = [Wanted("acme/new", "gitea", FORGE), Wanted("ACME/A", every_s=90), Wanted("acme/B")]
    plan = make(database, wanted)
    assert summary(plan) == (["acme/new"], ["acme/a"], ["acme/gone"], ["acme/b"])
    assert plan.changed[0][0].every_s == 60
    assert not plan.nothing_to_do
    again = make(database, wanted)
    assert again.nothing_to_do
    assert summary(again)[3] == ["acme/a", "acme/b", "acme/new"]
    with database.snapshot() as connection:
        assert repositories.find_repository(connection, "acme/gone")
        # Twice the same plan, as when two apply at once.
    watching.apply(database, plan, NOW)
    assert watching.plan_for(database, wanted).nothing_to_do


def test_a_list_that_still_has_the_old_name_removes_nothing(database: Database) -> None:
    make(database, [Wanted("acme/tool")])
    with database.transaction() as connection:
        number, _ = repositories.find_repository(connection, "acme/tool")
        repositories.rename_repository(connection, number, "acme/gadget", NOW)
    assert summary(make(database, [Wanted("acme/Tool")])) == ([], [], [], ["acme/gadget"])
    assert summary(make(database, [Wanted("acme/tool", every_s=60)]))[1] == ["acme/gadget"]
    with pytest.raises(SourceError, match="acme/tool and acme/gadget are the same repository"):
        make(database, [Wanted("acme/tool"), Wanted("acme/gadget")])
    # Somebody else has the old name now, and both are watched.
    with database.transaction() as connection:
        [other] = add(connection, "acme/stranger")
        repositories.rename_repository(connection, other, "acme/tool", NOW)
    assert summary(make(database, [Wanted("acme/tool"), Wanted("acme/gadget")])) == (
        [], ["acme/gadget"], [], ["acme/tool"],
    )  # fmt: skip


def test_a_list_of_which_one_part_cannot_be_is_not_made_at_all(database: Database) -> None:
    make(database, [Wanted("acme/tool"), Wanted("acme/gone")])
    with pytest.raises(KbError, match="acme/tool is known from GitHub"):
        make(database, [Wanted("acme/new"), Wanted("acme/tool", "gitea", FORGE)])
    with database.snapshot() as connection:
        assert names(connection) == ["acme/gone", "acme/tool"]


@pytest.mark.slow
def test_a_list_of_thousands_is_made_in_seconds(database: Database) -> None:
    wanted = [Wanted(f"acme/tool{n}") for n in range(5_000)]
    assert len(make(database, wanted).added) == 5_000
    assert make(database, wanted).nothing_to_do
