"""The inversion engine against a faithful per-class Neural Cleanse, and against the model's own bare pass.

    python benchmarks/engine.py [--zoo FOLDER] [--data digits] [--models 4] [--out FILE.md]

Neural Cleanse (Wang et al., S&P 2019) as published: one class after the other, Adam at 0.1 with betas (0.5, 0.9),
mask and pattern through tanh, λ from 1e-3 raised by 1.5 and lowered by 1.5^1.5 around 99 % success with a patience of
5 epochs, 50 epochs over the clean samples; or 1,000 optimiser steps per class, the original script's schedule.
Both sides get the same samples, batch size and threads. Ratios in one run; absolute times are this machine's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.lab.datasets import load
from laocoon.lab.reference import clean_samples
from laocoon.lab.zoo import specimens
from laocoon.recipes.folding import folded
from laocoon.recipes.inversion import Search, invert
from laocoon.triggers.patch import Patch
from laocoon.verdict.examination import prepare

WANTED = 0.99  # success that ends the shrinking, both sides


@dataclass
class Ran:
    """size per class, passes, seconds"""

    size: Tensor
    passes: int
    seconds: float

    @property
    def suspect(self) -> int:
        return int(self.size.argmin())


def neural_cleanse(module: nn.Module, samples: Samples, classes: int, batch: int, steps: int, epoch: int) -> Ran:
    """Per class, `steps` optimiser steps; λ is looked at every `epoch` steps."""
    start, passes, sizes = time.perf_counter(), 0, []
    rng = torch.Generator().manual_seed(0)
    for target in range(classes):
        shape = samples.inputs.shape[1:]
        mask = torch.zeros(1, 1, *shape[1:], requires_grad=True)
        pattern = torch.zeros(1, *shape, requires_grad=True)
        optimiser = torch.optim.Adam([mask, pattern], lr=0.1, betas=(0.5, 0.9))
        weight, best, up, down, rate, seen = 1e-3, float("inf"), 0, 0, 0.0, 0
        for step in range(steps):
            index = torch.randint(0, len(samples), (batch,), generator=rng)
            m, p = torch.tanh(mask) / 2 + 0.5, torch.tanh(pattern) / 2 + 0.5
            logits = module((1 - m) * samples.inputs[index] + m * p)
            wanted = torch.full((batch,), target)
            loss = functional.cross_entropy(logits, wanted) + weight * m.sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            passes += batch
            rate, seen = rate + float((logits.argmax(1) == target).float().mean()), seen + 1
            if (step + 1) % epoch == 0:
                rate /= seen
                if rate >= WANTED and float(m.sum()) < best:
                    best = float(m.sum())
                up, down = (up + 1, 0) if rate >= WANTED else (0, down + 1)
                if up >= 5:
                    weight, up = weight * 1.5, 0
                elif down >= 5:
                    weight, down = weight / 1.5**1.5, 0
                rate, seen = 0.0, 0
        sizes.append(best if best < float("inf") else float(m.sum()))
    return Ran(torch.tensor(sizes), passes, time.perf_counter() - start)


def engine(module: nn.Module, samples: Samples, classes: int, steps: int, batch: int) -> Ran:
    """The engine, folding included."""
    start, ctx = time.perf_counter(), Context(seed=0)
    forward = folded(module, samples.inputs[:4])
    everything = torch.arange(classes)[:, None].expand(classes, classes)
    found = invert(forward, Patch(), everything, samples, Search(steps=steps, batch=batch, wanted=WANTED), ctx)
    return Ran(found.effective, round(ctx.spent), time.perf_counter() - start)


def bare(module: nn.Module, samples: Samples, seconds: float = 1.0) -> float:
    """Passes per second of the folded model's forward and input gradient alone, at its best batch size."""
    forward, best = folded(module, samples.inputs[:4]), 0.0
    for size in (32, 64, 128, 256, 512):
        x = samples.inputs[torch.arange(size) % len(samples)].contiguous(memory_format=torch.channels_last)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            leaf = x.detach().requires_grad_(True)
            functional.cross_entropy(forward(leaf), torch.zeros(size, dtype=torch.long)).backward()
            count += size
        best = max(best, count / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, default=Path.home() / ".cache" / "laocoon" / "zoo")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load(options.data, None, options.zoo / "data")
    chosen = [s for s in specimens(options.zoo, "fusion") if s.specification.data == options.data
              and s.facts.get("attack") == "badnets" and s.facts.get("attack_success", 0) >= 0.9
              and s.facts["goal"].startswith("class ") and " to " not in s.facts["goal"]][:options.models]
    lines = ["| model | engine finds | NC 50 epochs | NC 1,000 steps | passes: NC 50 / NC 1,000 to engine "
             "| time: NC 50 / NC 1,000 to engine | engine to bare pass |", "|-|-|-|-|-|-|-|"]
    for specimen in chosen:
        subject = specimen.subject(dataset)
        samples = prepare(subject.module, clean_samples(dataset, 0), 0, subject.classes).fit
        assert samples is not None
        per_epoch = max(1, len(samples) // 32)
        ours = engine(subject.module, samples, subject.classes, options.steps, options.batch)
        epochs = neural_cleanse(subject.module, samples, subject.classes, 32, 50 * per_epoch, per_epoch)
        steps = neural_cleanse(subject.module, samples, subject.classes, 32, 1000, per_epoch)
        truth = specimen.facts["target"]
        hit = lambda ran: "yes" if ran.suspect == truth else "no"  # noqa: B023, E731
        share = (ours.passes / ours.seconds) / bare(subject.module, samples)
        s = specimen.specification
        lines.append(f"| {s.data} {s.architecture} {s.kind} | {hit(ours)} | {hit(epochs)} | {hit(steps)} "
                     f"| {epochs.passes / ours.passes:.1f} / {steps.passes / ours.passes:.1f} "
                     f"| {epochs.seconds / ours.seconds:.1f} / {steps.seconds / ours.seconds:.1f} | {share:.2f} |")
        print(lines[-1], flush=True)
    if options.out:
        command = f"Command: `python benchmarks/engine.py --data {options.data}`"
        options.out.write_text("\n".join([command, "", *lines, ""]))


if __name__ == "__main__":
    main()
