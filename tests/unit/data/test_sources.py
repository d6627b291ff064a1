"""Sources of images: class folders, torchvision's files, the hub's library; errors name the file."""

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from gatewise.data import (
    EncodedImages,
    Images,
    LabelledSource,
    LabelledSplit,
    Location,
    load,
    load_dataset,
    load_pairs,
    register_source,
    torchvision_files,
)
from gatewise.data.sources import registry
from gatewise.errors import DataError, InvalidValueError
from support.project import ROOT

CAMVID = ROOT.parent / "shared" / "data" / "camvid"


def picture(seed: int, size: tuple[int, int] = (6, 6)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def class_folders(folder: Path, validation: str = "val", size: tuple[int, int] = (6, 6)) -> Path:
    """Write three images of each of two classes to learn from, and one of each to measure on."""
    for split, count in (("train", 3), (validation, 1)):
        for label, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                picture(10 * label + number, size).save(folder / split / name / f"{number}.png")
    return folder


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# Class folders


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev", "Val2017", "my_valid"])
def test_class_folders_give_pixels_labels_and_names(tmp_path: Path, validation: str) -> None:
    dataset = load_dataset(class_folders(tmp_path, validation))
    assert dataset.classes == ("ant", "bee")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.validation.labels.tolist() == [0, 1]
    assert torch.equal(dataset.train[4], pixels(picture(11)))
    assert (dataset.size, dataset.channels, dataset.flip) == ((6, 6), 3, True)


def test_files_without_image_suffix_are_ignored(tmp_path: Path) -> None:
    (class_folders(tmp_path) / "train" / "ant" / "notes.txt").write_text("about ants")
    assert len(load_dataset(tmp_path).train) == 6


def _empty_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "bee")
    (folder / "train" / "bee").mkdir()


def test_animations_in_class_folders_show_first_frame(tmp_path: Path) -> None:
    class_folders(tmp_path)
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "train/bee/3.GIF", format="GIF", save_all=True, append_images=frames[1:])
    train = load_dataset(tmp_path).train
    assert len(train) == 7
    assert train[6][:, 0, 0].tolist() == [255, 0, 0]


def test_file_names_instead_of_images_rejected(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "label": [0, 1]}), tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: no column of image, label names images in .*--data-root"):
        load_dataset(tmp_path)


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "truncated image": (
        lambda f: (f / "train/bee/1.png").write_bytes((f / "train/bee/1.png").read_bytes()[:60]),
        ("train/bee/1.png", "truncated or unreadable image"),
    ),
    "empty file": (lambda f: (f / "val/ant/0.png").write_bytes(b""), ("val/ant/0.png", "no image bytes")),
    "class only in validation": (_empty_class, ("val/ has 1 image of class bee, train/ has none", "--class-names")),
    "no classes": (
        lambda f: [shutil.rmtree(p) for p in (f / "train").iterdir()],
        ("no train split", "expected train/ with class folders"),
    ),
    "images without class folders": (
        lambda f: [
            shutil.move(f / "train/ant/0.png", f / "train"),
            *(shutil.rmtree(p) for p in (f / "train").glob("*/")),
        ],
        ("train/ has 1 image and no class folders", "expected train/CLASS/"),
    ),
    "one class": (
        lambda f: [shutil.rmtree(f / split / "bee") for split in ("train", "val")],
        ("train", "all 3 images have one class"),
    ),
    "other classes": (
        lambda f: (f / "val/bee").rename(f / "val/cat"),
        ("class cat is in val/ only, bee in train/ only. Give both one name",),
    ),
    "masks": (
        lambda f: [
            (f / s / a).rename(f / s / b) for s in ("train", "val") for a, b in (("ant", "images"), ("bee", "masks"))
        ],
        ("train", "found folders of images and masks (images, masks)"),
    ),
    "loose images": (
        lambda f: [shutil.move(f / "train/ant/0.png", f), shutil.rmtree(f / "train"), shutil.rmtree(f / "val")],
        (
            "for labelled images expected digits, ",
            "a folder with CLASS/, or with train/CLASS/ and val/CLASS/",
            "found 0.png",
        ),
    ),
    "dangling link": (
        lambda f: [(f / "train/ant/1.png").unlink(), (f / "train/ant/1.png").symlink_to("nowhere.png")],
        ("train/ant/1.png does not exist",),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_class_folders_rejected_with_name(tmp_path: Path, case: str) -> None:
    break_it, expected = BROKEN[case]
    break_it(class_folders(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    for part in expected:
        assert part in message


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Return a folder that other users can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_unreadable_file_and_folder_are_named(public_folder: Path) -> None:
    unreadable = {
        "a/train/bee": "train/bee: no permission to read this folder",
        "b/train/bee/1.png": "train/bee/1.png cannot be read (Permission denied)",
    }
    for path in unreadable:
        class_folders(public_folder / path[0])
        (public_folder / path).chmod(0)
    code = (
        "import os, sys\n"  # other users may not see the environment
        "from gatewise.data import load_dataset\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root may read everything
        "for folder in sys.argv[1:]:\n"
        "    try: load_dataset(folder)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, *(str(public_folder / path[0]) for path in unreadable)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = printed.stdout.splitlines()
    assert len(lines) == len(unreadable), printed.stderr
    for line, expected in zip(lines, unreadable.values(), strict=True):
        assert line.startswith("DataError")
        assert expected in line


# torchvision's files


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write CIFAR-10 as torchvision stores it, with 10 and 4 random images, and let torchvision expect their sums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        labels = [i % 10 for i in range(count)]
        return {"data": generator.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": labels}

    kind = torchvision_datasets.CIFAR10
    names = [f"class{i}" for i in range(10)]
    monkeypatch.setattr(kind, "train_list", [write("data_batch_1", batch(10))])
    monkeypatch.setattr(kind, "test_list", [write("test_batch", batch(4))])
    filename, checksum = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(kind, "meta", {"filename": filename, "key": "label_names", "md5": checksum})


def test_torchvision_cifar_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == tuple(f"class{i}" for i in range(10))
    assert (len(dataset.train), len(dataset.validation), dataset.size) == (10, 4, (32, 32))
    raw = pickle.loads((tmp_path / "cifar-10-batches-py/data_batch_1").read_bytes())
    expected = torch.from_numpy(raw["data"][3].reshape(3, 32, 32))  # stored as planes, rows, columns
    assert torch.equal(dataset.train[3], expected)
    assert (dataset.padding, dataset.flip) == (4, True)


def test_cifar10_by_name_is_found_in_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    write_cifar(tmp_path / "datasets", monkeypatch)
    assert len(load_dataset("cifar10").train) == 10
    with pytest.raises(InvalidValueError, match="cifar10 has images of 32x32, got image_size 64"):
        load_dataset("cifar10", 64)


def test_damaged_cifar_file_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"other")
    with pytest.raises(DataError, match=r"cifar-10-batches-py is incomplete or damaged \(.*\)\. Remove it to"):
        load_dataset(tmp_path)


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torchvision_datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(DataError, match=r"cifar-100-python could not be downloaded \(the network is unreachable\)"):
        load_dataset("cifar100")
    assert torchvision_files.default_root() == tmp_path / "datasets"


# The hub


def hub_folder(folder: Path, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Write a file as the library `datasets` saves it: parquet with Image and ClassLabel features."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    for split in splits:
        rows = {"img": [picture(i) for i in range(4)], "label": [0, 1, 1, 0]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-00000.parquet")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the library's cache inside the test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hub_name_is_loaded_by_datasets(tmp_path: Path, cache: None) -> None:
    dataset = load_dataset(f"hub:{hub_folder(tmp_path / 'set', ('train', 'validation'))}")
    assert dataset.classes == ("ant", "bee")
    assert dataset.train.labels.tolist() == [0, 1, 1, 0]
    assert torch.equal(dataset.train[2], pixels(picture(2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hub_data_without_validation_is_divided(tmp_path: Path, cache: None) -> None:
    dataset = load_dataset(f"hub:{hub_folder(tmp_path / 'set', ('train',))}")
    assert (sorted(dataset.train.labels.tolist()), sorted(dataset.validation.labels.tolist())) == ([0, 1], [0, 1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_unavailable_hub_name_is_one_line(monkeypatch: pytest.MonkeyPatch, cache: None) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"^datasets cannot load 'no/such-set' \(") as caught:
        load_dataset("hub:no/such-set")
    assert "\n" not in str(caught.value)


# Segmentation data, where a label is expected


@pytest.mark.skipif(not CAMVID.exists(), reason=f"{CAMVID} is not here")
def test_masks_instead_of_labels_rejected_in_real_data() -> None:
    with pytest.raises(
        DataError,
        match=r"train.*parquet: expected columns 'image' and 'label', found image, mask\. For masks set task",
    ):
        load_dataset(CAMVID)


def test_mask_in_label_column_rejected(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(0).save(buffer, format="PNG")
    value = {"bytes": buffer.getvalue(), "path": None}
    for split in ("train", "val"):
        pq.write_table(pa.table({"image": [value], "label": [value]}), tmp_path / f"{split}.parquet")
    with pytest.raises(
        DataError, match=r"train\.parquet, row 0: expected a class or a number as label, got an image or a list"
    ):
        load_dataset(tmp_path)


# In memory or streamed


def test_auto_streams_data_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path)
    assert isinstance(load_dataset(tmp_path).train, Images)
    assert isinstance(load_dataset(tmp_path, loading="stream").train, EncodedImages)
    monkeypatch.setattr(load, "_MEMORY_LIMIT", 5 * 6 * 6 * 3)
    dataset = load_dataset(tmp_path)
    assert isinstance(dataset.train, EncodedImages)  # 6 images
    assert isinstance(dataset.validation, Images)  # 2 images
    assert isinstance(load_dataset(tmp_path, loading="memory").train, Images)


def test_unknown_loading_mode_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"unknown loading 'steam'.* Did you mean 'stream'\?"):
        load_dataset(class_folders(tmp_path), loading="steam")


def test_unknown_source_error_lists_sources() -> None:
    with pytest.raises(
        DataError, match=r"'uoft/cifar10' does not exist; for labelled images expected digits, cifar10, .* hub:NAME"
    ):
        load_dataset("uoft/cifar10")


def test_statistics_of_streamed_split_equal_its_pixels(tmp_path: Path) -> None:
    class_folders(tmp_path)
    mean, std = load_dataset(tmp_path, loading="memory").statistics()
    streamed = load_dataset(tmp_path, loading="stream").statistics()
    torch.testing.assert_close(streamed[0], mean)
    torch.testing.assert_close(streamed[1], std)


# Sources of one's own


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that registers a source "own", only for this test."""
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))

    def register(name: str = "own", labels: tuple[int, ...] = (0, 1, 1), **changes: object) -> None:
        @register_source(name, help="own images")
        class Own(LabelledSource):
            def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:  # noqa: ARG002
                images = torch.full((3, 1, 4, 4), 7, dtype=torch.uint8)
                split = LabelledSplit(images, labels, ("a", "b"))
                return {"train": split, "validation": split, **changes}

    return register


def test_source_of_pixels_is_read_by_name(own: Callable[..., None]) -> None:
    own()
    dataset = load_dataset("own")
    assert (dataset.name, dataset.classes, dataset.channels, dataset.size) == ("own", ("a", "b"), 1, (4, 4))
    assert dataset.validation.labels.tolist() == [0, 1, 1]
    assert load_dataset("own", image_size=4).size == (4, 4)
    with pytest.raises(InvalidValueError, match=r"own has images of 4x4, got image_size 8\. Omit it"):
        load_dataset("own", image_size=8)


def test_source_without_order_is_asked_before_folders(own: Callable[..., None], tmp_path: Path) -> None:
    own(str(class_folders(tmp_path)))
    assert load_dataset(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((0, 1), "own, train: expected one label per image, got 2 for 3"),
        ((0, 1, 2), r"image 2: expected a label from 0 to 1 \(one per class name\), got 2"),
        ((0, -1, 1), r"image 1: expected a label from 0 to 1 .*, got -1"),
        ((0, 0, 0), r"own: expected at least two classes, but all 3 images have one class \(a\)"),
    ],
)
def test_wrong_labels_of_source_are_named(own: Callable[..., None], labels: tuple[int, ...], message: str) -> None:
    own(labels=labels)
    with pytest.raises(DataError, match=message):
        load_dataset("own")


def test_source_without_images_is_named(own: Callable[..., None]) -> None:
    own(validation=LabelledSplit(torch.zeros(0, 1, 4, 4, dtype=torch.uint8), (), ("a", "b")))
    with pytest.raises(DataError, match="own, validation: expected images, got none"):
        load_dataset("own")


def test_name_of_source_is_unique(own: Callable[..., None]) -> None:
    with pytest.raises(InvalidValueError, match=r"data source 'digits' is already registered\. Choose another name"):
        own("digits")


def test_folder_with_the_name_of_a_data_set_is_noted(
    own: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data set was read instead of the user's folder, without a word."""
    own()
    monkeypatch.chdir(tmp_path)
    assert load_dataset("own").notes == ()
    class_folders(tmp_path / "own")
    assert load_dataset("own").notes == ("own is the data set of that name; --data ./own reads your own",)
    assert len(load_dataset("./own").train) == 6


def test_labels_where_masks_are_expected_name_the_task(own: Callable[..., None]) -> None:
    own()
    with pytest.raises(
        DataError, match=r"for images with masks expected voc2007 .*\. For images with one label set task"
    ):
        load_pairs("own")


def test_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path)
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda path: listed.append(str(path)) or scandir(path))
    load_dataset(tmp_path)
    assert sorted(listed) == sorted(map(str, [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]))


def test_problem_elsewhere_in_folder_is_ignored(tmp_path: Path) -> None:
    """Circular links next to the splits, and in a folder whose name begins with that of a split."""
    class_folders(tmp_path)
    for folder in ("other", "train2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "back").symlink_to(".")
    assert len(load_dataset(tmp_path).train) == 6
