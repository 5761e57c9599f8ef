"""One repository polled: the log says what GitHub says, whatever happens in between."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from datetime import timedelta

import pytest

from kb_platform.store import release_log, watch_list
from kb_platform.store.database import Database
from tests.github_stand_in import StandIn
from tests.polled import Watching
from tests.records import observed
from tests.simulated_clock import SimulatedClock

REPOSITORY = "acme/tool"


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def stand_in(clock: SimulatedClock) -> StandIn:
    return StandIn(clock, seed=3)


@pytest.fixture
def watching(database: Database, stand_in: StandIn, clock: SimulatedClock) -> Generator[Watching]:
    with closing(Watching(database, stand_in, clock)) as made:
        yield made


def start(watching: Watching, releases: int) -> int:
    """A repository with so many releases, watched and polled once."""
    number = watching.stand_in.add_repository(REPOSITORY, releases)
    watching.watch(REPOSITORY)
    assert watching.poll(REPOSITORY).outcome in ("changed", "unchanged")
    assert watching.log(REPOSITORY) == watching.truth(number)
    return number


def state(watching: Watching, name: str = REPOSITORY) -> watch_list.Watch:
    with watching.database.snapshot() as connection:
        return watch_list.find(connection, name)


def changes(watching: Watching, release_id: int) -> list[bool]:
    """Whether each observation of a release says that it is gone."""
    with watching.database.snapshot() as connection:
        watch = watch_list.find(connection, REPOSITORY)
        return [item.deleted for item in release_log.history(connection, watch.repository_id, release_id)]


def test_a_first_poll_takes_the_whole_list_and_verifies(watching: Watching) -> None:
    start(watching, 250)
    now = state(watching)
    assert (now.outcome, now.failures, now.truncated) == ("changed", 0, False)
    assert now.external_id is not None
    assert now.verified_at is not None
    assert now.due_at > watching.clock.now()
    assert {attempt.verified for attempt in watching.attempts} == {True}


def test_a_poll_without_news_costs_no_budget_and_appends_nothing(watching: Watching) -> None:
    number = start(watching, 250)
    spent = watching.stand_in.allowance(polled_token(watching)).used
    watching.clock.advance(300)
    attempt = watching.poll(REPOSITORY)
    assert attempt.answers == {"304": 3}
    assert (attempt.outcome, attempt.imported.appended) == ("unchanged", 0)
    assert watching.stand_in.allowance(polled_token(watching)).used == spent
    verified = state(watching).verified_at
    assert verified is not None
    assert verified > watching.clock.now() - timedelta(seconds=60)
    assert watching.log(REPOSITORY) == watching.truth(number)


def polled_token(watching: Watching) -> str:
    return watching.stand_in.log[-1].credential


@pytest.mark.parametrize("releases", [0, 1, 99, 100, 101, 200])
def test_lists_of_every_length_are_read_to_their_end_and_grow(watching: Watching, releases: int) -> None:
    number = start(watching, releases)
    for _ in range(2):
        watching.clock.advance(300)
        watching.stand_in.publish(number)
        # The oldest of all: it is sorted to the end, and the pages before it stay as they are.
        watching.stand_in.publish(number, created_at=watching.clock.now() - timedelta(days=9_000))
        watching.poll(REPOSITORY)
        assert watching.log(REPOSITORY) == watching.truth(number)


def test_an_oldest_release_behind_full_pages_is_found(watching: Watching) -> None:
    number = start(watching, 100)
    watching.clock.advance(300)
    watching.stand_in.publish(number, created_at=watching.clock.now() - timedelta(days=9_000))
    watching.poll(REPOSITORY)
    assert watching.log(REPOSITORY) == watching.truth(number)


def test_edits_tags_and_flips_are_observations(watching: Watching) -> None:
    number = start(watching, 5)
    release_id = next(iter(watching.truth(number)))
    original = watching.stand_in.truth(number)[release_id]["body"]
    for body in ("Other words.", original or "x", "Other words."):
        watching.clock.advance(300)
        watching.stand_in.edit(number, release_id, body=body)
        watching.poll(REPOSITORY)
    watching.clock.advance(300)
    watching.stand_in.move_tag(number, release_id, "moved")
    watching.poll(REPOSITORY)
    watching.clock.advance(300)
    watching.stand_in.flip_prerelease(number, release_id)
    watching.poll(REPOSITORY)
    assert watching.log(REPOSITORY) == watching.truth(number)
    assert len(changes(watching, release_id)) == 6


def test_a_deletion_is_believed_the_second_time_and_a_return_at_once(watching: Watching) -> None:
    number = start(watching, 120)
    release_id = next(iter(watching.truth(number)))
    watching.stand_in.delete(number, release_id)
    watching.clock.advance(300)
    first = watching.poll(REPOSITORY)
    assert first.imported.deleted == 0
    assert release_id in watching.log(REPOSITORY)
    assert first.verified
    watching.clock.advance(300)
    assert watching.poll(REPOSITORY).imported.deleted == 1
    assert watching.log(REPOSITORY) == watching.truth(number)
    watching.stand_in.restore(number, release_id)
    watching.clock.advance(300)
    assert watching.poll(REPOSITORY).imported.reappeared == 1
    assert changes(watching, release_id) == [False, True, False]


def test_a_replica_that_lags_once_deletes_nothing(watching: Watching) -> None:
    number = start(watching, 10)
    release_id = next(iter(watching.truth(number)))
    for _ in range(3):
        watching.stand_in.hide(number, release_id)
        watching.clock.advance(300)
        watching.poll(REPOSITORY)
        watching.stand_in.hide(number, release_id, hidden=False)
        watching.clock.advance(300)
        watching.poll(REPOSITORY)
    assert changes(watching, release_id) == [False]


def test_a_release_that_the_log_has_from_a_file_and_github_has_not_goes(watching: Watching) -> None:
    number = start(watching, 3)
    with watching.database.transaction() as connection:
        release_log.append(connection, REPOSITORY, [observed(987_654_321)])
    # An import alone gives the pages no reason to be read; the daily look does.
    for _ in range(2):
        watching.clock.advance(86_400)
        watching.poll(REPOSITORY)
    assert watching.log(REPOSITORY) == watching.truth(number)


def test_a_list_that_moves_while_it_is_walked_is_walked_again(watching: Watching) -> None:
    number = start(watching, 350)
    watching.clock.advance(300)
    newest = next(iter(watching.truth(number)))
    watching.stand_in.publish(number)
    watching.stand_in.drift(number, 1, lambda: watching.stand_in.delete(number, newest))
    watching.stand_in.drift(number, 2, lambda: watching.stand_in.publish(number))
    watching.poll(REPOSITORY)
    watching.clock.advance(300)
    watching.poll(REPOSITORY)
    assert watching.log(REPOSITORY) == watching.truth(number)


def test_a_list_that_never_holds_still_is_not_called_verified(watching: Watching) -> None:
    number = start(watching, 250)
    verified = state(watching).verified_at

    def move() -> None:
        watching.stand_in.publish(number)
        watching.stand_in.drift(number, 2, move)

    watching.stand_in.drift(number, 2, move)
    watching.clock.advance(300)
    attempt = watching.poll(REPOSITORY)
    assert (attempt.outcome, attempt.verified) == ("partial", False)
    assert state(watching).verified_at == verified
    watching.stand_in.find(number).drifts.clear()
    watching.clock.advance(300)
    watching.poll(REPOSITORY)
    assert watching.log(REPOSITORY) == watching.truth(number)


def test_a_cut_list_is_said_to_be_cut_and_what_is_beyond_stays(
    database: Database, clock: SimulatedClock
) -> None:
    stand_in = StandIn(clock, seed=5, page_cap=200)
    watching = Watching(database, stand_in, clock)
    number = stand_in.add_repository(REPOSITORY, 199)
    watching.watch(REPOSITORY)
    watching.poll(REPOSITORY)
    assert not state(watching).truncated
    for _ in range(20):
        stand_in.publish(number)
    for _ in range(4):
        clock.advance(300)
        assert watching.poll(REPOSITORY).truncated
    assert state(watching).truncated
    watching.close()
    assert watching.log(REPOSITORY) == watching.truth(number)


def test_a_rename_keeps_the_history_and_the_old_name_still_finds_it(watching: Watching) -> None:
    number = start(watching, 5)
    before = set(watching.log(REPOSITORY))
    watching.stand_in.rename(number, "acme/gadget")
    watching.clock.advance(300)
    attempt = watching.poll(REPOSITORY)
    assert attempt.repository == "acme/gadget"
    assert state(watching, "acme/gadget").name == "acme/gadget"
    assert state(watching).name == "acme/gadget"
    assert set(watching.log("acme/gadget")) == before
    with watching.database.snapshot() as connection:
        names = connection.execute("SELECT count(*) FROM kb.repository").fetchone()
    assert names == (1,)


def test_a_stranger_under_the_old_name_is_not_read(watching: Watching) -> None:
    number = start(watching, 5)
    watching.stand_in.rename(number, "acme/gadget")
    watching.stand_in.reuse_name(REPOSITORY)
    for _ in range(3):
        watching.clock.advance(86_400)
        watching.poll("acme/gadget" if len(watching.attempts) > 1 else REPOSITORY)
    assert watching.log("acme/gadget") == watching.truth(number)


def test_drafts_come_and_go_with_the_right_to_see_them(
    database: Database, stand_in: StandIn, clock: SimulatedClock
) -> None:
    """A draft that one token sees and another does not is not deleted by the other's poll."""
    number = stand_in.add_repository(REPOSITORY, 3)
    writer = Watching(database, stand_in, clock, tokens=["ghp_writer"])
    reader = Watching(database, stand_in, clock, tokens=["ghp_reader"])
    writer.watch(REPOSITORY)
    writer.poll(REPOSITORY)
    stand_in.grant_push(stand_in.log[-1].credential, number)
    draft = stand_in.publish(number, draft=True)["id"]
    clock.advance(300)
    writer.poll(REPOSITORY)
    assert writer.log(REPOSITORY)[draft][3] is True
    for _ in range(3):
        clock.advance(300)
        reader.poll(REPOSITORY)
    assert changes(writer, draft) == [False]
    stand_in.edit(number, draft, draft=False)
    clock.advance(300)
    reader.poll(REPOSITORY)
    assert reader.log(REPOSITORY) == reader.truth(number)
    writer.close()
    reader.close()


def test_an_odd_release_is_set_apart_and_the_others_are_read(watching: Watching) -> None:
    number = start(watching, 5)
    release_id = next(iter(watching.truth(number)))
    watching.stand_in.edit(number, release_id, body="x\x00y")
    watching.clock.advance(300)
    attempt = watching.poll(REPOSITORY)
    assert attempt.imported.reasons == {"nul": 1}
    assert attempt.verified
    watching.clock.advance(300)
    watching.poll(REPOSITORY)
    assert release_id in watching.log(REPOSITORY), "what cannot be read is not gone"


def test_a_forgotten_repository_does_not_come_back_through_a_poll_under_way(watching: Watching) -> None:
    number = start(watching, 150)
    watching.stand_in.publish(number)
    watch = state(watching)

    def unwatch() -> None:
        with watching.database.transaction() as connection:
            watch_list.remove(connection, watch.repository_id)

    watching.stand_in.drift(number, 1, unwatch)
    watching.clock.advance(300)
    watching.stand_in.publish(number, created_at=watching.clock.now() - timedelta(days=9_000))
    assert watching.poll(REPOSITORY).outcome == "removed"


def test_a_long_list_is_read_in_turns(database: Database, stand_in: StandIn, clock: SimulatedClock) -> None:
    watching = Watching(database, stand_in, clock, pages_a_turn=3)
    number = watching.stand_in.add_repository(REPOSITORY, 350)
    watching.watch(REPOSITORY)
    first = watching.poll(REPOSITORY)
    assert (first.outcome, first.verified, first.more) == ("partial", False, True)
    assert state(watching).verified_at is None
    watching.poll(REPOSITORY)
    assert watching.log(REPOSITORY) == watching.truth(number)
    assert state(watching).verified_at is not None
    assert stand_in.statuses[stand_in.log[-1].credential, 200] == 5, (
        "the repository itself and each page once"
    )
    watching.close()
