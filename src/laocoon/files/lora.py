"""A LoRA adapter over a text classifier (arXiv 2106.09685), merged: W + (alpha / r) · B · A for every adapted matrix.

The adapter's safetensors and its configuration are read here; the library that trains adapters is not needed, and what
its configuration may name beside LoRA (prompts, DoRA, quantised bases) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.subject import Provenance, Subject
from laocoon.files import huggingface, safetensors
from laocoon.files.text_models import opened
from laocoon.files.text_tokenizer import has_tokenizer
from laocoon.files.wording import printable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIXES = ("base_model.model.", "base_model.")
_HEADS = ("classifier.out_proj.weight", "classifier.weight", "score.weight", "out_proj.weight")
Locate = Callable[[str], Path]


def open_adapter(folder: Path, base: str | None, provenance: Provenance, locate: Locate) -> Subject:
    """The adapted classifier. `base`: path or hub id of the model underneath; None: what the adapter says."""
    config = huggingface.read_json(folder / CONFIG)
    scale_of = _scaling(config, folder.name)
    below = _base(folder, config, base, locate)
    if not (folder / WEIGHTS).is_file():
        old = " only the pickle adapter_model.bin" if (folder / "adapter_model.bin").is_file() else ""
        raise InputError(f"{folder.name} has no {WEIGHTS}{old and f',{old}'}.", "Only safetensors are loaded.")
    told = {_short(k): v for k, v in safetensors.read(folder / WEIGHTS).items()}
    state = _prefixed(huggingface.weights(below), told)
    own = dict(huggingface.read_json(below / "config.json"))
    merged = _merged(state, told, scale_of, bool(config.get("fan_in_fan_out")), folder.name)
    head = next((merged[k] for k in _HEADS if k in merged and merged[k].dim() == 2), None)
    if head is not None and len(head) != len(own.get("id2label") or {0: "", 1: ""}):
        own = {k: v for k, v in own.items() if k not in ("id2label", "label2id")} | {"num_labels": len(head)}
    note = f"a LoRA adapter over {printable(below.name, 80)}, merged into its weights"
    return opened(below, own, merged, replace(provenance, notes=(*provenance.notes, note)),
                  folder if has_tokenizer(folder) else None)


def _scaling(config: Mapping[str, Any], where: str) -> Callable[[int], float]:
    """alpha / r of an adapter of rank r, once its configuration holds nothing else than LoRA."""
    kind = config.get("peft_type")
    if str(kind).upper() != "LORA":
        raise InputError(f"{where} is an adapter of the kind {printable(kind, 40)!r}.", "Only LoRA is merged.")
    extra = next((k for k in ("use_dora", "alpha_pattern", "megatron_config", "layer_replication", "loftq_config",
                              "alora_invocation_tokens", "trainable_token_indices") if config.get(k)), None)
    if extra is not None:
        raise InputError(f"{where}/{CONFIG} sets {extra}.", "Merge the adapter with its own library, and scan the "
                         "whole model.")
    alpha = config.get("lora_alpha", 8)
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise BrokenFile(f"{where}/{CONFIG}: lora_alpha is {printable(alpha, 40)!r}.", "It is a number.")
    root = bool(config.get("use_rslora"))
    return lambda rank: float(alpha) / (math.sqrt(rank) if root else rank)


def _base(folder: Path, config: Mapping[str, Any], told: str | None, locate: Locate) -> Path:
    named = told or config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise InputError(f"{folder.name}/{CONFIG} names no base model.", "Pass its folder with --architecture.")
    try:
        place = locate(named)
    except InputError as error:
        raise InputError(f"{folder.name} is an adapter over {printable(named, 120)!r}, which cannot be opened: "
                         f"{error.problem}", "Pass the folder of the base model with --architecture.") from error
    if not (place / "config.json").is_file():
        raise InputError(f"the base model {printable(named, 120)} is no Hugging Face folder with a config.json.",
                         "Pass its folder with --architecture.")
    return place


def _short(key: str) -> str:
    """An adapter's key without what its library wraps around the network."""
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            key = key.removeprefix(prefix)
            break
    return key.replace(".modules_to_save.default", "").replace(".modules_to_save", "").replace(".default.", ".")


def _prefixed(state: Mapping[str, Tensor], told: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's weights under the names of the adapted network: an encoder alone lacks the first part of them."""
    adapted = [k.partition(".lora_")[0] for k in told if ".lora_" in k]
    for name in adapted:
        first, _, rest = name.partition(".")
        if f"{name}.weight" not in state and f"{rest}.weight" in state:
            return {f"{first}.{k}": v for k, v in state.items()}
    return dict(state)


@torch.no_grad()
def _merged(state: dict[str, Tensor], told: Mapping[str, Tensor], scale_of: Callable[[int], float], turned: bool,
            where: str) -> dict[str, Tensor]:
    """The base's weights with every A and B added, and every whole tensor of the adapter in its place."""
    result = dict(state)
    used = set()
    for key, a in told.items():
        if not key.endswith((".lora_A.weight", ".lora_embedding_A")):
            continue
        table = key.endswith("_embedding_A")
        name, other = key.partition(".lora_")[0], key.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B")
        b, weight = told.get(other), result.get(f"{name}.weight")
        shown = printable(name, 80)
        if b is None or weight is None:
            missing = "the matrix B" if b is None else "a weight in the base"
            raise InputError(f"{where}: {shown!r} lacks {missing}.", "Adapter and base do not belong together.")
        if a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0]:
            raise BrokenFile(f"{where}: {shown!r} has A of {list(a.shape)} and B of {list(b.shape)}.", "It is damaged.")
        change = b.float() @ a.float() * scale_of(a.shape[0])
        change = change.T if table or turned else change
        if change.shape != weight.shape:
            raise InputError(f"{where}: {shown!r} adapts a matrix of {list(change.shape)}, the base's is "
                             f"{list(weight.shape)}.", "Adapter and base do not belong together.")
        result[f"{name}.weight"] = (weight.float() + change).to(weight.dtype)
        used |= {key, other}
    left = {k: v for k, v in told.items() if k not in used}
    if not used or any(".lora_" in k for k in left):
        odd = next((k for k in left if ".lora_" in k), "nothing")
        raise BrokenFile(f"{where}: the adapter holds {printable(odd, 80)!r} beside its pairs A and B.",
                         "It is damaged.")
    return result | left
