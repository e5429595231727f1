"""`laocoon lab bench …`: zoos of modalities whose models train in seconds, measured and fitted like the image zoo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laocoon.cli.errors import Command
from laocoon.core.errors import InputError
from laocoon.files.wording import printable

if TYPE_CHECKING:
    from laocoon.lab.rows import Row
    from laocoon.lab.specimens import Bench, Split
    from laocoon.verdict.schedule import Schedule

app = typer.Typer(no_args_is_help=True, help="Zoos of text, tabular and encoder models: made, measured, fitted.")

Modality = Annotated[str, typer.Option(help="text, tabular or image_encoder.")]
Rows = Annotated[Path, typer.Option("--rows", help="Folder of rows; measuring resumes from it.")]
Root = Annotated[Path | None, typer.Option("--data-root", help="Folder with data sets as Parquet, one folder each.")]
Methods = Annotated[str, typer.Option(help="Comma-separated methods, instead of those that count in the fusion.")]
ROWS = Path.home() / ".cache" / "laocoon" / "rows"
SPLITS = ("fusion", "calibration", "sealed")


def _split(text: str) -> Split:
    if text not in SPLITS:
        raise InputError(f"there is no split {text!r}.", "It is fusion, calibration or sealed.")
    return text  # type: ignore[return-value]


def _share(text: str) -> tuple[int, int]:
    try:
        k, n = (int(v) for v in text.split("/"))
    except ValueError:
        k, n = -1, 0
    if not 0 <= k < n:
        raise InputError(f"--share is {text!r}.", "Write K/N with 0 ≤ K < N, for instance 0/2 and 1/2.")
    return k, n


def _opened(modality: str, root: Path | None, methods: str) -> tuple[Bench, Schedule]:
    from laocoon.lab.benches import bench
    from laocoon.lab.rows import schedule_of

    found = bench(modality, root)
    return found, schedule_of(found, methods=[m for m in methods.split(",") if m])


def _said(row: Row) -> str:
    """One line of what was measured."""
    success = row.get("attack_success")
    return (f"{row['split']:12} {row['data']:12} {row['architecture']:14} {row['kind']:22} accuracy {row['accuracy']}"
            f"  attack success {'–' if success is None else success}  {sum(row['seconds'].values()):.1f} s")


@app.command(cls=Command)
def measure(
    modality: Modality,
    rows: Rows = ROWS,
    data_root: Root = None,
    splits: Annotated[str, typer.Option(help="Comma-separated: fusion, calibration, sealed.")] = "fusion,calibration",
    share: Annotated[str, typer.Option(help="K/N: every N-th specimen from the K-th, for N processes.")] = "0/1",
    limit: Annotated[int | None, typer.Option(min=0, help="The first so many specimens of each split.")] = None,
    methods: Methods = "",
) -> None:
    """Make every specimen and run the scan's methods on it; interrupt and start again at will."""
    import torch

    from laocoon.lab.rows import measure as measured

    bench, schedule = _opened(modality, data_root, methods)
    torch.set_num_threads(1)
    for split in [_split(name) for name in splits.split(",")]:
        for row in measured(bench, rows / modality, split, schedule, share=_share(share), limit=limit):
            print(_said(row), flush=True)


@app.command(cls=Command)
def fit(
    modality: Modality,
    rows: Rows = ROWS,
    data_root: Root = None,
    out: Annotated[Path | None, typer.Option(help="The reference file; that of the package without it.")] = None,
    methods: Methods = "",
) -> None:
    """Fit the reference file from what was measured of the fusion and calibration splits."""
    from laocoon.lab.rows import fit as fitted
    from laocoon.lab.rows import recorded

    bench, schedule = _opened(modality, data_root, methods)
    there = [row for name in SPLITS[:2] for row in recorded(bench, rows / modality, _split(name), schedule)]
    text = fitted(bench, there)
    data = json.loads(text)
    if not data["clean"] or not data["scales"]:
        raise InputError(
            f"{printable(rows / modality)} holds too few clean models of the fusion or the calibration split.",
            f"Run `laocoon lab bench measure --modality {modality}` first.",
        )
    place = out or Path(f"src/laocoon/verdict/reference_{modality}.json")
    place.write_text(text, encoding="utf-8")
    print(f"wrote {place}, {len(text) // 1024} KiB: {len(data['clean'])} clean, {len(data['planted'])} planted")


@app.command(cls=Command)
def table(
    modality: Modality,
    rows: Rows = ROWS,
    data_root: Root = None,
    split: Annotated[str, typer.Option(help="fusion, calibration or sealed.")] = "sealed",
    out: Annotated[Path | None, typer.Option(help="Markdown file; standard output without it.")] = None,
    methods: Methods = "",
) -> None:
    """AUROC, power, false alarms and named triggers on what was measured of a split, with intervals."""
    from laocoon.lab.rows import recorded
    from laocoon.lab.rows_table import table as page

    bench, schedule = _opened(modality, data_root, methods)
    wanted = dict.fromkeys((*SPLITS[:2], _split(split)))
    there = [row for name in wanted for row in recorded(bench, rows / modality, _split(name), schedule)]
    if not any(row["split"] == split for row in there):
        raise InputError(f"{printable(rows / modality)} holds no row of the {split} split.",
                         f"Run `laocoon lab bench measure --modality {modality} --splits {split}` first.")
    text = page(bench, there, split)
    if out is None:
        print(text)
    else:
        out.write_text(text, encoding="utf-8")
