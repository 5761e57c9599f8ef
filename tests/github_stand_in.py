"""A stand-in for the part of GitHub's REST API that has to do with releases.

Belongs here: what a request is answered, and the log of all requests. The rest of it: what is true (`github_world`), who
asks (`github_credentials`), limits (`github_limits`), storms (`github_storms`), the form of answers (`github_answers`).
It is held against GitHub's schemas and recorded exchanges in `test_github_stand_in`.

What is true of GitHub and easily forgotten, and true here too: the list's order is no promise; a 304 has no Link header,
so a page that stays as it is may get a successor unseen; ETags differ by credential; a rename changes every URL in every
release and so every ETag; a stale replica may lack a release that exists; a refusal holds for a credential, and every
request inside it is a fault, which the log shows as `in_forbidden_window`.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx2

from kb_platform.clock import Clock
from tests import github_answers as answers
from tests.github_answers import Answer
from tests.github_credentials import ANONYMOUS, Credentials
from tests.github_limits import UNSAID_WAIT, Allowance, Refusal, RetryAfter
from tests.github_releases import timestamp
from tests.github_storms import Kind, Storm, Storms
from tests.github_world import Repository, World

API_VERSIONS = {"2022-11-28", "2026-03-10"}
LARGEST_PAGE, USUAL_PAGE = 100, 30
LIMIT, ANONYMOUS_LIMIT = 5_000, 60


@dataclass(slots=True)
class LoggedRequest:
    """One request. `status` None: it was given no answer. `repository`: its number. `overlapping`: another request of
    that credential was being answered. `storm`: what it fell into. `in_forbidden_window`: it must not have been sent."""

    at: datetime
    credential: str
    method: str
    path: str
    query: str
    conditional: bool
    in_forbidden_window: bool = False
    overlapping: bool = False
    status: int | None = None
    repository: int | None = None
    storm: Kind | None = None


class StandIn(World):
    """GitHub, as far as a reader of releases can tell; `httpx2.MockTransport(stand_in.handle)` asks it.

    `page_cap`: results that a list gives at most; past them it answers 422, and `links_to_cap` says whether the last page
    still links there. `limits`: requests an hour by credential (`anonymous`, a token, `installation-N`, `app-N`; `*` for
    all others). `skew`: whole seconds that GitHub's own clock is ahead. `log_limit`: how many requests are kept.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        page_cap: int = 10_000,
        limits: Mapping[str, int] | None = None,
        base_url: str = "https://api.github.test",
        links_to_cap: bool = True,
        skew: int = 0,
        log_limit: int | None = None,
    ) -> None:
        super().__init__(clock, seed=seed, base_url=base_url)
        self.credentials = Credentials()
        self.log: list[LoggedRequest] = []
        self.statuses: Counter[tuple[str, int | None]] = Counter()
        self.strays: list[httpx2.Request] = []
        self._page_cap, self._links_to_cap = page_cap, links_to_cap
        self._limits = {ANONYMOUS: ANONYMOUS_LIMIT} | dict(limits or {})
        self._skew, self._log_limit = skew, log_limit
        self._allowances: dict[str, Allowance] = {}
        self._storms = Storms()
        self._forbidden: list[LoggedRequest] = []
        self._being_answered: Counter[str] = Counter()
        self._count_lock = threading.Lock()
        self._chance = random.Random(f"{seed}: storms")

    def revoke(self, token: str) -> None:
        """The token is bad from now on: 401."""
        self.credentials.revoke(token)

    def storm(
        self,
        kind: Kind,
        *,
        seconds: float | None = None,
        requests: int | None = None,
        credential: str | None = None,
        wait: float = UNSAID_WAIT,
        retry_after: RetryAfter | None = None,
        delay: float = 30.0,
    ) -> None:
        """Requests fare badly from now on, for so many seconds or requests (see Storm); both None: until `calm`.

        A `primary` storm spends the hour of a credential that asks: until the storm's end, else until the hour's.
        """
        with self.lock:
            until = None if seconds is None else self._now() + seconds
            self._storms.add(Storm(kind, until, requests, credential, wait, retry_after, delay))

    def calm(self) -> None:
        """All storms end. Refusals that were given hold on."""
        with self.lock:
            self._storms.clear()

    def allowance(self, credential: str) -> Allowance:
        """What a credential has left."""
        if credential not in self._allowances:
            limit = self._limits.get(credential, self._limits.get("*", LIMIT))
            self._allowances[credential] = Allowance(limit)
        return self._allowances[credential]

    def forbidden_requests(self) -> list[LoggedRequest]:
        """The requests that must not have been sent, also those that the log no longer has."""
        return list(self._forbidden)

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request; raises what httpx2 raises where no answer, or half of one, arrives."""
        if not str(request.url).startswith(f"{self.site.api}/"):
            self.strays.append(request)
            return httpx2.Response(404, text="This is not GitHub.", request=request)
        credential, refused = self.credentials.identify(request.headers.get("Authorization"), self._now())
        with self._answering(credential) as overlapping:
            entry = self._enter(request, credential, overlapping=overlapping)
            with self.lock:
                storm = None if entry.in_forbidden_window else self._storms.take(credential, self._now())
                entry.storm = storm.kind if storm else None
            # Outside the lock: a slow answer to one holds up no other.
            in_time = storm is None or storm.kind != "slow" or self._waited(request, storm.delay)
            try:
                with self.lock:
                    response = self._respond(request, entry, storm, refused)
                    if not in_time:
                        entry.status = None
                        raise httpx2.ReadTimeout("the stand-in took too long", request=request)
            finally:
                self.statuses[credential, entry.status] += 1
            return response

    def _respond(
        self, request: httpx2.Request, entry: LoggedRequest, storm: Storm | None, refused: Answer | None
    ) -> httpx2.Response:
        answer = self._refused_again(entry) if entry.in_forbidden_window else None
        if answer is None and storm is not None:
            answer = self._stormy(request, entry.credential, storm)
        if answer is None:
            answer = refused or self._told(request, entry)
        allowance, now = self.allowance(entry.credential), self._now()
        response = answers.response(
            request, answer, allowance, credential=entry.credential, now=now, skew=self._skew
        )
        if storm is not None and storm.kind == "truncated" and answer.body:
            response = self._truncated(response)
        entry.status = answer.status
        return response

    def _refused_again(self, entry: LoggedRequest) -> Answer:
        """Who asks inside a forbidden window waits longer; the hour's end alone stays where it is."""
        allowance, now = self.allowance(entry.credential), self._now()
        if allowance.forbidden(now) == "secondary" and allowance.refusal is not None:
            allowance.refuse(now, allowance.refusal)
            return answers.secondary_refusal(allowance.refusal, now, self._skew)
        return answers.primary_refusal(entry.credential)

    def _stormy(self, request: httpx2.Request, credential: str, storm: Storm) -> Answer | None:
        """What a storm answers; None where it lets the request through (to cut or delay the answer)."""
        allowance, now = self.allowance(credential), self._now()
        match storm.kind:
            case "primary":
                allowance.spend(now, storm.until)
                return answers.primary_refusal(credential)
            case "secondary" | "secondary-no-retry-after" | "429":
                refusal = self._refusal(storm)
                allowance.refuse(now, refusal)
                return answers.secondary_refusal(refusal, now, self._skew)
            case "500":
                return answers.error(500, "Server Error")
            case "502-html":
                return Answer(502, answers.BAD_GATEWAY, (("Content-Type", "text/html"),))
            case "garbage":
                return answers.garbage(self._chance)
            case "redirect-circle":
                return answers.moved(str(request.url))
            case "redirect-away":
                return answers.moved(f"https://elsewhere.test{request.url.raw_path.decode()}")
            case "reset":
                failure = self._chance.choice(
                    (httpx2.ConnectError, httpx2.ReadError, httpx2.RemoteProtocolError)
                )
                raise failure("the stand-in closed the connection", request=request)
            case "truncated" | "slow":
                return None

    def _refusal(self, storm: Storm) -> Refusal:
        status = 429 if storm.kind == "429" else 403
        if storm.kind == "secondary-no-retry-after":
            return Refusal(status, "none", storm.wait)
        forms: tuple[RetryAfter, ...] = ("seconds", "date", "none") if status == 429 else ("seconds", "date")
        return Refusal(status, storm.retry_after or self._chance.choice(forms), storm.wait)

    def _truncated(self, response: httpx2.Response) -> httpx2.Response:
        """Half of the body: either the connection ends too early, or nothing but the JSON tells."""
        half = response.content[: len(response.content) // 2]
        headers = response.headers.copy()
        if self._chance.random() < 0.5:
            return httpx2.Response(
                response.status_code, headers=headers, stream=_CutShort(half), request=response.request
            )
        del headers["Content-Length"]
        return httpx2.Response(response.status_code, headers=headers, content=half, request=response.request)

    def _told(self, request: httpx2.Request, entry: LoggedRequest) -> Answer:
        """The answer of a good day; all but a few are counted."""
        asked = _Asked(request, entry, entry.path.strip("/").split("/"))
        answer = self._routed(asked)
        is_free = answer.status == 304 and entry.credential != ANONYMOUS
        if not is_free and asked.parts != ["rate_limit"]:
            self.allowance(entry.credential).charge(self._now())
        return answer

    def _routed(self, asked: _Asked) -> Answer:
        if "User-Agent" not in asked.request.headers:
            return answers.error(403, "Every request must have a User-Agent header.", "/user-agent")
        if asked.request.headers.get("X-GitHub-Api-Version", "2022-11-28") not in API_VERSIONS:
            return answers.error(400, "There is no such version of the API.", "/versions")
        match asked.request.method, asked.parts:
            case "GET", ["rate_limit"]:
                return answers.found(self._budgets(asked.entry.credential))
            case _, ["app", *_]:
                return self._app(asked)
            case "GET", ["repos", owner, name, *rest]:
                number, is_current = self.number_named(f"{owner}/{name}")
                return self._repository(asked, number, rest, is_current=is_current)
            case "GET", ["repositories", number, *rest] if number.isdecimal():
                return self._repository(asked, int(number), rest, is_current=True)
            case _:
                return _not_found()

    def _repository(self, asked: _Asked, number: int | None, rest: list[str], *, is_current: bool) -> Answer:
        repository = self.repositories.get(number) if number is not None else None
        credential = asked.entry.credential
        if repository is None or repository.removed or not _may_read(repository, credential):
            return _not_found()
        asked.entry.repository = repository.number
        if repository.blocked_for is not None:
            return answers.blocked(repository.blocked_for, timestamp(self.clock.now()))
        if not is_current:
            query = f"?{asked.entry.query}" if asked.entry.query else ""
            return answers.moved(
                "/".join((f"{self.site.api}/repositories/{repository.number}", *rest)) + query
            )
        match rest:
            case []:
                return _conditional(asked, self.repository_document(repository, credential))
            case ["releases"]:
                return self._list(asked, repository)
            case ["releases", release_id] if release_id.isdecimal():
                return self._release(asked, repository, int(release_id))
            case _:
                return _not_found()

    def _release(self, asked: _Asked, repository: Repository, release_id: int) -> Answer:
        release = repository.releases.get(release_id)
        if release is None or (release.draft and asked.entry.credential not in repository.pushers):
            return _not_found("/releases#get-a-release")
        return _conditional(asked, release.document(repository.name, self.site))

    def _list(self, asked: _Asked, repository: Repository) -> Answer:
        size, page = asked.number("per_page", USUAL_PAGE, LARGEST_PAGE), asked.number("page", 1)
        start, stop = (page - 1) * size, min(page * size, self._page_cap)
        if start >= self._page_cap:
            message = f"Only the first {self._page_cap} results are available."
            fault = {"resource": "Release", "field": "page", "code": "invalid"}
            return answers.error(422, message, "/releases#list-releases", errors=[fault])
        drafts = asked.entry.credential in repository.pushers
        digest, body = repository.digest(self.site, drafts=drafts, start=start, stop=stop)
        tag = answers.etag(digest, asked.entry.credential, f"{repository.number}:{start}:{stop}")
        if answers.matches(asked.request.headers.get("If-None-Match"), tag):
            answer = Answer(304, b"", (("ETag", tag),))
        else:
            body = body or repository.page(self.site, drafts=drafts, start=start, stop=stop)
            total = len(repository.listed(drafts=drafts))
            if not self._links_to_cap:
                total = min(total, self._page_cap)
            url = f"{self.site.api}/repositories/{repository.number}/releases"
            links = answers.link(url, asked.number("per_page", None, LARGEST_PAGE), page, -(-total // size))
            answer = Answer(200, body, (answers.JSON, ("ETag", tag), *links))
        self._drift(repository, page)
        return answer

    def _drift(self, repository: Repository, page: int) -> None:
        due = [action for after, action in repository.drifts if after == page]
        repository.drifts = [drift for drift in repository.drifts if drift[0] != page]
        for action in due:
            action()

    def _app(self, asked: _Asked) -> Answer:
        credential = asked.entry.credential
        if not credential.startswith("app-"):
            return answers.error(401, "A JSON web token could not be decoded", "/apps")
        match asked.request.method, asked.parts:
            case "GET", ["app", "installations"]:
                size, page = asked.number("per_page", USUAL_PAGE, LARGEST_PAGE), asked.number("page", 1)
                mine = self.credentials.installations(credential, self.site)
                url = f"{self.site.api}/app/installations"
                links = answers.link(
                    url, asked.number("per_page", None, LARGEST_PAGE), page, -(-len(mine) // size)
                )
                return answers.found(mine[(page - 1) * size : page * size], headers=links)
            case "POST", ["app", "installations", number, "access_tokens"] if number.isdecimal():
                return self.credentials.issue(int(number), credential, self._now())
            case _:
                return _not_found("/apps")

    def _budgets(self, credential: str) -> dict[str, Any]:
        allowance, now = self.allowance(credential), self._now()
        allowance.forbidden(now)
        core = {
            "limit": allowance.limit,
            "used": allowance.used,
            "remaining": allowance.remaining,
            "reset": allowance.shown_reset(now) + self._skew,
        }
        return {"resources": {"core": core}, "rate": core}

    def _enter(self, request: httpx2.Request, credential: str, *, overlapping: bool) -> LoggedRequest:
        """Write a request into the log as it arrives: one that is never answered is there too."""
        path = request.url.path.removeprefix(self._prefix)
        query, conditional = request.url.query.decode(), "If-None-Match" in request.headers
        entry = LoggedRequest(self.clock.now(), credential, request.method, path, query, conditional)
        entry.overlapping = overlapping
        with self.lock:
            entry.in_forbidden_window = self.allowance(credential).forbidden(self._now()) is not None
            if entry.in_forbidden_window:
                self._forbidden.append(entry)
            self.log.append(entry)
            if self._log_limit is not None and len(self.log) > self._log_limit:
                del self.log[: self._log_limit // 2]
        return entry

    @contextmanager
    def _answering(self, credential: str) -> Iterator[bool]:
        with self._count_lock:
            self._being_answered[credential] += 1
            overlapping = self._being_answered[credential] > 1
        try:
            yield overlapping
        finally:
            with self._count_lock:
                self._being_answered[credential] -= 1

    def _waited(self, request: httpx2.Request, delay: float) -> bool:
        """Wait for so long, or for as long as the client waits; False when the client gave up."""
        patience = request.extensions.get("timeout", {}).get("read")
        in_time = patience is None or delay < patience
        self.clock.sleep(delay if in_time else patience)
        return in_time

    def _now(self) -> float:
        return self.clock.now().timestamp()


class _CutShort(httpx2.SyncByteStream):
    """A body whose connection ends before it does."""

    def __init__(self, half: bytes) -> None:
        self._half = half

    def __iter__(self) -> Iterator[bytes]:
        yield self._half
        raise httpx2.RemoteProtocolError("the stand-in closed the connection in the middle of the body")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request with what is needed again and again: its entry in the log and the parts of its path."""

    request: httpx2.Request
    entry: LoggedRequest
    parts: list[str]

    def number(self, name: str, default: Any, most: int | None = None) -> Any:
        """A parameter; what is no number above 0 counts as not given."""
        text = self.request.url.params.get(name, "") if self.entry.query else ""
        if not text.isdecimal() or int(text) == 0:
            return default
        return int(text) if most is None else min(int(text), most)


def _conditional(asked: _Asked, document: dict[str, Any]) -> Answer:
    body = answers.as_json(document)
    tag = answers.etag(hashlib.sha256(body).digest(), asked.entry.credential, str(document["id"]))
    if answers.matches(asked.request.headers.get("If-None-Match"), tag):
        return Answer(304, b"", (("ETag", tag),))
    return Answer(200, body, (answers.JSON, ("ETag", tag)))


def _may_read(repository: Repository, credential: str) -> bool:
    return not credential.startswith("app-") and (
        repository.private_to is None or credential in repository.private_to
    )


def _not_found(topic: str = "") -> Answer:
    return answers.error(404, "Not Found", topic)
