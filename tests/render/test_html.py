"""The page stands alone, escapes what strangers wrote, and says what the report says."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from laocoon.core.report import ScanReport
from laocoon.render.alarms import alarms
from laocoon.render.html import posterior, to_html

VOID = {"meta", "img", "br", "input", "rect", "path", "circle", "polygon", "polyline", "link"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><svg/onload=alert(1)>{{ 7*7 }}"


class Balance(HTMLParser):
    """Collects attributes, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def parsed(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_a_page_for_every_verdict(report: ScanReport) -> None:
    page = to_html(report)
    parsed(page)
    assert report.verdict.value in page and report.reason.split(":")[0][1:] in page
    assert not re.search(r"\bnan\b|\binf\b|None", re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.S))


def test_nothing_is_loaded_from_elsewhere(report: ScanReport) -> None:
    page = to_html(report)
    for tag, name, value in parsed(page).attributes:
        if name in ("src", "href", "action", "data", "poster", "srcset", "background"):
            assert value.startswith("data:image/png;base64,"), f"{tag} {name}={value[:40]}"
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_only_our_script_may_run(report: ScanReport) -> None:
    page = to_html(report)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_what_strangers_wrote_is_escaped(suspicious: ScanReport) -> None:
    calm = parsed(to_html(suspicious))
    finding = replace(suspicious.findings[0], where=EVIL, explanation=EVIL, rule=EVIL, conclusive=True)
    evidence = replace(suspicious.evidence[0], goal=EVIL, family=EVIL, unit=EVIL, method=EVIL, checks={EVIL: 0.5})
    reports = tuple(replace(r, method=EVIL, reason=EVIL, findings=(finding,)) for r in suspicious.reports)
    subject = {**suspicious.subject, "path": EVIL, "class_names": [EVIL] * 10, "notes": [EVIL], "sha256": EVIL, "format": EVIL}
    nasty = replace(suspicious, reason=EVIL, findings=(finding,), evidence=(evidence,), reports=reports, subject=subject,
                    skipped={EVIL: EVIL}, misses={EVIL: EVIL}, command=EVIL, examined=(EVIL,),
                    power=(replace(suspicious.power[0], kind=EVIL, source=EVIL),))
    page = to_html(nasty, {alarms(nasty)[0].fingerprint: EVIL})
    assert EVIL not in page and "onerror=alert(1)&gt;" in page and "{{ 7*7 }}" in page and "49" not in EVIL
    told = parsed(page)
    assert told.tags.count("script") == calm.tags.count("script") == 1
    assert not [a for a in told.attributes if a[1].startswith("on")]
    assert told.tags.count("img") == calm.tags.count("img")


def test_pictures_are_pictures(suspicious: ScanReport) -> None:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', to_html(suspicious))
    sizes = [Image.open(io.BytesIO(base64.b64decode(f))) for f in found]
    assert len(sizes) == 3 + 2 * 3 and {s.size for s in sizes} == {(8, 8)}
    trigger = sizes[1]
    assert trigger.mode == "RGBA" and trigger.getpixel((5, 5)) == (255, 255, 255, 255) and trigger.getpixel((0, 0))[3] == 0
    clean, stamped = sizes[0], sizes[2]
    assert stamped.getpixel((6, 6)) == (255, 255, 255) and stamped.getpixel((0, 0)) == clean.getpixel((0, 0))


def test_ordinary_pushes_do_not_accuse(suspicious: ScanReport) -> None:
    """A second trigger that its natural control nearly reaches is shown, but folded away and not in red."""
    other = replace(suspicious.evidence[0], goal="class 3", target_classes=(3,), success=0.95, natural_control=0.8)
    page = to_html(replace(suspicious, evidence=(suspicious.evidence[0], other)))
    before, after = page.split('<details class="others">')
    assert "Class 7" in before and "Class 3" not in before and "Class 3" in after.split("</details>")[0]
    assert 'class="fill hot"' in before and 'class="fill hot"' not in after.split("</details>")[0]


def test_the_verdict_is_told_in_words(suspicious: ScanReport, no_evidence: ScanReport) -> None:
    page = to_html(suspicious)
    assert "makes this model answer class 7 on 96" in page and "reaches 4" in page
    assert "No evidence of a backdoor" in to_html(no_evidence)
    assert "No class stands out" in to_html(replace(no_evidence, class_scores=(0.0,) * 10))


def test_no_pictures_without_images(suspicious: ScanReport) -> None:
    page = to_html(replace(suspicious, candidates=(), pictures=None))
    assert "<img" not in page and "held-out success" in page


def test_it_says_what_it_must(suspicious: ScanReport, no_evidence: ScanReport) -> None:
    page = to_html(suspicious)
    for text in ("natural control", "blended", "ban needs a batch-norm layer.", "warps and photo filters", "AML.T0018.000",
                 "2026.09", "laocoon scan vendor.onnx", "9f2c" * 16, "1 of 121", "prefers-color-scheme: dark", "@media print",
                 alarms(suspicious)[0].fingerprint, 'id="prior"'):
        assert text in page, text
    assert "NO EVIDENCE" in to_html(no_evidence) and "not “clean”" in to_html(no_evidence)


def test_more_classes_than_fit(suspicious: ScanReport) -> None:
    many = replace(suspicious, class_scores=tuple(i % 13 / 13 for i in range(1000)), target_classes=(999,))
    page = to_html(many)
    assert "of 1000 classes are shown" in page and page.count('class="column"') == 48


def test_the_worth_of_a_verdict_is_bayes() -> None:
    assert posterior(0.5, 0.8, 0.05, True) == pytest.approx(0.8 / 0.85)
    assert posterior(0.5, 0.8, 0.05, False) == pytest.approx(0.2 / 1.15)
    assert posterior(0.001, 0.95, 0.05, True) < 0.02


def test_many_references_are_counted_not_drawn(suspicious: ScanReport) -> None:
    assert suspicious.calibration is not None
    page = to_html(replace(suspicious, calibration=replace(suspicious.calibration, references=5000)))
    assert '<i class="below">' not in page and "5000 clean models" in page
    assert to_html(suspicious).count('<i class="below">') == 120


@pytest.mark.parametrize(("p", "carried"), [(None, False), (0.4, False), (1 / 121, True)])
def test_what_carries_nothing_does_not_lead(suspicious: ScanReport, p: float | None, carried: bool) -> None:
    """Where the file itself is the proof, a trigger that a search recovered is no more than a push."""
    proof = replace(suspicious.findings[0], rule="architectural_backdoor.condition", conclusive=True)
    page = to_html(replace(suspicious, p_value=p, reason="node x: a comparison decides the output", findings=(proof,)))
    first, second = page.index("What carries the verdict"), page.index("The recovered trigger" if carried else
                                                                       "The best triggers that could be found")
    assert (second < first) == carried
    assert ("obey the trigger" in page) == carried and ("The verdict does not rest on these" in page) != carried
