"""What a question's wording says besides names, versions and dates.

Belongs here: the kind of answer wanted, kinds of change, stable against pre-release, and the words that
only make it a question. Does not belong here: names (`retrieval.mentions`), versions
(`retrieval.version_wording`), time (`retrieval.periods`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from kb_platform.retrieval.reading import REPOSITORY, REST, Reading
from kb_platform.retrieval.version_wording import Newest
from kb_platform.text.kinds import Kind


class Intent(StrEnum):
    """The kind of answer a question wants."""

    LOOKUP = "lookup"  # which release did something
    CHANGES = "changes"  # what changed, or broke, in the releases that the filters name
    RELEASES = "releases"  # the releases that the filters name
    LATEST = "latest"  # the newest of them
    FIRST = "first"  # the oldest of them
    COUNT = "count"  # how many there are


_REPO = f"{REPOSITORY}{REST}*"
_RELEASES = r"(?:releases|versions)"
_RELEASE = r"(?:releases?|versions?)"

_COUNT = re.compile(
    rf"\b(?:how many|number of|count(?: of)?)\b(?:[^?.,]{{0,40}}?)\b(?:{_RELEASES}|changes|fixes|features|deprecations|removals|CVEs|vulnerabilities)\b",
    re.IGNORECASE,
)
_CHANGES = re.compile(
    rf"""\bwhat(?:'s|\ is|\ are|\ was|\ were|\ has|\ have|\ got)?(?:\ been)?\ (?:all\ )?(?:{_REPO}\ )?
          (?:new|chang\w+|broke\w*|breaks?|breaking|differ\w*|fixed|added|removed|deprecated|happened|dropped)\b
      | \b(?:breaking|notable|all|any|security|incompatible|behaviou?r|main|important)\ (?:changes?|fixes|updates)\b
      | \b(?:change\ ?logs?|release\ notes|deprecations|removals|bug\ ?fixes|new\ features|vulnerabilities|CVEs)\b
      | \b(?:mention\w*|list\w*|contain\w*|fix\w*)\ (?:an?\ |any\ )?(?:CVEs?\b(?!-)|vulnerabilit\w+|security)
      | \bupgrad(?:e|ing)\b | \bchanges?\ (?:between|since|from|in|of|after|before) | \bsummar\w+ | \bdiff\b
      | \b{_RELEASES}\b.*\b(?:deprecat\w+|remov\w+)\ (?:anything|something|features?)""",
    re.IGNORECASE | re.VERBOSE,
)
_LISTS = re.compile(
    rf"""\b(?:which|what|list|show|name|all|every|give)\b[^?.]{{0,60}}\b{_RELEASES}\b
      | \bwhat\ (?:was|were|has\ been|got|did\ {_REPO}|has\ {_REPO})\ (?:been\ )?(?:releas|publish|ship)\w*
      | (?:^|{_REPO}\ )(?:stable\ )?{_RELEASES}\b
      | \bwhen\ (?:was|did|were)\b.{{0,60}}\b(?:released|published|tagged|come\ out)
      | \b{_RELEASES}\ (?:published|released|tagged|between|since|in|from|of)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_FIRST = re.compile(
    rf"\b(?:first|earliest|oldest|initial)(?: (?:stable|ever|{_REPO}))* {_RELEASE}\b|\bfirst {_REPO}",
    re.IGNORECASE,
)

_STABLE = re.compile(
    rf"\b(?:only )?(?P<stable>stable)(?: only)? ?(?:(?:{_REPO}|[\w-]+) ){{0,2}}?{_RELEASE}\b(?: only)?"
    r"|\b(?:excluding|without|no|not counting|ignoring|ignore|except|exclude) (?:any )?(?:pre-?releases?|betas?|alphas?|release candidates|rcs)\b"
    r"|\bstable only\b",
    re.IGNORECASE,
)
_BOTH = re.compile(
    r"[ ,(]*\b(?:pre-?releases? (?:are |too )?(?:included|too|as well|count)|(?:including|with|counting|include) (?:all )?(?:pre-?releases?|betas|alphas|release candidates))\b\)?",
    re.IGNORECASE,
)
_EARLY = re.compile(
    rf"\b(?:only )?(?:pre-?{_RELEASE}|(?:beta|alpha|canary|rc|release candidate) {_RELEASE}|release candidates|betas|alphas)\b(?: only)?",
    re.IGNORECASE,
)

_PASSIVE = "(?:get|got|gets|was|were|been|is)"
# Kinds as conditions: what an answer about changes is restricted to. Order matters: a "security fix" is one.
_KINDS_ASKED: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (Kind.BREAKING, r"\b(?:backwards?[- ])?(?:breaking|incompatib\w+)(?: (?:api )?changes?)?|\b(?:broke|breaks|broken)\b|\bbreak anything\b|\bwhat (?:\w+ ){0,4}break\b"),
        (Kind.SECURITY, r"\bsecurity(?:[- ](?:fix(?:es)?|issues?|advisor\w+|patch(?:es)?|updates?|changes|bugs?))?\b|\bvulnerabilit\w+(?: fix(?:es)?)?|\bCVEs?\b(?!-)|\badvisor(?:y|ies)\b"),
        (Kind.DEPRECATION, r"\bdeprecat\w+"),
        (Kind.REMOVAL, r"\bremov(?:ed|als?|es?)\b|\bdropped\b"),
        (Kind.PERFORMANCE, r"\bperformance(?: (?:improvements?|changes|fixes))?\b|\bspeed-?ups?\b|\bfaster\b"),
        (Kind.DOCS, r"\b(?:documentation|docs)(?: changes)?\b"),
        (Kind.FIX, r"\b(?:bug[- ]?)?fix(?:es|ed)\b|\bbugs\b"),
        (Kind.FEATURE, r"\b(?:new )?features?\b|\b(?:was|were|got|been) added\b|\bwhat (?:\w+ ){0,2}added\b|\badditions\b|\benhancements\b"),
    )
)  # fmt: skip
# Kinds as hints: what a release is said to have done. How the question is framed outweighs its subject.
_FRAMES: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (Kind.FIX, rf"\b{_PASSIVE} (?:\w+ )?(?:fixed|resolved|solved|repaired|corrected)\b[^a-z]*(?:\([^)]*\))?\W*$|\bha(?:s|ve) (?:the|a) fix|\bwith (?:the|a) fix\b|\brunning into\b"),
        (Kind.DEPRECATION, rf"\b{_PASSIVE} deprecated\b\W*$"),
        (Kind.REMOVAL, rf"\b{_PASSIVE} (?:removed|dropped)\b\W*$"),
        (Kind.FEATURE, rf"\bfirst appear|\b{_PASSIVE} (?:added|introduced|supported)\b\W*$|\b(?:did|does|has) (?:the )?{_REPO} (?:get|gain|learn)\b"),
    )
)  # fmt: skip
_DEED = re.compile(
    r"(?:\W*\w[\w-]*){0,2}?\W*\b(?:(?P<fix>fix(?:e[sd])?|bug|bugfix|resolve[sd]?|solve[sd]?|repair\w*|correct(?:ed|s)?)"
    r"|(?P<removal>remov(?:e[sd]?|al)|drop(?:s|ped)?|delete[sd]?)|(?P<deprecation>deprecat\w+)"
    r"|(?P<security>CVE-\d+-\d+|CVEs?|vulnerabilit\w+|security)|(?P<breaking>breaking|incompatible)"
    r"|(?P<performance>faster|speed(?:ed|s)? up|speed|performance)|(?P<docs>document(?:ed|ation)|docs)"
    r"|(?P<feature>add(?:s|ed)?|introduce[sd]?|support(?:s|ed)?|allow(?:s|ed)?|enable[sd]?|expose[sd]?|gain(?:s|ed)?|implement(?:s|ed)?))\b(?!-)",
    re.IGNORECASE,
)
_LONGEST_BEGINNING: Final = 80
_FASTER = re.compile(r"\b(?:faster|quicker|speed(?:s|ed)? up|speed-?ups?)\b", re.IGNORECASE)

_PHRASES: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:we|i) (?:keep|kept|are|am|have been) (?:running into|seeing|hitting|getting) (?:this|a problem|an error|problems|issues)(?: (?:with|in))?\b",
        rf"\b(?:which|what|in which|in what) {_RELEASE} (?:has|have|contains?|includes?|got|brought|ships?) (?:the|a) fix\b",
        rf"\((?:by|in|counted by) {_RELEASE} (?:number|order)s?\)|\bcounted by {_RELEASE} numbers?\b|\bby {_RELEASE} numbers?\b",
        r"\bon the way\b|\bin their (?:release )?notes\b|\bin the (?:release )?notes\b|\bin (?:UTC|total)\b|\(UTC\)",
        r"\bup to and including\b|\bplease\b|\bcan you tell me\b|\bcould you tell me\b|\bdo you know\b|\btell me\b",
        r"^\W*(?:since when|how many)\b|\bwhat(?:'s| is) new\b",
    )
)
_LEADING_WORDS = """
a an and any are as at available be been begin begins being began by came can come could did do does for from gain gained get
gets got had happen happened happens has have how i if in include included includes is it its last latest list listed lists
me my newest now of on or our out please published recent release released releases say shipped should show since
start started starting starts still tag tagged tags that the their them then there these they this to up us version versions
want was we were what when where which while who will with would you your first earliest finally already ever exactly
currently between after before until than later earlier newer older including mention mentions mentioned contain contains
"""
_TRAILING_WORDS = """
get gets got fixed resolved solved first appear appears appeared happen happened happens come came land landed landing
released published shipped tagged available please and or in of
"""
_EMPTY_WORDS = """
about across add added adds affect affected all also another application break breaking breaks broke broken brought bug bugfix
bugfixes bugs careful change changed changelog changes code count cve cves dependency deprecate deprecated deprecates
deprecation deprecations deprecations differ difference differences different diff documentation docs drop dropped during else
enhancement enhancements every everything feature features find fixes give going happening history important improvement
improvements incompatible incompatibility incompatibilities interesting introduce introduced introduces issue issues items know
list log look looking main major make many migrate migrating migration minor month much name need needed new news notable
note notes number order our overview package patch performance pin pinned plan planning point possible pre-release pre-releases
prerelease prereleases publish quarter relevant remove removed removes removal removals run running see security set short
something stable summarise summarize summary support tell through today total under update updated updates updating upgrade
upgraded upgrades upgrading use used using vulnerabilities vulnerability watch way week well within worry year yesterday
fix fixed no not made project team final your ours but exist exists oldest we're going go should expect expected still s come shipped oldest anything things thing stuff all-time ourselves let need happened landed land shipping ship ships behaviour behavior stays stay
am moving move moves moved jump jumping switch switching bump bumping heading headed branches lines counting counted
coming matter matters concern concerns just only so far both inclusive during date dates dated period series line branch utc advisory advisories
"""
_LEADING: Final = frozenset(_LEADING_WORDS.split())
_TRAILING: Final = frozenset(_TRAILING_WORDS.split())
_EMPTY: Final = _LEADING | _TRAILING | frozenset(_EMPTY_WORDS.split())
_WORDS = re.compile(r"[^\W_][\w'-]*")
_MARK = re.compile(f"{REPOSITORY}{REST}*")
_IDENTIFIER = re.compile(r"\bCVE-\d{4}-\d{4,}\b|\bGHSA(?:-[0-9a-z]{4}){3}\b", re.IGNORECASE)


def asks_for_changes(marked: str) -> bool:
    """Whether the question is about what changed, not about one change."""
    return _CHANGES.search(marked) is not None


def lists_releases(marked: str) -> bool:
    """Whether the question asks for releases, several or all."""
    return _LISTS.search(marked) is not None


def take_prerelease(reading: Reading) -> tuple[bool | None, str | None]:
    """(the filter's value, the words that set it), taken out of `reading`."""
    for value, pattern in ((None, _BOTH), (False, _STABLE), (True, _EARLY)):
        match = pattern.search(reading.marked)
        if match is None:
            continue
        end = match.end() if match.groupdict().get("stable") is None else match.end("stable")
        reading.blank(match.start(), end)
        return value, reading.text[match.start() : end].strip(" ,(")
    return None, None


def intent_of(
    marked: str, *, topic: str, kinds: bool, versions: bool, period: bool, newest: Newest | None
) -> Intent:
    """What the question wants. With something left to search for, the release that did it."""
    if topic or _IDENTIFIER.search(marked):
        return Intent.LOOKUP
    if _COUNT.search(marked):
        return Intent.COUNT
    changes = asks_for_changes(marked) and (newest is None or newest.within or not kinds)
    if newest is not None and not changes:
        return Intent.LATEST if newest.count == 1 else Intent.RELEASES
    if _FIRST.search(marked) and (kinds or not changes):
        return Intent.FIRST
    if changes or kinds or (versions and not lists_releases(marked)):
        return Intent.CHANGES
    return Intent.RELEASES if period or versions or lists_releases(marked) else Intent.LOOKUP


def kinds_asked(marked: str) -> tuple[Kind, ...]:
    """Kinds that the changes or releases asked for must have, in the order of the question."""
    found: dict[Kind, int] = {}
    for kind, pattern in _KINDS_ASKED:
        match = pattern.search(marked)
        if match is not None:
            found[kind] = match.start()
            marked = pattern.sub(lambda taken: " " * len(taken[0]), marked)
    return tuple(sorted(found, key=found.__getitem__))


def kind_hinted(marked: str, topic: str) -> Kind | None:
    """What the release looked for is said to have done: by the question's frame, else by how its topic begins."""
    for kind, pattern in _FRAMES:
        if pattern.search(marked):
            return kind
    deed = _DEED.match(topic[:_LONGEST_BEGINNING])
    if deed and deed.lastgroup:
        return Kind(deed.lastgroup)
    return Kind.PERFORMANCE if _FASTER.search(topic) else None


def topic_of(marked: str) -> str:
    """What is left to search for: the question without its marks and the words that make it a question."""
    rest = _MARK.sub(" ", marked)
    for pattern in _PHRASES:
        rest = pattern.sub(" ", rest)
    words = list(_WORDS.finditer(rest))
    if all(word[0].lower().partition("'")[0] in _EMPTY for word in words):
        return ""
    first = next((word for word in words if word[0].lower().partition("'")[0] not in _LEADING), words[0])
    last = next((word for word in reversed(words) if word[0].lower() not in _TRAILING), words[-1])
    start, end = _with_brackets(rest, first.start(), last.end())
    return re.sub(r"\s+([,;:])", r"\1", " ".join(rest[start:end].split())).strip(" ,;:?!")


def _with_brackets(text: str, start: int, end: int) -> tuple[int, int]:
    """Signs that belong to the first and the last word: `--flag`, `.qmd`, `f()`, `(Web)`."""
    while start > 0 and text[start - 1] in "-.@#/_!~$\"'`([<*":
        start -= 1
    while end < len(text) and text[end] in "-/_%+#\"'`)]>*(=":
        end += 1
    return start, end
