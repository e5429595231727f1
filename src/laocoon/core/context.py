"""What a method is given beside its case: randomness, device, budget, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from laocoon.core.candidate import Candidate
from laocoon.core.errors import BudgetSpent

Progress = Callable[[str, float, str], None]  # method, fraction done in [0, 1], what was found so far


def _silent(method: str, fraction: float, note: str) -> None:
    pass


@contextmanager
def governed(rng: torch.Generator) -> Iterator[None]:
    """Within the block torch's global generator, which dropout draws from, follows `rng`; both stay as they were."""
    ahead = torch.Generator()
    ahead.set_state(rng.get_state())
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=ahead)))
        yield


@dataclass
class Context:
    """Budget is counted in sample-level forward-backward passes; a forward alone counts as a third of one.

    All randomness of a method comes from `rng` (a CPU generator, so that draws agree across devices). Where it trains a
    network that may draw from torch's global generator, as dropout does, it does so `governed` by it.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    budget: float = float("inf")
    seconds: float = float("inf")
    progress: Progress = _silent
    batch: int = 512  # largest number of samples in one pass through the model, bounds memory
    spent: float = 0.0
    candidates: list[Candidate] = field(default_factory=list)  # recovered triggers, in the order found
    rng: torch.Generator = field(init=False)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.rng = torch.Generator().manual_seed(self.seed)
        self.started = time.monotonic()

    @property
    def left(self) -> float:
        return max(0.0, self.budget - self.spent)

    def spend(self, samples: int, *, backward: bool = True) -> None:
        """Account for a pass of `samples` samples before making it; raise BudgetSpent when it does not fit."""
        cost = float(samples) if backward else samples / 3.0
        if self.spent + cost > self.budget * (1 + 1e-9):
            raise BudgetSpent(f"the budget of {self.budget:.0f} passes is spent.", "Raise --budget.")
        if time.monotonic() - self.started > self.seconds:
            raise BudgetSpent(f"the time limit of {self.seconds:.0f} s is over.", "Raise the limit.")
        self.spent += cost

    def child(self, budget: float, name: str) -> Context:
        """A context for one method: its own stream of randomness (so order does not matter) and allowance."""
        seed = self.seed
        for byte in name.encode():
            seed = (seed * 1000003 + byte) % (2**31 - 1)
        left = self.seconds - (time.monotonic() - self.started)
        return Context(seed=seed, device=self.device, budget=min(budget, self.left), seconds=left,
                       progress=self.progress, batch=self.batch)
