"""What tier one of the guard adds to a forward pass, as a ratio in one run.

    python benchmarks/guard_latency.py [--batch 16] [--rounds 60]

Each round times a plain pass and a guarded one right after each other, on the same batch, in turn first; the figure is
the median over rounds of guarded / plain − 1, and its 10 to 90 % range, in seconds of the processor (one thread), so
that what else the machine does makes little difference. Networks have random weights: what
they answer makes no difference to the time. The guard is tier one of the default pipeline, as served.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.subject import Subject
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.verdict.guard_tiers import Tiers, fitted

NETWORKS = (
    ("resnet_small", 32), ("resnet", 32), ("vgg", 32), ("separable", 32), ("vit", 32), ("cnn", 32), ("resnet", 64),
    ("resnet18 (torchvision)", 64))


def added(module: nn.Module, side: int, batch: int, rounds: int, per_class: int,
          classes: int) -> tuple[float, list[float]]:
    """Milliseconds of a plain pass, and the share that the guard adds, each round."""
    rng = torch.Generator().manual_seed(0)
    count = per_class * classes
    clean = Samples(torch.rand(count, 3, side, side, generator=rng), torch.arange(count) % classes)
    subject = Subject(module, Image(), classes, (3, side, side))
    guard = fitted(subject, clean, Tiers(second=()), Context())
    x = torch.rand(batch, 3, side, side, generator=rng)

    def plain() -> None:
        with torch.no_grad():
            subject.module(x)

    def guarded() -> None:
        guard.judge(x)

    def timed(call: Callable[[], None]) -> float:
        start = time.thread_time()
        call()
        return time.thread_time() - start

    for call in (plain, guarded) * 5:
        call()
    ratios, base = [], []
    for number in range(rounds):
        pair = (plain, guarded) if number % 2 else (guarded, plain)
        took = {call: timed(call) for call in pair}
        ratios.append(took[guarded] / took[plain] - 1)
        base.append(took[plain])
    return statistics.median(base) * 1000, ratios


def _module(name: str, side: int, classes: int) -> nn.Module:
    if name.startswith("resnet18"):
        from torchvision.models import resnet18

        torch.manual_seed(0)
        return resnet18(num_classes=classes).eval()
    return build(name, 3, side, classes, torch.Generator().manual_seed(0)).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | side | plain, ms | added, % | 10 to 90 % |\n|---|---|---|---|---|")
    for name, side in NETWORKS:
        module = _module(name, side, options.classes)
        base, ratios = added(module, side, options.batch, options.rounds, options.per_class, options.classes)
        cuts = statistics.quantiles(ratios, n=10)
        print(f"| {name} | {side} | {base:.1f} | {100 * statistics.median(ratios):.1f} | "
              f"{100 * cuts[0]:.1f} to {100 * cuts[-1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
