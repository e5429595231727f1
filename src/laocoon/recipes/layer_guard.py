"""What guards that look at hidden layers share: one pass that reads them, and scores alike from layer to layer.

An author writes `columns`: from readings of clean samples, a function that gives each sample one number per layer,
higher for stranger. The numbers of a layer are put in units of what clean samples give that the function was not fitted
on (four folds: median and half the 16-to-84 % range), and the strangest layer decides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Checked, Guard
from laocoon.core.subject import Modality
from laocoon.recipes.requests import acceptable, nothing
from laocoon.recipes.taps import Reading, Tap, tap

Columns = Callable[[Reading], Tensor]  # a reading to [batch, columns]
LEAST = 8  # clean samples
FOLDS = 4
CHUNK = 256  # samples checked at once: bounds memory
LARGEST = 1e6  # of a score: nothing infinite leaves a guard


@dataclass(frozen=True, eq=False)
class Judge:
    """Columns in units of clean samples; the score of a sample is its largest."""

    columns: Columns
    centre: Tensor  # [columns]
    spread: Tensor  # [columns]
    held: Tensor  # [clean samples]: their scores by columns fitted on the other folds

    def __call__(self, reading: Reading) -> Tensor:
        """[batch], higher is more suspicious; never NaN: a reading that is no number is the most suspicious."""
        return strangest((self.columns(reading) - self.centre) / self.spread)


def strangest(units: Tensor) -> Tensor:
    """The largest of each row, bounded."""
    return units.nan_to_num(LARGEST, LARGEST, -LARGEST).amax(1).clamp(-LARGEST, LARGEST)


@dataclass(frozen=True, eq=False)
class LayerWatch:
    """One forward pass, with a look at hidden layers on its way."""

    tap: Tap
    judge: Callable[[Reading], Tensor]
    shape: tuple[int, ...]
    device: torch.device
    modality: Modality
    passes: float = 1.0

    def check(self, batch: Tensor) -> Checked:
        batch = acceptable(batch, self.shape, self.modality).to(self.device)
        if not len(batch):
            return nothing(self.tap.network, self.shape, self.device, self.modality)
        with torch.no_grad():
            parts = [(reading.logits, self.judge(reading)) for chunk in batch.split(CHUNK)
                     for reading in (self.tap.read(chunk),)]
        return Checked(torch.cat([logits for logits, _ in parts]), torch.cat([scores for _, scores in parts]))


class LayerGuard(Guard):
    """Subclasses are frozen dataclasses with a field `layers`, and write only `columns`."""

    layers: int

    @abstractmethod
    def columns(self, clean: Reading, classes: int) -> Columns:
        """Fitted on readings of clean samples; classes are those that the model answers."""

    def fit(self, case: ModelCase, ctx: Context) -> LayerWatch:
        made, reading = read_clean(case, self.layers, ctx)
        return LayerWatch(made, self.learn(reading, case.subject.classes, ctx.rng), case.subject.input_shape,
                          reading.logits.device, case.subject.modality)

    def learn(self, clean: Reading, classes: int, rng: torch.Generator) -> Judge:
        """The judge of a reading. No pass through the model is made."""
        order = torch.randperm(len(clean.logits), generator=rng).to(clean.logits.device)
        held = []
        for fold in range(FOLDS):
            rest = torch.cat([order[k::FOLDS] for k in range(FOLDS) if k != fold])
            held.append(self.columns(clean.rows(rest), classes)(clean.rows(order[fold::FOLDS])))
        found = torch.cat(held)
        low, centre, high = found.quantile(torch.tensor([0.16, 0.5, 0.84], device=found.device), dim=0)
        spread = ((high - low) / 2).clamp_min(1e-3 * found.abs().amax().clamp_min(1e-6))
        scores = strangest((found - centre) / spread)
        ordered = torch.empty_like(scores)
        ordered[torch.cat([order[fold::FOLDS] for fold in range(FOLDS)])] = scores
        return Judge(self.columns(clean, classes), centre, spread, ordered)


def read_clean(case: ModelCase, layers: int, ctx: Context) -> tuple[Tap, Reading]:
    """A tap on the subject, and what the clean samples say to it."""
    if case.fit is None or len(case.fit) < LEAST:
        raise NotApplicable(f"at least {LEAST} clean samples are needed to fit on.")
    made = tap(case.subject, case.fit.inputs.to(ctx.device), ctx, layers)
    return made, made.read_all(case.fit.inputs.to(ctx.device), ctx)
