"""Filters: which releases and changes a search may return.

Belongs here: the conditions, what they mean, how they are shown. Does not belong here: how a question is
turned into them (`retrieval.question`), or how PostgreSQL applies them (`store`). `Filters.admits` is the
plain statement of their meaning that the SQL is tested against.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from kb_platform.text.kinds import Kind
from kb_platform.text.versions import FLOOR, VersionRange, parse_version


def _utc(moment: datetime) -> datetime:
    """A time without a zone is UTC, as the times of GitHub's API are."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _version(text: str) -> str:
    if parse_version(text) is None:
        raise ValueError(f"{text!r} is not a version; write for example 1.4.0")
    return text


Bound = Annotated[str, AfterValidator(_version)]
Moment = Annotated[datetime, AfterValidator(_utc)]


class Filters(BaseModel):
    """Conditions that all hold for a release that is returned; one that is not set holds for every release.

    The four bounds are tags, or versions as a person writes them. Versions that are equal are the same bound
    (`1.4` and `v1.4.0`). A tag that is no version lies in no range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repositories: tuple[str, ...] = ()
    """'owner/repo', any of them."""
    package: str | None = None
    """Of a repository that tags several packages, the one meant: `create-vite`, `@astrojs/cloudflare`; ''
    means the tags that name none."""
    after_version: Bound | None = None
    """Excluded."""
    from_version: Bound | None = None
    """Included."""
    upto_version: Bound | None = None
    """Included."""
    before_version: Bound | None = None
    """Excluded."""
    versions: tuple[str, ...] = ()
    """Exact tags, any of them."""
    published_from: Moment | None = None
    """Included; UTC."""
    published_before: Moment | None = None
    """Excluded; UTC."""
    kinds: tuple[Kind, ...] = ()
    """Kinds of change, any of them."""
    prerelease: bool | None = None
    """None: both; False: stable releases only; True: pre-releases only."""

    def version_range(self) -> VersionRange | None:
        """The bounds and the package as a range, or None when neither is set."""
        bounds = (self.after_version, self.from_version, self.upto_version, self.before_version)
        if self.package is None and not any(bounds):
            return None
        return VersionRange(*bounds, package=self.package)

    def admits(self, *, repository: str, tag: str, published_at: datetime | None, prerelease: bool) -> bool:
        """Whether a release may be returned. Kinds are a matter of its changes and not looked at here."""
        versions = self.version_range()
        return (
            (not self.repositories or repository in self.repositories)
            and (not self.versions or tag in self.versions)
            and (self.prerelease is None or prerelease == self.prerelease)
            and (versions is None or versions.contains(tag))
            and self._admits_moment(published_at)
        )

    def _admits_moment(self, published_at: datetime | None) -> bool:
        if self.published_from is None and self.published_before is None:
            return True
        if published_at is None:
            return False
        moment = _utc(published_at)
        return (self.published_from is None or moment >= self.published_from) and (
            self.published_before is None or moment < self.published_before
        )

    def as_json(self) -> dict[str, Any]:
        """What is set, in JSON's types: lists, text, times as ISO 8601."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def describe(self) -> list[str]:
        """What is set, one phrase a condition, for people."""
        phrases: list[str] = []
        if self.repositories:
            phrases.append("repository " + " or ".join(self.repositories))
        if self.package is not None:
            phrases.append(f"package {self.package}" if self.package else "tags that name no package")
        if bounds := self._describe_bounds():
            phrases.append(bounds)
        if self.versions:
            phrases.append(
                ("release " if len(self.versions) == 1 else "releases ") + ", ".join(self.versions)
            )
        if period := self._describe_period():
            phrases.append(period)
        if self.kinds:
            phrases.append("changes of kind " + " or ".join(self.kinds))
        if self.prerelease is not None:
            phrases.append("pre-releases only" if self.prerelease else "stable releases only")
        return phrases

    def _describe_bounds(self) -> str:
        line = self._line()
        if line is not None:
            return f"versions {line}.x"
        parts: list[str] = []
        if self.after_version:
            parts.append(f"after {self.after_version}")
        if self.from_version:
            parts.append(f"from {_shown(self.from_version)} on")
        if self.upto_version:
            parts.append(f"up to and including {self.upto_version}")
        if self.before_version:
            parts.append(f"before {_shown(self.before_version)}")
        return "versions " + ", ".join(parts) if parts else ""

    def _line(self) -> str | None:
        """'2.1' when the bounds hold exactly the versions 2.1.x."""
        lower, upper = self.from_version or "", self.before_version or ""
        if self.after_version or self.upto_version or not (lower.endswith(FLOOR) and upper.endswith(FLOOR)):
            return None
        first, last = parse_version(lower), parse_version(upper)
        if first is None or last is None or first.release[:-1] != last.release[:-1]:
            return None
        return lower.removesuffix(FLOOR) if first.release[-1] + 1 == last.release[-1] else None

    def _describe_period(self) -> str:
        start, end = self.published_from, self.published_before
        parts: list[str] = []
        if start is not None:
            parts.append("from " + _moment(start))
        if end is not None:
            # The bound is excluded; people read a period by its last day.
            last_day = end.time() == time.min
            parts.append(
                "up to " + _moment(end - timedelta(days=1)) if last_day else "before " + _moment(end)
            )
        return "published " + " ".join(parts) + " (UTC)" if parts else ""


def _shown(bound: str) -> str:
    return f"{bound.removesuffix(FLOOR)} and its pre-releases" if bound.endswith(FLOOR) else bound


def _moment(moment: datetime) -> str:
    return moment.date().isoformat() if moment.time() == time.min else f"{moment:%Y-%m-%d %H:%M:%S}"
