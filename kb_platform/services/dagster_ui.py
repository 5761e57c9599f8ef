"""What Dagster's webserver tells over GraphQL: whether code and daemon are well, which runs are in flight.

Questions and answers only; what follows from them is said in `stack` and `abandoned_runs`.
"""

from __future__ import annotations

import http.client
import json
import re
from typing import Any, NamedTuple

from kb_platform.services.service import CannotTell, NotWell

TIMEOUT_S = 5.0
MOST_RUNS = 200

_LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
    __typename ... on PythonError { message } } } } ... on PythonError { message } } }"""
_DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required lastHeartbeatTime } } } }"
_RUNS = """
query($filter: RunsFilter!, $limit: Int!) { runsOrError(filter: $filter, limit: $limit) {
    ... on Runs { results { id status creationTime tags { key value } } } ... on PythonError { message } } }"""
_EVENTS = """
query($run: ID!) { logsForRun(runId: $run, limit: 100) {
    ... on EventConnection { events { ... on EngineEvent { message } } } } }"""
_CLOSE = """
mutation($run: String!) { terminateRun(runId: $run, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename } }"""
_PID = re.compile(r"Started process for (?:run|resuming job) \(pid: (\d+)\)")


class FlyingRun(NamedTuple):
    """A run that is said to be at work. `created`: seconds since the epoch."""

    run_id: str
    status: str
    created: float
    tags: dict[str, str]


class DagsterUi:
    """Dagster's webserver at an address of this machine."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """The data of a GraphQL answer. Raises CannotTell when there is none."""
        body = json.dumps({"query": query, "variables": variables})
        try:
            answer = json.loads(get(self._host, self._port, "/graphql", body))
        except NotWell as error:
            raise CannotTell(str(error)) from error
        except ValueError as error:
            raise CannotTell("the webserver's answer is no JSON") from error
        if answer.get("errors"):
            raise CannotTell(str(answer["errors"][0].get("message", "no message"))[:300])
        return answer["data"]

    def require_code(self) -> None:
        """Raises CannotTell while our code is not loaded: not for a fault of the webserver's."""
        workspace: dict[str, Any] = self.ask(_LOCATIONS)["workspaceOrError"]
        entries: list[dict[str, Any]] = workspace.get("locationEntries") or []
        if not entries:
            raise CannotTell(str(workspace.get("message", "no code location")))
        for entry in entries:
            loaded: dict[str, Any] = entry["locationOrLoadError"] or {}
            if entry["loadStatus"] != "LOADED" or "message" in loaded:
                raise CannotTell(f"the code is not loaded: {str(loaded.get('message', 'loading'))[:500]}")

    def require_daemon(self, *, since: float, within_s: float, now: float) -> None:
        """Raises NotWell unless each daemon has given a sign of life after `since` and in the last `within_s` seconds."""
        statuses = self.ask(_DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
        for status in statuses:
            if not status["required"]:
                continue
            last = status["lastHeartbeatTime"] or 0.0
            if last < since:
                raise NotWell(f"no sign of life of {status['daemonType']} yet")
            if now - last > within_s:
                raise NotWell(f"no sign of life of {status['daemonType']} for {now - last:.0f} s")

    def runs_in_flight(self) -> list[FlyingRun]:
        """Runs that are starting, started or being canceled."""
        wanted = {"statuses": ["STARTING", "STARTED", "CANCELING"]}
        found = self.ask(_RUNS, filter=wanted, limit=MOST_RUNS)["runsOrError"]
        return [
            FlyingRun(
                run["id"],
                run["status"],
                float(run["creationTime"] or 0),
                {tag["key"]: tag["value"] for tag in run["tags"]},
            )
            for run in found.get("results", [])
        ]

    def process_of(self, run_id: str) -> int | None:
        """The number of the process that a run said it runs in, if it has said so."""
        events = self.ask(_EVENTS, run=run_id)["logsForRun"].get("events", [])
        for event in reversed(events):
            if match := _PID.search(event.get("message", "")):
                return int(match[1])
        return None

    def close(self, run_id: str) -> None:
        """Record a run as canceled, without asking its process."""
        self.ask(_CLOSE, run=run_id)


def get(host: str, port: int, path: str, body: str | None = None) -> bytes:
    """The body of an answer 200 over HTTP. Raises NotWell. No proxy is asked: the server is on this machine."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotWell(f"no answer at {host}:{port}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise NotWell(f"{path} answers {answer.status}")
    return text
