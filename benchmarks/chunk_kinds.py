"""How well are the kinds of change items recognised? Prints confusion tables and the breaking-change sets.

    python benchmarks/chunk_kinds.py [DATA]

DATA is the folder with releases/*.jsonl and golden/range.jsonl. No kinds were labelled by hand; what the
maintainers declared serves instead:

1. kinds that a heading declares ("Bug fixes") against those seen in the item's words alone;
2. kinds that an explicit prefix declares (`feat:`, `[BUGFIX]`) against those seen in the words after it;
3. kinds that an explicit prefix declares against those of the headings above the item;
4. for each question "which releases between A and B list breaking changes", the releases with a chunk of kind
   breaking against the expected set, exactly.

Repositories at even places of the sorted list were used to choose words and patterns ("tuned"); the others
("held out") were not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from kb_platform.text.chunk import Role, chunk_body
from kb_platform.text.evidence import Beginning, kind_of_words
from kb_platform.text.kinds import Kind
from kb_platform.text.section_kinds import Weight, kind_of_headings
from kb_platform.text.versions import VersionRange, parse_version

HALVES = ("tuned", "held out")
SILENT = "silent"
Table = Counter[tuple[str, str]]


def releases(data: Path) -> Iterator[tuple[str, str, bool, str]]:
    """(repository, tag, is a pre-release, body) of every release."""
    for path in sorted((data / "releases").glob("*.jsonl")):
        repository = path.stem.replace("__", "/", 1)
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                release = json.loads(line)
                yield repository, release["tag_name"], release["prerelease"], release["body"] or ""


def show(title: str, table: Table) -> None:
    """Print a table of counts: rows are declared kinds, columns are seen kinds ("silent": none is seen)."""
    total = table.total()
    right = sum(count for (declared, seen), count in table.items() if declared == seen)
    spoken = sum(count for (_, seen), count in table.items() if seen != SILENT)
    print(
        f"\n{title}: {total:,} items; of the {spoken / max(total, 1):.0%} that speak, "
        f"{right / max(spoken, 1):.1%} agree"
    )
    seen_kinds = [*Kind, SILENT]
    print(
        f"{'declared':>12} "
        + "".join(f"{kind[:8]:>9}" for kind in seen_kinds)
        + f"{'recall':>9}{'precis.':>9}"
    )
    for declared in Kind:
        row = [table[declared, seen] for seen in seen_kinds]
        if not sum(row):
            continue
        column = sum(table[other, declared] for other in Kind)
        hits = table[declared, declared]
        precision = f"{hits / column:.3f}" if column else "–"
        print(
            f"{declared:>12} "
            + "".join(f"{count:>9,}" for count in row)
            + f"{hits / sum(row):>9.3f}{precision:>9}"
        )


def breaking_sets(data: Path, breaking: dict[str, set[str]], stable: dict[str, list[str]]) -> None:
    """Print how many range questions about breaking changes get exactly the expected releases."""
    half_of = {repository: HALVES[place % 2] for place, repository in enumerate(sorted(stable))}
    exact: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    print("\nbreaking changes between two versions")
    for line in (data / "golden" / "range.jsonl").read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        repository = question["repo"]
        if not question["kind"].startswith("range_breaking") or repository not in stable:
            continue
        low, high = question["range"]
        package = version.prefix if (version := parse_version(high)) else None
        inside = VersionRange(after=low, upto=high, package=package)
        seen = {tag for tag in stable[repository] if inside.contains(tag) and tag in breaking[repository]}
        expected = set(question["expected_tags"])
        for group in (half_of[repository], "all"):
            asked[group] += 1
            exact[group] += seen == expected
        if seen != expected:
            missed, extra = sorted(expected - seen), sorted(seen - expected)
            print(f"  {question['id']} {repository} {low}..{high}: missed {missed}, extra {extra}")
    for group in (*HALVES, "all"):
        print(f"  {group}: {exact[group]} of {asked[group]} sets are exact")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("data", type=Path, nargs="?", default=default)
    data: Path = parser.parse_args().data
    if not (data / "releases").is_dir():
        print(f"no releases/ in {data}: give the folder of shared data", file=sys.stderr)
        return 2
    bodies = list(releases(data))
    half_of = {
        name: HALVES[i % 2] for i, name in enumerate(sorted({repository for repository, *_ in bodies}))
    }
    tables: dict[tuple[str, str], Table] = defaultdict(Counter)
    breaking: dict[str, set[str]] = defaultdict(set)
    stable: dict[str, list[str]] = defaultdict(list)
    for repository, tag, prerelease, body in bodies:
        version = parse_version(tag)
        if not prerelease and version and not version.prerelease:
            stable[repository].append(tag)
        for chunk in chunk_body(body):
            if chunk.kind is Kind.BREAKING:
                breaking[repository].add(tag)
            if chunk.role is not Role.ITEM:
                continue
            half = half_of[repository]
            beginning = Beginning(chunk.text)
            words = kind_of_words(beginning.words) or SILENT
            heading, weight = kind_of_headings(chunk.headings)
            if weight is not Weight.STRONG:
                heading = None
            if heading:
                tables[half, "1. headings against words"][heading, words] += 1
            if beginning.prefix:
                tables[half, "2. prefixes against words"][beginning.prefix, words] += 1
                tables[half, "3. prefixes against headings"][beginning.prefix, heading or SILENT] += 1
    for half, title in sorted(tables, key=lambda key: (key[1], HALVES.index(key[0]))):
        show(f"{title} ({half})", tables[half, title])
    breaking_sets(data, breaking, stable)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
