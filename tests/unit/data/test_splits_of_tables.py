"""Splits in tables: a table for each, columns that name them, and the split.csv that is read again."""

from pathlib import Path

import pytest
import torch

from gatewise.data import Dataset, Images, Reading, load_dataset, load_pairs
from gatewise.errors import DataError
from support.picture_folders import picture, write_pictures


def label(number: int) -> str:
    return ("cat", "dog")[number % 2]


def table(file: Path, columns: str, rows: list[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([columns, *rows]) + "\n")
    return file


def metadata(root: Path, split: str, count: int) -> None:
    """Write count images 0.png, ... and their table into the folder of a split."""
    write_pictures(root, [f"{split}/{n}.png" for n in range(count)], seed=100 * len(list(root.glob("*"))))
    table(root / split / "metadata.csv", "file_name,label", [f"{n}.png,{label(n)}" for n in range(count)])


def one_table(root: Path, columns: str, cells: list[str]) -> Path:
    """Write a table with a label and a further cell for each of its images."""
    write_pictures(root, [f"{n}.png" for n in range(len(cells))])
    return table(root / "t.csv", f"image,label,{columns}", [f"{n}.png,{label(n)},{c}" for n, c in enumerate(cells)])


def sizes(dataset: Dataset) -> list[int]:
    return [len(split) for split in (dataset.train, dataset.validation, dataset.test) if split is not None]


def pixels(dataset: Dataset) -> list[torch.Tensor]:
    splits = [split for split in (dataset.train, dataset.validation) if isinstance(split, Images)]
    return [split.pixels for split in splits]


def test_images_of_one_name_in_each_split_are_found_again(tmp_path: Path) -> None:
    metadata(tmp_path / "data", "train", 8)
    metadata(tmp_path / "data", "val", 4)
    dataset = load_dataset(tmp_path / "data")
    assert dataset.division is not None
    assert (dataset.division.folder, dataset.division.rows[0][0]) == (str(tmp_path / "data"), "train/0.png")
    dataset.division.write(tmp_path / "data")
    again = load_dataset(tmp_path / "data" / "split.csv")
    assert [torch.equal(*pair) for pair in zip(pixels(dataset), pixels(again), strict=True)] == [True, True]


def test_paths_out_of_the_folder_are_no_images_in_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{split}/{n}.png" for split in ("train", "val") for n in range(4)])
    rows = [f"../{split}/{n}.png,{label(n)},{split}" for split in ("train", "val") for n in range(4)]
    file = table(tmp_path / "val" / "t.csv", "file_name,label,split", rows)
    dataset = load_dataset(file)
    assert dataset.division is not None
    names = [row[0] for row in dataset.division.rows]
    assert names == [f"../train/{n}.png" for n in range(4)] + [f"{n}.png" for n in range(4)]
    (tmp_path / "train" / "0.png").unlink()
    with pytest.raises(DataError, match=r"row 2: \.\./train/0\.png in no folder of images below .*1 of 8 rows"):
        load_dataset(file)


def test_folders_that_are_not_there_do_not_make_two_images_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{n}.png" for n in range(4)])
    rows = [f"old/{split}/{n}.png,{label(n)},{split}" for split in ("train", "val") for n in range(4)]
    with pytest.raises(DataError, match=r"row 6: old/val/0\.png and old/train/0\.png are both .*--data-root"):
        load_dataset(table(tmp_path / "t.csv", "file_name,label,split", rows))


def test_masks_of_one_name_in_each_split_are_found_again(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        write_pictures(tmp_path, [f"{split}/images/{n}.png" for n in range(3)], seed=100 * seed)
        for n in range(3):
            mask = tmp_path / split / "masks" / f"{n}.png"
            mask.parent.mkdir(exist_ok=True)
            picture(n).convert("L").point([int(value > 99) for value in range(256)]).save(mask)
        table(tmp_path / split / "t.csv", "image,mask", [f"images/{n}.png,masks/{n}.png" for n in range(3)])
    division = load_pairs(tmp_path).division
    assert division is not None
    assert division.rows[-1][:2] == ("val/images/2.png", "val/masks/2.png")


@pytest.mark.parametrize("cell", ["", "UNASSIGNED", "trainval"])
def test_split_column_with_another_cell_is_not_ignored(tmp_path: Path, cell: str) -> None:
    file = one_table(tmp_path, "split", ["train"] * 6 + ["val"] * 4 + ["test"] * 3 + [cell])
    with pytest.raises(DataError, match=rf"t\.csv, row 15: expected train, val or test in column split.*'{cell}'"):
        load_dataset(file)


def test_column_that_an_option_reads_may_have_other_cells(tmp_path: Path) -> None:
    file = one_table(tmp_path, "split", ["train"] * 6 + ["kept"] * 4)
    assert sizes(load_dataset(file, reading=Reading(validation_split="split=kept"))) == [6, 4]


def test_column_named_as_splits_without_splits_is_no_column_of_splits(tmp_path: Path) -> None:
    assert sizes(load_dataset(one_table(tmp_path, "set", ["a", "b"] * 5))) == [8, 2]


def test_flags_of_validation_and_test_are_both_read(tmp_path: Path) -> None:
    flags = ["False,False"] * 6 + ["True,False"] * 4 + ["False,True"] * 2
    assert sizes(load_dataset(one_table(tmp_path, "is_valid,is_test", flags))) == [6, 4, 2]
    with pytest.raises(DataError, match=r"row 14 is for test and for validation by the columns is_valid, is_test"):
        load_dataset(one_table(tmp_path, "is_valid,is_test", [*flags, "True,True"]))
    with pytest.raises(DataError, match=r"row 14: expected true or false in column is_test.*'perhaps'"):
        load_dataset(one_table(tmp_path, "is_valid,is_test", [*flags, "True,perhaps"]))


def test_table_of_one_split_alone_is_not_divided_by_its_column(tmp_path: Path) -> None:
    dataset = load_dataset(one_table(tmp_path, "split", ["test"] * 10))
    assert sizes(dataset) == [8, 2]
    assert "t.csv: all rows are test (column split), so none divides them" in dataset.notes


def test_column_of_splits_in_the_table_of_training_counts(tmp_path: Path) -> None:
    metadata(tmp_path, "test", 4)
    write_pictures(tmp_path, [f"train/{n}.png" for n in range(10)], seed=50)
    rows = [f"{n}.png,{label(n)},{'train' if n < 6 else 'val'}" for n in range(10)]
    table(tmp_path / "train" / "metadata.csv", "file_name,label,split", rows)
    assert sizes(load_dataset(tmp_path)) == [6, 4, 4]
    metadata(tmp_path, "val", 4)
    with pytest.raises(DataError, match=r"val/metadata\.csv and a column of splits both have validation images"):
        load_dataset(tmp_path)


def test_two_tables_of_one_split_are_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"images/{n}.png" for n in range(12)])
    for part in (1, 2):
        rows = [f"{n}.png,{label(n)}" for n in range(6 * part - 6, 6 * part)]
        table(tmp_path / f"train_{part}.csv", "image,label", rows)
    with pytest.raises(DataError, match=r"is train_1\.csv or train_2\.csv the train split\? Rename or move one"):
        load_dataset(tmp_path)
    table(tmp_path / "train_2.csv", "place,height", ["Rome,21"])
    assert sizes(load_dataset(tmp_path)) == [4, 2]


def test_two_folders_of_one_split_with_tables_are_named(tmp_path: Path) -> None:
    metadata(tmp_path, "train1", 4)
    metadata(tmp_path, "train2", 4)
    with pytest.raises(DataError, match=r"is train1 or train2 the train split\?"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("second", ["metadata.jsonl", "labels.csv"])
def test_two_tables_in_the_folder_of_a_split(tmp_path: Path, second: str) -> None:
    metadata(tmp_path, "train", 6)
    metadata(tmp_path, "val", 4)
    first = tmp_path / "val" / ("metadata.csv" if second == "metadata.jsonl" else "notes.csv")
    (tmp_path / "val" / "metadata.csv").rename(first)
    (tmp_path / "val" / second).write_text(
        '{"file_name": "0.png"}' if second == "metadata.jsonl" else first.read_text()
    )
    expected = rf"which table has the labels, val/{second} or val/notes\.csv\?"
    if second == "metadata.jsonl":
        expected = r"which table has the labels, val/metadata\.csv or val/metadata\.jsonl\?"
    with pytest.raises(DataError, match=expected):
        load_dataset(tmp_path)


def test_test_table_without_the_label_of_training_is_not_used(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"images/{n}.png" for n in range(14)])
    table(tmp_path / "train.csv", "image_name,sex,age,target", [f"{n},m,{n},{n % 2}" for n in range(10)])
    test = table(tmp_path / "test.csv", "image_name,sex,age", [f"{n},m,{n}" for n in range(10, 14)])
    dataset = load_dataset(tmp_path)
    assert sizes(dataset) == [8, 2]
    assert "test.csv has no labels and is not used" in dataset.notes
    test.rename(tmp_path / "val.csv")
    with pytest.raises(DataError, match=r"val\.csv: expected the labels in target as in train\.csv, found image_name"):
        load_dataset(tmp_path)


def test_test_table_that_is_left_out_is_not_read(tmp_path: Path) -> None:
    metadata(tmp_path, "train", 10)
    table(tmp_path / "test" / "metadata.csv", "file_name,label", ["lost.png,cat"])
    with pytest.raises(DataError, match=r"no column of file_name, label names images"):
        load_dataset(tmp_path)
    assert sizes(load_dataset(tmp_path, reading=Reading(test_split="none"))) == [8, 2]
    with pytest.raises(DataError, match=r"no column of file_name, label names images"):
        load_dataset(tmp_path, reading=Reading(test_split="none", validation_split="test"))


def test_image_with_rows_in_two_splits_is_named(tmp_path: Path) -> None:
    file = one_table(tmp_path, "split", ["train"] * 6 + ["val"] * 4)
    with file.open("a") as opened:
        opened.write("2.png,dog,val\n")
    with pytest.raises(DataError, match=r"t\.csv, row 12 is for validation, and row 4 with the same image for train"):
        load_dataset(file)
