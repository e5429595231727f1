"""Run the methods of a schedule on a case: the one place that survives a method's crash."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from laocoon import __version__
from laocoon.core.candidate import Candidate
from laocoon.core.cases import ModelCase, Samples
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Detector
from laocoon.core.report import Report
from laocoon.core.subject import Modality, Subject
from laocoon.modalities.encoder import encodes
from laocoon.recipes.fit import predictions
from laocoon.verdict.schedule import Schedule

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Examined:
    """Reports in schedule order and the triggers recovered on the way."""

    reports: tuple[Report, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Samples made ready: `fit` and `held` are disjoint, stratified by class, and hold what the model gets right."""

    fit: Samples | None
    held: Samples | None
    accuracy: float | None  # on labelled samples
    given: int


def prepare(case_module: Callable[[torch.Tensor], torch.Tensor], samples: Samples | None, seed: int,
            classes: int, share: float = 2 / 3) -> Prepared:
    """Split clean samples. Misclassified ones are left out where enough remain: they count as success for nothing."""
    if samples is None or len(samples) == 0:
        return Prepared(None, None, None, 0)
    _check_finite(samples)
    said = predictions(case_module, samples.inputs, 256)
    right = said == samples.labels
    accuracy = float(right.float().mean()) if samples.labelled else None
    keep = right.nonzero().flatten()
    if len(keep) < max(8, min(4 * classes, len(samples) // 3)):
        keep = torch.arange(len(samples))
    return Prepared(*_divided(samples, keep, seed, share), accuracy, len(samples))


def _check_finite(samples: Samples) -> None:
    if not bool(torch.isfinite(samples.inputs.float()).all()):
        raise InputError("the clean samples hold values that are not finite.", "Check how they were made.")


def _divided(samples: Samples, keep: torch.Tensor, seed: int, share: float) -> tuple[Samples, Samples | None]:
    """Samples to fit on and samples held out, `share` of every class in the first."""
    rng = torch.Generator().manual_seed(seed)
    fit, held = [], []
    for label in samples.labels[keep].unique().tolist():
        members = keep[samples.labels[keep] == label]
        members = members[torch.randperm(len(members), generator=rng)]
        cut = max(1, round(len(members) * share)) if len(members) > 1 else len(members)
        fit.append(members[:cut])
        held.append(members[cut:])
    f, h = torch.cat(fit).sort().values, torch.cat(held).sort().values
    pick = lambda i: Samples(samples.inputs[i], samples.labels[i], samples.labelled)  # noqa: E731
    return pick(f), pick(h) if len(h) else None


def made_ready(subject: Subject, samples: Samples | None, seed: int) -> Prepared:
    """Clean samples for a subject. An encoder knows no classes: nothing is right or wrong, and labels are not used."""
    if samples is None or len(samples) == 0 or not encodes(subject.modality.name):
        return prepare(lambda x: subject.outputs(x).logits, samples, seed, subject.classes)
    _check_finite(samples)
    alike = replace(samples, labels=torch.zeros_like(samples.labels), labelled=False)
    return Prepared(*_divided(alike, torch.arange(len(samples)), seed, 2 / 3), None, len(samples))


def run(schedule: Schedule, case: ModelCase, root: Context, resume: Path | None = None) -> Examined:
    """Examine; a method that crashes gives an incomplete report, never silence. Results are written as they come."""
    reports, candidates = [], []
    for number, method in enumerate(schedule.methods):
        ctx = root.child(root.left, method.card.name)
        total = len(schedule.methods)

        def progress(name: str, share: float, note: str, *, k: int = number, n: int = total) -> None:
            root.progress(name, (k + max(0.0, share)) / n if share >= 0 else -1.0, note)

        ctx.progress = progress
        progress(method.card.name, 0.0, "")
        stored = resume / f"{method.card.name}.json" if resume else None
        if stored is not None and stored.exists():
            report, found = _restore(stored, case.subject.modality)
        else:
            report = _survive(method, case, ctx)
            found = list(ctx.candidates)
            if stored is not None:
                _store(stored, report, found)
        root.spent += report.spent
        reports.append(report)
        candidates.extend(found)
    root.progress("", 1.0, "")
    return Examined(tuple(reports), tuple(candidates))


@dataclass(frozen=True)
class Crash:
    """What went wrong, in one line."""

    reason: str


def attempted(call: Callable[[], T]) -> T | Crash:
    """The result, or what the code of a method failed with: foreign models, and plug-ins, do anything."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  the one place: a crash is INCONCLUSIVE, whatever it was
        return Crash(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def _survive(method: Detector, case: ModelCase, ctx: Context) -> Report:
    done = attempted(lambda: method.examine(case, ctx))
    if isinstance(done, Report):
        return done
    reason = f"{method.card.name} failed: {done.reason}"
    params = asdict(method)  # type: ignore[call-overload]
    return Report(method=method.card.name, params=params, findings=(), examined=(),
                  skipped=(method.card.name,), reason=reason[:300], subject=case.subject.provenance.sha256,
                  seed=ctx.seed, spent=ctx.spent, seconds=0.0, version=__version__, complete=False)


def _store(path: Path, report: Report, found: list[Candidate]) -> None:
    from laocoon.files.candidates import save_candidates

    path.parent.mkdir(parents=True, exist_ok=True)
    save_candidates(path.with_suffix(".safetensors"), found)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report.to_dict()))
    part.replace(path)


def _restore(path: Path, modality: Modality) -> tuple[Report, list[Candidate]]:
    from laocoon.files.candidates import load_candidates

    try:
        report = Report.from_dict(json.loads(path.read_text()))
        return report, load_candidates(path.with_suffix(".safetensors"), modality)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path.name} in the resume folder cannot be read ({error}).",
                         "Delete it, or resume into an empty folder.") from None
