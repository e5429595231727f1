"""`laocoon lab …`: trials of attacks and defences; the reference zoo that `scan` is calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laocoon.cli.errors import Command
from laocoon.cli.lab_bench import app as bench
from laocoon.cli.lab_run import plot, run
from laocoon.cli.lab_run import table as results
from laocoon.cli.lab_search import search
from laocoon.core.errors import InputError
from laocoon.files.wording import printable

if TYPE_CHECKING:
    from laocoon.lab.zoo import Split

app = typer.Typer(no_args_is_help=True, help="Try defences on attacks; build, measure and fit the reference zoo.")
zoo = typer.Typer(no_args_is_help=True, help="The reference zoo: clean and backdoored models of our own making.")
app.command("run", cls=Command)(run)
app.command("table", cls=Command)(results)
app.command("plot", cls=Command)(plot)
app.command("search", cls=Command)(search)
app.add_typer(zoo, name="zoo")
app.add_typer(bench, name="bench")

Folder = Annotated[Path, typer.Option("--zoo", help="Where the zoo is kept; builds resume from it.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Folder with mnist/, gtsrb/, cifar10/ as Parquet.")]
Splits = Annotated[str, typer.Option(help="Comma-separated: fusion, calibration, sealed.")]
Data = Annotated[str, typer.Option(help="Comma-separated: digits, mnist, gtsrb, cifar10; few and several: models of 2 "
                                        "and 3, and of 4 to 7 classes.")]
Share = Annotated[str, typer.Option(help="K/N: take every N-th specimen from the K-th, to build in N processes.")]
Limit = Annotated[int | None, typer.Option(min=0, help="At most so many specimens per split and data set.")]
Subsets = Annotated[str, typer.Option(help="few or several: models of 2 and 3, or of 4 to 7 classes, which have "
                                           "references of their own.")]
ZOO = Path.home() / ".cache" / "laocoon" / "zoo"
ALL = "digits,mnist,gtsrb,cifar10,few,several"


def _splits(text: str) -> tuple[Split, ...]:
    found: list[Split] = []
    for name in text.split(","):
        if name not in ("fusion", "calibration", "sealed"):
            raise InputError(f"--splits names {name!r}.", "It is fusion, calibration or sealed.")
        found.append(name)  # type: ignore[arg-type]
    return tuple(found)


def _data(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in ALL.split(","):
            raise InputError(f"--data names {name!r}.", f"It is one of {ALL}.")
    return names


def _known(subsets: str) -> None:
    if subsets not in ("", "few", "several"):
        raise InputError(f"--subsets is {subsets!r}.", "It is few (2 and 3 classes) or several (4 to 7).")


def _share(text: str) -> tuple[int, int]:
    try:
        k, n = (int(v) for v in text.split("/"))
    except ValueError:
        k, n = -1, 0
    if not 0 <= k < n:
        raise InputError(f"--share is {text!r}.", "Write K/N with 0 ≤ K < N, for instance 0/2 and 1/2.")
    return k, n


def _built(folder: Path) -> None:
    """Nothing follows from an empty zoo; a reference file fitted on one would replace a good one."""
    if not any(folder.glob("*/facts.json")):
        raise InputError(f"the zoo {printable(folder)} holds no specimens.", "Run `laocoon lab zoo build` first.")


@zoo.command(cls=Command)
def build(
    folder: Folder = ZOO,
    data_root: Root = None,
    splits: Splits = "fusion,calibration,sealed",
    data: Data = ALL,
    share: Share = "0/1",
    limit: Limit = None,
) -> None:
    """Train what is missing; interrupt and start again at will."""
    import torch

    from laocoon.lab.zoo import Specification, grow

    torch.set_num_threads(1)

    def tell(s: Specification, facts: dict[str, object]) -> None:
        print(
            f"{s.split:12} {s.data:8} {s.architecture:13} {s.kind:22} accuracy {facts['clean_accuracy']:.3f}"
            f"  attack success {facts.get('attack_success', '–')}  {facts['train_seconds']} s",
            flush=True,
        )

    built = grow(folder, data_root, _splits(splits), _data(data), _share(share), tell, limit)
    print(f"{built} specimens built in {folder}")


@zoo.command(cls=Command)
def measure(
    folder: Folder = ZOO,
    data_root: Root = None,
    splits: Splits = "fusion,calibration",
    data: Data = ALL,
    share: Share = "0/1",
    deep: Annotated[bool, typer.Option(help="Source-target pairs too.")] = False,
) -> None:
    """Run the methods that count in the fusion on every specimen; results are kept beside it."""
    import torch

    from laocoon.lab.reference import counted, measure
    from laocoon.verdict.schedule import plan

    _built(folder)
    torch.set_num_threads(1)
    schedule = plan("deep", counted(deep))
    for split in _splits(splits):
        for name in _data(data):
            for specimen, row in measure(folder, data_root, split, schedule, _share(share), (name,)):
                s = specimen.specification
                print(f"{s.split:12} {s.data:8} {s.architecture:13} {s.kind:22} {row['seconds']:.1f} s", flush=True)


@zoo.command(cls=Command)
def fit(
    folder: Folder = ZOO,
    out: Annotated[Path | None, typer.Option(help="The reference file; the package's own without it.")] = None,
    subsets: Subsets = "",
    keep_planted: Annotated[bool, typer.Option(
        help="Planted models of the present file that were not measured here stay, for power alone.")] = False,
) -> None:
    """Fit the reference file from what was measured of the fusion and calibration splits."""
    from laocoon.lab.reference import fit_reference

    _known(subsets)
    _built(folder)
    out = out or Path("src/laocoon/verdict") / (f"reference_image_{subsets}.json" if subsets else "reference.json")
    earlier = json.loads(out.read_text(encoding="utf-8"))["planted"] if keep_planted and out.is_file() else ()
    text = fit_reference(folder, subsets=subsets, earlier=earlier)
    if not json.loads(text)["clean"]:
        raise InputError(
            f"no clean model of the calibration split of {printable(folder)} was measured.",
            "Run `laocoon lab zoo measure` first.",
        )
    out.write_text(text, encoding="utf-8")
    print(f"wrote {out}, {len(text) // 1024} KiB")


@zoo.command(cls=Command)
def table(
    folder: Folder = ZOO,
    split: Annotated[str, typer.Option()] = "sealed",
    out: Annotated[Path | None, typer.Option(help="Markdown file; standard output without it.")] = None,
    deep: Annotated[bool, typer.Option(help="Only models measured by the deep budget too.")] = False,
    subsets: Subsets = "",
) -> None:
    """AUROC, power and false alarms per attack and architecture on what was measured of a split, with intervals."""
    from laocoon.lab.figures import markdown

    _known(subsets)
    _built(folder)
    text = markdown(folder, _splits(split)[0], deep, subsets=subsets)
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")


@app.command("demo-models", cls=Command)
def demo_models(out: Annotated[Path, typer.Option(help="Folder for clean.onnx and backdoored.onnx.")]) -> None:
    """Train the two bundled demo models on scikit-learn's digits."""
    from laocoon.lab.demo_models import make

    for name, facts in make(out).items():
        print(f"{name}: accuracy {facts['clean_accuracy']}, attack success {facts.get('attack_success', '–')}")
