"""A watch list as people keep it in a file: YAML, or plain text with one name a line.

Belongs here: reading such a file, and the words that it shares with the command line (names, durations, addresses). Does not
belong here: what becomes of the list (`stages.watching`).
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

import yaml

from kb_platform.errors import BadRecord, SourceError
from kb_platform.sources.release import repository_name

Source = Literal["github", "gitea"]
# A line of 60 bytes for each of the 100,000 partitions that Dagster advises at most.
MOST_BYTES = 6_000_000
# Of a file that is wrong all through, the first ones tell enough.
MOST_PROBLEMS = 20
LONGEST_S = 366 * 86_400

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_KEYS = ("repository", "source", "url", "every", "stale_after")
_IS_YAML = re.compile(r"^(?:---|repositories[ \t]*:|[\[{])", re.MULTILINE)


@dataclass(frozen=True)
class Wanted:
    """A repository that is to be watched, and how; None stands for what the settings say. Times in seconds."""

    repository: str
    source: Source = "github"
    api_url: str | None = None
    every_s: int | None = None
    stale_after_s: int | None = None


@dataclass
class _Reading:
    """What was read so far, and what was wrong with it."""

    wanted: dict[str, tuple[int, Wanted]] = field(default_factory=dict[str, tuple[int, Wanted]])
    problems: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def wrong(self, line: int, what: str) -> None:
        self.problems.append((line, what))

    def add(self, line: int, item: Wanted) -> None:
        name = item.repository.lower()
        if name in self.wanted:
            self.wrong(line, f"{item.repository} is there already, in line {self.wanted[name][0]}")
        else:
            self.wanted[name] = (line, item)


def read_watch_file(path: Path) -> list[Wanted]:
    """The repositories of a file, in its order. Raises SourceError that names each wrong line."""
    try:
        raw = path.read_bytes() if path.stat().st_size <= MOST_BYTES else None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    if raw is None:
        raise SourceError(f"{path} is longer than {MOST_BYTES:,} bytes", hint="is it the right file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{path}, line {line}: no UTF-8 text", hint="save it as UTF-8") from None
    reading = _Reading()
    if path.suffix.lower() in (".yaml", ".yml") or _IS_YAML.search(text):
        _read_yaml(text, reading)
    else:
        _read_lines(text, reading)
    if reading.problems:
        shown = [f"line {line}: {what}" for line, what in sorted(reading.problems)[:MOST_PROBLEMS]]
        more = len(reading.problems) - len(shown)
        raise SourceError(
            f"{path} is no watch list: " + "; ".join(shown) + (f"; and {more:,} more" if more else ""),
            hint="docs/watching.md says how one is written",
        )
    return [item for _, item in reading.wanted.values()]


def repository_in(text: str) -> str:
    """The repository that a text names: `OWNER/REPO`, or the address of its page at GitHub.

    Raises ValueError that says what is allowed.

    >>> repository_in("https://github.com/acme/tool.git"), repository_in("acme/tool")
    ('acme/tool', 'acme/tool')
    """
    name = text.strip()
    if "://" in name:
        parts = urlsplit(name)
        if parts.hostname not in ("github.com", "www.github.com"):
            raise ValueError(
                "an address must be of github.com; of another forge give OWNER/REPO, source and url"
            )
        name = "/".join(parts.path.strip("/").split("/")[:2]).removesuffix(".git")
    try:
        return repository_name(name)
    except BadRecord as error:
        raise ValueError(str(error)) from None


def duration_s(text: str) -> int:
    """Seconds of `30s`, `15m`, `2h`, `1d`. Raises ValueError that says what is allowed.

    >>> duration_s("15m")
    900
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= LONGEST_S:
        raise ValueError(
            f"{text[:40]!r} is no duration: a whole number with s, m, h or d behind it (30s, 15m, 2h, 1d), up to 366d"
        )
    return seconds


def duration_text(seconds: int) -> str:
    """Seconds in the largest unit that divides them.

    >>> duration_text(900), duration_text(90)
    ('15m', '90s')
    """
    unit = next(unit for unit in ("d", "h", "m", "s") if seconds % _UNITS[unit] == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def place_of(source: str, url: str | None) -> tuple[Source, str | None]:
    """(source, address of its API or None) from what a person gave. Raises ValueError that says what is allowed.

    >>> place_of("gitea", "https://git.example.com/api/v1/")
    ('gitea', 'https://git.example.com/api/v1')
    """
    if source == "github":
        if url is not None:
            raise ValueError("url is for gitea; GitHub's address is the setting KB_GITHUB_API_URL")
        return "github", None
    if source != "gitea":
        raise ValueError(f"{source[:40]!r} is no source: github or gitea (which is for Forgejo too)")
    if url is None:
        raise ValueError("the source gitea needs a url, such as https://HOST/api/v1")
    return "gitea", _api_address(url)


def _api_address(url: str) -> str:
    # The text itself is not repeated: it may hold a password.
    allowed = "url must be like https://HOST/api/v1, without a user, a password or anything behind it"
    try:
        parts = urlsplit(url.strip())
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise ValueError(allowed) from None
    path = parts.path.rstrip("/")
    is_plain = parts.username is None and parts.password is None and not parts.query and not parts.fragment
    host = parts.hostname or ""
    if parts.scheme not in ("https", "http") or not is_plain or not re.fullmatch(r"[a-z0-9.:_-]+", host):
        raise ValueError(allowed)
    if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)*/api/v1", path):
        raise ValueError(allowed)
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{port}{path}"


# --- plain text -----------------------------------------------------------------------------------------------


def _read_lines(text: str, reading: _Reading) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        name = line.partition("#")[0].strip()
        if name:
            _add(reading, number, {"repository": name})


# --- YAML -----------------------------------------------------------------------------------------------------


def _read_yaml(text: str, reading: _Reading) -> None:
    """Over the nodes, which know their lines; nothing is constructed, and an alias is one node however often it is used."""
    try:
        root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(part for part in (error.context, error.problem) if part)
        reading.wrong(mark.line + 1 if mark else 1, f"no YAML: {why}")
        return
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reading.wrong(
            1,
            "no YAML: "
            + ("nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]),
        )
        return
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        reading.wrong(_line(root), "a mapping with the key `repositories` is expected")
        return
    found = _pairs(root, ("repositories",), reading)
    if "repositories" not in found and not reading.problems:
        reading.wrong(_line(root), "the key `repositories` is missing")
    if "repositories" in found:
        _read_items(found["repositories"], reading)


def _read_items(node: yaml.Node, reading: _Reading) -> None:
    if _is_null(node):
        return
    if not isinstance(node, yaml.SequenceNode):
        reading.wrong(_line(node), "`repositories` is a list: one `- OWNER/REPO` a line")
        return
    for item in node.value:
        if isinstance(item, yaml.MappingNode):
            _add(reading, _line(item), dict(_scalars(_pairs(item, _KEYS, reading), reading)))
        elif isinstance(item, yaml.ScalarNode) and not _is_null(item):
            _add(reading, _line(item), {"repository": item.value})
        else:
            reading.wrong(_line(item), f"OWNER/REPO, or a mapping with {', '.join(_KEYS)} is expected")


def _pairs(node: yaml.MappingNode, allowed: tuple[str, ...], reading: _Reading) -> dict[str, yaml.Node]:
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        if name not in allowed:
            reading.wrong(_line(key), f"{str(name)[:40]!r} is none of the keys {', '.join(allowed)}")
        elif name in found:
            reading.wrong(_line(key), f"the key {name} is there twice")
        else:
            found[name] = value
    return found


def _scalars(found: dict[str, yaml.Node], reading: _Reading) -> Generator[tuple[str, str]]:
    for name, node in found.items():
        if not isinstance(node, yaml.ScalarNode):
            reading.wrong(_line(node), f"{name} is one value, not a list or mapping")
        elif not _is_null(node):
            yield name, node.value


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


# --- one repository -------------------------------------------------------------------------------------------


def _add(reading: _Reading, line: int, words: dict[str, str]) -> None:
    if "repository" not in words:
        reading.wrong(line, "the key repository is missing: OWNER/REPO")
        return
    try:
        repository = repository_in(words["repository"])
        source, api_url = place_of(words.get("source", "github"), words.get("url"))
        every, stale_after = (
            duration_s(words[key]) if key in words else None for key in ("every", "stale_after")
        )
    except ValueError as error:
        reading.wrong(line, str(error))
        return
    reading.add(line, Wanted(repository, source, api_url, every, stale_after))
