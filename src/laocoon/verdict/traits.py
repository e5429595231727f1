"""Facts of a network that accuse it of nothing but tell what a clean one like it looks like to the methods.

Clean networks without normalisation score lower than others in every search (docs/results/index.md): held against all
of them alike, the others are accused too often and backdoors in the plain ones are missed.
"""

from __future__ import annotations

import re

from laocoon.core.card import Capability
from laocoon.core.subject import Subject
from laocoon.recipes.wiring import branching
from laocoon.verdict.calibrate import BRANCHING, PLAIN
from laocoon.verdict.fuse import KNOWN

NORMALISES = re.compile("(batch|layer|group|instance|rms)_?norm", re.IGNORECASE)  # in the name of a layer's class
# Formats whose exporters fold a normalisation into the layer before it, so that seeing none says nothing.
FOLDING = ("onnx", "torch.export", "torchscript")


def traits(subject: Subject) -> dict[str, list[float | None]]:
    """Rows of a table of statistics, one value each; what cannot be known of the subject is left out.

    known.normalised: 1 where some layer normalises its inputs (over the batch, a layer, groups or an instance), else 0.
    """
    if Capability.WEIGHTS not in subject.capabilities:
        return {}
    names = (str(getattr(m, "original_name", type(m).__name__)) for m in subject.module.modules())
    normalised = any(NORMALISES.search(name) for name in names)
    if not normalised and subject.provenance.format.lower().startswith(FOLDING):
        return {}
    return {KNOWN + "normalised": [float(normalised)]}


def wiring(subject: Subject) -> str:
    """"plain" for a chain of layers, "branching" for one with skips, branches, attention or depthwise layers.

    "" where it cannot be known, or for anything but images, whose references are not told apart by it.
    """
    if subject.modality.name != "image" or Capability.GRADIENT not in subject.capabilities:
        return ""
    found = branching(subject.module, subject.input_shape)
    return "" if found is None else BRANCHING if found else PLAIN
