"""Is a port free, and who holds it when it is not?"""

from __future__ import annotations

import errno
import ipaddress
import socket

import psutil

from kb_platform.errors import ServiceError
from kb_platform.services.processes import described

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - compared with, not listened on


def require_free(host: str, port: int, *, wanted_by: str, setting: str) -> None:
    """Raises ServiceError that names the process which holds the port; `setting`: the variable that moves it."""
    try:
        _bind(host, port)
    except OSError as error:
        raise ServiceError(
            f"{wanted_by} cannot listen on {host}:{port}: {_why(error, port)}",
            hint=f"stop that process, or choose another port with {setting}",
        ) from None


def reachable_at(host: str) -> str:
    """The address by which this machine itself reaches what listens on `host`.

    >>> reachable_at("0.0.0.0"), reachable_at("127.0.0.1")
    ('127.0.0.1', '127.0.0.1')
    """
    return _ANY.get(host, host)


def is_private(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`.

    >>> is_private("localhost"), is_private("::1"), is_private("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url(host: str, port: int) -> str:
    """Where people reach it.

    >>> url("127.0.0.1", 3000), url("::1", 3000)
    ('http://127.0.0.1:3000', 'http://[::1]:3000')
    """
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(host: str, port: int) -> None:
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as trial:
            # As servers do: connections of a server that has just ended do not count.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen(1)


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the port is held by {_holder(port)}"
    if error.errno == errno.EACCES:
        return "ports below 1024 are for the system's administrator"
    return error.strerror or str(error)


def _holder(port: int) -> str:
    try:
        held = [
            connection
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        ]
    except psutil.Error:
        # macOS shows the connections of all processes to root alone.
        held = []
    pids = sorted({connection.pid for connection in held if connection.pid is not None})
    if not pids:
        return "a process that cannot be seen from here (another user's, or in another container)"
    return " and ".join(described(pid) for pid in pids)
