"""GitHub, and GitHub Enterprise: its credentials from the settings, and in what its API differs from others.

Does not belong here: requests and their answers (`reading`, `connection`), limits (`budget`), the App's tokens (`github_app`).
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import httpx2
from pydantic import SecretStr

from kb_platform.clock import Clock
from kb_platform.errors import SettingsError, SourceError
from kb_platform.settings import Settings
from kb_platform.sources.answers import Answer, Wording
from kb_platform.sources.budget import PRIMARY, SECONDARY, UNREACHABLE, Budget
from kb_platform.sources.connection import MOST_BYTES, Switchboard
from kb_platform.sources.credentials import ANONYMOUS, Credential, Token, tokens
from kb_platform.sources.forge import Reader
from kb_platform.sources.github_app import GitHubApp
from kb_platform.sources.reading import Dialect, ReleaseReader

_log = logging.getLogger(__name__)

PAGE_SIZE = 100
# Past the last release that it lists, GitHub answers 422, "Only the first 1000 results are available" (or 10000).
_CAPS = frozenset({1_000, 10_000})
_HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
_WORDING = Wording(
    "GitHub",
    {
        PRIMARY: "The hour's budget is spent; polling goes on by itself. A further token in KB_GITHUB_TOKEN, or a longer "
        "KB_POLL_INTERVAL_S, makes it last.",
        SECONDARY: "GitHub was asked too quickly; polling goes on by itself. Look whether something else uses the same token.",
        "unauthorized": "The token is wrong, expired or revoked: make a new one and set KB_GITHUB_TOKEN.",
        "forbidden": "The token may not read this repository: an organization may demand single sign-on or forbid such "
        "tokens.",
        "not-found": "The repository is gone, or private and not for this credential: check its name and the token's rights.",
        "blocked": "GitHub has taken the repository down; nothing on our side changes that. `kb watch remove` ends polling.",
        "garbled": "Something between here and GitHub may answer in its place: check KB_GITHUB_API_URL and the proxy.",
        "server-error": "GitHub is in trouble; polling tries again by itself. See its status page.",
        UNREACHABLE: "Polling tries again by itself. Check the network, a proxy, and GitHub's status page.",
        "redirected": "GitHub uses another address for itself than KB_GITHUB_API_URL: check it, and what stands between.",
    },
)


class GitHub:
    """See forge.Forge. Close it when it is no longer needed: it keeps connections open between readers.

    `app`: its installations are credentials too, preferred to tokens, because nobody else spends their budgets. Raises
    SettingsError for an address that is none. `jitter` spreads waiting.
    """

    def __init__(
        self,
        api_url: str,
        credentials: Sequence[Credential],
        *,
        timeout_s: float,
        clock: Clock,
        transport: httpx2.BaseTransport | None = None,
        app: GitHubApp | None = None,
        jitter: random.Random | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._board = Switchboard(
            api_url, _WORDING, timeout_s=timeout_s, clock=clock, transport=transport, jitter=jitter, most_bytes=most_bytes
        )  # fmt: skip
        self._fixed = list(credentials)
        self._app = app
        self._app_budget = Budget(app.name) if app else None

    @property
    def name(self) -> str:
        """See forge.Forge."""
        return "github"

    @property
    def page_size(self) -> int:
        """See forge.Forge."""
        return PAGE_SIZE

    def credentials(self) -> Sequence[str]:
        """See forge.Forge. With an App GitHub is asked for its installations, once an hour.

        Raises RateLimited and SourceRefused when only the App could say, and SettingsError when it is installed nowhere.
        """
        return [credential.name for credential in self._credentials()]

    @contextmanager
    def reader(self, credential: str, budget: Budget) -> Generator[Reader]:
        """See forge.Forge. Raises SettingsError for a credential that is not (or no longer) ours."""
        found = next((known for known in self._credentials() if known.name == credential), None)
        if found is None:
            raise SettingsError(f"there is no credential {credential} for GitHub", hint="see docs/github.md")
        answers: Counter[str] = Counter()
        connection = self._board.connect(budget, answers)
        authority = self._board.connect(self._app_budget, answers) if self._app_budget else connection
        yield ReleaseReader(_DIALECT, found, connection, authority)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._board.close()

    def _credentials(self) -> list[Credential]:
        if self._app is None or self._app_budget is None:
            return self._fixed
        try:
            installed = self._app.installations(self._board.connect(self._app_budget, Counter()))
        except SourceError as error:
            if not self._fixed:
                raise
            installed = []
            _log.warning("the GitHub App is not used for now, the tokens are: %s", error)
        if not installed and not self._fixed:
            raise SettingsError(
                "the GitHub App is installed nowhere",
                hint="Install it for an account or an organization, on the App's page at GitHub.",
            )
        return [*installed, *self._fixed]


def github_from_settings(
    settings: Settings, clock: Clock, transport: httpx2.BaseTransport | None = None
) -> GitHub:
    """GitHub with all credentials that are set; without any, it is asked as nobody. Asks nothing yet.

    Raises SettingsError for settings that contradict each other.
    """
    app = _app(settings)
    credentials: list[Credential] = [*tokens(settings.github_token, "Bearer", variable="KB_GITHUB_TOKEN")]
    if not credentials and app is None:
        credentials = [Token(ANONYMOUS)]
    return GitHub(
        settings.github_api_url,
        credentials,
        timeout_s=settings.poll_timeout_s,
        clock=clock,
        transport=transport,
        app=app,
    )


def _app(settings: Settings) -> GitHubApp | None:
    key, file = settings.github_app_private_key, settings.github_app_private_key_file
    if settings.github_app_id is None:
        if key is not None or file is not None:
            raise SettingsError(
                "a private key of a GitHub App is set, and no App", hint="Set KB_GITHUB_APP_ID as well."
            )
        return None
    if key is not None and file is not None:
        raise SettingsError(
            "the private key of the GitHub App is set twice",
            hint="Unset KB_GITHUB_APP_PRIVATE_KEY or KB_GITHUB_APP_PRIVATE_KEY_FILE.",
        )
    if file is not None:
        try:
            key = SecretStr(file.expanduser().read_text("utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise SettingsError(
                f"the private key of the GitHub App cannot be read: {why}",
                hint="KB_GITHUB_APP_PRIVATE_KEY_FILE must name a PEM file that this user may read.",
            ) from None
    if key is None:
        raise SettingsError(
            "KB_GITHUB_APP_ID is set, and no private key",
            hint="Set KB_GITHUB_APP_PRIVATE_KEY_FILE, or KB_GITHUB_APP_PRIVATE_KEY.",
        )
    return GitHubApp(settings.github_app_id, key, _HEADERS)


def _is_absent(answer: Answer) -> bool:
    """GitHub's own word: a proxy's page, or a gateway's JSON, says it otherwise."""
    message = answer.document.get("message")
    return message == "Not Found" if answer.status == 404 else isinstance(message, str)


def _says_truncated(answer: Answer) -> bool:
    said = answer.said.lower()
    return "pagination is limited" in said or "only the first" in said


def _ends_early(url: str, records: int) -> bool:
    query = parse_qs(urlsplit(url).query)
    page = query.get("page", [""])[-1]
    return records == PAGE_SIZE and page.isdecimal() and len(page) < 5 and int(page) * PAGE_SIZE in _CAPS


_DIALECT = Dialect(
    wording=_WORDING,
    headers=_HEADERS,
    list_path=lambda identity: f"/repositories/{identity.external_id}/releases?per_page={PAGE_SIZE}",
    release_path=lambda identity, number: f"/repositories/{identity.external_id}/releases/{number}",
    is_absent=_is_absent,
    says_truncated=_says_truncated,
    ends_early=_ends_early,
)
