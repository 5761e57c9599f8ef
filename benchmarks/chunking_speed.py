"""How fast is a release body cut into chunks, and what comes out?

    python benchmarks/chunking_speed.py [DATA]

DATA is the folder with releases/*.jsonl. Prints seconds of one core for all bodies, chunks per role and kind,
the length of what is embedded, and how many golden answers stand whole inside one chunk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kb_platform.text.chunk import Chunk, Role, chunk_body
from kb_platform.text.cleaning import embedding_text


def read(data: Path) -> dict[tuple[str, str], str]:
    """(repository, tag) → body of every release."""
    bodies: dict[tuple[str, str], str] = {}
    for path in sorted((data / "releases").glob("*.jsonl")):
        repository = path.stem.replace("__", "/", 1)
        for line in path.read_text(encoding="utf-8").splitlines():
            release = json.loads(line)
            bodies[repository, release["tag_name"]] = release["body"] or ""
    return bodies


def whole_answers(data: Path, chunks: dict[tuple[str, str], list[Chunk]]) -> tuple[int, int]:
    """(how many golden lookups have their source bullet inside one searched chunk, how many there are)."""
    whole = asked = 0
    for line in (data / "golden" / "lookup.jsonl").read_text(encoding="utf-8").splitlines():
        question: dict[str, Any] = json.loads(line)
        found = chunks.get((question["repo"], question["source_tag"]))
        if found is None:
            continue
        asked += 1
        bullet = " ".join(question["source_bullet"].split())
        whole += any(
            bullet in " ".join(chunk.text.split()) for chunk in found if chunk.role in {Role.ITEM, Role.TEXT}
        )
    return whole, asked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("data", type=Path, nargs="?", default=default)
    data: Path = parser.parse_args().data
    if not (data / "releases").is_dir():
        print(f"no releases/ in {data}: give the folder of shared data", file=sys.stderr)
        return 2
    bodies = read(data)
    started = time.process_time()
    chunks = {key: chunk_body(body) for key, body in bodies.items()}
    chunking = time.process_time() - started
    length = sum(map(len, bodies.values()))
    count = sum(map(len, chunks.values()))
    print(
        f"{len(bodies):,} bodies, {length:,} code points → {count:,} chunks in {chunking:.1f} s of one core"
    )
    print(f"  {length / chunking:,.0f} code points a second, {count / chunking:,.0f} chunks a second")
    started = time.process_time()
    texts = [
        embedding_text(repository, chunk)
        for (repository, _), found in chunks.items()
        for chunk in found
        if chunk.role in {Role.ITEM, Role.TEXT}
    ]
    embedded = sum(map(len, texts))
    print(f"{len(texts):,} texts to embed, {len(set(texts)):,} different, {embedded:,} code points,")
    print(f"  made in {time.process_time() - started:.1f} s")
    roles = Counter(chunk.role for found in chunks.values() for chunk in found)
    print("roles: " + ", ".join(f"{role} {number:,}" for role, number in roles.most_common()))
    searched = [chunk for found in chunks.values() for chunk in found if chunk.role in {Role.ITEM, Role.TEXT}]
    kinds = Counter(chunk.kind for chunk in searched)
    print("kinds: " + ", ".join(f"{kind} {number:,}" for kind, number in kinds.most_common()))
    lengths = sorted(len(chunk.text) for chunk in searched)
    quantiles = {p: lengths[min(len(lengths) * p // 100, len(lengths) - 1)] for p in (50, 90, 99, 100)}
    print("length: " + ", ".join(f"p{p} {value:,}" for p, value in quantiles.items()))
    if (data / "golden" / "lookup.jsonl").is_file():
        whole, asked = whole_answers(data, chunks)
        print(f"golden lookups whose source stands whole in one chunk: {whole} of {asked}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
