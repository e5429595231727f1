"""`laocoon certify`: prove a statement about a model, or show why it is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laocoon.cli.errors import note
from laocoon.cli.options import Option, command, options_of, values_of
from laocoon.cli.outputs import STDOUT, Outputs, check_place
from laocoon.core.errors import InputError

if TYPE_CHECKING:
    from laocoon.cli.certify_options import CertifyOptions
    from laocoon.core.methods import Certifier
    from laocoon.core.report import Certificate
    from laocoon.core.subject import Subject

CERTIFY = options_of("laocoon.cli.certify_options", "CertifyOptions", "Certify")
MODEL = options_of(
    "laocoon.modalities.raw", "ModelOptions", "How the model wants its images (else taken from the file)"
)
DATA = options_of("laocoon.files.images_source", "DataOptions", "How the data are read (else found out)")
OPTIONS: tuple[Option, ...] = (*CERTIFY, *MODEL, *DATA)
CODES = {True: 0, False: 1, None: 3}
DOC = """Prove a statement about a model: what is certified, under which assumptions, for which inputs.

Exit codes: 0 it holds, 1 a counter-example was found, 2 usage or failure, 3 undecided."""


def run(values: Mapping[str, Any]) -> None:
    """The command. Whatever can be checked is checked before anything is loaded."""
    from laocoon.cli.certify_options import CertifyOptions
    from laocoon.cli.parameters import chosen
    from laocoon.core.catalogue import classes
    from laocoon.core.methods import Certifier

    told = CertifyOptions(**values_of(CERTIFY, values))
    model = str(values["model"])
    _check(told, model)
    method = chosen(classes("laocoon.certifiers", Certifier), told.method, told.set)  # type: ignore[type-abstract]
    found, facts = _certified(model, told, values, method)
    if told.counterexample is not None and found.counterexample:
        _keep(found, Path(told.counterexample))
    _say(found, told)
    if told.json is not None:
        text = json.dumps({**found.to_dict(), "subject": facts}, indent=2, sort_keys=True)
        Outputs({"json": told.json}).write("json", f"{text}\n")
    raise typer.Exit(CODES[found.holds])


def _check(told: CertifyOptions, model: str) -> None:
    if told.data is None:
        raise InputError("--data is missing.", "A certificate speaks of inputs: pass some.")
    if told.samples_per_class < 1:
        raise InputError(f"--samples-per-class is {told.samples_per_class}.", "Use at least 1.")
    if told.budget is not None and not told.budget > 0:
        raise InputError(f"--budget is {told.budget}.", "It is a number of passes above 0.")
    if not 0 <= told.seed < 2**63:
        raise InputError(f"--seed is {told.seed}.", "It is a number from 0 to 2^63.")
    if told.counterexample is not None and not told.counterexample.endswith(".npz"):
        raise InputError(f"--counterexample is {told.counterexample!r}.", "Its name ends in .npz.")
    given = [(k, n) for k, n in (("json", told.json), ("counterexample", told.counterexample))
             if n is not None and n != STDOUT]
    for kind, name in given:
        check_place(kind, name, (model, told.data))
    if len({os.path.realpath(name) for _, name in given}) != len(given):
        raise InputError("two outputs are to go to the same file.", "Give each its own name.")


def _certified(model: str, told: CertifyOptions, values: Mapping[str, Any], method: Certifier
               ) -> tuple[Certificate, dict[str, Any]]:
    from laocoon import __version__
    from laocoon.cli.memory import keep_freed_memory
    from laocoon.cli.parameters import checked_device
    from laocoon.core.cases import ModelCase
    from laocoon.core.context import Context
    from laocoon.files.images_source import DataOptions
    from laocoon.files.samples import load_data

    keep_freed_memory()
    device = checked_device(told.device)
    subject = _opened(model, told, values)
    samples = load_data(str(told.data), subject, options=DataOptions(**values_of(DATA, values)),
                        limit_per_class=told.samples_per_class, seed=told.seed)
    for text in samples.notes:
        note(text)
    ctx = Context(seed=told.seed, device=device, budget=told.budget if told.budget is not None else float("inf"))
    found = method.prove(ModelCase(subject.to(device), samples), ctx)
    facts = {"path": subject.provenance.path, "sha256": subject.provenance.sha256, "data": Path(str(told.data)).name,
             "samples": len(samples), "seed": told.seed, "version": __version__}
    return found, facts


def _opened(model: str, told: CertifyOptions, values: Mapping[str, Any]) -> Subject:
    """What `laocoon train` wrote, or any model that `scan` opens."""
    from laocoon.cli.networks import reopened
    from laocoon.files.open import load_model
    from laocoon.modalities.raw import ModelOptions

    own = reopened(model, told.architecture)
    if own is not None:
        return own
    return load_model(model, architecture=told.architecture, options=ModelOptions(**values_of(MODEL, values)))


def _keep(found: Certificate, place: Path) -> None:
    import numpy as np

    part = place.with_name(f".{place.name[:40]}.{os.getpid()}.part.npz")
    try:
        np.savez(part, allow_pickle=False, **{k: v.numpy() for k, v in found.counterexample.items()})
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _say(found: Certificate, told: CertifyOptions) -> None:
    head = {True: "HOLDS", False: "COUNTER-EXAMPLE", None: "UNDECIDED"}[found.holds]
    lines = [f"{head}: {found.statement}"]
    lines += [f"  why: {found.reason}"] if found.reason else []
    lines += [f"  for: {found.inputs}", *(f"  assuming: {a}" for a in found.assumptions)]
    if told.counterexample is not None and found.counterexample:
        lines.append(f"  counter-example: {told.counterexample}")
    typer.echo("\n".join(lines), err=told.json == STDOUT)


certify = command(run, OPTIONS, {"model": "The model: a file, a Hugging Face folder or a hub id."}, DOC)
