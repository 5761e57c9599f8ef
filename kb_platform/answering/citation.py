"""The citation: a span of a release's stored body, where it can be read, and how an answer refers to it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kb_platform.retrieval.searcher import Passage
from kb_platform.store.served import ServedChange


@dataclass(frozen=True)
class Citation:
    """`text` is exactly the stored body's code points `span[0]` to `span[1]`; built from a row, never from a model's words."""

    repository: str
    tag: str
    span: tuple[int, int]
    text: str
    url: str
    kind: str
    published_at: datetime | None

    @classmethod
    def of_passage(cls, passage: Passage) -> Citation:
        """The citation of a passage that was found."""
        return cls(
            passage.repository,
            passage.tag,
            passage.span,
            passage.text,
            passage.url,
            passage.kind,
            passage.published_at,
        )

    @classmethod
    def of_change(cls, change: ServedChange) -> Citation:
        """The citation of a change that was read."""
        span = (change.span_start, change.span_end)
        return cls(
            change.repository, change.tag, span, change.text, change.url, change.kind, change.published_at
        )

    def as_json(self) -> dict[str, Any]:
        """The fields that scripts rely on."""
        return {
            "repository": self.repository,
            "tag": self.tag,
            "kind": self.kind,
            "span": list(self.span),
            "text": self.text,
            "url": self.url,
            "published_at": self.published_at,
        }


def day(moment: datetime | None) -> str:
    """A date as answers show it."""
    return moment.strftime("%Y-%m-%d") if moment else "date unknown"
