"""A directory of the Hugging Face hub: a classifier of transformers or of timm, safetensors only.

Nothing that the configuration names is imported: no remote code, no attention kernels from the hub, no adapters, no
quantisation back ends. The weights are checked, then given to a class of the installed library.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.files import safetensors
from laocoon.files.architecture import from_timm
from laocoon.files.danger import Danger
from laocoon.files.wording import first_line, printable
from laocoon.modalities.raw import ModelOptions, RawModel

LARGEST_JSON = 16 * 2**20
_DROPPED = (
    "auto_map",
    "custom_pipelines",
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "experts_implementation",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "architectures",
    "transformers_version",
    "model_type",
    "trust_remote_code",
)


def read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_JSON:
        raise BrokenFile(f"{path.name} has {path.stat().st_size} bytes.", f"At most {LARGEST_JSON} are read.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path.name} is not JSON ({first_line(error, 80)}).", "Fetch it again.") from error
    if not isinstance(value, dict):
        raise BrokenFile(f"{path.name} is not a JSON object.", "Fetch it again.")
    return value


def inspect(folder: Path) -> list[Danger]:
    """Code that the configuration asks to import."""
    found = []
    for name in ("config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            named = read_json(folder / name).get("auto_map")
            if named:
                found.append(
                    Danger(
                        "remote-code",
                        f"{name} asks to import code from the model's folder",
                        (printable(named, 200),),
                        "Ask for the model without custom code, or as ONNX.",
                        0.8,
                    )
                )
    return found


def weights_of(folder: Path) -> list[Path]:
    """The safetensors files of the folder, through their index if there is one."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
    mapping = read_json(index).get("weight_map")
    names = sorted({str(v) for v in mapping.values()}) if isinstance(mapping, dict) else []
    bad = [n for n in names if "/" in n or "\\" in n or n.startswith(".") or not n.endswith(".safetensors")]
    if bad or not names or len(names) > 1000:
        raise BrokenFile(f"{index.name} names the file {printable((bad or ['nothing'])[0])!r}.", "Fetch it again.")
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise BrokenFile(f"{printable(missing[0])} of {index.name} is missing.", "Fetch all parts.")
    return [folder / n for n in names]


class _Logits(nn.Module):
    """A classifier of transformers that returns its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(pixel_values=x, return_dict=True).logits
        return result


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files."""
    files = weights_of(folder)
    if not files:
        old = sorted(p.name for p in folder.glob("*.bin"))[:1] or sorted(p.name for p in folder.glob("*.pt*"))[:1]
        raise InputError(f"{folder.name} has no model.safetensors{f', only the pickle {old[0]}' if old else ''}.",
                         "Only safetensors are loaded from a directory: convert the weights.")
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(safetensors.read(file))
    return state


def open_directory(folder: Path, options: ModelOptions) -> RawModel:
    config = read_json(folder / "config.json")
    state = weights(folder)
    if "architecture" in config and "model_type" not in config:
        inner = config.get("pretrained_cfg")
        cfg: dict[str, Any] = {**(inner if isinstance(inner, dict) else {}), **config}
        names = cfg.get("label_names")
        raw = from_timm(state, str(config["architecture"]), folder.name, options, "huggingface", cfg)
        return _named(raw, names if isinstance(names, list) else [])
    return _transformers(folder, config, state, options)


def _named(raw: RawModel, names: list[Any]) -> RawModel:
    from dataclasses import replace

    return replace(raw, class_names=tuple(printable(n, 80) for n in names))


def built(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], auto: str) -> nn.Module:
    """The network that one of transformers' classes `auto` makes of a configuration, with the weights in it."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtra(
            "a Hugging Face directory needs transformers.", "pip install 'laocoon[transformers]'"
        ) from error
    kind = config.get("model_type")
    what = {"AutoModelForSequenceClassification": "text classifiers", "AutoModel": "encoders"}.get(
        auto, "image classifiers")
    if not isinstance(kind, str):
        raise InputError(f"{folder.name}/config.json names no model_type.", f"Only {what} are examined.")
    kept = {k: v for k, v in config.items() if k not in _DROPPED}
    named = config.get("architectures")  # chooses among transformers' own classes, where a model_type has several
    kept["architectures"] = [n for n in named if isinstance(n, str)] if isinstance(named, list) else []
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = transformers.AutoConfig.for_model(kind, **kept)
            made._attn_implementation = "eager"
            if kind == "timm_wrapper":
                made.model_args = None
            network = getattr(transformers, auto).from_config(made, trust_remote_code=False)
            loaded = type(network).from_pretrained(None, config=made, state_dict=dict(state),
                                                   output_loading_info=True, ignore_mismatched_sizes=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError, AssertionError, OSError,
            ZeroDivisionError, IndexError, NotImplementedError, OverflowError) as error:
        raise InputError(f"{folder.name}: transformers cannot build the model_type {printable(kind, 40)!r} "
                         f"({first_line(error, 140)}).", f"Only its {what} are examined.") from error
    model, info = loaded
    # A pooler that nobody trained is often left out of encoders; nothing is read from it then.
    absent = (k for k in info.get("missing_keys", ()) if auto != "AutoModel" or not str(k).startswith("pooler."))
    lacking = sorted(absent) + [str(m) for m in info.get("mismatched_keys", ())]
    if lacking:
        raise InputError(f"{folder.name}: {len(lacking)} weights are missing or of another shape "
                         f"({', '.join(printable(n, 80) for n in lacking[:3])}).", "Fetch the matching config.json.")
    finished: nn.Module = model.float().eval()
    return finished


class _Embeddings(nn.Module):
    """An encoder of transformers: its pooled output where its weights are there, and the last hidden state."""

    def __init__(self, network: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.network, self.pooled = network, pooled

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        result = self.network(pixel_values=x, return_dict=True)
        found = {"last_hidden_state": result.last_hidden_state}
        pooled = getattr(result, "pooler_output", None) if self.pooled else None
        return found if pooled is None else {"pooler_output": pooled, **found}


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that `id2label` names, in their order."""
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        return ()
    return tuple(printable(labels[k], 80) for k in sorted(labels, key=lambda k: int(k) if str(k).isdigit() else 0))


def _transformers(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor],
                  options: ModelOptions) -> RawModel:
    encodes = options.task == "encoder" and options.layer is None
    model = built(folder, config, state, "AutoModel" if encodes else "AutoModelForImageClassification")
    preparation = folder / "preprocessor_config.json"
    defaults = preprocessing(read_json(preparation)) if preparation.is_file() else ModelOptions()
    if defaults.size is None and isinstance(config.get("image_size"), int):
        defaults = ModelOptions(size=(config["image_size"],) * 2).over(defaults)
    channels = config.get("num_channels", 3)
    defaults = defaults.over(ModelOptions(image_channels=channels if channels in (1, 3, 4) else None))
    if encodes:
        trained = not any(n.startswith("pooler.") for n, _ in model.named_parameters()) or any(
            ".pooler." in f".{k}" for k in state)
        return RawModel(_Embeddings(model, trained), "huggingface", defaults=defaults,
                        metadata={"model_type": printable(config["model_type"], 40)})
    return RawModel(_Logits(model), "huggingface", None, ("logits",), (True,), ("",), defaults=defaults,
                    class_names=label_names(config), metadata={"model_type": printable(config["model_type"], 40)})


def preprocessing(config: Mapping[str, Any]) -> ModelOptions:
    """Size, range and normalisation of a preprocessor_config.json."""
    size = config.get("crop_size") if config.get("do_center_crop") and config.get("crop_size") else config.get("size")
    pair = None
    if isinstance(size, int):
        pair = (size, size)
    elif isinstance(size, dict):
        h, w = size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))
        pair = (h, w) if isinstance(h, int) and isinstance(w, int) else None
    factor = config.get("rescale_factor", 1 / 255)
    scaled = bool(config.get("do_rescale", True))
    reach = "0-1" if scaled and isinstance(factor, int | float) and abs(factor * 255 - 1) < 0.01 else \
        "-1-1" if scaled and isinstance(factor, int | float) and abs(factor * 127.5 - 1) < 0.01 else "0-255"
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", mean is not None):
        mean = std = None

    def numbers(values: Any) -> tuple[float, ...] | None:
        if isinstance(values, list) and len(values) in (1, 3, 4) and all(isinstance(v, int | float) for v in values):
            return tuple(float(v) for v in values)
        return None

    return ModelOptions(input_range=reach, size=pair, mean=numbers(mean), std=numbers(std))
