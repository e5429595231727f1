"""Recovered triggers on disk: safetensors with a JSON header, so that a scan can be resumed and evidence kept.

A trigger means nothing without its family, and families of tokens or columns hold facts of the model (a vocabulary, a
table). So a family is stored as its class and its fields: plain values as they are, tensors as leaves, and what is the
subject's modality as a mark that is filled in again when the triggers are read for the same subject.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from laocoon.core.candidate import Candidate
from laocoon.core.catalogue import modules
from laocoon.core.errors import BrokenFile
from laocoon.core.goal import ClassGoal, CollapseGoal
from laocoon.core.methods import TriggerFamily
from laocoon.core.subject import Modality
from laocoon.files.wording import first_line, printable

GOALS: dict[str, type] = {goal.__name__: goal for goal in (ClassGoal, CollapseGoal)}
MODALITY, FAMILY, LEAF, LIST = "modality", "family", "tensor", "list"  # marks of what is no plain value


class Unstorable(Exception):
    """A field of a family that is neither plain, nor a tensor, nor the modality."""


def families() -> dict[str, type]:
    """Every class of trigger families, by name."""
    found: dict[str, type] = {}
    for module in modules("laocoon.triggers"):
        for member in vars(module).values():
            if isinstance(member, type) and member.__module__ == module.__name__ and hasattr(member, "stamp"):
                found[member.__name__] = member
    return found


def save_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Write candidates whose goal and family can be told; others are left out."""
    known = families()
    leaves: dict[str, Tensor] = {}
    facts: list[dict[str, Any]] = []
    for candidate in candidates:
        if type(candidate.goal) not in GOALS.values():
            continue
        number = len(facts)
        held: dict[str, Tensor] = {f"{number}.{k}": v for k, v in candidate.trigger.items()}
        try:
            told = _told(candidate.family, known, f"{number}!", held)
        except Unstorable:
            continue
        leaves |= {k: v.detach().cpu().contiguous() for k, v in held.items()}
        facts.append({"family": told, "goal": type(candidate.goal).__name__,
                      "wanted": asdict(candidate.goal), "size": candidate.size,  # type: ignore[call-overload]
                      "success": candidate.success, "method": candidate.method})
    save_file(leaves, str(path), metadata={"laocoon": json.dumps(facts)})


def load_candidates(path: Path, modality: Modality | None = None) -> list[Candidate]:
    """Read what `save_candidates` wrote for a subject of this modality."""
    known = families()
    try:
        with safe_open(str(path), framework="pt") as file:  # type: ignore[no-untyped-call]
            facts = json.loads((file.metadata() or {}).get("laocoon", "[]"))
            leaves = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BrokenFile(f"{path.name} in the resume folder cannot be read ({first_line(error)}).",
                         "Delete it, or resume into an empty folder.") from error
    found = []
    for i, fact in enumerate(facts):
        trigger = {k.partition(".")[2]: v for k, v in leaves.items() if k.partition(".")[0] == str(i)}
        family: TriggerFamily = _made(fact["family"], known, leaves, modality)
        wanted = {k: tuple(v) if isinstance(v, list) else v for k, v in fact["wanted"].items()}
        found.append(Candidate(family, trigger, GOALS[fact["goal"]](**wanted), fact["size"], fact["success"],
                               fact["method"]))
    return found


def _told(value: Any, known: Mapping[str, type], name: str, leaves: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors are put into `leaves` under names that begin with `name`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return {LIST: [_told(v, known, f"{name}/{i}", leaves) for i, v in enumerate(value)]}
    if isinstance(value, Tensor):
        leaves[name] = value
        return {LEAF: name}
    if known.get(type(value).__name__) is type(value) and is_dataclass(value):
        return {FAMILY: type(value).__name__,
                "fields": {f.name: _told(getattr(value, f.name), known, f"{name}/{f.name}", leaves)
                           for f in fields(value) if f.init}}
    if type(value).__module__.startswith("laocoon.modalities."):
        return {MODALITY: type(value).__name__}
    raise Unstorable(type(value).__name__)


def _made(told: Any, known: Mapping[str, type], leaves: Mapping[str, Tensor], modality: Modality | None) -> Any:
    if not isinstance(told, dict):
        return told
    if LIST in told:
        return tuple(_made(v, known, leaves, modality) for v in told[LIST])
    if LEAF in told:
        return leaves[told[LEAF]]
    if MODALITY in told:
        if type(modality).__name__ != told[MODALITY]:
            raise BrokenFile(f"a stored trigger speaks of {printable(told[MODALITY], 40)}, the model is of "
                             f"{type(modality).__name__}.", "Resume into an empty folder.")
        return modality
    return known[told[FAMILY]](**{k: _made(v, known, leaves, modality) for k, v in told["fields"].items()})
