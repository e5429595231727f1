"""Evidence that travels: from scan to repair, guard and lab. Tensors live here, never in a Report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from laocoon.core.goal import Goal

if TYPE_CHECKING:
    from laocoon.core.methods import TriggerFamily


@dataclass(frozen=True, eq=False)
class Candidate:
    """A recovered trigger: one arm of a family, with its success on the samples that it was fitted on."""

    family: TriggerFamily
    trigger: Mapping[str, Tensor]  # leading axis: one arm
    goal: Goal
    size: float
    success: float
    method: str

    def stamp(self, batch: Tensor) -> Tensor:
        """The batch with the trigger on it, same shape."""
        return self.family.stamp(batch, self.trigger)[0]

    def facts(self) -> dict[str, Any]:
        return {"family": self.family.name, "goal": self.goal.describe(), "size": round(self.size, 4),
                "success": round(self.success, 4), "method": self.method}
