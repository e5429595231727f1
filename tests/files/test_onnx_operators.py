"""Every operator against onnxruntime, on small graphs; gradients where there is one to speak of."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from laocoon.core.errors import InputError
from laocoon.files.onnx_build import Builder
from laocoon.files.onnx_operators import OPERATORS

RNG = np.random.default_rng(0)
X4 = RNG.normal(size=(2, 3, 8, 9)).astype("float32")
X2 = RNG.normal(size=(4, 6)).astype("float32")
POSITIVE = np.abs(X2) + 0.1
UNIT = np.tanh(X2) * 0.9
I64 = np.int64


def case(op, x, *constants, opset=18, outputs=1, domain="", tolerance=1e-4, **attributes):
    name = f"{op}-{opset}-{'-'.join(f'{k}={v}' for k, v in attributes.items())}-{len(constants)}"
    return pytest.param(op, x, constants, attributes, opset, outputs, domain, tolerance, id=name[:90])


def f32(*shape):
    return RNG.normal(size=shape).astype("float32")


def i64(*values):
    return np.asarray(values, dtype=np.int64)


CASES = [
    *(case(op, X2) for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Erf", "Floor", "Ceil", "Round", "Sign",
                              "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Softplus", "Softsign", "Mish",
                              "Identity", "Elu", "Celu", "Selu", "LeakyRelu", "HardSigmoid", "HardSwish", "Reciprocal")),
    *(case(op, POSITIVE) for op in ("Log", "Sqrt")),
    *(case(op, UNIT) for op in ("Asin", "Acos", "Atanh")),
    case("Acosh", POSITIVE + 1),
    case("Gelu", X2, opset=20), case("Gelu", X2, opset=20, approximate="tanh"),
    case("ThresholdedRelu", X2, alpha=0.5), case("Shrink", X2, lambd=0.5, bias=0.1),
    case("PRelu", X4, f32(3, 1, 1)),
    case("LeakyRelu", X2, alpha=0.2), case("Elu", X2, alpha=0.5),
    *(case(op, X2, f32(6)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")),
    case("Add", X2, np.float32(2)), case("Mul", X2, f32(1)),
    case("Pow", POSITIVE, np.float32(2.5)), case("Mod", X2, f32(6), fmod=1),
    case("Clip", X2, np.float32(-0.5), np.float32(0.5)), case("Clip", X2, opset=7, min=-0.3, max=0.4),
    case("Softmax", X4, axis=1), case("Softmax", X4, axis=2, opset=11), case("LogSoftmax", X2, axis=-1),
    case("Hardmax", X2, axis=-1),
    case("Cast", X2, to=TensorProto.DOUBLE), case("Cast", X2 * 3, to=TensorProto.INT64),
    case("Cast", X2, to=TensorProto.BOOL),
    *(case(f"Reduce{r}", POSITIVE, opset=13 if r != "Sum" else 11, axes=[1], keepdims=k)
      for r, k in (("Sum", 0), ("Mean", 1), ("Max", 0), ("Min", 1), ("Prod", 0), ("L1", 1), ("L2", 0), ("SumSquare", 1),
                   ("LogSum", 0), ("LogSumExp", 1))),
    case("ReduceMean", X4, i64(2, 3)), case("ReduceSum", X4, i64(-1), keepdims=0), case("ReduceMax", X4),
    case("ArgMax", X2, axis=1), case("ArgMin", X2, axis=0, keepdims=0), case("ArgMax", X2, axis=1, select_last_index=1),
    case("CumSum", X2, i64(1)), case("CumSum", X2, i64(1), reverse=1, exclusive=1),
    case("TopK", X2, i64(3), outputs=2), case("TopK", X2, i64(2), outputs=2, largest=0, axis=0),
    case("Einsum", X2, f32(6, 3), equation="ij,jk->ik"),
    case("MatMul", X2, f32(6, 5)), case("MatMul", X4, f32(9, 5)), case("Gemm", X2, f32(5, 6), f32(5), transB=1),
    case("Gemm", X2, f32(6, 5), f32(1, 5), alpha=0.5, beta=2.0), case("Gemm", X2, f32(4, 5), transA=1),
    case("Reshape", X4, i64(0, -1, 3)), case("Reshape", X4, i64(-1, 8)), case("Flatten", X4), case("Flatten", X4, axis=2),
    case("Transpose", X4, perm=[0, 2, 3, 1]), case("Transpose", X2),
    case("Squeeze", X2[:1], i64(0)), case("Squeeze", X2[:1]), case("Unsqueeze", X2, i64(0, -1)),
    case("Unsqueeze", X2, opset=11, axes=[1]), case("Expand", X2[:, :1], i64(2, 4, 6)), case("Tile", X2, i64(2, 3)),
    case("Shape", X4), case("Shape", X4, start=1, end=3), case("Size", X4),
    case("Concat", X2, f32(4, 2), axis=1), case("Split", X2, i64(2, 4), outputs=2, axis=1),
    case("Split", X2, outputs=3, axis=1, opset=11), case("Split", X2, outputs=2, axis=1, num_outputs=2),
    case("Slice", X4, i64(1, -5), i64(8, 100), i64(2, 3), i64(2, 1)), case("Slice", X4, i64(-1), i64(-100), i64(3), i64(-2)),
    case("Slice", X4, i64(6), i64(1), i64(2), i64(-3)), case("Slice", X4, opset=9, starts=[0, 1], ends=[2, 3], axes=[1, 2]),
    case("Gather", X4, i64(0, 2, -1), axis=1), case("Gather", X4, np.asarray(1), axis=2),
    case("Gather", X4, i64(0, 1).reshape(2, 1), axis=3), case("GatherElements", X2, np.zeros((4, 2), I64), axis=1),
    case("GatherND", X2, i64([0, 1], [3, 2])), case("ScatterElements", X2, np.ones((1, 6), I64), f32(1, 6), axis=0),
    case("ScatterND", X2, i64([1], [3]), f32(2, 6)), case("Trilu", X2), case("Trilu", X2, np.asarray(1), upper=0),
    case("EyeLike", X2, k=1), case("NonZero", np.maximum(X2, 0)),
    case("DepthToSpace", f32(1, 8, 3, 4), blocksize=2), case("DepthToSpace", f32(1, 8, 3, 4), blocksize=2, mode="CRD"),
    case("SpaceToDepth", f32(1, 2, 4, 6), blocksize=2),
    case("Pad", X4, i64(0, 0, 1, 2, 0, 0, 3, 0), np.float32(0.5)),
    case("Pad", X4, i64(0, 0, 1, 2, 0, 0, 3, 1), mode="reflect"), case("Pad", X4, i64(0, 0, 1, 2, 0, 0, 3, 1), mode="edge"),
    case("Pad", X4, i64(1, 2), np.float32(0), i64(3)), case("Pad", X4, opset=10, pads=[0, 0, 1, 1, 0, 0, 0, 0], value=1.0),
    case("Where", X2, f32(4, 6), domain="where"),
    *(case(op, X2, f32(6)) for op in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal")),
    case("IsNaN", X2), case("IsInf", X2),
    case("Resize", X4, None, np.asarray([1, 1, 2, 2], "float32"), mode="nearest",
         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    case("Resize", X4, None, np.asarray([1, 1, 2, 2], "float32"), mode="nearest"),
    case("Resize", X4, None, None, i64(2, 3, 11, 5), mode="linear"),
    case("Resize", X4, None, None, i64(2, 3, 11, 5), mode="linear", coordinate_transformation_mode="align_corners"),
    case("Resize", X4, None, np.asarray([1, 1, 1.7, 0.6], "float32"), mode="linear",
         coordinate_transformation_mode="pytorch_half_pixel"),
    case("Resize", X4, None, None, i64(2, 3, 16, 18), mode="cubic"),
    case("Resize", X4, None, np.asarray([1, 1, 2, 2], "float32"), mode="linear",
         coordinate_transformation_mode="asymmetric"),
    case("Upsample", X4, np.asarray([1, 1, 2, 3], "float32"), opset=9, mode="nearest"),
    case("Conv", X4, f32(6, 3, 3, 3), f32(6), pads=[1, 1, 1, 1], strides=[2, 1]),
    case("Conv", X4, f32(6, 1, 3, 3), group=3, pads=[0, 1, 2, 1]), case("Conv", X4, f32(4, 3, 3, 2), dilations=[2, 1]),
    case("Conv", X4, f32(4, 3, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", X4, f32(4, 3, 4, 3), auto_pad="SAME_LOWER"), case("Conv", X4[..., 0], f32(4, 3, 3), pads=[1, 1]),
    case("ConvTranspose", X4, f32(3, 4, 3, 3), f32(4), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]),
    case("ConvTranspose", X4, f32(3, 2, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0]),
    case("MaxPool", X4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool", X4, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1),
    case("MaxPool", X4, kernel_shape=[3, 3], pads=[0, 0, 1, 1]), case("MaxPool", X4, kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    case("AveragePool", X4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("AveragePool", X4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    case("AveragePool", X4, kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    case("AveragePool", X4, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, opset=19),
    case("GlobalAveragePool", X4), case("GlobalMaxPool", X4), case("LpPool", X4, kernel_shape=[2, 2]),
    case("BatchNormalization", X4, f32(3), f32(3), f32(3), np.abs(f32(3)) + 0.5),
    case("BatchNormalization", X2, f32(6), f32(6), f32(6), np.abs(f32(6)) + 0.5),
    case("InstanceNormalization", X4, f32(3), f32(3)), case("LayerNormalization", X2, f32(6), f32(6)),
    case("LayerNormalization", X4, f32(8, 9), axis=2), case("GroupNormalization", f32(2, 4, 3, 3), f32(4), f32(4),
                                                            num_groups=2, opset=21),
    case("LRN", X4, size=3), case("LpNormalization", X2, axis=1), case("MeanVarianceNormalization", X4),
    case("Dropout", X2), case("OneHot", np.asarray([1, 0, 2]), np.asarray([4]), np.asarray([0.0, 1.0], "float32")),
    case("QuantizeLinear", X2, np.float32(0.05), np.uint8(128)), case("QuantizeLinear", X2, np.float32(0.05), np.int8(3)),
    case("DynamicQuantizeLinear", X2, outputs=3), case("CastLike", X2, np.asarray([1], dtype=np.int64)),
    case("QuickGelu", X2, domain="com.microsoft"),
    case("FusedMatMul", X2, f32(5, 6), domain="com.microsoft", transB=1, alpha=0.5),
]


def graph(op, x, constants, attributes, opset, outputs, domain):
    initializers, names = [], ["x"]
    for i, value in enumerate(constants):
        if value is None:
            names.append("")
        else:
            initializers.append(numpy_helper.from_array(np.asarray(value), f"c{i}"))
            names.append(f"c{i}")
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    nodes = [helper.make_node(op, names, [f"y{i}" for i in range(outputs)], domain=domain if "." in domain else "",
                              **attributes)]
    if domain == "where":
        initializers.append(numpy_helper.from_array(np.float32(0), "zero"))
        nodes = [helper.make_node("Greater", ["x", "zero"], ["mask"]), helper.make_node("Where", ["mask", "x", "c0"], ["y0"])]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, x.shape)],
                             [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)], initializers)
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if "." in domain else [])]
    model = helper.make_model(made, opset_imports=opsets, ir_version=9)
    if "." in domain:
        return model
    return onnx.shape_inference.infer_shapes(model)


def run_reference(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize(("op", "x", "constants", "attributes", "opset", "outputs", "domain", "tolerance"), CASES)
def test_operator_agrees_with_onnxruntime(op, x, constants, attributes, opset, outputs, domain, tolerance):
    x = np.asarray(x, dtype=x.dtype)
    model = graph(op, x, constants, attributes, opset, outputs, domain)
    expected = run_reference(model, x)
    module = Builder(model.graph, opset, {}, ("x",)).build().eval()
    got = module(torch.from_numpy(x))
    got = got if isinstance(got, tuple) else (got,)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(ours.detach().numpy().astype("float64"), theirs.astype("float64"),
                                   rtol=tolerance, atol=tolerance)


def test_one_number_of_a_constant_is_known_when_the_graph_is_read():
    """`bias[2]`, as torch.export writes it: a Gather of two constants that leaves a number without axes."""
    bias = f32(5)
    nodes = [helper.make_node("Gather", ["bias", "at"], ["one"]), helper.make_node("Add", ["x", "one"], ["y"])]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 6])],
                             [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
                             [numpy_helper.from_array(bias, "bias"), numpy_helper.from_array(np.asarray(2), "at")])
    got = Builder(made, 18, {}, ("x",)).build()(torch.from_numpy(X2))
    np.testing.assert_allclose(got.numpy(), X2 + bias[2])


def test_the_table_is_covered():
    """What is in the table and not tested here is tested in test_onnx_models, or is on this list."""
    tested = {c.values[0] for c in CASES}
    elsewhere = {n for n in OPERATORS if n.startswith("QLinear")} | {
        "ConvInteger", "MatMulInteger", "QGemm", "DequantizeLinear", "And", "Or", "Xor", "Not", "ConstantOfShape", "Range",
        "Attention", "RMSNormalization", "SimplifiedLayerNormalization", "Swish", "Det", "Compress", "Scatter",
        "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"}
    assert not set(OPERATORS) - tested - elsewhere
    assert len(set(OPERATORS) & tested) >= 110


def quantised(op, inputs, constants, **attributes):
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    domain = attributes.pop("domain", "")
    nodes = [helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]), helper.make_node(op, inputs, ["r"], domain=domain,
                                                                                           **attributes)]
    nodes.append(helper.make_node("DequantizeLinear", ["r", "ys", "yz"], ["y"]) if op.startswith("Q")
                 else helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT))
    return initializers, nodes


@pytest.mark.parametrize(("op", "x", "inputs", "constants", "attributes"), [
    ("QLinearConv", X4, ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"],
     {"w": RNG.integers(-90, 90, (4, 3, 3, 3)).astype("int8"), "ws": np.asarray([0.01, 0.02, 0.03, 0.01], "float32"),
      "wz": np.zeros(4, "int8"), "b": np.asarray([100, -50, 3, 0], "int32")}, {"pads": [1, 1, 1, 1]}),
    ("QLinearMatMul", X2, ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"],
     {"w": RNG.integers(0, 255, (6, 3)).astype("uint8"), "ws": np.float32(0.01), "wz": np.uint8(128)}, {}),
    ("MatMulInteger", X2, ["q", "w", "xz", "wz"],
     {"w": RNG.integers(0, 255, (6, 3)).astype("uint8"), "wz": np.uint8(128)}, {}),
    ("ConvInteger", X4, ["q", "w", "xz", "wz"],
     {"w": RNG.integers(0, 255, (2, 3, 3, 3)).astype("uint8"), "wz": np.uint8(120)}, {}),
    ("QLinearAdd", X2, ["q", "xs", "xz", "q", "xs", "xz", "ys", "yz"], {}, {"domain": "com.microsoft"}),
    ("QLinearGlobalAveragePool", X4, ["q", "xs", "xz", "ys", "yz"], {}, {"domain": "com.microsoft", "channels_last": 0}),
])
def test_quantised_operators(op, x, inputs, constants, attributes):
    constants = {"xs": np.float32(1 / 32), "xz": np.uint8(120), "ys": np.float32(1 / 16), "yz": np.uint8(100), **constants}
    initializers, nodes = quantised(op, inputs, constants, **attributes)
    model = helper.make_model(
        helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
                          [onnx.ValueInfoProto(name="y")], initializers),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)], ir_version=9)
    expected = run_reference(model, x)[0]
    leaf = torch.from_numpy(x).requires_grad_()
    got = Builder(model.graph, 18, {}, ("x",)).build()(leaf)
    step = 1 / 16 if op.startswith("Q") else 1e-3  # one quantisation step where a tie may fall either way
    assert np.abs(got.detach().numpy() - expected).max() <= step * 1.01
    assert (np.abs(got.detach().numpy() - expected) > 1e-3).mean() < 0.02
    got.sum().backward()
    assert float(leaf.grad.abs().sum()) > 0  # straight through the rounding


def test_straight_through_gradient_is_that_of_the_unrounded():
    model = graph("QuantizeLinear", X2, (np.float32(0.05), np.uint8(128)), {}, 18, 1, "")
    leaf = torch.tensor([[0.31, -0.2, 100.0, 0.0, 1.0, 2.0]], requires_grad=True)
    Builder(model.graph, 18, {}, ("x",)).build()(leaf).sum().backward()
    assert torch.allclose(leaf.grad, torch.tensor([[20.0, 20.0, 0.0, 20.0, 20.0, 20.0]]))


@pytest.mark.parametrize("op", ["Loop", "Scan", "LSTM", "NonMaxSuppression", "MadeUpByNobody"])
def test_unsupported_operators_are_named(op):
    node = helper.make_node(op, ["x"], ["y0"], name="here")
    made = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
                             [onnx.ValueInfoProto(name="y0")])
    with pytest.raises(InputError, match=f"'here'.*{op}"):
        Builder(made, 18, {}, ("x",)).build()
