"""The status page: what it shows in each state, over knowledge that the tests bring, and in a real browser."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, expect
from streamlit.testing.v1 import AppTest

from app_streamlit import page_status
from app_streamlit.session import KnowledgeBase
from kb_platform.errors import DatabaseUnavailable, KbError
from kb_platform.retrieval.searcher import Searcher
from kb_platform.settings import Settings
from kb_platform.sources.release import Refused
from kb_platform.stages import alerting
from kb_platform.store import quarantine
from kb_platform.store.alerts import Alert
from kb_platform.store.database import Database, with_database
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.status_summary import (
    Credential,
    Requests,
    Status,
    WatchCounts,
    Watched,
    WatchedPage,
)
from tests.releases import notes, observe, release
from tests.test_alerts import watch
from tests.test_app import texts
from tests.test_app_browser import Watched as Noticed
from tests.test_app_browser import browser, free_port, serving, visit

__all__ = ["browser"]


def moment() -> datetime:
    """Now, when it is asked for: the tests before this one may have taken minutes."""
    return datetime.now(UTC)


MINUTE = timedelta(minutes=1)
DAY = timedelta(hours=24)


def alert(subject: str = "acme/tool", **changes: Any) -> Alert:
    known = Alert(
        1, "stale-repository", subject, "error", "not verified since yesterday. Do something", moment() - 5 * MINUTE, moment(), None,
        None, None, 0, None,
    )  # fmt: skip
    return replace(known, **changes)


def watched(name: str, **changes: Any) -> Watched:
    known = Watched(
        name, "github", None, moment() - 30 * DAY, moment() + 3 * MINUTE, moment() - MINUTE, moment() - MINUTE, "unchanged", False, 0, None,
        None, None,
    )  # fmt: skip
    return replace(known, **changes)


def failing(name: str, **changes: Any) -> Watched:
    known: dict[str, Any] = {
        "failures": 4,
        "reason": "not-found",
        "detail": "404 Not Found",
        "failing_since": moment() - 2 * DAY,
    }
    return watched(name, **(known | changes))


EMPTY = Status((), 0, WatchCounts(0, 0, 0), (), (), None, None, (), {}, DAY)


@dataclass
class FakeKnowledge:
    """Says what it is told; see app_streamlit.session.Knowledge."""

    state: Status = EMPTY
    repositories: list[Watched] = field(default_factory=list[Watched])
    error: KbError | None = None
    asked: list[tuple[str, int, int]] = field(default_factory=list[tuple[str, int, int]])

    def status(self) -> Status:
        if self.error is not None:
            raise self.error
        if self.state.counts.watched:
            return self.state
        return replace(self.state, counts=WatchCounts(len(self.repositories), 0, 0))

    def watched(self, search: str, *, offset: int, limit: int) -> WatchedPage:
        self.asked.append((search, offset, limit))
        found = [one for one in self.repositories if search.lower() in one.repository.lower()]
        return WatchedPage(tuple(found[offset : offset + limit]), len(found))


def page(open_knowledge: object) -> None:
    # Streamlit runs the source of this function as a script: it sees no name of this module.
    from app_streamlit import page_status as shown

    shown.show(open_knowledge)


def at_page(knowledge: FakeKnowledge) -> AppTest:
    test = AppTest.from_function(page, args=(lambda: knowledge,), default_timeout=30).run()
    assert not test.exception
    return test


def said(test: AppTest) -> str:
    """Everything that the page says."""
    extra = [element.value for element in test.success]
    extra += [f"{element.label} {element.value}" for element in test.metric]
    return "\n".join([texts(test), *extra])


def test_nothing_watched_says_so_and_what_to_do() -> None:
    test = at_page(FakeKnowledge())
    assert "All is well" in said(test)
    assert "No repository is watched yet" in said(test)
    assert "kb watch add OWNER/REPO" in said(test)
    assert "Nothing is indexed yet" in said(test)
    assert len(test.text_input) == 0


def test_open_alerts_stand_on_top_and_many_are_folded() -> None:
    many = tuple(alert(f"acme/r{n}", severity="error" if n < 3 else "warning") for n in range(20))
    test = at_page(FakeKnowledge(replace(EMPTY, alerts=many, open_alerts=5_000)))
    text = said(test)
    assert "All is well" not in text
    assert [element.value for element in test.header][:2] == ["Open alerts", "Watched repositories"]
    assert "**acme/r0** stale repository" in text
    assert "not verified since yesterday. Do something" in text
    assert "5 minutes ago" in text
    assert "acme/r5" not in text
    (folded,) = test.expander
    assert folded.label == r"4\,995 more"
    test.session_state["more-alerts"] = True
    test.run()
    assert "**acme/r19**" in said(test)
    assert "`kb alerts` lists them all" in said(test)


def test_the_figures_say_how_it_is() -> None:
    state = replace(
        EMPTY, counts=WatchCounts(5_000, 12, 7), index_version=3, model="a-model",
        behind=("acme/a", "acme/b", "acme/c", "acme/d"), quarantine={"not-json": 2, "too-deep": 1},
    )  # fmt: skip
    test = at_page(FakeKnowledge(state, [watched("acme/tool")]))
    assert [(one.label, str(one.value)) for one in test.metric] == [
        ("Watched", "5,000"), ("Failing", "12"), ("Not verified in time", "7"), ("Index behind", "4"), ("In quarantine", "3"),
    ]  # fmt: skip
    assert "Index version 3 of a-model, behind the log for acme/a, acme/b, acme/c and 1 more" in said(test)
    assert "Quarantine: 2 not-json, 1 too-deep" in said(test)


def test_each_repository_says_how_polling_it_goes() -> None:
    test = at_page(
        FakeKnowledge(
            repositories=[
                failing("acme/gone", detail="x" * 5_000),
                watched("acme/fine", truncated=True),
                watched("acme/late", verified_at=moment() - 2 * DAY, due_at=moment() - MINUTE),
                watched("acme/new", verified_at=None, added_at=moment()),
                watched("acme/hourly", due_at=moment() + timedelta(hours=2, minutes=5)),
            ]
        )
    )
    text = said(test)
    assert ":red-badge[failing]" in text
    assert "**acme/gone**" in text
    (line,) = [line for line in text.splitlines() if line.startswith(":red[Failed ")]
    assert line.startswith(":red[Failed 4 times in a row, first 2 days ago: not-found: xxx")
    assert len(line) < 300
    assert "verified 1 minute ago · next poll in 2 minutes · the forge cuts its list short" in text
    assert ":orange-badge[stale]" in text
    assert "verified 2 days ago · next poll is due" in text
    assert ":gray-badge[waiting]" in text
    assert "never verified" in text
    assert "next poll in 2 hours" in text


def test_five_thousand_are_shown_a_page_at_a_time_and_can_be_searched() -> None:
    knowledge = FakeKnowledge(repositories=[watched(f"acme/r{n:04}") for n in range(5_000)])
    test = at_page(knowledge)
    assert knowledge.asked == [("", 0, page_status.ROWS)]
    assert "**acme/r0014**" in said(test)
    assert "acme/r0015" not in said(test)
    assert "1 to 15 of 5,000" in said(test)
    test.text_input[0].set_value(" R002 ").run()
    assert knowledge.asked[-1][0] == "R002"
    assert "**acme/r0020**" in said(test)
    assert "acme/r0001" not in said(test)
    test.text_input[0].set_value("nothing like it").run()
    assert "None has this in its name" in said(test)


def test_credentials_show_what_is_left_and_why_they_wait() -> None:
    known = Credential("github-1a2b", 5_000, 1_250, moment() + 20 * MINUTE + MINUTE, None, None, moment())
    blocked = replace(
        known,
        name="github-3c4d",
        remaining=0,
        blocked_until=moment() + 5 * MINUTE,
        blocked_reason="secondary",
    )
    renewed = replace(known, name="github-5e6f", remaining=3, reset_at=moment() - MINUTE)
    unknown = Credential("gitea-7a8b", None, None, None, None, None, moment())
    test = at_page(FakeKnowledge(replace(EMPTY, credentials=(known, blocked, renewed, unknown))))
    text = said(test)
    assert "1,250 of 5,000 requests left, new ones in 20 minutes" in text
    assert "asks again in 4 minutes (secondary)" in text
    assert text.count(":red-badge[blocked]") == 1
    assert "5,000 requests an hour, none of them spent" in text
    assert "its budget is not known" in text
    assert [bar.value for bar in test.get("progress")] == [25, 0, 100]


def test_requests_are_counted_by_hour_and_kind_of_answer() -> None:
    hour = datetime(2026, 5, 3, 9, tzinfo=UTC)
    requests = [Requests(hour, "200", 5), Requests(hour, "304", 95), Requests(hour, "201", 1), Requests(hour, "429", 2),
                Requests(hour + timedelta(hours=1), "unreachable", 4)]  # fmt: skip
    values = page_status.chart(requests)["data"]["values"]
    assert [(value["hour"], value["answer"], value["requests"]) for value in values] == [
        ("2026-05-03T09:00:00", "answered", 6),
        ("2026-05-03T09:00:00", "limited", 2),
        ("2026-05-03T09:00:00", "not modified", 95),
        ("2026-05-03T10:00:00", "failed", 4),
    ]
    test = at_page(FakeKnowledge(replace(EMPTY, requests=tuple(requests))))
    assert len(test.get("vega_lite_chart")) == 1


def test_an_unreachable_database_says_what_to_do_and_the_page_recovers() -> None:
    knowledge = FakeKnowledge(
        error=DatabaseUnavailable("no connection to *db*", hint="check `KB_DATABASE_URL`")
    )
    test = at_page(knowledge)
    assert "no connection to *db*" in said(test)
    assert "check `KB_DATABASE_URL`" in said(test)
    knowledge.error = None
    assert "All is well" in said(test.run())


def test_foreign_text_is_escaped_wherever_it_stands() -> None:
    evil = ":red-background[x] ![a](https://evil.test/a.png) <img src=x> :streamlit:"
    state = Status(
        alerts=(alert(evil, kind=evil, message=evil),), open_alerts=1, counts=WatchCounts(1, 1, 1),
        credentials=(Credential(evil, 10, 5, moment(), moment() + DAY, evil, moment()),), requests=(Requests(moment(), evil, 1),),
        index_version=1, model=evil, behind=(evil,), quarantine={evil: 1}, stale_after=DAY,
    )  # fmt: skip
    test = at_page(FakeKnowledge(state, [failing(evil, reason=evil, detail=evil)]))
    sent = [element.value for name in ("markdown", "caption") for element in getattr(test, name)]
    assert sum("evil" in text for text in sent) >= 8
    for text in sent:
        assert not re.search(r"(?<!\\)(:red-background\[|!\[|<img|:streamlit:)", text), text
    assert "evil" not in str(page_status.chart(state.requests))


# --- over a real database ---


def sample(database: Database) -> None:
    """A platform at work: some trouble, a day of requests."""
    now = datetime.now(UTC)
    for number in range(40):
        watch(database, f"acme/library-{number:02}", verified_at=now - number * timedelta(seconds=17),
              polled_at=now, due_at=now + number * timedelta(seconds=23), outcome="unchanged")  # fmt: skip
    watch(database, "acme/gone", verified_at=now - 2 * DAY, polled_at=now, due_at=now + 30 * MINUTE, failures=14,
          outcome="failed", reason="not-found", failing_since=now - 2 * DAY,
          detail="GET /repos/acme/gone answered 404: it does not exist, or this credential may not see it")  # fmt: skip
    watch(database, "acme/flaky", verified_at=now - timedelta(hours=3), due_at=now + 2 * MINUTE, failures=3,
          outcome="failed", reason="server-error", failing_since=now - 9 * MINUTE, detail="502 Bad Gateway")  # fmt: skip
    watch(database, "acme/new", added_at=now, due_at=now)
    observe(database, "acme/new", release(1, notes("x")))
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO kb.credential (name, rate_limit, remaining, reset_at, updated_at) VALUES "
            "('github-app-4711', 15000, 11200, now() + interval '31 minutes', now()), "
            "('github-token-9f3c', 5000, 640, now() + interval '12 minutes', now())"
        )
        connection.execute(
            "UPDATE kb.credential SET blocked_until = now() + interval '2 minutes', blocked_reason = 'secondary' "
            "WHERE name = 'github-token-9f3c'"
        )
        connection.execute(
            "INSERT INTO kb.request_tally SELECT date_trunc('hour', now(), 'UTC') - make_interval(hours => h), 'c', answer, "
            "(base * (1 + 0.4 * sin(h / 3.5)) + h % 5)::int FROM generate_series(0, 30) h, "
            "(VALUES ('304', 480), ('200', 22), ('429', 3), ('502', 4)) AS kind (answer, base)"
        )
        quarantine.put(connection, [Refused("not-json", "cut short", b"{", "poll", "acme/flaky")])
    problems = alerting.freshness_problems(database, now, DAY)
    alerting.keep_up(database, alerting.FRESHNESS_KINDS, problems, now - 9 * MINUTE)


def test_the_page_over_a_real_database(database: Database) -> None:
    sample(database)
    knowledge = KnowledgeBase(Settings(), database, Searcher(database, lambda _: pytest.fail("no model")))
    state = knowledge.status()
    assert {(one.kind, one.subject) for one in state.alerts} == {
        ("stale-repository", "acme/gone"), ("polling-fails", "acme/gone"), ("polling-fails", "acme/flaky"),
        ("quarantine", "not-json"),
    }  # fmt: skip
    assert state.counts == WatchCounts(43, 2, 1)
    assert (state.behind, state.quarantine, state.index_version) == (("acme/new",), {"not-json": 1}, None)
    assert [one.name for one in state.credentials] == ["github-app-4711", "github-token-9f3c"]
    assert len(state.requests) == 31 * 4
    assert knowledge.status() is state
    first = knowledge.watched("", offset=0, limit=3)
    # What fails, then what was never verified, then what was not for longest.
    assert [one.repository for one in first.rows] == ["acme/gone", "acme/flaky", "acme/new"]
    assert first.found == 43
    assert knowledge.watched("LIBRARY-3", offset=0, limit=3).found == 10
    assert knowledge.watched("%_", offset=0, limit=3).found == 0
    assert knowledge.watched("\x00", offset=0, limit=3).found == 0
    test = AppTest.from_function(page, args=(lambda: knowledge,), default_timeout=30).run()
    assert not test.exception
    assert "**acme/gone**" in said(test)


# --- in a browser ---


@pytest.fixture
def platform(
    server: EmbeddedServer, migrated_template: str, tmp_path: Path
) -> Generator[tuple[str, Database]]:
    """The app as `kb app` serves it, over a platform at work."""
    name = f"kb_status_{os.getpid()}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    url = with_database(server.url("postgres"), name)
    database = Database(url)
    sample(database)
    port = free_port()
    command = ["-c", "from kb_platform.cli import main; main()", "app", "--port", str(port)]
    with serving(command, port, {"KB_DATABASE_URL": url, "KB_HOME": str(tmp_path)}, tmp_path / "app.log"):
        yield f"http://127.0.0.1:{port}", database
    database.close()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.slow
def test_visitors_find_it_search_it_and_see_it_change(
    platform: tuple[str, Database], browser: Browser, tmp_path: Path
) -> None:
    url, database = platform
    pictures = Path(os.environ.get("KB_TEST_PICTURES", tmp_path))
    with visit(browser, url, width=1280) as (page, noticed):
        page.get_by_role("link", name="Status").click()
        expect(page.get_by_role("heading", name="Open alerts")).to_be_visible()
        expect(page.locator("canvas, svg.marks").first).to_be_visible()
        expect(page.locator(".st-key-watched")).to_contain_text("acme/gone")
        page.wait_for_timeout(1_000)
        height(page)
        page.screenshot(path=pictures / "status-1280-light.png")
        page.get_by_role("button", name=re.compile("page 2$", re.IGNORECASE)).click()
        expect(page.get_by_text("16 to 30 of 43")).to_be_visible()
        page.get_by_label("Search").fill("library-07")
        page.keyboard.press("Enter")
        expect(page.locator(".st-key-watched")).to_contain_text("acme/library-07")
        expect(page.locator(".st-key-watched")).not_to_contain_text("acme/gone")
        # It changes without a click.
        with database.transaction() as connection:
            connection.execute("UPDATE kb.alert SET resolved_at = now()")
        expect(page.get_by_text("All is well: no alert is open.")).to_be_visible(timeout=40_000)
        expect(page.get_by_label("Search")).to_have_value("library-07")
    assert noticed == Noticed()
    for width, scheme in ((1280, "dark"), (400, "light"), (400, "dark")):
        with visit(browser, f"{url}/status", width=width, scheme=scheme) as (page, noticed):
            expect(page.locator(".st-key-watched")).to_contain_text("acme/gone")
            expect(page.locator("canvas, svg.marks").first).to_be_visible()
            page.wait_for_timeout(1_000)
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
            height(page)
            page.screenshot(path=pictures / f"status-{width}-{scheme}.png")
        # At a page's own address, Streamlit looks for its server below that first.
        searched = re.compile(r"status of 404 .*/status/_stcore/(health|host-config)$")
        noticed.errors = [said for said in noticed.errors if not searched.search(said)]
        assert noticed == Noticed()


def height(page: Any) -> None:
    """Make the window as high as the page, which scrolls inside of Streamlit's own frame."""
    inner = page.evaluate("document.querySelector('.stMain').scrollHeight")
    page.set_viewport_size({"width": page.viewport_size["width"], "height": int(inner) + 20})
    page.wait_for_timeout(800)
