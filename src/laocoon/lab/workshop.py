"""Where trials are done: train, plant, judge, defend. Everything that lasts becomes an artefact."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from laocoon.core.context import Context
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.methods import Attack, Implant, Plan
from laocoon.core.subject import Provenance, Subject
from laocoon.files.open import load_model
from laocoon.lab.artefacts import Store
from laocoon.lab.criteria.measure import plain
from laocoon.lab.criteria.scorecard import Cost, Extent, Material, scorecard
from laocoon.lab.datasets import Dataset, load
from laocoon.lab.defence import examine
from laocoon.lab.export import to_onnx
from laocoon.lab.judge import judged, judged_clean, named, truth_of
from laocoon.lab.ledger import DONE, Ended, TrialRow
from laocoon.lab.plan import DefencePart, defence_of
from laocoon.lab.training import Lot, Victim, lot
from laocoon.lab.transfer import Maker
from laocoon.lab.trial import Trial, attack_in, fingerprint
from laocoon.modalities.raw import ModelOptions
from laocoon.recipes.transfer import adapted
from laocoon.verdict.examination import Crash, attempted

FOREVER = float("inf")
MARK = "a model made to measure defences; do not deploy"


@dataclass
class Workshop:
    """Data in memory, and a store. One data set and one lot of samples are kept at a time."""

    store: Store
    data_root: Path | None
    cache: Path
    _data: dict[str, tuple[Dataset, str]] = field(default_factory=dict)
    _lots: dict[str, Lot] = field(default_factory=dict)

    def dataset(self, name: str) -> tuple[Dataset, str]:
        """A data set and its fingerprint."""
        if name not in self._data:
            found = load(name, self.data_root, self.cache)
            self._data = {name: (found, fingerprint(found))}
            self._lots = {}
        return self._data[name]

    def perform(self, trial: Trial, needs: Mapping[str, TrialRow]) -> Ended:
        """Do a trial; `needs` are the rows of those that it waited for. Same trial, same result."""
        start = time.monotonic()
        bench = self.bench(trial.specification)
        done = {"twin": bench.twin, "implant": bench.implant, "defence": bench.defence}[trial.kind](trial, needs)
        return Ended(DONE, done.result, done.artefacts, seconds=round(time.monotonic() - start, 3))

    def bench(self, facts: Mapping[str, Any]) -> Bench:
        """The subject, the samples and the seed that a trial speaks of."""
        dataset, found = self.dataset(facts["data"])
        if found != facts["data_digest"]:
            raise InputError(f"data set {facts['data']!r} changed while the plan ran.", "Run the plan again.")
        recipe, seed = facts["recipe"], facts["seed"]
        key = json.dumps([seed, recipe["samples"], facts["test_samples"], facts["given_per_class"]])
        if key not in self._lots:
            self._lots = {key: lot(dataset, seed, samples=recipe["samples"], test=facts["test_samples"],
                                   given_per_class=facts["given_per_class"])}
        channels, height, width = dataset.train_inputs.shape[1:]
        if height != width:
            raise InputError(f"the pictures of {facts['data']} are {height}×{width} px.",
                             "The lab's networks want squares.")
        victim = Victim(facts["architecture"], channels, height, dataset.classes, seed, recipe["epochs"],
                        recipe["shift"], recipe["flip"], recipe["rate"], _device(facts))
        return Bench(self.store, victim, self._lots[key])


@dataclass(frozen=True)
class Made:
    result: dict[str, Any]
    artefacts: dict[str, str]


@dataclass(frozen=True, eq=False)
class Bench:
    """One subject under one seed."""

    store: Store
    victim: Victim
    lot: Lot

    def plan(self, target: int = 0) -> Plan:
        v, own = self.victim, self.lot
        return Plan(own.train, own.test, v.fit, target, v.classes, v.untrained, augment=v.augment, prior=own.prior)

    def twin(self, trial: Trial, needs: Mapping[str, TrialRow]) -> Made:
        """Clean training, or a student of the teacher that an honest maker trains by an attack's recipe."""
        ctx = Context(seed=self.victim.seed)
        maker = trial.specification.get("maker")
        if maker is None:
            subject = self.victim.fit(self.lot.train, ctx)
        else:
            attack, plan = attack_in(maker), self.plan(self.target(None))
            assert isinstance(attack, Maker)
            subject = adapted(plan, attack.honest(plan, ctx), ctx)
        facts = {"backdoored": False, "trial": trial.digest, "specification": trial.specification}
        result = plain(judged_clean(subject, self.lot.test, Context(seed=self.victim.seed)))
        return Made({"judged": result, "truth": {}}, self._stored(subject, facts, "model"))

    def implant(self, trial: Trial, needs: Mapping[str, TrialRow]) -> Made:
        facts = trial.specification
        attack, target = attack_in(facts["attack"]), self.target(facts["target"])
        twin_row = needs[facts["twin"]]
        twin = self.restored(twin_row.artefacts)
        ctx, start = Context(seed=self.victim.seed), time.monotonic()
        plan = self.plan(target)
        implant = attack.implant(plan, ctx)
        cost = Cost(time.monotonic() - start, ctx.spent)
        judging = Context(seed=self.victim.seed)
        found = judged(implant, twin, self.lot.test, judging)
        truth = {**truth_of(implant), "backdoored": True, "specimen": MARK, "trial": trial.digest,
                 "twin": twin_row.artefacts.get("model", ""), "specification": dict(facts)}
        kept = self._stored(implant.subject, truth, "model")
        kept["trigger"] = self.store.put(_packed(implant.trigger.trigger, truth), "safetensors")
        if implant.artefact is not None:
            kept["artefact"] = self.store.put(_weights(implant.artefact.module, truth), "safetensors")
        kept["truth"] = self.store.put(json.dumps(truth, sort_keys=True, indent=1).encode(), "json")
        if facts["extent"] is not None:
            kept["scorecard"] = self._scored(implant, twin, attack, plan, cost, facts["extent"])
        told = {k: truth[k] for k in ("targets", "goal", "poisoned", "poison_rate", "phase", "threat")}
        return Made({"judged": plain(found), "truth": told, "cost": asdict(cost)}, kept)

    def defence(self, trial: Trial, needs: Mapping[str, TrialRow]) -> Made:
        """The defence is handed the model and the clean samples; its answer is judged after it has been given."""
        facts = trial.specification["defence"]
        row = needs[trial.specification["subject"]]
        subject = self.restored(row.artefacts, graph=facts["graph"])
        given = self.lot.given if len(self.lot.given) else None
        part = DefencePart(name=facts["name"], parameters=dict(facts["parameters"]), graph=facts["graph"])
        answer = examine(subject, given, defence_of(part), self.victim.seed)
        report = json.dumps(answer.report, sort_keys=True, indent=1, allow_nan=False).encode()
        kept = {"report": self.store.put(report, "json")}
        said = {k: v for k, v in asdict(answer).items() if k != "report"}
        return Made({"answer": said, "named": named(answer, row.result.get("truth", {}))}, kept)

    def restored(self, artefacts: Mapping[str, str], *, graph: bool = False) -> Subject:
        """A model from its artefacts: weights in the victim's network, or, where that changed, its ONNX file."""
        if "unwritable" in artefacts:
            raise InputError(f"the model is not the victim's network, and it has no file: {artefacts['unwritable']}.",
                             "This defence cannot be run on it.")
        if "graph" in artefacts:
            return self._opened(self.store.get(artefacts["graph"]))
        module = self.victim.blank()
        try:
            module.load_state_dict(safetensors.torch.load(self.store.get(artefacts["model"])))
        except RuntimeError as error:
            raise BrokenFile(f"artefact {artefacts['model']} does not fit its network ({str(error)[:120]}).",
                             "Run its trial again.") from None
        subject = self.victim.subject(module)
        return self._opened(self._graph(subject, {})) if graph else subject

    def target(self, wanted: int | None) -> int:
        """The same for every attack under one seed."""
        if wanted is not None:
            if wanted >= self.victim.classes:
                raise InputError(f"target is {wanted}, and there are {self.victim.classes} classes.", "Choose a class.")
            return wanted
        rng = Context(seed=self.victim.seed).child(FOREVER, "target").rng
        return int(torch.randint(0, self.victim.classes, (), generator=rng))

    def _scored(self, implant: Implant, twin: Subject, attack: Attack, plan: Plan, cost: Cost,
                extent: Mapping[str, Any]) -> str:
        own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in extent.items() if k != "schedules"}
        given = self.lot.given if len(self.lot.given) else None
        material = Material(given=given, train=self.lot.train, cost=cost, attack=attack, plan=plan)
        card = scorecard(implant, twin, self.lot.test, Context(seed=self.victim.seed), material=material,
                         extent=Extent(**own))
        return self.store.put(json.dumps(card.to_dict(), sort_keys=True, indent=1).encode(), "json")

    def _stored(self, subject: Subject, facts: Mapping[str, Any], name: str) -> dict[str, str]:
        """The weights with the truth in their metadata; an ONNX file too where they alone do not make the model."""
        kept = {name: self.store.put(_weights(subject.module, facts), "safetensors")}
        if not self._ordinary(subject):
            written = attempted(lambda: self._graph(subject, facts))
            if isinstance(written, Crash):
                kept["unwritable"] = written.reason[:300]
            else:
                kept["graph"] = self.store.put(written, "onnx")
        return kept

    def _ordinary(self, subject: Subject) -> bool:
        """Are the weights, in the victim's network, the model? Attacks on the architecture change more than those."""
        module, some = self.victim.blank(), self.lot.test.inputs[:32]
        try:
            module.load_state_dict(subject.module.state_dict())
        except RuntimeError:
            return False
        with torch.no_grad():
            return torch.allclose(module.eval()(some), subject.module(some), rtol=1e-4, atol=1e-4)

    def _graph(self, subject: Subject, facts: Mapping[str, Any]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            to_onnx(subject.copy().module, subject.input_shape, path, facts)
            return path.read_bytes()

    def _opened(self, data: bytes) -> Subject:
        """As a stranger's file, without what its metadata say."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(data)
            found = load_model(path, options=ModelOptions(input_range="0-1"))
        return Subject(found.module, found.modality, found.classes, found.input_shape, found.capabilities,
                       Provenance(format="onnx"), found.class_names, found.graph)


def _device(facts: Mapping[str, Any]) -> str:
    device: str = facts.get("device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("the plan's device is cuda, and torch sees no GPU here.",
                         'Run it where there is one, or set device = "cpu".')
    return device


def _packed(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> bytes:
    plain_tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    packed: bytes = safetensors.torch.save(plain_tensors, metadata={"laocoon": json.dumps(facts, sort_keys=True)})
    return packed


def _weights(module: nn.Module, facts: Mapping[str, Any]) -> bytes:
    return _packed(module.state_dict(), facts)
