"""The kinds of change that a release note reports.

Belongs here: the kinds and their order. Does not belong here: how a kind is recognised (`labelling`).
"""

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
