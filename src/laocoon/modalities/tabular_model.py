"""A file's network made uniform for tables: canonical rows in, class logits out.

What the columns may hold is not known here: `load_data` tells it. A network that scales its columns itself, or is
given codes, is asked with rows as they are in the table.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files.bounded import Bounded
from laocoon.files.onnx_graph import GraphModule
from laocoon.files.wording import first_line, printable
from laocoon.modalities.class_head import Head, outputs_by_name
from laocoon.modalities.raw import FAILURES, EachBatch, ModelOptions, RawModel, as_subject, check_numbers, scored
from laocoon.modalities.tabular import Tabular

MOST_COLUMNS = 4096
PROBES = 8  # rows with which a network is tried


class TableAdapter(nn.Module):
    """Rows [n, columns] in, class logits out: the file's network (`core`), which output, its activation undone."""

    def __init__(self, core: nn.Module, output: str = "", head: Head | None = None) -> None:
        super().__init__()
        self.core, self.output, self.head = core, output, head

    def forward(self, x: Tensor) -> Tensor:
        result = self.core(x)
        if self.output:  # empty: the network returns one tensor
            result = outputs_by_name(result)[self.output]
        return result if self.head is None else self.head(result)


def numbered(count: int) -> tuple[str, ...]:
    """Names of columns of which the file tells none."""
    return tuple(f"column {i}" for i in range(count))


def flat_only(raw: RawModel, options: ModelOptions) -> bool:
    """Does a network take vectors that can be no picture?"""
    dims = raw.input_shape
    if dims is None or len(dims) != 1 or dims[0] is None or options.size or options.image_channels:
        return False
    return not any(dims[0] == c * side * side for c in (1, 3, 4) for side in range(1, 257))


def adapt(raw: RawModel, options: ModelOptions, provenance: Provenance, table: Tabular | None = None) -> Subject:
    """A Subject over rows; `table` are the columns as far as the file names them."""
    raw.module.eval()
    raw.module.requires_grad_(False)
    width = _width(raw, table)
    check_numbers(raw.module)
    notes = [*raw.notes]
    core, whole, answers = _first_pass(raw, width, notes)
    told = scored(raw, answers, options, notes, lambda: _answers(core, _probe(width, 1), graph=True))
    return as_subject(raw, TableAdapter(core, told.output, told.head), table or Tabular.unknown(numbered(width)),
                      told.classes, _probe(width, 1), whole=whole, notes=notes, provenance=provenance,
                      names=raw.class_names if len(raw.class_names) == told.classes else ())


def _width(raw: RawModel, table: Tabular | None) -> int:
    dims = raw.input_shape
    if dims is not None and len(dims) != 1:
        raise InputError(f"the model takes inputs of shape {list(dims)} (batch apart), no rows of a table.",
                         "Open it as what it is: --modality image, or leave the option out.")
    width = dims[0] if dims else None
    if table is not None and width not in (None, len(table)):
        raise InputError(f"the model takes {width} columns, but {len(table)} are named "
                         f"({printable(', '.join(table.columns[:4]), 80)}, …).", "Name each column once, in its order.")
    width = width or (len(table) if table is not None else None)
    if width is None:
        raise InputError("the model does not say how many columns it takes.", "Name them with --columns A,B,….")
    if not 1 <= width <= MOST_COLUMNS:
        raise InputError(f"the model takes {width} columns.", f"Between 1 and {MOST_COLUMNS} are examined.")
    return width


def _probe(width: int, count: int, spread: float = 1.0) -> Tensor:
    """Rows from 0 to 1: whole parts are 0, a code that every category has. With a spread, of many sizes and signs."""
    rng = torch.Generator().manual_seed(0)
    if spread <= 1:
        return torch.rand(count, width, generator=rng)
    return torch.randn(count, width, generator=rng) * torch.logspace(0, 3, count).unsqueeze(1)


def _answers(core: nn.Module, x: Tensor, *, graph: bool = False) -> dict[str, Tensor]:
    with torch.set_grad_enabled(graph), Bounded():
        return outputs_by_name(core(x.requires_grad_(graph)))


def _first_pass(raw: RawModel, width: int, notes: list[str]) -> tuple[nn.Module, bool, dict[str, Tensor]]:
    """The network run once on several rows; one that only takes single ones is wrapped."""
    try:
        one = _answers(raw.module, _probe(width, 1))
    except FAILURES as error:
        raise BrokenFile(f"the model fails on a row of {width} columns: {first_line(error)}",
                         "Check the number of columns and the architecture.") from error
    core, whole = raw.module, raw.whole_batch
    try:
        several = _answers(core, _probe(width, 4))
        if not all(v.dim() and len(v) == 4 for k, v in several.items() if one[k].dim() and len(one[k]) == 1):
            raise ValueError("rows are mixed")
        if isinstance(core, GraphModule):
            core.settle(_probe(width, 2), _probe(width, 3))
    except FAILURES:
        notes.append("the model sees 1 row at a time; hidden features cannot be read")
        core, whole = EachBatch(raw.module, 1), False
        several = _answers(core, _probe(width, 4))
    for value in several.values():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BrokenFile("the model answers with values that are not finite numbers.", "Its weights are damaged.")
    try:  # of wider rows it is seen whether scores are probabilities; codes may forbid them
        wide = _answers(core, _probe(width, 4, 1e3))
        if all(bool(torch.isfinite(v).all()) for v in wide.values() if v.is_floating_point()):
            return core, whole, wide
    except FAILURES:
        pass
    return core, whole, several
