"""Which model it is: identity, and what a model's own files say about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb_platform.embedding.embedder import load_embedder
from kb_platform.embedding.folder import model_folder
from kb_platform.embedding.model import (
    DEFAULT_MODEL,
    LocalModel,
    OpenAIModel,
    TeiModel,
    checked_url,
    model_from_id,
    model_from_json,
)
from kb_platform.errors import ModelError
from tests.tiny_bert import weights, write_json, write_model

TEI = TeiModel(id="owner/name", revision="0123456789abcdef", dimension=8, max_tokens=512, url="http://tei:80")


def test_the_default_models_key_is_pinned() -> None:
    # A new key embeds everything anew in every installation: it changes on purpose or not at all.
    assert DEFAULT_MODEL.key == "all-MiniLM-L6-v2@53aa5117-4a0f87e0"


def test_the_packaged_files_describe_themselves_as_the_default_model() -> None:
    described = model_from_id(str(model_folder(DEFAULT_MODEL)))
    here = {"id", "folder"}
    assert described.model_dump(exclude=here) == DEFAULT_MODEL.model_dump(exclude=here)
    assert model_from_id("sentence-transformers/all-MiniLM-L6-v2") == DEFAULT_MODEL


@pytest.mark.parametrize(
    "change",
    [
        {"dimension": 385},
        {"pooling": "cls"},
        {"normalize": False},
        {"max_tokens": 128},
        {"query_prefix": "query: "},
        {"passage_prefix": "passage: "},
        {"weights_sha256": "0" * 64},
        {"tokenizer_sha256": "0" * 64},
        {"id": "other/name"},
    ],
)
def test_whatever_changes_vectors_changes_the_key(change: dict[str, object]) -> None:
    assert DEFAULT_MODEL.model_copy(update=change).key != DEFAULT_MODEL.key


@pytest.mark.parametrize(
    "change", [{"folder": "/elsewhere"}, {"id": "/models/all-MiniLM-L6-v2/"}, {"revision": "main"}]
)
def test_where_files_lie_leaves_the_key_alone(change: dict[str, object]) -> None:
    assert DEFAULT_MODEL.model_copy(update=change).key == DEFAULT_MODEL.key


def test_a_server_with_a_known_revision_may_move() -> None:
    assert TEI.key == TEI.model_copy(update={"url": "http://elsewhere:81"}).key
    assert TEI.key != TEI.model_copy(update={"revision": "fedcba"}).key


def test_a_server_without_a_revision_is_known_by_its_address() -> None:
    model = OpenAIModel(id="m", dimension=8, max_tokens=512, url="http://one")
    assert model.key != model.model_copy(update={"url": "http://two"}).key


def test_kinds_of_one_name_have_different_keys() -> None:
    fields = {"id": "m", "revision": "abc", "dimension": 8, "max_tokens": 16}
    url = {"url": "http://one"}
    keys = {LocalModel(**fields).key, TeiModel(**fields, **url).key, OpenAIModel(**fields, **url).key}
    assert len(keys) == 3


@settings(deadline=None)
@given(st.text(min_size=1, max_size=300), st.none() | st.text(max_size=60))
def test_a_key_is_short_printable_and_stable(name: str, revision: str | None) -> None:
    model = LocalModel(id=name, revision=revision, dimension=8, max_tokens=16)
    assert model.key.isascii()
    assert model.key.isprintable()
    assert len(model.key) <= 80
    assert model_from_json(model.model_dump_json()) == model
    assert model_from_json(model.model_dump_json()).key == model.key


@pytest.mark.parametrize("text", ["", "{}", '{"provider": "cohere"}', '{"provider": "local", "id": "m"}'])
def test_json_that_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="does not describe an embedding model"):
        model_from_json(text)


def test_a_folder_describes_its_model(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "tiny", pooling={"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    model = model_from_id(str(folder), query_prefix="ask: ")
    assert isinstance(model, LocalModel)
    assert (model.dimension, model.pooling, model.normalize, model.max_tokens) == (32, "cls", True, 24)
    assert (model.query_prefix, model.passage_prefix) == ("ask: ", "")
    assert model.folder == str(folder)
    assert model.weights_sha256 is not None
    assert model.key.startswith(f"tiny@{model.weights_sha256[:8]}-")


def test_the_newer_form_of_the_pooling_file_is_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path, pooling={"embedding_dimension": 32, "pooling_mode": "lasttoken"})
    assert _local(folder).pooling == "last"


def test_without_sentence_transformers_files_the_mean_is_taken(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    model = _local(folder)
    assert (model.pooling, model.normalize, model.max_tokens) == ("mean", True, 40)


def test_roberta_has_fewer_positions_than_its_table(tmp_path: Path) -> None:
    folder = write_model(tmp_path, kind="roberta", max_tokens=99, extra={"pad_token_id": 1})
    assert _local(folder).max_tokens == 40 - 2


def test_a_model_for_the_dot_product_is_not_scaled(tmp_path: Path) -> None:
    folder = write_model(tmp_path, modules=("Transformer", "Pooling"))
    assert _local(folder).normalize
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "dot"})
    assert not _local(folder).normalize


def test_prefixes_come_from_the_models_own_prompts(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "q: ", "document": "d: "}})
    assert (_local(folder).query_prefix, _local(folder).passage_prefix) == ("q: ", "d: ")


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("e5-small-v2", ("query: ", "passage: ")),
        ("multilingual-e5-base", ("query: ", "passage: ")),
        ("multilingual-e5-large-instruct", ("", "")),
        ("bge-base-en-v1.5", ("Represent this sentence for searching relevant passages: ", "")),
        ("gte-small", ("", "")),
    ],
)
def test_families_without_prompts_in_their_files(
    tmp_path: Path, name: str, prefixes: tuple[str, str]
) -> None:
    model = _local(write_model(tmp_path / name))
    assert (model.query_prefix, model.passage_prefix) == prefixes


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_mode_max_tokens": True}, "pools by max,"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pools by cls and mean,"),
        ({"pooling_mode": "weightedmean"}, "pools by weightedmean,"),
        ({"pooling_mode": "mean", "include_prompt": False}, "leaves its prompt out"),
    ],
)
def test_pooling_that_is_not_computed_is_refused(
    tmp_path: Path, pooling: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        model_from_id(str(write_model(tmp_path, pooling=pooling)))
    assert raised.value.hint


def test_steps_that_are_not_computed_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, modules=("Transformer", "Pooling", "Dense"))
    with pytest.raises(ModelError, match="steps that are not computed here: Dense"):
        model_from_id(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[]", "holds no JSON object"),
        ("config.json", b"{}", "names no hidden_size"),
        ("modules.json", b"[1]", "cannot be read"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "no weights that can be read"),
    ],
)
def test_a_damaged_folder_is_described_in_words(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    folder = write_model(tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=message) as raised:
        model_from_id(str(folder))
    assert raised.value.hint


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_other_files_than_the_models_are_refused(tmp_path: Path, file: str) -> None:
    folder = write_model(tmp_path)
    model = model_from_id(str(folder))
    load_embedder(model).close()
    with (folder / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ModelError, match=f"not the expected ones: .*{file} has sha256") as raised:
        load_embedder(model)
    assert raised.value.hint
    assert "download the model again" in raised.value.hint


def test_a_models_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    model = model_from_id(str(write_model(tmp_path / "tiny"))).model_copy(
        update={"folder": str(tmp_path / "no")}
    )
    with pytest.raises(ModelError, match="is gone"):
        load_embedder(model)


def test_an_id_that_is_not_in_the_cache_is_an_error_when_offline() -> None:
    with pytest.raises(ModelError, match="kb-platform-tests/none is not in the Hugging Face cache"):
        model_from_id("kb-platform-tests/none", offline=True)


@pytest.mark.parametrize(
    "text", ["", "no such/folder/anywhere", "../x", "openai:name", "openai:@http://h", "a b"]
)
def test_what_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(ModelError) as raised:
        model_from_id(text)
    assert raised.value.hint


def test_urls_are_plain() -> None:
    assert checked_url("https://api.openai.com/v1/") == "https://api.openai.com"
    assert checked_url("http://host:8080") == "http://host:8080"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:80",
        "ftp://host",
        "http://",
        "http://me:s3cret@host",
        "http://host?key=s3cret",
        "http://h:x",
        "http://[",
    ],
)
def test_urls_that_are_no_servers_or_carry_secrets_are_refused(url: str) -> None:
    with pytest.raises(ModelError) as raised:
        checked_url(url)
    assert "s3cret" not in f"{raised.value} {raised.value.hint}"


def test_weights_from_other_checkpoints_differ(tmp_path: Path) -> None:
    one = model_from_id(str(write_model(tmp_path / "a" / "tiny")))
    two = model_from_id(str(write_model(tmp_path / "b" / "tiny", named=weights(seed=1))))
    assert one.key != two.key


def _local(folder: Path) -> LocalModel:
    model = model_from_id(str(folder))
    assert isinstance(model, LocalModel)
    return model
