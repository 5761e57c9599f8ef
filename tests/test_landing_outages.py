"""Landing while brokers die, freeze and come back. Stops brokers, so it runs alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator

import pytest

from kb_platform.errors import BrokersUnavailable
from kb_platform.stages import lag
from kb_platform.stages.landing import Landed
from kb_platform.store.database import Database
from kb_platform.streams.topics import Topics
from tests.kafka_brokers import BrokerProcess, LocalBrokers, brokers_address, new_topics
from tests.stream_events import release_message
from tests.test_landing import Stage, tags

pytestmark = pytest.mark.slow

OUTAGE_S = 60


@pytest.fixture
def brokers() -> Generator[LocalBrokers]:
    """All of them, running and in sync again at the end."""
    found = LocalBrokers(brokers_address())
    yield found
    found.mend()


@pytest.fixture
def stage(brokers: LocalBrokers, database: Database) -> Generator[Stage]:
    with new_topics(brokers.address) as topics:
        yield Stage(topics, database, kafka_batch_records=20)
        brokers.mend()


class Running(threading.Thread):
    """A landing that waits for more."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(daemon=True)
        self._stage = stage
        self.stop = threading.Event()
        self.landed = Landed()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.landed = self._stage.land(linger_s=300, stop=self.stop, tell=self._tell)
        except BaseException as error:
            self.error = error

    def _tell(self, landed: Landed) -> None:
        self.landed = landed

    def until(self, records: int, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while self.landed.records < records:
            assert self.error is None, self.error
            assert time.monotonic() < end, f"{self.landed.records} of {records} records"
            time.sleep(0.1)


def send(stage: Stage, start: int, count: int) -> None:
    stage.send(release_message(release_id=n, partition=n % 3, time=n) for n in range(start, start + count))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [BrokerProcess.kill, BrokerProcess.freeze], ids=["killed", "frozen"])
def test_all_brokers_gone_for_a_minute(
    stage: Stage, brokers: LocalBrokers, fault: Callable[[BrokerProcess], None]
) -> None:
    """The run ends with an error instead of hanging; afterwards there is lag, and nothing is lost."""
    send(stage, 1, 30)
    running = Running(stage)
    running.start()
    running.until(30)
    send(stage, 31, 30)
    for broker in brokers.all():
        fault(broker)
    began = time.monotonic()
    running.join(45)
    assert not running.is_alive()
    assert isinstance(running.error, BrokersUnavailable)
    with pytest.raises(BrokersUnavailable):
        stage.land()
    assert time.monotonic() - began < OUTAGE_S
    time.sleep(max(OUTAGE_S - (time.monotonic() - began), 0))
    brokers.mend()
    send(stage, 61, 30)
    topics = Topics(stage.brokers)
    seen = lag.look(stage.database, topics, stage.settings, stage.topic)
    topics.close()
    assert seen.trouble is None
    assert seen.lag >= 30
    assert stage.land().lag == 0
    assert len(tags(stage)) == 90
    assert stage.rows("SELECT sum(records) FROM kb.streams") == [(90,)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_one_broker_gone_is_no_end(stage: Stage, brokers: LocalBrokers, fault: str) -> None:
    """The leader of a partition goes; what is sent after it is landed by the same run or by the next, once."""
    send(stage, 1, 30)
    running = Running(stage)
    running.start()
    running.until(30)
    leader = brokers.leader(stage.topic)
    if fault == "kill":
        leader.kill()
    else:
        leader.freeze()
    time.sleep(6)
    send(stage, 31, 30)
    end = time.monotonic() + 60
    while running.is_alive() and running.landed.records < 60 and time.monotonic() < end:
        time.sleep(0.2)
    assert running.error is None or isinstance(running.error, BrokersUnavailable)
    running.stop.set()
    running.join(60)
    assert not running.is_alive()
    brokers.mend()
    stage.land()
    assert len(tags(stage)) == 60
    assert stage.rows("SELECT sum(records), sum(lag) FROM kb.streams") == [(60, 0)]
