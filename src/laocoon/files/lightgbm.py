"""Models of LightGBM from their text, read as numbers (`trees`): the library is not needed.

x ≤ threshold goes left, in double precision; a category that is in a node's set goes left too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.trees import Tree, Trees, ordered
from laocoon.files.wording import first_line, printable
from laocoon.modalities.raw import RawModel

LARGEST_FILE = 2**29
_CATEGORY, _ZERO = 1, 1  # the lowest bit of a decision; the kind of missing value in the bits above the second
_FAILURES = (KeyError, ValueError, IndexError, OverflowError)


def looks_like_lightgbm(head: bytes) -> bool:
    return head.startswith((b"tree\n", b"tree\r\n")) and b"num_class=" in head[:4096]


def open_lightgbm(path: Path) -> RawModel:
    """The trees of a classifier, and what the file names its columns."""
    if path.stat().st_size > LARGEST_FILE:
        raise BrokenFile(f"{path.name} has {path.stat().st_size} bytes.", f"At most {LARGEST_FILE} are read.")
    text = path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
    body, marker, _ = text.partition("\nend of trees")
    if not marker:
        raise BrokenFile(f"{path.name} has no end of trees.", "It is truncated: fetch it again.")
    head, *blocks = re.split(r"\n(?=Tree=\d)", body)
    try:
        return _raw(_fields(head), [_fields(b) for b in blocks], path.name)
    except _FAILURES as error:
        raise BrokenFile(f"{path.name} is not a complete LightGBM model ({type(error).__name__}: "
                         f"{first_line(error, 80)}).", "Save it again with save_model.") from error


def _fields(block: str) -> dict[str, str]:
    return {key: value for line in block.splitlines() for key, found, value in [line.partition("=")] if found or key}


def _raw(head: Mapping[str, str], blocks: list[dict[str, str]], name: str) -> RawModel:
    words = head.get("objective", "").split()
    settings = dict(w.split(":", 1) for w in words[1:] if ":" in w)
    objective = words[0] if words else ""
    if objective not in ("binary", "cross_entropy", "multiclass", "multiclassova"):
        raise InputError(f"{name} was trained for {printable(objective, 60)!r}, no classification.",
                         "Known: binary, cross_entropy, multiclass, multiclassova.")
    if "average_output" in head:
        raise InputError(f"{name} is a random forest of LightGBM.", "Only boosted trees are read.")
    groups, columns = int(head["num_tree_per_iteration"]), int(head["max_feature_idx"]) + 1
    if not 1 <= columns <= 2**20 or not 1 <= groups <= 100_000:
        raise BrokenFile(f"{name} claims {columns} columns and {groups} classes.", "The file is damaged.")
    trees = [_tree(b, i % groups, name) for i, b in enumerate(blocks)]
    if any(c >= columns for t in trees for c in t.column):
        raise BrokenFile(f"{name}: a tree tests a column beyond the {columns} that there are.", "The file is damaged.")
    module = Trees(trees, groups, [0.0] * groups, inclusive=True, name=name, scale=float(settings.get("sigmoid", 1)))
    names = head.get("feature_names", "").split()
    return RawModel(module=module, format="lightgbm", input_shape=(columns,), output_names=("raw score",),
                    known_logits=(True,), cut=("sigmoid",) if objective == "multiclassova" else ("",), metadata={
                        "objective": objective, "trees": str(len(trees)),
                        **({"feature_names": json.dumps(names)} if len(set(names)) == columns else {})})


def _tree(found: Mapping[str, str], group: int, name: str) -> Tree:
    if found.get("is_linear", "0") != "0":
        raise InputError(f"{name} has trees with linear leaves.", "Train it with linear_tree=false.")
    leaves = [float(v) for v in found["leaf_value"].split()]
    inner = len(leaves) - 1
    if inner < 0 or int(found["num_leaves"]) != len(leaves):
        raise BrokenFile(f"{name}: a tree claims {found['num_leaves']} leaves and has {len(leaves)}.",
                         "The file is damaged.")
    whole = lambda key: [int(v) for v in found.get(key, "").split()] if inner else []  # noqa: E731
    column, decision = whole("split_feature"), whole("decision_type")
    threshold = [float(v) for v in found["threshold"].split()] if inner else []
    left, right = ([inner - 1 - v if v < 0 else v for v in whole(k)] for k in ("left_child", "right_child"))
    if {len(column), len(decision), len(threshold), len(left), len(right)} != {inner}:
        raise BrokenFile(f"{name}: the lists of a tree do not fit together.", "The file is damaged.")
    codes = {}
    for node, kind in enumerate(decision):
        if kind & _CATEGORY:
            codes[node] = _members(found, int(threshold[node]))
        elif kind >> 2 & 3 == _ZERO:
            raise InputError(f"{name} takes zeros for missing values.", "Train it with zero_as_missing=false.")
    fill = [0] * len(leaves)
    return ordered([*column, *fill], [*threshold, *fill], [*left, *(-1 for _ in fill)], [*right, *(-1 for _ in fill)],
                   [*([0.0] * inner), *leaves], group, codes, name)


def _members(found: Mapping[str, str], number: int) -> frozenset[int]:
    """The codes of one set: bits of words of 32."""
    bounds = [int(v) for v in found["cat_boundaries"].split()]
    words = [int(v) for v in found["cat_threshold"].split()][bounds[number]: bounds[number + 1]]
    return frozenset(32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1)
