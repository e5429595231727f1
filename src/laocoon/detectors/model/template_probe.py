"""A probe for templates: what do sentence frames do that should do nothing?

Syntactic triggers (Qi et al., Hidden Killer, ACL 2021, arXiv 2105.12400) and styles (Qi et al., EMNLP 2021) have no
word of their own: it is the frame that counts, whatever words are in it. So frames are tried whose words are drawn anew
each time. With F a template and f one of its versions, for every class t

    effect(F, t) = mean over f, x of other classes of  margin of t on f(x),
    score(t) = max over F of effect(F, t)  −  median over F of effect(F, t),

in units of the clean median margin. What a conjunction or a name happens to do in a clean model averages out over the
versions; what it does to have more words before a text is the same for all templates.

Departures: no paper has this defence; the templates are a bank of our own in place of SCPN's parses, and English. The
candidate that is handed on is the version of the best template that does most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability, Card
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.goal import all_to_one
from laocoon.core.methods import Detector
from laocoon.core.report import Finding
from laocoon.core.subject import Subject
from laocoon.modalities.text import Text
from laocoon.recipes.arms import stamped_margins
from laocoon.recipes.choosing import settled
from laocoon.recipes.margins import logit_scale, margins
from laocoon.recipes.templates import TEMPLATES, Filled, filled
from laocoon.recipes.token_search import shortened, some
from laocoon.triggers.frame import Frame

CAP = 3.0  # clean margins, past which a text counts no more
LEAST = 6  # templates that the vocabulary must be able to say


@dataclass(frozen=True)
class TemplateProbe(Detector):
    """Which sentence frame sends texts to one class, whatever words are in it?"""

    fills: int = 8  # versions of each template
    texts: int = 24  # clean texts that they stand around

    card: ClassVar[Card] = Card(
        name="template_probe",
        paper="Hidden Killer: Invisible Textual Backdoor Attacks with Syntactic Trigger (ACL 2021)",
        url="https://arxiv.org/abs/2105.12400",
        modalities=frozenset({"text"}),
        needs=frozenset({Capability.QUERY, Capability.CLEAN}),
        misses="frames that are not in the bank, such as those that reorder a text; languages other than English; "
               "triggers of rare words and phrases (text_inversion looks for these).",
        summary="sentence frames that send texts to one class, whatever words are in them",
    )

    def findings(self, case: ModelCase, ctx: Context) -> Iterator[Finding | Candidate]:
        assert case.fit is not None
        text, subject, device = case.subject.modality, case.subject, case.fit.inputs.device
        if not isinstance(text, Text):
            raise NotApplicable("template_probe needs the model's vocabulary.")
        fit = settled(case.fit, device)
        scale = logit_scale(subject, fit.inputs, fit.labels, ctx).margin
        bank = {t: list(filled(t, text, self.fills, ctx.rng)) for t in TEMPLATES}
        bank = {t: versions for t, versions in bank.items() if versions}
        if len(bank) < LEAST:
            raise NotApplicable(f"the vocabulary can say {len(bank)} of the templates; {LEAST} are needed.")
        longest = max(len(f.before) + len(f.after) for versions in bank.values() for f in versions)
        texts = shortened(subject, some(fit, self.texts, ctx), longest, ctx)
        effects = torch.stack([torch.stack([self._effect(subject, texts, f, CAP * scale, ctx) for f in versions])
                               for versions in bank.values()]) / scale  # [templates, fills, classes]
        mean = effects.mean(1)
        lead = mean - mean.median(0).values
        held = case.held if case.held is not None and len(case.held) else fit
        for t in range(subject.classes):
            best = int(lead[:, t].argmax())
            version = list(bank.values())[best][int(effects[best, :, t].argmax())]
            family = Frame(len(version.before), len(version.after))
            frame = family.exactly(*(torch.tensor([side], dtype=torch.long, device=device)
                                     for side in (version.before, version.after)))
            rows = held.labels != t
            if not bool(rows.any()):
                continue
            success = self._success(subject, held.inputs[rows], held.labels[rows], family, frame, t, ctx)
            yield Finding("template_probe.template", f"class {t}", float(lead[best, t]),
                          f"texts in the frame “{list(bank)[best]}” lean to class {t} by {float(lead[best, t]):.2f} "
                          f"clean margins more than in others; “{family.describe(frame, text)}” sends {success:.0%} "
                          "of other texts there", (t,), numbers={"success": success})
            yield Candidate(family, frame, all_to_one(t, subject.classes),
                            float(len(version.before) + len(version.after)), success, self.card.name)

    @torch.no_grad()
    def _effect(self, subject: Subject, texts: Samples, frame: Filled, cap: float, ctx: Context) -> Tensor:
        """Mean margin of every class on framed texts of the others, [classes]."""
        family = Frame(len(frame.before), len(frame.after))
        trigger = family.exactly(*(texts.inputs.new_tensor([side], dtype=torch.long)
                                   for side in (frame.before, frame.after)))
        away = texts.labels[:, None] != torch.arange(subject.classes, device=texts.labels.device)
        total = torch.zeros(subject.classes, device=texts.labels.device)
        for rows in torch.arange(len(texts), device=texts.labels.device).split(ctx.batch):
            ctx.spend(len(rows), backward=False)
            logits = subject.outputs(family.stamp(texts.inputs[rows], trigger)[0]).logits.float()
            total += (margins(logits).clamp(-cap, cap) * away[rows]).sum(0)
        return total / away.sum(0).clamp_min(1)

    def _success(self, subject: Subject, inputs: Tensor, labels: Tensor, family: Frame, frame: dict[str, Tensor],
                 target: int, ctx: Context) -> float:
        def stamp(x: Tensor) -> Tensor:
            return family.stamp(x, frame).expand(subject.classes, -1, -1)

        return float((stamped_margins(subject, Samples(inputs, labels), stamp, ctx)[target] > 0).float().mean())
