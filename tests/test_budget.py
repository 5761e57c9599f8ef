"""When nothing may be asked: every recorded limit, every hostile header, and `Link` headers, as pure functions."""

from __future__ import annotations

import email.utils
import json
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_platform.sources.budget import LONGEST_WAIT, Budget
from kb_platform.sources.links import Link, UnreadableLinkError, next_target, parse_links

NOW = datetime(2026, 3, 1, 12, 0, 0, 400_000, tzinfo=UTC)
SPENT = {"x-ratelimit-limit": "5000", "x-ratelimit-remaining": "0"}


class Highest(random.Random):
    """Jitter at its most."""

    def random(self) -> float:
        return 0.999999


class Lowest(random.Random):
    """No jitter."""

    def random(self) -> float:
        return 0.0


LOW = Lowest()


def http_date(moment: datetime) -> str:
    return email.utils.format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)


def epoch(moment: datetime) -> str:
    return str(int(moment.timestamp()))


def seconds(until: datetime | None) -> float:
    assert until is not None
    return (until - NOW).total_seconds()


def test_a_budget_of_which_nothing_is_known_forbids_nothing() -> None:
    assert Budget("token-1").forbidden_until(NOW) is None


def test_an_ordinary_answer_is_counted_and_forbids_nothing() -> None:
    budget = Budget(
        "token-1", strikes=4, blocked_until=NOW - timedelta(seconds=1), blocked_reason="secondary"
    )
    headers = {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4999", "X-RateLimit-Reset": epoch(NOW)}
    assert budget.observe(200, headers, "", NOW, LOW) is None
    assert (budget.rate_limit, budget.remaining, budget.strikes) == (5000, 4999, 0)
    assert (budget.blocked_until, budget.blocked_reason) == (None, None)
    assert budget.forbidden_until(NOW) is None


def test_the_last_request_of_the_hour_closes_it_without_a_403() -> None:
    budget = Budget("token-1")
    reset = NOW + timedelta(minutes=20)
    assert budget.observe(200, {**SPENT, "x-ratelimit-reset": epoch(reset)}, "", NOW, LOW) is None
    until = budget.forbidden_until(NOW)
    assert until is not None
    assert reset <= until <= reset + timedelta(seconds=2)
    assert budget.forbidden_kind(NOW) == "primary"
    assert budget.forbidden_until(until) is None


@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.parametrize(
    "skew", [timedelta(0), timedelta(minutes=7), timedelta(minutes=-7), timedelta(days=40)]
)
def test_a_primary_limit_ends_at_the_reset_by_the_clock_of_the_forge(status: int, skew: timedelta) -> None:
    budget = Budget("token-1")
    theirs = NOW - skew
    headers = {**SPENT, "x-ratelimit-reset": epoch(theirs + timedelta(minutes=30)), "Date": http_date(theirs)}
    assert budget.observe(status, headers, "API rate limit exceeded", NOW, LOW) == "primary"
    # Never before the true end, and hardly after it.
    assert 1800 - 0.4 <= seconds(budget.forbidden_until(NOW)) <= 1802
    assert budget.blocked_reason == "primary"


@pytest.mark.parametrize(
    ("reset", "wait"),
    [
        (epoch(NOW - timedelta(minutes=5)), 60),
        ("0", 60),
        (None, 60),
        ("soon", 60),
        ("-1", 60),
        ("1e9", 60),
        ("٣٣٣", 60),
        (epoch(NOW + timedelta(hours=3)), 3600),
        (epoch(NOW + timedelta(days=9000)), 3600),
        ("1507651200000", 3600),
        ("9" * 15, 3600),
        ("9" * 5000, 60),
    ],
)
def test_an_absurd_reset_is_a_bounded_wait(reset: str | None, wait: float) -> None:
    budget = Budget("token-1")
    headers = SPENT | ({"x-ratelimit-reset": reset} if reset is not None else {})
    assert budget.observe(403, headers, "API rate limit exceeded", NOW, LOW) == "primary"
    assert seconds(budget.forbidden_until(NOW)) == pytest.approx(wait, abs=2)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("8", 8),
        (" 8 ", 8),
        ("3600", 3600),
        ("7200", 7200),
        ("99999999999", LONGEST_WAIT.total_seconds()),
        (http_date(NOW + timedelta(seconds=90)), 91),
        ("Sun, 01 Mar 2026 12:02:00 -0000", 121),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT.total_seconds()),
        # What says no time that is ahead says none: a minute, as GitHub wants it.
        ("0", 60),
        ("-5", 60),
        ("1.5", 60),
        ("60, 60", 60),
        ("", 60),
        ("tomorrow", 60),
        (http_date(NOW - timedelta(days=1)), 60),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, wait: float) -> None:
    budget = Budget("token-1")
    assert budget.observe(429, {"Retry-After": value}, "slow down", NOW, LOW) == "secondary"
    assert seconds(budget.forbidden_until(NOW)) == pytest.approx(wait, abs=0.7)


def test_a_retry_after_date_is_by_the_clock_of_the_forge() -> None:
    theirs = NOW + timedelta(hours=5)
    headers = {"Retry-After": http_date(theirs + timedelta(seconds=30)), "Date": http_date(theirs)}
    budget = Budget("token-1")
    budget.observe(429, headers, "", NOW, LOW)
    assert 30 <= seconds(budget.forbidden_until(NOW)) <= 32


def test_retry_after_goes_before_the_reset_and_both_are_kept() -> None:
    budget = Budget("token-1")
    headers = {**SPENT, "x-ratelimit-reset": epoch(NOW + timedelta(minutes=10)), "retry-after": "5"}
    assert budget.observe(403, headers, "", NOW, LOW) == "primary"
    assert budget.blocked_until == NOW + timedelta(seconds=5)
    # The hour's budget is spent all the same: asking after five seconds would break that window.
    assert seconds(budget.forbidden_until(NOW)) == pytest.approx(600, abs=2)


def test_a_secondary_limit_without_a_time_grows_with_jitter_up_to_an_hour() -> None:
    for jitter, factor in ((LOW, 1.0), (Highest(), 1.25)):
        budget, waits = Budget("token-1"), []
        for _ in range(10):
            assert (
                budget.observe(403, {}, "You have exceeded a secondary rate limit", NOW, jitter)
                == "secondary"
            )
            waits.append(seconds(budget.forbidden_until(NOW)))
        assert waits == pytest.approx([min(60 * 2**n * factor, 3600) for n in range(10)], rel=1e-4)
    assert budget.observe(304, {}, "", NOW, LOW) is None
    budget.observe(429, {}, "", NOW, LOW)
    assert seconds(budget.forbidden_until(NOW)) == 60


@pytest.mark.parametrize("message", ["Must have admin rights to Repository.", "Resource not accessible", ""])
def test_a_403_that_is_no_limit_forbids_nothing(message: str) -> None:
    budget = Budget("token-1")
    headers = {"x-ratelimit-remaining": "4000", "x-ratelimit-reset": epoch(NOW + timedelta(minutes=5))}
    assert budget.observe(403, headers, message, NOW, LOW) is None
    assert budget.forbidden_until(NOW) is None


def test_another_resource_does_not_overwrite_the_core_budget() -> None:
    budget = Budget("token-1", rate_limit=5000, remaining=4000, reset_at=NOW + timedelta(minutes=5))
    headers = {**SPENT, "x-ratelimit-limit": "30", "x-ratelimit-resource": "search"}
    assert budget.observe(200, headers, "", NOW, LOW) is None
    assert (budget.rate_limit, budget.remaining) == (5000, 4000)
    assert budget.forbidden_until(NOW) is None


def test_a_server_error_with_retry_after_is_a_window_and_one_without_is_not() -> None:
    budget = Budget("token-1")
    assert budget.observe(503, {}, "", NOW, LOW) is None
    assert budget.forbidden_until(NOW) is None
    assert budget.observe(503, {"retry-after": "120"}, "", NOW, LOW) == "unreachable"
    assert seconds(budget.forbidden_until(NOW)) == 120


def test_the_third_failure_in_a_row_opens_a_window_that_grows_to_ten_minutes() -> None:
    budget, waits = Budget("token-1"), []
    for _ in range(9):
        budget.fail(NOW, LOW)
        until = budget.forbidden_until(NOW)
        waits.append(0 if until is None else seconds(until))
    assert waits == [0, 0, 30, 60, 120, 240, 480, 600, 600]
    assert budget.forbidden_kind(NOW) == "unreachable"
    budget.observe(200, {}, "", NOW, LOW)
    budget.fail(NOW, LOW)
    assert budget.forbidden_until(NOW) is None


def test_an_outage_does_not_make_an_hour_of_the_first_secondary_limit() -> None:
    budget = Budget("token-1")
    for _ in range(20):
        budget.fail(NOW, LOW)
    budget.observe(429, {}, "", NOW, LOW)
    assert seconds(budget.forbidden_until(NOW)) == 240


def test_failures_between_two_limits_do_not_make_waiting_short_again() -> None:
    budget = Budget("token-1")
    waits: list[float] = []
    for _ in range(6):
        budget.observe(429, {}, "", NOW, LOW)
        waits.append(seconds(budget.forbidden_until(NOW)))
        budget.fail(NOW, LOW)
    assert waits == [60, 240, 240, 240, 240, 240]


def test_the_longest_of_several_windows_is_the_kind_that_is_told() -> None:
    budget = Budget("token-1", remaining=0, reset_at=NOW + timedelta(minutes=9))
    budget.block(NOW + timedelta(minutes=2), "secondary")
    assert budget.forbidden_kind(NOW) == "primary"
    budget.block(NOW + timedelta(minutes=20), "unauthorized: the token was refused")
    assert budget.forbidden_kind(NOW) == "secondary"


# --- what was recorded --------------------------------------------------------------------------------------

RECORDED = {
    "error_403_primary_authenticated.json": ("secondary", 60),
    "error_403_primary_unauthenticated_2013.json": ("primary", 60),
    "error_403_secondary.json": ("secondary", 60),
    "error_403_secondary_body_marker_only.json": ("secondary", 60),
    "error_429_no_retry_after.json": ("secondary", 60),
    "error_429_secondary_retry_after.json": ("secondary", 8),
    "error_429_secondary_retry_after_date.json": ("secondary", 9),
    "error_401_bad_credentials.json": (None, 0),
    "error_403_bad_user_agent.json": (None, 0),
    "error_404_getReleaseDoesNotExist.json": (None, 0),
    "error_404_not_found.json": (None, 0),
    "error_422_validation_failed.json": (None, 0),
    "octokit_error_422.json": (None, 0),
}


def filled_in(name: str, value: Any) -> str:
    """A recorded header; those of hub4j are templates of WireMock."""
    text = ", ".join(value) if isinstance(value, list) else str(value)
    if not text.startswith("{{"):
        return text
    ahead = {"retry-after": 8, "x-ratelimit-reset": 3}.get(name.lower(), 0)
    moment = NOW + timedelta(seconds=ahead)
    return epoch(moment) if "unix" in text else http_date(moment)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_answers_are_told_apart(shared_data: Path, name: str) -> None:
    exchange = json.loads((shared_data / "github_api" / "recorded" / name).read_text())["exchanges"][0]
    headers = {key: filled_in(key, value) for key, value in exchange["headers"].items()}
    budget = Budget("token-1")
    kind = budget.observe(exchange["status"], headers, exchange["body"]["message"], NOW, LOW)
    until = budget.forbidden_until(NOW)
    assert (kind, 0 if until is None else pytest.approx(seconds(until), abs=0.7)) == RECORDED[name]


# --- anything at all ----------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.integers(-10_000, 10_000).map(lambda s: epoch(NOW + timedelta(seconds=s))),
    st.datetimes(min_value=datetime(1901, 1, 1)).map(lambda d: http_date(d.replace(tzinfo=UTC))),  # noqa: DTZ001
    st.text(max_size=30),
    st.sampled_from(
        ["", " ", ",", "GMT", "0", "Mon, 1 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359"]
    ),
)
NAMES = [
    "Retry-After", "Date", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "X-RateLimit-Resource",
]  # fmt: skip
ANSWERS = st.tuples(
    st.sampled_from([200, 301, 304, 401, 403, 404, 422, 429, 451, 500, 503]),
    st.dictionaries(st.sampled_from(NAMES), VALUES),
    st.sampled_from(["", "secondary rate limit", "Not Found"]),
    st.booleans(),
)


@given(answers=st.lists(ANSWERS, max_size=8), seed=st.integers(0, 1000))
def test_whatever_the_answers_say_windows_are_ahead_and_bounded(
    answers: list[tuple[int, dict[str, str], str, bool]], seed: int
) -> None:
    budget, jitter, now = Budget("token-1"), random.Random(seed), NOW
    for status, headers, message, fails in answers:
        if fails:
            budget.fail(now, jitter)
        kind = budget.observe(status, headers, message, now, jitter)
        until = budget.forbidden_until(now)
        assert kind in (None, "primary", "secondary", "unreachable")
        assert until is None or now < until <= now + LONGEST_WAIT
        assert until is not None or (kind is None and status != 429)
        assert until is None or budget.forbidden_until(until) is None
        assert budget.forbidden_kind(now) in ("primary", "secondary", "unreachable")
        # What PostgreSQL's integers hold.
        assert all(
            0 <= (count or 0) < 2**31 for count in (budget.rate_limit, budget.remaining, budget.strikes)
        )
        now = until or now + timedelta(seconds=1)


# --- where a list goes on -----------------------------------------------------------------------------------

ADDRESS = "https://api.example.com/repositories/1/releases?per_page=100&page=2"


@pytest.mark.parametrize(
    ("header", "target"),
    [
        (None, None),
        ("", None),
        (f'<{ADDRESS}>; rel="next", <{ADDRESS}9>; rel="last"', ADDRESS),
        (f'<{ADDRESS}9>; rel="last",<{ADDRESS}>; rel="next"', ADDRESS),
        (f"<{ADDRESS}>;rel=next", ADDRESS),
        (f"  <{ADDRESS}>  ;  REL = Next ;", ADDRESS),
        (f'<{ADDRESS}>; rel="prefetch  next"', ADDRESS),
        (f'<{ADDRESS}>; title="a, b; rel=\\"next\\" <x>"; rel="last"', None),
        (f'<{ADDRESS}>; rel="last"; rel="next"', None),
        (f'<{ADDRESS}>; rel="nextish", <{ADDRESS}>; rel="prev"', None),
        (f'<{ADDRESS}>; rel="next"; anchor="#other"', None),
        (f'<{ADDRESS}>; nothing; rel="next"', ADDRESS),
        (', , </page,2;x>; rel="next" ,', "/page,2;x"),
    ],
)
def test_the_next_page_is_found_however_the_header_is_written(header: str | None, target: str | None) -> None:
    assert next_target(header) == target


@pytest.mark.parametrize(
    "header",
    [f'<{ADDRESS}>; rel="ne', f"<{ADDRESS}", "next", f"<{ADDRESS}> rel=next", f'<{ADDRESS}>; rel="next" junk', "x" * 200_000],
)  # fmt: skip
def test_a_header_that_is_cut_short_is_not_the_end_of_the_list(header: str) -> None:
    with pytest.raises(UnreadableLinkError):
        next_target(header)


def test_a_hostile_header_takes_no_time() -> None:
    started = time.process_time()
    for header in (
        "<a>;" * 24_000,
        "<" * 99_000,
        '<a>; x="' + "\\" * 99_000,
        "<a>; a=" * 14_000,
        " " * 99_999,
    ):
        try:
            parse_links(header)
        except UnreadableLinkError:
            continue
    assert time.process_time() - started < 2


RELATIONS = st.frozensets(st.sampled_from(["next", "prev", "first", "last"]), min_size=1)
TARGETS = st.text(
    st.characters(codec="ascii", exclude_characters="<>", exclude_categories=["C", "Z"]), min_size=1
)


@given(
    links=st.lists(st.tuples(TARGETS, RELATIONS), max_size=5), space=st.sampled_from(["", " ", "\t "]),
    title=st.text(st.characters(codec="latin-1", exclude_categories=["C"])),
)  # fmt: skip
def test_any_list_of_links_is_read_back(
    links: list[tuple[str, frozenset[str]]], space: str, title: str
) -> None:
    quoted = title.replace("\\", "\\\\").replace('"', '\\"')
    header = f"{space},{space}".join(
        f'<{target}>{space};{space}title="{quoted}"{space};rel="{" ".join(relations)}"' for target, relations in links
    )  # fmt: skip
    assert parse_links(header) == [Link(target, relations) for target, relations in links]


@given(header=st.text(st.sampled_from("<>;,= \"\\relnxt'a"), max_size=60))
def test_any_header_is_read_or_refused(header: str) -> None:
    try:
        assert isinstance(parse_links(header), list)
    except UnreadableLinkError:
        return
