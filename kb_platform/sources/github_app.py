"""A GitHub App: each of its installations is a credential with a token that lasts an hour and a budget of its own.

Belongs here: what the App shows of itself (a signed JWT), the list of its installations, and fetching their tokens. Does not
belong here: what is asked with them (`github`, `reading`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import SecretStr

from kb_platform.errors import RateLimited, SettingsError, SourceRefused
from kb_platform.sources.answers import Answer, Wording, garbled, refusal
from kb_platform.sources.connection import Connection
from kb_platform.sources.json_bytes import CutShortError, array_elements, document
from kb_platform.sources.links import UnreadableLinkError, next_target

# GitHub takes at most ten minutes, and refuses a JWT from the future: clocks differ.
_JWT_BEFORE = timedelta(seconds=60)
_JWT_AFTER = timedelta(minutes=9)
_TOKEN_MARGIN = timedelta(minutes=5)
_LONGEST_TOKEN = timedelta(hours=1)
# Who installs the App somewhere else is heard of after this.
_LIST_KEPT = timedelta(hours=1)
_LIST_RETRIED = timedelta(minutes=5)
_MOST_PAGES = 100
_WORDING = Wording(
    "GitHub",
    {
        "unauthorized": "GitHub does not know the App by this key: check KB_GITHUB_APP_ID, the private key and the clock of "
        "this machine.",
        "not-found": "The App or its installation is gone: check KB_GITHUB_APP_ID, and where the App is installed.",
        "forbidden": "The installation may be suspended: look at it in the settings of the App.",
    },
)


class GitHubApp:
    """The App's identity. Raises SettingsError when the key is none."""

    def __init__(self, app_id: str, private_key: SecretStr, headers: Mapping[str, str]) -> None:
        self.app_id = app_id.strip()
        self.headers = headers
        if not (self.app_id.isascii() and self.app_id.isalnum()):
            raise SettingsError(
                "KB_GITHUB_APP_ID is no App id", hint="Take the App id or client id from the App's page."
            )
        self._key = _private_key(private_key)
        self._listed: list[Installation] = []
        self._listed_at: datetime | None = None

    @property
    def name(self) -> str:
        """The name of the App's own budget."""
        return f"app-{self.app_id}"

    def authorization(self, now: datetime) -> SecretStr:
        """What the App shows of itself."""
        claims = {"iss": self.app_id, "iat": now - _JWT_BEFORE, "exp": now + _JWT_AFTER}
        signed = jwt.encode(claims, self._key, algorithm="RS256")
        return SecretStr(f"Bearer {signed}")

    def installations(self, connection: Connection) -> list[Installation]:
        """Where the App is installed and not suspended, asked once an hour.

        Raises RateLimited and SourceRefused when that cannot be had and was never known.
        """
        now = connection.clock.now()
        if self._listed_at is not None and now < self._listed_at + _LIST_KEPT:
            return self._listed
        try:
            numbers = self._list(connection)
        except (RateLimited, SourceRefused) as error:
            if self._listed_at is None or (isinstance(error, SourceRefused) and error.of_credential):
                raise
            self._listed_at = now - _LIST_KEPT + _LIST_RETRIED
            return self._listed
        known = {installation.number: installation for installation in self._listed}
        self._listed = [known.get(number) or Installation(self, number) for number in numbers]
        self._listed_at = now
        return self._listed

    def _list(self, connection: Connection) -> list[int]:
        url: str | None = f"{connection.api_url}/app/installations?per_page=100"
        numbers: list[int] = []
        for _ in range(_MOST_PAGES):
            answer = connection.get(url, self.authorization(connection.clock.now()), self.headers)
            if answer.status != 200:
                raise _refused(answer)
            try:
                found = [document(raw) for raw in array_elements(answer.body)]
                target = next_target(answer.headers.get("link"))
            except (CutShortError, UnreadableLinkError) as error:
                raise garbled(url, _WORDING, f"no list of installations: {error}") from None
            numbers += [
                item["id"] for item in found if type(item.get("id")) is int and not item.get("suspended_at")
            ]
            if target is None:
                return list(dict.fromkeys(numbers))
            url = connection.resolve(target, answer.url)
        raise garbled(url, _WORDING, "a list of installations without an end")


class Installation:
    """See credentials.Credential. Its token is fetched when it is needed, and kept until five minutes before its end."""

    def __init__(self, app: GitHubApp, number: int) -> None:
        self.number = number
        self._app = app
        self._token: SecretStr | None = None
        self._good_until: datetime | None = None

    @property
    def name(self) -> str:
        """See Credential."""
        return f"{self._app.name}/installation-{self.number}"

    def authorization(self, authority: Connection) -> SecretStr:
        """See Credential."""
        now = authority.clock.now()
        if self._token is None or self._good_until is None or now >= self._good_until:
            self._token, self._good_until = self._fetch(authority, now)
        return self._token

    def renew(self) -> bool:
        """See Credential."""
        self._token = None
        return True

    def _fetch(self, authority: Connection, now: datetime) -> tuple[SecretStr, datetime]:
        url = f"{authority.api_url}/app/installations/{self.number}/access_tokens"
        answer = authority.ask("POST", url, self._app.authorization(now), self._app.headers)
        if answer.status != 201:
            raise _refused(answer)
        token, ends = answer.document.get("token"), _moment(answer.document.get("expires_at"))
        if (
            not isinstance(token, str)
            or not token
            or not (token.isascii() and token.isprintable())
            or ends is None
        ):
            raise garbled(url, _WORDING, "no token")
        return SecretStr(f"Bearer {token}"), min(ends, now + _LONGEST_TOKEN) - _TOKEN_MARGIN


def _private_key(pem: SecretStr) -> RSAPrivateKey:
    """Read once: reading checks the key, which takes longer than signing with it."""
    # Environment files hold a key on one line, with `\n` spelled out.
    text = pem.get_secret_value().replace("\\n", "\n").strip() + "\n"
    key = None
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = load_pem_private_key(text.encode(), password=None)
    if not isinstance(key, RSAPrivateKey):
        raise SettingsError(
            "the private key of the GitHub App cannot be used",
            hint="Give the PEM file that GitHub made for the App, whole and without a passphrase: "
            "KB_GITHUB_APP_PRIVATE_KEY_FILE is its path.",
        )
    return key


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def _refused(answer: Answer) -> SourceRefused:
    return refusal(
        answer,
        _WORDING,
        is_absent="message" in answer.document,
    )
