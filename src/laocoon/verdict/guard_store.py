"""A fitted guard on disk: a folder with `guard.json` and `guard.safetensors`, nothing that could run.

What was learnt is not written but learnt again: the samples, the seed and the guards' parameters determine it, for
every guard, plug-ins included. Then the answers and scores of a few samples are compared with those that were written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor

from laocoon import __version__
from laocoon.core.cases import Samples
from laocoon.core.catalogue import classes
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.methods import Guard
from laocoon.core.subject import Subject
from laocoon.files.safetensors import read as read_tensors
from laocoon.files.wording import first_line, printable
from laocoon.modalities.written import read as read_modality
from laocoon.modalities.written import written
from laocoon.recipes.layer_guard import LayerGuard
from laocoon.verdict.guard_tiers import Opinion, Pipeline, Tiers

FORMAT = "laocoon-guard/1"
LARGEST = 1 << 20  # bytes of guard.json
TENSORS = ("inputs", "labels", "calibration", "logits", "scores")


@dataclass(frozen=True, eq=False)
class Kept:
    """All that a guard is made of."""

    tiers: Tiers
    seed: int
    alpha: float
    policy: str
    classes: int
    fingerprint: str  # of the model
    samples: Samples
    calibration: Tensor
    logits: Tensor  # of the first samples
    scores: Tensor  # the same

    PROBES: ClassVar[int] = 16

    def same_model(self, subject: Subject) -> None:
        """InputError where the model is another than that the guard was fitted on."""
        if subject.classes != self.classes or subject.fingerprint() != self.fingerprint:
            raise InputError("the guard was fitted on another model.", "Fit it again on this one.")

    def same_scores(self, pipeline: Pipeline) -> None:
        """InputError where model or guards, fitted again, answer otherwise than they did."""
        told = pipeline.judge(self.samples.inputs[:self.PROBES])
        for name, now, then in (("model answers", told.logits.cpu(), self.logits),
                                ("guard scores", told.scores.cpu(), self.scores)):
            slack = 1e-3 * (1 + float(then.abs().amax()))
            if now.shape != then.shape or float((now - then).abs().amax()) > slack:
                raise InputError(f"the {name} otherwise than when the guard was saved.",
                                 "Another model or another version of PyTorch: fit the guard again.")


def facts(kept: Kept) -> dict[str, Any]:
    """Everything but the tensors; JSON-able."""
    def shown(guard: Guard) -> dict[str, Any]:
        return {"name": guard.card.name, "parameters": asdict(guard)}  # type: ignore[call-overload]

    return {"format": FORMAT, "version": __version__, "seed": kept.seed, "alpha": kept.alpha, "policy": kept.policy,
            "classes": kept.classes, "model": kept.fingerprint, "labelled": kept.samples.labelled, **_inputs(kept),
            "doubt": kept.tiers.doubt, "first": [shown(guard) for guard in kept.tiers.first],
            "second": [{**shown(opinion.guard), "weight": opinion.weight} for opinion in kept.tiers.second]}


def _inputs(kept: Kept) -> dict[str, Any]:
    """What the samples are; nothing of images, which need no more words."""
    known = kept.samples.modality
    return {} if known is None or known.name == "image" else {"inputs": written(known, words=False)}


def _packed(kept: Kept) -> bytes:
    tensors = {"inputs": kept.samples.inputs, "labels": kept.samples.labels, "calibration": kept.calibration,
               "logits": kept.logits, "scores": kept.scores}
    packed: bytes = safetensors.torch.save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    return packed


def digest_of(kept: Kept) -> str:
    """SHA-256 of what decides; the policy is not among it."""
    told = {k: v for k, v in facts(kept).items() if k not in ("policy", "version")}
    tensors = hashlib.sha256(_packed(kept)).hexdigest()
    return hashlib.sha256(json.dumps([told, tensors], sort_keys=True).encode()).hexdigest()


def write(folder: Path, kept: Kept) -> None:
    """The tensors first, so that a folder with a `guard.json` is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    data = _packed(kept)
    for name, content in (("guard.safetensors", data),
                          ("guard.json", json.dumps({**facts(kept), "tensors": hashlib.sha256(data).hexdigest()},
                                                    indent=1, sort_keys=True).encode())):
        part = folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)


def read(folder: Path) -> Kept:
    """What `write` wrote; BrokenFile where it is not that."""
    path = folder / "guard.json"
    try:
        if path.stat().st_size > LARGEST:
            raise BrokenFile(f"{path.name} has {path.stat().st_size} bytes.", "It is no guard.")
        told = json.loads(path.read_text())
        data = (folder / "guard.safetensors").read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the guard in {printable(str(folder), 200)} cannot be read ({first_line(error)}).",
                         "Pass the folder that a guard was saved to.") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise BrokenFile(f"{path.name} is not of the format {FORMAT}.", "Save the guard again with this version.")
    if hashlib.sha256(data).hexdigest() != told.get("tensors"):
        raise BrokenFile("guard.safetensors is not the file that guard.json speaks of.", "Save the guard again.")
    tensors = read_tensors(folder / "guard.safetensors")
    if set(tensors) != set(TENSORS) or not all(bool(torch.isfinite(t.float()).all()) for t in tensors.values()):
        raise BrokenFile("guard.safetensors does not hold what a guard is made of.", "Save the guard again.")
    if len(tensors["labels"]) != len(tensors["inputs"]) or tensors["calibration"].dim() != 1:
        raise BrokenFile("guard.safetensors holds tensors that do not belong together.", "Save the guard again.")
    try:
        tiers = Tiers(tuple(_first(entry) for entry in told["first"]),
                      tuple(Opinion(_guard(entry), float(entry["weight"])) for entry in told["second"]),
                      float(told["doubt"]))
        known = read_modality(told["inputs"]) if "inputs" in told else None
        samples = Samples(tensors["inputs"], tensors["labels"].long(), bool(told["labelled"]), modality=known)
        return Kept(tiers, int(told["seed"]), float(told["alpha"]), str(told["policy"]), int(told["classes"]),
                    str(told["model"]), samples, tensors["calibration"].float().sort().values, tensors["logits"],
                    tensors["scores"])
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFile(f"{path.name} lacks something or has it wrong ({first_line(error)}).",
                         "Save the guard again.") from None


def _guard(entry: Mapping[str, Any]) -> Guard:
    """An installed guard by name, with its parameters and no others."""
    known = {kind.card.name: kind for kind in classes("laocoon.guards", Guard)}  # type: ignore[type-abstract]
    name, given = str(entry["name"]), dict(entry["parameters"])
    if name not in known:
        raise InputError(f"the guard {printable(name, 60)!r} is not installed.", "Install the plug-in that offers it.")
    allowed = {field.name for field in fields(known[name])}  # type: ignore[arg-type]
    if set(given) != allowed:
        raise BrokenFile(f"the parameters of {name} are {printable(str(sorted(given)), 200)}.",
                         f"It has {', '.join(sorted(allowed))}: save the guard again with this version.")
    return known[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def _first(entry: Mapping[str, Any]) -> LayerGuard:
    guard = _guard(entry)
    if not isinstance(guard, LayerGuard):
        raise BrokenFile(f"{guard.card.name} does not read hidden layers.", "Save the guard again.")
    return guard
