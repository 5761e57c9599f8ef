"""Brokers for tests: real ones where an address is given, librdkafka's mock everywhere, and faults.

`KB_TEST_KAFKA_BOOTSTRAP_SERVERS` is all that tests with real brokers need. Faults work on brokers that run on this
machine, whoever started them: they are found by the port they listen at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kb_platform.settings import Settings
from kb_platform.streams.broker import Brokers

ADDRESS = "KB_TEST_KAFKA_BOOTSTRAP_SERVERS"


def missing(variable: str, what: str) -> None:
    """Skip for want of a variable; in CI fail, because a check that CI skips is no check."""
    message = f"{variable} is not set: {what}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def brokers_address() -> str:
    """Addresses of real brokers, or no test."""
    address = os.environ.get(ADDRESS, "")
    if not address:
        missing(ADDRESS, "addresses of real Kafka brokers, HOST:PORT,…")
    return address


def brokers_of(address: str, **settings: Any) -> Brokers:
    """Brokers at an address, with further settings of ours."""
    return Brokers(Settings(kafka_bootstrap_servers=address, **settings))


class NewTopics:
    """Makes topics with names of their own at real brokers, and removes them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.admin = AdminClient({"bootstrap.servers": address, "socket.timeout.ms": 4000, "log_level": 0})
        self._names: list[str] = []

    def name(self) -> str:
        """A name that no topic has; a topic made under it goes with the test."""
        self._names.append(f"kb-test-{uuid.uuid4().hex[:12]}")
        return self._names[-1]

    def remove_later(self, name: str) -> None:
        """A topic that something else makes."""
        self._names.append(name)

    def __call__(self, partitions: int = 1, *, name: str | None = None, **config: Any) -> str:
        """Make a topic and wait until every broker knows it; `config` with `_` for `.`."""
        name = name or self.name()
        replication = min(3, len(self.admin.list_topics(timeout=10).brokers))
        wanted = {key.replace("_", "."): str(value) for key, value in config.items()}
        self._answer(
            lambda: self.admin.create_topics(
                [NewTopic(name, partitions, replication, config=wanted)], request_timeout=15
            )[name].result(20)
        )
        self.wait_for(lambda: len(leaders(self.admin, name)) == partitions)
        return name

    def delete(self, name: str) -> None:
        """Delete a topic, and wait until it is gone."""
        self._answer(lambda: self.admin.delete_topics([name], request_timeout=15)[name].result(20))
        self.wait_for(lambda: name not in self.admin.list_topics(timeout=10).topics)

    def trim(self, name: str, partition: int, before: int) -> None:
        """Delete the records before an offset."""
        place = TopicPartition(name, partition, before)
        self._answer(lambda: self.admin.delete_records([place], request_timeout=15)[place].result(20))

    def topic_id(self, name: str) -> str:
        """The id of a topic, as Kafka tells it."""
        future = self.admin.describe_topics(TopicCollection([name]), request_timeout=15)[name]
        return str(future.result(20).topic_id)

    def wait_for(self, is_so: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait until something is so."""
        wait_for(is_so, seconds)

    def clean(self) -> None:
        """Remove what was made."""
        there = set(self.admin.list_topics(timeout=10).topics)
        gone = [name for name in self._names if name in there]
        if gone:
            for future in self.admin.delete_topics(gone, request_timeout=15).values():
                with contextlib.suppress(Exception):
                    future.result(20)

    def _answer(self, ask: Callable[[], object]) -> None:
        """An admin keeps to a controller that is gone until it has looked again."""
        try:
            ask()
        except Exception as error:
            if "_TIMED_OUT" not in str(error):
                raise
            self.admin = AdminClient(
                {"bootstrap.servers": self.address, "socket.timeout.ms": 4000, "log_level": 0}
            )
            ask()


def leaders(admin: AdminClient, topic: str) -> dict[int, int]:
    """The leader of each partition that has one."""
    found = admin.list_topics(timeout=10).topics.get(topic)
    if found is None:
        return {}
    return {number: item.leader for number, item in found.partitions.items() if item.leader > 0}


def wait_for(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so, or fail."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            raise AssertionError(f"not so after {seconds} s")
        time.sleep(0.1)


@contextlib.contextmanager
def new_topics(address: str) -> Generator[NewTopics]:
    """Topics that go at the end."""
    topics = NewTopics(address)
    try:
        yield topics
    finally:
        topics.clean()


_MOCK = """
import sys
from confluent_kafka import Producer
producer = Producer({"test.mock.num.brokers": int(sys.argv[1]), "log_level": 0})
found = producer.list_topics(timeout=10)
print(",".join(f"{broker.host}:{broker.port}" for broker in found.brokers.values()), flush=True)
sys.stdin.read()
"""


class MockCluster:
    """librdkafka's own brokers, in a process of their own: topics make themselves (4 partitions), nothing is kept.

    No transactions, no controller: what `describe` asks is not answered.
    """

    def __init__(self, brokers: int = 3) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _MOCK, str(brokers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "the mock brokers did not start"

    def topic(self) -> str:
        """A new topic, of 4 partitions."""
        name = f"mock-{uuid.uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        # A producer's question makes it, and an admin is a producer.
        wait_for(lambda: len(leaders(admin, name)) == 4 or not admin.list_topics(name, timeout=5))
        return name

    def freeze(self) -> None:
        """Stop answering, all of them; connections stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End all of them at once."""
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self.thaw()
        self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class BrokerProcess:
    """One broker on this machine, known by its address; `kill`, `freeze` and back."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._process = psutil.Process(_listener(int(address.rpartition(":")[2])))
        self._command = self._process.cmdline()
        self._environment = self._process.environ()
        self._folder = self._process.cwd()
        self._output = Path(f"/proc/{self._process.pid}/fd/1").readlink()

    @property
    def pid(self) -> int:
        """Its process now."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it runs, frozen or not."""
        return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.kill()
        # Where it is a child of ours (started again by us), it must be reaped.
        self._process.wait(20)

    def start(self) -> None:
        """Start it again, just as it was started."""
        with self._output.open("ab") as output:
            started = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._process = psutil.Process(started.pid)
        # It outlives us, and psutil waits for it.
        started.returncode = 0

    def freeze(self) -> None:
        """SIGSTOP."""
        self._process.suspend()

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.resume()


def _listener(port: int) -> int:
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            assert connection.pid is not None, f"the process at port {port} is somebody else's"
            return connection.pid
    raise AssertionError(f"no process of this machine listens at port {port}")


class LocalBrokers:
    """Real brokers on this machine, to do faults to; `mend` leaves them all running and in sync."""

    def __init__(self, address: str) -> None:
        self.address = address
        by_id = AdminClient({"bootstrap.servers": address, "log_level": 0}).list_topics(timeout=10).brokers
        self.brokers = {number: BrokerProcess(f"{item.host}:{item.port}") for number, item in by_id.items()}

    def leader(self, topic: str, partition: int = 0) -> BrokerProcess:
        """The broker that leads a partition."""
        return self.brokers[self.leader_id(topic, partition)]

    def leader_id(self, topic: str, partition: int = 0) -> int:
        """Its number."""
        admin = AdminClient({"bootstrap.servers": self.address, "socket.timeout.ms": 2000, "log_level": 0})
        found = leaders(admin, topic)
        assert partition in found, f"no leader of {topic}/{partition}"
        return found[partition]

    def all(self) -> Iterable[BrokerProcess]:
        """All of them."""
        return self.brokers.values()

    def mend(self, seconds: float = 60.0) -> None:
        """Thaw and start what does not run; return when every replica of every partition is in sync."""
        for broker in self.all():
            if not broker.runs:
                broker.start()
            else:
                broker.thaw()
        wait_for(self._in_sync, seconds)

    def _in_sync(self) -> bool:
        try:
            admin = AdminClient(
                {"bootstrap.servers": self.address, "socket.timeout.ms": 2000, "log_level": 0}
            )
            found = admin.list_topics(timeout=3)
        except Exception:
            return False
        if len(found.brokers) < len(self.brokers):
            return False
        return all(
            set(partition.isrs) == set(partition.replicas) and partition.leader > 0
            for topic in found.topics.values()
            for partition in topic.partitions.values()
        )
