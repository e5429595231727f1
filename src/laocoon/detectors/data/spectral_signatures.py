"""Spectral Signatures in Backdoor Attacks. Tran, Li and Madry, NeurIPS 2018, arXiv 1811.00636.

The poisoned samples of a class shift the mean of its representations, so that they stand out along the direction of
largest variance. With R the centred representations of a class and v their first right singular vector,

    score(x) = ((R(x) − mean) · v)².

Departure: a score per sample; the paper removes 1.5 ε of every class for a known poison rate ε.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import DataDetector
from laocoon.recipes import latent_statistics
from laocoon.recipes.representations import last_layer


@dataclass(frozen=True)
class SpectralSignatures(DataDetector):
    """Squared projection of a sample's representation on the first singular direction of its class."""

    card: ClassVar[Card] = Card(
        name="spectral_signatures",
        paper="Spectral Signatures in Backdoor Attacks (NeurIPS 2018)",
        url="https://arxiv.org/abs/1811.00636",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.FEATURES}),
        misses="poison whose direction carries less variance than the class itself (blended: 49 % found at 1 "
               "% false alarms); poison rates so high that the poison is the larger part of its class; "
               "clean-label poison; mislabelled samples score high as well (AUROC 0.78).",
        summary="poison stands out along the first singular direction of its class",
        fails={
            "check_scores_poison_above_clean/text":
                "on the review twins, whose clean texts hold rare words too, AUROC is 0.64",
        },
    )

    def scores(self, case: DataCase, ctx: Context) -> Tensor:
        if case.subject is None:
            raise NotApplicable("spectral signatures need a model that was trained on the samples.")
        known = last_layer(case.subject, case.suspects.inputs, ctx)
        return latent_statistics.spectral_signatures(known.features, case.suspects.labels.cpu())
