"""The page on which people ask: a question, what was understood, the answer, and the proof of each statement.

Takes its knowledge as an argument, so that a test can bring its own. Does not belong here: how text is made harmless
(`rendering`), where answers come from (`session`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import streamlit as st
from pydantic import ValidationError

from app_streamlit import rendering
from app_streamlit.session import Freshness, Knowledge
from kb_platform.errors import KbError
from kb_platform.retrieval.filters import Filters

if TYPE_CHECKING:
    from kb_platform.answering.answer import Answer
    from kb_platform.answering.citation import Citation

LONGEST_QUESTION: Final = 500
# With so few citations the proof is what a reader wants next; a long list is read first.
_OPENED_UP_TO: Final = 3
# Fields of Filters that are one condition, in the order in which they read well.
_CONDITIONS: Final = (
    ("repositories",),
    ("package",),
    ("versions",),
    ("after_version", "from_version", "upto_version", "before_version"),
    ("published_from", "published_before"),
    ("kinds",),
    ("prerelease",),
)
_NUMBERED: Final = re.compile(r"(?P<text>.*\S)\s*\[(?P<number>\d{1,3})\]")


@dataclass(frozen=True)
class Asked:
    """A question as a link carries it. `filters` is None for those that its words ask for."""

    question: str
    filters: Filters | None = None

    @property
    def key(self) -> str:
        """Short and unique to it, for the keys of what is shown."""
        filters = "" if self.filters is None else self.filters.model_dump_json()
        return hashlib.sha256(f"{self.question}\n{filters}".encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Chip:
    """One condition of the filters: how it reads, and the filters without it."""

    text: str
    without: Filters


@dataclass(frozen=True)
class Statement:
    """A line of an answer. `number`: of its citation, None when it is not a statement but leads to some."""

    text: str
    number: int | None
    is_item: bool


def show(open_knowledge: Callable[[], Knowledge]) -> None:
    """The page."""
    st.title("What changed, and where is the proof?", anchor=False)
    try:
        knowledge = open_knowledge()
        freshness = knowledge.freshness()
        if freshness is None:
            _show_empty()
            return
        _show_freshness(freshness, datetime.now(UTC))
        asked = _asked()
        _show_form(asked)
        if asked is None:
            _show_examples(knowledge)
            return
        with st.spinner("Reading the release notes …"):
            answer = _answer(knowledge, asked)
        _show_filters(asked, answer)
        _show_answer(knowledge, asked, answer)
    except KbError as error:
        rendering.show_error(error)


def chips(filters: Filters) -> list[Chip]:
    """What is set in filters, each condition by itself, with the filters that stay when it is removed."""
    alone = Filters()
    parts: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for names in _CONDITIONS:
        values: dict[str, Any] = {name: getattr(filters, name) for name in names}
        first = values[names[0]]
        if isinstance(first, tuple):
            several = cast("tuple[object, ...]", first)
            parts += [
                ({names[0]: (one,)}, {names[0]: tuple(v for v in several if v != one)}) for one in several
            ]
        elif any(value is not None for value in values.values()):
            parts.append((values, dict.fromkeys(names)))
    return [
        Chip("; ".join(alone.model_copy(update=only).describe()), filters.model_copy(update=rest))
        for only, rest in parts
    ]


def statements(text: str, citations: int) -> list[Statement]:
    """The lines of an answer. Only the next number at the end of a line is a citation; others are words of the notes."""
    found: list[Statement] = []
    following = 1
    for written in filter(str.strip, text.splitlines()):
        is_item = written.startswith("- ")
        line = written.removeprefix("- ").strip()
        match = _NUMBERED.fullmatch(line)
        if match and int(match["number"]) == following <= citations:
            found.append(Statement(match["text"], following, is_item))
            following += 1
        else:
            found.append(Statement(line, None, is_item))
    return found


def _asked() -> Asked | None:
    """The question in the page's address; None when there is none."""
    question = " ".join(st.query_params.get("q", "").split())[:LONGEST_QUESTION]
    if not question:
        return None
    try:
        given = st.query_params.get("filters")
        return Asked(question, Filters.model_validate_json(given) if given else None)
    except ValidationError:
        st.warning(
            "The filters in this link cannot be read, so the question's own were used.",
            icon=":material/filter_alt_off:",
        )
        return Asked(question)


def _ask(question: str, filters: Filters | None = None) -> None:
    """Put a question into the page's address, from where it is answered."""
    st.query_params.from_dict(
        {"q": question}
        if filters is None
        else {"q": question, "filters": filters.model_dump_json(exclude_defaults=True)}
    )
    st.session_state.pop("answered", None)


def _ask_written() -> None:
    question = " ".join(str(st.session_state["question"]).split())
    if question:
        _ask(question)
    else:
        st.query_params.clear()


def _show_form(asked: Asked | None) -> None:
    question = asked.question if asked else ""
    # A link, an example or the browser's way back changed the question: the input follows.
    if st.session_state.get("question_of_address") != question:
        st.session_state["question_of_address"] = st.session_state["question"] = question
    with (
        st.form("ask", border=False),
        st.container(horizontal=True, vertical_alignment="bottom", gap="small"),
    ):
        st.text_input(
            "Your question",
            key="question",
            max_chars=LONGEST_QUESTION,
            type="search",
            placeholder="Which release fixed …?  What broke between 1.4 and 2.1?",
        )
        st.form_submit_button("Ask", type="primary", on_click=_ask_written)


def _show_freshness(freshness: Freshness, now: datetime) -> None:
    verified = [moment for moment in freshness.verified_at.values() if moment]
    known = f"{len(freshness.verified_at):,} repositories, {freshness.releases:,} releases"
    last = f"last verified {rendering.ago(max(verified), now)}" if verified else "never verified"
    rendering.show_text(f"{known} · {last} · index version {freshness.index_version}", small=True)
    stale = [
        name
        for name, moment in freshness.verified_at.items()
        if moment is not None and now - moment > freshness.stale_after
    ]
    if stale:
        hours = freshness.stale_after.total_seconds() / 3600
        rendering.show_text(f"Not verified for {hours:g} hours: {_few(stale)}.", small=True)
    if freshness.behind:
        rendering.show_text(
            f"The index is behind the log for {_few(freshness.behind)}; `kb refresh` brings it up to date.",
            small=True,
        )


def _few(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _show_empty() -> None:
    st.info("Nothing is indexed yet.", icon=":material/inventory_2:")
    st.markdown("Load the sample corpus, or releases of your own in GitHub's JSON form:")
    st.code("kb demo\nkb import releases.jsonl", language=None)
    st.button("Look again", icon=":material/refresh:")


def _show_examples(knowledge: Knowledge) -> None:
    questions = knowledge.examples()
    if not questions:
        return
    st.caption("For example")
    with st.container(gap="xsmall"):
        for number, question in enumerate(questions):
            rendering.button(
                question,
                key=f"example-{number}",
                on_click=_ask,
                args=(question,),
                icon=":material/arrow_forward:",
                type="tertiary",
            )


def _answer(knowledge: Knowledge, asked: Asked) -> Answer:
    """The answer; kept for the visitor, since opening a citation runs the page again."""
    kept: tuple[Asked, Answer] | None = st.session_state.get("answered")
    if kept is None or kept[0] != asked:
        kept = (asked, knowledge.answer(asked.question, asked.filters))
        st.session_state["answered"] = kept
    return kept[1]


def _show_filters(asked: Asked, answer: Answer) -> None:
    found = chips(answer.filters)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="filters"):
        st.caption("Searched in" if found else "Searched in everything", width="content")
        for number, chip in enumerate(found):
            rendering.button(
                chip.text,
                key=f"filter-{asked.key}-{number}",
                on_click=_ask,
                args=(asked.question, chip.without),
                icon=":material/close:",
                icon_position="right",
                help="Ask again without this condition",
            )
        if asked.filters is not None:
            st.button(
                "As the question says",
                key="filters-again",
                on_click=_ask,
                args=(asked.question,),
                icon=":material/undo:",
                type="tertiary",
                help="Ask again with the filters that the question's words ask for",
            )


def _show_answer(knowledge: Knowledge, asked: Asked, answer: Answer) -> None:
    few = len(answer.citations) <= _OPENED_UP_TO
    with st.container(key="answer", gap="small"):
        if answer.found:
            for statement in statements(answer.text, len(answer.citations)):
                _show_statement(knowledge, asked, answer, statement, opened=few and statement.number == 1)
        else:
            _show_not_found(knowledge, asked, answer)
    st.divider()
    if answer.notes:
        rendering.show_text(" · ".join(answer.notes), small=True)
    verified = "; ".join(f"{name} {rendering.minute(moment)}" for name, moment in answer.verified_at.items())
    made = "Extractive: every sentence is taken from the release notes it cites; no language model took part."
    rendering.show_text(
        f"{made} Rule: {answer.rule}. Index version {answer.index_version}. Verified: {verified or 'no repository was named'}.",
        small=True,
    )


def _show_statement(
    knowledge: Knowledge, asked: Asked, answer: Answer, statement: Statement, *, opened: bool
) -> None:
    parts = _emphasised(statement.text, answer)
    if statement.number is None:
        rendering.show_text(*parts)
        return
    citation = answer.citations[statement.number - 1]
    key = f"{asked.key}-{statement.number}"
    if statement.is_item:
        parts = (rendering.mark(statement.number), *parts)
    else:
        rendering.show_text(*parts, rendering.mark(statement.number))
        parts = (rendering.mark(statement.number), "Source")
    unfolded = rendering.unfolding(*parts, key=f"citation-{key}", expanded=opened)
    if unfolded.open:
        with unfolded, st.container(key=f"proof-{key}", gap="small"):
            _show_citation(knowledge, citation, key)


def _emphasised(text: str, answer: Answer) -> tuple[str, ...]:
    """A line whose beginning names one of the answer's releases, with that name in bold."""
    for repository, tag in answer.releases:
        for name in (f"{repository} {tag}", tag):
            if text.startswith(f"{name} ("):
                return rendering.strong(name), text[len(name) :]
    return (text,)


def _show_citation(knowledge: Knowledge, citation: Citation, key: str) -> None:
    notes = knowledge.notes(citation)
    whole = False
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        rendering.show_kind(citation.kind)
        name = rendering.strong(f"{citation.repository} {citation.tag}")
        rendering.show_text(name, f" {rendering.day(citation.published_at)}", width="content")
        rendering.show_release_link(citation.url, key=f"link-{key}")
        if notes is not None and rendering.has_more(notes.body, citation.span):
            whole = st.toggle("Whole release", key=f"whole-{key}")
    if notes is None:
        st.caption("The log no longer has these notes as they were cited. The cited text was:")
        rendering.show_exact(citation.text)
        return
    rendering.show_notes(notes.body, citation.span, key=key, whole=whole)
    start, end = citation.span
    st.caption(f"Exact text: characters {start:,} to {end:,} of the notes")
    rendering.show_exact(citation.text)
    changed = "" if notes.current else " The notes were edited since; these are the ones that were cited."
    rendering.show_text(
        f"As of {rendering.minute(notes.observed_at)}, when these notes were observed. "
        f"Repository verified {rendering.minute(notes.verified_at)}.{changed}",
        small=True,
    )


def _show_not_found(knowledge: Knowledge, asked: Asked, answer: Answer) -> None:
    from kb_platform.answering.citation import Citation
    from kb_platform.answering.extract import sentence

    st.header("Not in the knowledge base", anchor=False)
    rest = answer.text.removeprefix("Not in the knowledge base.").strip()
    if rest:
        rendering.show_text(rest)
    if answer.nearby:
        st.caption("Nearby, and not an answer")
    for number, passage in enumerate(answer.nearby, 1):
        key = f"{asked.key}-near-{number}"
        name = f"{passage.repository} {passage.tag}: {sentence(passage.text, longest=120)}"
        unfolded = rendering.unfolding(name, key=f"citation-{key}")
        if unfolded.open:
            with unfolded, st.container(key=f"proof-{key}", gap="small"):
                _show_citation(knowledge, Citation.of_passage(passage), key)
