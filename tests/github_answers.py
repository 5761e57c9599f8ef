"""What GitHub's answers look like: headers, errors, pages of a list.

Belongs here: status, headers and body of each kind of answer. Does not belong here: which one a request is given
(`github_stand_in`). Messages are in our own words, except the few phrases that GitHub documents and clients look for.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, NamedTuple

import httpx2

from tests.github_limits import Allowance, Refusal

DOCUMENTATION = "https://docs.github.test/rest"
EXPOSED = (
    "ETag, Link, Location, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Used, "
    "X-RateLimit-Resource, X-RateLimit-Reset, X-GitHub-Request-Id"
)
SAME_FOR_ALL = (
    ("Server", "github.com"),
    ("X-GitHub-Media-Type", "github.v3; format=json"),
    ("x-github-api-version-selected", "2022-11-28"),
    ("Access-Control-Expose-Headers", EXPOSED),
    ("Access-Control-Allow-Origin", "*"),
    ("Strict-Transport-Security", "max-age=31536000; includeSubdomains; preload"),
    ("X-Frame-Options", "deny"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-XSS-Protection", "0"),
    ("Referrer-Policy", "origin-when-cross-origin, strict-origin-when-cross-origin"),
    ("Content-Security-Policy", "default-src 'none'"),
)
JSON = ("Content-Type", "application/json; charset=utf-8")
# Each came with status 200 and a JSON content type; none is what was asked for.
GARBAGE = (
    b"",
    b"null",
    b"{}",
    b"[1, 2]",
    b'[{"id": ',
    b'{"message": "Server Error"}',
    b"<!DOCTYPE html><html><body><h1>Be right back</h1></body></html>",
    b"\x00\xff\xfe\x80",
)
BAD_GATEWAY = b"<html><head><title>502 Bad Gateway</title></head><body>The edge heard nothing.</body></html>"


class Answer(NamedTuple):
    """Status, headers and body before the headers that every answer has are added."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (JSON,)


def found(document: Any, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """JSON that was asked for."""
    return Answer(status, as_json(document), (JSON, *headers))


def error(
    status: int, message: str, topic: str = "", *, errors: list[dict[str, Any]] | None = None
) -> Answer:
    """An error in GitHub's shape."""
    document: dict[str, Any] = {"message": message}
    if errors is not None:
        document["errors"] = errors
    return found(
        document | {"documentation_url": f"{DOCUMENTATION}{topic}", "status": str(status)}, status=status
    )


def primary_refusal(credential: str) -> Answer:
    """The hour is spent."""
    return error(403, f"API rate limit exceeded for {_shown(credential)}.", "/rate-limits")


def secondary_refusal(refusal: Refusal, now: float, skew: float) -> Answer:
    """Too quick, with the wait told as `refusal` has it."""
    message = "You have exceeded a secondary rate limit. Please wait before you ask again."
    answer = error(refusal.status, message, "/rate-limits#about-secondary-rate-limits")
    if refusal.retry_after == "seconds":
        return answer._replace(headers=(*answer.headers, ("Retry-After", str(math.ceil(refusal.wait)))))
    if refusal.retry_after == "date":
        moment = http_date(math.floor(now) + refusal.wait + skew)
        return answer._replace(headers=(*answer.headers, ("Retry-After", moment)))
    return answer


def blocked(reason: str, moment: str) -> Answer:
    """A repository that GitHub took down: 451 for a legal reason, 403 for its own."""
    block = {"reason": reason, "created_at": moment, "html_url": f"{DOCUMENTATION}/notices/{reason}"}
    return found(
        {"message": "Repository access blocked", "block": block}, status=451 if reason == "dmca" else 403
    )


def moved(location: str) -> Answer:
    """The repository has another name now."""
    document = {
        "message": "Moved Permanently",
        "url": location,
        "documentation_url": f"{DOCUMENTATION}/redirects",
    }
    return found(document, status=301, headers=(("Location", location),))


def garbage(chance: random.Random) -> Answer:
    """Not what was asked for, under a good status and with an ETag."""
    return Answer(200, chance.choice(GARBAGE), (JSON, ("ETag", f'W/"{chance.getrandbits(256):064x}"')))


def link(url: str, per_page: int | None, page: int, last: int) -> tuple[tuple[str, str], ...]:
    """The Link header of a page, in the order that GitHub has it; none where there is one page."""
    size = "" if per_page is None else f"per_page={per_page}&"
    relations: list[tuple[str, int]] = []
    if page > 1:
        relations.append(("prev", min(page - 1, max(last, 1))))
    if page < last:
        relations += [("next", page + 1), ("last", last)]
    if page > 1:
        relations.append(("first", 1))
    if not relations:
        return ()
    return (("Link", ", ".join(f'<{url}?{size}page={number}>; rel="{name}"' for name, number in relations)),)


def etag(digest: bytes, credential: str, place: str) -> str:
    """The weak ETag of a body for one credential at one place; it changes when the body does, and only then."""
    return f'W/"{hashlib.sha256(digest + credential.encode() + b"|" + place.encode()).hexdigest()}"'


def matches(header: str | None, tag: str) -> bool:
    """Whether If-None-Match names this ETag, by the weak comparison that RFC 9110 asks for."""
    if header is None:
        return False
    named = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in named or tag.removeprefix("W/") in named


def response(
    request: httpx2.Request, answer: Answer, allowance: Allowance, *, credential: str, now: float, skew: float
) -> httpx2.Response:
    """The whole answer."""
    anonymous = credential == "anonymous"
    headers = [
        *SAME_FOR_ALL,
        ("Date", http_date(now + skew)),
        ("Cache-Control", f"{'public' if anonymous else 'private'}, max-age=60, s-maxage=60"),
        (
            "Vary",
            "Accept, Accept-Encoding" if anonymous else "Accept, Authorization, Cookie, Accept-Encoding",
        ),
        ("X-RateLimit-Limit", str(allowance.limit)),
        ("X-RateLimit-Remaining", str(allowance.remaining)),
        ("X-RateLimit-Reset", str(int(allowance.shown_reset(now) + skew))),
        ("X-RateLimit-Used", str(allowance.used)),
        ("X-RateLimit-Resource", "core"),
        ("X-GitHub-Request-Id", f"{int(now * 1e6) & 0xFFFFFFFFFFFF:012X}"),
        *answer.headers,
    ]
    if not anonymous:
        headers += [("X-OAuth-Scopes", "repo"), ("X-Accepted-OAuth-Scopes", "repo")]
    return httpx2.Response(answer.status, headers=headers, content=answer.body or None, request=request)


def http_date(seconds: float) -> str:
    """As HTTP writes times: whole seconds, GMT."""
    return format_datetime(datetime.fromtimestamp(math.floor(seconds), UTC), usegmt=True)


def as_json(document: Any) -> bytes:
    """Bytes as the API sends them."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _shown(credential: str) -> str:
    """A credential in a message: never the token."""
    if credential == "anonymous":
        return "203.0.113.7"
    return f"user ID {int.from_bytes(hashlib.sha256(credential.encode()).digest()[:4])}"
