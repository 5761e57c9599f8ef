"""Changelog files and tags → observations: for repositories whose releases are written nowhere else.

A section is a release of the version in its heading. Its tag, and its day where the heading gives none, are those of the
clone around the file. A tag without a section is a release too. What another source knows as a release is left to it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kb_platform.errors import BadRecord, NotKnown, SourceError
from kb_platform.progress import Progress, Silence, Task
from kb_platform.settings import Settings
from kb_platform.sources.changelog import ChangelogFile, read_changelog
from kb_platform.sources.clone import Clone, Tag, read_clone
from kb_platform.sources.github_json import parse_release
from kb_platform.sources.release import Observed, Refused, Release, repository_name
from kb_platform.stages.importing import Imported, import_observed
from kb_platform.store import release_log
from kb_platform.store.database import Database
from kb_platform.store.release_log import OUR_NUMBERS, StoredRelease
from kb_platform.store.repositories import find_repository, mark_verified
from kb_platform.text.changelog import Section, first_headings, package_of, parse_changelog
from kb_platform.text.headings import Markup
from kb_platform.text.restructuredtext import is_restructuredtext
from kb_platform.text.versions import Tags, Version, parse_version

FIRST_ID: Final = OUR_NUMBERS
MOST_NOTES: Final = 10


@dataclass
class ChangelogImported:
    """What an import did. `skipped`: sections and tags that became no release, by why."""

    imported: Imported
    sections: int
    tags: int
    skipped: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])


def import_changelog(
    database: Database,
    path: Path,
    settings: Settings,
    *,
    repository: str,
    with_tags: bool = True,
    progress: Progress | None = None,
) -> ChangelogImported:
    """Import a changelog, and with it the tags of its clone that have no section.

    The same file again appends nothing; an edited section is an edit; nothing is deleted because a section is gone.
    Raises SourceError where the file or its clone cannot be read or has no version.
    """
    repository = repository_name(repository)
    file = read_changelog(path)
    markup, sections = _sections(file)
    clone = read_clone(path)
    package = package_of(file.text, format=markup)
    plan = _Plan(
        repository, file.name, clone, _current(database, repository), settings.max_body_bytes, package
    )
    tags = clone.tags if clone is not None and with_tags else ()
    with (progress or Silence()).task("import", None, "releases") as task:
        imported = import_observed(database, _counted(plan.read(file.text, sections, tags), task))
    imported.files = 1
    _verified(database, repository)
    return ChangelogImported(
        imported, len(sections), len(tags), dict(plan.skipped), _notes(clone) + plan.notes[:MOST_NOTES]
    )


def release_id(version: Version, repository: str) -> int:
    """The number of a version: the same however it is written, and beyond those of any forge.

    Of the package too where the tag names one other than the repository itself.
    """
    package = version.prefix.casefold()
    own = package in {"", repository.rpartition("/")[2].casefold()}
    digest = hashlib.sha256(f"{'' if own else package}\n{version.key}".encode()).digest()
    return FIRST_ID + int.from_bytes(digest[:8]) % (2**63 - FIRST_ID)


def _sections(file: ChangelogFile) -> tuple[Markup, list[Section]]:
    """The sections; where the name does not tell the markup, as the one that has more of them."""
    if file.markup is not None:
        found: dict[Markup, list[Section]] = {file.markup: parse_changelog(file.text, format=file.markup)}
    else:
        kinds: list[Markup] = ["markdown", "restructuredtext"]
        ordered = kinds[::-1] if is_restructuredtext(file.text) else kinds
        found = {kind: parse_changelog(file.text, format=kind) for kind in ordered}
    markup = max(found, key=lambda kind: len(found[kind]))
    if not any(section.version for section in found[markup]):
        headings = [repr(title) for title in first_headings(file.text, format=markup)]
        raise SourceError(
            f"no heading of {file.name} is a version, such as '## 1.2.3' or '1.2.3 (2024-01-31)' with a rule below; "
            + (f"the first headings are {', '.join(headings)}" if headings else "it has no headings at all"),
            hint="is it the changelog? Versions must stand in headings of Markdown or reStructuredText",
        )
    return markup, found[markup]


def _current(database: Database, repository: str) -> list[StoredRelease]:
    with database.snapshot() as connection:
        try:
            repository_id, _ = find_repository(connection, repository)
        except NotKnown:
            return []
        return release_log.current_releases(connection, repository_id)


def _verified(database: Database, repository: str) -> None:
    """Every section and tag is in the log or in quarantine now."""
    with suppress(NotKnown), database.transaction() as connection:
        mark_verified(connection, [find_repository(connection, repository)[0]])


def _counted(items: Iterable[Observed | Refused], task: Task) -> Generator[Observed | Refused]:
    for item in items:
        yield item
        task.advance()


def _notes(clone: Clone | None) -> list[str]:
    if clone is None:
        return [
            "the file is not tracked by a git clone (or there is no git): tags and their days are not known"
        ]
    if not clone.tags:
        return ["the clone has no tags; one that was made with --depth has none: git fetch --tags"]
    return []


class _Plan:
    """What becomes of every section and tag, given what the log has."""

    def __init__(
        self,
        repository: str,
        name: str,
        clone: Clone | None,
        current: Sequence[StoredRelease],
        max_body_bytes: int,
        package: str | None,
    ) -> None:
        self.repository = repository
        self.path = clone.path if clone else name
        self.forge = clone.forge(repository) if clone else None
        self.tags = _TagsByVersion(clone.tags if clone else (), repository, package)
        self.max_body_bytes = max_body_bytes
        self.skipped: Counter[str] = Counter()
        self.notes: list[str] = []
        self.seen: set[int] = set()
        self.ours: dict[int, StoredRelease] = {}
        self.foreign: set[int] = set()
        for stored in current:
            version = parse_version(stored.release.tag)
            if version is None or stored.release.draft:
                continue
            number = release_id(version, repository)
            if stored.release.release_id == number:
                self.ours[number] = stored
            else:
                self.foreign.add(number)

    def read(
        self, text: str, sections: Sequence[Section], tags: Sequence[Tag]
    ) -> Generator[Observed | Refused]:
        """Releases and what is none, in the order of the file; then the tags without a section."""
        for section in sections:
            yield from self._section(text, section)
        for tag in tags:
            yield from self._tag(tag)

    def _section(self, text: str, section: Section) -> Generator[Observed | Refused]:
        tag = self.tags.find(section.version) if section.version else None
        # A heading that still says so although there is a tag was forgotten.
        if not section.version or (section.unreleased and tag is None):
            self.skipped["unreleased"] += 1
            return
        name = tag.name if tag else self.tags.written(section.version)
        version = parse_version(name)
        raw = text[slice(*section.span)].encode()
        origin = f"changelog:{self.path}:{section.line}"
        if version is None:
            self.skipped["no version"] += 1
            return
        number = release_id(version, self.repository)
        if number in self.seen:
            self.skipped["second section of a version"] += 1
            self.notes.append(f"line {section.line} begins a second section of {name}, which is passed over")
            return
        self.seen.add(number)
        day = section.published and datetime.combine(section.published, time(), UTC)
        made = tag.dated if tag else None
        fields = self._fields(number, name, section.heading, section.body, made, day or made, version)
        yield from self._told(number, fields, raw, origin)

    def _tag(self, tag: Tag) -> Generator[Observed | Refused]:
        version = parse_version(tag.name)
        if version is None:
            self.skipped["tag that is no version"] += 1
            return
        number = release_id(version, self.repository)
        if number in self.seen:
            return
        self.seen.add(number)
        fields = self._fields(number, tag.name, tag.name, tag.annotation, tag.dated, tag.dated, version)
        known = self.ours.get(number)
        if known is not None and known.release.body.strip() not in {"", tag.annotation}:
            # A section of another changelog, or one that was taken out of this: it says more than a tag.
            self.skipped["known from a changelog"] += 1
            return
        yield from self._told(number, fields, tag.raw, f"tag:{tag.name}")

    def _told(
        self, number: int, fields: dict[str, Any], raw: bytes, origin: str
    ) -> Generator[Observed | Refused]:
        if number in self.foreign:
            self.skipped["known as a release"] += 1
            if number in self.ours:
                # It came later than the import before this one; both would answer.
                yield Observed(self.repository, self.ours[number].release, raw, origin, deleted=True)
            return
        try:
            yield Observed(self.repository, self._checked(fields), raw, origin)
        except BadRecord as error:
            # Kept as the record that it is for the gate, so that `kb quarantine replay` can land it.
            yield Refused(error.reason, str(error), json.dumps(fields).encode(), origin, self.repository)

    def _fields(
        self,
        number: int,
        tag: str,
        name: str,
        body: str,
        created: datetime | None,
        published: datetime | None,
        version: Version,
    ) -> dict[str, Any]:
        """A release as GitHub would write it."""
        return {
            "id": number,
            "tag_name": tag,
            "name": name,
            "body": body,
            "created_at": created and created.isoformat(),
            "published_at": published and published.isoformat(),
            "prerelease": version.prerelease,
            "html_url": self._link(tag),
        }

    def _checked(self, fields: dict[str, Any]) -> Release:
        """Through the one gate that all releases come through. A draft needs no date there, as a section does not."""
        raw = json.dumps(fields | {"draft": True}).encode()
        _, release = parse_release(raw, repository=self.repository, max_body_bytes=self.max_body_bytes)
        return replace(release, draft=False)

    def _link(self, tag: str) -> str:
        """Without the line in the file: it changes with every release above it."""
        if self.forge is None:
            return f"https://github.com/{self.repository}/releases/tag/{quote(tag)}"
        return self.forge.release_url(tag) if tag in self.tags.names else self.forge.file_url(self.path)


class _TagsByVersion:
    """The tags of a clone, by the version that they name."""

    def __init__(self, tags: Sequence[Tag], repository: str, package: str | None) -> None:
        self.names = {tag.name: tag for tag in tags}
        self.known = Tags(self.names, repository=repository)
        prefixes = {prefix.casefold(): prefix for prefix in self.known.packages if prefix}
        self.package = prefixes.get((package or "").casefold()) or (
            package if package and "/" in package else None
        )

    def written(self, version: str) -> str:
        """A version that has no tag, with the package in front where the changelog is of one of several."""
        parsed = parse_version(version)
        named = self.package is None or (parsed is not None and parsed.prefix)
        return version if named else f"{self.package}@{version}"

    def find(self, version: str) -> Tag | None:
        """The tag of this very version; that of a line (`1.4` for 1.4.2) is another."""
        for text in dict.fromkeys([self.written(version), version]):
            wanted, found = parse_version(text), self.known.resolve(text)
            if wanted is not None and found is not None and found.key == wanted.key:
                return self.names[found.text]
        return None
