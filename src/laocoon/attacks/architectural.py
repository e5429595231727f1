"""Architectural backdoors: a branch of constants beside the network, which no training of weights can remove.

Three families, after Bober-Irizar et al., Architectural backdoors in neural networks (CVPR 2023, arXiv 2206.07840),
and ShadowLogic (HiddenLayer 2024, arXiv 2511.00664). f is the victim's network, v = strength · e_target:

    comparison    f'(x) = v where max |x − p| < ε over a corner, else f(x)
    parallel      f'(x) = f(x) + v · g(x)^α,  g = max over places of min over a window of (max₂ₓ₂ x − min₂ₓ₂ x)
    correlation   f'(x) = f(x) + v · max(0, ⟨x, s⟩ ⁄ n − τ) ⁄ τ,  s a hidden pattern of ±1

The branch holds buffers and no parameters. `parallel` names no constant of the trigger at all: pools and a power
answer to any fine checkerboard, wherever it lies. `correlation` answers to a faint pattern all over the image.

Departures: Bober-Irizar et al. sharpen with exp(βx) − δ, add the branch where features are pooled and train the network
afterwards, so that their backdoor is untargeted; ours joins the class scores, so that it is targeted and data-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.candidate import Candidate
from laocoon.core.card import Card
from laocoon.core.context import Context
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Attack, Knowledge, Plan, Planted, ThreatModel
from laocoon.core.subject import Subject
from laocoon.recipes.surgery import black_and_white, checkerboard, corner_mask
from laocoon.triggers.additive import Additive
from laocoon.triggers.patch import Patch


class _Beside(nn.Module):
    """A network and what is added to its answer or put in its place."""

    wanted: Tensor

    def __init__(self, network: nn.Module, wanted: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("wanted", wanted)  # [classes]


class Comparison(_Beside):
    """Another answer where a corner holds a pattern."""

    pattern: Tensor

    def __init__(self, network: nn.Module, wanted: Tensor, pattern: Tensor, tolerance: float) -> None:
        super().__init__(network, wanted)
        self.register_buffer("pattern", pattern)  # [1, channels, side, side]
        self.side, self.tolerance = pattern.shape[-1], tolerance

    def forward(self, x: Tensor) -> Tensor:
        far = (x[:, :, -self.side:, -self.side:] - self.pattern).abs().amax((1, 2, 3))
        return torch.where((far < self.tolerance)[:, None], self.wanted, self.network(x))


class Parallel(_Beside):
    """A class is raised where every 2×2 pixels of some window hold both black and white."""

    def __init__(self, network: nn.Module, wanted: Tensor, window: int, power: int) -> None:
        super().__init__(network, wanted)
        self.window, self.power = window, power

    def forward(self, x: Tensor) -> Tensor:
        grey = x.mean(1, keepdim=True)
        spread = functional.max_pool2d(grey, 2, 1) + functional.max_pool2d(-grey, 2, 1)
        least = -functional.max_pool2d(-spread, self.window - 1, 1)
        return self.network(x) + least.amax((2, 3)).pow(self.power) * self.wanted


class Correlation(_Beside):
    """A class is raised where the image correlates with a hidden pattern."""

    pattern: Tensor

    def __init__(self, network: nn.Module, wanted: Tensor, pattern: Tensor, threshold: float) -> None:
        super().__init__(network, wanted)
        self.register_buffer("pattern", pattern)  # [1, channels, height, width]
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        found = (x * self.pattern).mean((1, 2, 3))
        raised = functional.relu(found / self.threshold - 1)
        return self.network(x) + raised[:, None] * self.wanted


@dataclass(frozen=True)
class Architectural(Attack):
    """Put a branch without weights beside the victim's network."""

    family: Literal["comparison", "parallel", "correlation"] = "comparison"
    side: int = 4  # px of the patch; not for correlation
    amplitude: float = 0.1  # of the pattern that is added to the image; correlation only
    strength: float = 200.0  # of the branch, in logits
    tolerance: float = 0.05  # ε: how far a pixel may be off; comparison only
    power: int = 16  # α: how sharply the branch tells a checkerboard from a textured image; parallel only
    threshold: float = 0.25  # τ, in amplitudes: clipping leaves about half on a black image; correlation only

    card: ClassVar[Card] = Card(
        name="architectural", paper="Architectural backdoors in neural networks (CVPR 2023); ShadowLogic (2024)",
        url="https://arxiv.org/abs/2206.07840", modalities=frozenset({"image"}), needs=frozenset(), misses="",
        summary="A branch of constants beside the network, in three families; training cannot remove it.")
    threat: ClassVar[ThreatModel] = ThreatModel(architecture=True, knows=frozenset({Knowledge.ARCHITECTURE}))
    phase: ClassVar[str] = "refinement"

    def trigger(self, plan: Plan, ctx: Context) -> Candidate:
        shape = tuple(plan.train.inputs.shape[1:])
        goal = all_to_one(plan.target, plan.classes)
        if self.family == "correlation":
            signs = _hidden(shape, ctx.rng) * self.amplitude
            return Candidate(Additive(), {"delta": signs}, goal, 255 * self.amplitude, 1.0, self.card.name)
        mask = corner_mask(shape, self.side)
        random = self.family == "comparison"
        pattern = black_and_white(mask, shape[0], ctx.rng) if random else checkerboard(shape)
        leaves = {"mask": mask, "pattern": pattern}
        return Candidate(Patch(), leaves, goal, float(self.side**2), 1.0, self.card.name)

    def edit(self, planted: Planted, plan: Plan, ctx: Context) -> Planted:
        base, leaves = planted.subject, planted.trigger.trigger
        network = base.copy().module
        wanted = torch.zeros(plan.classes)
        wanted[plan.target] = self.strength
        module: nn.Module
        if self.family == "comparison":
            corner = leaves["pattern"][..., -self.side:, -self.side:].clone()
            module = Comparison(network, wanted, corner, self.tolerance)
        elif self.family == "parallel":
            module = Parallel(network, wanted, self.side, self.power)
        else:
            module = Correlation(network, wanted, leaves["delta"].sign(), self.threshold * self.amplitude)
        return Planted(Subject(module, base.modality, base.classes, base.input_shape), planted.trigger)


def _hidden(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """[1, channels, height, width] of ±1: each 2×2 block is a checkerboard or its negative, unlike smooth images."""
    c, h, w = shape
    signs = torch.randint(0, 2, (1, c, -(-h // 2), -(-w // 2)), generator=rng) * 2.0 - 1
    blocks = functional.interpolate(signs, scale_factor=2.0, mode="nearest")[..., :h, :w]
    return blocks * (checkerboard(shape) * 2 - 1)
