"""Clean samples in every layout, fitted to the model: labels, range, size, channels."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from laocoon.core.cases import Samples
from laocoon.core.errors import BrokenFile, InputError
from laocoon.core.report import Verdict
from laocoon.core.subject import Subject
from laocoon.files.images_source import DataOptions
from laocoon.files.open import load_model
from laocoon.files.samples import load_data
from laocoon.modalities.raw import ModelOptions
from laocoon.modalities.tabular import Tabular
from laocoon.verdict.scan import _at_chance, scan

COUNT, CLASSES = 30, 3


@pytest.fixture
def subject(colours, tmp_path):
    """Its answer is the channel with the largest mean."""
    return load_model(colours(tmp_path / "colours.onnx"))


def pictures(side: int = 8, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, side, side, 3], brighter in the channel that is the label."""
    rng = np.random.default_rng(1)
    labels = np.arange(count) % CLASSES
    images = rng.integers(0, 100, (count, side, side, 3)).astype(np.uint8)
    images[np.arange(count), :, :, labels] += 120
    return images, labels


def saved(image: np.ndarray, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(place)


def folder_per_class(root: Path, names: tuple[str, ...] = ("0", "1", "2"), suffix: str = ".png", side: int = 8) -> Path:
    for k, (image, label) in enumerate(zip(*pictures(side), strict=True)):
        saved(image, root / "clean" / names[label] / f"{k:03}{suffix}")
    return root / "clean"


def flat_folder(root: Path) -> Path:
    for k, image in enumerate(pictures()[0]):
        saved(image, root / "clean" / f"{k:03}.png")
    return root / "clean"


def cells(images: np.ndarray) -> list[dict[str, object]]:
    found = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        found.append({"bytes": buffer.getvalue(), "path": None})
    return found


def parquet(root: Path, split: str = "test", names: tuple[str, ...] = (), image: str = "image",
            label: str = "label") -> Path:
    """As the hub keeps it: data/<split>-00000-of-00002.parquet, the classes' names in the schema."""
    images, labels = pictures()
    if names:  # labels are positions in the data set's own order of names
        own = sorted(names)
        labels = np.array([own.index(names[y]) for y in labels])
    for part in (0, 1):
        table = pa.table({image: cells(images[part::2]), label: labels[part::2]})
        if names:
            features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": own}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        place = root / "clean" / "data" / f"{split}-0000{part}-of-00002.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, place)
    return root / "clean"


def npz(root: Path, **arrays: np.ndarray) -> Path:
    images, labels = pictures()
    np.savez(root / "clean.npz", **(arrays or {"images": images, "labels": labels}))
    return root / "clean.npz"


def right(subject, samples) -> float:
    return float((subject.outputs(samples.inputs).logits.argmax(-1) == samples.labels).float().mean())


def agrees(subject, samples, *, labelled: bool = True) -> None:
    """All samples, canonical, and labelled as the model says (it is right on all of these)."""
    assert samples.inputs.shape == (COUNT, 3, 8, 8) and samples.inputs.dtype == torch.float32
    assert float(samples.inputs.min()) >= 0 and 0.5 < float(samples.inputs.max()) <= 1
    assert samples.labelled is labelled and right(subject, samples) == 1
    assert torch.bincount(samples.labels).tolist() == [COUNT // CLASSES] * CLASSES


# ---------------------------------------------------------------- layouts
@pytest.mark.parametrize("layout", [
    folder_per_class, parquet, npz,
    lambda root: folder_per_class(root, ("class_0", "class_1", "class_2")),
    lambda root: folder_per_class(root, ("000", "001", "002"), suffix=".BMP"),
    lambda root: folder_per_class(root, suffix=".webp"), lambda root: folder_per_class(root, suffix=".tif"),
    lambda root: folder_per_class(root, suffix=".jpg"),
    lambda root: parquet(root, image="img", label="fine_label"),
    lambda root: npz(root, x=pictures()[0], y=pictures()[1]),
    lambda root: npz(root, x_train=pictures()[0][:3], y_train=pictures()[1][:3], x_test=pictures()[0],
                     y_test=pictures()[1]),
    lambda root: npz(root, arr_0=pictures()[0], arr_1=np.eye(3)[pictures()[1]]),
    lambda root: npz(root, images=pictures()[0], labels=pictures()[1][:, None].astype(np.float64)),
    lambda root: npz(root, images=pictures()[0], labels=np.array(["0", "1", "2"])[pictures()[1]]),
], ids=["folders", "parquet", "npz", "class_0", "000.BMP", "webp", "tif", "jpg", "img and fine_label", "x and y",
        "splits", "arr_0 and one-hot", "column of floats", "words"])
def test_layout(layout, subject, tmp_path):
    agrees(subject, load_data(layout(tmp_path), subject))


def test_flat_folder_takes_the_models_answers(subject, tmp_path):
    samples = load_data(flat_folder(tmp_path), subject)
    agrees(subject, samples, labelled=False)
    assert any("predictions serve" in note for note in samples.notes)


def test_single_parquet_file_and_folder_with_one_npz(subject, tmp_path):
    (part,) = parquet(tmp_path).rglob("*00000-of*.parquet")
    assert len(load_data(part, subject)) == COUNT // 2
    (tmp_path / "held").mkdir()
    npz(tmp_path / "held")
    agrees(subject, load_data(tmp_path / "held", subject))


def test_npy_and_arrays_without_labels(subject, tmp_path):
    np.save(tmp_path / "clean.npy", pictures()[0])
    agrees(subject, load_data(tmp_path / "clean.npy", subject), labelled=False)
    agrees(subject, load_data(npz(tmp_path, images=pictures()[0]), subject), labelled=False)


def test_held_out_split_is_preferred(subject, tmp_path):
    parquet(tmp_path, "train")
    agrees(subject, load_data(tmp_path / "clean", subject))
    samples = load_data(parquet(tmp_path, "validation"), subject)
    assert len(samples) == COUNT and any("'validation' was read" in n and "train" in n for n in samples.notes)
    with pytest.raises(InputError, match=r"no split 'test'.*train, validation"):
        load_data(tmp_path / "clean", subject, options=DataOptions(split="test"))


def test_labels_of_minus_one_are_no_labels(subject, tmp_path):
    pq.write_table(pa.table({"image": cells(pictures()[0]), "label": [-1] * COUNT}), tmp_path / "t.parquet")
    agrees(subject, load_data(tmp_path / "t.parquet", subject), labelled=False)


def test_names_of_classes_are_matched_not_sorted(colours, tmp_path):
    """The folders' alphabetical order is not the model's order of classes; their names decide."""
    from dataclasses import replace

    subject = replace(load_model(colours(tmp_path / "m.onnx")), class_names=("red", "green", "Sky Blue, azure"))
    names = ("Red", "green", "sky_blue")
    agrees(subject, load_data(folder_per_class(tmp_path, names), subject))
    (tmp_path / "p").mkdir()
    agrees(subject, load_data(parquet(tmp_path / "p", names=names), subject))
    (tmp_path / "q").mkdir()
    with pytest.raises(InputError, match="'teal', which the model does not have"):
        load_data(folder_per_class(tmp_path / "q", ("red", "green", "teal")), subject)


def test_unknown_names_are_taken_in_order_and_said_to_be(subject, tmp_path):
    samples = load_data(folder_per_class(tmp_path, ("a red", "b green", "c blue")), subject)
    agrees(subject, samples)
    assert any("assumed: folders are the model's classes in this order: a red, b green" in n for n in samples.notes)
    assert samples.class_names == ("a red", "b green", "c blue")


def test_classes_counted_from_one(subject, tmp_path):
    path = folder_per_class(tmp_path, ("1", "2", "3"))
    with pytest.raises(InputError, match="--first-label 1"):
        load_data(path, subject)
    agrees(subject, load_data(path, subject, options=DataOptions(first_label=1)))


def test_classes_without_samples_are_named(subject, tmp_path):
    images, labels = pictures()
    samples = load_data(npz(tmp_path, images=images[labels != 1], labels=labels[labels != 1]), subject)
    assert any("no samples of 1 of 3 classes (1)" in note for note in samples.notes)


def test_at_most_so_many_of_each_class_by_seed(subject, tmp_path):
    path = npz(tmp_path)
    few = [load_data(path, subject, limit_per_class=4, seed=s) for s in (0, 0, 1)]
    assert all(torch.bincount(s.labels).tolist() == [4, 4, 4] for s in few)
    assert torch.equal(few[0].inputs, few[1].inputs) and not torch.equal(few[0].inputs, few[2].inputs)
    assert len(load_data(path, subject, limit_per_class=None)) == COUNT
    assert len(load_data(flat_folder(tmp_path), subject, limit_per_class=4)) == 12


# ---------------------------------------------------------------- range
@pytest.mark.parametrize(("make", "said"), [
    (lambda x: x, None), (lambda x: x.astype(np.int64), None), (lambda x: x.astype(np.float32), None),
    (lambda x: (x / 255).astype(np.float16), None), (lambda x: x / 255.0, None), (lambda x: x / 127.5 - 1, None),
    (lambda x: x.astype(np.uint16) * 257, None), (lambda x: x / 127.5 - 1, "-1-1"), (lambda x: x / 255.0, "0-1"),
], ids=["uint8", "int64", "0-255 floats", "half", "0-1", "-1-1", "16 bits", "told -1-1", "told 0-1"])
def test_range(make, said, subject, tmp_path):
    images, labels = pictures()
    path = npz(tmp_path, images=make(images), labels=labels)
    samples = load_data(path, subject, options=DataOptions(data_range=said))
    agrees(subject, samples)
    true = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    assert torch.allclose(samples.inputs, true, atol=2e-3)


def test_a_range_that_cannot_be_is_refused(subject, tmp_path):
    images, labels = pictures()
    with pytest.raises(InputError, match=r"values from -2.*--data-range"):
        load_data(npz(tmp_path, images=images / 60.0 - 2, labels=labels), subject)
    with pytest.raises(InputError, match="leaves the range 0-1"):
        load_data(npz(tmp_path, images=images, labels=labels), subject, options=DataOptions(data_range="0-1"))


def test_sixteen_bit_and_palette_and_transparent_images(subject, tmp_path):
    images, labels = pictures()
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        picture = Image.fromarray(image)
        place = tmp_path / "clean" / str(label) / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        kinds = (picture, picture.convert("P", palette=Image.Palette.ADAPTIVE), picture.convert("RGBA"))
        kinds[k % 3 if k % 2 else 0].save(place)
    agrees(subject, load_data(tmp_path / "clean", subject))


# ---------------------------------------------------------------- size
def test_images_of_other_and_mixed_sizes_are_fitted(subject, tmp_path):
    agrees(subject, load_data(folder_per_class(tmp_path / "a", side=40), subject))
    agrees(subject, load_data(folder_per_class(tmp_path / "b", side=5), subject))
    mixed = folder_per_class(tmp_path / "c", side=8)
    for k, path in enumerate(sorted(mixed.rglob("*.png"))):
        with Image.open(path) as picture:
            picture.resize((8 + k, 40 - k), Image.Resampling.NEAREST).save(path)
    agrees(subject, load_data(mixed, subject))
    agrees(subject, load_data(mixed, subject, options=DataOptions(fit="crop")))
    with pytest.raises(InputError, match="several sizes"):
        load_data(mixed)


def test_stretch_and_crop(subject, tmp_path):
    """Wide images: black, but for a white middle square. Cropped, only the middle is left."""
    wide = np.zeros((COUNT, 8, 24, 3), np.uint8)
    wide[:, :, 8:16] = 255
    path = npz(tmp_path, images=wide, labels=pictures()[1])
    assert float(load_data(path, subject).inputs.mean()) == pytest.approx(1 / 3, abs=0.05)
    assert float(load_data(path, subject, options=DataOptions(fit="crop")).inputs.mean()) == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------- channels
def test_channels_first_and_last(subject, tmp_path):
    images, labels = pictures()
    first = load_data(npz(tmp_path, images=images.transpose(0, 3, 1, 2), labels=labels), subject)
    last = load_data(npz(tmp_path, images=images, labels=labels), subject)
    agrees(subject, first)
    assert torch.equal(first.inputs, last.inputs)


def test_ambiguous_layout_is_what_the_model_takes_or_what_is_told(colours, tmp_path):
    subject = load_model(colours(tmp_path / "m.onnx", size=3))  # 3 x 3 images with 3 channels
    images, labels = pictures(side=3)
    swapped = npz(tmp_path, images=images.transpose(0, 3, 1, 2), labels=labels)
    assert right(subject, load_data(swapped, subject)) == 1
    last = npz(tmp_path, images=images, labels=labels)
    assert right(subject, load_data(last, subject, options=DataOptions(data_layout="NHWC"))) == 1
    assert right(subject, load_data(last, subject)) < 1


def test_flat_vectors(subject, tmp_path):
    images, labels = pictures()
    flat = images.transpose(0, 3, 1, 2).reshape(COUNT, -1)
    agrees(subject, load_data(npz(tmp_path, images=flat, labels=labels), subject))


def test_grey_images_for_a_model_of_colours(subject, tmp_path):
    grey = pictures()[0].mean(3).astype(np.uint8)
    samples = load_data(npz(tmp_path, images=grey), subject)
    assert samples.inputs.shape == (COUNT, 3, 8, 8)
    assert torch.equal(samples.inputs[:, 0], samples.inputs[:, 2])


def test_colour_and_transparent_images_for_a_grey_model(colours, tmp_path):
    subject = load_model(colours(tmp_path / "grey.onnx", channels=1))
    assert subject.input_shape == (1, 8, 8) and subject.classes == 2
    value = np.where(np.arange(COUNT) % 2, 220, 30).astype(np.uint8)
    labels = np.arange(COUNT) % 2
    for shape in ((COUNT, 8, 8), (COUNT, 1, 8, 8), (COUNT, 8, 8, 1), (COUNT, 8, 8, 3), (COUNT, 3, 8, 8)):
        images = np.broadcast_to(value.reshape(-1, *[1] * (len(shape) - 1)), shape)
        samples = load_data(npz(tmp_path, images=np.ascontiguousarray(images), labels=labels), subject)
        assert samples.inputs.shape == (COUNT, 1, 8, 8) and right(subject, samples) == 1, shape
    for k, label in enumerate(labels):
        clear = np.zeros((8, 8, 4), np.uint8)  # transparent black is white paper; opaque black is dark
        clear[..., 3] = 0 if label else 255
        saved(clear, tmp_path / "clean" / str(label) / f"{k}.png")
    samples = load_data(tmp_path / "clean", subject)
    assert right(subject, samples) == 1


def test_four_channels(colours, tmp_path):
    subject = load_model(colours(tmp_path / "rgba.onnx", channels=4))
    assert subject.input_shape == (4, 8, 8)
    images = np.full((8, 8, 8, 4), 40, np.uint8)
    labels = np.arange(8) % 4
    images[np.arange(8), :, :, labels] = 200
    for k, label in enumerate(labels):
        saved(images[k], tmp_path / "clean" / str(label) / f"{k}.png")
    for path in (tmp_path / "clean", npz(tmp_path, images=images, labels=labels)):
        samples = load_data(path, subject)
        assert samples.inputs.shape == (8, 4, 8, 8) and right(subject, samples) == 1
    opaque = load_data(npz(tmp_path, images=images[..., :3], labels=labels), subject)
    assert float(opaque.inputs[:, 3].min()) == 1


def test_without_a_model_labels_are_needed(tmp_path):
    samples = load_data(npz(tmp_path))
    assert samples.inputs.shape == (COUNT, 3, 8, 8) and samples.labelled
    with pytest.raises(InputError, match=r"no labels\. Pass the model too"):
        load_data(flat_folder(tmp_path))


def test_one_broken_image_is_forgiven_and_named(subject, tmp_path):
    path = folder_per_class(tmp_path)
    (path / "1" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    samples = load_data(path, subject)
    assert len(samples) == COUNT - 1 and any("1 broken image left out" in n and "001.png" in n for n in samples.notes)
    (path / "1" / "004.png").write_bytes(b"")
    (path / "1" / "007.png").write_bytes(b"GIF89a")
    with pytest.raises(BrokenFile, match="of 30 images are broken"):
        load_data(path, subject)


def test_a_broken_image_is_replaced_by_another_of_its_class(subject, tmp_path):
    path = folder_per_class(tmp_path)
    (path / "1" / "001.png").write_bytes(b"")
    for seed in range(6):
        samples = load_data(path, subject, limit_per_class=9, seed=seed)
        assert torch.bincount(samples.labels).tolist() == [9, 9, 9]


# ---------------------------------------------------------------- what a scan makes of them
def verdict(subject, samples, **settings):
    return scan(subject, samples, methods=["weight_sanity"], **settings)


def test_no_samples_at_all(subject):
    report = scan(subject, None, budget="quick")
    assert report.verdict is Verdict.INCONCLUSIVE and report.subject["samples"] == 0
    assert "trigger_inversion" in report.skipped and "--data" in report.skipped["trigger_inversion"]


def test_samples_that_belong_to_the_model(subject, tmp_path):
    report = verdict(subject, load_data(npz(tmp_path), subject))
    assert report.examined and report.subject["accuracy"] == 1 and "chance" not in report.reason


@pytest.mark.parametrize(("options", "change", "cause"), [
    (ModelOptions(input_range="0-255"), lambda x, y: (x, y), None),
    (ModelOptions(), lambda x, y: (255 - x, y), "inverted"),
    (ModelOptions(channels="BGR"), lambda x, y: (x, y), "channels are probably BGR"),
    (ModelOptions(), lambda x, y: (x, (y + 1) % 3), "numbered in another order"),
    (ModelOptions(), lambda x, y: (x, np.random.default_rng(0).permutation(y)), "--input-range"),
    (ModelOptions(mean=(9.0,)), lambda x, y: (x, y), "input range is probably 0-255: try --input-range 0-255"),
], ids=["scale is no matter here", "inverted", "blue and red swapped", "other order", "shuffled", "wrong mean"])
def test_at_chance_there_is_no_verdict(options, change, cause, colours, tmp_path):
    subject = load_model(colours(tmp_path / "m.onnx"), options=options)
    images, labels = change(*pictures())
    report = verdict(subject, load_data(npz(tmp_path, images=images, labels=labels), subject))
    if cause is None:
        assert "no better than chance" not in report.reason
        return
    assert report.verdict is Verdict.INCONCLUSIVE and report.exit_code == 3 and not report.examined
    assert "no better than chance: no verdict" in report.reason and cause in report.reason, report.reason


def test_unlabelled_samples_are_never_at_chance(subject, tmp_path):
    report = verdict(subject, load_data(npz(tmp_path, images=255 - pictures()[0]), subject))
    assert report.examined and report.subject["accuracy"] is None


@pytest.mark.parametrize(("right", "chance"), [(29, False), (26, True)])
def test_better_than_chance_with_two_classes(right, chance):
    """29 of 40 are luck in 3 of 1,000 cases, 26 in 40: one may be judged, the other is not told to swap its classes."""
    labels = torch.arange(40) % 2
    answers = torch.where(torch.arange(40) < right, labels, 1 - labels)
    inputs = torch.nn.functional.one_hot(answers, 2).float()
    module = torch.nn.Identity()
    said = _at_chance(Subject(module, Tabular.unknown(("a", "b")), 2, (2,)), Samples(inputs, labels),
                      SimpleNamespace(accuracy=right / 40, given=40))
    assert bool(said) == chance and "another order" not in said, said
