"""Large batches with torch, on CPU or GPU. Importing this module imports torch.

Belongs here: the forward pass of BERT-like models on packed tokens, and of any other model through
transformers' AutoModel. Does not belong here: batches and their size (`local`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from safetensors import SafetensorError
from torch import Tensor

from kb_platform.embedding.bert import BertShape, BertWeights, Layer, arrange, runs
from kb_platform.embedding.embedder import Device, Precision, Vectors
from kb_platform.embedding.folder import weights_files
from kb_platform.embedding.model import Pooling
from kb_platform.errors import ModelError, SettingsError

# Tokens a batch. On a CPU the activations of one layer should stay in its second-level cache; a GPU wants work.
_TOKEN_BUDGET = {"cpu": 2_048, "cuda": 32_768}


def load_engine(
    folder: Path,
    shape: BertShape | None,
    pooling: Pooling,
    *,
    device: Device = "auto",
    dtype: Precision = "auto",
    streams: int = 1,
) -> TorchEngine:
    """The engine for the model in `folder`; `shape` None means that only transformers knows its architecture.

    On a CPU the engine computes `streams` batches at a time, and sets torch to one thread an operation, for the
    whole process. On a GPU it computes one batch at a time.
    """
    place = _device(device)
    if place.type == "cpu":
        # Threads that share each operation wait for the slowest at its end: with other work on the machine that
        # left 1,600 tokens a second of the 4,200 that one batch a thread kept (two cores, load 7), and nothing
        # is lost on an idle one.
        torch.set_num_threads(1)
    streams = streams if place.type == "cpu" else 1
    precision = _precision(place, dtype)
    if shape is None:
        return AutoModelEngine(folder, pooling, place, precision, streams)
    return TorchBert(_load(weights_files(folder)), shape, pooling, place, precision, streams)


class TorchEngine(ABC):
    """What both engines share."""

    def __init__(self, pooling: Pooling, device: torch.device, dtype: torch.dtype, streams: int) -> None:
        self.streams = streams
        self._pooling = pooling
        self._device = device
        self._dtype = dtype
        self.token_budget = _TOKEN_BUDGET[device.type]

    @property
    def name(self) -> str:
        return f"torch {str(self._dtype).removeprefix('torch.')} on {self._device.type}"

    def free(self) -> None:
        """Hand cached memory back to the GPU's driver."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        """Pooled vectors [texts, hidden] of token ids, float32, not normalised."""
        return self._encode(batch).float().cpu().numpy()

    @abstractmethod
    def _encode(self, batch: Sequence[Sequence[int]]) -> Tensor: ...

    def _pool(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """One vector a text of the token vectors [tokens, hidden] of all texts, one after the other."""
        sizes = torch.tensor(lengths, device=hidden.device)
        ends = sizes.cumsum(0)
        if self._pooling == "cls":
            return hidden[ends - sizes]
        if self._pooling == "last":
            return hidden[ends - 1]
        texts = torch.repeat_interleave(sizes)
        sums = hidden.new_zeros(len(lengths), hidden.shape[1], dtype=torch.float32)
        return sums.index_add_(0, texts, hidden.float()) / sizes[:, None]


class TorchBert(TorchEngine):
    """A BERT-like encoder on packed tokens: nothing is padded, attention runs over texts of one length.

    Matrices are multiplied in the chosen precision; the residual stream and the norms stay float32. With
    bfloat16 that gives cosine 0.99999 to float32 on average and 0.99995 at least, and 99.5 % of the ten nearest
    texts (3,000 chunks of real notes, all-MiniLM-L6-v2); bfloat16 throughout fell to 0.9998.
    """

    def __init__(
        self,
        named: dict[str, Tensor],
        shape: BertShape,
        pooling: Pooling,
        device: torch.device,
        dtype: torch.dtype,
        streams: int,
    ) -> None:
        super().__init__(pooling, device, dtype, streams)
        self._shape = shape
        arranged = arrange(named, shape, torch.cat)
        self._weights = BertWeights(
            words=arranged.words.float().to(device),
            positions=arranged.positions.float().to(device),
            norm=self._norm(arranged.norm),
            layers=tuple(self._layer(layer) for layer in arranged.layers),
        )

    def _layer(self, layer: Layer[Tensor]) -> Layer[Tensor]:
        return Layer(
            query_key_value=self._linear(layer.query_key_value),
            attention_output=self._linear(layer.attention_output),
            attention_norm=self._norm(layer.attention_norm),
            intermediate=self._linear(layer.intermediate),
            output=self._linear(layer.output),
            output_norm=self._norm(layer.output_norm),
        )

    def _linear(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        matrix, bias = (tensor.to(self._device, self._dtype).contiguous() for tensor in pair)
        return matrix, bias

    def _norm(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scale, shift = (tensor.float().to(self._device) for tensor in pair)
        return scale, shift

    def _encode(self, batch: Sequence[Sequence[int]]) -> Tensor:
        lengths = [len(ids) for ids in batch]
        flat = torch.tensor([token for ids in batch for token in ids], device=self._device)
        places = torch.cat([torch.arange(length) for length in lengths]).to(self._device)
        x = self._normalised(self._weights.words[flat] + self._weights.positions[places], self._weights.norm)
        for layer in self._weights.layers:
            attended = F.linear(self._attention(x, layer, lengths), *layer.attention_output)
            x = self._normalised(x + attended, layer.attention_norm)
            hidden = F.gelu(F.linear(x.to(self._dtype), *layer.intermediate))
            x = self._normalised(x + F.linear(hidden, *layer.output), layer.output_norm)
        return self._pool(x, lengths)

    def _attention(self, x: Tensor, layer: Layer[Tensor], lengths: Sequence[int]) -> Tensor:
        heads, hidden = self._shape.heads, x.shape[1]
        projected = F.linear(x.to(self._dtype), *layer.query_key_value)
        out = projected.new_empty(x.shape)
        for start, count, length in runs(lengths):
            rows = slice(start, start + count * length)
            # [texts, length, 3, heads, size] → three of [texts, heads, length, size]
            split = projected[rows].view(count, length, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(split[0], split[1], split[2])
            out[rows] = attended.transpose(1, 2).reshape(count * length, hidden)
        return out

    def _normalised(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, x.shape[1:], norm[0], norm[1], self._shape.epsilon)


class AutoModelEngine(TorchEngine):
    """Any model that transformers knows, padded and masked. Importing it takes some ten seconds."""

    def __init__(
        self, folder: Path, pooling: Pooling, device: torch.device, dtype: torch.dtype, streams: int
    ) -> None:
        from transformers import AutoModel

        super().__init__(pooling, device, dtype, streams)
        auto_model: Any = AutoModel
        try:
            # Code that comes with a model is not run (trust_remote_code stays False).
            model = auto_model.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"transformers cannot load the model in {folder}: {error}",
                hint="Use a model that transformers knows without code of its own, or serve this one with TEI.",
            ) from error
        self._model: Any = model.eval().to(device)

    def _encode(self, batch: Sequence[Sequence[int]]) -> Tensor:
        lengths = [len(ids) for ids in batch]
        longest = max(lengths)
        # Masked positions count for nothing, so any id that every vocabulary has pads.
        ids = torch.tensor(
            [[*tokens, *[0] * (longest - len(tokens))] for tokens in batch], device=self._device
        )
        mask = (
            torch.arange(longest, device=self._device) < torch.tensor(lengths, device=self._device)[:, None]
        )
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            hidden: Tensor = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self._pool(hidden[mask], lengths)


def _load(files: Sequence[Path]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for file in files:
        try:
            named |= _read(file)
        except (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}", hint="Download the model again.") from error
    return named


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        read = cast("Callable[[Path], dict[str, Tensor]]", safetensors.torch.load_file)  # pyright: ignore[reportUnknownMemberType] - untyped
        return read(file)
    # weights_only: a pickle may run any code, this reads tensors alone.
    return torch.load(file, map_location="cpu", weights_only=True)


def _device(device: Device) -> torch.device:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise SettingsError(
            "a GPU was asked for, and torch sees none",
            hint="Set the device to auto or cpu, or check the driver and that the pod was given a GPU.",
        )
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def _precision(device: torch.device, dtype: Precision) -> torch.dtype:
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Without these instructions bfloat16 is emulated, slower than float32.
    has = torch.cpu.get_capabilities()
    native = has.get("avx512_bf16") or has.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32
