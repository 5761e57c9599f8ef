"""Embedders whose model runs on a server: text-embeddings-inference (TEI) and OpenAI-compatible ones.

Belongs here: what is asked, how answers are read and checked, and how many requests are under way. Does not belong
here: transport and retries (`server`).

APIs: https://huggingface.github.io/text-embeddings-inference/ and
https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np
from pydantic import SecretStr

from kb_platform.embedding.embedder import Embedded, Vectors, checked_vectors, excerpt
from kb_platform.embedding.model import OpenAIModel, Pooling, TeiModel
from kb_platform.embedding.server import RefusedError, Retries, Server
from kb_platform.embedding.tokens import encodable
from kb_platform.errors import EmbeddingError, ModelError

# TEI takes 32 texts and 2 MB a request unless it is told otherwise; OpenAI 2,048 texts and 300,000 tokens.
_TEI_TEXTS = 32
_OPENAI_TEXTS = 256
_CHARACTERS = 200_000

# Answers to a request that is too large, or of which one text cannot be taken.
_SPLIT = frozenset({400, 413, 422})


class Api(Protocol):
    """What one kind of server is asked, and how its answers are read."""

    def most_texts(self, model: TeiModel | OpenAIModel, /) -> int:
        """Texts that a request may carry, once the server was found to serve `model`. Raises ModelError."""
        ...

    def ask(self, texts: Sequence[str]) -> Embedded:
        """One request: a vector for each text, as the server gave it, of any dimension. Raises EmbeddingError."""
        ...


class TeiApi:
    """`POST /embed` and `GET /info` of text-embeddings-inference."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def info(self) -> dict[str, Any]:
        """What the server says about itself and its model."""
        document = self._server.get("/info").document
        if not isinstance(document, dict) or "model_id" not in document:
            raise EmbeddingError(
                f"{self._server.url}/info does not answer like text-embeddings-inference",
                hint="Check the address, or write openai:MODEL@URL for an OpenAI-compatible server.",
            )
        return cast("dict[str, Any]", document)

    def most_texts(self, model: TeiModel | OpenAIModel, /) -> int:
        # A server deployed anew at the same address may serve another model.
        info = self.info()
        served = (info["model_id"], info.get("model_sha"))
        if served[0] != model.id or (served[1] is not None and model.revision not in (None, served[1])):
            raise ModelError(
                f"{model.url} serves {served[0]} at revision {served[1]}, not {model.id} at revision "
                f"{model.revision}",
                hint="Start the server with that model and revision, or build a new index version.",
            )
        limit = info.get("max_client_batch_size")
        return limit if isinstance(limit, int) and limit > 0 else _TEI_TEXTS

    def ask(self, texts: Sequence[str]) -> Embedded:
        # Vectors are scaled here, the same for every engine.
        reply = self._server.post("/embed", {"inputs": list(texts), "truncate": True, "normalize": False})
        tokens = reply.headers.get("x-compute-tokens", "")
        vectors = _matrix(reply.document, len(texts), self._server.url)
        return Embedded(vectors, int(tokens) if tokens.isdecimal() else 0)


class OpenAIApi:
    """`POST /v1/embeddings`."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name

    def most_texts(self, _model: TeiModel | OpenAIModel, /) -> int:
        return _OPENAI_TEXTS

    def ask(self, texts: Sequence[str]) -> Embedded:
        payload = {"model": self._name, "input": list(texts), "encoding_format": "float"}
        document = self._server.post("/v1/embeddings", payload).document
        rows = _in_order(document, len(texts), self._server.url)
        return Embedded(_matrix(rows, len(texts), self._server.url), _reported_tokens(document))


class RemoteEmbedder:
    """An embedder whose model runs on a server: requests of bounded size, a bounded number at a time."""

    def __init__(
        self,
        model: TeiModel | OpenAIModel,
        *,
        api_key: SecretStr | None = None,
        concurrency: int = 4,
        timeout_s: float = 30,
        retries: Retries | None = None,
    ) -> None:
        self._model = model
        self._server = Server(model.url, api_key=api_key, timeout_s=timeout_s, retries=retries)
        self._api: Api = (
            TeiApi(self._server) if model.provider == "tei" else OpenAIApi(self._server, model.id)
        )
        self._most_texts: int | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="embedding")

    @property
    def model(self) -> TeiModel | OpenAIModel:
        return self._model

    @property
    def engine(self) -> str:
        return f"{self._model.provider} {self._model.url}"

    def embed_passages(self, texts: Sequence[str]) -> Embedded:
        """Vectors of `texts`. Raises EmbeddingError; requests that were not yet sent are then dropped."""
        prefixed = [self._model.passage_prefix + encodable(text) for text in texts]
        most = self._limit() if texts else 1
        futures = [self._pool.submit(self._embed, part) for part in requests(prefixed, most)]
        try:
            parts = [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()
        empty = np.empty((0, self._model.dimension), dtype=np.float32)
        vectors = np.concatenate([empty, *(part.vectors for part in parts)])
        return Embedded(
            checked_vectors(vectors, texts, normalize=self._model.normalize),
            sum(part.tokens for part in parts),
        )

    def embed_query(self, text: str) -> Vectors:
        """Vector of a question. Raises EmbeddingError."""
        self._limit()
        vectors = self._embed([self._model.query_prefix + encodable(text)]).vectors
        return checked_vectors(vectors, [text], normalize=self._model.normalize)[0]

    def close(self) -> None:
        """End the threads and connections."""
        self._pool.shutdown(cancel_futures=True)
        self._server.close()

    def _limit(self) -> int:
        """Texts a request; the server is asked once."""
        with self._lock:
            if self._most_texts is None:
                self._most_texts = self._api.most_texts(self._model)
            return self._most_texts

    def _embed(self, texts: Sequence[str]) -> Embedded:
        """One request, or halves of it where the server refuses it as a whole; names the text that it refuses."""
        try:
            answer = self._api.ask(texts)
        except RefusedError as error:
            if error.status not in _SPLIT:
                raise
            if len(texts) == 1:
                raise EmbeddingError(
                    f"{error}; the text is {excerpt(texts[0])} ({len(texts[0])} characters)", hint=error.hint
                ) from error
        else:
            if (found := answer.vectors.shape[1]) != self._model.dimension:
                raise ModelError(
                    f"{self._model.url} gives vectors of {found} dimensions, the model has {self._model.dimension}",
                    hint="Another model is served there now: start the right one, or build a new index version.",
                )
            return answer
        middle = len(texts) // 2
        first, second = self._embed(texts[:middle]), self._embed(texts[middle:])
        return Embedded(np.concatenate([first.vectors, second.vectors]), first.tokens + second.tokens)


def describe_tei(
    url: str,
    *,
    revision: str | None = None,
    api_key: SecretStr | None = None,
    timeout_s: float = 30,
    retries: Retries | None = None,
) -> TeiModel:
    """The model that the TEI server at `url` serves, by its own word and one probe for the dimension.

    Raises EmbeddingError when it cannot be reached, ModelError when it serves another revision or no embeddings.
    """
    server = Server(url, api_key=api_key, timeout_s=timeout_s, retries=retries)
    try:
        api = TeiApi(server)
        info = api.info()
        sha = cast("str | None", info.get("model_sha"))
        if revision is not None and sha not in (None, revision):
            raise ModelError(
                f"{url} serves revision {sha}, not {revision}", hint="Start the server with that revision."
            )
        kind = info.get("model_type")
        details = cast("dict[str, Any]", kind).get("embedding") if isinstance(kind, dict) else None
        if not isinstance(details, dict):
            raise ModelError(
                f"{url} serves {info['model_id']}, which is no embedding model but {kind}",
                hint="Start the server with an embedding model.",
            )
        pooling = cast("dict[str, object]", details).get("pooling")
        return TeiModel(
            id=str(info["model_id"]),
            revision=sha or revision,
            dimension=api.ask(["dimension"]).vectors.shape[1],
            pooling=_POOLINGS.get(str(pooling)),
            max_tokens=int(info.get("max_input_length") or 512),
            url=url,
        )
    finally:
        server.close()


def describe_openai(
    name: str,
    url: str,
    *,
    revision: str | None = None,
    api_key: SecretStr | None = None,
    timeout_s: float = 30,
    retries: Retries | None = None,
) -> OpenAIModel:
    """The model `name` at an OpenAI-compatible server, whose dimension one probe tells.

    The API reports no limit of tokens; 8,192 is what OpenAI's models take. Raises EmbeddingError.
    """
    server = Server(url, api_key=api_key, timeout_s=timeout_s, retries=retries)
    try:
        probe = OpenAIApi(server, name).ask(["dimension"])
    finally:
        server.close()
    return OpenAIModel(id=name, revision=revision, dimension=probe.vectors.shape[1], max_tokens=8192, url=url)


def requests(texts: Sequence[str], max_texts: int, max_characters: int = _CHARACTERS) -> Iterator[list[str]]:
    """`texts` in order, in parts of bounded number and length; a longer text is a part of its own."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (len(part) == max_texts or characters + len(text) > max_characters):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "last_token": "last", "lasttoken": "last"}


def _in_order(document: Any, count: int, url: str) -> list[object]:
    """The embeddings by their `index`: the API promises no order."""
    try:
        items: list[tuple[object, object]] = [(item["index"], item["embedding"]) for item in document["data"]]
        found = dict(items)
    except (TypeError, KeyError) as error:
        raise _malformed(url, "its answer is not a list of embeddings with an index") from error
    if len(items) != count or set(found) != set(range(count)):
        indices = ", ".join(sorted(map(str, found))[:8]) or "none"
        raise _malformed(
            url, f"{count} texts were sent, and {len(items)} embeddings came back (indices {indices})"
        )
    return [found[index] for index in range(count)]


def _matrix(rows: object, count: int, url: str) -> Vectors:
    """`rows` as float32 [count, dimension]."""
    if not isinstance(rows, list) or len(cast("list[object]", rows)) != count:
        raise _malformed(url, f"{count} texts were sent, and its answer is not a list of {count} vectors")
    try:
        vectors = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise _malformed(url, "its vectors are not lists of numbers of one length") from error
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise _malformed(url, f"its vectors are of shape {vectors.shape}")
    return vectors


def _reported_tokens(document: Any) -> int:
    usage = document.get("usage")
    tokens = cast("dict[str, object]", usage).get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0


def _malformed(url: str, what: str) -> EmbeddingError:
    return EmbeddingError(
        f"the embeddings server {url} cannot be understood: {what}",
        hint="Check that the address and the kind (tei: or openai:) are right.",
    )
