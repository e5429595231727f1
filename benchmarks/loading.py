"""Which files open, and whether they answer as the library that wrote them: docs/results/loading.md.

    python benchmarks/loading.py [--only NAME ...] [--formats NAME ...] [--rows FILE] [--out FILE.md]

Architectures of timm, torchvision and transformers with random weights (none downloads anything), written in every
format that their exporters allow, opened with `load_model` and asked for a batch of another size than the exporter saw.
`--rows` keeps the rows, so that parts can be run one by one: what is in the file already is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from graph_flags import EXPORTERS_RAISE, TIMM, TORCHVISION, TRANSFORMERS, library
from safetensors.torch import save_file
from torch import Tensor, nn

from laocoon import load_model
from laocoon.core.card import Capability
from laocoon.core.errors import LaocoonError
from laocoon.core.subject import Subject
from laocoon.modalities.raw import ModelOptions
from laocoon.recipes.conformal import binomial_interval

TARGET = Path(__file__).parent.parent / "docs" / "results" / "loading.md"
COMMON = ("alexnet", "vgg11_bn", "mobilenet_v2", "resnext50_32x4d", "resnet50", "wide_resnet50_2", "vit_b_32",
          "efficientnet_v2_s", "shufflenet_v2_x1_0")  # of torchvision, beside those of the static checks
COMMON_TIMM = ("resnet18", "mobilenetv3_small_100", "deit_tiny_patch16_224", "convnext_atto", "densenet121",
               "regnetx_002", "seresnet18", "mnasnet_small", "tf_efficientnet_lite0", "vgg11")
FAINT = 1e-4  # answers of random weights below which they are drawn anew
CLOSE = 1e-3  # of the largest logit: other kernels add up in another order
BATCH = 3


@dataclass(frozen=True)
class Row:
    """One network in one format. `off`: largest difference from the library's logits in units of the largest one."""

    name: str
    format: str
    outcome: str  # "same", "differs", "refused" or "not written"
    off: float | None
    told: str
    seconds: float


# ---------------------------------------------------------------- formats
def traced_onnx(module: nn.Module, x: Tensor, folder: Path) -> Path:
    torch.onnx.export(module, (x,), str(folder / "m.onnx"), dynamo=False, opset_version=17, input_names=["x"],
                      output_names=["logits"], dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}})
    return folder / "m.onnx"


def dynamo_onnx(module: nn.Module, x: Tensor, folder: Path) -> Path:
    torch.onnx.export(module, (x.repeat(2, 1, 1, 1),), str(folder / "m.onnx"), dynamo=True, verbose=False,
                      dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    return folder / "m.onnx"


def fixed_onnx(module: nn.Module, x: Tensor, folder: Path) -> Path:
    torch.onnx.export(module, (x,), str(folder / "m.onnx"), dynamo=False, opset_version=13)
    return folder / "m.onnx"


def script(module: nn.Module, x: Tensor, folder: Path) -> Path:
    with torch.no_grad():  # as most do: attention is then one fused operator
        torch.jit.trace(module, x, check_trace=False).save(str(folder / "m.pt"))
    return folder / "m.pt"


def program(module: nn.Module, x: Tensor, folder: Path) -> Path:
    shapes = ({0: torch.export.Dim("n", min=1, max=64)},)
    torch.export.save(torch.export.export(module, (x.repeat(2, 1, 1, 1),), dynamic_shapes=shapes), folder / "m.pt2")
    return folder / "m.pt2"


def weights(module: nn.Module, x: Tensor, folder: Path) -> Path:
    state = {k: v.clone().contiguous() for k, v in module.state_dict().items()}
    save_file(state, folder / "m.safetensors")
    return folder / "m.safetensors"


def hugging_face(module: nn.Module, x: Tensor, folder: Path) -> Path:
    module.model.save_pretrained(folder / "m")  # type: ignore[operator,union-attr]
    return folder / "m"


FORMATS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Path], Path]]] = {
    "onnx": ("ONNX, by tracing", traced_onnx),
    "onnx-fixed": ("ONNX of one picture, opset 13", fixed_onnx),
    "onnx-dynamo": ("ONNX, by torch.export", dynamo_onnx),
    "torch.export": ("torch.export", program),
    "torchscript": ("TorchScript", script),
    "weights": ("safetensors and an architecture's name", weights),
    "folder": ("Hugging Face folder", hugging_face),
}


def fits(name: str, form: str) -> bool:
    if form == "folder":
        return name.startswith("transformers:")
    return form != "weights" or name.startswith(("timm:", "torchvision:"))


# ---------------------------------------------------------------- judging
def judge(name: str, module: nn.Module, x: Tensor, form: str) -> Row:
    rng = torch.Generator().manual_seed(1)
    batch = torch.rand(BATCH, *x.shape[1:], generator=rng)
    with torch.no_grad():
        for weight in module.parameters():
            if not weight.any():  # heads that begin at zero answer the same to everything
                weight.normal_(0, 0.1, generator=rng)
        wanted = module(batch)
        if (wanted[0] if isinstance(wanted, tuple) else wanted).abs().max() < FAINT:  # nothing but rounding to compare
            for weight in module.parameters():
                if weight.dim() > 1:
                    nn.init.kaiming_normal_(weight, generator=rng)
            wanted = module(batch)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path = FORMATS[form][1](copy.deepcopy(module), x, Path(place))
        except (*EXPORTERS_RAISE, NotImplementedError, torch.onnx.errors.OnnxExporterError) as error:
            return Row(name, form, "not written", None, type(error).__name__, 0.0)
        start = time.perf_counter()
        try:
            called = _called(name) if form == "weights" else None
            subject = load_model(path, architecture=called, options=_told(x))
            got, told = _asked(subject, batch)
        except LaocoonError as error:
            return Row(name, form, "refused", None, str(error), time.perf_counter() - start)
        seconds = time.perf_counter() - start
    if got.shape != wanted.shape:
        return Row(name, form, "differs", None, f"{tuple(got.shape)} instead of {tuple(wanted.shape)}", seconds)
    off = float((got - wanted).abs().max() / wanted.abs().max())
    return Row(name, form, "same" if off < CLOSE else "differs", off, told, seconds)


def _called(name: str) -> str:
    place, _, architecture = name.partition(":")
    return architecture if place == "timm" else f"torchvision:{architecture}"


def _told(x: Tensor) -> ModelOptions:
    """What a user says of pictures that the exporter saw as they are."""
    return ModelOptions(input_range="0-1", mean=(0.0,), std=(1.0,), size=(int(x.shape[-2]), int(x.shape[-1])))


def _asked(subject: Subject, batch: Tensor) -> tuple[Tensor, str]:
    """Its logits, and what it lacks: a gradient that reaches the pixels."""
    subject.module.requires_grad_(False)
    pixels = batch.clone().requires_grad_(Capability.GRADIENT in subject.capabilities)
    found = subject.outputs(pixels).logits
    if not pixels.requires_grad:
        return found.detach(), "no gradient"
    (gradient,) = torch.autograd.grad(found.square().sum(), pixels)
    return found.detach(), "" if gradient.abs().sum() > 0 and gradient.isfinite().all() else "no gradient arrives"


def page(rows: Sequence[Row]) -> str:
    lines = [
        "# Files that open", "",
        "Command: `python benchmarks/loading.py`, tier `desk`. Architectures of timm, torchvision and transformers "
        "with random weights, each written in every format that its exporters allow and opened again. *Same*: the "
        f"logits of {BATCH} pictures are those of the library to {CLOSE:g} of the largest. Intervals: Clopper-Pearson, "
        "95 %.", "",
        "| format | written | same | gradient reaches the pixels | differ | refused | seconds, median |",
        "|-|-|-|-|-|-|-|"]
    for form, (title, _) in FORMATS.items():
        some = [r for r in rows if r.format == form and r.outcome != "not written"]
        if not some:
            continue
        same = [r for r in some if r.outcome == "same"]
        low, high = binomial_interval(len(same), len(some))
        times = sorted(r.seconds for r in some)
        counts = [sum(not r.told for r in same), *(sum(r.outcome == o for r in some) for o in ("differs", "refused"))]
        lines.append(f"| {title} | {len(some)} | {len(same)} [{low:.0%}, {high:.0%}] | "
                     + " | ".join(map(str, counts)) + f" | {times[len(times) // 2]:.1f} |")
    wrong = [r for r in rows if r.outcome in ("differs", "refused") or (r.outcome == "same" and r.told)]
    lines += ["", "## What does not", "", "| network | format | outcome | what was said |", "|-|-|-|-|"]
    lines += [f"| {r.name} | {FORMATS[r.format][0]} | {r.outcome}{'' if r.off is None else f', {r.off:.2g}'} | "
              f"{r.told.replace('|', '/') or '–'} |" for r in wrong]
    lines += ["", "## Every network", "", f"| network | {' | '.join(t for t, _ in FORMATS.values())} |",
              "|-" * (len(FORMATS) + 1) + "|"]
    for name in dict.fromkeys(r.name for r in rows):
        said = {r.format: r.outcome for r in rows if r.name == name}
        lines.append(f"| {name} | {' | '.join(said.get(f, '–') for f in FORMATS)} |")
    return "\n".join([*lines, ""])


def wanted(names: Sequence[str]) -> Iterator[str]:
    every = [*(f"torchvision:{n}" for n in (*TORCHVISION, *COMMON)), *(f"timm:{n}" for n in (*COMMON_TIMM, *TIMM)),
             *(f"transformers:{n}" for n in TRANSFORMERS)]
    yield from names or every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="timm:NAME, torchvision:NAME, transformers:NAME")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    kept = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = [Row(**json.loads(line)) for line in kept]
    done = {(r.name, r.format) for r in rows}
    for name in wanted(options.only):
        forms = [f for f in options.formats if fits(name, f) and (name, f) not in done]
        for _, module, inputs in library([name]) if forms else ():
            for form in forms:
                row = judge(name, module, inputs[0], form)
                rows.append(row)
                if options.rows:
                    with options.rows.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")
                print(name, form, row.outcome, row.off, row.told[:150], f"{row.seconds:.1f} s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(rows))


if __name__ == "__main__":
    main()
