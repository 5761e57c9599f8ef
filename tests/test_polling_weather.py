"""Many repositories polled through all weathers: nothing missing, stale or left over, and no request that was forbidden."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import closing
from datetime import timedelta

import pytest

from kb_platform.stages.polling_lane import RESERVE
from kb_platform.store.audit import audit
from kb_platform.store.database import Database
from tests.github_stand_in import StandIn
from tests.github_weather import Rates
from tests.polled import INTERVAL_S, TOKEN, Season, Watching
from tests.simulated_clock import SimulatedClock


@pytest.fixture
def season(database: Database) -> Generator[Season]:
    with closing(Season(database, seed=11, repositories=200, rates=Rates(rename=0.001))) as made:
        yield made


def held_up(season: Season) -> list[str]:
    """Repositories that a complete walk did not verify in the last two intervals."""
    with season.watching.database.snapshot() as connection:
        rows = connection.execute(
            "SELECT repository FROM kb.watched_repositories "
            "WHERE verified_at IS NULL OR verified_at < %s OR failures > 0",
            (season.clock.now() - timedelta(seconds=2 * INTERVAL_S),),
        ).fetchall()
    return [row[0] for row in rows]


def check(season: Season) -> None:
    assert season.differences() == {"missing": 0, "stale": 0, "ghosts": 0}
    assert season.faults() == {"forbidden": 0, "at once": 0, "astray": 0}
    assert held_up(season) == []
    with season.watching.database.snapshot() as connection:
        assert audit(connection) == []


def test_a_short_season(database: Database) -> None:
    with closing(Season(database, seed=4, repositories=12)) as season:
        season.polls(6)
        season.settle()
        check(season)


@pytest.mark.slow
def test_two_hundred_repositories_through_thirty_one_polls(season: Season) -> None:
    season.polls(31)
    season.settle()
    check(season)
    kinds = {event.kind for event in season.weather.events}
    assert {"insert", "backport", "edit", "delete", "move_tag", "reappear", "rename"} <= kinds
    assert any(kind.startswith("storm") for kind in kinds)
    steady = [
        request for request in season.stand_in.log if request.conditional and request.status in (200, 304)
    ]
    unchanged = sum(request.status == 304 for request in steady)
    assert unchanged / len(steady) >= 0.95, f"{unchanged} of {len(steady)}"
    spent = season.stand_in.allowance(TOKEN)
    assert spent.used <= spent.limit


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_thousand_repositories_share_one_token(database: Database) -> None:
    """Every poll costs a request, and an hour has one for each: nobody waits longer than twice its share."""
    count, budget = 5_000, 5_000
    clock = SimulatedClock()
    stand_in = StandIn(clock, seed=2, limits={TOKEN: budget}, log_limit=100)
    numbers = [stand_in.add_repository(f"acme/tool-{n}", 1) for n in range(count)]
    # One has a list that alone would take a twentieth of an hour's budget, each time.
    stand_in.add_repository("acme/giant", 0)
    for n in range(250):
        stand_in.publish("acme/giant", tag=f"v{n}", created_at=clock.now() - timedelta(days=n))
    with closing(Watching(database, stand_in, clock, interval_s=1750)) as watching:
        watching.watch(*(f"acme/tool-{n}" for n in range(count)), "acme/giant")
        polled: dict[str, list[float]] = {}
        share = 3600.0 * (count + 3) / (budget * (1 - RESERVE))
        started = clock.now()
        for _ in range(6):
            for number in numbers:
                stand_in.count_downloads(number, next(iter(stand_in.find(number).releases)))
            watching.run_for(1800)
        for attempt, at in zip(watching.attempts, watching.attempted_at, strict=True):
            if attempt.outcome in ("changed", "unchanged"):
                polled.setdefault(attempt.repository, []).append((at - started).total_seconds())
        assert len(polled) == count + 1
        # The first poll also asks for the repository itself, so a first round costs two shares.
        assert max(times[0] for times in polled.values()) <= 2 * share
        gaps = [later - earlier for times in polled.values() for earlier, later in itertools.pairwise(times)]
        ends = (clock.now() - started).total_seconds()
        gaps += [ends - times[-1] for times in polled.values()]
        assert max(gaps) <= 2 * share, f"{max(gaps):,.0f} s, where a share is {share:,.0f} s"
        assert stand_in.forbidden_requests() == []
