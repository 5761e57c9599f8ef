"""The receiver behind a real server: what it takes, what it refuses, and that it answers in time whatever happens."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import quote_plus

import pytest

from kb_platform.errors import BrokersUnavailable
from kb_platform.services.deliveries import Connecting
from kb_platform.services.receiver import RETRY_AFTER_S
from kb_platform.services.webhook_server import BrokerWatch
from kb_platform.sources import events
from kb_platform.sources.message import Message
from kb_platform.streams.sender import Sender
from tests.fake_sender import FakeSender, Sent
from tests.kafka_brokers import MockCluster, brokers_of
from tests.webhooks import MOST_BYTES, PATH, SECRET, Served, payload, signed

BODY = json.dumps(payload()).encode()
DELIVERY = "72d3162e-cc78-11e3-81ab-4c9367dc0958"


def landed(sent: Sent) -> Any:
    """What landing makes of a message."""
    message = Message(sent.topic, 0, 0, None, sent.key, sent.value, tuple(sent.headers.items()))
    return events.parse_event(
        message, topic_id="t", github_api_url="https://api.github.com", max_body_bytes=1_000_000,
        max_record_bytes=1_000_000,
    )  # fmt: skip


# --- what is taken ----------------------------------------------------------------------------------------


def test_a_signed_delivery_is_acknowledged_and_lands_as_it_came() -> None:
    sender = FakeSender()
    with Served(sender) as served:
        answer = served.post(BODY, x_github_delivery=DELIVERY)
        assert (answer.status_code, answer.json()) == (202, {"note": "received", "delivery": DELIVERY})
        assert served.health() == {
            "status": "ok", "received": 1, "acknowledged": 1, "refused": 0, "shed": 0, "failed": 0, "ignored": 0,
            "waiting": 0, "held_bytes": 0, "brokers": {"reachable": True},
        }  # fmt: skip
    [sent] = sender.sent
    assert (sent.topic, sent.key, sent.value) == ("kb.releases", b"4711", BODY)
    assert sent.headers["ce_id"] == DELIVERY.encode()
    assert sent.headers["ce_type"] == b"com.github.release.published"
    streamed = landed(sent)
    assert (streamed.repository.name, streamed.repository.number) == ("acme/tool", 4711)
    assert streamed.release.tag == "v1.1.0"


def test_a_form_says_the_same_as_json() -> None:
    sender = FakeSender()
    form = b"payload=" + quote_plus(BODY).encode()
    with Served(sender) as served:
        assert served.post(form, content_type="application/x-www-form-urlencoded").status_code == 202
        assert served.post(b"other=1", content_type="application/x-www-form-urlencoded").status_code == 400
    assert [sent.value for sent in sender.sent] == [BODY]


def test_a_ping_is_answered_and_other_events_are_nothing_to_us() -> None:
    sender = FakeSender()
    with Served(sender) as served:
        assert served.post({"zen": "Keep it logically awesome."}, event="ping").status_code == 200
        answer = served.post({"ref": "refs/heads/main"}, event="push")
        assert (answer.status_code, "nothing was done" in answer.text) == (202, True)
        assert served.post(b"no json at all", event="push").status_code == 202
        assert served.health()["ignored"] == 3
    assert sender.sent == []


def test_any_secret_of_several_is_taken_while_one_is_replaced() -> None:
    with Served(FakeSender(), secrets=(SECRET, b"the next one")) as served:
        assert served.post(BODY).status_code == 202
        assert served.post(BODY, secret=b"the next one").status_code == 202
        assert served.post(BODY, secret=b"the last one").status_code == 401


def test_what_is_signed_and_not_understood_is_produced_for_landing_to_quarantine() -> None:
    sender = FakeSender()
    strange = [
        payload() | {"release": "gone"},
        payload() | {"repository": None},
        payload(action="astonished"),
        {"action": "published"},
        payload(tag_name=""),
        payload() | {"repository": {"id": -1, "full_name": "x\ny", "url": "\x00"}},
        {"action": "\r\nce_id: 1", "release": {"id": 10**30}},
    ]
    with Served(sender) as served:
        for body in strange:
            assert served.post(body).status_code == 202, body
    assert [json.loads(sent.value) for sent in sender.sent] == strange


# --- what is refused --------------------------------------------------------------------------------------


def test_what_is_not_signed_is_refused_and_not_told_why() -> None:
    sender = FakeSender()
    with Served(sender) as served:
        answers = [
            served.post(BODY, x_hub_signature_256=signature)
            for signature in (None, "sha256=", "sha256=" + "0" * 64, signed(BODY)["x-hub-signature-256"].upper())
        ]  # fmt: skip
        answers.append(served.post(BODY, secret=b""))
        answers.append(
            served.client.post(PATH, content=BODY + b" ", headers=signed(BODY)),
        )
        assert {(answer.status_code, answer.text) for answer in answers} == {(401, '{"note":"unauthorized"}')}
        assert (served.health()["refused"], served.health()["received"]) == (6, 0)
    assert sender.sent == []


@pytest.mark.parametrize(
    ("body", "changes", "status"),
    [
        (BODY, {"x_github_delivery": None}, 400),
        (BODY, {"x_github_delivery": "a b"}, 400),
        (BODY, {"x_github_delivery": "a" * 101}, 400),
        (BODY, {"x_github_event": None}, 400),
        (BODY, {"content_type": "text/xml"}, 415),
        (BODY, {"content_encoding": "gzip"}, 415),
        (b"", {}, 400),
        (b"[]", {}, 400),
        (b'"text"', {}, 400),
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"release": {}}', {}, 400),
        (b'{"a":' * 100_000, {}, 400),
        (b"x" * (MOST_BYTES + 1), {}, 413),
    ],
)
def test_what_is_no_delivery_is_refused(body: bytes, changes: dict[str, Any], status: int) -> None:
    sender = FakeSender()
    with Served(sender) as served:
        answer = served.post(body, **changes)
        assert answer.status_code == status
        assert answer.headers["connection"] == "close"
        assert served.health()["refused"] == 1
        assert served.health()["held_bytes"] == 0
    assert sender.sent == []


def test_only_post_to_one_address_is_served() -> None:
    with Served(FakeSender()) as served:
        assert served.client.get(PATH).status_code == 405
        assert served.client.post("/").status_code == 404
        assert served.client.post(PATH + "/").status_code in (307, 404)
        assert served.client.get("/healthz").headers.get("server") is None


def test_a_log_line_holds_nothing_that_a_stranger_wrote(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Served(FakeSender(failing="it broke")) as served:
        served.post(BODY, x_github_delivery="evil\x1b[31m")
        served.raw(
            served.head(BODY, f"content-length: {len(BODY)}", x_github_delivery="a\r\n forged: line"), BODY
        )
        served.post(b'{"action": "evil"', x_github_event="evil")
        served.post({"action": "evil"})
    assert "it broke" in caplog.text
    assert "evil" not in caplog.text
    assert "forged" not in caplog.text


# --- lengths, and time ------------------------------------------------------------------------------------


def test_a_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    with Served(FakeSender()) as served:
        began = time.monotonic()
        got = served.raw(served.head(b"", "content-length: 10000000"))
        assert got.startswith(b"HTTP/1.1 413 ")
        assert time.monotonic() - began < 0.5


def test_chunks_without_end_are_refused_at_the_limit() -> None:
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    with Served(FakeSender()) as served:
        got = served.raw(served.head(b"", "transfer-encoding: chunked"), *[chunk] * 100)
        assert got.startswith(b"HTTP/1.1 413 ") or got == b""
        assert served.health()["refused"] == 1
        assert served.health()["held_bytes"] == 0


def test_chunks_are_taken_like_any_body() -> None:
    with Served(FakeSender()) as served:
        chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:100], BODY[100:])]
        got = served.raw(
            served.head(BODY, "transfer-encoding: chunked", "connection: close"), *chunks, b"0\r\n\r\n"
        )
        assert got.startswith(b"HTTP/1.1 202 ")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with Served(FakeSender()) as served:
        began = time.monotonic()
        got = served.raw(served.head(BODY, f"content-length: {len(BODY)}"), BODY[:10])
        assert got.startswith(b"HTTP/1.1 408 ")
        assert 0.5 < time.monotonic() - began < 2.0
        trickle = [b"x"] * 100
        began = time.monotonic()
        served.raw(served.head(BODY, f"content-length: {len(BODY)}"), *trickle, pause_s=0.02)
        assert time.monotonic() - began < 3.0
        assert served.health()["held_bytes"] == 0


def test_a_body_that_is_broken_off_harms_nobody() -> None:
    with Served(FakeSender()) as served:
        served.raw(served.head(BODY, f"content-length: {len(BODY)}"), BODY[:10], read=False)
        served.until(lambda: served.receiver.counts.refused == 1)
        assert served.health()["held_bytes"] == 0
        assert served.post(BODY).status_code == 202


def test_more_than_the_told_length_is_no_second_delivery() -> None:
    sender = FakeSender()
    with Served(sender) as served:
        second = served.head(b"{}", "content-length: 2") + b"{}"
        got = served.raw(
            served.head(BODY, f"content-length: {len(BODY)}"), BODY + b"garbage\r\n\r\n" + second
        )
        assert got.count(b"HTTP/1.1 202 ") == 1
        assert b"HTTP/1.1 400 " in got
    assert len(sender.sent) == 1


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: 5, 6",),
        ("content-length: +5",),
        ("content-length: 0x5",),
        ("transfer-encoding: gzip, chunked",),
        ("transfer-encoding : chunked",),
    ],
)
def test_two_opinions_on_the_length_are_refused(lines: tuple[str, ...]) -> None:
    sender = FakeSender()
    with Served(sender) as served:
        got = served.raw(served.head(b"", *lines) + b"0\r\n\r\n" + b"x" * 10)
        assert got.split(b" ")[1] in (b"400", b"501")
    assert sender.sent == []


def test_who_never_finishes_the_headers_is_sent_away() -> None:
    with Served(FakeSender(), idle_s=0.3) as served:
        for parts in ((), (b"POST ",), tuple(b"x-a: b\r\n" for _ in range(30))):
            began = time.monotonic()
            assert served.raw(b"POST / HTTP/1.1\r\n" if parts else b"", *parts, pause_s=0.05)[:12] in (
                b"",
                b"HTTP/1.1 400",
            )
            assert time.monotonic() - began < 3.0
        assert served.post(BODY).status_code == 202


def test_headers_without_end_are_refused() -> None:
    with Served(FakeSender()) as served:
        got = served.raw(b"POST / HTTP/1.1\r\nx: " + b"y" * 200_000)
        assert got.startswith(b"HTTP/1.1 400 ") or got == b""


# --- brokers ----------------------------------------------------------------------------------------------


def test_a_failed_delivery_is_no_success() -> None:
    with Served(FakeSender(failing="no broker")) as served:
        answer = served.post(BODY)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == str(RETRY_AFTER_S)
        assert "no broker" not in answer.text
        assert served.health()["failed"] == 1


def test_silence_is_no_success_and_ends_in_time() -> None:
    sender = FakeSender(silent=True)
    with Served(sender) as served:
        began = time.monotonic()
        answer = served.post(BODY)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, str(RETRY_AFTER_S))
        assert 0.9 < time.monotonic() - began < 2.0
        assert served.health()["waiting"] == 1
        sender.silent = False
        served.until(lambda: served.health()["waiting"] == 0)
        assert served.health()["held_bytes"] == 0
        assert served.post(BODY).status_code == 202


def test_when_enough_waits_further_ones_are_sent_away_at_once() -> None:
    sender = FakeSender(silent=True)
    with Served(sender, queue=5) as served, ThreadPoolExecutor(20) as clients:
        first = [clients.submit(served.post, BODY) for _ in range(5)]
        served.until(lambda: served.health()["waiting"] == 5)
        began = time.monotonic()
        more = [clients.submit(served.post, BODY) for _ in range(15)]
        shed = [one.result() for one in more]
        assert time.monotonic() - began < 0.8
        assert {(one.status_code, one.headers["retry-after"]) for one in shed} == {(503, str(RETRY_AFTER_S))}
        assert served.health()["shed"] == 15
        sender.silent = False
        assert {one.result().status_code for one in first} == {202}
        assert served.post(BODY).status_code == 202
    assert len(sender.sent) == 6


def test_a_full_queue_of_the_producer_sheds_too() -> None:
    with Served(FakeSender(queue=0)) as served:
        answer = served.post(BODY)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert served.health()["shed"] == 1


def test_bytes_are_bounded_over_all_deliveries() -> None:
    sender = FakeSender(silent=True)
    big = json.dumps(payload(body="x" * 400_000)).encode()
    with Served(sender, most_held_bytes=1_000_000) as served, ThreadPoolExecutor(4) as clients:
        waiting = [clients.submit(served.post, big) for _ in range(2)]
        served.until(lambda: served.health()["waiting"] == 2)
        began = time.monotonic()
        assert served.post(big).status_code == 503
        assert time.monotonic() - began < 0.5
        sender.silent = False
        assert {one.result().status_code for one in waiting} == {202}


def test_without_brokers_it_serves_and_says_503_until_there_are_some() -> None:
    tries: list[int] = []
    sender = FakeSender()

    def make() -> FakeSender:
        tries.append(1)
        if len(tries) < 3:
            raise BrokersUnavailable("nobody there")
        return sender

    with Served(Connecting(make)) as served:
        assert served.post(BODY).status_code == 503
        served.until(lambda: served.post(BODY).status_code == 202)
    assert len(sender.sent) == 1


def test_the_watch_over_brokers_keeps_the_last_it_heard() -> None:
    reached = threading.Event()

    def require() -> None:
        if not reached.is_set():
            raise BrokersUnavailable("nobody there")

    watch = BrokerWatch(require, every_s=0.01)
    assert watch.as_json()["reachable"] is None
    watch.start()
    Served.until(lambda: watch.as_json()["reachable"] is False)
    reached.set()
    Served.until(lambda: watch.as_json()["reachable"] is True)
    watch.stop()


@pytest.mark.slow
def test_fifty_clients_at_once_are_all_acknowledged() -> None:
    sender = FakeSender()
    with Served(sender, queue=1_000) as served, ThreadPoolExecutor(50) as clients:
        codes = list(clients.map(lambda _: served.post(BODY).status_code, range(2_000)))
    assert set(codes) == {202}
    assert len({sent.headers["ce_id"] for sent in sender.sent}) == 2_000


def test_brokers_that_freeze_are_told_in_time_and_come_back() -> None:
    mock = MockCluster(1)
    try:
        brokers = brokers_of(mock.address)
        with closing(Sender(brokers, queue=100)) as sender, Served(sender, topic=mock.topic()) as served:
            assert served.post(BODY).status_code == 202
            mock.freeze()
            began = time.monotonic()
            assert served.post(BODY).status_code == 503
            assert time.monotonic() - began < 2.0
            assert served.health()["waiting"] == 1
            mock.thaw()
            served.until(lambda: served.health()["waiting"] == 0, 15)
            assert served.post(BODY).status_code == 202
    finally:
        mock.close()


# --- the end ----------------------------------------------------------------------------------------------


def test_at_its_end_it_waits_for_acknowledgements_and_takes_no_more() -> None:
    sender = FakeSender(silent=True)
    with Served(sender) as served, ThreadPoolExecutor(2) as clients:
        waiting = clients.submit(served.post, BODY)
        served.until(lambda: len(sender.sent) == 1)
        served.server.should_exit = True
        served.until(lambda: not served.server.servers[0].is_serving())
        with pytest.raises(OSError):
            served.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert not waiting.done()
        sender.silent = False
        assert waiting.result().status_code == 202


def test_a_producer_that_has_ended_ends_the_server() -> None:
    sender = FakeSender()
    with Served(sender) as served:
        sender.fatal = "fenced"
        served.thread.join(5)
        assert not served.thread.is_alive()
        assert str(served.receiver.deliveries.broken) == "fenced"
