"""The headers that every HTTP response of the app carries: what a browser may load, run and send, and to whom.

The second of two layers: `inert` keeps foreign text from doing anything, and this keeps a browser from obeying where that
failed. It does not stop words that deceive.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import streamlit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def content_security_policy(page: bytes) -> str:
    """The policy for Streamlit's own page: everything from this server and nothing from elsewhere.

    `page` is its HTML. The scripts that stand in it are allowed by their hashes, so no other inline script runs. Styles have
    to be allowed inline: Streamlit's components write theirs at run time.
    """
    scripts = " ".join(["'self'", *_hashes(page)])
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def headers() -> dict[str, str]:
    """All headers, by name."""
    page = Path(streamlit.__file__).with_name("static") / "index.html"
    return {
        "Content-Security-Policy": content_security_policy(page.read_bytes()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


class SecurityHeaders:
    """ASGI middleware that puts `headers()` on every HTTP response, in place of others of the same name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers().items()]
        self._names = {name for name, _ in self._headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its response back with the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() not in self._names]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def _hashes(page: bytes) -> Iterator[str]:
    for match in _SCRIPT.finditer(page):
        yield f"'sha256-{base64.b64encode(hashlib.sha256(match[1]).digest()).decode()}'"
