"""`kb kafka …`: the topics, what they hold that is not in the log yet, and where reading goes on."""

from __future__ import annotations

import getpass
import socket
import sys
from contextlib import ExitStack, closing
from typing import Annotated, Any

import typer

from kb_platform.cli import refreshing
from kb_platform.cli.output import Json, log, note, progress, say, say_json, start_log, table
from kb_platform.errors import KbError, NotKnown
from kb_platform.home import open_database
from kb_platform.progress import Task
from kb_platform.settings import Settings, load_settings
from kb_platform.stages import lag, positions
from kb_platform.stages.landing import Landed, land
from kb_platform.store import streams
from kb_platform.store.database import Database
from kb_platform.store.streams import StreamState
from kb_platform.streams.broker import Brokers
from kb_platform.streams.new_topics import Made, create
from kb_platform.streams.topics import Topics

app = typer.Typer(
    no_args_is_help=True,
    help="Events of Kafka topics: make the topics, land what they hold, see what waits, set positions anew.",
)

TopicOption = Annotated[
    str | None, typer.Option("--topic", metavar="TOPIC", help="One topic; default: those of the settings.")
]


@app.command()
def init(*, json: Json = False) -> None:
    """Make the topics and their dead-letter topics where they are missing. What is there is never altered.

    Exits with 1 when a topic that is there differs from what the settings say.
    """
    settings = load_settings()
    start_log(settings)
    brokers = Brokers(settings)
    brokers.require()
    made = create(brokers, settings)
    if json:
        say_json({"topics": [one._asdict() for one in made]})
    else:
        table(
            ("topic", "state", "differs"),
            [
                (one.name, "made" if one.made else "was there", "; ".join(one.differences) or None)
                for one in made
            ],
        )
    if any(_matters(one) for one in made):
        raise typer.Exit(1)


@app.command("land")
def land_(
    topic: TopicOption = None,
    *,
    refresh: Annotated[
        bool, typer.Option("--refresh/--no-refresh", help="Bring the index up to date before returning.")
    ] = False,
    json: Json = False,
) -> None:
    """Land what the topics hold now, and return. `kb refresh` brings the index up to date then.

    Exits with 1 when records were set apart, or a topic could not be read on; the other topics are landed all the same.
    """
    settings = load_settings()
    start_log(settings)
    brokers = Brokers(settings)
    brokers.require()
    database = open_database(settings)
    landed: dict[str, Landed] = {}
    failed: dict[str, KbError] = {}
    for one in _topics(settings, topic):
        try:
            landed[one] = _land(database, brokers, settings, one)
        except KbError as error:
            failed[one] = error
    refreshed = refreshing.refresh(settings) if refresh else None
    if json:
        say_json(
            {
                "landed": {one: _landed_json(result) for one, result in landed.items()},
                "failed": {one: {"error": str(error), "hint": error.hint} for one, error in failed.items()},
                "refreshed": refreshing.as_json(refreshed) if refreshed else None,
            }
        )
    else:
        _show_landed(landed)
        if refreshed is not None:
            refreshing.show(refreshed)
    for one, error in failed.items():
        note(f"error: {one}: {error}")
        if error.hint:
            note(f"  what to do: {error.hint}")
    undone = bool(failed) or any(result.quarantined for result in landed.values())
    if undone or (refreshed is not None and not refreshed.success):
        raise typer.Exit(1)


@app.command()
def status(*, json: Json = False) -> None:
    """How far each topic was read and how far it goes, for each consumer group. Exits with 1 when reading cannot go on."""
    settings = load_settings()
    start_log(settings)
    database = open_database(settings)
    errors = _look(settings)
    with database.snapshot() as connection:
        states = streams.states(connection)
        resets = streams.resets(connection)
    if json:
        say_json(
            {
                "streams": [_state_json(state) for state in states],
                "resets": [reset._asdict() for reset in resets],
                "errors": errors,
            }
        )
    else:
        show_streams(states)
        for reset in resets[:5]:
            note(
                f"reset on {reset.at:%Y-%m-%d %H:%M} UTC by {reset.requested_by}: {reset.topic}/{reset.partition} from "
                f"{reset.from_offset} to {reset.to_offset}"
            )
        for topic, error in errors.items():
            note(f"error: {topic}: {error}")
    if errors or any(state.trouble for state in states):
        raise typer.Exit(1)


@app.command()
def reset(
    topic: Annotated[str, typer.Option("--topic", metavar="TOPIC", help="Whose positions.")],
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="PLACE", help="earliest, latest, an offset, or a time (2026-05-03T12:00, UTC)."
        ),
    ] = positions.EARLIEST,
    partition: Annotated[
        int | None, typer.Option("--partition", min=0, help="One partition; default: all of them.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Set where reading goes on, after asking. It is recorded who did, from where and to where.

    `earliest` is always safe: what is in the log already is not appended again.
    """
    settings = load_settings()
    start_log(settings)
    brokers = Brokers(settings)
    brokers.require()
    database = open_database(settings)
    with closing(Topics(brokers)) as topics:
        chosen = positions.plan(database, topics, settings, topic, positions.target(to), partition=partition)
    if not json:
        _show_plan(chosen)
    if not yes and not _agrees(chosen):
        note("nothing was changed")
        raise typer.Exit(1)
    positions.carry_out(database, settings, chosen, by=f"{getpass.getuser()}@{socket.gethostname()}")
    if json:
        say_json(
            {
                "topic": chosen.topic,
                "topic_id": chosen.topic_id,
                "trouble": chosen.trouble,
                "skipped": chosen.skipped,
                "partitions": [
                    {"partition": step.partition, "from": step.before, "to": step.after}
                    for step in chosen.steps
                ],
            }
        )
    else:
        say(f"reading {chosen.topic} goes on from there: `kb kafka land`, or the next run of the sensor")


def _land(database: Database, brokers: Brokers, settings: Settings, topic: str) -> Landed:
    done = 0
    with ExitStack() as shown:
        tasks: list[Task] = []

        def tell(so_far: Landed) -> None:
            nonlocal done
            if not tasks:
                total = so_far.records + so_far.lag
                tasks.append(shown.enter_context(progress().task(f"land {topic}", total, "records")))
            tasks[0].advance(so_far.records - done)
            done = so_far.records

        return land(database, brokers, settings, topic, tell=tell)


def show_streams(states: list[StreamState]) -> None:
    """Lag and trouble, for people."""
    table(
        ("topic", "group", "partitions", "lag", "landed", "quarantined", "last landed", "looked at", "state"),
        [
            (s.topic, s.group, len(s.partitions), s.lag, s.records, s.quarantined, s.landed_at, s.looked_at, _word(s))
            for s in states
        ],
    )  # fmt: skip
    for state in states:
        if state.trouble:
            note(
                f"{state.topic}: {state.trouble_detail}\n  what to do: `kb kafka reset --topic {state.topic}`"
            )


def _topics(settings: Settings, topic: str | None) -> list[str]:
    known = [settings.kafka_release_topic, settings.kafka_document_topic]
    if topic is None:
        return known
    if topic not in known:
        raise NotKnown(
            f"{topic} is not a topic of the settings",
            hint=f"they name {' and '.join(known)}; KB_KAFKA_RELEASE_TOPIC and KB_KAFKA_DOCUMENT_TOPIC change that",
        )
    return [topic]


def _look(settings: Settings) -> dict[str, str]:
    """Ask the brokers now; what they do not tell is shown as it was last known."""
    brokers = Brokers(settings)
    brokers.require()
    database = open_database(settings)
    errors: dict[str, str] = {}
    with closing(Topics(brokers)) as topics:
        for topic in _topics(settings, None):
            try:
                seen = lag.look(database, topics, settings, topic)
            except KbError as error:
                errors[topic] = f"{error}" + (f" → {error.hint}" if error.hint else "")
                continue
            if seen.trouble is not None:
                errors[topic] = f"{seen.trouble} → {seen.trouble.hint}"
            elif not seen.positions:
                note(
                    f"{topic}: {seen.lag:,} records wait, and nothing of it was ever landed: `kb kafka land`"
                )
    return errors


def _matters(made: Made) -> bool:
    return not made.made and bool(made.differences)


def _agrees(chosen: positions.Plan) -> bool:
    if not sys.stdin.isatty():
        raise NotKnown("there is nobody to ask", hint="give --yes")
    lost = f", and never read {chosen.skipped:,} records that are there" if chosen.skipped else ""
    return typer.confirm(f"Read {chosen.topic} from there{lost}?", err=True)


def _show_plan(chosen: positions.Plan) -> None:
    if chosen.trouble:
        note(f"{chosen.topic} is {chosen.trouble}")
    if chosen.was_topic_id not in (None, chosen.topic_id):
        note(f"another topic has the name now: id {chosen.topic_id}, before {chosen.was_topic_id}")
    table(
        ("partition", "position", "would be", "first record", "end", "never read"),
        [(str(s.partition), s.before, s.after, s.low, s.high, s.skipped) for s in chosen.steps],
    )


def _show_landed(landed: dict[str, Landed]) -> None:
    table(
        ("topic", "records", "new", "edited", "deleted", "unchanged", "late", "quarantined", "records/s", "lag"),
        [
            (one, r.records, r.new + r.reappeared, r.edited, r.deleted, r.unchanged, r.late, r.quarantined,
             round(r.records / r.seconds) if r.seconds else 0, r.lag)
            for one, r in landed.items()
        ],
    )  # fmt: skip
    for one, result in landed.items():
        log.info("%s: %s records landed in %.1f s", one, result.records, result.seconds)
        if result.quarantined:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(result.reasons.items()))
            note(f"{one}: {result.quarantined:,} records are in quarantine ({reasons}): `kb quarantine list`")


def _landed_json(result: Landed) -> dict[str, Any]:
    return vars(result) | {"appended": result.appended, "repositories": sorted(result.repositories)}


def _state_json(state: StreamState) -> dict[str, Any]:
    return state.as_json()


def _word(state: StreamState) -> str:
    if state.trouble:
        return state.trouble
    return "unreachable" if state.unreachable_since else "ok"
