"""Models over tables: which files hold one, what their columns are called, and the way to a Subject."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from laocoon.core.card import Capability
from laocoon.core.errors import InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files import lightgbm, safetensors, xgboost
from laocoon.files.graph import ParsedGraph
from laocoon.files.table_onnx import metadata_of, names_in, table_in
from laocoon.files.tables import is_table
from laocoon.files.wording import printable
from laocoon.modalities.raw import ModelOptions, RawModel
from laocoon.modalities.tabular import Tabular
from laocoon.modalities.tabular_model import MOST_COLUMNS, adapt, flat_only

TREES = {"xgboost": xgboost.open_xgboost, "lightgbm": lightgbm.open_lightgbm}


class Hinted(ModelOptions):
    """Options whose modality the data suggest: a model that takes pictures is no table's for that."""


def hinted(options: ModelOptions, data: str | Path | None) -> ModelOptions:
    """The options for a model that will be asked about these data: where nothing else tells, a table means a table."""
    if options.modality is None and data is not None and is_table(data):
        return Hinted(**{f.name: getattr(options, f.name) for f in fields(options)} | {"modality": "tabular"})
    return options


def recognised(head: bytes) -> str:
    """The kind of a file of trees; empty: it is none."""
    if xgboost.looks_like_xgboost(head):
        return "xgboost"
    return "lightgbm" if lightgbm.looks_like_lightgbm(head) else ""


def open_trees(place: Path, kind: str, options: ModelOptions, provenance: Provenance) -> Subject:
    """Boosted trees as a black box."""
    raw = TREES[kind](place)
    subject = adapt(raw, options, replace(provenance, notes=(
        *provenance.notes, f"trees of {kind}, evaluated here: they can only be asked")), named(raw, options, {}))
    return replace(subject, capabilities=frozenset({Capability.QUERY}))


def opened(raw: RawModel, options: ModelOptions, provenance: Provenance, told: dict[str, str]) -> Subject:
    """A network over rows; `told` is what the file says beside its graph."""
    return adapt(raw, options, provenance, named(raw, options, told))


def takes_rows(raw: RawModel, options: ModelOptions) -> bool:
    """Is it a table's model? As told, or because it takes a vector that has named columns or can be no picture."""
    if isinstance(options, Hinted) and raw.input_shape is not None and len(raw.input_shape) > 1:
        return False
    if options.modality is not None:
        return options.modality == "tabular"
    flat = raw.input_shape is not None and len(raw.input_shape) == 1
    return flat and (options.columns is not None or bool(names_in(_metadata(raw))) or flat_only(raw, options))


def named(raw: RawModel, options: ModelOptions, told: dict[str, str]) -> Tabular | None:
    """The columns as the user, the file or nobody names them."""
    metadata = {**_metadata(raw), **told}
    names = options.columns or names_in(metadata)
    if len(set(names)) != len(names) or len(names) > MOST_COLUMNS:
        double = next((n for n in names if names.count(n) > 1), "")
        raise InputError(f"the column {printable(double, 60)!r} is named twice." if double else
                         f"{len(names)} columns are named.", f"Name at most {MOST_COLUMNS} columns, each once.")
    return table_in(metadata, names)


def _metadata(raw: RawModel) -> dict[str, str]:
    """Entries of the file at full length: those of a report are cut."""
    graph = metadata_of(raw.graph.model) if isinstance(raw.graph, ParsedGraph) else {}
    return {**raw.metadata, **graph}


def beside(place: Path, kind: str) -> dict[str, str]:
    """What a file of weights says of itself."""
    return safetensors.check(place) if kind == "safetensors" else {}
