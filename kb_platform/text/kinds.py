"""The kinds of change that a release note reports."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What a change means to whoever upgrades, the gravest first."""

    BREAKING = "breaking"
    SECURITY = "security"
    DEPRECATION = "deprecation"
    REMOVAL = "removal"
    FEATURE = "feature"
    FIX = "fix"
    PERFORMANCE = "performance"
    DOCS = "docs"
    OTHER = "other"
