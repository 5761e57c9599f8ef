"""BERT without torch: the forward pass in numpy.

Belongs here: what a BERT-like model is (its configuration and the names of its weights), and its forward pass
in float32 on numpy. It serves questions and small batches, so that `kb ask` and the app never import torch: a
new process has its first vector in 0.4 s, where importing torch alone takes 3 s and transformers' BERT 10 s
(two cores of an EPYC, 2026-11). Does not belong here: large batches (`torch_engine`).

Formulas: Devlin et al. 2019 (BERT), Vaswani et al. 2017 (attention), Hendrycks & Gimpel 2016 (GELU); the error
function is Abramowitz & Stegun 7.1.26, exact to 1.5e-7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from kb_platform.embedding.model import Pooling
from kb_platform.errors import ModelError

Array = NDArray[np.float32]
Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class BertShape:
    """The numbers of a BERT-like encoder that its weights do not tell."""

    layers: int
    heads: int
    epsilon: float
    """Of layer normalisation."""
    first_position: int
    """Row of the position table for a text's first token: 0, in RoBERTa the padding token's id plus 1."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BertShape | None:
        """The shape that `config.json` describes; None when the model is no plain BERT or RoBERTa encoder."""
        kind = config.get("model_type")
        if (
            kind not in ("bert", "roberta", "xlm-roberta", "camembert")
            or config.get("hidden_act", "gelu") != "gelu"
            or config.get("position_embedding_type", "absolute") != "absolute"
            or config.get("is_decoder", False)
        ):
            return None
        try:
            return cls(
                layers=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                epsilon=float(config.get("layer_norm_eps", 1e-12)),
                first_position=0 if kind == "bert" else int(config.get("pad_token_id", 1)) + 1,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"config.json of the model does not describe its layers: {error!r}",
                hint="Download the model again.",
            ) from error


@dataclass(frozen=True)
class Layer(Generic[Tensor]):
    """Weights of one layer: (matrix [out, in], bias) of each linear map, (scale, shift) of each norm."""

    query_key_value: tuple[Tensor, Tensor]
    attention_output: tuple[Tensor, Tensor]
    attention_norm: tuple[Tensor, Tensor]
    intermediate: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    output_norm: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BertWeights(Generic[Tensor]):
    """Weights of a BERT-like encoder, as arrays of numpy or torch."""

    words: Tensor
    """[vocabulary, hidden]"""
    positions: Tensor
    """[positions, hidden], from the first text token's on, the embedding of segment 0 already added."""
    norm: tuple[Tensor, Tensor]
    layers: tuple[Layer[Tensor], ...]


def arrange(
    named: Mapping[str, Tensor], shape: BertShape, concatenate: Callable[[list[Tensor]], Tensor]
) -> BertWeights[Tensor]:
    """Arrange weights by their names in a checkpoint (with or without a prefix such as `bert.`).

    Raises ModelError when one is missing.
    """
    anchor = "embeddings.word_embeddings.weight"
    prefix = next((name.removesuffix(anchor) for name in named if name.endswith(anchor)), "")

    def get(name: str) -> Tensor:
        try:
            return named[prefix + name]
        except KeyError as error:
            raise ModelError(
                f"the weights of the model lack {name}",
                hint="The file is of another kind of model than its config.json says. Download it again.",
            ) from error

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return get(f"{name}.weight"), get(f"{name}.bias")

    def norm(name: str) -> tuple[Tensor, Tensor]:
        # Checkpoints converted from TensorFlow call them gamma and beta.
        if prefix + f"{name}.gamma" in named:
            return get(f"{name}.gamma"), get(f"{name}.beta")
        return pair(name)

    def layer(index: int) -> Layer[Tensor]:
        at = f"encoder.layer.{index}."
        heads = [pair(f"{at}attention.self.{name}") for name in ("query", "key", "value")]
        return Layer(
            query_key_value=(concatenate([w for w, _ in heads]), concatenate([b for _, b in heads])),
            attention_output=pair(f"{at}attention.output.dense"),
            attention_norm=norm(f"{at}attention.output.LayerNorm"),
            intermediate=pair(f"{at}intermediate.dense"),
            output=pair(f"{at}output.dense"),
            output_norm=norm(f"{at}output.LayerNorm"),
        )

    positions: Any = get("embeddings.position_embeddings.weight")
    segments: Any = get("embeddings.token_type_embeddings.weight")
    return BertWeights(
        words=get(anchor),
        positions=positions[shape.first_position :] + segments[0],
        norm=norm("embeddings.LayerNorm"),
        layers=tuple(layer(index) for index in range(shape.layers)),
    )


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first token, texts, length) of each run of neighbouring texts of one length.

    Attention is computed run by run, so nothing is ever padded or masked.
    """
    start = 0
    for length, group in groupby(lengths):
        count = sum(1 for _ in group)
        yield start, count, length
        start += count * length


class NumpyBert:
    """A BERT-like encoder on numpy, float32."""

    name = "numpy float32"
    token_budget = 1024

    def __init__(self, weights: BertWeights[Array], shape: BertShape, pooling: Pooling) -> None:
        self._weights = weights
        self._shape = shape
        self._pooling: Pooling = pooling

    @classmethod
    def load(cls, files: Sequence[Path], shape: BertShape, pooling: Pooling) -> NumpyBert:
        """Read safetensors files. Raises ModelError when they are damaged or lack a weight."""
        named: dict[str, Array] = {}
        for file in files:
            named |= read_safetensors(file)
        return cls(arrange(named, shape, np.concatenate), shape, pooling)

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
        ends = np.cumsum(lengths)
        starts = ends - lengths
        if self._pooling == "cls":
            return x[starts]
        if self._pooling == "last":
            return x[ends - 1]
        return np.add.reduceat(x, starts) / np.asarray(lengths, dtype=np.float32)[:, np.newaxis]


def read_safetensors(file: Path) -> dict[str, Array]:
    """All floating-point tensors of a safetensors file as float32. Raises ModelError when it is damaged."""
    try:
        tensors = deserialize(file.read_bytes())
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


def _linear(x: Array, weights: tuple[Array, Array]) -> Array:
    matrix, bias = weights
    y = x @ matrix.T
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
