"""`laocoon repair`: remove a backdoor from a copy of a model, prove it, and write the copy as the model came."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laocoon.cli.errors import INTERRUPTED, note
from laocoon.cli.options import Option, command, options_of, values_of
from laocoon.cli.outputs import STDOUT, Outputs, prepare
from laocoon.core.errors import InputError
from laocoon.files.wording import first_line, printable

if TYPE_CHECKING:
    from rich.console import Console

    from laocoon.cli.repair_options import RepairOptions
    from laocoon.core.candidate import Candidate
    from laocoon.core.repaired import RepairReport, Scanned
    from laocoon.core.subject import Subject
    from laocoon.files.save import Destination

REPAIR = options_of("laocoon.cli.repair_options", "RepairOptions", "Repair")
MODEL = options_of(
    "laocoon.modalities.raw", "ModelOptions", "How the model wants its images (else taken from the file)"
)
DATA = options_of("laocoon.files.images_source", "DataOptions", "How the data are read (else found out)")
OPTIONS: tuple[Option, ...] = (*REPAIR, *MODEL, *DATA)
SCANNED_EACH = 20  # samples a class of `laocoon scan`, so that its answer is the one that is known
LARGEST_REPORT = 256 * 2**20
MOST_GIVEN = 5  # triggers that are all taken as they are given
DOC = """Remove a backdoor from a copy of a model, and prove that it is gone.

Exit codes: 0 removed or nothing to remove, 1 reduced or not removed, 2 usage or failure, 3 inconclusive."""


def run(values: Mapping[str, Any]) -> None:
    """The command. Whatever can be checked is checked before anything is loaded."""
    from laocoon.cli.repair_options import RepairOptions

    model = str(values["model"])
    told = RepairOptions(**values_of(REPAIR, values))
    _check(told)
    named = (model, told.data, told.out, *(str(p) for p in (told.scan, told.candidates) if p is not None))
    if told.html is None:
        told = replace(told, html=_free())
    outputs = prepare(told.html, told.json, None, tuple(p for p in named if p is not None))
    line = command_line(model, values)
    report = _repaired(model, told, values, line, _console(outputs))
    _finish(replace(report, command=line), outputs)


def _free() -> str:
    """repair.html, or the next free name."""
    return next((n for n in ("repair.html", *(f"repair-{k}.html" for k in range(1, 100))) if not Path(n).exists()),
                "none")


def _check(told: RepairOptions) -> None:
    if told.data is None:
        raise InputError("a repair needs clean samples.", "Pass some with --data.")
    if told.out is None:
        raise InputError("--out is missing.", "Name the file for the repaired model: --out repaired.onnx.")
    if not 0 < told.alpha < 1:
        raise InputError(f"--alpha is {told.alpha}.", "It is a false-alarm rate between 0 and 1, for instance 0.05.")
    if not 0 <= told.max_drop < 100:
        raise InputError(f"--max-drop is {told.max_drop}.", "It is a number of points of accuracy, for instance 2.")
    if told.samples_per_class < 1:
        raise InputError(f"--samples-per-class is {told.samples_per_class}.", "Use at least 1; 100 serve well.")
    if told.passes is not None and told.passes < 1:
        raise InputError(f"--passes is {told.passes}.", "Use at least 1, or leave it out.")
    if told.stages not in range(1, 6):
        raise InputError(f"--stages is {told.stages}.", "It is a number from 1 to 5.")
    if not 0 <= told.seed < 2**63:
        raise InputError(f"--seed is {told.seed}.", "It is a number from 0 to 2^63.")
    if told.resume is not None and told.resume.exists() and not told.resume.is_dir():
        raise InputError(f"--resume {told.resume} is a file.", "Give a folder.")
    for flag, place in (("--scan", told.scan), ("--candidates", told.candidates)):
        if place is not None and not place.is_file():
            raise InputError(f"{flag} {printable(place)} is no file.", "Check the path.")


def command_line(model: str, values: Mapping[str, Any]) -> str:
    """The command that repeats a repair: the model, and what was told beyond the defaults."""
    words = ["laocoon", "repair", model]
    for option in OPTIONS:
        value = values[option.field]
        if value is None or value == option.default:
            continue
        if isinstance(value, bool):
            words.append(option.flag)
        else:
            words += [f"{option.flag}={value}"] if str(value).startswith("-") else [option.flag, str(value)]
    return shlex.join(words)


def _console(outputs: Outputs | None = None) -> Console:
    from rich.console import Console

    return Console(stderr=outputs is None or outputs.to_stdout)


def _repaired(model: str, told: RepairOptions, values: Mapping[str, Any], line: str, console: Console) -> RepairReport:
    """Load, check that the result can be written, repair, write. An interrupted repair says how to go on."""
    with console.status("loading") if console.is_terminal else nullcontext():
        from laocoon.files.images_source import DataOptions
        from laocoon.files.open import load_model
        from laocoon.files.samples import load_data
        from laocoon.files.save import destined
        from laocoon.files.table_models import hinted
        from laocoon.modalities.raw import ModelOptions
        from laocoon.verdict import portfolio, schedule

        portfolio.named(told.methods)  # a misspelt method is told before a model is loaded
        schedule.plan(told.budget)
        reading = DataOptions(**values_of(DATA, values))
        wanted = hinted(ModelOptions(**values_of(MODEL, values)), told.data)
        subject = load_model(model, architecture=told.architecture, options=wanted)
        plan = destined(model, subject, str(told.out), form=told.format, overwrite=told.overwrite,
                        architecture=told.architecture, options=wanted)
        earlier, known = _earlier(told, subject)
        samples = load_data(str(told.data), subject, options=reading, limit_per_class=told.samples_per_class,
                            seed=told.seed)
        few = load_data(str(told.data), subject, options=reading, seed=told.seed,
                        limit_per_class=min(SCANNED_EACH, told.samples_per_class))
    for text in samples.notes:
        note(text)
    kept = told.resume
    if kept is None:
        kept = Path(tempfile.mkdtemp(prefix="laocoon-"))  # so that an interrupted repair can go on
    finished = False
    try:
        report = _mended(subject, samples, few, told, kept, console, earlier, known)
        report = _written(report, subject, plan, told)
        finished = True
    except KeyboardInterrupt:
        typer.echo(f"interrupted; resume with: {_again(line, told, kept)}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except InputError as error:
        mended = next(kept.glob("?-*.safetensors"), None)
        if mended is None or told.resume is not None:
            finished = True
            raise
        raise InputError(error.problem, f"{error.remedy} The mended models are kept: {_again(line, told, kept)}"
                         ) from error
    finally:
        if finished and told.resume is None:
            shutil.rmtree(kept, ignore_errors=True)
    facts = {**report.subject, "data": Path(str(told.data)).name or str(told.data)}
    if not facts.get("class_names") and samples.class_names:
        facts["class_names"] = list(samples.class_names)
    return replace(report, subject=facts)


def _again(line: str, told: RepairOptions, kept: Path) -> str:
    return line if told.resume is not None else f"{line} --resume {shlex.quote(str(kept))}"


def _earlier(told: RepairOptions, subject: Subject) -> tuple[Scanned | None, list[Candidate]]:
    """What an earlier scan said, and the triggers that it kept."""
    from laocoon.files.candidates import load_candidates
    from laocoon.verdict.repair import summary_of

    earlier, known = None, []
    if told.scan is not None:
        if told.scan.stat().st_size > LARGEST_REPORT:
            raise InputError(f"--scan {told.scan.name} has {told.scan.stat().st_size} bytes.", "It is no scan report.")
        try:
            data = json.loads(told.scan.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"--scan {printable(told.scan.name)} is not JSON ({first_line(error, 80)}).",
                             "Give the file that `laocoon scan --json` wrote about this model.") from None
        earlier = summary_of(data, subject.provenance.sha256)
    if told.candidates is not None:
        known = [c for c in load_candidates(told.candidates, subject.modality) if _fits(c, subject)]
        if not known:
            raise InputError(f"--candidates {printable(told.candidates.name)} holds no trigger for this model.",
                             "Give a .safetensors file from the resume folder of its scan.")
        known = _suspected(known, earlier)
    return earlier, known


def _suspected(known: list[Candidate], earlier: Scanned | None) -> list[Candidate]:
    """Of the many triggers that a scan keeps, those towards the suspected class that are smaller than natural."""
    if len(known) <= MOST_GIVEN:
        return known
    if earlier is None or not earlier.target_classes:
        raise InputError(f"--candidates holds {len(known)} triggers towards many classes.",
                         "Pass the scan's JSON report with --scan, so that those of the suspected class are taken.")
    target, ranked = earlier.target_classes[0], []
    for candidate in known:
        family = sorted(c.size for c in known if c.family.name == candidate.family.name)
        if getattr(candidate.goal, "targets", ()) == (target,) and candidate.success >= 0.5:
            ranked.append((candidate.size / max(family[len(family) // 2], 1e-9), candidate))
    ranked.sort(key=lambda pair: pair[0])
    if not ranked:
        raise InputError(f"--candidates holds no trigger towards class {target} that works.", "Leave the option out.")
    return [c for i, (share, c) in enumerate(ranked[:MOST_GIVEN]) if i == 0 or share < 0.5]


def _fits(candidate: Candidate, subject: Subject) -> bool:
    """Is it a trigger for inputs of this shape and for classes of this model?"""
    import torch

    destinations = getattr(candidate.goal, "destinations", ())
    try:
        stamped = candidate.stamp(torch.zeros(2, *subject.input_shape))
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError):
        return False
    return len(destinations) == subject.classes and all(-1 <= d < subject.classes for d in destinations) \
        and stamped.shape == (2, *subject.input_shape) and bool(torch.isfinite(stamped).all())


def _mended(subject: Subject, samples: Any, few: Any, told: RepairOptions, kept: Path, console: Console,
            earlier: Scanned | None, known: list[Candidate]) -> RepairReport:
    from laocoon.cli.memory import keep_freed_memory
    from laocoon.cli.progress import shown
    from laocoon.verdict.repair import repair

    keep_freed_memory()
    with shown(console) as progress:
        return repair(
            subject, samples, earlier=earlier, candidates=known, scan_data=few, alpha=told.alpha, budget=told.budget,
            max_drop=told.max_drop / 100, methods=told.methods,
            passes=float("inf") if told.passes is None else float(told.passes), first=told.first, stages=told.stages,
            force=told.force, seed=told.seed, device=told.device, progress=progress, resume=kept,
        )


def _written(report: RepairReport, subject: Subject, plan: Destination, told: RepairOptions) -> RepairReport:
    """The repaired model in its place, and what was written in the report."""
    from laocoon.core.repaired import Status
    from laocoon.files.open import digest
    from laocoon.files.save import copy, save

    probes = report.pictures
    if report.repairs:
        origin = subject.provenance.sha256
        text = f"repaired from sha256 {origin}; {', then '.join(report.repairs)}; status {report.status.value}; " \
               f"laocoon {report.version}"
        saved = save(plan, subject, report.mended, probes, text)
    elif report.status is Status.NOTHING:
        saved = copy(plan, subject, probes)
    else:
        return report  # a copy of a doubtful model under the name of a repaired one would only mislead
    return replace(report, written={**asdict(saved), "sha256": digest(Path(saved.path))})


def _finish(report: RepairReport, outputs: Outputs) -> None:
    """Print the status, write the reports, leave with the exit code."""
    from laocoon.render.repair_terminal import show

    console = _console(outputs)
    show(report, console, written=outputs.written)
    for kind in outputs.files:
        outputs.write(kind, _rendered(kind, report, to_stdout=outputs.files[kind] == STDOUT))
    sys.stdout.flush()
    raise typer.Exit(report.exit_code)


def _rendered(kind: str, report: RepairReport, *, to_stdout: bool) -> str:
    if kind == "json":
        from laocoon.render.repair_json import to_json

        return to_json(report, ascii_only=to_stdout)
    from laocoon.render.repair_html import to_html

    return to_html(report)


repair = command(run, OPTIONS, {"model": "The model: a file, a Hugging Face folder or a hub id."}, DOC)
