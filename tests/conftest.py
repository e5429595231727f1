"""Tests run on one thread each: the workers share the cores, and results must not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from onnx import helper, numpy_helper

torch.set_num_threads(1)
# The same examples on every run: a change is judged by what it changed.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture(scope="session")
def colours() -> Callable[..., Path]:
    """Writes a tiny ONNX network that is right about its data: the channel with the largest mean is the class."""

    def write(place: Path, channels: int = 3, size: int = 8, classes: int | None = None) -> Path:
        name, count = onnx.TensorProto.FLOAT, classes or max(channels, 2)
        mix = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
        # One channel: class 0 dark, 1 bright. More classes than channels are never the answer.
        head = np.array([[-20.0, 20.0]]) if channels == 1 else 20 * np.eye(channels, count)
        bias = np.array([10.0, -10.0]) if channels == 1 else np.where(np.arange(count) < channels, 0, -9)
        weights = {"mix.weight": mix, "head.weight": head, "head.bias": bias}
        steps = (("Conv", ["input", "mix.weight"], "a"), ("Relu", ["a"], "b"), ("GlobalAveragePool", ["b"], "c"),
                 ("Flatten", ["c"], "d"), ("Gemm", ["d", "head.weight", "head.bias"], "scores"))
        graph = helper.make_graph(
            [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps], "colours",
            [helper.make_tensor_value_info("input", name, ["n", channels, size, size])],
            [helper.make_tensor_value_info("scores", name, ["n", count])],
            [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        place.write_bytes(model.SerializeToString())
        return place

    return write
