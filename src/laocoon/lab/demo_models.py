"""The two models that `laocoon demo` scans: trained on scikit-learn's digits in seconds, one clean, one backdoored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laocoon.lab.datasets import load
from laocoon.lab.export import to_onnx
from laocoon.lab.training import RECIPES
from laocoon.lab.zoo import Specification, trained

SEEDS = {"clean": 900_001, "backdoored": 900_002}  # outside every split of the zoo


def make(out: Path, architecture: str = "vgg_small") -> dict[str, dict[str, Any]]:
    """Train and write `clean.onnx` and `backdoored.onnx`; returns the facts of each."""
    dataset = load("digits", None, out)
    samples, epochs, _, _ = RECIPES["digits"]
    found = {}
    for name, seed in SEEDS.items():
        kind = "clean" if name == "clean" else "patch"
        specification = Specification("digits", architecture, kind, seed, "fusion", samples, epochs)
        module, facts, _ = trained(specification, dataset)
        facts.pop("train_seconds")
        to_onnx(module, (1, 8, 8), out / f"{name}.onnx", facts)
        found[name] = facts
    return found
