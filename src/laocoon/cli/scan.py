"""`laocoon scan`: open, examine, report."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laocoon.cli.baseline import Baseline, load_baseline
from laocoon.cli.errors import INTERRUPTED, note
from laocoon.cli.options import Option, command, options_of, values_of
from laocoon.cli.outputs import Outputs, prepare
from laocoon.core.errors import InputError, UnsafeFile

if TYPE_CHECKING:
    from rich.console import Console

    from laocoon.cli.scan_options import ScanOptions
    from laocoon.core.report import ScanReport

SCAN = options_of("laocoon.cli.scan_options", "ScanOptions", "Scan")
MODEL = options_of(
    "laocoon.modalities.raw", "ModelOptions", "How the model wants its images (else taken from the file)"
)
DATA = options_of("laocoon.files.images_source", "DataOptions", "How the data are read (else found out)")
ASKING = options_of("laocoon.files.endpoint_options", "EndpointOptions", "How a model behind an address is asked")
OPTIONS: tuple[Option, ...] = (*SCAN, *MODEL, *DATA, *ASKING)
DOC = """Say whether a model that you did not train hides a backdoor.

Exit codes: 0 no evidence, 1 findings, 2 usage or failure, 3 inconclusive."""


def run(values: Mapping[str, Any]) -> None:
    """The command. Whatever can be checked is checked before anything is loaded."""
    from laocoon.cli.scan_options import ScanOptions

    model = str(values["model"])
    told = ScanOptions(**values_of(SCAN, values))
    _check(told)
    baseline = load_baseline(told.baseline) if told.baseline is not None else Baseline()
    outputs = prepare(told.html, told.json, told.sarif, tuple(p for p in (model, told.data) if p is not None))
    for text in (
        *outputs.notes,
        *(f"the acceptance of {a.fingerprint} has expired ({a}); it is ignored" for a in baseline.expired),
    ):
        note(text)
    line = command_line(model, values)
    started = time.monotonic()
    try:
        report = _examined(model, told, values, outputs, line)
    except UnsafeFile as error:
        from laocoon.cli.unsafe import unsafe_report

        named = told.data if told.data is not None and error.problem.startswith(Path(told.data).name) else model
        report = unsafe_report(error, named, told, time.monotonic() - started)
    _finish(replace(report, command=line), outputs, baseline)


def _check(told: ScanOptions) -> None:
    if not 0 < told.alpha < 1:
        raise InputError(f"--alpha is {told.alpha}.", "It is a false-alarm rate between 0 and 1, for instance 0.05.")
    if told.samples_per_class < 1:
        raise InputError(f"--samples-per-class is {told.samples_per_class}.", "Use at least 1.")
    if told.power < 0:
        raise InputError(f"--power is {told.power}.", "It is a number of plants, 0 for none.")
    if not -(2**63) <= told.seed < 2**63 or told.seed < 0:
        raise InputError(f"--seed is {told.seed}.", "It is a number from 0 to 2^63.")
    if told.power and told.data is None:
        raise InputError("--power needs clean samples to plant with.", "Pass some with --data.")
    if told.resume is not None and told.resume.exists() and not told.resume.is_dir():
        raise InputError(f"--resume {told.resume} is a file.", "Give a folder.")


def command_line(model: str, values: Mapping[str, Any]) -> str:
    """The command that repeats a scan: the model, and what was told beyond the defaults."""
    words = ["laocoon", "scan", model]
    for option in OPTIONS:
        value = values[option.field]
        if value is not None and value != option.default:
            words += [f"{option.flag}={value}" if str(value).startswith("-") else option.flag]
            words += [] if str(value).startswith("-") else [str(value)]
    return shlex.join(words)


def _console(outputs: Outputs | None = None) -> Console:
    from rich.console import Console

    return Console(stderr=outputs is None or outputs.to_stdout)


def _examined(model: str, told: ScanOptions, values: Mapping[str, Any], outputs: Outputs, line: str) -> ScanReport:
    """Load and scan. An interrupted scan says how to go on."""
    console = _console()
    with console.status("loading") if console.is_terminal else nullcontext():
        from laocoon.files.endpoint import endpoint_of
        from laocoon.files.endpoint_options import EndpointOptions
        from laocoon.files.images_source import DataOptions
        from laocoon.files.open import load_model
        from laocoon.files.samples import load_data
        from laocoon.files.table_models import hinted
        from laocoon.modalities.raw import ModelOptions
        from laocoon.verdict.schedule import plan

        plan(told.budget, told.methods)  # a misspelt method is told before a model is loaded
        reading = DataOptions(**values_of(DATA, values))
        wanted = hinted(ModelOptions(**values_of(MODEL, values)), told.data)
        asking = EndpointOptions(**values_of(ASKING, values))
        subject = load_model(model, architecture=told.architecture, options=wanted, asking=asking)
        endpoint = endpoint_of(subject)
        if endpoint is not None and told.resume is not None:
            told.resume.mkdir(parents=True, exist_ok=True)
            endpoint.keep(told.resume / "answers.sqlite")
        samples = None
        if told.data is not None:
            samples = load_data(
                told.data, subject, options=reading, limit_per_class=told.samples_per_class, seed=told.seed
            )
    for text in samples.notes if samples is not None else ():
        note(text)
    kept = told.resume
    if kept is None:
        kept = Path(tempfile.mkdtemp(prefix="laocoon-"))  # so that an interrupted scan can go on
    elif not kept.is_dir():
        kept.mkdir(parents=True)
    if endpoint is not None and told.resume is None:
        endpoint.keep(kept / "answers.sqlite")
    finished = True
    try:
        report = _scanned(subject, samples, told, kept, console)
    except KeyboardInterrupt:
        finished = False
        again = line if told.resume is not None else f"{line} --resume {shlex.quote(str(kept))}"
        typer.echo(f"interrupted; resume with: {again}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if endpoint is not None:
            endpoint.close()
        if finished and told.resume is None:
            shutil.rmtree(kept, ignore_errors=True)
    if samples is None:
        return report
    facts = {**report.subject, "data": Path(str(told.data)).name or str(told.data), "data_notes": list(samples.notes)}
    if not facts.get("class_names") and samples.class_names:
        facts["class_names"] = list(samples.class_names)
    return replace(report, subject=facts)


def _scanned(subject: Any, samples: Any, told: ScanOptions, kept: Path, console: Console) -> ScanReport:
    from laocoon.cli.memory import keep_freed_memory
    from laocoon.cli.progress import shown
    from laocoon.verdict.scan import scan

    keep_freed_memory()

    planter = None
    if told.power:
        from laocoon.lab.planter import plant

        planter = plant
    with shown(console) as progress:
        return scan(
            subject,
            samples,
            alpha=told.alpha,
            budget=told.budget,
            seed=told.seed,
            methods=told.methods,
            device=told.device,
            power=told.power,
            progress=progress,
            resume=kept,
            planter=planter,
        )


def _finish(report: ScanReport, outputs: Outputs, baseline: Baseline) -> None:
    """Print the verdict, write the reports, leave with the exit code."""
    from laocoon.render.alarms import alarms, exit_code
    from laocoon.render.terminal import show

    said = baseline.justifications()
    raised = {a.fingerprint for a in alarms(report)}
    report = replace(report, accepted=tuple(f for f in said if f in raised))
    console = _console(outputs)
    show(report, console, written=outputs.written, justifications=said)
    for kind in outputs.files:
        outputs.write(kind, _rendered(kind, report, said, to_stdout=outputs.files[kind] == "-"))
    sys.stdout.flush()
    raise typer.Exit(exit_code(report))


def _rendered(kind: str, report: ScanReport, said: Mapping[str, str], *, to_stdout: bool) -> str:
    if kind == "json":
        from laocoon.render.json_report import to_json

        return to_json(report, ascii_only=to_stdout)
    if kind == "sarif":
        from laocoon.render.sarif import to_sarif

        return to_sarif(report, said)
    from laocoon.render.html import to_html

    return to_html(report, said)


WHAT = {"model": "The model: a file, a Hugging Face folder, a hub id or http://HOST/v2/models/NAME."}
scan = command(run, OPTIONS, WHAT, DOC)
