"""Backdoors in the graph rather than in the weights, found without running it.

Bober-Irizar et al., Architectural Backdoors in Neural Networks (CVPR 2023, arXiv 2206.07840); HiddenLayer's
ShadowLogic (2024, arXiv 2511.00664). An attacker who may edit the graph adds a path from the input to a late layer that
no training touches: a comparison with a hidden pattern that chooses other logits, or a pooled and sharpened copy of the
image that is added behind the features. `recipes.dataflow` traces every value; this file judges where raw input and
learned values meet. Of texts it looks at the numbers of the tokens, which honest networks look up in tables and
compare with those of padding and the like, and from there on at the vectors of the words. The score is a fixed scale,
not a calibrated one:

    1.0  a yes-or-no made of the raw input alone, by a pattern that the file holds, puts the file's numbers in an output
    0.9  such a decision, with the pattern or the numbers alone          0.8  without either
    0.9  token ids compared with that of an ordinary token; a table that tells a few tokens from all others
    0.7  a sharpened or pooled copy of the raw input, or a filter of a few channels, is added to the output
    0.6  the same before the last layers; calculations with token ids    0.5  `flag_at`
    0.3 - 0.45  unusual, found in honest networks too (adaptive preprocessing, hard routing): a hint, no flag

No reference models can calibrate this, so a flag is conclusive; the rate of false flags that stands behind that is in
docs/results/graph_flags.md. Departures: neither paper gives a detector; the rules are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.files.graph import ParsedGraph
from laocoon.files.wording import printable
from laocoon.modalities.text import Text, is_marker
from laocoon.recipes.dataflow import Flow, Meeting, follow
from laocoon.recipes.graphs import read_graph
from laocoon.recipes.operator_graph import Graph
from laocoon.recipes.token_reads import Calculation, Lookup, Question, Read, reads

CHOICES = ("Where", "If", "Loop")
SUMS = ("Add", "Sub", "Sum", "Mean", "Max", "Min", "Concat", "ScatterND", "ScatterElements")
JOINS = (*CHOICES, *SUMS, "Mul", "Pow", "Xor", "And", "Or", "Einsum", "MatMul")


@dataclass(frozen=True)
class Judged:
    """A meeting with its score, and what makes it suspicious, in words."""

    score: float
    rule: str
    reason: str
    meeting: Meeting
    keys: frozenset[str]


@dataclass(frozen=True)
class ArchitecturalBackdoor(Detector):
    """Paths from the raw input that no training touches, up to the output."""

    flag_at: float = 0.5  # scores from here on are flags, and conclusive; what is below is a hint
    hint_at: float = 0.3

    card: ClassVar[Card] = Card(
        name="architectural_backdoor",
        paper="Architectural Backdoors in Neural Networks (CVPR 2023)",
        url="https://arxiv.org/abs/2206.07840",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.GRAPH}),
        misses="backdoors in the weights; a detector of the trigger that is itself a trained sub-network of ordinary "
               "width; conditions on learned features; operators outside the standard set; a pattern inside a wider "
               "filter; division by a factor of the input; a copy of the input through an identity convolution; of "
               "texts what the tokenizer does, tests of a mask, and tables of more than 128 million numbers.",
        summary="comparisons, branches and hidden patterns that lead from the raw input past the learned layers",
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        source = case.graph if case.graph is not None else case.subject.graph
        if source is None:
            raise NotApplicable("architectural_backdoor needs a static graph, and the subject carries none.")
        graph, what = read_graph(source), case.subject.modality
        if isinstance(what, Text):
            ids = source.input if isinstance(source, ParsedGraph) else graph.inputs[0]
            yield from self.judge_text(graph, ids, what.vocabulary, case.subject.classes)
        else:
            yield from self.judge(graph, case.subject.classes)

    def judge_text(self, graph: Graph, ids: str, vocabulary: Sequence[str], classes: int = 0) -> Iterator[Finding]:
        """Findings on the graph of a text classifier: `ids` is the input with the numbers of its tokens.

        What is done with the numbers is judged first, then what is done with them on their own way to the output, then
        what is done with the vectors that they are looked up as: a vector tells its token as well as its number does.
        """
        alone = replace(graph, inputs=(ids,))
        found = list(reads(follow(alone), ids))
        lookups = [read.node for read in found if isinstance(read, Lookup)]
        behind = replace(graph, nodes=tuple(n for n in graph.nodes if n not in lookups),
                         inputs=tuple(n.outputs[0] for n in lookups))
        said = [f for read in found for f in _read(read, vocabulary, self.flag_at)]
        said += [*self.judge(alone, classes), *(self.judge(behind, classes) if lookups else ())]
        worst = {f.rule: f for f in sorted(said, key=lambda f: f.score)}
        yield from (worst[rule] for rule in sorted(worst) if worst[rule].score >= self.hint_at)

    def judge(self, graph: Graph, classes: int = 0) -> Iterator[Finding]:
        """Findings on a graph alone, before anything is run: the worst place of each rule."""
        flow = follow(graph)
        found = [j for m in flow.meetings for j in _judge(m, flow)]
        found += [_swap(m, flow) for m in flow.swaps] + [_chosen(m) for m in flow.outputs_chosen]
        best: dict[str, list[Judged]] = {}
        for judged in sorted(found, key=lambda j: -j.score):
            if judged.score >= self.hint_at:
                best.setdefault(judged.rule, []).append(judged)
        for rule, places in sorted(best.items()):
            yield _finding(rule, places, flow, classes, conclusive=places[0].score >= self.flag_at)


def _judge(m: Meeting, flow: Flow) -> Iterator[Judged]:
    side = m.side
    keys = side.keys - flow.trunk_keys
    late = m.after == 0 or (2 * m.after <= m.total and 2 * m.trunk.depth >= m.total)
    numbers = m.injected | (side.payload if m.after == 0 else frozenset())
    if m.narrow:
        if late and m.node.op in JOINS:
            what = "a branch that sees a small cut-out of the input only"
            yield Judged(0.7 if m.after == 0 else 0.6, "cut_out", what, m, keys)
    elif m.node.op not in JOINS and not side.decided:
        return
    elif side.guard:
        yield Judged(0.3, "condition", "a test of the input for what is not a number", m, keys)
    elif side.relative and m.after == 0 and numbers and m.node.op in (*SUMS, *CHOICES):
        what = "a competition between values of the raw input puts numbers that the file holds into the output"
        yield Judged(0.8, "condition", what, m, keys)
    elif side.relative:
        yield Judged(0.3, "condition", "a competition between filters of the raw input (routing)", m, keys)
    elif m.node.op == "Div" and m.position == 1:
        return
    elif side.decided:
        yield _decision(m, keys, numbers, late=late)
    elif m.after == 0:
        yield from _at_output(m, keys)
    elif late:
        yield from _before_output(m, keys)


def _decision(m: Meeting, keys: frozenset[str], numbers: frozenset[str], *, late: bool) -> Judged:
    """A yes or no made of the raw input controls something learned."""
    if m.node.op in ("Gather", "GatherND", "GatherElements") and not m.injected:
        return Judged(0.3, "condition", "a position computed from the raw input", m, keys)
    filtered = bool(m.side.thin)
    what = "a filter of the raw input, with a threshold," if filtered else "a comparison on the raw input alone"
    if m.after == 0:
        score = 0.8 if not filtered or keys or numbers else 0.45
    elif late:
        score = 0.7 if not filtered or keys else 0.4
    else:
        score = 0.45 if keys and not filtered else 0.4
    if score >= 0.7:
        score += 0.1 * bool(keys) + 0.1 * bool(numbers)
        what += " against a pattern that the file holds" if keys else ""
    pinned = score >= 0.8 and bool(keys or numbers)
    place = "decides the output" if m.after == 0 else f"decides what goes into the last {m.after} of {m.total} layers"
    return Judged(min(score, 1.0), "trigger_constant" if pinned else "condition", f"{what} {place}", m, keys)


def _at_output(m: Meeting, keys: frozenset[str]) -> Iterator[Judged]:
    """Raw input that comes to the output beside all learned layers."""
    side = m.side
    if not side.sources & m.trunk.sources and not side.pooled:
        yield Judged(0.3, "parallel_branch", "another input, not pooled, joins the output (a mask)", m, keys)
    elif m.same_shape:
        yield Judged(0.2, "parallel_branch", "the input is added to an output of its own shape", m, keys)
    elif not side.thin:
        score = 0.8 if side.sharp or side.pooled else 0.6
        yield Judged(score, "parallel_branch", "a copy of the raw input without weights joins the output", m, keys)
    elif m.node.op in SUMS or m.node.op in CHOICES:
        # One dense layer to one logit is as narrow as it is honest (wide and deep networks).
        flagged = side.pooled and (m.widened or bool(side.payload))
        yield Judged(0.7 if flagged else 0.4, "parallel_branch",
                     "a filter of a few channels leads from the raw input to the output", m, keys)
    else:
        yield Judged(0.4, "parallel_branch", "a filter of the raw input scales the output", m, keys)


def _before_output(m: Meeting, keys: frozenset[str]) -> Iterator[Judged]:
    """Raw input that joins the last layers."""
    side, op = m.side, m.node.op
    what = "a copy of the raw input without weights" if not side.thin else "a filter of the raw input"
    if m.attention or m.same_shape:
        score = 0.2
    elif op in ("Mul", *CHOICES):  # masks are honest where they still are pictures
        score = 0.4 if side.pooled else 0.2
    elif side.thin:
        score = 0.6 if keys and side.sharp == 2 and side.pooled and op != "Concat" else 0.4
    elif op in ("Add", "Sub", "Sum", "Max", "Min"):
        score = 0.65 if side.sharp else 0.55 if side.pooled else 0.2
    else:
        score = 0.55 if side.sharp == 2 and side.pooled else 0.4
    yield Judged(score, "parallel_branch", f"{what} joins the network before the last {m.after} of {m.total} layers", m,
                 keys)


def _swap(m: Meeting, flow: Flow) -> Judged:
    filtered = bool(m.side.thin) and not m.side.keys - flow.trunk_keys
    return Judged(0.45 if filtered else 0.9, "trigger_constant",
                  "a comparison on the raw input puts a picture that the file holds in the place of the input", m,
                  m.side.keys - flow.trunk_keys)


def _chosen(m: Meeting) -> Judged:
    return Judged(0.45, "constant_output", "a condition puts numbers that the file holds in the place of an output", m,
                  frozenset())


# ---------------------------------------------------------------- tokens
POSITIONS = ("ArgMax", "ArgMin", "TopK", "ReduceMax", "ReduceMin")  # where the largest id is: a way to find an end


def _ordinary(number: float, vocabulary: Sequence[str]) -> bool:
    """Is this the number of a token that stands in texts? What is no whole number lies between two of them."""
    if not 0 <= number < len(vocabulary):
        return False
    if number == 0 and not any("pad" in token.lower() for token in vocabulary if is_marker(token)):
        return False  # what has no name for padding pads with the first token
    return number != int(number) or not is_marker(vocabulary[int(number)])


def _read(read: Read, vocabulary: Sequence[str], flag_at: float) -> Iterator[Finding]:
    node, place = read.node, printable(read.node.name or read.node.op, 60)

    def told(rule: str, score: float, what: str) -> Finding:
        return Finding(f"architectural_backdoor.{rule}", f"node {place!r} ({printable(node.op, 30)})", score,
                       f"{what} at {place!r}", conclusive=score >= flag_at)

    if isinstance(read, Lookup) and read.odd:
        yield told("token_table", 0.9, f"a table tells {_words(read.odd, vocabulary)} from all other tokens")
    elif isinstance(read, Question) and read.numbers is None:
        yield told("token_comparison", 0.6, "token ids are compared with what only running the graph would tell")
    elif isinstance(read, Question):
        asked = [n for n in read.numbers or () if _ordinary(n, vocabulary)]
        if asked:
            yield told("token_comparison", 0.9, f"token ids are compared with {_words(asked, vocabulary)}")
    elif isinstance(read, Calculation):
        score = 0.3 if node.op in POSITIONS and not read.changed else 0.6
        yield told("token_calculation", score, "token ids are calculated with, as if they were quantities,")


def _words(numbers: Sequence[float], vocabulary: Sequence[str]) -> str:
    names = [f"{n:g} ({printable(vocabulary[int(n)], 30)!r})" if 0 <= n < len(vocabulary) else f"{n:g}"
             for n in numbers[:4]]
    return ", ".join(names) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")


# ---------------------------------------------------------------- telling
def _finding(rule: str, places: list[Judged], flow: Flow, classes: int, *, conclusive: bool) -> Finding:
    worst = places[0]
    m = worst.meeting
    arrays = sorted(worst.keys)
    told = [f"pattern {printable(a, 40)!r} {_shape(flow, a)}" for a in arrays[:2]]
    target = next((t for j in places for t in _target(j.meeting, flow, classes)), None)
    told += [f"towards class {target}"] if target is not None else []
    more = f"; {len(places) - 1} more such places" if len(places) > 1 else ""
    name = printable(m.node.name or m.node.op, 60)
    return Finding(f"architectural_backdoor.{rule}", f"node {name!r} ({printable(m.node.op, 30)})", worst.score,
                   f"{worst.reason} at {name!r}" + "".join(f", {t}" for t in told) + more,
                   (target,) if target is not None else (), conclusive,
                   {"places": float(len(places)), "layers_after": float(m.after), "layers": float(m.total),
                    "pattern_size": float(max((flow.graph.constants[a].size or 0 for a in arrays), default=0))})


def _shape(flow: Flow, name: str) -> str:
    shape = flow.graph.constants[name].shape
    return "of unknown shape" if shape is None else "of shape " + "x".join(map(str, shape))


def _target(m: Meeting, flow: Flow, classes: int) -> Iterator[int]:
    """The class that an array chosen or scaled by a decision raises most, where it has one number per class."""
    constants: Mapping[str, object] = flow.graph.constants
    for name in sorted(m.injected | m.side.payload):
        values = flow.graph.constants[name].values if name in constants else None
        if values is None or not values.size:
            continue
        row = np.nan_to_num(values.reshape(-1))
        if classes and row.size != classes:
            continue
        top = np.sort(row)[::-1]
        if top.size > 1 and top[0] > top[1]:
            yield int(row.argmax())
