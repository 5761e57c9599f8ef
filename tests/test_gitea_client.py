"""The client of Gitea and Forgejo: in what they differ from GitHub, without a network."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs

import httpx2
import pytest
from pydantic import SecretStr

from kb_platform.clock import SystemClock
from kb_platform.errors import RateLimited, SettingsError, SourceRefused
from kb_platform.sources.budget import Budget
from kb_platform.sources.forge import Forge, Identity, Reader
from kb_platform.sources.gitea import Gitea
from kb_platform.sources.github_json import parse_release

HOST = "git.example.com"
API = f"https://{HOST}/api/v1"
SECRET = "0123456789abcdef0123456789abcdef01234567"
ACME = Identity(77, "acme/tool")
Handler = Callable[[httpx2.Request], httpx2.Response]


class StoppedClock:
    """Stands still."""

    def now(self) -> datetime:
        return datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a client does not wait")


def release(number: int, name: str = "acme/tool", host: str = HOST) -> dict[str, object]:
    """A release as Gitea 1.22 shows it."""
    return {
        "id": number,
        "tag_name": f"v1.{number}.0",
        "target_commitish": "main",
        "name": "",
        "body": "- a change\r\n- another",
        "url": f"https://{host}/api/v1/repos/{name}/releases/{number}",
        "html_url": f"https://{host}/{name}/releases/tag/v1.{number}.0",
        "tarball_url": f"https://{host}/{name}/archive/v1.{number}.0.tar.gz",
        "upload_url": f"https://{host}/api/v1/repos/{name}/releases/{number}/assets",
        "draft": False,
        "prerelease": number % 2 == 0,
        "created_at": "2026-02-01T10:00:00+01:00",
        "published_at": "2026-02-01T10:05:00+01:00",
        "author": {"id": 3, "login": "ada", "full_name": "", "email": "ada@noreply.example.com"},
        "assets": [],
    }


class Server:
    """A Gitea with one repository, under its present and its former name."""

    def __init__(self, releases: int = 0) -> None:
        self.releases = [release(number) for number in range(releases, 0, -1)]
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        path = request.url.path.removeprefix("/api/v1")
        query = request.url.query.decode()
        if path.startswith("/repos/acme/old"):
            target = f"/api/v1/repos/acme/tool{path.removeprefix('/repos/acme/old')}"
            return httpx2.Response(307, headers={"Location": target + (f"?{query}" if query else "")})
        if path in ("/repos/acme/tool", "/repositories/77"):
            return httpx2.Response(200, json={"id": 77, "full_name": "acme/tool", "private": False})
        if path == "/repos/acme/tool/releases":
            return self.page(query)
        for found in self.releases:
            if path == f"/repos/acme/tool/releases/{found['id']}":
                return httpx2.Response(200, json=found)
        return absent()

    def page(self, query: str) -> httpx2.Response:
        asked = parse_qs(query)
        limit, page = int(asked["limit"][0]), int(asked.get("page", ["1"])[0])
        total = len(self.releases)
        last = -(-total // limit)
        address = f"<{API}/repos/acme/tool/releases?limit={limit}&page="
        links = [f'{address}{page + 1}>; rel="next"', f'{address}{last}>; rel="last"'] if page < last else []
        links += [f'{address}1>; rel="first"', f'{address}{page - 1}>; rel="prev"'] if page > 1 else []
        headers = {"X-Total-Count": str(total), **({"Link": ",".join(links)} if links else {})}
        return httpx2.Response(200, json=self.releases[(page - 1) * limit : page * limit], headers=headers)


def absent() -> httpx2.Response:
    """The message is in the language of the reader; the address tells that it is the server's own word."""
    said = {
        "errors": [],
        "message": "Das Ziel konnte nicht gefunden werden.",
        "url": f"https://{HOST}/api/swagger",
    }
    return httpx2.Response(404, json=said)


def made(handler: Handler, token: str | None = SECRET) -> Gitea:
    return Gitea(
        API,
        SecretStr(token) if token is not None else None,
        timeout_s=5,
        clock=StoppedClock(),
        transport=httpx2.MockTransport(handler),
        jitter=random.Random(1),
    )


@contextmanager
def reading(handler: Handler, token: str | None = SECRET) -> Generator[Reader]:
    forge = made(handler, token)
    name = forge.credentials()[0]
    with forge.reader(name, Budget(name)) as reader:
        yield reader
    forge.close()


def test_it_is_a_forge_named_by_its_address() -> None:
    forge: Forge = Gitea(f"{API}/", None, timeout_s=1, clock=SystemClock())
    assert (forge.name, forge.page_size, forge.credentials()) == (API, 50, [f"anonymous@{HOST}"])


def test_a_token_is_named_by_a_fingerprint_and_its_host() -> None:
    forge = made(Server())
    assert forge.credentials()[0].startswith("token-")
    assert forge.credentials()[0].endswith(f"@{HOST}")
    assert SECRET not in repr(vars(forge)) + str(forge.credentials())
    assert made(Server(), "  ").credentials() == [f"anonymous@{HOST}"]


def test_the_token_is_shown_as_gitea_wants_it() -> None:
    server = Server(1)
    with reading(server) as reader:
        reader.page(reader.first_url(ACME), etag=None)
    assert server.requests[0].headers["authorization"] == f"token {SECRET}"
    with reading(server, None) as reader:
        reader.page(reader.first_url(ACME), etag=None)
    assert "authorization" not in server.requests[1].headers


@pytest.mark.parametrize(("releases", "pages"), [(0, 1), (1, 1), (50, 1), (51, 2), (120, 3)])
def test_a_list_is_walked_to_its_end(releases: int, pages: int) -> None:
    server = Server(releases)
    numbers: list[int] = []
    with reading(server) as reader:
        url: str | None = reader.first_url(ACME)
        assert url == f"{API}/repos/acme/tool/releases?limit=50"
        while url is not None:
            page = reader.page(url, etag=None)
            assert page is not None
            assert (page.etag, page.truncated) == (None, False)
            numbers += [json.loads(raw)["id"] for raw in page.records]
            url = page.next_url
        assert reader.answers == {"200": pages}
    assert numbers == list(range(releases, 0, -1))


def test_its_releases_are_read_as_githubs_are() -> None:
    with reading(Server(2)) as reader:
        raw = reader.release(ACME, 2)
    assert raw is not None
    repository, read = parse_release(raw, repository=None, max_body_bytes=1 << 20)
    assert repository == "acme/tool"
    assert (read.release_id, read.tag, read.name, read.author, read.prerelease) == (
        2,
        "v1.2.0",
        "v1.2.0",
        "ada",
        True,
    )
    assert read.url == f"https://{HOST}/acme/tool/releases/tag/v1.2.0"
    assert read.published_at == datetime(2026, 2, 1, 9, 5, tzinfo=UTC)


def test_a_repository_is_found_by_its_former_name_and_by_its_number() -> None:
    server = Server(3)
    with reading(server) as reader:
        assert reader.identify("acme/old") == ACME
        assert reader.identify(77) == ACME
        page = reader.page(reader.first_url(Identity(77, "acme/old")), etag=None)
        assert page is not None
        assert len(page.records) == 3
        assert reader.release(Identity(77, "acme/old"), 3) is not None


def test_only_the_servers_own_404_says_that_a_release_is_gone() -> None:
    with reading(Server(1)) as reader:
        assert reader.release(ACME, 2) is None
    for answer in (
        httpx2.Response(404, text="<html>nginx</html>"),
        httpx2.Response(404, json={"message": "Not Found"}),
        httpx2.Response(404),
    ):
        with reading(lambda _, a=answer: a) as reader, pytest.raises(SourceRefused) as caught:
            reader.release(ACME, 2)
        assert caught.value.reason == "garbled"


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (401, "invalid username, password or token", "unauthorized"),
        (403, "token does not have at least one of required scope(s): [read:repository]", "forbidden"),
        (404, "The target couldn't be found.", "not-found"),
        (500, "Internal Server Error", "server-error"),
        (422, "whatever", "unexpected"),
    ],
)
def test_refusals_are_told_apart(status: int, message: str, reason: str) -> None:
    answer = httpx2.Response(status, json={"message": message, "url": f"https://{HOST}/api/swagger"})
    with reading(lambda _: answer) as reader, pytest.raises(SourceRefused) as caught:
        reader.identify("acme/tool")
    assert caught.value.reason == reason
    assert message in str(caught.value)
    assert caught.value.hint or reason == "unexpected"
    assert "GITHUB" not in f"{caught.value} {caught.value.hint}".upper()


@pytest.mark.parametrize(
    ("status", "headers", "kind", "wait"),
    [
        (429, {"Retry-After": "30"}, "secondary", 30),
        (429, {}, "secondary", 60),
        (503, {"Retry-After": "120"}, "unreachable", 120),
    ],
)
def test_a_server_that_has_enough_is_left_alone(
    status: int, headers: dict[str, str], kind: str, wait: int
) -> None:
    asked: list[str] = []

    def overloaded(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(status, text="<html>later</html>", headers=headers)

    with reading(overloaded) as reader:
        for _ in range(2):
            with pytest.raises(RateLimited) as caught:
                reader.identify("acme/tool")
    assert len(asked) == 1
    assert caught.value.kind == kind
    assert caught.value.hint
    left = caught.value.until - StoppedClock().now()
    assert timedelta(seconds=wait) <= left <= timedelta(seconds=wait * 1.25)


def test_a_server_that_calls_itself_by_another_name_is_refused() -> None:
    link = '<http://localhost:3000/api/v1/repos/acme/tool/releases?limit=50&page=2>; rel="next"'
    answer = httpx2.Response(200, json=[release(1)], headers={"Link": link})
    with reading(lambda _: answer) as reader, pytest.raises(SourceRefused) as caught:
        reader.page(reader.first_url(ACME), etag=None)
    assert caught.value.reason == "redirected"
    assert "ROOT_URL" in (caught.value.hint or "")


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(SettingsError) as caught:
        made(Server(), "no\nheader")
    assert "KB_GITEA_TOKENS" in str(caught.value)
    with pytest.raises(SettingsError):
        Gitea("codeberg", None, timeout_s=1, clock=SystemClock())
    with pytest.raises(SettingsError), made(Server()).reader("anonymous", Budget("anonymous")):
        pass
