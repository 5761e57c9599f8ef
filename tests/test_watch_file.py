"""Watch lists in files: what is understood, and that what is wrong is named by its line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kb_platform.errors import SourceError
from kb_platform.sources import watch_file
from kb_platform.sources.watch_file import (
    Wanted,
    duration_s,
    duration_text,
    place_of,
    read_watch_file,
    repository_in,
)

FORGE = "https://git.example.com/api/v1"


def read(tmp_path: Path, content: str | bytes, name: str = "watch.yaml") -> list[Wanted]:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_watch_file(file)


def wrong(tmp_path: Path, content: str | bytes, name: str = "watch.yaml") -> str:
    with pytest.raises(SourceError) as caught:
        read(tmp_path, content, name)
    return str(caught.value)


def test_yaml_with_names_and_mappings(tmp_path: Path) -> None:
    text = f"""\
# What we depend on.
repositories:
  - acme/tool
  - repository: "acme/gadget"   # often
    every: 15m
    stale_after: 2h
  - {{repository: acme/elsewhere, source: gitea, url: {FORGE}/}}
  - https://github.com/acme/Page.git
  - repository: acme/nothing
    every:
    url: ~
"""
    assert read(tmp_path, text) == [
        Wanted("acme/tool"),
        Wanted("acme/gadget", every_s=900, stale_after_s=7_200),
        Wanted("acme/elsewhere", "gitea", FORGE),
        Wanted("acme/Page"),
        Wanted("acme/nothing"),
    ]
    assert read(tmp_path, text, "watch") == read(tmp_path, text)
    assert read(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) == read(tmp_path, text)
    assert read(tmp_path, '{"repositories": ["acme/tool"]}', "watch.json") == [Wanted("acme/tool")]


def test_plain_text_with_one_name_a_line(tmp_path: Path) -> None:
    text = "# ours\n\nacme/tool\n  acme/gadget  # often\r\nhttps://github.com/acme/page/releases\n"
    assert [w.repository for w in read(tmp_path, text, "watch.txt")] == [
        "acme/tool",
        "acme/gadget",
        "acme/page",
    ]
    assert [w.repository for w in read(tmp_path, text, "watch")] == ["acme/tool", "acme/gadget", "acme/page"]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "repositories:\n", "repositories: []\n", "repositories: ~\n"]
)
def test_an_empty_list_is_one(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == []
    assert read(tmp_path, text, "watch.txt") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repositories:\n- acme/tool\n- acme\n", "line 3: 'acme' is not a repository name like OWNER/REPO"),
        ("repositories:\n- acme/tool\n- ACME/Tool\n", "line 3: ACME/Tool is there already, in line 2"),
        ("repositories: [acme/tool, acme/tool]\n", "line 1: acme/tool is there already"),
        ("repositories:\n- &a acme/tool\n- *a\n", "acme/tool is there already"),
        (
            "repositories:\n- repository: a/b\n  every: 15\n",
            "'15' is no duration: a whole number with s, m, h or d",
        ),
        ("repositories:\n- repository: a/b\n  every: 0s\n", "'0s' is no duration"),
        (
            "repositories:\n- repository: a/b\n  evry: 5m\n",
            "line 3: 'evry' is none of the keys repository, source",
        ),
        (
            "repositories:\n- repository: a/b\n  every: 5m\n  every: 6m\n",
            "line 4: the key every is there twice",
        ),
        ("repositories: []\nrepositories: []\n", "line 2: the key repositories is there twice"),
        ("repositories:\n- every: 5m\n", "line 2: the key repository is missing"),
        ("repositories:\n- <<: {repository: a/b}\n", "'<<' is none of the keys"),
        ("repositories:\n- repository: [a/b]\n", "line 2: repository is one value"),
        ("repositories:\n- - a/b\n", "line 2: OWNER/REPO, or a mapping"),
        ("repositories:\n- ~\n", "line 2: OWNER/REPO, or a mapping"),
        ("repositories:\n  acme/tool:\n", "`repositories` is a list"),
        ("repository:\n- acme/tool\n", "line 1: 'repository' is none of the keys repositories"),
        ("- acme/tool\n", "line 1: a mapping with the key `repositories` is expected"),
        ("{}\n", "line 1: the key `repositories` is missing"),
        ("repositories:\n\t- acme/tool\n", "line 2: no YAML"),
        ("repositories:\n- 'acme/tool\n", "no YAML"),
        ("repositories: []\n---\nrepositories: []\n", "line 2: no YAML"),
        ("repositories: &a\n- *a\n", "line 1: OWNER/REPO, or a mapping"),
        ("repositories:\n- a\x00b\n", "no YAML"),
        ("repositories:\n- !!python/object/apply:os.system ['true']\n", "line 2: OWNER/REPO"),
        ("repositories:\n- repository: a/b\n  source: gitlab\n", "'gitlab' is no source: github or gitea"),
        ("repositories:\n- repository: a/b\n  source: gitea\n", "the source gitea needs a url"),
        (f"repositories:\n- repository: a/b\n  url: {FORGE}\n", "url is for gitea"),
        ("repositories:\n- https://git.example.com/a/b\n", "an address must be of github.com"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in wrong(tmp_path, text)


def test_all_that_is_wrong_is_said_at_once_and_in_order(tmp_path: Path) -> None:
    message = wrong(tmp_path, "acme/tool\nnot a name\nacme/gadget\nacme/tool\n", "watch.txt")
    assert message.index("line 2: 'not a name'") < message.index(
        "line 4: acme/tool is there already, in line 1"
    )
    message = wrong(tmp_path, "repositories:\n" + "- x\n" * 50)
    assert "line 21: " in message
    assert "line 22: " not in message
    assert message.endswith("and 30 more")


def test_a_file_that_cannot_be_one(tmp_path: Path) -> None:
    assert "line 2: no UTF-8" in wrong(tmp_path, b"acme/tool\nacme/\xff\n", "watch.txt")
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        read_watch_file(tmp_path / "none.yaml")
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        read_watch_file(tmp_path)
    assert "is longer than" in wrong(tmp_path, b"#" * (watch_file.MOST_BYTES + 1))


@pytest.mark.parametrize(
    "text", ["repositories: " + "[" * 50_000, "repositories: " + "{a: " * 20_000, "? " * 50_000]
)
def test_a_file_that_is_nested_without_end(tmp_path: Path, text: str) -> None:
    started = time.monotonic()
    assert "line 1: no YAML" in wrong(tmp_path, text)
    assert time.monotonic() - started < 20


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    levels = "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    started = time.monotonic()
    assert "line 3: OWNER/REPO" in wrong(tmp_path, "repositories:\n- &a0 [x]\n" + levels)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text", ["acme", "acme/", "/tool", "a/b/c", "acme/a...b", "acme/to ol", "https://github.com/acme", "http://[", "",
             "ftp://example.com/acme/tool", "acme/tool\x1b[2J"],
)  # fmt: skip
def test_no_repository(text: str) -> None:
    with pytest.raises(ValueError):
        repository_in(text)


def test_repositories_by_their_address() -> None:
    for address in ("https://github.com/acme/tool", "http://www.github.com/acme/tool/", "https://github.com/acme/tool.git",
                    "https://github.com/acme/tool/releases/tag/v1?x=y#z"):  # fmt: skip
        assert repository_in(address) == "acme/tool"
    assert repository_in("acme/tool.git") == "acme/tool.git"


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("15m", 900), ("2h", 7_200), ("1d", 86_400), ("090s", 90)]
)
def test_durations(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds
    assert duration_s(duration_text(seconds)) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "15", "m", "1.5h", "-1s", "0m", "1w", "1h30m", "15 m", "1e3s", "367d", "9" * 50 + "s", "٣m", "15M"],
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number with s, m, h or d behind it"):
        duration_s(text)


def test_addresses_of_forges() -> None:
    assert place_of("github", None) == ("github", None)
    for url in (FORGE, f"{FORGE}/", f" {FORGE} ", "https://Git.Example.com/api/v1"):
        assert place_of("gitea", url) == ("gitea", FORGE)
    for url in ("http://127.0.0.1:3000/api/v1", "https://example.com/git/api/v1", "http://[::1]:3000/api/v1"):
        assert place_of("gitea", url) == ("gitea", url)


@pytest.mark.parametrize(
    "url",
    ["git.example.com", "https://git.example.com", "https://git.example.com/api/v1?token=hunter2", "ftp://example.com/api/v1",
     "https://me:hunter2@git.example.com/api/v1", "https://hunter2@git.example.com/api/v1", "https:///api/v1",
     "https://git.example.com:hunter2/api/v1", "https://git.example.com/api/v1#hunter2", "https://exa mple.com/api/v1",
     "https://[hunter2/api/v1", "https://git.example.com/../api/v1 hunter2"],
)  # fmt: skip
def test_addresses_that_are_none_are_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="url must be like") as caught:
        place_of("gitea", url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
