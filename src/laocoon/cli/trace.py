"""`laocoon trace`: which training samples does an answer come from?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laocoon.cli.errors import note
from laocoon.cli.options import Option, command, options_of, values_of
from laocoon.cli.sift_run import places
from laocoon.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from laocoon.core.subject import Subject
    from laocoon.files.images_source import DataOptions

TRACE = options_of("laocoon.cli.trace_options", "TraceOptions", "Trace")
MODEL = options_of(
    "laocoon.modalities.raw", "ModelOptions", "How the model wants its images (else taken from the file)"
)
DATA = options_of("laocoon.files.images_source", "DataOptions", "How the data are read (else found out)")
OPTIONS: tuple[Option, ...] = (*TRACE, *MODEL, *DATA)
KINDS = "a folder per class, Parquet, CSV, JSON lines, .npz or a hub id."
DOC = """Go from an input that fired at run time back to the training samples that planted it.

Exit codes: 0 no source found, 1 a source was found, 2 usage or failure."""


def run(values: Mapping[str, Any]) -> None:
    """The command. Whatever can be checked is checked before anything is loaded."""
    from laocoon.cli.trace_options import TraceOptions

    dataset = str(values["dataset"])
    told = TraceOptions(**values_of(TRACE, values))
    if told.model is None or told.input is None:
        raise InputError("--model and --input are needed.", "Pass the model, and the input that fired in it.")
    if not 0 < told.fdr < 1:
        raise InputError(f"--fdr is {told.fdr}.", "It is a rate between 0 and 1, for instance 0.05.")
    outputs = places({"json": told.json, "unlearn": told.unlearn}, (dataset, told.model, told.input))

    from rich.console import Console

    from laocoon.files.images_source import DataOptions
    from laocoon.files.open import load_model
    from laocoon.files.training_set import training_set
    from laocoon.modalities.raw import ModelOptions
    from laocoon.render.sift_tables import to_json, unlearn_list
    from laocoon.render.sift_terminal import show_trace
    from laocoon.verdict.trace import trace as traced

    reading = DataOptions(**values_of(DATA, values))
    subject = load_model(told.model, architecture=told.architecture, options=ModelOptions(**values_of(MODEL, values)))
    with training_set(dataset, subject, options=reading) as data:
        for text in data.notes:
            note(text)
        if data.modality.name == "image":
            fired = _picture(told.input, data.shape, reading.fit)
        else:
            fired = _record(told.input, subject, reading)
        report = traced(data, subject, fired, fdr=told.fdr, label=told.label, seed=told.seed, device=told.device)
    report = replace(report, data={**report.data, "path": Path(dataset).name or dataset})
    show_trace(report, Console(stderr=outputs.to_stdout), written=outputs.written)
    if "json" in outputs.files:
        outputs.write("json", to_json(report, ascii_only=outputs.files["json"] == "-"))
    if "unlearn" in outputs.files:
        outputs.write("unlearn", unlearn_list(report))
    sys.stdout.flush()
    raise typer.Exit(report.exit_code)


def _picture(path: str, shape: tuple[int, ...], fit: str) -> Tensor:
    from laocoon.files.images_decode import LARGEST_BYTES, Frame, decode

    place = Path(path)
    if not place.is_file():
        raise InputError(f"the input {path} is not a file.", "Pass one picture.")
    with place.open("rb") as file:
        return decode(file.read(LARGEST_BYTES + 1), place.name, Frame((shape[0], shape[1], shape[2]), fit))


def _record(path: str, subject: Subject, reading: DataOptions) -> Tensor:
    """The first text or row of a file."""
    import torch

    from laocoon.files.training_rows import table_of, texts_of

    found = (texts_of if subject.modality.name == "text" else table_of)(path, subject, reading, labelled=False)
    if len(found.stored) > 1:
        note(f"{path} holds {len(found.stored)} samples: the first is traced")
    one = torch.from_numpy(found.stored[0])
    return one if one.is_floating_point() else one.long()


trace = command(run, OPTIONS, {"dataset": f"The training set: {KINDS}"}, DOC)
