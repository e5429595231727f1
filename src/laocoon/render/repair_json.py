"""The machine-readable report of a repair. Its schema, `repair.schema.json`, lies beside this file; it is versioned."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from laocoon.core.repaired import RepairReport


def to_json(report: RepairReport, *, ascii_only: bool = False) -> str:
    """The report as JSON text, without NaN or infinity."""
    return json.dumps(report.to_dict(), indent=2, allow_nan=False, ensure_ascii=ascii_only) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema that every report fits."""
    text = (files("laocoon.render") / "repair.schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]
