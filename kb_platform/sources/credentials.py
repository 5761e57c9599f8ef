"""What a forge is asked with: tokens by name and header. No secret is part of a name, a message or a `repr`.

Does not belong here: a GitHub App's short-lived tokens (`github_app`), and what a credential may still ask for (`budget`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

from pydantic import SecretStr

from kb_platform.errors import SettingsError
from kb_platform.sources.connection import Connection

ANONYMOUS = "anonymous"
_SEPARATOR = re.compile(r"[\s,]+")


class Credential(Protocol):
    """Something to ask with."""

    @property
    def name(self) -> str:
        """Stable, unique at its forge, and no secret."""
        ...

    def authorization(self, authority: Connection) -> SecretStr | None:
        """The value of the `Authorization` header; `authority` is asked for it where it must be fetched.

        Raises RateLimited and SourceRefused.
        """
        ...

    def renew(self) -> bool:
        """Take in that the forge refused it (401). Returns whether another one can be fetched."""
        ...


@dataclass(frozen=True)
class Token:
    """A token that a person made; `header` is the whole value of `Authorization`. None: nothing is shown."""

    name: str
    header: SecretStr | None = None

    def authorization(self, authority: Connection) -> SecretStr | None:  # noqa: ARG002
        """See Credential."""
        return self.header

    def renew(self) -> bool:
        """See Credential."""
        return False


def tokens(setting: SecretStr | None, scheme: str, *, variable: str) -> list[Token]:
    """The tokens of a setting, with commas or blanks between, each once.

    Raises SettingsError, which names `variable`, for a token that no header can carry.
    """
    values = _SEPARATOR.split(setting.get_secret_value()) if setting is not None else []
    return list(
        {(made := token(value, scheme, variable=variable)).name: made for value in values if value}.values()
    )


def token(value: str, scheme: str, *, variable: str) -> Token:
    """One token, named by a fingerprint. Raises SettingsError as `tokens` does."""
    if not (value.isascii() and value.isprintable()):
        raise SettingsError(
            f"{variable} has a token with characters that a header cannot carry",
            hint="Check it for a pasted quotation mark or an invisible character.",
        )
    fingerprint = hashlib.sha256(value.encode()).hexdigest()[:8]
    return Token(f"token-{fingerprint}", SecretStr(f"{scheme} {value}"))
