"""Alerts: what is one, how long it lasts, and how a webhook is told of it."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from kb_platform.sources.release import Refused
from kb_platform.stages import alerting
from kb_platform.stages.alerting import FailedRun
from kb_platform.stages.webhook import webhook
from kb_platform.store import alerts, quarantine
from kb_platform.store.alerts import Alert, Changes, Problem
from kb_platform.store.database import Database

NOW = datetime(2026, 5, 3, 9, 30, tzinfo=UTC)
DAY = timedelta(hours=24)
MINUTE = timedelta(minutes=1)


def watch(database: Database, name: str, **state: Any) -> None:
    """Put a repository on the watch list, in this state; added a year ago unless it says otherwise."""
    known: dict[str, Any] = {
        "source": "github", "added_at": NOW - timedelta(days=365), "due_at": NOW, "failures": 0,
    } | state  # fmt: skip
    verified = known.pop("verified_at", None)
    with database.transaction() as connection:
        row = connection.execute(
            "INSERT INTO kb.repository (name, verified_at) VALUES (%s, %s) "
            "ON CONFLICT (lower(name)) DO UPDATE SET verified_at = excluded.verified_at RETURNING repository_id",
            (name, verified),
        ).fetchone()
        assert row is not None
        known["repository_id"] = row[0]
        connection.execute("DELETE FROM kb.watch WHERE repository_id = %s", (row[0],))
        columns = ", ".join(known)
        places = ", ".join(f"%({column})s" for column in known)
        connection.execute(f"INSERT INTO kb.watch ({columns}) VALUES ({places})", known)  # pyright: ignore[reportArgumentType]


def credential(database: Database, name: str, reason: str | None, **state: Any) -> None:
    known = {"blocked_until": None, "updated_at": NOW} | state
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO kb.credential (name, blocked_reason, blocked_until, updated_at) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (name) DO UPDATE SET blocked_reason = excluded.blocked_reason",
            (name, reason, known["blocked_until"], known["updated_at"]),
        )


def look(database: Database, now: datetime = NOW) -> Changes:
    """What the freshness sensor does with the database."""
    problems = alerting.freshness_problems(database, now, DAY)
    return alerting.keep_up(database, alerting.FRESHNESS_KINDS, problems, now)


def names(found: tuple[Alert, ...]) -> list[tuple[str, str]]:
    return sorted((alert.kind, alert.subject) for alert in found)


def open_now(database: Database) -> list[Alert]:
    with database.snapshot() as connection:
        return alerts.open_alerts(connection)


# --- what is an alert ---


def test_a_repository_is_stale_after_its_own_limit_or_else_that_of_the_settings(database: Database) -> None:
    watch(database, "acme/fresh", verified_at=NOW - DAY + MINUTE)
    watch(database, "acme/late", verified_at=NOW - DAY - MINUTE)
    watch(database, "acme/strict", verified_at=NOW - timedelta(hours=2), stale_after_s=3600)
    watch(database, "acme/lenient", verified_at=NOW - 3 * DAY, stale_after_s=7 * 86_400)
    watch(database, "acme/new", added_at=NOW - MINUTE)
    watch(database, "acme/never", added_at=NOW - 2 * DAY)
    # Imported from a file, not watched: nobody promised to verify it.
    with database.transaction() as connection:
        connection.execute("INSERT INTO kb.repository (name, verified_at) VALUES ('acme/file', '2020-01-01')")
    assert names(look(database).raised) == [
        ("stale-repository", "acme/late"), ("stale-repository", "acme/never"), ("stale-repository", "acme/strict"),
    ]  # fmt: skip
    said = {alert.subject: alert.message for alert in open_now(database)}
    assert said["acme/late"].startswith("not verified since 2026-05-02 09:29 UTC. Nothing polls it")
    assert "never verified since it was put on the watch list" in said["acme/never"]


def test_it_is_over_when_the_repository_is_verified_or_no_longer_watched(database: Database) -> None:
    watch(database, "acme/a", verified_at=NOW - 2 * DAY)
    watch(database, "acme/b", verified_at=NOW - 2 * DAY)
    assert len(look(database).raised) == 2
    assert look(database) == Changes((), ())
    watch(database, "acme/a", verified_at=NOW)
    assert names(look(database).resolved) == [("stale-repository", "acme/a")]
    with database.transaction() as connection:
        connection.execute("DELETE FROM kb.watch")
    assert names(look(database).resolved) == [("stale-repository", "acme/b")]
    # The same again is news again.
    watch(database, "acme/a", verified_at=NOW - 2 * DAY)
    assert names(look(database).raised) == [("stale-repository", "acme/a")]


@pytest.mark.parametrize(
    ("reason", "to_do"),
    [("not-found", "kb watch remove"), ("unauthorized", "check the token"), ("server-error", "tried again")],
)
def test_polling_that_keeps_failing_is_an_alert_with_its_reason(
    database: Database, reason: str, to_do: str
) -> None:
    failing = {
        "reason": reason,
        "detail": "it said\n\x1b[31mno",
        "failing_since": NOW - MINUTE,
        "verified_at": NOW,
    }
    watch(database, "acme/hiccup", failures=2, **failing)
    watch(database, "acme/failing", failures=3, **failing)
    assert names(look(database).raised) == [("polling-fails", "acme/failing")]
    (alert,) = open_now(database)
    assert alert.message.startswith(f"failing since 2026-05-03 09:29 UTC ({reason}): it said [31mno. ")
    assert to_do in alert.message
    # Another failure is the same alert.
    watch(database, "acme/failing", failures=9, **failing)
    assert look(database) == Changes((), ())


def test_what_failed_says_best_what_to_do(database: Database) -> None:
    detail = "the repository is watched as acme/b, too → `kb watch remove acme/a`"
    watch(
        database, "acme/a", failures=3, reason="duplicate", detail=detail, failing_since=NOW, verified_at=NOW
    )
    look(database)
    (alert,) = open_now(database)
    assert alert.message.endswith(
        "(duplicate): the repository is watched as acme/b, too. `kb watch remove acme/a`"
    )


def test_a_refused_credential_is_an_alert_and_a_spent_one_is_not(database: Database) -> None:
    credential(database, "token-refused", "unauthorized: api.example.com answered 401")
    credential(database, "token-spent", "primary", blocked_until=NOW + MINUTE)
    credential(database, "token-retired", "unauthorized", updated_at=NOW - 2 * DAY)
    credential(database, "token-waiting", "forbidden", updated_at=NOW - 2 * DAY, blocked_until=NOW + MINUTE)
    credential(database, "token-fine", None)
    assert names(look(database).raised) == [("credential", "token-refused"), ("credential", "token-waiting")]
    said = {alert.subject: alert.message for alert in open_now(database)}
    assert said["token-refused"].startswith("refused (unauthorized: api.example.com answered 401). Check")
    credential(database, "token-refused", None)
    assert names(look(database).resolved) == [("credential", "token-refused")]


def test_what_was_quarantined_of_late_is_an_alert_until_it_is_dealt_with(database: Database) -> None:
    now = datetime.now(UTC)
    with database.transaction() as connection:
        for raw in (b"{", b"["):
            quarantine.put(connection, [Refused("not-json", "no", raw, "poll", "acme/tool")])
    assert names(look(database, now + MINUTE).raised) == [("quarantine", "not-json")]
    assert open_now(database)[0].message.startswith("2 records were refused")
    with database.transaction() as connection:
        for record in quarantine.listed(connection):
            quarantine.resolve(connection, record.quarantine_id, "replayed")
    assert names(look(database, now + MINUTE).resolved) == [("quarantine", "not-json")]


def test_a_version_that_its_gate_holds_back_is_an_alert() -> None:
    from kb_platform.store.index_versions import IndexVersion

    gate = {"passed": False, "findings": [{"name": "recall", "passed": False, "detail": "it is 0.1"},
                                          {"name": "rows", "passed": True, "detail": "all"}]}  # fmt: skip
    known = IndexVersion(1, "active", 1, "m", 2, "c", NOW, NOW, NOW, 1, 1, 1, {}, gate)
    held = replace(known, version=2, status="ready")
    passed = replace(known, version=3, status="ready", gate={"passed": True})
    retired = replace(known, version=4, status="retired")
    older = replace(known, version=0, status="ready")
    unlooked = replace(known, version=5, status="building", gate=None)
    (problem,) = alerting.promotion_problems([known, held, passed, retired, older, unlooked])
    assert problem.subject == "index version 2"
    assert "recall: it is 0.1" in problem.message
    assert "rows" not in problem.message


def test_a_failed_run_says_where_and_why() -> None:
    (problem,) = alerting.run_problems(
        [FailedRun("refresh of acme/tool", "id-7", "embeddings", "the model\nis gone")]
    )
    assert (problem.subject, problem.severity) == ("refresh of acme/tool", "error")
    assert problem.message == "step embeddings failed: the model is gone (run id-7)"
    assert alerting.run_problems([FailedRun("x", "id", None, None)])[0].message == "the run failed (run id)"


# --- the table ---


def problem(subject: str = "a", kind: str = "k", message: str = "m") -> Problem:
    return Problem(kind, subject, "warning", message)


def test_one_row_while_it_lasts_and_its_words_follow(database: Database) -> None:
    alerting.keep_up(database, ["k"], [problem(message="first")], NOW)
    alerting.keep_up(database, ["k"], [problem(message="second")], NOW + MINUTE)
    (alert,) = open_now(database)
    assert (alert.message, alert.raised_at, alert.last_seen_at) == ("second", NOW, NOW + MINUTE)
    # What only goes on is not written at every tick.
    alerting.keep_up(database, ["k"], [problem(message="second")], NOW + 2 * MINUTE)
    assert open_now(database)[0].last_seen_at == NOW + MINUTE
    alerting.keep_up(database, ["k"], [problem(message="second")], NOW + 12 * MINUTE)
    assert open_now(database)[0].last_seen_at == NOW + 12 * MINUTE


def test_others_kinds_and_what_may_be_missing_are_left_open(database: Database) -> None:
    alerting.keep_up(database, ["k"], [problem("a"), problem("b")], NOW)
    assert alerting.keep_up(database, ["other"], [], NOW) == Changes((), ())
    assert alerting.keep_up(database, ["k"], [problem("a")], NOW, resolve=False) == Changes((), ())
    assert names(alerting.keep_up(database, ["k"], [problem("a")], NOW).resolved) == [("k", "b")]


def test_any_text_can_be_recorded(database: Database) -> None:
    odd = problem("s\x00\udc80" + "x" * 5_000, message="m\x00\ud800" + "y" * 100_000)
    assert len(alerting.keep_up(database, ["k"], [odd, odd], NOW).raised) == 1
    assert alerting.keep_up(database, ["k"], [odd], NOW) == Changes((), ())
    assert len(alerting.keep_up(database, ["k"], [], NOW).resolved) == 1


def test_two_who_look_at_once_raise_it_once(database: Database) -> None:
    gate = threading.Barrier(6)
    raised: list[int] = []

    def run() -> None:
        gate.wait()
        found = alerting.keep_up(database, ["k"], [problem(str(n)) for n in range(50)], NOW)
        raised.append(len(found.raised))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(raised) == [0, 0, 0, 0, 0, 50]
    assert len(open_now(database)) == 50


def test_who_looks_later_sees_what_the_earlier_one_wrote(database: Database) -> None:
    later: list[Changes] = []
    thread = threading.Thread(target=lambda: later.append(alerting.keep_up(database, ["k"], [], NOW)))
    with database.transaction() as connection:
        alerts.bring_up_to_date(connection, ["k"], [problem("a"), problem("b")], NOW)
        thread.start()
        thread.join(0.2)
        assert later == []
    thread.join()
    assert names(later[0].resolved) == [("k", "a"), ("k", "b")]


def test_what_is_over_is_kept_for_a_season(database: Database) -> None:
    alerting.keep_up(database, ["k"], [problem()], NOW)
    alerting.keep_up(database, ["k"], [], NOW)
    for later, kept in ((alerts.KEPT - MINUTE, 1), (alerts.KEPT + MINUTE, 0)):
        alerting.keep_up(database, ["k"], [], NOW + later)
        with database.snapshot() as connection:
            assert len(alerts.resolved_alerts(connection, limit=10)) == kept


# --- telling the webhook ---


class Hook:
    """A webhook that takes texts, or says what is wrong."""

    def __init__(self, error: str | None = None) -> None:
        self.error = error
        self.texts: list[str] = []

    def __call__(self, text: str) -> str | None:
        self.texts.append(text)
        return self.error


def test_what_is_new_and_what_is_over_is_told_once_each(database: Database) -> None:
    hook = Hook()
    alerting.keep_up(database, ["k"], [problem("a"), problem("b", message="why")], NOW)
    assert alerting.tell(database, hook, NOW) is None
    assert hook.texts == ["kb-platform alerts: 2 new\nWARNING k a: m\nWARNING k b: why"]
    alerting.tell(database, hook, NOW + MINUTE)
    assert len(hook.texts) == 1
    alerting.keep_up(database, ["k"], [problem("b", message="why now"), problem("c")], NOW + MINUTE)
    alerting.tell(database, hook, NOW + MINUTE)
    assert hook.texts[1:] == ["kb-platform alerts: 1 new, 1 resolved\nWARNING k c: m\nresolved k: a"]
    alerting.tell(database, hook, NOW + 2 * MINUTE)
    assert len(hook.texts) == 2
    with database.snapshot() as connection:
        (over,) = alerts.resolved_alerts(connection, limit=10)
    assert (over.told_at, over.told_resolved_at) == (NOW, NOW + MINUTE)


def test_a_webhook_that_fails_is_told_again_after_pauses_that_grow(database: Database) -> None:
    hook = Hook("hooks.example.com answered 500")
    alerting.keep_up(database, ["k"], [problem()], NOW)
    tried = [
        seconds
        for seconds in range(0, 4 * 3600, 30)
        if alerting.tell(database, hook, NOW + timedelta(seconds=seconds)) is not None
    ]
    assert tried == [0, 30, 90, 210, 450, 930, 1890, 3810, 7410, 11010]
    (alert,) = open_now(database)
    assert (alert.attempts, alert.last_error, alert.told_at) == (10, "hooks.example.com answered 500", None)
    # News does not wait for the old, and takes it along.
    alerting.keep_up(database, ["k"], [problem(), problem("new")], NOW + timedelta(seconds=11_040))
    hook.error = None
    assert alerting.tell(database, hook, NOW + timedelta(seconds=11_040)) is None
    assert hook.texts[-1] == "kb-platform alerts: 2 new\nWARNING k a: m\nWARNING k new: m"
    assert {(one.attempts, one.last_error) for one in open_now(database)} == {(0, None)}


def test_what_began_and_ended_untold_is_told_as_over_and_old_news_is_not(database: Database) -> None:
    alerting.keep_up(database, ["k"], [problem("brief"), problem("long")], NOW)
    alerting.keep_up(database, ["k"], [problem("long")], NOW + MINUTE)
    hook = Hook()
    alerting.tell(database, hook, NOW + 2 * DAY)
    assert hook.texts == ["kb-platform alerts: 1 new\nWARNING k long: m"]
    alerting.keep_up(database, ["k"], [problem("long"), problem("flash")], NOW + 2 * DAY)
    alerting.keep_up(database, ["k"], [problem("long")], NOW + 2 * DAY)
    alerting.tell(database, hook, NOW + 2 * DAY)
    alerting.tell(database, hook, NOW + 2 * DAY + MINUTE)
    assert hook.texts[1:] == ["kb-platform alerts: 1 resolved\nresolved k: flash"]


def test_who_dies_after_the_webhook_took_it_tells_it_again(database: Database) -> None:
    def dies(text: str) -> None:
        raise KeyboardInterrupt(text)

    alerting.keep_up(database, ["k"], [problem()], NOW)
    with pytest.raises(KeyboardInterrupt):
        alerting.tell(database, dies, NOW)
    hook = Hook()
    alerting.tell(database, hook, NOW)
    assert len(hook.texts) == 1


def test_two_do_not_tell_the_same(database: Database) -> None:
    alerting.keep_up(database, ["k"], [problem()], NOW)
    inner = Hook()

    def post(_text: str) -> None:
        alerting.tell(database, inner, NOW)

    alerting.tell(database, post, NOW)
    assert inner.texts == []


@pytest.mark.slow
def test_a_storm_is_one_message_that_names_ten_and_the_count(database: Database) -> None:
    for_all = "INSERT INTO kb.watch (repository_id, source, added_at, due_at, failures, reason) "
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO kb.repository (name) SELECT 'acme/r' || to_char(n, 'FM0000') FROM generate_series(1, 5000) n"
        )
        connection.execute(
            for_all
            + "SELECT repository_id, 'github', '2026-01-01', now(), 9, 'unreachable' FROM kb.repository"
        )
    started = time.monotonic()
    assert len(look(database).raised) == 10_000
    assert look(database) == Changes((), ())
    hook = Hook()
    assert alerting.tell(database, hook, NOW) is None
    (text,) = hook.texts
    lines = text.split("\n")
    assert lines[0] == "kb-platform alerts: 10,000 new"
    assert lines[1].startswith("ERROR stale-repository: 5,000: acme/r0001, acme/r0002, ")
    assert "acme/r0010 and 4,990 more. The first: never verified since" in lines[1]
    assert "acme/r0011" not in text
    assert lines[2].startswith("WARNING polling-fails: 5,000: ")
    assert len(text) < 1_500
    with database.transaction() as connection:
        connection.execute("DELETE FROM kb.watch")
    look(database)
    alerting.tell(database, hook, NOW)
    assert hook.texts[1].startswith(
        "kb-platform alerts: 10,000 resolved\nresolved stale-repository: 5,000: acme/r0001"
    )
    assert len(hook.texts) == 2
    assert time.monotonic() - started < 10


def alert(subject: str, message: str = "m", kind: str = "k") -> Alert:
    return Alert(1, kind, subject, "warning", message, NOW, NOW, None, None, None, 0, None)


def test_up_to_ten_of_a_kind_are_written_out() -> None:
    ten = alerting.message([alert(f"s{n:02}", message=f"m{n}") for n in range(10)]).split("\n")
    assert ten[1] == "WARNING k s00: m0"
    assert len(ten) == 11
    eleven = alerting.message([alert(f"s{n:02}", message=f"m{n}") for n in range(11)]).split("\n")
    assert eleven[0] == "kb-platform alerts: 11 new"
    assert eleven[1:] == [
        f"WARNING k: 11: {', '.join(f's{n:02}' for n in range(10))} and 1 more. The first: m0"
    ]


def test_a_message_is_bounded_and_nothing_in_it_is_markup_of_slack() -> None:
    evil = "<!channel> <https://evil.example|click> & \x1b[31m\nsecond line"
    text = alerting.message([alert(f"{evil}{n}", evil * 50, kind=f"k{n}") for n in range(40)])
    assert len(text) <= 4_100
    assert "<" not in text
    assert ">" not in text
    assert "\x1b" not in text
    assert "&lt;!channel&gt; &lt;https://evil.example|click&gt; &amp; [31m second line" in text
    assert text.endswith("more lines: `kb alerts` lists all")


# --- the request ---


@contextmanager
def listening(
    answer: Callable[[BaseHTTPRequestHandler], None],
) -> Generator[tuple[str, list[dict[str, Any]]]]:
    """A server of webhooks; its address and what it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append({"path": self.path, "type": self.headers["Content-Type"], "body": json.loads(body)})
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answering(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_a_text_is_posted_as_slack_takes_it_and_the_address_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with listening(answering(200)) as (base, got):
        assert webhook(SecretStr(f"{base}/services/T0/s3cret?key=k3y"))('say "ä"\n') is None
    assert got == [
        {"path": "/services/T0/s3cret?key=k3y", "type": "application/json", "body": {"text": 'say "ä"\n'}}
    ]
    assert "s3cret" not in caplog.text
    assert "k3y" not in caplog.text


@pytest.mark.parametrize("status", [301, 307, 404, 429, 500])
def test_any_other_answer_is_an_error_that_names_only_the_host(status: int) -> None:
    with listening(answering(status, Location="/elsewhere")) as (base, got):
        error = webhook(SecretStr(f"{base}/s3cret"))("x")
    assert error is not None
    assert error.startswith(f"{base.removeprefix('http://')} answered {status}")
    assert "s3cret" not in error
    assert [one["path"] for one in got] == ["/s3cret"]


@pytest.mark.parametrize(
    "url",
    ["", "hooks.example.com/s3cret", "ftp://h.example/s3cret", "http://", "http://h.example:port/s3cret",
     "http://[s3cret", "http://me:s3cret@127.0.0.1:1/s3cret", "http://127.0.0.1:1/\x00s3cret"],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_an_error_without_the_address(url: str) -> None:
    error = webhook(SecretStr(url))("x")
    assert error is not None
    assert "s3cret" not in error
    assert "me" not in error.split()[0]


def test_nobody_there_and_nobody_answering(caplog: pytest.LogCaptureFixture) -> None:
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        url = SecretStr(f"http://{address}/s3cret")
        assert webhook(url)("x") == f"{address} cannot be reached (ConnectError)"
        silent.listen()
        started = time.monotonic()
        assert webhook(url, timeout_s=0.2)("x") == f"{address} did not answer within 0.2 s"
        assert time.monotonic() - started < 1
    assert "s3cret" not in caplog.text


def test_an_answer_that_comes_in_drops_is_given_up_too() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1_000:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    with listening(drip) as (base, _):
        started = time.monotonic()
        assert "did not answer within 0.3 s" in str(webhook(SecretStr(base), timeout_s=0.3)("x"))
        assert time.monotonic() - started < 1


# --- the command ---


def run_command(database: Database, *arguments: str) -> Any:
    import typer

    from kb_platform.cli.alerts import register

    app = typer.Typer()
    register(app)
    # A group of one command would take its options itself.
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["alerts", *arguments], env={"KB_DATABASE_URL": database.url})


def test_the_command_lists_what_is_open_and_what_is_over(database: Database) -> None:
    assert "no alert is open" in run_command(database).stderr
    alerting.keep_up(database, ["k"], [problem("acme/a", message="\x1b[31mwhy"), problem("acme/b")], NOW)
    alerting.keep_up(database, ["k"], [problem("acme/a", message="\x1b[31mwhy")], NOW + MINUTE)
    alerting.tell(database, Hook("hooks.example.com answered 500"), NOW + 2 * MINUTE)
    shown = run_command(database)
    assert shown.exit_code == 0
    assert "acme/a" in shown.stdout
    assert "2026-05-03 09:30 UTC" in shown.stdout
    assert "acme/b" not in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "the webhook was not told of 1: hooks.example.com answered 500" in shown.stderr
    assert "acme/b" in run_command(database, "--all").stdout
    document = json.loads(run_command(database, "--all", "--json").stdout)
    assert [one["subject"] for one in document["open"]] == ["acme/a"]
    assert [one["subject"] for one in document["resolved"]] == ["acme/b"]
    assert document["open"][0]["raised_at"] == "2026-05-03T09:30:00Z"
