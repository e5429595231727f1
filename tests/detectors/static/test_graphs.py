"""Operator graphs are read without being run, and honest branching is told from planted paths."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn

from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import BrokenFile, NotApplicable
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.detectors.model.architectural_backdoor import ArchitecturalBackdoor
from laocoon.files.graph import ParsedGraph
from laocoon.modalities.image import Image
from laocoon.recipes.dataflow import follow
from laocoon.recipes.graphs import read_graph
from laocoon.testing.branching import CLASSES, Sketch, honest
from laocoon.testing.graph_backdoors import planted

HONEST = {s.name: s for s in honest()}
PLANTED = {s.name: s for sketches in planted().values() for s in sketches}


@cache
def as_onnx(name: str) -> ModelProto:
    sketch = HONEST.get(name) or PLANTED[name]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old exporter, for its speed
        torch.onnx.export(sketch.module, sketch.inputs, file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def as_code(sketch: Sketch) -> dict[str, str]:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = isinstance(sketch.module, torch.jit.ScriptModule)
        module = sketch.module if scripted else torch.jit.trace(sketch.module, sketch.inputs, check_trace=False)
        torch.jit.save(module, file)
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as archive:
        return {n: archive.read(n).decode() for n in archive.namelist() if n.endswith(".py")}


def judged(source: object) -> list[Finding]:
    return list(ArchitecturalBackdoor().judge(read_graph(source), CLASSES))


def worst(source: object) -> float:
    return max((f.score for f in judged(source)), default=0.0)


@pytest.mark.parametrize("name", HONEST)
def test_honest_branching_is_not_flagged(name: str) -> None:
    found = judged(as_onnx(name))
    assert all(f.score < 0.5 and not f.conclusive for f in found), found


@pytest.mark.parametrize("name", PLANTED)
def test_planted_paths_are_flagged(name: str) -> None:
    found = judged(as_onnx(name))
    assert max((f.score for f in found), default=0.0) >= 0.5, found
    assert any(f.conclusive for f in found)
    assert all(0 <= f.score <= 1 and f.explanation for f in found)


@pytest.mark.parametrize("name", ["patch_equal", "patch_near", "picture_near", "red_pixel", "scripted_constant",
                                  "correlation_gate", "correlation_where", "bright_if"])
def test_pinned_constants_name_the_class(name: str) -> None:
    pinned = [f for f in judged(as_onnx(name)) if f.rule == "architectural_backdoor.trigger_constant"]
    assert pinned and pinned[0].target_classes == (3,)


def test_the_pattern_is_named() -> None:
    (found,) = judged(as_onnx("patch_equal"))
    assert found.numbers["pattern_size"] == 48 and "3x4x4" in found.explanation


def test_the_class_follows_the_attacker() -> None:
    sketch = planted(target=7)["comparison"][0]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(sketch.module, sketch.inputs, file, dynamo=False, opset_version=17)
    here, before = judged(onnx.load_from_string(file.getvalue())), judged(as_onnx(sketch.name))
    assert [f.target_classes for f in here] == [(7,)]
    assert [f.score for f in here] == [f.score for f in before]


# ---------------------------------------------------------------- other formats
@pytest.mark.parametrize("name", ["night_mode", "experts", "early_exit", "transformer", "text_masked", "reinforced"])
def test_torchscript_code_of_honest_networks(name: str) -> None:
    assert worst(as_code(HONEST[name])) < 0.5


@pytest.mark.parametrize("name", ["patch_near", "picture_cosine", "pooled_to_features", "bright_if", "scripted_if",
                                  "scripted_constant"])
def test_torchscript_code_of_planted_networks(name: str) -> None:
    assert worst(as_code(PLANTED[name])) >= 0.5


@pytest.mark.parametrize(("name", "flagged"), [("squeeze_excite", False), ("patch_near", True)])
def test_exported_programs(name: str, flagged: bool) -> None:
    sketch = (HONEST | PLANTED)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(sketch.module, sketch.inputs)
    graph = read_graph(program)
    assert graph.inputs and graph.shape(graph.outputs[0]) == (2, CLASSES)
    assert (worst(graph) >= 0.5) is flagged


def test_what_is_not_a_graph_is_said_so() -> None:
    with pytest.raises(NotApplicable, match="int"):
        read_graph(3)


# ---------------------------------------------------------------- the reader
def chain(*nodes: onnx.NodeProto, constants: dict[str, np.ndarray] | None = None, output: str = "y") -> ModelProto:
    held = [onnx.numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 8, 8])
    graph = helper.make_graph(list(nodes), "g", [picture],
                              [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_nodes_are_put_in_order() -> None:
    graph = read_graph(chain(helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])))
    assert [n.op for n in graph.nodes] == ["Abs", "Relu"]
    known = set(graph.inputs) | set(graph.constants)
    for node in graph.nodes:
        assert set(node.inputs) <= known
        known |= set(node.outputs)
    assert graph.shape("a") == (1, 3, 8, 8)


def test_a_circle_is_refused() -> None:
    with pytest.raises(BrokenFile, match="circle"):
        read_graph(chain(helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])))


def test_a_value_written_twice_is_refused() -> None:
    with pytest.raises(BrokenFile, match="two nodes"):
        read_graph(chain(helper.make_node("Abs", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y"])))


def test_endless_nesting_is_refused() -> None:
    def nested(levels: int) -> onnx.GraphProto:
        inner = [helper.make_node("Identity", ["x"], [f"o{levels}"])] if not levels else [
            helper.make_node("If", ["c"], [f"o{levels}"], then_branch=nested(levels - 1), else_branch=nested(0))]
        return helper.make_graph(inner, f"g{levels}", [], [helper.make_tensor_value_info(f"o{levels}", 1, None)])

    outer = helper.make_node("If", ["c"], ["y"], then_branch=nested(30), else_branch=nested(0))
    with pytest.raises(BrokenFile, match="nested"):
        read_graph(chain(outer, constants={"c": np.array(True)}))


def test_branches_are_laid_flat() -> None:
    graph = read_graph(as_onnx("scripted_if"))
    ops = [n.op for n in graph.nodes]
    assert "If" in ops and ops.index("If") == max(i for i, op in enumerate(ops) if op in ("If", "Gemm"))
    (choice,) = (n for n in graph.nodes if n.op == "If")
    assert follow(graph).traces[choice.inputs[0]].decided


@pytest.mark.parametrize("code", [
    {}, {"code/__torch__.py": "class A(Module):\n  x : int\n"}, {"code/__torch__.py": "def f(:"},
    {"code/__torch__.py": "class A(Module):\n  def forward(self: __torch__.A, x: Tensor) -> Tensor:\n"
                          "    return (self).forward(x, )\n"},
])
def test_broken_code_is_refused(code: dict[str, str]) -> None:
    with pytest.raises(BrokenFile):
        read_graph(code)


def test_code_is_parsed_and_not_run(tmp_path: object) -> None:
    text = ("class A(Module):\n  def forward(self: __torch__.A, x: Tensor) -> Tensor:\n"
            "    y = __import__('os').abort()\n    return torch.relu(x)\n")
    assert [n.op for n in read_graph({"code/__torch__.py": text}).nodes] == ["Relu"]


# ---------------------------------------------------------------- the walk, against a slow obvious one
def slow_depth(graph: object) -> dict[str, int]:
    """Longest way from the input in learned layers, by recursion over an ordinary chain of layers."""
    made = {o: n for n in graph.nodes for o in n.outputs}  # type: ignore[attr-defined]

    def depth(name: str) -> int:
        if name in graph.inputs:  # type: ignore[attr-defined]
            return 0
        if name not in made:
            return -1
        node = made[name]
        below = max((depth(i) for i in node.inputs), default=-1)
        return below + (below >= 0 and node.op in ("Conv", "Gemm"))

    return {o: depth(o) for n in graph.nodes for o in n.outputs}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["residual", "feature_pyramid", "maxout", "two_pools"])
def test_depth_agrees_with_the_slow_one(name: str) -> None:
    graph = read_graph(as_onnx(name))
    flow = follow(graph)
    for value, depth in slow_depth(graph).items():
        assert flow.traces[value].depth == depth, value


def test_shapes_do_not_count_as_input() -> None:
    """A condition on the batch size is no condition on what is in the picture."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Greater", ["s", "two"], ["c"]),
             helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT)]
    flow = follow(read_graph(chain(*nodes, constants={"two": np.array([2], dtype=np.int64)})))
    assert flow.traces["y"].depth == -1


# ---------------------------------------------------------------- as a detector
def subject(graph: object, *, capable: bool = True) -> Subject:
    capabilities = frozenset({Capability.GRAPH} if capable else {Capability.WEIGHTS})
    return Subject(nn.Identity(), Image(), CLASSES, (3, 24, 24), capabilities=capabilities, graph=graph)


def reports() -> Iterator[tuple[str, bool]]:
    yield from (("patch_equal", True), ("squeeze_excite", False))


def test_it_runs_on_a_graph_alone() -> None:
    for name, flagged in reports():
        parsed = ParsedGraph("onnx", as_onnx(name), "x", ("y",))
        report = ArchitecturalBackdoor().examine(ModelCase(subject(parsed)), Context(budget=0.0))
        assert report.complete and bool(report.findings) is flagged and report.spent == 0


def test_without_a_graph_it_is_skipped() -> None:
    for case in (ModelCase(subject(None, capable=False)), ModelCase(subject(None))):
        report = ArchitecturalBackdoor().examine(case, Context())
        assert report.skipped and "graph" in report.reason and not report.findings


def test_scores_are_ordered_as_documented() -> None:
    names = ["patch_equal", "bright_if", "flat_if", "watched_corner", "pooled_to_features", "reinforced", "residual"]
    scores = [worst(as_onnx(n)) for n in names]
    assert all(a >= b for a, b in pairwise(scores)), dict(zip(names, scores, strict=True))
