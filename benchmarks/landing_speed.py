"""How fast events are landed, beside how fast a bare consumer reads the same topic.

    python benchmarks/landing_speed.py [DATA] [--records 60000] [--rounds 3]

Brokers: KB_KAFKA_BOOTSTRAP_SERVERS, else KB_TEST_KAFKA_BOOTSTRAP_SERVERS. Records carry the bodies of the releases in DATA, again
and again under other ids, so every one of them is a new row. The bare consumer takes values and does nothing with them; both
read the topic from its beginning, in turn, several times. A topic and a database of their own are made, and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from kb_platform.errors import QueueFull
from kb_platform.home import open_database
from kb_platform.settings import Settings
from kb_platform.sources import envelope, release_event
from kb_platform.stages.landing import land
from kb_platform.store import embedded
from kb_platform.streams.broker import Brokers
from kb_platform.streams.new_topics import create
from kb_platform.streams.sender import Sender

LEAST_PER_SECOND = 5_000
LEAST_SHARE = 0.25


def main() -> None:
    """Produce once, then measure in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("data", type=Path, nargs="?", default=default, help="folder with releases/*.jsonl")
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    address = os.environ.get("KB_KAFKA_BOOTSTRAP_SERVERS") or os.environ.get(
        "KB_TEST_KAFKA_BOOTSTRAP_SERVERS"
    )
    if not address:
        parser.error("set KB_KAFKA_BOOTSTRAP_SERVERS")
    name = f"kb-landing-speed-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="kb-speed-") as home:
        settings = Settings(
            home=Path(home), kafka_bootstrap_servers=address, kafka_release_topic=name,
            kafka_document_topic=f"{name}-documents",
        )  # fmt: skip
        brokers = Brokers(settings)
        made = [one.name for one in create(brokers, settings)]
        try:
            size = _produce(brokers, settings, arguments.data, arguments.records)
            _measure(brokers, settings, address, arguments.records, size, arguments.rounds)
        finally:
            admin = AdminClient({"bootstrap.servers": address})
            for future in admin.delete_topics(made).values():
                future.result(20)
            embedded.EmbeddedServer(settings.home_folder).stop()


def _measure(
    brokers: Brokers, settings: Settings, address: str, records: int, size: int, rounds: int
) -> None:
    print(f"{records:,} events of {size / records:,.0f} bytes, {os.cpu_count()} cores")
    bare: list[float] = []
    landed: list[float] = []
    for turn in range(rounds):
        bare.append(_read_bare(address, settings.kafka_release_topic, records))
        landed.append(_land(brokers, settings, records, turn))
        print(f"  bare consumer {bare[-1]:>9,.0f}/s   landed {landed[-1]:>7,.0f}/s")
    middle, best = statistics.median(landed), statistics.median(bare)
    print(f"landed: median {middle:,.0f}/s (at least {LEAST_PER_SECOND:,} wanted)")
    print(f"of the bare consumer's rate: {middle / best:.3f} (at least {LEAST_SHARE} wanted)")


def _land(brokers: Brokers, settings: Settings, records: int, turn: int) -> float:
    """In a database of its own each time: rows that are there already would be found and not written."""
    home = settings.home_folder / f"turn-{turn}"
    home.mkdir()
    chosen = settings.model_copy(update={"home": home})
    database = open_database(chosen)
    try:
        began = time.perf_counter()
        result = land(database, brokers, chosen, settings.kafka_release_topic)
        seconds = time.perf_counter() - began
    finally:
        database.close()
        embedded.EmbeddedServer(home).stop()
    if (result.new, result.quarantined, result.lag) != (records, 0, 0):
        raise SystemExit(f"not all of it was landed: {vars(result)}")
    return records / seconds


def _read_bare(address: str, topic: str, records: int) -> float:
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "none",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    began = time.perf_counter()
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    read = 0
    while read < records:
        for message in consumer.consume(1_000, 0.05):
            if message.error() is None and message.value() is not None:
                read += 1
    seconds = time.perf_counter() - began
    consumer.close()
    return records / seconds


def _produce(brokers: Brokers, settings: Settings, data: Path, records: int) -> int:
    """Bytes of the values in all."""
    size = 0
    began = datetime.now(UTC) - timedelta(days=30)
    with Sender(brokers) as sender:
        for number, (repository, release) in zip(range(records), cycle(_releases(data)), strict=False):
            raw = json.dumps(release | {"id": number + 1}, ensure_ascii=False).encode()
            event = release_event.event(
                raw,
                action="published",
                name=repository,
                number=_number_of(repository),
                api_root=settings.github_api_url,
                time=began + timedelta(milliseconds=number),
                event_id=str(number),
            )
            written = envelope.write(event)
            size += len(written.value)
            key = release_event.key(number=_number_of(repository), name=repository)
            while True:
                try:
                    sender.send(settings.kafka_release_topic, key, written.value, written.headers)
                    break
                except QueueFull:
                    sender.poll(0.1)
        if sender.flush(60):
            raise SystemExit("the brokers did not take all records")
    return size


def _number_of(repository: str) -> int:
    """A number that a forge might have given."""
    return 1 + sum(repository.encode()) % 1_000_000


def _releases(data: Path) -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    for path in sorted((data / "releases").glob("*.jsonl")):
        repository = path.stem.replace("__", "/")
        found += [(repository, json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if not found:
        raise SystemExit(f"no releases in {data / 'releases'}")
    return found


if __name__ == "__main__":
    main()
