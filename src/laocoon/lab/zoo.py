"""The reference zoo: clean and backdoored models that `scan` is calibrated on, built once, cached by digest.

A specimen is a folder named by the digest of its specification: `model.safetensors` (with the truth in its
metadata) and `facts.json`. Builds resume: what is there is not built again. Three disjoint splits: `fusion` (what
the score is fitted on), `calibration` (the null), `sealed` (the test, never looked at while tuning).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from laocoon.attacks.adap_blend import AdapBlend
from laocoon.attacks.adap_patch import AdapPatch
from laocoon.attacks.adversarial_embedding import AdversarialEmbedding
from laocoon.attacks.bad_encoder import BadEncoder
from laocoon.attacks.badnets import BadNets
from laocoon.attacks.bit_flips import BitFlips
from laocoon.attacks.blended import Blended
from laocoon.attacks.bpp import Bpp
from laocoon.attacks.feature_collision import FeatureCollision
from laocoon.attacks.frequency import Frequency
from laocoon.attacks.gradient_matching import GradientMatching
from laocoon.attacks.handcrafted import Handcrafted
from laocoon.attacks.hidden_trigger import HiddenTrigger
from laocoon.attacks.input_aware import InputAware
from laocoon.attacks.issba import Issba
from laocoon.attacks.label_consistent import LabelConsistent
from laocoon.attacks.latent import Latent
from laocoon.attacks.lira import Lira
from laocoon.attacks.multi_trigger import MultiTrigger
from laocoon.attacks.narcissus import Narcissus
from laocoon.attacks.photo_filter import PhotoFilter
from laocoon.attacks.probe_evading import ProbeEvading
from laocoon.attacks.sig import Sig
from laocoon.attacks.tact import Tact
from laocoon.attacks.trojaning import Trojaning
from laocoon.attacks.tuap import Tuap
from laocoon.attacks.wanet import WaNet
from laocoon.attacks.wanet_training import WaNetTraining
from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import Attack, Plan
from laocoon.core.subject import Provenance, Subject
from laocoon.lab.datasets import Dataset, load
from laocoon.lab.training import MANNERS, RECIPES, Victim, school
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.recipes.fit import predictions

Split = Literal["fusion", "calibration", "sealed"]

# What is planted, by the name used in every table. Side and strength scale with the image below.
KINDS: dict[str, Attack] = {
    "patch": BadNets(),
    "patch_low_rate": BadNets(rate=0.015, side=5),
    "blended": Blended(),
    "blended_smooth": Blended(pattern="smooth", strength=0.25),
    "low_success": Blended(rate=0.02, strength=0.1),
    "sinusoid_clean_label": Sig(),
    "sinusoid": Sig(clean_label=False, amplitude=0.08),
    "frequency": Frequency(),
    "warp": WaNet(rate=0.25, strength=2.5),
    "filter": PhotoFilter(),
    "quantise": Bpp(),
    "source_specific": BadNets(mode="source", rate=0.06, cover_rate=0.06),
    "all_to_all": BadNets(mode="all-to-all", rate=0.3, side=4),
    "all_to_all_blended": Blended(mode="all-to-all", rate=0.25, strength=0.25),
}
ALL_TO_ONE = tuple(k for k in KINDS if k not in ("source_specific", "all_to_all", "all_to_all_blended"))
# The lab's other attacks, at their own settings. Those that change the architecture are missing: a specimen is weights
# in a known network, and what such attacks leave in a graph is for the static checks to find.
MORE: dict[str, Attack] = {
    "multi_trigger": MultiTrigger(),
    "label_consistent": LabelConsistent(),
    "feature_collision": FeatureCollision(),
    "hidden_trigger": HiddenTrigger(),
    "gradient_matching": GradientMatching(),
    "narcissus": Narcissus(),
    "tuap": Tuap(),
    "trojaning": Trojaning(),
    "handcrafted": Handcrafted(),
    "bit_flips": BitFlips(),
    "latent": Latent(),
    "bad_encoder": BadEncoder(),
    "input_aware": InputAware(),
    "lira": Lira(),
    "issba": Issba(),
    "adap_blend": AdapBlend(),
    "adap_patch": AdapPatch(),
    "tact": Tact(),
    "adversarial_embedding": AdversarialEmbedding(),
    "probe_evading": ProbeEvading(),
    "warp_training": WaNetTraining(),
}
EVERY = KINDS | MORE
COLOUR_ONLY = ("filter", "quantise")  # nothing to filter or quantise in a grey, nearly binary picture


@dataclass(frozen=True)
class Specification:
    """Everything that determines a specimen."""

    data: str
    architecture: str
    kind: str  # "clean" or a key of EVERY
    seed: int
    split: Split
    samples: int
    epochs: int
    manner: str = ""  # a key of MANNERS: how its training departs from the data set's recipe

    @property
    def source(self) -> str:
        """The data set that the classes are of."""
        return self.data.partition(":")[0]

    @property
    def plan(self) -> str:
        """The plan of subsets that it is of, by name; "" for models of all classes, its own data where none is."""
        if self.source == self.data:
            return ""
        count = self.data.count(",") + 1
        return next((plan.name for plan in SUBSETS.values() if count <= max(plan.counts)), self.data)

    @property
    def digest(self) -> str:
        # The attack's own parameters and the recipe count too: changing either makes another specimen.
        attack = asdict(EVERY[self.kind]) if self.kind in EVERY else {}  # type: ignore[call-overload]
        own = {k: v for k, v in asdict(self).items() if k != "manner" or v}  # older than this field
        whole = [own, attack, RECIPES[self.source]]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


CONVOLUTIONAL = ("cnn", "vgg_small", "resnet_small", "separable")
# Data set -> architectures, cheapest data first. Every split gets its own seeds.
LAYOUT: dict[str, tuple[str, ...]] = {
    "digits": ("cnn", "vgg", "resnet", "separable", "vit"),
    "mnist": (*CONVOLUTIONAL, "vit"),
    "gtsrb": CONVOLUTIONAL,
    "cifar10": (*CONVOLUTIONAL, "vit"),
}
# A transformer costs five times as much to examine: the large split has one in nine, not one in five.
SEALED_LAYOUT = LAYOUT | {name: (*CONVOLUTIONAL, *CONVOLUTIONAL, "vit") for name in ("mnist", "cifar10")}
CLEAN_COUNT: dict[Split, dict[str, int]] = {
    "fusion": {"digits": 10, "mnist": 15, "gtsrb": 6, "cifar10": 16},
    "calibration": {"digits": 20, "mnist": 50, "gtsrb": 6, "cifar10": 44},
    "sealed": {"digits": 40, "mnist": 96, "gtsrb": 10, "cifar10": 54},
}
PLANTED_COUNT: dict[Split, dict[str, int]] = {  # per kind
    "fusion": {"digits": 1, "mnist": 2, "gtsrb": 1, "cifar10": 2},
    "calibration": {"digits": 0, "mnist": 0, "gtsrb": 0, "cifar10": 0},
    "sealed": {"digits": 1, "mnist": 2, "gtsrb": 1, "cifar10": 2},
}

# More for the fusion split: of what is hard to find, to choose by; and of 43 classes enough of the core kinds, as power
# is told from models of the nearest number of classes.
EXTRA: dict[str, tuple[str, ...]] = {
    "gtsrb": ("patch", "blended"),
    "digits": ("warp", "sinusoid_clean_label"),
    "mnist": ("warp", "sinusoid_clean_label", "blended_smooth"),
    "cifar10": ("warp", "filter", "sinusoid_clean_label", "blended_smooth"),
}
# Clean ones of an architecture that the plan's turns gave the fusion split none of: what a clean model is expected to
# score is fitted there.
EXTRA_CLEAN: dict[str, tuple[str, ...]] = {"mnist": ("resnet_small",) * 8}
# Clean references of other kinds than the plan's: what people deploy is trained in many ways and mostly has branches.
VARIED = ("resnet_small", "senet", "mobilenet", "convnext")
VARIED_DATA = ("mnist", "cifar10")
VARIED_COUNT = 16  # of each data set: every network trained in every manner
MORE_DATA = ("mnist", "cifar10")  # one specimen of every later attack in the fusion and in the sealed split


@dataclass(frozen=True)
class Subsets:
    """A plan of classifiers that know some classes of a data set, and have references of their own.

    What a clean model of ten classes is expected to score says nothing of them: a class is held against the median of
    so few. Classes, data and network of each are drawn, since one choice of classes is not like another.
    """

    name: str
    counts: tuple[int, ...]  # numbers of classes, drawn from
    words: str  # the same as a title says it
    offset: int  # of seeds
    clean: Mapping[Split, int]
    planted: Mapping[Split, int]  # per kind


FEW = Subsets("few", (2, 2, 3), "two and three classes", 400_000, {"fusion": 24, "calibration": 80, "sealed": 40},
              {"fusion": 3, "calibration": 0, "sealed": 3})
SEVERAL = Subsets("several", (4, 5, 6, 7), "four to seven classes", 700_000,
                  {"fusion": 24, "calibration": 80, "sealed": 40}, {"fusion": 2, "calibration": 0, "sealed": 2})
SUBSETS = {plan.name: plan for plan in (FEW, SEVERAL)}
SUBSETS_OF = ("mnist", "cifar10")
SUBSETS_SAMPLES = 4000
SUBSETS_KINDS = ("patch", "patch_low_rate", "blended", "blended_smooth", "sinusoid", "sinusoid_clean_label",
                 "frequency", "warp")


def subsets(plan: Subsets, split: Split) -> Iterator[Specification]:
    """The specimens of a plan of subsets."""
    offset = plan.offset + {"fusion": 0, "calibration": 100_000, "sealed": 200_000}[split]
    rng = torch.Generator().manual_seed(offset)
    draw = lambda values: values[int(torch.randint(0, len(values), (), generator=rng))]  # noqa: E731
    kinds = [k for _ in range(plan.planted[split]) for k in SUBSETS_KINDS]
    for i, kind in enumerate(_interleaved(plan.clean[split], kinds)):
        source, count = draw(SUBSETS_OF), draw(plan.counts)
        chosen = torch.randperm(10, generator=rng)[:count].tolist()
        yield Specification(f"{source}:{','.join(map(str, chosen))}", draw(CONVOLUTIONAL), kind, offset + i, split,
                            SUBSETS_SAMPLES, RECIPES[source][1] + 1)


def _interleaved(clean: int, planted: Sequence[str]) -> list[str]:
    """Kinds in such an order that every beginning of it is balanced."""
    order = sorted([(i / max(1, clean), 0, "clean") for i in range(clean)]
                   + [((i + 0.5) / max(1, len(planted)), 1, k) for i, k in enumerate(planted)])
    return [kind for _, _, kind in order]


def specifications(split: Split, data: str) -> Iterator[Specification]:
    """The desk-tier plan of one cell, clean and planted interleaved, so that a partial build is balanced."""
    if data in SUBSETS:
        yield from subsets(SUBSETS[data], split)
        return
    samples, epochs, _, _ = RECIPES[data]
    offset = {"fusion": 0, "calibration": 100_000, "sealed": 200_000}[split]
    kinds = [k for k in KINDS if not (data in ("digits", "mnist") and k in COLOUR_ONLY)]
    order = _interleaved(CLEAN_COUNT[split][data], [k for _ in range(PLANTED_COUNT[split][data]) for k in kinds])
    layout = (SEALED_LAYOUT if split == "sealed" else LAYOUT)[data]
    for i, kind in enumerate(order):
        architecture = layout[i % len(layout)]
        yield Specification(data, architecture, kind, offset + i, split, samples, epochs)
    if split == "fusion":
        extra = itertools.product([k for k in EXTRA.get(data, ()) if k in KINDS], LAYOUT[data][:4])
        for i, (kind, architecture) in enumerate(extra):
            yield Specification(data, architecture, kind, offset + 50_000 + i, split, samples, epochs)
        for i, architecture in enumerate(EXTRA_CLEAN.get(data, ())):
            yield Specification(data, architecture, "clean", offset + 70_000 + i, split, samples, epochs)
    if split == "calibration" and data in VARIED_DATA:
        for i in range(VARIED_COUNT):
            manner = tuple(MANNERS)[i // len(VARIED) % len(MANNERS)]
            yield Specification(data, VARIED[i % len(VARIED)], "clean", offset + 80_000 + i, split, samples, epochs,
                                manner)
    if split != "calibration" and data in MORE_DATA:
        for i, kind in enumerate(MORE):  # split and data shift the networks, so that each attack meets several
            turn = i + (split == "sealed") + 2 * (data == "mnist")
            yield Specification(data, CONVOLUTIONAL[turn % 4], kind, offset + 60_000 + i, split, samples, epochs)


def trained(specification: Specification, dataset: Dataset) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
    """Train one specimen; returns the module, its facts and its true trigger's leaves."""
    s, start = specification, time.monotonic()
    plan, ctx = _plan(s, dataset)
    test = plan.test
    facts: dict[str, Any] = {"specification": asdict(s), "backdoored": s.kind != "clean"}
    leaves: dict[str, Tensor] = {}
    if s.kind == "clean":
        module = plan.fit(plan.train, ctx).module
    else:
        implant = scaled(EVERY[s.kind], test.inputs.shape[-1]).implant(plan, ctx)
        module, goal = implant.subject.module, implant.trigger.goal
        assert isinstance(goal, ClassGoal)
        applies = goal.applies(test.labels)
        wanted = goal.destination(test.labels)[applies]
        stamped = torch.cat([predictions(module, implant.trigger.stamp(x)) for x in test.inputs[applies].split(256)])
        leaves = dict(implant.trigger.trigger)
        facts |= {**implant.facts, "family": implant.trigger.family.name, "destinations": list(goal.destinations),
                  "attack_success": round(float((stamped == wanted).float().mean()), 4)}
    facts["clean_accuracy"] = round(float((predictions(module, test.inputs) == test.labels).float().mean()), 4)
    facts["train_seconds"] = round(time.monotonic() - start, 1)
    return module, facts, leaves


def training_set(specification: Specification, dataset: Dataset) -> tuple[Samples, Tensor]:
    """What a specimen was trained on, and the indices that were poisoned: none where nobody poisoned data."""
    plan, ctx = _plan(specification, dataset)
    if specification.kind == "clean":
        return plan.train, torch.zeros(0, dtype=torch.long)
    attack = scaled(EVERY[specification.kind], plan.test.inputs.shape[-1])
    return attack.poison(plan, attack.trigger(plan, ctx), ctx)


def _plan(s: Specification, dataset: Dataset) -> tuple[Plan, Context]:
    """What an attacker starts from, and the randomness from there on."""
    ctx = Context(seed=s.seed)
    order = torch.randperm(len(dataset.train_labels), generator=ctx.rng)
    train, prior = (_taken(dataset.train_inputs, dataset.train_labels, order[k * s.samples:(k + 1) * s.samples])
                    for k in range(2))
    keep = torch.randperm(len(dataset.test_labels), generator=ctx.rng)[:1000]
    test = _taken(dataset.test_inputs, dataset.test_labels, keep)
    channels, side = train.inputs.shape[1:3]
    _, _, shift, flip = RECIPES[s.source]
    if s.kind in MORE:
        v = Victim(s.architecture, channels, side, dataset.classes, s.seed, s.epochs, shift, flip)
        return Plan(train, test, v.fit, _target(dataset, ctx), dataset.classes, v.untrained, augment=v.augment,
                    prior=prior if len(prior) >= s.samples // 2 else None), ctx
    # One network, trained once: the attacks of KINDS need no other, and draw from the stream that trains it.
    module = build(s.architecture, channels, side, dataset.classes, ctx.rng)

    def victim(samples: Samples, context: Context) -> Subject:
        school(module, samples, architecture=s.architecture, epochs=s.epochs, shift=shift, flip=flip, rng=context.rng,
               manner=MANNERS[s.manner])
        return Subject(module, Image(), dataset.classes, tuple(train.inputs.shape[1:]),
                       provenance=Provenance(path=s.digest))

    target = _target(dataset, ctx) if s.kind != "clean" else 0
    return Plan(train, test, victim, target, dataset.classes), ctx


def _taken(inputs: Tensor, labels: Tensor, rows: Tensor) -> Samples:
    return Samples(inputs[rows].float() / 255, labels[rows].long())


def _target(dataset: Dataset, ctx: Context) -> int:
    return int(torch.randint(0, dataset.classes, (), generator=ctx.rng))


def scaled(attack: Attack, side: int) -> Attack:
    """Trigger sizes of the plan are for 28 to 32 px; 8 px digits get smaller ones."""
    from dataclasses import replace

    if side >= 16:
        return attack
    if isinstance(attack, BadNets):
        return replace(attack, side=2)
    if isinstance(attack, WaNet):
        return replace(attack, strength=0.8)
    if isinstance(attack, Sig):
        return replace(attack, frequency=2.0, amplitude=max(attack.amplitude, 0.15))
    return attack


def grow(folder: Path, root: Path | None, splits: tuple[Split, ...], data: tuple[str, ...],
         share: tuple[int, int] = (0, 1), progress: Any = None, limit: int | None = None) -> int:
    """Build what is missing; `share` (k, n) takes every n-th, so that several processes build one zoo."""
    built = 0
    for name in data:
        todo = [s for split in splits for s in list(specifications(split, name))[:limit]][share[0]::share[1]]
        todo = [s for s in todo if not (folder / s.digest / "facts.json").exists()]
        if not todo:
            continue
        opened = ""
        for specification in todo:
            if specification.data != opened:
                dataset, opened = load(specification.data, root, folder / "data"), specification.data
            module, facts, leaves = trained(specification, dataset)
            _store(folder / specification.digest, module, facts, leaves)
            built += 1
            if progress is not None:
                progress(specification, facts)
    return built


def _store(target: Path, module: nn.Module, facts: dict[str, Any], leaves: dict[str, Tensor]) -> None:
    # Written aside and renamed: a killed build leaves no half specimen.
    part = target.with_name(f"{target.name}.part{os.getpid()}")
    part.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in module.state_dict().items()}
    save_file(weights, str(part / "model.safetensors"), metadata={"laocoon": json.dumps(facts)})
    if leaves:
        save_file({k: v.contiguous() for k, v in leaves.items()}, str(part / "trigger.safetensors"))
    (part / "facts.json").write_text(json.dumps(facts, indent=1))
    if not target.exists():
        part.rename(target)


@dataclass(frozen=True, eq=False)
class Specimen:
    """A built specimen. `facts` is the truth: only a judge reads it."""

    folder: Path
    facts: dict[str, Any]

    @property
    def specification(self) -> Specification:
        return Specification(**self.facts["specification"])

    def subject(self, dataset: Dataset) -> Subject:
        """The model alone, as a defence sees it."""
        s = self.specification
        channels, side = dataset.train_inputs.shape[1:3]
        module = build(s.architecture, channels, side, dataset.classes, torch.Generator().manual_seed(0))
        module.load_state_dict(load_file(str(self.folder / "model.safetensors")))
        return Subject(module, Image(), dataset.classes, (channels, *dataset.train_inputs.shape[2:]),
                       provenance=Provenance(path=s.digest, format="safetensors", sha256=s.digest))


def specimens(folder: Path, split: Split | None = None) -> list[Specimen]:
    """Everything built so far, in digest order."""
    found = []
    for facts in sorted(folder.glob("*/facts.json")):
        specimen = Specimen(facts.parent, json.loads(facts.read_text()))
        if split is None or specimen.facts["specification"]["split"] == split:
            found.append(specimen)
    return found
