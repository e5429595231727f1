"""Weights with an architecture: a name of timm or torchvision is built here, a user's factory in the child."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laocoon.core.errors import InputError, MissingExtra
from laocoon.files import safetensors, state_dict
from laocoon.files.onnx import LARGEST_FILE, open_bytes
from laocoon.files.sandbox import Limits, confined
from laocoon.files.wording import first_line, printable
from laocoon.modalities.raw import ModelOptions, RawModel

_FACTORY = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
HELP = ("Give it: a timm name (timm:resnet18), a torchvision name (torchvision:resnet18) or a factory of yours "
        "(package.module:function).")
PUBLISHED = 1000  # classes of the weights that libraries publish


def open_weights(path: Path, kind: str, architecture: str | None, options: ModelOptions) -> RawModel:
    """A model from weights (`kind`: safetensors or state dict) and the name of what they belong to."""
    if architecture is None:
        metadata = safetensors.check(path) if kind == "safetensors" else {}
        architecture = metadata.get("architecture")
        if architecture is None or ":" in architecture:  # a file may name a known architecture, not code to run
            raise InputError(f"{path.name} holds weights without the network that they belong to.", HELP)
    if _FACTORY.match(architecture) and not architecture.startswith(("timm:", "torchvision:")):
        return _from_factory(path, kind, architecture, options)
    state = safetensors.read(path) if kind == "safetensors" else state_dict.read(path)
    if architecture.startswith("torchvision:"):
        return _torchvision(state, architecture.removeprefix("torchvision:"), path.name, kind)
    return from_timm(state, architecture.removeprefix("timm:"), path.name, options, kind)


def _build(make: Callable[[], Any], name: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = make()
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        raise InputError(f"architecture {printable(name)!r} cannot be built ({first_line(error)}).", HELP) from error
    assert isinstance(module, nn.Module)
    return module


def _loaded(module: nn.Module, state: Mapping[str, Tensor], where: str) -> nn.Module:
    own = module.state_dict()
    fitting = OrderedDict(state_dict.fitted(state, own, where))
    # Files keep no versions of layers; some refuse to load without one. The names and shapes are those of today.
    fitting._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{where} cannot be loaded into the architecture ({first_line(error)}).", HELP) from error
    return module.eval()


def _rows(state: Mapping[str, Tensor], names: tuple[str, ...]) -> int | None:
    """Number of classes: rows of the named classifier, or of the last matrix."""
    for name in names:
        for key, value in state.items():
            if key.endswith(f"{name}.weight") and value.dim() >= 2:
                return int(value.shape[0])
    last = [v for k, v in state.items() if k.endswith("weight") and v.dim() >= 2]
    return int(last[-1].shape[0]) if last else None


def _timm(name: str) -> Any:
    """The library, where it is installed and has this architecture."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtra(
            f"the architecture {printable(name)!r} needs timm.", "pip install 'laocoon[timm]'"
        ) from error
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name) or not timm.is_model(name):
        known_names = timm.list_models()
        within = timm.list_models(f"*{re.sub(r'[^a-z0-9]', '*', name.lower())}*")
        close = ", ".join(within[:5] or difflib.get_close_matches(name.lower(), known_names, 5))
        raise InputError(f"timm has no architecture {printable(name)!r}.", f"Near: {close}." if close else HELP)
    return timm


def timm_network(name: str, channels: int, size: tuple[int, int] | None, classes: int) -> nn.Module:
    """An initialised network of timm. size: of the images; None: as timm has it."""
    timm = _timm(name)

    def usual() -> Any:
        return timm.create_model(name, num_classes=classes, in_chans=channels)

    def resized() -> Any:
        return timm.create_model(name, num_classes=classes, in_chans=channels, img_size=size)

    if size is None:
        return _build(usual, name)
    try:
        return _build(resized, name)
    except InputError:  # convolutional networks take no size
        return _build(usual, name)


def from_timm(state: Mapping[str, Tensor], name: str, where: str, options: ModelOptions, kind: str,
              settings: Mapping[str, Any] | None = None) -> RawModel:
    """`settings` are the classes, normalisation and size that a configuration file gives."""
    timm = _timm(name)
    known = timm.models.get_pretrained_cfg(name)
    config: dict[str, Any] = known.to_dict() if known is not None else {}
    settings = settings or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    classes = _rows(state, heads) or 1000
    headless = options.task == "encoder" and not any(k.endswith(f"{h}.weight") for h in heads for k in state)
    if headless:
        classes = 0
    stems = config.get("first_conv") or ()
    channels = next((int(v.shape[1]) for s in ((stems,) if isinstance(stems, str) else stems)
                     for k, v in state.items() if k.endswith(f"{s}.weight") and v.dim() == 4), 3)
    size = options.size or _pair(settings.get("input_size")) or _pair(config.get("input_size"))

    sized = size is not None and size != _pair(config.get("input_size"))
    module = timm_network(name, channels, size if sized else None, classes)
    notes = []
    mean, std = settings.get("mean"), settings.get("std")
    if mean is None and (headless or classes == config.get("num_classes")):
        mean, std = config.get("mean"), config.get("std")
        notes.append("normalisation as timm gives it for this architecture")
    if options.size is None and not settings.get("input_size"):
        notes.append(f"assumed: images of {size} (the size that timm gives for this architecture)")
    defaults = ModelOptions(
        size=size,
        image_channels=channels,
        mean=_numbers(mean, channels),
        std=_numbers(std, channels),
        input_range="0-1" if mean is not None else None,
    )
    answer = "embedding" if headless else "logits"
    return RawModel(_loaded(module, state, where), kind, None, (answer,), (not headless,), ("",), defaults=defaults,
                    notes=tuple(notes), metadata={"architecture": f"timm:{name}"})


def _pair(size: Any) -> tuple[int, int] | None:
    return (int(size[-2]), int(size[-1])) if isinstance(size, list | tuple) and len(size) >= 2 else None


def _numbers(values: Any, channels: int) -> tuple[float, ...] | None:
    if not isinstance(values, list | tuple) or len(values) not in (1, channels):
        return None
    return tuple(float(v) for v in values)


def _torchvision(state: Mapping[str, Tensor], name: str, where: str, kind: str) -> RawModel:
    try:
        import torchvision
    except ImportError as error:
        raise MissingExtra(f"the architecture {printable(name)!r} needs torchvision.",
                           "pip install 'laocoon[timm]'") from error
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(f"torchvision has no classifier {printable(name)!r}.", HELP)

    def make(classes: int) -> nn.Module:
        return _build(lambda: torchvision.models.get_model(name, weights=None, num_classes=classes), name)

    # The head is what has another shape where there are more classes; each family calls it differently.
    try:
        with torch.device("meta"):
            few, more = (make(n).state_dict() for n in (2, 3))
    except InputError:  # some look at numbers of their own while they are built
        few, more = (make(n).state_dict() for n in (2, 3))
    heads = [k for k in few if few[k].shape != more[k].shape]
    rows = [v.shape[0] for k, v in state.items() if v.dim() and any(f".{k}".endswith(f".{h}") for h in heads)]
    classes = int(rows[-1]) if rows else PUBLISHED
    defaults, notes = ModelOptions(image_channels=3), tuple[str, ...]()
    if classes == PUBLISHED:  # other classes were learnt from other pictures, of any size
        usual = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        side = int(usual.crop_size[0])
        defaults = replace(defaults, size=(side, side), mean=tuple(usual.mean), std=tuple(usual.std), input_range="0-1")
        notes = (f"assumed: images of {(side, side)}, brought to the mean and spread that torchvision gives for this "
                 "architecture",)
    return RawModel(_loaded(make(classes), state, where), kind, None, ("logits",), (True,), ("",), defaults=defaults,
                    notes=notes, metadata={"architecture": f"torchvision:{name}"})


# ---------------------------------------------------------------- a user's factory
def _from_factory(path: Path, kind: str, factory: str, options: ModelOptions) -> RawModel:
    arguments = {"path": str(path.resolve()), "kind": kind, "factory": factory, **plain(options)}
    with confined("laocoon.files.architecture:convert", arguments, what=f"the factory {factory}",
                  readable=(path,), importable=(Path.cwd(),), limits=Limits()) as result:
        raw = converted(result.folder, path.name, options, kind)
    return replace(raw, metadata={**raw.metadata, "architecture": factory},
                   notes=(*raw.notes, "built by the factory in a process without network, converted to a graph"))


def plain(options: ModelOptions) -> dict[str, Any]:
    """The options that a child needs to find an input."""
    return {"size": options.size, "image_channels": options.image_channels, "layout": options.layout,
            "modality": options.modality, "columns": len(options.columns or ())}


def converted(folder: Path, name: str, options: ModelOptions, origin: str) -> RawModel:
    """The ONNX file that a child left, opened as strictly as a stranger's."""
    target = folder / "model.onnx"
    if not target.is_file() or target.is_symlink() or target.stat().st_size > LARGEST_FILE:
        raise InputError(f"{name} could not be converted to a graph.", "Export it to ONNX from its source.")
    return open_bytes(target.read_bytes(), name, None, options, origin)


def convert(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """In the child: call the factory, load the weights, write model.onnx."""
    import importlib

    from laocoon.files.to_onnx import example_for, export

    module_name, _, path = arguments["factory"].partition(":")
    try:
        made: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"the module {error.name} of the factory {arguments['factory']} cannot be found.",
                         "Run from the folder that holds it, or install it.") from error
    for part in path.split("."):
        made = getattr(made, part, None)
    if not callable(made):
        raise InputError(f"{arguments['factory']} is not a function or class.", HELP)
    network = made()
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{arguments['factory']} returned a {type(network).__name__}.", "It must return a torch module."
        )
    file = Path(arguments["path"])
    state = safetensors.read(file) if arguments["kind"] == "safetensors" else state_dict.read(file)
    network = _loaded(network.float(), state, file.name)
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    example = example_for(network, shapes, arguments)
    export(network, example, folder / "model.onnx")
    return {"shape": list(example.shape[1:])}

