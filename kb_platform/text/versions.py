"""Versions: what a tag says about the order of releases.

Belongs here: reading a tag, the sort key that gives version order, finding the tag that a person means,
ranges of versions. Does not belong here: how a question words a range (`retrieval.version_wording`), or
dates, which order releases differently.

Two standards order versions, and the text of a tag decides which one is asked:

- three numbers, then `-` and identifiers, then perhaps `+build`: Semantic Versioning 2.0.0, section 11.
- anything else: PEP 440 (epochs, `a`/`b`/`rc`, `.postN`, `.devN`, `+local`), widened to what projects tag in
  practice (`.CR1`, `.Final`, `1.1.1k`, `REL_16_2`, `helm-chart-1.2.3`, calendar versions).

Where a standard contradicts what its users mean, the users win; these are all the cases:

- a stage glued to its number counts: `rc9` < `rc10` (semver compares them as text), `RC1` equals `rc.1`;
- `-final`, `-ga`, `-release`, `-stable` are the release itself, not pre-releases of it;
- `-post1`, `-sp1`, `-patch1`, `-hotfix.1`, `-p1`, `-rev1` come after the release, as PEP 440 and Maven say.

A text that both standards read, such as `1.0.0+abc`, is semver: its build is ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from kb_platform.errors import VersionError

LONGEST_TAG: Final = 255
"""In code points; git's own references end there on most file systems. Longer texts are no versions."""

LONGEST_KEY: Final = 299
"""In characters; a cut key sorts next to, at worst equal to, the keys it shares 299 characters with."""

FLOOR: Final = ".dev0"
"""Appended to a version it gives the lowest version of all that carry its numbers: `2.dev0` < `2.0.0-alpha`."""

_START = r"(?:[0-9]+!)?[0-9]"
_SEPARATED = re.compile(rf"(?:(?<![0-9])[-_./= ]|(?<=[0-9])-(?=[0-9]+\.))[vVrR]?(?={_START})")
_GLUED = re.compile(rf"[A-Za-z]+(?={_START})")
_CORE = re.compile(
    r"(?:(?P<epoch>[0-9]+)!)?"
    r"(?P<release>[12][0-9]{3}-[01][0-9]-[0-3][0-9](?![0-9])|[0-9]+(?:[._][0-9]+)*)"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_GENERIC_PREFIX = re.compile(r"(?:v|r|rel|release|releases|ver|version|tag|tags|stable)", re.IGNORECASE)
_STAGE = r"alpha|beta|a|b|c|rc|cr|m|milestone|pre|preview|dev|ea|eap|canary|next|nightly|snapshot|insiders?|tp|test"
_STAGE_WORD = re.compile(rf"({_STAGE})([0-9]*)", re.IGNORECASE)
_STAGE_PREFIX = re.compile(
    r"(?:.*[-_/])?(?:alpha|beta|rc|dev|canary|nightly|snapshot|weekly|preview)", re.IGNORECASE
)
_SHORT_STAGES: Final = {"a": "alpha", "b": "beta", "c": "rc", "cr": "rc", "m": "milestone"}
_FINAL = re.compile(r"[-_.]?(?:final|ga|release|stable|lts)", re.IGNORECASE)
_JETTY_DATE = re.compile(r"\.v[0-9]{8}")
_AFTER = re.compile(r"[-_.]?(?:post|sp|patch|hotfix|pl|p|rev|r)(?:[-_.]?(?P<number>[0-9]+))?", re.IGNORECASE)
_SEMVER = re.compile(r"-(?P<pre>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)")
_PEP440 = re.compile(
    r"(?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|c|rc)[-_.]?(?P<pre_number>[0-9]+)?)?"
    r"(?:-(?P<bare_post>[0-9]+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_number>[0-9]+)?)?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_number>[0-9]+)?)?",
    re.IGNORECASE,
)
_PEP440_STAGES: Final = {"a": "alpha", "b": "beta", "c": "rc", "pre": "rc", "preview": "rc"}
_LETTER = re.compile(r"(?P<letter>[A-Za-z]{1,2})(?P<number>[0-9]*)")
_JBOSS = re.compile(r"[-_.]?(?P<stage>cr|m|milestone)[-_.]?(?P<number>[0-9]+)", re.IGNORECASE)
_YEAR = re.compile(r"(?:19|20)[0-9]{2}")
_PIECE = re.compile(r"[A-Za-z]+[0-9]*|[0-9]+")

# The letters of a sort key, in the order in which they must sort. `_DEV` comes before `_END`, because
# 1.0a1.dev2 < 1.0a1, and everything that continues a pre-release after it, because alpha < alpha.1.
_DEV, _END, _NUMBER, _WORD, _LOCAL_WORD, _LOCAL_NUMBER, _RELEASE, _POST = "01234567"
_WORD_END = "!"
_NUMBERS_END = "."


@dataclass(frozen=True, slots=True, order=False)
class Version:
    """A tag that was read as a version. Compare `key`s: the dataclass has no order of its own."""

    text: str
    """The tag as given."""
    prefix: str
    """The package that the tag names: `astro` for `astro@1.2.3`; empty for `v1.2.3` and `release-1.2.3`."""
    release: tuple[int, ...]
    """Its numbers as written: `(1, 2, 0)` for `v1.2.0-rc.1`."""
    prerelease: bool
    key: str
    """Sorts in version order by code point (`COLLATE "C"`); at most `LONGEST_KEY` characters. Equal for
    versions that are equal, whatever their prefix: `1.2`, `v1.2.0` and `astro@1.2.0`."""


@lru_cache(maxsize=32_768)
def parse_version(tag: str) -> Version | None:
    """`tag` read as a version, or None when it is not one: `nightly`, `latest`, `1.x`."""
    text = tag.strip()
    if not text or len(text) > LONGEST_TAG:
        return None
    prefix, bare = _split_prefix(text)
    match = _CORE.fullmatch(bare)
    if match is None:
        return None
    written = re.split(r"[-._]", match["release"])
    body, plus, build = match["rest"].partition("+")
    suffix = _suffix(written, body, build if plus else "")
    if suffix is None:
        return None
    end_of_key, early = suffix
    key = _encode_number(match["epoch"] or "0") + _encode_release(written) + _NUMBERS_END + end_of_key
    early = early or _STAGE_PREFIX.fullmatch(prefix) is not None
    return Version(tag, prefix, tuple(int(number) for number in written), early, key[:LONGEST_KEY])


def version_key(tag: str) -> str | None:
    """The sort key of `tag` (see `Version.key`), or None when it is not a version."""
    version = parse_version(tag)
    return version.key if version else None


def _split_prefix(text: str) -> tuple[str, str]:
    """(package, the rest of the tag, which starts with a number if it is a version)."""
    package, at, rest = text.rpartition("@")
    if not at:
        folder, slash, rest = text.rpartition("/")
        inner, bare = _split_name(rest)
        parts = (
            [part for part in folder.split("/") if part and not _GENERIC_PREFIX.fullmatch(part)]
            if slash
            else []
        )
        return "/".join([*parts, inner] if inner else parts), bare
    return package, _split_name(rest)[1]


def _split_name(text: str) -> tuple[str, str]:
    if "0" <= text[:1] <= "9":
        return "", text
    if text[:1] in "vV" and "0" <= text[1:2] <= "9":
        return "", text[1:]
    separated = list(_SEPARATED.finditer(text))
    for match in separated:
        if re.match(r"[0-9]+[._][0-9]", text[match.end() :]):
            return _name(text[: match.start()]), text[match.end() :]
    glued = _GLUED.match(text)
    if glued and re.fullmatch(r"[0-9]+(?:[._][0-9].*)?", text[glued.end() :]):
        return _name(glued[0]), text[glued.end() :]
    if separated:
        return _name(text[: separated[0].start()]), text[separated[0].end() :]
    return text, ""


def _name(text: str) -> str:
    bare = text.strip("-_./= ")
    return "" if _GENERIC_PREFIX.fullmatch(bare) else bare


def _suffix(release: list[str], body: str, build: str) -> tuple[str, bool] | None:
    """(end of the key, whether it is a pre-release) of what follows the numbers; None for what is no version."""
    if not body or _FINAL.fullmatch(body) or _JETTY_DATE.fullmatch(body):
        # A build of three plain numbers is semver's, which does not count; else it is PEP 440's local part.
        return _RELEASE + ("" if len(release) == 3 else _local(build)), False
    if (post := _AFTER.fullmatch(body)) is not None:
        return _POST + _encode_number(post["number"] or "0") + _END + _local(build), False
    if len(release) == 3 and (semver := _SEMVER.fullmatch(body)) is not None:
        return "".join(_identifier(part) for part in semver["pre"].split(".")) + _END, True
    looser = _loose_suffix(release, body)
    return (looser[0] + _local(build), looser[1]) if looser else None


def _loose_suffix(release: list[str], body: str) -> tuple[str, bool] | None:
    if (jboss := _JBOSS.fullmatch(body)) is not None:
        # PEP 440 would read `CR1` as `c0.post1`.
        return _identifier(jboss["stage"] + jboss["number"]) + _END, True
    is_letter_of_year = _YEAR.fullmatch(release[0]) and len(release) == len(body) == 1
    if not is_letter_of_year and (pep440 := _PEP440.fullmatch(body)) is not None:
        return _pep440_key(pep440), bool(pep440["pre"] or pep440["dev"])
    if (letter := _LETTER.fullmatch(body)) is not None:
        # OpenSSL's 1.1.1k, tzdata's 2023c: a letter that follows is a later release.
        return _POST + _word(letter["letter"].lower()) + _encode_number(letter["number"] or "0") + _END, False
    if body[0] not in "-_." or body[1:2] in ("x", "X", "*", ""):
        return None
    pieces = "".join(_identifier(piece) for piece in _PIECE.findall(body))
    return (pieces + _END, True) if pieces else None


def _pep440_key(match: re.Match[str]) -> str:
    parts: list[str] = []
    if match["pre"]:
        stage = match["pre"].lower()
        parts += [
            _word(_PEP440_STAGES.get(stage, stage)),
            _NUMBER,
            _encode_number(match["pre_number"] or "0"),
        ]
    if match["post"] or match["bare_post"]:
        parts += [_POST, _encode_number(match["bare_post"] or match["post_number"] or "0")]
    if match["dev"]:
        parts += [_DEV, _encode_number(match["dev_number"] or "0")]
    else:
        parts += [_END]
    return "".join(parts)


def _identifier(text: str) -> str:
    """One dot-separated identifier of a pre-release."""
    if text.isdecimal():
        return _NUMBER + _encode_number(text)
    stage = _STAGE_WORD.fullmatch(text)
    if stage is None:
        return _word(text)
    word, number = stage[1].lower(), stage[2]
    return _word(_SHORT_STAGES.get(word, word)) + _NUMBER + _encode_number(number) if number else _word(word)


def _word(text: str) -> str:
    return _WORD + text + _WORD_END


def _local(build: str) -> str:
    """PEP 440: no local part is lowest, words come before numbers, fewer parts before more."""
    return "".join(
        _LOCAL_NUMBER + _encode_number(part) if part.isdecimal() else _LOCAL_WORD + part.lower() + _WORD_END
        for part in re.findall(r"[0-9A-Za-z]+", build)
    )


def _encode_release(written: list[str]) -> str:
    numbers = [number.lstrip("0") for number in written]
    while numbers and not numbers[-1]:
        numbers.pop()
    return "".join(_encode_number(number) for number in numbers)


def _encode_number(digits: str) -> str:
    """Digits whose text order is the numbers' order: their count goes in front."""
    bare = digits.lstrip("0")
    if len(bare) < 9:
        return f"{len(bare)}{bare}"
    return f"9{len(bare):03d}{bare}"


class Tags:
    """The tags of one repository, ready to find the one that a person means.

    `repository` ('owner/repo') tells which package is the main one where tags name several.
    """

    def __init__(self, tags: Iterable[str], *, repository: str = "") -> None:
        self.versions: tuple[Version, ...] = tuple(v for v in map(parse_version, tags) if v is not None)
        self._exact = {version.text: version for version in self.versions}
        self._folded = {version.text.casefold(): version for version in self.versions}
        self._equal: dict[str, list[Version]] = {}
        for version in self.versions:
            self._equal.setdefault(version.key, []).append(version)
        counts = Counter(version.prefix for version in self.versions)
        self.packages: tuple[str, ...] = tuple(package for package, _ in counts.most_common())
        self.name = repository.rpartition("/")[2].casefold()
        self.main = self._main(counts, self.name)
        self.width = self._width()

    def has(self, text: str) -> bool:
        """Whether `text` is one of the tags that are versions, in any case."""
        return text.casefold() in self._folded

    def resolve(self, text: str) -> Version | None:
        """The release that `text` means, or None. The tag itself comes first, then a version equal to it
        (of the named package, else of the main one, else of the only package that has it), then, for
        `1.4.x` and for a line that has one release only, the newest stable release of the line."""
        given = text.strip()
        if (found := self._exact.get(given) or self._folded.get(given.casefold())) is not None:
            return found
        line = re.fullmatch(r"(.*?[0-9])(?:\.[xX*])+", given)
        wanted = parse_version(line[1] if line else given)
        if wanted is None:
            return None
        if line is None and (equal := self._pick(self._equal.get(wanted.key, ()), wanted.prefix)) is not None:
            return equal
        members = self.line(wanted)
        if line is None and len(members) != 1:
            return None
        return max(members, key=lambda version: (not version.prerelease, version.key), default=None)

    def line(self, wanted: Version) -> list[Version]:
        """The releases of `wanted`'s package whose numbers start with those of `wanted`."""
        package = wanted.prefix or self.main
        width = len(wanted.release)
        return [v for v in self.versions if v.prefix == package and v.release[:width] == wanted.release]

    def newest(self, count: int, *, package: str | None = None, prereleases: bool = False) -> list[Version]:
        """The `count` highest versions of a package (None: the main one), the highest first."""
        wanted = self.main if package is None else package
        members = [v for v in self.versions if v.prefix == wanted and (prereleases or not v.prerelease)]
        return sorted(members, key=lambda version: version.key, reverse=True)[:count]

    def _pick(self, equal: Sequence[Version], package: str) -> Version | None:
        if package and package not in self.packages and package.casefold() == self.name:
            package = self.main
        for wanted in [package] if package else [self.main, ""]:
            if of_package := [version for version in equal if version.prefix == wanted]:
                # Two tags of one version (`0.5.0` and `v0.5.0`): the shorter is the plainer name.
                return min(of_package, key=lambda version: (len(version.text), version.text))
        return equal[0] if not package and len({version.prefix for version in equal}) == 1 else None

    @staticmethod
    def _main(counts: Counter[str], name: str) -> str:
        for package in counts:
            if package and package.rpartition("/")[2].casefold() == name:
                return package
        return counts.most_common(1)[0][0] if counts else ""

    def _width(self) -> int:
        """How many numbers a version of the main package usually has."""
        widths = Counter(len(v.release) for v in self.versions if v.prefix == self.main and not v.prerelease)
        return widths.most_common(1)[0][0] if widths else 3


def resolve(text: str, tags: Sequence[str]) -> str | None:
    """The tag that `text` means ('1.4', 'v1.4.0', '1.4.x'), or None. See `Tags.resolve`."""
    found = Tags(tags).resolve(text)
    return found.text if found else None


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Versions between two bounds, each open where it is None. Raises VersionError for a bound that is none."""

    after: str | None = None
    """Excluded lower bound."""
    start: str | None = None
    """Included lower bound."""
    upto: str | None = None
    """Included upper bound."""
    before: str | None = None
    """Excluded upper bound."""
    package: str | None = None
    """Only versions of this package; None: of any."""
    _keys: tuple[str | None, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bounds = (self.after, self.start, self.upto, self.before)
        object.__setattr__(
            self, "_keys", tuple(None if bound is None else _bound_key(bound) for bound in bounds)
        )

    def contains(self, version: Version | str) -> bool:
        """Whether the version lies inside; a text that is no version does not."""
        parsed = parse_version(version) if isinstance(version, str) else version
        if parsed is None or (self.package is not None and parsed.prefix != self.package):
            return False
        after, start, upto, before = self._keys
        above = (after is None or parsed.key > after) and (start is None or parsed.key >= start)
        return above and (upto is None or parsed.key <= upto) and (before is None or parsed.key < before)


def parse_range(text: str, tags: Sequence[str] = ()) -> VersionRange:
    """`A..B`: what came after A, up to and including B; `A..` and `..B` are open on one side.

    Bounds that name one of `tags` (by any spelling) become that tag, and the range is of its package.
    Raises VersionError when the text is no range.
    """
    lower, dots, upper = (part.strip() for part in text.partition(".."))
    upper = upper.lstrip(".")
    if not dots or not (lower or upper):
        raise VersionError(
            f"{text!r} is not a range of versions", hint="write it as A..B, for example 1.4.0..2.1.0"
        )
    known = Tags(tags)
    ends: list[str | None] = []
    packages: list[str] = []
    for bound in (lower, upper):
        version = (known.resolve(bound) or parse_version(bound)) if bound else None
        if bound and version is None:
            raise VersionError(
                f"{bound!r} in the range {text!r} is not a version", hint="write for example 1.4.0..2.1.0"
            )
        ends.append(version.text if version else None)
        if version and (version.prefix or version in known.versions):
            packages.append(version.prefix)
    if len(set(packages)) > 1:
        raise VersionError(
            f"the ends of {text!r} are versions of two packages: {packages[0]!r} and {packages[1]!r}"
        )
    found = VersionRange(after=ends[0], upto=ends[1], package=packages[0] if packages else None)
    if all(ends) and not VersionRange(start=ends[0], upto=ends[1]).contains(str(ends[0])):
        raise VersionError(f"{lower} comes after {upper}", hint=f"turn them round: {upper}..{lower}")
    return found


def _bound_key(bound: str) -> str:
    key = version_key(bound)
    if key is None:
        raise VersionError(f"{bound!r} is not a version", hint="write for example 1.4.0")
    return key
