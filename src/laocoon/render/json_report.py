"""The machine-readable report. Its schema, `scan.schema.json`, ships beside this file and is versioned."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from laocoon.core.report import ScanReport
from laocoon.render.alarms import alarms, exit_code


def to_data(report: ScanReport) -> dict[str, Any]:
    """Plain data: the report, with what carries its verdict and the exit code."""
    raised = [
        {
            "rule": a.rule,
            "where": a.where,
            "message": a.message,
            "fingerprint": a.fingerprint,
            "target_classes": list(a.target_classes),
            "accepted": a.fingerprint in report.accepted,
        }
        for a in alarms(report)
    ]
    return {**report.to_dict(), "alarms": raised, "exit_code": exit_code(report)}


def to_json(report: ScanReport, *, ascii_only: bool = False) -> str:
    """The report as JSON text, without NaN or infinity."""
    return json.dumps(to_data(report), indent=2, allow_nan=False, ensure_ascii=ascii_only) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema that every report fits."""
    text = (files("laocoon.render") / "scan.schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]
