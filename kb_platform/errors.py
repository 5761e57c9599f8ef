"""The exceptions of kb-platform.

Belongs here: every exception that crosses a module's border. Does not belong here: how an error is shown
(the command line and the app decide that).

KbError                       anything below; its text is written for the person who must act
├── SettingsError             a setting is missing or wrong
├── StoreError                PostgreSQL refused or cannot be reached
│   ├── DatabaseUnavailable   no connection could be made
│   ├── MigrationError        the schema in the database is not one that this version knows
│   └── IndexStateError       an index version is not in a state that allows the request
├── SourceError               a source of releases could not be read
│   ├── BadRecord             one record is not a release; it is quarantined, the rest goes on
│   ├── RateLimited           the source asks to wait, and says (or we chose) until when
│   └── SourceRefused         the source did not give what was asked for; `reason` says why
├── StreamError               Kafka could not do what was asked
│   ├── BrokersUnavailable    no broker answered in time
│   ├── BrokersRefused        brokers answered, and refuse us: password, certificate, rights
│   ├── PositionLost          where reading stopped is not there any more; `reason` says why
│   ├── Fenced                another loader has gone on from the same position
│   └── QueueFull             more waits to be sent than the producer may hold
├── ServiceError              a service of `kb up` did not start, or its port is taken
├── NotKnown                  a repository, tag, version or quarantined record that is not in the knowledge base
├── EmbeddingError            text could not be turned into vectors
│   └── ModelError            a model is missing, damaged or not the one that was asked for
└── VersionError              a text is not a version or not a version range
"""

from __future__ import annotations

from datetime import datetime


class KbError(Exception):
    """Base of all errors that kb-platform raises on purpose.

    `hint` says what to do; the command line prints it on a line of its own.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class SettingsError(KbError):
    """A setting is missing or wrong."""


class StoreError(KbError):
    """PostgreSQL refused or cannot be reached."""


class DatabaseUnavailable(StoreError):
    """No connection to PostgreSQL could be made."""


class MigrationError(StoreError):
    """The schema in the database is not one that this version of the code knows."""


class IndexStateError(StoreError):
    """An index version is not in a state that allows what was asked."""


class SourceError(KbError):
    """A source of releases could not be read."""


class BadRecord(SourceError):
    """One record is not a release. It is quarantined and the rest goes on.

    `reason` is a short, stable slug (`not-json`, `too-deep`, …) that checks and tests count by.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RateLimited(SourceError):
    """The source asks to wait: nothing may be asked with this credential before `until`.

    `kind`: `primary` (the hour's budget is spent), `secondary` (too quick), `unreachable` (it did not answer; we wait).
    """

    def __init__(self, message: str, *, until: datetime, kind: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.until = until
        self.kind = kind


class SourceRefused(SourceError):
    """The source did not give what was asked for.

    `reason` is a short, stable slug: `unreachable` (no connection, time-out), `server-error` (5xx), `garbled` (not the
    JSON that was asked for, or cut short), `unauthorized` (401), `forbidden` (403), `not-found` (404, 410: gone, or not
    for this credential), `blocked` (451, or blocked by the forge), `redirected` (in a circle, or to another host),
    `unexpected` (any other answer). Of our own finding: `duplicate` (the repository is watched under another name),
    `replaced` (another repository has its name now), `name-taken` (its new name is that of another forge's repository).
    """

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason

    @property
    def of_credential(self) -> bool:
        """Whether another credential may be given what this one was not."""
        return self.reason in {"unauthorized", "forbidden", "not-found"}


class StreamError(KbError):
    """Kafka could not do what was asked."""


class BrokersUnavailable(StreamError):
    """No broker answered in time: wrong address, all down, frozen, or a protocol that the listener does not speak."""


class BrokersRefused(StreamError):
    """Brokers answered and refuse us: password, certificate or rights."""


class PositionLost(StreamError):
    """Where reading stopped is not there any more; nothing is skipped until a person says so (`kb kafka reset`).

    `reason` is a short, stable slug: `missing` (there is no such topic), `recreated` (another topic has its name now),
    `truncated` (records after the position are deleted, by retention or by hand), `beyond-end` (the topic ends before the
    position).
    """

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class Fenced(StreamError):
    """Another loader has gone on from the same position; what this one read is in the log already, or will be."""


class QueueFull(StreamError):
    """More waits to be sent than the producer may hold; it is for the caller to wait, or to send load away."""


class ServiceError(KbError):
    """A service of `kb up` did not start, or cannot: its port is taken, its process ended."""


class NotKnown(KbError):
    """A repository, tag, index version or quarantined record that is not in the knowledge base."""


class EmbeddingError(KbError):
    """Text could not be turned into vectors."""


class ModelError(EmbeddingError):
    """A model is missing, damaged or not the one that was asked for."""


class VersionError(KbError):
    """A text is not a version, or not a version range."""
