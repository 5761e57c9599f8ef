"""What people and scripts see: tables, JSON, errors, and the progress on standard error."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from kb_platform.errors import KbError
from kb_platform.progress import Progress, for_terminal
from kb_platform.settings import Settings

log = logging.getLogger("kb")

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")
]

# Stored text may try to talk to the terminal; tab and newline are all that it may say.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def start_log(settings: Settings) -> None:
    """Log lines of `kb` go to standard error."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(settings.log_level.upper())


def progress() -> Progress:
    """A bar on a terminal, log lines elsewhere."""
    return for_terminal(log.info)


def say(text: str = "") -> None:
    """A line of the result."""
    sys.stdout.write(printable(text) + "\n")


def note(text: str) -> None:
    """A line beside the result, on standard error."""
    sys.stderr.write(printable(text) + "\n")


def say_json(document: object) -> None:
    """The one JSON document of a command."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2, default=_plain) + "\n")


def json_line(document: object) -> None:
    """One line of a batch."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, default=_plain) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table for people; numbers stand to the right. Wide enough for its content when piped."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    shown = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell(value))) for value in row))
    width = None if sys.stdout.isatty() else 200
    Console(file=sys.stdout, width=width, highlight=False).print(shown)


def cell(value: object) -> str:
    """A value as a table shows it.

    >>> cell(1234567), cell(None)
    ('1,234,567', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def printable(text: str) -> str:
    """Text from outside, safe for a terminal."""
    return _CONTROL.sub("\ufffd", text)


def complain(error: KbError) -> None:
    """An error for the person who must act."""
    note(f"error: {error}")
    if error.hint:
        note(f"  what to do: {error.hint}")


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType] - of anything
    raise TypeError(f"{type(value).__name__} has no JSON form")
