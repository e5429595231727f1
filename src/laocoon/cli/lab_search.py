"""`laocoon lab search`: the worst case of a defence under one attack."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laocoon.core.errors import InputError
from laocoon.files.wording import printable

if TYPE_CHECKING:
    from laocoon.lab.plan import SubjectPart
    from laocoon.lab.search_trial import Tried


Against = Annotated[str, typer.Option(help="scan, a detector, or one of its rules, for instance mm_bd.margin.")]
Data = Annotated[str, typer.Option(help="digits, mnist, gtsrb or cifar10.")]
Root = Annotated[Path | None, typer.Option(help="Folder with mnist/, gtsrb/, cifar10/ as Parquet.")]
Storage = Annotated[Path | None, typer.Option(help="SQLite file that a search resumes from; without, nothing is kept.")]
Trials = Annotated[int, typer.Option(help="Proposals, of all runs on this storage together.")]
Seconds = Annotated[float, typer.Option(help="Time limit of this run; a trial that has begun is finished.")]
Ranges = Annotated[list[str] | None, typer.Option("--range", help="rate=0.01:0.3 or pattern=noise,smooth; repeatable.")]
CACHE = Path.home() / ".cache" / "laocoon" / "data"


def search(
    attack: Annotated[str, typer.Argument(help="Name of an attack, for instance blended.")],
    against: Against = "scan",
    data: Data = "digits",
    architecture: Annotated[str, typer.Option(help="One of the lab's networks.")] = "cnn",
    data_root: Root = None,
    cache: Annotated[Path, typer.Option(help="Where decoded data sets are kept.")] = CACHE,
    storage: Storage = None,
    trials: Trials = 30,
    seconds: Seconds = math.inf,
    success: Annotated[float, typer.Option(help="Least attack success rate that counts as an attack.")] = 0.9,
    accuracy_loss: Annotated[float, typer.Option(help="Most clean accuracy lost against the clean twin.")] = 0.02,
    clean: Annotated[int, typer.Option(help="Clean models that suspicion is measured against.")] = 6,
    confirm: Annotated[int, typer.Option(help="Fresh seeds under which the best is planted again.")] = 2,
    target: Annotated[int, typer.Option(help="Target class.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the search and of every model in it.")] = 0,
    samples: Annotated[int | None, typer.Option(help="Training samples, if not the recipe's.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs, if not the recipe's.")] = None,
    ranges: Ranges = None,
    fix: Annotated[list[str] | None, typer.Option(help="A parameter that stays as it is; repeatable.")] = None,
    budget: Annotated[str, typer.Option(help="Of the scan: quick, default, deep or a number of passes.")] = "default",
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
) -> None:
    """Search an attack's parameters for those that a defence sees least; interrupt and start again at will.

    Optuna proposes; what keeps the attack success and the clean accuracy is ranked by the defence's suspicion, and the
    best is planted again under fresh seeds. It is the defence's worst case, not a way of making models for others.
    """
    import torch

    from laocoon.lab.datasets import load
    from laocoon.lab.plan import SCAN, AttackPart, DefencePart, attack_of, defence_of
    from laocoon.lab.search import markdown
    from laocoon.lab.search import search as searched
    from laocoon.lab.search_space import range_from
    from laocoon.lab.search_trial import Bounds, Ground

    torch.set_num_threads(1)
    bounds = Bounds(trials, seconds, success, accuracy_loss, clean, confirm, seed)
    name, dot, _ = against.partition(".")
    subject = _subject(data, architecture, samples, epochs)
    chosen = attack_of(AttackPart(name=attack))
    settings = {"budget": budget} if name == SCAN else {}
    defence = defence_of(DefencePart(name=name, parameters=settings))
    own = dict(range_from(text) for text in ranges or ())
    ground = Ground(load(data, data_root, cache), subject, target)

    def tell(one: Tried) -> None:
        what = "as published" if one.number < 0 else f"trial {one.number:3}"
        if one.failure:
            print(f"{what}  failed: {printable(one.failure, 200)}", flush=True)
            return
        told = f"suspicion {one.suspicion:7.2f}" if math.isfinite(one.suspicion) else "no attack"
        print(f"{what}  attack success {one.success:.3f}  accuracy loss {one.accuracy_loss:+.3f}  {told}"
              f"  {one.verdict} seed {one.seed}  {one.seconds:.0f} s", flush=True)

    worst = searched(chosen, defence, ground, bounds, storage, rule=against if dot else "", own=own,
                   fixed=frozenset(fix or ()), progress=tell)
    if out is not None:
        out.write_text(json.dumps(worst.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
    print()
    print(markdown(worst), end="")


def _subject(data: str, architecture: str, samples: int | None, epochs: int | None) -> SubjectPart:
    """Checked as a plan's subject is."""
    from pydantic import ValidationError

    from laocoon.lab.plan import Experiment, SubjectPart, check

    try:
        subject = SubjectPart(data=data, architecture=architecture, samples=samples, epochs=epochs)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{first['loc'][0]} is {printable(repr(first['input']), 60)}: {first['msg']}.",
                         "Change the option of that name.") from None
    check(Experiment(name="search", subjects=(subject,)))
    return subject
