"""Who asks the stand-in: nobody, a token, a GitHub App or one of its installations.

Belongs here: telling callers apart and giving out tokens of installations. Does not belong here: what a caller may still
ask (`github_limits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from tests.github_answers import Answer, error, found
from tests.github_releases import Site, account, timestamp

ANONYMOUS = "anonymous"
TOKEN_LIFETIME = 3_600
# GitHub takes no JSON web token that lives longer, and allows a clock that is this far ahead.
LONGEST_JWT = 600
CLOCK_AHEAD = 60


@dataclass(frozen=True)
class Installation:
    """A GitHub App on an account; its budget is its own, whatever token it asks with."""

    number: int
    app: str
    account: str

    @property
    def credential(self) -> str:
        """Its name in the log and in `private_to`."""
        return f"installation-{self.number}"


class Credentials:
    """All that may stand in an Authorization header. Any personal token is good until it is revoked."""

    def __init__(self) -> None:
        self._revoked: set[str] = set()
        self._apps: dict[str, str | None] = {}
        self._installations: dict[int, Installation] = {}
        self._issued: dict[str, tuple[Installation, float]] = {}

    def revoke(self, token: str) -> None:
        """The token is bad from now on."""
        self._revoked.add(token)

    def add_app(self, app: str, public_key: str | None = None) -> None:
        """An App by its id; with a public key (PEM) its signatures are checked, without one only their shape."""
        self._apps[app] = public_key

    def add_installation(self, number: int, app: str, account_name: str) -> Installation:
        """The App on somebody's account."""
        self._installations[number] = Installation(number, app, account_name)
        return self._installations[number]

    def identify(self, header: str | None, now: float) -> tuple[str, Answer | None]:
        """The credential's name, and the answer where it is refused."""
        if header is None:
            return ANONYMOUS, None
        scheme, _, secret = header.partition(" ")
        if scheme.lower() not in ("bearer", "token") or not secret:
            return "malformed", _bad()
        if secret.count(".") == 2:
            return self._app_of(secret, now)
        if secret in self._revoked:
            return self._name_of(secret), _bad()
        if not secret.startswith("ghs_"):
            return secret, None
        issued = self._issued.get(secret)
        return self._name_of(secret), None if issued and now < issued[1] else _bad()

    def installations(self, credential: str, site: Site) -> list[dict[str, Any]]:
        """The installations of the App that asks, as JSON."""
        mine = (item for item in self._installations.values() if f"app-{item.app}" == credential)
        return [
            {
                "id": item.number,
                "app_id": item.app,
                "account": account(item.number + 50, site, item.account),
                "repository_selection": "all",
                "access_tokens_url": f"{site.api}/app/installations/{item.number}/access_tokens",
                "permissions": {"metadata": "read", "contents": "read"},
                "suspended_at": None,
            }
            for item in mine
        ]

    def issue(self, number: int, credential: str, now: float) -> Answer:
        """A token for an installation of the App that asks; it is good for an hour."""
        installation = self._installations.get(number)
        if installation is None or f"app-{installation.app}" != credential:
            return error(404, "Not Found", "/apps#create-an-installation-access-token")
        token = f"ghs_{len(self._issued):036d}"
        self._issued[token] = (installation, now + TOKEN_LIFETIME)
        expires_at = timestamp(datetime.fromtimestamp(now + TOKEN_LIFETIME, UTC))
        permissions = {"metadata": "read", "contents": "read"}
        return found(
            {
                "token": token,
                "expires_at": expires_at,
                "permissions": permissions,
                "repository_selection": "all",
            },
            status=201,
        )

    def _name_of(self, token: str) -> str:
        issued = self._issued.get(token)
        return issued[0].credential if issued else token

    def _app_of(self, secret: str, now: float) -> tuple[str, Answer | None]:
        """The App that signed a JSON web token; the times in it are held against our clock, not the machine's."""
        try:
            header = jwt.get_unverified_header(secret)
            claims: dict[str, Any] = jwt.decode(secret, options={"verify_signature": False})
            app, issued, expires = str(claims["iss"]), float(claims["iat"]), float(claims["exp"])
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            return "app", error(401, "A JSON web token could not be decoded")
        if app not in self._apps:
            return f"app-{app}", error(404, "Integration not found")
        fault = _fault_of_times(issued, expires, now)
        if header.get("alg") != "RS256" or not self._signed(secret, app):
            fault = "A JSON web token could not be decoded"
        return f"app-{app}", error(401, fault) if fault else None

    def _signed(self, secret: str, app: str) -> bool:
        key = self._apps[app]
        if key is None:
            return True
        unchecked = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
        try:
            jwt.decode(secret, key, algorithms=["RS256"], options=unchecked)
        except jwt.PyJWTError:
            return False
        return True


def _fault_of_times(issued: float, expires: float, now: float) -> str | None:
    if issued > now + CLOCK_AHEAD:
        return "'Issued at' claim ('iat') must be an integer in the past"
    if expires <= now:
        return "'Expiration time' claim ('exp') is in the past"
    if expires > now + LONGEST_JWT:
        return "'Expiration time' claim ('exp') is too far in the future"
    return None


def _bad() -> Answer:
    return error(401, "Bad credentials")
