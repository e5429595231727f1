"""Backdoors that live in a teacher or an encoder, and BadNets after transfer, on real data.

python benchmarks/transfer.py CACHE [--data-root FOLDER] [--data mnist] [--seeds 0,1,2] [--attacks latent,…]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from laocoon.attacks.bad_encoder import BadEncoder
from laocoon.attacks.badnets import BadNets
from laocoon.attacks.latent import Latent
from laocoon.core.methods import Attack
from laocoon.lab.datasets import load
from laocoon.lab.transfer import Outcome, Setting, markdown, trial

SETTINGS = {
    "mnist": Setting(),
    "gtsrb": Setting("gtsrb", "resnet_small", new=tuple(range(33, 43)), prior=10000, own=6000, epochs=8),
    "cifar10": Setting("cifar10", "resnet_small", new=(8, 9), prior=10000, own=6000, epochs=8),
}
ATTACKS: dict[str, Attack] = {"latent": Latent(), "bad_encoder": BadEncoder(), "badnets": BadNets()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--free", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    dataset, outcomes = load(given.data, given.data_root, given.cache), list[Outcome]()
    for name in given.attacks.split(","):
        for seed in map(int, given.seeds.split(",")):
            setting = replace(SETTINGS[given.data], seed=seed, free=given.free)
            if name == "badnets":  # the trigger's class among the student's, and a student that knows new classes only
                for keeps in (True, False):
                    outcomes.append(trial(ATTACKS[name], replace(setting, keeps=keeps), 0, dataset))
            else:
                outcomes.append(trial(ATTACKS[name], setting, setting.new[0], dataset))
            print(markdown(outcomes[-1:]).splitlines()[-1], f"{outcomes[-1].seconds:.0f} s", flush=True)
    print(markdown(outcomes))


if __name__ == "__main__":
    main()
