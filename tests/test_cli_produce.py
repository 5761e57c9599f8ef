"""`kb produce` and `kb receive` as people run them: real processes against real brokers."""

from __future__ import annotations

import json
import os
import random
import signal
import string
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from kb_platform.cli.command import app
from kb_platform.clock import SystemClock
from kb_platform.errors import BrokersUnavailable, PositionLost, ServiceError, SettingsError, SourceError
from kb_platform.services import stack
from kb_platform.settings import Settings
from kb_platform.sources import events
from kb_platform.sources.message import Message
from kb_platform.store import watch_list
from kb_platform.store.database import Database
from kb_platform.streams.reader import Reader
from kb_platform.streams.topics import Topics
from tests.github_server import GitHubServer
from tests.github_stand_in import StandIn
from tests.kafka_brokers import NewTopics, brokers_address, brokers_of, new_topics
from tests.kb_up import KB, TOKEN, free_port
from tests.webhooks import PATH, SECRET, payload, signed

DOCUMENT = {"id": "adr-7", "source": "https://wiki.example/adr", "title": "Seven", "body": "We choose.",
            "time": "2026-03-01T09:00:00Z", "url": "https://wiki.example/adr/7"}  # fmt: skip

# Port 9 is nobody's.
NOWHERE = {"KB_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "KB_KAFKA_TIMEOUT_S": "1"}


@pytest.fixture(scope="module")
def topics() -> Generator[NewTopics]:
    with new_topics(brokers_address()) as made:
        yield made


class Kb:
    """The command with topics of its own."""

    def __init__(self, topics: NewTopics, home: Path) -> None:
        self.address = topics.address
        self.releases, self.documents = topics(3), topics(2)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("KB_", "DAGSTER_"))}
        self.environment = own | {
            "KB_HOME": str(home),
            "KB_KAFKA_BOOTSTRAP_SERVERS": self.address,
            "KB_KAFKA_RELEASE_TOPIC": self.releases,
            "KB_KAFKA_DOCUMENT_TOPIC": self.documents,
        }

    def __call__(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*KB, *map(str, arguments)], env=self.environment | environment, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip

    def refused(self, *arguments: object, **environment: str) -> BaseException | None:
        """The error of a command that cannot even begin, in this process."""
        return CliRunner().invoke(app, [*map(str, arguments)], env=self.environment | environment).exception

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*KB, *map(str, arguments)], env=self.environment | environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def read(self, topic: str) -> list[Message]:
        """All that a topic holds now."""
        with closing(Topics(brokers_of(self.address))) as topics:
            _, marks = topics.look(topic)
        reader = Reader(
            brokers_of(self.address), topic, dict.fromkeys(range(3 if topic == self.releases else 2), 0)
        )
        try:
            found: list[Message] = []
            while len(found) < sum(mark.high for mark in marks.values()):
                found += reader.read(max_records=10_000, max_bytes=50_000_000, wait_s=3).messages
            return found
        finally:
            reader.close()


@pytest.fixture
def kb(topics: NewTopics, tmp_path: Path) -> Kb:
    return Kb(topics, tmp_path / "home")


def release(number: int, **changes: Any) -> dict[str, Any]:
    return payload(number)["release"] | changes


def landed(message: Message) -> Any:
    return events.parse_event(
        message, topic_id="t", github_api_url="https://api.github.com", max_body_bytes=1_000_000,
        max_record_bytes=1_000_000,
    )  # fmt: skip


def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_files_are_produced_and_again_with_the_same_ids(kb: Kb, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file, report = tmp_path / "in" / "releases.json", tmp_path / "report.jsonl"
    file.write_text(json.dumps([release(number) for number in range(1, 101)]))
    (tmp_path / "in" / "more.jsonl").write_text(
        "\n".join(json.dumps(one) for one in (payload(500), DOCUMENT))
    )
    done = kb("produce", tmp_path / "in", "--report", report, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["records"], said["acknowledged"], said["failed"], said["refused"]) == (102, 102, 0, 0)
    reported = [json.loads(line) for line in report.read_text().splitlines()]
    assert len(reported) == 102
    messages = kb.read(kb.releases)
    assert {(m.topic, m.partition, m.offset) for m in messages + kb.read(kb.documents)} == {
        (one["topic"], one["partition"], one["offset"]) for one in reported
    }
    ids = [dict(m.headers)["ce_id"] for m in messages]
    assert {one["event_id"].encode() for one in reported if one["topic"] == kb.releases} == set(ids)
    of_file = [landed(m).release.release_id for m in messages if landed(m).repository.number is None]
    assert of_file == list(range(1, 101)), "one repository's records keep their order"
    assert kb("produce", file).returncode == 0
    again = [dict(m.headers)["ce_id"] for m in kb.read(kb.releases)]
    assert len(again) == 201
    assert set(again) == set(ids)


def test_lines_of_standard_input_and_what_is_wrong_with_them(kb: Kb) -> None:
    lines = [json.dumps(release(1)), "{", json.dumps(DOCUMENT), "", "[1]", json.dumps(payload(2))]
    options = ("--repo", "acme/other", "--repo-number", "99", "--action", "edited")
    process = kb.start("produce", "-", *options)
    output, errors = process.communicate("\n".join(lines), timeout=60)
    assert process.returncode == 1
    assert "standard input:2: not-json: " in errors
    assert "standard input:5: not-a-release: " in errors
    assert "refused: 1 not-a-release, 1 not-json" in output
    of_line, of_payload = sorted(map(landed, kb.read(kb.releases)), key=lambda one: one.release.release_id)
    assert (of_line.repository.name, of_line.repository.number) == ("acme/other", 99)
    assert (of_payload.repository.name, of_payload.repository.number) == ("acme/tool", 4711)
    assert len(kb.read(kb.documents)) == 1


@pytest.mark.slow
def test_ctrl_c_waits_for_what_is_under_way_and_says_how_much(kb: Kb) -> None:
    process = kb.start("produce", "-", "--json")
    assert process.stdin is not None
    process.stdin.write("".join(json.dumps(release(number)) + "\n" for number in range(1, 21)))
    process.stdin.flush()
    until(lambda: len(kb.read(kb.releases)) == 20)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert process.returncode == 1
    said = json.loads(output)
    assert (said["acknowledged"], said["failed"], said["ended_by"]) == (20, 0, "stopped")
    assert "Traceback" not in errors


@pytest.mark.slow
def test_what_is_missing_is_named(kb: Kb, tmp_path: Path) -> None:
    file = tmp_path / "releases.jsonl"
    file.write_text(json.dumps(release(1)))
    nobody = kb.refused("produce", file, **NOWHERE)
    assert isinstance(nobody, BrokersUnavailable)
    assert "127.0.0.1:9" in str(nobody)
    missing = kb.refused("produce", file, "--topic", "kb-test-never-made")
    assert isinstance(missing, PositionLost)
    assert (missing.reason, "kb kafka init" in str(missing.hint)) == ("missing", True)
    assert isinstance(kb.refused("produce", file, KB_KAFKA_BOOTSTRAP_SERVERS=""), SettingsError)
    assert isinstance(kb.refused("produce", tmp_path / "nothing.json"), SourceError)


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("-", "-"), ("x.json", "--action", "astonished"), ("x.json", "--repo", "no name"), ("x.json", "--repo-number", "1"),
        ("x.json", "--repo", "a/b", "--repo-number", str(2**62)), ("x.json", "--topic", "no topic"),
        ("--from", "github", "not-a-name"), ("--from", "github", "a/b", "--repo", "a/b"), ("--from", "elsewhere"),
        ("x.json", "--mode", "batched"), ("x.json", "--report", "/nowhere/at/all"),
    ],
)  # fmt: skip
def test_wrong_usage_is_said_before_anything_is_done(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["produce", *arguments], env={"KB_HOME": str(tmp_path)})
    assert done.exit_code == 2, done.output


def test_a_record_that_the_topic_does_not_take_is_told(topics: NewTopics, kb: Kb, tmp_path: Path) -> None:
    small = topics(1, max_message_bytes=20_000)
    noise = "".join(random.Random(1).choices(string.ascii_letters, k=100_000))
    file = tmp_path / "releases.jsonl"
    file.write_text(json.dumps(release(1, body=noise)))
    done = kb("produce", file, "--topic", small, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["acknowledged"], said["failed"]) == (1, 0, 1)
    assert "releases.jsonl:1: " in done.stderr
    assert "too large" in done.stderr


@pytest.mark.slow
def test_lists_of_github_are_produced_whole(kb: Kb, database: Database) -> None:
    stand_in = StandIn(SystemClock(), seed=2)
    with GitHubServer(stand_in) as server:
        number = stand_in.add_repository("acme/tool", 130)
        stand_in.add_repository("acme/other", 2)
        with database.transaction() as connection:
            watch_list.add(connection, "acme/other", at=SystemClock().now())
        environment = {
            "KB_GITHUB_API_URL": server.url,
            "KB_GITHUB_TOKEN": TOKEN,
            "KB_DATABASE_URL": database.url,
        }
        done = kb("produce", "--from", "github", "acme/tool", "acme/gone", "--json", **environment)
        assert done.returncode == 1
        assert json.loads(done.stdout)["reasons"] == {"not-found": 1}
        assert "github:acme/gone: not-found: " in done.stderr
        messages = kb.read(kb.releases)
        assert {m.key for m in messages} == {str(number).encode()}
        assert {json.loads(m.value or b"")["release"]["id"] for m in messages} == set(
            stand_in.truth("acme/tool")
        )
        assert kb("produce", "--from", "github", **environment).returncode == 0
        assert len(kb.read(kb.releases)) == len(messages) + 2
        assert stand_in.forbidden_requests() == []


# --- kb receive -------------------------------------------------------------------------------------------


def _ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def test_a_delivery_is_in_the_topic_when_it_is_answered_and_sigterm_ends_cleanly(kb: Kb) -> None:
    port = free_port()
    process = kb.start("receive", "--port", port, KB_WEBHOOK_SECRET=f"older,{SECRET.decode()}")
    try:
        until(lambda: _ready(port) or process.poll() is not None)
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, trust_env=False, timeout=10) as client:
            body = json.dumps(payload(1)).encode()
            until(lambda: client.get("/healthz").json()["brokers"]["reachable"])
            headers = signed(body)
            assert client.post(PATH, content=body, headers=headers).status_code == 202
            [message] = kb.read(kb.releases)
            assert (message.value, message.key) == (body, b"4711")
            assert dict(message.headers)["ce_id"] == headers["x-github-delivery"].encode()
            assert client.post(PATH, content=body + b" ", headers=headers).status_code == 401
            # Without a compressible body: what the topic would not take.
            assert client.get("/healthz").json()["acknowledged"] == 1
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert f"/webhooks/github → {kb.releases}" in output
    assert "Traceback" not in errors
    assert SECRET.decode() not in errors + output


@pytest.mark.slow
def test_receiving_needs_a_secret_brokers_and_the_topic(kb: Kb) -> None:
    unset = kb.refused("receive")
    assert isinstance(unset, SettingsError)
    assert "KB_WEBHOOK_SECRET" in str(unset.hint)
    port = ("--port", free_port())
    secret = {"KB_WEBHOOK_SECRET": "x" * 20}
    assert isinstance(kb.refused("receive", *port, KB_KAFKA_BOOTSTRAP_SERVERS="", **secret), SettingsError)
    assert isinstance(kb.refused("receive", *port, **NOWHERE, **secret), BrokersUnavailable)
    missing = kb.refused("receive", *port, KB_KAFKA_RELEASE_TOPIC="kb-test-never-made", **secret)
    assert isinstance(missing, PositionLost)


@pytest.mark.slow
def test_brokers_that_cannot_be_reached_are_told_within_15_seconds(kb: Kb) -> None:
    nobody = {"KB_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "KB_WEBHOOK_SECRET": "x" * 20}
    for command in (("produce", "-"), ("receive", "--port", free_port())):
        began = time.monotonic()
        done = kb(*command, **nobody)
        assert (done.returncode, time.monotonic() - began < 15) == (1, True)
        assert "Kafka at 127.0.0.1" in done.stderr


@pytest.mark.slow
def test_it_may_be_started_before_the_brokers(kb: Kb) -> None:
    port = free_port()
    process = kb.start(
        "receive", "--wait-for-brokers", "--port", port, KB_WEBHOOK_SECRET=SECRET.decode(),
        KB_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}", KB_KAFKA_TIMEOUT_S="1",
    )  # fmt: skip
    try:
        until(lambda: _ready(port) or process.poll() is not None)
        body = json.dumps(payload(1)).encode()
        answer = httpx2.post(
            f"http://127.0.0.1:{port}{PATH}", content=body, headers=signed(body), trust_env=False
        )
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        assert "brokers cannot be reached" in errors or "answered with 503 for now" in errors
    finally:
        process.kill()


def test_settings_without_a_secret_receive_nothing_under_kb_up() -> None:
    address = {"kafka_bootstrap_servers": "127.0.0.1:9092"}
    assert stack.receives_webhooks(Settings.model_validate(address | {"webhook_secret": "x"}))
    for less in ({"webhook_secret": "x"}, address, address | {"webhook_secret": " "}, {"webhook_secret": "x", "kafka_bootstrap_servers": ""}):  # fmt: skip
        assert not stack.receives_webhooks(Settings.model_validate(less))


def test_two_services_on_one_port_are_refused_by_name() -> None:
    both = Settings.model_validate(
        {
            "kafka_bootstrap_servers": "127.0.0.1:9092",
            "webhook_secret": "x",
            "webhook_port": 3999,
            "app_port": 3999,
        }
    )
    with pytest.raises(
        ServiceError, match="the receiver of webhooks and the app cannot both listen on port 3999"
    ):
        stack.require_free_ports(both)
    stack.require_free_ports(
        both.model_copy(update={"dagster_port": free_port(), "webhook_port": free_port()}), with_app=False
    )
