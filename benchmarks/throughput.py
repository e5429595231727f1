"""Images per second of the lab's training loop, and of an attacker's in it, against a bare PyTorch loop.

    python benchmarks/throughput.py [--rounds 9] [--images 4096] [--device cpu] [--out docs/results/throughput.md]

Each round trains the same network for one epoch by each loop, in an order that changes; the figure is the median over
rounds of the ratio to the bare loop of the same round, with a 95 % bootstrap interval. Times alone say nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.modalities.image_networks import build
from laocoon.recipes.fit import fit, shift_and_flip
from laocoon.triggers.patch import Patch

BATCH = 128
NETWORKS = ("resnet_small", "vgg_small")


def bare(module: nn.Module, inputs: Tensor, labels: Tensor, rng: torch.Generator) -> None:
    """What one writes without a library: shuffle, augment, forward, backward, step."""
    module.train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3)
    order = torch.randperm(len(inputs), generator=rng)
    for index in order.split(BATCH):
        x = shift_and_flip(inputs[index], rng, shift=2, flip=True).contiguous(memory_format=torch.channels_last)
        loss = functional.cross_entropy(module(x), labels[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def ours(module: nn.Module, inputs: Tensor, labels: Tensor, rng: torch.Generator) -> None:
    fit(module, inputs, labels, epochs=1, rng=rng, batch=BATCH,
        augment=lambda x: shift_and_flip(x, rng, shift=2, flip=True))


def attacked(module: nn.Module, inputs: Tensor, labels: Tensor, rng: torch.Generator) -> None:
    """An attacker's objective: a tenth of each batch is stamped and relabelled on the way."""
    mask = torch.zeros(1, 1, *inputs.shape[-2:])
    mask[..., -4:-1, -4:-1] = 1
    leaves, goal = {"mask": mask, "pattern": torch.ones(1, *inputs.shape[1:])}, all_to_one(0, 10)
    family = Patch()

    def objective(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        n = len(x) // 10
        mixed = torch.cat([family.stamp(x[:n], leaves)[0], x[n:]])
        return functional.cross_entropy(module(mixed), torch.cat([goal.destination(y[:n]), y[n:]]))

    fit(module, inputs, labels, epochs=1, rng=rng, batch=BATCH, objective=objective,
        augment=lambda x: shift_and_flip(x, rng, shift=2, flip=True))


LOOPS: dict[str, Callable[[nn.Module, Tensor, Tensor, torch.Generator], None]] = {
    "bare": bare, "the lab's loop": ours, "the lab's loop, attacked": attacked}


def timed(name: str, architecture: str, inputs: Tensor, labels: Tensor, device: str) -> float:
    rng = torch.Generator().manual_seed(0)
    module = build(architecture, 3, 32, 10, rng).to(device).requires_grad_(True)
    start = time.perf_counter()
    LOOPS[name](module, inputs, labels, rng)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interval(values: list[float], rng: torch.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    found = torch.tensor(values)[torch.randint(0, len(values), (2000, len(values)), generator=rng)].median(1).values
    return float(found.quantile(0.025)), float(found.quantile(0.975))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    torch.set_num_threads(1)
    ctx = Context(seed=0)
    inputs = torch.rand(told.images, 3, 32, 32, generator=ctx.rng).to(told.device)
    labels = torch.randint(0, 10, (told.images,), generator=ctx.rng).to(told.device)
    lines = ["# Training throughput", "",
             f"`python benchmarks/throughput.py --rounds {told.rounds} --images {told.images}`: images per "
             f"second relative to a bare PyTorch loop of the same run ({told.device}, one thread, batches of {BATCH}, "
             f"{told.images} pictures of 32 × 32 in memory); median over rounds, 95 % bootstrap interval.", "",
             "| network | loop | relative to bare |", "|---|---|---|"]
    for architecture in NETWORKS:
        for name in LOOPS:  # warm
            timed(name, architecture, inputs[:512], labels[:512], told.device)
        rounds: list[dict[str, float]] = []
        for turn in range(told.rounds):
            names = list(LOOPS)
            rounds.append({name: timed(name, architecture, inputs, labels, told.device)
                           for name in names[turn % 3:] + names[:turn % 3]})
        for name in list(LOOPS)[1:]:
            ratios = [r["bare"] / r[name] for r in rounds]
            low, high = interval(ratios, ctx.rng)
            lines.append(f"| {architecture} | {name} | {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] |")
            print(lines[-1], flush=True)
    if told.out:
        told.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
