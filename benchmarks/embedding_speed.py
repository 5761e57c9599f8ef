"""How fast are texts embedded on this machine, and how near are the vectors to full precision?

    python benchmarks/embedding_speed.py [DATA] [--texts N] [--rounds N] [--json FILE]

DATA is a folder with releases/*.jsonl (default: ../shared/data beside the checkout, else the sample corpus of the
project). Their chunks are embedded with the default model by

- this project's engine as it chooses by itself, and in float32,
- sentence-transformers as it comes: batches of 32, float32,

in turns, in one process; the best round of each counts. Texts, tokens and cores are the same for all. "Limit" is
what the machine's matrix product reaches in bfloat16 at this model's shapes (all cores, one product a core, measured
in the same run), and the share of it is that of the model's own floating point operations. Overlap is how many of
the ten nearest texts are the same as in full precision.

Then the parts of a cold start: a new process until its first question is a vector, and importing torch, which a
question does without.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kb_platform.embedding.embedder import Vectors, load_embedder
from kb_platform.embedding.folder import model_folder, read_config, tokenizer_file
from kb_platform.embedding.local import LocalEmbedder, available_cores
from kb_platform.embedding.model import DEFAULT_MODEL
from kb_platform.embedding.tokens import TokenReader
from kb_platform.text.chunk import chunk_body
from kb_platform.text.cleaning import embedding_text

PROJECT = Path(__file__).parents[1]
FIRST_QUESTION = (
    "from kb_platform.embedding.embedder import load_embedder\n"
    "from kb_platform.embedding.model import DEFAULT_MODEL\n"
    "load_embedder(DEFAULT_MODEL).embed_query('what broke in 2.0?')\n"
)


@dataclass
class Measured:
    """One way of computing the vectors of all texts."""

    name: str
    compute: Callable[[], Vectors]
    seconds: float = float("inf")
    vectors: Vectors | None = None

    def round(self) -> None:
        started = time.perf_counter()
        self.vectors = self.compute()
        self.seconds = min(self.seconds, time.perf_counter() - started)


@dataclass(frozen=True)
class Row:
    engine: str
    seconds: float
    texts_per_s: float
    tokens_per_s: float
    ratio: float
    share_of_limit: float
    cosine_mean: float
    cosine_min: float
    overlap_at_10: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, default=PROJECT.parent / "shared" / "data")
    parser.add_argument("--texts", type=int, default=1_000, help="how many texts (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each engine (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()

    texts = corpus(arguments.data, arguments.texts)
    tokens = sum(map(len, _reader().read(texts)))
    print(f"{len(texts)} texts, {tokens} tokens ({tokens / len(texts):.1f} a text)", file=sys.stderr)
    rows = compared(texts, tokens, arguments.rounds)
    print(
        f"\n{'engine':32}{'texts/s':>9}{'tokens/s':>10}{'ratio':>7}{'limit':>7}{'cosine':>10}{'least':>10}{'top 10':>8}"
    )
    for row in rows:
        print(
            f"{row.engine:32}{row.texts_per_s:9.0f}{row.tokens_per_s:10.0f}{row.ratio:6.2f}x"
            f"{row.share_of_limit:7.0%}{row.cosine_mean:10.6f}{row.cosine_min:10.6f}{row.overlap_at_10:8.4f}"
        )
    starts = {
        "first question": _process_seconds(FIRST_QUESTION),
        "import torch": _process_seconds("import torch"),
    }
    starts["question in a warm process"] = question_seconds(texts)
    print()
    for name, seconds in starts.items():
        print(f"{name:32}{seconds:9.4f} s")
    if arguments.json:
        figures = {
            "texts": len(texts),
            "tokens": tokens,
            "engines": [asdict(row) for row in rows],
            "seconds": starts,
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def corpus(data: Path, count: int) -> list[str]:
    """`count` chunks, drawn evenly (seed 0) from the releases in `data`, as the embedding asset sees them."""
    folder = data / "releases"
    if not folder.is_dir():
        folder = PROJECT / "kb_platform" / "sample_corpus" / "releases"
        print(f"no releases in {data}; the sample corpus serves", file=sys.stderr)
    releases: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.jsonl")):
        repository = path.stem.replace("__", "/", 1)
        with path.open(encoding="utf-8") as lines:
            releases += [(repository, json.loads(line)["body"] or "") for line in lines]
    random.Random(0).shuffle(releases)
    texts: dict[str, None] = {}
    for repository, body in releases:
        texts |= dict.fromkeys(embedding_text(repository, chunk) for chunk in chunk_body(body))
        if len(texts) >= 4 * count:
            break
    return random.Random(0).sample(sorted(texts), min(count, len(texts)))


def compared(texts: list[str], tokens: int, rounds: int) -> list[Row]:
    """All engines in turns, warmed up by a few texts first."""
    import torch
    from sentence_transformers import SentenceTransformer

    cores = available_cores()
    automatic, full = _torch_embedder("auto"), _torch_embedder("float32")
    peer: Any = SentenceTransformer(str(model_folder(DEFAULT_MODEL)), device="cpu")

    def ours(embedder: LocalEmbedder) -> Callable[[], Vectors]:
        def compute() -> Vectors:
            torch.set_num_threads(1)
            return embedder.embed_passages(texts).vectors

        return compute

    def theirs() -> Vectors:
        torch.set_num_threads(cores)
        return peer.encode(texts)

    automatic.embed_passages(texts[:64])
    full.embed_passages(texts[:64])
    peer.encode(texts[:64])
    measured = [
        Measured("sentence-transformers", theirs),
        Measured(f"{full.engine}", ours(full)),
        Measured(f"{automatic.engine} (default)", ours(automatic)),
    ]
    limit = 0.0
    for number in range(rounds):
        for one in measured:
            one.round()
            limit = max(limit, product_limit(cores))
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    print(f"limit: {limit / 1e9:.0f} GFLOP/s in bfloat16 on {cores} cores", file=sys.stderr)
    operations = tokens * operations_per_token()
    reference = measured[0].vectors
    assert reference is not None
    return [
        _row(one, len(texts), tokens, measured[0].seconds, operations / limit, reference) for one in measured
    ]


def _row(
    one: Measured, texts: int, tokens: int, peer_seconds: float, limit_seconds: float, reference: Vectors
) -> Row:
    assert one.vectors is not None
    cosines = np.einsum("ij,ij->i", one.vectors, reference)
    return Row(
        engine=one.name,
        seconds=one.seconds,
        texts_per_s=texts / one.seconds,
        tokens_per_s=tokens / one.seconds,
        ratio=peer_seconds / one.seconds,
        share_of_limit=limit_seconds / one.seconds,
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        overlap_at_10=overlap(one.vectors, reference),
    )


def overlap(vectors: Vectors, reference: Vectors, queries: int = 200, k: int = 10) -> float:
    """Share of the k nearest texts of each of the first texts that both agree on."""
    sets = [
        [set(row) for row in np.argsort(-(given[:queries] @ given.T), axis=1)[:, :k].tolist()]
        for given in (vectors, reference)
    ]
    return float(np.mean([len(a & b) / k for a, b in zip(*sets, strict=True)]))


def product_limit(cores: int) -> float:
    """Floating point operations a second of bfloat16 matrix products at the model's largest shapes."""
    import torch

    torch.set_num_threads(1)
    hidden, inner = _sizes()
    rows = 2_048
    x = torch.randn(rows, hidden).bfloat16()
    up, down = torch.randn(inner, hidden).bfloat16(), torch.randn(hidden, inner).bfloat16()

    def products(_: int) -> None:
        for _round in range(20):
            torch.nn.functional.linear(torch.nn.functional.linear(x, up), down)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(products, range(cores)))
        started = time.perf_counter()
        list(pool.map(products, range(cores)))
        seconds = time.perf_counter() - started
    return cores * 20 * 4 * rows * hidden * inner / seconds


def operations_per_token() -> float:
    """Of the linear maps alone: two for each weight. Attention adds 1 to 2 % at these lengths."""
    hidden, inner = _sizes()
    layers = read_config(model_folder(DEFAULT_MODEL))["num_hidden_layers"]
    return 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)


def question_seconds(texts: list[str]) -> float:
    """Median time of a question of about a dozen words in a process that has answered others."""
    embedder = load_embedder(DEFAULT_MODEL)
    seconds: list[float] = []
    for text in texts[:60]:
        question = " ".join(text.split()[:12])
        started = time.perf_counter()
        embedder.embed_query(question)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[10:]))


def _sizes() -> tuple[int, int]:
    config = read_config(model_folder(DEFAULT_MODEL))
    return config["hidden_size"], config["intermediate_size"]


def _reader() -> TokenReader:
    return TokenReader(tokenizer_file(model_folder(DEFAULT_MODEL)), DEFAULT_MODEL.max_tokens)


def _torch_embedder(dtype: Any) -> LocalEmbedder:
    from kb_platform.embedding.bert import BertShape
    from kb_platform.embedding.torch_engine import load_engine

    folder = model_folder(DEFAULT_MODEL)
    shape = BertShape.from_config(read_config(folder))
    engine = load_engine(
        folder, shape, DEFAULT_MODEL.pooling, device="cpu", dtype=dtype, streams=available_cores()
    )
    return LocalEmbedder(DEFAULT_MODEL, _reader(), small=None, large=lambda: engine)


def _process_seconds(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PROJECT)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
