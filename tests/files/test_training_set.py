"""Whole training sets: every sample once, in the order of the data, under its own name, from every layout."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from laocoon.core.cases import Samples
from laocoon.core.errors import BrokenFile, InputError
from laocoon.files.images_source import DataOptions
from laocoon.files.training_set import in_memory, training_set

N, SIDE = 60, 12


def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8), rng.integers(0, 4, N)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, labels = pictures()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = tmp_path / "set" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03d}.png")
    return tmp_path / "set"


def test_a_folder_is_read_whole_and_by_name(folder: Path) -> None:
    images, labels = pictures()
    with training_set(folder) as data:
        assert len(data) == N and data.shape == (3, SIDE, SIDE) and data.classes == 4
        for place in range(N):
            name = Path(data.name(place))
            i = int(name.stem)
            assert int(name.parent.name) == data.labels[place] == labels[i]
            assert np.array_equal(data.stored[place], images[i].transpose(2, 0, 1))
        assert list(data.rows) == list(range(N))
        assert torch.equal(data.inputs(torch.tensor([5]))[0], torch.from_numpy(np.array(data.stored[5])).float() / 255)


def test_all_layouts_hold_the_same(folder: Path, tmp_path: Path) -> None:
    images, labels = pictures()
    np.savez(tmp_path / "a.npz", x=images, y=labels)
    cells = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "a.parquet", row_group_size=17)
    digests = set()
    for path in (tmp_path / "a.npz", tmp_path / "a.parquet"):
        with training_set(path) as data:
            assert np.array_equal(data.labels, labels) and data.name(7) == "row 7"
            digests.add(data.digest())
    assert len(digests) == 1


def test_the_training_split_is_read_where_there_is_one(tmp_path: Path) -> None:
    images, labels = pictures()
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    with training_set(tmp_path / "a.npz") as data:
        assert len(data) == N
    with training_set(tmp_path / "a.npz", options=DataOptions(split="test")) as data:
        assert len(data) == 9


def test_a_range_is_judged_over_all_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows alone look as if they were between 0 and 1."""
    monkeypatch.setattr("laocoon.files.images_arrays.BLOCK", 4 * SIDE * SIDE * 8)
    images = np.zeros((N, SIDE, SIDE), np.float64)
    images[0], images[-1] = 1.0, 255.0
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(N) % 3)
    with training_set(tmp_path / "a.npz") as data:
        assert data.stored[0].max() == 1 and data.stored[-1].max() == 255


def test_broken_images_are_left_out_and_rows_stay(folder: Path) -> None:
    victim = sorted(folder.rglob("*.png"))[10]
    victim.write_bytes(b"no picture")
    with training_set(folder) as data:
        assert len(data) == N - 1 and 10 not in data.rows and any("broken" in n for n in data.notes)
        assert data.name(10) == str(sorted(folder.rglob("*.png"))[11].relative_to(folder))
    for path in sorted(folder.rglob("*.png"))[:20]:
        path.write_bytes(b"no picture")
    with pytest.raises(BrokenFile, match="broken"), training_set(folder):
        pass


def test_sizes_are_made_equal_and_said(folder: Path) -> None:
    Image.new("RGB", (40, 20)).save(folder / "0" / "large.png")
    with training_set(folder) as data:
        assert data.shape == (3, SIDE, SIDE) and any("12 x 12" in n for n in data.notes)


def test_labels_are_needed_and_few(tmp_path: Path) -> None:
    images, _ = pictures()
    np.savez(tmp_path / "a.npz", x=images)
    with pytest.raises(InputError, match="no labels"), training_set(tmp_path / "a.npz"):
        pass
    np.savez(tmp_path / "b.npz", x=images, y=np.arange(N) * 10**9)
    with pytest.raises(InputError, match="classes"), training_set(tmp_path / "b.npz"):
        pass


def test_a_full_disk_is_told_before_anything_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="free"), training_set(folder):
        pass


def test_nothing_is_left_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with training_set(folder):
        assert list(place.iterdir())
    with pytest.raises(KeyError), training_set(folder):
        raise KeyError
    assert not list(place.iterdir())


def test_samples_in_memory() -> None:
    images, labels = pictures()
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    data = in_memory(Samples(inputs, torch.from_numpy(labels)), 4)
    assert torch.equal(data.inputs(torch.arange(N)), inputs)
    with pytest.raises(InputError, match="neither images"):
        in_memory(Samples(torch.zeros(3, 5, 2), torch.zeros(3, dtype=torch.long)), 4)
