"""What real release notes become: chunks by role, their lengths, their words, and how much text is said twice.

    python benchmarks/corpus_shape.py [DATA]

DATA is the folder with releases/*.jsonl. Nothing is stored and no model is loaded. The decisions 0003 to 0005 and 0008
rest on these figures.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from kb_platform.sources.files import find_files, read_records
from kb_platform.sources.github_json import parse_release
from kb_platform.stages.chunking import cut_release
from kb_platform.text.chunk import Role


class Shape:
    """Counts over all releases seen so far."""

    def __init__(self) -> None:
        self.releases = 0
        self.roles: Counter[Role] = Counter()
        self.item_lengths: list[int] = []
        self.terms: list[int] = []
        self.passages: dict[bytes, int] = {}
        self.with_version: dict[bytes, int] = {}
        self.seconds = 0.0

    def add(self, raw: bytes) -> None:
        """Cut one release."""
        repository, release = parse_release(raw, repository=None, max_body_bytes=1 << 20)
        begun = time.perf_counter()
        cut = cut_release(repository, release)
        self.seconds += time.perf_counter() - begun
        self.releases += 1
        for one in cut:
            self.roles[one.chunk.role] += 1
            if one.chunk.role is Role.ITEM:
                self.item_lengths.append(one.chunk.end - one.chunk.start)
            if one.passage is not None and one.words is not None:
                self.terms.append(len(one.words.ids))
                text = one.passage.text
                self.passages[one.passage.key] = len(text)
                versioned = f"{release.tag}: {text}"
                self.with_version[hashlib.sha256(versioned.encode()).digest()] = len(versioned)

    def show(self) -> None:
        """Print the figures."""
        items, searched = self.item_lengths, len(self.terms)
        print(f"releases                       {self.releases:>12,}")
        for role, count in self.roles.most_common():
            print(f"chunks, {role:<22} {count:>12,}")
        print(f"searched chunks                {searched:>12,}")
        print(
            f"distinct passages              {len(self.passages):>12,}  ({len(self.passages) / searched:.1%} of them)"
        )
        print(f"  were the version in them     {len(self.with_version):>12,}")
        print(f"characters to embed            {sum(self.passages.values()):>12,}")
        print(f"  were the version in them     {sum(self.with_version.values()):>12,}")
        print(f"length of an item, median      {statistics.median(items):>12,.0f}")
        print(f"items under 200 code points    {sum(n < 200 for n in items) / len(items):>12.1%}")
        print(f"items over 1,000               {sum(n > 1_000 for n in items) / len(items):>12.1%}")
        print(f"terms of a chunk, median / most {statistics.median(self.terms):>5,.0f} / {max(self.terms):,}")
        print(f"seconds to cut                 {self.seconds:>12,.1f}")


def main() -> int:
    """Exit code 0, or 2 when there is nothing to measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("data", type=Path, nargs="?", default=default)
    folder: Path = parser.parse_args().data / "releases"
    if not folder.is_dir():
        print(f"no folder {folder}: give the folder of shared data", file=sys.stderr)
        return 2
    shape = Shape()
    for file in find_files([folder]):
        for record in read_records(file, max_record_bytes=1 << 24):
            shape.add(record.raw)
    shape.show()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
