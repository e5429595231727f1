"""`laocoon train`: train on data that may hold poison."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laocoon.cli.errors import note
from laocoon.cli.options import Option, command, options_of, values_of
from laocoon.cli.outputs import STDOUT, Outputs, check_place
from laocoon.core.errors import InputError

if TYPE_CHECKING:
    from laocoon.cli.train_options import TrainOptions
    from laocoon.core.cases import Samples
    from laocoon.core.methods import Trained, Trainer
    from laocoon.core.subject import Modality, Subject

TRAIN = options_of("laocoon.cli.train_options", "TrainOptions", "Train")
DATA = options_of("laocoon.files.images_source", "DataOptions", "How the data are read (else found out)")
SIZE = tuple(o for o in options_of("laocoon.modalities.raw", "ModelOptions", "Images")
             if o.field in ("size", "image_channels"))
OPTIONS: tuple[Option, ...] = (*TRAIN, *SIZE, *DATA)
MOST_MEMORY = 8 * 2**30  # bytes of training samples
UNDECIDED = 3
KINDS = "a folder per class, Parquet, CSV, JSON lines, .npz or a hub id."
DOC = """Train a model on data that may be poisoned, by a method that believes some samples less than others.

Exit codes: 0 trained, 2 usage or failure, 3 the method could not train (the reason is told)."""


def run(values: Mapping[str, Any]) -> None:
    """The command. Whatever can be checked is checked before anything is loaded."""
    from laocoon.cli.parameters import chosen
    from laocoon.cli.train_options import TrainOptions
    from laocoon.core.catalogue import classes
    from laocoon.core.methods import Trainer

    told = TrainOptions(**values_of(TRAIN, values))
    dataset = str(values["dataset"])
    _check(told, dataset)
    method = chosen(classes("laocoon.trainers", Trainer), told.method, told.set)  # type: ignore[type-abstract]
    trained, facts = _trained(dataset, told, values, method)
    report = {"schema": "laocoon-train/1", **facts, "report": trained.report.to_dict(),
              "command": _line(dataset, values)}
    if trained.subject is None:
        typer.echo(f"not trained: {trained.report.reason}", err=True)
    else:
        _write(trained.subject, told, facts)
        facts = report = {**report, "model": Path(str(told.out)).name, "sha256": _digest(str(told.out))}
        low, high = facts["held_interval"]
        out = sys.stderr if told.json == STDOUT else sys.stdout
        said = "".join(f"; {k}: {v}" for k, v in facts["facts"].items() if k not in ("trainer", "samples"))
        print(f"{told.method}: {facts['held_accuracy']:.1%} ({low:.1%} to {high:.1%}) of {facts['held']} held-out "
              f"samples classified as labelled{said}\nwritten: {told.out}", file=out)
    if told.json is not None:
        Outputs({"json": told.json}).write("json", json.dumps(report, indent=2, sort_keys=True) + "\n")
    raise typer.Exit(0 if trained.subject is not None else UNDECIDED)


def _check(told: TrainOptions, dataset: str) -> None:
    if told.out is None:
        raise InputError("--out is missing.", "Name the file for the model: -o model.safetensors.")
    if Path(told.out).suffix not in (".safetensors", ".onnx"):
        raise InputError(f"--out is {told.out!r}.", "Its name ends in .safetensors or .onnx.")
    if told.method == "dpa" and told.out.endswith(".onnx"):
        raise InputError("an ensemble is written as .safetensors.", "`laocoon certify` opens it again.")
    if not 0 < told.held < 0.9:
        raise InputError(f"--held is {told.held}.", "It is a share between 0 and 0.9, for instance 0.1.")
    if told.budget is not None and not told.budget > 0:
        raise InputError(f"--budget is {told.budget}.", "It is a number of passes above 0.")
    if not 0 <= told.seed < 2**63:
        raise InputError(f"--seed is {told.seed}.", "It is a number from 0 to 2^63.")
    places = [("out", told.out), ("json", told.json), ("keep", None if told.keep is None else str(told.keep))]
    given = [(kind, name) for kind, name in places if name is not None and name != STDOUT]
    for kind, name in given:
        check_place(kind, name, (dataset,))
    if len({os.path.realpath(name) for _, name in given}) != len(given):
        raise InputError("two outputs are to go to the same file.", "Give each its own name.")


def _trained(dataset: str, told: TrainOptions, values: Mapping[str, Any], method: Trainer
             ) -> tuple[Trained, dict[str, Any]]:
    """The model, and what the report says of it beside the method's own report."""
    import torch

    from laocoon import __version__
    from laocoon.cli.memory import keep_freed_memory
    from laocoon.cli.networks import maker
    from laocoon.cli.parameters import checked_device
    from laocoon.cli.sift_run import DEFAULT_NETWORKS, factory
    from laocoon.core.cases import DataCase
    from laocoon.core.context import Context
    from laocoon.files.images_source import DataOptions
    from laocoon.files.training_set import training_set

    keep_freed_memory()
    device, size = checked_device(told.device), values_of(SIZE, values)
    shape = None if size["size"] is None else (size["image_channels"] or 3, *size["size"])
    with ExitStack() as open_now:
        reading = DataOptions(**values_of(DATA, values))
        data = open_now.enter_context(training_set(dataset, options=reading, shape=shape))
        for text in data.notes:
            note(text)
        needed = 4 * len(data) * math.prod(data.shape)
        if needed > MOST_MEMORY:
            raise InputError(f"{len(data)} samples of {list(data.shape)} take {needed} bytes of memory.",
                             "Use smaller images: --size.")
        image = data.modality.name == "image"
        name = told.architecture or ("resnet_small" if image else DEFAULT_NETWORKS[data.modality.name])
        if data.modality.name == "text" and str(told.out).endswith(".onnx"):
            raise InputError("a network of texts is written as .safetensors, with its vocabulary.", "Rename --out.")
        apart = torch.tensor([_drawn(data.stored[i].tobytes(), told) for i in range(len(data))])
        held, rows = data.samples(apart.nonzero().flatten()), (~apart).nonzero().flatten()
        if not len(held) or len(rows) < 2:
            raise InputError(f"{len(data)} samples are too few to hold {told.held:g} of them out.", "Bring more.")
        suspects = data.samples(rows)
        untrained = maker(name, data.shape, data.classes) if image else factory(name, data)
        assert untrained is not None  # only of images that are no squares
        untrained(Context())  # what cannot be built is told before training
        ctx = Context(seed=told.seed, device=device, budget=told.budget if told.budget is not None else float("inf"))
        case = DataCase(suspects, data.classes, untrained=untrained, modality=data.modality.name)
        trained = method.train(case, ctx)
        if told.keep is not None and trained.subject is not None:
            kept = rows if trained.kept is None else rows[trained.kept]
            Outputs({"keep": str(told.keep)}).write("keep", "".join(f"{data.rows[i]}\n" for i in kept.tolist()))
        facts: dict[str, Any] = {
            "method": told.method, "params": asdict(method), "architecture": name,  # type: ignore[call-overload]
            "modality": data.modality.name, "data": Path(dataset).name or dataset, "data_sha256": data.digest(),
            "samples": len(suspects),
            "kept": None if trained.kept is None else len(trained.kept), "shape": list(data.shape),
            "classes": data.classes, "class_names": list(data.class_names), "held": len(held), "seed": told.seed,
            "version": __version__}
        if trained.subject is not None:
            facts |= {"facts": dict(trained.subject.provenance.metadata), **_accuracy(trained.subject, held)}
        return trained, facts


def _drawn(sample: bytes, told: TrainOptions) -> bool:
    """Held out or not, by a sample's own values: one that is inserted must not move another, or no count of poisoned
    samples could be certified."""
    drawn = hashlib.sha256(f"held out {told.seed} ".encode() + sample).digest()
    return int.from_bytes(drawn[:8], "big") < told.held * 2**64


def _accuracy(subject: Subject, held: Samples) -> dict[str, Any]:
    from laocoon.recipes.conformal import binomial_interval
    from laocoon.recipes.fit import predictions

    right = int((predictions(subject.module, held.inputs) == held.labels).sum())
    return {"held_accuracy": right / len(held), "held_interval": list(binomial_interval(right, len(held)))}


def _write(subject: Subject, told: TrainOptions, facts: Mapping[str, Any]) -> None:
    """Weights with what is needed to build the network again, or the network itself; whole or not at all."""
    from safetensors.torch import save_file

    from laocoon.files.trained import metadata
    from laocoon.recipes.voting import Votes

    place = Path(str(told.out))
    part = place.with_name(f".{place.name[:40]}.{os.getpid()}.part{place.suffix}")
    members = len(subject.module.members) if isinstance(subject.module, Votes) else 0
    own = {"architecture": facts["architecture"], "shape": facts["shape"], "classes": facts["classes"],
           "members": members, "method": told.method, "seed": told.seed}
    try:
        if place.suffix == ".onnx":
            from laocoon.lab.export import to_onnx

            to_onnx(subject.module, subject.input_shape, part, own, _columns(subject.modality))
        else:
            state = {k: v.contiguous() for k, v in subject.module.state_dict().items()}
            save_file(state, part, metadata=metadata(own, subject.modality))
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _columns(modality: Modality) -> dict[str, str]:
    """What an ONNX file says of a table: the names of its columns, the words that codes stand for."""
    from laocoon.modalities.tabular import Tabular

    if not isinstance(modality, Tabular):
        return {}
    words = {c: list(w) for c, w in zip(modality.columns, modality.words, strict=False) if w}
    return {"columns": json.dumps(list(modality.columns)), "categories": json.dumps(words)}


def _digest(path: str) -> str:
    from laocoon.files.open import digest

    return digest(Path(path))


def _line(dataset: str, values: Mapping[str, Any]) -> str:
    """The command that repeats this."""
    words = ["laocoon", "train", dataset]
    for option in OPTIONS:
        value = values[option.field]
        if value is not None and value != option.default:
            words += [option.flag, str(value)]
    return shlex.join(words)


train = command(run, OPTIONS, {"dataset": f"The training set: {KINDS}"}, DOC)
