"""Flags of the static checks on honest and on backdoored graphs: docs/results/graph_flags.md.

    python benchmarks/graph_flags.py [--formats NAME ...] [--library NAME ...] [--rows FILE] [--out FILE.md]

Networks are untrained: the checks read the graph, where weights hardly matter. The small ones come from
laocoon.testing; `--library all` adds architectures of timm, torchvision and transformers (none downloads anything).
Each is written in every format that a converter allows. `--rows` keeps the rows, so that parts can be run one by one:
what is in the file already is not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import onnx
import torch
from graph_evasions import evading
from torch import Tensor, nn

from laocoon.core.cases import ModelCase
from laocoon.core.context import Context
from laocoon.core.errors import LaocoonError
from laocoon.core.subject import Subject
from laocoon.detectors.model.architectural_backdoor import ArchitecturalBackdoor
from laocoon.detectors.model.potrojan import PoTrojan
from laocoon.detectors.model.weight_sanity import WeightSanity
from laocoon.modalities.image import Image
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.graphs import read_graph
from laocoon.testing.branching import CLASSES, Sketch, honest
from laocoon.testing.graph_backdoors import planted

TARGET = Path(__file__).parent.parent / "docs" / "results" / "graph_flags.md"
Inputs = tuple[Tensor, ...]

TIMM = ("skresnet18", "resnest14d", "res2net50_26w_4s", "hrnet_w18_small", "dla34", "ghostnet_100", "mobilevit_xxs",
        "edgenext_xx_small", "poolformer_s12", "xcit_nano_12_p16_224", "vit_tiny_patch16_224", "coat_lite_tiny",
        "levit_128s", "pvt_v2_b0", "gmlp_s16_224", "mixer_s32_224", "convmixer_768_32", "repvgg_a0", "fastvit_t8",
        "eca_nfnet_l0", "cait_xxs24_224", "visformer_tiny", "gcresnext26ts", "lambda_resnet26t", "halonet26t",
        "bat_resnext26ts", "efficientnet_cc_b0_4e", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "repghostnet_050")
TORCHVISION = ("resnet18", "densenet121", "googlenet", "inception_v3", "squeezenet1_1", "shufflenet_v2_x0_5",
               "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "mnasnet0_5", "convnext_tiny", "swin_t",
               "swin_v2_t", "maxvit_t")
TRANSFORMERS = ("ViT", "Beit", "Swinv2", "ConvNextV2", "Levit", "PoolFormer", "MobileViT", "Dinov2")


@dataclass(frozen=True)
class Row:
    """One network in one format. `score` is None where it could not be written or read."""

    kind: str  # "honest", "library" or a family of backdoors
    name: str
    format: str
    score: float | None
    told: str
    seconds: float


# ---------------------------------------------------------------- formats
def _script(module: nn.Module, inputs: Inputs) -> torch.jit.ScriptModule:
    return module if isinstance(module, torch.jit.ScriptModule) else torch.jit.trace(module, inputs, check_trace=False)


def onnx_tracing(module: nn.Module, inputs: Inputs) -> object:
    file = io.BytesIO()
    torch.onnx.export(module, inputs, file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def onnx_dynamo(module: nn.Module, inputs: Inputs) -> object:
    return _dynamo(module, inputs, optimise=True)


def torchscript(module: nn.Module, inputs: Inputs) -> object:
    """As a scan does it: the script becomes ONNX, nothing folded."""
    file = io.BytesIO()
    torch.onnx.export(_script(module, inputs), inputs, file, dynamo=False, do_constant_folding=False,
                      training=torch.onnx.TrainingMode.PRESERVE)
    return onnx.load_from_string(file.getvalue())


def torch_export(module: nn.Module, inputs: Inputs) -> object:
    """As a scan does it: the program becomes ONNX, nothing folded."""
    return _dynamo(module, inputs, optimise=False)


def _dynamo(module: nn.Module, inputs: Inputs, *, optimise: bool) -> object:
    program = torch.onnx.export(torch.export.export(module, inputs), (), dynamo=True, optimize=optimise, verbose=False)
    assert program is not None
    return program.model_proto


def torchscript_code(module: nn.Module, inputs: Inputs) -> object:
    """Without running or loading anything: the texts in the archive."""
    file = io.BytesIO()
    torch.jit.save(_script(module, inputs), file)
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as archive:
        return {n: archive.read(n).decode() for n in archive.namelist() if n.endswith(".py")}


def export_program(module: nn.Module, inputs: Inputs) -> object:
    return torch.export.export(module, inputs)


FORMATS: dict[str, tuple[str, Callable[[nn.Module, Inputs], object]]] = {
    "onnx": ("ONNX, by tracing", onnx_tracing),
    "onnx-dynamo": ("ONNX, by torch.export", onnx_dynamo),
    "torchscript": ("TorchScript, converted as in a scan", torchscript),
    "torch.export": ("torch.export, converted as in a scan", torch_export),
    "program": ("torch.export, the program itself", export_program),
    "code": ("TorchScript, its code alone", torchscript_code),
}


EXPORTERS_RAISE = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


# ---------------------------------------------------------------- networks
def library(names: Sequence[str]) -> Iterator[tuple[str, nn.Module, Inputs]]:
    """timm:NAME, torchvision:NAME, transformers:NAME; `all` is every one that is listed above."""
    if "all" in names:
        names = [*(f"timm:{n}" for n in TIMM), *(f"torchvision:{n}" for n in TORCHVISION),
                 *(f"transformers:{n}" for n in TRANSFORMERS)]
    for name in names:
        place, _, architecture = name.partition(":")
        try:
            yield name, *_MAKERS[place](architecture)
        except (ImportError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            print(f"{name}: not made ({type(error).__name__}: {error})", flush=True)


def _timm(name: str) -> tuple[nn.Module, Inputs]:
    import timm

    module = timm.create_model(name, pretrained=False, exportable=True).eval()
    return module, (torch.rand(1, *module.default_cfg.get("input_size", (3, 224, 224))),)


def _torchvision(name: str) -> tuple[nn.Module, Inputs]:
    import torchvision

    extra = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = torchvision.models.get_model(name, weights=None, **extra).eval()
    return module, (torch.rand(1, 3, *((299, 299) if name == "inception_v3" else (224, 224))),)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def _transformers(name: str) -> tuple[nn.Module, Inputs]:
    import transformers

    small = {"num_hidden_layers": 3, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 192}
    configuration = getattr(transformers, f"{name}Config")(
        **(small if name in ("ViT", "Beit", "Dinov2") else {}), num_labels=10)
    module = getattr(transformers, f"{name}ForImageClassification")(configuration).eval()
    side = getattr(configuration, "image_size", 224)
    return _Logits(module).eval(), (torch.rand(1, 3, side, side),)


_MAKERS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}


# ---------------------------------------------------------------- judging
def judge(kind: str, name: str, module: nn.Module, inputs: Inputs, form: str, classes: int) -> Row:
    convert = FORMATS[form][1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = convert(module, inputs)
    except EXPORTERS_RAISE as error:  # the network does not exist in this format
        return Row(kind, name, form, None, f"not written: {type(error).__name__}", 0.0)
    start = time.perf_counter()
    try:
        found = list(ArchitecturalBackdoor().judge(read_graph(source), classes))
    except LaocoonError as error:
        return Row(kind, name, form, None, f"not read: {error}", 0.0)
    best = max(found, key=lambda f: f.score, default=None)
    return Row(kind, name, form, best.score if best else 0.0, best.explanation if best else "",
               time.perf_counter() - start)


def of_weights(sketches: Sequence[Sketch]) -> list[Row]:
    """The other static checks, which read weights: on the small networks that take one picture."""
    rows = []
    for sketch in sketches:
        if len(sketch.inputs) > 1 or sketch.inputs[0].dim() != 4 or isinstance(sketch.module, torch.jit.ScriptModule):
            continue
        subject = Subject(sketch.module, Image(), CLASSES, tuple(sketch.inputs[0].shape[1:]))
        for detector in (WeightSanity(), PoTrojan()):
            report = detector.examine(ModelCase(subject), Context())
            best = max(report.findings, key=lambda f: (f.conclusive, f.score), default=None)
            rows.append(Row(detector.card.name, sketch.name, "weights",
                            (1.0 if best.conclusive else min(best.score, 0.49)) if best else 0.0,
                            best.explanation if best else "", report.seconds))
    return rows


# ---------------------------------------------------------------- telling
class Scored(Protocol):
    @property
    def score(self) -> float | None: ...


def share(rows: Sequence[Scored]) -> str:
    judged = [r for r in rows if r.score is not None]
    if not judged:
        return "–"
    hits = sum(r.score >= ArchitecturalBackdoor().flag_at for r in judged)  # type: ignore[operator]
    low, high = binomial_interval(hits, len(judged))
    return f"{hits} of {len(judged)} [{low:.1%}, {high:.1%}]"


def table(rows: Sequence[Row], command: str) -> str:
    of_graph = [r for r in rows if r.format in FORMATS]
    backdoors = list(dict.fromkeys(r.kind for r in of_graph if r.kind not in ("honest", "library", "evading")))
    forms = [f for f in FORMATS if any(r.format == f for r in of_graph)]

    def some(form: str, *kinds: str) -> list[Row]:
        return [r for r in of_graph if r.format == form and r.kind in kinds]

    lines = [
        "# Flags of the static checks on graphs", "",
        f"Command: `{command}`, tier `ci`. A flag of `architectural_backdoor` is a score of "
        f"{ArchitecturalBackdoor().flag_at} or more. Intervals: Clopper-Pearson, 95 %. Networks are untrained.", "",
        "The small honest networks and the backdoors were written by the authors of the check, who knew its rules: "
        "they show what it was built for, not what it would do on a stranger's graph. The library's architectures were "
        "written by others, for other ends; no rule was made for them. The evading backdoors "
        "(`benchmarks/graph_evasions.py`) were written after the rules, by somebody who had read them, to get around "
        "them: what a determined attacker can do. For two of them (`saturated_softmax`, `sorted_pixels`) a rule was "
        "then added, and every honest graph tried again.", "",
        "| format | small honest networks flagged | libraries' architectures flagged | all honest ones "
        "| backdoors flagged | written to evade, flagged | not in this format |", "|-|-|-|-|-|-|-|"]
    for form in forms:
        missing = sum(r.score is None for r in some(form, "honest", "library", "evading", *backdoors))
        lines.append(f"| {FORMATS[form][0]} | {share(some(form, 'honest'))} | {share(some(form, 'library'))} "
                     f"| {share(some(form, 'honest', 'library'))} | {share(some(form, *backdoors))} "
                     f"| {share(some(form, 'evading'))} | {missing} |")
    lines += ["", "Backdoors by family:", "", f"| format | {' | '.join(backdoors)} |",
              "|-" * (len(backdoors) + 1) + "|"]
    lines += [f"| {FORMATS[f][0]} | " + " | ".join(share(some(f, b)) for b in backdoors) + " |" for f in forms]
    weights = [r for r in rows if r.format == "weights"]
    if weights:
        lines += ["", "The other static checks read weights; a flag is a conclusive finding, without clean samples:",
                  "", "| check | small honest networks flagged |", "|-|-|"]
        lines += [f"| {name} | {share([r for r in weights if r.kind == name])} |"
                  for name in dict.fromkeys(r.kind for r in weights)]
    times = [r.seconds for r in of_graph if r.score is not None]
    lines += ["", f"Reading and judging a graph: median {median(times) * 1000:.0f} ms, largest {max(times):.2f} s.",
              ""]
    wrong = [r for r in of_graph if r.score is not None
             and (r.score >= ArchitecturalBackdoor().flag_at) == (r.kind in ("honest", "library"))]
    lines += ["## Wrong answers", "", "| network | kind | format | score | what was said |", "|-|-|-|-|-|",
              *(f"| {r.name} | {r.kind} | {FORMATS[r.format][0]} | {r.score:.2f} | {_cell(r.told)} |" for r in wrong)]
    lines += ["", "## Every network", "", "Scores; – where the network cannot be written in the format.", "",
              f"| network | kind | {' | '.join(FORMATS[f][0] for f in forms)} |", "|-" * (len(forms) + 2) + "|"]
    for kind, name in dict.fromkeys((r.kind, r.name) for r in of_graph):
        scores = {r.format: r.score for r in of_graph if (r.kind, r.name) == (kind, name)}
        shown = [f"{s:.2f}" if (s := scores.get(f)) is not None else "–" for f in forms]
        lines.append(f"| {name} | {kind} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "/") or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--library", nargs="*", default=[])
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; go on with --rows")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    start = time.perf_counter()
    kept = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    rows = [Row(**json.loads(line)) for line in kept]
    done = {(r.kind, r.name, r.format) for r in rows}
    small = [("honest", s) for s in honest()] + [(k, s) for k, some in planted().items() for s in some]
    small += [("evading", s) for s in evading()]

    def wanted() -> Iterator[tuple[str, str, nn.Module, Inputs, int]]:
        yield from ((kind, s.name, s.module, s.inputs, CLASSES) for kind, s in small)
        yield from (("library", name, module, inputs, 0) for name, module, inputs in library(options.library))

    for kind, name, module, inputs, classes in wanted():
        for form in options.formats:
            if (kind, name, form) in done or time.perf_counter() - start > options.seconds:
                continue
            row = judge(kind, name, module, inputs, form, classes)
            rows.append(row)
            if options.rows:
                with options.rows.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            print(kind, name, form, row.score, row.told[:100], flush=True)
    rows += of_weights(honest())
    command = "python benchmarks/graph_flags.py" + (" --library all" if any(r.kind == "library" for r in rows) else "")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(table(rows, command))


if __name__ == "__main__":
    main()
