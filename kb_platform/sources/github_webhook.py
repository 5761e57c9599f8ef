"""A webhook as GitHub sends it over HTTP: which headers it must have, what its signature signs, how its body is packed.

Pure functions over bytes. Does not belong here: reading the request and answering it (`services.receiver`), and what the
payload says (`release_event`).
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from pydantic import SecretStr

from kb_platform.errors import SettingsError

# What GitHub sends at most.
MOST_BYTES = 25 * 1024 * 1024

_SIGNATURE = re.compile(rb"sha256=([0-9a-f]{64})")
# GitHub's are UUIDs. The number is logged and becomes an event's id: nothing that a log or a header could trip over.
_DELIVERY = re.compile(rb"[A-Za-z0-9._-]{1,100}")
_EVENT = re.compile(rb"[a-z][a-z_]{0,63}")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_JSON, _FORM = b"application/json", b"application/x-www-form-urlencoded"
_MOST_FIELDS = 8


class Rejected(Exception):
    """A request that is not taken. `status`: the HTTP status to answer; the text quotes nothing of the request."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Head(NamedTuple):
    """What the headers say. `digest`: the signature's 32 bytes. `length`: of the body, None where it is not told."""

    delivery: str
    event: str
    digest: bytes
    is_form: bool
    length: int | None


def secrets_of(secret: SecretStr | None) -> tuple[bytes, ...]:
    """The secrets in a setting, several with commas between. Raises SettingsError when there is none."""
    texts = [part.strip() for part in secret.get_secret_value().split(",")] if secret else []
    found = tuple(part.encode() for part in texts if part)
    if not found:
        raise SettingsError(
            "no secret is set for webhooks, and unsigned ones are not received",
            hint="set KB_WEBHOOK_SECRET to what stands in the webhook's settings at GitHub; `openssl rand -hex 32` makes one",
        )
    return found


def read_head(headers: Iterable[tuple[bytes, bytes]], *, most_bytes: int) -> Head:
    """The headers (names in lower case) of a delivery. Raises Rejected: what they show to be wrong needs no body."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(value)
    signature = _one(found, b"x-hub-signature-256")
    match = _SIGNATURE.fullmatch(signature) if signature is not None else None
    if match is None:
        raise unsigned()
    return Head(
        delivery=_checked(found, b"x-github-delivery", _DELIVERY),
        event=_checked(found, b"x-github-event", _EVENT),
        digest=bytes.fromhex(match[1].decode()),
        is_form=_is_form(found),
        length=_length(found, most_bytes),
    )


def is_signed(body: bytes, digest: bytes, secrets: Sequence[bytes]) -> bool:
    """Whether one of the secrets signs the body so. All of them are tried, whichever fits: the time tells nothing."""
    fits = [hmac.compare_digest(hmac.digest(secret, body, "sha256"), digest) for secret in secrets]
    return any(fits)


def payload(body: bytes, *, is_form: bool) -> bytes:
    """The JSON in a body. Raises Rejected."""
    if not is_form:
        return body
    fields = body.split(b"&", _MOST_FIELDS)
    found = [field.partition(b"=")[2] for field in fields if field.startswith(b"payload=")]
    if len(found) != 1:
        raise Rejected(400, "the form has no field payload")
    return unquote_to_bytes(found[0].replace(b"+", b" "))


def unsigned() -> Rejected:
    """The one answer to a signature that is missing, malformed or wrong: it does not tell which."""
    return Rejected(401, "unauthorized")


def too_long(most_bytes: int) -> Rejected:
    """The answer to a body over the limit."""
    return Rejected(413, f"the body is longer than {most_bytes:,} bytes")


def _one(headers: dict[bytes, list[bytes]], name: bytes) -> bytes | None:
    """A header's value; of several nobody knows which is meant."""
    values = headers.get(name, [])
    return values[0] if len(values) == 1 else None


def _checked(headers: dict[bytes, list[bytes]], name: bytes, shape: re.Pattern[bytes]) -> str:
    value = _one(headers, name)
    if value is None or not shape.fullmatch(value):
        raise Rejected(400, f"the header {name.decode()} is missing, there twice, or not as GitHub sends it")
    return value.decode()


def _is_form(headers: dict[bytes, list[bytes]]) -> bool:
    if headers.get(b"content-encoding", [b"identity"]) != [b"identity"]:
        raise Rejected(415, "the body is compressed")
    kind = (_one(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind not in (_JSON, _FORM):
        raise Rejected(415, f"the content type is neither {_JSON.decode()} nor {_FORM.decode()}")
    return kind == _FORM


def _length(headers: dict[bytes, list[bytes]], most_bytes: int) -> int | None:
    told = headers.get(b"content-length")
    if told is None:
        return None
    # Two ways to tell where the body ends are two opinions on where the next request begins (RFC 9112, 6.3).
    if len(told) != 1 or b"transfer-encoding" in headers or not _LENGTH.fullmatch(told[0]):
        raise Rejected(400, "the length of the body is told wrongly")
    if int(told[0]) > most_bytes:
        raise too_long(most_bytes)
    return int(told[0])
