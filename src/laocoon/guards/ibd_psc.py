"""IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency.

Hou et al., ICML 2024, arXiv 2405.09786. The scales γ and shifts β of the last k batch normalisations are multiplied by
ω; what a trigger decides keeps its confidence. k starts where clean samples lose theirs (error at least ξ), and n
networks with k, k + 1, … are asked:

    PSC(x) = (1/n) Σ_i softmax(f_{k+i}(x))_ŷ.

Departures: where the network ends before n networks are found, there are fewer of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Guard
from laocoon.recipes.consistency import LEAST, CopyWatch, Profile, profile_of
from laocoon.recipes.shadow import shadow


@dataclass(frozen=True)
class IbdPsc(Guard):
    """Does the answer outlive the amplification of the last batch normalisations?"""

    networks: int = 5  # n
    factor: float = 1.5  # ω
    error: float = 0.6  # ξ: of amplified networks on clean samples, from which on they are used

    card: ClassVar[Card] = Card(
        name="ibd_psc",
        paper="IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency (ICML 2024)",
        url="https://arxiv.org/abs/2405.09786", modalities=frozenset({"image"}),
        needs=frozenset({Capability.QUERY, Capability.WEIGHTS, Capability.CLEAN}),
        misses="all-to-all backdoors (AUROC 0.55) and warps on a weak classifier (0.58); networks without batch "
               "normalisation, or with it folded into the layers before: not applicable.",
        summary="answers that outlive the amplification of batch normalisations; five further passes",
        quick={})

    def fit(self, case: ModelCase, ctx: Context) -> CopyWatch:
        subject, fit = case.subject, case.fit
        assert fit is not None  # the card needs clean samples
        norms = [name for name, layer in subject.module.named_modules()
                 if isinstance(layer, _BatchNorm) and layer.affine]
        if not norms:
            raise NotApplicable("ibd_psc needs batch normalisation with weights, and the network has none.")
        if len(fit) < LEAST:
            raise NotApplicable(f"at least {LEAST} clean samples are needed to fit on.")
        first = self._first(subject.module, norms, fit.inputs.to(ctx.device), ctx)
        copies = tuple((self._amplified(subject.module, norms[-count:]), _same)
                       for count in range(first, min(first + self.networks, len(norms) + 1)))
        clean = profile_of(subject.module, fit, copies, ctx)

        def judge(asked: Profile) -> Tensor:
            return asked.shares.mean(1)

        return CopyWatch(subject.module, copies, judge, subject.input_shape, clean.logits.device)

    def _first(self, module: nn.Module, norms: list[str], inputs: Tensor, ctx: Context) -> int:
        """How many of the last normalisations must be amplified for clean samples to lose their answers."""
        inputs = inputs[:ctx.batch]
        with torch.no_grad():
            ctx.spend(len(inputs), backward=False)
            answers = module(inputs).argmax(1)
            for count in range(1, len(norms) + 1):
                ctx.spend(len(inputs), backward=False)
                changed = self._amplified(module, norms[-count:])(inputs).argmax(1) != answers
                if float(changed.float().mean()) >= self.error:
                    return count
        return max(1, len(norms) - self.networks + 1)

    def _amplified(self, module: nn.Module, names: list[str]) -> nn.Module:
        chosen = {id(module.get_submodule(name)) for name in names}
        changed = shadow(module, own=lambda layer: id(layer) in chosen)
        with torch.no_grad():
            for name in names:
                norm = changed.get_submodule(name)
                norm.weight.mul_(self.factor)  # type: ignore[operator]
                norm.bias.mul_(self.factor)  # type: ignore[operator]
        return changed


def _same(inputs: Tensor) -> Tensor:
    return inputs
