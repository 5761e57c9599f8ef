"""The status page's section on streams: each topic, how much of it waits, and what is wrong with it.

Knows the database's account of them alone; no broker is asked for a page. Does not belong here: when it is shown (`page_status`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import streamlit as st

from app_streamlit import rendering
from kb_platform.store.streams import StreamState

_MOST: Final = 12
_LONGEST_DETAIL: Final = 400


def show(streams: Sequence[StreamState], now: datetime) -> None:
    """The section; nothing where no topic was ever read."""
    if not streams:
        return
    st.header("Streams", anchor=False)
    groups = {one.group for one in streams}
    with st.container(key="streams", gap="small"):
        for one in streams[:_MOST]:
            with st.container(gap="xsmall"):
                with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                    rendering.show_text(rendering.strong(one.topic), width="content")
                    _show_badge(one)
                    rendering.show_text(
                        _figures(one, now, named=len(groups) > 1), small=True, width="content"
                    )
                _show_trouble(one, now)
    if len(streams) > _MOST:
        st.caption(f"and {len(streams) - _MOST:,} more: `kb kafka status` lists them all")


def _show_badge(one: StreamState) -> None:
    if one.trouble is not None:
        st.badge("stopped", icon=":material/error:", color="red")
    elif one.unreachable_since is not None:
        st.badge("no broker answers", icon=":material/warning:", color="orange")
    elif one.lag:
        st.badge("landing", color="blue")
    else:
        st.badge("all landed", color="green")


def _figures(one: StreamState, now: datetime, *, named: bool) -> str:
    parts = [f"{one.lag:,} wait", f"{one.records:,} landed"]
    parts.append(f"the last {rendering.ago(one.landed_at, now)}" if one.landed_at else "none yet")
    if one.quarantined:
        parts.append(f"{one.quarantined:,} of them in quarantine")
    if named:
        parts.append(f"group {one.group}")
    return " · ".join(parts)


def _show_trouble(one: StreamState, now: datetime) -> None:
    if one.trouble is not None:
        since = f", {rendering.ago(one.trouble_since, now)}" if one.trouble_since else ""
        detail = _clipped(one.trouble_detail).rstrip(".")
        rendering.show_text(
            rendering.alarming(f"Stopped{since}: {one.trouble}" + (f", {detail}" if detail else "") + "."),
            rendering.with_code(
                f" `kb kafka reset --topic {_in_command(one.topic)}` asks where to go on, and records it."
            ),
        )
    elif one.unreachable_since is not None:
        rendering.show_text(
            rendering.alarming(f"No broker has answered, first {rendering.ago(one.unreachable_since, now)}."),
            rendering.with_code(
                " Landing goes on by itself when they do; `kb kafka status` says why they do not."
            ),
        )


def _in_command(topic: str) -> str:
    # Kafka has no such names, and the command stays one piece of code.
    return _clipped(topic).replace("`", "'")


def _clipped(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= _LONGEST_DETAIL else line[: _LONGEST_DETAIL - 1].rstrip() + "…"
