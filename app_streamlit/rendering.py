"""Putting things on the page: the one way for text that others wrote, and for errors.

Every call to Streamlit whose argument holds stored, asked or generated text stands here and goes through `inert`. Pages call
Streamlit themselves only with words of their own. `st.html` and `unsafe_allow_html` are never given foreign text; a test reads
the sources for that.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import streamlit as st

from app_streamlit import notes
from app_streamlit.inert import code, escape, inline, label, visible
from app_streamlit.links import HOME_HOSTS, clickable, spelled_out
from app_streamlit.notes import Block, Span
from kb_platform.errors import KbError

if TYPE_CHECKING:
    from streamlit.elements.lib.mutable_expander_container import ExpanderContainer

_log: Final = logging.getLogger(__name__)

_LONGEST_LABEL: Final = 600

_KIND_COLOURS: Final[dict[str, Any]] = {
    "breaking": "red",
    "security": "violet",
    "deprecation": "orange",
    "removal": "orange",
    "feature": "green",
    "fix": "blue",
    "performance": "green",
}


def show_style() -> None:
    """The style sheet, which is a file of this package."""
    st.html(Path(__file__).with_name("style.css"))


def show_text(*parts: str, small: bool = False, width: Literal["stretch", "content"] = "stretch") -> None:
    """A paragraph of text from anywhere, shown as it is written. What stands in `strong()` is bold."""
    text = "".join(part if isinstance(part, _Markdown) else _escaped(part) for part in parts)
    if small:
        st.caption(text, width=width)
    else:
        st.markdown(text, width=width)


class _Markdown(str):
    """Markdown that was made in this module."""

    __slots__ = ()


def strong(text: str) -> str:
    """A part of `show_text` in bold."""
    return _Markdown(f"**{escape(text)}**") if escape(text) else _Markdown("")


def alarming(text: str) -> str:
    """A part of `show_text` in the colour of errors."""
    return _Markdown(f":red[{escape(text)}]") if escape(text) else _Markdown("")


def with_code(text: str) -> str:
    """A part of `show_text` in which what stands between backticks, such as a command to type, is code."""
    parts = re.split(r"`([^`]+)`", text)
    return _Markdown("".join(code(part) if at % 2 else _escaped(part) for at, part in enumerate(parts)))


def mark(number: int) -> str:
    """A part of `show_text`: the number of a citation."""
    return _Markdown(f" :primary-badge[{number}] ")


def _escaped(text: str) -> str:
    """`escape`, with one blank kept where the text begins or ends with some."""
    if not text.strip():
        return " " if text else ""
    return (" " if text[0].isspace() else "") + escape(text) + (" " if text[-1].isspace() else "")


def button(
    text: str, *, key: str, on_click: Callable[..., None], args: tuple[Any, ...], **looks: Any
) -> None:
    """A button with a label from anywhere."""
    st.button(label(text), key=key, on_click=on_click, args=args, **looks)


def unfolding(*parts: str, key: str, expanded: bool = False) -> ExpanderContainer:
    """A container that unfolds, with a label from anywhere; its `open` says whether there is anything to put into it."""
    text = "".join(part if isinstance(part, _Markdown) else _escaped(part[:_LONGEST_LABEL]) for part in parts)
    return st.expander(text, expanded=expanded, key=key, on_change="rerun", type="compact")


def show_kind(kind: str) -> None:
    """The kind of a change as a badge."""
    st.badge(label(kind), color=_KIND_COLOURS.get(kind, "gray"))


def show_exact(text: str) -> None:
    """A text as it is, with a button that copies it."""
    st.code(visible(text), language=None, wrap_lines=True)


def show_release_link(address: str, *, key: str) -> None:
    """The way to the release at its source; only its address where that may not be clicked."""
    found = clickable(address)
    if found is None:
        st.markdown(code(spelled_out(visible(address))))
        return
    text = "Open on GitHub" if found.host in HOME_HOSTS else f"Open at {escape(found.host)}"
    st.link_button(text, found.url, key=key, icon=":material/open_in_new:", type="tertiary")


def show_notes(body: str, span: Span, *, key: str, whole: bool) -> None:
    """Release notes with the cited span marked: what stands around it, or all of them."""
    found = notes.with_citation(notes.blocks(body), body, span)
    chosen = notes.shortened(found) if whole else notes.around(found)
    with st.container(key=f"notes-{key}", gap="small"):
        if not whole and chosen and chosen[0].start > found[0].start:
            st.caption("…")
        for part, (cited, group) in enumerate(groupby(chosen, key=lambda block: block.cited)):
            with st.container(key=f"{'cited' if cited else 'around'}-{key}-{part}", gap="small"):
                _show_blocks(body, list(group))
        if chosen and chosen[-1].end < found[-1].end:
            st.caption("…")


def has_more(body: str, span: Span) -> bool:
    """Whether the notes have more than what `show_notes` shows around a span."""
    found = notes.with_citation(notes.blocks(body), body, span)
    return len(notes.around(found)) < len(found)


def show_error(error: KbError) -> None:
    """An error of the knowledge base, for the person who must act."""
    st.error(escape(str(error)), icon=":material/error:")
    if error.hint:
        st.markdown(f"**What to do:** {inline(error.hint)}")


def show_failure(error: Exception) -> bool:
    """An error that nobody foresaw: its trace goes to the log, since it may name what visitors should not see."""
    _log.error("the page failed", exc_info=error)
    st.error("Something went wrong here. The log of the app has the details.", icon=":material/error:")
    return True


def day(moment: datetime | None) -> str:
    """The day of a time, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d}" if moment else "no date"


def minute(moment: datetime | None) -> str:
    """A time for people, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment else "never"


def ago(moment: datetime, now: datetime) -> str:
    """How long ago something was, roughly.

    >>> ago(datetime(2026, 5, 1, 9, tzinfo=UTC), datetime(2026, 5, 3, 10, tzinfo=UTC))
    '2 days ago'
    """
    seconds = (now - moment).total_seconds()
    for length, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def _show_blocks(body: str, group: Sequence[Block]) -> None:
    for is_code, run in groupby(group, key=lambda block: block.shape == "code"):
        if is_code:
            for block in run:
                show_exact(block.content(body))
        elif text := markdown_of(body, list(run)):
            st.markdown(text, anchors=False)


def markdown_of(body: str, group: Sequence[Block]) -> str:
    """Blocks without code → Markdown: headings, items and paragraphs whose text went through `inert`."""
    lines: list[str] = []
    base = min((block.depth for block in group), default=0)
    level = -1
    for block in group:
        text = inline(block.content(body))
        if not text:
            continue
        if block.shape == "heading":
            level = -1
            lines.append(f"\n###### {text}\n")
            continue
        level = min(block.depth - base, level + 1)
        indent = "    " * level
        if block.shape == "item":
            lines.append(f"{indent}{block.number + '.' if block.number else '-'} {text}")
        else:
            level = max(level - 1, -1)
            lines.append(f"\n{indent}{text}\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
