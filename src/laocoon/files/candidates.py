"""Recovered triggers on disk: safetensors with a JSON header, so that a scan can be resumed and evidence kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from laocoon.core.candidate import Candidate
from laocoon.core.catalogue import modules
from laocoon.core.errors import BrokenFile
from laocoon.core.goal import ClassGoal
from laocoon.core.methods import TriggerFamily
from laocoon.files.wording import first_line


def families() -> dict[str, TriggerFamily]:
    """Every trigger family that can be made without arguments, by name."""
    found: dict[str, TriggerFamily] = {}
    for module in modules("laocoon.triggers"):
        for member in vars(module).values():
            own = isinstance(member, type) and member.__module__ == module.__name__
            if own and hasattr(member, "stamp") and not member.__name__.startswith("_"):  # _: a base of families
                try:
                    family = member()
                except TypeError:
                    continue  # needs facts of the model (a vocabulary, a schema)
                found[family.name] = family
    return found


def save_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Write candidates whose goal is a ClassGoal; others are left out."""
    kept = [c for c in candidates if isinstance(c.goal, ClassGoal) and c.family.name in families()]
    leaves = {f"{i}.{k}": v.detach().cpu().contiguous() for i, c in enumerate(kept) for k, v in c.trigger.items()}
    facts = [{"family": c.family.name,
              "destinations": list(c.goal.destinations) if isinstance(c.goal, ClassGoal) else [],
              "size": c.size, "success": c.success, "method": c.method} for c in kept]
    save_file(leaves, str(path), metadata={"laocoon": json.dumps(facts)})


def load_candidates(path: Path) -> list[Candidate]:
    """Read what `save_candidates` wrote."""
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
        found.append(Candidate(known[fact["family"]], trigger, ClassGoal(tuple(fact["destinations"])), fact["size"],
                               fact["success"], fact["method"]))
    return found
