"""Brokers that are killed, frozen and started again while records are read and sent: late, but none lost and none twice.

Needs brokers on this machine, at least three; each test leaves them running and in sync.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator

import psutil
import pytest

from kb_platform.errors import BrokersUnavailable, QueueFull, StreamError
from kb_platform.streams.broker import Brokers
from kb_platform.streams.reader import Reader
from kb_platform.streams.sender import Delivery, Sender, TransactionalSender
from kb_platform.streams.topics import Topics
from tests.kafka_brokers import (
    BrokerProcess,
    LocalBrokers,
    NewTopics,
    brokers_address,
    brokers_of,
    new_topics,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local() -> LocalBrokers:
    found = LocalBrokers(brokers_address())
    if len(found.brokers) < 3:
        pytest.skip("faults need three brokers on this machine")
    return found


@pytest.fixture(autouse=True)
def mended(local: LocalBrokers) -> Generator[None]:
    """Before: in sync, so that one fault is one fault. After: whatever the test did to them."""
    local.mend()
    yield
    local.mend()


@pytest.fixture
def made(local: LocalBrokers, mended: None) -> Iterator[NewTopics]:
    with new_topics(local.address) as topics:
        yield topics
        # Frozen brokers remove no topics.
        local.mend()


class Traffic:
    """Sends numbered records to one partition, and reads them back, each in a thread, until `stop`."""

    def __init__(self, brokers: Brokers, topic: str) -> None:
        self.brokers, self.topic = brokers, topic
        self.sent: list[Delivery] = []
        self.read: list[int] = []
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._counted = 0
        self._threads = [threading.Thread(target=self._guard, args=(do,)) for do in (self._send, self._read)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "hangs"

    def wait_for_more(self, count: int = 200, seconds: float = 30.0) -> None:
        """Until so many more records have come through."""
        goal, until = len(self.read) + count, time.monotonic() + seconds
        while len(self.read) < goal:
            assert not self.errors, self.errors
            assert time.monotonic() < until, f"{goal - len(self.read)} records did not come"
            time.sleep(0.05)

    def check(self) -> None:
        """Each acknowledged record was read, once, in the order sent; none failed."""
        assert not self.errors, self.errors
        assert [item.error for item in self.sent if item.error] == []
        assert self.read == list(range(self._counted))
        assert len(self.sent) == self._counted

    def _guard(self, do: Callable[[], None]) -> None:
        try:
            do()
        except BaseException as error:
            self.errors.append(error)
            self._stop.set()

    def _send(self) -> None:
        with Sender(self.brokers, delivery_timeout_s=40) as sender:
            while not self._stop.is_set():
                try:
                    sender.send(self.topic, b"k", b"%d" % self._counted, [], self.sent.append)
                    self._counted += 1
                except QueueFull:
                    sender.poll(0.1)
                sender.poll(0.001)

    def _read(self) -> None:
        with Reader(self.brokers, self.topic, {0: 0}) as reader:
            until = time.monotonic() + 120
            while time.monotonic() < until:
                batch = reader.read(max_records=500, max_bytes=1_000_000, wait_s=1)
                self.read += [int(item.value or b"") for item in batch.messages]
                assert not batch.messages or batch.positions[0] > batch.messages[-1].offset
                done = self._stop.is_set() and not self._threads[0].is_alive()
                if done and len(self.read) >= self._counted and batch.ended:
                    return


def test_the_leader_is_killed_and_started_again(local: LocalBrokers, made: NewTopics) -> None:
    topic = made()
    with Traffic(brokers_of(local.address), topic) as traffic:
        traffic.wait_for_more()
        leader = local.leader_id(topic)
        local.brokers[leader].kill()
        traffic.wait_for_more()
        local.mend()
        assert local.leader_id(topic) in local.brokers
        traffic.wait_for_more()
    traffic.check()


def test_the_leader_freezes_for_a_while(local: LocalBrokers, made: NewTopics) -> None:
    topic = made()
    with Traffic(brokers_of(local.address), topic) as traffic:
        traffic.wait_for_more()
        leader = local.leader(topic)
        leader.freeze()
        traffic.wait_for_more()
        leader.thaw()
        traffic.wait_for_more()
    traffic.check()


def test_each_broker_in_turn_is_killed_while_transactions_are_sent(
    local: LocalBrokers, made: NewTopics
) -> None:
    """What `commit` said is there once; of what it could not say, all or nothing is."""
    topic, brokers = made(), brokers_of(local.address)
    committed: list[int] = []
    unsure: list[int] = []
    with TransactionalSender(brokers, f"{topic}-tx") as sender:
        for number in range(30):
            if number in (8, 18):
                victim = local.brokers[sorted(local.brokers)[number // 10]]
                victim.kill()
            if number in (14, 24):
                local.mend()
            try:
                sender.begin()
                for part in range(5):
                    sender.send(topic, None, b"%d.%d" % (number, part))
            except StreamError:
                time.sleep(0.5)
                continue
            try:
                sender.commit()
                committed.append(number)
            except StreamError:
                unsure.append(number)
        # Whoever begins next ends what was left open.
        for _ in range(20):
            try:
                sender.begin()
                break
            except StreamError:
                time.sleep(0.5)
        sender.abort()
    found: dict[int, list[int]] = {}
    with Reader(brokers, topic, {0: 0}) as reader:
        while (
            not (batch := reader.read(max_records=999, max_bytes=999_999, wait_s=5)).ended or batch.messages
        ):
            for item in batch.messages:
                number, part = map(int, (item.value or b"").split(b"."))
                found.setdefault(number, []).append(part)
            if batch.ended:
                break
    assert all(parts == [0, 1, 2, 3, 4] for parts in found.values())
    assert set(committed) <= set(found) <= set(committed) | set(unsure)
    assert len(committed) >= 20


def test_looks_go_on_whichever_broker_is_lost(local: LocalBrokers, made: NewTopics) -> None:
    """One of three is the "controller" that an admin client keeps to; one leads."""
    topic = made(partitions=3)
    with Topics(brokers_of(local.address)) as looks:
        known, marks = looks.look(topic)
        for number, broker in local.brokers.items():
            for fault in (broker.kill, broker.freeze):
                fault()
                # A leader is missing for some seconds; an answer that is given is right.
                until = time.monotonic() + 30
                while True:
                    try:
                        assert looks.look(topic) == (known, marks), number
                        break
                    except BrokersUnavailable:
                        assert time.monotonic() < until
                local.mend()


def test_a_tick_with_frozen_brokers_is_short_and_burns_nothing(local: LocalBrokers, made: NewTopics) -> None:
    topic = made()
    with Topics(brokers_of(local.address), timeout_s=3) as looks:
        expected = looks.look(topic)
        for broker in local.all():
            broker.freeze()
        before = sum(psutil.Process().cpu_times()[:2])
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(BrokersUnavailable) as raised:
                looks.look(topic)
            assert time.monotonic() - began < 4.5
            assert "KB_KAFKA_BOOTSTRAP_SERVERS" in (raised.value.hint or "")
        assert sum(psutil.Process().cpu_times()[:2]) - before < 5
        local.mend()
        assert looks.look(topic) == expected


@pytest.mark.parametrize("fault", ["freeze", "kill"])
def test_all_brokers_are_lost_and_come_back(local: LocalBrokers, made: NewTopics, fault: str) -> None:
    """Every entry says so in time; the same reader goes on afterwards where it stopped."""
    topic, brokers = made(), brokers_of(local.address, kafka_timeout_s=5)
    told: list[Delivery] = []
    with Reader(brokers, topic, {0: 0}) as reader, Sender(brokers, delivery_timeout_s=120) as sender:
        sender.send(topic, b"k", b"before", [], told.append)
        assert sender.flush(10) == 0
        assert [item.value for item in reader.read(max_records=9, max_bytes=999, wait_s=10).messages] == [
            b"before"
        ]
        for broker in local.all():
            getattr(broker, fault)()
        sender.send(topic, b"k", b"during", [], told.append)
        for act in (
            brokers.require,
            lambda: Sender(brokers),
            lambda: TransactionalSender(brokers, f"{topic}-tx").begin(),
            lambda: Topics(brokers).look(topic),
            lambda: reader.read(max_records=9, max_bytes=999, wait_s=60),
        ):
            began = time.monotonic()
            with pytest.raises(BrokersUnavailable):
                act()
            assert time.monotonic() - began < 15, act
        reader.publish({0: 1})
        assert reader.positions == {0: 1}
        local.mend(120)
        assert sender.flush(60) == 0
        found: list[bytes | None] = []
        until = time.monotonic() + 30
        while not found and time.monotonic() < until:
            found += [item.value for item in reader.read(max_records=9, max_bytes=999, wait_s=5).messages]
        assert found == [b"during"]
    assert [item.error for item in told] == [None, None]


def test_closing_does_not_wait_for_frozen_brokers(local: LocalBrokers, made: NewTopics) -> None:
    topic = made()
    brokers = brokers_of(local.address, kafka_timeout_s=2)
    reader, looks = Reader(brokers, topic, {0: 0}), Topics(brokers)
    looks.look(topic)
    reader.read(max_records=1, max_bytes=1, wait_s=10)
    transaction = TransactionalSender(brokers, f"{topic}-tx")
    transaction.begin()
    transaction.send(topic, None, b"x")
    for broker in local.all():
        broker.freeze()
    reader.publish({0: 0})
    for close in (reader.close, looks.close, transaction.close):
        began = time.monotonic()
        close()
        assert time.monotonic() - began < 8, close


def test_a_broker_is_found_by_its_address(local: LocalBrokers) -> None:
    address = local.address.split(",")[0].strip()
    broker = BrokerProcess(address)
    assert broker.runs
    before = broker.pid
    broker.kill()
    assert not broker.runs
    local.brokers[next(number for number, item in local.brokers.items() if item.address == address)] = broker
    local.mend()
    assert broker.runs
    assert broker.pid != before
