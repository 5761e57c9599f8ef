"""The database that a sensor looks at: opened at the first tick, and kept for all that follow in the process.

Does not belong here: what a sensor reads in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from kb_platform.home import open_database
from kb_platform.settings import load_settings
from kb_platform.store.database import Database

Open = Callable[[], Database]


def opened_once(database: Database | None) -> Open:
    """`database`, or that of the settings of the process that evaluates. Raises DatabaseUnavailable, MigrationError."""
    kept = [database] if database is not None else []
    opening = threading.Lock()

    def opened() -> Database:
        with opening:
            if not kept:
                kept.append(open_database(load_settings()))
            return kept[0]

    return opened
