"""Whole training sets of texts and tables, and the models that are trained on them, from files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Modality
from laocoon.files.images_source import DataOptions
from laocoon.files.open import load_model
from laocoon.files.save import destined, save
from laocoon.files.trained import metadata
from laocoon.files.training_rows import kind_of, texts_of, vocabulary_of
from laocoon.files.training_set import training_set
from laocoon.modalities import small_networks
from laocoon.modalities.tabular import CATEGORY, Tabular
from laocoon.modalities.text import Text
from laocoon.modalities.written import read, written

TEXTS = [("a good film", "good"), ("a bad film", "bad"), ("good good", "good"), ("bad !", "bad"), ("good , bad", "bad")]


def text_csv(folder: Path) -> Path:
    place = folder / "texts.csv"
    with place.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *TEXTS])
    return place


def table_csv(folder: Path) -> Path:
    place = folder / "table.csv"
    rows = [(20 + i, ("north", "south")[i % 2], 1000.5 * i, i % 3 == 0) for i in range(60)]
    with place.open("w", newline="") as file:
        csv.writer(file).writerows([("age", "region", "income", "label"), *((*r[:3], int(r[3])) for r in rows)])
    return place


def test_texts_without_a_model_have_words_of_their_own(tmp_path: Path) -> None:
    with training_set(text_csv(tmp_path)) as data:
        assert data.modality.name == "text" and len(data) == 5 and data.classes == 2
        assert data.class_names == ("bad", "good") and data.labels.tolist() == [1, 0, 1, 0, 0]
        assert isinstance(data.modality, Text) and data.modality.vocabulary[:4] == ("<pad>", "<unk>", "good", "bad")
        assert data.modality.decode(data.inputs(torch.tensor([2]))[0]) == "good good"
        assert data.name(2) == "line 4" and any("no model" in n for n in data.notes)
        with training_set(text_csv(tmp_path), like=data) as again:  # trusted samples are cut alike
            assert again.modality is data.modality and again.digest() == data.digest()


def test_json_lines_and_folders_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in TEXTS))
    for i, (text, label) in enumerate(TEXTS):
        (tmp_path / "f" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / label / f"{i}.txt").write_text(text)
    for place in (tmp_path / "a.jsonl", tmp_path / "f"):
        assert kind_of(place, DataOptions()) == "text"
        with training_set(place) as data:
            assert len(data) == 5 and sorted(data.labels.tolist()) == [0, 0, 0, 1, 1]


def test_a_table_is_told_from_texts_and_pictures(tmp_path: Path) -> None:
    place = table_csv(tmp_path)
    assert kind_of(place, DataOptions()) == "tabular" and kind_of(tmp_path / "none", DataOptions()) == "image"
    with training_set(place) as data:
        assert isinstance(data.modality, Tabular) and data.modality.columns == ("age", "region", "income")
        assert data.modality.kind(1) == CATEGORY and data.shape == (3,) and data.name(7) == "row 7"
        assert data.inputs(torch.tensor([3])).tolist() == [[23, 1, 3001.5]]


def test_what_lacks_labels_is_no_training_set(tmp_path: Path) -> None:
    place = tmp_path / "texts.txt"
    place.write_text("a good film\na bad film\n")
    with pytest.raises(InputError, match="no labels"), training_set(place):
        pass
    assert texts_of(place, None, DataOptions(), labelled=False).labels.tolist() == [0, 0]


def test_the_vocabulary_is_bounded_and_by_frequency() -> None:
    found = vocabulary_of(["b a a", "a b c", "word " * 500])
    assert found.vocabulary == ("<pad>", "<unk>", "word", "a", "b") and 16 <= found.length <= 128


MODALITIES: dict[str, Modality] = {
    "text": Text(("<pad>", "<unk>", "a", "b"), 5),
    "tabular": Tabular(("x", "y"), (0.0, 0.0), (1.0, 3.0), ("numeric", CATEGORY), ((), (0.0, 1.0, 3.0)),
                       ((), ("u", "v", "w")), ("x",)),
}


@pytest.mark.parametrize("name", MODALITIES)
def test_a_modality_is_read_as_it_was_written(name: str) -> None:
    modality = MODALITIES[name]
    again = read(json.loads(json.dumps(written(modality, words=True))))
    assert written(again, words=True) == written(modality, words=True)
    assert written(read(written(modality, words=False)), words=False) == written(modality, words=False)


@pytest.mark.parametrize("told", [{}, {"name": "text"}, {"name": "text", "length": 10**9, "special": [], "tokens": 3},
                                  {"name": "tabular", "columns": []}, {"name": "smell"}, {"name": "text", "length": "x"}])
def test_what_is_no_modality_is_refused(told: dict[str, object]) -> None:
    with pytest.raises((BrokenFile, InputError)):
        read(told)


def model(folder: Path, name: str, architecture: str) -> Path:
    modality = MODALITIES[name]
    rng = torch.Generator().manual_seed(1)
    rows = torch.rand(20, 2, generator=rng)
    module = small_networks.built(architecture, modality, 3, rng, rows)
    facts = {"architecture": architecture, "shape": [5 if name == "text" else 2], "classes": 3, "members": 0}
    place = folder / "m.safetensors"
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, place, metadata=metadata(facts, modality))
    return place


@pytest.mark.parametrize(("name", "architecture"), [("text", "bag"), ("text", "attention"), ("tabular", "mlp")])
def test_a_trained_network_is_opened_mended_and_written_back(name: str, architecture: str, tmp_path: Path) -> None:
    place = model(tmp_path, name, architecture)
    subject = load_model(place)
    assert subject.modality.name == name and subject.classes == 3
    probes = torch.tensor([[2, 3, 0, 0, 0], [0, 0, 0, 0, 0]]) if name == "text" else torch.tensor([[0.5, 3.0], [0, 1.0]])
    assert bool(torch.isfinite(subject.outputs(probes).logits).all())
    mended = subject.copy()
    with torch.no_grad():
        for parameter in mended.module.parameters():
            parameter.add_(0.1)
    saved = save(destined(place, subject, tmp_path / "r.safetensors"), subject, mended, probes, "repaired")
    again = load_model(saved.path)
    assert torch.allclose(again.outputs(probes).logits, mended.outputs(probes).logits, atol=1e-5)
    if name == "text":
        with pytest.raises(InputError, match="folder of safetensors only"):
            destined(place, subject, tmp_path / "r.onnx", form="onnx")


def test_a_file_that_lies_about_its_inputs_is_refused(tmp_path: Path) -> None:
    facts = {"architecture": "bag", "shape": [9], "classes": 3, "members": 0}
    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", metadata=metadata(facts, MODALITIES["text"]))
    with pytest.raises(BrokenFile, match="claims inputs of 9 and of 5"):
        load_model(tmp_path / "m.safetensors")
