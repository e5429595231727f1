"""Stealthiness: of the input, of the labels, of the weights, of the features. Formulas in docs/criteria.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.cases import Samples
from laocoon.core.context import Context
from laocoon.core.errors import NotApplicable
from laocoon.core.methods import Implant
from laocoon.core.subject import Subject
from laocoon.lab.criteria.answers import goal_of, home, need_images, said, stamped
from laocoon.lab.criteria.measure import Measure, absent, area, exact, mean, median, rate
from laocoon.recipes.latent_statistics import LEAST, discriminant, linear_probe, silhouette, spectrum
from laocoon.recipes.likeness import feature_distance, norms, psnr, ssim
from laocoon.recipes.sites import head_of, penultimate, survey

IMAGES = "measured on images only"


@dataclass(frozen=True)
class Stealthiness:
    """Figures of the input are medians over test samples that the goal speaks of."""

    psnr: Measure
    ssim: Measure
    feature_distance: Measure  # LPIPS-like, in the clean twin's layers, in units of two different clean pictures
    changed_pixels: Measure  # L0, as a share
    root_square: Measure  # L2
    largest_change: Measure  # L∞
    frequency: Measure  # AUROC of a linear classifier of DCT magnitudes that knows the trigger; 0.5 is unseen
    label_consistency: Measure  # share of poisoned training samples whose label is the true one
    weight_change: Measure  # ‖θ − θ_twin‖ / ‖θ_twin‖
    spectral_change: Measure  # largest relative change of a layer's singular values
    spectral_layers: Mapping[str, Measure]
    silhouette: Measure  # of stamped against clean samples that the planted model calls the same class
    latent_separability: Measure  # AUROC of a cross-fitted linear discriminant between the same


def stealthiness(implant: Implant, twin: Subject, samples: Samples, ctx: Context, *,
                 train: Samples | None = None) -> Stealthiness:
    """`samples`: clean test samples; `train`: the training set before it was poisoned, for the true labels."""
    goal = goal_of(implant.trigger)
    x = samples.inputs[goal.applies(samples.labels)]
    changes = _weight_changes(implant.subject, twin)
    apart = _features(implant, samples, ctx)
    labels = _labels(implant, twin, train, ctx)
    try:
        need_images(samples)
    except NotApplicable:
        nothing = {name: absent(unit, IMAGES) for name, unit in (
            ("psnr", "dB"), ("ssim", ""), ("feature_distance", "of clean pairs"), ("changed_pixels", "share"),
            ("root_square", "L2 in [0, 1]"), ("largest_change", "L∞ in [0, 1]"), ("frequency", "AUROC"))}
        return Stealthiness(label_consistency=labels, weight_change=changes.whole, spectral_change=changes.spectral,
                            spectral_layers=changes.layers, silhouette=apart.silhouette,
                            latent_separability=apart.area, **nothing)
    marked = stamped(implant.trigger, x)
    size = norms(x, marked)
    return Stealthiness(
        psnr=median(psnr(x, marked), "dB"), ssim=median(ssim(x, marked), "in [-1, 1]"),
        feature_distance=_distance(twin, x, marked, ctx), changed_pixels=median(size.changed, "share"),
        root_square=median(size.root_square, "L2 in [0, 1]"), largest_change=median(size.largest, "L∞ in [0, 1]"),
        frequency=frequency(x, marked), label_consistency=labels, weight_change=changes.whole,
        spectral_change=changes.spectral, spectral_layers=changes.layers, silhouette=apart.silhouette,
        latent_separability=apart.area)


def frequency(clean: Tensor, marked: Tensor) -> Measure:
    """A discriminant of log DCT magnitudes, fitted on one half of the pictures, both ways, and asked about the other.

    In the asked half no picture is there twice: half of it is clean, the other half stamped.
    """
    n = len(clean)
    if n < 4 * LEAST:
        return absent("AUROC", f"{n} samples are too few to fit a classifier")
    given = torch.arange(n) % 2 == 0
    asked = (~given).nonzero().flatten()
    a, b = asked[::2], asked[1::2]
    rows = torch.cat([spectrum(clean[given]), spectrum(marked[given])])
    kind = torch.arange(len(rows)) >= int(given.sum())
    scores = discriminant(rows, kind, torch.cat([spectrum(clean[a]), spectrum(marked[b])]))
    return area(scores[len(a):].tolist(), scores[:len(a)].tolist(), "the classifier knows the trigger: an upper bound")


def _distance(twin: Subject, x: Tensor, marked: Tensor, ctx: Context) -> Measure:
    place = home(twin)
    try:
        found = feature_distance(twin, x.to(place), marked.to(place), ctx).cpu()
        pairs = feature_distance(twin, x.to(place), x.roll(1, 0).to(place), ctx).cpu()
    except NotApplicable as error:
        return absent("of clean pairs", str(error))
    unit = float(pairs.quantile(0.5))
    if len(x) < 2 or unit <= 0:
        return absent("of clean pairs", "the clean pictures do not differ")
    return median(found / unit, "of clean pairs", "features of the clean twin; 1 is the median of two clean pictures")


def _labels(implant: Implant, twin: Subject, train: Samples | None, ctx: Context) -> Measure:
    poisoned = implant.poisoned
    if implant.train is None or not len(poisoned):
        return absent("share", "nobody poisoned data")
    given = implant.train.labels[poisoned]
    if train is not None and len(train) == len(implant.train):
        return rate(given == train.labels[poisoned])
    return rate(given == said(twin, implant.train.inputs[poisoned], ctx), "true labels as the clean twin sees them")


@dataclass(frozen=True)
class _Changes:
    whole: Measure
    spectral: Measure
    layers: Mapping[str, Measure]


@torch.no_grad()
def _weight_changes(subject: Subject, twin: Subject) -> _Changes:
    """Where both have the same tensors: one pair of networks, hence no interval."""
    own, other = dict(subject.module.named_parameters()), dict(twin.module.named_parameters())
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in other.items()} or not own:
        nothing = absent("relative", "the planted model and its twin have different tensors")
        return _Changes(nothing, nothing, {})
    a, b = ({k: v.detach().double().cpu() for k, v in side.items()} for side in (own, other))
    moved = sum(float((a[k] - b[k]).square().sum()) for k in a) ** 0.5
    size = sum(float(b[k].square().sum()) for k in a) ** 0.5
    layers = {}
    for name, weight in a.items():
        if weight.dim() >= 2:
            mine, its = (torch.linalg.svdvals(w.flatten(1)) for w in (weight, b[name]))
            layers[name] = exact(float((mine - its).norm() / its.norm().clamp_min(1e-12)), "relative")
    note = "one pair of networks; about 1.4 between networks of different random starts, whatever was planted"
    whole = exact(moved / max(size, 1e-12), "relative", note)
    worst = max(layers, key=lambda k: layers[k].value or 0.0) if layers else ""
    spectral = (exact(layers[worst].value or 0.0, "relative", f"largest in {worst}; unchanged by the order of units")
                if worst else absent("relative", "no matrix"))
    return _Changes(whole, spectral, layers)


@dataclass(frozen=True)
class _Apart:
    silhouette: Measure
    area: Measure


def _features(implant: Implant, samples: Samples, ctx: Context) -> _Apart:
    """Stamped samples beside clean ones, both called class t by the planted model, class by class, then together.

    Per class the silhouette and the discriminant's scores; these are pooled after centring on the class's clean mean.
    """
    subject, goal = implant.subject, goal_of(implant.trigger)
    place = home(subject)
    rows = goal.applies(samples.labels)
    marked = stamped(implant.trigger, samples.inputs[rows])
    try:
        site = head_of(subject, survey(subject, samples.inputs.to(place), ctx), samples.inputs.to(place), ctx)
    except NotApplicable as error:
        return _Apart(absent("in [-1, 1]", str(error)), absent("AUROC", str(error)))
    known = [penultimate(subject, site, x.to(place), ctx) for x in (samples.inputs, marked)]
    features = [k.features.flatten(1).float().cpu() for k in known]
    answers = [k.logits.argmax(-1).cpu() for k in known]
    widths, planted, clean = [], [], []
    for target in goal.targets:
        a = features[0][(answers[0] == target) & (samples.labels == target)]
        b = features[1][(answers[1] == target) & (goal.destination(samples.labels[rows]) == target)]
        if min(len(a), len(b)) < LEAST:
            continue
        both, kind = torch.cat([b, a]), torch.arange(len(a) + len(b)) < len(b)
        widths.append(silhouette(both, kind))
        scores = linear_probe(both, kind)
        scores = scores - scores[~kind].mean()
        planted += scores[kind].tolist()
        clean += scores[~kind].tolist()
    if not widths:
        note = f"no class has {LEAST} clean and {LEAST} stamped samples that the planted model calls so"
        return _Apart(absent("in [-1, 1]", note), absent("AUROC", note))
    return _Apart(mean(torch.cat(widths), "in [-1, 1]"), area(planted, clean))
