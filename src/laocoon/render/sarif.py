"""SARIF 2.1.0: one run, one result per alarm, taxonomies with their versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from laocoon.core.report import ScanReport, Verdict
from laocoon.files.wording import printable
from laocoon.render.alarms import Alarm, alarms, exit_code
from laocoon.render.mappings import Mappings, mappings

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
INCONCLUSIVE = "inconclusive"
_CODES = {0: "no evidence, or every finding accepted", 1: "findings", 3: "inconclusive"}


def to_sarif(report: ScanReport, justifications: Mapping[str, str] | None = None) -> str:
    """The report as SARIF text. `justifications`: fingerprint of an accepted alarm to who accepted it, and why."""
    raised = alarms(report)
    known = mappings()
    ids = list(dict.fromkeys([a.rule for a in raised] + [INCONCLUSIVE] * (report.verdict is Verdict.INCONCLUSIVE)))
    uri = quote(str(report.subject.get("path") or "model"), safe="/._-", errors="backslashreplace")
    results = [_result(a, ids.index(a.rule), uri, report, known, justifications or {}) for a in raised]
    if report.verdict is Verdict.INCONCLUSIVE:
        results.append(
            {
                "ruleId": INCONCLUSIVE,
                "ruleIndex": ids.index(INCONCLUSIVE),
                "kind": "open",
                "level": "none",
                "message": {"text": printable(report.reason, 2000)},
                "locations": [_location(uri, "the model")],
            }
        )
    driver = {
        "name": "Laocoon",
        "version": report.version,
        "semanticVersion": report.version,
        "shortDescription": {"text": "Looks for backdoors in neural networks."},
        "rules": [_rule(i, known) for i in ids],
        "supportedTaxonomies": [{"name": t.name, "index": i} for i, t in enumerate(known.taxonomies)],
    }
    sha = str(report.subject.get("sha256") or "")
    code = exit_code(report)
    run = {
        "tool": {"driver": driver},
        "taxonomies": [_taxonomy(known, i) for i in range(len(known.taxonomies))],
        "artifacts": [
            {
                "location": {"uri": uri, "index": 0},
                "roles": ["analysisTarget"],
                **({"hashes": {"sha-256": sha}} if sha else {}),
            }
        ],
        "invocations": [
            {
                "executionSuccessful": True,
                "exitCode": code,
                "exitCodeDescription": _CODES[code],
                **({"commandLine": printable(report.command, 4000)} if report.command else {}),
                "toolExecutionNotifications": [
                    {"level": "note", "message": {"text": printable(f"{method} was skipped: {reason}", 1000)}}
                    for method, reason in report.skipped.items()
                ],
            }
        ],
        "automationDetails": {"id": "laocoon/scan/"},
        "columnKind": "unicodeCodePoints",
        "results": results,
        "properties": {
            "verdict": report.verdict.value,
            "reason": printable(report.reason, 2000),
            "pValue": report.p_value,
            "alpha": report.alpha,
            "seed": report.seed,
            "budget": report.budget,
            "examined": list(report.examined),
            "misses": dict(report.misses),
        },
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def _location(uri: str, where: str) -> dict[str, Any]:
    return {
        "physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}},
        "logicalLocations": [{"fullyQualifiedName": printable(where, 500), "kind": "member"}],
    }


def _result(
    alarm: Alarm, index: int, uri: str, report: ScanReport, known: Mappings, justifications: Mapping[str, str]
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": alarm.rule,
        "ruleIndex": index,
        "kind": "fail",
        "level": "error",
        "message": {"text": printable(alarm.message, 2000)},
        "locations": [_location(uri, alarm.where)],
        "partialFingerprints": {"laocoonFinding/v1": alarm.fingerprint},
        "taxa": [_reference(known, taxon) for taxon in known.rule(alarm.rule).taxa],
        "properties": {"targetClasses": list(alarm.target_classes)},
    }
    if alarm.fingerprint in report.accepted:
        result["suppressions"] = [
            {
                "kind": "external",
                "status": "accepted",
                "justification": printable(justifications.get(alarm.fingerprint, "in the baseline"), 500),
            }
        ]
    return result


def _reference(known: Mappings, taxon: str) -> dict[str, Any]:
    i, k = known.place(taxon)
    return {"id": taxon, "index": k, "toolComponent": {"name": known.taxonomies[i].name, "index": i}}


def _rule(rule: str, known: Mappings) -> dict[str, Any]:
    if rule == INCONCLUSIVE:
        return {
            "id": rule,
            "name": "Inconclusive",
            "shortDescription": {"text": "The scan could not answer"},
            "help": {"text": "The message says why, and what to do about it."},
            "defaultConfiguration": {"level": "none"},
        }
    told = known.rule(rule)
    return {
        "id": rule,
        "name": told.name,
        "shortDescription": {"text": told.short},
        "fullDescription": {"text": f"{told.short}."},
        "help": {"text": told.help},
        "defaultConfiguration": {"level": "error"},
        "relationships": [{"target": _reference(known, taxon), "kinds": ["relevant"]} for taxon in told.taxa],
        "properties": {"security-severity": f"{told.severity:.1f}", "tags": ["security", "machine-learning"]},
    }


def _taxonomy(known: Mappings, index: int) -> dict[str, Any]:
    taxonomy = known.taxonomies[index]
    return {
        "name": taxonomy.name,
        "version": taxonomy.version,
        "organization": taxonomy.organization,
        "informationUri": taxonomy.url,
        "isComprehensive": False,
        "shortDescription": {"text": f"{taxonomy.name} {taxonomy.version}"},
        "taxa": [{"id": t.id, "name": t.name, "shortDescription": {"text": t.name}} for t in taxonomy.taxa],
    }
