"""The client of GitHub against recorded exchanges and hostile answers, without a network."""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import json
import logging
import random
import socket
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from kb_platform.clock import SystemClock
from kb_platform.errors import KbError, RateLimited, SettingsError, SourceRefused
from kb_platform.settings import Settings
from kb_platform.sources.budget import Budget
from kb_platform.sources.credentials import Token
from kb_platform.sources.forge import Forge, Identity, ListPage, Reader
from kb_platform.sources.github import GitHub, github_from_settings
from kb_platform.sources.github_json import parse_release
from kb_platform.sources.json_bytes import CutShortError, array_elements

API = "https://api.example.com"
SECRET = "ghp_ThisIsTheSecretThatNobodyMaySee00"
ACME = Identity(77, "acme/tool")
FIRST = f"{API}/repositories/77/releases?per_page=100"
Handler = Callable[[httpx2.Request], httpx2.Response]


class ManualClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class Served:
    """Answers requests in order, or by a function, and remembers them."""

    def __init__(self, *answers: httpx2.Response | Exception | Handler) -> None:
        self._answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else answer(request)

    @property
    def urls(self) -> list[str]:
        return [str(request.url) for request in self.requests]


def page_of(*records: object, link: str | None = None, **headers: str) -> Handler:
    return lambda _: httpx2.Response(
        200, json=list(records), headers={**({"Link": link} if link else {}), **headers}
    )


def says(status: int, message: str = "", headers: dict[str, str] | None = None, **more: object) -> Handler:
    return lambda _: httpx2.Response(status, json={"message": message, **more}, headers=headers or {})


@contextmanager
def reading(
    handler: Handler, clock: ManualClock | None = None, api: str = API, budget: Budget | None = None, **options: Any
) -> Generator[Reader]:  # fmt: skip
    forge = GitHub(
        api,
        [Token("token-1", SecretStr(f"Bearer {SECRET}"))],
        timeout_s=5,
        clock=clock or ManualClock(),
        transport=httpx2.MockTransport(handler),
        jitter=random.Random(1),
        **options,
    )
    with forge.reader("token-1", budget or Budget("token-1")) as reader:
        yield reader
    forge.close()


def refused(handler: Handler, ask: Callable[[Reader], object] | None = None, **options: Any) -> SourceRefused:
    with reading(handler, **options) as reader, pytest.raises(SourceRefused) as caught:
        (ask or (lambda r: r.page(FIRST, etag=None)))(reader)
    assert_secret_free(caught.value)
    return caught.value


def assert_secret_free(error: BaseException) -> None:
    """Neither the texts nor the objects of an error's chain know the secret."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        assert not hasattr(link, "request") and not isinstance(link, httpx2.HTTPError)
        link = link.__cause__ or link.__context__
    assert SECRET not in "".join(traceback.format_exception(error)) + repr(vars(error))


def recorded(shared_data: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((shared_data / "github_api" / "recorded" / name).read_text())["exchanges"]


def replay(exchange: dict[str, Any]) -> httpx2.Response:
    """A recorded answer; headers about how its body was packed are left out, since the recording is unpacked."""
    packing = {"content-length", "content-encoding", "transfer-encoding", "connection"}
    headers = {
        key: ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in exchange["headers"].items()
        if key.lower() not in packing and "{{" not in str(value)
    }
    return httpx2.Response(exchange["status"], json=exchange["body"], headers=headers)


# --- what is asked ------------------------------------------------------------------------------------------


def test_it_is_a_forge() -> None:
    forge: Forge = GitHub(API, [Token("anonymous")], timeout_s=1, clock=SystemClock())
    assert (forge.name, forge.page_size, forge.credentials()) == ("github", 100, ["anonymous"])


def test_requests_say_who_asks_for_what() -> None:
    served = Served(page_of())
    with reading(served) as reader:
        reader.page(FIRST, etag='W/"abc"')
    sent = served.requests[0].headers
    assert sent["accept"] == "application/vnd.github+json"
    assert sent["x-github-api-version"] == "2022-11-28"
    assert sent["user-agent"].startswith("kb-platform/")
    assert sent["authorization"] == f"Bearer {SECRET}"
    assert sent["if-none-match"] == 'W/"abc"'


def test_nobody_shows_nothing() -> None:
    served = Served(page_of())
    forge = GitHub(
        API, [Token("anonymous")], timeout_s=1, clock=ManualClock(), transport=httpx2.MockTransport(served)
    )
    with forge.reader("anonymous", Budget("anonymous")) as reader:
        reader.page(reader.first_url(ACME), etag=None)
    assert "authorization" not in served.requests[0].headers


def test_one_client_serves_all_readers_and_cookies_are_not_kept() -> None:
    served = Served(page_of(**{"Set-Cookie": "session=1; Path=/"}))
    forge = GitHub(
        API, [Token("anonymous")], timeout_s=1, clock=ManualClock(), transport=httpx2.MockTransport(served)
    )
    for _ in range(2):
        with forge.reader("anonymous", Budget("anonymous")) as reader:
            reader.page(FIRST, etag=None)
    assert "cookie" not in served.requests[1].headers


# --- the recorded exchanges ---------------------------------------------------------------------------------


def test_the_recorded_list_is_walked_by_its_links(shared_data: Path) -> None:
    exchanges = recorded(shared_data, "list_releases_paginated_pygithub_2022.json")
    pages = {f"https://api.github.com{exchange['path']}": exchange for exchange in exchanges}
    served = Served(lambda request: replay(pages[str(request.url)]))
    budget = Budget("token-1")
    clock = ManualClock()
    clock.time = datetime(2022, 1, 10, 15, 55, 51, tzinfo=UTC)
    url: str | None = next(iter(pages))
    records: list[bytes] = []
    with reading(served, clock, api="https://api.github.com", budget=budget) as reader:
        while url is not None:
            page = reader.page(url, etag=None)
            assert page is not None
            assert page.etag is not None
            records += page.records
            url = page.next_url
        assert reader.answers == {"200": 3}
    assert served.urls == list(pages)
    assert [json.loads(raw) for raw in records] == [
        release for exchange in exchanges for release in exchange["body"]
    ]
    assert (budget.rate_limit, budget.remaining) == (5000, 4637)
    assert budget.reset_at is not None
    assert abs((budget.reset_at - datetime.fromtimestamp(1641832874, UTC)).total_seconds()) <= 2
    schema = json.loads((shared_data / "github_api" / "release.schema.json").read_text())
    for raw in records:
        jsonschema.validate(json.loads(raw), schema)
        assert parse_release(raw, repository=None, max_body_bytes=1 << 20)[0] == "PyGithub/PyGithub"


def test_a_recorded_release_is_read(shared_data: Path) -> None:
    for name in ("get_release_200.json", "release_author_null.json"):
        exchange = recorded(shared_data, name)[0]
        with reading(Served(replay(exchange))) as reader:
            raw = reader.release(ACME, exchange["body"]["id"])
        assert raw is not None
        assert json.loads(raw) == exchange["body"]


@pytest.mark.parametrize("name", ["error_404_getReleaseDoesNotExist.json", "error_404_not_found.json"])
def test_a_recorded_404_of_a_release_says_that_it_is_gone(shared_data: Path, name: str) -> None:
    exchange = recorded(shared_data, name)[0]
    with reading(Served(replay(exchange))) as reader:
        assert reader.release(ACME, 5) is None
    assert refused(Served(replay(exchange))).reason == "not-found"


RECORDED_REFUSALS = {
    "error_401_bad_credentials.json": "unauthorized",
    "error_403_bad_user_agent.json": "forbidden",
    "error_422_release_already_exists.json": "unexpected",
    "error_422_validation_failed.json": "unexpected",
    "octokit_error_422.json": "unexpected",
}


@pytest.mark.parametrize("name", RECORDED_REFUSALS)
def test_recorded_refusals_have_their_slug(shared_data: Path, name: str) -> None:
    error = refused(Served(replay(recorded(shared_data, name)[0])))
    assert error.reason == RECORDED_REFUSALS[name]
    assert error.hint or error.reason == "unexpected"


RECORDED_LIMITS = [
    "error_403_primary_authenticated.json", "error_403_primary_unauthenticated_2013.json", "error_403_secondary.json",
    "error_403_secondary_body_marker_only.json", "error_429_no_retry_after.json", "error_429_secondary_retry_after.json",
]  # fmt: skip


@pytest.mark.parametrize("name", RECORDED_LIMITS)
def test_a_recorded_limit_stops_all_requests_until_it_ends(shared_data: Path, name: str) -> None:
    clock, budget = ManualClock(), Budget("token-1")
    limit = replay(recorded(shared_data, name)[0])
    served = Served(limit, page_of())
    with reading(served, clock, budget=budget) as reader:
        with pytest.raises(RateLimited) as caught:
            reader.page(FIRST, etag=None)
        until = caught.value.until
        assert until == budget.forbidden_until(clock.now())
        assert caught.value.hint
        clock.time = until - timedelta(milliseconds=1)
        for ask in (
            lambda: reader.page(FIRST, etag=None),
            lambda: reader.identify("acme/tool"),
            lambda: reader.release(ACME, 1),
        ):
            with pytest.raises(RateLimited) as again:
                ask()
            assert again.value.until == until
            assert again.value.kind == caught.value.kind
        assert len(served.requests) == 1
        clock.time = until
        assert reader.page(FIRST, etag=None) is not None
        assert reader.answers == {str(limit.status_code): 1, "200": 1}


# --- pages --------------------------------------------------------------------------------------------------


def test_an_unchanged_page_is_none_and_costs_what_github_says() -> None:
    budget = Budget("token-1", remaining=10)
    served = Served(httpx2.Response(304, headers={"x-ratelimit-remaining": "10"}))
    with reading(served, budget=budget) as reader:
        assert reader.page(FIRST, etag='"a"') is None
        assert reader.answers == {"304": 1}
    assert budget.remaining == 10
    # Nobody asked whether it had changed.
    assert refused(Served(httpx2.Response(304))).reason == "unexpected"


def test_records_come_out_as_they_were_sent_garbage_included() -> None:
    body = (
        b'\xef\xbb\xbf\n[ {"id":1 , "body":"a ] , } \\" b"}\r\n,\t{"id": 2, "x": NaN, "y": "\\ud800\xff"} , nonsense here,'
        b' {"id":3,"id":4}, [[]], null, {"deep":' + b"[" * 2000 + b"]" * 2000 + b"}]  \n"
    )  # fmt: skip
    with reading(Served(httpx2.Response(200, content=body))) as reader:
        page = reader.page(FIRST, etag=None)
    assert page is not None
    assert page.records == (
        b'{"id":1 , "body":"a ] , } \\" b"}',
        b'{"id": 2, "x": NaN, "y": "\\ud800\xff"}',
        b"nonsense here",
        b'{"id":3,"id":4}',
        b"[[]]",
        b"null",
        b'{"deep":' + b"[" * 2000 + b"]" * 2000 + b"}",
    )


@pytest.mark.parametrize("body", ["[]", " [ ] ", "[\n]\n"])
def test_an_empty_list_is_a_list(body: str) -> None:
    with reading(Served(httpx2.Response(200, text=body))) as reader:
        assert reader.page(FIRST, etag=None) == ListPage(FIRST, None, None, ())


@pytest.mark.parametrize(
    "body",
    [
        "", "{}", '{"message": "ok"}', "null", "<!DOCTYPE html><html><body>[]</body></html>", "[", "]", '[{"id":1}',
        '[{"id":1},', '[{"id":1,"body":"cut', '[{"id":1}]]', '[{"id":1}][{"id":2}]', '[{"id":1}] <!-- -->', "[,]",
        '[{"id":1},]', '[{"id":1},,{"id":2}]', '[{"id":1]', '["unending]', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_whole_list_is_garbled_and_not_empty(body: str) -> None:
    error = refused(Served(httpx2.Response(200, text=body)))
    assert error.reason == "garbled"
    assert error.hint


def test_any_list_is_cut_into_what_json_reads(shared_data: Path) -> None:
    exchange = recorded(shared_data, "list_releases_github_hub_2019.json")[0]
    for indent in (None, 2):
        body = json.dumps(exchange["body"], indent=indent).encode()
        assert [json.loads(raw) for raw in array_elements(body)] == exchange["body"]
        for stop in range(1, len(body) - 1, 997):
            with pytest.raises(CutShortError):
                array_elements(body[:stop])


@pytest.mark.parametrize(
    ("etag", "kept"),
    [('W/"a"', 'W/"a"'), ("", None), ("é", None), ('"' + "x" * 600 + '"', None)],
)
def test_an_etag_that_no_header_could_carry_is_none(etag: str, kept: str | None) -> None:
    with reading(
        Served(lambda _: httpx2.Response(200, json=[], headers=[(b"etag", etag.encode())]))
    ) as reader:
        page = reader.page(FIRST, etag=None)
    assert page is not None
    assert page.etag == kept


@pytest.mark.parametrize(
    "message",
    [
        "In order to keep the API fast for everyone, pagination is limited for this resource.",
        "Only the first 1000 results are available.",
        "Only the first 10000 results are available.",
    ],
)
def test_a_list_cut_at_its_cap_says_so(message: str) -> None:
    with reading(Served(says(422, message))) as reader:
        assert reader.page(f"{FIRST}&page=11", etag=None) == ListPage(
            f"{FIRST}&page=11", None, None, (), truncated=True
        )


@pytest.mark.parametrize(
    ("page", "records", "cut"), [(10, 100, True), (100, 100, True), (10, 99, False), (9, 100, False)]
)
def test_a_list_that_ends_at_the_cap_may_have_been_cut(page: int, records: int, *, cut: bool) -> None:
    with reading(Served(page_of(*[{"id": n} for n in range(records)]))) as reader:
        found = reader.page(f"{FIRST}&page={page}", etag=None)
    assert found is not None
    assert found.truncated is cut


# --- where it leads -----------------------------------------------------------------------------------------


def test_a_renamed_repository_is_followed() -> None:
    served = Served(
        says(301, "Moved Permanently", {"Location": f"{API}/repositories/77"}),
        says(200, id=77, full_name="acme/tool-ng"),
    )
    with reading(served) as reader:
        assert reader.identify("acme/tool") == Identity(77, "acme/tool-ng")
        assert reader.answers == {"301": 1, "200": 1}
    assert served.urls == [f"{API}/repos/acme/tool", f"{API}/repositories/77"]
    assert all(request.headers["authorization"] for request in served.requests)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    "location", ["/repositories/77", f"{API}/repositories/77", f"{API}:443/repositories/77"]
)
def test_redirects_are_followed_on_the_same_host(status: int, location: str) -> None:
    served = Served(says(status, "", {"Location": location}), says(200, id=77, full_name="acme/tool"))
    with reading(served) as reader:
        assert reader.identify("acme/tool").external_id == 77


ELSEWHERE = [
    "https://evil.example.com/repositories/77",
    "http://api.example.com/repositories/77",
    "https://api.example.com:8443/repositories/77",
    "https://api.example.com.evil.example/repositories/77",
    "//evil.example.com/repositories/77",
    "https://api.example.com@evil.example.com/",
    "https://user:password@api.example.com/repositories/77",
    "https:\\\\evil.example.com/",
    "ftp://api.example.com/repositories/77",
    "javascript:alert(1)",
    "https://api.example.com./repositories/77",
]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_no_other_host_ever_gets_the_secret(target: str) -> None:
    for answer in (says(302, "", {"Location": target}), page_of({"id": 1}, link=f'<{target}>; rel="next"')):
        served = Served(answer)
        assert refused(served).reason in ("redirected", "garbled")
        assert {url[: len(API) + 1] for url in served.urls} == {f"{API}/"}
    served = Served(page_of())
    assert refused(served, lambda reader: reader.page(target, etag=None)).reason in ("redirected", "garbled")
    assert served.requests == []


def test_plain_http_may_lead_to_https_and_not_back() -> None:
    served = Served(
        says(301, "", {"Location": "https://api.example.com/repos/acme/tool"}),
        says(200, id=7, full_name="a/b"),
    )
    with reading(served, api="http://api.example.com") as reader:
        assert reader.identify("acme/tool").name == "a/b"


def test_redirects_in_a_circle_end() -> None:
    served = Served(lambda request: says(302, "", {"Location": f"{request.url}x"})(request))
    assert refused(served, lambda reader: reader.identify("acme/tool")).reason == "redirected"
    assert len(served.requests) == 6
    served = Served(lambda request: says(302, "", {"Location": str(request.url)})(request))
    assert refused(served, lambda reader: reader.identify("acme/tool")).reason == "redirected"
    assert len(served.requests) == 1


def test_a_list_that_goes_on_with_itself_or_nobody_knows_where_is_refused() -> None:
    assert refused(Served(page_of({"id": 1}, link=f'<{FIRST}>; rel="next"'))).reason == "redirected"
    assert refused(Served(page_of({"id": 1}, link=f'<{FIRST}&page=2>; rel="ne'))).reason == "garbled"
    assert refused(Served(page_of({"id": 1}, link=f'<{FIRST}{"x" * 9000}>; rel="next"'))).reason == "garbled"


def test_the_path_of_github_enterprise_is_kept() -> None:
    served = Served(says(200, id=7, full_name="acme/tool"))
    with reading(served, api="https://github.example.com/api/v3/") as reader:
        reader.identify("acme/tool")
        reader.identify(7)
        assert (
            reader.first_url(ACME)
            == "https://github.example.com/api/v3/repositories/77/releases?per_page=100"
        )
    assert served.urls == [
        "https://github.example.com/api/v3/repos/acme/tool",
        "https://github.example.com/api/v3/repositories/7",
    ]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, {"message": "Bad credentials"}, "unauthorized"),
        (403, {"message": "Resource not accessible by integration"}, "forbidden"),
        (403, {"message": "Repository access blocked", "block": {"reason": "tos"}}, "blocked"),
        (403, {"message": "Repository access blocked"}, "blocked"),
        (404, {"message": "Not Found"}, "not-found"),
        (404, {"message": "no Route matched with those values"}, "garbled"),
        (404, ["Not Found"], "garbled"),
        (410, {"message": "This repository was deleted"}, "not-found"),
        (451, {"message": "Repository access blocked", "block": {"reason": "dmca"}}, "blocked"),
        (500, {"message": "Server Error"}, "server-error"),
        (502, {"message": "Bad Gateway"}, "server-error"),
        (422, {"message": "Validation Failed"}, "unexpected"),
        (418, {}, "unexpected"),
        (202, [], "unexpected"),
        (300, {}, "unexpected"),
        (301, {}, "unexpected"),
    ],
)
def test_refusals_are_told_apart(status: int, body: object, reason: str) -> None:
    error = refused(Served(httpx2.Response(status, json=body)))
    assert error.reason == reason
    assert error.hint or reason == "unexpected"
    assert str(status) in str(error)


@pytest.mark.parametrize("answer", ["<html>404 Not Found</html>", '{"message": "Not found here"}', ""])
def test_only_githubs_own_404_says_that_a_release_is_gone(answer: str) -> None:
    error = refused(Served(httpx2.Response(404, text=answer)), lambda reader: reader.release(ACME, 1))
    assert error.reason == "garbled"


@pytest.mark.parametrize("body", ["[]", '{"id": 1', "", "<html>", '{"id": 1} {"id": 2}'])
def test_a_release_that_is_no_whole_object_is_garbled(body: str) -> None:
    assert refused(Served(httpx2.Response(200, text=body)), lambda r: r.release(ACME, 1)).reason == "garbled"


@pytest.mark.parametrize(
    "body",
    [{}, {"id": 1}, {"id": "1", "full_name": "a/b"}, {"id": True, "full_name": "a/b"}, {"id": 2**63, "full_name": "a/b"},
     {"id": -1, "full_name": "a/b"}, {"id": 1, "full_name": "a/b/../c"}, {"id": 1, "full_name": "a/...b"}, [1]],
)  # fmt: skip
def test_an_answer_that_is_no_repository_is_garbled(body: object) -> None:
    assert (
        refused(Served(httpx2.Response(200, json=body)), lambda r: r.identify("acme/tool")).reason
        == "garbled"
    )


def test_a_name_that_is_none_is_not_asked_for() -> None:
    served = Served(page_of())
    for name in ("acme", "acme/../../user", "acme/tool?x=1", "acme/tool/releases", ""):
        assert refused(served, lambda reader, name=name: reader.identify(name)).reason == "not-found"
    assert served.requests == []


def test_what_the_forge_says_is_quoted_on_one_line_and_without_the_secret() -> None:
    for shown in (f"Bearer {SECRET}", SECRET):
        message = f"You sent\n{shown}\x1b[31m" + "!" * 5000
        for answer in (says(401, message), lambda _, m=message: httpx2.Response(500, text=" " * 700 + m)):
            text = str(refused(Served(answer)))
            assert "You sent" in text
            assert "[secret]" in text
            assert "\n" not in text
            assert "\x1b" not in text
            assert len(text) < 500


# --- when it is not there -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError(f"no route for {SECRET}"),
        httpx2.ConnectTimeout("slow"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("gone"),
        httpx2.UnsupportedProtocol("what"),
        httpx2.ProxyError("no"),
    ],
)
def test_no_answer_is_unreachable_and_leaks_nothing(error: Exception) -> None:
    failure = refused(Served(error))
    assert failure.reason == "unreachable"
    assert failure.hint


def test_a_dead_github_costs_three_time_outs_and_then_none() -> None:
    clock, budget = ManualClock(), Budget("token-1")
    served = Served(httpx2.ConnectTimeout("slow"))
    with reading(served, clock, budget=budget) as reader:
        for _ in range(3):
            with pytest.raises(SourceRefused):
                reader.page(FIRST, etag=None)
        for _ in range(50):
            with pytest.raises(RateLimited) as caught:
                reader.page(FIRST, etag=None)
        assert caught.value.kind == "unreachable"
        assert len(served.requests) == 3
        clock.time = caught.value.until
        with pytest.raises(SourceRefused):
            reader.page(FIRST, etag=None)
        assert reader.answers == {"unreachable": 4}
    first = (caught.value.until - ManualClock().now()).total_seconds()
    assert 30 <= first <= 38
    assert budget.forbidden_until(clock.now()) is not None


def test_retry_after_on_a_server_error_is_a_window() -> None:
    answer = says(503, "Unicorn", {"Retry-After": "90"})
    with reading(Served(answer)) as reader, pytest.raises(RateLimited) as caught:
        reader.page(FIRST, etag=None)
    assert caught.value.kind == "unreachable"
    assert (caught.value.until - ManualClock().now()).total_seconds() == 90


def test_a_429_behind_a_redirect_is_a_limit_too() -> None:
    served = Served(says(301, "", {"Location": "/repositories/77"}), says(429, "slow down"))
    with reading(served) as reader, pytest.raises(RateLimited):
        reader.identify("acme/tool")


def test_an_answer_without_an_end_is_cut_off() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"[" * 65_536

    served = Served(lambda _: httpx2.Response(200, content=endless()))
    error = refused(served, most_bytes=1 << 20)
    assert error.reason == "garbled"
    bomb = gzip.compress(b"[" + b" " * (8 << 20) + b"]")
    assert len(bomb) < 20_000
    packed = Served(
        lambda _: httpx2.Response(200, content=iter([bomb]), headers={"content-encoding": "gzip"})
    )
    assert refused(packed, most_bytes=1 << 20).reason == "garbled"


@pytest.mark.parametrize("told", ["3", "1000", "99999999999999999999"])
def test_a_length_that_does_not_fit_is_garbled(told: str) -> None:
    answer = httpx2.Response(200, content=iter([b'[{"id":1}]']), headers={"content-length": told})
    error = refused(Served(lambda _: answer))
    assert error.reason == "garbled"


def test_packing_that_cannot_be_undone_is_garbled() -> None:
    for body in (b"no gzip at all", gzip.compress(b'[{"id":1}]' * 50)[:-30]):
        answer = httpx2.Response(200, content=iter([body]), headers={"content-encoding": "gzip"})
        assert refused(Served(lambda _, a=answer: a)).reason == "garbled"


# --- real sockets -------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def listening(*connections: list[bytes | float]) -> Generator[tuple[str, list[bytes]]]:
    """A server that sends, over one connection after the other, one piece for each request; a number: seconds between
    its bytes. It closes a connection when its pieces are used up."""
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for pieces in connections:
            client, _ = server.accept()
            with client:
                for piece in pieces:
                    request = client.recv(65_536)
                    if not request:
                        break
                    heard.append(request)
                    if isinstance(piece, float):
                        drip(client, piece)
                    else:
                        client.sendall(piece)

    def drip(client: socket.socket, pause_s: float) -> None:
        client.sendall(HEAD + b"\r\n")
        pause = threading.Event()
        try:
            while True:
                client.sendall(b"[")
                pause.wait(pause_s)
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", heard
    thread.join(10)
    server.close()


@contextmanager
def over_sockets(api: str, timeout_s: float = 5) -> Generator[Reader]:
    forge = GitHub(
        api, [Token("token-1", SecretStr(f"Bearer {SECRET}"))], timeout_s=timeout_s, clock=SystemClock()
    )
    with forge.reader("token-1", Budget("token-1")) as reader:
        yield reader
    forge.close()


WHOLE = HEAD + b'Content-Length: 10\r\n\r\n[{"id":1}]'


def test_a_kept_connection_that_was_closed_is_no_failure() -> None:
    with listening([WHOLE, b""], [WHOLE]) as (api, heard), over_sockets(api) as reader:
        url = reader.first_url(ACME)
        assert reader.page(url, etag=None) is not None
        # The first connection takes the request and closes without a word.
        assert reader.page(url, etag=None) is not None
        assert reader.answers == {"200": 2}
    assert len(heard) == 3


def test_a_new_connection_that_is_closed_is_a_failure_at_once() -> None:
    with (
        listening([b""]) as (api, heard),
        over_sockets(api) as reader,
        pytest.raises(SourceRefused) as caught,
    ):
        reader.page(reader.first_url(ACME), etag=None)
    assert caught.value.reason == "unreachable"
    assert len(heard) == 1
    assert_secret_free(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b'Content-Length: 100\r\n\r\n[{"id":1}]',
        HEAD + b'Transfer-Encoding: chunked\r\n\r\na\r\n[{"id":1}]\r\n',
        HEAD + b'Connection: close\r\n\r\n[{"id":1},',
        HEAD + b"Content-Length: 0\r\n\r\n",
    ],
)
def test_a_body_that_is_cut_short_is_garbled(answer: bytes) -> None:
    with listening([answer]) as (api, _), over_sockets(api) as reader, pytest.raises(SourceRefused) as caught:
        reader.page(reader.first_url(ACME), etag=None)
    assert caught.value.reason == "garbled"
    assert_secret_free(caught.value)


def test_a_server_that_drips_is_given_up() -> None:
    with (
        listening([0.01]) as (api, _),
        over_sockets(api, 0.05) as reader,
        pytest.raises(SourceRefused) as caught,
    ):
        reader.page(reader.first_url(ACME), etag=None)
    assert caught.value.reason == "unreachable"


def test_no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with listening([WHOLE]) as (api, _), over_sockets(api) as reader:
        reader.page(reader.first_url(ACME), etag=None)
        assert SECRET not in repr(vars(reader))
    assert caplog.records
    assert SECRET not in caplog.text


# --- credentials from the settings --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def made(handler: Handler | None = None, clock: ManualClock | None = None, **options: Any) -> GitHub:
    transport = httpx2.MockTransport(handler or Served(page_of()))
    return github_from_settings(Settings(github_api_url=API, **options), clock or ManualClock(), transport)


def test_without_a_credential_github_is_asked_as_nobody() -> None:
    for token in (None, "", " , \n"):
        assert made(github_token=token).credentials() == ["anonymous"]


def test_each_token_is_a_credential_named_by_a_fingerprint() -> None:
    forge = made(github_token="ghp_one, ghp_two\nghp_three,,ghp_one")
    fingerprints = [
        hashlib.sha256(f"ghp_{name}".encode()).hexdigest()[:8] for name in ("one", "two", "three")
    ]
    assert forge.credentials() == [f"token-{fingerprint}" for fingerprint in fingerprints]
    assert "ghp_" not in repr(vars(forge)) + repr(forge)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"github_token": "ghp_é"}, "KB_GITHUB_TOKEN"),
        ({"github_token": "“ghp_one”"}, "KB_GITHUB_TOKEN"),
        ({"github_app_id": "12"}, "KB_GITHUB_APP_ID"),
        ({"github_app_private_key": "PEM"}, "private key"),
        ({"github_app_private_key_file": "/nowhere.pem"}, "private key"),
        ({"github_app_id": "12", "github_app_private_key": "x", "github_app_private_key_file": "y"}, "twice"),
        ({"github_app_id": "12", "github_app_private_key_file": "/nowhere.pem"}, "cannot be read"),
        ({"github_app_id": "12", "github_app_private_key": "no key at all"}, "private key"),
        ({"github_app_id": "a b", "github_app_private_key": "no key at all"}, "KB_GITHUB_APP_ID"),
    ],
)
def test_settings_that_contradict_each_other_say_what_to_do(options: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        made(**options)
    assert named in str(caught.value)
    assert caught.value.hint
    assert "no key at all" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "address",
    ["https://user:password@api.example.com", "https://", "https:///x", "https://a:b/", "api.example.com"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        GitHub(address, [Token("anonymous")], timeout_s=1, clock=ManualClock())
    assert "password" not in str(caught.value)


def test_a_credential_that_is_not_ours_is_refused() -> None:
    with pytest.raises(SettingsError), made().reader("token-00000000", Budget("token-00000000")):
        pass


class AppServer:
    """What GitHub does for an App: checks its JWT by the clock, lists installations on two pages, hands out tokens."""

    def __init__(self, pem: str, clock: ManualClock) -> None:
        self.clock = clock
        self.public = (
            jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).prepare_key(pem).public_key()
        )  # type: ignore[union-attr]
        self.requests: list[str] = []
        self.good: set[str] = set()
        self.issued = 0
        self.installations: list[dict[str, Any]] = [
            {"id": 5},
            {"id": 6, "suspended_at": "2026-01-01T00:00:00Z"},
        ]
        self.fail: Handler | None = None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.raw_path.decode()
        self.requests.append(f"{request.method} {path}")
        shown = request.headers["authorization"].removeprefix("Bearer ")
        if not path.startswith("/app"):
            ok = shown in self.good
            return (
                httpx2.Response(200, json=[])
                if ok
                else httpx2.Response(401, json={"message": "Bad credentials"})
            )
        self.check(shown)
        if self.fail is not None:
            return self.fail(request)
        if path.startswith("/app/installations?"):
            link = f'<{API}/app/installations?page=2>; rel="next"'
            first = path.endswith("per_page=100")
            return httpx2.Response(
                200,
                json=self.installations if first else [{"id": 7}],
                headers={"Link": link} if first else {},
            )
        self.issued += 1
        self.good = {f"ghs_{SECRET}{self.issued}"}
        ends = self.clock.now() + timedelta(hours=1)
        return httpx2.Response(
            201, json={"token": next(iter(self.good)), "expires_at": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        )

    def check(self, shown: str) -> None:
        claims = jwt.decode(
            shown, self.public, algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
        )
        now = self.clock.now().timestamp()
        assert claims["iss"] == "12"
        assert claims["iat"] == now - 60
        assert now < claims["exp"] <= now + 600


@pytest.fixture
def app(pem: str) -> tuple[AppServer, GitHub, ManualClock]:
    clock = ManualClock()
    server = AppServer(pem, clock)
    one_line = pem.replace("\n", "\\n")
    return server, made(server, clock, github_app_id="12", github_app_private_key=one_line), clock


Made = tuple[AppServer, GitHub, ManualClock]


def test_each_installation_of_an_app_is_a_credential(app: Made) -> None:
    server, forge, _ = app
    assert forge.credentials() == ["app-12/installation-5", "app-12/installation-7"]
    forge.credentials()
    assert server.requests == ["GET /app/installations?per_page=100", "GET /app/installations?page=2"]


def test_an_installations_token_is_kept_until_shortly_before_its_end(app: Made) -> None:
    server, forge, clock = app
    name = forge.credentials()[0]
    budget = Budget(name)
    for minutes, issued in ((0, 1), (30, 1), (54, 1), (55, 2), (56, 2), (111, 3)):
        clock.time = ManualClock().time + timedelta(minutes=minutes)
        with forge.reader(name, budget) as reader:
            assert reader.page(FIRST, etag=None) is not None
            assert server.issued == issued
    assert SECRET not in repr(vars(forge))


def test_a_refused_token_is_fetched_anew_once(app: Made) -> None:
    server, forge, _ = app
    name = forge.credentials()[0]
    with forge.reader(name, Budget(name)) as reader:
        reader.page(FIRST, etag=None)
        server.good = set()
        assert reader.page(FIRST, etag=None) is not None
        assert reader.answers == {"201": 2, "200": 2, "401": 1}
        server.installations = []

        class NeverGood(set[str]):
            def __contains__(self, _: object) -> bool:
                return False

        before = len(server.requests)
        server.good = NeverGood()
        server.fail = lambda _: httpx2.Response(
            201, json={"token": "ghs_x", "expires_at": "2026-03-01T13:00:00Z"}
        )
        with pytest.raises(SourceRefused) as caught:
            reader.page(FIRST, etag=None)
    assert caught.value.reason == "unauthorized"
    assert len(server.requests) - before == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(401, "A JSON web token could not be decoded"), "unauthorized"),
        (says(404, "Not Found"), "not-found"),
        (says(403, "This installation has been suspended"), "forbidden"),
        (says(201, token="ghs_\n", expires_at="2026-03-01T13:00:00Z"), "garbled"),
        (says(201, token="ghs_x"), "garbled"),
        (says(201, token="ghs_x", expires_at="soon"), "garbled"),
        (lambda _: httpx2.Response(200, text="<html>"), "unexpected"),
    ],
)
def test_a_token_that_cannot_be_had_says_why(app: Made, answer: Handler, reason: str) -> None:
    server, forge, _ = app
    name = forge.credentials()[0]
    server.fail = answer
    with forge.reader(name, Budget(name)) as reader, pytest.raises(SourceRefused) as caught:
        reader.page(FIRST, etag=None)
    assert caught.value.reason == reason
    assert_secret_free(caught.value)


def test_a_limit_on_fetching_the_token_is_the_credentials(app: Made) -> None:
    server, forge, clock = app
    name = forge.credentials()[0]
    budget = Budget(name)
    server.fail = says(429, "slow down", {"Retry-After": "60"})
    with forge.reader(name, budget) as reader:
        for _ in range(2):
            with pytest.raises(RateLimited):
                reader.page(FIRST, etag=None)
    assert budget.forbidden_until(clock.now()) == clock.now() + timedelta(seconds=60)
    assert len(server.requests) == 3


def test_the_list_of_installations_is_renewed_and_outlives_an_outage(app: Made) -> None:
    server, forge, clock = app
    forge.credentials()
    server.installations = [{"id": 5}, {"id": 9}]
    clock.time += timedelta(minutes=61)
    assert [name[-1] for name in forge.credentials()] == ["5", "9", "7"]
    server.fail = says(502, "Bad Gateway")
    clock.time += timedelta(minutes=61)
    asked = len(server.requests)
    for _ in range(5):
        assert len(forge.credentials()) == 3
    assert len(server.requests) == asked + 1
    server.fail = says(401, "gone")
    clock.time += timedelta(minutes=61)
    with pytest.raises(SourceRefused):
        forge.credentials()


def test_an_app_that_is_installed_nowhere_says_so(pem: str) -> None:
    nowhere = Served(page_of())
    options = {"github_app_id": "12", "github_app_private_key": pem}
    with pytest.raises(SettingsError) as caught:
        made(nowhere, **options).credentials()
    assert caught.value.hint
    assert len(made(nowhere, **options, github_token="ghp_one").credentials()) == 1


def test_tokens_go_on_when_the_app_cannot_be_asked(pem: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"github_app_id": "12", "github_app_private_key": pem}
    with pytest.raises(KbError):
        made(Served(says(401, "Bad")), **options).credentials()
    forge = made(Served(says(401, "Bad")), **options, github_token="ghp_one")
    assert len(forge.credentials()) == 1
    assert "App is not used" in caplog.text


def test_the_key_may_be_in_a_file(pem: str, tmp_path: Path) -> None:
    file = tmp_path / "app.pem"
    file.write_text(pem)
    clock = ManualClock()
    forge = made(AppServer(pem, clock), clock, github_app_id="12", github_app_private_key_file=str(file))
    assert len(forge.credentials()) == 2
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError):
        made(github_app_id="12", github_app_private_key_file=str(file))


def test_a_skewed_clock_does_not_shorten_a_window() -> None:
    clock = ManualClock()
    theirs = clock.now() + timedelta(hours=1)
    headers = {
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(int(theirs.timestamp()) + 600),
        "Date": email.utils.format_datetime(theirs, usegmt=True),
    }
    answer = says(403, "API rate limit exceeded", headers)
    with reading(Served(answer), clock) as reader, pytest.raises(RateLimited) as caught:
        reader.page(FIRST, etag=None)
    assert (caught.value.until - clock.now()).total_seconds() == 601
    assert caught.value.kind == "primary"
