"""Vectors on this machine: engines agree with each other and with transformers, in any order and any batch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kb_platform.embedding.bert import BertShape
from kb_platform.embedding.embedder import Vectors, checked_vectors, load_embedder
from kb_platform.embedding.folder import model_folder, read_config, tokenizer_file, weights_files
from kb_platform.embedding.local import LocalEmbedder, is_out_of_memory
from kb_platform.embedding.model import DEFAULT_MODEL, LocalModel, Pooling, model_from_id
from kb_platform.embedding.numpy_engine import NumpyBert, read_safetensors
from kb_platform.embedding.tokens import TokenReader, ascending, batch_end
from kb_platform.errors import EmbeddingError, ModelError, SettingsError
from tests.tiny_bert import HIDDEN, weights, write_model

TEXTS = ["w1", "w2 w3 w4", "", "w5 w6 w7 w8 w9 w10 w11", "unknown words", "w1", "w12 " * 60, "w90 w91"]

POOLINGS: dict[Pooling, dict[str, object]] = {
    "mean": {"pooling_mode_mean_tokens": True},
    "cls": {"pooling_mode_cls_token": True},
    "last": {"pooling_mode": "lasttoken"},
}


def cosines(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """Cosine of each row with its partner."""
    left64, right64 = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left64, axis=1) * np.linalg.norm(right64, axis=1)
    return np.einsum("ij,ij->i", left64, right64) / norms


# --- engines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize(
    ("kind", "extra"),
    [("bert", {}), ("roberta", {"pad_token_id": 0}), ("xlm-roberta", {"pad_token_id": 0})],
)
@pytest.mark.slow
def test_numpy_and_torch_agree_with_transformers(
    tmp_path: Path, pooling: Pooling, kind: str, extra: dict[str, object]
) -> None:
    from kb_platform.embedding.torch_engine import load_engine

    folder = write_model(tmp_path, kind=kind, extra=extra, pooling=POOLINGS[pooling])
    ids = TokenReader(tokenizer_file(folder), 24).read(TEXTS)
    shape = BertShape.from_config(read_config(folder))
    assert shape is not None
    # Without a shape transformers computes, padded and masked: an implementation that is not ours.
    expected = load_engine(folder, None, pooling, device="cpu", dtype="float32").encode(ids)
    in_numpy = NumpyBert.load(weights_files(folder), shape, pooling).encode(ids)
    in_torch = load_engine(folder, shape, pooling, device="cpu", dtype="float32").encode(ids)
    assert expected.shape == (len(TEXTS), HIDDEN)
    np.testing.assert_allclose(in_numpy, expected, atol=2e-5)
    np.testing.assert_allclose(in_torch, expected, atol=2e-5)


def test_the_default_model_agrees_with_transformers(shared_data: Path) -> None:
    from kb_platform.embedding.torch_engine import load_engine

    lines = (shared_data / "releases" / "pgvector__pgvector.jsonl").read_text(encoding="utf-8").splitlines()
    bullets = [bullet for line in lines for bullet in json.loads(line)["body"].splitlines()]
    texts = [bullet for bullet in bullets if 10 < len(bullet) < 200][:100]
    assert len(texts) == 100
    folder = model_folder(DEFAULT_MODEL)
    ids = TokenReader(tokenizer_file(folder), DEFAULT_MODEL.max_tokens).read(texts)
    shape = BertShape.from_config(read_config(folder))
    assert shape is not None
    expected = load_engine(folder, None, "mean", device="cpu", dtype="float32").encode(ids)
    in_numpy = NumpyBert.load(weights_files(folder), shape, "mean").encode(ids)
    assert cosines(in_numpy, expected).min() >= 0.99999
    in_bfloat16 = load_engine(folder, shape, "mean", device="cpu", dtype="bfloat16").encode(ids)
    assert cosines(in_bfloat16, expected).mean() >= 0.9999
    assert cosines(in_bfloat16, expected).min() >= 0.9998


def test_an_architecture_that_only_transformers_knows(tmp_path: Path) -> None:
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    folder = write_model(tmp_path)
    config = DistilBertConfig(
        vocab_size=100, dim=HIDDEN, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=40
    )
    DistilBertModel(config).save_pretrained(folder)
    model = model_from_id(str(folder))
    embedder = load_embedder(model, device="cpu")
    batch = embedder.embed_passages(TEXTS)
    assert embedder.engine.startswith("torch ")
    alone = np.stack([embedder.embed_query(text) for text in TEXTS])
    assert cosines(batch.vectors, alone).min() > 0.999


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"model_type": "mpnet"},
    ],
)
def test_what_is_no_plain_bert_is_left_to_transformers(change: dict[str, object]) -> None:
    plain = {"model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 4}
    assert BertShape.from_config(plain) == BertShape(layers=2, heads=4, epsilon=1e-12, first_position=0)
    assert BertShape.from_config(plain | change) is None


def test_a_config_without_layers_is_an_error() -> None:
    with pytest.raises(ModelError, match="does not describe its layers: KeyError"):
        BertShape.from_config({"model_type": "bert"})


@pytest.mark.parametrize("name", ["bert.", "model.encoder."])
def test_weights_under_a_prefix_are_found(tmp_path: Path, name: str) -> None:
    plain, prefixed = (
        write_model(tmp_path / "a"),
        write_model(tmp_path / "b", named={name + key: value for key, value in weights().items()}),
    )
    np.testing.assert_array_equal(_embed(plain), _embed(prefixed))


def test_norms_named_as_in_tensorflow_are_found(tmp_path: Path) -> None:
    renamed = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in weights().items()
    }
    np.testing.assert_array_equal(
        _embed(write_model(tmp_path / "a")), _embed(write_model(tmp_path / "b", named=renamed))
    )


def test_weights_of_half_precision_are_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    expected = _embed(write_model(tmp_path / "a"))
    for dtype, tolerance in ((torch.float16, 1e-2), (torch.bfloat16, 6e-2)):
        folder = write_model(tmp_path / str(dtype))
        halved = {key: torch.from_numpy(value).to(dtype) for key, value in weights().items()}
        save_file(halved, folder / "model.safetensors")
        read = read_safetensors(folder / "model.safetensors")
        for key, tensor in halved.items():
            np.testing.assert_array_equal(read[key], tensor.float().numpy())
        np.testing.assert_allclose(_embed(folder), expected, atol=tolerance)


def test_pickled_weights_are_read_as_tensors_alone(tmp_path: Path) -> None:
    import torch

    folder = write_model(tmp_path / "a")
    expected = _embed(folder)
    (folder / "model.safetensors").unlink()
    torch.save(
        {key: torch.from_numpy(value) for key, value in weights().items()}, folder / "pytorch_model.bin"
    )
    embedder = load_embedder(model_from_id(str(folder)), device="cpu", dtype="float32")
    np.testing.assert_allclose(embedder.embed_passages(TEXTS).vectors, expected, atol=2e-5)
    torch.save(_Malicious(tmp_path / "ran"), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        load_embedder(model_from_id(str(folder)), device="cpu").embed_query("w1")
    assert not (tmp_path / "ran").exists()


class _Malicious:
    """What a pickle can do when it is loaded as a pickle."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._file,)


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 64])
def test_damaged_weights_are_an_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        read_safetensors(file)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    named = weights()
    del named["encoder.layer.1.output.dense.bias"]
    model = model_from_id(str(write_model(tmp_path, named=named)))
    with pytest.raises(ModelError, match=r"lack encoder\.layer\.1\.output\.dense\.bias"):
        load_embedder(model)


def test_a_gpu_that_is_not_there_is_a_setting_to_change(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    embedder = load_embedder(model_from_id(str(write_model(tmp_path))), device="cuda")
    with pytest.raises(SettingsError, match="torch sees none"):
        embedder.embed_passages(["w1"])
    assert embedder.embed_query("w1").shape == (HIDDEN,)


# --- the embedder ------------------------------------------------------------------------------------------------


def test_order_is_kept_whatever_the_batches(tmp_path: Path) -> None:
    model = model_from_id(str(write_model(tmp_path)))
    whole = load_embedder(model).embed_passages(TEXTS)
    for budget in (1, 7, 30):
        parts = load_embedder(model, token_budget=budget).embed_passages(TEXTS)
        assert parts.tokens == whole.tokens
        np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-6)
    assert whole.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole.vectors, axis=1), 1, atol=1e-6)
    # 60 words are cut to the model's limit; every text has [CLS] and [SEP].
    assert whole.tokens == sum(min(len(text.split()), 22) + 2 for text in TEXTS)


def test_no_texts_are_no_vectors(tmp_path: Path) -> None:
    result = load_embedder(model_from_id(str(write_model(tmp_path)))).embed_passages([])
    assert result.vectors.shape == (0, HIDDEN)
    assert result.tokens == 0


def test_prefixes_are_put_in_front(tmp_path: Path) -> None:
    folder = str(write_model(tmp_path))
    plain = load_embedder(model_from_id(folder))
    prefixed = load_embedder(model_from_id(folder, query_prefix="w1 ", passage_prefix="w2 "))
    np.testing.assert_array_equal(prefixed.embed_query("w3"), plain.embed_query("w1 w3"))
    expected = plain.embed_passages(["w2 w3"]).vectors
    np.testing.assert_array_equal(prefixed.embed_passages(["w3"]).vectors, expected)


def test_lengths_are_kept_when_the_model_does_not_normalise(tmp_path: Path) -> None:
    model = cast("LocalModel", model_from_id(str(write_model(tmp_path))))
    kept = load_embedder(model.model_copy(update={"normalize": False})).embed_passages(TEXTS).vectors
    scaled = load_embedder(model).embed_passages(TEXTS).vectors
    assert np.ptp(np.linalg.norm(kept, axis=1)) > 0.01
    np.testing.assert_allclose(kept / np.linalg.norm(kept, axis=1, keepdims=True), scaled, atol=1e-6)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_has_a_vector(text: str) -> None:
    # Lone surrogates and control characters included: a question is whatever a person pastes.
    vector = _default().embed_query(text)
    assert vector.shape == (384,)
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5


_loaded: list[LocalEmbedder] = []


def _default() -> LocalEmbedder:
    if not _loaded:
        _loaded.append(LocalEmbedder.load(DEFAULT_MODEL))
    return _loaded[0]


def test_a_question_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys\n"
        "from kb_platform.embedding.embedder import load_embedder\n"
        "from kb_platform.embedding.model import DEFAULT_MODEL\n"
        "embedder = load_embedder(DEFAULT_MODEL)\n"
        "embedder.embed_query('what broke in 2.0?')\n"
        "embedder.embed_passages(['Fixed a crash.'] * 20)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'httpx2') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class CountingEngine:
    """Vectors that tell their text; fails on batches of more tokens than it has room for."""

    token_budget = 100
    free_calls = 0

    def __init__(
        self, name: str, *, room: int = 10**9, streams: int = 1, error: Exception | None = None
    ) -> None:
        self.name = name
        self.streams = streams
        self.batches: list[list[list[int]]] = []
        self.threads: set[int] = set()
        self._room = room
        self._error = error or MemoryError("no room")

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        self.threads.add(threading.get_ident())
        if len(batch) * max(map(len, batch)) > self._room:
            raise self._error
        self.batches.append([list(ids) for ids in batch])
        return np.array([[len(ids), *np.resize(ids, HIDDEN - 1)] for ids in batch], dtype=np.float32)

    def free(self) -> None:
        self.free_calls += 1


def _embedder(
    tmp_path: Path, small: CountingEngine | None, large: CountingEngine, *, small_tokens: int = 50
) -> LocalEmbedder:
    model = cast("LocalModel", model_from_id(str(write_model(tmp_path))))
    reader = TokenReader(tmp_path / "tokenizer.json", model.max_tokens)
    return LocalEmbedder(
        model.model_copy(update={"normalize": False}),
        reader,
        small=small,
        large=lambda: large,
        small_tokens=small_tokens,
    )


def _words(counts: Sequence[int]) -> list[str]:
    return [" ".join(f"w{(row + place) % 90}" for place in range(count)) for row, count in enumerate(counts)]


def test_small_batches_go_to_the_small_engine_until_its_share_is_used(tmp_path: Path) -> None:
    small, large = CountingEngine("small"), CountingEngine("large")
    embedder = _embedder(tmp_path, small, large, small_tokens=50)
    assert embedder.engine == "small"
    embedder.embed_passages(_words([10, 10]))  # 24 tokens
    embedder.embed_passages(_words([10, 10]))
    assert (len(small.batches), len(large.batches), embedder.engine) == (2, 0, "small")
    embedder.embed_passages(_words([1]))  # 3 more than are left
    embedder.embed_passages(_words([0]))
    assert (len(small.batches), len(large.batches), embedder.engine) == (2, 2, "large")
    embedder.embed_query("w1")
    assert len(small.batches) == 3


def test_both_engines_keep_as_many_threads_as_they_are_given(tmp_path: Path) -> None:
    from kb_platform.embedding.torch_engine import load_engine

    folder = write_model(tmp_path)
    shape = BertShape.from_config(read_config(folder))
    assert shape is not None
    ids = TokenReader(tokenizer_file(folder), 24).read(TEXTS * 20)
    for engine in (
        NumpyBert.load(weights_files(folder), shape, "mean", streams=3),
        load_engine(folder, shape, "mean", device="cpu", dtype="float32", streams=3),
    ):
        model = cast("LocalModel", model_from_id(str(folder)))
        reader = TokenReader(folder / "tokenizer.json", 24)
        embedder = LocalEmbedder(
            model, reader, small=None, large=lambda engine=engine: engine, token_budget=64
        )
        assert engine.streams == 3
        vectors = embedder.embed_passages(TEXTS * 20).vectors
        plain = checked_vectors(engine.encode(ids), TEXTS * 20, normalize=True)
        np.testing.assert_allclose(vectors, plain, atol=2e-5)


def test_without_a_small_engine_the_large_one_does_everything(tmp_path: Path) -> None:
    large = CountingEngine("large")
    embedder = _embedder(tmp_path, None, large)
    embedder.embed_query("w1")
    embedder.embed_passages(["w1"])
    assert len(large.batches) == 2


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(0, 22), max_size=60),
    room=st.integers(24, 120),
    streams=st.integers(1, 4),
)
def test_batches_are_halved_until_they_fit(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], room: int, streams: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("model")
    engine = CountingEngine("large", room=room, streams=streams)
    embedder = _embedder(tmp_path, None, engine)
    texts = _words(counts)
    result = embedder.embed_passages(texts)
    assert result.vectors[:, 0].tolist() == [count + 2 for count in counts]
    ids = TokenReader(tmp_path / "tokenizer.json", 24).read(texts)
    assert result.vectors[:, 1:].tolist() == [np.resize(row, HIDDEN - 1).tolist() for row in ids]
    assert sum(map(len, engine.batches)) == len(counts)
    failures = engine.free_calls
    embedder.embed_passages(texts)
    assert failures == 0 or engine.free_calls - failures <= failures


def test_a_smaller_budget_is_remembered(tmp_path: Path) -> None:
    engine = CountingEngine("large", room=25)
    embedder = _embedder(tmp_path, None, engine)
    embedder.embed_passages(_words([3] * 40))
    failures = engine.free_calls
    assert failures > 0
    embedder.embed_passages(_words([3] * 40))
    assert engine.free_calls == failures


def test_a_text_that_does_not_fit_alone_is_named(tmp_path: Path) -> None:
    embedder = _embedder(tmp_path, None, CountingEngine("large", room=10))
    with pytest.raises(EmbeddingError, match=r"single text of 22 tokens, 'w1 w2 ") as raised:
        embedder.embed_passages(["w1", *_words([0, 20])[1:]])
    assert raised.value.hint


def test_another_failure_of_the_engine_is_told_at_once(tmp_path: Path) -> None:
    engine = CountingEngine("large", room=0, error=RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(EmbeddingError, match=r"large failed on 2 texts, first of 'w1': CUDA error"):
        _embedder(tmp_path, None, engine).embed_passages(["w1", "w2"])
    assert engine.free_calls == 0


def test_an_engine_of_another_dimension_is_refused(tmp_path: Path) -> None:
    model = cast("LocalModel", model_from_id(str(write_model(tmp_path))))
    with pytest.raises(ModelError, match="vectors of 32 dimensions, not of 16"):
        load_embedder(model.model_copy(update={"dimension": 16})).embed_query("w1")


def test_batches_run_in_as_many_threads_as_the_engine_wants(tmp_path: Path) -> None:
    engine = CountingEngine("large", streams=3)
    _embedder(tmp_path, None, engine).embed_passages(_words([20] * 60))
    assert threading.get_ident() not in engine.threads
    assert 1 <= len(engine.threads) <= 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_torchs_own_error_for_the_cpu_is_recognised() -> None:
    import torch

    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50)
    assert is_out_of_memory(raised.value)


# --- tokens and vectors ------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 2_000))
def test_batches_cover_all_texts_within_the_budget(lengths: list[int], budget: int) -> None:
    order = ascending(lengths)
    assert sorted(order) == list(range(len(lengths)))
    ordered = [lengths[index] for index in order]
    assert ordered == sorted(lengths)
    start = 0
    while start < len(ordered):
        end = batch_end(ordered, start, budget)
        assert end > start
        assert end == start + 1 or (end - start) * ordered[end - 1] <= budget
        # As full as can be.
        assert end == len(ordered) or (end - start + 1) * ordered[end] > budget
        start = end
    assert start == len(ordered)


def test_a_tokenizer_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        TokenReader(tmp_path / "tokenizer.json", 16)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ([0.0, 0.0], "has no length"),
        ([float("nan"), 1.0], "is not finite"),
        ([float("inf"), 1.0], "is not finite"),
    ],
)
def test_vectors_that_cannot_be_ranked_are_refused(row: list[float], what: str) -> None:
    vectors = np.array([[1.0, 0.0], row], dtype=np.float32)
    for normalize in (True, False):
        with pytest.raises(EmbeddingError, match=f"of 1 of 2 texts {what}, first of 'the second"):
            checked_vectors(vectors, ["first", "the second" + "x" * 200], normalize=normalize)


def test_large_numbers_are_scaled_without_overflow() -> None:
    vectors = np.array([[3e30, 4e30], [3e-9, 4e-9]], dtype=np.float32)
    np.testing.assert_allclose(
        checked_vectors(vectors, ["a", "b"], normalize=True), [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6
    )


def _embed(folder: Path) -> Vectors:
    return load_embedder(model_from_id(str(folder))).embed_passages(TEXTS).vectors
