"""The stress test of a defence: search an attack's parameters for those that it sees least, and show its worst case.

Optuna (TPE) proposes parameters; each proposal is planted, judged, and shown to the defence like any other model.
Minimised is the defence's suspicion. What does not reach the wanted attack success, or costs more clean accuracy than
allowed, ranks behind everything that does, by how much it falls short. A proposal that crashes, or on which the defence
gives no answer, is a failed trial: no answer is not evasion. One seed serves all trials, so that they differ in the
parameters alone; the best is then planted again under fresh seeds, because the minimum of many draws flatters.

Suspicion of a detector: over its rules (or the one named) the largest z of the model's statistic against clean models
trained under seeds of their own; of the whole scan: its fused score, which is such a z already.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.core.methods import Attack
from laocoon.files.wording import printable
from laocoon.lab.defence import Defence, WholeScan
from laocoon.lab.plan import SCAN
from laocoon.lab.search_space import Choice, Space, space_of
from laocoon.lab.search_trial import Bounds, Eye, Ground, Scale, Tried, said
from laocoon.lab.trial import code_of

SCHEMA = "laocoon-search/1"
BEHIND = 1e4  # what breaks a constraint ranks behind any suspicion
OTHERS, FRESH = 10_000, 20_000  # seeds of the clean models and of the confirmations, counted from the search's own


@dataclass(frozen=True)
class WorstCase:
    """A defence's worst case under one attack."""

    attack: str
    defence: str
    rule: str  # of the detector, alone; empty: all of them
    ground: Mapping[str, Any]
    space: Mapping[str, str]  # what was searched, in words
    bounds: Bounds
    clean: tuple[float, ...]  # suspicion of the clean models, each against the others
    published: Tried  # the attack as it came
    best: Tried | None  # the least suspicious attack; None where nothing kept the constraints
    confirmed: tuple[Tried, ...]  # the best under fresh seeds
    tried: tuple[Tried, ...]

    def evades(self, one: Tried | None) -> bool:
        """Not SUSPICIOUS to the scan; to a detector, no more suspicious than the most suspicious clean model."""
        if one is None or one.failure or not one.feasible:
            return False
        return one.verdict != "SUSPICIOUS" if one.verdict else one.suspicion <= max(self.clean)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data; what is not a number becomes None."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = _plain(own | {"bounds": asdict(self.bounds)})
        return {"schema": SCHEMA, **plain, "evades": {
            "published": self.evades(self.published), "best": self.evades(self.best),
            "confirmed": sum(map(self.evades, self.confirmed)), "of": len(self.confirmed)}}


def search(attack: Attack, defence: Defence, ground: Ground, bounds: Bounds, storage: Path | None = None, *,
           rule: str = "", own: Space | None = None, fixed: frozenset[str] = frozenset(),
           progress: Callable[[Tried], None] = lambda tried: None) -> WorstCase:
    """Look for the parameters that the defence sees least; goes on where the storage stopped.

    Args:
        storage: an SQLite file, made where there is none; without it, nothing is kept.
        rule: of a detector, alone.
        own: ranges that go before those that follow from the attack; fixed: parameters that stay as they are.
        progress: called with every trial that ends.
    """
    space = space_of(attack, ground.at(bounds.seed).plan, own, fixed)
    determined = {"schema": SCHEMA, "attack": attack.card.name, "parameters": asdict(attack),  # type: ignore[call-overload]
                  "code": code_of(type(attack)), "defence": _called(defence), "settings": asdict(defence),  # type: ignore[arg-type]
                  "examiner": code_of(type(defence)),  # type: ignore[arg-type]
                  "rule": rule, "ground": ground.facts(),
                  "space": {k: [type(v).__name__, asdict(v)] for k, v in space.items()},
                  "bounds": {k: v for k, v in asdict(bounds).items() if k not in ("trials", "seconds", "confirm")}}
    name = hashlib.sha256(json.dumps(determined, sort_keys=True, default=str).encode()).hexdigest()[:16]
    with _study(storage, name, bounds) as study:
        start = time.monotonic()
        scale = _scale(study, attack, defence, ground, bounds, rule)
        eye = Eye(attack, defence, rule, bounds, scale)
        published = _kept(study, "published", lambda: eye.tried(ground, -1, {}, bounds.seed))
        progress(published)
        while len(_finished(study)) < bounds.trials and time.monotonic() - start < bounds.seconds:
            progress(_proposed(study, space, eye, ground))
        tried = _finished(study)
        able = [t for t in (published, *tried) if t.feasible and not t.failure]
        best = min(able, key=lambda t: t.suspicion, default=None)
        until = start + bounds.seconds
        confirmed = () if best is None else tuple(_confirmed(study, eye, ground, best, until, progress))
    return WorstCase(attack.card.name, _called(defence), rule, ground.facts(),
                     {k: v.worded() for k, v in space.items()}, bounds, scale.each(rule), published, best,
                     confirmed, tried)


def _called(defence: Defence) -> str:
    return SCAN if isinstance(defence, WholeScan) else defence.card.name


@contextmanager
def _study(storage: Path | None, name: str, bounds: Bounds) -> Iterator[Any]:
    """Optuna's study of this name; the file may hold others."""
    try:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise MissingExtra("an attack search needs Optuna, which is not installed.",
                           "Install it: pip install 'laocoon[lab]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    broken = BrokenFile(f"{printable(storage or '')} is no storage of a search.", "Name a new file, or the right one.")
    if storage is not None:
        if storage.is_dir() or any(c in str(storage) for c in "?#%"):
            raise InputError(f"the storage {printable(storage)} cannot be a file.", "Name one without ?, # and %.")
        if storage.exists() and storage.stat().st_size:
            with storage.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise broken
        storage.parent.mkdir(parents=True, exist_ok=True)
    kept: Any = None
    try:
        kept = optuna.storages.RDBStorage(f"sqlite:///{storage}") if storage else optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=kept, study_name=name, load_if_exists=True, direction="minimize")
        # A resumed search must not propose again what it proposed first.
        study.sampler = optuna.samplers.TPESampler(
            seed=bounds.seed + len(study.trials), n_startup_trials=max(3, min(10, bounds.trials // 3)))
        yield study
    except (SQLAlchemyError, json.JSONDecodeError) as error:
        raise broken from error
    finally:
        if isinstance(kept, optuna.storages.RDBStorage):
            kept.engine.dispose()


def _kept(study: Any, key: str, make: Callable[[], Tried]) -> Tried:
    """What the study holds under this key, made where it does not."""
    if key not in study.user_attrs:
        study.set_user_attr(key, asdict(make()))
    return _read(study.user_attrs[key])


def _scale(study: Any, attack: Attack, defence: Defence, ground: Ground, bounds: Bounds, rule: str) -> Scale:
    """The clean models' statistics: trained and examined once for each study, each kept as it comes."""
    found = []
    for k in range(bounds.clean):
        key = f"clean-{k}"
        if key not in study.user_attrs:
            place = ground.at(bounds.seed + OTHERS + k)
            study.set_user_attr(key, said(place.examined(place.twin(attack), defence)))
        held = study.user_attrs[key]
        if not isinstance(held, dict) or not all(isinstance(v, int | float) for v in held.values()):
            raise BrokenFile(f"the search's storage holds {printable(held, 60)} as a clean model.", "Start a new one.")
        found.append({str(r): float(v) for r, v in held.items()})
    rules = sorted({r for one in found for r in one if r})
    if rule and rule not in rules:
        raise InputError(f"{_called(defence)} has no rule {printable(rule, 60)!r} on clean models.",
                         f"It has {', '.join(rules) or 'none'}.")
    return Scale(tuple(found))


def _proposed(study: Any, space: Space, eye: Eye, ground: Ground) -> Tried:
    from optuna.trial import TrialState

    trial = study.ask()
    parameters: dict[str, Any] = {}
    for name, d in space.items():
        if isinstance(d, Choice):
            parameters[name] = trial.suggest_categorical(name, list(d.values))
        elif d.whole:
            parameters[name] = trial.suggest_int(name, int(d.low), int(d.high), log=d.log)
        else:
            parameters[name] = trial.suggest_float(name, d.low, d.high, log=d.log)
    tried = eye.tried(ground, trial.number, parameters, eye.bounds.seed)
    trial.set_user_attr("tried", asdict(tried))
    if tried.failure:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, tried.suspicion if tried.feasible else BEHIND + tried.shortfall(eye.bounds))
    return tried


def _confirmed(study: Any, eye: Eye, ground: Ground, best: Tried, until: float,
               progress: Callable[[Tried], None]) -> Iterator[Tried]:
    """The best again, under seeds that it was not chosen on."""
    for k in range(eye.bounds.confirm):
        key, seed = f"confirmed-{best.number}-{k}", eye.bounds.seed + FRESH + k
        if key not in study.user_attrs:
            if time.monotonic() >= until:
                return
            study.set_user_attr(key, asdict(eye.tried(ground, best.number, best.parameters, seed)))
        found = _read(study.user_attrs[key])
        progress(found)
        yield found


def _finished(study: Any) -> tuple[Tried, ...]:
    """Trials with an answer, good or bad; those that a kill cut off do not count."""
    done = (t.user_attrs for t in study.trials if t.state.is_finished())
    return tuple(_read(held["tried"]) for held in done if "tried" in held)


def _read(held: Any) -> Tried:
    wrong = BrokenFile(f"the search's storage holds {printable(str(held), 60)} as a trial.", "Start a new one.")
    try:
        found = Tried(**held)
    except TypeError:
        raise wrong from None
    numbers = (found.success, found.accuracy, found.accuracy_loss, found.suspicion, found.seconds)
    if not (isinstance(found.parameters, dict) and all(isinstance(v, int | float) for v in numbers)
            and isinstance(found.failure, str) and isinstance(found.verdict, str)):
        raise wrong
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Tried):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(worst: WorstCase, most: int = 10) -> str:
    """The worst case in words, and the least suspicious trials."""
    who = f"{worst.defence}{f' ({worst.rule})' if worst.rule else ''}"
    low, high = min(worst.clean), max(worst.clean)
    lines = [
        f"{worst.attack} against {who}: {worst.ground['data']}, {worst.ground['architecture']}; "
        f"{len(worst.tried)} trials, {sum(bool(t.failure) for t in worst.tried)} failed, "
        f"{sum(t.feasible for t in worst.tried)} kept attack success ≥ {worst.bounds.success:.0%} and a loss of clean "
        f"accuracy ≤ {worst.bounds.accuracy_loss:.1%}.",
        f"Suspicion of {len(worst.clean)} clean models: {low:.2f} to {high:.2f}.", "",
        "| | parameters | attack success | accuracy loss | suspicion | verdict | evades |",
        "|---|---|---|---|---|---|---|",
        _row("as published", worst.published, worst)]
    ranked = sorted((t for t in worst.tried if t.feasible and not t.failure), key=lambda t: t.suspicion)
    lines += [_row(f"trial {t.number}", t, worst) for t in ranked[:most]]
    lines += [_row(f"best, seed {t.seed}", t, worst) for t in worst.confirmed]
    if worst.best is not None and len(worst.confirmed) < worst.bounds.confirm:
        lines += ["", f"The best was planted again under {len(worst.confirmed)} of {worst.bounds.confirm} fresh seeds: "
                      "the time limit came first. Run the search again to go on."]
    if worst.best is None:
        lines += ["", "No parameters kept the constraints: nothing was found that this defence would have to see."]
    return "\n".join(lines) + "\n"


def _row(name: str, one: Tried, worst: WorstCase) -> str:
    shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in one.parameters.items()) or "–"
    if one.failure:
        return f"| {name} | {shown} | – | – | – | {printable(one.failure, 120).replace('|', '/')} | – |"
    verdict = one.verdict + (f", p = {one.p_value:.3f}" if one.p_value is not None else "")
    attacks = "" if one.feasible else " (no attack)"
    return (f"| {name} | {shown} | {one.success:.1%}{attacks} | {one.accuracy_loss:+.1%} | {one.suspicion:.2f} | "
            f"{verdict or '–'} | {'yes' if worst.evades(one) else 'no'} |")
