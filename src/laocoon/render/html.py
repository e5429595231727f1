"""The report for a person who decides: one self-contained page, light and dark, on screen and on paper.

Everything that came from a model, its file or its data is escaped by the template engine; a content security policy
forbids all but the page's own script, by digest.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from laocoon.core.report import Evidence, Power, Report, ScanReport, Verdict, noun
from laocoon.files.wording import printable, visible
from laocoon.modalities.encoder import encodes
from laocoon.render.alarms import Alarm, alarms, proven_by_the_file
from laocoon.render.mappings import Taxonomy, mappings
from laocoon.render.pictures import Exhibit, exhibits
from laocoon.render.sentences import Sentence, sentences
from laocoon.render.words import amount, class_name, duration, number, p_sentence, percent, pooled

PRIORS = (0.001, 0.01, 0.1, 0.5)
TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99)
MOST_DOTS = 400
MOST_COLUMNS = 48
MOST_FINDINGS = 25
ORDINARY = 0.5  # a trigger whose natural control comes to so much of its success is a push like any other
_ICONS = {Verdict.SUSPICIOUS: "!", Verdict.NO_EVIDENCE: "○", Verdict.INCONCLUSIVE: "?"}
_MEANS = {
    Verdict.SUSPICIOUS: "Something was found here that clean reference models do not show. Do not deploy the model "
    "before the evidence below is explained. It is no proof of intent.",
    Verdict.NO_EVIDENCE: "The methods that ran found no more here than in clean reference models. That is not "
    "“clean”: read how often they find known backdoors, and what they are known to miss.",
    Verdict.INCONCLUSIVE: "The question could not be answered here. This says neither that the model is safe nor that "
    "it is not; the sentence above names the cause.",
}
_CHECKS = {
    "before the trigger": "go there without it",
    "shifted by 1 px": "still go there when image and trigger are moved",
    "after JPEG 75": "still go there after compression",
    "on noise instead of an image": "go there with no image behind it",
    "after brief unlearning": "still go there after a copy was trained for a moment to resist it",
}
_FACT = "This is a fact about the file, found without running it: no rate of false alarms and no prior applies."


@dataclass(frozen=True)
class Tile:
    """One number with its name."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """A rate from 0 to 1 with an interval, for a horizontal bar."""

    label: str
    rate: float | None
    shown: str
    low: float | None = None
    high: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class Shown:
    """A verified trigger with its pictures and bars."""

    title: str
    evidence: Evidence
    exhibit: Exhibit | None
    main: tuple[Bar, ...]
    checks: tuple[Bar, ...]
    words: str  # the trigger in words, where it is no picture
    sentences: tuple[Sentence, ...]
    ordinary: bool  # no stronger than its natural control explains, or not what the verdict rests on


@dataclass(frozen=True)
class Column:
    """A class in the chart; `height` is a share of the largest."""

    number: int
    name: str
    score: str
    height: float
    target: bool


@dataclass(frozen=True)
class Method:
    """One method that ran or did not."""

    name: str
    state: str  # "examined", "stopped early" or "skipped"
    reason: str
    finding: str
    spent: str
    seconds: str
    misses: str


@dataclass(frozen=True)
class Worth:
    """Probability of a backdoor after this verdict, by the reader's prior."""

    verdict: str
    power: Power
    alpha: float
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Mapped:
    """A taxonomy with the entries that concern this report."""

    taxonomy: Taxonomy
    taxa: tuple[tuple[str, str], ...]


def to_html(report: ScanReport, justifications: Mapping[str, str] | None = None) -> str:
    """The page. `justifications`: fingerprint of an accepted alarm to who accepted it, and why."""
    raised, shown, proven = alarms(report), _shown(report), proven_by_the_file(report)
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number, "one_line": _long}
    template = environment.from_string(_asset("report.html.j2"))
    return template.render(
        report=report,
        verdict=report.verdict.value,
        css=Markup(_asset("report.css")),
        script=Markup(script),
        digest=digest,
        icon=_ICONS[report.verdict],
        title=_title(report),
        headline=_headline(report),
        noun=_noun(report),
        elsewhere=_elsewhere(report),
        explained=_CHECKS,
        means=_means(report),
        proven=proven,
        rests_on_trigger=report.verdict is Verdict.SUSPICIOUS and not proven,
        tiles=_tiles(report),
        dots=_dots(report),
        p_sentence=p_sentence(report),
        shown=[s for s in shown if not s.ordinary],
        ordinary=[s for s in shown if s.ordinary],
        columns=_columns(report),
        flat=bool(report.class_scores) and max(report.class_scores) <= 0,
        more_columns=max(0, len(report.class_scores) - MOST_COLUMNS),
        alarms=[(a, _state(a, report, justifications or {})) for a in raised],
        findings=report.findings[:MOST_FINDINGS],
        more_findings=max(0, len(report.findings) - MOST_FINDINGS),
        power=_power_bars(report),
        pooled=pooled(report.power),
        worth=_worth(report),
        fact=_FACT,
        methods=_methods(report),
        facts=_facts(report),
        notes=_notes(report),
        mapped=_mapped(report, raised),
        spent=amount(report.spent),
        seconds=duration(report.seconds),
        ticks=[(50 + 520 * (math.log10(p / (1 - p)) + 4) / 8, percent(p)) for p in TICKS],
    )


def _asset(name: str) -> str:
    return (files("laocoon.render") / name).read_text(encoding="utf-8")


def _long(text: object, limit: int = 600) -> str:
    return printable(text, limit)


def _title(report: ScanReport) -> str:
    return printable(report.subject.get("path") or "model", 90)


def _noun(report: ScanReport) -> str:
    return noun(str(report.subject.get("modality", "image")))


def _elsewhere(report: ScanReport) -> str:
    """What the natural control was a search for."""
    return f"those of clean {_noun(report)}" if encodes(str(report.subject.get("modality"))) else "the other classes"


def _sentence(text: str) -> str:
    """With a capital, unless it starts with a name."""
    return text[:1].upper() + text[1:] if text.split(" ")[0].isalpha() else text


def _headline(report: ScanReport) -> str:
    """The reason in whole sentences where a trigger towards one class is what it tells of; else as it is."""
    best = report.evidence[0] if report.evidence else None
    told = best is not None and len(best.target_classes) == 1 and best.goal == f"class {best.target_classes[0]}"
    if report.verdict is not Verdict.SUSPICIOUS or best is None or not told:
        return _sentence(report.reason)
    if not report.reason.startswith(f"{best.goal}: a {best.family} trigger"):
        return _sentence(report.reason)
    control = (
        f" The same search, at the same size, reaches {percent(best.natural_control)} towards the other classes."
        if math.isfinite(best.natural_control)
        else ""
    )
    words = f" (“{printable(visible(best.shown), 80)}”)" if best.shown else ""
    return (
        f"A {best.family} trigger of {number(best.size)} {best.unit}{words} makes this model answer "
        f"{class_name(report, best.target_classes[0])} on {percent(best.success)} of {_noun(report)} of other classes, "
        f"none of which the search had seen.{control}"
    )


def _means(report: ScanReport) -> str:
    return (
        "Do not load this file or deploy this model before the finding below is explained."
        if proven_by_the_file(report)
        else _MEANS[report.verdict]
    )


def _tiles(report: ScanReport) -> list[Tile]:
    tiles = []
    if report.p_value is not None:
        tiles.append(Tile(number(report.p_value, 2), "p-value", f"alpha {report.alpha:g}"))
    if report.evidence and report.verdict is Verdict.SUSPICIOUS and not proven_by_the_file(report):
        best = report.evidence[0]
        tiles += [
            Tile(
                percent(best.success),
                f"of held-out {_noun(report)} obey the trigger",
                f"{percent(best.low)} to {percent(best.high)}",
            ),
            Tile(percent(best.natural_control), "natural control", f"same search, towards {_elsewhere(report)}"),
        ]
    total = pooled(report.power)
    if total is not None:
        tiles.append(
            Tile(
                percent(total.found / total.tried),
                "power, core kinds",
                f"{percent(total.low)} to {percent(total.high)}",
            )
        )
    tiles.append(Tile(str(len(report.examined)), "methods examined", f"{len(report.skipped)} skipped"))
    tiles.append(Tile(duration(report.seconds), "taken", f"{amount(report.spent)} passes"))
    return tiles


def _dots(report: ScanReport) -> list[str]:
    """One dot for each reference and one for this model, the most suspicious first."""
    c = report.calibration
    if c is None or report.p_value is None or not 0 < c.references <= MOST_DOTS:
        return []
    return ["above"] * (c.rank - 1) + ["this"] + ["below"] * (c.references + 1 - c.rank)


def _shown(report: ScanReport) -> list[Shown]:
    pictures = exhibits(report.candidates, report.pictures)
    pictures += [None] * (len(report.evidence) - len(pictures))
    shown = []
    for place, (evidence, exhibit) in enumerate(zip(report.evidence, pictures, strict=False)):
        title = (
            class_name(report, evidence.target_classes[0])
            if len(evidence.target_classes) == 1 and (evidence.goal == f"class {evidence.target_classes[0]}")
            else printable(evidence.goal, 160)
        )
        natural = evidence.natural_control if math.isfinite(evidence.natural_control) else 0.0
        ordinary = place > 0 and natural >= ORDINARY * evidence.success
        kind = "" if ordinary else "hot"
        main = (
            Bar("held-out success", evidence.success, percent(evidence.success), evidence.low, evidence.high, kind),
            Bar("natural control", evidence.natural_control, percent(evidence.natural_control), kind="calm"),
        )
        checks = tuple(
            Bar(printable(name, 60), _rate(value), percent(_rate(value))) for name, value in evidence.checks.items()
        )
        shown.append(Shown(title[:1].upper() + title[1:], evidence, exhibit, main, checks,
                           printable(visible(evidence.shown), 400), sentences(report, place), ordinary))
    return shown


def _rate(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _columns(report: ScanReport) -> list[Column]:
    """The most suspected classes, in the order of their numbers."""
    scores = [s if math.isfinite(s) else 0.0 for s in report.class_scores]
    if len(scores) < 2:
        return []
    kept = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:MOST_COLUMNS])
    top, floor = max(max(scores), 1.0), min(0.0, min(scores))
    suspected = report.target_classes[:1] if report.verdict is Verdict.SUSPICIOUS else ()
    return [
        Column(i, class_name(report, i), number(scores[i]), (scores[i] - floor) / (top - floor), i in suspected)
        for i in kept
    ]


def _state(alarm: Alarm, report: ScanReport, justifications: Mapping[str, str]) -> str:
    if alarm.fingerprint not in report.accepted:
        return ""
    return f"accepted: {printable(justifications.get(alarm.fingerprint, 'in the baseline'), 300)}"


def _power_bars(report: ScanReport) -> list[tuple[Power, Bar]]:
    return [
        (
            p,
            Bar(
                printable(p.kind.replace("_", " "), 60),
                p.found / p.tried if p.tried else None,
                f"{p.found} of {p.tried}",
                p.low,
                p.high,
            ),
        )
        for p in report.power
    ]


def posterior(prior: float, power: float, alpha: float, suspicious: bool) -> float:
    """Bayes' rule for one verdict: P(backdoor | verdict) from the prior, the power and the false-alarm rate."""
    with_backdoor = prior * (power if suspicious else 1 - power)
    without = (1 - prior) * (alpha if suspicious else 1 - alpha)
    return with_backdoor / (with_backdoor + without)


def _worth(report: ScanReport) -> Worth | None:
    total = pooled(report.power)
    if total is None or report.verdict is Verdict.INCONCLUSIVE or report.p_value is None:
        return None
    suspicious = report.verdict is Verdict.SUSPICIOUS
    rows = []
    for prior in PRIORS:
        middle = posterior(prior, total.found / total.tried, report.alpha, suspicious)
        ends = sorted(posterior(prior, p, report.alpha, suspicious) for p in (total.low, total.high))
        rows.append((percent(prior), percent(middle), f"{percent(ends[0])} to {percent(ends[1])}"))
    return Worth(report.verdict.value, total, report.alpha, tuple(rows))


def _methods(report: ScanReport) -> list[Method]:
    rows, seen = [], set()
    for r in report.reports:
        seen.add(r.method)
        state = "skipped" if r.skipped else "examined" if r.complete else "stopped early"
        rows.append(
            Method(
                printable(r.method, 60),
                state,
                printable(r.reason, 300),
                _top(r),
                amount(r.spent),
                duration(r.seconds),
                printable(report.misses.get(r.method, ""), 500),
            )
        )
    rows += [
        Method(printable(m, 60), "skipped", printable(why, 300), "", "", "", printable(report.misses.get(m, ""), 500))
        for m, why in report.skipped.items()
        if m not in seen
    ]
    rows += [
        Method(printable(m, 60), "examined", "", "", "", "", "")
        for m in report.examined
        if m not in seen and m not in report.skipped
    ]
    return rows


def _top(report: Report) -> str:
    best = max(report.findings, key=lambda f: f.score if math.isfinite(f.score) else -math.inf, default=None)
    return "" if best is None else f"{printable(best.where, 60)}: {printable(best.explanation, 200)}"


def _facts(report: ScanReport) -> list[tuple[str, str]]:
    """What was examined, in words."""
    s: Mapping[str, Any] = report.subject
    shape = s.get("input_shape") or ()
    pairs: list[tuple[str, object]] = [
        ("file", s.get("path")),
        ("format", s.get("format")),
        ("sha256", s.get("sha256")),
        ("modality", s.get("modality")),
        ("numbers in an embedding" if encodes(str(s.get("modality"))) else "classes", s.get("classes")),
        ("input", " × ".join(map(str, shape))),
        ("parameters", f"{s['parameters']:,}" if isinstance(s.get("parameters"), int) else None),
        ("clean samples", _samples(s)),
        ("data", s.get("data")),
        ("accuracy on them", percent(s["accuracy"]) if isinstance(s.get("accuracy"), float) else None),
        ("laocoon", report.version),
        ("seed", report.seed),
        ("budget", report.budget),
    ]
    return [(name, printable(value, 300)) for name, value in pairs if value not in (None, "")]


def _samples(s: Mapping[str, Any]) -> str | None:
    if not isinstance(s.get("samples"), int):
        return None
    split = f" ({s['samples_fit']} to fit, {s['samples_held']} held out)" if s.get("samples_held") else ""
    return f"{s['samples']}{split}" if s["samples"] else "none"


def _notes(report: ScanReport) -> list[str]:
    said = [*(report.subject.get("notes") or ()), *(report.subject.get("data_notes") or ())]
    return [printable(note, 400) for note in said]


def _mapped(report: ScanReport, raised: tuple[Alarm, ...]) -> list[Mapped]:
    """Entries that the alarms belong to; without alarms, those that the scan looked for."""
    known = mappings()
    rules = [known.rule(a.rule) for a in raised] or [known.rule("backdoor"), known.rule("architectural_backdoor")]
    wanted = {taxon for rule in rules for taxon in rule.taxa}
    return [Mapped(t, tuple((x.id, x.name) for x in t.taxa if x.id in wanted)) for t in known.taxonomies]
