"""The watch list: which repositories are polled, where, and how often.

Does not belong here: how a list is written down (`sources.watch_file`), what polling came to (`polls`), and what removing a
repository does to its data (`forgetting`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NamedTuple

from kb_platform.errors import KbError, NotKnown, StoreError
from kb_platform.sources.release import repository_name
from kb_platform.store.database import Connection
from kb_platform.store.repositories import ensure_repository, find_repository, lock_names

Change = Literal["added", "changed", "unchanged"]
GITHUB = "github"
SOURCES = (GITHUB, "gitea")


class Watch(NamedTuple):
    """A watched repository and where polling it stands. `every_s`, `stale_after_s`: None stands for the settings'.

    `forge`: whose number `external_id` is (see `forge_of`). `failures`: how often in a row polling has failed.
    """

    repository_id: int
    name: str
    forge: str
    external_id: int | None
    source: str
    api_url: str | None
    every_s: int | None
    stale_after_s: int | None
    added_at: datetime
    due_at: datetime
    polled_at: datetime | None
    verified_at: datetime | None
    outcome: str | None
    identified_at: datetime | None
    truncated: bool
    failures: int
    reason: str | None
    detail: str | None
    failing_since: datetime | None


WATCHES = """
    SELECT w.repository_id, r.name, r.forge, r.external_id, w.source, w.api_url, w.every_s, w.stale_after_s, w.added_at,
           w.due_at, w.polled_at, r.verified_at, w.outcome, w.identified_at, w.truncated, w.failures, w.reason, w.detail,
           w.failing_since
    FROM kb.watch w JOIN kb.repository r USING (repository_id)
"""


def watched(connection: Connection) -> list[Watch]:
    """Everything that is watched, by name."""
    return [Watch(*row) for row in connection.execute(f"{WATCHES} ORDER BY lower(r.name)")]


def find(connection: Connection, name: str) -> Watch:
    """A watched repository by its name, or by one that it had. Raises NotKnown."""
    try:
        repository_id, stored = find_repository(connection, name)
    except NotKnown:
        raise NotKnown(f"{name} is not watched", hint=f"`kb watch add {name}`") from None
    row = connection.execute(f"{WATCHES} WHERE w.repository_id = %s", (repository_id,)).fetchone()
    if row is None:
        raise NotKnown(f"{stored} is not watched", hint=f"`kb watch add {stored}`")
    return Watch(*row)


def forge_of(source: str, api_url: str | None) -> str:
    """What a repository's number counts at: `github`, or the address of another forge's API.

    Raises KbError where source and address do not go together.
    """
    if source not in SOURCES:
        raise KbError(f"there is no source {source!r}", hint=f"a source is one of {', '.join(SOURCES)}")
    if source == GITHUB:
        if api_url is not None:
            raise KbError(
                "GitHub's address is the same for all repositories",
                hint="set KB_GITHUB_API_URL, and leave it out here",
            )
        return GITHUB
    if api_url is None:
        raise KbError(f"where is the {source} server?", hint="give its address, such as https://HOST/api/v1")
    return api_url.rstrip("/")


def add(
    connection: Connection,
    name: str,
    *,
    source: str = GITHUB,
    api_url: str | None = None,
    every_s: int | None = None,
    stale_after_s: int | None = None,
    at: datetime,
) -> Change:
    """Watch a repository like this from now on; it is due at once, unless nothing changes.

    Raises KbError when the name is known from another forge: the two would be one repository in every answer.
    """
    forge = forge_of(source, api_url)
    name = repository_name(name)
    lock_names(connection)
    repository_id = _settle(connection, name, forge)
    wanted = (source, None if source == GITHUB else forge, every_s, stale_after_s)
    row = connection.execute(
        "SELECT source, api_url, every_s, stale_after_s FROM kb.watch WHERE repository_id = %s",
        (repository_id,),
    ).fetchone()
    if row == wanted:
        return "unchanged"
    connection.execute(
        """
        INSERT INTO kb.watch (repository_id, source, api_url, every_s, stale_after_s, added_at, due_at)
        VALUES (%s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (repository_id) DO UPDATE SET source = excluded.source, api_url = excluded.api_url,
            every_s = excluded.every_s, stale_after_s = excluded.stale_after_s, due_at = excluded.due_at
        """,
        (repository_id, *wanted, at, at),
    )
    return "added" if row is None else "changed"


def remove(connection: Connection, repository_id: int) -> None:
    """Watch a repository no more. Its data stays; what polling remembers of the forge's list goes.

    Pages go with their ETags: were the repository watched again, "not modified" would speak of a list long ago.
    """
    connection.execute("DELETE FROM kb.watch WHERE repository_id = %s", (repository_id,))
    connection.execute("DELETE FROM kb.page WHERE repository_id = %s", (repository_id,))
    connection.execute("DELETE FROM kb.absence WHERE repository_id = %s", (repository_id,))


def _settle(connection: Connection, name: str, forge: str) -> int:
    """The repository of that name, which stays, and of that forge, until the transaction ends.

    One that was only imported so far is of the forge where it is first watched.
    """
    repository_id, row = 0, None
    # Twice, where it is being forgotten in between.
    while row is None:
        repository_id = ensure_repository(connection, name)
        row = connection.execute(
            "SELECT name, forge, external_id IS NOT NULL "
            "OR EXISTS (SELECT FROM kb.watch w WHERE w.repository_id = r.repository_id) "
            "FROM kb.repository r WHERE repository_id = %s FOR NO KEY UPDATE",
            (repository_id,),
        ).fetchone()
    stored, known, is_settled = row
    if known == forge:
        return repository_id
    if is_settled:
        raise StoreError(
            f"{stored} is known from {_place(known)}, and cannot be watched at {_place(forge)} too: names are unique",
            hint=f"`kb watch remove {stored} --forget` first, if the other one is no longer wanted",
        )
    connection.execute("UPDATE kb.repository SET forge = %s WHERE repository_id = %s", (forge, repository_id))
    return repository_id


def _place(forge: str) -> str:
    return "GitHub" if forge == GITHUB else forge
