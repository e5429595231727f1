"""TrojanZoo's Neural Cleanse, from its package, on models and samples of ours: docs/results/trojanzoo.md.

    python -m venv OTHER
    OTHER/bin/pip install trojanzoo "numpy<2" "matplotlib<3.9" "pandas<2.3" "scipy<1.14" "scikit-learn<1.5" \\
        "scikit-image<0.23"
    python benchmarks/trojanzoo.py OTHER/bin/python [--epochs 10 50] [--models 3] [--out FILE.md]

Its defence holds the attack and the training data, and reads the true target: it cannot be pointed at a model alone.
Its search itself (`ModelInspection.optimize_mark`, with Neural Cleanse's stopping rule) needs a mark and a model, which
the child process gives it; everything else of the toolkit stays unused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from engine import halved

from laocoon.lab.datasets import load
from laocoon.lab.reference import clean_samples
from laocoon.lab.zoo import specimens
from laocoon.verdict.examination import prepare

TARGET = Path(__file__).parent.parent / "docs" / "results" / "trojanzoo.md"
PINS = '"numpy<2" "matplotlib<3.9" "pandas<2.3" "scipy<1.14" "scikit-learn<1.5" "scikit-image<0.23"'
LIMIT = 1800  # seconds for one model

# Runs in the other environment. Arguments: folder, epochs. Prints one line of JSON at the end.
CHILD = """
import json, sys, time, types, warnings
from importlib.metadata import version
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from trojanvision.defenses import NeuralCleanse

folder, epochs = sys.argv[1], int(sys.argv[2])
module = torch.jit.load(folder + "/model.pt").eval()
for parameter in module.parameters():
    parameter.requires_grad_(False)
inputs, labels, classes = torch.load(folder + "/samples.pt")
passes = 0

class Model:
    num_classes = classes
    def __call__(self, x, **_):
        global passes
        passes += len(x)
        return module(x)
    def get_data(self, data):
        return data
    def loss(self, x, y, _output):
        return torch.nn.functional.cross_entropy(_output, y)

mark = types.SimpleNamespace(mark=torch.zeros(inputs.shape[1] + 1, *inputs.shape[2:]))
def add_mark(x):
    mask = mark.mark[-1]
    return (1 - mask) * x + mask * mark.mark[:-1]
search = object.__new__(NeuralCleanse)
search.attack, search.model = types.SimpleNamespace(mark=mark, add_mark=add_mark), Model()
search.defense_remask_epoch, search.defense_remask_lr = epochs, 0.1
search.cost = search.init_cost = 1e-3
search.cost_multiplier_up, search.cost_multiplier_down = 1.5, 1.5**1.5
search.nc_patience, search.nc_asr_threshold, search.nc_early_stop_threshold = 10.0, 0.99, 0.99
search.early_stop_patience = 20.0
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=32, shuffle=True)
torch.manual_seed(0)
start, norms = time.process_time(), []
for label in range(classes):
    search.cost = search.init_cost
    mark.mark = torch.zeros_like(mark.mark)
    best, _ = search.optimize_mark(label, loader=loader, verbose=False)
    norms.append(float(best[-1].abs().sum()))
print(json.dumps({"norms": norms, "passes": passes, "seconds": time.process_time() - start,
                  "versions": {n: version(n) for n in ("trojanzoo", "torch", "matplotlib", "numpy")}}))
"""


def theirs(python: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """What the child said, or its last line of failure."""
    done = subprocess.run([str(python), "-c", CHILD, str(folder), str(epochs)], capture_output=True, text=True,
                          check=False, cwd=folder, timeout=LIMIT)
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path)
    parser.add_argument("--zoo", type=Path, default=Path.home() / ".cache" / "laocoon" / "zoo")
    parser.add_argument("--epochs", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, versions, seen = [], "", set()
    for specimen in specimens(options.zoo, "fusion"):
        facts, s = specimen.facts, specimen.specification
        wanted = (facts.get("attack") == "badnets" and facts.get("attack_success", 0) >= 0.9
                  and facts["goal"].startswith("class ") and " to " not in facts["goal"])
        if not wanted or s.data in seen or s.data == "gtsrb" or len(seen) >= options.models:
            continue
        seen.add(s.data)
        dataset = load(s.data, None, options.zoo / "data")
        subject = specimen.subject(dataset)
        samples = prepare(subject.module, clean_samples(dataset, 0), 0, subject.classes).fit
        assert samples is not None
        ours = halved(samples, subject.classes, subject.module)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.jit.trace(subject.module, samples.inputs[:2]).save(str(folder / "model.pt"))
            torch.save((samples.inputs, samples.labels, subject.classes), folder / "samples.pt")
            for epochs in options.epochs:
                said = theirs(options.python.absolute(), folder, epochs)
                model = f"{s.data} {s.architecture} {s.kind}"
                if "failure" in said:
                    lines.append(f"| {model} | {epochs} | – | – | – | – | {said['failure'].replace('|', '/')} |")
                else:
                    versions = ", ".join(f"{k} {v}" for k, v in said["versions"].items())
                    suspect = min(range(len(said["norms"])), key=said["norms"].__getitem__)
                    hit = "yes" if suspect == facts["target"] else f"no ({suspect}, not {facts['target']})"
                    lines.append(f"| {model} | {epochs} | {hit} | {'yes' if ours.suspect == facts['target'] else 'no'} "
                                 f"| {said['passes'] / ours.passes:.1f} | {said['seconds'] / ours.seconds:.1f} | |")
                print(lines[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join([
        "# TrojanZoo's Neural Cleanse", "",
        f"Command: `python benchmarks/trojanzoo.py OTHER/bin/python`, tier `desk`, seed 0, one thread; {versions}.", "",
        "Installed alone, TrojanZoo 2.0.3 does not import beside current releases: `ImportError: cannot import name "
        f"'get_cmap' from 'matplotlib.cm'`. It does with {PINS.replace(chr(34), '`')}.", "",
        "Its command needs an attack object with the true mark and target, and the training data; it cannot be given a "
        "model alone. Its search was therefore called directly (`NeuralCleanse.optimize_mark`, its own stopping rule, "
        "batches of 32), with the clean samples that our engine got. 10 epochs are its default, meant for a whole "
        "training set. Ours is the engine as in `benchmarks/engine.py`, halved.", "",
        "| model | its epochs | it names the target | ours does | its passes to ours | its time to ours | failure |",
        "|-|-|-|-|-|-|-|", *lines, "",
        "It keeps the mark of the smallest norm whether or not that mark succeeds.", ""]))


if __name__ == "__main__":
    main()
