"""Networks to train by name, and models that `laocoon train` wrote, opened again (ensembles included)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from laocoon.core.card import Capability
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.subject import Modality, Provenance, Subject
from laocoon.files import safetensors
from laocoon.files.architecture import timm_network
from laocoon.files.open import digest
from laocoon.files.trained import KEY, TIMM, facts_in, filled
from laocoon.files.wording import first_line, printable
from laocoon.modalities import small_networks
from laocoon.modalities.accepted import blank
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import ARCHITECTURES, build
from laocoon.recipes.voting import Votes

Shape = tuple[int, ...]


def maker(name: str, shape: Shape, classes: int, modality: Modality | None = None, inputs: torch.Tensor | None = None,
          ) -> Callable[[Context], Subject]:
    """Makes untrained networks for inputs of a shape: one of ours by name, or what a factory of the user's returns.

    A factory is the user's own code and runs here; it takes no arguments and returns a module for canonical inputs.
    inputs: rows of a table, whose units a network of ours is built for.
    """
    what = modality or Image()
    if name.startswith(TIMM) and what.name == "image":
        def make(rng: torch.Generator) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
                return timm_network(name.removeprefix(TIMM), shape[0], (shape[1], shape[2]), classes).float()
    elif ":" in name:
        factory = _factory(name)

        def make(rng: torch.Generator) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(0, 2**31, (), generator=rng)))
                made = factory()
            if not isinstance(made, nn.Module):
                raise InputError(f"{name} returned a {type(made).__name__}.", "It must return a torch module.")
            return made.float()
    elif what.name != "image":
        def make(rng: torch.Generator) -> nn.Module:
            return small_networks.built(name, what, classes, rng, inputs)
    elif name in ARCHITECTURES:
        if shape[1] != shape[2]:
            raise InputError(f"the images are {shape[1]} x {shape[2]}; {name!r} takes squares.", "Pass --size N.")

        def make(rng: torch.Generator) -> nn.Module:
            return build(name, shape[0], shape[1], classes, rng)
    else:
        raise InputError(f"there is no architecture {printable(name, 60)!r}.",
                         f"Known: {', '.join(sorted(ARCHITECTURES))}, timm:NAME, or package.module:factory.")
    return lambda ctx: _subject(make(ctx.rng), name, shape, classes, what)


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


def _subject(module: nn.Module, name: str, shape: Shape, classes: int, modality: Modality) -> Subject:
    what = "images" if modality.name == "image" else "inputs"
    try:
        with torch.no_grad():
            said = module.eval()(blank(shape, modality, torch.device("cpu")).repeat(2, *(1,) * len(shape)))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{printable(name, 80)} takes no {what} of shape {list(shape)} ({first_line(error, 120)}).",
                         "Use another architecture, or bring the images to its size with --size.") from None
    if not isinstance(said, torch.Tensor) or said.shape != (2, classes):
        found = list(said.shape[1:]) if isinstance(said, torch.Tensor) else type(said).__name__
        raise InputError(f"{printable(name, 80)} gives {found} for an {what[:-1]}; the data have {classes} classes.",
                         "Build it for the classes of the data.")
    return Subject(module, modality, classes, shape)


def reopened(path: str, architecture: str | None) -> Subject | None:
    """A model that `laocoon train` wrote as safetensors; None where the file is something else."""
    place = Path(path)
    if not place.is_file():
        return None
    with place.open("rb") as file:
        if not safetensors.looks_like_safetensors(file.read(9)):
            return None
    facts = facts_in(place)
    if facts is None:
        return None
    name, image = facts.architecture, facts.modality.name == "image"
    if name not in (ARCHITECTURES if image else small_networks.names(facts.modality)) and not name.startswith(TIMM):
        if architecture is None:
            raise InputError(f"{place.name} was trained as {printable(name, 60)}, which a file may not name.",
                             f"Pass --architecture {printable(name, 60)} if you trust that code.")
        name = architecture
    make = maker(name, facts.shape, facts.classes, facts.modality)
    first = make(Context())
    module: nn.Module = first.module
    if facts.members:
        module = Votes([first.module, *(make(Context()).module for _ in range(facts.members - 1))], facts.classes)
    filled(module, place)
    have = frozenset({Capability.QUERY, Capability.WEIGHTS}) if facts.members else first.capabilities
    return replace(first, module=module, capabilities=have,
                   provenance=Provenance(place.name, "safetensors", digest(place), metadata={KEY: facts.text}))
