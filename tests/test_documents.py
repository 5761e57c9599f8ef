"""Documents of other sources, from the event to the cited answer."""

from __future__ import annotations

import pytest

from kb_platform.answering.answer import Answerer
from kb_platform.retrieval.searcher import Searcher
from kb_platform.sources.message import Message
from kb_platform.stages.chunking import cut_release
from kb_platform.store import streamed_log
from kb_platform.store.database import Database
from kb_platform.text.chunk import Role
from tests.job import Job
from tests.releases import notes, release
from tests.stream_events import document_message, read, release_message

WIKI = "https://wiki.example.org/team"


def land(database: Database, *messages: Message) -> None:
    """As landing does, without brokers."""
    with database.transaction() as connection:
        appended = streamed_log.append_streamed(connection, [read(one) for one in messages])
    assert appended.refused == []


@pytest.fixture
def job(database: Database) -> Job:
    """A knowledge base with a wiki of two pages beside a repository."""
    job = Job(database)
    land(
        database,
        release_message(repository="acme/tool", body="## Fixes\n\n- Fixed the humming widget\n"),
        document_message("backup", title="Restoring the vault", body="Ask the operator on duty.\n\n- Then open the hatch\n",
                         url="https://wiki.example.org/team/backup", offset=1),
        document_message("lunch", title="Where to eat", body="- The canteen serves soup\n", offset=2),
    )  # fmt: skip
    job.run()
    return job


def test_a_page_is_found_by_its_title_and_cited(job: Job) -> None:
    """The title stands in no line of the page, and its pieces are found by it all the same."""
    searcher = Searcher(job.database, job.load)
    passages = searcher.search("restoring the vault").passages
    assert {passage.tag for passage in passages[:2]} == {"backup"}
    answer = Answerer(searcher).answer("Who is asked when the vault is restored?")
    cited = answer.citations[0]
    assert cited.url == "https://wiki.example.org/team/backup"
    with job.database.snapshot() as connection:
        rows = connection.execute(
            "SELECT body FROM kb.current_releases WHERE tag = %s", (cited.tag,)
        ).fetchall()
    assert rows[0][0][cited.span[0] : cited.span[1]] == cited.text


def test_a_page_that_changes_or_goes_does_so_in_the_index(job: Job) -> None:
    """Edited text replaces what was there; a deleted page is not found."""
    land(job.database, document_message("lunch", title="Where to eat", body="- The canteen serves stew\n", time=60, offset=3),
         document_message("backup", deleted=True, time=60, offset=4))  # fmt: skip
    job.run()
    searcher = Searcher(job.database, job.load)
    assert "stew" in searcher.search("what does the canteen serve").passages[0].text
    assert all(passage.tag != "backup" for passage in searcher.search("restoring the vault").passages)


def test_the_title_of_a_document_is_its_topmost_heading() -> None:
    """Of a release it is not: there it mostly repeats the tag. One that the page begins with is not said twice."""
    page = release(1, "## Steps\n\n- Turn the widget\n")
    headings = [cut.chunk.headings for cut in cut_release("wiki/team", page, is_document=True) if cut.passage]
    assert headings == [(page.name, "Steps")]
    assert [cut.chunk.headings for cut in cut_release("acme/tool", page) if cut.passage] == [("Steps",)]
    titled = release(1, f"# {page.name}\n\n{notes('Turn the widget')}")
    first = next(
        cut.chunk for cut in cut_release("wiki/team", titled, is_document=True) if cut.chunk.role is Role.ITEM
    )
    assert first.headings[:1] == (page.name,)
    assert first.headings.count(page.name) == 1
