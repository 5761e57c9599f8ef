"""Records → events → a producer: what is sent, what is refused, how much may wait, and how it ends."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import dagster as dg
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from assets.producing import Line, produce_job
from kb_platform.errors import BadRecord, PositionLost, StreamError
from kb_platform.progress import Silence
from kb_platform.settings import Settings
from kb_platform.sources import events
from kb_platform.sources.files import Record
from kb_platform.sources.forge import Forge
from kb_platform.sources.github import github_from_settings
from kb_platform.sources.message import Message
from kb_platform.sources.producible import Known, Producible, producible
from kb_platform.sources.release_event import number_of_name
from kb_platform.stages.producing import Given, Outcome, Producing, Unreadable, read_lines
from kb_platform.stages.release_lists import Listed, NotListed, ReleaseLists, Wanted, watched_at_github
from kb_platform.store import watch_list
from kb_platform.store.credentials import Ledger, budgets
from kb_platform.store.database import Database
from kb_platform.streams.sender import Sender
from tests.fake_sender import FakeSender, Sent
from tests.github_stand_in import StandIn
from tests.kafka_brokers import MockCluster, brokers_of
from tests.polled import TOKEN
from tests.simulated_clock import SimulatedClock
from tests.webhooks import payload

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
API = "https://api.github.com"
SETTINGS = Settings(github_api_url=API)
UNKNOWN = Known()
DOCUMENT = {"id": "adr-7", "source": "https://wiki.example/adr", "title": "Seven", "body": "We choose.",
            "time": "2026-03-01T09:00:00Z", "url": "https://wiki.example/adr/7"}  # fmt: skip


def release(number: int = 1, **changes: Any) -> dict[str, Any]:
    return payload(number)["release"] | changes


def made(
    record: Any, known: Known = UNKNOWN, *, action: str = "published", time: datetime = NOW
) -> Producible:
    raw = record if isinstance(record, bytes) else json.dumps(record).encode()
    return producible(
        raw, known, action=action, time=time, github_api_url=API, max_body_bytes=SETTINGS.max_body_bytes
    )  # fmt: skip


def refused(record: Any, known: Known = UNKNOWN, *, action: str = "published") -> str:
    with pytest.raises(BadRecord) as error:
        made(record, known, action=action)
    return error.value.reason


def landed(sent: Sent) -> Any:
    """What landing makes of a message."""
    message = Message(sent.topic, 0, 0, None, sent.key, sent.value, tuple(sent.headers.items()))
    return events.parse_event(
        message, topic_id="t", github_api_url=API, max_body_bytes=SETTINGS.max_body_bytes,
        max_record_bytes=SETTINGS.max_record_bytes,
    )  # fmt: skip


def producing(sender: FakeSender, told: list[Outcome] | None = None, **more: Any) -> Producing:
    tell = (lambda _outcome: None) if told is None else told.append
    return Producing(sender, SETTINGS, tell=tell, now=lambda: NOW, **({"action": "published"} | more))


def items(*records: Any, known: Known = UNKNOWN) -> list[Given | Unreadable]:
    raws = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    return [Given(Record(raw, f"f:{n}", len(raw)), known) for n, raw in enumerate(raws, 1)]


# --- records → events -------------------------------------------------------------------------------------


def test_a_release_a_payload_and_a_document_become_events_that_land_alike() -> None:
    sender = FakeSender()
    producing(sender).run(items(release(), payload(), DOCUMENT))
    of_release, of_payload, of_document = map(landed, sender.sent)
    assert [sent.topic for sent in sender.sent] == ["kb.releases", "kb.releases", "kb.documents"]
    assert (of_release.repository.name, of_release.repository.number) == ("acme/tool", None)
    assert (of_payload.repository.name, of_payload.repository.number) == ("acme/tool", 4711)
    assert of_release.release == of_payload.release
    assert of_release.raw == json.dumps(release()).encode()
    assert of_release.event_at == NOW
    assert (of_document.release.tag, of_document.release.body) == ("adr-7", "We choose.")
    assert [sent.key for sent in sender.sent[:2]] == [str(number_of_name("acme/tool")).encode(), b"4711"]


def test_a_number_that_is_known_is_key_and_repository() -> None:
    sender = FakeSender()
    known = Known("acme/renamed", 4711, "https://git.example/api/v3")
    producing(sender, action="edited").run(items(release(), known=known))
    streamed = landed(sender.sent[0])
    assert (streamed.repository.name, streamed.repository.number) == ("acme/renamed", 4711)
    assert streamed.repository.forge == "https://git.example/api/v3"
    assert sender.sent[0].key == b"4711"
    assert sender.sent[0].headers["ce_type"] == b"com.github.release.edited"


def test_the_forge_is_read_from_a_releases_own_address() -> None:
    url = "https://git.example/api/v3/repos/acme/tool/releases/1"
    assert made(release(url=url)).envelope.source == "https://git.example/api/v3/repos/acme/tool"


def test_the_same_record_and_action_have_the_same_id_at_any_time() -> None:
    later = datetime(2027, 1, 1, tzinfo=UTC)
    for record in (release(), payload(), DOCUMENT, DOCUMENT | {"time": None}):
        first, again = made(record), made(record, time=later)
        assert first.envelope.event_id == again.envelope.event_id
        assert str(UUID(first.envelope.event_id)) == first.envelope.event_id
        assert first.envelope.time != again.envelope.time
    ids = [
        made(record, action=action).envelope.event_id
        for record in (release(), release(2), release(body="other"), release(updated_at=None), DOCUMENT)
        for action in ("published", "deleted")
    ] + [made(release(), Known("acme/other")).envelope.event_id, made(DOCUMENT | {"body": ""}).envelope.event_id]  # fmt: skip
    assert len(set(ids)) == len(ids)


def test_what_does_not_belong_to_a_release_is_no_part_of_its_id() -> None:
    counted = made(release(assets=[{"download_count": 7}])).envelope.event_id
    assert counted == made(release(assets=[{"download_count": 8}])).envelope.event_id
    assert counted == made(release(), Known("ACME/Tool")).envelope.event_id


def test_deleting_is_for_documents_too() -> None:
    only = {"id": "adr-7", "source": "https://wiki.example/adr"}
    assert made(only, action="deleted").envelope.type == "io.kb-platform.document.deleted"
    assert made(DOCUMENT, action="edited").envelope.type == "io.kb-platform.document.updated"
    assert refused(only) == "missing-field"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"{", "not-json"), (b"[]", "not-a-release"), (b"\xff", "not-utf8"), ({}, "not-a-release"),
        (release(tag_name=""), "absurd-value"), (release(html_url=None), "no-repository"),
        (release(body="x" * 2_000_000), "body-too-long"), (payload(action="astonished"), "unknown-type"),
        (payload() | {"release": {}}, "not-a-release"), (payload() | {"release": None}, "not-a-release"),
        (DOCUMENT | {"source": None}, "missing-field"), (DOCUMENT | {"url": "javascript:1"}, "absurd-value"),
        (b'{"id": 1, "id": 2, "tag_name": "v1"}', "duplicate-key"), (b"[" * 100_000, "too-deep"),
    ],
)  # fmt: skip
def test_what_landing_would_refuse_is_not_produced(record: Any, reason: str) -> None:
    assert refused(record) == reason


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["id", "tag_name", "release", "action", "source", "repository", "html_url", "body", "title", "url"]),
        st.recursive(st.none() | st.integers() | st.text(max_size=30), lambda inner: st.dictionaries(st.sampled_from(
            ["id", "tag_name", "url", "full_name", "html_url", "published_at"]), inner, max_size=5), max_leaves=8),
        max_size=8,
    )
)  # fmt: skip
def test_whatever_is_produced_lands(changes: dict[str, Any]) -> None:
    sender = FakeSender()
    records = [changes, release() | changes, payload() | changes, payload(**changes), DOCUMENT | changes]
    totals = producing(sender).run(items(*records))
    assert totals.produced + totals.refused == len(records)
    for sent in sender.sent:
        assert landed(sent).event_at == NOW


# --- producing --------------------------------------------------------------------------------------------


def test_each_record_is_reported_and_the_bad_ones_do_not_stop_the_rest() -> None:
    told: list[Outcome] = []
    sender = FakeSender()
    cut = Given(Record(b"{", "f:9", 10**9), Known())
    records: list[Given | Unreadable] = [
        *items(release(), b"{", DOCUMENT),
        cut,
        Unreadable("github:a/b", "gone", "why"),
    ]
    totals = producing(sender, told).run(records)
    assert (totals.records, totals.produced, totals.acknowledged, totals.refused) == (5, 2, 2, 3)
    assert totals.reasons == {"not-json": 1, "record-too-long": 1, "gone": 1}
    assert not totals.complete
    by_place = {outcome.place: outcome for outcome in told}
    assert len(told) == 5
    assert by_place["f:1"][2:] == ("kb.releases", 0, 0, None)
    assert by_place["f:1"].event_id == sender.sent[0].headers["ce_id"].decode()
    assert by_place["f:3"][2:] == ("kb.documents", 0, 1, None)
    assert by_place["f:2"].error is not None
    assert by_place["f:2"].error.startswith("not-json: ")
    assert by_place["f:9"].error is not None
    assert by_place["github:a/b"] == Outcome("github:a/b", None, None, None, None, "gone: why")


def test_one_repositorys_records_are_sent_in_their_order() -> None:
    sender = FakeSender(queue=3)
    totals = producing(sender).run(items(*(release(number) for number in range(1, 500))))
    assert [json.loads(sent.value)["release"]["id"] for sent in sender.sent] == list(range(1, 500))
    assert totals.complete
    assert totals.rate > 0


def test_a_full_queue_is_waited_for_and_memory_is_bounded() -> None:
    sender = FakeSender(queue=7)
    totals = producing(sender).run(items(*(release(number) for number in range(1, 300))))
    assert totals.acknowledged == 299
    assert sender.most_waiting <= 7

    class Slow(FakeSender):
        """Acknowledges nothing until somebody waits for it."""

        def poll(self, timeout_s: float) -> None:
            if timeout_s:
                super().poll(timeout_s)

    slow = Slow()
    size = len(json.dumps(payload(body="x" * 10_000)))
    totals = producing(slow, most_waiting_bytes=4 * size).run(items(*[payload(body="x" * 10_000)] * 100))
    assert totals.acknowledged == 100
    assert 1 < slow.most_waiting <= 4


def test_a_failed_delivery_is_told_and_the_rest_goes_on() -> None:
    told: list[Outcome] = []
    sender = FakeSender(failing=lambda value: "the record is too large" if b'"id": 2,' in value else None)
    totals = producing(sender, told).run(items(release(1), release(2), release(3)))
    assert (totals.acknowledged, totals.failed, totals.complete) == (2, 1, False)
    assert [outcome.error for outcome in told] == [None, "the record is too large", None]


def test_when_nothing_is_taken_it_ends_instead_of_reading_on() -> None:
    read = 0

    def endless() -> Iterator[Given | Unreadable]:
        nonlocal read
        while True:
            read += 1
            yield items(release(read))[0]

    totals = producing(FakeSender(failing="no broker")).run(endless())
    assert totals.ended_by is not None
    assert "no broker" in totals.ended_by
    assert (totals.acknowledged, totals.failed) == (0, totals.produced)
    assert read < 200


def test_a_producer_that_cannot_go_on_is_an_error_with_figures() -> None:
    sender = FakeSender()

    def then_fenced() -> Iterator[Given | Unreadable]:
        yield from items(release(1), release(2))
        sender.fatal = "fenced"
        yield from items(release(3))

    work = producing(sender)
    with pytest.raises(StreamError, match="fenced"):
        work.run(then_fenced())
    assert (work.totals.acknowledged, work.totals.complete) == (2, False)


def test_an_error_of_reading_waits_for_what_is_under_way() -> None:
    sender = FakeSender(silent=True)

    def broken() -> Iterator[Given | Unreadable]:
        yield from items(release(1), release(2))
        threading.Timer(0.2, lambda: setattr(sender, "silent", False)).start()
        raise OSError("gone")

    work = producing(sender)
    with pytest.raises(OSError, match="gone"):
        work.run(broken())
    assert work.totals.acknowledged == 2


def test_stopping_waits_for_what_is_under_way_and_reads_no_more() -> None:
    stop = threading.Event()
    sender = FakeSender(silent=True)

    def stopped() -> Iterator[Given | Unreadable]:
        yield from items(release(1), release(2))
        stop.set()
        threading.Timer(0.2, lambda: setattr(sender, "silent", False)).start()
        yield from items(release(3), release(4))

    totals = producing(sender, stop=stop).run(stopped())
    assert totals.ended_by == "stopped"
    assert totals.records == totals.acknowledged == 3
    assert not totals.complete


def test_stopping_while_the_queue_is_full_gives_up_the_record_in_hand() -> None:
    stop = threading.Event()
    sender = FakeSender(queue=1, silent=True)
    threading.Timer(0.1, stop.set).start()
    threading.Timer(0.5, lambda: setattr(sender, "silent", False)).start()
    totals = producing(sender, stop=stop).run(items(release(1), release(2)))
    assert (totals.records, totals.acknowledged, totals.failed, totals.ended_by) == (1, 1, 0, "stopped")


def test_an_interrupt_while_it_reads_is_a_stop() -> None:
    def interrupted() -> Iterator[Given | Unreadable]:
        yield from items(release(1))
        raise KeyboardInterrupt

    totals = producing(FakeSender()).run(interrupted())
    assert (totals.acknowledged, totals.ended_by) == (1, "stopped")


def test_what_nobody_answers_for_has_failed() -> None:
    told: list[Outcome] = []
    totals = producing(FakeSender(silent=True), told, silence_s=0.3).run(items(release(1)))
    assert (totals.failed, totals.complete) == (1, False)
    assert [outcome.error for outcome in told] == ["no acknowledgement"]


def test_topics_are_asked_for_once_and_may_be_given() -> None:
    asked: list[str] = []
    sender = FakeSender()
    producing(sender, require_topic=asked.append).run(items(release(1), DOCUMENT, release(2)))
    assert asked == ["kb.releases", "kb.documents"]
    other = FakeSender()
    producing(other, topic="elsewhere", mode="structured").run(items(release(1), DOCUMENT))
    assert [sent.topic for sent in other.sent] == ["elsewhere", "elsewhere"]
    assert json.loads(other.sent[0].value)["data"]["release"] == release(1)
    assert landed(other.sent[0]).release == landed(sender.sent[0]).release

    def missing(topic: str) -> None:
        raise PositionLost("missing", f"there is no topic {topic}")

    with pytest.raises(PositionLost):
        producing(FakeSender(), require_topic=missing).run(items(release(1)))


def test_the_real_producer_delivers_in_order_over_a_small_queue() -> None:
    mock = MockCluster(1)
    told: list[Outcome] = []
    try:
        with closing(Sender(brokers_of(mock.address), queue=10)) as sender:
            work = Producing(sender, SETTINGS, action="published", topic=mock.topic(), tell=told.append)
            totals = work.run(items(*(release(number) for number in range(1, 501))))
    finally:
        mock.close()
    assert (totals.acknowledged, totals.complete) == (500, True)
    assert len({outcome.partition for outcome in told}) == 1
    assert [outcome.offset for outcome in told] == list(range(500))


# --- lines ------------------------------------------------------------------------------------------------


def test_lines_are_read_with_their_numbers_and_bounded() -> None:
    text = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}' + b" " * 50 + b"\n" + b"x" * 500_000 + b"\n{}"
    records = list(read_lines(io.BytesIO(text), name="in", max_record_bytes=100))
    assert [(record.raw, record.place, record.is_cut) for record in records] == [
        (b'{"a": 1}', "in:1", False), (b'{"b": 2}', "in:4", False), (b"x" * 100, "in:5", True), (b"{}", "in:6", False),
    ]  # fmt: skip


# --- GitHub -----------------------------------------------------------------------------------------------


class Lists:
    """Release lists read from a stand-in, on one clock."""

    def __init__(
        self,
        database: Database,
        *,
        tokens: tuple[str, ...] = (TOKEN,),
        wait: float = 120.0,
        page_cap: int = 10_000,
    ) -> None:
        self.clock = SimulatedClock()
        self.stand_in = StandIn(self.clock, seed=1, page_cap=page_cap)
        self.database = database
        settings = Settings(github_api_url=self.stand_in.site.api, github_token=SecretStr(",".join(tokens)))
        self.forge = github_from_settings(
            settings, self.clock, transport=httpx2.MockTransport(self.stand_in.handle)
        )
        self.lists = ReleaseLists(
            database, self.forge, self.clock, longest_wait_s=wait, max_record_bytes=10_000_000
        )

    def read(self, *names: str) -> tuple[list[Listed], list[NotListed]]:
        found = list(self.lists.read([Wanted(name) for name in names]))
        return [one for one in found if isinstance(one, Listed)], [
            one for one in found if isinstance(one, NotListed)
        ]

    def close(self) -> None:
        self.lists.close()
        self.forge.close()


@pytest.fixture
def lists(database: Database) -> Generator[Lists]:
    with closing(Lists(database)) as made:
        yield made


def test_whole_lists_are_read_with_the_repositorys_number(lists: Lists) -> None:
    number = lists.stand_in.add_repository("acme/tool", 250)
    lists.stand_in.add_repository("acme/empty")
    done: list[int] = []
    wanted = [Wanted("acme/tool"), Wanted("acme/empty")]
    found = list(lists.lists.read(wanted, done.append))
    assert len(found) == 250
    assert {one.identity.external_id for one in found if isinstance(one, Listed)} == {number}
    assert done == [1, 1]
    sender = FakeSender()
    known = [
        Known(one.identity.name, one.identity.external_id, lists.stand_in.site.api)
        for one in found
        if isinstance(one, Listed)
    ]
    records = [
        Given(one.record, knowing)
        for one, knowing in zip(found, known, strict=True)
        if isinstance(one, Listed)
    ]
    settings = SETTINGS.model_copy(update={"github_api_url": lists.stand_in.site.api})
    totals = Producing(sender, settings, action="published").run(records)
    assert totals.complete
    truth = lists.stand_in.truth("acme/tool")
    assert {json.loads(sent.value)["release"]["id"] for sent in sender.sent} == set(truth)
    assert {sent.key for sent in sender.sent} == {str(number).encode()}


def test_budgets_are_those_of_polling_and_nothing_forbidden_is_asked(lists: Lists) -> None:
    lists.stand_in.add_repository("acme/tool", 250)
    lists.stand_in.storm("secondary", requests=1, wait=60)
    listed, missed = lists.read("acme/tool")
    assert (len(listed), missed) == (250, [])
    assert lists.clock.slept >= 60
    assert lists.stand_in.forbidden_requests() == []
    lists.lists.close()
    with lists.database.snapshot() as connection:
        [budget] = budgets(connection).values()
        tallied = connection.execute("SELECT sum(requests) FROM kb.request_tally").fetchone()
    assert budget.remaining == lists.stand_in.allowance(TOKEN).remaining
    assert tallied == (len(lists.stand_in.log),)


def test_between_pages_the_credential_is_free(lists: Lists) -> None:
    lists.stand_in.add_repository("acme/tool", 250)
    reading = lists.lists.read([Wanted("acme/tool")])
    next(reading)
    polling = Ledger(lists.database)
    free = threading.Event()

    def ask() -> None:
        name = lists.forge.credentials()[0]
        with polling.budget(name) as budget:
            assert budget.remaining is not None
            free.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert free.wait(5)
    asking.join()
    polling.close()
    assert len(list(reading)) == 249


def test_a_limit_that_lasts_too_long_is_told(database: Database) -> None:
    with closing(Lists(database, wait=10)) as lists:
        lists.stand_in.add_repository("acme/tool", 3)
        lists.stand_in.storm("secondary", requests=1, wait=60)
        listed, missed = lists.read("acme/tool")
        assert listed == []
        assert [(one.repository, one.reason) for one in missed] == [("acme/tool", "rate-limited")]
        assert lists.clock.slept == 0


def test_a_repository_that_cannot_be_read_holds_up_no_other(lists: Lists) -> None:
    lists.stand_in.add_repository("acme/tool", 3)
    lists.stand_in.add_repository("acme/blocked", 3)
    lists.stand_in.block("acme/blocked")
    listed, missed = lists.read("acme/gone", "acme/blocked", "acme/tool")
    assert len(listed) == 3
    assert [(one.repository, one.reason) for one in missed] == [
        ("acme/gone", "not-found"),
        ("acme/blocked", "blocked"),
    ]


def test_another_credential_is_asked_where_one_may_not_see(database: Database) -> None:
    with closing(Lists(database, tokens=("ghp_blind", "ghp_seeing", "ghp_revoked"))) as lists:
        lists.stand_in.add_repository("acme/secret", 3, private_to={"ghp_seeing"})
        lists.stand_in.revoke("ghp_revoked")
        listed, missed = lists.read("acme/secret")
        assert (len(listed), missed) == (3, [])


def test_a_list_that_the_forge_cuts_is_told(database: Database) -> None:
    with closing(Lists(database, page_cap=1_000)) as lists:
        lists.stand_in.add_repository("acme/tool", 1_100)
        listed, missed = lists.read("acme/tool")
        assert len(listed) == 1_000
        assert [one.reason for one in missed] == ["truncated"]


def test_what_is_watched_at_github_is_found_under_any_name(lists: Lists) -> None:
    lists.stand_in.add_repository("acme/tool", 3)
    with lists.database.transaction() as connection:
        watch_list.add(connection, "acme/tool", at=NOW)
        watch_list.add(connection, "acme/other", source="gitea", api_url="https://git.example/api/v1", at=NOW)
    assert watched_at_github(lists.database) == ([Wanted("acme/tool", None)], 1)
    number = lists.stand_in.find("acme/tool").number
    lists.stand_in.rename("acme/tool", "acme/renamed")
    found = [one for one in lists.lists.read([Wanted("acme/tool", number)]) if isinstance(one, Listed)]
    assert {one.identity.name for one in found} == {"acme/renamed"}


# --- the job ----------------------------------------------------------------------------------------------


class Job:
    """The job `produce` with a fake producer, run in this process."""

    def __init__(self, database: Database, forge: Forge | None = None, *, api_url: str = API) -> None:
        self.sender = FakeSender()
        self.settings = Settings(github_api_url=api_url)
        self.resources = {
            "settings": self.settings,
            "database": database,
            "forge_for": lambda _source, _api_url: forge,
            "progress": Silence(),
        }

    def run(self, **config: Any) -> dg.ExecuteInProcessResult:
        @contextmanager
        def line(_settings: Settings) -> Generator[Line]:
            yield Line(self.sender, lambda _topic: None)

        return produce_job(self.settings, line).execute_in_process(
            run_config={"ops": {"produce_records": {"config": config}}},
            resources=self.resources,
            raise_on_error=False,
        )


def figures(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata of the run's output."""
    [event] = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def test_the_job_produces_files_and_repositories_with_figures(lists: Lists, tmp_path: Path) -> None:
    number = lists.stand_in.add_repository("acme/tool", 130)
    file = tmp_path / "releases.jsonl"
    file.write_text(json.dumps(release(1)) + "\n" + json.dumps(DOCUMENT))
    job = Job(lists.database, lists.forge, api_url=lists.stand_in.site.api)
    result = job.run(paths=[str(file)], repositories=["acme/tool"], action="edited")
    assert result.success
    said = figures(result)
    assert (said["records"], said["acknowledged"], said["failed"], said["refused"]) == (132, 132, 0, 0)
    assert {sent.headers["ce_type"] for sent in job.sender.sent} == {
        b"com.github.release.edited",
        b"io.kb-platform.document.updated",
    }
    assert sum(sent.key == str(number).encode() for sent in job.sender.sent) == 130


def test_without_configuration_the_job_produces_what_is_watched(lists: Lists) -> None:
    lists.stand_in.add_repository("acme/tool", 3)
    job = Job(lists.database, lists.forge, api_url=lists.stand_in.site.api)
    nothing = job.run()
    assert not nothing.success
    assert "nothing is watched" in str(nothing.all_events)
    with lists.database.transaction() as connection:
        watch_list.add(connection, "acme/tool", at=NOW)
    assert figures(job.run())["acknowledged"] == 3


def test_a_run_with_records_that_are_no_events_fails_and_is_not_tried_again(
    database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "releases.jsonl"
    file.write_text(json.dumps(release(1)) + "\n{")
    job = Job(database)
    result = job.run(paths=[str(file)])
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "1 of 2 records were acknowledged, 1 are refused: 1 not-json" in str(failure.event_specific_data)
    assert not [event for event in result.all_events if event.is_step_restarted]
    assert len(job.sender.sent) == 1
