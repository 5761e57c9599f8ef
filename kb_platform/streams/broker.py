"""The brokers: the settings of every client, and finding out whether they answer and take us.

Every client of ours is made from `Brokers.client`, so that what keeps records safe cannot be configured away, and nothing
waits longer than it is told to. Does not belong here: topics, reading, sending.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from kb_platform.errors import SettingsError
from kb_platform.settings import Settings
from kb_platform.streams.client_errors import Complaints, as_stream_error, cause_error, kafka_error, no_answer

_T = TypeVar("_T")

SERVERS = "KB_KAFKA_BOOTSTRAP_SERVERS"
CONFIG = "KB_KAFKA_CONFIG"

# librdkafka keeps to a frozen broker until a request times out; its default is a minute.
SOCKET_TIMEOUT_MS = 4_000
HEADROOM_BYTES = 1_048_576
CLOSE_S = 2.0

_KEPT = "it keeps records safe and is not to be set"
_OURS = "kb-platform sets it"
# What may not be set in KB_KAFKA_CONFIG, and why.
FORBIDDEN = {
    "bootstrap.servers": f"use {SERVERS}",
    "metadata.broker.list": f"use {SERVERS}",
    "group.id": "use KB_KAFKA_GROUP",
    **dict.fromkeys(
        (
            "enable.auto.commit", "auto.commit.enable", "auto.commit.interval.ms", "enable.auto.offset.store",
            "auto.offset.reset", "isolation.level", "enable.idempotence", "enable.gapless.guarantee", "acks",
            "request.required.acks", "transactional.id", "enable.partition.eof", "allow.auto.create.topics",
            "max.in.flight", "max.in.flight.requests.per.connection", "retries", "message.send.max.retries",
        ),
        _KEPT,
    ),
    **dict.fromkeys(
        (
            "group.instance.id", "group.protocol", "group.remote.assignor", "transaction.timeout.ms",
            "delivery.timeout.ms", "message.timeout.ms", "message.max.bytes", "receive.message.max.bytes",
            "queued.max.messages.kbytes", "queued.min.messages", "fetch.max.bytes", "max.partition.fetch.bytes",
            "fetch.message.max.bytes", "queue.buffering.max.messages", "queue.buffering.max.kbytes",
            "log_level", "log.queue", "logger", "enabled_events", "opaque", "default_topic_conf", "interceptors",
        ),
        _OURS,
    ),
}  # fmt: skip
_SERVER = re.compile(r"([A-Za-z_]+://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/@,\[\]]+)(:\d{1,5})?")
_SECRET = re.compile(r"password|secret|\.pem$|oauthbearer|token|assertion|credential|jaas|\.key$")


class Cluster(NamedTuple):
    """The brokers that answered."""

    cluster_id: str
    brokers: int


class Deadline:
    """Some seconds from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.began + self.seconds - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left <= 0


def let_go(close: Callable[[], object]) -> None:
    """Close a client, but do not wait for long: with a commit under way and frozen brokers, it may take for ever."""
    thread = threading.Thread(target=close, name="kafka-close", daemon=True)
    thread.start()
    thread.join(CLOSE_S)


class Brokers:
    """The brokers of the settings. Making one connects to nothing.

    `complaints`: what librdkafka said lately; whatever fails can say why.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError: no brokers are set, or KB_KAFKA_CONFIG holds what it may not or librdkafka cannot use."""
        servers = (settings.kafka_bootstrap_servers or "").strip()
        if not servers:
            raise SettingsError(
                f"no Kafka brokers are set: {SERVERS} is empty", hint=f"set {SERVERS} to HOST:PORT,…"
            )
        wrong = [part for part in servers.split(",") if not _SERVER.fullmatch(part.strip())]
        if wrong:
            raise SettingsError(
                f"{SERVERS} is no list of brokers: {wrong[0]!r} is no HOST:PORT",
                hint=f"set {SERVERS} to HOST:PORT,…",
            )
        self.settings = settings
        self.servers = servers
        self._given = _given(settings)
        self._secrets = [
            value
            for key, value in self._given.items()
            if _SECRET.search(key) and len(value) > 3 and not key.endswith(".location")
        ]
        self.complaints = Complaints(self.hide)
        _check(self._given, self.hide)

    def __repr__(self) -> str:
        return f"Brokers({self.servers!r})"

    def hide(self, text: str) -> str:
        """The text without the secrets of KB_KAFKA_CONFIG."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def client(self, **more: Any) -> dict[str, Any]:
        """Settings for one client of confluent_kafka; `more` in librdkafka's names, with `_` for `.`.

        Its errors and log lines go to `complaints`, but only while its `poll`, `consume` or `flush` is called.
        """
        return {
            "client.id": "kb-platform",
            "socket.timeout.ms": SOCKET_TIMEOUT_MS,
            # The first try of a name that does not answer may not use up the whole wait.
            "socket.connection.setup.timeout.ms": 5_000,
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 1_000,
            # A broker that came back is asked again soon; the default goes on with what was known for minutes.
            "topic.metadata.refresh.interval.ms": 60_000,
            **self._given,
            "bootstrap.servers": self.servers,
            "error_cb": self.complaints.on_error,
            "logger": self.complaints,
            **{key if key == "on_commit" else key.replace("_", "."): value for key, value in more.items()},
        }

    def consumer(self, **more: Any) -> Consumer:
        """A consumer of records that are committed, from positions that we keep; raises StreamError."""
        wanted = self.client(
            group_id=self.settings.kafka_group,
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="error",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            **more,
        )
        return self.made(lambda: Consumer(wanted))

    def admin(self) -> Any:
        """An `AdminClient`; `Any` because the answers of its futures have no types. Serve it by its `poll`."""
        wanted = self.client()
        return self.made(lambda: AdminClient(wanted))

    def made(self, make: Callable[[], _T]) -> _T:
        """What `make` makes, which is a client; raises SettingsError where librdkafka will not have the settings."""
        try:
            return make()
        except (KafkaException, TypeError, ValueError) as error:
            raise _wrong(error, self.hide) from None

    def require(self, timeout_s: float | None = None) -> Cluster:
        """Wait until a broker answers and takes us.

        Raises BrokersRefused (password, certificate), BrokersUnavailable (no such host, wrong protocol, nobody there): in
        about two seconds where waiting does not help, else after `timeout_s` (the settings' by default).
        """
        deadline = Deadline(self.settings.kafka_timeout_s if timeout_s is None else timeout_s)
        doing = f"Kafka at {self.servers}"
        consumer = self.consumer()
        try:
            while True:
                try:
                    # One topic, which is not made by asking: the list of all can be long.
                    found = consumer.list_topics(
                        self.settings.kafka_release_topic, timeout=max(0.05, min(0.5, deadline.left))
                    )
                    if found.brokers:
                        self.complaints.forget()
                        return Cluster(str(found.cluster_id), len(found.brokers))
                except KafkaException as error:
                    failed = kafka_error(error)
                    if failed is None or not _worth_another_try(failed.name()):
                        raise as_stream_error(doing, error, self._said(deadline)) from None
                # Only here are errors and log lines handed over.
                consumer.poll(0.05)
                self.give_up(doing, deadline)
        finally:
            let_go(consumer.close)

    def give_up(self, doing: str, deadline: Deadline) -> None:
        """Raise when time is up, or when it is certain that more of it will not help."""
        certain = self.complaints.certain(deadline.began)
        if certain is not None:
            raise cause_error(doing, certain)
        if deadline.passed:
            raise no_answer(doing, self._said(deadline), waited_s=deadline.seconds)

    def result(
        self, future: Future[_T], doing: str, deadline: Deadline, poll: Callable[[float], object]
    ) -> _T:
        """What an admin's future holds, serving callbacks meanwhile.

        Raises KafkaException as the future does, BrokersRefused and BrokersUnavailable as `require`.
        """
        while not future.done():
            # The future wakes us; `poll` would sleep its time out.
            wait([future], timeout=0.02)
            poll(0)
            if not future.done():
                self.give_up(doing, deadline)
        return future.result()

    def _said(self, deadline: Deadline) -> list[Any]:
        return self.complaints.lately(deadline.began)


def _worth_another_try(name: str) -> bool:
    return name in {
        "_TRANSPORT",
        "_TIMED_OUT",
        "_ALL_BROKERS_DOWN",
        "_DESTROY_BROKER",
        "LEADER_NOT_AVAILABLE",
    }


def _given(settings: Settings) -> dict[str, str]:
    if settings.kafka_config is None:
        return {}
    given: dict[str, str] = {}
    for key, value in json.loads(settings.kafka_config.get_secret_value()).items():
        name = key.removeprefix("topic.") if key.startswith("topic.") and key.count(".") == 1 else key
        if name in FORBIDDEN or name.endswith("_cb"):
            raise SettingsError(
                f"{CONFIG}: `{key}` may not be there: {FORBIDDEN.get(name, _OURS)}",
                hint=f"take it out of {CONFIG}",
            )
        if name.startswith("test.mock."):
            raise SettingsError(
                f"{CONFIG}: `{key}` is for tests of librdkafka", hint=f"take it out of {CONFIG}"
            )
        if isinstance(value, bool):
            given[key] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            given[key] = str(value)
        else:
            raise SettingsError(f"{CONFIG}: the value of `{key}` is no text, number or true or false")
    return given


def _check(given: dict[str, str], hide: Callable[[str], str]) -> None:
    """Let librdkafka look at them. A client without brokers connects to nothing, and reads certificates already."""
    if not given:
        return
    quiet = Complaints(hide)
    try:
        Producer({**given, "logger": quiet})
    except (KafkaException, TypeError, ValueError) as error:
        raise _wrong(error, hide) from None


def _wrong(error: BaseException, hide: Callable[[str], str]) -> SettingsError:
    """What librdkafka says of its settings, without values: they may be secrets."""
    found = kafka_error(error)
    text = found.str() if found is not None else str(error)
    unknown = re.search(r'No such configuration property: "([^"]+)"', text)
    if unknown:
        return SettingsError(
            f"{CONFIG}: librdkafka knows no `{unknown[1]}`", hint="see docs/kafka-security.md"
        )
    invalid = re.search(r'[Ii]nvalid value .* for configuration property "([^"]+)"', text, re.DOTALL)
    if invalid is None:
        invalid = re.search(r'[Cc]onfiguration property "([^"]+)" (?:value|cannot)', text, re.DOTALL)
    if invalid:
        return SettingsError(f"{CONFIG}: librdkafka does not take the value of `{invalid[1]}`")
    text = re.sub(r"^Failed to create \w+(?: \w+)?: ", "", text)
    return SettingsError(
        f"{CONFIG}: librdkafka cannot use it: {hide(text)}", hint="see docs/kafka-security.md"
    )
