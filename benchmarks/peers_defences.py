"""The same defences by the Adversarial Robustness Toolbox and TrojanZoo, side by side: docs/results/peers_defences.md.

    python -m venv ART; ART/bin/pip install adversarial-robustness-toolbox packaging six tqdm torch scikit-learn
    python -m venv ZOO; ZOO/bin/pip install trojanzoo "numpy<2" "matplotlib<3.9" "pandas<2.3" "scipy<1.14" \\
        "scikit-learn<1.5" "scikit-image<0.23"
    python benchmarks/peers_defences.py ART/bin/python ZOO/bin/python --data-root DATA [--seeds 0 1 2]

The list was declared before anything was run (DECLARED below). Each is given the network as TorchScript, and what its
method needs; none the truth. Peers that give flags are compared at the share of clean samples that they flag. Times are
of the processor, one thread, features included, in one run.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laocoon.core.cases import DataCase, ModelCase
from laocoon.core.context import Context
from laocoon.lab.criteria.answers import goal_of, stamped
from laocoon.lab.plan import read
from laocoon.lab.recall import Recalled, recalled
from laocoon.lab.runner import Lab

ROOT = Path(__file__).parent.parent
ATTACKS = ("badnets", "blended", "label_consistent", "wanet")
LIMIT = 900  # seconds for one defence on one model
# toolkit, its name for the defence, ours, what is compared
DECLARED = (
    ("art", "ActivationDefence", "activation_clustering", "training samples"),
    ("art", "SpectralSignatureDefense", "spectral_signatures", "training samples"),
    ("art", "STRIP", "strip", "requests"),
    ("art", "NeuralCleanse.mitigate", "repair", "repair"),
    ("zoo", "ActivationClustering", "activation_clustering", "training samples"),
    ("zoo", "SpectralSignature", "spectral_signatures", "training samples"),
    ("zoo", "Strip", "strip", "requests"),
    ("zoo", "FinePruning", "fine_pruning", "repair"),
)

# Runs in the other environment: folder, defence. Prints one line of JSON: flags or scores, and seconds.
CHILD = r'''
import json, sys, time, types, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
torch.set_num_threads(1)
folder, toolkit, name = sys.argv[1:4]
full = torch.jit.load(folder + "/model.pt").eval()
body = torch.jit.load(folder + "/body.pt").eval()
data = np.load(folder + "/data.npz")
classes = int(data["classes"])
torch.manual_seed(0); np.random.seed(0)
said, start = {}, time.process_time()

if toolkit == "art":
    from art.estimators.classification import PyTorchClassifier
    from art.utils import to_categorical

    class Features(PyTorchClassifier):
        """Activations of a scripted network cannot be hooked: the one layer that is asked for is handed over."""
        def get_activations(self, x, layer=None, batch_size=128, framework=False):
            with torch.no_grad():
                return np.concatenate([body(torch.as_tensor(x[i:i + batch_size])).numpy()
                                       for i in range(0, len(x), batch_size)])
        @property
        def layer_names(self):
            return ["features", "head"]

    make = lambda kind: kind(model=full, loss=torch.nn.CrossEntropyLoss(), input_shape=data["x"].shape[1:],
                             nb_classes=classes, clip_values=(0, 1), device_type="cpu")
    if name in ("ActivationDefence", "SpectralSignatureDefense"):
        import art.defences.detector.poison as poison
        defence = getattr(poison, name)(make(Features), data["x"], to_categorical(data["y"], classes))
        _, clean = defence.detect_poison()
        said["flags"] = [int(not c) for c in clean]
    elif name == "STRIP":
        from art.defences.transformer.poisoning.strip import STRIP
        full = torch.nn.Sequential(full, torch.nn.Softmax(1))  # it takes entropies of what comes out
        guarded = STRIP(make(PyTorchClassifier))(num_samples=20, false_acceptance_rate=0.05)
        guarded.mitigate(data["given"])
        for side in ("clean", "stamped"):
            out = guarded.predict(data[side])
            said[side] = [int(not np.any(row)) for row in out]
    else:
        from art.defences.transformer.poisoning.neural_cleanse import NeuralCleanse
        NeuralCleanse(make(PyTorchClassifier))(make(PyTorchClassifier))
else:
    import trojanvision.defenses as defenses
    from trojanvision.defenses.backdoor.training_filtering.spectral_signature import SpectralSignature
    kind = SpectralSignature if name == "SpectralSignature" else getattr(defenses, name)

    class Model:
        num_classes = classes
        _model = types.SimpleNamespace(get_final_fm=body)
        __call__ = staticmethod(full)
        @staticmethod
        def get_data(part):
            return part
        @staticmethod
        def get_class(x):
            return full(x).argmax(1)

    pairs = torch.utils.data.TensorDataset(torch.as_tensor(data["x"]), torch.as_tensor(data["y"]))
    loader = lambda mode=None, dataset=None, drop_last=False, **_: torch.utils.data.DataLoader(dataset, 128)
    defence = object.__new__(kind)
    defence.model = Model()
    defence.dataset = types.SimpleNamespace(num_classes=classes, get_dataloader=loader, dataset=None)
    if name == "ActivationClustering":
        from sklearn.cluster import KMeans
        from sklearn.decomposition import FastICA
        defence.nb_clusters, defence.nb_dims, defence.cluster_analysis = 2, 10, "silhouette_score"
        defence.projector, defence.clusterer = FastICA(n_components=10), KMeans(n_clusters=2)
        defence.clean_set, defence.poison_set = pairs, torch.utils.data.Subset(pairs, [])
        with torch.no_grad():
            said["predicted_flags"] = defence.get_pred_labels().int().tolist()
    elif name == "Strip":
        given = torch.utils.data.TensorDataset(torch.as_tensor(data["given"]), torch.zeros(len(data["given"])))
        defence.strip_alpha, defence.strip_sample_num = 0.5, 64
        for side in ("clean", "stamped"):
            scores = []
            for part in torch.as_tensor(data[side]).split(64):
                defence.loader = torch.utils.data.DataLoader(given, len(part), shuffle=True, drop_last=True)
                with torch.no_grad():
                    scores += (-defence.get_score(part)).tolist()
            said[side + "_scores"] = scores
    elif name == "SpectralSignature":
        defence.mix_dataset, defence.epsilon, defence.preprocess_layer = pairs, 5, "features"
        defence.model.get_layer = lambda x, layer_output=None: body(x)
        defence.get_clean_dataloader()
    else:
        kind(attack=None)
said["seconds"] = time.process_time() - start
print(json.dumps(said))
'''


def child(python: Path, folder: Path, toolkit: str, name: str) -> dict[str, Any]:
    try:
        done = subprocess.run([str(python), "-c", CHILD, str(folder), toolkit, name], capture_output=True, text=True,
                              check=False, cwd=folder, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"failure": f"not done after {LIMIT} s"}
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def body_of(module: nn.Module) -> nn.Module:
    """The network up to its last layer."""
    found = copy.deepcopy(module)
    assert isinstance(found.body, nn.Module)
    found.body.head = nn.Identity()
    return found


def at(scores: Tensor, clean: Tensor, share: float) -> float:
    """Share of scores above what this share of the clean ones exceeds."""
    return float((scores > clean.quantile(1 - share)).float().mean())


def ours(name: str, r: Recalled, train: Any, clean: Tensor, carrying: Tensor) -> tuple[Tensor, Tensor, float]:
    """Scores of the planted and of the clean, and seconds."""
    start = time.process_time()
    if name == "strip":
        from laocoon.guards.strip import Strip

        watch = Strip().fit(ModelCase(r.subject, r.lot.given), Context())
        sides = [torch.cat([watch.check(p).scores for p in side.split(64)]) for side in (carrying, clean)]
        return sides[0], sides[1], time.process_time() - start
    from laocoon.core.catalogue import classes
    from laocoon.core.methods import DataDetector

    method = next(m for m in classes("laocoon.detectors.data", DataDetector) if m.card.name == name)  # type: ignore[type-abstract]
    samples, poisoned = train
    scores = method().examine(DataCase(samples, r.subject.classes, r.subject), Context()).scores
    assert scores is not None
    truth = torch.zeros(len(samples), dtype=torch.bool)
    truth[poisoned] = True
    return scores[truth], scores[~truth], time.process_time() - start


def compared(r: Recalled, pythons: dict[str, Path], least: int) -> list[str]:
    train = r.poisoned()
    truth = torch.zeros(len(train[0]), dtype=torch.bool)
    truth[train[1]] = True
    half = len(r.lot.test) // 2
    clean = r.lot.test.inputs[:half][:least]
    rows = torch.arange(half, len(r.lot.test))
    assert r.trigger is not None
    carrying = stamped(r.trigger, r.lot.test.inputs[rows[goal_of(r.trigger).applies(r.lot.test.labels[rows])]][:least])
    lines, mine = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        some = train[0].inputs[:2]
        torch.jit.trace(r.subject.module, some).save(str(folder / "model.pt"))
        torch.jit.trace(body_of(r.subject.module).eval(), some).save(str(folder / "body.pt"))
        np.savez(folder / "data.npz", x=train[0].inputs.numpy(), y=train[0].labels.numpy(), clean=clean.numpy(),
                 stamped=carrying.numpy(), given=r.lot.given.inputs.numpy(), classes=r.subject.classes)
        for toolkit, theirs, own, what in DECLARED:
            said = child(pythons[toolkit], folder, toolkit, theirs)
            start = f"| {r.data} {r.label} {r.seed} | {toolkit} {theirs} |"
            if "failure" in said:
                lines.append(f"{start} – | – | – | – | {said['failure'].replace('|', '/')} |")
                continue
            if own not in mine:
                mine[own] = ours(own, r, train, clean, carrying)
            planted, honest, seconds = mine[own]
            if what == "training samples":
                flags = torch.tensor(said.get("flags", said.get("predicted_flags"))).bool()
                share, found = float(flags[~truth].float().mean()), float(flags[truth].float().mean())
            elif "clean_scores" in said:
                share = 0.05
                found = at(torch.tensor(said["stamped_scores"]), torch.tensor(said["clean_scores"]), share)
            else:
                share, found = sum(said["clean"]) / len(clean), sum(said["stamped"]) / len(carrying)
            lines.append(f"{start} {share:.3f} | {found:.3f} | {at(planted, honest, max(share, 1e-6)):.3f} | "
                         f"{said['seconds'] / seconds:.1f} | |")
            print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("art", type=Path)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "laocoon" / "lab")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--least", type=int, default=200, help="requests of each side")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "peers_defences.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = []
    lab = Lab(options.folder, data_root=options.data_root)
    pythons = {"art": options.art.absolute(), "zoo": options.zoo.absolute()}
    for r in recalled(lab, read(ROOT / "experiments" / "core.toml"), labels=ATTACKS, data=("cifar10",),
                      seeds=options.seeds, clean=False):
        lines += compared(r, pythons, options.least)
    options.out.write_text("\n".join([
        "# Defences that other toolkits have too", "",
        "Command: `python benchmarks/peers_defences.py ART/bin/python ZOO/bin/python`, tier `desk`, CIFAR-10, seeds "
        f"{', '.join(map(str, options.seeds))}; adversarial-robustness-toolbox 1.20.1, trojanzoo 2.0.3. The list of "
        "defences was written before anything was run.", "",
        "Theirs flag a share of the clean samples and find a share of the poison; ours is read at the same share of "
        "clean samples. Time: theirs to ours, processor, one thread.", "",
        "ART's STRIP is handed a softmax: on class scores, which its documentation allows, it stops at values that are "
        "not finite. Its Neural Cleanse is for Keras alone. TrojanZoo's spectral signatures collect the number of the "
        "class where the number of the sample is meant, and end there; its fine-pruning cannot be made without the "
        "attack, whose success on poisoned test samples it reads.", "",
        "| model | theirs | clean flagged | theirs find | ours find | their time to ours | failure |",
        "| - | - | -: | -: | -: | -: | - |", *lines, ""]))


if __name__ == "__main__":
    main()
