"""Texts in a report: the trigger marked where it stands, and what cannot be seen made visible."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from laocoon.core.report import Example, ScanReport
from laocoon.files.wording import visible
from laocoon.render.words import class_name

LONGEST = 500  # characters of one text
MARKED = "bold red reverse"


@dataclass(frozen=True)
class Sentence:
    """A text with the trigger in it, in pieces, and what the model answers without and with the trigger."""

    pieces: tuple[tuple[str, bool], ...]
    before: str
    after: str
    turned: bool  # the answer changed


def sentences(report: ScanReport, evidence: int) -> tuple[Sentence, ...]:
    """The texts of one piece of evidence."""
    return tuple(Sentence(_pieces(e), class_name(report, e.before), class_name(report, e.after), e.before != e.after)
                 for e in report.examples if e.evidence == evidence)


def _pieces(example: Example) -> tuple[tuple[str, bool], ...]:
    """On one line, cut at LONGEST."""
    left, kept = LONGEST, []
    for text, marked in example.pieces:
        shown = visible(text).replace("\n", " ").replace("\t", " ")[:left]
        left -= len(shown)
        if shown:
            kept.append((shown, marked))
    return (*kept, ("…", False)) if left <= 0 else tuple(kept)


def coloured(sentence: Sentence) -> Text:
    """For a terminal; the marks stand in brackets too, for terminals without colour."""
    line = Text("  ")
    for text, marked in sentence.pieces:
        line.append(f"[{text}]" if marked and text.strip() else text, MARKED if marked and text.strip() else "default")
    line.append(f"   {sentence.before} → {sentence.after}", "dim")
    return line

