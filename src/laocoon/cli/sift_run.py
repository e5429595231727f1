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

DEFAULT_NETWORK = "resnet"


def factory(name: str, shape: tuple[int, int, int], classes: int) -> Callable[[Context], Subject]:
    """Makes untrained networks by name, for images [channels, side, side]."""
    from laocoon.core.subject import Subject
    from laocoon.lab.victims import ARCHITECTURES, build
    from laocoon.modalities.image import Image

    if name not in ARCHITECTURES:
        raise InputError(f"there is no architecture {name!r} to train.", f"Known: {', '.join(sorted(ARCHITECTURES))}.")
    channels, side, _ = shape

    def untrained(ctx: Context) -> Subject:
        return Subject(build(name, channels, side, classes, ctx.rng), Image(), classes, shape)

    return untrained


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
