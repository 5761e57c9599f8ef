"""Asking something that may not answer, for a bounded time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class NoAnswer(Exception):
    """There was no answer in time."""


class Patience(Generic[Answer]):
    """Asks in a thread of its own, one question at a time.

    A frozen server answers nothing, not even with an error, whatever time-outs a connection has. While an old question
    hangs, no new one is asked, so threads do not pile up.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asking: threading.Thread | None = None

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer, or the error that `question` raised. Raises NoAnswer."""
        if self._asking is not None and self._asking.is_alive():
            raise NoAnswer("an earlier question still hangs")
        answers: list[Answer] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(question())
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that asked
                errors.append(error)

        self._asking = threading.Thread(target=run, daemon=True, name="sensor-question")
        self._asking.start()
        self._asking.join(self._seconds)
        if errors:
            raise errors[0]
        if not answers:
            raise NoAnswer(f"no answer within {self._seconds:g} seconds")
        return answers[0]
