"""Folders of pictures as people have them: what is read, what is left out, and what is said about it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gatewise.data import Dataset, Reading, load_dataset
from gatewise.errors import DataError
from support.picture_folders import by_class, picture, write_pictures

TEN = {"cat": 10, "dog": 10}


def sizes(dataset: Dataset) -> tuple[int, ...]:
    return tuple(len(split) for split in (dataset.train, dataset.validation, dataset.test) if split is not None)


def said(dataset: Dataset) -> str:
    return "\n".join(dataset.notes)


@pytest.mark.situation("folders: classes in the root, no splits")
def test_class_folders_in_root_are_divided(tmp_path: Path) -> None:
    dataset = load_dataset(by_class(tmp_path, TEN))
    assert (dataset.classes, sizes(dataset)) == (("cat", "dog"), (16, 4))
    assert dataset.validation.labels.tolist() == [0, 0, 1, 1]
    assert said(dataset) == (
        f"{tmp_path} has no splits: 4 of 20 images (0.2, seed 0, stratified) are held out for validation"
    )


@pytest.mark.situation("folders: train/ only")
def test_train_alone_is_divided(tmp_path: Path) -> None:
    dataset = load_dataset(by_class(tmp_path, {"train/cat": 10, "train/dog": 10}))
    assert sizes(dataset) == (16, 4)
    assert f"{tmp_path} has train/ only: 4 of 20 images" in said(dataset)


@pytest.mark.situation("folders: train/ and test/ only")
def test_test_split_is_kept_for_the_end(tmp_path: Path) -> None:
    by_class(tmp_path, {"train/cat": 10, "train/dog": 10, "test/cat": 3, "test/dog": 3})
    dataset = load_dataset(tmp_path)
    assert sizes(dataset) == (16, 4, 6)
    assert "test/ is scored once, after the last epoch" in said(dataset)
    assert sizes(load_dataset(tmp_path, reading=Reading(validation_split="test"))) == (20, 6)
    assert sizes(load_dataset(tmp_path, reading=Reading(test_split="none"))) == (16, 4)


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("train2017", "val2017", "test2017"),
        ("seg_train", "seg_dev", "seg_test"),
        ("my-train", "my-valid", "my-eval"),
    ],
)
@pytest.mark.situation("folders: splits under other usual names")
def test_splits_have_any_usual_name(tmp_path: Path, train: str, validation: str, test: str) -> None:
    for split, count in ((train, 4), (validation, 2), (test, 1)):
        by_class(tmp_path, {f"{split}/cat": count, f"{split}/dog": count})
    dataset = load_dataset(tmp_path)
    assert sizes(dataset) == (8, 4, 2)
    assert dataset.division is not None
    assert dataset.division.rule == {}


@pytest.mark.situation("folders: hidden and foreign files between the images")
def test_what_is_hidden_or_no_image_is_left_out_and_counted(tmp_path: Path) -> None:
    by_class(tmp_path, TEN)
    write_pictures(tmp_path, [".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/cat/1.png", "cat/._1.png"])
    for name in ("cat/.DS_Store", "dog/Thumbs.db", "dog/notes.txt"):
        (tmp_path / name).write_bytes(b"junk")
    dataset = load_dataset(tmp_path)
    assert (dataset.classes, sizes(dataset)) == (("cat", "dog"), (16, 4))
    expected = "2 hidden folders and 2 hidden files and 2 files of another kind ignored ("
    assert expected in said(dataset)


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "PPM"])
@pytest.mark.situation("folders: images of any usual suffix")
def test_usual_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    by_class(tmp_path, TEN)
    formats = {"jfif": "JPEG"}
    picture(99).save(tmp_path / f"cat/x.{suffix}", format=formats.get(suffix))
    assert sum(sizes(load_dataset(tmp_path))) == 21


@pytest.mark.situation("folders: subfolders below a class")
def test_images_at_any_depth_belong_to_the_class(tmp_path: Path) -> None:
    dataset = load_dataset(by_class(tmp_path, {"train/cat/a": 3, "train/cat/b/c": 3, "train/dog": 6}))
    assert dataset.classes == ("cat", "dog")
    assert sum(sizes(dataset)) == 12


@pytest.mark.situation("folders: an archive with a folder in a folder")
def test_only_folder_is_stepped_into(tmp_path: Path) -> None:
    assert load_dataset(by_class(tmp_path / "data" / "data", TEN).parent).classes == ("cat", "dog")
    by_class(tmp_path / "twice", {"seg_train/seg_train/cat": 4, "seg_train/seg_train/dog": 4})
    assert load_dataset(tmp_path / "twice").classes == ("cat", "dog")


@pytest.mark.situation("folders: a class called train")
def test_folder_named_as_split_among_classes_is_a_class(tmp_path: Path) -> None:
    assert load_dataset(by_class(tmp_path, {"bus": 5, "car": 5, "train": 5})).classes == ("bus", "car", "train")
    shutil.rmtree(tmp_path / "train")
    by_class(tmp_path, {"train/a": 3, "train/b": 3})
    with pytest.raises(DataError, match=r"is train/ a split with classes in it, or a class next to bus, car\? Rename"):
        load_dataset(tmp_path)


@pytest.mark.situation("folders: a class that is in train only")
def test_class_without_validation_images_is_named(tmp_path: Path) -> None:
    by_class(tmp_path, {"train/cat": 5, "train/dog": 5, "train/owl": 1, "val/cat": 2, "val/dog": 2})
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog", "owl")
    assert "warning: no validation image of class owl (1 in train); how well it is recognised" in said(dataset)


def test_empty_class_folder_is_no_class(tmp_path: Path) -> None:
    (by_class(tmp_path, {"train/cat": 5, "train/dog": 5}) / "train/owl").mkdir()
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert "no images in train/owl/: no class" in said(dataset)


def test_classes_can_be_chosen_and_ordered(tmp_path: Path) -> None:
    dataset = load_dataset(by_class(tmp_path, {**TEN, "owl": 10}), class_names="owl,cat")
    assert (dataset.classes, sizes(dataset)) == (("owl", "cat"), (16, 4))
    assert dataset.validation.labels.tolist() == [1, 1, 0, 0]
    assert "10 images of other classes than classes owl, cat left out" in said(dataset)
    with pytest.raises(ValueError, match=r"unknown class 'catt'; expected one of .* Did you mean 'cat'\?"):
        load_dataset(tmp_path, class_names="catt,owl")


def test_numbers_as_class_names_are_sorted_by_value_in_tables_and_as_text_in_folders(tmp_path: Path) -> None:
    by_class(tmp_path, {"10": 4, "9": 4})
    assert load_dataset(tmp_path).classes == ("10", "9")  # as torchvision
    rows = "".join(f"{name}/{n}.png,{name}\n" for name in ("10", "9") for n in range(4))
    (tmp_path / "t.csv").write_text("file,age\n" + rows)
    assert load_dataset(tmp_path / "t.csv").classes == ("9", "10")


# What stops, and the one line that says so


def _phone(root: Path) -> None:
    (by_class(root, TEN) / "cat/IMG_1.HEIC").write_bytes(b"x")


def _old_archive(root: Path) -> None:
    file = by_class(root, TEN) / "cat/0.png"
    file.rename(os.fsdecode(os.fsencode(file.parent) + b"/ol\xe9.png"))


def _two_trains(root: Path) -> None:
    by_class(root, {"train/cat": 2, "training/cat": 2})


def _loose_validation(root: Path) -> None:
    write_pictures(by_class(root, {"train/cat": 3, "train/dog": 3}), ["val/1.png", "val/2.png"])


STOPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "two names of one split": (_two_trains, "is train or training the train split? Rename or move one."),
    "a class in val only": (
        lambda f: by_class(f, {"train/cat": 3, "train/dog": 3, "val/cat": 1, "val/dog": 1, "val/owl": 12}),
        "val/ has 12 images of class owl, train/ has none. Add some, or leave the class out with --class-names.",
    ),
    "a class spelt in two ways": (
        lambda f: by_class(f, {"train/cat": 3, "train/dog": 3, "val/Cat": 1, "val/dog": 1}),
        "class Cat is in val/ only, cat in train/ only. Give both one name.",
    ),
    "val without class folders": (
        _loose_validation,
        "val/ has 2 images and no class folders; expected val/CLASS/ (for labels in a table, give the table as ",
    ),
    "HEIC": (
        _phone,
        "cat/IMG_1.HEIC: HEIC is not read. Save as JPEG, or add --on-broken skip to leave out what cannot be read.",
    ),
    "a name in another encoding": (
        _old_archive,
        "cat/ol?.png: a name in another encoding than UTF-8 is not read. Rename the file or folder, or add --on-",
    ),
    "DICOM": (
        lambda f: [by_class(f, TEN), (f / "dog/1.dcm").write_bytes(b"x"), (f / "dog/2.dcm").write_bytes(b"x")],
        "dog/1.dcm and 1 others: DICOM is not read. Save as PNG or TIFF,",
    ),
    "one class": (lambda f: by_class(f, {"train/cat": 5}), "train/: expected at least two classes, but all 5 images"),
    "no images": (lambda f: (f / "a.txt").write_text("a"), "for labelled images expected digits, "),
    "a test class without training images": (
        lambda f: by_class(f, {"train/cat": 3, "train/dog": 3, "test/unknown": 3}),
        "test/ has 3 images of class unknown, train/ has none. Add some, or leave test images out with --test-split",
    ),
    "an archive": (lambda f: (f / "x.zip").write_bytes(b"PK"), "Unpack the archive first."),
    "COCO": (
        lambda f: [write_pictures(f, ["1.png"]), (f / "_annotations.coco.json").write_text("{}")],
        "_annotations.coco.json is COCO: boxes and polygons are not read. Draw them as masks",
    ),
    "COCO by its content": (
        lambda f: [
            write_pictures(f, ["images/1.png"]),
            (f / "all.json").write_text('{"images": [], "annotations": []}'),
        ],
        "all.json is COCO: boxes and polygons are not read.",
    ),
    "COCO next to splits": (
        lambda f: [write_pictures(f, ["train/1.png", "val/2.png"]), (f / "instances_val.json").write_text("{}")],
        "expected train/CLASS/ (for labels in a table, give the table as --data). instances_val.json is COCO: ",
    ),
    "an archive in a folder": (lambda f: (f / "photos.zip").write_bytes(b"PK"), "Unpack photos.zip first."),
    "a spreadsheet": (
        lambda f: [write_pictures(f, ["1.png"]), (f / "labels.xlsx").write_bytes(b"PK")],
        "labels.xlsx is not read: save it as CSV.",
    ),
    "one image for each class": (
        lambda f: by_class(f, {"a": 1, "b": 1, "c": 1}),
        "too few to hold out any for validation: each class needs two. Add images, or a validation split.",
    ),
    "YOLO": (
        lambda f: [write_pictures(f, ["images/1.png"]), (f / "labels").mkdir(), (f / "labels/1.txt").write_text("0 1")],
        "1.txt and others are YOLO: boxes and polygons are not read.",
    ),
    "no train": (lambda f: by_class(f, {"val/cat": 2, "val/dog": 2}), "has no train split: expected train/ with class"),
}


@pytest.mark.parametrize("case", STOPS)
@pytest.mark.situation("folders: what cannot be read says so in one line")
def test_bad_folder_is_one_line(tmp_path: Path, case: str) -> None:
    write, expected = STOPS[case]
    write(tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path / "x.zip" if case == "an archive" else tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.situation("folders: the home folder, written as ~")
def test_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    by_class(tmp_path / "photos", TEN)
    rows = [f"~/photos/cat/{n}.png,{'ab'[n % 2]}" for n in range(10)]
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]))
    dataset = load_dataset("~/photos")
    assert sizes(dataset) == (16, 4)
    assert dataset.division is not None
    assert dataset.division.folder == str(tmp_path / "photos")
    assert sizes(load_dataset("~/table.csv")) == (8, 2)


# Broken images


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.situation("folders: a broken image")
def test_broken_image_stops_with_its_name(tmp_path: Path) -> None:
    by_class(tmp_path, TEN)
    cut(tmp_path / "cat/7.png")
    with pytest.raises(DataError, match=r"cat/7\.png: truncated .* Remove it, or add --on-broken skip\.$"):
        load_dataset(tmp_path)
    cut(tmp_path / "dog/2.png")
    with pytest.raises(DataError, match=r"first of 2 such images\. Remove them, or add --on-broken skip\.$"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.situation("folders: a broken image")
def test_broken_images_are_left_out_on_request(tmp_path: Path, loading: str) -> None:
    by_class(tmp_path / "photos", {"cat": 20, "dog": 20})
    cut(tmp_path / "photos/cat/7.png")
    (tmp_path / "photos/cat/IMG_1.heic").write_bytes(b"x")
    dataset = load_dataset(tmp_path / "photos", loading=loading, reading=Reading(on_broken="skip"))
    assert sum(sizes(dataset)) == 39
    assert "warning: 1 image cannot be read and is left out" in said(dataset)
    assert "IMG_1.heic: HEIC is not read; left out" in said(dataset)
    assert dataset.division is not None
    dataset.division.write(tmp_path / "run")
    assert "cat/7.png" in (tmp_path / "run/skipped.csv").read_text()
    assert "cat/7.png" not in (tmp_path / "run/split.csv").read_text()


def test_names_in_another_encoding_are_left_out_on_request(tmp_path: Path) -> None:
    """split.csv, the notes and the output could not be written."""
    _old_archive(tmp_path)
    by_class(tmp_path, {os.fsdecode(b"\xe9t\xe9"): 1})
    (tmp_path / os.fsdecode(b"\xe9.txt")).write_text("")
    dataset = load_dataset(tmp_path, reading=Reading(on_broken="skip"))
    assert (dataset.classes, sum(sizes(dataset))) == (("cat", "dog"), 19)
    assert said(dataset).isascii()
    assert dataset.division is not None
    dataset.division.write(tmp_path / "run")


def test_many_broken_images_are_refused(tmp_path: Path) -> None:
    by_class(tmp_path, TEN)
    for number in range(3):
        cut(tmp_path / f"cat/{number}.png")
    with pytest.raises(DataError, match=r"3 of 20 images of train cannot be read, more than 5%: .*cat/0\.png"):
        load_dataset(tmp_path, reading=Reading(on_broken="skip"))


def test_photos_of_one_camera_some_of_which_are_upright_get_one_size(tmp_path: Path) -> None:
    upright = picture(0).getexif()
    upright[0x0112] = 6
    for number in range(12):
        file = tmp_path / ("cat", "dog")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        picture(number, (30, 40)).save(file, exif=upright if number % 3 else b"")
    dataset = load_dataset(tmp_path)
    assert dataset.size == (24, 24)
    assert "images have different sizes (30x40, 40x30, ...)" in said(dataset)


def test_arrays_of_different_sizes_get_one_size(tmp_path: Path) -> None:
    for number in range(12):
        file = tmp_path / ("cat", "dog")[number % 2] / f"{number}.npy"
        file.parent.mkdir(exist_ok=True)
        np.save(file, np.random.default_rng(number).integers(0, 256, (20 + number, 17, 3), dtype=np.uint8))
    assert load_dataset(tmp_path).size == (16, 16)
