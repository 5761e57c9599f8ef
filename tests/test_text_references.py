"""References are recognised as release notes write them, and nothing else is."""

from __future__ import annotations

import pytest

from kb_platform.text.references import References, find_references

LONG = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"


@pytest.mark.parametrize(
    ("text", "issues"),
    [
        ("Close it (#12, #13) #12", ("#12", "#13")),
        ("[#12](https://github.com/acme/tool/pull/12)", ("#12",)),
        ("by @a in https://github.com/acme/tool/pull/12", ("acme/tool#12",)),
        ("[the report](https://github.com/acme/tool/issues/12#issuecomment-1)", ("acme/tool#12",)),
        ("acme/tool#12 and Acme/Tool#12", ("acme/tool#12",)),
        (":ticket:`#12` :issue:`13` :pr:`14`", ("#12", "#13", "#14")),
        ("`#12 <https://github.com/acme/tool/issues/12>`__", ("#12",)),
        ("GH-12 and gh-13", ("#12", "#13")),
        ("&#39; C#8 a#1 https://example.com/#7 #0 #12.5 #1a", ()),
    ],
)
def test_issues(text: str, issues: tuple[str, ...]) -> None:
    assert find_references(text).issues == issues


def test_advisories_and_cves() -> None:
    found = find_references(
        "cve-2024-12345, CVE-2024-1, GHSA-X2C4-5F6G-7H8J, RUSTSEC-2024-0001, CVE-2024-12345"
    )
    assert found.cves == ("CVE-2024-12345",)
    assert found.advisories == ("GHSA-x2c4-5f6g-7h8j", "RUSTSEC-2024-0001")


@pytest.mark.parametrize(
    ("text", "commits"),
    [
        (f"[`0a1b2c3`](https://github.com/acme/tool/commit/{LONG})", (LONG,)),
        ("- 0a1b2c3: words", ("0a1b2c3",)),
        ("* 0a1b2c3 words", ("0a1b2c3",)),
        ("Updated dependencies [0a1b2c3, 1a2b3c4]", ("0a1b2c3", "1a2b3c4")),
        (f"at {LONG}.", (LONG,)),
        ("(`0a1b2c3`)", ("0a1b2c3",)),
        ("in 2024 a deadbeef of 1234567 `defaced` and v0a1b2c3", ()),
    ],
)
def test_commits(text: str, commits: tuple[str, ...]) -> None:
    assert find_references(text).commits == commits


@pytest.mark.parametrize(
    ("text", "authors"),
    [
        ("by @octocat, @Hubot and @octocat", ("octocat", "Hubot")),
        ("by [ldez](https://github.com/ldez)", ("ldez",)),
        ("Thanks [Mona](https://github.com/mona)!", ("mona",)),
        ("by @dependabot[bot]", ("dependabot",)),
        ("me@example.com @acme/pkg astro@2.7.3 `@decorator` @app.get [x](https://github.com/sponsors)", ()),
        ("```py\n@cached\ndef f(): ...\n```", ()),
    ],
)
def test_authors(text: str, authors: tuple[str, ...]) -> None:
    assert find_references(text).authors == authors


def test_text_without_references() -> None:
    assert find_references("Gates open inwards.") == References((), (), (), (), ())
