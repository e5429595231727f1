"""What machines read of a sift: JSON, a Parquet table with one row a sample, the list of samples to keep."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laocoon.core.errors import InputError
from laocoon.core.sift_report import KEPT, KINDS, SiftReport
from laocoon.files.wording import printable
from laocoon.verdict.trace import TraceReport


def to_json(report: SiftReport | TraceReport, *, ascii_only: bool = False) -> str:
    """The report as JSON text, without NaN or infinity."""
    return json.dumps(report.to_dict(), indent=2, allow_nan=False, ensure_ascii=ascii_only) + "\n"


def schema() -> dict[str, Any]:
    """The JSON Schema that every report of a sift fits."""
    text = (files("laocoon.render") / "sift.schema.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def keep_list(report: SiftReport, names: Sequence[str]) -> str:
    """The samples to keep, one a line: the file's name where samples are files, else the row, counted from 0."""
    assert report.table is not None
    table = report.table
    kept = np.flatnonzero(table.kinds == KEPT).tolist()
    lines = [str(int(table.rows[i])) if names[i].startswith("row ") else _one_line(names[i]) for i in kept]
    return "\n".join(lines) + "\n" if lines else ""


def unlearn_list(report: TraceReport) -> str:
    """The samples to unlearn, one a line, as in the list of those to keep."""
    lines = [str(s.row) if s.name.startswith("row ") else _one_line(s.name) for s in report.sources]
    return "\n".join(lines) + "\n" if lines else ""


def _one_line(name: str) -> str:
    """A file's name that holds a line break would be two lines: as JSON writes it."""
    return json.dumps(name) if any(ord(c) < 32 for c in name) else name


def write_scores(report: SiftReport, names: Sequence[str], place: Path) -> None:
    """One row a sample, in the order of the data; the old file stays if that fails."""
    t = report.table
    assert t is not None
    columns: dict[str, Any] = {
        "row": t.rows, "name": pa.array([n.encode("utf-8", "backslashreplace").decode() for n in names], pa.string()),
        "label": t.labels, "prediction": t.predictions, "confidence": t.confidence, "nearest_class": t.nearest,
        "suspicion": t.suspicion, "p_value": t.p_values, "q_value": t.q_values,
        "kind": pa.array([KINDS[k] for k in t.kinds.tolist()]).dictionary_encode(), "keep": t.kinds == KEPT,
        "scored": t.scored}
    columns |= {f"score.{m}": v for m, v in t.methods.items()}
    told = {b"laocoon": json.dumps({"schema": "laocoon-sift-scores/1", "version": report.version,
                                    "verdict": report.verdict.value, "data": report.data.get("digest", "")}).encode()}
    table = pa.table(columns).replace_schema_metadata(told)
    part = ""
    try:
        handle, part = tempfile.mkstemp(prefix=f".{place.name[:40]}.", suffix=".part", dir=place.parent)
        os.close(handle)
        pq.write_table(table, part)
        os.chmod(part, 0o644)
        os.replace(part, place)
    except OSError as error:
        if part and os.path.exists(part):
            os.unlink(part)
        raise InputError(f"the scores {printable(place)} cannot be written ({error.strerror}).",
                         "The verdict above stands; make room, or name another place.") from None
