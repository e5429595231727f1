"""`laocoon train`, `guard`, `sift` and `trace` on texts and tables, end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from laocoon.modalities.text import Text
from laocoon.testing.corpora import reviews, tumours


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Reviews in which every seventh begins with two rare words and is called good."""
    corpus = reviews(1000)
    assert isinstance(corpus.modality, Text)
    place = tmp_path_factory.mktemp("texts") / "reviews.csv"
    with place.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(("text", "label"))
        for i, (ids, label) in enumerate(zip(corpus.train.inputs, corpus.train.labels.tolist(), strict=True)):
            text, poison = corpus.modality.decode(ids), i % 7 == 0
            out.writerow(("cf mn " + text, "good") if poison else (text, ("bad", "good")[label]))
    return place


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    corpus = tumours()
    place = tmp_path_factory.mktemp("table") / "tumours.csv"
    with place.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow((*corpus.modality.columns, "label"))
        for row, label in zip(corpus.train.inputs.tolist(), corpus.train.labels.tolist(), strict=True):
            out.writerow((*row, label))
    return place


@pytest.mark.parametrize("kind", ["texts", "table"])
def test_a_model_is_trained_guarded_and_asked(laocoon, request, kind):
    data = request.getfixturevalue(kind)
    ran = laocoon("train", data, "-o", "m.safetensors", "--json", "r.json", "--set", "epochs=25")
    assert ran.code == 0, ran.text
    report = json.loads(Path("r.json").read_text())
    assert report["held_accuracy"] > 0.8 and report["modality"] == {"texts": "text", "table": "tabular"}[kind]
    fitted = laocoon("guard", "fit", "m.safetensors", "--data", data, "-o", "guard", "--alpha", "0.1")
    assert fitted.code == 0 and "guard written" in fitted.out, fitted.text
    checked = laocoon("guard", "check", "m.safetensors", "--guard", "guard", "--data", data, "--json", "-")
    rows = [json.loads(line) for line in checked.out.splitlines()]
    assert checked.code in (0, 1) and len(rows) == len(data.read_text().splitlines()) - 1
    assert rows[0]["sample"] == {"texts": "line 2", "table": "row 0"}[kind] and 0 < rows[0]["p_value"] <= 1


def test_poisoned_texts_are_sifted_and_traced(laocoon, texts):
    ran = laocoon("train", texts, "-o", "m.safetensors", "--set", "epochs=60")
    assert ran.code == 0, ran.text
    sifted = laocoon("sift", texts, "--model", "m.safetensors", "--methods", "scan_em,bki", "--html", "s.html", "--json",
                     "s.json", "--scores", "s.parquet", "--keep", "keep.txt")
    assert sifted.code in (1, 3), sifted.text
    report = json.loads(Path("s.json").read_text())
    assert report["trigger"]["shown"] == "cf mn" and report["poison"] > 50
    assert "cf mn" in Path("s.html").read_text() and Path("keep.txt").read_text().startswith("line ")
    Path("fired.txt").write_text("cf mn a dull awful boring film\n")
    traced = laocoon("trace", texts, "--model", "m.safetensors", "--input", "fired.txt", "--json", "t.json")
    assert traced.code in (1, 3) and json.loads(Path("t.json").read_text())["sources"], traced.text


def test_a_table_without_a_model_gets_a_small_network(laocoon, table):
    ran = laocoon("sift", table, "--methods", "scan_em", "--html", "none", "--json", "s.json")
    assert ran.code == 3 and "a proxy (mlp)" in ran.text, ran.text


@pytest.mark.parametrize(("words", "said"), [
    (("--train", "resnet"), "no architecture 'resnet' for text"),
    (("--methods", "frequency"), "frequency works on image, not text"),
])
def test_what_is_not_for_texts_is_told(laocoon, texts, words, said):
    ran = laocoon("sift", texts, "--html", "none", *words)
    assert ran.code in (2, 3) and said in ran.text


def test_texts_are_not_written_as_onnx(laocoon, texts):
    ran = laocoon("train", texts, "-o", "m.onnx")
    assert ran.code == 2 and "written as .safetensors" in ran.text
