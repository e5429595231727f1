"""`laocoon doctor`: what is installed, what works here, and what to install for the rest."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from rich.console import Console
from rich.table import Table
from rich.text import Text

from laocoon import __version__


@dataclass(frozen=True)
class Feature:
    """Something that can be opened, and the modules without which it cannot."""

    name: str
    modules: tuple[str, ...] = ()
    extra: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(m for m in self.modules if not _found(m))


MODELS = (
    Feature("ONNX"),
    Feature("safetensors and state dicts"),
    Feature("torch.export archives", ("onnxscript",), "lab"),
    Feature("TorchScript"),
    Feature("timm architectures (--architecture timm:NAME)", ("timm",), "timm"),
    Feature("Hugging Face folders", ("transformers",), "transformers"),
    Feature("Keras .keras and .h5", ("keras", "h5py"), "keras"),
    Feature("models from the hub", ("huggingface_hub",), "hub"),
    Feature("models behind an address (Open Inference Protocol v2)", ("httpx",), "api"),
)
DATA = (
    Feature("folders of images: PNG, JPEG, BMP, GIF, WebP, TIFF, PPM"),
    Feature("Parquet of Hugging Face datasets"),
    Feature("NumPy .npz and .npy"),
    Feature("data sets from the hub", ("huggingface_hub",), "hub"),
)
VERBS = (
    Feature("laocoon lab", ("onnxscript", "sqlalchemy", "fsspec", "optuna"), "lab"),
    Feature("trials on several machines (laocoon lab run --ray)", ("ray",), "ray"),
    Feature("the guard as a service (laocoon guard serve)", ("fastapi", "uvicorn", "httpx", "prometheus_client"),
            "serve"),
    Feature("its traces (OpenTelemetry)", ("opentelemetry",), "otel"),
    Feature("training with differential privacy (dp_sgd)", ("opacus",), "dp"),
    Feature("the complete verifier (marabou_absence)", ("maraboupy",), "verify"),
)
OTHERS = (  # what methods of the other verbs are, and where they are found
    ("laocoon sift", "laocoon.detectors.data", "DataDetector"),
    ("laocoon guard", "laocoon.guards", "Guard"),
    ("laocoon repair", "laocoon.repairs", "Repair"),
    ("laocoon train", "laocoon.trainers", "Trainer"),
    ("laocoon certify", "laocoon.certifiers", "Certifier"),
    ("laocoon lab", "laocoon.attacks", "Attack"),
)
PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "onnx",
    "safetensors",
    "pillow",
    "pyarrow",
    "timm",
    "transformers",
    "keras",
    "huggingface_hub",
    "onnxruntime",
)


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def doctor() -> None:
    """Say what is installed, which formats and methods work here, and what to install for the rest."""
    console = Console()
    _title(
        console,
        "Laocoon",
        f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    _versions(console)
    _devices(console)
    _features(console, "Models", MODELS)
    _features(console, "Clean samples", DATA)
    _features(console, "Verbs", VERBS)
    _methods(console)
    _others(console)
    _isolation(console)


def _title(console: Console, title: str, text: str = "") -> None:
    console.print(Text.assemble((title, "bold"), ("  " + text if text else "", "dim")), highlight=False)


def _versions(console: Console) -> None:
    shown = ", ".join(f"{p} {_version(p)}" for p in PACKAGES if _version(p) != "not installed")
    console.print(Text(f"  {shown}", "dim"), highlight=False)


def _devices(console: Console) -> None:
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    _title(console, "Devices", f"{', '.join(devices)}; {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def _features(console: Console, title: str, features: tuple[Feature, ...]) -> None:
    _title(console, title)
    for feature in features:
        _line(
            console,
            feature.name,
            not feature.missing,
            f"pip install 'laocoon[{feature.extra}]'" if feature.missing else "",
        )


def _line(console: Console, name: str, works: bool, remedy: str = "") -> None:
    mark = ("✓ ", "green") if works else ("✗ ", "yellow")
    console.print(
        Text.assemble("  ", mark, name, (f"   {remedy}" if remedy else "", "dim")), highlight=False, soft_wrap=True
    )


def _methods(console: Console) -> None:
    from laocoon.verdict.schedule import ORDER, STAGES, available

    known = available()
    _title(console, "Methods", f"{len(known)} of `laocoon scan`, from the budget that runs them")
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    table.add_column(no_wrap=True, min_width=max(len(name) for name in known))
    placed = {name: stage for stage in ORDER for name in STAGES[stage]}
    for name, method in sorted(known.items(), key=lambda item: (ORDER.index(placed.get(item[0], "quick")), item[0])):
        needs = ", ".join(sorted(n.value for n in method.card.needs)) or "nothing"
        table.add_row(
            Text(name),
            Text(placed.get(name, "plug-in"), "dim"),
            Text(", ".join(sorted(method.card.modalities)), "dim"),
            Text(f"needs {needs}", "dim"),
        )
    console.print(table)


def _others(console: Console) -> None:
    from laocoon.core import methods
    from laocoon.core.catalogue import classes

    for verb, folder, contract in OTHERS:
        found = classes(folder, getattr(methods, contract))
        _title(console, f"{len(found)} of `{verb}`", ", ".join(sorted(m.card.name for m in found)))


def _isolation(console: Console) -> None:
    from laocoon.files.confine import isolation

    _title(console, "Isolation", f"what must be executed runs in a child with {', '.join(isolation())}")
    if sys.platform != "linux":
        _line(console, "only Linux confines the child in the kernel", False, "prefer formats that need no execution")
