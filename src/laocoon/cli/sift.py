"""`laocoon sift`: is a training set poisoned, and which samples?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laocoon.cli.errors import note
from laocoon.cli.options import Option, command, options_of, values_of
from laocoon.cli.outputs import Outputs, free_default
from laocoon.cli.sift_run import DEFAULT_NETWORKS, factory, places
from laocoon.core.errors import InputError

if TYPE_CHECKING:
    from laocoon.cli.sift_options import SiftOptions
    from laocoon.core.cases import Samples
    from laocoon.core.sift_report import SiftReport
    from laocoon.files.training_set import TrainingSet

SIFT = options_of("laocoon.cli.sift_options", "SiftOptions", "Sift")
MODEL = options_of(
    "laocoon.modalities.raw", "ModelOptions", "How the model wants its images (else taken from the file)"
)
DATA = options_of("laocoon.files.images_source", "DataOptions", "How the data are read (else found out)")
OPTIONS: tuple[Option, ...] = (*SIFT, *MODEL, *DATA)
KINDS = "a folder per class, Parquet, CSV, JSON lines, .npz or a hub id."
DOC = """Say whether a training set is poisoned, and which samples are.

Exit codes: 0 no evidence, 1 findings, 2 usage or failure, 3 inconclusive."""


def run(values: Mapping[str, Any]) -> None:
    """The command. Whatever can be checked is checked before anything is loaded."""
    from laocoon.cli.sift_options import SiftOptions

    dataset = str(values["dataset"])
    told = SiftOptions(**values_of(SIFT, values))
    _check(told)
    page = None if told.html == "none" else told.html or free_default("sift.html")
    inputs = tuple(p for p in (dataset, told.model, told.trusted) if p is not None)
    outputs = places({"html": page, "json": told.json, "scores": told.scores, "keep": told.keep}, inputs)
    report, names = _sifted(dataset, told, values, outputs)
    _finish(replace(report, command=_line(dataset, values)), names, outputs)


def _check(told: SiftOptions) -> None:
    for name, value in (("alpha", told.alpha), ("fdr", told.fdr)):
        if not 0 < value < 1:
            raise InputError(f"--{name} is {value}.", "It is a rate between 0 and 1, for instance 0.05.")
    if told.model is not None and told.train is not None:
        raise InputError("--model and --train are both given.", "Pass the model if it was trained on the data.")
    if told.most < 1000:
        raise InputError(f"--most is {told.most}.", "Use at least 1000.")
    if told.budget is not None and not told.budget > 0:
        raise InputError(f"--budget is {told.budget}.", "It is a number of passes above 0.")
    if not 0 <= told.seed < 2**63:
        raise InputError(f"--seed is {told.seed}.", "It is a number from 0 to 2^63.")


def _line(dataset: str, values: Mapping[str, Any]) -> str:
    """The command that repeats this."""
    words = ["laocoon", "sift", dataset]
    for option in OPTIONS:
        value = values[option.field]
        if value is not None and value != option.default:
            words += [f"{option.flag}={value}"] if str(value).startswith("-") else [option.flag, str(value)]
    return shlex.join(words)


def _sifted(
    dataset: str, told: SiftOptions, values: Mapping[str, Any], outputs: Outputs
) -> tuple[SiftReport, list[str]]:
    from rich.console import Console

    from laocoon.cli.memory import keep_freed_memory
    from laocoon.cli.progress import shown
    from laocoon.files.images_source import DataOptions
    from laocoon.files.open import load_model
    from laocoon.files.table_models import hinted
    from laocoon.files.training_set import training_set
    from laocoon.modalities.raw import ModelOptions
    from laocoon.verdict.data_statistics import chosen
    from laocoon.verdict.sift import sift

    chosen(told.methods)  # a misspelt method is told before anything is loaded
    console = Console(stderr=True)
    reading = DataOptions(**values_of(DATA, values))
    options = hinted(ModelOptions(**values_of(MODEL, values)), dataset)
    keep_freed_memory()
    with ExitStack() as open_now:
        with console.status("reading the data") if console.is_terminal else nullcontext():
            subject = None
            if told.model is not None:
                subject = load_model(told.model, architecture=told.architecture, options=options)
            data = open_now.enter_context(training_set(dataset, subject, options=reading, shape=_shape(options)))
            trusted = None
            if told.trusted is not None:
                trusted = _trusted(told.trusted, data, subject, reading)
        for text in data.notes:
            note(text)
        network = told.train or DEFAULT_NETWORKS[data.modality.name]
        progress = open_now.enter_context(shown(console))
        report = sift(
            data, subject=subject, untrained=factory(network, data), architecture=network,
            trusted=trusted, alpha=told.alpha, fdr=told.fdr, seed=told.seed, methods=told.methods, most=told.most,
            budget=told.budget if told.budget is not None else float("inf"), device=told.device, progress=progress)
        names = [data.name(i) for i in range(len(data))] if "scores" in outputs.files or "keep" in outputs.files else []
    facts = {**report.data, "path": Path(dataset).name or dataset}
    return replace(report, data=facts), names


def _shape(options: Any) -> tuple[int, int, int] | None:
    """Where no model says what it wants, --size and --image-channels do."""
    if options.size is None:
        return None
    side = max(options.size)
    return options.image_channels or 3, side, side


def _trusted(path: str, data: TrainingSet, subject: Any, reading: Any) -> Samples:
    """All trusted samples, at most 4,000, as the training set's are."""
    import torch

    from laocoon.files.training_set import training_set

    with training_set(path, subject, options=reading, like=data) as known:
        if known.class_names and data.class_names and known.class_names != data.class_names:
            raise InputError(
                "the trusted samples have other classes than the training set.", "Name their folders alike."
            )
        if known.digest() == data.digest():
            raise InputError("the trusted samples are the training set itself.", "They must come from elsewhere.")
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:4000]
        return known.samples(order.sort().values)


def _finish(report: SiftReport, names: list[str], outputs: Outputs) -> None:
    """Print the verdict, write the reports, leave with the exit code."""
    from rich.console import Console

    from laocoon.render.sift_tables import keep_list, to_json, write_scores
    from laocoon.render.sift_terminal import show

    show(report, Console(stderr=outputs.to_stdout), written=outputs.written)
    if "html" in outputs.files:
        from laocoon.render.sift_html import to_html

        outputs.write("html", to_html(report))
    if "json" in outputs.files:
        outputs.write("json", to_json(report, ascii_only=outputs.files["json"] == "-"))
    if "keep" in outputs.files:
        outputs.write("keep", keep_list(report, names))
    if "scores" in outputs.files:
        write_scores(report, names, Path(outputs.files["scores"]))
    sys.stdout.flush()
    raise typer.Exit(report.exit_code)


sift = command(run, OPTIONS, {"dataset": f"The training set: {KINDS}"}, DOC)
