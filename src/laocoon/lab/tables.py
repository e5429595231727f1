"""Leaderboards from a ledger: attacks beside what their papers report, defences, what failed. As data, Markdown, CSV.

A figure over several seeds is their mean with Student's interval; with one seed, the interval is that of its samples.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from laocoon import __version__
from laocoon.files.wording import printable
from laocoon.lab.artefacts import Store
from laocoon.lab.criteria.axes import leaderboard
from laocoon.lab.criteria.measure import area
from laocoon.lab.criteria.scorecard import Scorecard
from laocoon.lab.ledger import DONE, EntryRow, Ledger, TrialRow
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.intervals import mean_interval
from laocoon.render.leaderboard import Board
from laocoon.render.radar import LOOKS

FIGURES = ("success", "accuracy_difference", "natural_success", "clean_accuracy")


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval; `over` says what the interval is over."""

    value: float | None
    low: float | None = None
    high: float | None = None
    over: str = ""


@dataclass(frozen=True)
class AttackLine:
    """One attack on one subject."""

    plan: str
    tier: str
    data: str
    architecture: str
    attack: str
    seeds: int
    reported: str  # by the paper, in words
    source: str
    expected: Mapping[str, tuple[float, float]]  # ranges written in the plan
    beforehand: bool  # they were there before the first of these trials ended
    measured: Mapping[str, Figure]
    within: Mapping[str, str]  # inside, above or below what was expected

    @property
    def subject(self) -> str:
        return f"{self.data} {self.architecture}"


@dataclass(frozen=True)
class DefenceLine:
    """One defence on the planted and the clean models of one subject."""

    plan: str
    tier: str
    data: str
    architecture: str
    defence: str
    attack: str
    planted: int
    clean: int
    auroc: Figure  # planted against clean
    named: Figure  # the most suspected class is a target, among answers that name one
    unanswered: int  # planted or clean models of which it said nothing
    accused: str = ""  # planted and clean models called SUSPICIOUS, where the defence gives verdicts


@dataclass(frozen=True)
class OpenLine:
    """A trial of a plan that has no result."""

    plan: str
    trial: str
    what: str
    status: str
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything that a ledger knows of some plans."""

    attacks: tuple[AttackLine, ...]
    defences: tuple[DefenceLine, ...]
    unfinished: tuple[OpenLine, ...]
    cards: tuple[Scorecard, ...]


@dataclass(frozen=True)
class _Known:
    entry: EntryRow
    row: TrialRow | None


def collect(ledger: Ledger, store: Store | None = None, plan: str | None = None) -> Results:
    """The results of a plan, or of every plan; scorecards are read where a store is given."""
    entries = ledger.entries(plan)
    rows = ledger.rows({e.trial for e in entries})
    known = [_Known(e, rows.get(e.trial)) for e in entries]
    done = [k for k in known if k.row is not None and k.row.status == DONE]
    cells: dict[tuple[str, ...], list[_Known]] = {}
    for k in done:
        assert k.row is not None
        if k.row.kind == "implant":
            cells.setdefault((k.entry.plan, k.row.data, k.row.architecture, k.entry.label), []).append(k)
    cards = []
    for k in done if store is not None else ():
        assert k.row is not None and store is not None
        if "scorecard" in k.row.artefacts:
            cards.append(Scorecard.from_dict(json.loads(store.get(k.row.artefacts["scorecard"]))))
    return Results(tuple(_attack_line(c) for c in cells.values()), tuple(_defence_lines(done, rows)),
                   tuple(_open_lines(known)), tuple(cards))


def _row(known: _Known) -> TrialRow:
    assert known.row is not None
    return known.row


def _attack_line(cell: Sequence[_Known]) -> AttackLine:
    first, rows = cell[0].entry, [_row(k) for k in cell]
    measured = {name: _over_seeds([r.result["judged"][name] for r in rows], -1.0 if "difference" in name else 0.0)
                for name in FIGURES}
    expected = {k: (v[0], v[1]) for k, v in first.expected.items() if isinstance(v, list)}
    return AttackLine(
        first.plan, first.tier, rows[0].data, rows[0].architecture, first.label, len(rows),
        str(first.expected.get("reported", "")), str(first.expected.get("source", "")), expected,
        all(k.entry.expected_since <= min(r.ended for r in rows) for k in cell), measured,
        {k: _place(measured[k].value, r) for k, r in expected.items()})


def _place(value: float | None, wanted: tuple[float, float]) -> str:
    if value is None:
        return "not measured"
    return "inside" if wanted[0] <= value <= wanted[1] else "above" if value > wanted[1] else "below"


def _over_seeds(measures: Sequence[Mapping[str, Any]], least: float) -> Figure:
    known = [m for m in measures if m["value"] is not None]
    if not known:
        return Figure(None)
    if len(known) == 1:
        return Figure(known[0]["value"], known[0]["low"], known[0]["high"], "samples")
    values = [m["value"] for m in known]
    low, high = mean_interval(values)
    return Figure(sum(values) / len(values), max(least, low), min(1.0, high), "seeds")


def _defence_lines(done: Sequence[_Known], rows: Mapping[str, TrialRow]) -> list[DefenceLine]:
    """Planted models against the clean twins that they were judged against."""
    groups: dict[tuple[str, ...], list[_Known]] = {}
    clean: dict[tuple[str, str, str], list[_Known]] = {}  # plan, defence, twin
    for k in done:
        row = _row(k)
        if row.kind != "defence":
            continue
        examined = row.specification["subject"]
        if k.entry.label:
            group = (k.entry.plan, row.data, row.architecture, k.entry.defence_label, k.entry.label)
            groups.setdefault(group, []).append(k)
        else:
            clean.setdefault((k.entry.plan, k.entry.defence_label, examined), []).append(k)
    found = []
    for (plan, data, architecture, defence, label), cell in groups.items():
        twins = {rows[_row(k).specification["subject"]].specification["twin"] for k in cell
                 if _row(k).specification["subject"] in rows}
        against = [_row(c) for twin in sorted(twins) for c in clean.get((plan, defence, twin), ())]
        planted = [_row(k) for k in cell]
        ours, theirs = _scores(planted), _scores(against)
        measure = area(ours, theirs)
        verdicts = [r.result["named"] for r in planted if r.result["named"] is not None]
        low, high = binomial_interval(sum(verdicts), len(verdicts)) if verdicts else (None, None)
        found.append(DefenceLine(
            plan, cell[0].entry.tier, data, architecture, defence, label, len(ours), len(theirs),
            Figure(measure.value, measure.low, measure.high, "models") if measure.value is not None else Figure(None),
            Figure(sum(verdicts) / len(verdicts), low, high, "models") if verdicts else Figure(None),
            len(planted) + len(against) - len(ours) - len(theirs), _accused(planted, against)))
    return found


def _accused(planted: Sequence[TrialRow], clean: Sequence[TrialRow]) -> str:
    verdicts = [[r.result["answer"]["verdict"] for r in rows] for rows in (planted, clean)]
    if not any(v for side in verdicts for v in side):
        return ""
    return ", ".join(f"{side.count('SUSPICIOUS')} of {len(side)} {name}"
                     for side, name in zip(verdicts, ("planted", "clean"), strict=True))


def _scores(rows: Sequence[TrialRow]) -> list[float]:
    """Of complete answers; nothing found is as little suspicious as can be."""
    said = [r.result["answer"] for r in rows]
    return [-math.inf if a["score"] is None else a["score"] for a in said if a["complete"]]


def _open_lines(known: Sequence[_Known]) -> list[OpenLine]:
    found = []
    for k in known:
        if k.row is None or k.row.status != DONE:
            what = " × ".join(p for p in (k.entry.label or "clean", k.entry.defence_label) if p)
            found.append(OpenLine(k.entry.plan, k.entry.trial, what if k.row is None else
                                  f"{k.row.data} {k.row.architecture} seed {k.row.seed} {what}",
                                  "not run" if k.row is None else k.row.status, k.row.reason if k.row else ""))
    return found


def to_json(results: Results) -> str:
    """Numbers and ranges, for programs."""
    return json.dumps({"schema": "laocoon-lab/1", "version": __version__,
                       "attacks": [asdict(a) for a in results.attacks],
                       "defences": [asdict(d) for d in results.defences],
                       "unfinished": [asdict(o) for o in results.unfinished],
                       "scorecards": [c.to_dict() for c in results.cards]}, indent=1, sort_keys=True)


def to_csv(results: Results, of: str = "attacks") -> str:
    """One table: attacks, defences or unfinished. Nested figures become columns of their own."""
    lines: Sequence[Any] = {"attacks": results.attacks, "defences": results.defences,
                            "unfinished": results.unfinished}[of]
    flat = [_flat(asdict(line)) for line in lines]
    heads = list(dict.fromkeys(k for line in flat for k in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: _calm(v) for k, v in line.items()} for line in flat])
    return out.getvalue()


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{before}{key}"
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{name}.")
        elif isinstance(inner, list | tuple):
            found |= {f"{name}.{end}": v for end, v in zip(("low", "high"), inner, strict=True)}
        else:
            found[name] = inner
    return found


def _calm(value: Any) -> Any:
    """A spreadsheet takes text that begins like a formula for one."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def to_markdown(results: Results, command: str = "laocoon lab table") -> str:
    """The tables of a results page; which plan, tier and version they come from, and what fell short."""
    plans = sorted({(a.plan, a.tier) for a in results.attacks})
    told = "; ".join(f"plan `{_cell(p)}`, tier `{_cell(t)}`" for p, t in plans) or "no trial has ended"
    parts = ["# Trials of the lab", f"Command: `{_cell(command)}`. Laocoon {__version__}; {told}.\n\n"
             "Intervals are 95 %: over seeds (Student) where there are several, else over test samples. *Expected* are "
             "ranges written into the plan; † marks those that were written after a trial had ended."]
    if results.attacks:
        parts += ["## Attacks", _table(
            ("data", "network", "attack", "seeds", "reported by the paper", "expected success", "measured success",
             "expected accuracy difference", "measured accuracy difference", "success on the clean twin",
             "as expected"),
            [_attack_cells(a) for a in results.attacks], 4)]
    if results.defences:
        parts += ["## Defences", "AUROC of a defence's score, planted models against their clean twins. *Right class*: "
                  "the most suspected class is a target.", _table(
            ("data", "network", "defence", "attack", "planted", "clean", "AUROC", "right class", "no answer",
             "called suspicious"),
            [(d.data, d.architecture, d.defence, d.attack, str(d.planted), str(d.clean), _said(d.auroc), _said(d.named),
              str(d.unanswered), d.accused or "–") for d in results.defences], 4)]
    if results.cards:
        parts += ["## Criteria", _board(leaderboard(results.cards))]
    seen = _panel(results.cards)
    if seen:
        parts += ["## What the panel sees", "AUROC of each detector of the resistance criterion and, after the slash, "
                  "the share that it misses at 5 % false alarms. Data filters judge training samples, run-time ones "
                  "inputs, both within one model; means over seeds and subjects.", seen]
    if results.unfinished:
        parts += ["## Without a result", _table(("plan", "trial", "status", "reason"),
                  [(o.plan, o.what, o.status, o.reason) for o in results.unfinished], 4)]
    return "\n\n".join(parts) + "\n"


def _attack_cells(a: AttackLine) -> tuple[str, ...]:
    mark = "" if a.beforehand or not a.expected else "†"
    wanted = [_range(a.expected.get(k)) for k in ("success", "accuracy_difference")]
    apart = [f"{k.replace('_', ' ')} {v}" for k, v in a.within.items() if v != "inside"]
    verdict = "–" if not a.expected else "yes" if not apart else ", ".join(apart)
    reported = " ".join(p for p in (a.reported, f"({a.source})" if a.source else "") if p) or "–"
    return (a.data, a.architecture, a.attack, str(a.seeds), reported, f"{wanted[0]}{mark}",
            _said(a.measured["success"]), f"{wanted[1]}{mark}", _said(a.measured["accuracy_difference"], True),
            _said(a.measured["natural_success"]), verdict)


def _range(wanted: tuple[float, float] | None) -> str:
    return "–" if wanted is None else f"{wanted[0]:g} to {wanted[1]:g}"


def _said(figure: Figure, signed: bool = False) -> str:
    if figure.value is None:
        return "–"
    show = (lambda v: f"{v:+.3f}") if signed else (lambda v: f"{v:.3f}")
    if figure.low is None or figure.high is None:
        return show(figure.value)
    return f"{show(figure.value)} [{show(figure.low)}, {show(figure.high)}]"


def _cell(text: str) -> str:
    return printable(text, 200).replace("|", "\\|").replace("<", "&lt;")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    lines = [heads, ["-" if i < words else "-:" for i in range(len(heads))],
             *([_cell(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _board(board: Board) -> str:
    from laocoon.render.leaderboard import to_markdown as rendered

    return rendered(board).partition("\n")[2].strip()


def _panel(cards: Sequence[Scorecard]) -> str:
    """Attacks × the detectors that gave scores of samples; scores of models are the defences' table."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for card in cards:
        resistance = card.resistance
        for name, auroc in (resistance.auroc if resistance else {}).items():
            missed = resistance.evasion[name].value if resistance else None
            if "." not in name and auroc.value is not None and missed is not None:  # a rule of a model detector has one
                which = f"{card.attack}, {re.sub(r'class [0-9]+', 'class', card.goal)}"  # seeds draw other classes
                found.setdefault(which, {}).setdefault(name, []).append((auroc.value, missed))
    detectors = sorted({d for row in found.values() for d in row})
    if not detectors:
        return ""
    cells = [(name, *(_averaged(row.get(d, [])) for d in detectors)) for name, row in sorted(found.items())]
    return _table(("attack", *detectors), cells, 1)


def _averaged(pairs: Sequence[tuple[float, float]]) -> str:
    if not pairs:
        return "–"
    auroc, missed = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return f"{auroc:.3f} / {missed:.2f}"


def most_striking(results: Results) -> list[Scorecard]:
    """As many scorecards as a radar can hold, one an attack, in the order of the ledger."""
    found: dict[str, Scorecard] = {}
    for card in results.cards:
        found.setdefault(f"{card.attack} {card.goal}", card)
    return list(found.values())[:len(LOOKS)]
