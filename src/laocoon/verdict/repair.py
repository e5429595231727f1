"""The repair: find, mend a copy in every way that is known, choose without an oracle, prove, and say how it ended."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from laocoon import __version__
from laocoon.core.candidate import Candidate
from laocoon.core.cases import Samples, informed
from laocoon.core.context import Context, Progress
from laocoon.core.errors import InputError
from laocoon.core.goal import ClassGoal
from laocoon.core.repaired import Check, Rate, RepairReport, Scanned, Status, TriggerChange
from laocoon.core.report import ScanReport, Verdict
from laocoon.core.subject import Subject
from laocoon.verdict import portfolio, proof
from laocoon.verdict.calibrate import Reference
from laocoon.verdict.residue import Split, dropped, few, overlap, rate, right, split
from laocoon.verdict.scan import _device, scan
from laocoon.verdict.schedule import available

HARMLESS = 0.01  # accuracy that a repair may cost where nothing was found
MOST_SUSPECTS = 5
MOST_STAGES = 5
SCANNED_EACH = 20  # clean samples a class that a scan is given, as many as its references had
GROWN = 3.0  # a trigger that grew so much is found again only as any trigger is
ORDINARY = 0.5  # a trigger whose natural control comes to so much of its success is a push like any other


def repair(subject: Subject, data: Samples, *, earlier: ScanReport | Scanned | None = None,
           candidates: Sequence[Candidate] = (), scan_data: Samples | None = None, alpha: float = 0.05,
           budget: str | int = "default", max_drop: float = 0.02, methods: Sequence[str] | None = None,
           passes: float = math.inf, first: bool = False, stages: int = 3, force: bool = False, seed: int = 0,
           device: str = "cpu", progress: Progress | None = None, resume: Path | None = None,
           reference: Reference | None = None) -> RepairReport:
    """Remove a backdoor from a copy of a model, and prove that it is gone.

    Args:
        subject: the model, from `load_model`; it is not changed.
        data: clean samples, from `load_data`; 40 or more of each class serve best.
        earlier: what an earlier scan of this model said; without it the model is scanned first.
        candidates: recovered triggers to remove, beside those that a scan made here finds.
        scan_data: samples to scan with, so that a scan made elsewhere is repeated as it was; by default some of `data`.
        alpha: the false-alarm rate of the scans.
        budget: of the scans before and after: `quick`, `default`, `deep` or a number of passes.
        max_drop: clean accuracy that may be lost, as a share.
        methods: names of repairs, all of which are tried, or with a leading '-' to leave out; by default the first
            three, and the others where these leave something.
        passes: sample-level forward-backward passes that the repairs together may spend.
        first: stop at the first repair that leaves nothing to be seen, instead of trying all.
        stages: 1 for the best single repair; more to go on from its result where something is left.
        force: repair also where a scan found nothing, or could not say.
        seed: of all randomness.
        resume: folder where each mended model is kept, and from which an interrupted repair goes on.

    Raises:
        InputError: an argument cannot be used.
    """
    start = time.monotonic()
    _check_arguments(data, max_drop, passes, stages)
    tried = portfolio.plan(subject.modality.name, methods)
    where = _device(device)
    subject, data = informed(subject, data).to(where), data.to(where)
    root = Context(seed=seed, device=where)
    if progress is not None:
        root.progress = progress
    scan_data = None if scan_data is None else scan_data.to(where)
    parts = split(data, seed, scan_data)
    if resume is not None:
        _check_resume(resume, subject, data, candidates, seed)
    known = few(parts.fit, SCANNED_EACH) if scan_data is None else scan_data

    def scanned(model: Subject, name: str, only: Sequence[str] | None = None) -> ScanReport:
        report = scan(model, known, alpha=alpha, budget=budget, seed=seed, methods=only, device=device,
                      progress=progress, resume=None if resume is None else resume / name, reference=reference)
        root.spent += report.spent
        return report

    full = earlier if isinstance(earlier, ScanReport) else None
    if earlier is None:
        full = scanned(subject, "scan-before")
    before = summary(full) if full is not None else earlier
    assert isinstance(before, Scanned)
    chosen = list(candidates)
    if full is not None:
        chosen += suspicious(full)
    elif not chosen and before.verdict == Verdict.SUSPICIOUS.value:
        for name, searchers in _searchers(subject, before.method).items():
            chosen = chosen or _towards(scanned(subject, name, searchers), before.target_classes)
    found_nothing = before.verdict == Verdict.NO_EVIDENCE.value and not candidates
    cause = "" if force or candidates else _leave_alone(before)
    limit = min(max_drop, HARMLESS) if found_nothing else max_drop
    suspected = () if cause else portfolio.suspects(subject, chosen[:MOST_SUSPECTS], parts, root)
    attempts: list[portfolio.Attempt] = []
    best = None
    if not cause:
        trials = portfolio.Portfolio(subject, parts, suspected, limit, root, passes, resume, strict=found_nothing)
        best = trials.run(tried, first=first, stages=stages, every=methods is not None)
        attempts = trials.attempts
    mended = best.subject if best is not None and best.subject is not None else subject
    proven = proof.Proven((), (), ())
    after = None
    if mended is not subject:
        proven = proof.proven(subject, mended, suspected, parts, root)
        after = summary(scanned(mended, f"scan-after-{mended.fingerprint()[:12]}"))
    was_right, is_right = right(subject, parts.held, root), right(mended, parts.held, root)
    drop = dropped(was_right, is_right)
    checks = conditions(proven, after, drop.value, limit)
    status, reason = decide(before, checks, proven, cause, found_nothing, best, rate(was_right), rate(is_right),
                            drop.low > limit)
    applied = () if best is None else best.chain
    root.progress("", 1.0, "")
    return RepairReport(
        status=status, reason=reason, checks=checks if mended is not subject else (), repairs=applied,
        scan_before=before, scan_after=after, triggers=proven.triggers, reactivations=proven.reactivations,
        accuracy_before=rate(was_right), accuracy_after=rate(is_right), drop=drop, max_drop=limit,
        trials=tuple(a.trial for a in attempts),
        misses={m.card.name: m.card.misses for m in tried if m.card.name in applied and m.card.misses},
        subject=_facts(subject, data), notes=_notes(parts, data, scan_data), budget=str(budget), spent=root.spent,
        samples={"fit": len(parts.fit), "choose": len(parts.choose), "prove": len(parts.prove),
                 "seen": int(overlap(parts.prove, scan_data).sum())},
        seconds=time.monotonic() - start, seed=seed, version=__version__, mended=mended,
        candidates=tuple(s.candidate for s in suspected) if proven.triggers else (), found_after=proven.found,
        pictures=parts.prove.inputs[::max(1, len(parts.prove) // 16)][:16].cpu())


def _check_arguments(data: Samples, max_drop: float, passes: float, stages: int) -> None:
    if not isinstance(data, Samples) or len(data) == 0:
        raise InputError("a repair needs clean samples; there are none.", "Pass some with --data.")
    if not bool(torch.isfinite(data.inputs.float()).all()):
        raise InputError("the clean samples hold values that are not finite.", "Check how they were made.")
    if not (isinstance(max_drop, int | float) and 0 <= max_drop < 1):
        raise InputError(f"max_drop is {max_drop!r}.", "It is a share of clean accuracy, for instance 0.02.")
    if not passes >= 1:
        raise InputError(f"passes is {passes!r}.", "It is a number of passes, at least 1.")
    if stages not in range(1, MOST_STAGES + 1):
        raise InputError(f"stages is {stages!r}.", f"It is a number from 1 to {MOST_STAGES}.")


def _check_resume(folder: Path, subject: Subject, data: Samples, candidates: Sequence[Candidate], seed: int) -> None:
    """A resume folder belongs to one model, one set of samples, one set of triggers and one seed."""
    digest = hashlib.sha256(subject.fingerprint().encode())
    for tensor in (data.inputs, data.labels, *(v for c in candidates for v in c.trigger.values())):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    facts = {"repair": digest.hexdigest(), "seed": seed, "version": __version__}
    marker = folder / "repair.json"
    if marker.exists():
        try:
            old = json.loads(marker.read_text())
        except ValueError:
            old = None
        if old != facts:
            raise InputError(f"the resume folder {folder} holds another repair (model, samples, triggers, seed or "
                             "version differ).", "Choose an empty folder.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(facts))


# ---------------------------------------------------------------- what the scans said
def summary(report: ScanReport) -> Scanned:
    return Scanned(report.verdict.value, report.reason, report.p_value, report.score, report.alpha,
                   report.target_classes, report.evidence[0].method if report.evidence else "")


def summary_of(data: Mapping[str, Any], sha256: str) -> Scanned:
    """What the JSON report of a scan says. InputError where it is none, or of another model."""
    remedy = "Give the file that `laocoon scan --json` wrote about this model."
    if not isinstance(data, Mapping) or data.get("schema") != "laocoon-scan/1":
        raise InputError("the scan report is not one of laocoon's.", remedy)
    subject = data.get("subject")
    told = subject.get("sha256") if isinstance(subject, Mapping) else None
    if told != sha256:
        raise InputError(f"the scan report is about a model with the digest {str(told)[:12]}, not {sha256[:12]}.",
                         remedy)
    p, targets = data.get("p_value"), data.get("target_classes")
    alpha, score = data.get("alpha"), data.get("score")
    if data.get("verdict") not in [v.value for v in Verdict] or not isinstance(alpha, float) \
            or not isinstance(targets, list) or not all(isinstance(t, int) for t in targets) \
            or not (p is None or isinstance(p, int | float)):
        raise InputError("the scan report is damaged.", remedy)
    first = next(iter(data["evidence"]), None) if isinstance(data.get("evidence"), list) else None
    method = first.get("method") if isinstance(first, Mapping) else None
    return Scanned(str(data["verdict"]), str(data.get("reason", "")), None if p is None else float(p),
                   float(score) if isinstance(score, int | float) else math.nan, alpha, tuple(targets),
                   method if isinstance(method, str) else "")


def suspicious(report: ScanReport) -> list[Candidate]:
    """The verified triggers that the verdict rests on: the first, and others that beat their natural control."""
    found = []
    for place, (candidate, evidence) in enumerate(zip(report.candidates, report.evidence, strict=False)):
        natural = 0.0 if math.isnan(evidence.natural_control) else evidence.natural_control
        if place == 0 or (evidence.success >= 0.5 and natural < ORDINARY * evidence.success):
            found.append(candidate)
    return found


def _towards(report: ScanReport, targets: Sequence[int]) -> list[Candidate]:
    """The recovered trigger towards the class that an earlier scan suspected most, else the best one."""
    named = [c for c in report.candidates if isinstance(c.goal, ClassGoal) and set(c.goal.targets) & set(targets[:1])]
    return named[:1] or list(report.candidates[:1])


def _searchers(subject: Subject, method: str) -> dict[str, tuple[str, ...]]:
    """The methods that recover triggers, by the name of the scan that they are run in: first the one that did."""
    others = {"text": ("text_inversion",), "tabular": ("tabular_inversion",)}
    usual = others.get(subject.modality.name, ("trigger_inversion", "whole_image_inversion", "bounded_inversion"))
    known = available().get(method)  # a name from a report, which may come from anywhere
    again = {"scan-again": (method,)} if known is not None and subject.modality.name in known.card.modalities else {}
    return {**again, "scan-triggers": usual}


def _leave_alone(before: Scanned) -> str:
    """Why the model is not touched; empty where it is."""
    if before.verdict == Verdict.NO_EVIDENCE.value:
        return f"the scan found nothing, and the model is left as it is: {before.reason}"
    if before.verdict == Verdict.INCONCLUSIVE.value:
        return f"the scan could not say whether there is a backdoor, and the model is left as it is: {before.reason}"
    return ""


# ---------------------------------------------------------------- the status
def conditions(proven: proof.Proven, after: Scanned | None, drop: float, limit: float) -> tuple[Check, ...]:
    """What `removed` asks for, one by one."""
    if after is None:
        return ()
    triggers, worked = proven.triggers, [t for t in proven.triggers if t.before.success.low > portfolio.GONE]
    said = {True: "a recovered trigger works on the model as it came", False: "no recovered trigger works on the model "
            "as it came, so that nothing can be shown to be gone"}[bool(worked)]
    left = max(triggers, key=lambda t: t.after.success.high, default=None)
    searched = [t for t in triggers if math.isfinite(t.after.searched_size)]
    back = [t for t in triggers if t.after.ease >= portfolio.NATURAL
            and t.after.searched_size < GROWN * t.before.searched_size]
    easier = [r for r in proven.reactivations if r.easier]
    p = "no p-value" if after.p_value is None else f"p = {after.p_value:.3g}"
    return (
        Check("trigger", True if worked else None, said),
        Check("rescan", {Verdict.NO_EVIDENCE.value: True, Verdict.SUSPICIOUS.value: False}.get(after.verdict),
              f"a scan of the result says {after.verdict} ({p})"
              + ("" if after.verdict == Verdict.NO_EVIDENCE.value else f": {after.reason}")),
        Check("success", None if left is None else left.after.success.high < portfolio.GONE,
              "no trigger was recovered" if left is None else
              f"{left.goal}: the recovered trigger works on {shown(left.after.success)} of held-out samples"),
        Check("search", None if not searched else not back,
              f"{back[0].goal}: a new search finds a trigger of {back[0].after.searched_size:.3g} {back[0].unit}; "
              f"other classes need {back[0].after.natural_size:.3g}" if back else
              "a new search finds nothing unnatural" if searched else "there is nothing to search anew" if not triggers
              else "no new search is known for such triggers"),
        Check("accuracy", drop <= limit, f"clean accuracy falls by {100 * drop:.1f} points of {100 * limit:g} allowed"),
        Check("re-activation", None if not proven.reactivations else not easier,
              f"{easier[0].goal}: {easier[0].shots} poisoned samples bring {shown(easier[0].success)} back, a "
              f"meaningless trigger {shown(easier[0].control)}" if easier else
              "a few poisoned samples bring the trigger back no more easily than they plant a meaningless one"
              if proven.reactivations else "could not be tested"),
    )


def shown(found: Rate) -> str:
    return f"{found.value:.0%} [{found.low:.0%}, {found.high:.0%}]" if found.tried else "none"


def decide(before: Scanned, checks: Sequence[Check], proven: proof.Proven, cause: str, found_nothing: bool,
           best: portfolio.Attempt | None, was: Rate, now: Rate, harmed: bool) -> tuple[Status, str]:
    """The status by its rule (docs/repair.md), and one sentence. harmed: surely more accuracy is lost than may be."""
    accuracy = f"clean accuracy {now.value:.1%}, before {was.value:.1%}"
    if cause:
        return Status.NOTHING if found_nothing else Status.INCONCLUSIVE, cause
    if found_nothing:  # what was recovered then is what every model can be pushed with
        said = "no repair was harmless enough: the model is as it was" if best is None else accuracy
        return Status.NOTHING, f"the scan had found nothing; repaired all the same: {said}"
    if best is None:
        return Status.NOT_REMOVED, "no repair gave a result that keeps the clean accuracy: the model is as it was"
    told = {c.name: c for c in checks}
    if told["trigger"].passed is None:
        return Status.INCONCLUSIVE, f"{told['trigger'].said}; {told['rescan'].said}; {accuracy}"
    head = "; ".join(f"{t.goal}: the recovered {t.family} trigger{_said(t)} works on {shown(t.after.success)} of "
                     f"held-out samples, before {t.before.success.value:.0%}" for t in proven.triggers[:2])
    failed = [c for c in checks if c.passed is not True]
    if not failed:
        return Status.REMOVED, f"{head}; {accuracy}; {told['rescan'].said}"
    fell = all(t.after.success.high < t.before.success.low and t.after.success.value <= t.before.success.value / 2
               for t in proven.triggers if t.before.success.low > portfolio.GONE)
    status = Status.REDUCED if fell and not harmed else Status.NOT_REMOVED
    return status, f"{head}; {accuracy}; but {failed[0].said}"


def _said(change: TriggerChange) -> str:
    return f" “{change.shown}”" if change.shown else ""


def _facts(subject: Subject, data: Samples) -> dict[str, Any]:
    p = subject.provenance
    return {"path": p.path, "format": p.format, "sha256": p.sha256, "notes": list(p.notes),
            "modality": subject.modality.name, "classes": subject.classes, "class_names": list(subject.class_names),
            "input_shape": list(subject.input_shape), "samples": len(data),
            "parameters": sum(q.numel() for q in subject.module.parameters())}


def _notes(parts: Split, data: Samples, seen: Samples | None) -> tuple[str, ...]:
    notes = list(data.notes)
    if not data.labelled:
        notes.append("no labels: clean accuracy is agreement with the model as it came")
    if len(parts.prove) < 40:
        notes.append(f"{len(parts.prove)} samples to prove with: even a trigger that never works cannot be shown to "
                     f"work on less than 10 %; 40 are needed")
    known = int(overlap(parts.prove, seen).sum())
    if known:
        notes.append(f"{known} of {len(parts.prove)} samples to prove with were among those that triggers were "
                     "searched with: pass more for figures on fresh ones")
    return tuple(notes)
