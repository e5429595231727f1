"""From files to an engine: the model, the guard that was fitted to it, and perhaps another server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from laocoon.core.errors import InputError
from laocoon.core.subject import Subject
from laocoon.files.open import load_model
from laocoon.modalities.raw import ModelOptions
from laocoon.serve.engine import Engine, Facts
from laocoon.serve.inputs import inputs_of
from laocoon.serve.settings import ServeOptions
from laocoon.serve.upstream import Asking, Remote, black_box
from laocoon.verdict.guard import Guarded


def is_address(model: str) -> bool:
    """Whether a model is named by the address of a server instead of a file."""
    return model.startswith(("http://", "https://"))


def subject_of(
    model: str, *, architecture: str | None, options: ModelOptions | None, device: str, upstream_model: str | None,
    seconds: float = 60.0,
) -> Subject:
    """A model from a file, or one on a server of the Open Inference Protocol, which can only be asked."""
    if is_address(model):
        if not upstream_model:
            raise InputError(f"{model[:80]} is a server, but which of its models?", "Pass --upstream-model NAME.")
        return black_box(Remote(model, upstream_model, seconds=seconds), model)
    return load_model(model, architecture=architecture, options=options).to(_device(device))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device is {name!r}.", "Use cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device is {name!r} but no CUDA device is usable here.", "Use --device cpu.")
    return device


def load_engine(
    model: str, guard: Path, settings: ServeOptions, *, architecture: str | None = None,
    options: ModelOptions | None = None,
) -> Engine:
    """Reads everything anew; errors of files and of a guard that was fitted to another model come out as they are."""
    name = settings.upstream_model or settings.name
    subject = subject_of(model, architecture=architecture, options=options, device=settings.device,
                         upstream_model=name, seconds=settings.request_seconds)
    guarded = Guarded.load(guard, subject)
    if settings.policy == "purify":
        guarded = guarded.under(policy="purify")
    inputs = inputs_of(guarded.subject.modality, tuple(subject.input_shape))
    upstream = None
    if isinstance(subject.module, Asking):
        if settings.upstream is not None:
            raise InputError("the model is a server already.", "Leave --upstream out.")
        upstream = subject.module.remote
    elif settings.upstream is not None and subject.modality.name != "image":
        raise InputError(f"the model takes {subject.modality.name}; only image classifiers are asked elsewhere.",
                         "Leave --upstream out: the guarded model answers.")
    elif settings.upstream is not None:
        upstream = Remote(settings.upstream, name, seconds=settings.request_seconds)
        if (upstream.shape, upstream.classes) != (tuple(subject.input_shape), subject.classes):
            raise InputError(
                f"the upstream's model takes {list(upstream.shape)} and knows {upstream.classes} classes; the guarded "
                f"one takes {list(subject.input_shape)} and knows {subject.classes}.", "Both must be the same model.")
    # A black box has no file: its address stands for it.
    digest = subject.provenance.sha256 or hashlib.sha256(f"{model}\0{name}".encode()).hexdigest()
    facts = Facts(digest, guarded.digest, tuple(subject.input_shape), subject.classes, subject.class_names,
                  guarded.alpha, len(guarded.calibration), inputs)
    return Engine(guarded, facts, guarded.purifier, upstream)
