"""DP-SGD: training whose result hardly depends on any single sample.

Abadi et al., Deep Learning with Differential Privacy, CCS 2016, arXiv 1607.00133; against poison: Ma et al., IJCAI
2019, and Hong et al., arXiv 2002.11497 (2020). Each step draws a batch B, every sample with probability q, and moves
along

    g = 1/(qn) ( Σ_{i ∈ B} g_i · min(1, C / |g_i|)  +  N(0, σ²C² I) ).

After T steps, for any two training sets that differ in one sample, P[M(D) ∈ S] ≤ e^ε P[M(D') ∈ S] + δ, with ε from the
Rényi accountant. So one sample bounds what one poisoner can do; k poisons are bounded by kε, which soon says nothing.

Gradients of single samples, clipping, noise and the accountant are Opacus's. Departures: batch norm mixes samples,
which the proof forbids, and is replaced by group norm; a momentum, which changes nothing in the proof. Noise comes from
the seed, so that runs repeat: whoever needs the privacy, not the robustness, must keep the seed secret.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.card import Capability, Card
from laocoon.core.cases import DataCase, Samples
from laocoon.core.context import Context, governed
from laocoon.core.errors import InputError, MissingExtra, NotApplicable
from laocoon.core.methods import Trainer
from laocoon.core.subject import Subject
from laocoon.recipes.lessons import Lesson, batch_of, finished, material, pupil

GROUPS = 8  # of channels, at most, in a group norm


@dataclass(frozen=True)
class DPSGD(Trainer):
    """Clipped and noisy gradients; the privacy spent is reported."""

    epochs: int = 30  # expected passes over the data
    batch: int = 128  # expected samples a step, qn
    rate: float = 0.3  # learning rate
    clip: float = 1.0  # C: largest norm of one sample's gradient
    noise: float = 1.0  # σ: noise in units of C
    delta: float = 0.0  # δ; 0 takes 1 / (10 n)

    card: ClassVar[Card] = Card(
        name="dp_sgd",
        paper="Deep Learning with Differential Privacy (CCS 2016); On the Effectiveness of Mitigating Data Poisoning "
              "Attacks with Gradient Shaping (2020)",
        url="https://arxiv.org/abs/1607.00133",
        modalities=frozenset({"image", "text", "tabular"}),
        needs=frozenset({Capability.ARCHITECTURE}),
        misses="poison in quantity: the proof is about single samples, and at 5 to 10 % the trigger is learnt like any "
               "class. It costs accuracy, most on small data.",
        summary="bounds what any single sample can do to the model, and says by how much",
        quick={"epochs": 20, "batch": 64},
        fails={"check_weakens_a_backdoor": "a tenth of the samples says the same, and clipping bounds each alone."},
    )

    def fit(self, case: DataCase, ctx: Context) -> tuple[Subject, Tensor | None]:
        opacus = _opacus()
        if self.noise <= 0 or self.clip <= 0 or not 0 <= self.delta < 1:
            raise InputError(f"noise is {self.noise}, clip {self.clip}, delta {self.delta}.",
                             "Noise and clip are above 0, delta from 0 to below 1.")
        samples, fresh = material(case, ctx), pupil(case, ctx)
        module = fresh.module.requires_grad_(True).train()  # Opacus looks at what will be trained
        replaced = _regrouped(module)
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as Opacus lays gradients out
        wrong = opacus.validators.ModuleValidator.validate(module, strict=False)
        if wrong:
            raise NotApplicable(f"the network cannot be trained sample by sample ({str(wrong[0])[:120]}).")
        subject = replace(fresh, module=module)
        steps, rate = self._train(opacus, subject, samples, ctx)
        accountant = opacus.accountants.RDPAccountant()
        accountant.history = [(self.noise, rate, steps)]
        delta = self.delta or 1 / (10 * len(samples))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the best order lies at the end of those tried
            epsilon = accountant.get_epsilon(delta)
        facts = {"samples": len(samples), "epsilon": f"{epsilon:.3f}", "delta": f"{delta:.2g}", "noise": self.noise,
                 "clip": self.clip, "steps": steps, "batch norms replaced by group norm": replaced}
        return finished(subject, self.card.name, facts), None

    def _train(self, opacus: Any, subject: Subject, samples: Samples, ctx: Context) -> tuple[int, float]:
        """Steps made and the chance of a sample to be in one; the subject's module is trained in place."""
        module, n = subject.module, len(samples)
        expected = batch_of(Lesson(1, self.batch), n)
        chance = expected / n
        steps = max(1, round(self.epochs / chance))
        module.requires_grad_(True).train()  # a Subject is frozen
        wrapped = opacus.GradSampleModule(module)
        optimiser = opacus.optimizers.DPOptimizer(
            torch.optim.SGD(wrapped.parameters(), lr=self.rate, momentum=0.5), noise_multiplier=self.noise,
            max_grad_norm=self.clip, expected_batch_size=expected, generator=_generator(ctx))
        with governed(ctx.rng):
            for _ in range(steps):
                rows = (torch.rand(n, generator=ctx.rng) < chance).nonzero().flatten().to(ctx.device)
                ctx.spend(len(rows))
                optimiser.zero_grad()
                if len(rows):
                    with warnings.catch_warnings():
                        warnings.filterwarnings("ignore", "Full backward hook")  # ids, unlike pixels, have no gradient
                        functional.cross_entropy(wrapped(_leaf(samples.inputs[rows])), samples.labels[rows]).backward()
                else:  # an empty draw: noise alone, as the proof says
                    for parameter in wrapped.parameters():
                        parameter.grad_sample = torch.zeros(0, *parameter.shape, device=ctx.device)
                optimiser.step()
        wrapped.to_standard_module()
        for parameter in module.parameters():
            parameter.grad = None
        module.eval().requires_grad_(False)
        return steps, chance


def _leaf(inputs: Tensor) -> Tensor:
    """With a gradient where there can be one: hooks of Opacus ask for it."""
    return inputs.requires_grad_() if inputs.is_floating_point() else inputs


def _generator(ctx: Context) -> torch.Generator:
    """Noise is drawn where the gradients are."""
    seed = int(torch.randint(0, 2**31, (), generator=ctx.rng))
    return torch.Generator(device=ctx.device).manual_seed(seed)


def _regrouped(module: nn.Module) -> int:
    """Put group norm in the place of every batch norm; how many there were."""
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                wide = child.num_features
                group = nn.GroupNorm(math.gcd(wide, GROUPS), wide, child.eps)
                setattr(parent, name, group.to(next(module.parameters()).device))
                count += 1
    return count


def _opacus() -> Any:
    try:
        import opacus
        import opacus.accountants
        import opacus.optimizers
        import opacus.validators
    except ImportError:
        raise MissingExtra("dp_sgd needs opacus.", "pip install 'laocoon[dp]'") from None
    return opacus
