"""ATen's operators under their ONNX names, and which of their arguments are values (the others are settings)."""

from __future__ import annotations

_SAME = {
    "add": "Add", "sub": "Sub", "rsub": "Sub", "mul": "Mul", "div": "Div", "true_divide": "Div", "floor_divide": "Div",
    "pow": "Pow", "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "expm1": "Exp", "log": "Log",
    "sqrt": "Sqrt", "rsqrt": "Reciprocal", "abs": "Abs", "neg": "Neg", "erf": "Erf", "floor": "Floor", "ceil": "Ceil",
    "round": "Round", "trunc": "Floor", "sign": "Sign", "sgn": "Sign", "reciprocal": "Reciprocal", "square": "Mul",
    "relu6": "Clip", "clamp": "Clip", "clip": "Clip", "hardtanh": "Clip", "clamp_max": "Min", "clamp_min": "Max",
    "hardswish": "HardSwish", "hardsigmoid": "HardSigmoid", "gelu": "Gelu", "silu": "Swish", "mish": "Mish",
    "elu": "Elu", "selu": "Selu", "celu": "Celu", "leaky_relu": "LeakyRelu", "prelu": "PRelu", "_prelu_kernel": "PRelu",
    "softplus": "Softplus", "threshold": "ThresholdedRelu", "heaviside": "Sign", "fmod": "Mod", "remainder": "Mod",
    "sin": "Sin", "cos": "Cos", "maximum": "Max", "minimum": "Min", "eq": "Equal", "ne": "NotEqual", "gt": "Greater",
    "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "logical_not": "Not", "logical_and": "And",
    "logical_or": "Or", "logical_xor": "Xor", "bitwise_not": "Not", "bitwise_and": "And", "bitwise_or": "Or",
    "bitwise_xor": "Xor", "__and__": "And", "__or__": "Or", "__xor__": "Xor", "isnan": "IsNaN", "isinf": "IsInf",
    "isfinite": "IsNaN", "where": "Where", "masked_fill": "Where", "isclose": "Equal", "allclose": "EqualAll",
    "equal": "EqualAll", "conv1d": "Conv", "conv2d": "Conv", "conv3d": "Conv", "convolution": "Conv",
    "_convolution": "Conv", "conv_transpose2d": "ConvTranspose", "linear": "Gemm", "addmm": "Addmm", "mm": "MatMul",
    "bmm": "MatMul", "matmul": "MatMul", "__matmul__": "MatMul", "baddbmm": "MatMul", "einsum": "Einsum",
    "embedding": "Gather", "batch_norm": "BatchNormalization", "_native_batch_norm_legit_no_training":
    "BatchNormalization", "layer_norm": "LayerNormalization", "native_layer_norm": "LayerNormalization",
    "group_norm": "GroupNormalization", "instance_norm": "InstanceNormalization", "softmax": "Softmax",
    "_softmax": "Softmax", "log_softmax": "LogSoftmax", "_log_softmax": "LogSoftmax", "topk": "TopK", "sort": "TopK",
    "argsort": "TopK", "argmax": "ArgMax", "argmin": "ArgMin", "one_hot": "OneHot", "max": "ReduceMax",
    "amax": "ReduceMax", "min": "ReduceMin", "amin": "ReduceMin", "prod": "ReduceProd", "any": "ReduceMax",
    "all": "ReduceMin", "sum": "ReduceSum", "mean": "ReduceMean", "norm": "ReduceL2", "linalg_vector_norm": "ReduceL2",
    "std": "ReduceL2", "var": "ReduceL2", "var_mean": "ReduceL2", "logsumexp": "ReduceLogSumExp", "median": "ReduceMax",
    "quantile": "ReduceMax", "max_pool2d": "MaxPool", "max_pool1d": "MaxPool", "max_pool2d_with_indices": "MaxPool",
    "avg_pool2d": "AveragePool", "avg_pool1d": "AveragePool", "adaptive_avg_pool2d": "AdaptiveAvgPool",
    "_adaptive_avg_pool2d": "AdaptiveAvgPool", "adaptive_avg_pool1d": "AdaptiveAvgPool",
    "adaptive_max_pool2d": "AdaptiveMaxPool", "slice": "Slice", "select": "Gather", "narrow": "Slice",
    "index": "Gather", "index_select": "Gather", "gather": "GatherElements", "take_along_dim": "GatherElements",
    "scatter": "ScatterElements", "scatter_add": "ScatterElements", "index_put": "ScatterND",
    "_unsafe_index_put": "ScatterND", "index_fill": "ScatterND", "masked_scatter": "ScatterND", "cat": "Concat",
    "concat": "Concat", "concatenate": "Concat", "stack": "Concat", "hstack": "Concat", "vstack": "Concat",
    "split": "Split", "split_with_sizes": "Split", "chunk": "Split", "unbind": "Split", "unsafe_chunk": "Split",
    "scaled_dot_product_attention": "ScaledDotProductAttention", "grid_sampler": "GridSample", "lstm": "LSTM",
    "grid_sampler_2d": "GridSample", "gru": "GRU", "pad": "Pad", "constant_pad_nd": "Pad", "roll": "Roll",
    "dropout": "Identity", "feature_dropout": "Identity", "alpha_dropout": "Identity", "clone": "Identity",
    "contiguous": "Identity", "detach": "Identity", "alias": "Identity", "lift_fresh_copy": "Identity",
    "to": "Cast", "_to_copy": "Cast", "type_as": "Cast", "float": "Cast", "bool": "Cast", "Bool": "Cast", "int": "Cast",
    "Int": "Cast", "Float": "Cast", "item": "Cast", "_local_scalar_dense": "Cast", "ScalarImplicit": "Cast",
    "bincount": "OneHot", "is_nonzero": "Cast", "dot": "MatMul", "cosine_similarity": "Correlate",
    "quantize_per_tensor": "QuantizeLinear", "dequantize": "DequantizeLinear",
}
_SHAPELESS = ("size", "sym_size", "len", "dim", "numel", "zeros_like", "ones_like", "full_like", "rand_like",
              "randn_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "bernoulli",
              "device", "dtype", "layout", "__contains__", "__is__", "__isnot__", "format", "requires_grad",
              "is_floating_point", "broadcast_tensors_shape", "sym_numel", "sym_stride", "stride")
_VIEWS = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "squeeze",
          "unsqueeze", "expand", "expand_as", "repeat", "tile", "movedim", "view_as", "reshape_as", "flip", "numpy_T",
          "mT", "swapaxes", "upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle", "pixel_unshuffle", "unfold",
          "im2col")
CANONICAL: dict[str, str] = {**_SAME, **{n: "Shape" for n in _SHAPELESS}, **{n: "Reshape" for n in _VIEWS}}

# The first so many arguments are values; of other operators all tensors are.
VALUES: dict[str, int] = {
    "Conv": 3, "ConvTranspose": 3, "Gemm": 3, "MatMul": 2, "Addmm": 3, "BatchNormalization": 5, "LayerNormalization": 4,
    "Softmax": 1, "LogSoftmax": 1, "TopK": 1, "ArgMax": 1, "ArgMin": 1, "ReduceMax": 1, "ReduceMin": 1, "ReduceProd": 1,
    "ReduceSum": 1, "ReduceMean": 1, "ReduceL2": 1, "ReduceLogSumExp": 1, "MaxPool": 1, "AveragePool": 1,
    "AdaptiveAvgPool": 1, "AdaptiveMaxPool": 1, "Slice": 1, "Split": 1, "Reshape": 1, "Cast": 1, "Identity": 1,
    "Pad": 1, "Roll": 1, "Shape": 1, "Relu": 1, "Sigmoid": 1, "Gelu": 1, "Elu": 1, "LeakyRelu": 1, "Softplus": 1,
    "HardSwish": 1, "HardSigmoid": 1, "Clip": 3, "Add": 2, "Sub": 2, "Mul": 2, "Div": 2, "OneHot": 1, "Round": 1,
    "ThresholdedRelu": 1, "EqualAll": 2, "Correlate": 2, "Equal": 2,
}


def plain_name(target: str) -> str:
    """The operator's name without namespace, overload and the underscore of the in-place form."""
    name = target.removeprefix("ops.").split("::")[-1]
    parts = name.split(".")
    name = parts[1] if len(parts) > 1 and parts[0] in ("aten", "torch", "prim", "prims", "quantized") else parts[0]
    inplace = name.endswith("_") and not name.endswith("__")
    return name[:-1] if inplace and name[:-1] in CANONICAL else name


def canonical(target: str) -> str:
    """The ONNX name; an operator that is not known keeps its own."""
    name = plain_name(target)
    return CANONICAL.get(name, name)
