"""A loader that lands a topic until it is killed, or dies by itself at a named point; for `kills_of_landing.py`.

The points are reached from outside, through what `land` takes as arguments: the database, the brokers, the function that moves
the offsets. Does not belong here: when it is killed, and what must have come of it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from confluent_kafka import Producer

from kb_platform.errors import BrokersUnavailable, DatabaseUnavailable
from kb_platform.settings import Settings
from kb_platform.stages.landing import land
from kb_platform.store import embedded, streams
from kb_platform.store.database import Connection, Database
from kb_platform.store.embedded import EmbeddedServer
from kb_platform.store.streams import Move
from kb_platform.streams.broker import Brokers

AFTER_FENCE = "after the fence"
AMONG_ROWS = "among the rows"
BEFORE_COMMIT = "before the commit"
AFTER_COMMIT = "after the commit"
LETTERS_SENT = "letters sent, not committed"
LETTERS_COMMITTED = "letters committed, not noted"
OF_LETTERS = (LETTERS_SENT, LETTERS_COMMITTED)
POINTS = (AFTER_FENCE, AMONG_ROWS, BEFORE_COMMIT, AFTER_COMMIT, *OF_LETTERS)

# In the home folder: what loaders said, and what those that ended by themselves died of.
LOG = "loaders.log"
ENDED = "ended.txt"
# A batch takes some ten milliseconds.
_LONGEST_AMONG_ROWS_S = 0.03
_T = TypeVar("_T")


@dataclass(frozen=True)
class Life:
    """One life of a loader. `death`: one of POINTS, at the time `number` that it comes there; None: it is killed.

    `linger_s`: how long it waits for more before it publishes dead letters and begins anew. `fence` False: it moves offsets
    without looking where they are.
    """

    home: Path
    environment: Mapping[str, str]
    seed: int
    death: str | None = None
    number: int = 1
    linger_s: float = 3_600.0
    fence: bool = True


def live(life: Life) -> None:
    """Land until death. That brokers or the database cannot be reached is no reason to end; anything else is."""
    with (life.home / LOG).open("ab") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    os.environ.update(life.environment)
    settings = Settings()
    server = _running(life.home)
    death = _Death(life)
    database = _MortalDatabase(server.url(), death, pool_size=4, revive=server.start)
    brokers = _MortalBrokers(settings, death)
    topic = settings.kafka_release_topic
    move = streams.advance if life.fence else _advance_without_fence

    def advance(
        connection: Connection, group: str, name: str, moves: Mapping[int, Move], **more: Any
    ) -> None:
        move(connection, group, name, moves, **more)
        database.landing = connection
        death.comes(AFTER_FENCE)
        death.comes(AMONG_ROWS, within_s=_LONGEST_AMONG_ROWS_S)

    while True:
        try:
            land(database, brokers, settings, topic, linger_s=life.linger_s, advance=advance)
        except (DatabaseUnavailable, BrokersUnavailable) as error:
            # What asks for a new run: a sensor, or a person.
            print(f"{os.getpid()}: again after {error}", file=sys.stderr, flush=True)
            time.sleep(0.2)
        except Exception as error:
            with (life.home / ENDED).open("a") as ended:
                ended.write(f"{type(error).__name__}: {error}".replace("\n", " ") + "\n")
            raise


def _running(home: Path) -> EmbeddedServer:
    """The server, also where it is crashed once more while it starts."""
    while True:
        try:
            return embedded.running(home)
        except (DatabaseUnavailable, psycopg.OperationalError):
            time.sleep(0.2)


def _advance_without_fence(
    connection: Connection, group: str, topic: str, moves: Mapping[int, Move], **_: Any
) -> None:
    for partition, move in sorted(moves.items()):
        connection.execute(
            "UPDATE kb.stream_partition SET next_offset = %s, records = records + %s, bytes = bytes + %s, "
            "quarantined = quarantined + %s, landed_at = clock_timestamp() "
            "WHERE consumer_group = %s AND topic = %s AND partition = %s",
            (*move[1:], group, topic, partition),
        )


class _Death:
    """Comes at one point, the so manieth time."""

    def __init__(self, life: Life) -> None:
        self._point = life.death
        self._left = life.number
        self._chance = random.Random(life.seed)

    def comes(self, point: str, *, within_s: float = 0.0) -> None:
        """This point is reached; `within_s`: it is reached somewhere in the time after now."""
        if point != self._point:
            return
        self._left -= 1
        if self._left > 0:
            return
        if not within_s:
            _die()
        threading.Timer(self._chance.uniform(0, within_s), _die).start()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _MortalDatabase(Database):
    """`landing`: the connection whose transaction moves offsets."""

    def __init__(self, url: str, death: _Death, *, pool_size: int, revive: Callable[[], object]) -> None:
        super().__init__(url, pool_size=pool_size, revive=revive)
        self._death = death
        self.landing: Connection | None = None

    @contextmanager
    def transaction(self) -> Generator[Connection]:
        with super().transaction() as connection:
            self.landing = None
            yield connection
            lands = self.landing is connection
            if lands:
                self._death.comes(BEFORE_COMMIT)
        if lands:
            self._death.comes(AFTER_COMMIT)


class _MortalBrokers(Brokers):
    """Producers of transactions may die around their commit."""

    def __init__(self, settings: Settings, death: _Death) -> None:
        super().__init__(settings)
        self._death = death

    def made(self, make: Callable[[], _T]) -> _T:
        client: Any = super().made(make)
        return _MortalProducer(client, self._death) if isinstance(client, Producer) else client  # type: ignore[return-value]


class _MortalProducer:
    def __init__(self, producer: Producer, death: _Death) -> None:
        self._producer = producer
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def __len__(self) -> int:
        return len(self._producer)

    def commit_transaction(self, *arguments: Any) -> None:
        """What was sent is with the brokers already."""
        self._death.comes(LETTERS_SENT)
        self._producer.commit_transaction(*arguments)
        self._death.comes(LETTERS_COMMITTED)
