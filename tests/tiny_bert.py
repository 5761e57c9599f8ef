"""Random BERTs of a few thousand weights, written as folders in the layout of sentence-transformers.

Their vectors mean nothing; they are for what must hold with any weights: that engines agree, that files are read
and verified, that texts come back in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(96))]
HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 4, 64, 40


def weights(seed: int = 0, kind: str = "bert") -> dict[str, NDArray[np.float32]]:
    """Random weights under the names that BERT and RoBERTa checkpoints use."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.normal(0, 0.3, shape).astype(np.float32)

    named = {
        "embeddings.word_embeddings.weight": normal(len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": normal(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": normal(2 if kind == "bert" else 1, HIDDEN),
        "embeddings.LayerNorm.weight": 1 + normal(HIDDEN),
        "embeddings.LayerNorm.bias": normal(HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        maps = {
            "attention.self.query": (HIDDEN, HIDDEN),
            "attention.self.key": (HIDDEN, HIDDEN),
            "attention.self.value": (HIDDEN, HIDDEN),
            "attention.output.dense": (HIDDEN, HIDDEN),
            "intermediate.dense": (INNER, HIDDEN),
            "output.dense": (HIDDEN, INNER),
        }
        for name, shape in maps.items():
            named |= {f"{at}.{name}.weight": normal(*shape), f"{at}.{name}.bias": normal(shape[0])}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            named |= {f"{at}.{name}.weight": 1 + normal(HIDDEN), f"{at}.{name}.bias": normal(HIDDEN)}
    return named


def write_model(
    folder: Path,
    *,
    kind: str = "bert",
    pooling: Mapping[str, object] | None = None,
    modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
    named: Mapping[str, NDArray[np.float32]] | None = None,
    extra: Mapping[str, object] | None = None,
    max_tokens: int = 24,
) -> Path:
    """A model in `folder`: configuration, tokenizer, weights. `extra` are further fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": kind,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2 if kind == "bert" else 1,
        "vocab_size": len(WORDS),
        "pad_token_id": 0,
        **(extra or {}),
    }
    write_json(folder / "config.json", config)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    write_json(
        folder / "modules.json",
        [{"type": f"sentence_transformers.models.{name}", "path": paths[name]} for name in modules],
    )
    if "Pooling" in modules:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        write_json(folder / "1_Pooling" / "config.json", pooling or {"pooling_mode_mean_tokens": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    write_tokenizer(folder / "tokenizer.json")
    save_file(dict(named or weights(kind=kind)), folder / "model.safetensors")
    return folder


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def write_tokenizer(file: Path) -> None:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As whoever saved it left it: these settings must not matter.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(file))
