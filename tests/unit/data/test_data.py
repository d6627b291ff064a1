"""Data sets: files are read correctly, broken files are named, batches are complete and reproducible."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from gatewise.data import Augmentation, Batches, Dataset, Images, image_sizes, load_dataset, shift
from gatewise.errors import DataError, InvalidTypeError, InvalidValueError
from support.project import ROOT

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
NAMES = ["ant", "bee", "cat"]
ZERO, ONE = torch.zeros(1), torch.ones(1)


def picture(seed: int, height: int = 6, width: int = 6) -> np.ndarray:
    """Return random pixels, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    """Return an image as a PNG file, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_split(
    file: Path,
    images: Sequence[bytes | None],
    labels: Sequence[object],
    names: Sequence[str] | None = NAMES,
    columns: tuple[str, str] = ("image", "label"),
) -> None:
    """Write a parquet file as the Hugging Face library does; names=None leaves its metadata out."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = [pa.array([{"bytes": image, "path": None} for image in images], struct), pa.array(labels)]
    table = pa.table(dict(zip(columns, arrays, strict=True)))
    if names is not None:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def make_folder(folder: Path, **options: object) -> Path:
    """Write two splits of six and three images."""
    write_split(folder / "train.parquet", [encoded(picture(i)) for i in range(6)], [0, 1, 2, 0, 1, 2], **options)
    write_split(folder / "validation.parquet", [encoded(picture(10 + i)) for i in range(3)], [2, 1, 0], **options)
    return folder


def numbered(count: int, channels: int = 1) -> Images:
    """Return images of one pixel whose value is their own number."""
    numbers = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Images(numbers.expand(-1, channels, 1, 1).clone(), torch.arange(count))


def seen(batches: Batches, epoch: int, seed: int, **augmentation: object) -> list[list[int]]:
    """Return the numbers of the images in each batch of an epoch."""
    options = Augmentation(**augmentation)
    return [labels.tolist() for _, labels in batches.training(epoch, seed=seed, augmentation=options)]


# Digits


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_digits_split_has_1437_and_360_grey_8x8_images(digits: Dataset) -> None:
    assert digits.train.pixels.shape == (1437, 1, 8, 8)
    assert digits.validation.pixels.shape == (360, 1, 8, 8)
    assert (digits.channels, digits.size, len(digits.train)) == (1, (8, 8), 1437)
    assert digits.train.pixels.dtype == digits.validation.pixels.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert digits.classes == tuple("0123456789")


def test_digits_hold_every_scikit_learn_image_once(digits: Dataset) -> None:
    bunch = load_digits()
    expected = sorted(
        (*(int(v) for v in image), int(label)) for image, label in zip(bunch.data, bunch.target, strict=True)
    )
    found = []
    for images in (digits.train, digits.validation):
        sixteenths = (images.pixels.double() * 16 / 255).round().int().flatten(1).tolist()
        found += [(*image, label) for image, label in zip(sixteenths, images.labels.tolist(), strict=True)]
    assert sorted(found) == expected


def test_digits_use_full_byte_range(digits: Dataset) -> None:
    assert (int(digits.train.pixels.min()), int(digits.train.pixels.max())) == (0, 255)


def test_validation_digits_are_stratified(digits: Dataset) -> None:
    everything = torch.cat([digits.train.labels, digits.validation.labels]).bincount()
    assert (digits.validation.labels.bincount() - everything * 360 / 1797).abs().max() < 1


def test_digits_do_not_depend_on_global_generators(digits: Dataset) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    again = load_dataset("digits")
    assert torch.equal(again.train.pixels, digits.train.pixels)
    assert torch.equal(again.validation.labels, digits.validation.labels)


def test_digits_are_shifted_by_one_pixel_and_never_mirrored(digits: Dataset) -> None:
    assert (digits.padding, digits.flip) == (1, False)


# Folders


def test_folder_gives_pixels_labels_and_class_names_of_its_files(tmp_path: Path) -> None:
    dataset = load_dataset(make_folder(tmp_path))
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.validation.labels.tolist() == [2, 1, 0]
    for index in range(6):
        np.testing.assert_array_equal(dataset.train.pixels[index].permute(1, 2, 0).numpy(), picture(index))
    np.testing.assert_array_equal(dataset.validation.pixels[2].permute(1, 2, 0).numpy(), picture(12))
    assert dataset.name == str(tmp_path)


def test_folder_path_may_be_text(tmp_path: Path) -> None:
    assert torch.equal(load_dataset(str(make_folder(tmp_path))).train.pixels, load_dataset(tmp_path).train.pixels)


def test_class_names_without_metadata_are_numbers(tmp_path: Path) -> None:
    assert load_dataset(make_folder(tmp_path, names=None)).classes == ("0", "1", "2")


@pytest.mark.parametrize("columns", [("img", "label"), ("image", "labels"), ("img", "fine_label")])
def test_usual_column_names_are_recognized(tmp_path: Path, columns: tuple[str, str]) -> None:
    dataset = load_dataset(make_folder(tmp_path, columns=columns))
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_images_may_be_plain_bytes(tmp_path: Path) -> None:
    make_folder(tmp_path)
    table = pa.table({"image": [encoded(picture(i)) for i in range(3)], "label": [0, 1, 2]})
    table = table.replace_schema_metadata(pq.read_schema(tmp_path / "train.parquet").metadata)
    pq.write_table(table, tmp_path / "train.parquet")
    np.testing.assert_array_equal(load_dataset(tmp_path).train.pixels[1].permute(1, 2, 0).numpy(), picture(1))


def test_grey_images_become_three_equal_channels(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write_split(tmp_path / "train.parquet", [encoded(picture(i)[:, :, 0]) for i in range(3)], [0, 1, 2])
    pixels = load_dataset(tmp_path).train.pixels
    assert pixels.shape == (3, 3, 6, 6)  # as the validation images have colours
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_files_of_one_split_are_joined_in_order_of_names(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "train.parquet").unlink()
    for part in (1, 0):
        images = [encoded(picture(10 * part + i)) for i in range(3)]
        write_split(tmp_path / f"train-0000{part}-of-00002.parquet", images, [part, 1, 2])
    dataset = load_dataset(tmp_path)
    assert dataset.train.labels.tolist() == [0, 1, 2, 1, 1, 2]
    np.testing.assert_array_equal(dataset.train.pixels[3].permute(1, 2, 0).numpy(), picture(10))


def test_files_in_subfolders_are_found(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    assert len(load_dataset(tmp_path).train) == 6


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_second_split_has_any_usual_name(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path)
    (tmp_path / "validation.parquet").rename(tmp_path / f"{name}-00000-of-00001.parquet")
    assert load_dataset(tmp_path).validation.labels.tolist() == [2, 1, 0]


def test_validation_split_wins_over_test(tmp_path: Path) -> None:
    make_folder(tmp_path)
    write_split(tmp_path / "test.parquet", [encoded(picture(i)) for i in range(2)], [0, 1])
    assert len(load_dataset(tmp_path).validation) == 3


def test_images_of_folder_are_mirrored_and_shifted_by_eighth(tmp_path: Path) -> None:
    small = load_dataset(make_folder(tmp_path / "small"))
    large = load_dataset(make_folder(tmp_path / "large"), image_size=32)
    assert (small.padding, large.padding) == (1, 4)
    assert small.flip


def test_image_size_scales_shorter_side_and_crops_centre(tmp_path: Path) -> None:
    make_folder(tmp_path)
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12, 2] = 200  # the middle square is blue, the rest is black
    tall = wide.transpose(1, 0, 2)
    write_split(tmp_path / "train.parquet", [encoded(wide), encoded(tall), encoded(wide[:, 4:12])], [0, 1, 2])
    pixels = load_dataset(tmp_path, image_size=4).train.pixels
    assert pixels.shape == (3, 3, 4, 4)
    assert (pixels[:, 2].int() - 200).abs().max() < 20  # a filter that looks beyond the edge darkens it a little
    assert (pixels[:, :2] == 0).all()


@pytest.mark.extended
@pytest.mark.skipif(not CIFAR10.exists(), reason=f"{CIFAR10} is not here")
def test_cifar10_matches_pillow(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        shutil.copy(CIFAR10 / "validation.parquet", tmp_path / f"{split}.parquet")
    dataset = load_dataset(tmp_path)
    assert dataset.validation.pixels.shape == (5000, 3, 32, 32)
    assert dataset.validation.labels.bincount().tolist() == [500] * 10
    assert dataset.classes[0] == "airplane"
    assert dataset.classes[9] == "truck"
    table = pq.read_table(CIFAR10 / "validation.parquet")
    for row in range(0, 5000, 250):
        content = table["img"][row].as_py()["bytes"]
        expected = torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)
        assert torch.equal(dataset.validation.pixels[row], expected)
        assert dataset.validation.labels[row] == table["label"][row].as_py()


# Broken folders


def _three(images: Sequence[bytes | None] = (), labels: Sequence[object] = (0, 1, 2), file: str = "train") -> Callable:
    """Return a function that replaces a split by three images, of which the first are given."""

    def break_it(folder: Path) -> None:
        good = [encoded(picture(i)) for i in range(3)]
        write_split(folder / f"{file}.parquet", [*images, *good[len(images) :]], labels)

    return break_it


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _only_labels(folder: Path) -> None:
    pq.write_table(pa.table({"label": [0, 1], "text": ["a", "b"]}), folder / "train.parquet")


def _other_classes(folder: Path) -> None:
    images = [encoded(picture(i)) for i in range(3)]
    write_split(folder / "validation.parquet", images, [0, 1, 2], names=["ant", "bee", "dog"])


def _other_order(folder: Path) -> None:
    write_split(folder / "validation.parquet", [encoded(picture(i)) for i in range(3)], [0, 1, 2], names=NAMES[::-1])


def _larger_validation(folder: Path) -> None:
    write_split(folder / "validation.parquet", [encoded(picture(i, 7, 9)) for i in range(3)], [0, 1, 2])


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no training split": (_remove("train.parquet"), ("no train split", "train*.parquet", "validation.parquet")),
    "no file at all": (
        lambda folder: [file.unlink() for file in folder.iterdir()],
        ("for labelled images expected", "a folder with CLASS/, or with train/CLASS/ and val/CLASS/", "found nothing."),
    ),
    "not parquet": (
        lambda folder: (folder / "train.parquet").write_bytes(b"no parquet"),
        ("train.parquet", "not a valid parquet file"),
    ),
    "half a parquet file": (
        lambda folder: (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:300]),
        ("train.parquet", "not a valid parquet file"),
    ),
    "wrong columns": (_only_labels, ("train.parquet", "no column of label, text names images", "--image-column")),
    "truncated image": (
        _three([encoded(picture(0)), encoded(picture(1))[:60]]),
        ("train.parquet, row 1", "truncated or unreadable image"),
    ),
    "no image": (_three([b"text"]), ("train.parquet, row 0", "truncated or unreadable image")),
    "no image bytes": (_three([encoded(picture(0)), None]), ("train.parquet, row 1", "no image bytes")),
    "empty image bytes": (_three([b""]), ("train.parquet, row 0", "no image bytes")),
    "negative label": (
        _three(labels=[0, 1, -1]),
        ("train.parquet, row 2", "expected a label from 0 to 2 (one per class name), got -1"),
    ),
    "missing label": (
        _three(labels=[0, None, 1]),
        ("train.parquet, row 1", "expected a label from 0 to 2 (one per class name), got None"),
    ),
    "label that is no number": (
        _three(labels=["0", "1", "2"]),
        ("train.parquet, row 0", "expected a label from 0 to 2 (one per class name), got '0'"),
    ),
    "label beyond the names": (
        _three(labels=[0, 1, 3]),
        ("train.parquet, row 2", "expected a label from 0 to 2 (one per class name), got 3"),
    ),
    "one class": (
        _three(labels=[1, 1, 1]),
        ("validation.parquet has 1 image of class ant, train.parquet has none", "--class-names"),
    ),
    "class without train images": (
        _three(labels=[0, 2, 2]),
        ("validation.parquet has 1 image of class bee, train.parquet has none", "--class-names"),
    ),
    "no rows": (
        lambda folder: write_split(folder / "train.parquet", [], pa.array([], pa.int64())),
        ("train.parquet: expected images, got none",),
    ),
    "splits of different classes": (
        _other_classes,
        ("class dog is in validation.parquet only, cat in train.parquet only. Give both one name",),
    ),
    "broken validation": (
        _three(labels=[0, -2, 1], file="validation"),
        ("validation.parquet, row 1", "expected a label from 0 to 2 (one per class name), got -2"),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder_rejected_with_its_name(tmp_path: Path, case: str) -> None:
    break_it, expected = BROKEN[case]
    break_it(make_folder(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    message = str(caught.value)
    assert message.count("\n") == 0
    assert str(tmp_path) in message
    for part in expected:
        assert part in message


def test_files_of_one_split_must_have_same_class_names(tmp_path: Path) -> None:
    make_folder(tmp_path)
    images = [encoded(picture(i)) for i in range(2)]
    write_split(tmp_path / "train-2.parquet", images, [0, 1], names=["bee", "ant", "cat"])
    with pytest.raises(DataError, match=r"train\.parquet: expected the same class names .*train-2\.parquet"):
        load_dataset(tmp_path)


def test_size_is_chosen_for_images_of_different_sizes(tmp_path: Path) -> None:
    _three([encoded(picture(0, 18, 40)), encoded(picture(1, 26, 30)), encoded(picture(2, 50, 29))])(
        make_folder(tmp_path)
    )
    dataset = load_dataset(tmp_path)
    assert dataset.size == (24, 24)  # the median of 18, 26 and 29 is 26
    assert any(note.startswith("images have different sizes (6x6, 40x18, ...)") for note in dataset.notes)
    _three([encoded(picture(n, 600 + n, 700)) for n in range(3)])(tmp_path)
    assert load_dataset(tmp_path).size == (224, 224)


def test_odd_size_outside_of_the_sample_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sizes, "_SAMPLED", 1)
    _three([encoded(picture(0)), encoded(picture(1, 6, 9))])(make_folder(tmp_path))
    with pytest.raises(DataError, match=r"train\.parquet, row 1: the image is 9x6, but .*row 0 is 6x6; set image_size"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("break_it", [_three([encoded(picture(0, 6, 9))]), _larger_validation])
def test_image_size_resizes_images_of_different_sizes(tmp_path: Path, break_it: Callable[[Path], None]) -> None:
    break_it(make_folder(tmp_path))
    dataset = load_dataset(tmp_path, image_size=5)
    assert dataset.train.pixels.shape[1:] == dataset.validation.pixels.shape[1:] == (3, 5, 5)


def test_classes_of_validation_are_aligned_by_name(tmp_path: Path) -> None:
    _other_order(make_folder(tmp_path))
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.validation.labels.tolist() == [2, 1, 0]


def test_one_file_is_divided(tmp_path: Path) -> None:
    write_split(tmp_path / "x.parquet", [encoded(picture(i)) for i in range(10)], [0, 1] * 5, names=["ant", "bee"])
    dataset = load_dataset(tmp_path / "x.parquet")
    assert (len(dataset.train), len(dataset.validation)) == (8, 2)
    assert sorted(dataset.validation.labels.tolist()) == [0, 1]


def test_other_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(DataError, match=r"train\.txt' is a file; for labelled images expected digits, .* a folder"):
        load_dataset(tmp_path / "train.txt")


def test_missing_folder_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere' does not exist"):
        load_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize(("size", "error"), [(3, InvalidValueError), (8.0, InvalidTypeError)])
def test_impossible_image_size_rejected(tmp_path: Path, size: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"image_size .* got {size}"):
        load_dataset(make_folder(tmp_path), image_size=size)


def test_digits_reject_image_size() -> None:
    with pytest.raises(InvalidValueError, match="digits has images of 8x8, got image_size 16"):
        load_dataset("digits", image_size=16)


# Statistics


def test_mean_and_std_are_per_channel_of_training_images() -> None:
    pixels = torch.randint(0, 256, (5000, 3, 2, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, 1] //= 3
    other = Images(torch.zeros(2, 3, 2, 3, dtype=torch.uint8), torch.arange(2))
    mean, std = Dataset("", (), Images(pixels, torch.zeros(5000).long()), other, 1, flip=True).statistics()
    values = pixels.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, values.mean(1).float())
    torch.testing.assert_close(std, values.std(1, correction=0).float())


def test_constant_channel_is_not_divided_by_zero() -> None:
    images = Images(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.arange(4))
    mean, std = Dataset("", (), images, images, 1, flip=True).statistics()
    assert (mean.tolist(), std.tolist()) == ([7.0], [1.0])


# Batches


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(50, 8, 6), (48, 8, 6), (7, 3, 2), (5, 1, 5)])
def test_epoch_shows_every_image_once_except_incomplete_batch(count: int, batch_size: int, steps: int) -> None:
    batches = Batches(numbered(count), batch_size, ZERO, ONE)
    epoch = seen(batches, 0, 0)
    assert [len(batch) for batch in epoch] == [batch_size] * steps
    assert batches.steps == steps
    assert len({number for batch in epoch for number in batch}) == batch_size * steps


def test_labels_stay_with_their_images() -> None:
    for images, labels in Batches(numbered(40), 8, ZERO, ONE).training(
        0, seed=0, augmentation=Augmentation(padding=0, flip=True)
    ):
        assert images.flatten().tolist() == labels.tolist()


def test_no_image_is_dropped_in_every_epoch() -> None:
    batches = Batches(numbered(10), 8, ZERO, ONE)
    assert {number for epoch in range(8) for batch in seen(batches, epoch, 0) for number in batch} == set(range(10))


def test_order_depends_on_seed_and_epoch() -> None:
    batches = Batches(numbered(50), 8, ZERO, ONE)
    orders = [seen(batches, epoch, seed) for epoch in range(3) for seed in range(3)]
    assert all(a != b for index, a in enumerate(orders) for b in orders[:index])


def test_order_depends_only_on_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = seen(Batches(numbered(50), 8, ZERO, ONE), 3, 2)
    torch.manual_seed(2)
    assert seen(Batches(numbered(50), 8, ZERO, ONE), 3, 2) == first


def test_batches_leave_global_generator_alone() -> None:
    before = torch.get_rng_state()
    seen(Batches(numbered(50), 8, ZERO, ONE), 3, 2, padding=1, flip=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_epoch_does_not_depend_on_earlier_epochs() -> None:
    images = Images(torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8), torch.arange(20))
    uninterrupted, resumed = (Batches(images, 8, torch.zeros(3), torch.ones(3)) for _ in range(2))
    for epoch in range(2):
        list(uninterrupted.training(epoch, seed=4, augmentation=Augmentation(padding=1, flip=True)))
    pairs = zip(
        *(b.training(2, seed=4, augmentation=Augmentation(padding=1, flip=True)) for b in (uninterrupted, resumed)),
        strict=True,
    )
    for (expected, _), (found, _) in pairs:
        assert torch.equal(found, expected)


def test_evaluation_shows_all_images_unchanged_in_order() -> None:
    shown = list(Batches(numbered(21), 8, ZERO, ONE).evaluation())
    assert [len(labels) for _, labels in shown] == [8, 8, 5]
    assert torch.cat([labels for _, labels in shown]).tolist() == list(range(21))
    assert torch.cat([images for images, _ in shown]).flatten().tolist() == list(range(21))


def test_batch_larger_than_data_set_is_complete_data_set() -> None:
    batches = Batches(numbered(5), 100, ZERO, ONE)
    assert batches.steps == 1
    assert sorted(seen(batches, 0, 0)[0]) == [0, 1, 2, 3, 4]
    assert [labels.tolist() for _, labels in batches.evaluation()] == [[0, 1, 2, 3, 4]]


def test_batch_size_zero_rejected() -> None:
    with pytest.raises(InvalidValueError, match="batch_size must be at least 1, got 0"):
        Batches(numbered(5), 0, ZERO, ONE)


def test_batches_have_mean_0_and_std_1_per_channel(digits: Dataset) -> None:
    coloured = torch.randint(0, 256, (300, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    coloured[:, 1] //= 5
    other = Dataset("", (), Images(coloured, torch.zeros(300).long()), digits.validation, 1, flip=True)
    for dataset in (digits, other):
        batches = Batches(dataset.train, 100, *dataset.statistics())
        values = torch.cat([images for images, _ in batches.evaluation()]).transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(values.mean(1), torch.zeros(dataset.channels).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(1), torch.ones(dataset.channels).double(), atol=1e-3, rtol=0)


def test_training_and_evaluation_use_same_normalisation() -> None:
    mean, std = torch.tensor([3.0]), torch.tensor([2.0])
    batches = Batches(numbered(6), 6, mean, std)
    ((images, labels),) = batches.training(0, seed=0, augmentation=Augmentation(padding=0, flip=False))
    torch.testing.assert_close(images.flatten(), (labels - 3) / 2)
    ((images, labels),) = batches.evaluation()
    torch.testing.assert_close(images.flatten(), (labels - 3) / 2)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (1, False), (0, True), (1, True)])
def test_batches_are_float32_in_channels_last_layout(padding: int, flip: bool) -> None:
    images = Images(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.arange(8))
    batches = Batches(images, 4, torch.zeros(3), torch.ones(3))
    for batch, _ in [
        *batches.training(0, seed=0, augmentation=Augmentation(padding=padding, flip=flip)),
        *batches.evaluation(),
    ]:
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("processes", [2, 3])
def test_process_shares_make_up_each_batch(processes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (26, 3, 4, 4), dtype=torch.uint8, generator=generator), torch.arange(26))

    def epoch(rank: int, of: int) -> list[tuple[Tensor, Tensor]]:
        batches = Batches(images, 6, torch.zeros(3), torch.ones(3), share=(rank, of))
        return list(batches.training(1, seed=3, augmentation=Augmentation(padding=1, flip=True)))

    shares = [epoch(rank, processes) for rank in range(processes)]
    for step, (whole, labels) in enumerate(epoch(0, 1)):
        for rank, share in enumerate(shares):
            assert torch.equal(share[step][1], labels[rank::processes])
            assert torch.equal(share[step][0], whole[rank::processes])


# Augmentation


def shift_by_loops(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Return the expected result of `shift`, pixel by pixel."""
    result = torch.zeros_like(images)
    count, channels, height, width = images.shape
    for n in range(count):
        down, right = (int(move) - padding for move in offsets[:, n])
        for c in range(channels):
            for row in range(height):
                for column in range(width):
                    if 0 <= row + down < height and 0 <= column + right < width:
                        result[n, c, row, column] = images[n, c, row + down, column + right]
    return result


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_shift_moves_each_image_by_its_own_amount(data: st.DataObject) -> None:
    size = st.integers(1, 4)
    count, channels, height, width = (data.draw(size) for _ in range(4))
    padding = data.draw(st.integers(0, 3))
    values = st.integers(0, 2 * padding)
    offsets = torch.tensor(data.draw(st.lists(values, min_size=2 * count, max_size=2 * count))).reshape(2, count)
    images = torch.arange(1, count * channels * height * width + 1).reshape(count, channels, height, width)
    assert torch.equal(shift(images, offsets, padding), shift_by_loops(images, offsets, padding))


def shown_once(flip: bool, padding: int, count: int = 4000) -> Tensor:
    """Return `count` augmented copies of one image of 3x3 pixels whose values are all different."""
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    images = Images(image.expand(count, 1, 3, 3).clone(), torch.zeros(count).long())
    ((shown, _),) = Batches(images, count, ZERO, ONE).training(
        0, seed=0, augmentation=Augmentation(padding=padding, flip=flip)
    )
    return shown.reshape(count, 3, 3)


def test_half_of_images_are_mirrored() -> None:
    image = torch.arange(1.0, 10.0).reshape(3, 3)
    shown = shown_once(flip=True, padding=0)
    flips = (shown == image.flip(1)).flatten(1).all(1)
    assert (flips | (shown == image).flatten(1).all(1)).all()
    assert abs(float(flips.double().mean()) - 0.5) < 5 * 0.5 / 4000**0.5


def test_images_without_flip_and_padding_are_unchanged() -> None:
    assert (shown_once(flip=False, padding=0) == torch.arange(1.0, 10.0).reshape(3, 3)).all()


def test_shifts_within_padding_are_equally_frequent() -> None:
    shown, counts = shown_once(flip=False, padding=1).unique(dim=0, return_counts=True)
    assert len(shown) == 9
    assert (counts - 4000 / 9).abs().max() < 5 * (4000 / 9) ** 0.5


def test_flips_and_shifts_are_independent() -> None:
    shown, counts = shown_once(flip=True, padding=1).unique(dim=0, return_counts=True)
    assert len(shown) == 18
    assert (counts - 4000 / 18).abs().max() < 5 * (4000 / 18) ** 0.5
