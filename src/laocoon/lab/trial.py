"""What a plan consists of: trials, each determined by its specification, and the digest of that.

A twin is a clean model, trained once for each subject and seed. An implant is a planted model, judged against its twin.
A defence is one defence looking at one of them. A trial waits for those that it needs.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from laocoon import __version__
from laocoon.core.methods import Attack
from laocoon.lab.datasets import Dataset
from laocoon.lab.plan import AttackPart, DefencePart, Experiment, SubjectPart, attack_of, defence_of
from laocoon.lab.transfer import Maker

SCHEMA = "laocoon-trial/1"  # raise it when the recipe or the way of judging changes: every digest changes with it

Kind = Literal["twin", "implant", "defence"]


@dataclass(frozen=True)
class Trial:
    """One unit of work. `specification` is JSON-able and holds everything that determines the result."""

    kind: Kind
    specification: Mapping[str, Any]
    needs: tuple[str, ...]  # digests of trials that must be done before

    @cached_property
    def digest(self) -> str:
        text = json.dumps(self.specification, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A trial with what its plan says of it, which does not determine the result."""

    trial: Trial
    data: str
    architecture: str
    seed: int
    attack: str  # the attack's name; empty for clean subjects
    label: str
    defence: str
    defence_label: str
    expected: Mapping[str, Any]
    honest: str = ""  # whose honest teacher a clean student is built on, where it is

    def title(self) -> str:
        planted = self.label or (f"clean student, honest {self.honest}" if self.honest else "clean")
        looked = f" × {self.defence_label}" if self.defence else ""
        return f"{self.data} {self.architecture} seed {self.seed} {planted}{looked}"


@lru_cache(maxsize=256)
def code_of(method: type) -> str:
    """Digest of a method's own module: what it computes, not what is said about it.

    Comments, docstrings and the card do not count; recipes that it calls do not either (see SCHEMA).
    """
    module = inspect.getmodule(method)
    try:
        tree = ast.parse(inspect.getsource(module) if module else "")
    except (OSError, TypeError, SyntaxError):
        return __version__  # a plug-in without source
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not _said(n)] or [ast.Pass()]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def _said(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return True
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "card"


def fingerprint(dataset: Dataset) -> str:
    """Digest of a data set's samples and labels."""
    digest = hashlib.sha256()
    for tensor in (dataset.train_inputs, dataset.train_labels, dataset.test_inputs, dataset.test_labels):
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def entries(experiment: Experiment, prints: Mapping[str, str]) -> list[Entry]:
    """Every trial of a plan, those that others need first, seed by seed, so that a part of it is balanced.

    prints: data set -> fingerprint.
    """
    found = []
    for seed in experiment.seeds:
        for subject in experiment.subjects:
            found += list(_cell(experiment, subject, seed, prints[subject.data]))
    unique: dict[str, Entry] = {}
    for entry in found:
        unique.setdefault(entry.trial.digest, entry)
    return list(unique.values())


def _cell(experiment: Experiment, subject: SubjectPart, seed: int, data_print: str) -> Iterator[Entry]:
    """One subject under one seed."""
    base = {"schema": SCHEMA, "data": subject.data, "data_digest": data_print, "architecture": subject.architecture,
            "recipe": subject.recipe(), "seed": seed, "test_samples": experiment.test_samples,
            "given_per_class": experiment.given_per_class,
            **({} if experiment.device == "cpu" else {"device": experiment.device})}

    def entry(trial: Trial, part: AttackPart | None = None, defence: DefencePart | None = None,
              honest: str = "") -> Entry:
        return Entry(trial, subject.data, subject.architecture, seed, part.name if part else "",
                     part.title if part else "", defence.name if defence else "", defence.title if defence else "",
                     part.expected.model_dump(exclude_none=True, mode="json") if part and not defence else {}, honest)

    def defended(examined: Trial, part: AttackPart | None, honest: str = "") -> Iterator[Entry]:
        for defence in experiment.defences:
            yield entry(_defence(base, examined, defence), part, defence, honest)

    twin = Trial("twin", {**base, "kind": "twin"}, ())
    yield entry(twin)
    yield from defended(twin, None)
    for part in experiment.attacks:
        if part.data and subject.data not in part.data:
            continue
        attack = attack_of(part)
        facts = {"name": part.name, "parameters": asdict(attack), "code": code_of(type(attack))}  # type: ignore[call-overload]
        against = twin
        if isinstance(attack, Maker):  # its clean twin is built on an honest teacher of the same recipe
            against = Trial("twin", {**base, "kind": "twin", "maker": facts}, ())
            yield entry(against, honest=part.title)
            yield from defended(against, None, part.title)
        extent = experiment.measured()
        planted = Trial("implant", {**base, "kind": "implant", "attack": facts, "target": part.target,
                                    "extent": asdict(extent) if extent else None, "twin": against.digest},
                        (against.digest,))
        yield entry(planted, part)
        yield from defended(planted, part)


def _defence(base: Mapping[str, Any], examined: Trial, part: DefencePart) -> Trial:
    made = defence_of(part)
    parameters = asdict(made)  # type: ignore[call-overload, arg-type]
    kind: type = type(made)
    facts = {"name": part.name, "parameters": parameters, "code": code_of(kind), "graph": part.graph}
    return Trial("defence", {**base, "kind": "defence", "defence": facts, "subject": examined.digest},
                 (examined.digest,))


def attack_in(facts: Mapping[str, Any]) -> Attack:
    """The attack of a specification."""
    return attack_of(AttackPart(name=facts["name"], parameters=dict(facts["parameters"])))
