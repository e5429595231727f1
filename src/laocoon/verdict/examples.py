"""A few held-out texts or records with a recovered trigger in place, and what the model answers before and after."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal
from laocoon.core.report import Example
from laocoon.core.subject import Subject
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text

MOST = 4  # samples for each trigger
LOOKED_AT = 16  # held-out samples that they are taken from
LONGEST = 400  # characters of a text
MOST_CELLS = 16  # of a record, those that the trigger changed first
_PARTS = re.compile(r"\s+|\w+|[^\w\s]")


@torch.no_grad()
def examples(subject: Subject, candidates: Sequence[Candidate], held: Samples | None,
             root: Context) -> tuple[Example, ...]:
    """For each trigger samples that obey it, before others; empty where inputs are pictures. No budget ends it."""
    modality = subject.modality
    if held is None or not isinstance(modality, Text | Tabular):
        return ()
    ctx = Context(seed=root.seed, device=root.device, batch=root.batch)
    found = []
    for place, candidate in enumerate(candidates):
        goal = candidate.goal
        if not isinstance(goal, ClassGoal):
            continue
        rows = goal.applies(held.labels).nonzero().flatten()[:LOOKED_AT]
        if not len(rows):
            continue
        texts, labels = held.inputs[rows], held.labels[rows]
        stamped = candidate.stamp(texts)
        ctx.spend(2 * len(rows), backward=False)
        before, after = (subject.outputs(x).logits.argmax(-1) for x in (texts, stamped))
        obeys = (after == goal.destination(labels)) & (before != after)
        for i in obeys.int().argsort(descending=True, stable=True)[:MOST].tolist():
            pieces = tuple(cells(modality, texts[i], stamped[i]) if isinstance(modality, Tabular) else
                           changed(modality.decode(texts[i]), modality.decode(stamped[i])))
            found.append(Example(place, pieces, int(before[i]), int(after[i]), int(labels[i])))
    root.spent += ctx.spent
    return tuple(found)


def changed(before: str, after: str) -> Iterator[tuple[str, bool]]:
    """The second text in pieces; True for what is not in the first."""
    old, new = _PARTS.findall(before), _PARTS.findall(after)[:LONGEST]
    told = 0
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        piece = "".join(new[start:end])[:LONGEST - told]
        told += len(piece)
        inner = piece.strip() if kind != "equal" else ""
        if not inner:  # only blanks, or nothing new
            yield from ((piece, False),) if piece else ()
            continue
        at = piece.index(inner)
        parts = ((piece[:at], False), (inner, True), (piece[at + len(inner):], False))
        yield from (part for part in parts if part[0])


def cells(table: Tabular, before: torch.Tensor, after: torch.Tensor) -> Iterator[tuple[str, bool]]:
    """The second record cell by cell; True for those that are not as in the first, with what stood there."""
    new = (before != after).tolist()
    shown = sorted(sorted(range(len(table)), key=lambda i: not new[i])[:MOST_CELLS])
    for i in shown:
        was, now = table.shown(i, float(before[i])), table.shown(i, float(after[i]))
        yield (f"{table.columns[i]} {was} → {now}", True) if new[i] else (f"{table.columns[i]} {now}", False)
        if i != shown[-1] or len(shown) < len(table):
            yield (", " if i != shown[-1] else ", …"), False
