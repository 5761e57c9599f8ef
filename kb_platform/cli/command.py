"""The command's root: its groups, its help, and what an error looks like and exits with."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from kb_platform.cli import (
    alerts,
    asking,
    importing,
    indexes,
    kafka,
    operation,
    producing,
    quarantine,
    receiving,
    syncing,
    up,
    watching,
)
from kb_platform.cli.output import complain
from kb_platform.errors import KbError, SettingsError

app = typer.Typer(
    name="kb",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="What changed in the software you depend on, and where is the proof?\n\n"
    'A first round:  kb demo;  kb import releases.jsonl;  kb ask "Which release fixed …?"\n\n'
    "State lies in KB_HOME, else in the nearest .kb folder at or above the working directory, else in ~/.kb. "
    "Every setting is an environment variable: docs/settings.md.",
)

for module in (importing, syncing, producing, asking, operation, up, receiving, alerts):
    module.register(app)
app.add_typer(watching.app, name="watch")
app.add_typer(kafka.app, name="kafka")
app.add_typer(indexes.app, name="index")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(operation.database, name="database")


def main() -> NoReturn:
    """Entry point of `kb`. Never returns: exits with the command's status."""
    # The default action of SIGTERM skips the exit handlers, and the embedded server would outlive its last user.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name="kb")
    except SettingsError as error:
        complain(error)
        sys.exit(2)
    except KbError as error:
        complain(error)
        sys.exit(1)
    except BrokenPipeError:
        # The reader (`head`, a pager) has seen enough. Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
