"""Models whose inputs are no images, told by their content: texts, and trees over tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from laocoon.core.subject import Provenance, Subject
from laocoon.files import (
    huggingface,
    lora,
    skops_archive,
    table_models,
    table_sklearn,
    text_encoder,
    text_models,
    text_onnx,
    text_sklearn,
    trained,
)
from laocoon.files.text_tokenizer import has_tokenizer
from laocoon.modalities.raw import ModelOptions

SKOPS, ADAPTER = skops_archive.SCHEMA, lora.CONFIG  # by which an archive and a folder are told


def opened(place: Path, kind: str, architecture: str | None, options: ModelOptions, provenance: Provenance,
           locate: Callable[[str], Path]) -> Subject | None:
    """The Subject, or None where its graph must be read to tell. `locate` finds the base of an adapter."""
    if kind in table_models.TREES:
        return table_models.open_trees(place, kind, options, provenance)
    if kind == "huggingface" and options.task == "encoder" and has_tokenizer(place):
        return text_encoder.open_directory(place, provenance)
    if kind == "huggingface" and text_models.is_text(huggingface.read_json(place / "config.json")):
        graphs = sorted(place.glob("*.onnx")) if not huggingface.weights_of(place) else []
        if len(graphs) == 1:
            return text_onnx.open_onnx(graphs[0], replace(provenance, format="onnx"))
        return text_models.open_directory(place, provenance)
    if kind == "safetensors" and architecture is None and (own := trained.opened(place, provenance)) is not None:
        return own
    if kind == "lora":
        return lora.open_adapter(place, architecture, provenance, locate)
    if kind == "onnx" and text_onnx.takes_ids(place):
        return text_onnx.open_onnx(place, provenance)
    if kind == "skops":
        estimator = skops_archive.read(place)
        if text_sklearn.is_text(estimator):
            return text_sklearn.adapted(estimator, provenance)
        return table_sklearn.adapted(estimator, options.columns, provenance)
    return None
