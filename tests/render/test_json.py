"""The JSON report fits the schema that ships with the package."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import jsonschema
import pytest

from laocoon.core.report import Calibration, Evidence, Finding, Power, Report, ScanReport
from laocoon.render.json_report import schema, to_data, to_json


def test_every_verdict_fits_the_schema(report: ScanReport) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(to_json(report)), schema())


def test_the_schema_refuses_a_clean_verdict(suspicious: ScanReport) -> None:
    data = {**to_data(suspicious), "verdict": "CLEAN"}
    with pytest.raises(jsonschema.ValidationError, match="CLEAN"):
        jsonschema.validate(data, schema())


@pytest.mark.parametrize("key", ["verdict", "p_value", "score", "target_classes", "power", "examined", "skipped", "seconds"])
def test_what_others_read_is_at_the_top(suspicious: ScanReport, key: str) -> None:
    assert key in json.loads(to_json(suspicious))
    data = to_data(suspicious)
    del data[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema())


def test_every_field_is_described() -> None:
    told = schema()
    assert {f.name for f in fields(ScanReport)} - {"candidates", "pictures"} <= set(told["properties"])
    for name, kind in (("finding", Finding), ("evidence", Evidence), ("power", Power), ("calibration", Calibration),
                       ("report", Report)):
        assert {f.name for f in fields(kind)} == set(told["$defs"][name]["properties"])


def test_numbers_that_are_not_finite_become_null(inconclusive: ScanReport) -> None:
    text = to_json(inconclusive)
    assert json.loads(text)["score"] is None and "NaN" not in text and "Infinity" not in text


def test_names_that_are_no_text_do_no_harm(suspicious: ScanReport) -> None:
    odd = replace(suspicious, subject={**suspicious.subject, "path": "a\udcff\n.onnx"})
    assert json.loads(to_json(odd, ascii_only=True))["subject"]["path"] == "a\udcff\n.onnx"


def test_an_accepted_alarm_ends_with_zero(suspicious: ScanReport) -> None:
    told = to_data(suspicious)
    assert told["exit_code"] == 1 and [a["accepted"] for a in told["alarms"]] == [False]
    accepted = to_data(replace(suspicious, accepted=(told["alarms"][0]["fingerprint"],)))
    assert accepted["exit_code"] == 0 and accepted["verdict"] == "SUSPICIOUS"
