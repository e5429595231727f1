"""Sequences in ONNX graphs, against onnxruntime where it can say, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from laocoon.core.errors import InputError
from laocoon.files.onnx_build import Builder

X = np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32")


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """From `x` to `y`; i0, i1, i2, i-1 and sizes are constants."""
    constants = [numpy_helper.from_array(np.asarray(value, dtype=np.int64), name) for name, value in
                 (("i0", 0), ("i1", 1), ("i2", 2), ("i-1", -1), ("i9", 9), ("two", 2), ("sizes", [1, 3, 2]))]
    graph = helper.make_graph(list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 6, 4))],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def ours(made: onnx.ModelProto) -> np.ndarray:
    built = Builder(made.graph, 17, {}, ("x",)).build().eval()
    pixels = torch.from_numpy(X).requires_grad_()
    got = built(pixels)
    got = got[0] if isinstance(got, tuple) else got
    if got.is_floating_point():
        assert torch.autograd.grad(got.sum(), pixels, allow_unused=True)[0] is not None
    return got.detach().numpy()


RELU, TANH = node("Relu", "x", "a"), node("Tanh", "x", "b")
GRAPHS = {
    "a list joined": (RELU, TANH, node("SequenceConstruct", "x a b", "s"), node("ConcatFromSequence", "s", "y", axis=1)),
    "stacked": (RELU, node("SequenceConstruct", "x a", "s"), node("ConcatFromSequence", "s", "y", axis=-1, new_axis=1)),
    "grown from nothing": (RELU, node("SequenceEmpty", "", "e"), node("SequenceInsert", "e x", "s"),
                           node("SequenceInsert", "s a i0", "t"), node("ConcatFromSequence", "t", "y", axis=2)),
    "one taken out": (RELU, TANH, node("SequenceConstruct", "x a b", "s"), node("SequenceErase", "s i1", "t"),
                      node("ConcatFromSequence", "t", "y", axis=1)),
    "the last": (RELU, TANH, node("SequenceConstruct", "a b", "s"), node("SequenceAt", "s i-1", "y")),
    "counted": (RELU, node("SequenceConstruct", "x a", "s"), node("SequenceLength", "s", "n"),
                node("Cast", "n", "f", to=TensorProto.FLOAT), node("Mul", "x f", "y")),
    "split in sizes": (node("SplitToSequence", "x sizes", "s", axis=1), node("SequenceAt", "s i1", "y")),
    "split in equal parts": (node("SplitToSequence", "x two", "s", axis=1), node("SequenceAt", "s i2", "y")),
    "split in ones": (node("SplitToSequence", "x", "s", axis=1, keepdims=0), node("SequenceAt", "s i2", "y")),
    "split in kept ones": (node("SplitToSequence", "x", "s", axis=-1), node("SequenceAt", "s i1", "y")),
    "split and joined": (node("SplitToSequence", "x two", "s", axis=1), node("ConcatFromSequence", "s", "c", axis=1),
                         node("Relu", "c", "y")),
    "copied": (RELU, node("SequenceConstruct", "x a", "s"), node("Identity", "s", "t"), node("SequenceAt", "t i1", "y")),
}


@pytest.mark.parametrize("name", list(GRAPHS))
def test_as_onnxruntime_says(name: str) -> None:
    made = model(*GRAPHS[name])
    wanted = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": X})
    got = ours(made)
    assert got.shape == wanted[0].shape
    np.testing.assert_allclose(got, wanted[0], atol=1e-6)


@pytest.mark.parametrize(("nodes", "said"), [
    ((node("SplitToSequence", "x two", "s", axis=1), node("SequenceLength", "s", "n"),
      node("Cast", "n", "y", to=TensorProto.FLOAT)), "length depends on data"),
    ((node("ArgMax", "x", "k", axis=0), node("SequenceConstruct", "x", "s"), node("SequenceAt", "s k", "y")),
     "length depends on data"),
    ((node("SequenceConstruct", "x", "s"), node("SequenceAt", "s i9", "y")), "place 9 of a sequence of 1"),
    ((node("SequenceEmpty", "", "s"), node("ConcatFromSequence", "s", "y", axis=0)), "joins no tensor"),
    ((node("SequenceConstruct", "x", "y"),), "writes 'y'")])
def test_what_cannot_be_resolved_is_refused(nodes: tuple[onnx.NodeProto, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ours(model(*nodes))
