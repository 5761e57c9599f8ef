"""Turns, credentials, failures and limits: what a lane does when not all is well."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import timedelta

import pytest

from kb_platform.errors import RateLimited
from kb_platform.stages.polling_lane import LONGEST_BACK_OFF, RESERVE, Lane
from kb_platform.store import credentials, watch_list
from kb_platform.store.credentials import Ledger, is_polling
from kb_platform.store.database import Database
from tests.github_stand_in import StandIn
from tests.github_storms import Kind
from tests.polled import TOKEN, Watching
from tests.simulated_clock import SimulatedClock

REPOSITORY, OTHER = "acme/tool", "acme/gadget"


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def stand_in(clock: SimulatedClock) -> StandIn:
    made = StandIn(clock, seed=8)
    made.add_repository(REPOSITORY, 3)
    made.add_repository(OTHER, 3)
    return made


@pytest.fixture
def watching(database: Database, stand_in: StandIn, clock: SimulatedClock) -> Generator[Watching]:
    with closing(Watching(database, stand_in, clock)) as made:
        made.watch(REPOSITORY, OTHER)
        made.poll_due()
        clock.advance(300)
        yield made


def state(watching: Watching, name: str = REPOSITORY) -> watch_list.Watch:
    with watching.database.snapshot() as connection:
        return watch_list.find(connection, name)


def remove(stand_in: StandIn) -> None:
    stand_in.remove_repository(REPOSITORY)


def block(stand_in: StandIn) -> None:
    stand_in.block(REPOSITORY)


def block_otherwise(stand_in: StandIn) -> None:
    stand_in.block(REPOSITORY, "tos")


@pytest.mark.parametrize(
    ("mishap", "reason"), [(remove, "not-found"), (block, "blocked"), (block_otherwise, "blocked")]
)
def test_a_repository_that_is_gone_is_shown_with_its_reason_and_holds_up_no_other(
    watching: Watching, stand_in: StandIn, mishap: Callable[[StandIn], None], reason: str
) -> None:
    mishap(stand_in)
    before = watching.log(REPOSITORY)
    stand_in.publish(OTHER)
    watching.poll_due()
    failed = state(watching)
    assert (failed.outcome, failed.reason, failed.failures) == ("failed", reason, 1)
    assert failed.detail
    assert failed.failing_since is not None
    assert watching.log(REPOSITORY) == before, "what cannot be read is not gone"
    assert watching.log(OTHER) == watching.truth(stand_in.find(OTHER).number)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("500", "server-error"),
        ("502-html", "server-error"),
        ("garbage", "garbled"),
        ("truncated", "garbled"),
        ("reset", "unreachable"),
        ("redirect-circle", "redirected"),
        ("redirect-away", "redirected"),
    ],
)
def test_a_bad_answer_fails_the_poll_and_the_next_one_mends_it(
    watching: Watching, stand_in: StandIn, kind: Kind, reason: str
) -> None:
    stand_in.publish(REPOSITORY)
    # Both repositories are due, and a dropped connection is tried again once.
    stand_in.storm(kind, requests=4 if kind == "reset" else 2)
    watching.poll(REPOSITORY)
    assert state(watching).reason == reason
    verified = state(watching).verified_at
    stand_in.calm()
    watching.clock.advance(120)
    watching.poll(REPOSITORY)
    mended = state(watching)
    assert (mended.outcome, mended.reason, mended.failures, mended.failing_since) == (
        "changed",
        None,
        0,
        None,
    )
    assert verified is not None
    assert mended.verified_at is not None
    assert mended.verified_at > verified
    assert watching.log(REPOSITORY) == watching.truth(stand_in.find(REPOSITORY).number)
    assert stand_in.strays == []


def test_failures_are_tried_again_ever_later(watching: Watching, stand_in: StandIn) -> None:
    stand_in.remove_repository(REPOSITORY)
    waits: list[timedelta] = []
    for _ in range(8):
        watching.poll(REPOSITORY)
        waits.append(state(watching).due_at - watching.clock.now())
        watching.clock.advance(300)
    assert waits[0] < waits[2] < waits[3]
    assert all(timedelta(seconds=240) <= wait <= LONGEST_BACK_OFF * 1.2 for wait in waits)
    stand_in.remove_repository(REPOSITORY, removed=False)
    watching.poll(REPOSITORY)
    assert state(watching).failures == 0


@pytest.mark.parametrize("kind", ["primary", "secondary", "secondary-no-retry-after", "429"])
def test_a_limit_is_kept_by_all_who_share_the_credential(
    watching: Watching, stand_in: StandIn, kind: Kind, database: Database, clock: SimulatedClock
) -> None:
    stand_in.storm(kind, requests=1, seconds=600 if kind == "primary" else None)
    attempt = watching.poll(REPOSITORY)
    assert attempt.outcome == "waiting"
    assert attempt.until is not None
    assert state(watching).failures == 0, "a limit is no failure of the repository"
    with closing(Watching(database, stand_in, clock)) as another:
        assert another.poll(OTHER).outcome == "waiting"
    clock.advance((attempt.until - clock.now()).total_seconds())
    assert watching.poll(REPOSITORY).outcome == "unchanged"
    assert stand_in.forbidden_requests() == []


def test_another_credential_goes_on_where_one_must_wait(
    database: Database, stand_in: StandIn, clock: SimulatedClock
) -> None:
    tokens = ["ghp_one", "ghp_two", "ghp_three"]
    with closing(Watching(database, stand_in, clock, tokens=tokens)) as watching:
        watching.watch(REPOSITORY, OTHER)
        for token in tokens[:2]:
            stand_in.storm("secondary", credential=token)
        watching.poll_due()
        assert state(watching).outcome == state(watching, OTHER).outcome == "changed"
        assert stand_in.forbidden_requests() == []


def test_credentials_share_the_repositories_and_each_keeps_to_its_own(
    database: Database, stand_in: StandIn, clock: SimulatedClock
) -> None:
    for n in range(30):
        stand_in.add_repository(f"acme/many-{n}", 1)
    with closing(Watching(database, stand_in, clock, tokens=["ghp_one", "ghp_two"])) as watching:
        watching.watch(*(f"acme/many-{n}" for n in range(30)))
        for _ in range(4):
            watching.poll_due()
            clock.advance(300)
        by_repository: dict[int, set[str]] = {}
        for request in stand_in.log:
            if request.repository is not None:
                by_repository.setdefault(request.repository, set()).add(request.credential)
        assert all(len(used) == 1 for used in by_repository.values())
        shares = [sum(token in used for used in by_repository.values()) for token in ("ghp_one", "ghp_two")]
        assert min(shares) >= 6


def test_a_private_repository_is_read_with_the_credential_that_may(
    database: Database, stand_in: StandIn, clock: SimulatedClock
) -> None:
    for n in range(6):
        stand_in.add_repository(f"acme/private-{n}", 1, private_to={"ghp_in"})
    with closing(Watching(database, stand_in, clock, tokens=["ghp_out", "ghp_in"])) as watching:
        watching.watch(*(f"acme/private-{n}" for n in range(6)))
        watching.poll_due()
        assert {attempt.outcome for attempt in watching.attempts} == {"changed"}


def test_one_that_only_a_waiting_credential_may_read_holds_up_no_other(
    database: Database, stand_in: StandIn, clock: SimulatedClock
) -> None:
    stand_in.add_repository("acme/private", 1, private_to={"ghp_in"})
    with closing(Watching(database, stand_in, clock, tokens=["ghp_out", "ghp_in"])) as watching:
        stand_in.storm("secondary", credential="ghp_in", requests=1, wait=1800)
        watching.watch("acme/private", REPOSITORY, OTHER)
        watching.poll_due()
        assert state(watching).outcome == state(watching, OTHER).outcome == "changed"
        assert state(watching, "acme/private").failures == 0
        clock.advance(1900)
        watching.poll_due()
        assert state(watching, "acme/private").outcome == "changed"
        assert stand_in.forbidden_requests() == []


def test_a_revoked_token_is_named_without_its_text_and_left_alone_for_a_while(
    watching: Watching, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.revoke(TOKEN)
    with caplog.at_level(logging.DEBUG):
        watching.poll_due()
    failed = state(watching)
    assert failed.reason == "unauthorized" or state(watching, OTHER).reason == "unauthorized"
    with watching.database.snapshot() as connection:
        (budget,) = credentials.budgets(connection).values()
        stored = "\n".join(str(row) for row in connection.execute("SELECT * FROM kb.watch, kb.credential"))
    assert budget.blocked_reason is not None
    assert budget.blocked_reason.startswith("unauthorized")
    asked = len(stand_in.log)
    watching.clock.advance(60)
    watching.poll_due()
    assert len(stand_in.log) == asked
    assert TOKEN not in caplog.text + stored


def test_part_of_the_budget_is_left_for_people(
    database: Database, stand_in: StandIn, clock: SimulatedClock
) -> None:
    stand_in = StandIn(clock, seed=1, limits={TOKEN: 100})
    for n in range(80):
        stand_in.add_repository(f"acme/many-{n}", 1)
    with closing(Watching(database, stand_in, clock)) as watching:
        watching.watch(*(f"acme/many-{n}" for n in range(80)))
        watching.run_for(60)
        # A poll that was begun may take a request or two of it.
        assert 100 * RESERVE - 2 <= stand_in.allowance(TOKEN).remaining <= 100 * RESERVE
        with closing(Lane(database, watching.forge, watching.settings, clock, reserve=0.0)) as for_a_person:
            with database.snapshot() as connection:
                watch = watch_list.find(connection, "acme/many-0")
            assert for_a_person.poll(watch).outcome == "unchanged"


def test_two_processes_do_not_poll_one_repository_at_once(watching: Watching, database: Database) -> None:
    ledger = Ledger(database)
    with ledger.repository(state(watching).repository_id) as mine:
        assert mine
        assert watching.poll(REPOSITORY).outcome == "busy"
        assert state(watching).due_at > watching.clock.now()
    assert watching.poll(REPOSITORY).outcome == "unchanged"
    ledger.close()


def test_who_polls_is_seen_and_gone_with_its_connection(database: Database) -> None:
    first, second = Ledger(database), Ledger(database)
    with first.session() as mine, second.session() as too:
        assert (mine, too) == (True, False)
        with database.snapshot() as connection:
            assert is_polling(connection)
        first.close()
        # The server notices a moment after the connection has ended.
        deadline = time.monotonic() + 5
        polling = True
        while polling and time.monotonic() < deadline:
            with database.snapshot() as connection:
                polling = is_polling(connection)
        assert not polling
    second.close()


def test_a_window_is_kept_when_the_database_died_before_it_was_told(database: Database) -> None:
    clock = SimulatedClock()
    ledger = Ledger(database)
    until = clock.now() + timedelta(hours=1)
    with pytest.raises(RateLimited), ledger.budget("token-1") as budget:
        budget.blocked_until, budget.blocked_reason = until, "secondary"
        raise RateLimited("wait", until=until, kind="secondary")
    with database.transaction() as connection:
        connection.execute("UPDATE kb.credential SET blocked_until = NULL")
    with ledger.budget("token-1") as budget:
        assert budget.blocked_until == until
    ledger.close()


def test_requests_are_counted_by_hour_and_answer(watching: Watching) -> None:
    watching.poll_due()
    watching.lane.close()
    with watching.database.snapshot() as connection:
        counts = dict(
            connection.execute(
                "SELECT answer, sum(requests)::int FROM kb.request_tally GROUP BY answer"
            ).fetchall()
        )
    assert counts == {"200": 4, "304": 2}
