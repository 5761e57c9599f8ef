"""The kind of a piece of a release note: which evidence wins.

First to last: the text says that it breaks something; a heading says so; an advisory or CVE number; an explicit
prefix (`fix:`, `[BUGFIX]`); a heading that names one kind; a gitmoji; the first words of the text; a heading that
only hints; the kind of the item that the piece belongs to. Breaking changes head every upgrade report, so that
for them a wrong alarm counts for more than a miss.

Belongs here: that order. Does not belong here: the vocabularies (`evidence`, `section_kinds`).
"""

from __future__ import annotations

from typing import Final

from kb_platform.text.evidence import (
    Beginning,
    kind_of_first_word,
    kind_of_words,
    names_advisory,
    says_breaking,
)
from kb_platform.text.kinds import Kind
from kb_platform.text.section_kinds import Weight, kind_of_headings

# A longer paragraph tells a story, in which the first word decides nothing.
_MAX_ITEM_LIKE: Final = 400


def kind_of_item(text: str, headings: tuple[str, ...], inherited: Kind = Kind.OTHER) -> Kind:
    """The kind of a change item under its heading path.

    `inherited` is the kind of the larger item that it is part of, if any.
    """
    beginning = Beginning(text)
    heading, weight = kind_of_headings(headings)
    if grave := _grave(text, beginning, heading, weight):
        return grave
    if beginning.prefix not in {None, Kind.OTHER}:
        return beginning.prefix or Kind.OTHER
    if weight is Weight.MAJOR:
        return Kind.OTHER if beginning.is_housekeeping else Kind.BREAKING
    words = kind_of_words(beginning.words)
    if heading is not None and weight is Weight.STRONG:
        return _refined(heading, words)
    return beginning.sign or words or beginning.prefix or heading or inherited


def kind_of_text(text: str, headings: tuple[str, ...], inherited: Kind = Kind.OTHER) -> Kind:
    """The kind of a paragraph, a table or code under its heading path: what stands around it tells.

    Only a short paragraph may be an item that lacks its bullet.
    """
    beginning = Beginning(text)
    heading, weight = kind_of_headings(headings)
    if grave := _grave(text, beginning, heading, weight):
        return grave
    if inherited is not Kind.OTHER:
        return inherited
    if heading is not None and weight is not Weight.WEAK:
        return heading
    own: Kind | None = None
    if len(text) <= _MAX_ITEM_LIKE:
        own = beginning.prefix or beginning.sign or kind_of_first_word(beginning.words)
    return own or heading or Kind.OTHER


def _grave(text: str, beginning: Beginning, heading: Kind | None, weight: Weight) -> Kind | None:
    """Breaking or security, where it is explicit: nothing else outweighs these."""
    if says_breaking(text, beginning) or (heading is Kind.BREAKING and weight is Weight.STRONG):
        return Kind.BREAKING
    return Kind.SECURITY if names_advisory(text) else None


def _refined(heading: Kind, words: Kind | None) -> Kind:
    """The kind of a heading, unless the item says something finer.

    Under fixes, performance, documentation or housekeeping, "remove" is about code and not about users.
    """
    gone = {Kind.DEPRECATION, Kind.REMOVAL}
    if words in gone and heading in {*gone, Kind.FEATURE}:
        return words or heading
    return Kind.PERFORMANCE if heading is Kind.FEATURE and words is Kind.PERFORMANCE else heading
