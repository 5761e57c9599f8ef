"""The page on which people ask: what it shows in each of its states, over a knowledge base that the tests bring."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import app_streamlit
from app_streamlit import page_ask
from app_streamlit.inert import JOINER
from app_streamlit.rendering import ago
from app_streamlit.session import Freshness, KnowledgeBase, Notes
from kb_platform import sample_corpus
from kb_platform.answering.answer import Answer
from kb_platform.answering.citation import Citation
from kb_platform.errors import DatabaseUnavailable, KbError, SettingsError
from kb_platform.retrieval.filters import Filters
from kb_platform.retrieval.searcher import Passage, Searcher
from kb_platform.settings import Settings
from kb_platform.sources.release import Observed, Release
from kb_platform.store import release_log
from kb_platform.store.database import Database
from kb_platform.text.kinds import Kind

SOURCES = sorted(Path(app_streamlit.__file__).parent.glob("*.py"))
SEEN = datetime(2026, 5, 3, 9, 30, tzinfo=UTC)
BODY = "## Fixes\n\n- The parser no longer loops on `<b>`\n- Another :material/lock: fix\n"
SPAN = (10, 10 + len("- The parser no longer loops on `<b>`"))
FILTERS = Filters(repositories=("acme/tool",), after_version="1.4", kinds=(Kind.FIX,))


def citation(**changes: Any) -> Citation:
    known: dict[str, Any] = {
        "repository": "acme/tool", "tag": "v1.5.0", "span": SPAN, "text": BODY[slice(*SPAN)], "kind": "fix",
        "url": "https://github.com/acme/tool/releases/tag/v1.5.0", "published_at": SEEN,
    }  # fmt: skip
    return Citation(**(known | changes))


def answer(question: str, **changes: Any) -> Answer:
    known: dict[str, Any] = {
        "question": question, "found": True, "releases": (("acme/tool", "v1.5.0"),), "citations": (citation(),),
        "text": "acme/tool v1.5.0 (2026-05-03): The parser no longer loops on <b> [1]", "filters": FILTERS,
        "index_version": 7, "verified_at": {"acme/tool": SEEN}, "rule": "the nearest passages",
    }  # fmt: skip
    return Answer(**(known | changes))


@dataclass
class FakeKnowledge:
    """Answers as it is told and remembers what it was asked. See app_streamlit.session.Knowledge."""

    answers: dict[str, Any] = field(default_factory=dict[str, Any])
    error: KbError | None = None
    fresh: Freshness | None = field(
        default_factory=lambda: Freshness(
            7, "a-model", 1234, {"acme/tool": SEEN, "acme/other": None}, (), timedelta(hours=24)
        )
    )
    stored: Notes | None = field(default_factory=lambda: Notes(BODY, SEEN, SEEN, current=True))
    asked: list[tuple[str, Filters | None]] = field(default_factory=list[tuple[str, Filters | None]])

    def answer(self, question: str, filters: Filters | None) -> Answer:
        self.asked.append((question, filters))
        if self.error is not None:
            raise self.error
        return answer(question, **({"filters": filters} if filters is not None else {}) | self.answers)

    def freshness(self) -> Freshness | None:
        return self.fresh

    def notes(self, cited: Citation) -> Notes | None:
        return self.stored

    def examples(self) -> list[str]:
        return ["Which *release* fixed it?", "What broke?"]


def page(open_knowledge: object) -> None:
    # Streamlit runs the source of this function as a script: it sees no name of this module.
    from app_streamlit import page_ask as shown

    shown.show(open_knowledge)


def at_page(knowledge: FakeKnowledge, **query: str) -> AppTest:
    """The page over a knowledge base, run once with these parameters in its address."""
    test = AppTest.from_function(page, args=(lambda: knowledge,), default_timeout=30)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def texts(test: AppTest) -> str:
    """Everything that the page says, in Markdown as it was sent, without the marks that keep it inert."""
    said = [
        element.value
        for name in ("title", "header", "markdown", "caption", "info", "error", "warning", "code")
        for element in getattr(test, name)
    ]
    said += [element.label for element in [*test.expander, *test.button]]
    return "\n".join(said).replace("\\", "").replace(JOINER, "")


def parameter(test: AppTest, name: str) -> str:
    value = test.query_params[name]
    return value if isinstance(value, str) else value[0]


def button(test: AppTest, label: str) -> Any:
    return next(found for found in test.button if found.label.replace("\\", "").startswith(label))


def test_the_first_view_says_what_is_known_and_offers_questions() -> None:
    knowledge = FakeKnowledge()
    test = at_page(knowledge)
    assert not test.exception
    said = texts(test)
    assert "2 repositories, 1,234 releases" in said
    assert "index version 7" in said
    assert "Not verified for 24 hours: acme/tool" in said
    assert knowledge.asked == []
    button(test, "Which *release* fixed it?").click().run()
    assert knowledge.asked == [("Which *release* fixed it?", None)]
    assert test.text_input[0].value == "Which *release* fixed it?"


def test_nothing_indexed_says_what_to_run() -> None:
    test = at_page(FakeKnowledge(fresh=None))
    assert "Nothing is indexed yet" in texts(test)
    assert "kb import" in texts(test)
    assert len(test.text_input) == 0


def test_an_unreachable_database_says_what_to_do() -> None:
    def closed() -> FakeKnowledge:
        raise DatabaseUnavailable("no connection to postgresql://db/kb", hint="check `KB_DATABASE_URL`")

    test = AppTest.from_function(page, args=(closed,), default_timeout=30).run()
    assert not test.exception
    assert "no connection to postgresql" in texts(test)
    assert "**What to do:** check `KB_DATABASE_URL`" in texts(test)


def test_a_question_is_answered_with_its_proof() -> None:
    knowledge = FakeKnowledge()
    test = at_page(knowledge)
    test.text_input[0].set_value("  Which release\tfixed the parser? ")
    button(test, "Ask").click().run()
    assert not test.exception
    assert knowledge.asked == [("Which release fixed the parser?", None)]
    assert parameter(test, "q") == "Which release fixed the parser?"
    said = texts(test)
    assert "**acme/tool v1.5.0** (2026-05-03): The parser no longer loops on <b>" in said
    # The only citation is open: kind, notes around it, exact text, as of.
    assert ":blue-badge[fix]" in said
    assert BODY[slice(*SPAN)] in [element.value for element in test.code]
    assert "- The parser no longer loops on `<b>`" in said
    assert "As of 2026-05-03 09:30 UTC" in said
    assert "Extractive" in said
    assert "no language model took part" in said
    assert "Index version 7. Verified: acme/tool 2026-05-03 09:30 UTC" in said
    [link] = test.get("link_button")
    assert link.url == "https://github.com/acme/tool/releases/tag/v1.5.0"


def test_opening_another_citation_does_not_ask_again() -> None:
    lines = [f"- Change {number} [{number}]" for number in range(1, 6)]
    cited = tuple(citation(tag=f"v1.{number}") for number in range(1, 6))
    knowledge = FakeKnowledge({"text": "5 changes:\n" + "\n".join(lines), "citations": cited})
    test = at_page(knowledge, q="What changed?")
    # A long list is read first, so nothing is open.
    assert [element.label for element in test.expander] == [
        f" :primary-badge[{number}] Change {number}" for number in range(1, 6)
    ]
    assert len(test.code) == 0
    test.session_state[f"citation-{page_ask.Asked('What changed?').key}-4"] = True
    test.run()
    assert "**acme/tool v1.4**" in texts(test)
    assert len(knowledge.asked) == 1


def test_removing_a_condition_asks_again_with_the_others() -> None:
    knowledge = FakeKnowledge()
    test = at_page(knowledge, q="What broke?")
    button(test, "versions after 1.4").click().run()
    kept = FILTERS.model_copy(update={"after_version": None})
    assert knowledge.asked == [("What broke?", None), ("What broke?", kept)]
    assert Filters.model_validate_json(parameter(test, "filters")) == kept
    button(test, "As the question says").click().run()
    assert knowledge.asked[-1] == ("What broke?", None)
    assert "filters" not in test.query_params


def test_a_link_reproduces_question_and_filters() -> None:
    knowledge = FakeKnowledge()
    test = at_page(knowledge, q="What broke?", filters='{"repositories":["acme/tool"],"prerelease":false}')
    assert knowledge.asked == [("What broke?", Filters(repositories=("acme/tool",), prerelease=False))]
    assert test.text_input[0].value == "What broke?"
    assert "stable releases only" in texts(test)


@pytest.mark.parametrize("given", ["{", '{"after_version":"not one"}', '{"where":"1=1"}', "[]"])
def test_filters_that_cannot_be_read_are_left_out_and_said(given: str) -> None:
    knowledge = FakeKnowledge()
    test = at_page(knowledge, q="What broke?", filters=given)
    assert knowledge.asked == [("What broke?", None)]
    assert "cannot be read" in test.warning[0].value


def test_no_answer_shows_what_is_nearby() -> None:
    near = Passage(
        repository="acme/other", tag="v2", kind="feature", text=BODY[slice(*SPAN)], span=SPAN, url="https://example.org/x",
        published_at=None, score=0.1,
    )  # fmt: skip
    knowledge = FakeKnowledge(
        {
            "found": False, "text": "Not in the knowledge base. The nearest are *others*.", "citations": (), "releases": (),
            "filters": Filters(), "nearby": (near,), "notes": ("no repository is called <b>",),
        }
    )  # fmt: skip
    test = at_page(knowledge, q="Who won?")
    assert test.header[0].value == "Not in the knowledge base"
    said = texts(test)
    assert "Searched in everything" in said
    assert "The nearest are *others*." in said
    assert "acme/other v2: The parser no longer loops" in said
    assert "no repository is called <b>" in said


def test_an_error_of_the_search_is_shown_with_its_hint() -> None:
    test = at_page(
        FakeKnowledge(error=SettingsError("KB_X: *wrong*", hint="see docs/settings.md")), q="What broke?"
    )
    assert not test.exception
    assert test.error[0].value == r"KB\_X\: \*wrong\*"
    assert "see docs/settings.md" in texts(test)


def test_an_unforeseen_error_is_kept_from_visitors(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> None:
        from app_streamlit.rendering import show_failure

        assert show_failure(RuntimeError("postgresql://user:secret@db/kb"))

    test = AppTest.from_function(failing, default_timeout=30).run()
    assert not test.exception
    assert "log of the app" in test.error[0].value
    assert "secret" not in texts(test)
    assert "secret" in caplog.text


def test_notes_that_changed_or_went_are_said_to_have() -> None:
    knowledge = FakeKnowledge(stored=Notes(BODY, SEEN, None, current=False))
    assert "were edited since" in texts(at_page(knowledge, q="What broke?"))
    knowledge.stored = None
    test = at_page(knowledge, q="What broke?")
    assert "no longer has these notes" in texts(test)
    assert [element.value for element in test.code] == [BODY[slice(*SPAN)]]


def test_a_link_that_may_not_be_clicked_is_only_shown() -> None:
    knowledge = FakeKnowledge({"citations": (citation(url="javascript:alert(1)"),)})
    test = at_page(knowledge, q="What broke?")
    assert not test.get("link_button")
    assert "`javascript:alert(1)`" in [element.value for element in test.markdown]


def test_foreign_text_is_escaped_wherever_it_stands() -> None:
    """Every field of an answer that others write carries a directive, and none is sent as one."""
    evil = ":red-background[x] ![a](https://evil.test/a.png) <img src=x>"
    repository = "acme/:streamlit:"
    knowledge = FakeKnowledge(
        {
            "text": f"{repository} {evil} ({evil}): {evil} [1]\n- {evil} [2]\n{evil}",
            "citations": (
                citation(repository=repository, tag=evil, kind=evil, text=evil),
                citation(text=evil),
            ),
            "releases": ((repository, evil),),
            "filters": Filters(repositories=(evil,), versions=(evil,), package=evil),
            "verified_at": {evil: SEEN},
            "notes": (evil,),
            "rule": evil,
        },
        stored=Notes(f"# {evil}\n\n- {evil}\n\n{evil}\n\n> {evil}\n", SEEN, SEEN, current=True),
        fresh=Freshness(1, evil, 1, {evil: SEEN}, (evil,), timedelta(hours=1)),
    )
    test = at_page(knowledge, q=evil)
    assert not test.exception
    sent = [element.value for name in ("markdown", "caption") for element in getattr(test, name)]
    sent += [element.label for element in [*test.expander, *test.button]]
    sent += [element.help for element in test.button if getattr(element, "help", None)]
    assert sum("evil" in text for text in sent) >= 12
    for text in sent:
        assert not re.search(r"(?<!\\)(:red-background\[|!\[|<img|:streamlit:)", text), text


def test_statements_take_only_the_next_number_for_a_citation() -> None:
    text = "2 changes:\n\nv1 (2026-01-01)\n- See [1][2][3] of the docs [1]\n- Spoofed [9]\n- Again [1]\n- Second [2]\n- Third [3]"
    found = [(one.text, one.number, one.is_item) for one in page_ask.statements(text, 2)]
    assert found == [
        ("2 changes:", None, False),
        ("v1 (2026-01-01)", None, False),
        ("See [1][2][3] of the docs", 1, True),
        ("Spoofed [9]", None, True),
        ("Again [1]", None, True),
        ("Second", 2, True),
        ("Third [3]", None, True),
    ]


def test_chips_name_every_condition_and_remove_only_it() -> None:
    full = Filters(
        repositories=("a/b", "c/d"), package="p", from_version="1.0", before_version="2.0", versions=("v1",),
        published_from=SEEN, kinds=(Kind.FIX, Kind.SECURITY), prerelease=False,
    )  # fmt: skip
    found = page_ask.chips(full)
    assert len(found) == 9
    assert len({chip.text for chip in found}) == 9
    assert found[0].without == full.model_copy(update={"repositories": ("c/d",)})
    for chip in found:
        # The text of a chip is gone from what its removal leaves.
        assert chip.text not in [left.text for left in page_ask.chips(chip.without)]
        assert len(page_ask.chips(chip.without)) == 8
    assert page_ask.chips(Filters()) == []


def test_ago() -> None:
    now = SEEN
    for seconds, said in (
        (5, "just now"),
        (60, "1 minute ago"),
        (7300, "2 hours ago"),
        (90_000, "1 day ago"),
    ):
        assert ago(now - timedelta(seconds=seconds), now) == said


def release(body: str, number: int = 1) -> Observed:
    made = Release(
        number, "v1.5.0", "1.5", body, SEEN, SEEN, False, False, "https://github.com/acme/tool", "me"
    )
    return Observed("acme/tool", made, b"{}", "test")


def test_notes_of_a_citation_come_from_the_observation_that_was_cited(database: Database) -> None:
    knowledge = KnowledgeBase(
        Settings(), database, Searcher(database, lambda _: pytest.fail("no model is needed"))
    )
    assert knowledge.notes(citation()) is None
    with database.transaction() as connection:
        release_log.append(connection, "acme/tool", [release(BODY)])
    found = knowledge.notes(citation())
    assert found is not None
    assert (found.body, found.current, found.verified_at) == (BODY, True, None)
    with database.transaction() as connection:
        release_log.append(connection, "acme/tool", [release("Rewritten.\n\n" + BODY)])
    found = knowledge.notes(citation())
    assert found is not None
    assert (found.body, found.current) == (BODY, False)
    assert knowledge.notes(replace(citation(), text="never said")) is None


def test_a_knowledge_base_without_an_index_has_no_freshness(database: Database) -> None:
    knowledge = KnowledgeBase(
        Settings(), database, Searcher(database, lambda _: pytest.fail("no model is needed"))
    )
    assert knowledge.freshness() is None
    assert knowledge.examples() == []
    # Nothing to warm up is no error.
    knowledge.warm_up()


def test_the_sample_questions_are_those_of_the_demonstration() -> None:
    from app_streamlit.session import _sample_questions

    assert [question for _, question in _sample_questions()] == sample_corpus.demo_questions()


def test_starting_the_app_imports_nothing_heavy() -> None:
    program = (
        "import sys, app_streamlit.app, app_streamlit.page_ask, app_streamlit.session, kb_platform.answering.answer\n"
        "heavy = {'torch', 'transformers', 'dagster', 'pandas', 'openvino'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_page_writes_past_the_renderer(source: Path) -> None:
    """Outside of `rendering`, Streamlit is given literal words only; nowhere is HTML switched on."""
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.keyword):
            assert node.arg not in ("unsafe_allow_html", "unsafe_allow_javascript")
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "st"):
            continue
        name = node.func.attr
        assert name not in ("write", "write_stream", "json", "image", "iframe"), ast.unparse(node)
        if name == "html":
            assert ast.unparse(node) == "st.html(Path(__file__).with_name('style.css'))"
        if source.name != "rendering.py" and name in SHOWING:
            assert all(is_own(part) for part in node.args), ast.unparse(node)
            assert all(
                is_own(key.value) for key in node.keywords if key.arg in ("help", "label", "placeholder")
            )


SHOWING = {
    "markdown", "caption", "title", "header", "subheader", "info", "warning", "error", "success", "text", "code", "badge",
    "button", "link_button", "toggle", "expander", "text_input", "form_submit_button", "pills", "toast", "metric", "dataframe",
}  # fmt: skip


def is_own(node: ast.expr) -> bool:
    """Whether an argument is words of the program, or numbers set into them."""
    if isinstance(node, ast.IfExp):
        return is_own(node.body) and is_own(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return all(
            isinstance(part, ast.Constant)
            or (
                isinstance(part, ast.FormattedValue)
                and part.format_spec is not None
                and "," in ast.unparse(part.format_spec)
            )
            for part in node.values
        )
    return isinstance(node, ast.Constant)
