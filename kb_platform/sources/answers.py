"""What a forge's HTTP answer means: one SourceRefused for each way of not giving what was asked for.

Belongs here: the answer as it came, and its verdict. Does not belong here: limits (`budget`), sending (`connection`), what a
page or a release is (`reading`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kb_platform.errors import SourceRefused
from kb_platform.sources.json_bytes import document

_SHOWN = 200
# More than what is shown and the longest secret.
_READ = 16_384


@dataclass(frozen=True)
class Wording:
    """How a person is told of a forge: its name, and what to do, by slug of SourceRefused and kind of RateLimited."""

    forge: str
    hints: Mapping[str, str]

    def refused(self, reason: str, message: str) -> SourceRefused:
        """The error, with its hint."""
        return SourceRefused(reason, message, hint=self.hints.get(reason))


@dataclass(frozen=True)
class Answer:
    """A whole answer. `said`: what it says in words when it is no success, on one line and without our secrets.

    `headers` takes names in any case.
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    said: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it is none."""
        return document(self.body)


def words(body: bytes, secret: str = "") -> str:
    """What a body says: the `message` of its JSON, else its beginning; `secret` is left out."""
    message = document(body).get("message")
    text = message if isinstance(message, str) else body[:_READ].decode("utf-8", "replace")
    # Before anything is cut: half a secret is not found.
    text = text.replace(secret, "[secret]") if secret else text
    text = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * _SHOWN]).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def refusal(answer: Answer, wording: Wording, *, is_absent: bool) -> SourceRefused:
    """Why an answer is not what was asked for.

    `is_absent`: the answer is the forge's own word that there is nothing; a proxy's 404 is not.
    """
    reason = _reason(answer, is_absent=is_absent)
    said = f": {answer.said!r}" if answer.said else ""
    return wording.refused(reason, f"{wording.forge} answers {answer.status} to {answer.url}{said}")


def garbled(url: str, wording: Wording, what: str) -> SourceRefused:
    """An answer that is not the JSON that was asked for."""
    return wording.refused("garbled", f"the answer of {wording.forge} to {url} is {what}")


def _reason(answer: Answer, *, is_absent: bool) -> str:
    status = answer.status
    if status == 403:
        is_blocked = "block" in answer.document or "access blocked" in answer.said.lower()
        return "blocked" if is_blocked else "forbidden"
    if status in (404, 410):
        return "not-found" if is_absent else "garbled"
    if status >= 500:
        return "server-error"
    return {401: "unauthorized", 451: "blocked"}.get(status, "unexpected")
