"""Networks to train by name, and models that `laocoon train` wrote, opened again (ensembles included)."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from laocoon.core.card import Capability
from laocoon.core.context import Context
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files import safetensors, state_dict
from laocoon.files.open import digest
from laocoon.files.wording import first_line, printable
from laocoon.lab.victims import ARCHITECTURES, build
from laocoon.modalities.image import Image
from laocoon.recipes.voting import Votes

Shape = tuple[int, int, int]
MOST_MEMBERS, MOST_CLASSES, LARGEST_SIDE = 10_000, 10_000, 1024
KEY = "laocoon"  # of the facts in a file's metadata


def maker(name: str, shape: Shape, classes: int) -> Callable[[Context], Subject]:
    """Makes untrained networks for images of a shape: one of ours by name, or what a factory of the user's returns.

    A factory is the user's own code and runs here; it takes no arguments and returns a module for images in [0, 1].
    """
    if name in ARCHITECTURES:
        if shape[1] != shape[2]:
            raise InputError(f"the images are {shape[1]} x {shape[2]}; {name!r} takes squares.", "Pass --size N.")

        def make(rng: torch.Generator) -> nn.Module:
            return build(name, shape[0], shape[1], classes, rng)
    elif ":" in name:
        factory = _factory(name)

        def make(rng: torch.Generator) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
                made = factory()
            if not isinstance(made, nn.Module):
                raise InputError(f"{name} returned a {type(made).__name__}.", "It must return a torch module.")
            return made.float()
    else:
        raise InputError(f"there is no architecture {printable(name, 60)!r}.",
                         f"Known: {', '.join(sorted(ARCHITECTURES))}, or package.module:factory.")
    return lambda ctx: _subject(make(ctx.rng), name, shape, classes)


def _factory(name: str) -> Callable[[], object]:
    module, _, path = name.partition(":")
    sys.path.insert(0, "")
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{printable(name, 80)} cannot be imported ({first_line(error, 100)}).",
                         "Run from the folder that holds it, or install it.") from None
    finally:
        sys.path.remove("")
    if not callable(found):
        raise InputError(f"{printable(name, 80)} is not a function or class.", "Name one that returns the network.")
    return found


def _subject(module: nn.Module, name: str, shape: Shape, classes: int) -> Subject:
    try:
        with torch.no_grad():
            said = module.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{printable(name, 80)} takes no images of shape {list(shape)} ({first_line(error, 120)}).",
                         "Use another architecture, or bring the images to its size with --size.") from None
    if not isinstance(said, torch.Tensor) or said.shape != (2, classes):
        found = list(said.shape[1:]) if isinstance(said, torch.Tensor) else type(said).__name__
        raise InputError(f"{printable(name, 80)} gives {found} for an image; the data have {classes} classes.",
                         "Build it for the classes of the data.")
    return Subject(module, Image(), classes, shape)


def reopened(path: str, architecture: str | None) -> Subject | None:
    """A model that `laocoon train` wrote as safetensors; None where the file is something else.

    The file may name one of our architectures; a factory is only imported when the user names it.
    """
    place = Path(path)
    if not place.is_file():
        return None
    with place.open("rb") as file:
        if not safetensors.looks_like_safetensors(file.read(9)):
            return None
    text = safetensors.check(place).get(KEY)
    if text is None:
        return None
    name, shape, classes, members = _facts(text, place.name)
    if name not in ARCHITECTURES:
        if architecture is None:
            raise InputError(f"{place.name} was trained as {printable(name, 60)}, which a file may not name.",
                             f"Pass --architecture {printable(name, 60)} if you trust that code.")
        name = architecture
    make = maker(name, shape, classes)
    first = make(Context())
    module: nn.Module = first.module
    if members:
        module = Votes([first.module, *(make(Context()).module for _ in range(members - 1))], classes)
    module.load_state_dict(state_dict.fitted(safetensors.read(place), module.state_dict(), place.name), strict=False)
    if not all(bool(torch.isfinite(t).all()) for t in module.state_dict().values()):
        raise BrokenFile(f"{place.name} holds weights that are not finite.", "It is damaged.")
    have = frozenset({Capability.QUERY, Capability.WEIGHTS}) if members else first.capabilities
    return replace(first, module=module, capabilities=have,
                   provenance=Provenance(place.name, "safetensors", digest(place), metadata={KEY: text}))


def _facts(text: str, where: str) -> tuple[str, Shape, int, int]:
    try:
        facts = json.loads(text)
        channels, height, width = (int(v) for v in facts["shape"])
        name, classes, members = str(facts["architecture"]), int(facts["classes"]), int(facts["members"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        raise BrokenFile(f"{where} says in a malformed way how it was made.", "It is damaged.") from None
    if not (1 <= channels <= 4 and 1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE
            and 2 <= classes <= MOST_CLASSES and 0 <= members <= MOST_MEMBERS):
        raise BrokenFile(f"{where} claims {members} networks for {classes} classes of {channels} x {height} x {width}.",
                         "It is damaged.")
    return name, (channels, height, width), classes, members
