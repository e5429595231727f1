"""Which methods a budget runs, in order of cost. Budgets nest and share settings, so that one set of reference
measurements serves them all: a statistic means the same at every budget that computes it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Detector

# Cheapest first. `quick` is seconds; `default` minutes on a laptop; `deep` adds what is dear.
STAGES: dict[str, tuple[str, ...]] = {
    "quick": ("architectural_backdoor", "tokenizer_tampering", "weight_sanity", "potrojan", "head_statistics",
              "head_probes", "trodo", "neuron_stimulation", "mm_bd", "trigger_inversion", "whole_image_inversion",
              "bounded_inversion", "text_inversion", "template_probe", "embedding_outlier", "tabular_query_inversion",
              "tabular_inversion", "decree", "text_collapse"),
    "default": ("ban", "feature_decoupling", "all_to_all_inversion"),
    "deep": ("pair_inversion",),
}
ORDER = ("quick", "default", "deep")
# For image models that can only be asked; of the others' schedule they are no part.
ASKING: dict[str, tuple[str, ...]] = {"quick": ("sparse_rs",), "default": (), "deep": ("b3d", "aeva")}


@dataclass(frozen=True)
class Schedule:
    """The methods of a scan and the allowance in passes."""

    budget: str
    methods: tuple[Detector, ...]
    passes: float


def available() -> dict[str, type[Detector]]:
    """Every installed detector by name, plug-ins included."""
    return {d.card.name: d for d in classes("laocoon.detectors", Detector)}  # type: ignore[type-abstract]


def plan(budget: str, wanted: Sequence[str] | None = None, modality: str = "image", *,
         only_asked: bool = False) -> Schedule:
    """The schedule of a budget: `quick`, `default`, `deep` or a number of passes (then everything, until it is spent).

    wanted: names of methods; a leading '-' leaves one out; otherwise only those named run. Methods for other
    modalities are not part of the schedule unless they are named. only_asked: the model shows no gradient, no weights.
    """
    known, stages = available(), ASKING if only_asked else STAGES
    if budget in ORDER:
        names = [n for stage in ORDER[:ORDER.index(budget) + 1] for n in stages[stage]]
        passes = float("inf")
    else:
        try:
            passes = float(budget)
        except ValueError:
            raise InputError(f"budget is {budget!r}.", "It is quick, default, deep or a number of passes.") from None
        if not 1 <= passes < float("inf"):
            raise InputError(f"budget is {budget!r}.", "A number of passes is at least 1.")
        names = [n for stage in ORDER for n in stages[stage]]
    named = [n for table in (STAGES, ASKING) for stage in ORDER for n in table[stage]]
    names += [n for n in known if n not in named]  # plug-ins run at every budget, last
    for word in wanted or ():
        if (name := word.removeprefix("-")) not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(f"there is no method {name!r}.{hint}", f"Methods: {', '.join(sorted(known))}.")
    only = [w for w in wanted or () if not w.startswith("-")]
    without = {w[1:] for w in wanted or () if w.startswith("-")}
    fitting = [n for n in names if n in known and modality in known[n].card.modalities]
    chosen = [n for n in (dict.fromkeys([*[m for m in named if m in only], *only]) if only else fitting)
              if n not in without]
    if not chosen:
        raise InputError("no method is left to run.", "Name fewer methods with a leading '-'.")
    return Schedule(budget, tuple(known[n]() for n in chosen), passes)


def context_for(schedule: Schedule, root: Context, method: Detector) -> Context:
    """A method's own context: what is left of the allowance."""
    return root.child(root.left, method.card.name)
