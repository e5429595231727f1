"""What each data detector sees: four training sets of CIFAR-10, scored by every method of the catalogue.

    python benchmarks/filters.py [--architecture vgg_small] [--epochs 4] [--samples 10000] [--only flare,beatrix]

The training sets: BadNets with 5 % poison to one class, a blended noise pattern with 5 %, BadNets all-to-all with 10 %,
and a clean one of which 3 % carry a wrong label. A victim is trained on each; the detectors get the training set, the
victim, an untrained network of its kind and 50 trusted samples a class. Judged by the truth: area under the ROC curve
and share of the poison found at 1 % false alarms. On the clean set the mislabelled samples are what is looked for: a
filter for backdoors had better not find them (0.5 is best there).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from laocoon.attacks.badnets import BadNets
from laocoon.attacks.blended import Blended
from laocoon.cli.memory import keep_freed_memory
from laocoon.core.cases import DataCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.methods import Attack, DataDetector, Plan
from laocoon.lab.datasets import load
from laocoon.lab.training import Victim, lot
from laocoon.recipes.fit import predictions
from laocoon.recipes.ranking import auroc

ATTACKS: dict[str, Attack | None] = {
    "badnets": BadNets(rate=0.05, side=3), "blended": Blended(rate=0.05),
    "all-to-all": BadNets(rate=0.1, side=4, mode="all-to-all"), "noise": None}
WRONG = 0.03  # of the labels of the clean set


@dataclass(frozen=True, eq=False)
class Trial:
    """A training set with its victim, and the truth for the judge."""

    case: DataCase
    wanted: Tensor  # bool [n]: poisoned, or mislabelled where nothing is poisoned
    accuracy: float
    success: float  # attack success rate; of the mislabelled, the share that is fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=None, help="folder that holds the data set as Parquet")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--architecture", default="vgg_small")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--trusted", type=int, default=50, help="trusted samples a class")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="methods, separated by commas; all of them without it")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="which training sets, separated by commas")
    options = parser.parse_args()
    keep_freed_memory()
    print("| training set | accuracy | success | method | AUROC | TPR at 1 % FPR | seconds | passes |")
    print("|---|--:|--:|---|--:|--:|--:|--:|")
    for name in options.attacks.split(","):
        trial = prepared(name, options)
        for row in judged(trial, {m for m in options.only.split(",") if m}, options.seed):
            print(f"| {name} | {trial.accuracy:.3f} | {trial.success:.3f} | {row} |", flush=True)


def prepared(name: str, options: argparse.Namespace) -> Trial:
    """The training set of one attack and the victim trained on it."""
    cache = Path.home() / ".cache" / "laocoon" / "lab" / "data"
    data = load(options.data, options.data_root, cache)
    some = lot(data, options.seed, samples=options.samples, test=2000, given_per_class=options.trusted)
    victim = Victim(options.architecture, data.train_inputs.shape[1], data.train_inputs.shape[2], data.classes,
                    options.seed, options.epochs, 2, options.data == "cifar10")
    wanted = torch.zeros(len(some.train), dtype=torch.bool)
    attack = ATTACKS[name]
    if attack is None:
        rng = torch.Generator().manual_seed(options.seed)
        rows = torch.randperm(len(some.train), generator=rng)[: round(WRONG * len(some.train))]
        labels = some.train.labels.clone()
        labels[rows] = (labels[rows] + torch.randint(1, data.classes, (len(rows),), generator=rng)) % data.classes
        train, wanted[rows] = Samples(some.train.inputs, labels), True
        subject = victim.fit(train, Context(seed=options.seed))
        success = float((predictions(subject.module, train.inputs[rows]) == labels[rows]).float().mean())
    else:
        plan = Plan(some.train, some.test, victim.fit, 3, data.classes, victim.untrained)
        implant = attack.implant(plan, Context(seed=options.seed))
        subject, train = implant.subject, implant.train or some.train
        wanted[implant.poisoned] = True
        goal, trigger = implant.trigger.goal, implant.trigger
        moved = goal.applies(some.test.labels)
        answers = subject.outputs(trigger.stamp(some.test.inputs[moved]))
        success = float(goal.success(answers, some.test.labels[moved]).float().mean())
    accuracy = float((predictions(subject.module, some.test.inputs) == some.test.labels).float().mean())
    return Trial(DataCase(train, data.classes, subject, some.given, victim.untrained), wanted, accuracy, success)


def judged(trial: Trial, only: set[str], seed: int) -> Iterator[str]:
    """A row for each method: how well its scores tell the wanted samples from the others."""
    for method in classes("laocoon.detectors.data", DataDetector):  # type: ignore[type-abstract]
        if only and method.card.name not in only:
            continue
        start = time.perf_counter()
        scored = method().examine(trial.case, Context(seed=seed))
        seconds = time.perf_counter() - start
        if scored.scores is None:
            yield f"{method.card.name} | – | – | {scored.report.reason} | –"
            continue
        poison, clean = scored.scores[trial.wanted], scored.scores[~trial.wanted]
        found = float((poison > clean.quantile(0.99)).float().mean())
        yield (f"{method.card.name} | {auroc(poison.tolist(), clean.tolist()):.3f} | {found:.3f} | {seconds:.1f} | "
               f"{scored.report.spent / len(scored.scores):.2f}")


if __name__ == "__main__":
    main()
