"""Training on poisoned data: clean accuracy and attack success of each trainer, beside plain training.

python benchmarks/training.py [--data digits] [--data-root FOLDER] [--cache FOLDER] [--samples 2000] [--seeds 0]
                              [--attacks badnets-0.10,blended-0.10,…] [--methods plain,abl,…]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from laocoon.attacks.badnets import BadNets
from laocoon.attacks.blended import Blended
from laocoon.core.cases import DataCase, Samples
from laocoon.core.catalogue import classes
from laocoon.core.context import Context
from laocoon.core.methods import Attack, Plan, Trainer
from laocoon.core.subject import Subject
from laocoon.lab.datasets import load
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import build
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.fit import predictions

TARGET = 3
# What each is given on these small sets; the methods' own defaults otherwise.
SETTINGS: Mapping[str, Mapping[str, Any]] = {"plain": {"epochs": 15}, "abl": {"epochs": 15}, "cutmix": {"epochs": 30},
                                             "dbd": {"contrast_epochs": 30}, "dpa": {"parts": 15, "epochs": 20},
                                             "dp_sgd": {"epochs": 20}}


def attack_of(name: str) -> Attack | None:
    kind, _, rate = name.partition("-")
    if kind == "clean":
        return None
    return {"badnets": BadNets, "blended": Blended}[kind](rate=float(rate))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "laocoon" / "data")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--architecture", default="cnn")
    parser.add_argument("--attacks", default="clean,badnets-0.05,badnets-0.10,blended-0.05,blended-0.10")
    parser.add_argument("--methods", default=",".join(SETTINGS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load(given.data, given.data_root, given.cache)
    known = {m.card.name: m for m in classes("laocoon.trainers", Trainer)}  # type: ignore[type-abstract]
    print("| data | attack | seed | trainer | clean accuracy | attack success (95 %) | poison kept | seconds |\n"
          "|---|---|---|---|---|---|---|---|")
    for seed in map(int, given.seeds.split(",")):
        rng = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(data.train_labels), generator=rng)[:given.samples]
        test = torch.randperm(len(data.test_labels), generator=rng)[:given.test]
        train = Samples(data.train_inputs[rows].float() / 255, data.train_labels[rows].long())
        held = Samples(data.test_inputs[test].float() / 255, data.test_labels[test].long())
        shape = tuple(train.inputs.shape[1:])

        def untrained(ctx: Context, shape: tuple[int, ...] = shape) -> Subject:
            module = build(given.architecture, shape[0], shape[1], data.classes, ctx.rng)
            return Subject(module, Image(), data.classes, shape)

        def nobody(samples: Samples, ctx: Context) -> Subject:
            raise NotImplementedError

        plan = Plan(train, held, nobody, TARGET, data.classes, untrained)
        for name in given.attacks.split(","):
            attack, suspects, poisoned, trigger = attack_of(name), train, torch.zeros(0, dtype=torch.long), None
            if attack is not None:
                trigger = attack.trigger(plan, Context(seed=seed))
                suspects, poisoned = attack.poison(plan, trigger, Context(seed=seed))
            for method in given.methods.split(","):
                start = time.process_time()
                trained = known[method](**SETTINGS.get(method, {})).train(
                    DataCase(suspects, data.classes, untrained=untrained), Context(seed=seed))
                spent = time.process_time() - start
                print(f"| {given.data} | {name} | {seed} | {method} | "
                      + row(trained.subject, held, trigger, trained.kept, poisoned, trained.report.reason)
                      + f" | {spent:.0f} |", flush=True)


@torch.no_grad()
def row(subject: Subject | None, held: Samples, trigger: Any, kept: Any, poisoned: torch.Tensor, reason: str) -> str:
    if subject is None:
        return f"not trained: {reason} | |"
    right = float((predictions(subject.module, held.inputs) == held.labels).float().mean())
    success, share = "", ""
    if trigger is not None:
        some = trigger.goal.applies(held.labels)
        stamped = replace(held, inputs=trigger.stamp(held.inputs[some]), labels=held.labels[some])
        found = int((predictions(subject.module, stamped.inputs) == TARGET).sum())
        low, high = binomial_interval(found, len(stamped))
        success = f"{found / len(stamped):.1%} ({low:.0%} to {high:.0%})"
        share = "" if kept is None else f"{float(torch.isin(poisoned, kept).float().mean()):.0%}"
    return f"{right:.1%} | {success} | {share}"


if __name__ == "__main__":
    main()
