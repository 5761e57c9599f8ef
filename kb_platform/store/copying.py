"""COPY of many rows, with the bad ones found and set apart.

A batch goes in one COPY. When PostgreSQL refuses the data, the batch is halved under savepoints until the rows at fault
stand alone; all others are in. Errors that are not about data (a lost connection, a full disk) are raised as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.copy import LibpqWriter

from kb_platform.store.database import Connection

Row = Sequence[Any]
Buffer = bytes | bytearray | memoryview


class GatheringWriter(LibpqWriter):
    """Hands the rows of a COPY over in pieces of 4 MiB, where psycopg does so in pieces of 32 KiB.

    After each piece the writing thread waits for the interpreter, and while another thread computes that takes 5 ms: landing,
    which parses the next batch meanwhile, was no faster than without a second thread.
    """

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        super().__init__(cursor)
        self._parts: list[Buffer] = []

    def write(self, data: Buffer) -> None:
        """Keep a piece until the end."""
        self._parts.append(data)

    def finish(self, exc: BaseException | None = None) -> None:
        """Hand over what was kept, unless something went wrong."""
        parts, self._parts = self._parts, []
        if exc is None:
            super().write(b"".join(parts))
        super().finish(exc)


def copy_rows(connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """COPY rows into `kb.<table>` as text. Raises psycopg.DataError (and kin) when one does not fit."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier("kb", table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def copy_sound_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]
) -> list[tuple[int, str]]:
    """COPY all rows that PostgreSQL takes; returns the index and the reason of each that it refuses."""
    refused: list[tuple[int, str]] = []
    waiting = [(0, len(rows))] if rows else []
    while waiting:
        start, stop = waiting.pop()
        try:
            with connection.transaction():
                copy_rows(connection, table, columns, rows[start:stop])
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, UnicodeError) as error:
            if stop - start == 1:
                refused.append((start, str(error).splitlines()[0]))
            else:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
    return refused
