"""reStructuredText bodies: recognised, and cut like Markdown ones."""

from __future__ import annotations

import logging

import pytest

from kb_platform.text.chunk import Chunk, Role, chunk_body
from kb_platform.text.kinds import Kind
from kb_platform.text.restructuredtext import is_restructuredtext

NOTES = """\
A release with :ref:`gates <gates>`.

New doors
~~~~~~~~~

- Doors open inwards (:ticket:`#12`).
- Doors that are described at
  some length::

      door --open

  .. warning::

     Mind the step.

  - left door
  - right door

.. rubric:: Other changes

- Fix the hinges.

.. _hinges: https://example.com/hinges
"""


def by_text(body: str) -> dict[str, Chunk]:
    return {chunk.text: chunk for chunk in chunk_body(body)}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("- Fix it (:ticket:`#1`).", True),
        ("See `the docs <https://example.com>`_.", True),
        (".. note::\n\n   Words.", True),
        (".. _v1_0:\n", True),
        ("Fixes\n~~~~~\n\n- a", True),
        ("- Fix it ([#1](https://example.com/1)) for `a::b`.", False),
        ("## Fixes\n\n- a :ref:`b`", False),
        ("Plain words.", False),
        ("```rst\n.. note:: x\n```", False),
    ],
)
def test_recognition(body: str, expected: bool) -> None:
    assert is_restructuredtext(body) is expected


def test_sections_items_directives_and_targets() -> None:
    chunks = chunk_body(NOTES)
    assert [(chunk.role, chunk.text.split("\n", 1)[0]) for chunk in chunks] == [
        (Role.TEXT, "A release with :ref:`gates <gates>`."),
        (Role.HEADING, "New doors"),
        (Role.ITEM, "- Doors open inwards (:ticket:`#12`)."),
        (Role.ITEM, "- Doors that are described at"),
        (Role.HEADING, ".. rubric:: Other changes"),
        (Role.ITEM, "- Fix the hinges."),
        (Role.MARKUP, ".. _hinges: https://example.com/hinges"),
    ]
    assert chunks[1].text == "New doors\n~~~~~~~~~"
    assert chunks[2].headings == chunks[3].headings == ("New doors",)
    assert chunks[3].text.endswith("- right door")
    assert chunks[5].headings == ("New doors", "Other changes")
    assert chunks[5].kind is Kind.FIX
    assert chunks[2].references.issues == ("#12",)


def test_a_title_with_a_rule_above_and_below() -> None:
    chunks = by_text("=====\nGates\n=====\n\n:ref:`x`\n\nHinges\n------\n\nWords.")
    assert "=====\nGates\n=====" in chunks
    assert chunks["Words."].headings == ("Gates", "Hinges")


def test_an_unknown_directive_is_kept_as_text() -> None:
    body = "- a :ref:`b`\n\n.. versionadded:: 3.1\n\n   Something new.\n\n- c"
    assert [chunk.role for chunk in chunk_body(body)] == [Role.ITEM, Role.TEXT, Role.ITEM]


def test_line_ends_that_only_python_knows_do_not_shift_lines() -> None:
    body = "- one\u2028still one :ref:`a`\n- two\x0cstill two\n- three"
    assert [chunk.text for chunk in chunk_body(body)] == [
        "- one\u2028still one :ref:`a`",
        "- two\x0cstill two",
        "- three",
    ]


def test_nothing_is_included_from_the_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("private") / "secret.txt"
    secret.write_text("the password is swordfish", encoding="utf-8")
    body = f":ref:`a`\n\n.. include:: {secret}\n\n.. raw:: html\n   :file: {secret}\n\nWords."
    assert not any("swordfish" in " ".join((chunk.text, *chunk.headings)) for chunk in chunk_body(body))


def test_a_body_on_which_docutils_loses_its_place_is_read_as_markdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = "Title with  two\tblanks\n======================\n\n- a :ref:`b`\n"
    with caplog.at_level(logging.WARNING):
        chunks = chunk_body(body)
    assert [chunk.role for chunk in chunks] == [Role.HEADING, Role.ITEM]
    assert "restructuredtext_blocks failed" in caplog.text
