"""What a label of a table, an array or a parquet file means: several labels in one cell, several numbers, or none."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatewise.data import Reading, load_dataset, load_pairs
from gatewise.errors import DataError
from support.picture_folders import encoded, picture, write_pictures

ANIMALS = ["hot dog|cat", "cat", "hot dog", "dog|cat", "dog"]


def table(root: Path, columns: str, cells: list[str], name: str = "t.csv") -> Path:
    """Write images 0.png, ... and a table with the further cells of each; return the table."""
    write_pictures(root, [f"{n}.png" for n in range(len(cells))])
    (root / name).write_text("\n".join([f"image,{columns}", *[f"{n}.png,{c}" for n, c in enumerate(cells)]]) + "\n")
    return root / name


def arrays(file: Path, count: int = 10, **named: np.ndarray) -> Path:
    images = {f"{name.partition('_')[0]}_images": np.arange(count * 16).reshape(count, 4, 4) % 251 for name in named}
    np.savez(file, **{name: array.astype(np.uint8) for name, array in images.items()}, **named)  # pyright: ignore
    return file


def parquet(file: Path, **columns: list[object]) -> None:
    count = len(next(iter(columns.values()), [])) or 4
    rows = [{"bytes": encoded(number + len(file.name)), "path": None} for number in range(count)]
    pq.write_table(pa.table({"image": rows, **columns}), file)


def test_labels_of_all_splits_are_divided_alike(tmp_path: Path) -> None:
    cells = [f"{ANIMALS[n % 5]},train" for n in range(10)] + [f"{ANIMALS[n % 5]},val" for n in (1, 2, 4)]
    dataset = load_dataset(table(tmp_path, "label,split", cells), labels="classes")
    assert (dataset.classes, dataset.delimiter) == (("cat", "dog", "hot dog"), "|")
    assert dataset.validation.labels.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_labels_that_a_trained_network_knows_are_not_divided(tmp_path: Path) -> None:
    file = table(tmp_path, "label", ["hot dog", "cat", "dog", "dog cat"])
    whole = Reading(validation_split=0.25)
    dataset = load_dataset(file, labels="classes", classes=("cat", "dog", "hot dog"), reading=whole)
    assert dataset.division is not None
    assert sorted(row[1] for row in dataset.division.rows) == ["cat", "dog", "dog|cat", "hot dog"]


def test_labels_that_a_trained_network_does_not_know_are_counted(tmp_path: Path) -> None:
    file = table(tmp_path, "label", ["hot dog", "cat", "dog", "hot dog"])
    dataset = load_dataset(file, labels="classes", classes=("cat", "dog"), delimiter="|")
    assert "2 labels of other classes than classes cat, dog left out (hot dog)" in dataset.notes


def test_several_numbers_of_an_image_in_an_array(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2) / 4
    file = arrays(tmp_path / "set.npz", train_labels=values, val_labels=values)
    dataset = load_dataset(file, labels="number")
    assert dataset.classes == ("value_1", "value_2")
    assert dataset.train.labels.tolist() == values.tolist()
    for labels in ("class", "classes"):
        with pytest.raises(DataError, match=r"\(N, L\) of 0 and 1 .*got \(10, 2\) of type float32.*add --task regress"):
            load_dataset(file, labels=labels)


def test_two_arrays_of_one_split_are_named(tmp_path: Path) -> None:
    labels = np.arange(10) % 2
    file = arrays(tmp_path / "set.npz", train_labels=labels, train_labels_fine=labels)
    with pytest.raises(DataError, match=r"two arrays are the labels of train, in train_images, train_labels, .*Rename"):
        load_dataset(file)


def test_several_numbers_of_an_image_in_a_column_of_lists(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", label=[[n, n / 4] for n in range(8)])
    parquet(tmp_path / "val.parquet", label=[[n, n / 4] for n in range(3)])
    dataset = load_dataset(tmp_path, labels="number")
    assert dataset.classes == ("value_1", "value_2")
    assert dataset.validation.labels.tolist() == [[0, 0], [1, 0.25], [2, 0.5]]
    with pytest.raises(DataError, match=r"row 1 has the label \[1\.0, 0\.25\]\. Add --task regress"):
        load_dataset(tmp_path)
    parquet(tmp_path / "val.parquet", label=[[1.0, 2.0], [1.0]])
    with pytest.raises(DataError, match=r"val\.parquet, row 1: expected 2 numbers as for .*row 0, got \[1\.0\]"):
        load_dataset(tmp_path, labels="number")


def test_several_numbers_of_an_image_are_read_again_from_split_csv(tmp_path: Path) -> None:
    file = table(tmp_path, "x,y", [f"{n / 4},{n}" for n in range(20)])
    dataset = load_dataset(file, reading=Reading(label_column="x,y"), labels="number")
    assert dataset.division is not None
    dataset.division.write(tmp_path)
    again = load_dataset(tmp_path / "split.csv", labels="number", classes=("x", "y"))
    assert again.classes == ("x", "y")
    for one, other in ((dataset.train, again.train), (dataset.validation, again.validation)):
        assert one.labels.tolist() == other.labels.tolist()


def test_whole_numbers_written_as_fractions_are_the_same_classes(tmp_path: Path) -> None:
    """train.csv with 1.0, which pandas writes if another cell is empty, and val.csv with 1 had different classes."""
    table(tmp_path, "label", [f"{n % 2}.0" for n in range(8)], "train.csv")
    table(tmp_path, "label", [f"{n % 2}" for n in range(8)], "val.csv")
    dataset = load_dataset(tmp_path)
    assert (dataset.classes, dataset.validation.labels.tolist()) == (("0", "1"), [0, 1] * 4)
    assert load_dataset(tmp_path / "train.csv", classes=("0.0", "1.0")).classes == ("0.0", "1.0")
    assert load_dataset(tmp_path / "train.csv", class_names="0.0,1.0").classes == ("0.0", "1.0")
    table(tmp_path, "label", [*(f"{n % 2}" for n in range(8)), *["unknown"] * 4], "train.csv")
    table(tmp_path, "label", [*(f"{n % 2}.0" for n in range(8)), *["unknown"] * 4], "val.csv")
    assert load_dataset(tmp_path).classes == ("0", "1", "unknown")
    (tmp_path / "val.csv").unlink()
    table(tmp_path, "label", ["1.0", "1.1", "beta"] * 4, "train.csv")
    assert load_dataset(tmp_path / "train.csv").classes == ("1.0", "1.1", "beta")
    table(tmp_path, "label", ["1.0", "1.1"] * 4, "train.csv")
    with pytest.raises(DataError, match="Add --task regress for numbers"):
        load_dataset(tmp_path / "train.csv")


@pytest.mark.parametrize("cell", ["inf", "1|", "nan"])
def test_label_that_is_no_finite_number_is_named(tmp_path: Path, cell: str) -> None:
    file = table(tmp_path, "value", ["1", "2", "3", cell])
    with pytest.raises(DataError, match=r"row 5: expected a number as label, got "):
        load_dataset(file, labels="number")


@pytest.mark.parametrize("task", ["class", "classes", "number"])
def test_test_rows_without_labels_are_not_used(tmp_path: Path, task: str) -> None:
    cells = [f"{n % 2},{'train' if n < 8 else 'val'}" for n in range(12)] + [",test"] * 3
    dataset = load_dataset(table(tmp_path, "label,split", cells), labels=task)  # pyright: ignore[reportArgumentType]
    assert (len(dataset.train), len(dataset.validation), dataset.test) == (8, 4, None)
    assert "test has no labels and is not used" in dataset.notes


def test_test_images_of_a_parquet_file_without_labels_are_not_used(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", label=[0, 1] * 4)
    parquet(tmp_path / "test.parquet", sex=[0, 1])
    dataset = load_dataset(tmp_path)
    assert dataset.test is None
    assert "test.parquet has no labels and is not used" in dataset.notes


def png(number: int) -> bytes:
    buffer = BytesIO()
    picture(number).convert("L").point([int(value > 99) for value in range(256)]).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(root: Path, layout: str, splits: tuple[str, ...], masked: tuple[str, ...]) -> None:
    """Write two images for each split, and masks for some."""
    for seed, split in enumerate(splits):
        images, masks = (Path(layout.format(split=split, kind=kind)) for kind in ("images", "masks"))
        write_pictures(root, [str(images / f"{n}.png") for n in range(2)], seed=10 * seed)
        for n in range(2 * (split in masked)):
            (root / masks).mkdir(parents=True, exist_ok=True)
            (root / masks / f"{n}.png").write_bytes(png(n))


@pytest.mark.parametrize(
    ("layout", "shown"),
    [("{kind}/{split}", "images/test/"), ("{split}/{kind}", "test/images/"), ("{split}/{kind}", "test/")],
)
def test_test_images_without_masks_are_not_used(tmp_path: Path, layout: str, shown: str) -> None:
    pairs(tmp_path, layout, ("train", "val", "test"), ("train", "val"))
    if shown == "test/":
        for file in (tmp_path / "test/images").iterdir():
            file.rename(tmp_path / "test" / file.name)
        (tmp_path / "test/images").rmdir()
    dataset = load_pairs(tmp_path)
    assert (len(dataset.train), len(dataset.validation), dataset.test) == (2, 2, None)
    assert f"{shown} has no masks and is not used" in dataset.notes


def test_validation_images_without_masks_are_an_error(tmp_path: Path) -> None:
    pairs(tmp_path, "{kind}/{split}", ("train", "val"), ("train",))
    with pytest.raises(DataError, match=r"masks/val does not exist"):
        load_pairs(tmp_path)


def test_test_tables_without_masks_are_not_used(tmp_path: Path) -> None:
    pairs(tmp_path, "{split}/{kind}", ("train", "val"), ("train", "val"))
    write_pictures(tmp_path, ["test/images/0.png"], seed=90)
    for split, row in (("train", "images/0.png,masks/0.png"), ("val", "images/1.png,masks/1.png")):
        (tmp_path / split / "t.csv").write_text(f"image,mask\n{row}\n")
    (tmp_path / "test/t.csv").write_text("image,height\nimages/0.png,7\n")
    dataset = load_pairs(tmp_path)
    assert dataset.test is None
    assert "t.csv has no masks and is not used" in dataset.notes


def test_test_images_of_a_parquet_file_without_masks_are_not_used(tmp_path: Path) -> None:
    for split in ("train", "val"):
        parquet(tmp_path / f"{split}.parquet", mask=[{"bytes": png(n), "path": None} for n in range(2)])
    parquet(tmp_path / "test.parquet")
    dataset = load_pairs(tmp_path)
    assert dataset.test is None
    assert "test.parquet has no labels and is not used" in dataset.notes
