"""One credential's connection to a forge: sends a request when the budget allows it, and reads the whole answer.

Belongs here: HTTP, time limits, size limits, which host may be asked, redirects. Does not belong here: which requests are
made and what their answers mean (`reading`, `answers`), and where a secret comes from (`credentials`).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version as installed_version

import httpx2
from pydantic import SecretStr

from kb_platform.clock import Clock
from kb_platform.errors import RateLimited, SettingsError
from kb_platform.sources.answers import Answer, Wording, garbled, words
from kb_platform.sources.budget import Budget

# A hundred releases with 125,000 characters of notes each, the most that GitHub takes, are 12 MB and their assets.
MOST_BYTES = 64 * 1024 * 1024
MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 307, 308})
# A server that sends a byte now and then is never silent, and would hold its credential for ever.
_LONGEST_ANSWER = 10
_LONGEST_URL = 8_000
_PORTS = {"http": 80, "https": 443}


@dataclass
class _Line:
    """An HTTP client with the connections it keeps. `is_kept`: it may hold one that the server has closed by now."""

    client: httpx2.Client
    is_kept: bool = False


class Switchboard:
    """The lines to one forge, one for each credential, kept open between readers until `close`."""

    def __init__(
        self,
        api_url: str,
        wording: Wording,
        *,
        timeout_s: float,
        clock: Clock,
        transport: httpx2.BaseTransport | None,
        jitter: random.Random | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.api_url = api_url.rstrip("/")
        self.origin = _origin(self.api_url)
        self.wording = wording
        self.clock = clock
        self.timeout_s = timeout_s
        self.most_bytes = most_bytes
        # Spreads waiting; nothing secret hangs on it.
        self.jitter = jitter or random.Random()  # noqa: S311
        self._transport = transport
        self._lines: dict[str, _Line] = {}

    def connect(self, budget: Budget, answers: Counter[str]) -> Connection:
        """A connection for the credential that the budget names; it counts in `answers`."""
        line = self._lines.get(budget.credential)
        if line is None:
            line = self._lines[budget.credential] = _Line(self._client())
        return Connection(self, line, budget, answers)

    def close(self) -> None:
        """Close every line; a later `connect` opens new ones."""
        for line in self._lines.values():
            line.client.close()
        self._lines.clear()

    def _client(self) -> httpx2.Client:
        return httpx2.Client(
            timeout=self.timeout_s,
            transport=self._transport,
            headers={"User-Agent": f"kb-platform/{installed_version('kb-platform')}"},
            # Followed by us: each one is asked within the budget, and none leaves the host.
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )


class Connection:
    """Asks with one credential, one request at a time."""

    def __init__(self, board: Switchboard, line: _Line, budget: Budget, answers: Counter[str]) -> None:
        self._board = board
        self._line = line
        self.budget = budget
        self.answers = answers

    @property
    def api_url(self) -> str:
        """The root of the forge's API, without a slash at its end."""
        return self._board.api_url

    @property
    def clock(self) -> Clock:
        """By which the budget counts."""
        return self._board.clock

    def get(self, url: str, authorization: SecretStr | None, headers: Mapping[str, str]) -> Answer:
        """The answer where redirects end. Raises RateLimited, and SourceRefused when there is no whole answer."""
        seen = [url]
        while True:
            answer = self.ask("GET", seen[-1], authorization, headers)
            target = answer.headers.get("location")
            if answer.status not in _REDIRECTS or target is None:
                return answer
            target = self.resolve(target, answer.url)
            if target in seen or len(seen) > MOST_REDIRECTS:
                raise self._wording.refused(
                    "redirected", f"{self._wording.forge} sends {url} round in circles: {len(seen)} redirects"
                )
            seen.append(target)

    def ask(
        self, method: str, url: str, authorization: SecretStr | None, headers: Mapping[str, str]
    ) -> Answer:
        """One request and its answer, whatever its status. Raises RateLimited without a request while it must wait."""
        self._refuse_while_forbidden()
        url = self.resolve(url, self.api_url)
        shown = authorization.get_secret_value() if authorization else ""
        sent = {**headers, **({"Authorization": shown} if shown else {})}
        request = self._line.client.build_request(method, url, headers=sent)
        # Who repeats a header may leave its scheme out.
        answer, cut = self._exchange(request, url, shown.rpartition(" ")[2])
        now = self.clock.now()
        if answer is None:
            self.answers["unreachable"] += 1
            self.budget.fail(now, self._board.jitter)
            raise self._wording.refused(
                "unreachable", f"{self._wording.forge} cannot be reached at {url}: {cut}"
            )
        self.answers["garbled" if cut else str(answer.status)] += 1
        kind = self.budget.observe(answer.status, answer.headers, answer.said, now, self._board.jitter)
        if kind is not None:
            self._refuse_while_forbidden(answer)
        if cut:
            raise garbled(url, self._wording, cut)
        return answer

    def resolve(self, target: str, base: str) -> str:
        """An address in an answer as a whole one. Raises SourceRefused unless it is on the forge's own host."""
        try:
            url = httpx2.URL(base).join(target)
            # To some a backslash is a slash, to others a part of a name: nobody means well by one.
            is_ours = (
                "\\" not in target and not url.userinfo and _may_follow(self._board.origin, _origin(str(url)))
            )
        except (httpx2.InvalidURL, SettingsError, ValueError):
            raise garbled(base, self._wording, "an address that is none") from None
        if not is_ours:
            raise self._wording.refused(
                "redirected",
                f"{self._wording.forge} at {self.api_url} leads to another host: {url.scheme}://{url.host}",
            )
        if len(str(url)) > _LONGEST_URL:
            raise garbled(base, self._wording, f"an address of {len(str(url)):,} characters")
        return str(url)

    @property
    def _wording(self) -> Wording:
        return self._board.wording

    def _refuse_while_forbidden(self, answer: Answer | None = None) -> None:
        now = self.clock.now()
        until = self.budget.forbidden_until(now)
        if until is None:
            return
        kind = self.budget.forbidden_kind(now)
        said = f": {answer.said!r}" if answer is not None and answer.said else ""
        raise RateLimited(
            f"{self._wording.forge} is not to be asked with {self.budget.credential} before "
            f"{until + timedelta(milliseconds=999):%Y-%m-%d %H:%M:%S} UTC ({kind} limit){said}",
            until=until,
            kind=kind,
            hint=self._wording.hints.get(kind),
        )

    def _exchange(self, request: httpx2.Request, url: str, secret: str) -> tuple[Answer | None, str | None]:
        """The answer, and what is wrong with it; no answer when there is none.

        Errors of the HTTP library hold the request and with it the secret: none of them leaves this method.
        """
        response: httpx2.Response | None = None
        body = bytearray()
        try:
            response = self._send(request)
            self._line.is_kept = True
            problem = self._read(response, body)
        except httpx2.TimeoutException:
            return None, f"no answer within {self._board.timeout_s:g} s"
        except httpx2.DecodingError:
            problem = "compressed wrongly"
        except httpx2.TransportError as error:
            if response is None:
                return None, _clean(f"{type(error).__name__} {error}", secret)
            problem = "cut short"
        finally:
            if response is not None:
                with suppress(httpx2.HTTPError):
                    response.close()
        if response is None or problem == _TOO_SLOW:
            return None, _TOO_SLOW
        said = words(bytes(body), secret) if response.status_code >= 400 else ""
        return Answer(url, response.status_code, response.headers, bytes(body), said), problem

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Up to the answer's headers. A kept connection may have been closed meanwhile: that is no failure."""
        if self._line.is_kept:
            try:
                return self._line.client.send(request, stream=True)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                self._line.is_kept = False
        return self._line.client.send(request, stream=True)

    def _read(self, response: httpx2.Response, body: bytearray) -> str | None:
        """Fill `body`; returns what is wrong with it."""
        deadline = time.monotonic() + _LONGEST_ANSWER * self._board.timeout_s
        for block in response.iter_bytes():
            body += block
            if len(body) > self._board.most_bytes:
                return f"longer than {self._board.most_bytes:,} bytes"
            if time.monotonic() > deadline:
                return _TOO_SLOW
        # A socket's length is held by the HTTP library, packed or not; what a test or a cache hands over is not.
        told = response.headers.get("content-length", "")
        is_plain = not {"transfer-encoding", "content-encoding"} & set(response.headers)
        if is_plain and response.status_code != 304 and told.isdecimal() and int(told[:20]) != len(body):
            return f"cut short: {len(body):,} of {told[:20]} bytes"
        return None


_TOO_SLOW = "an answer without an end"


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises SettingsError for anything but a plain http or https address."""
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL:
        parts = httpx2.URL("")
    if parts.scheme not in _PORTS or not parts.host or parts.userinfo:
        raise SettingsError(
            "the address of a forge's API is none",
            hint="Give it as https://HOST/PATH, without a user name or password in it.",
        )
    return parts.scheme, parts.host.lower(), parts.port or _PORTS[parts.scheme]


def _may_follow(ours: tuple[str, str, int], other: tuple[str, str, int]) -> bool:
    """Whether a secret may go there: the same scheme, host and port, or from plain http to https on the usual ports."""
    is_upgrade = (ours[0], ours[2]) == ("http", 80) and (other[0], other[2]) == ("https", 443)
    return ours == other or (is_upgrade and ours[1] == other[1])


def _clean(text: str, secret: str) -> str:
    return text.replace(secret, "[secret]") if secret else text
