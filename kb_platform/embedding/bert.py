"""What a BERT-like encoder is, whatever computes it.

Belongs here: reading its shape from `config.json`, arranging its weights by name, and runs of texts of one length.
Does not belong here: the forward passes (`numpy_engine`, `torch_engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar

from kb_platform.errors import ModelError

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
