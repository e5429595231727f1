"""`laocoon guard fit | check | serve`: does this request carry a trigger?"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from laocoon.cli.errors import FINDINGS, Command, note
from laocoon.cli.options import command, options_of, values_of
from laocoon.cli.outputs import STDOUT, check_place
from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.wording import printable

if TYPE_CHECKING:
    from torch import Tensor

    from laocoon.core.subject import Subject
    from laocoon.files.images_source import DataOptions, Picture, Source
    from laocoon.modalities.raw import ModelOptions
    from laocoon.serve.engine import Engine
    from laocoon.serve.keys import Keys
    from laocoon.verdict.guard import Guarded, Judgement

FIT = options_of("laocoon.cli.guard_options", "FitOptions", "Guard")
CHECK = options_of("laocoon.cli.guard_options", "CheckOptions", "Guard")
GUARDED = options_of("laocoon.cli.guard_options", "GuardedOptions", "Guard")
SERVE = options_of("laocoon.serve.settings", "ServeOptions", "Service")
MODEL = options_of(
    "laocoon.modalities.raw", "ModelOptions", "How the model wants its images (else taken from the file)"
)
DATA = options_of("laocoon.files.images_source", "DataOptions", "How the data are read (else found out)")
ARGUMENT = {"model": "The model: a file, a Hugging Face folder, a hub id, or the address of a server."}
BATCH = 64

app = typer.Typer(no_args_is_help=True, help="Tell requests that carry a trigger, in a folder or as a service.")


def _model_options(values: Mapping[str, Any]) -> ModelOptions:
    from laocoon.files.table_models import hinted
    from laocoon.modalities.raw import ModelOptions

    return hinted(ModelOptions(**values_of(MODEL, values)), values.get("data"))


def _fit(values: Mapping[str, Any]) -> None:
    from laocoon.cli.guard_options import FitOptions
    from laocoon.files.images_source import DataOptions
    from laocoon.files.samples import load_data
    from laocoon.serve.assemble import subject_of
    from laocoon.verdict.guard import Guarded

    told = FitOptions(**values_of(FIT, values))
    if told.data is None or told.out is None:
        raise InputError(f"--{'data' if told.data is None else 'out'} is missing.",
                         "Say `laocoon guard fit MODEL --data clean/ -o guard/`.")
    if not 0 < told.alpha < 1:
        raise InputError(f"--alpha is {told.alpha}.", "It is a rate between 0 and 1, for instance 0.01.")
    out = Path(told.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {printable(out)} exists.", "Name a new folder.")
    reading = DataOptions(**values_of(DATA, values))
    subject = subject_of(str(values["model"]), architecture=told.architecture, options=_model_options(values),
                         device=told.device, upstream_model=told.upstream_model)
    samples = load_data(told.data, subject, options=reading, limit_per_class=told.samples_per_class, seed=told.seed)
    for text in samples.notes:
        note(text)
    guarded = Guarded.fit(subject, samples, alpha=told.alpha, seed=told.seed)
    for text in guarded.pipeline.notes:
        note(text)
    guarded.save(out)
    one, two = guarded.passes
    print(f"guard written to {printable(out)}")
    print(f"  fitted on {len(guarded.samples)} samples, calibrated on {len(guarded.calibration)}; flags at most "
          f"{guarded.alpha:g} of clean requests like these")
    print(f"  {one:g} forward pass a request, {two:g} where the first tier doubts; digest {guarded.digest[:16]}")


def _check(values: Mapping[str, Any]) -> None:
    from laocoon.cli.guard_options import CheckOptions
    from laocoon.files.images_source import DataOptions
    from laocoon.files.samples import open_source
    from laocoon.serve.assemble import subject_of
    from laocoon.verdict.guard import Guarded

    told = CheckOptions(**values_of(CHECK, values))
    if told.guard is None or told.data is None:
        raise InputError(f"--{'guard' if told.guard is None else 'data'} is missing.",
                         "Say `laocoon guard check MODEL --guard guard/ --data images/`.")
    if told.json not in (None, STDOUT):
        check_place("json", str(told.json), (str(values["model"]), told.data))
    reading = DataOptions(**values_of(DATA, values))
    subject = subject_of(str(values["model"]), architecture=told.architecture, options=_model_options(values),
                         device=told.device, upstream_model=told.upstream_model)
    guarded = Guarded.load(Path(told.guard), subject)
    if told.alpha is not None:
        guarded = guarded.under(alpha=told.alpha)
    image = subject.modality.name == "image"
    source = open_source(told.data, reading, tuple(subject.input_shape), True) if image else None
    rows = _rows(guarded, source, subject, reading.fit) if source else _records(guarded, told.data, reading)
    for text in source.notes if source else ():
        note(text)
    seen = flagged = 0
    what = "image" if image else "sample"
    with ExitStack() as stack:
        out = None
        if told.json is not None:
            file = Path(told.json)
            out = sys.stdout if told.json == STDOUT else stack.enter_context(file.open("w", encoding="utf-8"))
        for row in rows:
            seen, flagged = seen + 1, flagged + row["flagged"]
            if out is not None:
                print(json.dumps(row), file=out)
            if row["flagged"] and out is not sys.stdout:
                print(f"FLAGGED  {printable(row[what])}  p {row['p_value']:.4f}  answer {row['label']}")
    if out is not sys.stdout:
        print(f"{flagged} of {seen} {what}s flagged; about {guarded.alpha * seen:.1f} would be if all were clean")
    raise typer.Exit(FINDINGS if flagged else 0)


def _rows(guarded: Guarded, source: Source, subject: Subject, fit: str) -> Iterator[dict[str, Any]]:
    """What the guard says of each image, in batches; images that cannot be read are named and left out."""
    import torch

    rows: list[int] = []
    images: list[Tensor] = []
    for picture in _pictures(source, subject, fit):
        if picture.image is None:
            note(str(picture.broken or BrokenFile(f"image {picture.row} cannot be read.")))
            continue
        rows.append(picture.row)
        images.append(picture.image)
        if len(rows) == BATCH:
            yield from _judged(guarded, source, rows, torch.stack(images))
            rows, images = [], []
    if rows:
        yield from _judged(guarded, source, rows, torch.stack(images))


def _records(guarded: Guarded, path: str, reading: DataOptions) -> Iterator[dict[str, Any]]:
    """The same of texts and rows of a table, labelled or not."""
    import torch

    from laocoon.files.training_rows import table_of, texts_of

    subject = guarded.subject
    read = texts_of if subject.modality.name == "text" else table_of
    found = read(path, subject, reading, labelled=False)
    for text in found.notes:
        note(text)
    names = [found.names[r] if r < len(found.names) else f"row {r}" for r in found.rows.tolist()]
    for start in range(0, len(names), BATCH):
        part = torch.from_numpy(found.stored[start:start + BATCH])
        said = guarded.check(part if part.is_floating_point() else part.long())
        for k, name in enumerate(names[start:start + BATCH]):
            yield {"sample": name, **_told(said, k)}


def _pictures(source: Source, subject: Subject, fit: str) -> Iterator[Picture]:
    from laocoon.files.images_decode import Frame

    shape = tuple(subject.input_shape)
    frame = Frame((shape[0], shape[1], shape[2]), fit)
    if source.stream is not None:
        yield from source.stream(frame)
        return
    for start in range(0, source.count, 1024):
        yield from source.read(range(start, min(start + 1024, source.count)), frame)


def _judged(guarded: Guarded, source: Source, rows: list[int], batch: Tensor) -> Iterator[dict[str, Any]]:
    said = guarded.check(batch)
    for k, row in enumerate(rows):
        name = str(source.paths[row]) if source.paths else f"row {row}"
        yield {"image": name, **_told(said, k)}


def _told(said: Judgement, k: int) -> dict[str, Any]:
    return {"flagged": bool(said.flagged[k]), "p_value": float(said.p_values[k]), "score": float(said.scores[k]),
            "tier": int(said.tier[k]), "label": int(said.logits[k].argmax())}


def _serve(values: Mapping[str, Any]) -> None:
    from laocoon.cli.guard_options import GuardedOptions
    from laocoon.serve.assemble import load_engine
    from laocoon.serve.audit import Audit
    from laocoon.serve.keys import read_keys
    from laocoon.serve.run import serve
    from laocoon.serve.service import Service
    from laocoon.serve.settings import ServeOptions

    told, settings = GuardedOptions(**values_of(GUARDED, values)), ServeOptions(**values_of(SERVE, values))
    if told.guard is None:
        raise InputError("--guard is missing.", "Fit one with `laocoon guard fit`, and name its folder.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    def renew() -> Keys:
        return read_keys(settings.keys, anybody=settings.open)

    keys = renew()
    model, options, guard = str(values["model"]), _model_options(values), Path(told.guard)

    def load() -> Engine:
        return load_engine(model, guard, settings, architecture=told.architecture, options=options)

    engine = load()
    engine.warm()
    audit = Audit(Path(settings.audit), sync=settings.audit_sync == "always", largest=settings.audit_bytes)
    service = Service(engine, settings, keys, audit, load=load, renew=renew)
    if not keys.known:
        note("no API keys: whoever reaches the port may ask")
    said = f"guarding {printable(model)} at"
    serve(service, lambda address: print(f"{said} {address}/v2/models/{settings.name}", flush=True))


fit = command(_fit, (*FIT, *MODEL, *DATA), ARGUMENT, "Fit a guard to a model, on samples that are known to be clean.")
check = command(_check, (*CHECK, *MODEL, *DATA), ARGUMENT, """Check images, texts or records with a fitted guard.

Exit codes: 0 nothing flagged, 1 something flagged, 2 usage or failure.""")
serve = command(_serve, (*GUARDED, *SERVE, *MODEL), ARGUMENT, """Check and answer requests (Open Inference Protocol v2).

SIGHUP loads model and guard anew; SIGTERM answers what is in flight, then ends.""")
app.command("fit", cls=Command)(fit)
app.command("check", cls=Command)(check)
app.command("serve", cls=Command)(serve)
