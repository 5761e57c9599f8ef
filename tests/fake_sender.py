"""A producer without brokers: it acknowledges, fails, is silent or is full, as a test wants it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kb_platform.errors import QueueFull, StreamError
from kb_platform.streams.sender import Delivery


class Sent(NamedTuple):
    """A message that was handed over."""

    topic: str
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]


class FakeSender:
    """See streams.sender.Sender. `silent`: reports nothing until it is False again. `failing`: the error of every delivery,
    or of those whose value it returns one for. `queue`: messages that may wait."""

    def __init__(
        self, *, queue: int = 1_000_000, failing: str | Callable[[bytes], str | None] | None = None, silent: bool = False
    ) -> None:  # fmt: skip
        self.queue = queue
        self.failing = failing
        self.silent = silent
        self.fatal: str | None = None
        self.sent: list[Sent] = []
        self.most_waiting = 0
        self.times_full = 0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Sent, Callable[[Delivery], None]]] = deque()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: Sequence[tuple[str, bytes]],
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        if self.fatal:
            raise StreamError(self.fatal)
        with self._lock:
            if len(self._waiting) >= self.queue:
                self.times_full += 1
                raise QueueFull("the queue is full")
            message = Sent(topic, key, value, dict(headers))
            self.sent.append(message)
            self._waiting.append((message, on_delivery))
            self.most_waiting = max(self.most_waiting, len(self._waiting))

    def poll(self, timeout_s: float) -> None:
        if self.fatal:
            raise StreamError(self.fatal)
        if self.silent or not self._waiting:
            time.sleep(min(timeout_s, 0.002))
            return
        while self._waiting and not self.silent:
            with self._lock:
                message, on_delivery = self._waiting.popleft()
            error = self.failing(message.value) if callable(self.failing) else self.failing
            offset = -1 if error else self.sent.index(message)
            on_delivery(Delivery(message.topic, 0, offset, error))

    def flush(self, timeout_s: float) -> int:
        self.poll(timeout_s)
        return len(self._waiting)
