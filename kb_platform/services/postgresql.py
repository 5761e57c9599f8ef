"""Watches PostgreSQL as the services need it, and has the embedded server started again when it died.

Does not belong here: how that is done (`store.database` revives, `store.embedded` starts).
"""

from __future__ import annotations

import threading
import time

from kb_platform.errors import KbError
from kb_platform.services.service import News, Tell
from kb_platform.store.database import Database

NAME = "postgresql"
BETWEEN_S = 1.0
# A server that died is started inside the question, which then only takes long.
LONG_S = 0.25


class PostgresqlWatch:
    """Asks the database again and again, in a thread of its own: a frozen server must hold up nothing."""

    def __init__(self, database: Database, tell: Tell, *, between_s: float = BETWEEN_S) -> None:
        self._database = database
        self._tell = tell
        self._between_s = between_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name=NAME)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """No more questions are asked; one that hangs is left to itself."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _watch(self) -> None:
        lost_at: float | None = None
        while not self._ended.wait(self._between_s):
            asked_at = time.monotonic()
            try:
                with self._database.snapshot():
                    pass
            except KbError as error:
                if lost_at is None and not self._ended.is_set():
                    lost_at = asked_at
                    self._tell(News(NAME, "warning", f"does not answer: {error}"))
            else:
                took = time.monotonic() - (asked_at if lost_at is None else lost_at)
                if lost_at is not None or took > LONG_S:
                    self._tell(News(NAME, "warning", f"answers again after {took:.1f} s"))
                lost_at = None
