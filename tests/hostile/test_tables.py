"""Tables and their models, hostile or broken, each beside a benign neighbour: the same thing, well formed."""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

NAMES = ("income", "age", "delays")
Make = Callable[[Path], tuple[str, ...]]  # folder -> what follows `scan`


def model(folder: Path, props: dict[str, str] | None = None, width: int = 3, scale: float = 1.0) -> str:
    """Whoever was late twice defaults."""
    weights = {"w": np.array([[0, 0]] * (width - 1) + [[-scale, scale]], np.float32), "b": np.array([1.5, -1.5], np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["rows", "w", "b"], ["scores"])], "fraud",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])], [numpy_helper.from_array(v, k) for k, v in weights.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, {"feature_names": json.dumps(NAMES)} if props is None else props)
    (folder / "fraud.onnx").write_bytes(made.SerializeToString())
    return str(folder / "fraud.onnx")


def table(folder: Path, head: str = "income,age,delays,default", rows: list[str] | None = None, more: tuple[str, ...] = ()) -> str:
    lines = rows if rows is not None else [f"{1000 + 7 * i},{20 + i},{i * i % 7},{int(i * i % 7 > 1)}" for i in range(80)]
    (folder / "clients.csv").write_text("\n".join([head, *lines, *more]) + "\n", encoding="utf-8")
    return str(folder / "clients.csv")


def given(folder: Path, head: str = "income,age,delays,default", rows: list[str] | None = None, more: tuple[str, ...] = (),
          label: str = "default") -> tuple[str, ...]:
    return model(folder), "--data", table(folder, head, rows, more), "--label", label


def swapped(folder: Path) -> tuple[str, ...]:
    return given(folder, "delays,default,age,income", [f"{i * i % 7},{int(i * i % 7 > 1)},{20 + i},{1000 + 7 * i}" for i in range(80)])


def parquet(folder: Path, **more: object) -> tuple[str, ...]:
    cells = {"income": [1000.0 + 7 * i for i in range(80)], "age": [20 + i for i in range(80)], "delays": [i * i % 7 for i in range(80)],
             "default": [int(i * i % 7 > 1) for i in range(80)], **more}
    pq.write_table(pa.table(cells), folder / "clients.parquet")
    return model(folder), "--data", str(folder / "clients.parquet"), "--label", "default"


def cut_parquet(folder: Path) -> tuple[str, ...]:
    told = parquet(folder)
    place = Path(told[2])
    place.write_bytes(place.read_bytes()[:-200])
    return told


def raw(data: bytes) -> Make:
    def make(folder: Path) -> tuple[str, ...]:
        (folder / "clients.csv").write_bytes(data)
        return model(folder), "--modality", "tabular", "--data", str(folder / "clients.csv"), "--label", "default"

    return make


def bomb(folder: Path) -> tuple[str, ...]:
    """A million rows in a few kilobytes, of a word of a megabyte each."""
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1_000_000, np.int8)), pa.array(["x" * 2**20]))
    cells = {n: pa.array(np.arange(1_000_000) % 50) for n in (*NAMES, "default")}
    pq.write_table(pa.table({**cells, "delays": words, "default": cells["age"].take(pa.array(np.arange(1_000_000) % 2))}), folder / "clients.parquet")
    return model(folder), "--data", str(folder / "clients.parquet"), "--label", "default"


GOOD: dict[str, Make] = {
    "a table": given,
    "columns in another order": swapped,
    "columns too many": lambda f: given(f, "ID,income,age,delays,default", [f"{i},{9 * i},{20 + i},{i * i % 7},{int(i * i % 7 > 1)}" for i in range(80)]),
    "parquet": parquet,
    "a column that nobody takes is broken": lambda f: parquet(f, extra=[[i] for i in range(80)]),
    "semicolons and a byte-order mark": lambda f: (model(f), "--data", table(f, "\ufeffincome;age;delays;default", [f"{7.5 * i};{20 + i};{i * i % 7};{int(i * i % 7 > 1)}" for i in range(80)]), "--label", "default"),
    "names that nobody can print": lambda f: given(f, more=("1,2,3,0",)),
}

BAD: dict[str, tuple[Make, tuple[str, ...]]] = {
    "a missing column": (lambda f: given(f, "income,years,delays,default"), ("lacks 1 of the 3", "age")),
    "a label that is not there": (lambda f: given(f, label="fraud"), ("no column 'fraud' of labels", "default")),
    "a label that the model sees": (lambda f: given(f, label="age"), ("'age' is one of the columns that the model takes",)),
    "the label under another name": (lambda f: given(f, rows=[f"{1000 + 7 * i},{20 + i},{9 - 4 * (i % 2)},{i % 2}" for i in range(80)]), ("'delays'", "is the label 'default'")),
    "missing values": (lambda f: given(f, more=("1,,3,0", "2,NA,4,1")), ("column 'age'", "2 missing values", "row 80")),
    "text among numbers": (lambda f: given(f, more=("1,old,3,0",)), ("column 'age'", "'old'", "row 80")),
    "escapes among numbers": (lambda f: given(f, more=("1,\x1b[31mred\x1b[0m,3,0",)), ("column 'age'",)),
    "a number beyond bounds": (lambda f: given(f, more=("1e300,5,3,0",)), ("column 'income'", "no finite numbers")),
    "one name twice": (lambda f: given(f, "income,age,age,default"), ("2 columns named 'age'",)),
    "no names": (lambda f: (model(f), "--modality", "tabular", "--data", table(f, "1,2,3,0"), "--label", "default"), ("does not name its columns",)),
    "no rows": (lambda f: (model(f), "--modality", "tabular", "--data", table(f, rows=[]), "--label", "default"), ("holds no rows",)),
    "a short row": (lambda f: given(f, more=("1,2",)), ("cannot be read as a table",)),
    "nothing": (raw(b""), ("empty",)),
    "zero bytes": (raw(b"income,age\0,delays,default\n1,2,3,0\n"), ("zero bytes",)),
    "not UTF-8": (raw(b"income,age,delays,default\n1,2,\xff\xfe,0\n"), ("UTF-8",)),
    "a name of a megabyte": (raw(b"a" * 2**21 + b",b\n1,2\n"), ("clients.csv",)),
    "ten thousand columns": (raw(b",".join(b"c%d" % i for i in range(10_000)) + b"\n" + b",".join(b"1" for _ in range(10_000)) + b"\n"), ("10000 columns",)),
    "cut Parquet": (cut_parquet, ("clients.parquet", "damaged or cut off")),
    "a table for pictures": (lambda f: (*given(f), "--modality", "image"), ("is a table", "--modality tabular")),
    "columns that do not fit": (lambda f: (*given(f), "--columns", "a,b"), ("takes 3 columns, but 2 are named",)),
    "a column named twice": (lambda f: (*given(f), "--columns", "a,b,a"), ("'a' is named twice",)),
    "a fixed column that is not there": (lambda f: (*given(f), "--fixed", "sex"), ("no column 'sex' to keep fixed",)),
    "a dropped column that is not there": (lambda f: (*given(f), "--drop", "sex"), ("no column 'sex' to drop",)),
    "weights that are not finite": (lambda f: (model(f, scale=float("inf")), "--data", table(f), "--label", "default"), ("not finite",)),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_well_formed_table_is_admitted(place, admitted, case):
    report = admitted(*GOOD[case](place.inputs))
    assert report["subject"]["modality"] == "tabular" and report["subject"]["input_shape"] == [3]


@pytest.mark.parametrize("case", BAD)
def test_a_broken_table_is_refused_in_words(place, refused, case):
    make, says = BAD[case]
    refused(*make(place.inputs), says=says)


def test_a_word_of_a_megabyte_a_million_times_is_kept_once(place, laocoon):
    ran = laocoon("scan", *bomb(place.inputs), "--html", "none")
    assert ran.code == 3 and "no better than chance" in ran.text, ran.text


# ---------------------------------------------------------------- scikit-learn and trees
def estimator():
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(0).normal(size=(80, 3))
    return LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self):
        return open, (self.canary, "w")


def pickled(canary: Path, form: str, *, evil: bool) -> bytes:
    import io

    import joblib

    what = [Payload(canary), estimator()] if evil else estimator()
    stream = io.BytesIO()
    if form == "pickle":
        return pickle.dumps(what)
    joblib.dump(what, stream, compress=("zlib", 3) if form == "joblib zlib" else 0)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["pickle", "joblib"])
def test_a_pickled_estimator_is_a_finding_that_names_what_it_would_call(place, refused, form):
    """Even a benign one: nobody can tell before it runs. The neighbour is the same estimator as a skops archive."""
    for evil in (False, True):
        target = place.inputs / "fraud.pkl"
        target.write_bytes(pickled(place.canary, form, evil=evil))
        refused(target, "--data", table(place.inputs), code=1,
                says=("open",) if evil else ("sklearn.linear_model._logistic.LogisticRegression" if form == "pickle" else "joblib.numpy_pickle", "skops"))


def test_a_compressed_joblib_is_refused_with_the_way_out(place, refused):
    target = place.inputs / "fraud.joblib"
    target.write_bytes(pickled(place.canary, "joblib zlib", evil=True))
    assert zlib.decompress(target.read_bytes())
    refused(target, says=("zlib", "skops"))


def test_a_skops_archive_of_a_plain_estimator_is_opened(place, laocoon):
    io = pytest.importorskip("skops.io")
    io.dump(estimator(), place.inputs / "fraud.skops")
    ran = laocoon("scan", place.inputs / "fraud.skops", "--data", table(place.inputs), "--label", "default", "--budget", "200", "--html", "none")
    assert ran.code in (0, 1, 3), ran.text


def test_a_skops_archive_that_names_code_is_refused(place, refused):
    io = pytest.importorskip("skops.io")
    io.dump(estimator(), place.inputs / "plain.skops")
    with zipfile.ZipFile(place.inputs / "plain.skops") as old, zipfile.ZipFile(place.inputs / "fraud.skops", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "schema.json":
                schema = json.loads(data)
                schema["__module__"], schema["__class__"] = "os", "system"
                data = json.dumps(schema).encode()
            new.writestr(name, data)
    ran = refused(place.inputs / "fraud.skops", code=1, says=("os.system",))
    assert "skops" in ran.text


def stump(**changes: object) -> bytes:
    tree = {"split_indices": [1, 0, 0], "split_conditions": [25.0, -1.0, 1.0], "left_children": [1, -1, -1],
            "right_children": [2, -1, -1], "tree_param": {"size_leaf_vector": "1"}, **changes}
    return json.dumps({"learner": {
        "objective": {"name": "binary:logistic"}, "feature_names": list(NAMES),
        "learner_model_param": {"num_class": "0", "num_feature": "3", "base_score": "5E-1"},
        "gradient_booster": {"name": "gbtree", "model": {"trees": [tree], "tree_info": [0]}}}}).encode()


@pytest.mark.parametrize("data, says", [
    (stump(left_children=[0, -1, -1]), "points to 0"), (stump(left_children=[2**40, -1, -1]), "points to"),
    (stump(split_indices=[-4, 0, 0]), "tests column -4"), (stump(split_indices=[3, 0, 0]), "beyond the 3"),
    (stump(split_conditions=[1.0, 1e39, 0.0]), "finite"), (stump()[:-30], "no complete JSON"),
    (b'{"learner": ' + b"[" * 100_000, "no complete JSON"), (b'{"learner": 3}', "not a complete XGBoost model"),
], ids=["a circle", "a far node", "a negative column", "a column too many", "an infinite leaf", "cut", "deep", "no model"])
def test_trees_that_are_none_are_refused(place, refused, data, says):
    (place.inputs / "fraud.json").write_bytes(data)
    refused(place.inputs / "fraud.json", "--data", table(place.inputs), says=(says,))


def test_trees_are_opened(place, laocoon):
    (place.inputs / "fraud.json").write_bytes(stump())
    ran = laocoon("scan", place.inputs / "fraud.json", "--data", table(place.inputs), "--label", "default", "--budget", "200", "--html", "none")
    assert ran.code in (0, 1, 3), ran.text
