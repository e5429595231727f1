"""Models of XGBoost from their JSON or UBJSON, read as numbers (`trees`): the library is not needed.

x < threshold goes left, in single precision; a category that is in a node's set goes right. The base score of a
logistic objective is stored as a probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files import ubjson
from laocoon.files.trees import Tree, Trees, ordered
from laocoon.files.wording import first_line, printable
from laocoon.modalities.raw import RawModel

LARGEST_FILE = 2**29
_TWO = {"binary:logistic": True, "reg:logistic": True, "binary:logitraw": False}  # is the base score a probability?
_MANY = ("multi:softprob", "multi:softmax")
_FAILURES = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def looks_like_xgboost(head: bytes) -> bool:
    """A JSON or UBJSON object whose keys are those of a booster."""
    start = head[:4096]
    return start.lstrip()[:1] == b"{" and (b"learner" in start or (b'"Config"' in start and b"XGB" in start))


def open_xgboost(path: Path) -> RawModel:
    """The trees of a classifier, and what the file names its columns."""
    if path.stat().st_size > LARGEST_FILE:
        raise BrokenFile(f"{path.name} has {path.stat().st_size} bytes.", f"At most {LARGEST_FILE} are read.")
    data = path.read_bytes()
    try:
        whole = json.loads(data) if data.lstrip()[1:2].isspace() or data.lstrip()[1:2] == b'"' else ubjson.decode(
            data, path.name)
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path.name} is no complete JSON ({first_line(error, 120)}).", "Fetch it again.") from None
    try:
        return _raw(whole["learner"], path.name)
    except _FAILURES as error:
        raise BrokenFile(f"{path.name} is not a complete XGBoost model ({type(error).__name__}: "
                         f"{first_line(error, 80)}).", "Save it again with save_model.") from error


def _raw(learner: Mapping[str, Any], name: str) -> RawModel:
    objective, parameters = str(learner["objective"]["name"]), learner["learner_model_param"]
    classes, columns = int(parameters["num_class"]), int(parameters["num_feature"])
    if objective not in (*_TWO, *_MANY):
        raise InputError(f"{name} was trained for {printable(objective, 60)!r}, no classification.",
                         f"Known: {', '.join((*_TWO, *_MANY))}.")
    groups = classes if objective in _MANY else 1
    if not 1 <= columns <= 2**20 or not 1 <= groups <= 100_000:
        raise BrokenFile(f"{name} claims {columns} columns and {groups} classes.", "The file is damaged.")
    booster = learner["gradient_booster"]
    weights: list[float] | None = None
    if booster["name"] == "dart":
        weights, booster = [float(w) for w in booster["weight_drop"]], booster["gbtree"]
    if "model" not in booster or "trees" not in booster["model"]:
        raise InputError(f"{name} holds a {printable(booster.get('name', 'booster'), 40)}, no trees.",
                         "Only boosters of trees (gbtree, dart) are read.")
    model = booster["model"]
    trees = [_tree(t, int(g), 1.0 if weights is None else weights[i], name)
             for i, (t, g) in enumerate(zip(model["trees"], model["tree_info"], strict=True))]
    if any(c >= columns for t in trees for c in t.column):
        raise BrokenFile(f"{name}: a tree tests a column beyond the {columns} that there are.", "The file is damaged.")
    base = [float(part) for part in str(parameters["base_score"]).strip("[]").split(",")]
    if _TWO.get(objective):
        base = [math.log(b / (1 - b)) for b in base]
    module = Trees(trees, groups, base * groups if len(base) == 1 else base, inclusive=False, name=name)
    names = learner.get("feature_names") or []
    return RawModel(module=module, format="xgboost", input_shape=(columns,), output_names=("margin",),
                    known_logits=(True,), cut=("",), metadata={"objective": objective, "trees": str(len(trees)), **(
                        {"feature_names": json.dumps([str(n) for n in names])} if len(names) == columns else {})})


def _tree(found: Mapping[str, Any], group: int, weight: float, name: str) -> Tree:
    if int(found["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise InputError(f"{name} has leaves with several scores.", "Train it with one tree for each class.")
    left, right = [int(v) for v in found["left_children"]], [int(v) for v in found["right_children"]]
    with np.errstate(over="ignore"):  # what is infinite is refused below
        said = np.asarray(found["split_conditions"], np.float32).astype(np.float64).tolist()
    codes: dict[int, frozenset[int]] = {}
    for node, start, size in zip(found.get("categories_nodes", ()), found.get("categories_segments", ()),
                                 found.get("categories_sizes", ()), strict=True):
        codes[int(node)] = frozenset(int(c) for c in found["categories"][start: start + size] if 0 <= int(c) < 2**24)
        left[node], right[node] = right[node], left[node]  # the set of a node goes right
    return ordered([int(v) for v in found["split_indices"]], said, left, right, [weight * v for v in said], group,
                   codes, name)
