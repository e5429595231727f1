"""Weights that no ordinary training leaves behind: broken, implausible, doubled or out of step.

No paper (state of 2026): the checks that supply-chain scanners make of weights (ModelAudit's test for values beyond
30 · MAD among them), narrowed until ordinary networks pass: heavy tails, pruned and quantised weights, zero-initialised
branches, dead channels and frozen layers are normal. Each finding says that somebody may have edited the file, none
says that there is a backdoor: none is conclusive. Scores run from 0 (just odd) to 1 (impossible after training).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.files.wording import printable

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
SMALL = 64  # tensors below this size have no typical value
LOOKED_AT = 2_000_000  # elements of one tensor that order statistics are taken over


@dataclass(frozen=True)
class WeightSanity(Detector):
    """Non-finite and implausible weights, impossible normalisation, copies."""

    deviations: float = 30.0  # in MADs, from where on a weight is extreme
    gap: float = 4.0  # an extreme weight is also so many times as large as the 99.9th percentile
    gain: float = 1e4  # a normalisation channel that amplifies so many times as much as its layer's median

    card: ClassVar[Card] = Card(
        name="weight_sanity",
        paper="Checks of weights by supply-chain scanners (no paper)",
        url="https://github.com/promptfoo/modelaudit",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.WEIGHTS}),
        misses="every backdoor that was trained in: its weights are as plausible as any.",
        summary="non-finite, extreme, constant and doubled weights, impossible batch-norm statistics",
        fails={"check_scores_planted_above_clean": "a backdoor that was trained in leaves plausible weights."},
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        module = case.subject.module
        state = {n: t.detach() for n, t in module.state_dict(keep_vars=True).items() if t.is_floating_point()}
        for name, tensor in state.items():
            yield from self._tensor(printable(name, 80), tensor.float().cpu())
        yield from _copies(state)
        for name, layer in module.named_modules():
            if isinstance(layer, NORMS):
                yield from self._norm(printable(name, 80), layer)
        yield from _steps(module)

    def _tensor(self, name: str, tensor: Tensor) -> Iterator[Finding]:
        broken = int((~torch.isfinite(tensor)).sum())
        if broken:
            yield Finding("weight_sanity.not_finite", f"tensor {name!r}", 1.0,
                          f"{broken} of {tensor.numel()} values of {name!r} are not finite",
                          numbers={"values": float(broken)})
            return
        if tensor.dim() < 2 or tensor.numel() < SMALL:
            return
        flat = tensor.flatten()
        if bool((flat == flat[0]).all()):
            yield Finding("weight_sanity.constant", f"tensor {name!r}", 0.2,
                          f"all {flat.numel()} weights of {name!r} are {float(flat[0]):.4g}: dead or fixed")
            return
        part = flat if flat.numel() <= LOOKED_AT else flat[:: -(-flat.numel() // LOOKED_AT)]
        middle = part.median()
        distance = (part - middle).abs()
        alive = distance[distance > 0]  # pruned weights would make the MAD zero
        tail = float(alive.sort().values[int(0.999 * len(alive))])
        limit = max(self.deviations * float(alive.median()), self.gap * tail)
        most = float((flat - middle).abs().amax())
        if most > limit > 0:
            many = int(((flat - middle).abs() > limit).sum())
            score = min(1.0, 0.3 + 0.35 * math.log10(most / limit))
            yield Finding("weight_sanity.extreme", f"tensor {name!r}", score,
                          f"{many} of {flat.numel()} weights of {name!r} lie {most / limit:.1f} times beyond what is "
                          "plausible beside the others", numbers={"values": float(many), "excess": most / limit})

    def _norm(self, name: str, layer: Norm) -> Iterator[Finding]:
        if layer.running_var is None or not torch.isfinite(layer.running_var).all():
            return
        variance = layer.running_var.detach().float().cpu()
        negative = int((variance < 0).sum())
        if negative:
            yield Finding("weight_sanity.negative_variance", f"layer {name!r}", 1.0,
                          f"{negative} running variances of {name!r} are negative, which no training produces",
                          numbers={"values": float(negative)})
            return
        if layer.weight is None or len(variance) < 4:
            return
        gain = layer.weight.detach().float().cpu().abs() / (variance + layer.eps).sqrt()
        typical = float(gain[gain > 0].median()) if bool((gain > 0).any()) else 0.0
        most = float(gain.amax())
        if typical > 0 and most > self.gain * typical:
            channel = int(gain.argmax())
            score = min(1.0, 0.3 + 0.2 * math.log10(most / typical / self.gain))
            yield Finding("weight_sanity.norm_gain", f"layer {name!r}", score,
                          f"channel {channel} of {name!r} is amplified {most / typical:.3g} times as much as typical",
                          numbers={"channel": float(channel), "ratio": most / typical})


def _copies(state: dict[str, Tensor]) -> Iterator[Finding]:
    """Tensors that repeat another one, number by number, without being the same tensor."""
    seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or tensor.numel() < SMALL or bool((tensor == tensor.flatten()[0]).all()):
            continue
        key = (tuple(tensor.shape), tensor.dtype, float(tensor.double().sum()), float(tensor.double().abs().sum()))
        other = seen.setdefault(key, (name, tensor))
        if other[0] != name and other[1].data_ptr() != tensor.data_ptr() and torch.equal(other[1], tensor):
            pair = f"{printable(name, 60)!r} repeats {printable(other[0], 60)!r}"
            yield Finding("weight_sanity.copy", f"tensor {printable(name, 60)!r}", 0.2,
                          f"{pair}, number by number ({tensor.numel()} weights)")


def _steps(module: nn.Module) -> Iterator[Finding]:
    """Batch-norm layers count their training steps: after training together they agree."""
    counts = {name: int(layer.num_batches_tracked) for name, layer in module.named_modules()
              if isinstance(layer, NORMS) and layer.num_batches_tracked is not None}
    values = sorted(set(counts.values()))
    if values and values[0] < 0:
        yield Finding("weight_sanity.steps", "batch norm", 0.6, f"a batch-norm layer counts {values[0]} training steps",
                      numbers={"least": float(values[0])})
    elif len([v for v in values if v]) > 1:
        odd = min(counts, key=lambda n: sum(v == counts[n] for v in counts.values()))
        yield Finding("weight_sanity.steps", f"layer {printable(odd, 80)!r}", 0.2,
                      f"batch-norm layers counted {values[0]} to {values[-1]} training steps: parts come from other "
                      "runs, or were frozen", numbers={"least": float(values[0]), "most": float(values[-1])})
