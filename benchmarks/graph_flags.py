"""False flags and detections of `architectural_backdoor`, as a table: docs/results/graph_flags.md.

    python benchmarks/graph_flags.py [--timm NAME ...]

Networks are untrained: the check reads the graph, where weights hardly matter. With --timm, architectures of the timm
library are exported too (each takes some seconds).
"""

from __future__ import annotations

import argparse
import io
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from laocoon.detectors.model.architectural_backdoor import ArchitecturalBackdoor
from laocoon.recipes.graphs import read_graph
from laocoon.testing.branching import CLASSES, honest
from laocoon.testing.graph_backdoors import planted

TARGET = Path(__file__).parent.parent / "docs" / "results" / "graph_flags.md"


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def library(names: list[str]) -> Iterator[tuple[str, ModelProto]]:
    import timm

    for name in names:
        module = timm.create_model(name, pretrained=False).eval()
        size = module.default_cfg.get("input_size", (3, 224, 224))
        try:
            yield name, exported(module, (torch.rand(1, *size),))
        except (RuntimeError, ValueError, TypeError) as error:
            print(f"{name}: not exported ({type(error).__name__})", flush=True)


def wilson(hits: int, n: int) -> str:
    """Share with its 95 % interval."""
    if not n:
        return "-"
    z, p = 1.96, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    return f"{hits} of {n} = {p:.1%} [{max(low, 0):.1%}, {min(high, 1):.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--timm", nargs="*", default=[])
    names = parser.parse_args().timm
    detector = ArchitecturalBackdoor()
    rows: list[tuple[str, str, float, str, float]] = []

    def judge(kind: str, name: str, model: ModelProto, classes: int) -> None:
        start = time.perf_counter()
        found = list(detector.judge(read_graph(model), classes))
        seconds = time.perf_counter() - start
        best = max(found, key=lambda f: f.score, default=None)
        rows.append((kind, name, best.score if best else 0.0, best.explanation if best else "", seconds))
        print(*rows[-1][:3], flush=True)

    for sketch in honest():
        judge("honest", sketch.name, exported(sketch.module, sketch.inputs), CLASSES)
    for family, sketches in planted().items():
        for sketch in sketches:
            judge(family, sketch.name, exported(sketch.module, sketch.inputs), CLASSES)
    for name, model in library(names):
        judge("library", name, model, 1000)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(table(rows, detector.flag_at))


def table(rows: list[tuple[str, str, float, str, float]], flag_at: float) -> str:
    def counted(*kinds: str) -> str:
        some = [r for r in rows if r[0] in kinds]
        return wilson(sum(r[2] >= flag_at for r in some), len(some))

    families = list(dict.fromkeys(r[0] for r in rows if r[0] not in ("honest", "library")))
    lines = [
        "# Flags of `architectural_backdoor` on graphs", "",
        "Made by `python benchmarks/graph_flags.py`; tier: ci. A flag is a score of "
        f"{flag_at} or more. Intervals: Wilson, 95 %.", "",
        "The small networks were written by the authors of the check, who knew its rules: they show what it was built "
        "for, not what it would do on a stranger's graph. The library's architectures were written by others.", "",
        "| graphs | flagged |", "|---|---|",
        f"| honest branching networks (small) | {counted('honest')} |",
        f"| architectures of a library (timm) | {counted('library')} |",
        f"| all honest ones | {counted('honest', 'library')} |",
        *(f"| planted: {family} | {counted(family)} |" for family in families),
        f"| all planted ones | {counted(*families)} |", "",
        f"Time per graph: median {sorted(r[4] for r in rows)[len(rows) // 2] * 1000:.0f} ms, "
        f"largest {max(r[4] for r in rows) * 1000:.0f} ms.", "",
        "| graph | kind | score | strongest finding |", "|---|---|---|---|",
        *(f"| {name} | {kind} | {score:.2f} | {text.replace('|', '/')} |" for kind, name, score, text, _ in rows), "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
