"""Reading repositories and their releases from a forge whose API is like GitHub's: a Reader for any of them.

Belongs here: which requests are made, and what makes an answer the one that was asked for. Does not belong here: in what
one forge differs, which is its Dialect (`github`, `gitea`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from pydantic import SecretStr

from kb_platform.errors import BadRecord, RateLimited, SourceRefused
from kb_platform.sources.answers import Answer, Wording, garbled, refusal
from kb_platform.sources.connection import Connection
from kb_platform.sources.credentials import Credential
from kb_platform.sources.forge import Identity, ListPage
from kb_platform.sources.json_bytes import CutShortError, array_elements, whole_object
from kb_platform.sources.links import UnreadableLinkError, next_target
from kb_platform.sources.release import repository_name

# GitHub's ETags have 68 characters; one that a header or PostgreSQL could not hold is as good as none.
_LONGEST_ETAG = 512


@dataclass(frozen=True)
class Dialect:
    """In what forges differ. Paths begin with a slash and come behind the API's root.

    `is_absent`: whether a 404 is the forge's own word. `ends_early`: whether a page, with its address and its number of
    records, is where the forge stops listing although there may be more.
    """

    wording: Wording
    headers: Mapping[str, str]
    list_path: Callable[[Identity], str]
    release_path: Callable[[Identity, int], str]
    is_absent: Callable[[Answer], bool]
    says_truncated: Callable[[Answer], bool]
    ends_early: Callable[[str, int], bool]


class ReleaseReader:
    """See forge.Reader. `authority`: the connection over which the credential fetches its token, if it does."""

    def __init__(
        self, dialect: Dialect, credential: Credential, connection: Connection, authority: Connection
    ) -> None:
        self._dialect = dialect
        self._credential = credential
        self._connection = connection
        self._authority = authority

    @property
    def credential(self) -> str:
        """See forge.Reader."""
        return self._credential.name

    @property
    def answers(self) -> dict[str, int]:
        """See forge.Reader."""
        return dict(self._connection.answers)

    def identify(self, repository: str | int) -> Identity:
        """See forge.Reader."""
        answer = self._get(self._connection.api_url + _repository_path(repository))
        if answer.status != 200:
            raise self._refusal(answer)
        number, name = answer.document.get("id"), answer.document.get("full_name")
        if type(number) is not int or not 0 < number < 2**63 or not isinstance(name, str):
            raise self._garbled(answer, "no repository")
        try:
            return Identity(number, repository_name(name))
        except BadRecord:
            raise self._garbled(answer, "a repository without a proper name") from None

    def first_url(self, identity: Identity) -> str:
        """See forge.Reader."""
        return self._connection.api_url + self._dialect.list_path(identity)

    def page(self, url: str, *, etag: str | None) -> ListPage | None:
        """See forge.Reader."""
        answer = self._get(url, {"If-None-Match": etag} if etag else {})
        if answer.status == 304 and etag:
            return None
        if answer.status == 422 and self._dialect.says_truncated(answer):
            return ListPage(url, None, None, (), truncated=True)
        if answer.status != 200:
            raise self._refusal(answer)
        try:
            records = array_elements(answer.body)
            target = next_target(answer.headers.get("link"))
        except (CutShortError, UnreadableLinkError) as error:
            raise self._garbled(answer, f"no whole list: {error}") from None
        next_url = self._connection.resolve(target, answer.url) if target is not None else None
        if next_url is not None and next_url in (url, answer.url):
            raise self._dialect.wording.refused("redirected", f"the list at {url} goes on with itself")
        is_cut = next_url is None and self._dialect.ends_early(url, len(records))
        return ListPage(url, _etag(answer), next_url, records, truncated=is_cut)

    def release(self, identity: Identity, release_id: int) -> bytes | None:
        """See forge.Reader."""
        answer = self._get(self._connection.api_url + self._dialect.release_path(identity, release_id))
        if answer.status == 404 and self._dialect.is_absent(answer):
            return None
        if answer.status != 200:
            raise self._refusal(answer)
        try:
            return whole_object(answer.body)
        except CutShortError as error:
            raise self._garbled(answer, f"no whole release: {error}") from None

    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        sent = {**self._dialect.headers, **(headers or {})}
        answer = self._connection.get(url, self._authorization(), sent)
        if answer.status == 401 and self._credential.renew():
            answer = self._connection.get(url, self._authorization(), sent)
        return answer

    def _authorization(self) -> SecretStr | None:
        try:
            return self._credential.authorization(self._authority)
        except RateLimited as limit:
            # Nothing can be asked without the token: the credential waits as well, in every process.
            self._connection.budget.block(limit.until, limit.kind)
            raise

    def _refusal(self, answer: Answer) -> SourceRefused:
        is_absent = self._dialect.is_absent(answer)
        return refusal(answer, self._dialect.wording, is_absent=is_absent)

    def _garbled(self, answer: Answer, what: str) -> SourceRefused:
        return garbled(answer.url, self._dialect.wording, what)


def _repository_path(repository: str | int) -> str:
    if isinstance(repository, int):
        return f"/repositories/{repository}"
    try:
        return f"/repos/{quote(repository_name(repository))}"
    except BadRecord as error:
        raise SourceRefused("not-found", str(error)) from None


def _etag(answer: Answer) -> str | None:
    etag = answer.headers.get("etag", "").strip()
    is_sound = etag.isascii() and etag.isprintable() and len(etag) <= _LONGEST_ETAG
    return etag if etag and is_sound else None
