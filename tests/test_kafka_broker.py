"""Brokers: settings that are refused, why they do not answer, and that nothing waits for ever or tells a secret."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from kb_platform.errors import BrokersRefused, BrokersUnavailable, SettingsError, StreamError
from kb_platform.settings import Settings
from kb_platform.streams.broker import FORBIDDEN, Brokers, Deadline
from kb_platform.streams.client_errors import Complaints, Seen, as_stream_error, diagnose, no_answer
from kb_platform.streams.reader import Reader
from kb_platform.streams.sender import Sender, TransactionalSender
from kb_platform.streams.topics import Topic, Topics
from tests.kafka_brokers import MockCluster, brokers_address, brokers_of, missing

SECURE = "KB_TEST_KAFKA_SECURE"
# What may pass before a person is told, whatever is wrong.
TELLING_S = 15.0


@pytest.fixture(scope="module")
def mock() -> Generator[MockCluster]:
    cluster = MockCluster()
    yield cluster
    cluster.close()


def config(**values: Any) -> dict[str, Any]:
    return {"kafka_config": json.dumps({key.replace("__", "."): value for key, value in values.items()})}


def test_no_brokers_is_a_setting_that_is_missing() -> None:
    for nothing in (None, "", "  "):
        with pytest.raises(SettingsError, match="KB_KAFKA_BOOTSTRAP_SERVERS"):
            Brokers(Settings(kafka_bootstrap_servers=nothing))


@pytest.mark.parametrize(
    "wrong", ["http://x y:1", ",", "a:1,,b:2", "a:b", "user:secret@host:9092", "a:1;b:2"]
)
def test_addresses_that_are_none(wrong: str) -> None:
    with pytest.raises(SettingsError, match="KB_KAFKA_BOOTSTRAP_SERVERS"):
        brokers_of(wrong)


@pytest.mark.parametrize("right", ["a", "a:9092", "a:1, b:2", "[::1]:9092", "PLAINTEXT://a.b-c.example:9092"])
def test_addresses_that_may_be(right: str) -> None:
    assert brokers_of(right).servers == right


@pytest.mark.parametrize("key", sorted(FORBIDDEN))
def test_what_keeps_records_safe_is_not_to_be_set(key: str) -> None:
    with pytest.raises(SettingsError) as raised:
        brokers_of("a:1", kafka_config=json.dumps({key: "hunter2"}))
    assert key in str(raised.value)
    assert "hunter2" not in f"{raised.value} {raised.value.hint}"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"no.such.thing": "hunter2"}, "no.such.thing"),
        ({"security.protocol": "hunter2"}, "security.protocol"),
        ({"socket.timeout.ms": "hunter2"}, "socket.timeout.ms"),
        ({"socket.timeout.ms": 0}, "socket.timeout.ms"),
        ({"ssl.ca.location": "/no/such/file", "security.protocol": "SSL"}, "ssl.ca.location"),
        ({"sasl.mechanism": "GSSAPI", "security.protocol": "SASL_PLAINTEXT"}, "SASL mechanism GSSAPI"),
        ({"ssl.key.pem": "hunter2hunter2", "security.protocol": "SSL"}, "ssl.key.pem"),
        ({"error_cb": "hunter2"}, "error_cb"),
        ({"topic.acks": "0"}, "topic.acks"),
        ({"test.mock.num.brokers": 3}, "test.mock"),
        ({"client.id": ["hunter2"]}, "client.id"),
        ({"client.id": None}, "client.id"),
    ],
)
def test_settings_that_librdkafka_cannot_use_are_named_without_their_values(
    given: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        brokers_of("a:1", kafka_config=json.dumps(given))
    assert named in str(raised.value)
    assert "KB_KAFKA_CONFIG" in str(raised.value)
    assert "hunter2" not in f"{raised.value} {raised.value.hint}"


def test_what_is_given_reaches_every_client_and_no_text() -> None:
    brokers = brokers_of(
        "a:1", **config(sasl__password="hunter2", client__id="mine", socket__keepalive__enable=True)
    )
    client = brokers.client(group_id="g")
    assert client["sasl.password"] == "hunter2"
    assert client["client.id"] == "mine"
    assert client["socket.keepalive.enable"] == "true"
    assert client["group.id"] == "g"
    assert 2_000 <= client["socket.timeout.ms"] <= 4_000
    assert "hunter2" not in repr(brokers)
    assert brokers.hide("is hunter2 wrong?") == "is *** wrong?"
    brokers.complaints.log(logging.ERROR, "%s", "FAIL hunter2")
    assert "hunter2" not in str(brokers.complaints.lately())


def test_the_mock_answers(mock: MockCluster) -> None:
    cluster = brokers_of(mock.address).require()
    assert cluster.brokers == 3
    assert cluster.cluster_id


def refused_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def told(brokers: Brokers, kind: type[StreamError], *words: str, within_s: float = TELLING_S) -> None:
    """`require` raises such an error in time, with these words and something to do."""
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        brokers.require()
    assert time.monotonic() - began < within_s
    text = f"{raised.value} {raised.value.hint}"
    for word in words:
        assert word in text
    assert "KB_KAFKA" in (raised.value.hint or "")


def test_nothing_listens() -> None:
    told(
        brokers_of(refused_port(), kafka_timeout_s=1),
        BrokersUnavailable, "nothing listens at", "KB_KAFKA_BOOTSTRAP_SERVERS",
        within_s=4,
    )  # fmt: skip


def test_no_such_host_is_told_without_waiting_for_the_whole_time() -> None:
    told(
        brokers_of("no-such-host.invalid:9092", kafka_timeout_s=60),
        BrokersUnavailable,
        "no-such-host.invalid",
        within_s=8,
    )


def test_one_wrong_host_among_right_ones_does_no_harm(mock: MockCluster) -> None:
    assert brokers_of(f"no-such-host.invalid:9092,{mock.address}").require().brokers == 3


def test_what_listens_is_no_broker() -> None:
    """A server of another kind, such as a web server."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                with caller:
                    caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    time.sleep(0.05)

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        told(brokers_of(address, kafka_timeout_s=30), BrokersUnavailable, "not a Kafka broker", within_s=8)


def test_a_listener_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        told(brokers_of(address, kafka_timeout_s=1), BrokersUnavailable, within_s=4)


@pytest.mark.slow
def test_frozen_brokers_are_told_by_every_entry() -> None:
    mock = MockCluster(2)
    try:
        brokers = brokers_of(mock.address, kafka_timeout_s=1)
        topic = mock.topic()
        with Topics(brokers) as looks, Reader(brokers, topic, {0: 0}) as reader:
            assert looks.watermarks(Topic(topic, "", (0,)))[0].high == 0
            assert reader.read(max_records=1, max_bytes=1, wait_s=5).ended
            mock.freeze()
            began = time.monotonic()
            for act in (
                brokers.require,
                lambda: Sender(brokers),
                lambda: TransactionalSender(brokers, "t").begin(),
                lambda: looks.watermarks(Topic(topic, "", (0,))),
                lambda: looks.describe(topic),
                lambda: reader.read(max_records=1, max_bytes=1, wait_s=20),
            ):
                with pytest.raises(BrokersUnavailable):
                    act()
                assert time.monotonic() - began < 6, act
                began = time.monotonic()
            reader.publish({0: 0})
        assert time.monotonic() - began < 5, "closing waited for frozen brokers"
    finally:
        mock.close()


def test_librdkafka_writes_nothing_to_standard_error(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="kb.kafka")
    with pytest.raises(BrokersUnavailable):
        brokers_of(refused_port(), kafka_timeout_s=0.5).require()
    assert capfd.readouterr().err == ""
    assert any("Connection refused" in record.getMessage() for record in caplog.records)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def seen(name: str, text: str) -> Seen:
    return Seen(0.0, 0.0, name, text)


@pytest.mark.parametrize(
    ("item", "refused", "word"),
    [
        (seen("_AUTHENTICATION", "sasl_plaintext://h:1/bootstrap: SASL authentication error: Authentication failed (after 306ms in state AUTH_REQ)"), True, "sasl.password"),
        (seen("_AUTHENTICATION", "sasl_plaintext://h:1/2: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN,SCRAM-SHA-512 (after 1ms in state AUTH_HANDSHAKE)"), True, "offers PLAIN,SCRAM-SHA-512"),
        (seen("_AUTHENTICATION", "sasl_plaintext://h:1/2: SASL PLAIN mechanism handshake failed: Broker: Request not valid in current SASL state: broker's supported mechanisms:  (after 0ms in state AUTH_HANDSHAKE)"), False, "does not ask for a login"),
        (seen("_SSL", "ssl://h:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified (after 9ms in state SSL_HANDSHAKE)"), True, "ssl.ca.location"),
        (seen("_SSL", "ssl://h:1/1: SSL handshake failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116 (after 9ms in state UP)"), True, "ssl.certificate.location"),
        (seen("_SSL", "ssl://h:1/1: SSL handshake failed: error:0A000086:certificate verify failed: hostname mismatch (after 9ms in state SSL_HANDSHAKE)"), True, "another name"),
        (seen("_TRANSPORT", "ssl://h:1/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker listener? (after 0ms in state SSL_HANDSHAKE)"), False, "does not speak TLS"),
        (seen("log", "h:1/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 1ms in state APIVERSION_QUERY)"), False, "security.protocol"),
        (seen("_TRANSPORT", "h:1/2: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)"), False, "nothing listens at h:1"),
        (seen("_RESOLVE", "h:1/bootstrap: Failed to resolve 'h:1': Name or service not known (after 1ms in state CONNECT)"), False, "no address is known for h:1"),
    ],
)  # fmt: skip
def test_what_librdkafka_says_is_put_into_words(item: Seen, refused: bool, word: str) -> None:
    cause = diagnose([seen("_ALL_BROKERS_DOWN", "3/3 brokers are down"), item])
    assert cause is not None
    assert cause.refused is refused
    assert word in f"{cause.text} {cause.hint}"
    error = no_answer("reading", [item])
    assert isinstance(error, BrokersRefused if refused else BrokersUnavailable)


def test_a_broker_that_stops_after_a_while_is_not_taken_for_another_protocol() -> None:
    cause = diagnose(
        [
            seen(
                "log",
                "h:1/2: Disconnected: connection closed by peer: receive 0 after POLLIN (after 4469ms in state UP)",
            )
        ]
    )
    assert cause is not None
    assert "TLS" not in cause.text


def test_a_login_that_was_refused_matters_more_than_what_came_after() -> None:
    cause = diagnose([
        seen("_AUTHENTICATION", "sasl_ssl://h:1/b: SASL authentication error: Authentication failed"),
        seen("_TRANSPORT", "sasl_ssl://h:1/b: Connect to ipv4#127.0.0.1:1 failed: Connection refused"),
        seen("_ALL_BROKERS_DOWN", "1/1 brokers are down"),
    ])  # fmt: skip
    assert cause is not None
    assert cause.refused
    assert diagnose([]) is None


def test_what_is_said_again_and_again_is_kept_once() -> None:
    complaints = Complaints()
    for number in range(500):
        complaints.log(
            40, "FAIL [rdkafka#producer-1] [thrd:x]: %s", f"h:1/b: broken (after {number}ms in state UP)"
        )
    for number in range(500):
        complaints.on_error(KafkaError(KafkaError._RESOLVE, f"host-{number}:1/bootstrap: Failed to resolve"))
    assert len(complaints.lately()) <= 64
    complaints.forget()
    assert complaints.lately() == []


def test_a_certain_cause_is_told_after_a_moment_of_grace() -> None:
    complaints = Complaints()
    began = time.monotonic()
    complaints.on_error(KafkaError(KafkaError._RESOLVE, "h:1/bootstrap: Failed to resolve 'h:1'"))
    assert complaints.certain(began) is None
    assert complaints.certain(began - 10) is None
    time.sleep(1.6)
    complaints.on_error(KafkaError(KafkaError._RESOLVE, "h:1/bootstrap: Failed to resolve 'h:1'"))
    assert complaints.certain(began) is not None


def test_no_rights_are_a_refusal() -> None:
    error = KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "Topic authorization failed"))
    told_as = as_stream_error("reading t", error)
    assert isinstance(told_as, BrokersRefused)
    assert "ACL" in (told_as.hint or "")


def test_a_deadline_ends() -> None:
    deadline = Deadline(0.05)
    assert not deadline.passed
    time.sleep(0.06)
    assert deadline.passed
    assert deadline.left == 0


# With brokers that ask for a login and speak TLS.


@pytest.fixture(scope="module")
def secure() -> dict[str, Any]:
    path = os.environ.get(SECURE)
    if not path:
        missing(SECURE, "a JSON file with client settings for listeners: sasl, tls, sasl_tls, and other_ca")
    return json.loads(Path(path or "").read_text())


def brokers_with(listener: dict[str, Any], *, servers: str | None = None, **changes: Any) -> Brokers:
    given = {**listener, **{key.replace("__", "."): value for key, value in changes.items()}}
    address = given.pop("bootstrap.servers")
    return brokers_of(servers or address, kafka_config=json.dumps(given))


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["sasl", "tls", "sasl_tls"])
def test_login_and_tls(secure: dict[str, Any], listener: str) -> None:
    assert brokers_with(secure[listener]).require().brokers >= 1


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_ways_to_log_in(secure: dict[str, Any], mechanism: str) -> None:
    assert brokers_with(secure["sasl_tls"], sasl__mechanism=mechanism).require().brokers >= 1


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["sasl", "sasl_tls"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_refused_by_every_entry(
    secure: dict[str, Any], listener: str, mechanism: str
) -> None:
    brokers = brokers_with(secure[listener], sasl__password="hunter2-wrong", sasl__mechanism=mechanism)
    for act in (
        brokers.require,
        lambda: Sender(brokers),
        lambda: TransactionalSender(brokers, "kb-test").begin(),
        lambda: Topics(brokers).describe("kb-test"),
        lambda: Reader(brokers, "kb-test", {0: 0}).read(max_records=1, max_bytes=1, wait_s=60),
    ):
        began = time.monotonic()
        with pytest.raises(BrokersRefused, match="login") as raised:
            act()
        assert time.monotonic() - began < TELLING_S
        assert "sasl.password" in (raised.value.hint or "")
        assert "hunter2" not in f"{raised.value} {raised.value.hint} {brokers.complaints.lately()}"


@pytest.mark.slow
def test_a_wrong_authority_is_told(secure: dict[str, Any]) -> None:
    told(
        brokers_with(secure["tls"], ssl__ca__location=secure["other_ca"]),
        BrokersRefused,
        "ssl.ca.location",
        within_s=6,
    )


@pytest.mark.slow
def test_a_plain_client_at_a_tls_port_is_told(secure: dict[str, Any]) -> None:
    told(brokers_of(secure["tls"]["bootstrap.servers"]), BrokersUnavailable, "TLS", "security.protocol")


@pytest.mark.slow
def test_a_plain_client_at_a_login_port_is_told(secure: dict[str, Any]) -> None:
    told(brokers_of(secure["sasl"]["bootstrap.servers"]), BrokersUnavailable, "SASL", "security.protocol")


@pytest.mark.slow
def test_a_tls_client_at_a_port_without_is_told(secure: dict[str, Any]) -> None:
    told(
        brokers_with(secure["tls"], servers=secure["sasl"]["bootstrap.servers"]),
        BrokersUnavailable, "does not speak TLS", within_s=6,
    )  # fmt: skip
    told(
        brokers_with(secure["tls"], servers=brokers_address()),
        BrokersUnavailable, "does not speak TLS", within_s=6,
    )  # fmt: skip


@pytest.mark.slow
def test_a_login_that_nobody_asked_for_is_told(secure: dict[str, Any]) -> None:
    told(
        brokers_with(secure["sasl"], servers=brokers_address()),
        BrokersUnavailable, "does not ask for a login", within_s=6,
    )  # fmt: skip
