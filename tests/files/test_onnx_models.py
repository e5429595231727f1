"""Whole ONNX models through load_model: what goes wrong in the first hour, handled."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.graph import ParsedGraph
from laocoon.files.onnx_graph import GraphModule
from laocoon.files.open import load_model
from laocoon.modalities.image import reinterpreted
from laocoon.modalities.raw import ModelOptions


class Small(nn.Module):
    """Convolution, batch norm, a residual sum, a head; `finish` stands for whatever people put at the end."""

    def __init__(self, classes=4, channels=3, finish=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_mean.normal_()
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6 * 16, classes)
        self.finish = finish

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = x + self.inner(x)
        x = self.head(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return x if self.finish is None else self.finish(x)


def export(module, path, shape=(2, 3, 8, 8), *, free=True, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.rand(shape),), str(path), dynamo=False, input_names=["input"],
                          output_names=settings.pop("outputs", ["output"]), do_constant_folding=False,
                          training=torch.onnx.TrainingMode.PRESERVE,
                          dynamic_axes={"input": {0: "n"}} if free else None, **settings)
    return path


def runtime(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_layers_weights_and_outputs(tmp_path):
    network = Small().eval()
    subject = load_model(export(network, tmp_path / "m.onnx"))
    x = torch.rand(5, 3, 8, 8)
    assert torch.allclose(subject.outputs(x).logits, network(x), atol=1e-5)
    assert subject.input_shape == (3, 8, 8) and subject.classes == 4
    keys = {k.removeprefix("core."): v for k, v in subject.module.state_dict().items()}
    for name, value in network.state_dict().items():
        assert torch.equal(keys[name], value), name
    kinds = {type(m) for m in subject.module.modules()}
    assert {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU} <= kinds
    assert subject.layers()[0] == "core.conv" and subject.layers()[-1] == "core.head"
    assert torch.allclose(subject.features(x, "core.norm"), network.norm(network.conv(x)), atol=1e-5)
    assert {Capability.GRADIENT, Capability.FEATURES, Capability.WEIGHTS, Capability.GRAPH} <= subject.capabilities
    assert isinstance(subject.graph, ParsedGraph) and subject.graph.input == "input"
    assert len(subject.provenance.sha256) == 64 and subject.provenance.path == "m.onnx"
    assert ("core.conv", "core.norm") in {(f"core.{a}", f"core.{b}") for a, b in subject.module.core.links()}


def test_gradients_agree_with_the_original(tmp_path):
    network = Small().eval()
    subject = load_model(export(network, tmp_path / "m.onnx"))
    a, b = (torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    subject.outputs(a).logits.square().sum().backward()
    network(b).square().sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-5)


def test_a_copy_is_independent_and_a_replaced_layer_takes_effect(tmp_path):
    subject = load_model(export(Small(), tmp_path / "m.onnx"))
    x, before = torch.rand(2, 3, 8, 8), subject.fingerprint()
    other = subject.copy()
    with torch.no_grad():
        other.module.get_submodule("core.head").weight.zero_()
    assert not torch.equal(other.outputs(x).logits, subject.outputs(x).logits)
    other.module.get_submodule("core").norm = nn.Identity()
    assert not torch.equal(other.features(x, "core.norm"), subject.features(x, "core.norm"))
    assert subject.fingerprint() == before


@pytest.mark.parametrize(("finish", "logits"), [
    (lambda z: z.softmax(1), lambda z: z), (lambda z: z.log_softmax(1), lambda z: z), (torch.sigmoid, lambda z: z),
    (lambda z: (z.exp() / z.exp().sum(1, keepdim=True)), lambda z: z.log_softmax(1)),
    (lambda z: z[:, :, None, None], lambda z: z),
    (lambda z: z.argmax(1), lambda z: z),
], ids=["softmax", "log-softmax", "sigmoid", "softmax spelled out", "feature map", "labels only"])
def test_logits_are_recovered(tmp_path, finish, logits):
    network = Small(finish=finish)
    subject = load_model(export(network, tmp_path / "m.onnx"))
    network.finish = None
    x = torch.rand(3, 3, 8, 8)
    assert torch.allclose(subject.outputs(x).logits, logits(network.eval()(x)), atol=1e-4)


@pytest.mark.parametrize(("finish", "wanted"), [
    (torch.relu, lambda z: z.relu()), (lambda z: torch.relu(z)[:, :, None, None].mean((2, 3)), lambda z: z.relu()),
    (lambda z: 0.5 * (torch.tanh(z / 2) + 1), lambda z: z), (lambda z: 1 / (1 + torch.exp(-z)), lambda z: z),
], ids=["relu", "averaged", "sigmoid of tanh", "sigmoid spelled out"])
def test_small_numbers_are_probabilities_only_where_something_makes_them_so(tmp_path, finish, wanted):
    """Nothing bounds a ReLU: that untrained or shy networks answer with less than one is no sigmoid."""
    network = Small(finish=finish)
    subject = load_model(export(network, tmp_path / "m.onnx"))
    x = torch.rand(3, 3, 8, 8)
    assert network.eval()(x).min() >= 0 and network(x).max() < 1
    network.finish = None
    assert torch.allclose(subject.outputs(x).logits, wanted(network(x)), atol=1e-3)


@pytest.mark.parametrize("finish", [None, torch.sigmoid], ids=["one logit", "one probability"])
def test_binary(tmp_path, finish):
    network = Small(classes=1, finish=finish)
    subject = load_model(export(network, tmp_path / "m.onnx"))
    network.finish = None
    x = torch.rand(3, 3, 8, 8)
    assert subject.classes == 2
    assert torch.allclose(subject.outputs(x).logits.softmax(1)[:, 1:], network.eval()(x).sigmoid(), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_batch_is_made_free(tmp_path, batch):
    class Reshaped(Small):
        def forward(self, x):
            x = torch.relu(self.norm(self.conv(x)))
            x = nn.functional.adaptive_avg_pool2d(x, 4).reshape(batch, 6, 16)
            return self.head(x.transpose(1, 2).reshape(batch, 96))

    network = Reshaped().eval()
    subject = load_model(export(network, tmp_path / "m.onnx", (batch, 3, 8, 8), free=False))
    assert any("made free" in n for n in subject.provenance.notes)
    x = torch.rand(4, 3, 8, 8)
    expected = torch.cat([runtime(tmp_path / "m.onnx", p) for p in x.split(batch)])
    assert torch.allclose(subject.outputs(x).logits, expected, atol=1e-5)
    assert Capability.FEATURES in subject.capabilities


def test_class_token_with_fixed_batch(tmp_path):
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.token, self.embed, self.head = nn.Parameter(torch.rand(1, 1, 8)), nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)
            return self.head(nn.functional.scaled_dot_product_attention(x, x, x)[:, 0])

    network = Token().eval()
    subject = load_model(export(network, tmp_path / "m.onnx", (1, 3, 8, 8), free=False))
    x = torch.rand(3, 3, 8, 8)
    assert torch.allclose(subject.outputs(x).logits, network(x), atol=1e-5)


def test_batch_that_cannot_be_freed_is_respected(tmp_path):
    class Mixed(Small):
        def forward(self, x):  # statistics over the batch of one: only right sample by sample
            return super().forward(x - x.mean())

    network = Mixed().eval()
    subject = load_model(export(network, tmp_path / "m.onnx", (1, 3, 8, 8), free=False))
    x = torch.rand(3, 3, 8, 8)
    assert torch.allclose(subject.outputs(x).logits, torch.cat([network(p) for p in x.split(1)]), atol=1e-5)
    assert Capability.FEATURES not in subject.capabilities


def test_nhwc_raw_pixels_and_bgr(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.permute(0, 3, 1, 2) / 255.0)

    network = Small().eval()
    path = export(Wrapped(network), tmp_path / "m.onnx", (2, 8, 8, 3))
    x = torch.rand(3, 3, 8, 8)
    subject = load_model(path)
    assert subject.input_shape == (3, 8, 8)
    assert torch.allclose(subject.outputs(x).logits, network(x), atol=1e-4)
    flipped = load_model(path, options=ModelOptions(channels="BGR", layout="NHWC"))
    assert torch.allclose(flipped.outputs(x).logits, network(x.flip(1)), atol=1e-4)


def test_normalisation_and_reinterpretation(tmp_path):
    network = Small().eval()
    path = export(network, tmp_path / "m.onnx")
    x, mean, std = torch.rand(3, 3, 8, 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    m, s = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (mean, std))
    subject = load_model(path, options=ModelOptions(mean=mean, std=std))
    assert torch.allclose(subject.outputs(x).logits, network((x - m) / s), atol=1e-4)
    other = reinterpreted(subject, ModelOptions(input_range="-1-1", mean=(0.0,), std=(1.0,)))
    assert torch.allclose(other.outputs(x).logits, network(2 * x - 1), atol=1e-4)
    assert not any(n.startswith("assumed: pixels") for n in other.provenance.notes)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(tmp_path, channels):
    subject = load_model(export(Small(channels=channels), tmp_path / "m.onnx", (2, channels, 8, 8)))
    assert subject.input_shape == (channels, 8, 8)


def test_flat_and_grey_inputs(tmp_path):
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 3))
    assert load_model(export(flat, tmp_path / "flat.onnx", (2, 784))).input_shape == (1, 28, 28)
    grey = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert load_model(export(grey, tmp_path / "grey.onnx", (2, 8, 8))).input_shape == (1, 8, 8)


def test_several_outputs(tmp_path):
    class Two(Small):
        def forward(self, x):
            z = super().forward(x)
            return z.flatten(1)[:, :2] * 0 + 1, z, self.conv(x)

    network = Two().eval()
    path = export(network, tmp_path / "m.onnx", outputs=["aux", "logits", "maps"])
    x = torch.rand(2, 3, 8, 8)
    subject = load_model(path)
    assert torch.allclose(subject.outputs(x).logits, network(x)[1], atol=1e-5)
    assert load_model(path, options=ModelOptions(output="aux")).classes == 2
    assert load_model(path, options=ModelOptions(output=1)).classes == 4
    with pytest.raises(InputError, match="no output 'nowhere'"):
        load_model(path, options=ModelOptions(output="nowhere"))
    with pytest.raises(InputError, match="holds one score"):
        load_model(path, options=ModelOptions(output="maps"))


def test_half_precision(tmp_path):
    network = Small()
    subject = load_model(_half(export(network, tmp_path / "m.onnx")))
    x = torch.rand(3, 3, 8, 8)
    assert torch.allclose(subject.outputs(x).logits, network.eval()(x), atol=2e-2)
    assert all(p.dtype is torch.float32 for p in subject.module.parameters())
    assert any("half-precision" in n for n in subject.provenance.notes)


def _half(path):
    """The same file with float16 weights and a cast on the way in."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float16"), tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    return path


def test_quantise_dequantise_pairs(tmp_path):
    """A QDQ model as onnxruntime's static quantisation writes it: int8 weights, gradients straight through."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-100, 100, (4, 3, 3, 3)).astype("int8")
    matrix = rng.integers(-100, 100, (4 * 36, 5)).astype("int8")
    constants = {"xs": np.float32(1 / 255), "xz": np.uint8(0), "w": weight, "ws": np.full(4, 0.01, "float32"),
                 "wz": np.zeros(4, "int8"), "m": matrix, "ms": np.float32(0.02), "mz": np.int8(0),
                 "hs": np.float32(0.05), "hz": np.uint8(0)}
    node = helper.make_node
    nodes = [node("QuantizeLinear", ["input", "xs", "xz"], ["a"]), node("DequantizeLinear", ["a", "xs", "xz"], ["b"]),
             node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0), node("Conv", ["b", "wf"], ["c"]),
             node("Relu", ["c"], ["d"]), node("QuantizeLinear", ["d", "hs", "hz"], ["e"]),
             node("DequantizeLinear", ["e", "hs", "hz"], ["f"]), node("Flatten", ["f"], ["g"]),
             node("DequantizeLinear", ["m", "ms", "mz"], ["mf"]), node("MatMul", ["g", "mf"], ["output"])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 5])],
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])
    path = tmp_path / "q.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    subject = load_model(path)
    x = (torch.randint(0, 256, (4, 3, 8, 8)) / 255).requires_grad_()
    got = subject.outputs(x).logits
    # a value on the edge between two steps may round either way: one step is worth up to 0.1 in the output
    assert torch.allclose(got, runtime(path, x.detach()), atol=0.25)
    got.square().sum().backward()
    assert float((x.grad.abs() > 0).float().mean()) > 0.5
    assert any("quantised" in n for n in subject.provenance.notes)
    assert {type(m).__name__ for m in subject.module.modules()} >= {"Conv2d", "Linear"}


def test_if_runs_the_branch_that_its_condition_selects(tmp_path):
    """A branch on the data of one sample (an architectural backdoor's shape) is taken sample by sample."""
    def branch(name, factor):
        return helper.make_graph([helper.make_node("Mul", ["z", factor], [name])], name, [],
                                 [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(12, 3)).astype("float32"), "one": np.float32(1), "minus": np.float32(-1),
                 "half": np.float32(0.5)}
    nodes = [helper.make_node("Flatten", ["input"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["z"]),
             helper.make_node("ReduceMax", ["input"], ["top"], keepdims=0),
             helper.make_node("Greater", ["top", "half"], ["c"]),
             helper.make_node("If", ["c"], ["output"], then_branch=branch("t", "minus"), else_branch=branch("e", "one"))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 2, 2])],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3])],
                              [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()])
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    subject = load_model(path)
    x = torch.rand(2, 3, 2, 2) * torch.tensor([0.4, 1.0]).reshape(2, 1, 1, 1)
    x[1, 0, 0, 0] = 0.9
    plain = x.flatten(1) @ torch.from_numpy(constants["w"])
    assert torch.allclose(subject.outputs(x).logits, plain * torch.tensor([[1.0], [-1.0]]), atol=1e-6)


def test_shape_values_are_worked_out_once(tmp_path):
    """Reshape targets that the graph computes from the input's shape become constants; any batch still works."""
    class Dynamic(Small):
        def forward(self, x):
            n, _, h, w = x.shape
            x = torch.relu(self.norm(self.conv(x))).reshape(n, 6, h * w)
            return self.head(x[:, :, ::4].reshape(n, -1))

    network = Dynamic().eval()
    subject = load_model(export(network, tmp_path / "m.onnx"))
    core = subject.module.core
    assert isinstance(core, GraphModule) and not any(s.host for s in core.steps)
    for n in (1, 5):
        x = torch.rand(n, 3, 8, 8)
        assert torch.allclose(subject.outputs(x).logits, network(x), atol=1e-5)


def test_graph_can_be_traced_by_fx_and_is_not_changed_by_it(tmp_path):
    subject = load_model(export(Small(), tmp_path / "m.onnx"))
    x = torch.rand(2, 3, 8, 8)
    traced = torch.fx.symbolic_trace(copy.deepcopy(subject.module))
    assert torch.allclose(traced(x), subject.outputs(x).logits, atol=1e-5)
    assert sum(n.op == "call_module" for n in traced.graph.nodes) >= 5


def test_size_unknown_is_asked_for(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    path = tmp_path / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), (torch.rand(1, 3, 16, 16),), str(path), dynamo=False, input_names=["input"],
                          dynamic_axes={"input": {0: "n", 2: "h", 3: "w"}})
    with pytest.raises(InputError, match="any size"):
        load_model(path)
    assert load_model(path, options=ModelOptions(size=(16, 16))).input_shape == (3, 16, 16)


def test_external_data_in_the_folder_is_read(tmp_path):
    network = Small().eval()
    model = onnx.load(export(network, tmp_path / "m.onnx"))
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(load_model(tmp_path / "out.onnx").outputs(x).logits, network(x), atol=1e-5)


@pytest.mark.parametrize("fault", [
    {"input_range": "0-2"}, {"layout": "HWCN"}, {"std": (0.0,)}, {"mean": (1.0, 2.0)}, {"size": (0, 3)}, {"activation": "tanh"},
])
def test_options_are_checked(fault):
    with pytest.raises(InputError, match=next(iter(fault))):
        ModelOptions(**fault)


def test_options_that_disagree_with_the_file(tmp_path):
    path = export(Small(), tmp_path / "m.onnx")
    for options in (ModelOptions(classes=7), ModelOptions(size=(9, 9)), ModelOptions(image_channels=1)):
        with pytest.raises(InputError):
            load_model(path, options=options)


def test_not_a_number_in_the_weights(tmp_path):
    network = Small()
    with torch.no_grad():
        network.head.weight[0, 0] = float("nan")
    with pytest.raises(BrokenFile, match=r"head\.weight.*not finite"):
        load_model(export(network, tmp_path / "m.onnx"))


def test_buffer_of_bytes_is_enough(tmp_path):
    """The child of the sandbox hands over bytes: no path is needed to open them."""
    from laocoon.files.onnx import open_bytes

    buffer = io.BytesIO(export(Small(), tmp_path / "m.onnx").read_bytes())
    assert open_bytes(buffer.getvalue(), "m", None, ModelOptions(), "onnx").input_shape == (3, 8, 8)
