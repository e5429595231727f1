"""Models over tables: every format answers as its own library does, and names its columns."""

from __future__ import annotations

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.open import load_model, recognise
from laocoon.files.to_onnx import export
from laocoon.modalities.raw import ModelOptions

NAMES = ("amount", "age", "rate", "region", "months")
ROWS = 400


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 5)).astype(np.float32)
    x[:, 3], x[:, 4] = rng.integers(0, 6, ROWS), rng.integers(0, 40, ROWS)
    two = (x[:, 0] + 2 * (x[:, 3] == 2) > 0.5).astype(int)
    return x, two, two + (x[:, 4] % 3 == 0)


def margins(subject, x):
    logits = subject.outputs(torch.from_numpy(x)).logits
    return (logits[:, 1] - logits[:, 0]).numpy() if subject.classes == 2 else logits.numpy()


class Network(nn.Module):
    """Numbers and an embedded category."""

    def __init__(self):
        super().__init__()
        self.region = nn.Embedding(6, 3)
        self.rest = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.rest(torch.cat([x[:, [0, 1, 2, 4]], self.region(x[:, 3].long())], 1))


def network():
    torch.manual_seed(0)
    return Network().eval()


# ---------------------------------------------------------------- trees
@pytest.mark.parametrize("end", ["json", "ubj"])
@pytest.mark.parametrize("objective", ["binary:logistic", "binary:logitraw", "multi:softprob"])
@pytest.mark.parametrize("category", [False, True])
@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_trees_of_xgboost_answer_as_the_library_does(tmp_path, data, end, objective, category, booster):
    xgboost = pytest.importorskip("xgboost")
    x, two, three = data
    kinds = ["q", "q", "q", "c" if category else "q", "q"]
    rows = xgboost.DMatrix(x, label=three if "multi" in objective else two, feature_names=list(NAMES),
                           feature_types=kinds, enable_categorical=True)
    settings = {"objective": objective, "max_depth": 3, "max_cat_to_onehot": 2, "booster": booster}
    trained = xgboost.train({**settings, **({"num_class": 3} if "multi" in objective else {})}, rows, 6)
    trained.save_model(tmp_path / f"m.{end}")
    subject = load_model(tmp_path / f"m.{end}")
    assert subject.provenance.format == "xgboost" and subject.modality.columns == NAMES
    assert subject.capabilities == {Capability.QUERY} and subject.input_shape == (5,)
    np.testing.assert_allclose(margins(subject, x), trained.predict(rows, output_margin=True), atol=1e-5)


@pytest.mark.parametrize("objective", ["binary", "multiclass", "multiclassova"])
def test_trees_of_lightgbm_answer_as_the_library_does(tmp_path, data, objective):
    lightgbm = pytest.importorskip("lightgbm")
    x, two, three = data
    label = two if objective == "binary" else three
    rows = lightgbm.Dataset(x.astype(float), label, feature_name=list(NAMES), categorical_feature=["region", "months"])
    trained = lightgbm.train({"objective": objective, "num_class": 1 if objective == "binary" else 3, "verbose": -1,
                              "min_data_per_group": 5, "cat_smooth": 1}, rows, 6)
    trained.save_model(tmp_path / "m.txt")
    subject = load_model(tmp_path / "m.txt")
    assert subject.provenance.format == "lightgbm" and subject.modality.columns == NAMES
    assert "categor" not in subject.provenance.metadata["objective"]
    np.testing.assert_allclose(margins(subject, x), trained.predict(x.astype(float), raw_score=True), atol=1e-5)


def tree_file(**changes):
    """A stump on two columns, as XGBoost writes it."""
    tree = {"split_indices": [1, 0, 0], "split_conditions": [0.5, -1.0, 1.0], "left_children": [1, -1, -1],
            "right_children": [2, -1, -1], "tree_param": {"size_leaf_vector": "1"}, **changes}
    return json.dumps({"learner": {
        "objective": {"name": changes.get("objective", "binary:logistic")}, "feature_names": [],
        "learner_model_param": {"num_class": "0", "num_feature": "2", "base_score": "5E-1"},
        "gradient_booster": {"name": changes.get("booster", "gbtree"),
                             "model": {"trees": [tree], "tree_info": [changes.get("group", 0)]}}}})


def test_a_stump_is_a_stump(tmp_path):
    (tmp_path / "m.json").write_text(tree_file())
    subject = load_model(tmp_path / "m.json")
    assert margins(subject, np.array([[9, 0.4], [9, 0.5]], np.float32)).tolist() == [-1, 1]


@pytest.mark.parametrize("changes, says", [
    ({"left_children": [0, -1, -1]}, "points to 0"), ({"left_children": [7, -1, -1]}, "points to 7"),
    ({"right_children": [1, -1, -1]}, "points to 1"), ({"split_indices": [2, 0, 0]}, "beyond the 2"),
    ({"split_conditions": [0.5, float("nan"), 1.0]}, "not finite"), ({"group": 3}, "do not fit together"),
    ({"objective": "reg:squarederror"}, "no classification"), ({"tree_param": {"size_leaf_vector": "3"}}, "several scores"),
    ({"split_indices": "x"}, "not a complete XGBoost model"),
], ids=lambda v: str(v)[:30])
def test_damaged_trees_are_refused(tmp_path, changes, says):
    (tmp_path / "m.json").write_text(tree_file(**changes))
    with pytest.raises(InputError, match=says):
        load_model(tmp_path / "m.json")


def test_cut_files_are_refused(tmp_path, data):
    (tmp_path / "m.json").write_text(tree_file()[:-40])
    with pytest.raises(BrokenFile, match="no complete JSON"):
        load_model(tmp_path / "m.json")
    (tmp_path / "m.txt").write_text("tree\nversion=v4\nnum_class=1\n")
    with pytest.raises(BrokenFile, match="no end of trees"):
        load_model(tmp_path / "m.txt")
    for data in (b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner", b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner[#L\x7f" + b"\xff" * 7,
                 b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner" + b"[" * 5000):
        (tmp_path / "m.ubj").write_bytes(data)
        with pytest.raises(BrokenFile, match="UBJSON"):
            load_model(tmp_path / "m.ubj")


# ---------------------------------------------------------------- scikit-learn
@pytest.mark.parametrize("kind", ["forest", "boosting", "logistic", "svm", "pipeline"])
def test_scikit_learn_answers_as_itself(tmp_path, data, kind):
    io = pytest.importorskip("skops.io")
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    x, two, three = data
    made = {"forest": RandomForestClassifier(10), "boosting": HistGradientBoostingClassifier(max_iter=5), "svm": LinearSVC(),
            "logistic": LogisticRegression(max_iter=500), "pipeline": make_pipeline(StandardScaler(), LogisticRegression())}[kind]
    label = three if kind == "forest" else np.array(["good", "bad"])[two]
    made.fit(x, label)
    io.dump(made, tmp_path / "m.skops")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject = load_model(tmp_path / "m.skops")
    assert subject.provenance.format == "skops" and subject.capabilities == {Capability.QUERY}
    assert subject.class_names == (() if kind == "forest" else ("bad", "good"))
    said = subject.outputs(torch.from_numpy(x)).logits.argmax(1).numpy()
    assert (made.classes_[said] == made.predict(x)).mean() > 0.995


# ---------------------------------------------------------------- networks
def test_an_onnx_file_names_its_columns_and_their_words(tmp_path):
    export(network(), torch.rand(2, 5), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    words = ["n", "s", "e", "w", "c", "x"]
    helper.set_model_props(model, {"feature_names": json.dumps(NAMES), "categories": json.dumps({"region": words}),
                                   "filler": "x" * 500})
    onnx.save(model, tmp_path / "m.onnx")
    subject = load_model(tmp_path / "m.onnx")  # columns are named: no picture
    assert subject.modality.name == "tabular" and subject.modality.columns == NAMES
    assert subject.modality.words[3] == tuple(words) and subject.classes == 2
    assert {Capability.GRADIENT, Capability.FEATURES} <= subject.capabilities
    x = torch.rand(7, 5) + torch.tensor([0, 0, 0, 3, 0])
    assert torch.allclose(subject.outputs(x).logits, network()(x), atol=1e-5)


def test_a_flat_square_stays_a_picture_unless_told(tmp_path):
    export(nn.Linear(25, 2), torch.rand(2, 25), tmp_path / "m.onnx")
    assert load_model(tmp_path / "m.onnx").modality.name == "image"
    assert load_model(tmp_path / "m.onnx", options=ModelOptions(modality="tabular")).input_shape == (25,)


def test_several_inputs_become_one_row(tmp_path):
    """As exporters of scikit-learn write it: an input a column, numbers as double, categories as int64."""
    kinds = (("amount", TensorProto.DOUBLE, ["n", 1]), ("region", TensorProto.INT64, ["n"]), ("more", TensorProto.FLOAT, ["n", 2]))
    weights = {"table": np.arange(6, dtype=np.float32).reshape(6, 1), "w": np.array([[1, -1], [2, -2], [3, 0], [0, 5]], np.float32),
               "shape": np.array([-1, 1])}
    graph = helper.make_graph(
        [helper.make_node("Cast", ["amount"], ["a"], to=TensorProto.FLOAT), helper.make_node("Gather", ["table", "region"], ["r"]),
         helper.make_node("Reshape", ["r", "shape"], ["b"]), helper.make_node("Concat", ["a", "b", "more"], ["x"], axis=1),
         helper.make_node("MatMul", ["x", "w"], ["scores"])], "g",
        [helper.make_tensor_value_info(n, k, s) for n, k, s in kinds],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="takes 3 inputs"):
        load_model(tmp_path / "m.onnx")
    subject = load_model(tmp_path / "m.onnx", options=ModelOptions(modality="tabular"))
    assert subject.modality.columns == ("amount", "region", "more 0", "more 1")
    assert subject.outputs(torch.tensor([[0.5, 4, 1, 1]])).logits.tolist() == [[0.5 + 8 + 3, -0.5 - 8 + 5]]
    assert Capability.GRADIENT in subject.capabilities


@pytest.mark.parametrize("form", ["torchscript", "torch.export", "safetensors", "state dict"])
def test_torch_files_are_tables_where_told(tmp_path, monkeypatch, form):
    made, wanted, architecture = network(), ModelOptions(modality="tabular", columns=NAMES), None
    place = tmp_path / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "torchscript":
            torch.jit.script(made).save(place)
        elif form == "torch.export":
            place = tmp_path / "m.pt2"
            torch.export.save(torch.export.export(made, (torch.rand(2, 5),), dynamic_shapes=({0: torch.export.Dim("n")},)), place)
        else:
            (tmp_path / "lender.py").write_text(f"import torch\nfrom torch import nn\n{FACTORY}")
            monkeypatch.chdir(tmp_path)
            architecture = "lender:Network"
            if form == "safetensors":
                place = tmp_path / "m.safetensors"
                save_file(made.state_dict(), place)
            else:
                torch.save(made.state_dict(), place)
    assert recognise(place) == form
    subject = load_model(place, architecture=architecture, options=wanted)
    assert subject.modality.columns == NAMES
    x = torch.rand(7, 5) + torch.tensor([0, 0, 0, 3, 0])
    assert torch.allclose(subject.outputs(x).logits, made(x), atol=1e-5)


FACTORY = '''
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.region = nn.Embedding(6, 3)
        self.rest = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x):
        return self.rest(torch.cat([x[:, [0, 1, 2, 4]], self.region(x[:, 3].long())], 1))
'''


def test_the_only_width_that_fits_is_found(tmp_path, monkeypatch):
    (tmp_path / "wide.py").write_text("from torch import nn\ndef made():\n    return nn.Sequential(nn.Linear(23, 4), nn.ReLU(), nn.Linear(4, 3))\n")
    monkeypatch.chdir(tmp_path)
    made = nn.Sequential(nn.Linear(23, 4), nn.ReLU(), nn.Linear(4, 3))
    save_file(made.state_dict(), tmp_path / "m.safetensors")
    subject = load_model(tmp_path / "m.safetensors", architecture="wide:made", options=ModelOptions(modality="tabular"))
    assert subject.input_shape == (23,) and subject.classes == 3


def test_one_probability_becomes_two_logits(tmp_path):
    made = nn.Sequential(nn.Linear(7, 1), nn.Sigmoid())
    export(made, torch.rand(2, 7), tmp_path / "m.onnx")
    subject = load_model(tmp_path / "m.onnx", options=ModelOptions(modality="tabular"))
    x = torch.randn(9, 7)
    assert subject.classes == 2
    assert torch.allclose(subject.outputs(x).logits.softmax(1)[:, 1:], made(x), atol=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_a_changed_model_is_written_back_with_its_names(tmp_path, several):
    """As `repair` does it."""
    from laocoon.files.save import destined, save

    weights = {"w": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)}
    kinds = (("age", TensorProto.INT64, ["n", 1]), ("rate", TensorProto.FLOAT, ["n", 2])) if several else (("rows", TensorProto.FLOAT, ["n", 3]),)
    nodes = [helper.make_node("Cast", ["age"], ["a"], to=TensorProto.FLOAT), helper.make_node("Concat", ["a", "rate"], ["rows"], axis=1)]
    graph = helper.make_graph([*(nodes if several else []), helper.make_node("MatMul", ["rows", "w"], ["scores"])], "g",
                              [helper.make_tensor_value_info(*k) for k in kinds], [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
                              [numpy_helper.from_array(v, k) for k, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"feature_names": json.dumps(["age", "rate", "months"])})
    onnx.save(model, tmp_path / "m.onnx")
    wanted = ModelOptions(modality="tabular")
    subject = load_model(tmp_path / "m.onnx", options=wanted)
    plan = destined(str(tmp_path / "m.onnx"), subject, str(tmp_path / "out.onnx"), form=None, overwrite=False, architecture=None, options=wanted)
    changed = subject.copy()
    with torch.no_grad():
        for weight in changed.module.parameters():
            weight.mul_(0.5)
    rows = torch.arange(12.0).reshape(4, 3)
    save(plan, subject, changed, rows, "halved")
    again = load_model(tmp_path / "out.onnx", options=wanted)
    assert again.modality.columns == ("age", "rate", "months")
    assert torch.allclose(again.outputs(rows).logits, subject.outputs(rows).logits / 2, atol=1e-6)
    assert len(onnx.load(tmp_path / "out.onnx").graph.input) == (2 if several else 1)
