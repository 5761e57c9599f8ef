"""One embeddings server over HTTP: a request, its retries, and what went wrong in words.

Belongs here: transport, retries, time limits, the API key. Does not belong here: what is asked and how the answer
is read (`remote`).
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import stamina
from pydantic import SecretStr
from stamina.instrumentation import LoggingOnRetryHook, set_on_retry_hooks

from kb_platform.errors import EmbeddingError, SettingsError

# A batch of 512 vectors of 4,096 numbers is about 45 MB of JSON.
_MAX_BODY_BYTES = 128 * 1024 * 1024

# Where structlog is installed, stamina prints each retry to standard output, which belongs to `--json`.
set_on_retry_hooks([LoggingOnRetryHook])

# 408 and 425 ask for another try, 424 is TEI's "the backend failed on this batch", 429 "too many requests".
_TRANSIENT = frozenset({408, 424, 425, 429})


@dataclass(frozen=True)
class Retries:
    """How often and how patiently a request is tried again."""

    attempts: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 10
    longest_retry_after_s: float = 120
    """A server that asks for a longer pause is reported instead of waited for."""


@dataclass(frozen=True)
class Reply:
    """A successful answer: its JSON document and its headers."""

    document: Any
    headers: Mapping[str, str]


class RefusedError(EmbeddingError):
    """The server answered, and said no: trying the same again is of no use."""

    def __init__(self, message: str, status: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class _TryAgainError(Exception):
    """A failure that may pass. `wait_s` is what the server asked for."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Server:
    """JSON over HTTP with retries, safe to use from several threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: SecretStr | None,
        timeout_s: float,
        retries: Retries | None = None,
        most_bytes: int = _MAX_BODY_BYTES,
    ) -> None:
        self.url = url
        self._secret = api_key.get_secret_value() if api_key else ""
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise SettingsError(
                "the API key of the embeddings server has characters that a header cannot carry",
                hint="Check the setting for a line break or a pasted quotation mark.",
            )
        self._timeout_s = timeout_s
        self._most_bytes = most_bytes
        self._retries = retries or Retries()
        # Redirects are not followed: they would carry the key to an address that nobody chose.
        self._client = httpx2.Client(
            base_url=url,
            timeout=timeout_s,
            headers={"Authorization": f"Bearer {self._secret}"} if self._secret else {},
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> Reply:
        return self._request("GET", path, None)

    def post(self, path: str, payload: Mapping[str, object]) -> Reply:
        return self._request("POST", path, payload)

    def _request(self, method: str, path: str, payload: Mapping[str, object] | None) -> Reply:
        """Raises RefusedError when the server says no, EmbeddingError when it cannot be had."""
        limits = self._retries
        try:
            for attempt in stamina.retry_context(
                on=self._wait,
                attempts=limits.attempts,
                timeout=None,
                wait_initial=limits.first_wait_s,
                wait_max=limits.longest_wait_s,
                wait_jitter=limits.first_wait_s,
            ):
                with attempt:
                    return self._once(method, path, payload)
        except _TryAgainError as error:
            waits = f", and asks to wait {error.wait_s:.0f} s" if error.wait_s is not None else ""
            raise EmbeddingError(
                f"the embeddings server {self.url} cannot be used: {error}{waits} "
                f"(the request is tried {limits.attempts} times at most)",
                hint="Check that it runs and can be reached; then start again, finished work is kept.",
            ) from error
        raise AssertionError("a retry context ends with a result or an error")

    def _wait(self, error: Exception) -> bool | float:
        """What stamina asks: whether to try again, and after how many seconds."""
        if not isinstance(error, _TryAgainError):
            return False
        if error.wait_s is None:
            return True
        return error.wait_s if error.wait_s <= self._retries.longest_retry_after_s else False

    def _once(self, method: str, path: str, payload: Mapping[str, object] | None) -> Reply:
        try:
            with self._client.stream(method, path, json=payload) as response:
                body = self._read(response)
        except httpx2.TimeoutException as error:
            raise _TryAgainError(f"no answer within {self._timeout_s:g} s") from error
        except httpx2.TransportError as error:
            raise _TryAgainError(self._clean(f"{type(error).__name__} {error}")) from error
        status, headers = response.status_code, response.headers
        if status in _TRANSIENT or status >= 500:
            raise _TryAgainError(
                f"it answers {status} {self._quote(body)}", _retry_after(headers.get("retry-after"))
            )
        if not response.is_success:
            raise RefusedError(
                f"the embeddings server {self.url}{path} answers {status} {self._quote(body)}",
                status,
                hint=_HINTS.get(status, "Check the address, the model's name and the server's limits."),
            )
        try:
            return Reply(json.loads(body), headers)
        except ValueError as error:
            raise EmbeddingError(
                f"the embeddings server {self.url}{path} answers no JSON but {self._quote(body)}",
                hint="Check the address: this looks like a page of something else.",
            ) from error

    def _read(self, response: httpx2.Response) -> bytes:
        """The body, within the time limit as a whole: a server that drips bytes would keep a read alive for ever."""
        deadline = time.monotonic() + self._timeout_s
        body = bytearray()
        for block in response.iter_bytes():
            body += block
            if time.monotonic() > deadline:
                raise _TryAgainError(f"the answer was not complete within {self._timeout_s:g} s")
            if len(body) > self._most_bytes:
                raise EmbeddingError(
                    f"the answer of {self.url} is longer than {self._most_bytes} bytes",
                    hint="Check that the address is an embeddings server.",
                )
        return bytes(body)

    def _quote(self, body: bytes) -> str:
        """The beginning of a body on one line, without the API key that some servers repeat in it."""
        text = self._clean(body.decode("utf-8", "replace"))
        text = " ".join(text.split())
        return repr(text if len(text) <= 200 else text[:199] + "…")

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, "[API key]") if self._secret else text


_HINTS = {
    401: "Set the API key of the embeddings server.",
    403: "The API key is not allowed to use this model.",
    404: "Check the address and the model's name.",
}


def _retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number or a date (RFC 9110, 10.2.3); None when unreadable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())
