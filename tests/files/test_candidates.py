"""Recovered triggers survive a resume, also where their family holds facts of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from laocoon.core.candidate import Candidate
from laocoon.core.errors import BrokenFile
from laocoon.core.goal import all_to_one
from laocoon.core.methods import TriggerFamily
from laocoon.files.candidates import load_candidates, save_candidates
from laocoon.modalities.image import Image
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.text import Text
from laocoon.triggers.columns import Columns
from laocoon.triggers.patch import Patch
from laocoon.triggers.tokens import Tokens

WORDS = Text(("<pad>", "<unk>", "good", "bad", "film", "plot"), 6)
TABLE = Tabular.of(("age", "sum"), torch.tensor([[20.0, 1.0], [60.0, 9.0]]))
CASES = {
    "tokens": (Tokens(6, 2, special=(0, 1)), WORDS, torch.tensor([[2, 4, 5, 0, 0, 0], [3, 0, 0, 0, 0, 0]])),
    "columns": (Columns(TABLE), TABLE, torch.tensor([[30.0, 2.0], [50.0, 3.0]])),
    "patch": (Patch(), Image(), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))),
}


def kept(name: str, path: Path) -> tuple[Candidate, Candidate]:
    family: TriggerFamily
    family, modality, batch = CASES[name]  # type: ignore[assignment]
    trigger = family.blank(batch, 1, rng=torch.Generator().manual_seed(1))
    candidate = Candidate(family, trigger, all_to_one(1, 3), 2.0, 0.9, "some_method")
    save_candidates(path, [candidate])
    (again,) = load_candidates(path, modality)
    return candidate, again


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_stamps_as_what_was_written(name: str, tmp_path: Path) -> None:
    candidate, again = kept(name, tmp_path / "c.safetensors")
    batch = CASES[name][2]
    assert torch.equal(candidate.stamp(batch), again.stamp(batch))
    assert again.facts() == candidate.facts() and again.goal == candidate.goal


def test_a_table_is_that_of_the_subject(tmp_path: Path) -> None:
    _, again = kept("columns", tmp_path / "c.safetensors")
    assert again.family.table is TABLE  # type: ignore[attr-defined]


def test_a_trigger_of_another_modality_is_refused(tmp_path: Path) -> None:
    kept("columns", tmp_path / "c.safetensors")
    with pytest.raises(BrokenFile, match="Tabular"):
        load_candidates(tmp_path / "c.safetensors", Image())


def test_a_resumed_scan_keeps_its_evidence(tmp_path: Path) -> None:
    from laocoon.core.cases import Samples
    from laocoon.testing.twins import twins
    from laocoon.verdict.scan import scan

    pair = twins("text")
    assert pair.planted.fit is not None and pair.planted.held is not None
    data = Samples(torch.cat([pair.planted.fit.inputs, pair.planted.held.inputs]),
                   torch.cat([pair.planted.fit.labels, pair.planted.held.labels]))
    run = lambda: scan(pair.planted.subject, data, methods=["text_inversion"], resume=tmp_path / "r")  # noqa: E731
    first, second = run(), run()
    assert first.evidence and first.evidence[0].shown
    assert [e.shown for e in first.evidence] == [e.shown for e in second.evidence]
    assert first.examples and first.examples == second.examples and first.pictures is None
