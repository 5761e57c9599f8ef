"""BERT without torch: the forward pass in numpy, float32.

It serves questions and small batches, so that `kb ask` and the app never import torch: a new process has its first
vector in 0.4 s, where importing torch alone takes 3 s and transformers' BERT 10 s (two cores of an EPYC, 2026-11).

Belongs here: that pass, and reading weights into numpy. Does not belong here: large batches (`torch_engine`).

Formulas: Devlin et al. 2019 (BERT), Vaswani et al. 2017 (attention), Hendrycks & Gimpel 2016 (GELU); the error
function is Abramowitz & Stegun 7.1.26, exact to 1.5e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize  # pyright: ignore[reportUnknownVariableType] - untyped library
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from kb_platform.embedding.bert import BertShape, BertWeights, Layer, arrange, runs
from kb_platform.embedding.model import Pooling
from kb_platform.errors import ModelError

Array = NDArray[np.float32]


class NumpyBert:
    """A BERT-like encoder on numpy, float32."""

    name = "numpy float32"
    token_budget = 1024

    def __init__(
        self, weights: BertWeights[Array], shape: BertShape, pooling: Pooling, *, streams: int = 1
    ) -> None:
        self.streams = streams
        self._weights = replace(weights, layers=tuple(_laid_out(layer) for layer in weights.layers))
        self._shape = shape
        self._pooling: Pooling = pooling

    @classmethod
    def load(
        cls, files: Sequence[Path], shape: BertShape, pooling: Pooling, *, streams: int = 1
    ) -> NumpyBert:
        """Read safetensors files, and set numpy's BLAS to one thread a product, for the whole process.

        Raises ModelError when they are damaged or lack a weight.
        """
        # The products of one question are so small that sharing them gains a third on an idle machine, and on
        # a busy one its threads wait for each other: 330 ms instead of 28 (two cores, load 8).
        threadpool_limits(1, user_api="blas")
        named: dict[str, Array] = {}
        for file in files:
            named |= read_safetensors(file)
        return cls(arrange(named, shape, np.concatenate), shape, pooling, streams=streams)

    def encode(self, batch: Sequence[Sequence[int]]) -> Array:
        """Pooled vectors [texts, hidden] of token ids, not normalised."""
        lengths = [len(ids) for ids in batch]
        flat = np.fromiter((token for ids in batch for token in ids), dtype=np.int64, count=sum(lengths))
        x = self._embed(flat, lengths)
        for layer in self._weights.layers:
            x = self._layer(x, layer, lengths)
        return self._pool(x, lengths)

    def free(self) -> None:
        """Nothing is kept between batches."""

    def _embed(self, flat: NDArray[np.int64], lengths: Sequence[int]) -> Array:
        x = self._weights.words[flat]
        for start, count, length in runs(lengths):
            rows = x[start : start + count * length].reshape(count, length, -1)
            rows += self._weights.positions[:length]
        return _normalised(x, self._weights.norm, self._shape.epsilon)

    def _layer(self, x: Array, layer: Layer[Array], lengths: Sequence[int]) -> Array:
        attended = _linear(self._attention(x, layer, lengths), layer.attention_output)
        attended += x
        x = _normalised(attended, layer.attention_norm, self._shape.epsilon)
        hidden = _linear(_gelu(_linear(x, layer.intermediate)), layer.output)
        hidden += x
        return _normalised(hidden, layer.output_norm, self._shape.epsilon)

    def _attention(self, x: Array, layer: Layer[Array], lengths: Sequence[int]) -> Array:
        heads, hidden = self._shape.heads, x.shape[1]
        size = hidden // heads
        projected = _linear(x, layer.query_key_value)
        projected[:, :hidden] *= np.float32(size**-0.5)
        out = np.empty_like(x)
        for start, count, length in runs(lengths):
            rows = slice(start, start + count * length)
            # [texts, length, 3, heads, size] → three of [texts, heads, length, size]
            split = projected[rows].reshape(count, length, 3, heads, size).transpose(2, 0, 3, 1, 4)
            scores = split[0] @ split[1].swapaxes(-1, -2)
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out[rows] = (scores @ split[2]).swapaxes(1, 2).reshape(count * length, hidden)
        return out

    def _pool(self, x: Array, lengths: Sequence[int]) -> Array:
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - np.asarray(lengths, dtype=np.int64)
        if self._pooling == "cls":
            return x[starts]
        if self._pooling == "last":
            return x[ends - 1]
        sums: Array = np.add.reduceat(x, starts)
        return sums / np.asarray(lengths, dtype=np.float32)[:, np.newaxis]


def read_safetensors(file: Path) -> dict[str, Array]:
    """All floating-point tensors of a safetensors file as float32. Raises ModelError when it is damaged."""
    try:
        tensors = cast("list[tuple[str, Mapping[str, Any]]]", deserialize(file.read_bytes()))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint="Download the model again.") from error
    return {
        name: _READERS[entry["dtype"]](np.frombuffer(entry["data"], dtype=np.uint8)).reshape(entry["shape"])
        for name, entry in tensors
        if entry["dtype"] in _READERS
    }


def _from_bfloat16(raw: NDArray[np.uint8]) -> Array:
    # The upper half of a float32.
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


_READERS: dict[str, Callable[[NDArray[np.uint8]], Array]] = {
    "F32": lambda raw: raw.view(np.float32),
    "F16": lambda raw: raw.view(np.float16).astype(np.float32),
    "BF16": _from_bfloat16,
}


def _laid_out(layer: Layer[Array]) -> Layer[Array]:
    """The layer with its matrices as [in, out] in memory.

    Checkpoints keep [out, in], and BLAS takes a third less time for the few rows of a question this way round
    (9.1 ms instead of 13.2 for 17 tokens, one thread).
    """

    def turned(weights: tuple[Array, Array]) -> tuple[Array, Array]:
        return np.ascontiguousarray(weights[0].T), weights[1]

    return replace(
        layer,
        query_key_value=turned(layer.query_key_value),
        attention_output=turned(layer.attention_output),
        intermediate=turned(layer.intermediate),
        output=turned(layer.output),
    )


def _linear(x: Array, weights: tuple[Array, Array]) -> Array:
    matrix, bias = weights
    y = x @ matrix
    y += bias
    return y


def _normalised(x: Array, weights: tuple[Array, Array], epsilon: float) -> Array:
    """Layer normalisation over the last axis; overwrites `x`."""
    scale, shift = weights
    x -= x.mean(axis=-1, keepdims=True)
    variance = np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1])
    x *= (1 / np.sqrt(variance + np.float32(epsilon)))[:, np.newaxis]
    x *= scale
    x += shift
    return x


def _gelu(x: Array) -> Array:
    """x · Φ(x), with the exact error function, as BERT was trained; overwrites `x`."""
    z = np.abs(x)
    z *= np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= t
        tail += np.float32(coefficient)
    tail *= t
    np.square(z, out=z)
    np.exp(np.negative(z, out=z), out=z)
    tail *= z
    # erf(|x|/√2) = 1 − tail, and x·Φ(x) = (x + |x|·erf(|x|/√2)) / 2.
    magnitude = np.abs(x)
    tail *= magnitude
    x += magnitude
    x -= tail
    x *= np.float32(0.5)
    return x
