"""What a default scan costs by the number of classes, and what the stages that need no search cost.

    python benchmarks/cost.py [--classes 2 10 43 200 1000] [--rows FILE] [--out FILE.md]

Each point is a process of its own, so that its peak of memory is its own. The network is small (two convolutions of
random weights and a head fitted to noisy prototypes, 16×16 pixels), so that what is seen is the scan. Seconds are of
the processor, one thread. Two last rows are of a residual network of 12 M multiply-adds: the static and head stages
alone, and a whole default scan on two threads, by the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STATIC = ("architectural_backdoor", "weight_sanity", "potrojan", "head_statistics", "head_probes")
TARGET = Path(__file__).parent.parent / "docs" / "results" / "cost.md"
SIDE, WIDTH, PER_CLASS = 16, 256, 20


# ---------------------------------------------------------------- one point, in the child
def network(classes: int, seed: int = 0) -> tuple[Any, Any]:
    """A network that tells noisy prototypes apart, and clean samples of every class."""
    import torch
    from torch import nn

    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
                             nn.Linear(32 * (SIDE // 4) ** 2, WIDTH), nn.ReLU())
        head = nn.Linear(WIDTH, classes)
    prototypes = torch.rand(classes, 3, SIDE, SIDE, generator=rng)
    labels = torch.arange(classes).repeat_interleave(PER_CLASS)
    inputs = (prototypes[labels] + 0.1 * torch.randn(len(labels), 3, SIDE, SIDE, generator=rng)).clamp(0, 1)
    with torch.no_grad():
        features = torch.cat([body(part) for part in inputs.split(512)])
        middle = features.mean(0)
        means = torch.stack([features[labels == c].mean(0) for c in range(classes)]) - middle
        within = features - middle - means[labels]
        spread = within.T @ within / len(labels) + 1e-3 * torch.eye(WIDTH)
        weight = torch.linalg.solve(spread, means.T).T  # linear discriminants
        scale = 5 / weight.norm(dim=1).median() / means.norm(dim=1).median()
        head.weight.copy_(weight * scale)
        head.bias.copy_(-scale * (weight * (means / 2 + middle)).sum(1))
    return nn.Sequential(body, head).eval(), (inputs, labels)


def point(classes: int) -> dict[str, Any]:
    """Scan, and tell what it cost."""
    import torch

    from laocoon.cli.memory import keep_freed_memory
    from laocoon.core.cases import Samples
    from laocoon.core.subject import Subject
    from laocoon.modalities.image import Image
    from laocoon.verdict.scan import scan

    torch.set_num_threads(1)
    keep_freed_memory()
    module, (inputs, labels) = network(classes)
    subject = Subject(module, Image(), classes, (3, SIDE, SIDE))
    before, start, clock = _peak(), time.process_time(), time.monotonic()
    said = scan(subject, Samples(inputs, labels), budget="default", seed=0)
    return {"classes": classes, "accuracy": said.subject["accuracy"], "passes": said.spent,
            "seconds": time.process_time() - start, "clock": time.monotonic() - clock, "before": before,
            "peak": _peak(),
            "verdict": said.verdict.value, "reason": said.reason,
            "methods": {r.method: [r.spent, r.seconds, r.complete, r.reason] for r in said.reports}}


def static() -> dict[str, Any]:
    """The stages that need no search, on a residual network for CIFAR-10."""
    import io
    import warnings

    import onnx
    import torch

    from laocoon.core.cases import ModelCase, Samples
    from laocoon.core.context import Context
    from laocoon.core.subject import Subject
    from laocoon.files.graph import ParsedGraph
    from laocoon.modalities.image import Image
    from laocoon.modalities.image_networks import build
    from laocoon.verdict.examination import prepare, run
    from laocoon.verdict.schedule import plan

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    module = build("resnet", 3, 32, 10, rng=rng).eval()
    file, x = io.BytesIO(), torch.rand(200, 3, 32, 32, generator=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x[:1],), file, dynamo=False, opset_version=17)
    graph = ParsedGraph("onnx", onnx.load_from_string(file.getvalue()), "x", ("y",))
    work = multiply_adds(module, x[:1])
    capabilities = Subject.__dataclass_fields__["capabilities"].default | {_graph()}
    subject = Subject(module, Image(), 10, (3, 32, 32), capabilities=capabilities, graph=graph)
    prepared = prepare(module, Samples(x, torch.arange(200) % 10), 0, 10)
    case = ModelCase(subject, prepared.fit, prepared.held, graph=graph)
    leaf = x[:64].clone().requires_grad_(True)
    module(leaf).sum().backward()
    start = time.process_time()
    for _ in range(4):
        leaf = x[:64].clone().requires_grad_(True)
        module(leaf).sum().backward()
    each = (time.process_time() - start) / 4 / 64
    start = time.process_time()
    examined = run(plan("default", STATIC), case, Context(seed=0))
    seconds = time.process_time() - start
    return {"classes": 0, "multiply_adds": work, "seconds": seconds, "pass": each,
            "methods": {r.method: [r.spent, r.seconds, r.complete, r.reason] for r in examined.reports}}


def multiply_adds(module: Any, one: Any) -> int:
    """Of convolutions and linear layers, for one sample."""
    from torch import Tensor, nn

    work = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal work
        work += output[0].numel() * (layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.in_features)  # type: ignore

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    module(one)
    for hook in hooks:
        hook.remove()
    return work


def whole() -> dict[str, Any]:
    """A default scan of the residual network, taught to tell noisy prototypes of the size of CIFAR-10 apart."""
    import torch
    from engine import shares_of_bare  # of this folder

    from laocoon.cli.memory import keep_freed_memory
    from laocoon.core.cases import Samples
    from laocoon.core.subject import Subject
    from laocoon.modalities.image import Image
    from laocoon.modalities.image_networks import build
    from laocoon.recipes.fit import fit
    from laocoon.verdict.scan import scan

    torch.set_num_threads(2)
    keep_freed_memory()
    rng = torch.Generator().manual_seed(0)
    module = build("resnet", 3, 32, 10, rng=rng)
    prototypes, labels = torch.rand(10, 3, 32, 32, generator=rng), torch.arange(1200) % 10
    inputs = (0.5 * prototypes[labels] + 0.5 * torch.rand(1200, 3, 32, 32, generator=rng)).clamp(0, 1)
    fit(module, inputs[200:], labels[200:], epochs=6, rng=rng)
    work = multiply_adds(module.eval(), inputs[:1])
    start, clock = time.process_time(), time.monotonic()
    given = Samples(inputs[:200], labels[:200])
    said = scan(Subject(module, Image(), 10, (3, 32, 32)), given, seed=0)
    clock, seconds = time.monotonic() - clock, time.process_time() - start
    torch.set_num_threads(1)
    methods = {r.method: [r.spent, r.seconds, r.complete, r.reason] for r in said.reports}
    return {"classes": -1, "multiply_adds": work, "passes": said.spent, "clock": clock, "seconds": seconds,
            "shares": shares_of_bare(given, 10, module), "accuracy": said.subject["accuracy"],
            "verdict": said.verdict.value, "reason": said.reason, "methods": methods}


def _graph() -> Any:
    from laocoon.core.card import Capability

    return Capability.GRAPH


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---------------------------------------------------------------- telling
def table(rows: list[dict[str, Any]], command: str) -> str:
    points = sorted((r for r in rows if r["classes"] > 0), key=lambda r: r["classes"])
    ten = next((r for r in points if r["classes"] == 10), points[0])
    lines = ["# Cost against the number of classes", "",
             f"Command: `{command}`, tier `desk`, seed 0. A default scan of a small network (16×16 pixels), "
             f"{PER_CLASS} clean samples a class; one process for each point; seconds of the processor, one thread.",
             "",
             "![passes, seconds and memory against classes](cost.svg)", "",
             "| classes | accuracy | passes | beside 10 classes | seconds | beside 10 classes | peak memory "
             "| of which scan | dearest methods (share of seconds) |", "|-|-|-|-|-|-|-|-|-|"]
    for r in points:
        total = sum(m[1] for m in r["methods"].values()) or 1.0
        dear = sorted(r["methods"].items(), key=lambda m: -m[1][1])[:3]
        told = ", ".join(f"{name} {m[1] / total:.0%}" for name, m in dear)
        lines.append(f"| {r['classes']} | {r['accuracy']:.0%} | {r['passes']:,.0f} | {r['passes'] / ten['passes']:.1f} "
                     f"| {r['seconds']:.1f} | {r['seconds'] / ten['seconds']:.1f} | {r['peak'] / 2**20:.0f} MiB "
                     f"| {(r['peak'] - r['before']) / 2**20:.0f} MiB | {told} |")
    stopped = [f"{r['classes']} classes: {name}: {m[3]}" for r in points for name, m in r["methods"].items()
               if m[3] and name != "architectural_backdoor"]  # the network has no file, so no graph
    lines += ["", "“Of which scan” is how far the peak rose after imports, network and samples were there.", ""]
    lines += ["Methods that did not run to their end:", "", *(f"- {t}" for t in stopped), ""] if stopped else []
    for s in (r for r in rows if r["classes"] == -1):
        lines += ["## A whole scan of a network of the usual size", "",
                  f"A default scan of a residual network of {s['multiply_adds'] / 1e6:.1f} M multiply-adds (32×32×3 "
                  f"pixels, 10 classes, made-up data on which it is right in {s['accuracy']:.0%}), 20 clean samples a "
                  f"class: {s['clock']:.0f} s by the clock on two threads, {s['seconds']:.0f} s of the processor, "
                  f"{s['passes']:,.0f} passes; its answer, on noise that no picture resembles: {s['verdict']}. The "
                  f"engine's patch search makes {s['shares']['own']:.2f} of the passes per second of the network's "
                  f"bare forward and input gradient, {s['shares']['folded']:.2f} of its folded twin's (one "
                  "thread).", ""]
    for s in (r for r in rows if not r["classes"]):
        parts = ", ".join(f"{name} {m[1] * 1000:.0f} ms" for name, m in s["methods"].items())
        lines += ["## Stages that need no search", "",
                  f"On a residual network of {s['multiply_adds'] / 1e6:.1f} M multiply-adds for CIFAR-10, 200 samples: "
                  f"{s['seconds']:.2f} s of the processor, as much as {s['seconds'] / s['pass']:.0f} passes of one "
                  f"sample ({s['pass'] * 1000:.2f} ms each): {parts}.", ""]
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]]) -> str:
    """Three lines over a logarithmic axis of classes, each beside its value at 10 classes."""
    from math import log10

    points = sorted((r for r in rows if r["classes"] > 0), key=lambda r: r["classes"])
    ten = next((r for r in points if r["classes"] == 10), points[0])
    series = {"passes": ("#3d6a94", [r["passes"] / ten["passes"] for r in points]),
              "seconds": ("#b42318", [r["seconds"] / ten["seconds"] for r in points]),
              "peak memory": ("#1f6b4a", [r["peak"] / ten["peak"] for r in points])}
    low = min(0.1, *(v for _, vs in series.values() for v in vs))
    high = max(10.0, *(v for _, vs in series.values() for v in vs))
    left, right, top, bottom = 62.0, 500.0, 24.0, 300.0

    def x(classes: float) -> float:
        return left + (right - left) * log10(classes / points[0]["classes"]) / log10(
            points[-1]["classes"] / points[0]["classes"])

    def y(value: float) -> float:
        return bottom - (bottom - top) * log10(value / low) / log10(high / low)

    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 350" font-family="sans-serif" font-size="12">',
           '<rect width="640" height="350" fill="#fffefb"/>']
    for decade in (0.1, 0.3, 1, 3, 10, 30, 100):
        if low <= decade <= high:
            out.append(f'<path d="M{left} {y(decade):.1f}H{right}" stroke="#e2ddd2"/><text x="{left - 8}" '
                       f'y="{y(decade) + 4:.1f}" text-anchor="end" fill="#6a655c">{decade:g} ×</text>')
    for r in points:
        out.append(f'<text x="{x(r["classes"]):.1f}" y="{bottom + 20}" text-anchor="middle" fill="#6a655c">'
                   f'{r["classes"]:,}</text>')
    out.append(f'<text x="{(left + right) / 2}" y="{bottom + 40}" text-anchor="middle" fill="#6a655c">classes</text>'
               f'<text x="{left}" y="14" fill="#6a655c">a default scan, beside one of 10 classes</text>')
    taken: list[float] = []
    for name, (colour, values) in sorted(series.items(), key=lambda s: -s[1][1][-1]):
        places = [(x(r["classes"]), y(v)) for r, v in zip(points, values, strict=True)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.4"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.6" fill="{colour}"/>' for a, b in places]
        at = max([places[-1][1], *(t + 15 for t in taken)])
        taken.append(at)
        out.append(f'<text x="{right + 10}" y="{at + 4:.1f}" fill="{colour}">{name} {values[-1]:.1f} ×</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 10, 43, 200, 1000])
    parser.add_argument("--rows", type=Path, help="keep the rows here; what is there is not run again")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)  # classes; 0: static stages; -1: a whole scan
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(point(options.child) if options.child > 0 else static() if options.child == 0 else whole()))
        return
    kept = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = [json.loads(line) for line in kept]
    for classes in (0, -1, *options.classes):
        if any(r["classes"] == classes for r in rows):
            continue
        done = subprocess.run([sys.executable, __file__, "--child", str(classes)], capture_output=True, text=True,
                              check=False)
        if done.returncode:
            print(f"{classes} classes: exit code {done.returncode}: {done.stderr[-400:]}", flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        if sum(r["classes"] > 0 for r in rows) > 1:
            options.out.write_text(table(rows, "python benchmarks/cost.py"))
            options.out.with_suffix(".svg").write_text(picture(rows))


if __name__ == "__main__":
    main()
