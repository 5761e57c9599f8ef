"""Filters: what they admit, how they are written and shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kb_platform.retrieval.filters import Filters
from kb_platform.text.kinds import Kind

MARCH = datetime(2024, 3, 1, tzinfo=UTC)
APRIL = datetime(2024, 4, 1, tzinfo=UTC)


def admits(
    filters: Filters, tag: str = "1.4.0", *, at: datetime | None = MARCH, prerelease: bool = False
) -> bool:
    return filters.admits(repository="acme/tool", tag=tag, published_at=at, prerelease=prerelease)


def test_what_is_not_set_admits_everything() -> None:
    assert admits(Filters())
    assert admits(Filters(), "nightly", at=None, prerelease=True)
    assert Filters().as_json() == {}
    assert Filters().describe() == []


@pytest.mark.parametrize(
    ("filters", "inside", "outside"),
    [
        (Filters(after_version="1.3"), "1.3.1", "v1.3.0"),
        (Filters(from_version="1.3"), "v1.3.0", "1.3.0-rc.1"),
        (Filters(upto_version="v1.4"), "1.4.0", "1.4.1"),
        (Filters(before_version="1.4"), "1.3.9", "1.4.0"),
        (Filters(from_version="2.dev0", before_version="3.dev0"), "2.0.0-alpha", "3.0.0-alpha"),
        (Filters(versions=("1.4.0", "1.5.0")), "1.5.0", "v1.4.0"),
        (Filters(after_version="1.0", package=""), "v1.4.0", "helm-chart-1.4.0"),
        (Filters(package="astro"), "astro@1.0.0", "@astrojs/cloudflare@1.0.0"),
        (Filters(after_version="1.0"), "1.1", "nightly"),
    ],
)
def test_versions(filters: Filters, inside: str, outside: str) -> None:
    assert admits(filters, inside)
    assert not admits(filters, outside)


def test_periods_include_their_start_and_exclude_their_end() -> None:
    filters = Filters(published_from=MARCH, published_before=APRIL)
    assert admits(filters, at=MARCH)
    assert admits(filters, at=datetime(2024, 3, 31, 23, 59, 59, tzinfo=UTC))
    assert not admits(filters, at=APRIL)
    assert not admits(filters, at=None)


def test_repositories_and_prereleases() -> None:
    assert admits(Filters(repositories=("acme/tool", "acme/other")))
    assert not admits(Filters(repositories=("acme/other",)))
    assert not admits(Filters(prerelease=True))
    assert admits(Filters(prerelease=True), prerelease=True)
    assert not admits(Filters(prerelease=False), prerelease=True)


def test_times_without_a_zone_are_utc() -> None:
    assert Filters.model_validate({"published_from": "2024-03-01"}).published_from == MARCH
    assert Filters.model_validate({"published_from": "2024-03-01T02:00:00+02:00"}).published_from == MARCH


def test_a_bound_that_is_no_version_and_an_unknown_condition_are_refused() -> None:
    with pytest.raises(ValidationError, match="latest"):
        Filters(after_version="latest")
    with pytest.raises(ValidationError, match="colour"):
        Filters.model_validate({"colour": "red"})


@given(
    st.builds(
        Filters,
        repositories=st.lists(st.sampled_from(["a/b", "c/d"]), max_size=2).map(tuple),
        package=st.sampled_from([None, "", "astro"]),
        after_version=st.sampled_from([None, "1.0", "astro@2.0.0"]),
        upto_version=st.sampled_from([None, "3.0"]),
        versions=st.lists(st.sampled_from(["1.0", "v2"]), max_size=2).map(tuple),
        published_from=st.none()
        | st.datetimes(min_value=datetime(2005, 1, 1), max_value=datetime(2040, 1, 1)),  # noqa: DTZ001
        kinds=st.lists(st.sampled_from(Kind), max_size=3).map(tuple),
        prerelease=st.sampled_from([None, True, False]),
    )
)
def test_json_holds_everything(filters: Filters) -> None:
    assert Filters.model_validate(filters.as_json()) == filters
    assert bool(filters.describe()) == bool(filters.as_json())


def test_descriptions_are_for_people() -> None:
    filters = Filters(
        repositories=("acme/tool",),
        after_version="1.4.0",
        upto_version="2.1.0",
        published_from=MARCH,
        published_before=APRIL,
        kinds=(Kind.BREAKING, Kind.REMOVAL),
        prerelease=False,
    )
    assert filters.describe() == [
        "repository acme/tool",
        "versions after 1.4.0, up to and including 2.1.0",
        "published from 2024-03-01 up to 2024-03-31 (UTC)",
        "changes of kind breaking or removal",
        "stable releases only",
    ]
    assert Filters(from_version="2.1.dev0", before_version="2.2.dev0").describe() == ["versions 2.1.x"]
    assert Filters(before_version="3.dev0").describe() == ["versions before 3 and its pre-releases"]
