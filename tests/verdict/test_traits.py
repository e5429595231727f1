"""What is said of a network beside the statistics: the truth where it can be seen, nothing where it cannot."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from laocoon import load_model
from laocoon.core.card import Capability
from laocoon.core.subject import Provenance, Subject
from laocoon.modalities.image import Image
from laocoon.modalities.image_networks import ARCHITECTURES, build
from laocoon.verdict.calibrate import Reference, Row
from laocoon.verdict.fuse import Scale, covariates
from laocoon.verdict.traits import traits


def subject(*layers: nn.Module, form: str = "safetensors") -> Subject:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return Subject(module, Image(), 3, (1, 8, 8), provenance=Provenance(format=form))


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm([4, 6, 6])])
def test_layers_that_normalise_are_seen_whatever_the_format(layer: nn.Module):
    for form in ("safetensors", "onnx"):
        assert traits(subject(layer, form=form)) == {"known.normalised": [1.0]}


@pytest.mark.parametrize("form", ["onnx", "ONNX", "torch.export", "torchscript"])
def test_none_to_be_seen_says_nothing_where_exporters_fold_them(form: str):
    assert traits(subject(form=form)) == {}


def test_none_is_none_where_weights_belong_to_layers():
    assert traits(subject()) == {"known.normalised": [0.0]}
    asked = replace(subject(), capabilities=frozenset({Capability.QUERY}))
    assert traits(asked) == {}


def test_the_zoo_s_networks():
    """The wrapper that brings inputs to their mean and spread is no layer that normalises."""
    rng = torch.Generator().manual_seed(0)
    found = {name: traits(Subject(build(name, 1, 28, 10, rng), Image(), 10, (1, 28, 28)))["known.normalised"][0]
             for name in ARCHITECTURES}
    assert {name for name, value in found.items() if value == 0.0} == {"cnn"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_same_network_from_a_file(tmp_path: Path):
    """Exported to ONNX, batch normalisation is gone from the graph: as if there had never been one."""
    for name, layer in (("batch", nn.BatchNorm2d(4)), ("none", nn.Identity())):
        module = subject(layer).module
        torch.onnx.export(module, (torch.rand(2, 1, 8, 8),), str(tmp_path / f"{name}.onnx"), dynamo=False,
                          input_names=["x"], dynamic_axes={"x": {0: "n"}})
        assert traits(load_model(tmp_path / f"{name}.onnx")) == {}, name


def test_a_trait_moves_what_is_expected_and_accuses_nobody():
    rule = "trigger_inversion.patch"
    scale = Scale(1.0, 0.5, 1.0, {"normalised": (0.4, 0.8)})
    reference = Reference({rule: scale}, (), (), (), {}, "")

    def score(*known: float) -> float:
        table = {rule: [2.0, 0.0, 0.0], **({"known.normalised": list(known)} if known else {})}
        return reference.restricted(Row("d", "mnist", "cnn", "clean", 3, table), frozenset({rule})).score

    assert score(1.0) == pytest.approx((2.0 - (1.0 + 0.4 * 0.2)) / 0.5)
    assert score(0.0) == pytest.approx((2.0 - (1.0 - 0.4 * 0.8)) / 0.5)
    assert score() == pytest.approx((2.0 - 1.0) / 0.5)  # unknown: as the mean of the references
    assert covariates({"known.normalised": [1.0]}, 3, "")["normalised"] == 1.0
    assert "normalised" not in covariates({"known.normalised": [None]}, 3, "")
