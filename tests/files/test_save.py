"""A repaired model in the format that it came in: what is changed, what stays, what is refused before any work."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from laocoon.core.errors import InputError
from laocoon.core.subject import Subject
from laocoon.files import save as saving
from laocoon.files.open import load_model
from laocoon.files.save import copy, destined, save
from laocoon.modalities.raw import ModelOptions

DEMO = Path(str(files("laocoon").joinpath("demo", "backdoored.onnx")))
NOTE = "repaired from sha256 0123"


def altered(subject: Subject, much: float = 0.05) -> Subject:
    """A copy with other weights and batch norms."""
    mended, rng = subject.copy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in mended.module.parameters():
            p.add_(torch.randn(p.shape, generator=rng) * much * p.abs().mean().clamp_min(1e-3))
        for name, buffer in mended.module.named_buffers():
            if "running" in name:
                buffer.mul_(1 + much)
    return mended


def probes(subject: Subject) -> torch.Tensor:
    return torch.rand(16, *subject.input_shape, generator=torch.Generator().manual_seed(1))


def logits(subject: Subject, x: torch.Tensor) -> torch.Tensor:
    return subject.outputs(x).logits


def round_trip(origin: Path, target: Path, subject: Subject, **told: Any) -> tuple[Subject, Subject, Any]:
    """The altered subject, and the same opened from what was written."""
    options = told.get("options")
    plan = destined(origin, subject, target, **told)
    mended, x = altered(subject), probes(subject)
    saved = save(plan, subject, mended, x, NOTE)
    again = load_model(target, architecture=plan.architecture,
                       options=options if plan.form != "export" else ModelOptions(input_range="0-1"))
    wrong, moved = ((logits(mended, x) - logits(other, x)).abs().max() for other in (again, subject))
    assert wrong < 0.02 * moved, "what was written is not what was handed in"
    return mended, again, saved


# ---------------------------------------------------------------- ONNX
def shape_of(model: onnx.ModelProto) -> list[Any]:
    return [(n.op_type, n.name, list(n.input), list(n.output), [a.SerializeToString() for a in n.attribute])
            for n in model.graph.node]


def test_onnx_keeps_its_graph(tmp_path):
    subject = load_model(DEMO)
    _, _, saved = round_trip(DEMO, tmp_path / "out.onnx", subject)
    before, after = onnx.load(DEMO), onnx.load(tmp_path / "out.onnx")
    assert shape_of(before) == shape_of(after)
    assert [i.name for i in before.graph.initializer] == [i.name for i in after.graph.initializer]
    assert before.graph.input == after.graph.input and before.graph.output == after.graph.output
    assert before.producer_name == after.producer_name and before.opset_import == after.opset_import
    kept = {p.key: p.value for p in after.metadata_props}
    assert kept.pop("laocoon") == NOTE and kept == {p.key: p.value for p in before.metadata_props if p.key != "laocoon"}
    assert saved.difference < 1e-4 and [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_only_what_changed_is_written(tmp_path):
    subject = load_model(DEMO)
    mended = subject.copy()
    name, weight = next((k, p) for k, p in mended.module.named_parameters() if p.dim() == 4)
    with torch.no_grad():
        weight[0].mul_(1.5)
    save(destined(DEMO, subject, tmp_path / "out.onnx"), subject, mended, probes(subject), NOTE)
    pairs = zip(onnx.load(DEMO).graph.initializer, onnx.load(tmp_path / "out.onnx").graph.initializer, strict=True)
    moved = [a for a, b in pairs if a.SerializeToString() != b.SerializeToString()]
    assert len(moved) == 1 and tuple(moved[0].dims) == tuple(weight.shape), name


def graph(place: Path, nodes: list[Any], weights: dict[str, np.ndarray], outputs: int = 4,
          metadata: dict[str, str] | None = None) -> Path:
    """A network of 3 x 8 x 8 images from its nodes; half-precision weights stay half."""
    kind = onnx.TensorProto.FLOAT
    made = helper.make_model(
        helper.make_graph(nodes, "net", [helper.make_tensor_value_info("input", kind, ["n", 3, 8, 8])],
                          [helper.make_tensor_value_info("scores", kind, ["n", outputs])],
                          [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, metadata or {})
    onnx.checker.check_model(made)
    place.write_bytes(made.SerializeToString())
    return place


def noise(*shape: int, seed: int = 0, kind: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(kind)


FLAT = helper.make_node("Flatten", ["input"], ["flat"])
SHAPES: dict[str, Callable[[Path], Path]] = {
    "a transposed square": lambda p: graph(p, [
        FLAT, helper.make_node("Gemm", ["flat", "a", "b"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "square"], ["s"]), helper.make_node("Add", ["s", "c"], ["scores"])],
        {"a": noise(192, 4), "b": noise(4), "square": np.eye(4, dtype=np.float32), "c": noise(4, seed=1)}),
    "transB": lambda p: graph(p, [FLAT, helper.make_node("Gemm", ["flat", "a", "b"], ["scores"], transB=1)],
                              {"a": noise(4, 192), "b": noise(4)}, metadata={"author": "Ada", "laocoon": "old"}),
    "a transpose in the graph": lambda p: graph(p, [
        FLAT, helper.make_node("Transpose", ["a"], ["t"]), helper.make_node("MatMul", ["flat", "t"], ["scores"])],
        {"a": noise(4, 192)}),
    "half precision": lambda p: graph(p, [
        FLAT, helper.make_node("Cast", ["a"], ["wide"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["flat", "wide"], ["scores"])], {"a": noise(192, 4, kind=np.float16)}),
    "a constant node": lambda p: graph(p, [
        FLAT, helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(noise(192, 4), "a")),
        helper.make_node("Gemm", ["flat", "a"], ["scores"])], {}),
    "a softmax at the end": lambda p: graph(p, [
        FLAT, helper.make_node("Gemm", ["flat", "a"], ["s"]), helper.make_node("Softmax", ["s"], ["scores"], axis=1)],
        {"a": noise(192, 4)}),
    "large": lambda p: graph(p, [FLAT, helper.make_node("Gemm", ["flat", "a"], ["h"]),
                                 helper.make_node("Gemm", ["h", "b"], ["scores"])],
                             {"a": noise(192, 200), "b": noise(200, 4)}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_onnx_weights_find_their_way_back(name, tmp_path):
    origin = SHAPES[name](tmp_path / "in.onnx")
    subject = load_model(origin)
    _, _, saved = round_trip(origin, tmp_path / "out.onnx", subject)
    before, after = onnx.load(origin), onnx.load(tmp_path / "out.onnx")
    assert shape_of(before)[0] == shape_of(after)[0] and len(before.graph.node) == len(after.graph.node)
    assert [i.data_type for i in before.graph.initializer] == [i.data_type for i in after.graph.initializer]
    assert saved.format == "onnx"
    if name == "transB":
        assert {p.key: p.value for p in after.metadata_props} == {"author": "Ada", "laocoon": NOTE}


def scaled(place: Path) -> Path:
    return graph(place, [FLAT, helper.make_node("Gemm", ["flat", "a"], ["scores"], alpha=0.5)], {"a": noise(192, 4)})


def quantised(place: Path) -> Path:
    weights = {"q": np.random.default_rng(0).integers(-90, 90, (192, 4)).astype(np.int8), "scale": np.float32(0.01),
               "zero": np.int8(0)}
    return graph(place, [FLAT, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
                         helper.make_node("Gemm", ["flat", "a"], ["scores"])], weights)


def test_external_data_comes_into_the_file(tmp_path):
    inner = tmp_path / "vendor"
    inner.mkdir()
    onnx.save_model(onnx.load(graph(tmp_path / "whole.onnx", [FLAT, helper.make_node("Gemm", ["flat", "a"], ["scores"])],
                                    {"a": noise(192, 4)})),
                    inner / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    round_trip(inner / "in.onnx", tmp_path / "out.onnx", load_model(inner / "in.onnx"))
    assert not any(t.external_data for t in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer)


@pytest.mark.parametrize("made", [scaled, quantised], ids=lambda f: f.__name__)
def test_what_cannot_be_written_back_is_refused_at_once(made, tmp_path):
    subject = load_model(made(tmp_path / "in.onnx"))
    with pytest.raises(InputError, match=r"no plain copies of tensors.*--format onnx"):
        destined(tmp_path / "in.onnx", subject, tmp_path / "out.onnx")
    _, _, saved = round_trip(tmp_path / "in.onnx", tmp_path / "out.onnx", subject, form="onnx")
    assert "exported anew" in saved.notes[0]


def shared(place: Path) -> Path:
    """Two layers that read one matrix."""
    return graph(place, [FLAT, helper.make_node("Gemm", ["flat", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
                         helper.make_node("MatMul", ["r", "w"], ["one"]), helper.make_node("Tanh", ["one"], ["t"]),
                         helper.make_node("MatMul", ["t", "w"], ["scores"])], {"a": noise(192, 4), "w": noise(4, 4, seed=2)})


def test_shared_weights_that_were_changed_apart(tmp_path):
    origin = shared(tmp_path / "in.onnx")
    subject = load_model(origin)
    plan = destined(origin, subject, tmp_path / "out.onnx")
    saved = save(plan, subject, altered(subject), probes(subject), NOTE)
    assert "exported anew" in saved.notes[0] and "'w' is shared by layers that were changed apart" in saved.notes[1]
    assert len(onnx.load(tmp_path / "out.onnx").graph.initializer) > 2
    together = altered(subject)
    matrices = [p for p in together.module.parameters() if p.shape == (4, 4)]
    with torch.no_grad():
        matrices[1].copy_(matrices[0])
    saved = save(replace(plan, overwrite=True), subject, together, probes(subject), NOTE)
    assert not saved.notes and len(onnx.load(tmp_path / "out.onnx").graph.initializer) == 2


# ---------------------------------------------------------------- weights
def small() -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    module: nn.Module = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    return module


SHUFFLE = {"architecture": "torchvision:shufflenet_v2_x0_5", "options": ModelOptions(size=(32, 32))}


def opened(path: Path) -> Subject:
    return load_model(path, architecture=str(SHUFFLE["architecture"]), options=SHUFFLE["options"])  # type: ignore[arg-type]


@pytest.mark.parametrize("half", [False, True])
def test_safetensors(half, tmp_path):
    state = {f"module.{k}": v.half() if half else v for k, v in small().state_dict().items()}
    save_file(state, tmp_path / "in.safetensors", metadata={"author": "Ada"})
    plan = destined(tmp_path / "in.safetensors", subject := opened(tmp_path / "in.safetensors"),
                    tmp_path / "out.safetensors", **SHUFFLE)
    save(plan, subject, mended := altered(subject), probes(subject), NOTE)
    new = load_file(tmp_path / "out.safetensors")
    assert set(new) == set(state) and all(new[k].dtype == v.dtype for k, v in state.items())
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"author": "Ada", "laocoon": NOTE}
    wanted = mended.module.core.state_dict()  # type: ignore[union-attr]
    assert all(torch.allclose(new[f"module.{k}"].float(), v.float(), atol=2e-3) for k, v in wanted.items())


def test_state_dict_keeps_the_checkpoint(tmp_path):
    torch.save({"state_dict": small().state_dict(), "epoch": 7, "note": "mine"}, tmp_path / "in.pt")
    _, _, saved = round_trip(tmp_path / "in.pt", tmp_path / "out.pt", opened(tmp_path / "in.pt"), **SHUFFLE)
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert loaded["epoch"] == 7 and loaded["note"] == "mine" and set(loaded["state_dict"]) == set(small().state_dict())
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.comment.decode() == NOTE
    assert saved.format == "state dict"


def test_weights_as_onnx(tmp_path):
    torch.save(small().state_dict(), tmp_path / "in.pt")
    round_trip(tmp_path / "in.pt", tmp_path / "out.onnx", opened(tmp_path / "in.pt"), form="onnx", **SHUFFLE)


def test_hugging_face_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4,
                                       layer_type="basic", image_size=32)
    origin = tmp_path / "in"
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).save_pretrained(origin)
    (origin / "preprocessor_config.json").write_text(json.dumps({"do_rescale": True, "size": {"height": 32, "width": 32}}))
    (origin / "README.md").write_text("hello")
    np.savez(origin / "model.npz", a=np.zeros(3))
    subject = load_model(origin)
    _, _, saved = round_trip(origin, tmp_path / "out", subject)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json", "preprocessor_config.json", "README.md", "model.safetensors", "laocoon.json"}
    assert (tmp_path / "out" / "config.json").read_bytes() == (origin / "config.json").read_bytes()
    assert "model.npz" in saved.notes[0]
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(load_file(origin / "model.safetensors"))
    with pytest.raises(InputError, match="exists"):
        destined(origin, subject, tmp_path / "out")
    again = destined(origin, subject, tmp_path / "out", overwrite=True)
    save(again, subject, altered(subject, 0.1), probes(subject), NOTE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    (tmp_path / "thesis").mkdir()
    with pytest.raises(InputError, match="not of a model"):
        destined(origin, subject, tmp_path / "thesis", overwrite=True)
    with pytest.raises(InputError, match="own folder"):
        destined(origin, subject, origin / "repaired")


def test_a_factory_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "shop.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))\n")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    save_file(net.state_dict(), tmp_path / "in.safetensors")
    options = ModelOptions(size=(8, 8))
    subject = load_model(tmp_path / "in.safetensors", architecture="shop:make", options=options)
    round_trip(tmp_path / "in.safetensors", tmp_path / "out.safetensors", subject, architecture="shop:make",
               options=options)
    assert set(load_file(tmp_path / "out.safetensors")) == set(net.state_dict())


def test_torchscript(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).eval()
    net[1].running_mean.normal_()  # untrained, they equal bias and weight, and the exporter keeps one of two equal ones
    net[1].running_var.uniform_(0.5, 2)
    torch.jit.trace(net, torch.rand(1, 3, 8, 8)).save(tmp_path / "in.pt")
    options = ModelOptions(size=(8, 8))
    subject = load_model(tmp_path / "in.pt", options=options)
    for form in (None, "safetensors"):
        with pytest.raises(InputError, match="--format onnx"):
            destined(tmp_path / "in.pt", subject, tmp_path / "out.pt", form=form, options=options)
    _, _, saved = round_trip(tmp_path / "in.pt", tmp_path / "out.onnx", subject, form="onnx", options=options)
    assert "converted" in saved.notes[0]


# ---------------------------------------------------------------- where it goes
@pytest.fixture
def subject() -> Subject:
    return load_model(DEMO)


def test_a_copy_is_byte_for_byte(subject, tmp_path):
    copy(destined(DEMO, subject, tmp_path / "out.onnx"), subject, probes(subject))
    assert (tmp_path / "out.onnx").read_bytes() == DEMO.read_bytes()


def test_nothing_is_overwritten(subject, tmp_path):
    target = tmp_path / "out.onnx"
    target.write_text("my thesis")
    with pytest.raises(InputError, match=r"exists\. .*--overwrite"):
        destined(DEMO, subject, target)
    save(destined(DEMO, subject, target, overwrite=True), subject, altered(subject), probes(subject), NOTE)
    assert load_model(target).classes == subject.classes


def test_made_by_somebody_else_in_the_meantime(subject, tmp_path):
    plan = destined(DEMO, subject, tmp_path / "out.onnx")
    (tmp_path / "out.onnx").write_text("my thesis")
    with pytest.raises(InputError, match="in the meantime"):
        save(plan, subject, altered(subject), probes(subject), NOTE)
    assert (tmp_path / "out.onnx").read_text() == "my thesis"


def test_the_model_itself_is_safe(tmp_path):
    origin = tmp_path / "in.onnx"
    shutil.copy(DEMO, origin)
    (tmp_path / "link.onnx").symlink_to(origin)
    for target in (origin, tmp_path / "link.onnx", tmp_path / "." / "in.onnx"):
        with pytest.raises(InputError, match="would overwrite what is to be repaired"):
            destined(origin, load_model(origin), target, overwrite=True)


@pytest.mark.parametrize(("target", "says"), [
    ("", "--out is ''"), ("missing/out.onnx", "does not exist"), ("a\0b", "--out is"), (".", "no regular file")])
def test_places_that_cannot_be(target, says, subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        destined(DEMO, subject, target)


def test_unknown_format(subject, tmp_path):
    for form, says in (("gguf", "It is onnx or safetensors"), ("safetensors", "without the network")):
        with pytest.raises(InputError, match=says):
            destined(DEMO, subject, tmp_path / "out", form=form)


def test_folder_that_may_not_be_written(subject, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(saving.tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)\. Name another place"):
        destined(DEMO, subject, tmp_path / "out.onnx")


def test_full_disk(subject, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"only 1000 bytes are free there\. .*make room"):
        destined(DEMO, subject, tmp_path / "out.onnx")


def test_disk_that_fills_up_while_writing(subject, tmp_path, monkeypatch):
    plan = destined(DEMO, subject, tmp_path / "out.onnx", overwrite=True)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=r"the disk is full\)\. Make room"):
        save(plan, subject, altered(subject), probes(subject), NOTE)
    assert not list(tmp_path.iterdir()), "half a file was left"


def test_what_answers_otherwise_is_not_written(subject, tmp_path, monkeypatch):
    plan = destined(DEMO, subject, tmp_path / "out.onnx")
    wrong = altered(subject, 0.5)
    monkeypatch.setattr(saving, "_graph", lambda p, s, m, part, note: part.write_bytes(DEMO.read_bytes()) and ())
    with pytest.raises(InputError, match="answers otherwise"):
        save(plan, subject, wrong, probes(subject), NOTE)
    assert not list(tmp_path.iterdir())
    save(replace(plan), subject, subject.copy(), probes(subject), NOTE)
