"""The stand-in for GitHub: held against GitHub's schemas and recorded exchanges, and against what it says of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.github_server import GitHubServer
from tests.github_stand_in import StandIn
from tests.github_storms import KINDS, Kind
from tests.github_weather import Rates, Weather
from tests.simulated_clock import FIRST_MOMENT, SimulatedClock

API = "https://api.github.test"
# Of the connection, not of the answer: the stand-in neither compresses nor chunks.
OF_THE_WIRE = {"transfer-encoding", "content-encoding", "content-length"}


class Asker:
    """A client without any manners: asks when told, follows nothing, waits for nothing."""

    def __init__(self, stand_in: StandIn, token: str | None = "token-a") -> None:
        self._client = httpx2.Client(transport=httpx2.MockTransport(stand_in.handle), base_url=API)
        if token is not None:
            self._client.headers["Authorization"] = f"Bearer {token}"

    def get(self, url: str, *, etag: str | None = None, **headers: str) -> httpx2.Response:
        """One request."""
        return self._client.get(url, headers=headers | ({"If-None-Match": etag} if etag else {}))

    def post(self, url: str) -> httpx2.Response:
        """One request that asks for something to be made."""
        return self._client.post(url)

    def walk(self, url: str) -> list[dict[str, Any]]:
        """All records of a list by its next links."""
        records: list[dict[str, Any]] = []
        following: str | None = url
        while following:
            response = self.get(following)
            assert response.status_code == 200, response.text
            records += response.json()
            following = response.links.get("next", {}).get("url")
        return records


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def stand_in(clock: SimulatedClock) -> StandIn:
    return StandIn(clock, seed=7)


@pytest.fixture
def asker(stand_in: StandIn) -> Asker:
    return Asker(stand_in)


def recorded(shared_data: Path, name: str) -> list[dict[str, Any]]:
    """The exchanges of a recording."""
    text = (shared_data / "github_api" / "recorded" / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)["exchanges"]


def schema(shared_data: Path, name: str) -> dict[str, Any]:
    return json.loads((shared_data / "github_api" / f"{name}.schema.json").read_text(encoding="utf-8"))


def relations(header: str) -> list[tuple[str, str]]:
    """A Link header as (relation, path without the repository's number), in its order."""
    found = re.findall(r'<https://[^/]+(/[^>]*)>; rel="(\w+)"', header)
    return [(relation, re.sub(r"/repositories/\d+/", "/repositories/N/", path)) for path, relation in found]


# The schemas


def test_releases_satisfy_githubs_schemas(stand_in: StandIn, asker: Asker, shared_data: Path) -> None:
    checked = Counter[str]()
    validators = {
        name: jsonschema.Draft202012Validator(
            schema(shared_data, name), format_checker=jsonschema.FormatChecker()
        )
        for name in ("release", "release.api-2022-11-28", "release.api-2026-03-10")
    }
    stand_in.grant_push("token-a", stand_in.add_repository("acme/drafts"))
    stand_in.publish("acme/drafts", draft=True)
    for place in range(4):
        stand_in.add_repository(f"acme/tool-{place}", 25)
    for repository in stand_in.repositories.values():
        for release in asker.walk(f"/repositories/{repository.number}/releases?per_page=100"):
            for name, validator in validators.items():
                if name != "release" and _has_lost_author(release):
                    checked["lost authors"] += 1
                    continue
                validator.validate(release)
                checked[name] += 1
    assert min(checked[name] for name in validators) >= 80
    assert checked["lost authors"] >= 2


def _has_lost_author(release: dict[str, Any]) -> bool:
    return release["author"] is None


def test_a_list_satisfies_the_lists_schema(stand_in: StandIn, asker: Asker, shared_data: Path) -> None:
    stand_in.add_repository("acme/tool", 12)
    listed = asker.get("/repos/acme/tool/releases").json()
    assert len(listed) == 12
    jsonschema.validate(listed, schema(shared_data, "release_list"))


def test_a_release_has_every_field_of_a_recorded_one(
    stand_in: StandIn, asker: Asker, shared_data: Path
) -> None:
    stand_in.add_repository("acme/tool", 60)
    ours = asker.walk("/repos/acme/tool/releases?per_page=100")
    with_asset = next(release for release in ours if release["assets"] and release["author"])
    recording = recorded(shared_data, "get_release_200")[0]["body"]
    assert recording.keys() <= with_asset.keys()
    assert recording["assets"][0].keys() <= with_asset["assets"][0].keys()
    assert recording["author"].keys() <= with_asset["author"].keys()


def test_errors_satisfy_the_schemas_of_errors(
    clock: SimulatedClock, asker: Asker, stand_in: StandIn, shared_data: Path
) -> None:
    schemas = schema(shared_data, "errors")
    capped = StandIn(clock, page_cap=10)
    capped.add_repository("acme/tool", 30)
    stand_in.add_repository("acme/gone")
    stand_in.block("acme/gone")
    stand_in.revoke("bad")
    validation = Asker(capped).get("/repos/acme/tool/releases?per_page=10&page=2")
    basic = [
        asker.get("/repos/acme/none/releases"),
        asker.get("/repos/acme/gone"),
        Asker(stand_in, "bad").get("/rate_limit"),
        asker.get("/rate_limit", **{"X-GitHub-Api-Version": "1999-01-01"}),
    ]
    stand_in.storm("secondary", requests=1)
    basic.append(asker.get("/repos/acme/none"))
    assert [answer.status_code for answer in basic] == [404, 451, 401, 400, 403]
    for answer in basic:
        assert answer.json()["message"]
        jsonschema.validate(answer.json(), schemas["basic-error"])
    assert validation.status_code == 422
    jsonschema.validate(validation.json(), schemas["validation-error"])


# The recordings


def test_three_pages_look_like_the_three_recorded_ones(
    stand_in: StandIn, asker: Asker, shared_data: Path
) -> None:
    number = stand_in.add_repository("acme/tool", 30)
    following: str | None = "/repos/acme/tool/releases?per_page=10"
    for page in recorded(shared_data, "list_releases_paginated_pygithub_2022"):
        assert following is not None
        ours = asker.get(following)
        assert (ours.status_code, len(ours.json())) == (page["status"], len(page["body"]))
        missing = {name.lower() for name in page["headers"]} - set(ours.headers) - OF_THE_WIRE
        assert not missing
        assert relations(ours.headers["Link"]) == relations(page["headers"]["Link"])
        assert f"/repositories/{number}/releases?" in ours.headers["Link"]
        for name in ("ETag", "X-RateLimit-Reset", "X-RateLimit-Limit", "Content-Type", "Cache-Control"):
            assert _shape(ours.headers[name]) == _shape(page["headers"][name])
        following = ours.links.get("next", {}).get("url")
    assert following is None


def _shape(text: str) -> str:
    """A header's value with its digits and hashes made alike."""
    return re.sub(r"\d+", "0", re.sub(r"[0-9a-f]{32,64}", "hash", text))


def test_the_links_of_five_pages_are_as_recorded(stand_in: StandIn, asker: Asker, shared_data: Path) -> None:
    """Issues, not releases: the longest walk that there is a recording of."""
    stand_in.add_repository("acme/tool", 13)
    for page, exchange in enumerate(recorded(shared_data, "octokit_paginate_issues_headers"), start=1):
        ours = asker.get(f"/repos/acme/tool/releases?per_page=3&page={page}").headers["Link"]
        theirs = exchange["headers"]["link"].replace("/issues?", "/releases?")
        assert relations(ours) == relations(theirs)


@pytest.mark.parametrize(
    ("recording", "kind", "form"),
    [
        ("error_403_secondary", "secondary-no-retry-after", None),
        ("error_403_secondary_body_marker_only", "secondary-no-retry-after", None),
        ("error_429_secondary_retry_after", "429", "seconds"),
        ("error_429_secondary_retry_after_date", "429", "date"),
        ("error_429_no_retry_after", "429", "none"),
    ],
)
def test_refusals_look_like_the_recorded_ones(
    stand_in: StandIn, asker: Asker, shared_data: Path, recording: str, kind: Kind, form: Any
) -> None:
    theirs = recorded(shared_data, recording)[0]
    stand_in.storm(kind, retry_after=form, wait=8)
    ours = asker.get("/repos/acme/tool")
    assert ours.status_code == theirs["status"]
    assert ("Retry-After" in ours.headers) == ("Retry-After" in theirs["headers"])
    marker = "exceeded a secondary rate limit"
    assert marker in theirs["body"]["message"]
    assert marker in ours.json()["message"]
    assert int(ours.headers["X-RateLimit-Remaining"]) > 0
    if form == "seconds":
        assert ours.headers["Retry-After"] == theirs["headers"]["Retry-After"]
    if form == "date":
        sent, until = (parsedate_to_datetime(ours.headers[name]) for name in ("Date", "Retry-After"))
        assert until - sent == timedelta(seconds=8)


def test_other_errors_have_the_fields_of_the_recorded_ones(
    stand_in: StandIn, asker: Asker, shared_data: Path
) -> None:
    stand_in.add_repository("acme/tool", 1)
    stand_in.revoke("bad")
    pairs = [
        ("error_404_getReleaseDoesNotExist", asker.get("/repos/acme/tool/releases/9223372036854775807")),
        ("error_404_not_found", asker.get("/repos/acme/none")),
        ("error_401_bad_credentials", Asker(stand_in, "bad").get("/rate_limit")),
    ]
    for name, ours in pairs:
        theirs = recorded(shared_data, name)[0]
        assert ours.status_code == theirs["status"]
        assert ours.json()["message"] == theirs["body"]["message"]
        assert theirs["body"].keys() <= ours.json().keys()
    budget = recorded(shared_data, "rate_limit_200")[0]["body"]
    ours = asker.get("/rate_limit").json()
    assert ours["rate"].keys() == budget["rate"].keys()
    assert ours["resources"]["core"].keys() == budget["resources"]["core"].keys()


# ETags


def test_an_etag_changes_when_the_bytes_do_and_only_then(stand_in: StandIn) -> None:
    """Under all weather but storms, over pages and credentials."""
    numbers = [stand_in.add_repository(f"acme/tool-{place}", 7) for place in range(6)]
    lively = Rates(**dict.fromkeys(("insert", "edit", "delete", "rename", "hide"), 0.1), storm=0)
    weather = Weather(stand_in, 3, numbers, lively)
    askers = [Asker(stand_in, "token-a"), Asker(stand_in, "token-b")]
    known: dict[tuple[int, str], tuple[str, bytes]] = {}
    same = different = 0
    for _ in range(12):
        weather.step()
        for who, asker in enumerate(askers):
            for url in (
                f"/repositories/{n}/releases?per_page=5&page={page}" for n in numbers for page in (1, 2)
            ):
                answer = asker.get(url)
                etag, body = known.get((who, url), ("", b""))
                assert (answer.headers["ETag"] == etag) == (answer.content == body)
                again = asker.get(url, etag=etag or "none")
                assert (again.status_code == 304) == (answer.content == body)
                same += answer.content == body
                different += answer.content != body
                known[who, url] = (answer.headers["ETag"], answer.content)
    assert same > 50
    assert different > 50


def test_etags_differ_by_credential_and_page(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 4)
    stand_in.add_repository("acme/empty")
    stand_in.add_repository("acme/empty-too")
    urls = ["/repos/acme/tool/releases?per_page=2", "/repos/acme/tool/releases?per_page=2&page=2"]
    urls += ["/repos/acme/empty/releases", "/repos/acme/empty-too/releases", "/repos/acme/tool"]
    seen = [who.get(url).headers["ETag"] for who in (asker, Asker(stand_in, "token-b")) for url in urls]
    assert len(set(seen)) == len(seen) == 10
    assert all(etag.startswith('W/"') for etag in seen)
    assert Asker(stand_in, "token-b").get(urls[0], etag=seen[0]).status_code == 200


def test_the_address_asked_does_not_matter_to_the_etag(stand_in: StandIn, asker: Asker) -> None:
    number = stand_in.add_repository("acme/tool", 4)
    by_name = asker.get("/repos/acme/tool/releases?per_page=100")
    again = asker.get(f"/repositories/{number}/releases?per_page=100&page=1", etag=by_name.headers["ETag"])
    assert again.status_code == 304


def test_a_304_is_bare_and_free_for_a_token_but_not_for_nobody(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 5)
    url = "/repos/acme/tool/releases?per_page=2"
    for who, cost in ((asker, 0), (Asker(stand_in, None), 1)):
        first = who.get(url)
        assert "Link" in first.headers
        again = who.get(url, etag=first.headers["ETag"])
        assert (again.status_code, again.content) == (304, b"")
        assert "Link" not in again.headers
        assert again.headers["ETag"] == first.headers["ETag"]
        left = [int(answer.headers["X-RateLimit-Remaining"]) for answer in (first, again)]
        assert left[0] - left[1] == cost


def test_a_page_may_get_a_successor_and_stay_as_it_is(stand_in: StandIn, asker: Asker) -> None:
    """The trap for who keeps the Link header of a 200 behind a 304."""
    stand_in.add_repository("acme/tool", 3)
    url = "/repos/acme/tool/releases?per_page=3"
    first = asker.get(url)
    assert "Link" not in first.headers
    stand_in.publish("acme/tool", created_at=datetime(2001, 1, 1, tzinfo=UTC))
    assert asker.get(url, etag=first.headers["ETag"]).status_code == 304
    assert "next" in asker.get(url).links


def test_several_etags_and_the_star_match(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 1)
    etag = asker.get("/repos/acme/tool").headers["ETag"]
    assert asker.get("/repos/acme/tool", etag=f'"x", {etag.removeprefix("W/")}').status_code == 304
    assert asker.get("/repos/acme/tool", etag="*").status_code == 304
    assert asker.get("/repos/acme/tool", etag='"x"').status_code == 200


# Limits and forbidden windows


def test_the_hour_is_spent_and_comes_back(clock: SimulatedClock) -> None:
    stand_in = StandIn(clock, limits={"token-a": 3})
    stand_in.add_repository("acme/tool", 1)
    asker = Asker(stand_in)
    clock.advance(0.7)
    answers = [asker.get("/repos/acme/tool") for _ in range(3)]
    assert [answer.headers["X-RateLimit-Remaining"] for answer in answers] == ["2", "1", "0"]
    assert not stand_in.forbidden_requests()
    clock.advance(100)
    refused = asker.get("/repos/acme/tool", etag=answers[0].headers["ETag"])
    assert refused.status_code == 403
    assert refused.headers["X-RateLimit-Remaining"] == "0"
    assert "rate limit exceeded" in refused.json()["message"]
    assert "token-a" not in refused.text
    assert [entry.at for entry in stand_in.forbidden_requests()] == [clock.now()]
    reset = int(refused.headers["X-RateLimit-Reset"])
    assert reset == int(FIRST_MOMENT.timestamp()) + 3_600
    clock.advance(reset - clock.now().timestamp())
    assert asker.get("/repos/acme/tool").headers["X-RateLimit-Remaining"] == "2"
    assert len(stand_in.forbidden_requests()) == 1


def test_nobody_has_sixty_and_credentials_have_each_their_own(stand_in: StandIn) -> None:
    stand_in.add_repository("acme/tool", 1)
    limits = [
        Asker(stand_in, who).get("/repos/acme/tool").headers["X-RateLimit-Limit"] for who in (None, "token-a")
    ]
    assert limits == ["60", "5000"]
    stand_in.storm("primary", credential="token-a")
    assert Asker(stand_in, "token-a").get("/repos/acme/tool").status_code == 403
    assert Asker(stand_in, "token-b").get("/repos/acme/tool").status_code == 200


def test_what_is_free_and_what_is_not(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 1)
    stand_in.rename("acme/tool", "acme/new")
    for url, used in (("/rate_limit", 0), ("/repos/acme/tool", 1), ("/repos/acme/none", 2), ("/nothing", 3)):
        assert asker.get(url).headers["X-RateLimit-Used"] == str(used)
    for kind in ("500", "502-html", "secondary"):
        stand_in.storm(kind, requests=1, wait=1, retry_after="seconds")
        asker.get("/repos/acme/new")
    assert stand_in.allowance("token-a").used == 3


@pytest.mark.parametrize(
    ("kind", "form", "wait", "holds"),
    [
        ("secondary", "seconds", 30, 30),
        ("429", "seconds", 90, 90),
        ("429", "none", 5, 60),
        ("secondary-no-retry-after", None, 5, 60),
    ],
)
def test_a_secondary_refusal_holds_and_is_prolonged(
    clock: SimulatedClock, stand_in: StandIn, asker: Asker, kind: Kind, form: Any, wait: float, holds: float
) -> None:
    stand_in.add_repository("acme/tool", 1)
    stand_in.storm(kind, requests=1, wait=wait, retry_after=form)
    first = asker.get("/repos/acme/tool")
    assert not stand_in.forbidden_requests()
    clock.advance(holds - 0.01)
    early = asker.get("/repos/acme/tool")
    assert early.status_code == first.status_code
    assert early.headers.get("Retry-After") == first.headers.get("Retry-After")
    clock.advance(holds - 0.01)
    asker.get("/repos/acme/tool")
    assert len(stand_in.forbidden_requests()) == 2
    assert Asker(stand_in, "token-b").get("/repos/acme/tool").status_code == 200
    clock.advance(holds)
    assert asker.get("/repos/acme/tool").status_code == 200
    assert len(stand_in.forbidden_requests()) == 2


@pytest.mark.parametrize(("early", "status"), [(0.0, 200), (0.1, 403)])
def test_who_obeys_a_date_to_the_second_is_not_blamed(
    clock: SimulatedClock, stand_in: StandIn, asker: Asker, early: float, status: int
) -> None:
    stand_in.add_repository("acme/tool", 1)
    clock.advance(0.9)
    stand_in.storm("secondary", requests=1, wait=20, retry_after="date")
    until = parsedate_to_datetime(asker.get("/repos/acme/tool").headers["Retry-After"])
    clock.advance((until - clock.now()).total_seconds() - early)
    assert asker.get("/repos/acme/tool").status_code == status
    assert len(stand_in.forbidden_requests()) == (status == 403)


def test_githubs_own_clock_may_be_ahead(clock: SimulatedClock) -> None:
    stand_in = StandIn(clock, limits={"*": 1}, skew=300)
    stand_in.add_repository("acme/tool", 1)
    answer = Asker(stand_in).get("/repos/acme/tool")
    assert parsedate_to_datetime(answer.headers["Date"]) == FIRST_MOMENT + timedelta(seconds=300)
    assert int(answer.headers["X-RateLimit-Reset"]) == FIRST_MOMENT.timestamp() + 3_600 + 300
    clock.advance(3_600)
    assert Asker(stand_in).get("/repos/acme/tool").status_code == 200


# Storms


def test_a_primary_storm_ends_when_it_says(clock: SimulatedClock, stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 1)
    stand_in.storm("primary", seconds=90)
    refused = asker.get("/repos/acme/tool")
    assert int(refused.headers["X-RateLimit-Reset"]) - clock.now().timestamp() == 90
    clock.advance(90)
    assert asker.get("/repos/acme/tool").status_code == 200
    assert not stand_in.forbidden_requests()


@pytest.mark.parametrize("kind", KINDS)
def test_every_storm_ends_by_its_count_its_time_and_by_calm(kind: Kind) -> None:
    for ending in ({"requests": 1}, {"seconds": 5.0}, {}):
        clock = SimulatedClock()
        stand_in = StandIn(clock, seed=4)
        stand_in.add_repository("acme/tool", 9)
        stand_in.storm(kind, **ending, delay=2)
        harmed = _outcome(stand_in)
        assert stand_in.log[-1].storm == kind
        assert (harmed == "served") == (kind == "slow")
        if not ending:
            stand_in.calm()
        # Longer than any refusal holds; a spent hour needs its own reset.
        clock.advance(3_700)
        assert _outcome(stand_in) == "served"
        assert stand_in.log[-1].storm is None
        assert not stand_in.forbidden_requests()


def _outcome(stand_in: StandIn) -> str:
    """What a plain request for a list comes to."""
    try:
        answer = Asker(stand_in).get("/repos/acme/tool/releases")
        complete = len(answer.json()) == 9
    except httpx2.TransportError:
        return "no answer"
    except ValueError:
        return "not JSON"
    return "served" if answer.status_code == 200 and complete else str(answer.status_code)


def test_a_truncated_answer_comes_both_loud_and_silent(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 9)
    whole = asker.get("/repos/acme/tool/releases")
    stand_in.storm("truncated", requests=20)
    seen = Counter[str]()
    for _ in range(20):
        try:
            answer = asker.get("/repos/acme/tool/releases")
        except httpx2.RemoteProtocolError:
            seen["loud"] += 1
            continue
        seen["silent"] += 1
        assert whole.content.startswith(answer.content)
        assert len(answer.content) < len(whole.content)
        assert answer.headers["ETag"] == whole.headers["ETag"]
    assert min(seen["loud"], seen["silent"]) >= 3


def test_garbage_is_never_a_list_of_releases(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 9)
    stand_in.storm("garbage", requests=60)
    bodies = {asker.get("/repos/acme/tool/releases").content for _ in range(60)}
    assert len(bodies) >= 6
    assert b"[]" not in bodies


def test_a_slow_answer_takes_its_time_or_all_of_the_clients_patience(
    clock: SimulatedClock, stand_in: StandIn
) -> None:
    stand_in.add_repository("acme/tool", 9)
    client = httpx2.Client(transport=httpx2.MockTransport(stand_in.handle), timeout=10)
    stand_in.storm("slow", requests=1, delay=4)
    assert client.get(f"{API}/repos/acme/tool").status_code == 200
    assert clock.slept == 4
    stand_in.storm("slow", requests=1, delay=40)
    with pytest.raises(httpx2.ReadTimeout):
        client.get(f"{API}/repos/acme/tool")
    assert clock.slept == 14
    assert [entry.status for entry in stand_in.log] == [200, None]


def test_a_redirect_away_is_seen_to_be_followed(stand_in: StandIn, asker: Asker) -> None:
    stand_in.storm("redirect-away", requests=1)
    location = asker.get("/repos/acme/tool/releases?page=2").headers["Location"]
    assert location.endswith("/repos/acme/tool/releases?page=2")
    assert not stand_in.strays
    asker.get(location)
    assert [stray.headers.get("Authorization") for stray in stand_in.strays] == ["Bearer token-a"]


def test_requests_of_a_credential_that_overlap_are_seen(clock: SimulatedClock) -> None:
    both_in = threading.Barrier(2, timeout=10)

    class Meeting(SimulatedClock):
        def sleep(self, seconds: float) -> None:
            both_in.wait()

    stand_in = StandIn(Meeting())
    stand_in.add_repository("acme/tool", 1)
    stand_in.storm("slow", requests=2, delay=1)
    threads = [threading.Thread(target=Asker(stand_in).get, args=("/repos/acme/tool",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Asker(stand_in).get("/repos/acme/tool")
    assert [entry.overlapping for entry in stand_in.log] == [False, True, False]


# Repositories


def test_a_rename_redirects_and_the_name_may_be_taken(stand_in: StandIn, asker: Asker) -> None:
    number = stand_in.add_repository("acme/old", 3)
    etag = asker.get("/repos/acme/old/releases").headers["ETag"]
    stand_in.rename("acme/old", "other/new")
    moved = asker.get("/repos/acme/old/releases?per_page=2&page=2")
    assert moved.status_code == 301
    assert moved.headers["Location"] == f"{API}/repositories/{number}/releases?per_page=2&page=2"
    assert moved.json()["url"] == moved.headers["Location"]
    assert asker.get(moved.headers["Location"]).status_code == 200
    # Every URL in every release has the name in it.
    assert asker.get(f"/repositories/{number}/releases", etag=etag).status_code == 200
    assert asker.get("/repos/Other/NEW").json()["full_name"] == "other/new"
    stranger = stand_in.reuse_name("acme/old")
    assert asker.get("/repos/acme/old").json()["id"] == stranger != number
    assert asker.get(f"/repositories/{number}").json()["full_name"] == "other/new"
    stand_in.rename(number, "other/newer")
    assert asker.get("/repos/other/new").status_code == 301
    assert asker.get("/repos/acme/old").status_code == 200


def test_removed_private_blocked_and_empty_are_told_apart(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/empty")
    stand_in.add_repository("acme/private", 1, private_to={"token-b"})
    stand_in.add_repository("acme/blocked", 1)
    stand_in.add_repository("acme/banned", 1)
    stand_in.block("acme/blocked")
    stand_in.block("acme/banned", "tos")
    gone = stand_in.add_repository("acme/gone", 1)
    stand_in.remove_repository("acme/gone")
    names = ("empty", "private", "blocked", "banned", "gone")
    seen = [asker.get(f"/repos/acme/{name}/releases").status_code for name in names]
    assert seen == [200, 404, 451, 403, 404]
    assert asker.get("/repos/acme/empty/releases").content == b"[]"
    assert Asker(stand_in, "token-b").get("/repos/acme/private/releases").status_code == 200
    assert Asker(stand_in, None).get("/repos/acme/private/releases").status_code == 404
    again = stand_in.add_repository("acme/gone", 1)
    assert asker.get("/repos/acme/gone").json()["id"] == again != gone


def test_a_bad_token_is_refused_also_for_what_is_public(stand_in: StandIn) -> None:
    stand_in.add_repository("acme/tool", 1)
    stand_in.revoke("bad")
    assert Asker(stand_in, "bad").get("/repos/acme/tool").status_code == 401
    assert Asker(stand_in, "ghs_never_issued").get("/repos/acme/tool").status_code == 401
    assert Asker(stand_in, None).get("/repos/acme/tool", Authorization="Basic eA==").status_code == 401


def test_drafts_are_for_those_who_may_push(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 2)
    draft = stand_in.publish("acme/tool", draft=True)
    assert draft["published_at"] is None
    stand_in.grant_push("maintainer", "acme/tool")
    url = f"/repos/acme/tool/releases/{draft['id']}"
    for who, listed, status in ((asker, 2, 404), (Asker(stand_in, "maintainer"), 3, 200)):
        assert len(who.walk("/repos/acme/tool/releases?per_page=1")) == listed
        assert who.get(url).status_code == status
    assert draft["id"] in stand_in.truth("acme/tool")
    published = stand_in.edit("acme/tool", draft["id"], draft=False)
    assert published["published_at"] is not None
    assert asker.get(url).json() == published


def test_a_request_without_a_user_agent_is_refused(stand_in: StandIn) -> None:
    request = httpx2.Request("GET", f"{API}/rate_limit")
    assert stand_in.handle(request).status_code == 403


# Releases


def test_the_list_and_the_truth_agree_over_pages(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 130)
    listed = asker.walk("/repos/acme/tool/releases?per_page=100")
    assert {release["id"]: release for release in listed} == stand_in.truth("acme/tool")
    created = [release["created_at"] for release in listed]
    assert created == sorted(created, reverse=True)


def test_a_backport_is_in_the_middle(stand_in: StandIn, clock: SimulatedClock, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 40)
    listed = asker.walk("/repos/acme/tool/releases")
    middle = datetime.fromisoformat(listed[20]["created_at"]) - timedelta(seconds=1)
    backport = stand_in.publish("acme/tool", created_at=middle)
    newest = stand_in.publish("acme/tool")
    places = [release["id"] for release in asker.walk("/repos/acme/tool/releases")]
    assert places.index(newest["id"]) == 0
    assert places.index(backport["id"]) == 22
    assert backport["published_at"] == newest["published_at"]


def test_what_happens_to_a_release_is_seen(stand_in: StandIn, clock: SimulatedClock, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 3)
    number = asker.get("/repos/acme/tool/releases").json()[1]["id"]
    url = f"/repos/acme/tool/releases/{number}"
    before = asker.get(url).json()
    clock.advance(60)
    stand_in.edit("acme/tool", number, body="New notes")
    stand_in.move_tag("acme/tool", number, "moved")
    stand_in.flip_prerelease("acme/tool", number)
    after = asker.get(url).json()
    assert (after["body"], after["tag_name"], after["prerelease"]) == (
        "New notes",
        "moved",
        not before["prerelease"],
    )
    assert after["html_url"].endswith("/moved")
    assert after["updated_at"] > before["updated_at"]
    assert after["created_at"] == before["created_at"]
    stand_in.delete("acme/tool", number)
    assert asker.get(url).status_code == 404
    assert number not in stand_in.truth("acme/tool")
    stand_in.restore("acme/tool", number)
    assert asker.get(url).json() == after
    with pytest.raises(TypeError, match="colour"):
        stand_in.edit("acme/tool", number, colour="red")
    with pytest.raises(KeyError):
        stand_in.delete("acme/tool", 1)


def test_a_stale_replica_lists_less_than_there_is(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 3)
    number = asker.get("/repos/acme/tool/releases").json()[1]["id"]
    stand_in.hide("acme/tool", number)
    assert len(asker.get("/repos/acme/tool/releases").json()) == 2
    assert asker.get(f"/repos/acme/tool/releases/{number}").status_code == 200
    assert number in stand_in.truth("acme/tool")
    stand_in.hide("acme/tool", number, hidden=False)
    assert len(asker.get("/repos/acme/tool/releases").json()) == 3


def test_a_list_drifts_between_two_pages_once(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 6)
    url = "/repos/acme/tool/releases?per_page=2"
    before = [release["id"] for release in asker.walk(url)]
    stand_in.drift("acme/tool", 1, lambda: stand_in.delete("acme/tool", before[0]))
    drifted = [release["id"] for release in asker.walk(url)]
    # The third release moved to the first page after that had been read.
    assert set(before) - set(drifted) == {before[2]}
    stand_in.drift("acme/tool", 2, lambda: stand_in.publish("acme/tool"))
    doubled = [release["id"] for release in asker.walk(url)]
    assert len(doubled) == len(set(doubled)) + 1
    assert len(asker.walk(url)) == 6


def test_a_list_ends_at_its_cap(clock: SimulatedClock) -> None:
    for links in (True, False):
        stand_in = StandIn(clock, page_cap=25, links_to_cap=links)
        stand_in.add_repository("acme/tool", 60)
        asker = Asker(stand_in)
        sizes = [
            len(asker.get(f"/repos/acme/tool/releases?per_page=10&page={page}").json()) for page in (1, 2, 3)
        ]
        assert sizes == [10, 10, 5]
        last = asker.get("/repos/acme/tool/releases?per_page=10&page=3")
        assert ("next" in last.links) == links
        refused = asker.get("/repos/acme/tool/releases?per_page=10&page=4")
        assert refused.status_code == 422
        assert "Only the first 25 results are available" in refused.json()["message"]


def test_strange_page_numbers_count_as_none(stand_in: StandIn, asker: Asker) -> None:
    stand_in.add_repository("acme/tool", 120)
    sizes = {
        query: len(asker.get(f"/repos/acme/tool/releases?{query}").json())
        for query in ("per_page=500", "per_page=0", "per_page=-1", "per_page=x", "page=0", "page=99")
    }
    assert list(sizes.values()) == [100, 30, 30, 30, 30, 0]


def test_releases_are_as_odd_as_real_ones(stand_in: StandIn) -> None:
    seen = Counter[str]()
    for place in range(40):
        stand_in.add_repository(f"acme/tool-{place}", 20)
        for release in stand_in.truth(f"acme/tool-{place}").values():
            body, tag = release["body"], release["tag_name"]
            seen["author gone"] += release["author"] is None
            seen["no body"] += body is None
            seen["empty body"] += body == ""
            seen["CRLF"] += "\r\n" in (body or "")
            seen["monorepo tag"] += "@" in tag or "/" in tag
            seen["no name"] += not release["name"]
            seen["pre-release"] += release["prerelease"]
            seen["assets"] += bool(release["assets"])
        tags = [release["tag_name"] for release in stand_in.truth(f"acme/tool-{place}").values()]
        assert len(set(tags)) == len(tags)
    assert len(seen) == 8
    assert all(8 <= count <= 600 for count in seen.values()), seen


def test_the_same_seed_makes_the_same_releases(clock: SimulatedClock) -> None:
    made: list[Any] = []
    for seed in (1, 1, 2):
        stand_in = StandIn(clock, seed=seed)
        stand_in.add_repository("acme/tool", 10)
        stand_in.publish("acme/tool")
        made.append(stand_in.truth("acme/tool"))
    assert made[0] == made[1] != made[2]


# GitHub Apps


def test_an_app_gets_tokens_that_expire(clock: SimulatedClock, stand_in: StandIn) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    stand_in.credentials.add_app("12", public.decode())
    stand_in.credentials.add_installation(7, "12", "acme")
    stand_in.add_repository("acme/private", 1, private_to={"installation-7"})
    app = Asker(stand_in, _signed(key, clock))
    assert [item["id"] for item in app.get("/app/installations").json()] == [7]
    issued = app.post("/app/installations/7/access_tokens")
    assert issued.status_code == 201
    assert datetime.fromisoformat(issued.json()["expires_at"]) == clock.now() + timedelta(hours=1)
    asker = Asker(stand_in, issued.json()["token"])
    assert asker.get("/repos/acme/private").status_code == 200
    second = Asker(stand_in, app.post("/app/installations/7/access_tokens").json()["token"])
    # Two tokens, one installation: one budget.
    assert second.get("/repos/acme/private").headers["X-RateLimit-Used"] == "2"
    assert app.post("/app/installations/8/access_tokens").status_code == 404
    assert app.get("/repos/acme/private").status_code == 404
    clock.advance(3_600)
    assert asker.get("/repos/acme/private").status_code == 401
    assert stand_in.log[-1].credential == "installation-7"


def test_a_web_token_must_be_in_time_and_rightly_signed(clock: SimulatedClock, stand_in: StandIn) -> None:
    key, other = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    stand_in.credentials.add_app("12", public.decode())
    assert _installations(stand_in, _signed(key, clock)) == 200
    assert _installations(stand_in, _signed(other, clock)) == 401
    assert _installations(stand_in, _signed(key, clock, iat=120)) == 401
    assert _installations(stand_in, _signed(key, clock, exp=900)) == 401
    assert _installations(stand_in, _signed(key, clock, exp=-1)) == 401
    assert _installations(stand_in, _signed(key, clock, app="13")) == 404
    assert _installations(stand_in, "a.b.c") == 401
    assert _installations(stand_in, "token-a") == 401


def _signed(key: rsa.RSAPrivateKey, clock: SimulatedClock, *, app: str = "12", **shift: int) -> str:
    now = int(clock.now().timestamp())
    claims = {"iss": app, "iat": now + shift.get("iat", -60), "exp": now + shift.get("exp", 540)}
    return jwt.encode(claims, key, algorithm="RS256")


def _installations(stand_in: StandIn, token: str) -> int:
    return Asker(stand_in, token).get("/app/installations").status_code


# The log


def test_the_log_says_who_asked_what_and_when(clock: SimulatedClock, stand_in: StandIn, asker: Asker) -> None:
    number = stand_in.add_repository("acme/tool", 3)
    etag = asker.get("/repos/acme/tool/releases?per_page=2").headers["ETag"]
    clock.advance(5)
    asker.get("/repos/acme/tool/releases?per_page=2", etag=etag)
    stand_in.storm("reset", requests=1)
    with pytest.raises(httpx2.TransportError):
        Asker(stand_in, None).get("/rate_limit")
    first, again, lost = stand_in.log
    assert (first.credential, first.path, first.query) == (
        "token-a",
        "/repos/acme/tool/releases",
        "per_page=2",
    )
    assert (first.status, first.repository, first.conditional) == (200, number, False)
    assert (again.at - first.at, again.status, again.conditional) == (timedelta(seconds=5), 304, True)
    assert (lost.credential, lost.status, lost.storm) == ("anonymous", None, "reset")
    assert stand_in.statuses == {("token-a", 200): 1, ("token-a", 304): 1, ("anonymous", None): 1}


def test_a_short_log_forgets_but_not_the_faults(clock: SimulatedClock) -> None:
    stand_in = StandIn(clock, log_limit=10, limits={"*": 1})
    for _ in range(50):
        Asker(stand_in).get("/nothing")
    assert len(stand_in.log) <= 10
    assert len(stand_in.forbidden_requests()) == 49


# Weather


def test_weather_is_the_same_for_the_same_seed() -> None:
    assert _weather_of(1) == _weather_of(1)
    assert _weather_of(1)[0] != _weather_of(2)[0]


def _weather_of(seed: int) -> tuple[list[Any], Any]:
    stand_in = StandIn(SimulatedClock(), seed=seed)
    numbers = [stand_in.add_repository(f"acme/tool-{place}", 5) for place in range(10)]
    weather = Weather(stand_in, seed, numbers, Rates(insert=0.2, edit=0.2, drift=0.2, rename=0.05))
    asker = Asker(stand_in)
    for _ in range(12):
        weather.step()
        for number in numbers:
            try:
                asker.get(f"/repositories/{number}/releases?per_page=100")
            except httpx2.TransportError:
                continue
    return weather.events, [stand_in.truth(number) for number in numbers]


def test_weather_does_everything_at_its_rates_and_settles() -> None:
    clock = SimulatedClock()
    stand_in = StandIn(clock, seed=5, limits={"*": 10**6})
    numbers = [stand_in.add_repository(f"acme/tool-{place}", 8) for place in range(100)]
    weather = Weather(stand_in, 5, numbers)
    for _ in range(300):
        weather.step()
        clock.advance(60)
    seen = Counter(event.kind for event in weather.events)
    expected = {"insert": 240, "edit": 180, "backport": 60, "delete": 60, "move_tag": 30, "rename": 15}
    for kind, count in expected.items():
        assert 0.5 * count <= seen[kind] <= 1.5 * count, (kind, seen[kind])
    assert {
        "flip_prerelease",
        "draft",
        "publish_draft",
        "reappear",
        "hide",
        "show",
        "reuse_name",
    } <= seen.keys()
    assert 15 <= sum(count for kind, count in seen.items() if kind.startswith("storm")) <= 45
    weather.calm()
    asker = Asker(stand_in, "fresh")
    for number in numbers[:20]:
        before = stand_in.truth(number)
        listed = asker.walk(f"/repositories/{number}/releases?per_page=100")
        public = {key for key, release in before.items() if not release["draft"]}
        assert {release["id"] for release in listed} == public
        assert stand_in.truth(number) == before


# Over HTTP


def test_over_http_it_answers_the_same_and_is_controlled(stand_in: StandIn) -> None:
    number = stand_in.add_repository("acme/tool", 5)
    with GitHubServer(stand_in) as server, httpx2.Client(base_url=server.url) as client:
        client.headers["Authorization"] = "Bearer token-a"
        first = client.get("/repos/acme/tool/releases?per_page=2")
        assert first.links["next"]["url"].startswith(f"{server.url}/repositories/{number}/releases?")
        assert client.get(first.links["next"]["url"]).status_code == 200
        unchanged = client.get(
            "/repos/acme/tool/releases?per_page=2", headers={"If-None-Match": first.headers["ETag"]}
        )
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        made = client.post("/_stand_in/publish", json={"repo": "acme/tool", "body": "Hello"}).json()["result"]
        assert client.get("/repos/acme/tool/releases").json()[0] == made
        truth = client.get("/_stand_in/truth", params={"repo": number}).json()
        assert truth[str(made["id"])] == made
        log = client.get("/_stand_in/log").json()
        assert [entry["status"] for entry in log] == [200, 200, 304, 200]
        assert [entry["path"] for entry in client.get("/_stand_in/log?after=3").json()] == [
            "/repos/acme/tool/releases"
        ]
        assert client.get("/_stand_in/statuses").json()[0] == {
            "credential": "token-a",
            "status": 200,
            "count": 3,
        }
        assert client.get("/_stand_in/forbidden").json() == []
        assert client.get("/_stand_in/repositories").json() == {"acme/tool": number}


def test_over_http_faults_are_faults_of_the_connection(stand_in: StandIn) -> None:
    stand_in.add_repository("acme/tool", 5)
    with GitHubServer(stand_in) as server, httpx2.Client(base_url=server.url) as client:
        seen = Counter[str]()
        for kind in ("reset", "truncated", "truncated", "truncated", "truncated", "502-html"):
            client.post("/_stand_in/storm", json={"kind": kind, "requests": 1}).raise_for_status()
            try:
                answer = client.get("/repos/acme/tool/releases")
                seen[f"{answer.status_code} {len(answer.content) > 5_000}"] += 1
            except httpx2.TransportError:
                seen["broken"] += 1
        assert seen["broken"] >= 2
        assert seen["502 False"] == 1
        assert client.get("/repos/acme/tool/releases").status_code == 200
        for path in ("nothing", "log/../x", "truth"):
            assert client.get(f"/_stand_in/{path}").status_code == 400
        for action, arguments in (("handle", {}), ("publish", {"repo": "acme/none"}), ("step", {})):
            assert client.post(f"/_stand_in/{action}", json=arguments).status_code == 400


def test_a_server_that_was_left_answers_no_kept_connection(stand_in: StandIn) -> None:
    server = GitHubServer(stand_in)
    with httpx2.Client(base_url=server.url) as client:
        with server:
            assert client.get("/rate_limit").status_code == 200
        with pytest.raises(httpx2.TransportError):
            client.get("/rate_limit")


@pytest.mark.slow
def test_the_program_prints_its_address_and_ends_on_sigterm() -> None:
    program = [
        sys.executable,
        "-m",
        "tests.github_server",
        "--port",
        "0",
        "--repositories",
        "2",
        "--seed",
        "1",
    ]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    with process, httpx2.Client(base_url=process.stdout.readline().strip()) as client:
        assert len(client.get("/repos/acme/tool-1/releases").json()) == 20
        assert client.post("/_stand_in/step").status_code == 200
        # A slow answer does not hold up the end.
        client.post("/_stand_in/storm", json={"kind": "slow", "requests": 1, "delay": 60})
        with pytest.raises(httpx2.ReadTimeout):
            client.get("/rate_limit", timeout=0.2)
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.slow
def test_it_costs_little_to_say_that_nothing_changed(clock: SimulatedClock) -> None:
    """Thousands of repositories are polled against it: its own cost must not be what is measured."""
    stand_in = StandIn(clock, limits={"*": 10**9})
    numbers = [stand_in.add_repository(f"acme/tool-{place}", 20) for place in range(200)]
    urls = [f"{API}/repositories/{number}/releases?per_page=100" for number in numbers]
    headers = {"Authorization": "Bearer token-a", "User-Agent": "test"}
    etags = [stand_in.handle(httpx2.Request("GET", url, headers=headers)).headers["ETag"] for url in urls]
    requests = [
        httpx2.Request("GET", url, headers=headers | {"If-None-Match": etag})
        for url, etag in zip(urls, etags, strict=True)
    ]
    started = time.process_time()
    for _ in range(10):
        assert all(stand_in.handle(request).status_code == 304 for request in requests)
    assert (time.process_time() - started) / 2_000 < 0.0003


def test_the_simulated_clock_only_goes_forward() -> None:
    clock = SimulatedClock()
    threads = [
        threading.Thread(target=lambda: [clock.sleep(0.5) for _ in range(100)] and None) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now() - FIRST_MOMENT == timedelta(seconds=200)
    assert clock.slept == 200
    clock.advance(1)
    assert clock.slept == 200
    with pytest.raises(ValueError, match="back"):
        clock.sleep(-1)
