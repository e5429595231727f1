"""The scan: examine, fuse, calibrate, verify, decide."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

from laocoon import __version__
from laocoon.core.candidate import Candidate
from laocoon.core.cases import ModelCase, Samples, informed
from laocoon.core.context import Context, Progress
from laocoon.core.errors import BudgetSpent, InputError
from laocoon.core.goal import ClassGoal, CollapseGoal
from laocoon.core.report import Evidence, Finding, Power, ScanReport, Verdict, noun
from laocoon.core.subject import Subject
from laocoon.files.wording import printable, visible
from laocoon.modalities.encoder import encodes
from laocoon.recipes.conformal import binomial_interval
from laocoon.verdict.asked import allowance, facts, only_asked, qualified, reference_name
from laocoon.verdict.calibrate import Profile, Reference, calibrate, group_of, per_class, shipped, similar_power
from laocoon.verdict.control import verify
from laocoon.verdict.examination import Examined, Prepared, made_ready, run
from laocoon.verdict.examples import examples
from laocoon.verdict.fuse import CONTRAST, Fused, Scale, contrasted, covariates, fuse, promise, statistics
from laocoon.verdict.schedule import Schedule, plan
from laocoon.verdict.traits import traits, wiring

# A planter puts a known backdoor into a copy of the subject: (subject, samples, seed) -> plants. Given from above,
# because a defence never imports an attack.
Planter = Callable[[Subject, Samples, int, Context], Iterable["Plant"]]
# Without one of these a scan may accuse, but never say NO_EVIDENCE.
LUCK = 0.01  # p-value of being right as often by chance, from which on a model is taken to be at chance
CORE_METHODS = ("trigger_inversion", "sparse_rs", "text_inversion", "tabular_query_inversion", "decree",
                "text_collapse")


class Plant:
    """A positive control: a copy of the subject with a known backdoor that took."""

    def __init__(self, kind: str, subject: Subject, goal: ClassGoal, success: float) -> None:
        self.kind, self.subject, self.goal, self.success = kind, subject, goal, success


def scan(subject: Subject, data: Samples | None = None, *, alpha: float = 0.05, budget: str | int = "default",
         seed: int = 0, methods: Sequence[str] | None = None, device: str = "cpu", power: int = 0,
         progress: Progress | None = None, resume: Path | None = None, planter: Planter | None = None,
         reference: Reference | None = None) -> ScanReport:
    """Say whether there is evidence of a backdoor in a model.

    Args:
        subject: the model, from `load_model`.
        data: clean samples, from `load_data`; None runs only the methods that need none.
        alpha: false-alarm rate, in (0, 1), held on the reference models.
        budget: `quick`, `default`, `deep`, or a number of sample-level forward-backward passes.
        seed: of all randomness; the same seed gives the same canonical report.
        methods: names to run instead of the budget's, or with a leading '-' to leave out.
        power: how many positive controls to plant into copies of this model (needs `planter`).
        progress: called with (method, share done, what was found).
        resume: folder where each method's result is kept and from which an interrupted scan goes on.

    Raises:
        InputError: an argument cannot be used.
    """
    if not (isinstance(alpha, int | float) and 0 < alpha < 1):
        raise InputError(f"alpha is {alpha!r}.", "It is a false-alarm rate between 0 and 1, for instance 0.05.")
    if power > 0 and encodes(subject.modality.name):
        raise InputError("--power plants backdoors into classifiers; this is an encoder.", "Leave --power out.")
    start = time.monotonic()
    schedule = plan(str(budget), methods, subject.modality.name, only_asked=only_asked(subject))
    where = _device(device)
    subject = informed(subject, data).to(where)
    if data is not None:
        data = data.to(where)
    root = Context(seed=seed, device=where, budget=allowance(subject, data, schedule.passes, power))
    if progress is not None:
        root.progress = progress
    reference = reference or shipped(reference_name(subject))
    if resume is not None:
        _check_resume(resume, subject, data, schedule, seed)
    prepared = made_ready(subject, data, seed)
    case = ModelCase(subject, prepared.fit, prepared.held, graph=subject.graph)
    try:
        cause = _at_chance(subject, data, prepared)
    except BudgetSpent as error:
        cause = f"the model is no better than chance on the labelled samples, and why cannot be asked: {error.problem}"
    examined = Examined((), ()) if cause else run(schedule, case, root, resume)
    group = _group(subject, prepared)
    known = traits(subject)
    fused, rules = _fused(examined, known, subject.classes, reference, group)
    profile = Profile(subject.modality.name, subject.classes,
                      per_class(subject.modality.name, prepared.given, subject.classes), prepared.accuracy,
                      wiring(subject))
    p, calibration = calibrate(fused, rules, profile, reference, f"{subject.modality.name}/{schedule.budget}")
    ordered, evidence = _evidence(subject, prepared, examined, fused, root)
    told = examples(subject, ordered, prepared.held, root)
    table = similar_power(rules, profile, reference, alpha) if p is not None else ()
    if power > 0 and planter is not None and prepared.fit is not None and not cause:
        table += _positive_control(subject, prepared, schedule, planter, power, alpha, reference, rules, root)
    seen = covariates(statistics(examined.reports, subject.classes) | known, subject.classes, group)
    findings = tuple(sorted((f for r in examined.reports for f in r.findings),
                            key=lambda f: (-f.conclusive, -_weight(f, reference, seen, group))))
    verdict, reason = _decide(p, alpha, calibration.references, cause, examined, findings, evidence, table, schedule,
                              calibration.note, subject.modality.name)
    verdict, reason = qualified(subject, verdict, reason)
    return ScanReport(
        verdict=verdict, reason=reason, p_value=p, score=fused.score, alpha=alpha,
        target_classes=_targets(fused, evidence, findings), findings=findings, evidence=evidence, power=table,
        calibration=calibration, class_scores=() if encodes(subject.modality.name) else fused.classes,
        reports=examined.reports,
        examined=tuple(m for r in examined.reports for m in r.examined),
        skipped={r.method: r.reason for r in examined.reports if r.skipped},
        misses={m.card.name: m.card.misses for m in schedule.methods if m.card.misses},
        subject=_facts(subject, prepared), budget=schedule.budget, spent=root.spent,
        seconds=time.monotonic() - start, seed=seed, version=__version__, candidates=ordered, examples=told,
        pictures=_pictures(subject, prepared))


def _pictures(subject: Subject, prepared: Prepared) -> torch.Tensor | None:
    """A few held-out images; None where inputs are none."""
    if prepared.held is None or not subject.modality.name.startswith("image"):
        return None
    return prepared.held.inputs[::max(1, len(prepared.held) // 16)][:16].cpu()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device is {name!r}.", "Use cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {name!r} but no CUDA device is usable here.", "Use --device cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device is {name!r}.", "Use cpu, cuda or cuda:N.")
    return device


def _check_resume(folder: Path, subject: Subject, data: Samples | None, schedule: Schedule, seed: int) -> None:
    """A resume folder belongs to one model, one set of samples and one seed."""
    digest = hashlib.sha256(subject.fingerprint().encode())
    if data is not None:
        digest.update(data.inputs.cpu().numpy().tobytes())
        digest.update(data.labels.cpu().numpy().tobytes())
    facts = {"subject": digest.hexdigest(), "seed": seed, "version": __version__}
    marker = folder / "scan.json"
    if marker.exists():
        try:
            old = json.loads(marker.read_text())
        except ValueError:
            old = None
        if old != facts:
            raise InputError(f"the resume folder {folder} holds another scan (model, samples, seed or version differ).",
                             "Choose an empty folder.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(facts))


def _at_chance(subject: Subject, data: Samples | None, prepared: Prepared) -> str:
    """The likely cause when the model cannot tell the labelled samples apart, else empty."""
    if data is None or prepared.accuracy is None:
        return ""
    n = prepared.given
    right = round(prepared.accuracy * n)
    if binomtest(right, n, 1 / subject.classes, alternative="greater").pvalue < LUCK:
        return ""
    if (1 / subject.classes) ** n >= LUCK:  # even all right could be luck
        return f"{n} labelled sample{'s' * (n > 1)} cannot show that the model works: no verdict; pass more with --data"
    said = f"the model is right on {right} of {n} labelled samples, no better than chance: no verdict"
    trials: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "its input range is probably 0-255: try --input-range 0-255": lambda x: x * 255,
        "its input range is probably -1 to 1: try --input-range -1-1": lambda x: x * 2 - 1,
        "its pixels are probably inverted (dark on light)": lambda x: 1 - x,
    }
    if data.inputs.dim() == 4 and data.inputs.shape[1] == 3:
        trials["its channels are probably BGR: try --channels BGR"] = lambda x: x.flip(1)
    if data.inputs.is_floating_point():
        for cause, change in trials.items():
            with torch.no_grad():
                guess = torch.cat([subject.outputs(change(x)).logits.argmax(-1) for x in data.inputs.split(256)])
            hits = int((guess == data.labels).sum())
            if binomtest(hits, n, 1 / subject.classes, alternative="greater").pvalue < 1e-6 and hits > 2 * right:
                return f"{said}; {cause} ({hits} of {n} right)"
    with torch.no_grad():
        guess = torch.cat([subject.outputs(x).logits.argmax(-1) for x in data.inputs.split(256)])
    if len(guess.unique()) == 1:
        cause = "check --input-range, --mean and --std" if data.inputs.dim() == 4 else "check the data"
        return f"{said}; it answers class {int(guess[0])} to everything: {cause}"
    mapped = 0
    for label in data.labels.unique().tolist():
        mapped += int(torch.bincount(guess[data.labels == label]).max())
    if mapped > max(0.6 * n, right + 0.2 * n) and n >= 4 * subject.classes:
        return f"{said}; the classes are probably numbered in another order: check the names of the class folders"
    if data.inputs.dim() != 4:
        return f"{said}; check that the data belong to the model, and the order of the classes"
    return f"{said}; check the data, --input-range, --mean, --std, --channels and the order of the classes"


def _group(subject: Subject, prepared: Prepared) -> str:
    """Which references' scales apply; grey pictures stored in three channels are grey."""
    group = group_of(subject.modality.name, subject.input_shape)
    if group == "colour" and prepared.fit is not None and bool((prepared.fit.inputs.diff(dim=1) == 0).all()):
        return "grey"
    return group


def _fused(examined: Examined, known: Mapping[str, list[float | None]], classes: int, reference: Reference,
           group: str) -> tuple[Fused, frozenset[str]]:
    table = contrasted(statistics(examined.reports, classes))
    incomplete = {r.method for r in examined.reports if not r.complete}
    usable = {rule: v for rule, v in table.items() if rule.split(".")[0] not in incomplete}
    if usable and not set(usable) & set(reference.scales):
        # Nothing was ever measured on clean models: raw statistics order models, but no p-value can follow.
        raw = {rule: Scale(0.0, 1.0) for rule in usable if not rule.endswith(CONTRAST)}
        return fuse(usable, raw, classes, upper=math.inf), frozenset()
    fused = fuse({**usable, **known}, reference.scales, classes, group)
    return fused, frozenset(usable) & frozenset(reference.scales)


def _weight(finding: Finding, reference: Reference, known: Mapping[str, float], group: str) -> float:
    scale = reference.scales.get(finding.rule)
    if scale is None or scale.counts(group) <= 0 or not math.isfinite(finding.score):
        return -math.inf
    return scale.standard(finding.score, known, group)


def _evidence(subject: Subject, prepared: Prepared, examined: Examined, fused: Fused,
              root: Context) -> tuple[tuple[Candidate, ...], tuple[Evidence, ...]]:
    """Verify the candidates of the most suspected goals, best first, at most three."""
    if prepared.fit is None or not examined.candidates:
        return (), ()
    held = prepared.held if prepared.held is not None else prepared.fit

    def worth(c: Candidate) -> float:
        if isinstance(c.goal, CollapseGoal) and c.goal.natural:
            return 0.0  # a control
        targets = c.goal.targets if isinstance(c.goal, ClassGoal) else ()
        return promise(fused, f"{c.method}.{c.family.name}", c.success, targets)

    picked: dict[str, Candidate] = {}
    for candidate in sorted(examined.candidates, key=worth, reverse=True):
        if candidate.goal.describe() not in picked and worth(candidate) > 0:
            picked[candidate.goal.describe()] = candidate
        if len(picked) == 3:
            break
    ctx = Context(seed=root.seed, device=root.device, batch=root.batch)
    judged = []
    for candidate in picked.values():
        try:
            judged.append((candidate, verify(subject, candidate, examined.candidates, prepared.fit, held, ctx)))
        except (BudgetSpent, InputError):  # an endpoint that may not, or cannot, be asked any more
            break
    root.spent += ctx.spent
    return tuple(c for c, _ in judged), tuple(e for _, e in judged)


def _targets(fused: Fused, evidence: Sequence[Evidence], findings: Sequence[Finding]) -> tuple[int, ...]:
    named = [t for f in findings if f.conclusive for t in f.target_classes]
    return tuple(dict.fromkeys([*named, *fused.target_classes]))


def _decide(p: float | None, alpha: float, references: int, cause: str, examined: Examined,
            findings: Sequence[Finding], evidence: Sequence[Evidence], table: Sequence[Power], schedule: Schedule,
            note: str, modality: str) -> tuple[Verdict, str]:
    wanted = {"text": "text_inversion", "tabular": "tabular_query_inversion", "image_encoder": "decree",
              "text_encoder": "text_collapse"}.get(modality, CORE_METHODS[0])
    proof = next((f for f in findings if f.conclusive), None)
    if proof is not None:
        return Verdict.SUSPICIOUS, f"{proof.where}: {proof.explanation}"
    if cause:
        return Verdict.INCONCLUSIVE, cause
    if p is None:
        stopped = next((r.reason for r in examined.reports if r.method in CORE_METHODS and r.reason), "")
        unmeasured = f"no method that was measured on clean references was run; run {wanted} too"
        return Verdict.INCONCLUSIVE, f"the score cannot be judged: {note or stopped or unmeasured}"
    if alpha < 1 / (references + 1):
        return Verdict.INCONCLUSIVE, (f"alpha {alpha:g} is finer than {references} references can resolve "
                                      f"({1 / (references + 1):.3g})")
    if p <= alpha:
        return Verdict.SUSPICIOUS, _accusation(findings, evidence, noun(modality))
    broken = [r for r in examined.reports
              if (not r.complete and not r.skipped) or (r.skipped and " failed: " in r.reason)]
    if broken:
        return Verdict.INCONCLUSIVE, f"{broken[0].method} did not finish: {broken[0].reason}"
    ran = {m for r in examined.reports for m in r.examined}
    absent = [r for r in examined.reports if r.method in CORE_METHODS and r.method not in ran]
    if absent or not ran & set(CORE_METHODS):
        return Verdict.INCONCLUSIVE, (absent[0].reason if absent else
                                      f"{wanted} was not run, so that absence of evidence says little")
    core = [row for row in table if row.core]
    found, tried = sum(row.found for row in core), sum(row.tried for row in core)
    low = binomial_interval(found, tried)[0]
    if low < 0.5:
        return Verdict.INCONCLUSIVE, (f"known backdoors of the core kinds would have been found in {found} of {tried} "
                                      f"cases (lower bound {low:.0%}): too little power to say more")
    return Verdict.NO_EVIDENCE, (f"no evidence of a backdoor; {found} of {tried} planted backdoors of the core kinds "
                                 f"are found at this budget")


def _accusation(findings: Sequence[Finding], evidence: Sequence[Evidence], samples: str) -> str:
    best = max(evidence, key=lambda e: e.low, default=None)
    first = evidence[0] if evidence and evidence[0].low >= 0.5 else best
    if first is not None and first.success >= 0.5:
        control = "" if math.isnan(first.natural_control) else f"; natural control {first.natural_control:.0%}"
        words = f" (“{printable(visible(first.shown), 80)}”)" if first.shown else ""
        return (f"{first.goal}: a {first.family} trigger of {first.size:.3g} {first.unit}{words} sends "
                f"{first.success:.0%} "
                f"[{first.low:.0%}, {first.high:.0%}] of held-out {samples} there{control}")
    top = findings[0] if findings else None
    if top is None:
        return "the model is unlike the clean references"
    return f"{top.where}: {top.explanation}; no trigger was recovered that works on held-out {samples}"


def _positive_control(subject: Subject, prepared: Prepared, schedule: Schedule, planter: Planter, count: int,
                      alpha: float, reference: Reference, rules: frozenset[str], root: Context) -> tuple[Power, ...]:
    """Plant, scan again with the same methods, count. Only plants that took are handed in."""
    assert prepared.fit is not None
    found: dict[str, list[bool]] = {}
    for k in range(count):
        root.progress("positive control", k / count, f"planting {k + 1} of {count}")
        ctx = Context(seed=root.seed + 1000 + k, device=root.device)
        for plant in planter(subject, prepared.fit, root.seed + 1000 + k, ctx):
            case = ModelCase(plant.subject, prepared.fit, prepared.held)
            quiet = Context(seed=root.seed, device=root.device, budget=schedule.passes)
            again = run(schedule, case, quiet)
            root.spent += quiet.spent
            fused, _ = _fused(again, traits(subject), subject.classes, reference, _group(subject, prepared))
            p = reference.null(fused.score, rules, wiring(subject)).p
            named = len(plant.goal.targets) > 1 or plant.goal.targets[0] in fused.target_classes[:1]
            found.setdefault(plant.kind, []).append(p <= alpha and named)
    return tuple(Power(kind, sum(hits), len(hits), *binomial_interval(sum(hits), len(hits)),
                       "positive control (fine-tuned plants, easier than trained-in ones)", True)
                 for kind, hits in sorted(found.items()))


def _facts(subject: Subject, prepared: Prepared) -> dict[str, Any]:
    provenance = subject.provenance
    return {"path": provenance.path, "format": provenance.format, "sha256": provenance.sha256,
            "notes": list(provenance.notes), "modality": subject.modality.name, "classes": subject.classes,
            "class_names": list(subject.class_names), "input_shape": list(subject.input_shape),
            "parameters": sum(p.numel() for p in subject.module.parameters()),
            "capabilities": sorted(c.value for c in subject.capabilities), "samples": prepared.given,
            "accuracy": prepared.accuracy,
            "samples_fit": 0 if prepared.fit is None else len(prepared.fit),
            "samples_held": 0 if prepared.held is None else len(prepared.held), **facts(subject)}



