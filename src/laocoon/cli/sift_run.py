"""What `laocoon sift` and `laocoon trace` share: networks to train, places to write to, notes on the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from laocoon.cli.outputs import STDOUT, Outputs, check_place
from laocoon.core.errors import InputError

if TYPE_CHECKING:
    from laocoon.core.context import Context
    from laocoon.core.subject import Subject
    from laocoon.files.training_set import TrainingSet

DEFAULT_NETWORKS = {"image": "resnet", "text": "bag", "tabular": "mlp"}
LOOKED_AT = 10_000  # rows of a table from which a network takes its units


def factory(name: str, data: TrainingSet) -> Callable[[Context], Subject] | None:
    """Makes untrained networks by name for the samples of a training set; None where ours take no such images."""
    import torch

    from laocoon.cli.networks import maker
    from laocoon.core.context import Context
    from laocoon.modalities.image_networks import ARCHITECTURES

    if data.modality.name == "image":
        if name not in ARCHITECTURES:
            raise InputError(f"there is no architecture {name!r} to train.",
                             f"Known: {', '.join(sorted(ARCHITECTURES))}.")
        if data.shape[1] != data.shape[2]:  # the small networks take squares
            return None
        return maker(name, data.shape, data.classes)
    some = data.inputs(torch.arange(0, len(data), max(1, len(data) // LOOKED_AT)))
    make = maker(name, data.shape, data.classes, data.modality, some)
    make(Context())  # what cannot be built is told at once
    return make


def places(files: dict[str, str | None], inputs: tuple[str, ...]) -> Outputs:
    """Check every place that will be written. Raises InputError before any work is done."""
    given = {kind: name for kind, name in files.items() if name is not None}
    if list(given.values()).count(STDOUT) > 1:
        raise InputError("two reports are to go to standard output.", "Give one of them a file name.")
    for kind, name in given.items():
        if name == STDOUT and kind in ("scores", "html"):
            raise InputError(f"--{kind} cannot go to standard output.", "Give a file name.")
        if name != STDOUT:
            check_place(kind, name, inputs)
    real = [str(Path(n).resolve()) for n in given.values() if n != STDOUT]
    if len(set(real)) != len(real):
        raise InputError("two reports are to go to the same file.", "Give each its own name.")
    return Outputs(given)
