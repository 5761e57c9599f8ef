"""Gitea and Forgejo (Codeberg): in what their API differs from GitHub's.

Does not belong here: requests and their answers (`reading`, `connection`), limits (`budget`).

They list a repository's releases by its name alone, answer a former name with a redirect, send no ETag for lists, and count
no budget: a server that has enough says 429 or 503.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import SecretStr

from kb_platform.clock import Clock
from kb_platform.errors import SettingsError
from kb_platform.sources.answers import Answer, Wording
from kb_platform.sources.budget import SECONDARY, UNREACHABLE, Budget
from kb_platform.sources.connection import MOST_BYTES, Switchboard
from kb_platform.sources.credentials import ANONYMOUS, Token, token
from kb_platform.sources.forge import Reader
from kb_platform.sources.reading import Dialect, ReleaseReader

# The most that a server gives, unless its administrator chose otherwise (`[api] MAX_RESPONSE_ITEMS`).
PAGE_SIZE = 50
_HINTS = {
    "unauthorized": "The token is wrong or revoked: make a new one and set it in KB_GITEA_TOKENS.",
    "forbidden": "The token lacks the right `read:repository`, or the server wants a login: see KB_GITEA_TOKENS.",
    "not-found": "The repository is gone, or private and not for this token: check its name and KB_GITEA_TOKENS.",
    "garbled": "Something between here and the server may answer in its place: check the address and the proxy.",
    "server-error": "The server is in trouble; polling tries again by itself.",
    "redirected": "The server uses another address for itself (its `ROOT_URL`) than the one that is watched: use that.",
    SECONDARY: "The server was asked too quickly; polling goes on by itself. Watch less of it, or less often.",
    UNREACHABLE: "Polling tries again by itself. Check the network, a proxy, and the server.",
}


class Gitea:
    """See forge.Forge. One server; `api_url` is `https://HOST/api/v1`. Close it when it is no longer needed.

    Raises SettingsError for an address that is none, and for a token that no header can carry.
    """

    def __init__(
        self,
        api_url: str,
        token: SecretStr | None,
        *,
        timeout_s: float,
        clock: Clock,
        transport: httpx2.BaseTransport | None = None,
        jitter: random.Random | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._name = api_url.rstrip("/")
        host = urlsplit(self._name).netloc
        wording = Wording(host, _HINTS)
        self._board = Switchboard(
            api_url, wording, timeout_s=timeout_s, clock=clock, transport=transport, jitter=jitter, most_bytes=most_bytes
        )  # fmt: skip
        self._credential = _credential(token, host)
        self._dialect = _dialect(wording)

    @property
    def name(self) -> str:
        """See forge.Forge."""
        return self._name

    @property
    def page_size(self) -> int:
        """See forge.Forge."""
        return PAGE_SIZE

    def credentials(self) -> Sequence[str]:
        """See forge.Forge."""
        return [self._credential.name]

    @contextmanager
    def reader(self, credential: str, budget: Budget) -> Generator[Reader]:
        """See forge.Forge. Raises SettingsError for a credential that is not ours."""
        if credential != self._credential.name:
            raise SettingsError(f"there is no credential {credential} for {self._name}")
        connection = self._board.connect(budget, Counter())
        yield ReleaseReader(self._dialect, self._credential, connection, connection)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._board.close()


def _credential(secret: SecretStr | None, host: str) -> Token:
    if secret is None or not secret.get_secret_value().strip():
        return Token(f"{ANONYMOUS}@{host}")
    made = token(secret.get_secret_value().strip(), "token", variable="KB_GITEA_TOKENS")
    return Token(f"{made.name}@{host}", made.header)


def _dialect(wording: Wording) -> Dialect:
    return Dialect(
        wording=wording,
        headers={"Accept": "application/json"},
        list_path=lambda identity: f"/repos/{quote(identity.name)}/releases?limit={PAGE_SIZE}",
        release_path=lambda identity, number: f"/repos/{quote(identity.name)}/releases/{number}",
        is_absent=_is_absent,
        # A list goes on as long as there is more: there is no cap.
        says_truncated=lambda _: False,
        ends_early=lambda _url, _records: False,
    )


def _is_absent(answer: Answer) -> bool:
    """The server's own word: its errors name the address of its documentation beside a message in the reader's tongue."""
    said = answer.document
    return isinstance(said.get("message"), str) and isinstance(said.get("url"), str)
