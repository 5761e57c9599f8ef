"""The stand-in over real HTTP, for tests and benchmarks that run other processes.

Belongs here: sockets, and control from outside under `/_stand_in/`. Does not belong here: what is answered
(`github_stand_in`). Run by hand: `python -m tests.github_server --repositories 5 --seed 1` prints its address.

`GET /_stand_in/log?after=N` (requests from the N-th on), `forbidden`, `statuses`, `repositories`, `truth?repo=NAME` are
read; `POST /_stand_in/publish` and the others of ACTIONS take their arguments as a JSON object and answer
`{"at": time, "result": …}`; `step` and `settle` move the weather over all repositories that there were at the start.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from kb_platform.clock import SystemClock
from tests.github_stand_in import LoggedRequest, StandIn
from tests.github_weather import Weather

CONTROL = "/_stand_in/"
ACTIONS = frozenset(
    {
        "add_repository",
        "publish",
        "edit",
        "delete",
        "restore",
        "move_tag",
        "flip_prerelease",
        "count_downloads",
    }
    | {"hide", "rename", "reuse_name", "remove_repository", "block", "grant_push", "revoke", "storm", "calm"}
)


class GitHubServer:
    """Serves a stand-in at `url` from entering to leaving; leaving cuts every connection.

    All URLs in its answers lead here. OSError when the port is taken.
    """

    def __init__(self, stand_in: StandIn, *, port: int = 0, weather: Weather | None = None) -> None:
        self.stand_in = stand_in
        self.weather = weather
        self._server = _Server(("127.0.0.1", port), self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        stand_in.move_to(self.url)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> GitHubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.cut_connections()

    def read(self, what: str, query: dict[str, list[str]]) -> Any:
        """What a GET of the control endpoints answers; KeyError when there is no such thing."""
        stand_in = self.stand_in
        match what:
            case "log":
                return [_shown(entry) for entry in stand_in.log[int(query.get("after", ["0"])[0]) :]]
            case "forbidden":
                return [_shown(entry) for entry in stand_in.forbidden_requests()]
            case "statuses":
                counts = sorted(stand_in.statuses.items(), key=str)
                return [{"credential": who, "status": status, "count": n} for (who, status), n in counts]
            case "repositories":
                return {item.name: number for number, item in stand_in.repositories.items()}
            case "truth":
                return stand_in.truth(_repository(query["repo"][0]))
            case _:
                raise KeyError(what)

    def act(self, what: str, arguments: dict[str, Any]) -> Any:
        """What a POST of the control endpoints does; KeyError, TypeError or ValueError when it cannot."""
        if what in ("step", "settle"):
            if self.weather is None:
                raise ValueError("this server has no weather")
            return self.weather.step() if what == "step" else self.weather.calm()
        if what not in ACTIONS:
            raise KeyError(what)
        if "created_at" in arguments:
            arguments["created_at"] = datetime.fromisoformat(arguments["created_at"])
        return getattr(self.stand_in, what)(**arguments)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: GitHubServer) -> None:
        super().__init__(address, _Handler)
        self.owner = owner
        # Threads of connections that a client keeps open would hold up the end of a test.
        self.block_on_close = False
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; anything else is a fault of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def cut_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name is the base class's)
        """The stand-in has its own log."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith(CONTROL):
            self._control(body)
            return
        url = httpx2.URL(self.server.owner.url + self.path)
        request = httpx2.Request(self.command, url, headers=list(self.headers.items()), content=body or None)
        # httpx2 has set these for itself; whether the client did is what matters.
        if "User-Agent" not in self.headers:
            request.headers.pop("User-Agent", None)
        try:
            response = self.server.owner.stand_in.handle(request)
        except httpx2.TransportError:
            self.close_connection = True
            return
        self._send(response)

    def _send(self, response: httpx2.Response) -> None:
        content = response.content if response.is_closed else self._streamed(response)
        if response.status_code != 304 and "Content-Length" not in response.headers:
            response.headers["Content-Length"] = str(len(content))
        lines = [f"HTTP/1.1 {response.status_code} {response.reason_phrase}".encode()]
        lines += [name + b": " + value for name, value in response.headers.raw]
        # One write: two would wait for each other's acknowledgement for 40 ms.
        self.wfile.write(b"\r\n".join(lines) + b"\r\n\r\n" + content)

    def _streamed(self, response: httpx2.Response) -> bytes:
        """As much of the body as there is; the connection ends after it when that is not all."""
        parts: list[bytes] = []
        try:
            parts.extend(response.iter_raw())
        except httpx2.TransportError:
            self.close_connection = True
        return b"".join(parts)

    def _control(self, body: bytes) -> None:
        owner, parts = self.server.owner, urlsplit(self.path)
        what = parts.path.removeprefix(CONTROL)
        at = owner.stand_in.clock.now()
        try:
            if self.command == "GET":
                status, answer = 200, owner.read(what, parse_qs(parts.query))
            else:
                result = owner.act(what, json.loads(body or b"{}"))
                status, answer = 200, {"at": at.isoformat(), "result": result}
        except (KeyError, TypeError, ValueError) as error:
            status, answer = 400, {"message": f"{type(error).__name__}: {error}"}
        self._send(httpx2.Response(status, json=answer))


def _shown(entry: LoggedRequest) -> dict[str, Any]:
    return asdict(entry) | {"at": entry.at.isoformat()}


def _repository(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--repositories", type=int, default=5, help="named acme/tool-0 and so on")
    parser.add_argument("--releases", type=int, default=20, help="of each repository, at the start")
    parser.add_argument("--limit", type=int, default=5_000, help="requests an hour of each credential")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stand_in = StandIn(SystemClock(stop), seed=given.seed, limits={"*": given.limit}, log_limit=200_000)
    repositories = [
        stand_in.add_repository(f"acme/tool-{place}", given.releases) for place in range(given.repositories)
    ]
    weather = Weather(stand_in, given.seed, repositories)
    with GitHubServer(stand_in, port=given.port, weather=weather) as server:
        print(server.url, flush=True)  # noqa: T201
        stop.wait()


if __name__ == "__main__":
    main()
