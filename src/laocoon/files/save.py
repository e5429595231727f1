"""Write a repaired model in the format that the model came in: planned before any work, written whole or not at all.

| came as | is written as |
|---|---|
| ONNX | the same graph; only the tensors that changed differ |
| safetensors, a state dict | the same keys in the same types, with everything else that was in the file |
| a Hugging Face folder | the same layout; weights in other forms, which would be the old ones, are left out |
| TorchScript, torch.export, Keras | with `--format onnx`: the graph that it was converted to, with new weights |

What was written is opened again as a stranger's file would be, and must answer like the repaired network.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from onnx import ModelProto
from torch import Tensor

from laocoon.core.errors import InputError, LaocoonError, MissingExtra
from laocoon.core.subject import Subject
from laocoon.files import onnx as onnx_files
from laocoon.files import save_onnx, save_weights
from laocoon.files.graph import ParsedGraph
from laocoon.files.hub import fetch, is_hub_id
from laocoon.files.open import load_model, recognise
from laocoon.files.save_onnx import Unwritable
from laocoon.files.wording import first_line, printable
from laocoon.modalities.raw import ModelOptions
from laocoon.modalities.tabular import Tabular

FORMATS = ("onnx", "safetensors")
_WEIGHTS = ("safetensors", "state dict", "pickle", "huggingface")
_SPARE = 4 * 2**20


@dataclass(frozen=True, eq=False)
class Destination:
    """Where and how a repaired model will be written; made by `destined`, which refuses what cannot work."""

    origin: Path
    target: Path
    kind: str  # of the origin
    form: str  # "graph", "export", "weights" or "folder"
    overwrite: bool
    architecture: str | None
    options: ModelOptions

    @property
    def as_it_came(self) -> bool:
        """The target has the format of the origin."""
        return self.form == {"onnx": "graph", "huggingface": "folder"}.get(self.kind, "weights")


@dataclass(frozen=True)
class Saved:
    """What was written."""

    path: str
    format: str
    notes: tuple[str, ...] = ()
    difference: float = 0.0  # largest difference of the logits when opened again, in their standard deviations


def destined(origin: str | Path, subject: Subject, target: str | Path, *, form: str | None = None,
             overwrite: bool = False, architecture: str | None = None, options: ModelOptions | None = None,
             ) -> Destination:
    """Check that a repaired `subject`, opened from `origin`, can be written to `target`, before any work is done.

    form: "onnx" or "safetensors"; None for the format of the origin. Raises InputError.
    """
    if form is not None and form not in FORMATS:
        raise InputError(f"--format is {printable(form, 40)!r}.", f"It is {' or '.join(FORMATS)}, or left out.")
    place = Path(origin)
    if not place.exists() and is_hub_id(os.fspath(origin)):
        place = fetch(os.fspath(origin))
    kind = recognise(place)
    told = architecture or subject.provenance.metadata.get("architecture")
    plan = Destination(place, Path(target), kind, _form(place, kind, form, subject), overwrite, told,
                       options or ModelOptions())
    _check_target(plan, os.fspath(target))
    return plan


def _form(place: Path, kind: str, form: str | None, subject: Subject) -> str:
    """How it will be written; the checks of each way are made here."""
    if subject.modality.name == "text" and (kind not in _WEIGHTS or form == "onnx"):
        raise InputError(f"{place.name} is {kind}: a classifier of texts is written as a folder of safetensors only.",
                         "Repair the Hugging Face folder that it was exported from, without --format.")
    built = save_onnx.graph_module(subject.module)
    if kind in _WEIGHTS and form != "onnx":
        if kind == "huggingface" and form == "safetensors":
            raise InputError("a Hugging Face folder is written as a folder, with its safetensors in it.",
                             "Drop --format, or pass --format onnx.")
        save_weights.keys(_trainable(subject), save_weights.read(place, kind), place.name)
        return "folder" if kind == "huggingface" else "weights"
    if form == "safetensors":
        raise InputError(f"{place.name} is {kind}; safetensors hold weights alone, without the network.",
                         "Pass --format onnx." if kind != "onnx" else "Drop --format.")
    if kind != "onnx" and form != "onnx":
        raise InputError(f"{place.name} is {kind}, which cannot be written.",
                         "Pass --format onnx: the graph that it was converted to is written.")
    if built is not None and isinstance(subject.graph, ParsedGraph):
        model = onnx_files.read(place) if kind == "onnx" else subject.graph.model
        missing = save_onnx.unwritable(built, save_onnx.sources(model, built, place.name))
        if not missing:
            return "graph"
        if form is None:
            raise InputError(f"{place.name}: {len(missing)} weights are no plain copies of tensors in the file "
                             f"(quantised, or scaled by the graph), for instance {printable(missing[0], 80)!r}.",
                             save_onnx.REMEDY)
    return "export"


def _trainable(subject: Subject) -> dict[str, Tensor]:
    """Weights that a repair may change, by the names that they have outside of the subject."""
    network = save_onnx.graph_module(subject.module) or save_weights.core_of(subject)
    own = {k for k, _ in network.named_parameters(remove_duplicate=False)}
    return {k: v for k, v in save_weights.named(subject).items() if k in own}


def _check_target(plan: Destination, text: str) -> None:
    shown = printable(text)
    if not text or "\0" in text:
        raise InputError(f"--out is {text!r}.", "Give the name of the file to write.")
    if os.path.realpath(text) == os.path.realpath(plan.origin):
        raise InputError(f"--out {shown} would overwrite what is to be repaired.", "Name another file.")
    if plan.target.resolve().is_relative_to(plan.origin.resolve()) and plan.origin.is_dir():
        raise InputError(f"--out {shown} lies in the model's own folder.", "Name another place.")
    parent = plan.target.parent
    folder = plan.form == "folder"
    try:
        if not parent.is_dir():
            raise InputError(f"--out {shown}: the folder {printable(parent)} does not exist.", "Make it first.")
        if plan.target.is_symlink() or plan.target.exists():
            if plan.target.is_symlink() or plan.target.is_dir() != folder:
                raise InputError(f"--out {shown} is there and is no {'folder' if folder else 'regular file'}.",
                                 "Name another place.")
            if not plan.overwrite:
                raise InputError(f"--out {shown} exists.", "Name another place, or pass --overwrite.")
            if folder and recognised(plan.target) != "huggingface":
                raise InputError(f"--out {shown} is a folder, but not of a model.", "Name another place.")
        with tempfile.TemporaryFile(prefix=".laocoon-", dir=parent) as trial:
            trial.write(b"\0" * 65536)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise _unwritten(shown, error, "--out ") from None
    needed = int(_bytes(plan.origin) * 1.1) + _SPARE
    if free < needed:
        raise InputError(f"--out {shown}: only {free} bytes are free there.", f"{needed} are needed; make room.")


def recognised(place: Path) -> str:
    """The format of what is there; empty where it is none."""
    try:
        return recognise(place)
    except InputError:
        return ""


def _bytes(place: Path) -> int:
    if place.is_file():
        return place.stat().st_size
    return sum(f.stat().st_size for f in place.iterdir() if f.is_file())


def _unwritten(shown: str, error: OSError, flag: str = "") -> InputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return InputError(f"{flag}{shown} cannot be written ({'the disk is full' if full else error.strerror}).",
                      "Make room." if full else "Name another place, or change its permissions.")


# ---------------------------------------------------------------- writing
def save(plan: Destination, subject: Subject, mended: Subject, probes: Tensor, note: str) -> Saved:
    """Write `mended`, a repaired copy of `subject`. `probes`: canonical inputs that both must answer alike."""
    subject, mended = subject.to(torch.device("cpu")), mended.to(torch.device("cpu"))

    def write(part: Path) -> tuple[str, ...]:
        return _written(plan, subject, mended, part, note)

    try:
        return _placed(plan, write, mended, probes)
    except Unwritable as error:  # only the new weights could tell
        if plan.form != "graph":
            raise
        plan = replace(plan, form="export")
        saved = _placed(plan, write, mended, probes)
        return replace(saved, notes=(*saved.notes, f"not written into the graph as it came: {error.problem}"))


def copy(plan: Destination, subject: Subject, probes: Tensor) -> Saved:
    """Write the model as it came: nothing was to be removed. Byte for byte where the format is the same."""
    def write(part: Path) -> tuple[str, ...]:
        if not plan.as_it_came:
            return _written(plan, subject, subject, part, "nothing to remove; exported unchanged")
        if plan.origin.is_dir():
            shutil.copytree(plan.origin, part, dirs_exist_ok=True)
        else:
            shutil.copyfile(plan.origin, part)
        return ("a copy of the model, byte for byte: nothing was changed",)

    return _placed(plan, write, subject.to(torch.device("cpu")), probes)


def _placed(plan: Destination, write: Callable[[Path], tuple[str, ...]], wanted: Subject, probes: Tensor) -> Saved:
    """Written beside the target, opened again, compared, and only then put in its place."""
    shown, folder = printable(plan.target), plan.form == "folder"
    work = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{plan.target.name[:40]}.", dir=plan.target.parent))
        part = work / plan.target.name
        if folder:
            part.mkdir()
        notes = write(part)
        apart = _difference(plan, part, wanted, probes)
        if (plan.target.exists() or plan.target.is_symlink()) and not plan.overwrite:
            raise InputError(f"{shown} was made by somebody else in the meantime.", "Name another place.")
        if folder and plan.target.exists():
            os.replace(plan.target, work / "before")
        os.replace(part, plan.target)
    except OSError as error:
        raise _unwritten(shown, error) from None
    except RuntimeError as error:  # how torch and safetensors tell of a disk that is full
        raise InputError(f"{shown} cannot be written ({first_line(error)}).", "Make room, or name another place."
                         ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    form = "onnx" if plan.form in ("graph", "export") else "state dict" if plan.kind == "pickle" else plan.kind
    return Saved(os.fspath(plan.target), form, notes, apart)


def _written(plan: Destination, subject: Subject, mended: Subject, part: Path, note: str) -> tuple[str, ...]:
    if plan.form == "graph":
        return _graph(plan, subject, mended, part, note)
    if plan.form == "export":
        return _export(mended, part, note)
    state = save_weights.read(plan.origin, plan.kind)
    before, after = save_weights.named(subject), save_weights.named(mended)
    where = save_weights.keys({k: v for k, v in before.items() if k in _trainable(subject)
                               or not torch.equal(v, after[k])}, state, plan.origin.name)
    new = save_weights.replaced(state, where, before, after)
    if plan.form == "folder":
        return save_weights.write_folder(plan.origin, part, new, note)
    if plan.kind == "safetensors":
        save_weights.write_safetensors(plan.origin, part, new, note)
    else:
        save_weights.write_state_dict(plan.origin, part, new, note)
    return ()


def _graph(plan: Destination, subject: Subject, mended: Subject, part: Path, note: str) -> tuple[str, ...]:
    built, fresh = save_onnx.graph_module(subject.module), save_onnx.graph_module(mended.module)
    assert built is not None and fresh is not None and isinstance(subject.graph, ParsedGraph)
    model = onnx_files.read(plan.origin) if plan.kind == "onnx" else subject.graph.model
    found = save_onnx.sources(model, built, plan.origin.name)
    part.write_bytes(save_onnx.written_back(model, save_onnx.changed(model, built, fresh, found), note))
    return () if plan.kind == "onnx" else (f"written as ONNX: the graph that the {plan.kind} was converted to",)


def _export(mended: Subject, part: Path, note: str) -> tuple[str, ...]:
    from laocoon.files.to_onnx import export

    try:
        export(mended.module, torch.rand(2, *mended.input_shape), part)
    except ImportError as error:
        raise MissingExtra(f"writing ONNX needs {error.name or 'onnxscript'}.", "pip install 'laocoon[lab]'") from error
    model = ModelProto()
    model.ParseFromString(part.read_bytes())
    if isinstance(mended.modality, Tabular):
        entry = model.metadata_props.add()
        entry.key, entry.value = "columns", json.dumps(list(mended.modality.columns))
    part.write_bytes(save_onnx.noted(model, note))
    shape = " x ".join(map(str, mended.input_shape))
    taken = f"images of {shape} from 0 to 1" if mended.modality.name == "image" else f"rows of {shape} numbers"
    return (f"exported anew: takes {taken} (normalisation is inside), gives logits",)


def _difference(plan: Destination, part: Path, wanted: Subject, probes: Tensor) -> float:
    """How far the written file's answers are from the network's. InputError where that is more than rounding."""
    options = plan.options
    if plan.form == "export":
        options = (ModelOptions(input_range="0-1") if wanted.modality.name == "image" else
                   ModelOptions(modality=wanted.modality.name))
    try:
        again = load_model(part, architecture=plan.architecture, options=options)
    except LaocoonError as error:
        raise InputError(f"what was written cannot be opened again: {error.problem}", "Pass --format onnx.") from error
    probes = probes.cpu()
    with torch.no_grad():
        a, b = wanted.outputs(probes).logits, again.outputs(probes).logits
    if a.shape != b.shape:
        raise InputError(f"what was written answers {list(b.shape)} instead of {list(a.shape)}.", "Pass --format onnx.")
    apart = float((a - b).abs().max() / a.std().clamp_min(1e-6))
    agree = float((a.argmax(-1) == b.argmax(-1)).float().mean())
    if not apart <= (5e-2 if agree >= 0.98 else 1e-3):  # half precision rounds; float32 does not come near
        raise InputError(f"what was written answers otherwise than the repaired network (by {apart:.2g} standard "
                         "deviations of its scores).", "Pass --format onnx.")
    return apart
