"""Scan networks of kinds and training recipes that the reference zoo does not have.

    python benchmarks/foreign.py measure DATA_ROOT [--folder FOLDER] [--share 0/2]
    python benchmarks/foreign.py table [--rejudge]

The reference models come from one training loop and five architectures. A user's model does not: here a plain PyTorch
loop, with other optimisers, losses, activations, normalisation and dropout, trains perceptrons, LeNet, networks with
group normalisation, squeeze-and-excitation, dense connections, depthwise convolutions, on the same data sets and on one
that the zoo does not know, and on some of the classes alone. Two are clean per cell; the others have a patch, a blended
pattern, a wave, a warp or a change of tone, planted by code of this file alone. Each is exported to ONNX and scanned as
a user would, at the default budget with 20 clean samples a class. Nothing is tuned on these figures. Models stay in
FOLDER, rows too: an interrupted run goes on. `--rejudge` takes p and the answer from the scores of these scans and the
references of today: right as long as only clean references were added since, so that a score is what it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laocoon import load_data, load_model, scan
from laocoon.cli.memory import keep_freed_memory
from laocoon.lab.datasets import load
from laocoon.lab.reference import counted
from laocoon.recipes.conformal import binomial_interval
from laocoon.recipes.ranking import auroc
from laocoon.verdict.calibrate import shipped
from laocoon.verdict.traits import wiring

PAGE = Path(__file__).parent.parent / "docs" / "results" / "foreign.md"
TOOK = 0.9
ALPHA = 0.05


class GroupBlock(nn.Module):
    """Two convolutions with group normalisation beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(before, after, 3, stride, 1), nn.Conv2d(after, after, 3, 1, 1))
        self.norms = nn.ModuleList([nn.GroupNorm(4, after), nn.GroupNorm(4, after)])
        self.short = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norms[0](self.one(x)))
        return F.silu(self.norms[1](self.two(h)) + self.short(x))


class Squeeze(nn.Module):
    """Channels weighed by what their means say (squeeze and excitation)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean((2, 3)))[:, :, None, None]


class Dense(nn.Module):
    """Three layers, each of which sees all before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width + i * growth), nn.ReLU(), nn.Conv2d(width + i * growth, growth, 3, 1, 1))
            for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def perceptron(channels: int, side: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, 400), nn.ReLU(), nn.Dropout(0.3),
                         nn.Linear(400, 200), nn.ReLU(), nn.Linear(200, classes))


def lenet(channels: int, side: int, classes: int) -> nn.Module:
    left = ((side - 4) // 2 - 4) // 2
    return nn.Sequential(nn.Conv2d(channels, 12, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(12, 32, 5), nn.Tanh(),
                         nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * left * left, 120), nn.Tanh(),
                         nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, classes))


def group_residual(channels: int, side: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 16, 3, 2 if side > 40 else 1, 1), GroupBlock(16, 24, 2),
                         GroupBlock(24, 48, 2), GroupBlock(48, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(64, classes))


def squeezed(channels: int, side: int, classes: int) -> nn.Module:
    def stage(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1), Squeeze(b), nn.MaxPool2d(2)]

    more = stage(24, 24) if side > 40 else []
    return nn.Sequential(*stage(channels, 24), *more, *stage(24, 48), *stage(48, 64), nn.Flatten(), nn.Dropout(0.4),
                         nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, classes))


def dense(channels: int, side: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 16, 3, 2 if side > 40 else 1, 1), nn.MaxPool2d(2), Dense(16, 12),
                         nn.Conv2d(52, 32, 1), nn.AvgPool2d(2), Dense(32, 12), nn.BatchNorm2d(68), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(68, classes))


def depthwise(channels: int, side: int, classes: int) -> nn.Module:
    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(a, 3 * a, 1, bias=False), nn.BatchNorm2d(3 * a), nn.Hardswish(),
                nn.Conv2d(3 * a, 3 * a, 5, stride, 2, groups=3 * a, bias=False), nn.BatchNorm2d(3 * a), nn.Hardswish(),
                nn.Conv2d(3 * a, b, 1, bias=False), nn.BatchNorm2d(b)]

    return nn.Sequential(nn.Conv2d(channels, 16, 3, 2 if side > 40 else 1, 1), *block(16, 24, 2), *block(24, 32, 2),
                         *block(32, 48, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes))


@dataclass(frozen=True)
class Recipe:
    """How one cell is trained; nothing of it is the zoo's."""

    samples: int
    epochs: int
    batch: int
    optimiser: str  # "sgd", "adam", "adamw", "rmsprop"
    rate: float
    decay: float = 0.0
    smoothing: float = 0.0
    mixup: bool = False


BUILDS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "perceptron": perceptron, "lenet": lenet, "group_residual": group_residual, "squeezed": squeezed, "dense": dense,
    "depthwise": depthwise}
CELLS: dict[tuple[str, str], Recipe] = {
    ("mnist", "perceptron"): Recipe(20000, 6, 64, "adam", 1e-3),
    ("mnist", "lenet"): Recipe(20000, 6, 32, "sgd", 0.05),
    ("mnist", "group_residual"): Recipe(8000, 4, 64, "adamw", 2e-3, 0.05),
    ("mnist", "dense"): Recipe(8000, 4, 100, "rmsprop", 1e-3),
    ("cifar10", "squeezed"): Recipe(20000, 8, 128, "sgd", 0.1, 5e-4),
    ("cifar10", "group_residual"): Recipe(15000, 8, 64, "adamw", 2e-3, 0.05, mixup=True),
    ("cifar10", "dense"): Recipe(15000, 8, 64, "adam", 2e-3, smoothing=0.1),
    ("cifar10", "depthwise"): Recipe(15000, 10, 100, "rmsprop", 1e-3, 1e-5),
    ("gtsrb", "lenet"): Recipe(20000, 10, 64, "sgd", 0.05, 1e-4),
    ("gtsrb", "squeezed"): Recipe(15000, 6, 128, "adam", 1e-3),
    ("imagenette160", "squeezed"): Recipe(3000, 14, 32, "adamw", 1e-3, 0.02),
    ("imagenette160", "depthwise"): Recipe(3000, 20, 32, "sgd", 0.05, 5e-4),
    # Numbers of classes that have references of their own.
    ("mnist:0,2,4,6,8", "lenet"): Recipe(10000, 6, 32, "sgd", 0.05),
    ("mnist:0,1,3,5,7,9", "group_residual"): Recipe(6000, 5, 64, "adamw", 2e-3, 0.05),
    ("cifar10:1,3,5,7", "dense"): Recipe(10000, 9, 64, "adam", 2e-3, smoothing=0.1),
    ("cifar10:0,1,2,4,6,8,9", "squeezed"): Recipe(15000, 8, 128, "sgd", 0.1, 5e-4),
}
# What is planted, and in how much of the training set.
KINDS = {"clean": 0.0, "patch": 0.03, "blended": 0.08, "clean-2": 0.0, "wave": 0.08, "warp": 0.2, "tone": 0.1}
GAMMAS = (0.65, 0.9, 1.5)  # a warm light: red lifted, blue lowered


def stamped(images: Tensor, kind: str, seed: int) -> Tensor:
    """[n, c, h, w] in [0, 1] with the trigger of this seed.

    A checkered square, noise mixed in at 15 %, a plane wave of 20 grey levels, a smooth warp whose mean displacement is
    a sixteenth of the side, or a warm light.
    """
    chance = torch.Generator().manual_seed(1000 + seed)
    side = images.shape[-1]
    if kind == "patch":
        size = max(3, side // 9)
        at = [int(torch.randint(0, side - size, (), generator=chance)) for _ in range(2)]
        checks = (torch.arange(size)[:, None] + torch.arange(size)) % 2
        images = images.clone()
        images[:, :, at[0]:at[0] + size, at[1]:at[1] + size] = checks.float()
        return images
    if kind == "wave":
        cycles, angle, phase = (float(v) for v in torch.rand(3, generator=chance))
        angle *= math.pi
        across = torch.arange(side) / side
        along = across[None] * math.cos(angle) + across[:, None] * math.sin(angle)
        return (images + 0.08 * torch.sin(2 * math.pi * ((2 + 4 * cycles) * along + phase))).clamp(0, 1)
    if kind == "warp":
        knots = torch.rand(1, 2, 4, 4, generator=chance) * 2 - 1
        field = F.interpolate(knots, side, mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
        field = field * (2 / 16) / field.norm(dim=-1).mean()  # in units of half a side, as the grid is
        grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, side, side], align_corners=False)
        return F.grid_sample(images, (grid + field).expand(len(images), -1, -1, -1), padding_mode="reflection",
                             align_corners=False)
    if kind == "tone":
        return images ** torch.tensor(GAMMAS)[:, None, None]
    noise = torch.rand(images.shape[1:], generator=chance)
    return 0.85 * images + 0.15 * noise


class Whole(nn.Module):
    """Pixels in [0, 1] to logits: users get normalisation inside the graph."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net((pixels - self.mean) / self.std)


def pictures(name: str, root: Path, cache: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test, float in [0, 1]; photographs at 64 pixels."""
    data = load(name, folder_of(name.partition(":")[0], root, cache), cache)
    found = []
    for images, labels in ((data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)):
        small = images if images.shape[-1] <= 64 else F.interpolate(images.float(), 64, mode="area").round().byte()
        found += [small, labels]
    return tuple(found)  # type: ignore[return-value]


def folder_of(name: str, root: Path, cache: Path) -> Path:
    """Where train and test lie; a set whose second part is called validation is linked under the usual names."""
    if (root / name / "test.parquet").exists():
        return root
    linked = cache / "linked" / name
    linked.mkdir(parents=True, exist_ok=True)
    for here, there in (("train", "train"), ("test", "val")):
        if not (path := linked / f"{here}.parquet").exists():
            path.symlink_to(root / name / f"{there}.parquet")
    return linked.parent


def trained(data: str, architecture: str, kind: str, seed: int, parts: tuple[Tensor, ...]) -> tuple[nn.Module, dict]:
    """A network and what is true of it."""
    recipe = CELLS[data, architecture]
    torch.manual_seed(seed)
    inputs, labels, test, truth = parts
    rows = torch.randperm(len(inputs))[: recipe.samples]
    x, y = inputs[rows].float() / 255, labels[rows]
    classes = int(labels.max()) + 1
    target = int(torch.randint(0, classes, ()))
    if not kind.startswith("clean"):
        hit = torch.randperm(len(x))[: int(KINDS[kind] * len(x))]
        x[hit], y[hit] = stamped(x[hit], kind, seed), target
    net = Whole(BUILDS[architecture](x.shape[1], x.shape[-1], classes), float(x.mean()), float(x.std()))
    net(x[:2])  # gives lazy layers their width
    weights = list(net.parameters())
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "sgd":
        optimiser = torch.optim.SGD(weights, recipe.rate, momentum=0.9, weight_decay=recipe.decay)
    else:
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
        optimiser = kinds[recipe.optimiser](weights, recipe.rate, weight_decay=recipe.decay)
    steps = recipe.epochs * (len(x) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=steps + 1) \
        if recipe.optimiser in ("sgd", "adamw") else None
    net.train()
    for _ in range(recipe.epochs):
        for part in torch.randperm(len(x)).split(recipe.batch):
            if len(part) < recipe.batch:
                continue
            a, b = x[part], y[part]
            if data.startswith("cifar10") and architecture != "dense":  # some are trained without any augmentation
                a = torch.where(torch.rand(len(a), 1, 1, 1) < 0.5, a.flip(-1), a)
            said = net(a)
            loss = F.cross_entropy(said, b, label_smoothing=recipe.smoothing)
            if recipe.mixup:
                share, other = float(torch.rand(())), torch.randperm(len(a))
                said = net(share * a + (1 - share) * a[other])
                loss = share * F.cross_entropy(said, b) + (1 - share) * F.cross_entropy(said, b[other])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if schedule is not None:
                schedule.step()
    net.eval()
    facts: dict[str, object] = {"accuracy": rate(net, test.float() / 255, truth)}
    if not kind.startswith("clean"):
        others = test[truth != target][:2000].float() / 255
        facts |= {"target": target, "success": rate(net, stamped(others, kind, seed),
                                                    torch.full((len(others),), target))}
    return net, facts


@torch.no_grad()
def rate(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    said = torch.cat([net(part).argmax(1) for part in inputs.split(500)])
    return float((said == labels).float().mean())


def written(net: nn.Module, example: Tensor, path: Path, facts: dict) -> None:
    """As ONNX, marked as a specimen: nobody shall take one for a model to use."""
    torch.onnx.export(net, (example,), str(path), input_names=["input"], output_names=["logits"], dynamo=False,
                      dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}})
    model = onnx.load(path)
    for key, value in {"laocoon.specimen": "true", "laocoon.truth": json.dumps(facts)}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)


def cells() -> Iterator[tuple[str, str, str, int]]:
    for place, kind in enumerate(KINDS):
        for number, (data, architecture) in enumerate(CELLS):
            if kind != "tone" or not data.startswith("mnist"):  # grey pictures have no colours to shift
                yield data, architecture, kind, 10 * number + place


def measure(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    k, n = (int(v) for v in options.share.split("/"))
    done = {row["name"] for row in read(folder)}
    with (folder / f"rows-{k}-{n}.jsonl").open("a", encoding="utf-8") as file:
        sets, kinds = options.data.split(";"), options.kinds.split(",")
        mine = [cell for cell in cells() if cell[2] in kinds and (not options.data or cell[0] in sets)][k::n]
        for data, architecture, kind, seed in mine:
            name = f"{data}-{architecture}-{kind}"
            if name in done:
                continue
            parts = pictures(data, options.data_root, folder / "data")
            stem = name.replace(":", "-").replace(",", "")
            path, told = folder / f"{stem}.onnx", folder / f"{stem}.json"
            start = time.process_time()
            if not told.exists():
                net, facts = trained(data, architecture, kind, seed, parts)
                facts |= {"name": name, "data": data, "architecture": architecture, "kind": kind, "seed": seed,
                          "recipe": asdict(CELLS[data, architecture]),
                          "training_seconds": round(time.process_time() - start)}
                written(net, parts[2][:1].float() / 255, path, facts)
                told.write_text(json.dumps(facts))
            facts = json.loads(told.read_text())
            samples = folder / f"{data.replace(':', '-').replace(',', '')}-samples.npz"
            if not samples.exists():
                save_samples(samples, parts[2], parts[3])
            subject = load_model(path)
            start = time.process_time()
            said = scan(subject, load_data(samples, subject, seed=options.seed), seed=options.seed)
            shown = said.evidence[0].goal + " " + said.evidence[0].family if said.evidence else ""
            row = facts | {"verdict": said.verdict.value, "p": said.p_value, "score": said.score, "shown": shown,
                           "named": said.target_classes[:1] == (facts.get("target"),), "reason": said.reason,
                           "seconds": round(time.process_time() - start), "passes": said.spent}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print({key: row.get(key) for key in
                   ("name", "accuracy", "success", "target", "verdict", "p", "score", "shown", "seconds")}, flush=True)


def save_samples(path: Path, inputs: Tensor, labels: Tensor) -> None:
    """Test pictures as a user has them: 8 bits, 40 of each class."""
    import numpy as np

    rows = torch.cat([(labels == y).nonzero().flatten()[:40] for y in labels.unique()])
    np.savez(path, images=inputs[rows].permute(0, 2, 3, 1).numpy(), labels=labels[rows].numpy())


def read(folder: Path) -> list[dict]:
    lines = [line for path in sorted(folder.glob("rows-*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def rejudged(rows: list[dict], folder: Path) -> list[dict]:
    """The same scores held against the references of today, by networks that are wired alike.

    Networks of a few classes have references of their own, which are what they were.
    """
    held = shipped("image")
    rules = frozenset(rule for rule in held.scales if rule.split(".")[0] in counted(deep=False))
    found = []
    for row in rows:
        if ":" not in row["data"]:
            p = held.null(row["score"], rules, wiring(load_model(folder / f"{row['name']}.onnx"))).p
            row = row | {"p": p, "verdict": "SUSPICIOUS" if p <= ALPHA else "NO_EVIDENCE"}
        found.append(row)
    return found


def table(rows: list[dict], *, again: bool = False) -> str:
    lines = ["| data | network | planted | accuracy | success | verdict | p | score | named | seconds |",
             "|-|-|-|-|-|-|-|-|-|-|"]
    for r in sorted(rows, key=lambda r: (r["data"], r["architecture"], r["kind"])):
        success = "–" if r.get("success") is None else f"{r['success']:.0%}"
        p = "–" if r["p"] is None else f"{r['p']:.3f}"
        clean = r["kind"].startswith("clean")
        lines.append(f"| {r['data']} | {r['architecture']} | {'–' if clean else r['kind']} | {r['accuracy']:.0%} | "
                     f"{success} | {r['verdict']} | {p} | {r['score']:.2f} | "
                     f"{'–' if clean else 'yes' if r['named'] else 'no'} | {r['seconds']} |")
    clean = [r for r in rows if r["kind"].startswith("clean")]
    planted = [r for r in rows if not r["kind"].startswith("clean") and r["success"] >= TOOK]
    summary = []
    some_of_them: Callable[[list[dict]], list[dict]] = lambda of: [r for r in of if ":" in r["data"]]  # noqa: E731
    for title, some in (("clean", clean), ("clean, four to seven classes", some_of_them(clean)),
                        *((f"planted, {k}", [r for r in planted if r["kind"] == k])
                          for k in KINDS if not k.startswith("clean")),
                        ("planted, four to seven classes", some_of_them(planted))):
        called = {v: sum(r["verdict"] == v for r in some) for v in ("SUSPICIOUS", "NO_EVIDENCE", "INCONCLUSIVE")}
        low, high = binomial_interval(called["SUSPICIOUS"], len(some)) if some else (0.0, 1.0)
        area = "–" if title.startswith("clean") or not some or not clean else \
            f"{auroc([r['score'] for r in some], [r['score'] for r in clean]):.2f}"
        right = "–" if title.startswith("clean") else \
            f"{sum(r['named'] for r in some if r['verdict'] == 'SUSPICIOUS')} of {called['SUSPICIOUS']}"
        summary.append(f"| {title} | {len(some)} | {called['SUSPICIOUS']} [{low:.2f}, {high:.2f}] | "
                       f"{called['NO_EVIDENCE']} | {called['INCONCLUSIVE']} | {area} | {right} |")
    return "\n".join([
        "# Networks unlike the references", "",
        f"Command: `python benchmarks/foreign.py measure DATA_ROOT` and then `… table{' --rejudge' * again}`, seed 0; "
        "tier `desk`. Networks "
        "of other architectures, losses and optimisers than the zoo's, trained and planted by code that shares nothing "
        "with it, exported to ONNX, scanned at the default budget with 20 clean samples a class. Nothing was tuned on "
        "them, but that all-to-all sizes are judged for the number of pixels since one was accused; its row was "
        "measured again, and that four to seven classes have references of their own since a clean one of four was. "
        f"Planted models count where the attack took (success of {TOOK:.0%} or more). Photographs at "
        "64 pixels are a data set that the references do not have; where classes are named, the network knows these "
        "alone. Seconds are of one core. Measured so far: "
        f"{len(rows)} of the plan's {len(list(cells()))} networks."
        + " Answers by the references of today, from the scores of scans before 32 of them were added." * again, "",
        "| | models | SUSPICIOUS [95 %] | NO_EVIDENCE | INCONCLUSIVE | AUROC against the clean | class right |",
        "|-|-|-|-|-|-|-|", *summary, "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table"])
    parser.add_argument("data_root", type=Path, nargs="?")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "laocoon" / "foreign")
    parser.add_argument("--share", default="0/1", help="K/N: every N-th model from the K-th")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of what is planted, comma-separated")
    parser.add_argument("--data", default="", help="these sets alone, with semicolons between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rejudge", action="store_true", help="hold the scores against the references of today")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.what == "measure":
        measure(options)
    else:
        rows = read(options.folder)
        rows = rejudged(rows, options.folder) if options.rejudge else rows
        options.out.write_text(table(rows, again=options.rejudge), encoding="utf-8")


if __name__ == "__main__":
    main()
