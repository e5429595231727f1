"""In the child: turn a torch program into ONNX, so that the parent gets a graph with gradients and no code."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.errors import InputError
from laocoon.files import onnx_symbolics
from laocoon.files.wording import first_line

SIZES = (224, 32, 28, 64, 96, 128, 256, 299, 384)
_ERRORS = (
    RuntimeError,
    ValueError,
    IndexError,
    TypeError,
    KeyError,
    NotImplementedError,
    AttributeError,
    AssertionError,
)


def example_for(
    run: Callable[[Tensor], Any], shapes: Mapping[str, Sequence[int]], arguments: Mapping[str, Any]
) -> Tensor:
    """An input that the program accepts, from the options or from the shapes of its weights."""
    if arguments.get("modality") == "tabular":
        return _row_for(run, shapes, int(arguments.get("columns") or 0))
    channels, size = arguments.get("image_channels"), arguments.get("size")
    if channels is None:
        first = next((s for s in shapes.values() if len(s) == 4), None)
        channels = int(first[1]) if first is not None and first[1] in (1, 3, 4) else 3
    layouts = ("NCHW",) if arguments.get("layout") != "NHWC" else ("NHWC",)
    candidates = [tuple(size)] if size else [(s, s) for s in SIZES]
    good: list[Tensor] = []
    reason = ""
    for count in (2, 1):  # scripts traced with one picture may take no more
        for (h, w), layout in itertools.product(candidates, layouts):
            x = torch.rand(count, channels, h, w) if layout == "NCHW" else torch.rand(count, h, w, channels)
            try:
                with torch.no_grad():
                    run(x)
                good.append(x)
            except _ERRORS as error:
                reason = reason or first_line(error)
        if good:
            break
    if not good:
        flat = next((s for s in shapes.values() if len(s) == 2), None)
        if flat is not None and not size:
            x = torch.rand(2, int(flat[1]))
            try:
                with torch.no_grad():
                    run(x)
                return x
            except _ERRORS:
                pass
        raise InputError(f"the model accepts no image of {channels} channels and sizes {candidates[:4]} ({reason}).",
                         "Pass the size and the channels of its images.")
    if len(good) > 1:
        raise InputError("the model takes images of any size.", "Pass the height and width that it was trained on.")
    return good[0]


def _row_for(run: Callable[[Tensor], Any], shapes: Mapping[str, Sequence[int]], columns: int) -> Tensor:
    """Rows of a table: as wide as told, or the only width that the program takes."""
    widths = [columns] if columns else sorted({int(s[1]) for s in shapes.values() if len(s) == 2} | {*range(1, 257)})
    good, reason = list[Tensor](), ""
    for width in widths:
        x = torch.rand(2, width)  # whole parts are 0: a code that every category has
        try:
            with torch.no_grad():
                run(x)
            good.append(x)
        except _ERRORS as error:
            reason = reason or first_line(error)
    good = [x for x in good if x.shape[1] > 1] or good  # one column is taken by whatever spreads it over all
    if len(good) != 1:
        problem = f"{len(good)} numbers of columns ({good[0].shape[1]}, {good[1].shape[1]}, …)" if good else "no row"
        raise InputError(f"the model accepts {problem}{'' if good else f' ({reason})'}.",
                         "Name its columns, in order, with --columns A,B,….")
    return good[0]


def export(module: nn.Module, example: Tensor, target: Path) -> None:
    """Write `target`, batch norm and names kept. Tracing first: quick, and it also takes TorchScript.

    An example of one picture is all that the program takes: the graph's batch is fixed, too.
    """
    module.eval()
    free = {"input": {0: "batch"}} if len(example) > 1 else None
    onnx_symbolics.register()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(module, (example,), str(target), dynamo=False, input_names=["input"],
                              dynamic_axes=free, do_constant_folding=False,
                              training=torch.onnx.TrainingMode.PRESERVE)
        except (*_ERRORS, torch.onnx.errors.OnnxExporterError) as first:
            if isinstance(module, torch.jit.ScriptModule):
                raise InputError(f"the script cannot be converted to a graph with gradients ({first_line(first)}).",
                                 "Export the model to ONNX from its source.") from first
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(module, (example,), str(target), dynamo=True, dynamic_shapes=shapes, external_data=False,
                              optimize=False, verbose=False, input_names=["input"])
