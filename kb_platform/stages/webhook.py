"""Posting a text to a webhook that takes Slack's JSON: `{"text": …}`.

Belongs here: one request, bounded in time, and what went wrong in words that do not give the address away; it is the
webhook's password. Does not belong here: when something is posted and what it says (`alerting`).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr

TIMEOUT_S = 3.0

# Posts a text. What went wrong; None: it was taken.
Post = Callable[[str], str | None]

_posting: contextvars.ContextVar[bool] = contextvars.ContextVar("posting", default=False)


def _is_shown(_record: logging.LogRecord) -> bool:
    return not _posting.get()


# The client logs every request with its whole address.
logging.getLogger("httpx2").addFilter(_is_shown)


def webhook(url: SecretStr, *, timeout_s: float = TIMEOUT_S) -> Post:
    """A function that posts to this address within `timeout_s` and never raises. It follows no redirect."""

    def post(text: str) -> str | None:
        host = _host(url.get_secret_value())
        if host is None:
            return "KB_ALERT_WEBHOOK_URL is not an address that begins with https:// or http://"
        token = _posting.set(True)
        try:
            return asyncio.run(_post(url.get_secret_value(), host, text, timeout_s))
        finally:
            _posting.reset(token)

    return post


def slack_escaped(text: str) -> str:
    """A text that Slack shows as it is: no mention of a channel, no link under another name.

    >>> slack_escaped("<!channel> a & b")
    '&lt;!channel&gt; a &amp; b'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


async def _post(url: str, host: str, text: str, timeout_s: float) -> str | None:
    try:
        # The client's own limits are for each read; an answer that comes in drops has no end by them.
        async with (
            asyncio.timeout(timeout_s),
            httpx2.AsyncClient(timeout=timeout_s) as client,
            # The body of the answer is of no interest and may be long.
            client.stream("POST", url, json={"text": text}) as answer,
        ):
            status = answer.status_code
    except (TimeoutError, httpx2.TimeoutException):
        return f"{host} did not answer within {timeout_s:g} s"
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        # Its text may hold the address.
        return f"{host} cannot be reached ({type(error).__name__})"
    if 200 <= status < 300:
        return None
    return f"{host} answered {status}" + ("; redirects are not followed" if 300 <= status < 400 else "")


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    return f"{parts.hostname}{port}" if parts.scheme in ("http", "https") and parts.hostname else None
