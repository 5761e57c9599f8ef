"""The receiver of GitHub's webhooks: a signed delivery → an event in the topic, acknowledged before it is answered.

Belongs here: the web application and what it counts. Does not belong here: what a webhook must look like
(`sources.github_webhook`), the server around it (`webhook_server`), the way to the producer (`deliveries`).

A delivery is answered with 2xx only when the brokers have it. All else is told at once: that it is not ours (4xx), or that
there is no room or no broker now (503).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kb_platform.errors import BadRecord, QueueFull, StreamError
from kb_platform.services.deliveries import Deliveries, Letter
from kb_platform.sources import envelope, github_webhook, release_event
from kb_platform.sources.github_webhook import Head, Rejected
from kb_platform.streams.delivery import Sending

RETRY_AFTER_S = 30
# Of all deliveries that are read or wait for brokers. A release with its notes is some 20 KB; GitHub's longest are 25 MB.
MOST_HELD_BYTES = 128 * 1_048_576
# The loop does nothing else meanwhile: 64 KB take a third of a millisecond to check, 16 MB a tenth of a second.
QUICKLY_CHECKED = 65_536

log = logging.getLogger("kb")


@dataclass(frozen=True)
class Patience:
    """Seconds from the beginning of a request; GitHub gives up after 10. `body`: until its body is there. `answer`: until
    the brokers have it."""

    body: float = 5.0
    answer: float = 8.0


@dataclass
class Counts:
    """Deliveries since the start. `received`: signed ones. `shed`: for which there was no room. `failed`: the brokers did
    not take them, or not in time. `ignored`: pings, and events that are no releases. `refused`: not ours, or malformed."""

    received: int = 0
    acknowledged: int = 0
    refused: int = 0
    shed: int = 0
    failed: int = 0
    ignored: int = 0


class Reachable(Protocol):
    """What is known of the brokers, without asking them now."""

    def as_json(self) -> dict[str, Any]:
        """For `/healthz`."""
        ...


class Receiver:
    """Takes deliveries and answers them. For one event loop."""

    def __init__(
        self,
        sender: Sending,
        secrets: tuple[bytes, ...],
        *,
        topic: str,
        queue: int,
        most_bytes: int,
        brokers: Reachable,
        patience: Patience | None = None,
        most_held_bytes: int = MOST_HELD_BYTES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`queue`: deliveries that wait for brokers at most. `most_bytes`: of one body."""
        self.deliveries = Deliveries(sender)
        self.counts = Counts()
        self._secrets = secrets
        self._topic = topic
        self._queue = queue
        self._most_bytes = most_bytes
        self._brokers = brokers
        self._patience = patience or Patience()
        self._most_held_bytes = most_held_bytes
        self._now = now
        self._reading_bytes = 0

    def app(self) -> Starlette:
        """The application to serve."""
        return Starlette(
            routes=[
                Route("/webhooks/github", self._github, methods=["POST"]),
                Route("/healthz", self._healthz, methods=["GET"]),
            ]
        )

    async def _healthz(self, _request: Request) -> JSONResponse:
        now = {"waiting": self.deliveries.waiting, "held_bytes": self._held_bytes}
        document = {"status": "ok", **vars(self.counts), **now, "brokers": self._brokers.as_json()}
        return JSONResponse(document, headers={"cache-control": "no-store"})

    async def _github(self, request: Request) -> JSONResponse:
        began = time.monotonic()
        body = bytearray()
        try:
            head = github_webhook.read_head(request.scope["headers"], most_bytes=self._most_bytes)
            self._require_room(head.length or 0)
            try:
                await self._read(request, body)
                acknowledged = await self._take(head, bytes(body))
            finally:
                # From here on it waits for the brokers, and is counted there.
                self._reading_bytes -= len(body)
                body.clear()
            if isinstance(acknowledged, JSONResponse):
                return acknowledged
            return await self._acknowledged(head, acknowledged, began)
        except Rejected as error:
            return self._reject(error, request)
        except ClientDisconnect:
            return self._reject(Rejected(400, "the request was broken off"), request)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Fill `body`. Raises Rejected, ClientDisconnect."""
        try:
            async with asyncio.timeout(self._patience.body):
                async for block in request.stream():
                    if len(body) + len(block) > self._most_bytes:
                        raise github_webhook.too_long(self._most_bytes)
                    self._require_room(len(block))
                    self._reading_bytes += len(block)
                    body += block
        except TimeoutError:
            raise Rejected(408, "the body did not come in time") from None

    async def _take(self, head: Head, body: bytes) -> asyncio.Future[Any] | JSONResponse:
        """A whole delivery: on its way to the brokers, or answered. Raises Rejected."""
        if len(body) > QUICKLY_CHECKED:
            letter = await asyncio.to_thread(self._letter, head, body)
        else:
            letter = self._letter(head, body)
        self.counts.received += 1
        if letter is None:
            self.counts.ignored += 1
            if head.event == "ping":
                return _answer(200, "pong")
            return _answer(202, "nothing was done: only events about releases are received")
        if self.deliveries.waiting >= self._queue:
            raise _busy()
        try:
            return self.deliveries.send(letter)
        except QueueFull:
            raise _busy() from None
        except StreamError as error:
            return self._failed(head, str(error))

    def _letter(self, head: Head, body: bytes) -> Letter | None:
        """The event to send; None where there is nothing to do. Raises Rejected."""
        if not github_webhook.is_signed(body, head.digest, self._secrets):
            raise github_webhook.unsigned()
        if head.event != "release":
            return None
        payload = github_webhook.payload(body, is_form=head.is_form)
        try:
            key, event = release_event.from_webhook(payload, delivery=head.delivery, time=self._now())
        except BadRecord as error:
            raise Rejected(400, f"the payload is no release event: {error.reason}") from None
        written = envelope.write(event)
        return Letter(self._topic, key, written.value, written.headers)

    async def _acknowledged(
        self, head: Head, acknowledged: asyncio.Future[Any], began: float
    ) -> JSONResponse:
        left = max(began + self._patience.answer - time.monotonic(), 0.0)
        done, _ = await asyncio.wait([acknowledged], timeout=left)
        if not done:
            # It may still arrive; delivered again it is the same event.
            return self._failed(head, "no acknowledgement in time")
        delivery = acknowledged.result()
        if delivery.error is not None:
            return self._failed(head, delivery.error)
        self.counts.acknowledged += 1
        return _answer(202, "received", delivery=head.delivery)

    def _failed(self, head: Head, why: str) -> JSONResponse:
        self.counts.failed += 1
        log.warning("webhooks: delivery %s is not acknowledged: %s", head.delivery, why)
        return _answer(503, "the brokers have not acknowledged it")

    def _reject(self, error: Rejected, request: Request) -> JSONResponse:
        if error.status == 503:
            self.counts.shed += 1
        else:
            self.counts.refused += 1
            sender = request.client.host if request.client else "somewhere"
            log.info("webhooks: refused a request from %s with %s: %s", sender, error.status, error)
        return _answer(error.status, str(error))

    def _require_room(self, more_bytes: int) -> None:
        """Raises Rejected where no more may be held, or waited for."""
        too_many = self.deliveries.waiting >= self._queue
        if too_many or self._held_bytes + more_bytes > self._most_held_bytes:
            raise _busy()

    @property
    def _held_bytes(self) -> int:
        return self._reading_bytes + self.deliveries.held_bytes


def _busy() -> Rejected:
    return Rejected(503, "too much waits for the brokers")


def _answer(status: int, note: str, **more: str) -> JSONResponse:
    headers: dict[str, str] = {}
    if status >= 400:
        # What of the body was not read is not to be taken for the next request.
        headers["connection"] = "close"
    if status == 503:
        headers["retry-after"] = str(RETRY_AFTER_S)
    return JSONResponse({"note": note, **more}, status, headers)
