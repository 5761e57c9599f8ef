"""What becomes of a record that is sent, and what its sender asks of a producer. Loads no client library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Delivery(NamedTuple):
    """What became of a record. `error`: in words; None: brokers have it. `partition`, `offset`: -1 where unknown."""

    topic: str
    partition: int
    offset: int
    error: str | None


class Sending(Protocol):
    """A producer: `Sender`, or what a test puts in its place."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: Sequence[tuple[str, bytes]],
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        """Hand a message over. Raises QueueFull, StreamError."""
        ...

    def poll(self, timeout_s: float) -> object:
        """Serve delivery reports, waiting so long for the first."""
        ...
