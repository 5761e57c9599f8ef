"""The hash of a release's content: stored for ever, so its bytes are those of plain JSON, and stay."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from kb_platform.sources.release import Release

texts = st.text(st.characters(exclude_categories=["Cs"]))
times = st.none() | st.datetimes(
    datetime(1980, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    datetime(2200, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
)


@given(
    st.builds(
        Release, st.integers(1, 2**63 - 1), texts, texts, texts, times, times, st.booleans(), st.booleans(), texts,
        st.none() | texts,
    )
)  # fmt: skip
def test_it_is_that_of_json_with_sorted_keys(release: Release) -> None:
    content = asdict(release)
    for field in ("created_at", "published_at"):
        content[field] = content[field] and content[field].astimezone(UTC).isoformat()
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert release.content_hash == hashlib.sha256(text.encode()).digest()


def test_it_is_the_one_of_the_first_release() -> None:
    release = Release(
        7, "v1.0.0", "1.0 “first”", "- Fixed\ttabs\n", datetime(2026, 3, 1, 9, tzinfo=UTC), None, False, True,
        "https://example.org/7", None,
    )  # fmt: skip
    assert release.content_hash.hex() == "cfc34ea05beb33bde3802e29e58f16007da45530f233c6f1d46ad9bfc1c156e3"
