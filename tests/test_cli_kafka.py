"""`kb kafka` as people run it: real processes against real brokers, over an embedded database of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.kafka_brokers import NewTopics, brokers_address, missing, new_topics
from tests.kb_up import KB
from tests.records import record

COMMANDS = (
    ("kafka", "init"),
    ("kafka", "land"),
    ("kafka", "status"),
    ("kafka", "reset", "--topic", "kb.releases", "--yes"),
    ("produce", "-"),
)


class Kb:
    """The command with topics of its own, which it makes itself."""

    def __init__(self, topics: NewTopics, home: Path) -> None:
        self.topics = topics
        self.releases, self.documents = topics.name(), topics.name()
        for name in (self.releases, self.documents):
            topics.remove_later(f"{name}.dlq")
        own = {name: value for name, value in os.environ.items() if not name.startswith(("KB_", "DAGSTER_"))}
        self.environment = own | {
            "KB_HOME": str(home),
            "KB_KAFKA_BOOTSTRAP_SERVERS": topics.address,
            "KB_KAFKA_RELEASE_TOPIC": self.releases,
            "KB_KAFKA_DOCUMENT_TOPIC": self.documents,
            "KB_KAFKA_GROUP": f"group-of-{self.releases}",
        }

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*KB, *arguments], env=self.environment | environment, capture_output=True, text=True, timeout=120, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """What a command prints with --json."""
        done = self(*arguments, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> Generator[Kb]:
    """One home for all tests of the module; its server ends with it."""
    import tempfile

    home = Path(tempfile.mkdtemp(prefix="kbt-"))
    with new_topics(brokers_address()) as topics:
        made = Kb(topics, home)
        yield made
        made("database", "stop")


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


@pytest.mark.slow
def test_from_a_file_to_an_answer_by_way_of_a_topic(kb: Kb, tmp_path: Path) -> None:
    """init, produce, land, refresh, search, status: the commands of the documentation, in their order."""
    made = kb.json("kafka", "init")["topics"]
    assert [one["name"] for one in made] == [
        f"{name}{dead}" for name in (kb.releases, kb.documents) for dead in ("", ".dlq")
    ]
    assert all(one["made"] for one in made)
    again = kb.json("kafka", "init")["topics"]
    assert [(one["made"], one["differences"]) for one in again] == [(False, [])] * 4
    document = {"id": "p1", "source": "https://wiki.example.org/ops", "title": "Vault", "body": "- Open the brass hatch\n",
                "time": "2026-03-01T09:00:00Z", "url": "https://wiki.example.org/ops/p1"}  # fmt: skip
    path = write(
        tmp_path / "records.jsonl", record(1, body="- Fixed the humming widget\n"), record(2), document
    )
    assert kb("produce", path).returncode == 0
    landed = kb.json("kafka", "land", "--refresh")
    assert {topic: one["new"] for topic, one in landed["landed"].items()} == {
        kb.releases: 2,
        kb.documents: 1,
    }
    assert landed["refreshed"]["success"]
    found = kb.json("search", "where is the brass hatch")["results"]
    assert (found[0]["tag"], found[0]["url"]) == ("p1", document["url"])
    state = kb.json("kafka", "status")
    assert state["errors"] == {}
    assert {one["topic"]: (one["lag"], one["records"], one["trouble"]) for one in state["streams"]} == {
        kb.releases: (0, 2, None),
        kb.documents: (0, 1, None),
    }
    assert [one["lag"] for one in kb.json("status")["streams"]] == [0, 0]
    healthy = {one["name"]: one["ok"] for one in kb.json("doctor")["findings"]}
    assert healthy["brokers"]
    assert healthy["streams"]


@pytest.mark.slow
def test_poison_is_an_exit_status_and_can_be_shown(kb: Kb) -> None:
    """The bytes are there as they came."""
    from confluent_kafka import Producer

    kb("kafka", "init")
    producer = Producer({"bootstrap.servers": kb.topics.address, "log_level": 0})
    producer.produce(kb.releases, b"this is no event", headers=[("who", b"a test")])
    assert producer.flush(20) == 0
    landed = kb("kafka", "land")
    assert landed.returncode == 1
    assert "kb quarantine list" in landed.stderr
    (waiting,) = kb.json("quarantine", "list")["records"]
    assert waiting["origin"].startswith(f"kafka:{kb.releases}/")
    shown = kb("quarantine", "show", str(waiting["number"]), "--raw")
    assert shown.stdout == "this is no event"
    again = kb("quarantine", "replay", str(waiting["number"]))
    assert again.returncode == 1
    assert kb.json("quarantine", "show", str(waiting["number"]))["attempts"] == 2


@pytest.mark.slow
def test_a_topic_that_was_made_anew_is_told_and_reset(kb: Kb, tmp_path: Path) -> None:
    """Nobody is asked without a terminal; with --yes it is done, and recorded."""
    kb("kafka", "init")
    kb("produce", write(tmp_path / "one.jsonl", record(11)))
    kb("kafka", "land")
    kb.topics.delete(kb.releases)
    gone = kb("kafka", "land")
    assert gone.returncode == 1
    assert "there is no topic" in gone.stderr
    kb("kafka", "init")
    kb("produce", write(tmp_path / "two.jsonl", record(12)))
    lost = kb("kafka", "land")
    assert lost.returncode == 1
    assert f"kb kafka reset --topic {kb.releases}" in lost.stderr
    told = kb("kafka", "status")
    assert told.returncode == 1
    assert "recreated" in told.stdout
    asked = kb("kafka", "reset", "--topic", kb.releases)
    assert asked.returncode == 1
    assert "--yes" in asked.stderr
    done = kb.json("kafka", "reset", "--topic", kb.releases, "--yes")
    assert (done["trouble"], done["skipped"]) == ("recreated", 0)
    landed = kb.json("kafka", "land", "--topic", kb.releases)
    assert landed["landed"][kb.releases]["new"] == 1
    resets = kb.json("kafka", "status")["resets"]
    assert {one["trouble"] for one in resets} == {"recreated"}


def test_wrong_usage_is_told(kb: Kb) -> None:
    """A topic that is none of ours, a place that is none, and no brokers at all."""
    assert "not a topic of the settings" in kb("kafka", "land", "--topic", "another").stderr
    assert (
        "no place in a topic"
        in kb("kafka", "reset", "--topic", kb.releases, "--to", "yesterday", "--yes").stderr
    )
    off = kb("kafka", "land", KB_KAFKA_BOOTSTRAP_SERVERS="")
    assert off.returncode == 2
    assert "KB_KAFKA_BOOTSTRAP_SERVERS" in off.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nobody_at_the_address_is_told_within_15_seconds(kb: Kb, command: tuple[str, ...]) -> None:
    """From every command, with the setting that may be wrong."""
    began = time.monotonic()
    done = kb(*command, KB_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert done.returncode == 1
    assert time.monotonic() - began < 15
    assert "127.0.0.1:9" in done.stderr
    assert "KB_KAFKA_BOOTSTRAP_SERVERS" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["password", "ca"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_wrong_password_or_ca_is_told_within_15_seconds(
    kb: Kb, command: tuple[str, ...], wrong: str
) -> None:
    """From every command, and the password is in no line of it."""
    path = os.environ.get("KB_TEST_KAFKA_SECURE")
    if not path:
        missing("KB_TEST_KAFKA_SECURE", "client settings of brokers with passwords and TLS, a JSON file")
    secure = json.loads(Path(path or "").read_text())
    config = dict(secure["sasl" if wrong == "password" else "tls"])
    address = config.pop("bootstrap.servers")
    if wrong == "password":
        config["sasl.password"] = "not-the-password"
    else:
        config["ssl.ca.location"] = secure["other_ca"]
    began = time.monotonic()
    done = kb(*command, KB_KAFKA_BOOTSTRAP_SERVERS=address, KB_KAFKA_CONFIG=json.dumps(config))
    assert done.returncode == 1
    assert time.monotonic() - began < 15
    assert "KB_KAFKA_CONFIG" in done.stderr
    assert "not-the-password" not in done.stderr + done.stdout
