"""Version order, tags that a person means, and ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cmp_to_key
from itertools import pairwise
from pathlib import Path

import packaging.version
import pytest
import semver
from hypothesis import assume, given
from hypothesis import strategies as st

from kb_platform.errors import VersionError
from kb_platform.text.versions import (
    FLOOR,
    LONGEST_KEY,
    Tags,
    Version,
    VersionRange,
    parse_range,
    parse_version,
    resolve,
    version_key,
)

NUMBERS = st.integers(0, 30) | st.integers(0, 10**30)
# Where the module's docstring lets users win over the standards, the standards are no reference.
STAGES = (
    "alpha|beta|a|b|c|rc|cr|m|milestone|pre|preview|dev|ea|eap|canary|next|nightly|snapshot|insiders?|tp|test"
)
USERS_WIN = re.compile(
    rf"(?:(?i:{STAGES})[0-9]+)|(?!(?:{STAGES})$)(?i:{STAGES})"
    r"|(?i:final|ga|release|stable|lts|(?:post|sp|patch|hotfix|pl|p|rev|r)(?:[-.]?[0-9]+)?)"
)


def key(tag: str) -> str:
    found = version_key(tag)
    assert found is not None, tag
    return found


def sign(first: object, second: object) -> int:
    return (first > second) - (first < second)  # type: ignore[operator]


@st.composite
def semver_texts(draw: st.DrawFn) -> str:
    core = ".".join(str(draw(NUMBERS)) for _ in range(3))
    identifiers = st.integers(0, 10**12).map(str) | st.text("abcAZrxyz019-", min_size=1, max_size=6)
    words = st.sampled_from(["alpha", "beta", "rc", "dev", "canary", "next", "x", "alpha-1"])
    parts = draw(st.lists(identifiers | words, max_size=4))
    assume(not any(USERS_WIN.fullmatch(part) for part in [*parts, ".".join(parts)]))
    text = f"{core}-{'.'.join(parts)}" if parts else core
    text += draw(st.sampled_from(["", "+build.7", "+001", "+a-b"]))
    assume(semver.Version.is_valid(text))
    return text


@st.composite
def pep440_texts(draw: st.DrawFn) -> str:
    release = [str(draw(NUMBERS)) for _ in range(draw(st.integers(1, 5)))]
    text = draw(st.sampled_from(["", "", "1!", "7!"])) + ".".join(release)
    small = st.integers(0, 12).map(str)
    pre = draw(st.sampled_from(["", "", "a", "b", "rc", ".alpha", "_beta.", "c", "PRE", ".preview"]))
    text += pre + draw(small) if pre else ""
    post = draw(st.sampled_from(["", "", ".post", "post", ".rev", "_r"]))
    text += post + draw(small) if post else ""
    dev = draw(st.sampled_from(["", "", ".dev", "dev", "_DEV_"]))
    text += dev + draw(small) if dev else ""
    # Three plain numbers and a build are semver, whose builds do not count.
    if pre or post or dev or len(release) != 3:
        text += draw(st.sampled_from(["", "", "", "+local", "+ubuntu.1", "+1.2", "+1.ab", "+10"]))
    return text


@given(semver_texts(), semver_texts())
def test_semver_precedence(first: str, second: str) -> None:
    expected = semver.Version.parse(first).compare(second)
    assert sign(key(first), key(second)) == expected


@given(st.lists(semver_texts(), min_size=2, max_size=8))
def test_sorting_by_key_is_sorting_by_semver(texts: list[str]) -> None:
    by_library = sorted(texts, key=cmp_to_key(lambda a, b: semver.Version.parse(a).compare(b)))
    assert [key(text) for text in by_library] == sorted(key(text) for text in texts)


@given(pep440_texts(), pep440_texts())
def test_pep440_precedence(first: str, second: str) -> None:
    expected = sign(packaging.version.Version(first), packaging.version.Version(second))
    assert sign(key(first), key(second)) == expected


@given(pep440_texts())
def test_pep440_prerelease_and_release(text: str) -> None:
    reference = packaging.version.Version(text)
    version = parse_version(text)
    assert version is not None
    assert version.prerelease == reference.is_prerelease
    assert version.release == reference.release


@given(semver_texts())
def test_semver_prerelease_and_release(text: str) -> None:
    reference = semver.Version.parse(text)
    version = parse_version(text)
    assert version is not None
    assert version.prerelease == bool(reference.prerelease)
    assert version.release == (reference.major, reference.minor, reference.patch)


@given(
    pep440_texts() | semver_texts(),
    st.sampled_from(["", "v", "V", "release-", "release/", "rel_", "version-"]),
)
def test_a_generic_prefix_changes_nothing(text: str, prefix: str) -> None:
    assume(not (prefix.endswith("_") and "_" in text))
    version = parse_version(prefix + text)
    assert version is not None
    assert (version.prefix, version.key) == ("", key(text))


@given(
    semver_texts(),
    st.sampled_from(["astro@", "@scope/pkg@", "create-vite@", "helm-chart-", "log4j-", "api/v"]),
)
def test_a_package_is_told_from_its_version(text: str, prefix: str) -> None:
    version = parse_version(prefix + text)
    assert version is not None
    assert version.prefix == re.sub(r"(?:[-@]|/v)$", "", prefix)
    assert version.key == key(text)


@given(st.text(max_size=400) | st.from_regex(r"[vV]?[0-9.]{1,300}[-+a-z0-9.]{0,100}", fullmatch=True))
def test_any_text_is_read_and_its_key_is_bounded(text: str) -> None:
    version = parse_version(text)
    if version is not None:
        assert 0 < len(version.key) <= LONGEST_KEY
        assert version.key.isascii()
        assert version.text == text


@given(st.lists(st.integers(0, 10**70), min_size=1, max_size=3))
def test_huge_numbers_and_leading_zeros(numbers: list[int]) -> None:
    plain = ".".join(map(str, numbers))
    padded = ".".join(f"00{number}" for number in numbers)
    assert key(plain) == key(padded)
    assert key(plain) < key(".".join(map(str, [*numbers[:-1], numbers[-1] + 1])))


@pytest.mark.parametrize(
    "ascending",
    [
        ["0.9", "0.32a1", "0.32rc1", "0.32", "0.32.1", "0.33"],
        ["v0.4a0", "v0.17b0", "v0.19b0", "v1.0.0rc1", "v1.0.0", "v1.12.0rc2", "v1.12.0"],
        ["1.0a2", "1.0a9", "1.0a25", "1.0b1", "1.0"],
        [
            "v3.7.0.Alpha2",
            "v3.7.0.Alpha10",
            "v3.7.0.Beta1",
            "v3.7.0.CR1",
            "v3.7.0.CR2",
            "v3.7.0.Final",
            "v3.7.1.Alpha1",
        ],
        [
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
        ],
        ["ai@7.0.0-beta.9", "ai@7.0.0-beta.53", "ai@7.0.0-canary.1", "ai@7.0.0", "ai@7.0.10"],
        ["v2.0.0-ea.1", "v2.0.0-rc.1", "v2.0.0-rc2", "v2.0.0-rc10", "v2.0.0", "v2.0.0-post1", "v2.0.1"],
        ["5.3.0-M1", "5.3.0-M10", "5.3.0-RC1", "5.3.0-SNAPSHOT", "5.3.0"],
        ["3.0.0.BUILD-SNAPSHOT", "3.0.0.M1", "3.0.0.RC1", "3.0.0.RELEASE"],
        ["REL9_6_24", "REL_10_1", "REL_16_BETA1", "REL_16_RC1", "REL_16_0", "REL_16_2"],
        ["OpenSSL_1_1_1", "OpenSSL_1_1_1d", "OpenSSL_1_1_1k", "OpenSSL_1_1_1za"],
        ["9.6", "9.6p1", "9.6p2", "9.7"],
        ["2022.12.3", "2023.1.0b2", "2023.1.0", "2023.10.1", "2024.01.1"],
        ["22.04", "22.10", "23.04.1", "24.04"],
        ["2022a", "2022g", "2023a", "2023c"],
        ["release-2023-01-31", "release-2023-10-01", "release-2024-01-01"],
        ["go1.9", "go1.20", "go1.21rc2", "go1.21.1"],
        ["0.13.0.dev0", "0.13.0.dev2", "0.13.0"],
        ["1.9", "1!0.1"],
        ["1.0", "1.0+local", "1.0+local.2", "1.0+1"],
        ["b999", "b1000", "b4321"],
    ],
    ids=lambda tags: tags[0],
)
def test_order_of_real_styles(ascending: list[str]) -> None:
    keys = [key(tag) for tag in ascending]
    assert all(low < high for low, high in pairwise(keys)), list(zip(ascending, keys, strict=True))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1.4", "v1.4.0"),
        ("2.0.0-rc.4", "2.0.0rc4"),
        ("2.0.0-RC4", "2.0.0-rc4"),
        ("v1.27.3+k3s1", "v1.27.3+k3s2"),
        ("3.7.0.Final", "3.7.0"),
        ("v1.0.0-final", "1.0"),
        ("1.0.post2", "1.0-2"),
        ("9.4.51.v20230217", "9.4.51"),
        ("astro@5.0.0", "5.0"),
    ],
)
def test_equal_versions(first: str, second: str) -> None:
    assert key(first) == key(second)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "v",
        "nightly",
        "latest",
        "main",
        "1.x",
        "v1.x",
        "1.*",
        "1.",
        "1.2.3-",
        "4c3b017c",
        "abc123def",
        "x@latest",
        "1" * 300,
    ],
)
def test_texts_that_are_no_versions(text: str) -> None:
    assert parse_version(text) is None


@pytest.mark.parametrize(
    ("tag", "prefix", "prerelease"),
    [
        ("@astrojs/cloudflare@1.2.3", "@astrojs/cloudflare", False),
        ("create-vite@5.0.0-beta.1", "create-vite", True),
        ("helm-chart-1.2.3", "helm-chart", False),
        ("charts/kb-v0.1.0", "charts/kb", False),
        ("api/v3.5.0-rc.0", "api", True),
        ("rel/log4j-2.17.1", "log4j", False),
        ("lz4-1.9.4", "lz4", False),
        ("k8s-1.2.3", "k8s", False),
        ("jdk-17.0.1+12", "jdk", False),
        ("release/v1.0", "", False),
        ("nightly-2023-01-01", "nightly", True),
        ("v0.19b0", "", True),
    ],
)
def test_package_and_prerelease_of_a_tag(tag: str, prefix: str, *, prerelease: bool) -> None:
    version = parse_version(tag)
    assert version is not None
    assert (version.prefix, version.prerelease) == (prefix, prerelease)


@given(semver_texts() | pep440_texts())
def test_the_floor_is_below_everything_with_its_numbers(text: str) -> None:
    version = parse_version(text)
    assert version is not None
    assume("!" not in text)
    line = ".".join(map(str, version.release[:1]))
    assert key(line + FLOOR) <= version.key < key(f"{version.release[0] + 1}{FLOOR}")


# -- which tag is meant -----------------------------------------------------------------------------------

MONOREPO = [
    "astro@5.0.0",
    "astro@4.16.1",
    "astro@4.16.0",
    "@astrojs/cloudflare@12.0.0",
    "@astrojs/cloudflare@4.16.0",
]
VITE = ["v5.0.0", "v5.0.1", "v4.5.0", "create-vite@5.0.0", "create-vite@4.9.9"]


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        ("v1.4.0", ["v1.4.0", "1.4.0"], "v1.4.0"),
        ("1.4", ["v1.4.0", "v1.5.0"], "v1.4.0"),
        ("v1.4.0", ["1.4", "1.4.1"], "1.4"),
        ("1.4.0", ["v1.4.0-rc.1", "v1.4.0"], "v1.4.0"),
        ("1.4.0rc1", ["v1.4.0-rc.1", "v1.4.0"], "v1.4.0-rc.1"),
        ("1.4.x", ["v1.4.0", "v1.4.9", "v1.4.10", "v1.4.11-rc.1", "v1.5.0"], "v1.4.10"),
        ("1.x", ["v1.4.0", "v1.20.0", "v2.0.0"], "v1.20.0"),
        ("1.4", ["v1.4.2"], "v1.4.2"),
        ("1.4", ["v1.4.2", "v1.4.3"], None),
        ("9.9", ["v1.4.2"], None),
        ("nonsense", ["v1.4.2"], None),
        ("nightly", ["nightly", "v1.4.2"], None),
        ("RELEASE-1.2", ["release-1.2"], "release-1.2"),
        ("4.16.0", MONOREPO, "astro@4.16.0"),
        ("12.0.0", MONOREPO, "@astrojs/cloudflare@12.0.0"),
        ("@astrojs/cloudflare@4.16", MONOREPO, "@astrojs/cloudflare@4.16.0"),
        ("astro@5", MONOREPO, "astro@5.0.0"),
        ("5.0.0", VITE, "v5.0.0"),
        ("create-vite@5.0.0", VITE, "create-vite@5.0.0"),
        ("create-vite@5.0.1", VITE, None),
        ("4.9.9", VITE, "create-vite@4.9.9"),
    ],
)
def test_resolve(text: str, tags: list[str], expected: str | None) -> None:
    assert resolve(text, tags) == expected


def test_the_main_package_is_the_one_named_like_the_repository() -> None:
    tags = ["@ai-sdk/openai@1.0.0", "@ai-sdk/openai@1.0.1", "@ai-sdk/openai@1.0.2", "ai@1.0.0"]
    assert Tags(tags).main == "@ai-sdk/openai"
    named = Tags(tags, repository="vercel/ai")
    assert named.main == "ai"
    assert named.resolve("1.0") == parse_version("ai@1.0.0")


def test_newest_of_a_package() -> None:
    tags = Tags(["v1.0.0", "v1.10.0", "v1.9.0", "v2.0.0-rc.1", "nightly"])
    assert [version.text for version in tags.newest(2)] == ["v1.10.0", "v1.9.0"]
    assert [version.text for version in tags.newest(1, prereleases=True)] == ["v2.0.0-rc.1"]


# -- ranges -----------------------------------------------------------------------------------------------


def inside(found: VersionRange, tags: list[str]) -> list[str]:
    return [tag for tag in tags if found.contains(tag)]


def test_a_range_excludes_its_start_and_includes_its_end() -> None:
    tags = ["1.4.0", "1.4.1", "2.0.0-rc.1", "2.0.0", "v2.0", "2.0.1", "nightly"]
    assert inside(parse_range("1.4.0..2.0.0"), tags) == ["1.4.1", "2.0.0-rc.1", "2.0.0", "v2.0"]
    assert inside(parse_range("1.4.1.."), tags) == ["2.0.0-rc.1", "2.0.0", "v2.0", "2.0.1"]
    assert inside(parse_range("..1.4.0"), tags) == ["1.4.0"]


def test_a_range_stays_in_its_package() -> None:
    found = parse_range("4.16..5.0", MONOREPO)
    assert (found.after, found.upto, found.package) == ("astro@4.16.0", "astro@5.0.0", "astro")
    assert inside(found, MONOREPO) == ["astro@5.0.0", "astro@4.16.1"]
    assert inside(parse_range("v4.5.0..v5.0.1", VITE), VITE) == ["v5.0.0", "v5.0.1"]


def test_inclusive_and_exclusive_bounds() -> None:
    tags = ["2.0.0-beta.1", "2.0.0", "2.1.0", "3.0.0-rc.1", "3.0.0"]
    assert inside(VersionRange(start="2" + FLOOR, before="3" + FLOOR), tags) == [
        "2.0.0-beta.1",
        "2.0.0",
        "2.1.0",
    ]
    assert inside(VersionRange(start="2.0.0", before="3.0.0"), tags) == ["2.0.0", "2.1.0", "3.0.0-rc.1"]


@pytest.mark.parametrize(
    "text", ["", "..", "1.4", "1.4-2.0", "main..1.4", "1.4..nightly", "2.0..1.0", "a@1.0..b@2.0"]
)
def test_texts_that_are_no_ranges(text: str) -> None:
    with pytest.raises(VersionError):
        parse_range(text)


def test_a_bound_must_be_a_version() -> None:
    with pytest.raises(VersionError, match="latest"):
        VersionRange(after="latest")


@given(st.lists(semver_texts(), min_size=3, max_size=3))
def test_contains_agrees_with_the_order(texts: list[str]) -> None:
    low, middle, high = sorted(texts, key=key)
    assert parse_range(f"{low}..{high}").contains(middle) == (key(low) < key(middle))


# -- every real tag ---------------------------------------------------------------------------------------


def releases(folder: Path) -> Iterator[tuple[str, list[dict[str, object]]]]:
    for file in sorted((folder / "releases").glob("*.jsonl")):
        lines = file.read_text(encoding="utf-8").split("\n")
        yield file.stem.replace("__", "/"), [json.loads(line) for line in lines if line]


def test_every_real_tag_is_a_version_and_says_whether_it_is_a_prerelease(shared_data: Path) -> None:
    wrong: list[tuple[str, object]] = []
    for repository, records in releases(shared_data):
        for record in records:
            version = parse_version(str(record["tag_name"]))
            if version is None or version.prerelease != record["prerelease"]:
                wrong.append((repository, record["tag_name"]))
    assert wrong == []


def test_real_stable_releases_of_one_line_are_published_in_version_order(shared_data: Path) -> None:
    """Within a line (`1.7.*`) no branch runs beside another: dates must follow version order. A tag moved
    or dated by its commit breaks that now and then, so a fraction is allowed, not a direction."""
    pairs = inverted = 0
    for repository, records in releases(shared_data):
        dates = {str(record["tag_name"]): str(record["published_at"]) for record in records}
        lines: dict[tuple[str, tuple[int, ...]], list[Version]] = {}
        for version in Tags(dates, repository=repository).versions:
            if not version.prerelease:
                lines.setdefault((version.prefix, version.release[:2]), []).append(version)
        for members in lines.values():
            members.sort(key=lambda version: version.key)
            for low, high in pairwise(members):
                pairs += 1
                inverted += dates[low.text] > dates[high.text]
    assert pairs > 2_000
    assert inverted / pairs < 0.005
