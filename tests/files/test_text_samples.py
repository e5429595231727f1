"""Texts and labels from every layout; what is drawn, mapped to the model's classes, encoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from laocoon.core.errors import InputError
from laocoon.core.subject import Subject
from laocoon.files.images_source import DataOptions
from laocoon.files.samples import load_data
from laocoon.files.text_samples import read_texts
from laocoon.modalities.text import Text
from laocoon.testing.networks import TextNetwork

VOCABULARY = ("<pad>", "<unk>", "good", "bad", "film", "plot")
ROWS = [("good film", "ham"), ("bad film, \"plot\"", "spam"), ("good plot", "ham"), ("bad film", "spam")] * 3


@pytest.fixture
def subject() -> Subject:
    return Subject(TextNetwork(len(VOCABULARY), 2), Text(VOCABULARY, 4), 2, (4,), class_names=("ham", "spam"))


def csv_of(place: Path, separator: str = ",", header: tuple[str, str] | None = ("text", "label")) -> Path:
    lines = [separator.join(header)] if header else []
    for text, label in ROWS:
        quoted = '"' + text.replace('"', '""') + '"' if separator != "\t" else text
        lines.append(separator.join((quoted, label)))
    place.write_text("\n".join(lines) + "\n")
    return place


def folders(place: Path) -> Path:
    for i, (text, label) in enumerate(ROWS):
        (place / label).mkdir(parents=True, exist_ok=True)
        (place / label / f"{i}.txt").write_text(text)
    return place


def parquet(place: Path, schema: bool = True) -> Path:
    names = {"info": {"features": {"label": {"names": ["ham", "spam"], "_type": "ClassLabel"}}}}
    table = pa.table({"id": [str(i) for i in range(len(ROWS))], "sentence": [t for t, _ in ROWS],
                      "label": [int(y == "spam") for _, y in ROWS]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)} if schema else {}), place)
    return place


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "csv": lambda r: csv_of(r / "a.csv"),
    "semicolons": lambda r: csv_of(r / "a.csv", ";", ("Review", "Class")),
    "tabs": lambda r: csv_of(r / "a.tsv", "\t"),
    "no header": lambda r: csv_of(r / "a.csv", header=None),
    "byte-order mark": lambda r: (csv_of(r / "b.csv"), (r / "b.csv").write_bytes(
        b"\xef\xbb\xbf" + (r / "b.csv").read_bytes()), r / "b.csv")[2],
    "lines": lambda r: (r / "a.jsonl", (r / "a.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in ROWS)))[0],
    "array": lambda r: (r / "a.json", (r / "a.json").write_text(
        json.dumps([{"text": t, "label": y} for t, y in ROWS], indent=1)))[0],
    "parquet": lambda r: parquet(r / "a.parquet"),
    "parquet without names": lambda r: parquet(r / "a.parquet", schema=False),
    "folder of parquet": lambda r: parquet(r / "test-00000.parquet").parent,
    "folder per class": lambda r: folders(r / "texts"),
    "splits of folders": lambda r: folders(r / "all" / "test").parent,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_the_same(layout: str, tmp_path: Path, subject: Subject) -> None:
    samples = load_data(LAYOUTS[layout](tmp_path), subject)
    assert len(samples) == len(ROWS) and samples.labelled
    first = samples.inputs[:, 0]  # good or bad
    assert torch.equal(samples.labels, (first == 3).long())


def test_a_text_a_line_is_labelled_by_the_model(tmp_path: Path, subject: Subject) -> None:
    (tmp_path / "a.txt").write_text("good film\n\nbad film\n")
    samples = load_data(tmp_path / "a.txt", subject)
    assert len(samples) == 2 and not samples.labelled
    assert any("line 2" in n for n in samples.notes)
    assert torch.equal(samples.labels, subject.outputs(samples.inputs).logits.argmax(1))


def test_so_many_of_each_class_drawn_by_the_seed(tmp_path: Path, subject: Subject) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"good {'film ' * (i % 3)},{i % 2}\n" for i in range(60)))
    draw = lambda seed: load_data(tmp_path / "a.csv", subject, limit_per_class=5, seed=seed)  # noqa: E731
    assert draw(0).labels.bincount().tolist() == [5, 5]
    assert torch.equal(draw(0).inputs, draw(0).inputs) and not torch.equal(draw(0).inputs, draw(1).inputs)
    assert len(load_data(tmp_path / "a.csv", subject, limit_per_class=None)) == 60


def test_columns_can_be_named(tmp_path: Path, subject: Subject) -> None:
    (tmp_path / "a.csv").write_text("text,summary,label,stars\nbad,good film,0,1\nbad,good plot,0,1\n")
    samples = load_data(tmp_path / "a.csv", subject, options=DataOptions(text_column="summary", label_key="stars"))
    assert samples.labels.tolist() == [1, 1] and samples.inputs[:, 0].tolist() == [2, 2]


@pytest.mark.parametrize(("content", "says"), [
    ("text,label\ngood,7\n", "label 7"), ("text,label\ngood,\n", "line 2"), ("text,label\ngood,a\nbad,b\nfilm,c\n", "3"),
    ("text,label\n ,0\n,1\n", "empty"), ("text,label\ngood,0,1\n", "line 2 has 3 cells"), ("text,label\n", "no rows"),
    ("label,y2\n0,1\n", "no column of texts"), ("text,text\na,b\n", "one name"),
])
def test_what_is_wrong_is_named(content: str, says: str, tmp_path: Path, subject: Subject) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=says):
        load_data(tmp_path / "a.csv", subject)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'mood'.*text, label"):
        read_texts(csv_of(tmp_path / "a.csv"), DataOptions(label_key="mood"))


def test_read_texts_keeps_words_and_rows(tmp_path: Path) -> None:
    found = read_texts(csv_of(tmp_path / "a.csv"))
    assert found.texts == tuple(t for t, _ in ROWS) and found.names == ("ham", "spam")
    assert found.labels is not None and found.labels.tolist()[:2] == [0, 1] and found.rows[0] == "line 2"
