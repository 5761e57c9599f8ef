"""The second stage: the current releases of a repository → chunks, once for each observation."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kb_platform.progress import Progress, Silence
from kb_platform.sources.release import Release
from kb_platform.store import chunks
from kb_platform.store.chunks import CUT, ChunkCounts, CutChunk, Passage
from kb_platform.store.database import Database
from kb_platform.store.release_log import StoredRelease
from kb_platform.store.repositories import find_repository, lock_repository
from kb_platform.text.chunk import Chunk, Role, chunk_body
from kb_platform.text.cleaning import embedding_text
from kb_platform.text.words import index_terms

# Releases in one transaction: large enough that a commit is cheap, small enough that a killed run repeats little.
BATCH_RELEASES = 100


@dataclass(frozen=True)
class ChunkReport:
    """What chunking a repository did and what there is now. `chunked`: releases cut in this run."""

    repository: str
    chunked: int
    seconds: float
    counts: ChunkCounts


def chunk_repository(database: Database, name: str, *, progress: Progress | None = None) -> ChunkReport:
    """Cut what is not cut yet. Raises NotKnown for an unknown repository."""
    started = time.monotonic()
    with database.snapshot() as connection:
        repository_id, name = find_repository(connection, name)
        waiting = chunks.not_chunked(connection, repository_id)
    with (progress or Silence()).task(f"chunk {name}", len(waiting), "releases") as task:
        for start in range(0, len(waiting), BATCH_RELEASES):
            batch = waiting[start : start + BATCH_RELEASES]
            cut = _cut_all(batch)
            with database.transaction() as connection:
                lock_repository(connection, repository_id)
                chunks.put(connection, cut)
            task.advance(len(batch))
    with database.snapshot() as connection:
        counts = chunks.counts(connection, repository_id)
    return ChunkReport(name, len(waiting), time.monotonic() - started, counts)


def cut_release(repository: str, release: Release, *, is_document: bool = False) -> list[CutChunk]:
    """A release → its chunks with passage and words. A document's title stands above all of its headings.

    Pure: the same release gives the same chunks, on any machine.
    """
    chunks = chunk_body(release.body)
    if is_document:
        # What a page is about is said in its title, and often nowhere else.
        chunks = [replace(chunk, headings=_under(release.name, chunk.headings)) for chunk in chunks]
    return [_cut(repository, release, chunk) for chunk in chunks]


def _under(title: str, headings: tuple[str, ...]) -> tuple[str, ...]:
    return headings if headings[:1] == (title,) else (title, *headings)


def _cut_all(batch: Sequence[StoredRelease]) -> list[tuple[int, list[CutChunk]]]:
    return [
        (found.sequence, cut_release(found.repository, found.release, is_document=found.is_document))
        for found in batch
    ]


def _cut(repository: str, release: Release, chunk: Chunk) -> CutChunk:
    address = json.dumps([CUT, chunk.role, chunk.kind, chunk.headings, chunk.text], ensure_ascii=False)
    chunk_id = hashlib.sha256(address.encode()).digest()
    if chunk.role not in (Role.ITEM, Role.TEXT):
        return CutChunk(chunk, chunk_id, None, None)
    text = embedding_text(repository, chunk)
    words = index_terms(repository, release.tag, chunk.headings, chunk.text)
    if not text.strip() or not words.ids:
        return CutChunk(chunk, chunk_id, None, None)
    return CutChunk(chunk, chunk_id, Passage(hashlib.sha256(text.encode()).digest(), text), words)
