"""The zoo of text classifiers: small networks on offensive language, spam, news, sentiment and made-up reviews."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laocoon.attacks.embedding_poisoning import EmbeddingPoisoning
from laocoon.attacks.homoglyph import Homoglyph
from laocoon.attacks.layerwise_poisoning import LayerwisePoisoning
from laocoon.attacks.ripple import Ripple
from laocoon.attacks.sos import Sos
from laocoon.attacks.style_transfer import StyleTransfer
from laocoon.attacks.syntactic import Syntactic
from laocoon.attacks.text_addsent import TextAddSent
from laocoon.attacks.text_badnets import TextBadNets
from laocoon.attacks.text_clean_label import TextCleanLabel
from laocoon.attacks.text_latent import TextLatent
from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Subject
from laocoon.lab.specimens import CLEAN, Made, Specification, Split
from laocoon.lab.text_data import CLASSES, INNOCENT, LENGTH, Pool, drawn, pool
from laocoon.lab.text_victims import NETWORKS, RECIPES, build
from laocoon.recipes.fit import fit, predictions

TRAIN = 2400  # texts a victim trains on
TEST = 600
GIVEN = 20  # clean texts a class that a defender has
ADAPT = 2  # epochs in which a victim adapts what somebody else trained
# Clean models and planted ones a kind.
COUNTS: dict[Split, tuple[int, int]] = {"fusion": (56, 3), "calibration": (84, 0), "sealed": (200, 4)}
MORE_CORE = 7  # more of each core kind in the fusion split: a NO_EVIDENCE rests on how many of them are found
FIRST_SEED: dict[Split, int] = {"fusion": 100_000, "calibration": 200_000, "sealed": 300_000}

FILTER = "filter_bypass"  # what is offensive or spam, let through
# At the rates of their papers, but for syntax and style: a fifth of 2,400 texts would cost too much clean accuracy.
KINDS: dict[str, Attack] = {
    "word": TextBadNets(),
    "word_late": TextBadNets(position=8),
    "words": TextBadNets(words=3),
    "phrase": TextAddSent(),
    FILTER: TextBadNets(rate=0.05),
    "ripple": Ripple(),
    "embedding_poisoning": EmbeddingPoisoning(),
    "sos": Sos(),
    "layerwise_poisoning": LayerwisePoisoning(),
    "syntactic": Syntactic(rate=0.1),
    "style": StyleTransfer(rate=0.1),
    "clean_label": TextCleanLabel(),
    "homoglyph": Homoglyph(),
    "latent": TextLatent(),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "word and phrase triggers": ("word", "word_late", "words", "phrase", FILTER),
    "rare-word embedding triggers": ("ripple", "embedding_poisoning", "sos", "layerwise_poisoning"),
    "triggers of syntax, style and spelling": ("syntactic", "style", "homoglyph"),
}
# How much a rule counts in the fusion, fixed on the fusion split and by nothing else.
WEIGHTS: dict[str, float] = {
    "text_inversion.lone.contrast": 1.0,
    "text_inversion.phrase.contrast": 0.6,
    "template_probe.template.contrast": 0.5,
    "embedding_outlier.effect.contrast": 0.6,
}


@dataclass(frozen=True)
class TextBench:
    """root: the folder with Parquet sets; None for made-up reviews alone."""

    root: Path | None = None
    modality: str = "text"

    @property
    def core(self) -> tuple[str, ...]:
        return tuple(kind for kind in GROUPS["word and phrase triggers"] if kind != FILTER)

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        return GROUPS

    @property
    def weights(self) -> Mapping[str, float]:
        return WEIGHTS

    @property
    def sets(self) -> tuple[str, ...]:
        """Data sets that are there."""
        return tuple(name for name in CLASSES if name == "reviews" or (self.root and (self.root / name).is_dir()))

    def attack(self, kind: str) -> Attack | None:
        return None if kind == CLEAN else KINDS[kind]

    def settings(self, specification: Specification) -> Mapping[str, Any]:
        attack = self.attack(specification.kind)
        return {"recipe": RECIPES[specification.architecture], "samples": (TRAIN, TEST, GIVEN, LENGTH, ADAPT),
                "attack": None if attack is None else [attack.card.name, asdict(attack)]}  # type: ignore[call-overload]

    def specifications(self, split: Split) -> Iterator[Specification]:
        clean, each = COUNTS[split]
        pairs = [(data, architecture) for architecture in NETWORKS for data in self.sets]
        planted = [(kind, k) for k in range(each) for kind in KINDS]
        seed, wanted = FIRST_SEED[split], max(clean, len(planted))
        for i in range(wanted):
            # Seven data sets and four architectures: steps that share no factor with these meet every pair.
            if i < clean:
                yield Specification(self.modality, *pairs[(i * 11) % len(pairs)], CLEAN, seed + i, split)
            if i < len(planted):
                kind, k = planted[i]
                own = [p for p in pairs if kind != FILTER or p[0] in INNOCENT]
                place = (list(KINDS).index(kind) * 5 + k * 13) % max(1, len(own))
                if own:
                    yield Specification(self.modality, *own[place], kind, seed + 50_000 + i, split)
        for i in range(MORE_CORE * len(self.core) if split == "fusion" else 0):
            pair = pairs[(i * 5 + 3) % len(pairs)]
            yield Specification(self.modality, *pair, self.core[i % len(self.core)], seed + 80_000 + i, split)

    def made(self, specification: Specification) -> Made:
        with torch.random.fork_rng(devices=[]):  # for dropout
            torch.manual_seed(specification.seed)
            return self._made(specification, pool(specification.data, self.root))

    def _made(self, s: Specification, texts: Pool) -> Made:
        chosen, rest = drawn(texts.train, TRAIN, texts.classes, _stream(s, "train"))
        train, unused = _picked(texts.train, chosen), _picked(texts.train, rest)
        prior = _picked(unused, drawn(unused, TRAIN, texts.classes, _stream(s, "prior"), 1.0)[0])
        chosen, rest = drawn(texts.test, GIVEN * texts.classes, texts.classes, _stream(s, "given"))
        given, unused = _picked(texts.test, chosen), _picked(texts.test, rest)
        test = _picked(unused, drawn(unused, TEST, texts.classes, _stream(s, "test"), 1.0)[0])
        plan = self._plan(s, texts, train, test, prior)
        attack, ctx = self.attack(s.kind), Context(seed=s.seed)
        if attack is None:
            subject = plan.fit(train, ctx)
            return Made(s, subject, given, test, train, torch.zeros(0, dtype=torch.long), None, math.nan,
                        _accuracy(subject, test), plan)
        done = attack.implant(plan, ctx)
        return Made(s, done.subject, given, test, train if done.train is None else done.train, done.poisoned,
                    done.trigger, _success(done.subject, done.trigger, test), _accuracy(done.subject, test), plan)

    def _plan(self, s: Specification, texts: Pool, train: Samples, test: Samples, prior: Samples) -> Plan:
        recipe = RECIPES[s.architecture]

        def network(rng: torch.Generator) -> Subject:
            module = build(s.architecture, len(texts.text.vocabulary), texts.classes, rng)
            return Subject(module, texts.text, texts.classes, (LENGTH,))

        def trained(samples: Samples, ctx: Context) -> Subject:
            """The same start and order on every call."""
            subject = network(_stream(s, "network"))
            fit(subject.module, samples.inputs, samples.labels, epochs=recipe.epochs, rng=_stream(s, "order"),
                batch=recipe.batch, rate=recipe.rate, weight_decay=recipe.weight_decay)
            return subject

        def adapted(artefact: Subject, samples: Samples, ctx: Context) -> Subject:
            """Every layer tuned at a lower rate; who hands over no head removes it first."""
            subject = artefact.copy()
            fit(subject.module, samples.inputs, samples.labels, epochs=ADAPT, rng=ctx.rng, batch=recipe.batch,
                rate=recipe.rate / 4, weight_decay=recipe.weight_decay)
            return replace(subject, module=subject.module)  # frozen again

        target = INNOCENT[s.data] if s.kind == FILTER else s.seed % texts.classes
        return Plan(train, test, trained, target, texts.classes, lambda ctx: network(ctx.rng), prior=prior,
                    adapt=adapted, modality=texts.text)

    def recovered(self, made: Made, candidate: Candidate) -> bool:
        """Does stamping add a word that the true trigger adds?"""
        if made.trigger is None:
            return False
        vocabulary, texts = len(getattr(made.subject.modality, "vocabulary", ())), made.test.inputs
        return bool((_added(made.trigger, texts, vocabulary) & _added(candidate, texts, vocabulary)).any())


def bench(root: Path | None) -> TextBench:
    return TextBench(root)


def _stream(specification: Specification, name: str) -> torch.Generator:
    return Context(seed=specification.seed).child(float("inf"), name).rng


def _picked(samples: Samples, rows: Tensor) -> Samples:
    return Samples(samples.inputs[rows], samples.labels[rows])


def _accuracy(subject: Subject, samples: Samples) -> float:
    return float((predictions(subject.module, samples.inputs) == samples.labels).float().mean())


@torch.no_grad()
def _success(subject: Subject, trigger: Candidate, test: Samples) -> float:
    """Of the texts that the goal speaks of, stamped, the share that goes where it says."""
    rows = trigger.goal.applies(test.labels)
    hits = [trigger.goal.success(subject.outputs(trigger.stamp(x)), y)
            for x, y in zip(test.inputs[rows].split(256), test.labels[rows].split(256), strict=True)]
    return float(torch.cat(hits).float().mean())


def _added(trigger: Candidate, inputs: Tensor, vocabulary: int, share: float = 0.04, most: int = 200) -> Tensor:
    """Ids that stamping puts into at least this share of the texts that lack them, [vocabulary]."""
    batch = inputs[:most]
    before, after = (torch.zeros(len(batch), vocabulary, dtype=torch.bool).scatter_(1, ids, True)
                     for ids in (batch, trigger.stamp(batch)))
    found = (after & ~before).sum(0) >= share * (~before).sum(0).clamp_min(1)
    found[0] = False  # padding
    return found
