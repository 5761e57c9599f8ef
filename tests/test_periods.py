"""Dates and periods as people write them."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb_platform.retrieval.dates import add_months
from kb_platform.retrieval.periods import take_period
from kb_platform.retrieval.reading import Reading

TODAY = date(2026, 11, 21)  # a Saturday


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("published in February 2025 (UTC)", "2025-02-01", "2025-03-01"),
        ("in Feb. 2025", "2025-02-01", "2025-03-01"),
        ("between March and May 2024", "2024-03-01", "2024-06-01"),
        ("between October and February 2024", "2023-10-01", "2024-03-01"),
        ("from October 2023 to January", "2023-10-01", "2024-02-01"),
        ("March\u2013May 2024", "2024-03-01", "2024-06-01"),
        ("2024-03..2024-05", "2024-03-01", "2024-06-01"),
        ("since 2024-01-05", "2024-01-05", None),
        ("after 2024-01-05", "2024-01-06", None),
        ("after March 2024", "2024-04-01", None),
        ("before 2023", None, "2023-01-01"),
        ("until March 2024", None, "2024-04-01"),
        ("by the end of 2023", None, "2024-01-01"),
        ("after March 2023 and before June 2024", "2023-04-01", "2024-06-01"),
        ("between 2022 and 2024", "2022-01-01", "2025-01-01"),
        ("from 2023-01-01 to 2023-06-30", "2023-01-01", "2023-07-01"),
        ("in Q1 2024", "2024-01-01", "2024-04-01"),
        ("2024Q3 releases", "2024-07-01", "2024-10-01"),
        ("the second quarter of 2024", "2024-04-01", "2024-07-01"),
        ("the first half of 2023", "2023-01-01", "2023-07-01"),
        ("H2 2023", "2023-07-01", "2024-01-01"),
        ("in 2024", "2024-01-01", "2025-01-01"),
        ("the 2024 releases", "2024-01-01", "2025-01-01"),
        ("releases of 2024", "2024-01-01", "2025-01-01"),
        ("releases from March 2024", "2024-03-01", "2024-04-01"),
        ("from March 2024 on", "2024-03-01", None),
        ("in October", "2026-10-01", "2026-11-01"),
        ("in December", "2025-12-01", "2026-01-01"),
        ("on 5 January", "2026-01-05", "2026-01-06"),
        ("on Jan 5, 2024", "2024-01-05", "2024-01-06"),
        ("5th of March 2024", "2024-03-05", "2024-03-06"),
        ("on 2024/03/05", "2024-03-05", "2024-03-06"),
        ("today", "2026-11-21", "2026-11-22"),
        ("yesterday", "2026-11-20", "2026-11-21"),
        ("three weeks ago", "2026-10-31", "2026-11-01"),
        ("last week", "2026-11-09", "2026-11-16"),
        ("this week", "2026-11-16", "2026-11-23"),
        ("last month", "2026-10-01", "2026-11-01"),
        ("in the last month", "2026-10-21", "2026-11-22"),
        ("in the past 30 days", "2026-10-22", "2026-11-22"),
        ("last quarter", "2026-07-01", "2026-10-01"),
        ("last year", "2025-01-01", "2026-01-01"),
        ("last two years", "2024-11-21", "2026-11-22"),
        ("published in March 2099", "2099-03-01", "2099-04-01"),
    ],
)
def test_periods(text: str, start: str | None, end: str | None) -> None:
    reading = Reading(f"what changed {text}")
    period = take_period(reading, TODAY)
    assert period is not None
    assert (period.start and period.start.isoformat(), period.end and period.end.isoformat()) == (start, end)
    assert "20" not in reading.marked


@pytest.mark.parametrize(
    "text",
    [
        "what may break in march",
        "since 2024.1.0",
        "between 2024.1 and 2024.6",
        "CVE-2024-1234",
        "the 2026 style guide",
        "ISO 8601:2004",
        "2024-02-31",
        "PEP 2023",
        "dates before 1970",
        "the year 2038 problem",
        "since 18 months",
        "astro@2024-05-05x",
    ],
)
def test_what_is_no_period(text: str) -> None:
    reading = Reading(text)
    assert take_period(reading, TODAY) is None
    assert reading.marked == text


@given(st.dates(date(2006, 1, 1), TODAY))
def test_every_day_month_and_year_is_read(day: date) -> None:
    for text in (
        f"on {day.isoformat()}",
        f"on {day:%B} {day.day}, {day.year}",
        f"on {day.day} {day:%b} {day.year}",
    ):
        period = take_period(Reading(text), TODAY)
        assert period is not None
        assert (period.start, period.end) == (day, date.fromordinal(day.toordinal() + 1))
    month = take_period(Reading(f"in {day:%B %Y}"), TODAY)
    assert month is not None
    assert (month.start, month.end) == (day.replace(day=1), add_months(day.replace(day=1), 1))


@given(st.dates(date(1990, 1, 1), date(2060, 1, 1)), st.integers(-500, 500))
def test_months_are_added_without_leaving_the_month(day: date, months: int) -> None:
    later = add_months(day, months)
    assert (later.year * 12 + later.month) - (day.year * 12 + day.month) == months
    assert later.day <= day.day
