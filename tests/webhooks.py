"""A served receiver, and deliveries as GitHub makes them."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx2

from kb_platform.services import webhook_server
from kb_platform.services.deliveries import Sending
from kb_platform.services.receiver import Patience, Receiver

SECRET = b"correct horse battery staple"
PATH = "/webhooks/github"
MOST_BYTES = 1_048_576
QUICK = Patience(body=0.6, answer=1.0)


def payload(number: int = 1, *, action: str = "published", **release: Any) -> dict[str, Any]:
    """What GitHub sends of a release, as far as anybody reads it."""
    return {
        "action": action,
        "release": {
            "id": number,
            "tag_name": f"v1.{number}.0",
            "name": f"v1.{number}.0",
            "body": "## Fixed\n- a thing",
            "created_at": "2026-03-01T09:00:00Z",
            "published_at": "2026-03-01T09:00:00Z",
            "updated_at": "2026-03-01T09:00:00Z",
            "html_url": f"https://github.com/acme/tool/releases/tag/v1.{number}.0",
            **release,
        },
        "repository": {"id": 4711, "full_name": "acme/tool", "url": "https://api.github.com/repos/acme/tool"},
        "sender": {"login": "somebody"},
    }


def signed(
    body: bytes, *, secret: bytes = SECRET, event: str = "release", **changes: str | None
) -> dict[str, str]:
    """The headers of a delivery; `changes` with `_` for `-`, None to leave one out."""
    headers = {
        "x-hub-signature-256": "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest(),
        "x-github-delivery": str(uuid.uuid4()),
        "x-github-event": event,
        "content-type": "application/json",
    }
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in (headers | changed).items() if value is not None}


class Reachable:
    """Brokers that can be reached."""

    def as_json(self) -> dict[str, Any]:
        return {"reachable": True}


class Served:
    """A receiver behind a real server in a thread, on a free port."""

    def __init__(
        self,
        sender: Sending,
        *,
        queue: int = 100,
        most_bytes: int = MOST_BYTES,
        secrets: tuple[bytes, ...] = (SECRET,),
        topic: str = "kb.releases",
        patience: Patience = QUICK,
        idle_s: float = 5.0,
        **more: Any,
    ) -> None:
        class Protocol(webhook_server.ImpatientProtocol):
            pass

        Protocol.idle_s = idle_s
        self.receiver = Receiver(
            sender, secrets, topic=topic, queue=queue, most_bytes=most_bytes, brokers=Reachable(), patience=patience,
            **more,
        )  # fmt: skip
        config = webhook_server.configure(
            self.receiver, "127.0.0.1", 0, most_connections=1_000, protocol=Protocol
        )
        self.server = webhook_server.Server(config, self.receiver)
        self.thread = threading.Thread(target=self.server.run)
        self.port = 0

    def __enter__(self) -> Served:
        self.thread.start()
        self.until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20, trust_env=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def post(self, body: bytes | dict[str, Any], **changes: Any) -> httpx2.Response:
        """A delivery, signed."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(PATH, content=content, headers=signed(content, **changes))

    def health(self) -> dict[str, Any]:
        """What `/healthz` says."""
        return self.client.get("/healthz").json()

    def raw(self, *parts: bytes, read: bool = True, pause_s: float = 0.0) -> bytes:
        """Bytes on a socket of their own; returns all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for part in parts:
                try:
                    connection.sendall(part)
                except OSError:
                    break
                time.sleep(pause_s)
            if not read:
                return b""
            got = b""
            try:
                while block := connection.recv(65_536):
                    got += block
            except ConnectionResetError:
                pass
            return got

    def head(self, body: bytes, *lines: str, **changes: Any) -> bytes:
        """The bytes of a delivery's request line and headers."""
        headers = [f"{name}: {value}" for name, value in signed(body, **changes).items()]
        return "\r\n".join([f"POST {PATH} HTTP/1.1", "host: x", *headers, *lines, "", ""]).encode()

    @staticmethod
    def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
        """Wait."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.005)
