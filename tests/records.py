"""Records as GitHub's API has them, for tests that import."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kb_platform.settings import Settings
from kb_platform.sources.github_json import parse_release
from kb_platform.sources.release import Observed


def record(number: int = 1, *, repository: str = "acme/tool", **fields: Any) -> dict[str, Any]:
    """A release with this id; `fields` replace or add."""
    tag = fields.get("tag_name", f"v1.{number}.0")
    made = {
        "id": number,
        "tag_name": tag,
        "name": f"Tool {tag}",
        "body": f"## Fixes\n\n- The widget no longer breaks at {number}\n",
        "created_at": "2024-03-01T09:00:00Z",
        "published_at": f"2024-03-{1 + number % 28:02}T10:00:00Z",
        "prerelease": False,
        "draft": False,
        "html_url": f"https://github.com/{repository}/releases/tag/v1.{number}.0",
        "author": {"login": "someone"},
        "assets": [],
    }
    return made | fields


def as_bytes(fields: dict[str, Any]) -> bytes:
    """One line of NDJSON, without its end."""
    return json.dumps(fields).encode()


def write_lines(path: Path, lines: Iterable[bytes | dict[str, Any]]) -> Path:
    """A file of records, one a line."""
    path.write_bytes(b"\n".join(as_bytes(line) if isinstance(line, dict) else line for line in lines) + b"\n")
    return path


def observed(
    number: int = 1, *, repository: str = "acme/tool", deleted: bool = False, **fields: Any
) -> Observed:
    """The same, as a source shows it."""
    raw = as_bytes(record(number, repository=repository, **fields))
    name, release = parse_release(raw, repository=repository, max_body_bytes=Settings().max_body_bytes)
    return Observed(name, release, raw, "test", deleted)
