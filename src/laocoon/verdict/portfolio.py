"""Try the repairs on copies and choose without an oracle: by clean accuracy and recovered triggers alone."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from laocoon import __version__
from laocoon.core.candidate import Candidate
from laocoon.core.card import Capability
from laocoon.core.cases import ModelCase
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.errors import InputError
from laocoon.core.methods import Mended, Repair
from laocoon.core.repaired import Drop, Residue, Trial
from laocoon.core.report import Report
from laocoon.core.subject import Subject
from laocoon.verdict.examination import Crash, attempted
from laocoon.verdict.residue import (
    Split,
    dropped,
    meaningless,
    rate,
    reactivated,
    residue,
    right,
    worst,
)
from laocoon.verdict.searches import Searched, search, searchable

# Cheapest first, but for what starts afresh; repairs that are not named here (plug-ins) come last.
ORDER = ("distillation", "rare_word_shrinkage", "clp", "fine_tuning", "candidate_unlearning", "fst", "fine_pruning",
         "ft_sam", "nad", "ban_tuning", "pam", "i_bau", "anp", "rnp")
# What forgets most first: the order where no trigger was recovered by which results could be told apart.
FORGETTING = ("distillation", "rare_word_shrinkage", "fst", "ft_sam", "fine_pruning", "nad", "i_bau", "anp", "rnp",
              "clp", "fine_tuning")
ROUND = 3  # the first ones are tried together; the others only where these leave something
GONE = 0.10  # the upper end of a trigger's success, below which it counts as gone
NATURAL = 0.5  # a new trigger of over half the size of those towards other classes is a push like any other
FINALISTS = 3  # results that show nothing, among which re-activation decides
WEIGHT_EASE, WEIGHT_DROP = 0.5, 2.0  # of how easily a trigger is found again, and of lost accuracy, in a score
WEIGHT_EXCESS = 10.0  # of accuracy lost beyond what may be
USUAL = 0.03  # accuracy that repairs usually cost or gain: what samples are too few to tell is drawn towards none


@dataclass(frozen=True, eq=False)
class Suspect:
    """A recovered trigger that repairs are judged by, with what a new search finds on the model as it came."""

    candidate: Candidate
    before: Residue  # on the samples to choose by
    searched: Searched | None


@dataclass(frozen=True, eq=False)
class Attempt:
    """A trial with its network; none where there is no result."""

    trial: Trial
    subject: Subject | None
    found: tuple[Searched | None, ...] = ()  # one a suspect, where a new search was made
    harmless: bool = True  # no more accuracy was lost than may be
    chain: tuple[str, ...] = ()  # what was applied, in this order
    afresh: bool = False  # the last of it kept no weight

    @property
    def clear(self) -> bool:
        """Nothing is left that could be seen with the samples to choose by."""
        return self.trial.score is not None and self.harmless and all(
            r.success.high < GONE and r.ease < NATURAL for r in self.trial.residues)


def available() -> dict[str, type[Repair]]:
    """Every installed repair by name, plug-ins included."""
    return {r.card.name: r for r in classes("laocoon.repairs", Repair)}  # type: ignore[type-abstract]


def named(wanted: Sequence[str] | None) -> None:
    """InputError for a name that no repair has."""
    known = available()
    for word in wanted or ():
        if (name := word.removeprefix("-")) not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(f"there is no repair {name!r}.{hint}", f"Repairs: {', '.join(sorted(known))}.")


def plan(modality: str, wanted: Sequence[str] | None = None) -> tuple[Repair, ...]:
    """The repairs that will be tried, cheapest first. A leading '-' leaves one out; otherwise only those named run."""
    named(wanted)
    known = available()
    only = [w for w in wanted or () if not w.startswith("-")]
    without = {w[1:] for w in wanted or () if w.startswith("-")}
    names = sorted(known, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    chosen = [n for n in names if (n in only or not only) and n not in without and modality in known[n].card.modalities]
    if not chosen:
        raise InputError(f"no repair for {modality} is left to try.", "Name others, or fewer with a leading '-'.")
    return tuple(known[n]() for n in chosen)


def suspects(subject: Subject, candidates: Sequence[Candidate], parts: Split, ctx: Context) -> tuple[Suspect, ...]:
    """The triggers that repairs will be judged by, each searched anew on the model as it came."""
    found = []
    for candidate in candidates:
        device = parts.fit.inputs.device
        here = replace(candidate, trigger={k: v.to(device) for k, v in candidate.trigger.items()})
        searched = search(subject, here, parts.fit, ctx) if searchable(here) else None
        found.append(Suspect(here, residue(subject, here, parts.choose, ctx, searched), searched))
    return tuple(found)


class Portfolio:
    """The trials of one repair."""

    def __init__(self, subject: Subject, parts: Split, suspected: Sequence[Suspect], max_drop: float, root: Context,
                 passes: float, resume: Path | None, *, strict: bool = False) -> None:
        """passes: what the repairs together may spend; judging them is not limited. strict: not one point more."""
        self.strict = strict or not suspected
        self.subject, self.parts, self.suspected, self.max_drop = subject, parts, tuple(suspected), max_drop
        self.root, self.resume, self.left = root, resume, passes
        self.was_right = right(subject, parts.choose, root)
        self.attempts: list[Attempt] = []

    def run(self, methods: Sequence[Repair], *, first: bool, stages: int, every: bool = False) -> Attempt | None:
        """Trials of the first stage; further ones from the best, while they leave less; the best of all.

        first: stop at the first that leaves nothing. every: try the later repairs even where the first round does.

        With no recovered trigger to judge by, every result leaves nothing that could be seen, and the one that lost
        least is the one that changed least. Then the repairs are tried in the order of what they forget, and the first
        that is harmless is taken.
        """
        if not self.suspected:
            methods, first = sorted(methods, key=_forgetting), not every
        for number, method in enumerate(methods):
            share = number / (len(methods) + 2 * (stages > 1))
            self.root.progress(method.card.name, share, f"repair {number + 1} of {len(methods)}")
            self.attempts.append(self._attempt(method, 1, self.subject, (), self._candidates(None)))
            if first and self.attempts[-1].clear:
                break
            if number + 1 == ROUND and not every and any(a.clear for a in self.attempts):
                break
        for stage in range(2, stages + 1):
            best = self.best()
            if best is None or best.clear or best.subject is None or not self.suspected \
                    or len(best.chain) != stage - 1:  # the last stage made nothing better
                break
            for method in self._again(methods, best):
                self.root.progress(method.card.name, 0.9, f"{method.card.name} after {best.trial.repair}")
                self.attempts.append(self._attempt(method, stage, best.subject, best.chain, self._candidates(best)))
                if self.attempts[-1].clear:
                    break
        best = self._hardest_to_wake(self.best())
        if best is not None:
            at = next(i for i, a in enumerate(self.attempts) if a is best)
            best = self.attempts[at] = replace(best, trial=replace(best.trial, chosen=True))
        return best

    def best(self) -> Attempt | None:
        """The admissible attempt with the lowest score; an earlier stage wins ties.

        Of results that leave nothing to be seen those that started from fresh weights come first: with the backdoors
        that were found they are rid of those that were not. Without a trigger to judge by it is the first, what forgets
        most: none that loses more than it may has a score then.
        """
        able = [a for a in self.attempts if a.trial.score is not None]
        if not self.suspected:
            return next(iter(able), None)
        able = [a for a in able if a.clear and a.afresh] or able
        return min(able, key=lambda a: (round(a.trial.score or 0.0, 3), a.trial.stage), default=None)

    def _hardest_to_wake(self, best: Attempt | None) -> Attempt | None:
        """Of the best results that show nothing, the first that a few poisoned samples do not bring back easily."""
        if best is None or not best.clear or not self.suspected:
            return best
        able = sorted((a for a in self.attempts if a.clear and a.subject is not None),
                      key=lambda a: (not a.afresh, round(a.trial.score or 0.0, 3), a.trial.stage))[:FINALISTS]
        for one in able if len(able) > 1 else ():
            if not any(self._wakes(one, s.candidate, number) for number, s in enumerate(self.suspected)):
                return one
        return best

    def _wakes(self, attempt: Attempt, candidate: Candidate, number: int) -> bool:
        mended = attempt.subject
        assert mended is not None
        ctx = self.root.child(float("inf"), f"wake-{number}-{'-'.join(attempt.chain)}")
        control = meaningless(candidate, ctx.rng)
        if control is None:
            return False
        done = attempted(lambda: reactivated(mended, candidate, control, self.parts.fit, self.parts.choose, ctx))
        self.root.spent += ctx.spent
        return isinstance(done, Crash) or done.easier

    def _again(self, methods: Sequence[Repair], best: Attempt) -> list[Repair]:
        """What is tried on the best result: what unlearns the triggers that were found, and the second best."""
        named = {m.card.name: m for m in methods}
        unlearning = [m for m in methods if Capability.CANDIDATES in m.card.needs]  # also twice: the triggers are new
        ranked = sorted((a for a in self.attempts if a.trial.score is not None and a.trial.repair not in best.chain),
                        key=lambda a: a.trial.score or 0.0)
        second = [named[a.trial.repair] for a in ranked[:1]]
        return list({m.card.name: m for m in (*unlearning, *second)}.values())[:2]

    def _candidates(self, best: Attempt | None) -> tuple[Candidate, ...]:
        """The recovered triggers; after a first stage also those that a new search found on its result."""
        known = tuple(s.candidate for s in self.suspected)
        return known + tuple(f.candidate for f in (best.found if best is not None else ()) if f is not None)

    def _attempt(self, method: Repair, stage: int, start: Subject, before: tuple[str, ...],
                 candidates: tuple[Candidate, ...]) -> Attempt:
        name, after = method.card.name, ", then ".join(before)
        case = ModelCase(start, self.parts.fit, None, candidates, start.graph)
        stored = self.resume / f"{'-'.join([str(stage), *before, name])}.json" if self.resume is not None else None
        mended = _restored(stored, start) if stored is not None and stored.exists() else None
        if mended is None:
            mended = self._survived(method, case, self.root.child(self.left, f"{stage}-{name}"))
            if stored is not None:
                _store(stored, mended)
        self.root.spent += mended.report.spent
        self.left = max(0.0, self.left - mended.report.spent)
        ctx = self.root.child(float("inf"), f"judge-{stage}-{name}")
        judged = attempted(lambda: self._judged(mended, stage, after, ctx))
        if isinstance(judged, Crash):
            judged = Attempt(_trial(mended, stage, after, f"{name} could not be judged: {judged.reason}"[:300]), None)
        self.root.spent += ctx.spent
        return replace(judged, chain=(*before, name), afresh=method.afresh)

    def _survived(self, method: Repair, case: ModelCase, ctx: Context) -> Mended:
        done = attempted(lambda: method.mend(case, ctx))
        if isinstance(done, Mended):
            reason = done.report.reason.replace("--budget", "--passes")  # what is limited here
            done = replace(done, report=replace(done.report, reason=reason))
            return done if done.subject is None or _alike(done.subject, case.subject) else Mended(
                None, replace(done.report, reason=f"{method.card.name} changed the shape of the network.",
                              complete=False))
        name = method.card.name
        return Mended(None, Report(
            method=name, params=asdict(method), findings=(), examined=(), skipped=(name,),  # type: ignore[call-overload]
            reason=f"{name} failed: {done.reason}"[:300], subject=case.subject.provenance.sha256, seed=ctx.seed,
            spent=ctx.spent, seconds=0.0, version=__version__, complete=False))

    def _judged(self, mended: Mended, stage: int, after: str, ctx: Context) -> Attempt:
        subject = mended.subject
        if subject is None:
            return Attempt(_trial(mended, stage, after, mended.report.reason or "no result"), None)
        is_right = right(subject, self.parts.choose, ctx)
        drop, accuracy = dropped(self.was_right, is_right), rate(is_right)
        trial = replace(_trial(mended, stage, after, ""), accuracy=accuracy, drop=drop)
        left = tuple(residue(subject, s.candidate, self.parts.choose, ctx) for s in self.suspected)
        # A hundred samples to choose by cannot tell 2 points from 8, and all repairs are judged on the same ones, which
        # the model as it came may have got right by luck. What may only be chance costs in the score, and the samples
        # to prove with decide. Where nothing was found, nothing justifies even the chance.
        lost = drop.value if self.strict else likely(drop)
        if drop.low > self.max_drop or (self.strict and drop.value > self.max_drop):
            said = f"loses {100 * drop.value:.1f} points of clean accuracy, more than {100 * self.max_drop:g}"
            return Attempt(replace(trial, residues=left, reason=said), None)
        found: tuple[Searched | None, ...] = ()
        if worst(left) < 0.5:  # a new search is dear, and tells nothing where the known trigger still works
            found = tuple(search(subject, s.candidate, self.parts.fit, ctx) if s.searched else None
                          for s in self.suspected)
            left = tuple(replace(r, searched_size=f.effective, searched_success=f.candidate.success,
                                 natural_size=f.natural) if f else r for r, f in zip(left, found, strict=True))
        ease = max((r.ease for r in left), default=0.0) if found else 1.0 if left else 0.0
        score = worst(left) + WEIGHT_EASE * ease + WEIGHT_DROP * max(0.0, lost) \
            + WEIGHT_EXCESS * max(0.0, lost - self.max_drop)
        return Attempt(replace(trial, residues=left, score=score), subject, found, lost <= self.max_drop)


def _forgetting(method: Repair) -> int:
    """Its place in the order of forgetting; what nobody placed, plug-ins among it, comes last."""
    name = method.card.name
    return FORGETTING.index(name) if name in FORGETTING else len(FORGETTING)


def likely(drop: Drop) -> float:
    """The accuracy that was lost, as far as the samples can tell: the mean given the figure and its interval."""
    spread = (drop.high - drop.low) / 3.92
    return drop.value * USUAL**2 / (USUAL**2 + spread**2)


def _trial(mended: Mended, stage: int, after: str, reason: str) -> Trial:
    r = mended.report
    return Trial(r.method, stage, after, r.params, reason, None, None, (), None, r.spent, r.seconds)


def _alike(one: Subject, other: Subject) -> bool:
    """The same names and shapes of weights: only then can they be written where they came from."""
    shapes = [{k: tuple(v.shape) for k, v in s.module.state_dict().items()} for s in (one, other)]
    return shapes[0] == shapes[1]


def _store(path: Path, mended: Mended) -> None:
    from laocoon.files.safetensors import write

    path.parent.mkdir(parents=True, exist_ok=True)
    if mended.subject is not None:
        write(path.with_suffix(".safetensors"), mended.subject.module.state_dict(), {})
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"mended": mended.subject is not None, "report": mended.report.to_dict()}))
    part.replace(path)


def _restored(path: Path, start: Subject) -> Mended:
    """What an earlier run stored."""
    from laocoon.files.safetensors import read

    try:
        told = json.loads(path.read_text())
        report = Report.from_dict(told["report"])
        if not told["mended"]:
            return Mended(None, report)
        state = read(path.with_suffix(".safetensors"))
        patient = start.copy()
        patient.module.load_state_dict(state)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, InputError) as error:
        raise InputError(f"{path.name} in the resume folder cannot be read ({error}).",
                         "Delete it, or resume into an empty folder.") from None
    return Mended(patient, report)
