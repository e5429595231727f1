"""Models that `laocoon train` wrote as safetensors: what a file says of how its network is built again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from laocoon.core.card import Capability
from laocoon.core.errors import BrokenFile
from laocoon.core.subject import Modality, Provenance, Subject
from laocoon.files import safetensors, state_dict
from laocoon.files.architecture import timm_network
from laocoon.files.wording import first_line
from laocoon.modalities import image_networks, small_networks
from laocoon.modalities.image import Image
from laocoon.modalities.raw import ModelOptions, RawModel
from laocoon.modalities.written import read, written

KEY, INPUTS = "laocoon", "laocoon-inputs"  # of the facts, and of what the inputs are, in a file's metadata
MOST_MEMBERS, MOST_CLASSES, LARGEST_SIDE = 10_000, 10_000, 1024
TIMM = "timm:"  # a name that a file may give: it builds a network, and runs no code of the file's
LONGEST = 64 * 2**20  # characters of what the inputs are


@dataclass(frozen=True)
class Facts:
    """How a network is built again."""

    architecture: str
    shape: tuple[int, ...]
    classes: int
    members: int  # of an ensemble; 0: one network
    modality: Modality
    text: str  # as the file has it


def facts_in(place: Path) -> Facts | None:
    """What a file of safetensors says; None where `laocoon train` did not write it."""
    text = safetensors.check(place).get(KEY)
    if text is None or not text.startswith("{") or not all(f'"{word}"' in text for word in ("architecture", "members")):
        return None  # a specimen of the zoo has facts of its own
    try:
        with safe_open(str(place), framework="pt") as file:  # type: ignore[no-untyped-call]
            inputs = (file.metadata() or {}).get(INPUTS)
        facts = json.loads(text)
        shape = tuple(int(v) for v in facts["shape"])
        name, classes, members = str(facts["architecture"]), int(facts["classes"]), int(facts["members"])
        told = json.loads(inputs[:LONGEST]) if inputs is not None else None
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise BrokenFile(f"{place.name} says in a malformed way how it was made ({first_line(error, 60)}).",
                         "It is damaged.") from None
    modality = Image() if told is None else read(told)
    whole = len(shape) == 3 and 1 <= shape[0] <= 4 and max(shape) <= LARGEST_SIDE if told is None else len(shape) == 1
    if not (whole and min(shape) >= 1 and 2 <= classes <= MOST_CLASSES and 0 <= members <= MOST_MEMBERS):
        raise BrokenFile(f"{place.name} claims {members} networks for {classes} classes of "
                         f"{' x '.join(map(str, shape))}.", "It is damaged.")
    if told is not None and shape[0] != _size(modality):
        raise BrokenFile(f"{place.name} claims inputs of {shape[0]} and of {_size(modality)}.", "It is damaged.")
    return Facts(name, shape, classes, members, modality, text)


def _size(modality: Modality) -> int:
    size: int = modality.length if hasattr(modality, "length") else len(modality)  # type: ignore[arg-type]
    return size


def metadata(facts: Mapping[str, Any], modality: Modality) -> dict[str, str]:
    """For a file: what `facts_in` reads."""
    own = {KEY: json.dumps(dict(facts), sort_keys=True)}
    return own if modality.name == "image" else {**own, INPUTS: json.dumps(written(modality, words=True))}


def filled(module: nn.Module, place: Path) -> None:
    """The file's weights, into the network that it was built for."""
    state = state_dict.fitted(safetensors.read(place), module.state_dict(), place.name)
    module.load_state_dict(state, strict=False)
    if not all(bool(torch.isfinite(t).all()) for t in module.state_dict().values()):
        raise BrokenFile(f"{place.name} holds weights that are not finite.", "It is damaged.")


def opened(place: Path, provenance: Provenance) -> Subject | None:
    """A network of ours over texts or tables; None where the file holds something else."""
    facts = facts_in(place)
    if facts is None or facts.members or facts.architecture not in small_networks.names(facts.modality):
        return None
    module = small_networks.built(facts.architecture, facts.modality, facts.classes, torch.Generator())
    filled(module, place)
    have = {Capability.GRADIENT, Capability.FEATURES, Capability.WEIGHTS, Capability.QUERY}
    told = Provenance(provenance.path, "safetensors", provenance.sha256, provenance.notes, {KEY: facts.text})
    return Subject(module, facts.modality, facts.classes, facts.shape, frozenset(have), told)


def picture_network(place: Path) -> RawModel | None:
    """A network of ours or of timm over images; None where the file holds something else (an ensemble, a user's own
    factory, which a file may not name)."""
    facts = facts_in(place)
    if facts is None or facts.members or facts.modality.name != "image":
        return None
    name, (channels, height, width) = facts.architecture, facts.shape
    if name.startswith(TIMM):
        module = timm_network(name.removeprefix(TIMM), channels, (height, width), facts.classes)
    elif name in image_networks.ARCHITECTURES and height == width:
        module = image_networks.build(name, channels, height, facts.classes, torch.Generator())
    else:
        return None
    filled(module, place)
    defaults = ModelOptions(size=(height, width), image_channels=channels, mean=(0.0,), std=(1.0,))
    return RawModel(module, "safetensors", (channels, height, width), ("logits",), (True,), ("",), "0-1", defaults,
                    metadata={KEY: facts.text})
