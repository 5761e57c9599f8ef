"""`kb receive`: webhooks received and produced, until it is told to stop."""

from __future__ import annotations

import resource
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from kb_platform.cli.output import Json, log, say, say_json, start_log
from kb_platform.errors import StreamError
from kb_platform.services import port
from kb_platform.settings import Settings, load_settings
from kb_platform.sources.github_webhook import MOST_BYTES, secrets_of

if TYPE_CHECKING:
    from kb_platform.streams.broker import Brokers

# Beside the connections: Kafka's, and what Python holds open.
OTHER_FILES = 64
SPARE_CONNECTIONS = 100


def register(app: typer.Typer) -> None:
    """Add the command to `kb`."""
    app.command()(receive)


def receive(
    *,
    port_number: Annotated[
        int | None, typer.Option("--port", min=1, max=65_535, help="Default: KB_WEBHOOK_PORT.")
    ] = None,
    wait_for_brokers: Annotated[
        bool,
        typer.Option(
            "--wait-for-brokers",
            help="Start also while brokers or the topic cannot be reached; deliveries are answered with 503 until then.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Receive GitHub's webhooks at POST /webhooks/github and produce them to the release topic. Ctrl-C stops it.

    A delivery is answered with 2xx when brokers have acknowledged it. GET /healthz tells how it goes.

    Example:  KB_WEBHOOK_SECRET=… kb receive
    """
    settings = load_settings()
    start_log(settings)
    secrets = secrets_of(settings.webhook_secret)
    number = port_number or settings.webhook_port
    _serve(settings, secrets, number, wait_for_brokers=wait_for_brokers, json=json)


def _serve(
    settings: Settings, secrets: tuple[bytes, ...], number: int, *, wait_for_brokers: bool, json: bool
) -> None:
    from kb_platform.services import webhook_server
    from kb_platform.services.deliveries import Connecting
    from kb_platform.services.receiver import Receiver
    from kb_platform.streams.broker import Brokers
    from kb_platform.streams.sender import Sender

    brokers = Brokers(settings)
    host = settings.webhook_host
    port.require_free(host, number, wanted_by="the receiver", setting="--port or KB_WEBHOOK_PORT")
    _require_topic(brokers, settings, wait_for_brokers=wait_for_brokers)
    watch = webhook_server.BrokerWatch(brokers.require)
    connecting = Connecting(lambda: Sender(brokers, queue=settings.webhook_queue))
    if not wait_for_brokers:
        connecting.connect()
    receiver = Receiver(
        connecting,
        secrets,
        topic=settings.kafka_release_topic,
        queue=settings.webhook_queue,
        most_bytes=min(settings.max_record_bytes, MOST_BYTES),
        brokers=watch,
    )
    config = webhook_server.configure(receiver, host, number, most_connections=_connections(settings))
    watch.start()
    try:
        _announce(host, number, settings, json=json)
        webhook_server.serve(config, receiver)
    finally:
        watch.stop()
    counts = receiver.counts
    log.info(
        "%s deliveries acknowledged, %s failed, %s sent away", counts.acknowledged, counts.failed, counts.shed
    )


def _announce(host: str, number: int, settings: Settings, *, json: bool) -> None:
    url = port.url(host, number)
    if json:
        say_json({"url": f"{url}/webhooks/github", "topic": settings.kafka_release_topic})
    else:
        say(f"webhooks        {url}/webhooks/github → {settings.kafka_release_topic}")
    sys.stdout.flush()


def _require_topic(brokers: Brokers, settings: Settings, *, wait_for_brokers: bool) -> None:
    """Raises StreamError while nothing can be produced, unless somebody wants to wait for that."""
    from kb_platform.streams.topics import Topics

    try:
        brokers.require()
        with closing(Topics(brokers)) as topics:
            topics.describe(settings.kafka_release_topic)
    except StreamError as error:
        if not wait_for_brokers:
            raise
        log.warning("deliveries are answered with 503 for now: %s", error)


def _connections(settings: Settings) -> int:
    """How many clients may be connected: all that may wait and some, as far as the system lets a process."""
    wanted = settings.webhook_queue + SPARE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard - OTHER_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted + OTHER_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + OTHER_FILES, hard))
    return wanted
