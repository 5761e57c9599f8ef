"""The names a repository goes by.

Belongs here: which words may mean a repository, derived from its owner, its name, the packages its tags
name and the aliases that are known for it; finding such words in a text; near misses. Nothing is listed by
hand, so a repository added a minute ago has its names. Does not belong here: whether a question *asks
about* a repository whose name it contains (`retrieval.mentions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from kb_platform.retrieval.spelling import is_slip
from kb_platform.text.versions import Tags, parse_version


@dataclass(frozen=True)
class KnownRepository:
    """A repository of the knowledge base. `aliases`: what the notes call the project."""

    name: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...] = ()


class Evidence(IntEnum):
    """How much a name says on its own; the less, the clearer its place in the question must be."""

    FULL = 4  # owner/repo
    DISTINCT = 3  # a name that is hardly anything else: `opentelemetry-python`, `timescaledb`
    SHORTENED = 2  # `confluent-kafka` for confluent-kafka-python
    COMMON = 1  # a word of its own: `uv`, `ai`, `requests`


@dataclass(frozen=True, slots=True)
class Name:
    """One name of one repository, by its letters and digits only (`astralshruff`)."""

    repository: str
    evidence: Evidence
    words: int
    package: str | None = None
    """The package of the repository that is meant, where it is not the main one."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A name found in a text: `start` and `end` are positions, `text` what stands there."""

    start: int
    end: int
    text: str
    names: tuple[Name, ...]


_LANGUAGE_WORDS = "python py js ts javascript typescript node go golang rust rs java jvm kotlin dotnet net cpp php ruby rb swift"
_ROLE_WORDS = (
    "operator server core cli sdk lib library framework platform project app main monorepo repo engine"
)
_OTHER_WORDS = "kit client api web docs site tools tool examples actions action charts chart plugin plugins common model models data"
# Qualifiers of a repository's name that people leave out when they speak.
LANGUAGES: Final = frozenset(_LANGUAGE_WORDS.split())
_ROLES: Final = frozenset(_ROLE_WORDS.split())
# Words that name no project by themselves.
_GENERIC: Final = LANGUAGES | _ROLES | frozenset(_OTHER_WORDS.split())
_ENGLISH = """
accelerate agent agents angular arrow beam behave black bleach bottle build bun cache cargo caddy camel celery charm chef
circle click collector compose conda config connect console consul container containers contour core cross crystal cycle
dagger dash data database datasets deck deploy desktop diffusers docs druid echo electron elixir ember envoy event express
fabric faker falcon fiber fire fish flame flask flow fluent flux forge forms fusion ghost git graph guava hatch haystack
helm hive home hooks horizon http huge hydra ignite impala index ink invoke iris jest julia kong lightning lint linux lit
logging logs mage mantle markdown marshmallow maven mesa meteor metrics mint mocha mock model modern nest network next
ninja nomad notebook oauth open optics orbit outlines packer pages pandas panel phoenix pillow pipeline pipelines poetry
polars portal prefect presto prettier prism proxy pulsar pyramid python query quick rails ray react reactor registry relay
release remix request requests rich ring rocket rollup ruby runner rust rye salt sass scala search sentinel server service
shell signal simple solid spark sphinx spring standard starlight stack storage storm stream streams structure superset
svelte swift table tailwind tasks template terminal test tests tokenizers tools tornado tower trace traces transformers trio
turbo twisted type types typing vault vector view vine vision watch web yarn zoom
"""
# Words of English and of the trade that projects are named after. They mean the project only where the
# question's grammar says so; names of up to three letters likewise.
_COMMON_WORDS: Final = frozenset(_ENGLISH.split())
_OWNER_TAIL = re.compile(
    r"[-_.]?(?:io|inc|org|hq|dev|labs?|js|lang|team|project|foundation|sh|ai|oss|com)$", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_LONGEST_NAME: Final = 7
_SHORTEST_JOINED: Final = 6
_LONGEST_TAIL: Final = 3
_SHORTEST_ABBREVIATED: Final = 10
"""Letters of names that are written like `k8s`."""
_GLUE: Final = "-_/@.#"


def letters(text: str) -> str:
    """Letters and digits, in lower case: what two spellings of a name have in common."""
    return "".join(_WORD.findall(text)).casefold()


class RepositoryNames:
    """All names of the repositories known."""

    def __init__(self, known: Iterable[tuple[KnownRepository, Tags]]) -> None:
        self._names: dict[str, dict[str, Name]] = {}
        self.owners: dict[str, frozenset[str]] = {}
        self._tags: dict[str, Tags] = {}
        self._heads: dict[str, set[str]] = {}
        for repository, tags in known:
            self._tags[repository.name] = tags
            for head in _heads(repository.name):
                self._heads.setdefault(head, set()).add(repository.name)
            owner = repository.name.partition("/")[0]
            self.owners[repository.name] = frozenset({letters(owner), letters(owner_stem(owner))} - {""})
            for text, evidence, package in _names_of(repository, tags):
                self._add(text, Name(repository.name, evidence, len(_WORD.findall(text)), package))
        self._beginnings = {name[:length] for name in self._names for length in range(1, len(name) + 1)}

    def _add(self, text: str, name: Name) -> None:
        of_text = self._names.setdefault(letters(text), {})
        present = of_text.get(name.repository)
        if present is None or present.evidence < name.evidence:
            of_text[name.repository] = name

    def find(self, text: str) -> Iterator[Occurrence]:
        """Names in `text`, the longest first where they overlap, in order of their place."""
        words = list(_WORD.finditer(text))
        index = 0
        while index < len(words):
            found = self._longest(text, words, index)
            if found is None:
                index += 1
                continue
            index, occurrence = found
            yield occurrence

    def _longest(self, text: str, words: list[re.Match[str]], first: int) -> tuple[int, Occurrence] | None:
        start, joined = words[first].start(), ""
        found: tuple[int, Occurrence] | None = None
        gaps: list[str] = []
        for index in range(first, min(first + _LONGEST_NAME, len(words))):
            joined += words[index][0].casefold()
            if joined not in self._beginnings:
                break
            if index > first:
                gaps.append(text[words[index - 1].end() : words[index].start()])
            end = words[index].end()
            names = self._names.get(joined, {}).values()
            if fitting := tuple(name for name in names if _fits(text, start, end, gaps, name)):
                found = index + 1, Occurrence(start, end, text[start:end], _strongest(fitting))
        return found

    def has_version(self, repository: str, text: str) -> bool:
        """Whether the repository has the version `text`, or releases of that line."""
        parsed, tags = parse_version(text), self._tags[repository]
        return parsed is not None and (tags.resolve(text) is not None or bool(tags.line(parsed)))

    def headed_by(self, text: str) -> tuple[str, ...]:
        """Repositories whose name begins with the words of `text` and goes on: redis/redis-py for `Redis`."""
        return tuple(sorted(self._heads.get(letters(text), ())))

    def near(self, text: str) -> Name | None:
        """The one name that `text` misspells; None when none or several come near."""
        wanted, words = letters(text), len(_WORD.findall(text))
        if wanted in self._names:
            return None
        found = [
            name
            for spelling, names in self._names.items()
            if is_slip(wanted, spelling)
            for name in names.values()
            if name.words == words
        ]
        return found[0] if len({name.repository for name in found}) == 1 else None


def _strongest(names: tuple[Name, ...]) -> tuple[Name, ...]:
    """A name that one repository bears beats one that another is sometimes given."""
    return tuple(name for name in names if name.evidence is not Evidence.SHORTENED) or names


def _fits(text: str, start: int, end: int, between: list[str], name: Name) -> bool:
    """Whether the words stand as a name does: not inside a longer identifier, path or option."""
    if any(len(gap) > 1 for gap in between):
        return False
    if " " in between and name.words <= len(between):
        # `fast api` is a spelling of `fastapi`, `as tro` and `a sync` are not of `astro` and `async`.
        pieces = text[start:end].split()
        if len(letters(text[start:end])) < _SHORTEST_JOINED or min(map(len, pieces)) < 2:
            return False
    before, after = text[start - 1 : start], text[end : end + 2]
    if before and before in _GLUE and not (before == "@" and name.package):
        return False
    glued = len(after) == 2 and after[0] in _GLUE and (after[1].isalnum() or after[1] in "_(")
    return not glued or name.evidence is Evidence.FULL or (after[0] == "@" and after[1].isdigit())


def _names_of(repository: KnownRepository, tags: Tags) -> Iterator[tuple[str, Evidence, str | None]]:
    owner, _, name = repository.name.partition("/")
    yield repository.name, Evidence.FULL, None
    yield from _names_of_owner(owner, name)
    yield name, _evidence(name), None
    for shorter in _shortened(name):
        yield shorter, Evidence.SHORTENED, None
    if len(whole := letters(name)) >= _SHORTEST_ABBREVIATED:
        yield f"{whole[0]}{len(whole) - 2}{whole[-1]}", Evidence.COMMON, None
    for alias in repository.aliases:
        yield alias, _evidence(alias), None
    for package in tags.packages:
        if package and package != tags.main:
            yield package, Evidence.DISTINCT if len(_split(package)) > 1 else Evidence.COMMON, package
            bare = package.rpartition("/")[2]
            if bare != package and len(_split(bare)) > 1:
                yield bare, Evidence.SHORTENED, package
        elif package:
            yield package, _evidence(package), None


def _names_of_owner(owner: str, name: str) -> Iterator[tuple[str, Evidence, str | None]]:
    stem = owner_stem(owner)
    yield f"{owner} {name}", Evidence.DISTINCT, None
    if letters(stem) != letters(owner):
        yield f"{stem} {name}", Evidence.DISTINCT, None
    if letters(name) in _GENERIC:
        # vuejs/core is Vue, sveltejs/kit is SvelteKit: the name alone says nothing.
        yield owner, Evidence.SHORTENED, None
        yield stem, Evidence.SHORTENED, None
    words = _split(name)
    headed = len(words) > 1 and words[0] in (letters(owner), letters(stem))
    if headed and words[-1] in _ROLES:
        # strimzi/strimzi-kafka-operator is Strimzi; redis/redis-py is not Redis.
        yield words[0], Evidence.SHORTENED, None
    if letters(owner) == letters(name) + "js":
        yield owner, Evidence.DISTINCT, None
    tail = letters(name).removeprefix(letters(stem))
    if (
        tail.isalpha()
        and len(tail) <= _LONGEST_TAIL
        and tail not in LANGUAGES
        and len(letters(stem)) > len(tail)
    ):
        # timescale/timescaledb is spoken of as Timescale.
        yield stem, Evidence.SHORTENED, None


def _shortened(name: str) -> Iterator[str]:
    """`confluent-kafka` for confluent-kafka-python. A single word that would remain is another project as
    often as not (`prometheus` for prometheus-operator), except behind `.js`, which is only a manner."""
    words = _split(name)
    while len(words) > 2 and words[-1] in LANGUAGES | _ROLES:
        words = words[:-1]
        yield " ".join(words)
    if len(words) == 2 and words[-1] in ("js", "ts"):
        yield words[0]


def _heads(repository: str) -> Iterator[str]:
    words = _split(repository.rpartition("/")[2])
    for count in range(1, len(words)):
        yield "".join(words[:count])


def _split(name: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(name)]


def _evidence(name: str) -> Evidence:
    words = _split(name)
    if len(words) > 1 or len(_CAMEL.findall(name)) > 1:
        return Evidence.DISTINCT if len("".join(words)) > 3 else Evidence.COMMON
    joined = "".join(words)
    return Evidence.COMMON if len(joined) <= 3 or joined in _COMMON_WORDS | _GENERIC else Evidence.DISTINCT


def owner_stem(owner: str) -> str:
    """`astral` for astral-sh, `confluent` for confluentinc."""
    shorter = _OWNER_TAIL.sub("", owner)
    return shorter if len(shorter) >= 3 else owner
