"""Why brokers do not answer: what librdkafka says beside its answers, and what that means for the person who must act.

librdkafka tells a wrong password, certificate or protocol to callbacks and in log lines only; the call that fails says no
more than "timed out". So both are kept for a while here, and put into words when a call fails.
Does not belong here: making clients (`broker`).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException

from kb_platform.errors import BrokersRefused, BrokersUnavailable, StreamError

log = logging.getLogger("kb.kafka")

# Older ones may have been mended since: a broker that was restarted, say.
REMEMBERED_S = 20.0
MOST_SEEN = 64
# With several brokers, one that is misconfigured does not mean that none answers.
GRACE_S = 1.5

_ADDRESS = re.compile(r"(?:[a-z_]+://)?([^\s/]+:\d+)/")
_AFTER = re.compile(r" \(after \d+ms in state [A-Z_]+[^)]*\)")
_CONFIG = "KB_KAFKA_CONFIG"
_SERVERS = "KB_KAFKA_BOOTSTRAP_SERVERS"

NO_RIGHTS = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


class Seen(NamedTuple):
    """What librdkafka said. `first`, `at`: monotonic seconds, of the first and the last time that it did."""

    first: float
    at: float
    name: str
    text: str


class Cause(NamedTuple):
    """What it means. `certain`: waiting longer would not help. `refused`: brokers answered, and said no."""

    text: str
    hint: str
    certain: bool = False
    refused: bool = False


class Complaints:
    """What librdkafka said lately, of all clients of one `Brokers`. Safe to use from several threads."""

    def __init__(self, hide: Callable[[str], str] = lambda text: text) -> None:
        """`hide` takes secrets out of a text."""
        self._hide = hide
        self._lock = threading.Lock()
        # By kind, address and words: a client that retries says the same twenty times a second.
        self._seen: dict[str, Seen] = {}

    def on_error(self, error: KafkaError) -> None:
        """To be a client's `error_cb`."""
        self._add(error.name(), error.str())

    def log(self, level: int, line: str, *parts: object) -> None:
        """To be a client's `logger`: a `logging.Logger` as far as librdkafka needs one.

        Lines are for debugging: what matters is raised by the call that fails, in words.
        """
        text = self._hide(line % parts if parts else line)
        log.debug("librdkafka: %s", text)
        if level >= logging.ERROR or " FAIL " in f" {text} " or text.startswith("FAIL"):
            self._add("log", text.rsplit("]: ", 1)[-1])

    def _add(self, name: str, text: str) -> None:
        now = time.monotonic()
        text = self._hide(text)
        key = f"{name} {_AFTER.sub('', text)}"
        with self._lock:
            known = self._seen.pop(key, None)
            first = known.first if known is not None and now - known.at < REMEMBERED_S else now
            self._seen[key] = Seen(first, now, name, text)
            if len(self._seen) > MOST_SEEN:
                del self._seen[next(iter(self._seen))]

    def lately(self, since: float = 0.0) -> list[Seen]:
        """What was said in the last seconds and since then (monotonic seconds), oldest first."""
        oldest = max(since, time.monotonic() - REMEMBERED_S)
        with self._lock:
            return [seen for seen in self._seen.values() if seen.at >= oldest]

    def certain(self, since: float) -> Cause | None:
        """A cause that no waiting will mend, once it has been known for a moment without an answer."""
        seen = self.lately(since)
        cause = diagnose(seen)
        if cause is None or not cause.certain:
            return None
        return cause if time.monotonic() - max(since, min(item.first for item in seen)) >= GRACE_S else None

    def forget(self) -> None:
        """Brokers answered: what was said before is of no account."""
        with self._lock:
            self._seen.clear()


def diagnose(seen: Iterable[Seen]) -> Cause | None:
    """The most telling cause among what was said; None when nothing was said."""
    seen = list(seen)
    for rule in _RULES:
        for item in reversed(seen):
            found = rule(item)
            if found is not None and not (rule is _closed_at_once and _went_down(item, seen)):
                return found
    return None


def _went_down(closing: Seen, seen: Iterable[Seen]) -> bool:
    """Whether nothing listened any more where a connection was closed: a broker that is killed closes its connections too."""
    where = _where(closing.text)
    return any(
        "Connection refused" in item.text and _where(item.text) == where and item.at >= closing.at
        for item in seen
    )


def _refused_login(seen: Seen) -> Cause | None:
    if seen.name not in ("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED"):
        return None
    where, text = _where(seen.text), seen.text
    if "not valid in current SASL state" in text or re.search(r"supported mechanisms:\s*(\(|$)", text):
        return Cause(
            f"{where} does not ask for a login (SASL)",
            f"take `security.protocol` out of {_CONFIG} (or the address of the SASL listener into {_SERVERS})",
            certain=True,
        )
    if "mechanism handshake failed" in text:
        offered = text.rpartition("supported mechanisms:")[2]
        offered = _AFTER.sub("", offered).strip() or "none"
        return Cause(
            f"{where} does not know this way to log in; it offers {offered}",
            f"set `sasl.mechanism` in {_CONFIG} to one that it offers",
            certain=True,
            refused=True,
        )
    return Cause(
        f"{where} refused the login (SASL): {_plain(text)}",
        f"check `sasl.username`, `sasl.password` and `sasl.mechanism` in {_CONFIG}",
        certain=True,
        refused=True,
    )


def _refused_certificate(seen: Seen) -> Cause | None:
    text = seen.text
    if seen.name != "_SSL" and "SSL handshake failed" not in text:
        return None
    where = _where(text)
    if "PLAINTEXT broker" in text or "wrong version number" in text or "Disconnected" in text:
        return Cause(
            f"{where} does not speak TLS",
            f"take `security.protocol` out of {_CONFIG}, or the address of the TLS listener into {_SERVERS}",
            certain=True,
        )
    if "hostname mismatch" in text.lower() or "ip address mismatch" in text.lower():
        return Cause(
            f"the certificate of {where} is for another name",
            f"use the name of its certificate in {_SERVERS}",
            certain=True,
            refused=True,
        )
    if "alert" in text or "certificate required" in text:
        return Cause(
            f"{where} refused our certificate: {_plain(text)}",
            f"set `ssl.certificate.location` and `ssl.key.location` in {_CONFIG} to a certificate that brokers trust",
            certain=True,
            refused=True,
        )
    if "verif" in text:
        return Cause(
            f"the certificate of {where} is of no authority that we trust",
            f"set `ssl.ca.location` in {_CONFIG} to the authority (PEM) that signed the brokers' certificates",
            certain=True,
            refused=True,
        )
    return Cause(
        f"no TLS connection to {where}: {_plain(text)}",
        f"check the `ssl.…` settings in {_CONFIG}",
        certain=True,
        refused=True,
    )


def _no_such_host(seen: Seen) -> Cause | None:
    if seen.name != "_RESOLVE":
        return None
    return Cause(
        f"no address is known for {_where(seen.text)}", f"check {_SERVERS} (HOST:PORT,…)", certain=True
    )


def _closed_at_once(seen: Seen) -> Cause | None:
    """Brokers close without a word when they are spoken to in another protocol; ones that stop do so later."""
    hurried = re.search(r"\(after (\d+)ms in state (APIVERSION_QUERY|UP)", seen.text)
    if "closed by peer" not in seen.text or hurried is None or int(hurried[1]) > 100:
        return None
    return Cause(
        f"{_where(seen.text)} closes each connection at once: it wants TLS or a login (SASL)",
        f"set `security.protocol` (SSL, SASL_PLAINTEXT or SASL_SSL) in {_CONFIG} as the listener has it",
    )


def _nobody_there(seen: Seen) -> Cause | None:
    if "Connection refused" not in seen.text:
        return None
    return Cause(
        f"nothing listens at {_where(seen.text)}", f"start the brokers, or correct {_SERVERS} (HOST:PORT,…)"
    )


def _not_kafka(seen: Seen) -> Cause | None:
    if "Invalid response size" not in seen.text:
        return None
    return Cause(
        f"what answers at {_where(seen.text)} is not a Kafka broker, or wants TLS",
        f"check {_SERVERS} and `security.protocol` in {_CONFIG}",
        certain=True,
    )


def _other(seen: Seen) -> Cause | None:
    if seen.name == "_ALL_BROKERS_DOWN":
        return None
    return Cause(_plain(seen.text), f"check {_SERVERS} and the brokers' own logs")


_RULES: tuple[Callable[[Seen], Cause | None], ...] = (
    _refused_login, _refused_certificate, _no_such_host, _not_kafka, _closed_at_once, _nobody_there,
    _other,
)  # fmt: skip


def no_answer(doing: str, seen: Iterable[Seen], *, waited_s: float | None = None) -> StreamError:
    """What to raise when a call failed for want of an answer."""
    cause = diagnose(seen)
    waited = f" within {waited_s:.0f} s" if waited_s is not None else ""
    if cause is None:
        return BrokersUnavailable(
            f"{doing}: no broker answered{waited}",
            hint=f"are the brokers of {_SERVERS} running, and can they be reached from here?",
        )
    return cause_error(doing, cause)


def cause_error(doing: str, cause: Cause) -> StreamError:
    """A cause as an error."""
    kind = BrokersRefused if cause.refused else BrokersUnavailable
    return kind(f"{doing}: {cause.text}", hint=cause.hint)


def as_stream_error(doing: str, error: KafkaError | BaseException, seen: Iterable[Seen] = ()) -> StreamError:
    """What librdkafka answered, as an error of ours."""
    found = kafka_error(error)
    if found is None:
        return StreamError(f"{doing}: {error}")
    if found.code() in NO_RIGHTS:
        return BrokersRefused(
            f"{doing}: the brokers do not give us the right to: {found.str()}",
            hint="docs/kafka-security.md lists the rights (ACLs) that are needed",
        )
    if is_silence(found):
        return no_answer(doing, seen)
    return StreamError(f"{doing}: {found.str()} ({found.name()})")


def kafka_error(error: object) -> KafkaError | None:
    """The KafkaError in what was raised or returned."""
    if isinstance(error, KafkaException):
        error = error.args[0] if error.args else None
    return error if isinstance(error, KafkaError) else None


_SILENCE = frozenset(
    {
        KafkaError._TIMED_OUT,  # pyright: ignore[reportPrivateUsage] - so librdkafka names its own errors
        KafkaError._TIMED_OUT_QUEUE,  # pyright: ignore[reportPrivateUsage]
        KafkaError._TRANSPORT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._ALL_BROKERS_DOWN,  # pyright: ignore[reportPrivateUsage]
        KafkaError._DESTROY_BROKER,  # pyright: ignore[reportPrivateUsage]
        KafkaError._WAIT_COORD,  # pyright: ignore[reportPrivateUsage]
        KafkaError._WAIT_CACHE,  # pyright: ignore[reportPrivateUsage]
        KafkaError._MSG_TIMED_OUT,  # pyright: ignore[reportPrivateUsage]
        KafkaError._RESOLVE,  # pyright: ignore[reportPrivateUsage]
        KafkaError._AUTHENTICATION,  # pyright: ignore[reportPrivateUsage]
        KafkaError._SSL,  # pyright: ignore[reportPrivateUsage]
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_CONTROLLER,
        # Said while a partition gets another leader.
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.KAFKA_STORAGE_ERROR,
    }
)


def is_silence(error: KafkaError) -> bool:
    """Whether this only says that nobody answered, or not the one who should: another try may fare better."""
    return error.code() in _SILENCE


def _where(text: str) -> str:
    found = _ADDRESS.search(text)
    return found[1] if found else "a broker"


def _plain(text: str) -> str:
    """Without the address in front and librdkafka's state behind."""
    text = _AFTER.sub("", text)
    found = _ADDRESS.search(text)
    if found is None:
        return text
    return text.partition(": ")[2] or text
