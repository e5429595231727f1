"""The child's side of `marabou`: reads the network and the box, asks the verifier once. Nothing here needs torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def solve(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One query: may the target's score be the largest (ties count)?"""
    from maraboupy import Marabou, MarabouCore, MarabouUtils

    place = Path(arguments["folder"])
    box = json.loads((place / "box.json").read_text())
    network = Marabou.read_onnx(str(place / "network.onnx"))
    pixels, scores = network.inputVars[0].flatten(), network.outputVars[0].flatten()
    for variable, low, high in zip(pixels, box["lower"], box["upper"], strict=True):
        network.setLowerBound(int(variable), low)
        network.setUpperBound(int(variable), high)
    target = int(arguments["target"])
    for number, score in enumerate(scores):
        if number != target:  # score − score of the target ≤ 0
            equation = MarabouUtils.Equation(MarabouCore.Equation.LE)
            equation.addAddend(1.0, int(score))
            equation.addAddend(-1.0, int(scores[target]))
            equation.setScalar(0.0)
            network.addEquation(equation)
    options = Marabou.createOptions(timeoutInSeconds=max(1, int(arguments["seconds"])), verbosity=0)
    result, values, _ = network.solve(verbose=False, options=options)
    return {"result": str(result), "found": [float(values[int(v)]) for v in pixels] if str(result) == "sat" else []}
