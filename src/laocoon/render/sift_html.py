"""The report of a sift for a person: one self-contained page without script, light and dark.

Everything that came from the data, their files or a model is escaped by the template engine.
"""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from laocoon.core.report import Verdict
from laocoon.core.sift_report import KINDS, Exhibits, SiftReport, Suspect
from laocoon.files.wording import printable
from laocoon.render.html import Method
from laocoon.render.pictures import Picture, exhibits, picture
from laocoon.render.sift_terminal import p_sentence
from laocoon.render.words import amount, duration, number, percent

MOST_CLASSES = 200
MOST_RULES = 20
_ICONS = {Verdict.SUSPICIOUS: "!", Verdict.NO_EVIDENCE: "○", Verdict.INCONCLUSIVE: "?"}
_MEANS = {
    Verdict.SUSPICIOUS: "These data differ from clean reference sets as poisoned ones do. Do not train on the flagged "
    "samples before they are explained. It is no proof of intent.",
    Verdict.NO_EVIDENCE: "The methods that ran found no more here than in clean reference sets. That is not “clean”: "
    "read what they are known to miss.",
    Verdict.INCONCLUSIVE: "The question could not be answered here. This says neither that the data are safe nor that "
    "they are not; the sentence above names the cause.",
}


def to_html(report: SiftReport) -> str:
    """The page."""
    shown = report.exhibits or Exhibits()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number, "one_line": _long}
    template = environment.from_string(_asset("sift.html.j2"))
    made = exhibits((shown.candidate,), shown.stamped) if shown.candidate is not None else [None]
    return template.render(
        report=report,
        verdict=report.verdict.value,
        css=Markup(_asset("report.css")),
        icon=_ICONS[report.verdict],
        means=_MEANS[report.verdict],
        headline=report.reason[:1].upper() + report.reason[1:],
        title=printable(report.data.get("path") or "training set", 90),
        provisional=report.verdict is Verdict.INCONCLUSIVE,
        tiles=_tiles(report),
        exhibit=made[0] if report.trigger is not None else None,
        trigger_class="" if report.trigger is None else _class(report, report.trigger.label),
        poison=_poison(report, shown),
        said=_said(report, shown),
        odd_said=_odd_said(report, shown),
        trigger_words=_trigger_words(report, shown),
        mislabelled=_mislabelled(report, shown),
        points=_points(shown),
        classes=[(_class(report, row.label), row) for row in
                 sorted(report.classes, key=lambda r: (-r.poison, -r.mislabelled, r.label))[:MOST_CLASSES]],
        methods=_methods(report),
        contributions=list(report.contributions.items())[:MOST_RULES],
        facts=_facts(report),
        notes=[printable(n, 400) for n in (*report.model.get("notes", ()), *report.data.get("notes", ()))],
        p_sentence=p_sentence(report),
        spent=amount(report.spent),
        seconds=duration(report.seconds),
    )


def _asset(name: str) -> str:
    return (files("laocoon.render") / name).read_text(encoding="utf-8")


def _long(text: object, limit: int = 600) -> str:
    return printable(text, limit)


def _class(report: SiftReport, label: int) -> str:
    names = report.data.get("class_names") or ()
    name = printable(names[label], 60) if 0 <= label < len(names) else ""
    return f"class {label} ({name})" if name and name != str(label) else f"class {label}"


def _tiles(report: SiftReport) -> list[tuple[str, str, str]]:
    tiles = [] if report.p_value is None else [(number(report.p_value, 2), "p-value", f"alpha {report.alpha:g}")]
    return [*tiles, (str(report.poison), "flagged as poison", f"false-discovery rate {report.fdr:g}"),
            (str(report.mislabelled), "probably mislabelled", "reported apart"),
            (str(report.kept), "kept", f"of {report.data.get('samples')}"),
            (str(len(report.examined)), "methods gave scores", f"{len(report.skipped)} did not"),
            (duration(report.seconds), "taken", f"{amount(report.spent)} passes")]


def _note(report: SiftReport, suspect: Suspect) -> str:
    return f"{printable(suspect.name, 60)}, suspicion {number(suspect.suspicion, 3)}"


def _poison(report: SiftReport, shown: Exhibits) -> list[tuple[Picture, Picture | None, str]]:
    if shown.pictures is None:
        return []
    named = [s for s in report.suspects if s.kind == "poison"]
    twins = [None] * len(shown.pictures) if shown.clean is None else [picture(c, "clean") for c in shown.clean]
    told = zip(shown.pictures, twins, shown.poison_rows, strict=True)
    by_row = {s.row: s for s in named}
    return [(picture(p, f"labelled {_class(report, by_row[row].label)}"), twin, _note(report, by_row[row]))
            for p, twin, row in told if row in by_row]


def _mislabelled(report: SiftReport, shown: Exhibits) -> list[tuple[Picture, str]]:
    if shown.oddities is None:
        return []
    by_row = {s.row: s for s in report.suspects if s.kind == "mislabelled"}
    return [(picture(p, f"labelled {_class(report, by_row[row].label)}"),
             f"the model says {_class(report, by_row[row].prediction)}; {printable(by_row[row].name, 60)}")
            for p, row in zip(shown.oddities, shown.odd_rows, strict=True) if row in by_row]


def _said(report: SiftReport, shown: Exhibits) -> list[tuple[str, str, str, str]]:
    """Suspects in words: the sample, what is most like it, its label, its name."""
    if not shown.words:
        return []
    by_row = {s.row: s for s in report.suspects if s.kind == "poison"}
    twins = shown.clean_words or ("",) * len(shown.words)
    return [(_long(words), _long(twin), f"labelled {_class(report, by_row[row].label)}", _note(report, by_row[row]))
            for words, twin, row in zip(shown.words, twins, shown.poison_rows, strict=True) if row in by_row]


def _odd_said(report: SiftReport, shown: Exhibits) -> list[tuple[str, str, str]]:
    by_row = {s.row: s for s in report.suspects if s.kind == "mislabelled"}
    if not shown.odd_words:
        return []
    return [(_long(words), f"labelled {_class(report, by_row[row].label)}",
             f"the model says {_class(report, by_row[row].prediction)}; {printable(by_row[row].name, 60)}")
            for words, row in zip(shown.odd_words, shown.odd_rows, strict=True) if row in by_row]


def _trigger_words(report: SiftReport, shown: Exhibits) -> list[tuple[str, str]] | None:
    """Clean samples with what the trigger makes of them; None where it is a picture, or there is none."""
    if report.trigger is None or not report.trigger.shown:
        return None
    return [(_long(before), _long(after)) for before, after in shown.stamped_words]


def _points(shown: Exhibits) -> list[tuple[str, str, str]]:
    """Places in a picture of 640 × 420, flagged ones last so that they lie on top."""
    if shown.points is None:
        return []
    low, high = shown.points.amin(0), shown.points.amax(0)
    unit = (shown.points - low) / (high - low).clamp_min(1e-12)
    found = [(f"{20 + 600 * x:.1f}", f"{400 - 380 * y:.1f}", KINDS[k])
             for (x, y), k in zip(unit.tolist(), shown.point_kinds.tolist(), strict=True)]
    return sorted(found, key=lambda p: p[2] != "kept")


def _methods(report: SiftReport) -> list[Method]:
    return [Method(printable(r.method, 60), "examined" if r.method in report.examined else
                   "skipped" if r.skipped else "stopped early", printable(r.reason, 300), "",
                   amount(r.spent), duration(r.seconds), printable(report.misses.get(r.method, ""), 500))
            for r in report.reports]


def _facts(report: SiftReport) -> list[tuple[str, str]]:
    d, m = report.data, report.model
    told = [("samples", str(d.get("samples"))), ("seen by the methods", str(d.get("seen"))),
            ("classes", str(d.get("classes"))), ("size", " × ".join(map(str, d.get("shape", ())))),
            ("sha256 of samples and labels", printable(d.get("digest", ""), 64)),
            ("model", f"a proxy, {m.get('architecture')}" if m.get("proxy") else printable(m.get("path"), 90)),
            ("seed", str(report.seed)), ("version", report.version)]
    return [(k, v) for k, v in told if v and v != "None"]
