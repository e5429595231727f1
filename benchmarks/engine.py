"""The inversion engine against a faithful per-class Neural Cleanse, and against the model's own bare pass.

    python benchmarks/engine.py [--zoo FOLDER] [--data digits mnist cifar10] [--models N] [--rows FILE] [--out FILE.md]

Neural Cleanse (Wang et al., S&P 2019) as published: one class after the other, Adam at 0.1 with betas (0.5, 0.9),
mask and pattern through tanh, λ from 1e-3 raised by 1.5 and lowered by 1.5^1.5 around 99 % success with a patience of
5 epochs; 50 epochs over the clean samples, or 1,000 optimiser steps of 32 per class, the original script's schedule.
The engine twice: `halved`, 12 steps of 16 samples for all classes, 12 more for the best five, 12 more for the best two
(λ steeper than in a scan, so that few steps suffice), and `plain`, the steps of a default scan's patch search.
Both sides get the same samples, the same wanted success of 99 % and one thread; none stops before its schedule ends.
Times are of the processor, not of the clock: other work on the machine then weighs less. Settings were tried on the
fusion split of the zoo, which the models here are of.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.cli.memory import keep_freed_memory
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.lab.datasets import load
from laocoon.lab.reference import clean_samples
from laocoon.lab.zoo import specimens
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Halving, Search, halve, invert
from laocoon.triggers.patch import Patch
from laocoon.verdict.examination import prepare

TARGET = Path(__file__).parent.parent / "docs" / "results" / "engine.md"
WANTED = 0.99  # success that an arm must keep while it shrinks, both sides
HALVED_STEPS, HALVED_KEEP = (12, 12, 12), (5, 2)  # of each stage; arms that go on after it
HALVED_BATCH = 16
PLAIN_STEPS, PLAIN_BATCH = 80, 20


@dataclass
class Ran:
    """Size per class, passes, seconds of processor time."""

    size: Tensor
    passes: int
    seconds: float

    @property
    def suspect(self) -> int:
        return int(self.size.argmin())


def neural_cleanse(module: nn.Module, samples: Samples, classes: int, draws: Callable[[], Sequence[Tensor]],
                   epochs: int) -> Ran:
    """Per class, `epochs` rounds over the index batches that `draws` gives; λ is looked at after every round."""
    start, passes, sizes = time.process_time(), 0, []
    for target in range(classes):
        shape = samples.inputs.shape[1:]
        mask = torch.zeros(1, 1, *shape[1:], requires_grad=True)
        pattern = torch.zeros(1, *shape, requires_grad=True)
        optimiser = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
        weight, best, up, down = 1e-3, float("inf"), 0, 0
        for _ in range(epochs):
            hits = seen = 0
            for index in draws():
                m, p = torch.tanh(mask) / 2 + 0.5, torch.tanh(pattern) / 2 + 0.5
                logits = module((1 - m) * samples.inputs[index] + m * p)
                wanted = torch.full((len(index),), target)
                loss = functional.cross_entropy(logits, wanted) + weight * m.sum()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                passes, seen = passes + len(index), seen + len(index)
                hits += int((logits.argmax(1) == target).sum())
            if hits / seen >= WANTED:
                best = min(best, float(m.detach().sum()))
                up, down = up + 1, 0
            else:
                up, down = 0, down + 1
            if up >= 5:
                weight, up = weight * 1.5, 0
            elif down >= 5:
                weight, down = weight / 1.5**1.5, 0
        sizes.append(best if best < float("inf") else float(m.detach().sum()))
    return Ran(torch.tensor(sizes), passes, time.process_time() - start)


def by_epochs(samples: Samples, classes: int, module: nn.Module) -> Ran:
    rng = torch.Generator().manual_seed(0)
    return neural_cleanse(module, samples, classes, lambda: torch.randperm(len(samples), generator=rng).split(32), 50)


def by_steps(samples: Samples, classes: int, module: nn.Module) -> Ran:
    """1,000 steps in rounds of as many as an epoch has."""
    rng, per = torch.Generator().manual_seed(0), max(1, len(samples) // 32)

    def drawn() -> Sequence[Tensor]:
        return [torch.randint(0, len(samples), (32,), generator=rng) for _ in range(per)]

    return neural_cleanse(module, samples, classes, drawn, 1000 // per)


def plain(samples: Samples, classes: int, module: nn.Module, steps: int = PLAIN_STEPS) -> Ran:
    """The engine on all arms, folding included."""
    start, ctx = time.process_time(), Context(seed=0)
    everything = torch.arange(classes)[:, None].expand(classes, classes)
    search = Search(steps=steps, batch=PLAIN_BATCH, wanted=WANTED)
    found = invert(folded(module, samples.inputs[:4]), Patch(), everything, samples, search, ctx)
    return Ran(found.effective, round(ctx.spent), time.process_time() - start)


def halved(samples: Samples, classes: int, module: nn.Module) -> Ran:
    """The engine with fewer arms at each stage, folding included."""
    start, ctx, family = time.process_time(), Context(seed=0), Patch()
    forward = folded(module, samples.inputs[:4])
    everything = torch.arange(classes)[:, None].expand(classes, classes)
    search = Search(batch=HALVED_BATCH, wanted=WANTED, pressure=1.2, start=0.3)
    found = halve(forward, family, everything, samples, Halving(search, HALVED_STEPS, HALVED_KEEP), ctx).whole
    return Ran(found.effective, round(ctx.spent), time.process_time() - start)


def shares_of_bare(samples: Samples, classes: int, module: nn.Module) -> dict[str, float]:
    """Passes per second of the engine (its folding counts) in those of a bare forward and input gradient at the best
    batch size, parameters frozen: of the network as it is given ("own") and of its folded twin in the same memory
    layout ("folded"). Medians of three, taken in turns."""
    own, twin = copy.deepcopy(module).eval().requires_grad_(False), folded(module, samples.inputs[:4])
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(3):
        ran = plain(samples, classes, module, 40)
        rates.setdefault(("engine", 0), []).append(ran.passes / ran.seconds)
        for name, forward in (("own", own), ("folded", twin)):
            for size in (16, 32, 64, 128, 256, 512):
                x = samples.inputs[torch.arange(size) % len(samples)]
                if name == "folded":
                    x = x.contiguous(memory_format=torch.channels_last)
                count, start = 0, time.process_time()
                while time.process_time() - start < 0.5:
                    leaf = x.detach().requires_grad_(True)
                    functional.cross_entropy(forward(leaf), torch.zeros(size, dtype=torch.long)).backward()
                    count += size
                rates.setdefault((name, size), []).append(count / (time.process_time() - start))
    best: dict[str, float] = {}
    for (name, _), found in rates.items():
        best[name] = max(best.get(name, 0.0), median(found))
    return {name: best["engine"] / best[name] for name in ("own", "folded")}


WAYS = {"halved": halved, "plain": plain, "epochs": by_epochs, "steps": by_steps}


def measured(specimen: Any, dataset: Any) -> dict[str, Any]:
    subject, s = specimen.subject(dataset), specimen.specification
    samples = prepare(subject.module, clean_samples(dataset, 0), 0, subject.classes).fit
    assert samples is not None
    row: dict[str, Any] = {"model": f"{s.data} {s.architecture} {s.kind} seed {s.seed}", "samples": len(samples),
                           "target": specimen.facts["target"]}
    for name, run in WAYS.items():
        ran = run(samples, subject.classes, subject.module)
        row[name] = {"suspect": ran.suspect, "passes": ran.passes, "seconds": ran.seconds}
    return {**row, "shares": shares_of_bare(samples, subject.classes, subject.module)}


def table(rows: list[dict[str, Any]], command: str) -> str:
    def ratio(row: dict[str, Any], against: str, ours: str, what: str) -> float:
        return float(row[against][what] / row[ours][what])

    def hits(way: str) -> str:
        found = sum(r[way]["suspect"] == r["target"] for r in rows)
        low, high = binomial_interval(found, len(rows))
        return f"{found} of {len(rows)} [{low:.0%}, {high:.0%}]"

    lines = ["# The engine against Neural Cleanse", "",
             f"Command: `{command}`, tier `desk`, seed 0, one thread, 20 clean samples a class of which those that "
             "the model gets right and that are not held out are used, by both sides. Models: all-to-one patch "
             "backdoors of the zoo's fusion split with attack success of 90 % or more, 10 classes. Passes are "
             "sample-level forward-backward passes; a forward alone counts as a third. Seconds are of the processor.",
             "",
             "`halved`: 12 steps of 16 samples for all classes, 12 more for the best five, 12 more for the best two. "
             "These settings were tried on these same models; a scan does not use them (its patch search is `plain`).",
             "",
             "| way | names the target | passes, median | seconds, median |", "|-|-|-|-|"]
    names = {"halved": "engine, halved (36 steps at most)", "plain": "engine, plain (80 steps)",
             "epochs": "Neural Cleanse, 50 epochs", "steps": "Neural Cleanse, 1,000 steps"}
    lines += [f"| {names[w]} | {hits(w)} | {median(r[w]['passes'] for r in rows):,.0f} "
              f"| {median(r[w]['seconds'] for r in rows):.1f} |" for w in WAYS]
    lines += ["", "How many times fewer passes and less time the engine needs: median (smallest, largest) over models.",
              "", "| engine | against | passes | time |", "|-|-|-|-|"]
    for ours in ("halved", "plain"):
        for other in ("epochs", "steps"):
            told = []
            for what in ("passes", "seconds"):
                each = sorted(ratio(r, other, ours, what) for r in rows)
                told.append(f"{median(each):.1f} ({each[0]:.1f}, {each[-1]:.1f})")
            lines.append(f"| {ours} | {names[other]} | {told[0]} | {told[1]} |")
    own, twin = (sorted(r["shares"][name] for r in rows) for name in ("own", "folded"))
    lines += ["", "Passes per second of the engine in those of the bare forward and input gradient at its best batch "
              f"size: median {median(own):.2f}, from {own[0]:.2f} to {own[-1]:.2f}, of the model as it is; "
              f"{median(twin):.2f}, from {twin[0]:.2f} to {twin[-1]:.2f}, of its folded twin, on which it runs.", "",
              "| model | samples | halved | plain | 50 epochs | 1,000 steps | passes, 50 epochs to halved "
              "| time, 50 epochs to halved | share of bare, own | folded |", "|-|-|-|-|-|-|-|-|-|-|"]
    for r in rows:
        marks = " | ".join("yes" if r[w]["suspect"] == r["target"] else f"no ({r[w]['suspect']})" for w in WAYS)
        lines.append(f"| {r['model']} | {r['samples']} | {marks} | {ratio(r, 'epochs', 'halved', 'passes'):.1f} "
                     f"| {ratio(r, 'epochs', 'halved', 'seconds'):.1f} | {r['shares']['own']:.2f} "
                     f"| {r['shares']['folded']:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path.home() / ".cache" / "laocoon" / "zoo")
    parser.add_argument("--data", nargs="+", default=["digits", "mnist", "cifar10"])
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--rows", type=Path, help="keep the rows here; what is there is not run again")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    kept = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = [json.loads(line) for line in kept]
    for specimen in specimens(options.zoo, "fusion"):
        facts, s = specimen.facts, specimen.specification
        wanted = (s.data in options.data and facts.get("attack") == "badnets" and facts.get("attack_success", 0) >= 0.9
                  and facts["goal"].startswith("class ") and " to " not in facts["goal"])
        name = f"{s.data} {s.architecture} {s.kind} seed {s.seed}"
        if not wanted or len(rows) >= options.models or any(r["model"] == name for r in rows):
            continue
        rows.append(measured(specimen, load(s.data, None, options.zoo / "data")))
        print(json.dumps(rows[-1]), flush=True)
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(table(rows, f"python benchmarks/engine.py --data {' '.join(options.data)}"))


if __name__ == "__main__":
    main()
