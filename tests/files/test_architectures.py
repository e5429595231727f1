"""Weights beside the name of a library's network, and that network as TorchScript: as the library answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from laocoon import load_model
from laocoon.core.errors import InputError
from laocoon.files.keras_config import refused
from laocoon.modalities.raw import ModelOptions

torchvision = pytest.importorskip("torchvision")
SIZE = ModelOptions(size=(32, 32), mean=(0.0,), std=(1.0,), input_range="0-1")


def network(name: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return module.eval()


def weights(module: nn.Module, folder: Path) -> Path:
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / "m.safetensors")
    return folder / "m.safetensors"


def batch() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "resnet18"])
def test_heads_have_as_many_classes_as_the_weights(name: str, tmp_path: Path) -> None:
    """Each family calls its head differently, and squeeze-and-excitation has matrices called fc, too."""
    module = network(name, 7)
    subject = load_model(weights(module, tmp_path), architecture=f"torchvision:{name}", options=SIZE)
    assert subject.classes == 7
    with torch.no_grad():
        assert torch.allclose(subject.outputs(batch()).logits, module(batch()), atol=1e-5)


def test_a_thousand_classes_are_taken_for_published_ones(tmp_path: Path) -> None:
    module = network("squeezenet1_1", 1000)
    subject = load_model(weights(module, tmp_path), architecture="torchvision:squeezenet1_1")
    assert subject.input_shape == (3, 224, 224)
    x = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        assert torch.allclose(subject.outputs(x).logits, module((x - mean) / std), atol=1e-4)


def test_the_size_of_other_classes_pictures_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="any size"):
        load_model(weights(network("squeezenet1_1", 7), tmp_path), architecture="torchvision:squeezenet1_1")


def test_layers_that_ask_for_a_version_of_their_weights_get_theirs(tmp_path: Path) -> None:
    module = network("mnasnet0_5", 7)
    subject = load_model(weights(module, tmp_path), architecture="torchvision:mnasnet0_5",
                         options=ModelOptions(size=(64, 64), mean=(0.0,), std=(1.0,), input_range="0-1"))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(subject.outputs(x).logits, module(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_script_that_names_the_library_s_classes_is_no_foreign_code(tmp_path: Path) -> None:
    """`__torch__.torchvision.ops.misc.Conv2dNormActivation` is a class; `ops.misc.something(…)` would be a call."""
    module = network("mobilenet_v3_small", 7)
    torch.jit.trace(module, batch()).save(str(tmp_path / "m.pt"))
    subject = load_model(tmp_path / "m.pt", options=SIZE)
    with torch.no_grad():
        assert torch.allclose(subject.outputs(batch()).logits, module(batch()), atol=1e-4)


class Attending(nn.Module):
    """A small transformer of PyTorch's own layers."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=first, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.first, self.head = first, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        x = self.layers(x.permute(0, 2, 1) if self.first else x.permute(2, 0, 1))
        return self.head(x.mean(1 if self.first else 0))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [True, False])
def test_attention_in_a_script(first: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attending(first=first).eval()
    torch.jit.trace(module, batch(), check_trace=False).save(str(tmp_path / "m.pt"))
    subject = load_model(tmp_path / "m.pt", options=SIZE)
    with torch.no_grad():
        assert torch.allclose(subject.outputs(batch()).logits, module(batch()), atol=1e-4)


class Fused(nn.Module):
    """Traced without gradients, each way of attention is one operator of torch's own."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.patches, self.head, self.way = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 5), way
        self.alone = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=way == "norm first",
                                                activation="gelu" if way == "norm first" else "relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        mask = torch.zeros(16, 16).index_fill(1, torch.arange(4), float("-inf")) if self.way == "mask" else None
        x = self.layer(x, mask) if self.way != "alone" else self.alone(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["alone", "norm first", "norm last", "mask"])
def test_attention_traced_without_gradients(way: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Fused(way).eval()
    with torch.no_grad():
        script, wanted = torch.jit.trace(module, batch()), module(batch())
    fused = {"alone": "_native_multi_head_attention", "mask": "_transformer_encoder_layer_fwd"}
    assert fused.get(way, "_transformer_encoder_layer_fwd") in str(script.inlined_graph)
    script.save(str(tmp_path / "m.pt"))
    if way == "mask":
        with pytest.raises(InputError, match="with a mask"):
            load_model(tmp_path / "m.pt", options=SIZE)
        return
    subject = load_model(tmp_path / "m.pt", options=SIZE)
    x = batch().requires_grad_()
    got = subject.outputs(x).logits
    assert torch.allclose(got, wanted, atol=1e-5)
    assert float(torch.autograd.grad(got.sum(), x)[0].abs().max()) > 0


class OfItsInput(nn.Module):
    """A normalisation whose shape is read off the input, as Keras writes it."""

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.first, self.head, self.scaled = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 5), scaled
        self.scale, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).mean((2, 3))
        own = (self.scale, self.shift) if self.scaled else ()
        return self.head(nn.functional.layer_norm(x, x.shape[-1:], *own))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scaled", [True, False])
def test_a_normalisation_whose_shape_is_read_off_its_input(scaled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OfItsInput(scaled=scaled).eval()
    torch.jit.trace(module, batch()).save(str(tmp_path / "m.pt"))
    subject = load_model(tmp_path / "m.pt", options=SIZE)
    with torch.no_grad():
        assert torch.allclose(subject.outputs(batch()).logits, module(batch()), atol=1e-5)


@pytest.mark.parametrize(("module", "name", "allowed"), [
    ("keras.src.applications.convnext", "LayerScale", True), ("keras.src.applications.convnext", "subprocess", False),
    ("vendor.convnext", "LayerScale", False), ("keras.src.applications", "LayerScale", False)])
def test_layers_of_keras_s_own_networks_where_they_are(module: str, name: str, allowed: bool) -> None:
    config = {"module": module, "class_name": name, "config": {}, "registered_name": name}
    assert (refused(config) == []) is allowed


SMALL_NEXT = """
import sys, keras, numpy
from keras.src.applications.convnext import LayerScale
inside = keras.Input((32, 32, 3))
x = keras.layers.Conv2D(8, 8, 8)(inside)
x = x + LayerScale(0.5, 8)(keras.layers.LayerNormalization()(x))
x = keras.layers.LayerNormalization()(keras.layers.GlobalAveragePooling2D()(x))
model = keras.Model(inside, keras.layers.Dense(4)(x))
model.save(sys.argv[1])
pictures = numpy.random.default_rng(0).random((3, 32, 32, 3), dtype="float32")
numpy.savez(sys.argv[2], x=pictures, y=keras.ops.convert_to_numpy(model(pictures)))
"""


@pytest.mark.skipif(find_spec("keras") is None, reason="needs keras")
def test_a_keras_network_with_layer_scale(tmp_path: Path) -> None:
    file, answers = tmp_path / "m.keras", tmp_path / "answers.npz"
    subprocess.run([sys.executable, "-c", SMALL_NEXT, str(file), str(answers)], check=True, capture_output=True,
                   env={**os.environ, "KERAS_BACKEND": "torch"})
    subject = load_model(file, options=SIZE)
    with np.load(answers) as given, torch.no_grad():
        x = torch.from_numpy(given["x"]).permute(0, 3, 1, 2)
        assert torch.allclose(subject.outputs(x).logits, torch.from_numpy(given["y"]), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [1, (1, 3), (2, 2), (3, 5), (7, 7)])
@pytest.mark.parametrize("way", ["trace", "script"])
def test_adaptive_means_of_any_size(way: str, size: int | tuple[int, int], tmp_path: Path) -> None:
    """Of 4 × 4 places: whole windows, overlapping ones, more windows than places."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(size), nn.Flatten(), nn.LazyLinear(5)).eval()
    module(batch())
    with torch.no_grad():
        written = torch.jit.script(module) if way == "script" else torch.jit.trace(module, batch())
    written.save(str(tmp_path / "m.pt"))
    subject = load_model(tmp_path / "m.pt", options=SIZE)
    with torch.no_grad():
        assert torch.allclose(subject.outputs(batch()).logits, module(batch()), atol=1e-5)


@pytest.mark.parametrize("kind", ["LevitForImageClassification", "LevitForImageClassificationWithTeacher", 7])
def test_a_model_type_with_several_classes_is_the_one_that_its_folder_names(kind: str | int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LevitConfig(image_size=32, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2],
                                      depths=[1, 1, 1], key_dim=[4, 4, 4], num_labels=5)
    torch.manual_seed(0)
    named = kind if isinstance(kind, str) else "LevitForImageClassification"
    module = getattr(transformers, named)(config).eval()
    module.save_pretrained(tmp_path / "m")
    if isinstance(kind, int):  # no name at all: the first of its classes
        told = json.loads((tmp_path / "m" / "config.json").read_text())
        (tmp_path / "m" / "config.json").write_text(json.dumps({**told, "architectures": kind}))
    subject = load_model(tmp_path / "m", options=SIZE)
    with torch.no_grad():
        assert torch.allclose(subject.outputs(batch()).logits, module(batch()).logits, atol=1e-5)


class OfOne(nn.Module):
    """Takes one picture at a time, and says so in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x)).view(1, -1))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
def test_a_script_of_one_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OfOne().eval()
    torch.jit.trace(module, batch()[:1]).save(str(tmp_path / "m.pt"))
    subject = load_model(tmp_path / "m.pt", options=SIZE)
    with torch.no_grad():
        assert torch.allclose(subject.outputs(batch()).logits, torch.cat([module(x[None]) for x in batch()]), atol=1e-5)
