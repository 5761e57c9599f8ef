"""Messages sent from an event loop, each with a future that tells what became of it.

Belongs here: the way between the loop and the producer's own thread, and how much is on it. Does not belong here: the
producer (`streams.sender`), and what is sent (`receiver`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from kb_platform.errors import BrokersRefused, BrokersUnavailable, QueueFull, StreamError
from kb_platform.streams.delivery import Delivery, Sending

POLL_S = 0.2
TICK_S = 0.05

log = logging.getLogger("kb")


class Letter(NamedTuple):
    """One message to be sent."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]]

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.value) + len(self.key or b"") + headers


class Connecting:
    """A producer that is made when brokers answer; until then nothing can be sent.

    `make` raises StreamError while they do not; it is called from `poll`, which is then as slow as it.
    """

    def __init__(self, make: Callable[[], Sending]) -> None:
        self._make = make
        self._sender: Sending | None = None

    def connect(self) -> None:
        """Make it now. Raises StreamError."""
        self._sender = self._make()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: Sequence[tuple[str, bytes]],
        on_delivery: Callable[[Delivery], None],
    ) -> None:
        """See Sending. Raises BrokersUnavailable while no broker has answered."""
        if self._sender is None:
            raise BrokersUnavailable("no broker has answered yet")
        self._sender.send(topic, key, value, headers, on_delivery)

    def poll(self, timeout_s: float) -> object:
        """See Sending."""
        if self._sender is not None:
            return self._sender.poll(timeout_s)
        try:
            self.connect()
        except (BrokersUnavailable, BrokersRefused) as error:
            log.debug("webhooks: no producer yet: %s", error)
            time.sleep(timeout_s)
        return None


class Deliveries:
    """Sends for one event loop. `waiting`, `held_bytes`: what is sent and not yet answered for by the brokers.

    `broken`: why the producer is of no use any more; None while it is.
    """

    def __init__(self, sender: Sending) -> None:
        self._sender = sender
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._pump = threading.Thread(target=self._poll, name="delivery-reports", daemon=True)
        self.waiting = 0
        self.held_bytes = 0
        self.broken: StreamError | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._pump.start()

    def send(self, letter: Letter) -> asyncio.Future[Delivery]:
        """Hand a message over; the future is done when the brokers have it or refuse it. Raises QueueFull, StreamError."""
        if self.broken is not None:
            raise self.broken
        loop = asyncio.get_running_loop()
        told: asyncio.Future[Delivery] = loop.create_future()

        def settle(delivery: Delivery) -> None:
            self.waiting -= 1
            self.held_bytes -= letter.size
            # Who waited may have given up.
            if not told.done():
                told.set_result(delivery)

        def on_delivery(delivery: Delivery) -> None:
            # In the producer's thread. At the very end there may be no loop any more to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, delivery)

        try:
            self._sender.send(*letter, on_delivery)
        except (QueueFull, BrokersUnavailable):
            raise
        except StreamError as error:
            self.broken = error
            raise
        self.waiting += 1
        self.held_bytes += letter.size
        return told

    async def close(self, within_s: float) -> int:
        """Wait for what is under way; returns how many messages nobody has answered for."""
        ends = asyncio.get_running_loop().time() + within_s
        while self.waiting and self.broken is None and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(TICK_S)
        self._stop.set()
        if self._pump.is_alive():
            await asyncio.to_thread(self._pump.join, 2 * POLL_S)
        return self.waiting

    def _poll(self) -> None:
        while not self._stop.is_set():
            try:
                self._sender.poll(POLL_S)
            except StreamError as error:
                self.broken = error
                log.error("webhooks: the producer has ended: %s", error)  # noqa: TRY400 - its text says it all
                return
