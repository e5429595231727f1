"""The two lines that answer, and what follows them."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from laocoon.core.report import ScanReport
from laocoon.render.alarms import alarms
from laocoon.render.terminal import show
from laocoon.render.words import amount, duration, percent, pooled


def said(report: ScanReport, width: int = 100, **more: object) -> list[str]:
    stream = io.StringIO()
    show(report, Console(file=stream, width=width, no_color=True), **more)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_suspicious(suspicious: ScanReport) -> None:
    assert said(suspicious, written=["report.html"]) == [
        "SUSPICIOUS  class 7: a patch trigger of 11.2 px sends 96% [92%, 98%] of held-out images there   "
        "p = 0.0083, 1 of 121 (120 clean references), alpha 0.05",
        "evidence: report.html · 2 methods examined, 1 skipped (needs a batch-norm layer) · seed 0 · 61 k passes · 2 m 40 s",
        f"fingerprint {alarms(suspicious)[0].fingerprint}  backdoor · class 7",
    ]


def test_no_evidence_says_power_and_what_is_missed(no_evidence: ScanReport) -> None:
    lines = said(no_evidence)
    assert lines[0].startswith("NO_EVIDENCE  no evidence of a backdoor   p = 0.31, 37 of 121")
    assert lines[2].startswith("power: 35 of 39 known backdoors of the core kinds are found at alpha 0.05, 7")
    assert "warped 4 of 9" in lines[3]
    assert lines[4:] == ["known to be missed:", "  trigger_inversion: warps and photo filters",
                         "  trodo: models trained with outliers"]


def test_inconclusive_names_the_cause(inconclusive: ScanReport) -> None:
    lines = said(inconclusive)
    assert lines[0] == "INCONCLUSIVE  the model is right on 2 of 200 labelled samples"
    assert lines[2] == "power: not known for this scan; silence says little"


def test_a_widened_p_value_says_so(suspicious: ScanReport) -> None:
    assert suspicious.calibration is not None
    wide = replace(suspicious, calibration=replace(suspicious.calibration, widened=2.0, note="200 classes"))
    assert "widened 2-fold: 200 classes" in said(wide)[0]


def test_accepted_alarms_are_named(suspicious: ScanReport) -> None:
    mark = alarms(suspicious)[0].fingerprint
    lines = said(replace(suspicious, accepted=(mark,)), justifications={mark: "jane, until 2027-01-31: known"})
    assert lines[2].startswith("accepted: class 7") and lines[2].endswith("(jane, until 2027-01-31: known)")
    assert not any(line.startswith("fingerprint") for line in lines)


def test_no_escape_reaches_the_terminal(suspicious: ScanReport) -> None:
    evil = "\x1b]0;owned\x07\x1b[31mred[/red][bold]\r\nnew line\u202e"
    lines = said(replace(suspicious, reason=evil, skipped={evil: evil}), written=[evil])
    assert not set("".join(lines)) & set("\x1b\x07\r\u202e") and "[bold]" in lines[0] and len(lines) == 3


@pytest.mark.parametrize(("value", "text"), [(0.96, "96 %"), (0.0, "0 %"), (1.0, "100 %"), (0.9996, "> 99.9 %"),
                                             (0.0031, "0.3 %"), (float("nan"), "–"), (None, "–")])
def test_percent(value: float | None, text: str) -> None:
    assert percent(value) == text


def test_units() -> None:
    assert [amount(v) for v in (12, 6100, 61234, 1.3e6)] == ["12", "6.1 k", "61 k", "1.3 M"]
    assert [duration(v) for v in (0.41, 12, 160, 3900)] == ["0.4 s", "12 s", "2 m 40 s", "1 h 5 m"]


def test_positive_controls_come_before_references(suspicious: ScanReport) -> None:
    planted = replace(suspicious.power[0], found=1, tried=4, source="positive control (fine-tuned plants)")
    total = pooled((*suspicious.power, planted))
    assert total is not None and (total.found, total.tried) == (1, 4)
    total = pooled(suspicious.power)
    assert total is not None and (total.found, total.tried) == (35, 39)
    assert pooled(()) is None
