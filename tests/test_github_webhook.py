"""What a webhook's headers, signature and body must be."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from kb_platform.errors import SettingsError
from kb_platform.sources.github_webhook import Head, Rejected, is_signed, payload, read_head, secrets_of

# GitHub's own example, in its documentation of webhooks.
SECRET, BODY = b"It's a Secret to Everybody", b"Hello, World!"
SIGNATURE = b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
DELIVERY = b"72d3162e-cc78-11e3-81ab-4c9367dc0958"

HEADERS = {
    b"x-hub-signature-256": SIGNATURE,
    b"x-github-delivery": DELIVERY,
    b"x-github-event": b"release",
    b"content-type": b"application/json",
    b"content-length": b"13",
}


def head(changes: dict[bytes, bytes | None] | None = None, *, most_bytes: int = 1_000) -> Head:
    changed = HEADERS | (changes or {})
    return read_head(
        [(name, value) for name, value in changed.items() if value is not None], most_bytes=most_bytes
    )


def test_githubs_own_example_is_signed() -> None:
    read = head()
    assert read == Head(DELIVERY.decode(), "release", bytes.fromhex(SIGNATURE[7:].decode()), False, 13)
    assert is_signed(BODY, read.digest, [SECRET])
    assert not is_signed(BODY + b" ", read.digest, [SECRET])
    assert not is_signed(BODY, read.digest, [SECRET + b" "])


def test_any_of_several_secrets_will_do_and_all_are_tried() -> None:
    tried: list[bytes] = []

    class Told(list[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            for secret in super().__iter__():
                tried.append(secret)
                yield secret

    secrets = [SECRET, b"old", b"new"]
    for digest in (head().digest, bytes(32)):
        tried.clear()
        assert is_signed(BODY, digest, Told(secrets)) is (digest != bytes(32))
        assert tried == secrets


def test_signatures_are_compared_in_constant_time() -> None:
    code = inspect.getsource(is_signed)
    assert "hmac.compare_digest" in code
    assert "==" not in code
    assert "any(hmac" not in code, "any() over a generator stops at the first that fits"


@pytest.mark.parametrize(
    "signature",
    [
        None, b"", b"sha256=", SIGNATURE[:-1], SIGNATURE + b"0", SIGNATURE.upper(), SIGNATURE[7:], b"sha1=" + SIGNATURE[7:],
        b" " + SIGNATURE, SIGNATURE + b"\n", SIGNATURE.replace(b"7", "７".encode()), b"sha256=" + b"g" * 64, b"x" * 100_000,
    ],
)  # fmt: skip
def test_a_signature_that_is_none_is_unauthorized_and_not_told_why(signature: bytes | None) -> None:
    with pytest.raises(Rejected) as refused:
        head({b"x-hub-signature-256": signature})
    assert (refused.value.status, str(refused.value)) == (401, "unauthorized")


def test_a_header_that_stands_twice_is_refused() -> None:
    for pair in HEADERS.items():
        with pytest.raises(Rejected):
            read_head([*HEADERS.items(), pair], most_bytes=1_000)


@pytest.mark.parametrize(
    "delivery", [None, b"", b"a" * 101, b"a b", b"a\nb", b"a\r\nx: y", b"\x1b[31m", "é".encode(), b"\xff", b"{}", b'"']
)  # fmt: skip
def test_a_delivery_number_that_a_log_could_trip_over_is_refused(delivery: bytes | None) -> None:
    with pytest.raises(Rejected) as refused:
        head({b"x-github-delivery": delivery})
    assert refused.value.status == 400
    assert "x-github-delivery" in str(refused.value)


@pytest.mark.parametrize("event", [None, b"", b"Release", b"release\n", b"a" * 65, b"_x", b"release; x"])
def test_an_event_that_is_no_name_is_refused(event: bytes | None) -> None:
    with pytest.raises(Rejected) as refused:
        head({b"x-github-event": event})
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({b"content-type": None}, 415),
        ({b"content-type": b"text/plain"}, 415),
        ({b"content-type": b"application/json, text/plain"}, 415),
        ({b"content-encoding": b"gzip"}, 415),
        ({b"content-length": b"1001"}, 413),
        ({b"content-length": b"999999999999999"}, 413),
        ({b"content-length": b"-1"}, 400),
        ({b"content-length": b"1_0"}, 400),
        ({b"content-length": b"9" * 16}, 400),
        ({b"transfer-encoding": b"chunked"}, 400),
    ],
)
def test_what_headers_show_to_be_wrong_is_refused_before_the_body(
    changes: dict[bytes, bytes | None], status: int
) -> None:
    with pytest.raises(Rejected) as refused:
        head(changes)
    assert refused.value.status == status


def test_what_github_may_send_is_taken() -> None:
    assert head({b"content-length": b"1000"}).length == 1_000
    assert head({b"content-length": None, b"transfer-encoding": b"chunked"}).length is None
    assert not head({b"content-type": b"Application/JSON; charset=utf-8"}).is_form
    assert head({b"content-type": b"application/x-www-form-urlencoded"}).is_form


@given(st.binary(max_size=200))
def test_a_form_gives_back_what_was_put_in(body: bytes) -> None:
    form = b"payload=" + quote_plus(body).encode()
    assert payload(form, is_form=True) == body
    assert payload(b"a=1&" + form + b"&b=2", is_form=True) == body
    assert payload(body, is_form=False) == body


@pytest.mark.parametrize("body", [b"", b"{}", b"Payload=1", b"payload=1&payload=2", b"&" * 1_000_000])
def test_a_form_without_one_payload_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        payload(body, is_form=True)
    assert refused.value.status == 400


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=80)), max_size=8))
def test_no_headers_do_worse_than_be_refused(pairs: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Rejected):
        read_head(pairs, most_bytes=1_000)


def test_secrets_are_read_with_commas_between_and_never_shown() -> None:
    assert secrets_of(SecretStr(" one ,two,, ")) == (b"one", b"two")
    for none in (None, SecretStr(""), SecretStr(" , ")):
        with pytest.raises(SettingsError, match="no secret is set"):
            secrets_of(none)
