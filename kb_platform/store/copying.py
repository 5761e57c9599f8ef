"""COPY of many rows, with the bad ones found and set apart.

A batch goes in one COPY. When PostgreSQL refuses the data, the batch is halved under savepoints until the rows at fault
stand alone; all others are in. Errors that are not about data (a lost connection, a full disk) are raised as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from kb_platform.store.database import Connection

Row = Sequence[Any]


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
