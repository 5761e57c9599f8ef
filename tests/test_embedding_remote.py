"""Vectors from servers: a real HTTP server in a thread that answers as it is told, faults included."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from kb_platform.embedding.embedder import load_embedder
from kb_platform.embedding.model import OpenAIModel, TeiModel, model_from_id
from kb_platform.embedding.remote import RemoteEmbedder, describe_openai, describe_tei, requests
from kb_platform.embedding.server import Retries, Server
from kb_platform.errors import EmbeddingError, ModelError, SettingsError

DIMENSION = 4
FAST = Retries(attempts=4, first_wait_s=0.001, longest_wait_s=0.01, longest_retry_after_s=5)
INFO = {
    "model_id": "owner/name",
    "model_sha": "abc123",
    "model_dtype": "float16",
    "model_type": {"embedding": {"pooling": "cls"}},
    "max_input_length": 512,
    "max_client_batch_size": 8,
}


@dataclass(frozen=True)
class Answer:
    """What the server sends: `body` as JSON unless it is bytes, after `delay_s`, `drip_s` between its bytes."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0
    drip_s: float = 0


@dataclass(frozen=True)
class Request:
    path: str
    body: dict[str, Any]
    authorization: str | None

    @property
    def texts(self) -> list[str]:
        return self.body["inputs" if self.path == "/embed" else "input"]


class FakeServer:
    """Answers with vectors computed from the texts, unless `faults` (first come first served) says otherwise."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: list[Callable[[Request], Answer | None]] = []
        self.info: Any = INFO
        self.most_at_once = 0
        self.delay_s = 0.0
        self._now = 0
        self._lock = threading.Lock()
        self.url = ""

    def answer(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay_s)
            with self._lock:
                fault = self.faults.pop(0) if self.faults and request.path != "/info" else None
            if fault is not None and (answer := fault(request)) is not None:
                return answer
            return self.usual(request)
        finally:
            with self._lock:
                self._now -= 1

    def usual(self, request: Request) -> Answer:
        if request.path == "/info":
            return Answer(self.info)
        rows = [vector(text) for text in request.texts]
        if request.path == "/embed":
            return Answer(rows, headers={"x-compute-tokens": str(3 * len(rows))})
        data = [{"index": index, "embedding": row} for index, row in enumerate(rows)]
        return Answer({"data": data, "usage": {"prompt_tokens": 3 * len(rows)}})


def vector(text: str) -> list[float]:
    """A vector that tells its text; its length is not 1."""
    return [len(text) + 1.0, float(sum(map(ord, text)) % 97), 2.0, 1.0]


def expected(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = np.array([vector(text) for text in texts], dtype=np.float32).reshape(-1, DIMENSION)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@contextmanager
def serving() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            answer = fake.answer(Request(self.path, body, self.headers.get("authorization")))
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            try:
                time.sleep(answer.delay_s)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                for block in (
                    [content] if not answer.drip_s else [content[at : at + 1] for at in range(len(content))]
                ):
                    self.wfile.write(block)
                    time.sleep(answer.drip_s)
            except OSError:
                # The client has given up, as some tests want it to.
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with serving() as server:
        yield server


Open = Callable[..., RemoteEmbedder]


@pytest.fixture
def opened(fake: FakeServer, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens embedders on the fake server, of the kind that the test is run for, and closes them."""
    embedders: list[RemoteEmbedder] = []

    def open_embedder(kind: str, **options: Any) -> RemoteEmbedder:
        fields = {"id": "owner/name", "dimension": DIMENSION, "max_tokens": 512, "url": fake.url}
        model = TeiModel(revision="abc123", **fields) if kind == "tei" else OpenAIModel(**fields)
        changes = options.pop("model", {})
        embedder = RemoteEmbedder(
            model.model_copy(update=changes), **{"retries": FAST, "timeout_s": 5, **options}
        )
        embedders.append(embedder)
        return embedder

    yield open_embedder
    for embedder in embedders:
        embedder.close()


both = pytest.mark.parametrize("kind", ["tei", "openai"])


@both
def test_vectors_come_back_in_order_and_scaled(fake: FakeServer, opened: Open, kind: str) -> None:
    texts = [f"text {number} {'x' * (number % 7)}" for number in range(700)]
    result = opened(kind).embed_passages(texts)
    np.testing.assert_allclose(result.vectors, expected(texts), rtol=1e-6)
    assert result.vectors.dtype == np.float32
    assert result.tokens == 3 * 700
    sizes = [len(request.texts) for request in fake.requests if request.path != "/info"]
    assert max(sizes) == (8 if kind == "tei" else 256)


@both
def test_no_texts_are_no_requests(fake: FakeServer, opened: Open, kind: str) -> None:
    result = opened(kind).embed_passages([])
    assert result.vectors.shape == (0, DIMENSION)
    assert (result.tokens, fake.requests) == (0, [])


@both
def test_lengths_are_kept_when_the_model_does_not_normalise(opened: Open, kind: str) -> None:
    result = opened(kind, model={"normalize": False}).embed_passages(["a", "bb"])
    assert result.vectors.tolist() == [vector("a"), vector("bb")]


@both
def test_prefixes_and_odd_characters_are_sent(fake: FakeServer, opened: Open, kind: str) -> None:
    embedder = opened(kind, model={"query_prefix": "q: ", "passage_prefix": "p: "})
    embedder.embed_passages(["a\ud800b"])
    embedder.embed_query("c")
    assert [request.texts for request in fake.requests if request.path != "/info"] == [["p: a?b"], ["q: c"]]


def test_what_is_asked_of_each_kind(fake: FakeServer, opened: Open) -> None:
    opened("tei", api_key=SecretStr("s3cret")).embed_passages(["a"])
    opened("openai").embed_passages(["a"])
    info, tei, openai = fake.requests
    assert (info.path, info.authorization) == ("/info", "Bearer s3cret")
    assert (tei.path, tei.authorization) == ("/embed", "Bearer s3cret")
    assert tei.body == {"inputs": ["a"], "truncate": True, "normalize": False}
    assert (openai.path, openai.authorization) == ("/v1/embeddings", None)
    assert openai.body == {"model": "owner/name", "input": ["a"], "encoding_format": "float"}


def test_requests_under_way_are_bounded(fake: FakeServer, opened: Open) -> None:
    fake.delay_s = 0.02
    opened("tei", concurrency=3).embed_passages([f"{number}" for number in range(8 * 12)])
    assert fake.most_at_once == 3


def test_embeddings_are_put_in_order_by_their_index(fake: FakeServer, opened: Open) -> None:
    def shuffled(request: Request) -> Answer:
        body = fake.usual(request).body
        return Answer({"data": body["data"][::-1]})

    fake.faults = [shuffled]
    texts = ["a", "bb", "ccc"]
    result = opened("openai").embed_passages(texts)
    np.testing.assert_allclose(result.vectors, expected(texts), rtol=1e-6)
    assert result.tokens == 0


# --- faults that pass --------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("status", [408, 424, 429, 500, 502, 503])
def test_faults_that_pass_are_tried_again(fake: FakeServer, opened: Open, kind: str, status: int) -> None:
    fake.faults = [lambda _: Answer({"error": "later"}, status=status)] * 3
    result = opened(kind).embed_passages(["a", "b"])
    np.testing.assert_allclose(result.vectors, expected(["a", "b"]), rtol=1e-6)


def _http_date() -> str:
    # Whole seconds: up to one less than two seconds from now.
    return email.utils.formatdate(time.time() + 2, usegmt=True)


@pytest.mark.parametrize(("value", "least_s"), [(lambda: "1", 1.0), (_http_date, 0.9)])
def test_the_server_says_how_long_to_wait(
    fake: FakeServer, opened: Open, value: Callable[[], str], least_s: float
) -> None:
    fake.faults = [lambda _: Answer({}, status=429, headers={"Retry-After": value()})]
    started = time.monotonic()
    opened("openai").embed_query("a")
    assert least_s <= time.monotonic() - started < 4
    assert len(fake.requests) == 2


def test_retries_leave_standard_output_alone(
    fake: FakeServer, opened: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.faults = [lambda _: Answer({}, status=500)] * 2
    opened("openai").embed_query("a")
    assert capfd.readouterr().out == ""


def test_an_unreadable_wish_is_no_wish(fake: FakeServer, opened: Open) -> None:
    fake.faults = [lambda _: Answer({}, status=503, headers={"Retry-After": "soon"})]
    opened("openai").embed_query("a")
    assert len(fake.requests) == 2


def test_a_server_that_asks_for_too_much_patience_is_reported(fake: FakeServer, opened: Open) -> None:
    fake.faults = [lambda _: Answer({"error": "quota"}, status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(EmbeddingError, match=r"answers 429 .*quota.* asks to wait 3600 s"):
        opened("openai").embed_query("a")
    assert len(fake.requests) == 1


@both
def test_a_server_that_never_recovers_is_given_up(fake: FakeServer, opened: Open, kind: str) -> None:
    fake.faults = [lambda _: Answer({"error": "broken"}, status=500)] * 100
    with pytest.raises(EmbeddingError, match=r"answers 500 .*broken.* tried 4 times at most") as raised:
        opened(kind).embed_passages(["a"])
    assert raised.value.hint
    assert len([request for request in fake.requests if request.path != "/info"]) == 4


def test_a_hanging_server_is_given_up(fake: FakeServer, opened: Open) -> None:
    fake.faults = [lambda _: Answer({}, delay_s=0.5)] * 2
    embedder = opened("openai", timeout_s=0.1, retries=Retries(attempts=2, first_wait_s=0.001))
    with pytest.raises(EmbeddingError, match=r"no answer within 0\.1 s"):
        embedder.embed_query("a")
    embedder.embed_query("a")


def test_a_dripping_server_is_given_up(fake: FakeServer, opened: Open) -> None:
    # Each byte comes in time; the answer as a whole would take a minute.
    fake.faults = [lambda request: Answer(fake.usual(request).body, drip_s=0.02)]
    embedder = opened("openai", timeout_s=0.2, retries=Retries(attempts=1))
    started = time.monotonic()
    with pytest.raises(EmbeddingError, match=r"not complete within 0\.2 s"):
        embedder.embed_query("a" * 50)
    assert time.monotonic() - started < 2


@both
def test_a_server_that_is_not_there(opened: Open, kind: str) -> None:
    embedder = opened(kind, model={"url": "http://127.0.0.1:9"})
    with pytest.raises(EmbeddingError, match=r"http://127\.0\.0\.1:9 cannot be used: ConnectError") as raised:
        embedder.embed_passages(["a"])
    assert raised.value.hint


# --- answers that are wrong --------------------------------------------------------------------------------------


WRONG: list[tuple[str, Any, Any, type[EmbeddingError], str]] = [
    ("page", b"<html>Welcome to nginx!</html>", None, EmbeddingError, r"no JSON but '<html>Welcome"),
    ("empty", b"", None, EmbeddingError, "no JSON but ''"),
    ("null", None, None, EmbeddingError, "cannot be understood"),
    ("object", {}, {}, EmbeddingError, "cannot be understood"),
    ("too few", [[1, 2, 3, 4]], [(0, [1, 2, 3, 4])], EmbeddingError, "2 texts were sent"),
    (
        "too many",
        [[1, 2, 3, 4]] * 3,
        [(i, [1, 2, 3, 4]) for i in range(3)],
        EmbeddingError,
        "2 texts were sent",
    ),
    ("twice", None, [(0, [1, 2, 3, 4]), (0, [1, 2, 3, 4])], EmbeddingError, "2 embeddings came back"),
    ("beyond", None, [(0, [1, 2, 3, 4]), (2, [1, 2, 3, 4])], EmbeddingError, r"indices 0, 2"),
    ("odd index", None, [([], [1]), (1, [1])], EmbeddingError, "cannot be understood"),
    ("ragged", [[1, 2, 3, 4], [1]], [(0, [1, 2, 3, 4]), (1, [1])], EmbeddingError, "of one length"),
    ("words", [["a"], ["b"]], [(0, ["a"]), (1, ["b"])], EmbeddingError, "lists of numbers"),
    ("numbers", [1, 2], [(0, 1), (1, 2)], EmbeddingError, r"shape \(2,\)"),
    ("no numbers", [[], []], [(0, []), (1, [])], EmbeddingError, r"shape \(2, 0\)"),
    ("dimension", [[1, 2]] * 2, [(0, [1, 2]), (1, [1, 2])], ModelError, "of 2 dimensions, the model has 4"),
    ("null number", [[None] * 4] * 2, [(0, [None] * 4), (1, [None] * 4)], EmbeddingError, "not finite"),
    (
        "NaN",
        [[1, 2, 3, 4], [1, float("nan"), 3, 4]],
        [(0, [1, 2, 3, 4]), (1, [1, float("nan"), 3, 4])],
        EmbeddingError,
        "not finite, first of 'second'",
    ),
    (
        "zero",
        [[1, 2, 3, 4], [0] * 4],
        [(0, [1, 2, 3, 4]), (1, [0] * 4)],
        EmbeddingError,
        "no length, first of 'second'",
    ),
]


def _wrong_answers() -> Iterator[Any]:
    """(kind, body, error, message) of each case for each API that it can happen in."""
    for name, tei, openai, error, message in WRONG:
        pairs = isinstance(openai, list)
        body = {"data": [{"index": index, "embedding": row} for index, row in openai]} if pairs else tei
        yield pytest.param("openai", body, error, message, id=f"openai-{name}")
        # TEI has no index that could be wrong.
        if tei is not None or not pairs:
            yield pytest.param("tei", tei, error, message, id=f"tei-{name}")


@pytest.mark.parametrize(("kind", "body", "error", "message"), list(_wrong_answers()))
def test_wrong_answers_are_told(
    fake: FakeServer, opened: Open, kind: str, body: Any, error: type[EmbeddingError], message: str
) -> None:
    fake.faults = [lambda _: Answer(body)] * 4
    with pytest.raises(error, match=message) as raised:
        opened(kind).embed_passages(["first", "second"])
    assert raised.value.hint
    assert len([request for request in fake.requests if request.path != "/info"]) == 1


def test_an_endless_answer_is_cut(fake: FakeServer) -> None:
    fake.faults = [lambda _: Answer(b"1" * 10_000)]
    server = Server(fake.url, api_key=None, timeout_s=5, retries=FAST, most_bytes=9_000)
    with pytest.raises(EmbeddingError, match="longer than 9000 bytes"):
        server.post("/embed", {"inputs": ["a"]})
    server.close()


def test_redirects_are_not_followed(fake: FakeServer, opened: Open) -> None:
    fake.faults = [lambda _: Answer({}, status=307, headers={"Location": f"{fake.url}/v1/embeddings"})]
    with pytest.raises(EmbeddingError, match="answers 307"):
        opened("openai", api_key=SecretStr("s3cret")).embed_query("a")
    assert len(fake.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_batch_is_halved_until_the_refused_text_is_found(
    fake: FakeServer, opened: Open, status: int
) -> None:
    def refusing(request: Request) -> Answer | None:
        if any("too long" in text for text in request.texts):
            return Answer({"error": "input is too long"}, status=status)
        return None

    texts = [f"text {number}" for number in range(20)]
    fake.faults = [refusing] * 100
    texts[13] = "too long"
    with pytest.raises(
        EmbeddingError, match=rf"answers {status} .*; the text is 'too long' \(8 characters\)"
    ):
        opened("openai").embed_passages(texts)
    assert len(fake.requests) <= 12


def test_a_batch_that_is_too_large_is_halved(fake: FakeServer, opened: Open) -> None:
    fake.faults = [lambda request: Answer({}, status=413) if len(request.texts) > 5 else None] * 100
    texts = [f"text {number}" for number in range(37)]
    result = opened("openai").embed_passages(texts)
    np.testing.assert_allclose(result.vectors, expected(texts), rtol=1e-6)


@both
@pytest.mark.parametrize(
    ("status", "hint"), [(401, "API key"), (403, "API key"), (404, "name"), (409, "limits")]
)
def test_a_refusal_is_told_at_once(fake: FakeServer, opened: Open, kind: str, status: int, hint: str) -> None:
    fake.faults = [lambda _: Answer({"error": "no"}, status=status)] * 8
    with pytest.raises(EmbeddingError, match=f"answers {status}") as raised:
        opened(kind).embed_passages(["a", "b"])
    assert hint in (raised.value.hint or "")
    assert len([request for request in fake.requests if request.path != "/info"]) == 1


def test_after_a_failure_requests_that_were_not_sent_are_dropped(fake: FakeServer, opened: Open) -> None:
    fake.delay_s = 0.01
    fake.faults = [lambda _: Answer({}, status=404)] * 1000
    with pytest.raises(EmbeddingError):
        opened("tei", concurrency=2).embed_passages([f"{number}" for number in range(8 * 100)])
    assert len(fake.requests) < 50


# --- the API key -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 500])
def test_the_key_is_in_no_error(
    fake: FakeServer, opened: Open, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    # OpenAI repeats the key in its answer to a wrong one.
    fake.faults = [lambda _: Answer({"error": "Incorrect API key provided: sk-s3cret."}, status=status)] * 10
    embedder = opened("openai", api_key=SecretStr("sk-s3cret"))
    with caplog.at_level("DEBUG"), pytest.raises(EmbeddingError) as raised:
        embedder.embed_query("a")
    error: BaseException | None = raised.value
    while error is not None:
        assert "s3cret" not in f"{error!s} {error!r} {getattr(error, 'hint', '')}"
        error = error.__cause__ or error.__context__
    assert "s3cret" not in caplog.text
    assert "s3cret" not in embedder.engine


@pytest.mark.parametrize("key", ["sk-s3cret\nX: y", "sk-s3cret\u2019", "s3cret\x00"])
def test_a_key_that_no_header_can_carry_is_refused(opened: Open, key: str) -> None:
    with pytest.raises(SettingsError, match="characters that a header cannot carry") as raised:
        opened("openai", api_key=SecretStr(key))
    assert "s3cret" not in str(raised.value)


# --- description -------------------------------------------------------------------------------------------------


def test_a_tei_server_describes_itself(fake: FakeServer) -> None:
    model = model_from_id(f"tei:{fake.url}/", query_prefix="q: ")
    assert model == TeiModel(
        id="owner/name",
        revision="abc123",
        dimension=DIMENSION,
        pooling="cls",
        max_tokens=512,
        query_prefix="q: ",
        url=fake.url,
    )


def test_an_openai_server_is_described_by_a_probe(fake: FakeServer) -> None:
    model = model_from_id(f"openai:text-embedding-x@{fake.url}/v1", revision="2024", api_key=SecretStr("k"))
    assert model == OpenAIModel(
        id="text-embedding-x", revision="2024", dimension=DIMENSION, max_tokens=8192, url=fake.url
    )
    assert [request.authorization for request in fake.requests] == ["Bearer k"]
    embedder = load_embedder(model, api_key=SecretStr("k"))
    assert embedder.embed_query("a").shape == (DIMENSION,)
    embedder.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": {"reranker": {}}}, "no embedding model but"),
        ({"model_sha": "def456"}, "serves revision def456, not abc123"),
    ],
)
def test_a_tei_server_with_another_model_is_refused(
    fake: FakeServer, change: dict[str, object], message: str
) -> None:
    fake.info = INFO | change
    with pytest.raises(ModelError, match=message):
        describe_tei(fake.url, revision="abc123", retries=FAST)


@pytest.mark.parametrize("info", [{}, [], "hello", {"model": "m"}])
def test_something_else_than_tei_is_recognised(fake: FakeServer, info: object) -> None:
    fake.info = info
    with pytest.raises(EmbeddingError, match="does not answer like text-embeddings-inference"):
        describe_tei(fake.url, retries=FAST)


def test_a_probe_of_a_missing_server_fails(fake: FakeServer) -> None:
    with pytest.raises(EmbeddingError, match="ConnectError"):
        describe_openai("m", "http://127.0.0.1:9", retries=FAST)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"model_sha": "def456"}, True),
        ({"model_id": "owner/other"}, True),
        ({"model_sha": None}, False),
        ({"max_client_batch_size": None}, False),
    ],
)
def test_a_server_that_was_deployed_anew_is_checked(
    fake: FakeServer, opened: Open, change: dict[str, object], refused: bool
) -> None:
    fake.info = INFO | change
    embedder = opened("tei")
    if refused:
        with pytest.raises(ModelError, match="not owner/name at revision abc123"):
            embedder.embed_passages(["a"])
    else:
        embedder.embed_passages(["a"])


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=60), st.integers(1, 10), st.integers(1, 60))
def test_requests_are_bounded_and_complete(texts: list[str], most: int, characters: int) -> None:
    parts = list(requests(texts, most, characters))
    assert [text for part in parts for text in part] == texts
    for part in parts:
        assert 1 <= len(part) <= most
        assert len(part) == 1 or sum(map(len, part)) <= characters
