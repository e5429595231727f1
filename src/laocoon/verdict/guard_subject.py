"""What may be guarded: a subject, any `nn.Module`, or any callable from a batch to class scores, labels included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.card import Capability
from laocoon.core.cases import Samples, informed
from laocoon.core.errors import InputError, NotApplicable
from laocoon.core.subject import Modality, Subject
from laocoon.modalities.inferred import inferred
from laocoon.modalities.tabular import Tabular
from laocoon.recipes.requests import acceptable
from laocoon.recipes.shadow import shadow

Model = Subject | nn.Module | Callable[[Tensor], Tensor]
PROBE = 16  # samples that the form of the answers is read off
SURE = 10.0  # logit of a class that a model gives as a bare label


class Scores(nn.Module):
    """Whatever a model answers, as logits: labels become one-hot, probabilities their logarithms."""

    def __init__(self, inner: Callable[[Tensor], Any], form: str, classes: int) -> None:
        super().__init__()
        self.inner, self.form, self.classes = inner, form, classes

    def forward(self, batch: Tensor) -> Tensor:
        answer = self.inner(batch)
        if self.form == "labels":
            return nn.functional.one_hot(answer.long(), self.classes).float() * SURE
        return answer.clamp_min(1e-7).log() if self.form == "probabilities" else answer


def as_subject(model: Model, clean: Samples, classes: int | None) -> Subject:
    """A subject over the model, which is left as it is; InputError where samples or answers cannot be used."""
    pictures = isinstance(model, Subject) and model.modality.name == "image"
    if len(clean) == 0 or len(clean.labels) != len(clean.inputs) or (pictures and clean.inputs.dim() != 4):
        raise InputError(f"the clean samples have shape {list(clean.inputs.shape)} and {len(clean.labels)} labels.",
                         "Pass images [n, channels, height, width], ids [n, length] or rows [n, columns], and one "
                         "label for each.")
    shape = tuple(clean.inputs.shape[1:])
    if isinstance(model, Subject):
        acceptable(clean.inputs, model.input_shape, model.modality)
        if classes not in (None, model.classes):
            raise InputError(f"the model has {model.classes} classes, not {classes}.", "Drop the option.")
        # Ranges and kinds of columns are told by data; a vocabulary by the model.
        return informed(model, clean) if isinstance(model.modality, Tabular) else model
    modality = inferred(clean.inputs, clean.modality)
    acceptable(clean.inputs, shape, modality)
    if isinstance(model, nn.Module):
        return _of_module(model, clean.inputs[:PROBE], shape, classes, modality)
    if not callable(model):
        raise InputError(f"the model is a {type(model).__name__}.", "Pass a module or a function.")
    form, count = _form(model, clean.inputs[:PROBE], classes)
    asked = {Capability.QUERY, Capability.HARD_LABEL} if form == "labels" else {Capability.QUERY}
    return Subject(Scores(model, form, count), modality, count, shape, frozenset(asked))


def _of_module(model: nn.Module, some: Tensor, shape: tuple[int, ...], classes: int | None,
               modality: Modality) -> Subject:
    try:
        inner = shadow(model)  # evaluation mode and no gradients are the shadow's; the user's module keeps its own
    except NotApplicable as error:
        raise InputError(error.problem, "Pass it as a function, `lambda x: model(x)`: a black box.") from None
    tensor = next((t for t in (*inner.parameters(), *inner.buffers())), None)
    some = some if tensor is None else some.to(tensor.device)
    form, count = _form(inner, some, classes)
    module = inner if form == "logits" else Scores(inner, form, count)
    return Subject(module, modality, count, shape)


@torch.no_grad()
def _form(model: Callable[[Tensor], Any], some: Tensor, classes: int | None) -> tuple[str, int]:
    """What the answers are ("logits", "probabilities" or "labels"), and of how many classes."""
    answer = model(some)
    if not isinstance(answer, Tensor):
        raise InputError(f"the model answers with a {type(answer).__name__}.",
                         "Wrap it so that it returns one tensor of class scores, [batch, classes].")
    if answer.shape == (len(some),) and not answer.is_floating_point():
        if classes is None or int(answer.max()) >= classes or int(answer.min()) < 0:
            raise InputError("the model answers with labels." if classes is None else
                             f"the model answers with labels outside 0 to {classes - 1}.",
                             "Say how many classes there are with `classes`.")
        return "labels", classes
    if answer.dim() != 2 or len(answer) != len(some) or answer.shape[1] < 2 or not answer.is_floating_point():
        raise InputError(f"the model answers {len(some)} samples with shape {list(answer.shape)}.",
                         "It must return class scores, [batch, classes], of two classes or more.")
    if classes not in (None, answer.shape[1]):
        raise InputError(f"the model has {answer.shape[1]} classes, not {classes}.", "Drop the option.")
    if not bool(torch.isfinite(answer).all()):
        raise InputError("the model's answers to clean samples are not finite.", "Check its weights and inputs.")
    sums = bool(((answer.sum(1) - 1).abs() < 1e-3).all()) and bool((answer >= 0).all())
    return ("probabilities" if sums else "logits"), int(answer.shape[1])
