"""The page that says how the platform is doing: what is wrong, what is watched, what may still be asked, what waits.

It shows itself anew every few seconds. Takes its knowledge as an argument, so that a test can bring its own. Does not
belong here: how text is made harmless (`rendering`), what is an alert (the sensors decide, and write it down).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import streamlit as st

from app_streamlit import rendering, streams
from app_streamlit.session import Knowledge
from kb_platform.errors import KbError
from kb_platform.store.alerts import Alert
from kb_platform.store.status_summary import HOURS_OF_REQUESTS, Credential, Requests, Status, Watched

SHOWN_AGAIN_AFTER_S: Final = 15.0
ROWS: Final = 15
_ALERTS_AT_ONCE: Final = 5
_MOST_CREDENTIALS: Final = 12
_LONGEST_DETAIL: Final = 200
_LONGEST_SEARCH: Final = 140
_PAGINATION_BUTTON_PX: Final = 66
_MOST_PAGE_BUTTONS: Final = 7
# Kinds of answers, in the order in which they are stacked: trouble at the foot of each bar, where little of it is seen too.
# Each colour has a contrast of 3:1 at least with the light and with the dark background.
_ANSWERS: Final = {
    "failed": "#cf4f4f",
    "limited": "#c27a12",
    "answered": "#3d82c9",
    "not modified": "#7f8b9b",
}


def show(open_knowledge: Callable[[], Knowledge]) -> None:
    """The page."""
    st.title("Status", anchor=False)
    _show_live(open_knowledge)


@st.fragment(run_every=SHOWN_AGAIN_AFTER_S)
def _show_live(open_knowledge: Callable[[], Knowledge]) -> None:
    now = datetime.now(UTC)
    try:
        knowledge = open_knowledge()
        status = knowledge.status()
        rendering.show_text(
            f"As of {now:%Y-%m-%d %H:%M:%S} UTC; this page keeps itself up to date", small=True
        )
        _show_alerts(status, now)
        _show_figures(status)
        _show_watched(knowledge, status, now)
        streams.show(status.streams, now)
        _show_credentials(status.credentials, now)
        _show_requests(status.requests)
    except KbError as error:
        rendering.show_error(error)


def _show_alerts(status: Status, now: datetime) -> None:
    if not status.open_alerts:
        st.success("All is well: no alert is open.", icon=":material/check_circle:")
        return
    with st.container(key="alerts", gap="small"):
        st.header("Open alerts", anchor=False)
        for alert in status.alerts[:_ALERTS_AT_ONCE]:
            _show_alert(alert, now)
        more = status.open_alerts - _ALERTS_AT_ONCE
        if more <= 0:
            return
        unfolded = rendering.unfolding(f"{more:,} more", key="more-alerts")
        if unfolded.open:
            with unfolded:
                for alert in status.alerts[_ALERTS_AT_ONCE:]:
                    _show_alert(alert, now)
                if status.open_alerts > len(status.alerts):
                    st.caption("`kb alerts` lists them all.")


def _show_alert(alert: Alert, now: datetime) -> None:
    with st.container(border=True, gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            if alert.severity == "error":
                st.badge("error", icon=":material/error:", color="red")
            else:
                st.badge("warning", icon=":material/warning:", color="orange")
            rendering.show_text(rendering.strong(alert.subject), f" {_words(alert.kind)}", width="content")
            rendering.show_text(rendering.ago(alert.raised_at, now), small=True, width="content")
        rendering.show_text(rendering.with_code(alert.message))


def _words(kind: str) -> str:
    return kind.replace("-", " ")


def _show_figures(status: Status) -> None:
    counts = status.counts
    waiting = sum(status.quarantine.values())
    with st.container(horizontal=True, gap="large", key="figures"):
        st.metric("Watched", f"{counts.watched:,}", width="content")
        st.metric("Failing", f"{counts.failing:,}", width="content")
        st.metric("Not verified in time", f"{counts.stale:,}", width="content")
        st.metric("Index behind", f"{len(status.behind):,}", width="content")
        st.metric("In quarantine", f"{waiting:,}", width="content")
    with st.container(key="remarks", gap=None):
        if status.index_version is None:
            st.caption("Nothing is indexed yet.")
        else:
            behind = (
                f"behind the log for {_few(status.behind)}" if status.behind else "up to date with the log"
            )
            rendering.show_text(
                f"Index version {status.index_version} of {status.model}, {behind}", small=True
            )
        if status.quarantine:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in status.quarantine.items())
            shown = rendering.with_code("; `kb quarantine list` shows the records")
            rendering.show_text(f"Quarantine: {reasons}", shown, small=True)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


# --- what is watched ---


def _show_watched(knowledge: Knowledge, status: Status, now: datetime) -> None:
    st.header("Watched repositories", anchor=False)
    if not status.counts.watched:
        st.info("No repository is watched yet.", icon=":material/visibility_off:")
        st.code("kb watch add OWNER/REPO", language=None)
        return
    search = ""
    if status.counts.watched > ROWS:
        search = st.text_input(
            "Search", key="watched-search", max_chars=_LONGEST_SEARCH, type="search", placeholder="owner/name"
        ).strip()
    found = knowledge.watched(search, offset=0, limit=ROWS)
    pages = max(-(-found.found // ROWS), 1)
    # A widget per search: the third page of all is not the third page of what a search finds.
    key = f"watched-{pages}-{hashlib.sha256(search.encode()).hexdigest()[:10]}"
    page = min(int(st.session_state.get(key, 1)), pages)
    if page > 1:
        found = knowledge.watched(search, offset=(page - 1) * ROWS, limit=ROWS)
    if not found.rows:
        st.caption("None has this in its name.")
        return
    with st.container(key="watched", gap=None):
        for one in found.rows:
            _show_repository(one, now, status.stale_after)
    if pages > 1:
        first = (page - 1) * ROWS
        with st.container(horizontal=True, vertical_alignment="center"):
            # At its natural width, Streamlit leaves out pages that there is room for.
            st.pagination(
                pages, key=key, width=_PAGINATION_BUTTON_PX * (min(pages, _MOST_PAGE_BUTTONS) + 2),
                max_visible_pages=_MOST_PAGE_BUTTONS,
            )  # fmt: skip
            st.caption(
                f"{first + 1:,} to {first + len(found.rows):,} of {found.found:,}, those that fail first",
                width="content",
            )


def _show_repository(one: Watched, now: datetime, stale_after: timedelta) -> None:
    with st.container(gap=None):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            _show_state(one, now, stale_after)
            rendering.show_text(rendering.strong(one.repository), width="content")
            rendering.show_text(_times(one, now), small=True, width="content")
        if one.failures:
            rendering.show_text(rendering.alarming(_failure(one, now)), small=True)


def _show_state(one: Watched, now: datetime, stale_after: timedelta) -> None:
    if one.failures:
        st.badge("failing", color="red")
    elif one.is_stale(now, stale_after):
        st.badge("stale", color="orange")
    elif one.verified_at is None:
        st.badge("waiting", color="gray")
    else:
        st.badge("fresh", color="green")


def _times(one: Watched, now: datetime) -> str:
    verified = f"verified {rendering.ago(one.verified_at, now)}" if one.verified_at else "never verified"
    parts = [verified, f"next poll {until(one.due_at, now)}"]
    if one.truncated:
        parts.append("the forge cuts its list short")
    return " · ".join(parts)


def _failure(one: Watched, now: datetime) -> str:
    ago = rendering.ago(one.failing_since, now) if one.failing_since else "just now"
    lasting = "" if ago == "just now" else f", first {ago}"
    detail = _clipped(one.detail)
    times = "once" if one.failures == 1 else f"{one.failures:,} times in a row"
    return f"Failed {times}{lasting}: {one.reason or 'no reason given'}" + (f": {detail}" if detail else "")


def _clipped(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _LONGEST_DETAIL else line[: _LONGEST_DETAIL - 1].rstrip() + "…"


def until(moment: datetime, now: datetime) -> str:
    """How long it is until then, roughly.

    >>> until(datetime(2026, 5, 1, 10, tzinfo=UTC), datetime(2026, 5, 1, 9, tzinfo=UTC))
    'in 1 hour'
    """
    if moment <= now:
        return "is due"
    roughly = rendering.ago(now - (moment - now), now)
    return "in less than a minute" if roughly == "just now" else f"in {roughly.removesuffix(' ago')}"


# --- what may be asked, and what was ---


def _show_credentials(credentials: Sequence[Credential], now: datetime) -> None:
    if not credentials:
        return
    st.header("Credentials", anchor=False)
    with st.container(key="credentials", gap="small"):
        for one in credentials[:_MOST_CREDENTIALS]:
            with st.container(gap="xsmall"):
                with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                    rendering.show_text(rendering.strong(one.name), width="content")
                    if one.blocked_until is not None and one.blocked_until > now:
                        st.badge("blocked", color="red")
                    rendering.show_text(_budget(one, now), small=True, width="content")
                share = _share_left(one, now)
                if share is not None:
                    st.progress(share)
    if len(credentials) > _MOST_CREDENTIALS:
        st.caption(f"and {len(credentials) - _MOST_CREDENTIALS:,} more")


def _budget(one: Credential, now: datetime) -> str:
    parts: list[str] = []
    if one.rate_limit and one.remaining is not None:
        if one.reset_at is not None and one.reset_at <= now:
            parts.append(f"{one.rate_limit:,} requests an hour, none of them spent")
        else:
            reset = f", new ones {until(one.reset_at, now)}" if one.reset_at else ""
            parts.append(f"{one.remaining:,} of {one.rate_limit:,} requests left{reset}")
    if one.blocked_until is not None and one.blocked_until > now:
        parts.append(
            f"asks again {until(one.blocked_until, now)} ({_clipped(one.blocked_reason) or 'no reason given'})"
        )
    return " · ".join(parts) or "its budget is not known"


def _share_left(one: Credential, now: datetime) -> float | None:
    if not one.rate_limit or one.remaining is None:
        return None
    if one.reset_at is not None and one.reset_at <= now:
        return 1.0
    return min(max(one.remaining / one.rate_limit, 0.0), 1.0)


def _show_requests(requests: Sequence[Requests]) -> None:
    if not requests:
        return
    st.header("Requests", anchor=False)
    rendering.show_text(
        f"By hour (UTC) and kind of answer, the last {HOURS_OF_REQUESTS:,} hours: {_totals(requests)}",
        small=True,
    )
    with st.container(key="requests"):
        st.vega_lite_chart(  # pyright: ignore[reportUnknownMemberType] - a gap in streamlit's own hints
            chart(requests), alt="Requests by hour and kind of answer", height=260
        )


def _totals(requests: Sequence[Requests]) -> str:
    counted: Counter[str] = Counter()
    for one in requests:
        counted[kind_of_answer(one.answer)] += one.requests
    return ", ".join(f"{counted[kind]:,} {kind}" for kind in reversed(_ANSWERS) if counted[kind])


def chart(requests: Sequence[Requests]) -> dict[str, Any]:
    """Stacked bars, in Vega-Lite's words; the data stands in it."""
    counted: Counter[tuple[datetime, str]] = Counter()
    for one in requests:
        counted[one.hour, kind_of_answer(one.answer)] += one.requests
    order = list(_ANSWERS)
    # All hours, also those that nothing was asked in: on its first day, one hour's bar would be as wide as the page.
    latest = max((one.hour for one in requests), default=datetime.now(UTC)).astimezone(UTC)
    span = [f"{latest + timedelta(hours=hours):%Y-%m-%dT%H:%M:%S}" for hours in (1 - HOURS_OF_REQUESTS, 1)]
    return {
        "data": {
            "values": [
                {"hour": f"{hour.astimezone(UTC):%Y-%m-%dT%H:%M:%S}", "answer": kind, "requests": count,
                 "place": order.index(kind)}
                for (hour, kind), count in sorted(counted.items())
            ]
        },
        "mark": {"type": "bar"},
        "encoding": {
            # Wall-clock times of UTC; with a zone they would be moved to the visitor's.
            "x": {"field": "hour", "type": "temporal", "timeUnit": "yearmonthdatehours", "title": None, "scale": {"domain": span},
                  "axis": {"format": "%H:%M", "labelOverlap": True}},
            "y": {"field": "requests", "type": "quantitative", "title": None, "axis": {"tickMinStep": 1}},
            "color": {"field": "answer", "type": "nominal", "title": None,
                      "scale": {"domain": order, "range": list(_ANSWERS.values())}, "legend": {"orient": "bottom", "offset": 8}},
            "order": {"field": "place", "type": "quantitative"},
            "tooltip": [{"field": "hour", "type": "temporal", "format": "%Y-%m-%d %H:%M", "title": "hour"},
                        {"field": "answer", "type": "nominal"},
                        {"field": "requests", "type": "quantitative", "format": ","}],
        },
    }  # fmt: skip


def kind_of_answer(answer: str) -> str:
    """The kind of an HTTP status, or of a word for there being none.

    >>> [kind_of_answer(answer) for answer in ("200", "304", "429", "503", "unreachable")]
    ['answered', 'not modified', 'limited', 'failed', 'failed']
    """
    if answer == "304":
        return "not modified"
    if answer in ("403", "429"):
        return "limited"
    # Moved and gone are answers too.
    return "answered" if answer[:1] in ("2", "3") or answer in ("404", "410", "451") else "failed"
