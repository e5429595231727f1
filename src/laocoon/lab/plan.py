"""A plan of trials: subjects × attacks × defences × seeds, as a TOML file. What cannot be used is refused before any
work, with the file, the key, the value and the remedy."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from laocoon.core.catalogue import classes
from laocoon.core.errors import InputError, LaocoonError
from laocoon.core.methods import Attack, Detector
from laocoon.files.wording import printable
from laocoon.lab.criteria.scorecard import CRITERIA, TREATMENTS, Extent
from laocoon.lab.defence import Defence, WholeScan
from laocoon.lab.training import RECIPES
from laocoon.modalities.image_networks import ARCHITECTURES
from laocoon.verdict.schedule import plan as schedule

LARGEST = 2**20  # bytes of a plan
MOST = 100_000  # trials
KIND = "image"  # modality of the lab's subjects
SCAN = "scan"  # the defence that is not one detector but the whole scan

T = TypeVar("T")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Label = Annotated[str, Field(min_length=1, max_length=80)]
Criterion = Literal["targetedness", "stealthiness", "practicality", "resistance", "robustness"]
Treatment = Literal["fine_tuning", "pruning", "distillation", "quantisation", "head_swap"]


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not -1 <= value[0] <= value[1] <= 1:
        raise ValueError("a range is [low, high], low first, both shares between -1 and 1")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_range)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SubjectPart(_Part):
    """What is attacked: a data set, an architecture and a recipe. What the recipe leaves out is the desk tier's."""

    data: Name
    architecture: str
    samples: int | None = Field(default=None, ge=20, le=10**6)
    epochs: int | None = Field(default=None, ge=1, le=1000)
    shift: int | None = Field(default=None, ge=0, le=8)
    flip: bool | None = None
    rate: float | None = Field(default=None, gt=0, le=1)

    @property
    def label(self) -> str:
        return f"{self.data} {self.architecture}"

    def recipe(self) -> dict[str, Any]:
        """Every setting of the training, defaults filled in."""
        usual = dict(zip(("samples", "epochs", "shift", "flip"), RECIPES.get(self.data, (None, None, 0, False)),
                         strict=True))
        own = {k: v for k in usual if (v := getattr(self, k)) is not None}
        return {**usual, **own, "rate": self.rate}


class Expected(_Part):
    """What the paper leads one to expect, written before running."""

    success: Range | None = None  # attack success rate
    accuracy_difference: Range | None = None  # clean accuracy − that of the clean twin
    natural_success: Range | None = None  # of the trigger on the clean twin
    reported: Label | None = None  # the paper's own figure, in words
    source: Label | None = None  # where the ranges come from


class AttackPart(_Part):
    name: str
    label: Label | None = None
    parameters: dict[str, Any] = {}
    target: int | None = Field(default=None, ge=0)
    data: tuple[Name, ...] = ()  # only on these data sets
    expected: Expected = Expected()

    @property
    def title(self) -> str:
        return self.label or self.name


class DefencePart(_Part):
    name: str
    label: Label | None = None
    parameters: dict[str, Any] = {}
    graph: bool = False  # subjects are handed over as ONNX files are read, with their graph

    @property
    def title(self) -> str:
        return self.label or self.name


class ExtentPart(_Part):
    """How hard the criteria are measured; see docs/criteria."""

    samples: int = Field(default=512, ge=2)
    given: int = Field(default=1000, ge=1)
    panels: tuple[Literal["model", "data", "runtime"], ...] = ("model", "data", "runtime")
    treatments: tuple[Treatment, ...] = ("fine_tuning", "pruning", "distillation", "quantisation", "head_swap")
    reactivation: bool = True
    least_rate: bool = False
    least_rate_tries: int = Field(default=5, ge=1, le=20)


class Experiment(_Part):
    """The whole plan."""

    name: Name
    tier: Literal["ci", "desk", "full"] = "desk"
    device: Literal["cpu", "cuda"] = "cpu"  # where victims are trained
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(default=(0,), min_length=1, max_length=1000)
    test_samples: int = Field(default=1000, ge=10, le=10**6)  # that the judge looks at
    given_per_class: int = Field(default=20, ge=0, le=10_000)  # clean samples that the defender has
    criteria: tuple[Criterion, ...] = ()
    extent: ExtentPart = ExtentPart()
    subjects: tuple[SubjectPart, ...] = Field(min_length=1)
    attacks: tuple[AttackPart, ...] = ()
    defences: tuple[DefencePart, ...] = ()

    @model_validator(mode="after")
    def _no_twice(self) -> Experiment:
        for key, values in (("seeds", self.seeds), ("criteria", self.criteria),
                            ("subjects", [s.model_dump_json() for s in self.subjects]),
                            ("defences", [d.title for d in self.defences])):
            twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
            if twice is not None:
                raise ValueError(f"{key} name {str(twice)[:60]} twice")
        for i, one in enumerate(self.attacks):
            for other in self.attacks[:i]:
                if one.title == other.title and (set(one.data) & set(other.data) or not (one.data and other.data)):
                    raise ValueError(f"attacks name {one.title} twice; give each a label of its own")
        return self

    def measured(self) -> Extent | None:
        """What the scorecard is asked for; None without criteria."""
        return Extent(criteria=self.criteria, **self.extent.model_dump()) if self.criteria else None


def attacks() -> dict[str, type[Attack]]:
    """Every installed attack on images by name."""
    found = classes("laocoon.attacks", Attack)  # type: ignore[type-abstract]
    return {a.card.name: a for a in found if KIND in a.card.modalities}


def detectors() -> dict[str, type[Detector]]:
    found = classes("laocoon.detectors", Detector)  # type: ignore[type-abstract]
    return {d.card.name: d for d in found if KIND in d.card.modalities}


def attack_of(part: AttackPart, key: str = "attack") -> Attack:
    return configured(_known(attacks(), part.name, f"{key}.name", "attack"), part.parameters, f"{key}.parameters")


def defence_of(part: DefencePart, key: str = "defence") -> Defence:
    known: dict[str, Any] = {**detectors(), SCAN: WholeScan}
    made: Defence = configured(_known(known, part.name, f"{key}.name", "defence"), part.parameters, f"{key}.parameters")
    if isinstance(made, WholeScan):
        schedule(made.budget, made.methods)  # raises where a budget or a method is not known
    return made


def _known(known: Mapping[str, T], name: str, key: str, what: str) -> T:
    if name not in known:
        told = f"{key} is {printable(name, 60)!r}, and there is no such {what} for images."
        raise InputError(told + _near(name, known), f"Known: {', '.join(sorted(known))}.")
    return known[name]


def _near(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def configured(kind: type[T], parameters: Mapping[str, Any], key: str) -> T:
    """An instance of a method's dataclass from a table, each value checked against the field's own type."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values = {}
    for name, given in parameters.items():
        place = f"{key}.{printable(name, 60)}"
        if name not in known:
            raise InputError(f"{place} is {_shown(given)}, and there is no such parameter.{_near(name, known)}",
                             f"Known: {', '.join(known) or 'none'}.")
        try:
            values[name] = TypeAdapter(hints[name]).validate_json(json.dumps(given, default=str), strict=True)
        except ValidationError as error:
            usual = f", by default {known[name].default!r}" if known[name].default is not MISSING else ""
            raise InputError(f"{place} is {_shown(given)}: {_first(error)['msg']}.",
                             f"It is {_worded(hints[name])}{usual}.") from None
    try:
        return kind(**values)
    except (LaocoonError, ValueError, TypeError) as error:
        raise InputError(f"{key} cannot be used: {printable(error, 300)}",
                         "Change the parameter that it names.") from None


def _worded(hint: Any) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in plain:
        return plain[hint]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(v) for v in get_args(hint))
    return str(hint).replace("typing.", "")


def _shown(value: Any) -> str:
    return printable(repr(value), 80)


def _first(error: ValidationError) -> Any:
    # An unknown key says more than the missing one that it was meant to be.
    return sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")[0]


def read(path: Path) -> Experiment:
    """The plan in a file, every part of it checked."""
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path.name} has {path.stat().st_size} bytes.", f"A plan has at most {LARGEST}.")
        text = path.read_bytes().decode()
    except OSError as error:
        raise InputError(f"the plan {printable(path)} cannot be read ({error.strerror}).", "Check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"the plan {path.name} is not text in UTF-8.", "Write it as TOML.") from None
    return parse(text, path.name)


def parse(text: str, name: str = "plan") -> Experiment:
    """The plan in a text; `name` is what errors call it."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{name} is not TOML: {printable(error, 200)}.", "Correct it there.") from None
    try:
        found = Experiment.model_validate_json(json.dumps(data, default=str))
        check(found)
    except ValidationError as error:
        raise _refused(error, name) from None
    except InputError as error:
        raise InputError(f"{name}: {error.problem}", error.remedy) from None
    return found


def _refused(error: ValidationError, name: str) -> InputError:
    first, key = _first(error), ""
    for step in first["loc"]:
        key += f"[{step}]" if isinstance(step, int) else f".{step}" if key else str(step)
    told = "" if first["type"] in ("missing", "extra_forbidden") else f" is {_shown(first['input'])}"
    if first["type"] == "extra_forbidden":
        last = str(first["loc"][-1])
        names = sorted(_parent(first["loc"]).model_fields)
        return InputError(f"{name}: {key} is {_shown(first['input'])}, and there is no such key.{_near(last, names)}",
                          f"Known here: {', '.join(names)}.")
    if first["type"] == "missing":
        return InputError(f"{name}: {key} is missing.", "Add it.")
    message = first["msg"].removeprefix("Value error, ")
    where = f"{key}{told}: " if key else ""
    return InputError(f"{name}: {where}{message}.", "Change it; docs/lab says what each key means.")


_PARTS: dict[str, type[BaseModel]] = {"subjects": SubjectPart, "attacks": AttackPart, "defences": DefencePart,
                                      "expected": Expected, "extent": ExtentPart}


def _parent(loc: Sequence[int | str]) -> type[BaseModel]:
    """The table that a key stands in."""
    kind: type[BaseModel] = Experiment
    for step in loc[:-1]:
        kind = _PARTS.get(str(step), kind)
    return kind


def check(experiment: Experiment) -> None:
    """What the types cannot say: names that exist, parameters that fit, a size that somebody can wait for."""
    for i, subject in enumerate(experiment.subjects):
        _known(ARCHITECTURES, subject.architecture, f"subjects[{i}].architecture", "architecture")
        for key, value in subject.recipe().items():
            if value is None and key != "rate":
                raise InputError(f"subjects[{i}].{key} is missing, and {subject.data} has no recipe of its own.",
                                 f"Add it; {', '.join(RECIPES)} have one.")
    names = {s.data for s in experiment.subjects}
    for i, attack in enumerate(experiment.attacks):
        attack_of(attack, f"attacks[{i}]")
        for data in attack.data:
            if data not in names:
                raise InputError(f"attacks[{i}].data names {data!r}, which no subject has.",
                                 f"It is one of {', '.join(sorted(names))}.")
    for i, defence in enumerate(experiment.defences):
        defence_of(defence, f"defences[{i}]")
    cells = len(experiment.seeds) * len(experiment.subjects)
    size = cells * (1 + len(experiment.attacks)) * (1 + len(experiment.defences))
    if size > MOST:
        raise InputError(f"the plan has {size} trials.", f"At most {MOST}: split it.")


assert (get_args(Criterion), get_args(Treatment)) == (CRITERIA, TREATMENTS)
