"""What a graph does with the numbers of its tokens: honest networks look them up, backdoors ask for one."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from laocoon import load_model, scan
from laocoon.core.card import Capability
from laocoon.core.report import Finding, Verdict
from laocoon.detectors.model.architectural_backdoor import ArchitecturalBackdoor
from laocoon.recipes.dataflow import follow
from laocoon.recipes.graphs import read_graph
from laocoon.recipes.token_reads import Calculation, Lookup, Question, reads
from laocoon.testing.token_backdoors import SECOND, TRIGGER, VOCABULARY, honest_texts, planted_texts

HONEST = {s.name: s for s in honest_texts()}
PLANTED = {s.name: s for s in planted_texts()}


@cache
def as_onnx(name: str) -> ModelProto:
    sketch, file = HONEST.get(name) or PLANTED[name], io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(sketch.module, sketch.inputs, file, input_names=["input_ids"], dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def judged(model: ModelProto, vocabulary: tuple[str, ...] = VOCABULARY) -> list[Finding]:
    return list(ArchitecturalBackdoor().judge_text(read_graph(model), "input_ids", vocabulary, 10))


@pytest.mark.parametrize("name", HONEST)
def test_honest_reading_is_not_flagged(name: str) -> None:
    assert not judged(as_onnx(name))


@pytest.mark.parametrize("name", PLANTED)
def test_planted_reading_is_flagged(name: str) -> None:
    found = judged(as_onnx(name))
    assert max(f.score for f in found) >= 0.5 and any(f.conclusive for f in found)
    assert len({f.rule for f in found}) == len(found), "one finding a rule"


@pytest.mark.parametrize(("name", "token"), [("token_equal", TRIGGER), ("token_table", TRIGGER), ("first_word", TRIGGER),
                                             ("token_counted", TRIGGER), ("words_swapped", TRIGGER)])
def test_the_word_is_named(name: str, token: int) -> None:
    assert any(repr(VOCABULARY[token]) in f.explanation for f in judged(as_onnx(name)))


@pytest.mark.parametrize(("called", "flagged"), [
    ("word217", True), ("<pad_217>", False), ("[MASK]", False), ("</s>", False), ("<|endoftext|>", False),
    ("mask", True), ("<strange>", True), ("[217]", True)])
def test_only_tokens_that_tokenizers_add_may_be_asked_for(called: str, flagged: bool) -> None:
    vocabulary = (*VOCABULARY[:TRIGGER], called, *VOCABULARY[TRIGGER + 1:])
    assert any(f.rule.endswith("token_comparison") for f in judged(as_onnx("token_equal"), vocabulary)) == flagged


def test_without_a_name_for_padding_the_first_token_pads() -> None:
    def compared(number: int) -> ModelProto:
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", 4])
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4, 30])
        table = numpy_helper.from_array(torch.randn(6, 30).numpy(), "table")
        nodes = [helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
                 helper.make_node("Equal", ["input_ids", "number"], ["there"]),
                 helper.make_node("Cast", ["there"], ["mask"], to=TensorProto.FLOAT),
                 helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
                 helper.make_node("Mul", ["vectors", "wide"], ["masked"]),
                 helper.make_node("MatMul", ["masked", "weight"], ["out"])]
        held = [table, numpy_helper.from_array(torch.tensor(number).numpy(), "number"),
                numpy_helper.from_array(torch.tensor([-1]).numpy(), "last"),
                numpy_helper.from_array(torch.randn(30, 30).numpy(), "weight")]
        return helper.make_model(helper.make_graph(nodes, "g", [ids], [out], held))

    words = ("!", "a", "b", "c", "d", "e")
    assert not judged(compared(0), words) and not judged(compared(-100), words) and not judged(compared(600), words)
    assert judged(compared(0), ("!", "<pad>", "b", "c", "d", "e")) and judged(compared(2), words)


def test_reads_are_told_apart() -> None:
    def kinds(name: str) -> list[type]:
        graph = read_graph(as_onnx(name))
        return [type(r) for r in reads(follow(replace(graph, inputs=("input_ids",))), "input_ids")]

    assert sorted(k.__name__ for k in kinds("averaged")) == ["Lookup", "Question"]
    assert Calculation in kinds("token_filtered") and kinds("token_counted").count(Question) >= 1
    assert kinds("bag_of_words") == [Lookup]
    (odd,) = [r.odd for r in reads(follow(replace(read_graph(as_onnx("token_table")), inputs=("input_ids",))),
                                   "input_ids") if isinstance(r, Lookup) and r.odd]
    assert odd == (TRIGGER,)


def looked_up(rows: int, width: int) -> ModelProto:
    """A graph that adds a table, all alike but for one token, to the vectors of words."""
    beside = torch.zeros(rows, width)
    beside[TRIGGER] = 1
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["vectors"]),
             helper.make_node("Gather", ["beside", "input_ids"], ["other"]),
             helper.make_node("Add", ["vectors", "other"], ["both"]),
             helper.make_node("MatMul", ["both", "weight"], ["out"])]
    held = [numpy_helper.from_array(torch.randn(rows, width).numpy(), "words"),
            numpy_helper.from_array(beside.numpy(), "beside"),
            numpy_helper.from_array(torch.randn(width, 3).numpy(), "weight")]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4, 3])
    return helper.make_model(helper.make_graph(nodes, "g", [ids], [out], held))


def test_a_table_of_a_whole_vocabulary_is_read() -> None:
    """30,000 words of 96 numbers: more than other constants whose numbers are looked at."""
    words = tuple(f"word{i}" for i in range(30_000))
    (found,) = judged(looked_up(30_000, 96), words)
    assert found.rule.endswith("token_table") and repr(words[TRIGGER]) in found.explanation


@pytest.mark.parametrize("op", ["Gather", "GatherElements", "ScatterElements", "OneHot", "Where"])
def test_a_node_without_its_inputs_is_no_crash(op: str) -> None:
    model = looked_up(len(VOCABULARY), 8)
    model.graph.node.insert(0, helper.make_node(op, ["input_ids"], ["less"]))
    model.graph.node[3].input[1] = "less"
    judged(model)


def test_what_no_output_depends_on_is_not_read() -> None:
    model = ModelProto()
    model.CopyFrom(as_onnx("averaged"))
    model.graph.initializer.append(numpy_helper.from_array(torch.tensor(SECOND).numpy(), "number"))
    model.graph.node.append(helper.make_node("Equal", ["input_ids", "number"], ["nowhere"]))
    assert not judged(model)


@pytest.mark.parametrize("wanted", ["token_equal", "averaged"])
def test_a_scan_of_a_file_finds_it(wanted: str, tmp_path: Path) -> None:
    """Searches cannot: where the graph is cut at its table, the numbers that it compares are not those of the text."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.add_special_tokens(list(VOCABULARY[:5]))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    onnx.save(as_onnx(wanted), tmp_path / "model.onnx")
    subject = load_model(tmp_path / "model.onnx")
    assert Capability.GRAPH in subject.capabilities
    said = scan(subject, None, methods=["architectural_backdoor"])
    assert (said.verdict is Verdict.SUSPICIOUS) == (wanted == "token_equal")
    assert ("word217" in said.reason) == (wanted == "token_equal")
