"""Images with masks: found in every supported layout, each with its own mask, or rejected by name."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image

from gatewise.data import (
    PairSource,
    Reading,
    SegmentationDataset,
    SegmentationSplit,
    load,
    load_dataset,
    load_pairs,
)
from gatewise.data.folders import EncodedFiles
from gatewise.data.masks import MaskEncoding
from gatewise.data.reading import OtherReading
from gatewise.data.sources import voc
from gatewise.data.sources.voc import VOC, VOC_CLASSES
from gatewise.errors import DataError, InvalidTypeError, InvalidValueError
from support.project import ROOT

CAMVID = ROOT.parent / "shared" / "data" / "camvid"
CAMVID_CLASSES = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,bicyclist,unlabelled"
CLASSES = 3


def image_of(number: int) -> Image.Image:
    """Return an image whose red is its number."""
    return Image.new("RGB", (6, 4), (number, 100, 50))


def mask_of(number: int) -> Image.Image:
    """Return a mask that encodes the number of its image: of the classes number % 3 and (number + 1) % 3."""
    values = np.full((4, 6), number % CLASSES, dtype=np.uint8)
    values[number % 4, number % 6] = (number + 1) % CLASSES
    return Image.fromarray(values)


def content(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def numbers(pairs: SegmentationSplit) -> list[int]:
    """Return the numbers of the images, after making sure that each has its own mask."""
    found = []
    for index in range(len(pairs)):
        image, mask = pairs[index]
        found.append(int(image[0, 0, 0]))
        np.testing.assert_array_equal(mask.numpy(), np.asarray(mask_of(found[-1])))
    return found


def write_table(
    file: Path, chosen: Sequence[int], columns: tuple[str, str] = ("image", "mask"), *, plain: bool = False
) -> None:
    """Write a parquet file as the Hugging Face library does, or with plain bytes."""
    parts = [[content(make(number)) for number in chosen] for make in (image_of, mask_of)]
    if not plain:
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        parts = [pa.array([{"bytes": image, "path": None} for image in part], struct) for part in parts]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(zip(columns, parts, strict=True))), file)


def write_files(
    images: Path, masks: Path, chosen: Sequence[int], *, name: str = "{:03}", kinds: tuple[str, str] = (".png", ".png")
) -> None:
    """Write pairs of files of one name in two folders."""
    for number in chosen:
        for folder, make, suffix in ((images, image_of, kinds[0]), (masks, mask_of, kinds[1])):
            path = folder / f"{name.format(number)}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            make(number).save(path)


def split_first(root: Path, validation: str = "val") -> Path:
    """Write train/images, train/masks and so on."""
    write_files(root / "train/images", root / "train/masks", range(6))
    write_files(root / validation / "images", root / validation / "masks", range(10, 13))
    return root


def split_last(root: Path, validation: str = "val") -> Path:
    """Write images/train, masks/train and so on."""
    write_files(root / "images/train", root / "masks/train", range(6))
    write_files(root / "images" / validation, root / "masks" / validation, range(10, 13))
    return root


def tables(root: Path, validation: str = "val") -> Path:
    write_table(root / "train.parquet", range(6))
    write_table(root / f"{validation}.parquet", range(10, 13))
    return root


def table_of_files(root: Path, validation: str = "val") -> Path:
    """Write a table in which the files of a pair have different names, and a column of splits."""
    rows = ["photo,mask,split"]
    for split, chosen in (("train", range(6)), (validation, range(10, 13))):
        write_files(root / "photos", root / "drawn", chosen, name="{:03}")
        for number in chosen:
            (root / f"drawn/{number:03}.png").rename(root / f"drawn/of_{number:03}.png")
            rows.append(f"{number:03},drawn/of_{number:03}.png,{split}")
    (root / "pairs.csv").write_text("\n".join(rows) + "\n")
    return root


def tables_of_files(root: Path, validation: str = "val") -> Path:
    """Write a table for each split, with the same names in images/ and masks/."""
    for split, chosen in (("train", range(6)), (validation, range(10, 13))):
        write_files(root / "images", root / "masks", chosen)
        rows = [f"{number:03}.png,{number:03}.png" for number in chosen]
        (root / f"{split}.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    return root


LAYOUTS: dict[str, Callable[..., Path]] = {
    "a table": table_of_files,
    "a table for each split": tables_of_files,
    "train/images": split_first,
    "images/train": split_last,
    "parquet": tables,
}


# --- Layouts ---------------------------------------------------------------------------------------------------------


def test_masks_mean_what_they_meant_in_a_training(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(4):
        image_of(number).save(tmp_path / f"images/{number}.png")
        Image.new("L", (6, 4), number % 2).save(tmp_path / f"masks/{number}.png")
    stored = {"classes": ["a", "b", "c"], "ignored": 7, "foreground": None, "values": None, "threshold": None}
    meaning = MaskEncoding.of_config("config.json", {"masks": stored})
    assert meaning == MaskEncoding(("a", "b", "c"), ignored=7)
    assert load_pairs(tmp_path).classes == ("0", "1")
    assert load_pairs(tmp_path, meaning=meaning).classes == ("a", "b", "c")
    (tmp_path / "classes.txt").write_text("b\na\n")
    with pytest.raises(DataError, match="names the mask values b, a, the network was trained with a, b, c, in this or"):
        load_pairs(tmp_path, meaning=meaning)
    with pytest.raises(DataError, match=r"config\.json: masks|config\.json: classes"):
        MaskEncoding.of_config("config.json", {"masks": {**stored, "classes": "abc"}})


@pytest.mark.parametrize("loading", ["memory", "stream", "auto"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_images_in_order_with_their_masks(tmp_path: Path, layout: str, loading: str) -> None:
    dataset = load_pairs(LAYOUTS[layout](tmp_path), loading=loading)
    assert numbers(dataset.train) == list(range(6))
    assert numbers(dataset.validation) == [10, 11, 12]
    assert dataset.classes == ("0", "1", "2")
    assert dataset.name == str(tmp_path)
    assert dataset.train.held == dataset.validation.held == (loading != "stream")


@pytest.mark.situation("segmentation: a table names images and masks")
def test_table_of_pairs_is_read_by_its_name_and_columns(tmp_path: Path) -> None:
    write_files(tmp_path / "a", tmp_path / "b", range(10))
    rows = [f"x,a/{number:03}.png,b/{number:03}.png" for number in range(10)]
    (tmp_path / "all.csv").write_text("\n".join(["note,left,right", *rows]) + "\n")
    reading = Reading(image_column="left", label_column="right", validation_split=0.2)
    dataset = load_pairs(tmp_path / "all.csv", reading=reading)
    assert sorted(numbers(dataset.train) + numbers(dataset.validation)) == list(range(10))
    assert len(dataset.validation) == 2
    with pytest.raises(DataError, match=r"one that names masks, found note, left, right\. Give them as --image-column"):
        load_pairs(tmp_path / "all.csv", reading=Reading(image_column="left", label_column="note"))


@pytest.mark.parametrize("split", ["test", "val", ""])
def test_pairs_for_a_trained_network_need_not_do_for_a_training(tmp_path: Path, split: str) -> None:
    write_files(tmp_path / split / "images", tmp_path / split / "masks", range(1))
    dataset = load_pairs(tmp_path, class_names="a,b,c", reading=OtherReading())
    assert dataset.validation is dataset.train
    assert numbers(dataset.validation) == [0]
    assert (dataset.test is dataset.train) is (split == "test")


def test_table_without_masks_leaves_the_folders_to_be_read(tmp_path: Path) -> None:
    split_first(tmp_path)
    (tmp_path / "sizes.csv").write_text("image,size\n" + "".join(f"train/images/{n:03}.png,{n}\n" for n in range(6)))
    assert numbers(load_pairs(tmp_path).train) == list(range(6))


@pytest.mark.situation("splits: the table of a run is used again")
def test_split_csv_of_pairs_gives_the_same_division(tmp_path: Path) -> None:
    write_files(tmp_path / "data/images", tmp_path / "data/masks", range(20))
    dataset = load_pairs(tmp_path / "data", reading=Reading(test_split=0.2))
    assert dataset.division is not None
    dataset.division.write(tmp_path / "run")
    (tmp_path / "run/recipe.yaml").write_text(f"data: {tmp_path / 'data'}\n")
    again = load_pairs(tmp_path / "run/split.csv")
    assert again.division is not None
    assert again.division.rows == dataset.division.rows
    assert dataset.division.rows[0][:2] == ("images/000.png", "masks/000.png")
    assert again.test is not None
    assert numbers(again.test) == numbers(dataset.test)


def rename(root: Path, image: str, mask: str, folders: tuple[str, str]) -> None:
    """Rename files of `split_first`, with {} for their number, and move them to folders of other names."""
    for split in ("train", "val"):
        for part, name, folder in (("images", image, folders[0]), ("masks", mask, folders[1])):
            files = sorted((root / split / part).iterdir())
            (root / split / folder).mkdir(exist_ok=True)
            for file in files:
                file.rename(root / split / folder / (name.format(file.stem) + file.suffix))
            if part != folder:
                (root / split / part).rmdir()


@pytest.mark.situation("masks: named by the usual conventions, in folders of the usual names or side by side")
@pytest.mark.parametrize(
    ("image", "mask", "folders"),
    [
        ("{}", "{}_mask", ("images", "masks")),
        ("{}", "{}-mask", ("img", "Masks")),
        ("{}_image", "{}_seg", ("JPEGImages", "SegmentationClass")),
        ("{}_sat", "{}_mask", (".", ".")),
        ("{}", "{}_mask", (".", ".")),
        ("{}.rf.0ab", "{}.rf.0ab_mask", (".", ".")),
        ("{}", "{}_GT", ("imgs", "annotations")),
        ("{}", "{}", ("image", "labels")),
    ],
    ids=" ".join,
)
def test_masks_are_found_by_usual_names(tmp_path: Path, image: str, mask: str, folders: tuple[str, str]) -> None:
    rename(split_first(tmp_path), image, mask, folders)
    dataset = load_pairs(tmp_path)
    assert numbers(dataset.train) == list(range(6))
    assert numbers(dataset.validation) == [10, 11, 12]
    assert dataset.classes == ("0", "1", "2")


def test_image_without_mask_beside_it_is_named(tmp_path: Path) -> None:
    rename(split_first(tmp_path), "{}", "{}_mask", (".", "."))
    (tmp_path / "train/003_mask.png").unlink()
    with pytest.raises(
        DataError, match=r"train/003\.png has no mask: expected .*train/003\* \(1 files have no partner"
    ):
        load_pairs(tmp_path)


@pytest.mark.situation("masks: polygons of YOLO or COCO instead")
def test_polygons_are_named_as_what_they_are(tmp_path: Path) -> None:
    split_first(tmp_path)
    for split in ("train", "val"):
        for file in (tmp_path / split / "masks").iterdir():
            file.with_suffix(".txt").write_text("0 0.1 0.1 0.5 0.5 0.1 0.5")
            file.unlink()
        (tmp_path / split / "masks").rename(tmp_path / split / "labels")
    with pytest.raises(DataError, match=r"train/labels/\*\.txt are YOLO polygons, which are not read; expected masks"):
        load_pairs(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_files_and_have_no_labels(tmp_path: Path, layout: str) -> None:
    train = load_pairs(LAYOUTS[layout](tmp_path)).train
    for files in (train.images, train.masks):
        assert (len(files), hasattr(files, "labels")) == (6, False)


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_split_has_any_usual_name(tmp_path: Path, layout: str, validation: str) -> None:
    assert numbers(load_pairs(LAYOUTS[layout](tmp_path, validation)).validation) == [10, 11, 12]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validation_split_wins_over_test(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path, "test")
    LAYOUTS[layout](tmp_path, "validation")
    where = load_pairs(tmp_path).validation.images.where(0)
    assert "test" not in where.removeprefix(str(tmp_path))


def test_folder_path_may_be_text(tmp_path: Path) -> None:
    assert numbers(load_pairs(str(split_first(tmp_path))).train) == list(range(6))


def test_parquet_files_of_split_are_joined_in_order_of_names(tmp_path: Path) -> None:
    tables(tmp_path)
    (tmp_path / "train.parquet").unlink()
    write_table(tmp_path / "data/train-00001-of-00002.parquet", [3, 4, 5])
    write_table(tmp_path / "data/train-00000-of-00002.parquet", [7, 8])
    train = load_pairs(tmp_path).train
    assert numbers(train) == [7, 8, 3, 4, 5]
    assert train.masks.where(2) == f"{tmp_path / 'data/train-00001-of-00002.parquet'}, row 0"


@pytest.mark.parametrize("mask", ["mask", "label", "annotation", "segmentation"])
@pytest.mark.parametrize("image", ["image", "img"])
def test_usual_column_names_are_recognized(tmp_path: Path, image: str, mask: str) -> None:
    for split in ("train", "val"):
        write_table(tmp_path / f"{split}.parquet", range(3), (image, mask))
    assert numbers(load_pairs(tmp_path).train) == [0, 1, 2]


def test_mask_column_wins_over_label(tmp_path: Path) -> None:
    write_table(tmp_path / "val.parquet", range(3))
    write_table(tmp_path / "train.parquet", range(3))
    table = pq.read_table(tmp_path / "train.parquet").append_column("label", pa.array([0, 1, 2]))
    pq.write_table(table, tmp_path / "train.parquet")
    assert numbers(load_pairs(tmp_path).train) == [0, 1, 2]


def test_images_and_masks_may_be_plain_bytes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_table(tmp_path / f"{split}.parquet", range(3), plain=True)
    assert numbers(load_pairs(tmp_path).train) == [0, 1, 2]


def test_files_may_be_at_any_depth_with_own_suffixes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for town in ("b", "a"):
            folders = tmp_path / split / "images", tmp_path / split / "masks"
            chosen = (0, 1) if town == "a" else (2, 3)
            write_files(*folders, chosen, name=f"{town}/x.{{}}", kinds=(".BMP", ".tif"))
    (tmp_path / "train/images/notes.txt").write_text("no image")
    dataset = load_pairs(tmp_path)
    assert numbers(dataset.train) == [0, 1, 2, 3]
    assert dataset.train.images.where(1) == str(tmp_path / "train/images/a/x.1.BMP")
    assert dataset.train.masks.where(1) == str(tmp_path / "train/masks/a/x.1.tif")


def test_fifth_of_undivided_pairs_is_held_out(tmp_path: Path) -> None:
    write_files(tmp_path / "images", tmp_path / "masks", range(20))
    dataset = load_pairs(tmp_path)
    held_out = numbers(dataset.validation)
    assert len(held_out) == 4
    assert numbers(dataset.train) == [number for number in range(20) if number not in held_out]
    assert numbers(load_pairs(tmp_path, reading=Reading(split_seed=1)).validation) != held_out


def test_folders_with_splits_are_not_divided_again(tmp_path: Path) -> None:
    write_files(tmp_path / "images", tmp_path / "masks", range(20, 40))
    split_first(tmp_path)
    assert numbers(load_pairs(tmp_path).train) == list(range(6))


# --- Classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["train/images", "parquet"])
def test_classes_txt_names_classes_in_order(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    (tmp_path / "classes.txt").write_text("sky\n road \ncar\nnever seen\n\n")
    dataset = load_pairs(tmp_path)
    assert dataset.classes == ("sky", "road", "car", "never seen")
    assert numbers(dataset.train) == list(range(6))


def test_class_names_override_classes_txt(tmp_path: Path) -> None:
    split_first(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    assert load_pairs(tmp_path, class_names="a, b ,c,d").classes == ("a", "b", "c", "d")


def test_highest_value_of_both_splits_gives_classes(tmp_path: Path) -> None:
    split_first(tmp_path)
    Image.fromarray(np.full((4, 6), 6, dtype=np.uint8)).save(tmp_path / "val/masks/011.png")
    assert load_pairs(tmp_path).classes == tuple("0123456")


def test_ignored_value_is_not_a_class(tmp_path: Path) -> None:
    dataset = load_pairs(split_first(tmp_path), ignore_index=1)
    assert dataset.classes == ("0", "2")
    mask = np.asarray(mask_of(2))
    assert torch.equal(dataset.train[2][1], torch.from_numpy(np.where(mask == 2, 1, mask)))
    mask = np.asarray(mask_of(0))
    assert torch.equal(dataset.train[0][1], torch.from_numpy(np.where(mask == 1, 255, mask)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects_of_255_in_one_split_give_a_warning(tmp_path: Path, split: str) -> None:
    """Masks of 0 and 255, where others had 0 and 1, had no object: 100 % of the background was right."""
    for name in ("train", "val"):
        write_files(tmp_path / f"images/{name}", tmp_path / f"masks/{name}", range(3))
        for number in range(3):
            mask = np.zeros((4, 6), dtype=np.uint8)
            mask[1:3, 2:4] = 255 if name == split else 1
            Image.fromarray(mask).save(tmp_path / f"masks/{name}/{number:03}.png")
    warning = f"masks/{split}/000.png and other masks of its split have only the values 0 (0) and 255 (ignored)"
    assert len([note for note in load_pairs(tmp_path).notes if warning in note]) == 1
    notes = load_pairs(tmp_path, meaning=MaskEncoding(("0", "1"))).notes
    assert [note.startswith("warning: ") for note in notes if "no pixel counts as 1; if 255 means a class" in note] == [
        True
    ]
    assert load_pairs(tmp_path, mask_threshold=1).classes == ("background", "foreground")


def test_foreground_is_one_class_against_all_others(tmp_path: Path) -> None:
    dataset = load_pairs(split_first(tmp_path), class_names="sky,road,car", foreground="road")
    assert dataset.classes == ("road",)
    assert torch.equal(dataset.train[3][1], torch.from_numpy((np.asarray(mask_of(3)) == 1).astype(np.uint8)))
    with pytest.raises(InvalidValueError, match=r"unknown foreground class 'rode'; .*Did you mean 'road'\?"):
        load_pairs(tmp_path, class_names="sky,road,car", foreground="rode")


def test_value_above_names_rejected_with_its_file_when_read(tmp_path: Path) -> None:
    write_files(tmp_path / "train/images", tmp_path / "train/masks", range(3))
    write_files(tmp_path / "val/images", tmp_path / "val/masks", [0])
    beyond = r"train/masks/001\.png: value 2 in 1 pixels; expected 0 to 1 for 2 classes"
    with pytest.raises(DataError, match=beyond):
        load_pairs(tmp_path, class_names="sky,road")
    train = load_pairs(tmp_path, class_names="sky,road", loading="stream").train
    train[0]
    with pytest.raises(DataError, match=beyond):
        train[1]


def test_value_255_error_suggests_ignore_index(tmp_path: Path) -> None:
    split_first(tmp_path)
    Image.fromarray(np.full((4, 6), 255, dtype=np.uint8)).save(tmp_path / "train/masks/001.png")
    assert load_pairs(tmp_path).classes == ("0", "1", "2")
    with pytest.raises(DataError, match=r"masks/000\.png and other masks have values up to 255; .*set ignore_index"):
        load_pairs(tmp_path, ignore_index=0)


# --- Options ---------------------------------------------------------------------------------------------------------


def test_image_size_scales_and_crop_size_crops_training_images(tmp_path: Path) -> None:
    dataset = load_pairs(split_first(tmp_path), image_size=8, crop_size=5)
    assert dataset.train.shape == (3, 8, 12)
    assert dataset.train[0][1].shape == (8, 12)
    assert dataset.train.crop_size == (5, 5)
    assert load_pairs(tmp_path).train.crop_size == (4, 6)


@pytest.mark.parametrize("name", ["image_size", "crop_size"])
def test_impossible_size_rejected(tmp_path: Path, name: str) -> None:
    split_first(tmp_path)
    with pytest.raises(InvalidValueError, match=f"{name} must be at least 4, got 3"):
        load_pairs(tmp_path, **{name: 3})
    with pytest.raises(InvalidTypeError, match=f"{name} must be an integer, got 8.0"):
        load_pairs(tmp_path, **{name: 8.0})


def test_other_options_are_checked(tmp_path: Path) -> None:
    split_first(tmp_path)
    with pytest.raises(InvalidValueError, match="ignore_index must be at least 0, got -1"):
        load_pairs(tmp_path, ignore_index=-1)
    with pytest.raises(InvalidValueError, match=r"unknown loading 'streaming'; .*Did you mean 'stream'\?"):
        load_pairs(tmp_path, loading="streaming")


@pytest.mark.parametrize(("limit", "held"), [(6 * 3 * 4 * 6, True), (6 * 3 * 4 * 6 - 1, False)])
def test_auto_streams_large_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, held: bool) -> None:
    monkeypatch.setattr(load, "_MEMORY_LIMIT", limit)
    dataset = load_pairs(split_first(tmp_path))
    assert (dataset.train.held, dataset.validation.held) == (held, True)


@pytest.mark.parametrize(("most", "held"), [(6, True), (5, False)])
def test_auto_streams_many_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, held: bool) -> None:
    monkeypatch.setattr(load, "_HELD_PAIRS", most)
    assert load_pairs(split_first(tmp_path)).train.held == held


def test_source_passes_its_options_on(tmp_path: Path) -> None:
    split_first(tmp_path)
    source = PairSource(
        data=str(tmp_path),
        image_size=8,
        loading="stream",
        crop_size=5,
        ignore_index=2,
        foreground="road",
        class_names="sky,road,car",
    )
    train = source.load().train
    assert (train.shape, train.crop_size, train.held) == ((3, 8, 12), (5, 5), False)
    assert (train.meaning.ignored, train.meaning.kept) == (2, ("road",))


# --- Pascal VOC ------------------------------------------------------------------------------------------------------


def write_voc(root: Path, year: int = 2012) -> Path:
    """Write torchvision's layout: palette masks with a border of 255, lists of names."""
    inside = root / VOC[f"voc{year}"]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (inside / folder).mkdir(parents=True)
    palette = [(37 * value) % 256 for value in range(768)]
    for number in range(6):
        Image.new("RGB", (9, 7), (40 * number, 90, 90)).save(inside / f"JPEGImages/{year}_{number}.jpg")
        values = np.full((7, 9), 255, dtype=np.uint8)
        values[1:-1, 1:-1] = 15 + number
        mask = Image.fromarray(values)
        mask.putpalette(palette)
        mask.save(inside / f"SegmentationClass/{year}_{number}.png")
    (inside / "ImageSets/Segmentation/train.txt").write_text("".join(f"{year}_{number}\n" for number in (4, 0, 2)))
    (inside / "ImageSets/Segmentation/val.txt").write_text(f"{year}_5\n{year}_1\n")
    return root


def check_voc(dataset: SegmentationDataset) -> None:
    assert dataset.classes == tuple(VOC_CLASSES.split(","))
    for pairs, chosen in ((dataset.train, (4, 0, 2)), (dataset.validation, (5, 1))):
        assert len(pairs) == len(chosen)
        for index, number in enumerate(chosen):
            image, mask = pairs[index]
            assert abs(int(image[0].float().mean()) - 40 * number) < 3
            assert (mask[1:-1, 1:-1] == 15 + number).all()
            assert (mask[0] == 255).all()
            assert (mask[:, -1] == 255).all()


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_voc_matches_torchvision_layout(tmp_path: Path, loading: str) -> None:
    check_voc(load_pairs(write_voc(tmp_path), loading=loading))


def test_voc_has_21_published_classes() -> None:
    names = VOC_CLASSES.split(",")
    assert len(set(names)) == 21
    assert [names[value] for value in (0, 1, 15, 20)] == ["background", "aeroplane", "person", "tvmonitor"]


@pytest.mark.parametrize("year", [2007, 2008, 2009, 2010, 2011, 2012])
def test_voc_folder_may_hold_any_year(tmp_path: Path, year: int) -> None:
    check_voc(load_pairs(write_voc(tmp_path, year), loading="stream"))


@pytest.mark.parametrize("year", [2007, 2008, 2009, 2010, 2011, 2012])
def test_voc_year_is_found_in_torchvision_folder(year: int) -> None:
    assert VOC[f"voc{year}"] == torchvision.datasets.voc.DATASET_YEAR_DICT[str(year)]["base_dir"]


def test_voc_by_name_is_read_from_download_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path)
    monkeypatch.setattr(voc, "default_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    check_voc(load_pairs("voc2012", loading="stream"))
    with pytest.raises(InvalidValueError, match="unknown foreground class 'persons'"):
        load_pairs("voc2012", foreground="persons")


def test_folder_of_same_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split_first(tmp_path / "voc2012")
    monkeypatch.chdir(tmp_path)
    assert numbers(load_pairs("voc2012").train) == list(range(6))


@pytest.mark.parametrize("by_name", [False, True])
def test_missing_voc_is_downloaded_only_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_name: bool) -> None:
    asked: list[bool] = []

    def offline(*names: str, download: bool, **options: str) -> None:
        asked.append(download)
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", offline)
    monkeypatch.setattr(voc, "default_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    if not by_name:
        (tmp_path / "VOCdevkit/VOC2012").mkdir(parents=True)
    message = "VOCdevkit/VOC2012 could not be downloaded" if by_name else "VOCdevkit/VOC2012 is incomplete or damaged"
    with pytest.raises(DataError, match=rf"{message} \(no network\)\. "):
        load_pairs("voc2012" if by_name else tmp_path)
    assert asked == [by_name]


def test_existing_voc_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation").mkdir(parents=True)
    monkeypatch.setattr(voc, "default_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"VOC2012 is incomplete or damaged \(.*train\.txt"):
        load_pairs("voc2012")


def test_missing_voc_file_is_one_line_with_its_name(tmp_path: Path) -> None:
    missing = write_voc(tmp_path) / "VOCdevkit/VOC2012/SegmentationClass/2012_0.png"
    missing.unlink()
    with pytest.raises(DataError) as caught:
        load_pairs(tmp_path)
    assert str(caught.value).startswith(f"{missing} does not exist")


# --- Errors ----------------------------------------------------------------------------------------------------------


def _without(name: str) -> Callable[[Path], object]:
    return lambda root: (split_first(root) / name).unlink()


def _moved(old: str, new: str, layout: Callable[[Path], Path] = split_first) -> Callable[[Path], object]:
    return lambda root: (layout(root) / old).rename(root / new)


def _second_name(root: Path) -> None:
    image_of(1).save(split_first(root) / "train/images/001.bmp")


def _one_label(root: Path) -> None:
    tables(root)
    labels = pa.array([0, 1, 2])
    table = pa.table({"image": pa.array([content(image_of(number)) for number in range(3)]), "label": labels})
    pq.write_table(table, root / "train.parquet")


def _no_mask_column(root: Path) -> None:
    pq.write_table(pa.table({"image": [content(image_of(0))], "text": ["a"]}), tables(root) / "train.parquet")


def _no_image_column(root: Path) -> None:
    pq.write_table(pa.table({"mask": [content(mask_of(0))], "text": ["a"]}), tables(root) / "train.parquet")


def _no_mask_in_row(root: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [[content(image_of(0)), content(image_of(1))], [content(mask_of(0)), None]]
    arrays = [pa.array([{"bytes": value, "path": None} for value in column], struct) for column in columns]
    pq.write_table(pa.table(dict(zip(("image", "mask"), arrays, strict=True))), tables(root) / "train.parquet")


def _replaced(name: str, image: Image.Image, **options: object) -> Callable[[Path], object]:
    return lambda root: image.save(split_first(root) / name, **options)


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "an image without a mask": (
        _without("train/masks/002.png"),
        ("train/images/002.png has no mask", "expected {root}/train/masks/002.*", "(1 files have no partner)"),
    ),
    "a mask without an image": (
        _without("val/images/011.png"),
        ("val/masks/011.png has no image", "expected {root}/val/images/011.*"),
    ),
    "names that differ": (
        lambda root: [
            file.rename(file.with_stem(f"{file.stem}_L")) for file in (split_first(root) / "train/masks").iterdir()
        ],
        ("train/images/000.png has no mask", "(12 files have no partner)"),
    ),
    "no train split": (_moved("train", "other"), ("{root} has no train split", "found other, val")),
    "nothing": (
        lambda root: root.stat(),
        ("{root}: for images with masks expected ", "a folder with images/ and masks/", "found nothing."),
    ),
    "other folders": (
        lambda root: (root / "pictures").mkdir(),
        ("for images with masks expected voc2007 to voc2012", "found pictures."),
    ),
    "class folders": (
        lambda root: write_files(root / "train/cat", root / "train/dog", range(2)),
        (
            "for images with masks expected",
            "found train (images: 4 two folders below). For images with one label set task to classify.",
        ),
    ),
    "no folder of masks": (_moved("train/masks", "train/other"), ("{root}/train/masks does not exist",)),
    "no folder of images": (_moved("train/images", "train/other"), ("{root}/train/images does not exist",)),
    "no folder of masks undivided": (
        lambda root: write_files(root / "images", root / "other", range(10)),
        ("{root}/masks does not exist",),
    ),
    "empty folders": (
        lambda root: [(root / path).mkdir(parents=True) for path in ("train/images", "train/masks", "val/images")],
        ("{root}/train/images has no image files",),
    ),
    "too few to hold out": (
        lambda root: write_files(root / "images", root / "masks", range(1)),
        ("{root}: 1 image in 1 group", "too few to hold out any for validation"),
    ),
    "two images of one name": (
        _second_name,
        ("train/images/001.png and {root}/train/images/001.bmp have the same name", "Remove one"),
    ),
    "one label an image": (
        _one_label,
        ("train.parquet: expected image files in column 'label', found int64", "set task to classify"),
    ),
    "no column of masks": (
        _no_mask_column,
        ("train.parquet: expected columns 'image' and 'mask'", "image, text; mask is missing"),
    ),
    "no column of images": (
        _no_image_column,
        ("train.parquet: expected columns 'image'", "mask, text; image is missing"),
    ),
    "no rows": (lambda root: write_table(tables(root) / "train.parquet", []), ("train.parquet has no rows",)),
    "no mask in a row": (_no_mask_in_row, ("train.parquet, row 1: no image bytes",)),
    "not parquet": (
        lambda root: (tables(root) / "train.parquet").write_bytes(b"no parquet"),
        ("train.parquet: not a valid parquet file",),
    ),
    "a mask of another size": (
        _replaced("train/masks/003.png", Image.new("L", (5, 4))),
        ("train/masks/003.png: the mask is 5x4", "{root}/train/images/003.png is 6x4"),
    ),
    "a mask of colours": (
        _replaced("val/masks/010.png", image_of(0)),
        ("val/masks/010.png: expected a mask with one class index per pixel",),
    ),
    "a mask as JPEG": (
        _replaced("val/masks/010.png", Image.new("L", (6, 4)), format="JPEG"),
        ("val/masks/010.png: saved as JPEG",),
    ),
    "an empty mask": (
        lambda root: (split_first(root) / "train/masks/000.png").write_bytes(b""),
        ("train/masks/000.png: no image bytes",),
    ),
    "a truncated image": (
        lambda root: (split_first(root) / "train/images/004.png").write_bytes(content(image_of(4))[:50]),
        ("train/images/004.png: truncated or unreadable image",),
    ),
    "one class": (
        lambda root: [Image.new("L", (6, 4)).save(path) for path in split_first(root).glob("*/masks/*")],
        ("expected at least two classes in the masks, got 0",),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_rejected_with_its_name(tmp_path: Path, case: str) -> None:
    break_it, expected = BROKEN[case]
    break_it(tmp_path)
    with pytest.raises(DataError) as caught:
        load_pairs(tmp_path, loading="memory")
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part.format(root=tmp_path) in message


def test_missing_folder_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere' does not exist; for images with masks expected .* voc2012, .* a folder"
    ):
        load_pairs(tmp_path / "nowhere")


def test_one_file_is_divided(tmp_path: Path) -> None:
    tables(tmp_path)
    dataset = load_pairs(tmp_path / "train.parquet")
    assert (len(dataset.train), len(dataset.validation)) == (5, 1)


@pytest.mark.parametrize("layout", ["train/images", "parquet"])
def test_masks_as_labels_error_names_task(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    with pytest.raises(DataError, match="set task to segment"):
        load_dataset(tmp_path)


# --- Many files, and real ones ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 10,000 pairs that show one image; decoders ignore the number at the end of each file."""
    root = tmp_path_factory.mktemp("many")
    for part, make in (("images", image_of), ("masks", mask_of)):
        (root / part).mkdir()
        content = io.BytesIO()
        make(1).save(content, format="PNG")
        for number in range(10_000):
            (root / part / f"{number:05}.png").write_bytes(content.getvalue() + str(number).encode())
    return root


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each file whose content is read, and by each image that is decoded."""
    names: list[str] = []
    read, decode = EncodedFiles.content, Image.open

    def noted(files: EncodedFiles, index: int) -> bytes:
        names.append(files.where(index))
        return read(files, index)

    def decoded(file: io.BytesIO, **options: Any) -> Image.Image:
        names.append("decoded")
        return decode(file, **options)

    monkeypatch.setattr(EncodedFiles, "content", noted)
    monkeypatch.setattr(Image, "open", decoded)
    return names


def test_10000_pairs_open_by_reading_some_masks(many: Path, opened: list[str]) -> None:
    dataset = load_pairs(many, loading="stream")
    assert (len(dataset.train), len(dataset.validation)) == (8000, 2000)
    assert dataset.classes == ("0", "1", "2")
    # masks before the division, one of them again for its classes, headers of the images of both splits, and the first
    # pair for validation for its size
    assert opened.count("decoded") == 256 + 1 + 2 * 128 + 2
    assert len(opened) == 2 * opened.count("decoded")


def test_10000_pairs_with_class_names_open_by_reading_two(
    many: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "_MEMORY_LIMIT", 10_000)
    dataset = load_pairs(many, class_names="a,b,c")
    assert not dataset.train.held
    read = [str(many / "masks/00000.png"), dataset.validation.masks.where(0)]  # for its classes, and for its size
    assert [name for name in opened if "masks" in name] == read


@pytest.fixture(scope="module")
def camvid() -> SegmentationDataset:
    if not CAMVID.exists():
        pytest.skip(f"{CAMVID} is not here")
    return load_pairs(CAMVID, loading="stream", ignore_index=11, class_names=CAMVID_CLASSES)


def test_camvid_has_published_splits_and_11_classes(camvid: SegmentationDataset) -> None:
    assert (len(camvid.train), len(camvid.validation)) == (367, 101)
    assert camvid.train.shape == camvid.validation.shape == (3, 360, 480)
    assert camvid.classes == tuple(CAMVID_CLASSES.split(",")[:11])


def test_camvid_matches_pillow(camvid: SegmentationDataset) -> None:
    table = pq.read_table(CAMVID / "val.parquet")
    for row in range(0, 101, 25):
        image, mask = (Image.open(io.BytesIO(table[name][row].as_py()["bytes"])) for name in ("image", "mask"))
        pixels, classes = camvid.validation[row]
        assert torch.equal(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1))
        values = np.array(mask)
        assert torch.equal(classes, torch.from_numpy(np.where(values == 11, 255, values).astype(np.uint8)))


def test_camvid_classes_without_names_are_numbers(camvid: SegmentationDataset) -> None:
    assert load_pairs(CAMVID, loading="stream", ignore_index=11).classes == tuple(map(str, range(11)))


def test_two_years_in_one_folder_rejected(tmp_path: Path) -> None:
    for year in (2007, 2012):
        write_voc(tmp_path, year)
    with pytest.raises(DataError, match=r"several years: .*VOC2007 and .*VOC2012"):
        load_pairs(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\nc\n", "class 1 has no name"),
        (b"a\nb\na\n", "'a' is given twice"),
        ("stra\u00dfe\nb\nc\n".encode("latin1"), "is not UTF-8 text"),
    ],
)
def test_invalid_class_names_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    (split_first(tmp_path) / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"classes.txt.*{message}"):
        load_pairs(tmp_path)


@pytest.mark.parametrize(("names", "message"), [("a,,b", "class 1 has no name"), ("a,a,b", "'a' is given twice")])
def test_class_names_in_recipe_are_checked(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(DataError, match=f"class_names: {message}"):
        load_pairs(split_first(tmp_path), class_names=names)


def test_class_names_may_begin_with_byte_order_mark(tmp_path: Path) -> None:
    (split_first(tmp_path) / "classes.txt").write_bytes("stra\u00dfe\nb\nc\n\n".encode("utf-8-sig"))
    assert load_pairs(tmp_path).classes == ("stra\u00dfe", "b", "c")
