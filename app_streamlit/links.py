"""Which addresses in other people's text may be clicked, and how an address is shown.

Belongs here: the rule for a clickable address, the host as a person should read it. Does not belong here:
finding addresses in a text (`inert`), putting them on the page (`rendering`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

LONGEST: Final = 2_000
# RFC 3986: everything that may stand in an address. Quotes and brackets are left out: written addresses end there.
_PLAIN: Final = re.compile(r"[A-Za-z0-9\-._~:/?#@!$&*+,;=%()\[\]']+")
_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
# Of punycode too: an address whose letters are of another script is shown, and not clicked.
_FOREIGN: Final = "xn--"
# Notes live there, so that a link to it says nothing new; any other host is named beside the link.
HOME_HOSTS: Final = frozenset({"github.com", "www.github.com"})


@dataclass(frozen=True, slots=True)
class Link:
    """An address that may be clicked. `host` is in lower case, ASCII, a dotted name."""

    url: str
    host: str


def clickable(address: str) -> Link | None:
    """The link for an address, or None where a click could lead elsewhere than the reader thinks.

    Clickable are plain http and https addresses of dotted ASCII host names on the scheme's own port. No user
    information, no backslash, blank or control character, no bare number or name of a machine nearby
    (`localhost`, `10.0.0.1`), no host in another script (`xn--…`).

    >>> clickable("https://github.com/pgvector/pgvector/issues/1").host
    'github.com'
    >>> clickable("javascript:alert(1)"), clickable("https://me@evil.test/"), clickable("http://localhost/")
    (None, None, None)
    """
    if len(address) > LONGEST or not _PLAIN.fullmatch(address):
        return None
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    host = (parts.hostname or "").lower()
    usual = {"http": 80, "https": 443}.get(parts.scheme.lower())
    if usual is None or port not in (None, usual) or "@" in parts.netloc or not _is_public_name(host):
        return None
    return Link(address, host)


def spelled_out(address: str) -> str:
    """The address with a host in another script written in punycode, so that look-alikes show.

    >>> spelled_out("https://gith\u0443b.com/acme")
    'https://xn--githb-hze.com/acme'
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*:)?//([^/?#\\\s]*)", address)
    if found is None or found[2].isascii():
        return address
    return address[: found.start(2)] + _punycode(found[2]) + address[found.end(2) :]


def _is_public_name(host: str) -> bool:
    labels = host.split(".")
    return (
        len(labels) > 1
        and len(host) <= 253
        and all(_LABEL.fullmatch(label) and not label.startswith(_FOREIGN) for label in labels)
        and labels[-1].isalpha()
        and labels[-1] not in ("local", "localhost", "internal")
    )


def _punycode(host: str) -> str:
    """Label by label, by RFC 3492 alone: normalising first (IDNA) would turn look-alikes into what they imitate."""
    return ".".join(
        label if label.isascii() else _FOREIGN + label.encode("punycode").decode("ascii")
        for label in host.split(".")
    )
