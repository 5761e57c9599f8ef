"""The status page's section on streams: what it says in each state, and that nothing stored becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from kb_platform.store.streams import PartitionState, StreamState
from tests.test_app_status import EMPTY, FakeKnowledge, at_page, said

MINUTE = timedelta(minutes=1)
HOSTILE = "![x](http://evil.test/x.png) <img src=http://evil.test/y> [click](http://evil.test) **b** `code`"


def partition(number: int = 0, **changes: Any) -> PartitionState:
    known = PartitionState(number, 700, 0, 700, 0, 700, 70_000, 0, datetime.now(UTC) - 3 * MINUTE)
    return replace(known, **changes)


def stream(topic: str = "kb.releases", *partitions: PartitionState, **changes: Any) -> StreamState:
    known = StreamState(
        "kb-platform", topic, "id", datetime.now(UTC), None, None, None, None, partitions or (partition(),)
    )
    return replace(known, **changes)


def page_of(*streams: StreamState) -> AppTest:
    return at_page(FakeKnowledge(replace(EMPTY, streams=streams)))


def markdown(test: AppTest) -> str:
    """What Streamlit is given to render."""
    return "\n".join(element.value for element in (*test.markdown, *test.caption))


def test_without_streams_there_is_no_section() -> None:
    assert "Streams" not in [element.value for element in page_of().header]


def test_each_topic_says_what_waits_and_what_was_landed() -> None:
    test = page_of(
        stream(
            "kb.releases", partition(0), partition(1, lag=1_500, records=2_000, quarantined=3, high=3_500)
        ),
        stream("kb.documents", partition(0, records=0, landed_at=None)),
    )
    assert "Streams" in [element.value for element in test.header]
    text = said(test)
    assert "1,500 wait · 2,700 landed · the last 3 minutes ago · 3 of them in quarantine" in text
    assert "0 wait · 0 landed · none yet" in text
    assert "landing" in text
    assert "all landed" in text
    # One group goes without saying.
    assert "group" not in text


def test_several_groups_are_told_apart() -> None:
    text = said(page_of(stream(), stream(group="experiments")))
    assert "group kb-platform" in text
    assert "group experiments" in text


def test_a_lost_position_says_what_happened_and_what_to_do() -> None:
    test = page_of(
        stream(
            trouble="truncated",
            trouble_detail="40 records were deleted.",
            trouble_since=datetime.now(UTC) - 70 * MINUTE,
        )
    )
    text = said(test)
    assert "stopped" in text
    assert "Stopped, 1 hour ago: truncated, 40 records were deleted." in text
    assert "`kb kafka reset --topic kb.releases`" in markdown(test)


def test_silent_brokers_are_named() -> None:
    text = said(page_of(stream(unreachable_since=datetime.now(UTC) - 7 * MINUTE)))
    assert "no broker answers" in text
    assert "No broker has answered, first 7 minutes ago." in text
    assert "kb kafka status" in text


@pytest.mark.parametrize("where", ["topic", "group", "trouble", "trouble_detail"])
def test_no_stored_text_becomes_markup(where: str) -> None:
    changes: dict[str, Any] = {"trouble": "truncated", "trouble_since": datetime.now(UTC), where: HOSTILE}
    text = markdown(page_of(stream(**changes), stream(group="other")))
    assert "evil" in text
    # What stands between backticks is shown as it is; elsewhere nothing may be live that is not escaped.
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert re.findall(r"(?<!\\)(?:!\[|<img|\]\(|\*\*b|http:)", outside) == []
    assert "kb kafka reset --topic" in text


def test_many_streams_are_cut_and_counted() -> None:
    test = page_of(*(stream(f"topic-{n}") for n in range(20)))
    text = said(test)
    assert "topic-11" in text
    assert "topic-12" not in text
    assert "and 8 more" in text


def test_long_details_are_cut() -> None:
    test = page_of(stream(trouble="recreated", trouble_detail="x" * 9_000, trouble_since=datetime.now(UTC)))
    assert len(markdown(test)) < 2_000
