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
│   └── BadRecord             one record is not a release; it is quarantined, the rest goes on
├── NotKnown                  a repository, tag, version or quarantined record that is not in the knowledge base
├── EmbeddingError            text could not be turned into vectors
│   └── ModelError            a model is missing, damaged or not the one that was asked for
└── VersionError              a text is not a version or not a version range
"""

from __future__ import annotations


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


class NotKnown(KbError):
    """A repository, tag, index version or quarantined record that is not in the knowledge base."""


class EmbeddingError(KbError):
    """Text could not be turned into vectors."""


class ModelError(EmbeddingError):
    """A model is missing, damaged or not the one that was asked for."""


class VersionError(KbError):
    """A text is not a version, or not a version range."""
