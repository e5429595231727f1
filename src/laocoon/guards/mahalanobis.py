"""A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks.

Lee, Lee, Lee and Shin, NeurIPS 2018, arXiv 1807.03888. For each layer l one covariance around a mean for each class:

    M_l(x) = (f_l(x) − μ_{l,ŷ})ᵀ Σ_l⁻¹ (f_l(x) − μ_{l,ŷ}),  ŷ the model's answer.

Departures: the class is the model's answer and not the nearest mean, since a trigger moves a sample to the answer, and
far from what the answer usually looks like; the paper weighs layers by a regression on attacks, which a defender does
not have: here log M_l in units of clean samples, and the strangest layer decides; the spread of each channel over the
picture stands beside its mean; Σ is shrunk, for a handful of samples a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.recipes.class_distances import class_gaussian, stacked
from laocoon.recipes.layer_guard import Columns, LayerGuard
from laocoon.recipes.taps import Reading


@dataclass(frozen=True)
class Mahalanobis(LayerGuard):
    """Distance to the class that the model answers, in several layers."""

    layers: int = 3  # read at most so many, evenly over the last three quarters of the depth
    shrink: float = 0.2  # share of the identity in the covariance
    rank: int = 128  # directions kept of the covariance; the others count as equal

    card: ClassVar[Card] = Card(
        name="mahalanobis",
        paper="A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks "
              "(NeurIPS 2018)",
        url="https://arxiv.org/abs/1807.03888", modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.FEATURES, Capability.CLEAN}),
        misses="triggers that look like the target class to every layer, such as strong warps on a weak classifier "
               "(WaNet by poisoning, CIFAR-10 at 50 % clean accuracy: AUROC 0.59; 0.97 over 27 implants); it also "
               "flags clean samples from elsewhere.",
        summary="class-conditional distances in several layers, one forward pass",
        quick={},
        fails={
            "check_scores_stamped_above_clean/text":
                "on the review twins, whose trigger only just overrules a text, AUROC is 0.58",
        })

    def columns(self, clean: Reading, classes: int) -> Columns:
        said = clean.logits.argmax(1)
        layers = [class_gaussian(states, said, classes, shrink=self.shrink, rank=self.rank) for states in clean.states]
        whole = stacked(layers, clean.columns)

        def look(reading: Reading) -> Tensor:
            return whole.distances(reading.whole, reading.logits.argmax(1)).clamp_min(1e-6).log()

        return look
