"""A few published figures, which our implementations have to come near on networks of a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from laocoon.core.context import Context
from laocoon.lab.plan import attacks
from laocoon.recipes.latent_statistics import strip
from laocoon.testing.twins import success, twins

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())


@pytest.mark.parametrize("figure", PUBLISHED["figures"], ids=lambda f: f["attack"])
def test_attack_success(figure: dict[str, Any]) -> None:
    kind = attacks()[figure["attack"]]
    implant = kind(**{**kind.card.quick, **figure.get("parameters", {})}).implant(twins("image").plan, Context(seed=1))
    found = success(implant, twins("image").plan.test)
    assert found >= figure["reported"] - figure["tolerance"], f"{found:.3f} here; {figure['paper']}"


def test_strip() -> None:
    told, twin = PUBLISHED["strip"], twins("image")
    test, goal = twin.plan.test, twin.implant.trigger.goal
    overlays = twin.plan.train.inputs[:500]

    def score(inputs: torch.Tensor) -> torch.Tensor:
        return strip(lambda x: twin.planted.subject.outputs(x).logits, inputs, overlays,
                     torch.Generator().manual_seed(0), blends=64)

    clean = score(test.inputs)
    planted = score(twin.implant.trigger.stamp(test.inputs[goal.applies(test.labels)]))  # type: ignore[attr-defined]
    accepted = float((planted <= clean.quantile(1 - told["false_rejection"])).float().mean())
    assert accepted <= told["false_acceptance"] + told["tolerance"], f"{accepted:.3f} here; {told['paper']}"
