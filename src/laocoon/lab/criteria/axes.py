"""From a scorecard to five axes in [0, 1], and from many scorecards to a leaderboard.

The mapping is ours and is written in docs/criteria.md; 1 is best for the attacker. Formulas are monotone in every
figure, so that the axis of the unfavourable ends of all intervals is the low end of the axis (conservative).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from laocoon.lab.criteria.measure import Measure
from laocoon.lab.criteria.practicality import Practicality
from laocoon.lab.criteria.resistance import Resistance
from laocoon.lab.criteria.robustness import Robustness
from laocoon.lab.criteria.scorecard import CRITERIA, Scorecard
from laocoon.lab.criteria.stealthiness import Stealthiness
from laocoon.lab.criteria.targetedness import Targetedness
from laocoon.recipes.intervals import mean_interval
from laocoon.render.leaderboard import Board, Cell, Row
from laocoon.render.radar import Axis, Series, radar

TOLERABLE = 0.1  # loss of clean accuracy from which nothing of that part is left
SILENT, LOUD = 40.0, 10.0  # dB of PSNR at the ends
RAREST = 4  # powers of ten: one poisoned sample in 10,000 is as practical as none


@dataclass(frozen=True)
class Span:
    """A figure in [0, 1] with its ends."""

    value: float
    low: float
    high: float


def span(measure: Measure, turn: Callable[[float], float] = lambda v: v) -> Span | None:
    """A measure through a monotone map, clipped; None where it was not measured."""
    if measure.value is None:
        return None
    ends = [measure.value if v is None else v for v in (measure.low, measure.high)]
    value, first, second = (min(1.0, max(0.0, turn(v))) for v in (measure.value, *ends))
    return Span(value, min(first, second, value), max(first, second, value))


def mean(spans: Iterable[Span | None]) -> Span | None:
    """Of those that are known."""
    known = [s for s in spans if s is not None]
    if not known:
        return None
    n = len(known)
    return Span(sum(s.value for s in known) / n, sum(s.low for s in known) / n, sum(s.high for s in known) / n)


def product(first: Span | None, second: Span | None) -> Span | None:
    if first is None or second is None:
        return first if second is None else None
    return Span(first.value * second.value, first.low * second.low, first.high * second.high)


def lift(hit: Measure, stray: Measure) -> Span | None:
    """What the trigger adds: success − what goes there without it, at least 0."""
    first, second = span(hit), span(stray)
    if first is None or second is None:
        return first
    value, low, high = first.value - second.value, first.low - second.high, first.high - second.low
    return Span(max(0.0, value), max(0.0, low), max(0.0, high))


def of_targetedness(t: Targetedness) -> Span | None:
    """success · (1 − natural success) · mean(1 − source leak, 1 − near-trigger leak, 1 − accuracy loss / 0.1)."""
    aim = mean((span(t.source_leak, lambda v: 1 - v), span(t.near_trigger_leak, lambda v: 1 - v),
                span(t.accuracy_difference, lambda v: 1 + min(0.0, v) / TOLERABLE)))
    return product(product(span(t.success), span(t.natural_success, lambda v: 1 - v)), aim)


def of_stealthiness(s: Stealthiness) -> Span | None:
    """Mean of input, labels, weights and features, each the mean of its own figures."""
    def unseen(measure: Measure) -> Span | None:
        return span(measure, lambda v: 2 - 2 * v)

    return mean((
        mean((span(s.psnr, lambda v: (v - LOUD) / (SILENT - LOUD)), span(s.ssim),
              span(s.feature_distance, lambda v: 1 - v), unseen(s.frequency))),
        span(s.label_consistency), span(s.spectral_change, lambda v: 1 - v),
        mean((span(s.silhouette, lambda v: 1 - v), unseen(s.latent_separability)))))


def of_practicality(p: Practicality) -> Span | None:
    """Mean of rarity of the poison, what need not be controlled, and what the trigger survives."""
    return mean((span(p.poison_rate, lambda v: 1.0 if v <= 0 else -math.log10(v) / RAREST),
                 span(p.control, lambda v: (5 - v) / 4),
                 mean(lift(m, p.stray[name]) for name, m in p.survival.items())))


def of_resistance(r: Resistance) -> Span | None:
    """Mean evasion; the worst case stands beside it in the leaderboard."""
    return span(r.mean)


def of_robustness(r: Robustness) -> Span | None:
    """Mean over treatments of what the trigger adds after / what it added before, at most 1."""
    before = lift(r.before, r.stray_before)
    if before is None or not r.after:
        return None
    if before.value <= 0:
        return Span(0.0, 0.0, 0.0)
    lifts = [lift(m, r.stray[name]) for name, m in r.after.items()]
    return mean(s and Span(*(min(1.0, v / before.value) for v in (s.value, s.low, s.high))) for s in lifts)


def axes(card: Scorecard) -> tuple[Axis, ...]:
    """The five, in the survey's order."""
    found = {
        "targetedness": card.targetedness and of_targetedness(card.targetedness),
        "stealthiness": card.stealthiness and of_stealthiness(card.stealthiness),
        "practicality": card.practicality and of_practicality(card.practicality),
        "resistance": card.resistance and of_resistance(card.resistance),
        "robustness": card.robustness and of_robustness(card.robustness),
    }
    return tuple(Axis(name, s.value, s.low, s.high) if (s := found[name]) else Axis(name, None) for name in CRITERIA)


def picture(cards: Sequence[Scorecard], title: str = "") -> str:
    """Radar of one scorecard, or of up to five for comparison, as SVG."""
    alone = f"{cards[0].attack}: {cards[0].goal}" if len(cards) == 1 else ""
    return radar([Series(f"{c.attack}: {c.goal}", axes(c)) for c in cards], title or alone)


def leaderboard(cards: Sequence[Scorecard], title: str = "Attacks on the five criteria") -> Board:
    """One row for each attack with its parameters; seeds are averaged, with Student's interval over them.

    Sorted by the number of criteria measured, then by their mean. With one seed, the interval is that of its samples.
    """
    groups: dict[tuple[str, str], list[Scorecard]] = {}
    for card in cards:
        groups.setdefault((card.attack, json.dumps(card.params, sort_keys=True)), []).append(card)
    several = {attack for attack, _ in groups if sum(a == attack for a, _ in groups) > 1}
    rows = []
    for (attack, params), own in groups.items():
        each = [axes(card) for card in own]
        five = [_over_seeds([a[i] for a in each]) for i in range(len(CRITERIA))]
        known = [c.value for c in five if c.value is not None]
        further = [_over_seeds([_axis(pick(card)) for card in own], bounded) for _, bounded, pick in FURTHER]
        words = (f"{attack} {params}" if attack in several else attack, own[0].phase, str(len(own)))
        rows.append(((-len(known), -sum(known) / max(1, len(known)), words), Row(words, (*five, *further))))
    note = ("0 to 1, 1 is best for the attacker; how each axis is made stands in the documentation of the criteria. "
            "Brackets: 95 %, over seeds where there are several, else over samples.")
    return Board(title, note, ("attack", "phase", "seeds"), (*CRITERIA, *(name for name, _, _ in FURTHER)),
                 tuple(row for _, row in sorted(rows, key=lambda pair: pair[0])))


# What stands beside the axes: name, whether it lives in [0, 1], and where it is on the card.
FURTHER: tuple[tuple[str, bool, Callable[[Scorecard], Measure | None]], ...] = (
    ("attack success", True, lambda c: c.targetedness.success if c.targetedness else None),
    ("clean accuracy − twin's", False,
     lambda c: c.targetedness.accuracy_difference if c.targetedness else None),
    ("poison rate", False, lambda c: c.practicality.poison_rate if c.practicality else None),
    ("worst evasion", True, lambda c: c.resistance.worst if c.resistance else None),
)


def _axis(measure: Measure | None) -> Axis:
    return Axis("", measure.value, measure.low, measure.high) if measure else Axis("", None)


def _over_seeds(items: Sequence[Axis], bounded: bool = True) -> Cell:
    known = [a for a in items if a.value is not None]
    if len(known) < 2:
        return Cell(known[0].value, known[0].low, known[0].high, bounded) if known else Cell(None, bounded=bounded)
    values = [a.value or 0.0 for a in known]
    low, high = mean_interval(values)
    if bounded:
        low, high = max(0.0, low), min(1.0, high)
    return Cell(sum(values) / len(values), low, high, bounded)
