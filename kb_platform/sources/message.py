"""A message of a topic, as brokers hand it over: bytes and where they stand.

Pure values, known to whoever reads, parses or keeps messages. Reading them from brokers is `streams`; what they say is
`envelope` and the events behind it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

# Behind a topic's name: the topic of what could not be understood of it.
DEAD_LETTERS = ".dlq"

Header = tuple[str, bytes | None]


class Message(NamedTuple):
    """One message. `timestamp`: the producer's or the broker's, as the topic is set; None: it has none."""

    topic: str
    partition: int
    offset: int
    timestamp: datetime | None
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()

    @property
    def place(self) -> str:
        """Where it stands, as origins are written: `kafka:TOPIC/PARTITION@OFFSET`."""
        return f"kafka:{self.topic}/{self.partition}@{self.offset}"

    @property
    def size(self) -> int:
        """Bytes of value, key and headers."""
        size = len(self.value or b"") + len(self.key or b"")
        for name, value in self.headers:
            size += len(name) + len(value or b"")
        return size


def moment(milliseconds: int) -> datetime:
    """Kafka's time as a time in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
