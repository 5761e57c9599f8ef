"""Check the sample corpus against the real releases that its facts were taken from.

    python -m kb_platform.sample_corpus.verify SOURCE_RELEASES_FOLDER

Belongs here: what "true to the source" and "in our own words" mean, as checks, and the report of them. Of
every sample release it asks that the source has the tag; that id, dates, pre-release flag and link are
equal; that each reference (#1234, CVE, GHSA), each version and each `identifier` in our body occurs in the
source body; and that no sentence was copied.

Does not belong here: writing the corpus, or judging whether the prose is good.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from kb_platform.sample_corpus import releases_folder

EQUAL_FIELDS = ("id", "html_url", "created_at", "published_at", "prerelease")

# A run of this many words that both bodies share counts as copied. Names, lists of rule codes and common
# phrases stay below it: the longest such run in the corpus has 6 words.
COPIED_RUN = 8

_FENCE = re.compile(r"^ *(```+|~~~+)[^\n]*\n.*?^ *\1[^\n]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_TAG = re.compile(r"</?[a-z][^<>\n]*>", re.IGNORECASE)
_CODE_SPAN = re.compile(r"(`+)([^`]+)\1")
_NUMBER_REFERENCE = re.compile(r"(?<![\w/&])#\d+\b")
_ADVISORY = re.compile(r"\b(?:CVE-\d{4}-\d{4,}|GHSA(?:-\w{4}){3})\b")
_VERSION = re.compile(r"(?<![\w.])v?\d+(?:\.\d+)+(?![\w.]*\w)")

Release = dict[str, Any]


@dataclass
class RepositoryReport:
    """What the comparison of one repository's sample with its source found."""

    repository: str
    releases: int = 0
    facts: int = 0
    longest_run: int = 0
    differences: list[str] = field(default_factory=list[str])


def words(body: str) -> list[str]:
    """The words of a body in order: lower case, without markup, link targets and fenced code.

    A word is what stands between blanks, less the punctuation around it; `rd_kafka_poll()` is one word.
    """
    text = _TAG.sub(" ", _LINK.sub(r"\1", _FENCE.sub(" ", body))).lower()
    stripped = (re.sub(r"^\W+|\W+$", "", word) for word in text.split())
    return [word for word in stripped if word]


def longest_shared_run(ours: str, theirs: str) -> list[str]:
    """The longest run of consecutive words that both bodies contain."""
    our_words, their_words = words(ours), words(theirs)
    match = SequenceMatcher(None, our_words, their_words, autojunk=False).find_longest_match()
    return our_words[match.a : match.a + match.size]


def facts(body: str) -> list[str]:
    """What in a body can be looked up in the source: references, advisories, versions, identifiers."""
    prose = _FENCE.sub(" ", body)
    spans = [" ".join(match[2].split()) for match in _CODE_SPAN.finditer(prose)]
    mentioned = (*_NUMBER_REFERENCE.findall(body), *_ADVISORY.findall(body), *_VERSION.findall(prose), *spans)
    return sorted(set(mentioned))


def is_stated(fact: str, source: Release) -> bool:
    """Whether the source release states a fact: in its body, or as its own tag or name."""
    text = f"{source['tag_name']}\n{source['name']}\n{source['body']}"
    if re.fullmatch(r"#\d+", fact):
        # Some projects write #1006, others only link to /issues/1006.
        return re.search(rf"(?:#|/(?:pull|issues|discussions)/){fact[1:]}\b", text) is not None
    # An underscore may follow: reStructuredText writes a reference as `name_`.
    return re.search(rf"(?<!\w){re.escape(fact)}_?(?!\w)", text) is not None


def differences(ours: Release, theirs: Release) -> list[str]:
    """Everything in which a sample release departs from its source, in sentences."""
    found = [
        f"{name} is {ours[name]!r}, the source has {theirs[name]!r}"
        for name in EQUAL_FIELDS
        if ours[name] != theirs[name]
    ]
    found += [f"{fact} is not in the source" for fact in facts(ours["body"]) if not is_stated(fact, theirs)]
    run = longest_shared_run(ours["body"], theirs["body"])
    if len(run) >= COPIED_RUN:
        found.append(f"{len(run)} words in a row are copied: {' '.join(run)}")
    return found


def read_releases(path: Path) -> list[Release]:
    """The releases of a file that has one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def compare_repository(sample: Path, source: Path) -> RepositoryReport:
    """Compare the sample file of one repository with its source file, which need not exist."""
    report = RepositoryReport(sample.stem.replace("__", "/", 1))
    if not source.is_file():
        report.differences.append(f"the source has no file {source.name}")
        return report
    by_tag = {release["tag_name"]: release for release in read_releases(source)}
    for ours in read_releases(sample):
        tag = ours["tag_name"]
        report.releases += 1
        report.facts += len(facts(ours["body"]))
        theirs = by_tag.get(tag)
        if theirs is None:
            report.differences.append(f"{tag}: the source has no such tag")
            continue
        report.longest_run = max(report.longest_run, len(longest_shared_run(ours["body"], theirs["body"])))
        report.differences += [f"{tag}: {difference}" for difference in differences(ours, theirs)]
    return report


def verify(source_folder: Path, sample_folder: Path | None = None) -> list[RepositoryReport]:
    """Compare every repository of the sample corpus with the folder of real releases."""
    samples = sorted((sample_folder or releases_folder()).glob("*.jsonl"))
    return [compare_repository(sample, source_folder / sample.name) for sample in samples]


def render(reports: Sequence[RepositoryReport]) -> str:
    """A table with a line for each repository, then every difference on a line of its own."""
    width = max((len(report.repository) for report in reports), default=0)
    lines = [f"{'repository':<{width}}  releases  facts  longest shared run  differences"]
    lines += [
        f"{report.repository:<{width}}  {report.releases:>8}  {report.facts:>5}  "
        f"{report.longest_run:>12} words  {len(report.differences):>11}"
        for report in reports
    ]
    lines += [f"{report.repository} {difference}" for report in reports for difference in report.differences]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: all equal. 1: something differs. 2: wrong usage, or nothing to compare with."""
    parser = argparse.ArgumentParser(
        prog="python -m kb_platform.sample_corpus.verify",
        description="Check the sample corpus against the real releases that its facts were taken from.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE_RELEASES_FOLDER",
        type=Path,
        help="a folder of OWNER__REPO.jsonl files, one GitHub release a line",
    )
    source: Path = parser.parse_args(arguments).source
    if not any(source.glob("*.jsonl")):
        parser.error(f"{source} has no *.jsonl files; give the folder that holds OWNER__REPO.jsonl files")
    reports = verify(source)
    sys.stdout.write(render(reports))
    return 1 if any(report.differences for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
