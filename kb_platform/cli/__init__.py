"""The `kb` command: one module for each group of commands, `output` for what people and scripts see.

Commands parse, call one thing of the knowledge base and print. Standard output carries the result alone (a table, or one
JSON document with `--json`); progress and logs go to standard error. Exit status: 0 success, 1 the work failed, 2 wrong
usage.
"""

from __future__ import annotations

from kb_platform.cli.command import main

__all__ = ["main"]
