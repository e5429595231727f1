"""Tables as samples: the schema is read off the data, columns find the model's, and what cannot be used is named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Subject
from laocoon.files import tables
from laocoon.files.images_source import DataOptions
from laocoon.files.samples import load_data
from laocoon.files.tables import is_table, read_table
from laocoon.modalities.tabular import CATEGORY, INTEGER, NUMERIC, Tabular
from laocoon.modalities.tabular_model import numbered
from laocoon.testing.corpora import clients, write_csv

HEAD = "income,age,region,default"


def subject(columns, classes=2, names=(), table=None):
    return Subject(nn.Linear(len(columns), classes), table or Tabular.unknown(columns), classes, (len(columns),), class_names=names)


def rows(count=60):
    regions = ("north", "south", "east")
    return [f"{1000.5 + i},{20 + i % 50},{regions[i * i % 3]},{(i * 7 // 3) % 2}" for i in range(count)]


def write(folder, *lines, name="t.csv"):
    place = folder / name
    place.write_bytes("\n".join(lines).encode() if all(isinstance(x, str) for x in lines) else b"\n".join(lines))
    return place


def test_a_schema_is_read_off_the_data(tmp_path):
    place = write(tmp_path, HEAD, *rows())
    got = load_data(place, subject(("income", "age", "region")), options=DataOptions(label_key="default", fixed=("age",)))
    table = got.modality
    assert table.kinds == (NUMERIC, INTEGER, CATEGORY) and table.fixed == ("age",)
    assert table.words[2] == ("north", "south") and table.allowed[2] == (0, 1)  # squares are 0 or 1 modulo 3
    assert (table.low[0], table.high[0]) == (1000.5, 1059.5)
    assert got.inputs.shape == (40, 3) and got.inputs.dtype == torch.float32 and got.labels.bincount().tolist() == [20, 20]
    assert any("numbered by the alphabet" in n for n in got.notes)
    assert bool(table.is_valid(got.inputs).all())


def test_the_model_knows_its_categories_better(tmp_path):
    place = write(tmp_path, HEAD, *rows())
    known = Tabular(("income", "age", "region"), (-1.0,) * 3, (1.0,) * 3, (NUMERIC, NUMERIC, CATEGORY),
                    ((), (), (0.0, 1.0, 2.0)), ((), (), ("south", "east", "north")))
    got = load_data(place, subject(known.columns, table=known), options=DataOptions(label_key="default"))
    assert got.modality.words[2] == ("south", "north") and got.modality.allowed[2] == (0, 2)
    with pytest.raises(InputError, match="'west', a category that the model does not know"):
        load_data(write(tmp_path, HEAD, *rows(), "1,2,west,0", "1,2,west,1"), subject(known.columns, table=known), options=DataOptions(label_key="default"))


def test_columns_find_the_models_by_name(tmp_path):
    place = write(tmp_path, "ID,Age,Income,default", *[f"{i},{20 + i},{1000 + 2 * i},{i % 2}" for i in range(30)])
    got = load_data(place, subject(("income", "age")), options=DataOptions(label_key="default"), limit_per_class=None)
    assert got.inputs[3].tolist() == [1006, 23]
    assert any("ID" in n and "left out" in n for n in got.notes) and any("by name" in n for n in got.notes)
    with pytest.raises(InputError, match=r"lacks 2 of the 3 columns that the model takes: limit, sex\."):
        load_data(place, subject(("limit", "age", "sex")), options=DataOptions(label_key="default"))


def test_without_names_the_order_counts_and_the_number_must_fit(tmp_path):
    place = write(tmp_path, "ID,a,b,target", *[f"{i},{i * 3},{i * i},{i % 2}" for i in range(30)])
    with pytest.raises(InputError, match=r"3 columns beside the label 'target' \(ID, a, b\), the model takes 2.*--drop"):
        load_data(place, subject(numbered(2)))
    got = load_data(place, subject(numbered(2)), options=DataOptions(drop=("ID",)))
    assert got.modality.columns == ("a", "b") and any(n.startswith("assumed") for n in got.notes)
    with pytest.raises(InputError, match="Columns are missing"):
        load_data(place, subject(numbered(5)))


@pytest.mark.parametrize("name", ["class", "Label", "TARGET", "y"])
def test_the_label_is_found_by_its_name(tmp_path, name):
    place = write(tmp_path, f"a,b,{name}", *[f"{i},{i * i},{'yes' if i % 3 else 'no'}" for i in range(30)])
    got = load_data(place)
    assert got.modality.columns == ("a", "b") and got.class_names == ("no", "yes") and got.labelled


def test_without_a_label_the_models_answers_serve(tmp_path):
    place = write(tmp_path, "a,b", *[f"{i},{i * i}" for i in range(30)])
    assert not load_data(place, subject(("a", "b"))).labelled
    with pytest.raises(InputError, match="--label"):
        load_data(place)


def test_csv_and_parquet_say_the_same(tmp_path):
    corpus = clients(200)
    place = write_csv(tmp_path / "t.csv", corpus.modality, corpus.train)
    read = {n: [c.cells[p] for p in c.places] for n, c in read_table(place).columns.items()}
    typed = pa.table({n: pa.array(v if n in ("purpose", "work", "region") else [float(x) for x in v]) for n, v in read.items()})
    pq.write_table(typed, tmp_path / "t.parquet")
    one, two = (load_data(p, subject(corpus.modality.columns), options=DataOptions(label_key="default")) for p in (place, tmp_path / "t.parquet"))
    assert torch.equal(one.inputs, two.inputs) and torch.equal(one.labels, two.labels) and one.modality == two.modality


BAD = {
    "missing values": (["a,b,y", *[f"{i},{i * i},{i % 2}" for i in range(30)], "1,,0", "1,NaN,1"],
                       r"column 'b' of t.csv holds 2 missing values in 32 rows \(the first in row 30"),
    "infinity": (["a,b,y", *[f"{i},{i * i},{i % 2}" for i in range(30)], "1,1e999,0"], "no finite numbers"),
    "text among numbers": (["a,b,y", *[f"{i},{i * i},{i % 2}" for i in range(30)], "many,3,0"],
                           r"column 'a' of t.csv holds numbers, but 1 rows hold text \(row 30: 'many'\)"),
    "decimal commas": (["a;b;y", *[f"{i};{i * i};{i % 2}" for i in range(30)], "3,5;3;0"], "Decimal points are wanted"),
    "duplicate names": (["a,a,y", "1,2,0"], "2 columns named 'a'"),
    "no names": (["1,2,0", "2,3,1"], "does not name its columns"),
    "no rows": (["a,b,y"], "holds no rows"),
    "a short row": (["a,b,y", "1,2,0", "1,2"], "cannot be read as a table"),
    "free text": (["a,b,y", *[f"word{i},{i},{i % 2}" for i in range(30)]], "holds text \\(30 different"),
    "the label twice": (["a,b,y", *[f"{i},{5 - 3 * (i % 2)},{i % 2}" for i in range(30)]], "column 'b' of t.csv is the label 'y'"),
    "a label of measurements": (["a,b,y", *[f"{i},{i * i},{i / 7}" for i in range(30)]], "Classes are whole numbers or words"),
    "labels missing": (["a,b,y", *[f"{i},{i * i},{i % 2}" for i in range(30)], "1,2,"], "column 'y' of t.csv holds 1 missing"),
    "classes that the model lacks": (["a,b,y", *[f"{i},{i * i},{i % 5}" for i in range(30)]], "the model has 2 classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_named(tmp_path, case):
    lines, says = BAD[case]
    with pytest.raises(InputError, match=says):
        load_data(write(tmp_path, *lines), subject(("a", "b")))


def test_the_label_must_not_be_a_feature(tmp_path):
    place = write(tmp_path, "a,b,y", *[f"{i},{i * i},{i % 2}" for i in range(30)])
    with pytest.raises(InputError, match="'b' is one of the columns that the model takes"):
        load_data(place, subject(("a", "b")), options=DataOptions(label_key="b"))
    with pytest.raises(InputError, match="no column 'z' of labels"):
        load_data(place, subject(("a", "b")), options=DataOptions(label_key="z"))


@pytest.mark.parametrize("data, says", [
    (b"", "empty"), (b"a,b,y\n1,\xff\xfe,0\n", "UTF-8"), (b"\xff\xfea,b\n", "UTF-8"), (b"a\0b,y\n1,2\n", "zero bytes"),
    (b"PAR1" + b"x" * 50, "damaged or cut off"),
])
def test_broken_files_are_refused(tmp_path, data, says):
    place = tmp_path / "t.csv"
    place.write_bytes(data)
    with pytest.raises(BrokenFile, match=says):
        load_data(place, subject(("a", "b")))


def test_nulls_dates_and_lists_of_parquet(tmp_path):
    good = {"a": list(range(30)), "b": [i * i for i in range(30)], "y": [i % 2 for i in range(30)]}
    for name, values, says in (("nulls", pa.array([None, *good["b"][1:]]), "1 missing values"),
                               ("lists", pa.array([[i] for i in range(30)]), "values of type list"),
                               ("dates", pa.array(good["b"], pa.timestamp("s")), "values of type timestamp")):
        pq.write_table(pa.table({**good, "b": values}), tmp_path / f"{name}.parquet")
        with pytest.raises(InputError, match=says):
            load_data(tmp_path / f"{name}.parquet", subject(("a", "b")))
        assert load_data(tmp_path / f"{name}.parquet", subject(("a",))).inputs.shape[1] == 1  # nobody asked for it


def test_huge_tables_are_bounded(tmp_path, monkeypatch):
    place = write(tmp_path, "a,b,y", *[f"{i},{i * i},{i % 2}" for i in range(500)])
    monkeypatch.setattr(tables, "MOST_ROWS", 100)
    got = load_data(place, subject(("a", "b")), limit_per_class=None)
    assert len(got) == 100 and any("first 100 rows" in n for n in got.notes)
    monkeypatch.setattr(tables, "LARGEST_FILE", 100)
    with pytest.raises(BrokenFile, match="At most 100"):
        load_data(place, subject(("a", "b")))


def test_what_is_a_table_and_what_is_not(tmp_path):
    assert is_table(write(tmp_path, HEAD, *rows()))
    assert not is_table(write(tmp_path, "text,label", "a long film that nobody will ever want to see again,0", "what a lovely story of love and trains and rivers,1"))
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, 1]}), tmp_path / "i.parquet")
    assert not is_table(tmp_path / "i.parquet") and not is_table(tmp_path) and not is_table("owner/name")


def test_large_whole_numbers_are_told_to_be_rounded(tmp_path):
    place = write(tmp_path, "a,b,y", *[f"{i + 2**25},{i * i},{i % 2}" for i in range(30)])
    assert any("rounded in a" in n for n in load_data(place, subject(("a", "b"))).notes)


def test_rows_are_drawn_by_the_seed(tmp_path):
    place = write(tmp_path, "a,b,y", *[f"{i},{i * i},{i % 2}" for i in range(200)])
    one, same, other = (load_data(place, subject(("a", "b")), seed=s) for s in (0, 0, 1))
    assert torch.equal(one.inputs, same.inputs) and not torch.equal(one.inputs, other.inputs)
    assert np.array_equal(one.inputs[:, 0] % 2, one.labels)


def test_arrays_bring_a_schema_too(tmp_path):
    x = np.stack([np.arange(60) * 0.7, np.arange(60) % 3, np.arange(60)], 1).astype(np.float32)
    np.savez(tmp_path / "t.npz", x=x, y=np.arange(60) % 2)
    got = load_data(tmp_path / "t.npz", subject(("a", "b", "c")))
    assert got.modality.columns == ("a", "b", "c") and got.modality.kinds == (NUMERIC, CATEGORY, INTEGER)
