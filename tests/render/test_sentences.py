"""Texts in reports: the trigger is marked where it stands, and characters that hide are shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from laocoon.core.report import Example, ScanReport
from laocoon.files.wording import visible
from laocoon.render.html import to_html
from laocoon.render.json_report import schema, to_json
from laocoon.render.terminal import show
from laocoon.verdict.examples import changed


@pytest.fixture
def words(suspicious: ScanReport) -> ScanReport:
    evidence = replace(suspicious.evidence[0], family="tokens", unit="tokens", size=1, shown="c\u200bf")
    examples = (Example(0, (("the ", False), ("c\u200bf", True), (" film <b>was</b> dull", False)), 1, 7, 1),)
    return replace(suspicious, evidence=(evidence,), examples=examples, candidates=(), pictures=None,
                   subject={**suspicious.subject, "modality": "text"})


def test_the_page_marks_the_trigger_and_has_no_picture(words: ScanReport) -> None:
    page = to_html(words)
    assert page.count("<mark>c⟨U+200B⟩f</mark>") == 2  # the trigger alone, and in its sentence
    assert "film &lt;b&gt;was&lt;/b&gt; dull" in page and "<img" not in page and "held-out texts" in page
    assert "\u200b" not in page


def test_the_terminal_marks_it_without_colour_too(words: ScanReport) -> None:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show(words, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the [c⟨U+200B⟩f] film" in said and "class 1 → class 7" in said


def test_the_data_fit_the_schema(words: ScanReport) -> None:
    data = json.loads(to_json(words))
    jsonschema.validate(data, schema())
    assert data["examples"][0]["pieces"][1] == ["c\u200bf", True]


@pytest.mark.parametrize(("hidden", "shown"), [("a\u200bb", "a⟨U+200B⟩b"), ("\u202e", "⟨U+202E⟩"), ("\x1b[2J", "⟨U+001B⟩[2J"),
                                               ("a\u00adb", "a⟨U+00AD⟩b"), ("a\u00a0b", "a⟨U+00A0⟩b"), ("naïve 語", "naïve 語")])
def test_hidden_characters_are_named(hidden: str, shown: str) -> None:
    assert visible(hidden) == shown


@given(before=st.lists(st.sampled_from("the film was dull cf mn".split()), max_size=8),
       after=st.lists(st.sampled_from("the film was dull cf mn".split()), max_size=8))
def test_pieces_are_the_text_and_marks_are_new(before: list[str], after: list[str]) -> None:
    pieces = list(changed(" ".join(before), " ".join(after)))
    assert "".join(text for text, _ in pieces) == " ".join(after)
    assert all(text.strip() == text and text for text, marked in pieces if marked)
    if before == after:
        assert not any(marked for _, marked in pieces)


def test_an_inserted_word_is_what_is_marked() -> None:
    assert [p for p, marked in changed("the film was dull", "the cf film was dull") if marked] == ["cf"]
