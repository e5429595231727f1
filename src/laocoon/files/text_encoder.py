"""Sentence encoders: a directory of the hub whose network gives vectors, averaged (or taken at [CLS]) as it says.

How vectors become one embedding is read from `1_Pooling/config.json` and `modules.json`, as sentence-transformers lays
them out; without them, the mean over the words. Everything around the text is what text classifiers get.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from laocoon.core.errors import InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files import huggingface, text_models
from laocoon.files.text_tokenizer import read_tokenizer
from laocoon.modalities.text import Text

POOLINGS = ("mean", "cls", "max")


class Sentences(nn.Module):
    """A network of transformers whose `logits` are sentence embeddings, so that it is adapted as a classifier is."""

    def __init__(self, network: nn.Module, pooling: str, normalised: bool) -> None:
        super().__init__()
        self.network, self.pooling, self.normalised = network, pooling, normalised

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.network.get_input_embeddings()  # type: ignore[operator]
        return found

    def forward(self, *, attention_mask: Tensor, return_dict: bool = True, input_ids: Tensor | None = None,
                inputs_embeds: Tensor | None = None) -> SimpleNamespace:
        given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        hidden: Tensor = self.network(**given, attention_mask=attention_mask, return_dict=True).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(hidden)
        if self.pooling == "cls":
            found = hidden[:, 0]
        elif self.pooling == "max":
            found = hidden.masked_fill(there == 0, -1e9).amax(1)
        else:
            found = (hidden * there).sum(1) / there.sum(1).clamp_min(1e-9)
        return SimpleNamespace(logits=functional.normalize(found, dim=-1) if self.normalised else found)


def open_directory(folder: Path, provenance: Provenance) -> Subject:
    """A directory of the hub with a sentence encoder, as a text encoder."""
    config = huggingface.read_json(folder / "config.json")
    pooling, normalised = _pooling(folder)
    network = huggingface.built(folder, config, huggingface.weights(folder), "AutoModel")
    around = read_tokenizer(folder)
    note = f"a sentence's embedding is the {pooling} of its words' vectors{', at length 1' if normalised else ''}"
    found = text_models.adapted(folder.name, {**config, "problem_type": None, "id2label": None},
                                Sentences(network, pooling, normalised), around,
                                replace(provenance, notes=(*provenance.notes, note)))
    assert isinstance(found.modality, Text)
    return replace(found, modality=replace(found.modality, name="text_encoder"), class_names=())


def _pooling(folder: Path) -> tuple[str, bool]:
    """How vectors become one, and whether it is brought to length 1."""
    settings: dict[str, Any] = {}
    if (folder / "1_Pooling" / "config.json").is_file():
        settings = huggingface.read_json(folder / "1_Pooling" / "config.json")
    chosen = [p for p, key in zip(POOLINGS, ("pooling_mode_mean_tokens", "pooling_mode_cls_token",
                                             "pooling_mode_max_tokens"), strict=True) if settings.get(key) is True]
    if settings and len(chosen) != 1:
        raise InputError(f"{folder.name}/1_Pooling/config.json chooses {chosen or 'none'} of {', '.join(POOLINGS)}.",
                         "Encoders that pool in one of these ways are examined.")
    modules = folder / "modules.json"
    named = modules.read_text(encoding="utf-8", errors="replace")[:65536] if modules.is_file() else ""
    return (chosen or ["mean"])[0], "models.Normalize" in named
