"""The benchmark of files that open: a file that answers otherwise is seen, and the page counts what was seen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import loading  # type: ignore[import-not-found]

    yield loading
    for name in ("loading", "graph_flags", "graph_evasions"):
        sys.modules.pop(name, None)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["onnx", "onnx-fixed", "torchscript", "torch.export"])
def test_what_answers_as_written_is_the_same(form: str, loading: ModuleType) -> None:
    row = loading.judge("own:small", network(), torch.rand(1, 3, 8, 8), form)
    assert (row.outcome, row.told) == ("same", "") and row.off < 1e-5


def other(module: nn.Module, x: Tensor, folder: Path) -> Path:
    with torch.no_grad():
        module[3].weight.mul_(1.1)  # type: ignore[operator,union-attr]
    torch.onnx.export(module, (x,), str(folder / "m.onnx"), dynamo=False)
    return folder / "m.onnx"


def alone(module: nn.Module, x: Tensor, folder: Path) -> Path:
    save_file(module.state_dict(), folder / "m.safetensors")
    return folder / "m.safetensors"


def unwritten(module: nn.Module, x: Tensor, folder: Path) -> Path:
    raise RuntimeError("no such operator")


@pytest.mark.filterwarnings("ignore")
def test_what_does_not_is_told(loading: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, write in (("onnx", other), ("torchscript", alone), ("torch.export", unwritten)):
        monkeypatch.setitem(loading.FORMATS, name, (name, write))
    rows = [loading.judge("own:small", network(), torch.rand(1, 3, 8, 8), form)
            for form in ("onnx", "torchscript", "torch.export")]
    assert [r.outcome for r in rows] == ["differs", "refused", "not written"]
    assert 0.01 < rows[0].off < 0.5 and "architecture" not in rows[0].told and "network" in rows[1].told
    text = loading.page(rows)
    assert "| onnx | 1 | 0 [0%, 98%] | 0 | 1 | 0 |" in text and "| torchscript | 1 | 0 [0%, 98%] | 0 | 0 | 1 |" in text
    assert "| torch.export |" not in text.split("## Every network")[0]
    assert "| own:small | differs |" in text
