"""What the text of a change item says about its kind.

Belongs here: the vocabulary of items: marks of breaking changes, prefixes, gitmoji, first words. Everything is
matched on at most _READ code points from the start, or in time linear in the text.
Does not belong here: the vocabulary of headings (`section_kinds`), and which evidence wins (`labelling`).
"""

from __future__ import annotations

import re
from typing import Final

from kb_platform.text.cleaning import plain_text
from kb_platform.text.kinds import Kind

_READ: Final = 400

# --- breaking changes ---------------------------------------------------------------------------------------
# The word alone is no evidence ("see the guide for any breaking changes", "fixes a breaking change of 1.2").

_BREAKS: Final = r"(?:breaking[ -]changes?|backwards?[- ]incompatib\w+)"
_UNLESS: Final = r"\b(?:not?|non|without|fix(?:e[sd])?|reverts?|reverted|previous|earlier|any|avoids?)\b"
_BREAKING_HINT: Final = re.compile(r"(?i)breaking|incompatib|!|\U0001f4a5")
_BREAKING_MARK: Final = re.compile(
    r"\bBREAKING(?:[ -]CHANGES?\b|\s*[:!])"
    r"|(?i:\([\s*_]*breaking\b)"
    r"|(?im:^[\s>*_+-]*breaking changes?[*_]*\s*[:(])"
    rf"|(?i:\*\*(?:(?!{_UNLESS})[^*\n]){{0,60}}{_BREAKS})"
    r"|\U0001f4a5"
)
# What may, might or will break, and what another release breaks, is not what this one does.
_ELSEWHERE: Final = r"\b(?:not?|which|will|would|may|might|could|expect|chance)\b"
_BREAKING_SENTENCE: Final = re.compile(
    rf"(?i)\b(?:this|these|release)\b(?:(?!{_ELSEWHERE})[^.]){{0,80}}?"
    r"\b(?:is|are|makes?|introduces?|includes?|brings?|contains?|has|have)\b"
    rf"(?:(?!{_UNLESS}|{_ELSEWHERE})[^.]){{0,60}}?\b{_BREAKS}(?! (?:may|might|will|could)\b)"
)
_BREAKING_START: Final = re.compile(r"(?i)(?:potential(?:ly)? )?breaking(?: changes?\b|\s*[:!–—(]| -)")

_ADVISORY: Final = re.compile(r"(?i)\bCVE-\d{4}-\d{4,7}\b|\bGHSA(?:-\w{4}){3}\b|\bRUSTSEC-\d{4}-\d{4}\b")

# --- before the words ---------------------------------------------------------------------------------------

_NOISE: Final = re.compile(
    r"(?i)[^\w\[(@`\"'~/$<.#-]+|-+\s+|\(#\d+\)"
    r"|(?:[\w.-]+/[\w.-]+)?#\d+\b(?:,? (?=#))?|issues?: (?=#)"
    r"|(?:thanks|by) @[\w-]+(?:\[bot\])?(?:(?:, | and |, and )@[\w-]+)*"
)
_TAG: Final = re.compile(r"\[([A-Za-z][\w /-]{1,24})\]:?\s*")
_CONVENTIONAL: Final = re.compile(
    r"(?i)([a-z]{2,12}(?:[ -][a-z]{3,8})?) ?(?:\([^()]{0,60}\))? ?(!)? ?:(?!:)\s*"
)
_AREA: Final = re.compile(r"([\w@/.*`-]{1,40}(?: [\w/.-]{1,20})?): (?=\S)")
_EMOJI: Final = re.compile(
    r"[\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]|(?<!\w):[a-z_]{2,30}:(?!\w)"
)
_HOUSEKEEPING: Final = re.compile(r"(?i)releas(?:e|ing)\b|updated dependencies|start v?\d")

_PREFIXES: Final = {
    Kind.BREAKING: "breaking breaking-change",
    Kind.SECURITY: "security sec vulnerability",
    Kind.DEPRECATION: "deprecated deprecate deprecation deprecations",
    Kind.REMOVAL: "removed remove removal removals",
    Kind.FEATURE: "feat feature features enhancement enhance enh added add new improvement improved",
    Kind.FIX: "fix fixes fixed bugfix bug-fix bug hotfix",
    Kind.PERFORMANCE: "perf performance optimization",
    Kind.DOCS: "doc docs documentation",
    Kind.OTHER: "chore build ci test tests style refactor deps dependency dependencies release types internal "
    "cleanup infra lint dev meta",
}
_KIND_OF_PREFIX: Final = {word: kind for kind, words in _PREFIXES.items() for word in words.split()}

# The signs of gitmoji.dev that say a kind; its others (dependencies, tests, builds) say nothing to users.
_SIGNS: Final = {
    Kind.BREAKING: "💥 :boom:",
    Kind.SECURITY: "🔒 🔐 :lock: :closed_lock_with_key:",
    Kind.DEPRECATION: "🗑 :wastebasket:",
    Kind.REMOVAL: "🔥 ⚰ :fire: :coffin:",
    Kind.FEATURE: "✨ 🎉 :sparkles: :tada:",
    Kind.FIX: "🐛 🚑 🩹 :bug: :ambulance: :adhesive_bandage:",
    Kind.PERFORMANCE: "⚡ 🐎 :zap: :racehorse:",
    Kind.DOCS: "📝 📚 ✏ 🌐 💡 :memo: :books: :pencil2: :globe_with_meridians: :bulb:",
}
_KIND_OF_SIGN: Final = {sign: kind for kind, signs in _SIGNS.items() for sign in signs.split()}

# --- the words ----------------------------------------------------------------------------------------------


def _start(*alternatives: str) -> re.Pattern[str]:
    """A pattern for how an item begins; alternatives with `.{0,n}` look a little further."""
    return re.compile("|".join(alternatives), re.IGNORECASE)


_ABOUT_DOCS: Final = r"(?:docs?|documentation|readme|tutorials?|changelog)\b"
# First match wins, so that "fix deprecated call" is a fix and "remove support for X, add Y" a removal.
_WORDS: Final = (
    (Kind.SECURITY, _start(r"security (?:fix|issue|flaw|hole|bug|patch)", r".{0,120}\bvulnerabilit")),
    (
        Kind.FIX,
        _start(rf"(?:fix|correct|repair)(?:e[sd]|s|ed|ing)?\b(?! typos?\b)(?!.{{0,40}}\b{_ABOUT_DOCS})"),
    ),
    (Kind.DEPRECATION, _start(r"(?:soft[- ])?deprecat(?:e[sd]?|ing|ion)\b")),
    (
        Kind.REMOVAL,
        _start(
            # Code that nobody uses is no loss to anybody.
            r"(?:remov(?:e[sd]?|ing|al)|drop(?:s|ped|ping)?|delet(?:e[sd]?|ing))\b"
            r"(?! (?:\w+ )?(?:un(?:used|necessary|needed|reachable)|redundant|duplicated?|dead|stale|left-?over"
            r"|obsolete|extra|incorrect|wrong|broken|tests?)\b)",
            r"no longer (?:support|ship|publish|provid)",
            r"end of (?:support|life)\b",
            r".{0,150}\b(?:remov(?:e[sd]?|ing)|drop(?:s|ped|ping)?) (?:the )?support\b",
        ),
    ),
    (
        Kind.OTHER,
        _start(
            r"(?:bump|upgrade[sd]?|pin|sync|migrate[sd]?|refactor|simplify|release|merge|pre-commit)\b",
            r"updated? (?:dependenc|depend|packages?\b|(?:[\w.-]+ ){0,4}to (?:version |v)?\d)",
            r"(?:updat|upgrad)\w* .{0,60}\b(?:requirement|dependenc)",
            r"run\b.{0,40}\b(?:ci|tests?)\b",
            r".{0,40}\b(?:github actions?|workflow|pre-commit|sponsors?)\b",
        ),
    ),
    (
        Kind.DOCS,
        _start(
            r"(?:document(?:s|ed|ing|ation)?|docs|clarif(?:y|ies|ied)|mention|reword|typos?|translat\w+)\b",
            rf".{{0,60}}\b(?:typos?\b|docstrings?\b|translations?\b|contributing\b|{_ABOUT_DOCS})",
        ),
    ),
    (
        Kind.PERFORMANCE,
        _start(
            r"(?:speed|optimi[sz]|lazily|inline|parallel|faster)",
            r"(?:improv\w+|better|significant\w*|reduc\w+|minimi[sz]\w+|lower\w*|avoid\w*) .{0,50}\b(?:performance"
            r"|speed|latency|throughput|allocat\w+|memory|overhead|cpu|contention|size"
            r"|(?:run|build|start-?up|load)[- ]?times?)\b",
            r".{0,50}\b(?:performance improve\w+|faster|speed ?up)\b",
        ),
    ),
    (
        Kind.FEATURE,
        _start(
            r"(?:add(?:s|ed|ing)?|support(?:s|ed)?|implement\w*|introduc\w+|new|allow(?:s|ed|ing)?|enabl\w+"
            r"|accept\w*|expos\w+|extend\w*|provid\w+|initial|stabiliz\w+|option|can now|improv\w+|enhanc\w+"
            r"|export(?:s|ed)?|includ(?:e[sd]?|ing)|increas\w+|distribute[sd]?|show\w*|experimental|preview)\b",
            r".{0,60}\b(?:(?:is|are) now (?:supported|available)|now (?:supports?|accepts?|allows?|includes?)"
            r"|can now|added)\b",
        ),
    ),
    (
        Kind.FIX,
        _start(
            r"(?:avoid|prevent|respect|handl|ignor|treat|ensur|preserv|suppress|resolv|revert|restor|proper"
            r"|workaround|hotfix|do not|don.?t|does not|never|skip|strip|escap|mark|consider)\w*\b",
            r"work(?:s|ed|ing)? around\b",
            r"(?:bug(?: ?fix(?:es)?)?|regression|crash|race condition|memory leak|panic)\b",
            r".{0,80}\b(?:no longer|fixe[sd]|false (?:positive|negative)s?|regression|crash(?:es|ed)?)\b",
        ),
    ),
    (Kind.DEPRECATION, _start(rf".{{0,{_READ}}}\b(?:is|are|been|now|being|be) (?:\w+ )?deprecated\b")),
    (
        Kind.REMOVAL,
        _start(
            rf".{{0,{_READ}}}\b(?:is|are|been|was|were|now) (?:\w+ )?(?:removed|dropped)\b",
            rf".{{0,{_READ}}}\b(?:no longer supported|end of (?:support|life))\b",
        ),
    ),
)
# A paragraph is a change when it begins as one would.
_FIRST_WORDS: Final = (
    (Kind.FIX, _start(r"fix(?:e[sd])?\b")),
    (Kind.REMOVAL, _start(r"removed?\b")),
    (Kind.DEPRECATION, _start(r"deprecated?\b")),
    (Kind.FEATURE, _start(r"add(?:s|ed)?\b")),
)


class Beginning:
    """How an item begins.

    `sign` is the kind of its gitmoji, `prefix` that of its explicit prefix (`feat:`, `[BUGFIX]`), each None
    without one; `words` is what follows, without markup; `is_housekeeping` tells whether all it says is that there
    is a release, or what it depends on.
    """

    __slots__ = ("is_housekeeping", "prefix", "sign", "words")

    def __init__(self, text: str) -> None:
        words = plain_text(text[: 3 * _READ])[:_READ]
        emoji = _EMOJI.match(words)
        self.sign = _KIND_OF_SIGN.get(emoji.group()) if emoji else None
        self.prefix: Kind | None = None
        words = self._after_tags(_denoised(words))
        self.is_housekeeping = bool(_HOUSEKEEPING.match(words))
        self.words = self._after_prefix(words)

    @property
    def breaks(self) -> bool:
        """Whether the prefix or the first words say that this is a breaking change."""
        return self.prefix is Kind.BREAKING or bool(_BREAKING_START.match(self.words))

    def _after_tags(self, words: str) -> str:
        """The words after bracketed tags; the first tag that names a kind is the prefix."""
        while match := _TAG.match(words):
            kind = _KIND_OF_PREFIX.get(match[1].strip().lower().replace(" ", "-"))
            self.prefix = self.prefix or kind
            words = _denoised(words[match.end() :])
        return words

    def _after_prefix(self, words: str) -> str:
        """The words after a conventional prefix, also one behind the name of an area ("ai/vue: fix: …")."""
        rest = words
        for _ in range(2):
            match = _CONVENTIONAL.match(rest)
            kind = _KIND_OF_PREFIX.get(match[1].lower().replace(" ", "-")) if match else None
            if match and kind is not None:
                self.prefix = Kind.BREAKING if match[2] else kind
                return _denoised(rest[match.end() :])
            area = _AREA.match(rest)
            if not area:
                break
            rest = _denoised(rest[area.end() :])
        return rest


def says_breaking(text: str, beginning: Beginning) -> bool:
    """Whether a text says by itself that it, or the release that it describes, breaks something."""
    if not _BREAKING_HINT.search(text):
        return False
    return bool(
        beginning.breaks or _BREAKING_MARK.search(text) or _BREAKING_SENTENCE.search(plain_text(text))
    )


def names_advisory(text: str) -> bool:
    """Whether a text names a CVE or a security advisory."""
    return bool(_ADVISORY.search(text))


def kind_of_words(words: str) -> Kind | None:
    """The kind that the beginning of an item names, without markup and prefix; None when it is silent."""
    return next((kind for kind, pattern in _WORDS if pattern.match(words)), None)


def kind_of_first_word(words: str) -> Kind | None:
    """The kind that a paragraph names as an item would; None when it is silent."""
    return next((kind for kind, pattern in _FIRST_WORDS if pattern.match(words)), None)


def _denoised(words: str) -> str:
    """The words without the numbers, thanks and signs before them."""
    for _ in range(8):
        match = _NOISE.match(words)
        if not match:
            break
        words = words[match.end() :]
    return words
