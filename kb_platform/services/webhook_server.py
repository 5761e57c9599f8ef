"""The server around the receiver: its socket, its patience with clients that say nothing, its end.

Belongs here: uvicorn, signals, the watch over the brokers. Does not belong here: what is answered (`receiver`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from kb_platform.errors import StreamError
from kb_platform.services.receiver import Receiver

# Proxies keep connections for a minute; who says nothing on a new one for so long means nothing good.
IDLE_S = 15.0
MOST_HEADER_BYTES = 32_768
# Longer than the longest answer takes; `kb up` kills after 15.
GRACE_S = 9
LAST_ACKNOWLEDGEMENTS_S = 4.0
BETWEEN_LOOKS_S = 10.0

log = logging.getLogger("kb")


class BrokerWatch:
    """Asks for the brokers now and then, in a thread of its own, and keeps what it heard."""

    def __init__(self, require: Callable[[], object], *, every_s: float = BETWEEN_LOOKS_S) -> None:
        """`require` raises StreamError while brokers are not to be reached; it may take long."""
        self._require = require
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker-watch", daemon=True)
        self._reachable: bool | None = None
        self._since = datetime.now(UTC)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. A question under way is not waited for."""
        self._stop.set()

    def as_json(self) -> dict[str, Any]:
        """See receiver.Reachable."""
        return {"reachable": self._reachable, "since": self._since.isoformat(timespec="seconds")}

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._require()
            except StreamError as error:
                self._heard(False, str(error))
            else:
                self._heard(True, "")
            self._stop.wait(self._every_s)

    def _heard(self, reachable: bool, why: str) -> None:
        if reachable == self._reachable:
            return
        if not reachable:
            log.warning("webhooks: brokers cannot be reached, deliveries are answered with 503: %s", why)
        elif self._reachable is False:
            log.info("webhooks: brokers can be reached again")
        self._reachable, self._since = reachable, datetime.now(UTC)


class ImpatientProtocol(H11Protocol):
    """Closes a connection on which no request begins in time. uvicorn's own limit ends with the first byte after an answer,
    and does not begin before the first request: a client that sends a byte now and then would stay for ever."""

    idle_s = IDLE_S
    _idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Bytes have come; whole headers begin a request, whose time the receiver bounds."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._cancel()

    def on_response_complete(self) -> None:
        """A request is answered."""
        self._wait_for_request()
        super().on_response_complete()

    def _wait_for_request(self) -> None:
        self._cancel()
        self._idle = self.loop.call_later(self.idle_s, self._give_up)

    def _cancel(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def configure(
    receiver: Receiver,
    host: str,
    port: int,
    *,
    most_connections: int,
    protocol: type[ImpatientProtocol] = ImpatientProtocol,
) -> uvicorn.Config:
    """How the receiver is served."""
    app = receiver.app()
    app.router.lifespan_context = _lifespan(receiver)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        # h11 refuses what others let through: two lengths, bare line feeds, spaces before a colon.
        http=protocol,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        ws="none",
        loop="asyncio",
        lifespan="on",
        # Who stands before a proxy could write any address into the log with its headers.
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        # Beyond what may wait, uvicorn itself answers 503.
        limit_concurrency=most_connections,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=GRACE_S,
    )


def serve(config: uvicorn.Config, receiver: Receiver) -> None:
    """Serve until SIGINT or SIGTERM; returns when all that was received is answered.

    Raises StreamError when the producer has ended by itself.
    """
    server = Server(config, receiver)
    # uvicorn raises the signal again when it is done; that it is, is all there is to say.
    before = {number: signal.signal(number, _nothing) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if receiver.deliveries.broken is not None:
        raise receiver.deliveries.broken


class Server(uvicorn.Server):
    """Ends as well when the producer has ended: whoever started it starts it anew, with a new one."""

    def __init__(self, config: uvicorn.Config, receiver: Receiver) -> None:
        super().__init__(config)
        self._receiver = receiver

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._receiver.deliveries.broken is not None


def _lifespan(receiver: Receiver) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncGenerator[None]:
        receiver.deliveries.start()
        yield
        left = await receiver.deliveries.close(LAST_ACKNOWLEDGEMENTS_S)
        if left:
            log.warning("webhooks: %s deliveries were not acknowledged before the end", left)

    return life


def _nothing(_number: int, _frame: object) -> None:
    """A signal that has done its work."""
