"""Tables that name images: which column is what, where the files are, and what is said if that is not clear."""

import json
import tarfile
import unicodedata
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatewise.data import Dataset, Reading, load_dataset
from gatewise.errors import DataError, InvalidValueError
from support.picture_folders import by_class, encoded, write_pictures

NAMES = [f"{label}_{n}" for label in ("cat", "dog") for n in range(10)]
CLASSES = ("cat", "dog")


def label_of(name: str) -> str:
    return name.partition("_")[0]


def pictures(folder: Path, below: str = "images") -> Path:
    return write_pictures(folder, [f"{below}/{name}.png" for name in NAMES])


def count(dataset: Dataset) -> int:
    return sum(len(split) for split in (dataset.train, dataset.validation, dataset.test) if split is not None)


def table(folder: Path, name: str, columns: str, row: Callable[[str], str]) -> Path:
    (folder / name).write_text(f"{columns}\n" + "".join(f"{row(n)}\n" for n in NAMES))
    return folder / name


def _csv(root: Path) -> Path:
    return table(pictures(root), "labels.csv", "image,label", lambda n: f"images/{n}.png,{label_of(n)}").parent


def _semicolons(root: Path) -> Path:
    return table(pictures(root), "t.csv", "Bild;class", lambda n: f"{n}.png;{label_of(n)}").parent


def _tsv(root: Path) -> Path:
    return table(pictures(root), "t.tsv", "path\tspecies", lambda n: f"images/{n}.png\t{label_of(n)}").parent


def _ids(root: Path) -> Path:
    return table(pictures(root, "train_images"), "train.csv", "id,breed", lambda n: f"{n},{label_of(n)}").parent


def _no_header(root: Path) -> Path:
    text = "".join(f"images/{name}.png,{label_of(name)}\n" for name in NAMES)
    (pictures(root) / "list.csv").write_text(text)
    return root


def _metadata(root: Path) -> Path:
    rows = [json.dumps({"file_name": f"{name}.png", "label": label_of(name)}) for name in NAMES]
    (pictures(root, "x").joinpath("x/metadata.jsonl")).write_text("\n".join(rows))
    return root / "x"


def _metadata_parquet(root: Path) -> Path:
    columns = {"file_name": [f"images/{name}.png" for name in NAMES], "label": list(map(label_of, NAMES))}
    pq.write_table(pa.table(columns), pictures(root) / "metadata.parquet")
    return root


def _one_hot(root: Path) -> Path:
    hot = {"cat": "1,0", "dog": "0,1"}
    return table(pictures(root), "t.csv", "filename, cat, dog", lambda n: f"{n}.png, {hot[label_of(n)]}").parent


def _competition(root: Path) -> Path:
    table(pictures(root, "train"), "train.csv", "id,label", lambda n: f"{n},{label_of(n)}")
    write_pictures(root, ["test/q1.png", "test/q2.png"], seed=100)
    (root / "test.csv").write_text("id\nq1\nq2\n")
    (root / "sample_submission.csv").write_text("id,label\nq1,cat\nq2,cat\n")
    return root


def _file_alone(root: Path) -> Path:
    return _csv(root) / "labels.csv"


TABLES = {
    "CSV": _csv,
    "CSV with semicolons": _semicolons,
    "TSV": _tsv,
    "ids without suffix": _ids,
    "no header": _no_header,
    "metadata.jsonl": _metadata,
    "metadata.parquet": _metadata_parquet,
    "one column a class": _one_hot,
    "with tables of a competition": _competition,
    "the file itself": _file_alone,
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.situation("tables: images and a table with their labels")
def test_table_gives_images_and_labels(tmp_path: Path, kind: str) -> None:
    dataset = load_dataset(TABLES[kind](tmp_path))
    assert (dataset.classes, count(dataset)) == (CLASSES, 20)
    assert dataset.train.labels.bincount().tolist() == [8, 8]
    assert dataset.division is not None
    for name, label, _, _ in dataset.division.rows:
        assert Path(name).name.startswith(f"{label}_")


@pytest.mark.situation("tables: a table of each split, a column a class")
def test_table_in_each_split_gives_several_labels(tmp_path: Path) -> None:
    for split, number in (("train", 6), ("valid", 3)):
        write_pictures(tmp_path, [f"{split}/{n}.png" for n in range(number)], seed=number)
        rows = "".join(f"{n}.png, {n % 2}, 1, {n // 2 % 2}\n" for n in range(number))
        (tmp_path / split / "_classes.csv").write_text("filename, wet, alive, red\n" + rows)
    dataset = load_dataset(tmp_path, labels="classes")
    assert (dataset.classes, len(dataset.train), len(dataset.validation)) == (("wet", "alive", "red"), 6, 3)
    assert dataset.train.labels[3].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(DataError, match=r"_classes\.csv, row 3 has the labels 'wet alive'\. Add --task multilabel"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("delimiter", ["|", ";", " "])
def test_cells_with_several_labels_are_divided(tmp_path: Path, delimiter: str) -> None:
    several = {"cat": f"cat{delimiter}pet", "dog": "pet"}
    pictures(tmp_path)
    text = "".join(f'{n}.png,"{several[label_of(n)]}"\n' for n in NAMES[:-1]) + "dog_9.png,\n"
    (tmp_path / "t.csv").write_text("image,tags\n" + text)
    dataset = load_dataset(tmp_path, labels="classes")
    assert dataset.classes == ("cat", "pet")
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 20
    total = dataset.train.labels.sum(0) + dataset.validation.labels.sum(0)
    assert total.tolist() == [10.0, 19.0]


@pytest.mark.situation("tables: a row for each label of an image")
def test_rows_of_one_image_are_put_together(tmp_path: Path) -> None:
    rows = "".join(f"{name}.png,{label_of(name)}\n{name}.png,pet\n" for name in NAMES)
    pictures(tmp_path).joinpath("t.csv").write_text("image,label\n" + rows)
    dataset = load_dataset(tmp_path, labels="classes")
    assert (dataset.classes, count(dataset)) == (("cat", "dog", "pet"), 20)
    assert (dataset.train.labels.sum(1) == 2).all()
    with pytest.raises(DataError, match=r"t\.csv, row 2 has the labels 'cat pet'\. Add --task multilabel"):
        load_dataset(tmp_path)


def test_numbers_are_read_with_the_name_of_their_column(tmp_path: Path) -> None:
    table(pictures(tmp_path), "v.csv", "file,score", lambda n: f"{n}.png,{int(n[-1]) / 4}")
    dataset = load_dataset(tmp_path, labels="number")
    assert dataset.classes == ("score",)
    assert sorted({value for (value,) in dataset.train.labels.tolist()}) == [n / 4 for n in range(10)]
    with pytest.raises(DataError, match=r"v\.csv, row 3 has the label 0\.25\. Add --task regress for numbers"):
        load_dataset(tmp_path)


def test_several_columns_of_numbers(tmp_path: Path) -> None:
    table(pictures(tmp_path), "v.csv", "file,x,y,z", lambda n: f"{n}.png,{n[-1]},0.5,7")
    dataset = load_dataset(tmp_path, reading=Reading(label_column="x,y"), labels="number")
    assert dataset.classes == ("x", "y")
    assert dataset.train.labels.shape[1] == 2


@pytest.mark.parametrize(("column", "values"), [("split", ("train", "val")), ("is_valid", ("False", "True"))])
@pytest.mark.situation("tables: a column of splits")
def test_column_of_splits_is_used(tmp_path: Path, column: str, values: tuple[str, str]) -> None:
    def row(name: str) -> str:
        return f"{name}.png,{label_of(name)},{values[name.endswith(('8', '9'))]}"

    table(pictures(tmp_path), "t.csv", f"image,label,{column}", row)
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.validation)) == (16, 4)
    assert dataset.division is not None
    assert dataset.division.rule == {}


@pytest.mark.situation("tables: a column of folds")
def test_value_of_a_column_can_be_validation(tmp_path: Path) -> None:
    table(pictures(tmp_path), "t.csv", "image,label,fold", lambda n: f"{n}.png,{label_of(n)},{int(n[-1]) % 5}")
    dataset = load_dataset(tmp_path, reading=Reading(validation_split="fold=3"))
    assert (len(dataset.train), len(dataset.validation)) == (16, 4)
    assert dataset.division is not None
    assert {name for name, _, split, _ in dataset.division.rows if split == "validation"} == {
        f"images/{label}_{n}.png" for label in CLASSES for n in (3, 8)
    }
    with pytest.raises(DataError, match=r"0 of 20 rows have fold=7; .* Values of fold: 0, 1, 2, 3, 4"):
        load_dataset(tmp_path, reading=Reading(validation_split="fold=7"))


@pytest.mark.situation("tables: a column of patients")
def test_column_can_name_groups(tmp_path: Path) -> None:
    table(
        pictures(tmp_path),
        "t.csv",
        "image,label,patient",
        lambda n: f"{n}.png,{label_of(n)},{label_of(n)}{n[-1] in '01'}",
    )
    dataset = load_dataset(tmp_path, reading=Reading(group="patient"))
    assert dataset.division is not None
    assert {name for name, _, split, _ in dataset.division.rows if split == "validation"} == {
        f"images/{label}_{n}.png" for label in CLASSES for n in (0, 1)
    }
    assert dataset.division.groups is not None
    assert len(dataset.division.groups.unique()) == 2


def test_metadata_wins_over_folder_names(tmp_path: Path) -> None:
    by_class(tmp_path, {"a": 5, "b": 5})
    rows = "".join(f"{f}/{n}.png,{'even' if n % 2 else 'odd'}\n" for f in "ab" for n in range(5))
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + rows)
    assert load_dataset(tmp_path).classes == ("even", "odd")


def test_folder_names_win_over_another_table_with_a_note(tmp_path: Path) -> None:
    by_class(tmp_path, {"a": 5, "b": 5})
    rows = "".join(f"{f}/{n}.png,{f},{n % 2}\n" for f in "ab" for n in range(5))
    (tmp_path / "info.csv").write_text("file_name,label,sharp\n" + rows)
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("a", "b")
    assert any(note.startswith("info.csv not read: the names of the folders") for note in dataset.notes)
    assert load_dataset(tmp_path, reading=Reading(label_column="sharp")).classes == ("0", "1")


def test_labels_in_two_places_are_an_error(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"part_{n % 2}/ISIC_{n}.png" for n in range(10)])
    rows = "".join(f"ISIC_{n},{'nv' if n < 5 else 'mel'}\n" for n in range(10))
    (tmp_path / "info.csv").write_text("image_id,dx\n" + rows)
    with pytest.raises(DataError, match=r"are the labels in info\.csv \(dx: mel, nv\) or .*Add --label-column dx"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, reading=Reading(label_column="dx")).classes == ("mel", "nv")


# What stops


def _two_columns(root: Path) -> None:
    table(pictures(root), "labels.csv", "image,kind,colour", lambda n: f"{n}.png,{label_of(n)},{n[-1]}")


def _missing(root: Path) -> None:
    _csv(root)
    for number in (3, 5, 7, 8):
        (root / f"images/cat_{number}.png").unlink()


def _twice(root: Path) -> None:
    table(pictures(root), "labels.csv", "image,label", lambda n: f"{n}.png,{label_of(n)}")
    write_pictures(root, ["more/cat_4.png"])


STOPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no label column": (
        _two_columns,
        "labels.csv: which column is the class, kind or colour? Add --label-column kind",
    ),
    "missing files": (
        _missing,
        "labels.csv, row 5: images/cat_3.png, images/cat_5.png, images/cat_7.png, ... in no folder of images below",
    ),
    "ambiguous name": (_twice, "labels.csv, row 6: cat_4.png is "),
    "several labels": (
        lambda f: table(
            pictures(f), "l.csv", "image,label", lambda n: f"{n}.png,{'cat dog' if n == 'cat_0' else label_of(n)}"
        ),
        "l.csv, row 2 has the labels 'cat dog'. Add --task multilabel, or choose --label-column.",
    ),
    "a number each": (
        lambda f: table(pictures(f), "l.csv", "image,label", lambda n: f"{n}.png,{n}x"),
        "20 classes for 20 images. Is it the wrong --label-column?",
    ),
    "no label": (
        lambda f: table(
            pictures(f), "l.csv", "image,label", lambda n: f"{n}.png,{'' if n == 'cat_0' else label_of(n)}"
        ),
        "l.csv, row 2 has no label. Add one, or choose --label-column.",
    ),
    "ragged rows": (
        lambda f: table(pictures(f), "l.csv", "image,label", lambda n: f"{n}.png,a,b"),
        "l.csv, row 2: 3 cells, the header has 2.",
    ),
    "two tables": (
        lambda f: [_csv(f), table(f, "b.csv", "image,label", lambda n: f"{n}.png,{label_of(n)}")],
        "which table has the labels, b.csv or labels.csv? Give it as --data.",
    ),
    "elsewhere": (
        lambda f: table(f, "l.csv", "image,label", lambda n: f"{n}.png,{label_of(n)}"),
        "Give the folder of the images as --data-root, or --image-column.",
    ),
}


@pytest.mark.parametrize("case", STOPS)
@pytest.mark.situation("tables: what cannot be read says so in one line")
def test_bad_table_is_one_line(tmp_path: Path, case: str) -> None:
    write, expected = STOPS[case]
    write(tmp_path)
    file = tmp_path if case == "two tables" else next(tmp_path.glob("*.csv"))
    with pytest.raises(DataError) as caught:
        load_dataset(file)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cell", ["images/{}.png", "./images/{}.png", "{}.PNG", "photos/images/{}.png", "images\\{}.png", "{}"]
)
def test_files_are_found_as_they_are_written(tmp_path: Path, cell: str) -> None:
    table(pictures(tmp_path), "t.csv", "what,kind", lambda n: f"{cell.format(n)},{label_of(n)}")
    assert count(load_dataset(tmp_path)) == 20


@pytest.mark.parametrize("data", [".", "t.csv"])
@pytest.mark.parametrize("cell", ["images/{}.png", "{}.png"])
def test_files_are_found_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, cell: str
) -> None:
    """The first two letters of each path were cut off."""
    table(pictures(tmp_path), "t.csv", "image,kind", lambda n: f"{cell.format(n)},{label_of(n)}")
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset(data)
    assert count(dataset) == 20
    assert not any("without a row" in note for note in dataset.notes)
    assert dataset.division is not None
    assert dataset.division.rows[0][0].startswith("images/")


@pytest.mark.parametrize("cell", ["{}.png", "photos/images/{}.PNG", "{}"])
@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_accents_in_another_form_are_the_same_name(tmp_path: Path, cell: str, in_table: Literal["NFC", "NFD"]) -> None:
    """An archive made on a Mac has e and an accent where a table has one letter: no column named images."""
    letter = unicodedata.lookup("LATIN SMALL LETTER E WITH ACUTE")
    other: Literal["NFC", "NFD"] = "NFD" if in_table == "NFC" else "NFC"
    write_pictures(tmp_path, [unicodedata.normalize(other, f"images/{letter}{n}.png") for n in range(20)])
    rows = "".join(f"{cell.format(f'{letter}{n}')},{n % 2}\n" for n in range(20))
    (tmp_path / "t.csv").write_text(unicodedata.normalize(in_table, f"image,label\n{rows}"), encoding="utf-8")
    assert count(load_dataset(tmp_path)) == 20


def test_cells_may_have_line_breaks(tmp_path: Path) -> None:
    table(pictures(tmp_path), "t.csv", "image,text,label", lambda n: f'{n}.png,"two\nlines",{label_of(n)}')
    assert count(load_dataset(tmp_path)) == 20


def test_numbered_files_are_told_from_numbered_labels(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"images/{n}.png" for n in range(20)])
    (tmp_path / "t.csv").write_text("digit,pic\n" + "".join(f"{n % 2},{n}\n" for n in range(20)))
    dataset = load_dataset(tmp_path)
    assert (dataset.classes, count(dataset)) == (("0", "1"), 20)


@pytest.mark.parametrize("other", ["", "index", "nr"])
def test_names_of_files_win_over_row_numbers(tmp_path: Path, other: str) -> None:
    """The labels went to the images that are numbered as the rows."""
    write_pictures(tmp_path, [f"{n}.png" for n in range(20)])
    rows = "".join(f"{n},{7 * n % 20}.png,{'odd' if n % 2 else 'even'}\n" for n in range(20))
    (tmp_path / "t.csv").write_text(f"{other},photo,label\n{rows}")
    division = load_dataset(tmp_path).division
    assert division is not None
    assert {name: label for name, label, _, _ in division.rows} == {
        f"{n}.png": "odd" if n % 2 else "even" for n in range(20)
    }


@pytest.mark.parametrize(
    ("columns", "cells", "named"),
    [
        ("id,photo", "{},{}.png", "photo or id"),
        ("before,after", "{}.png,{}.png", "before or after"),
        ("nr,rank", "{},{}", "nr or rank"),
    ],
)
def test_two_columns_that_name_other_images_are_an_error(tmp_path: Path, columns: str, cells: str, named: str) -> None:
    write_pictures(tmp_path, [f"{n}.png" for n in range(20)])
    rows = "".join(f"{cells.format(n, 7 * n % 20)},{n % 2}\n" for n in range(20))
    (tmp_path / "t.csv").write_text(f"{columns},label\n{rows}")
    with pytest.raises(DataError, match=rf"t\.csv: which column names the images, {named}\? Add --image-column"):
        load_dataset(tmp_path)
    assert count(load_dataset(tmp_path, reading=Reading(image_column=columns.partition(",")[2]))) == 20


def test_column_that_names_more_images_wins_over_a_usual_name(tmp_path: Path) -> None:
    """Half of the ids were numbers of other images, so the other half was advised to be left out."""
    write_pictures(tmp_path, [f"{n}.png" for n in range(10, 30)])
    (tmp_path / "t.csv").write_text("id,photo,label\n" + "".join(f"{n},{n + 10},{n % 2}\n" for n in range(20)))
    dataset = load_dataset(tmp_path)
    assert dataset.division is not None
    assert {name: label for name, label, _, _ in dataset.division.rows} == {
        f"{n}.png": str(n % 2) for n in range(10, 30)
    }


@pytest.mark.parametrize(
    "names", [("golden retriever", "poodle"), ("red car", "red bus"), ("tench, Tinca", "goldfish")]
)
def test_class_names_of_several_words_are_one_label(tmp_path: Path, names: tuple[str, str]) -> None:
    table(pictures(tmp_path), "t.csv", "image,label", lambda n: f'{n}.png,"{names[label_of(n) == "dog"]}"')
    assert load_dataset(tmp_path).classes == tuple(sorted(names))


def test_whole_numbers_saved_as_fractions_are_classes(tmp_path: Path) -> None:
    rows = [json.dumps({"image": f"{name}.png", "label": float(label_of(name) == "dog")}) for name in NAMES]
    pictures(tmp_path).joinpath("t.jsonl").write_text("\n".join(rows))
    assert load_dataset(tmp_path).classes == ("0", "1")


def test_options_of_columns_need_columns(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"label_column is 'x', but .* is read as a folder with CLASS/"):
        load_dataset(by_class(tmp_path, {"a": 3, "b": 3}), reading=Reading(label_column="x"))


def test_rows_without_files_can_be_left_out(tmp_path: Path) -> None:
    _missing(tmp_path)
    dataset = load_dataset(tmp_path, reading=Reading(on_broken="skip"))
    assert count(dataset) == 16
    assert any("4 of 20 rows have no file and are left out" in note for note in dataset.notes)


def test_images_without_a_row_are_counted(tmp_path: Path) -> None:
    write_pictures(_csv(tmp_path), ["images/extra.png"])
    assert "1 image without a row in labels.csv not used" in load_dataset(tmp_path).notes


def test_unknown_column_is_corrected(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"unknown column of labels\.csv 'labels_'.*Did you mean 'label'\?"):
        load_dataset(_csv(tmp_path), reading=Reading(label_column="labels_"))


# Arrays, shards and the hub


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train_images", "train_labels", "val_images", "val_labels"), (20, 10)),
        (("x_train", "y_train", "x_val", "y_val"), (20, 10)),
        (("images", "labels"), (16, 4)),
    ],
)
@pytest.mark.situation("arrays: images and labels in one .npz")
def test_arrays_are_read(tmp_path: Path, names: tuple[str, ...], sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for index in range(0, len(names), 2):
        count = (20, 10)[index // 2]
        arrays[names[index]] = generator.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        arrays[names[index + 1]] = np.arange(count).reshape(-1, 1) % 2
    np.savez(tmp_path / "set.npz", **arrays)
    for source in (tmp_path, tmp_path / "set.npz"):
        dataset = load_dataset(source)
        assert (dataset.channels, dataset.size, dataset.classes) == (3, (6, 5), ("0", "1"))
        assert (len(dataset.train), len(dataset.validation)) == sizes


def test_arrays_of_images_without_labels_are_named(tmp_path: Path) -> None:
    """They were left out without a word, also those for validation."""
    images, labels = np.random.default_rng(0).integers(0, 256, (20, 6, 6), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels, test_images=images)
    assert "test has no labels and is not used" in load_dataset(tmp_path).notes
    np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels, val_images=images)
    with pytest.raises(DataError, match=r": validation has images and no labels\. Add validation_labels\."):
        load_dataset(tmp_path)


def test_arrays_of_other_types_are_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((4, 6, 6)), labels=np.arange(4) % 2)
    with pytest.raises(DataError, match=r"of type uint8, got \(4, 6, 6\) of type float64"):
        load_dataset(tmp_path)
    np.savez(tmp_path / "set.npz", pixels=np.zeros((4, 6, 6)))
    with pytest.raises(DataError, match=r"expected arrays train_images and train_labels .* found pixels"):
        load_dataset(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_shard(file: Path, numbers: range, suffix: str, label: Callable[[int], str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as shard:
        for number in numbers:
            for name, content in (
                (f"{number:03}.png", encoded(number)),
                (f"{number:03}.{suffix}", label(number).encode()),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                shard.addfile(entry, BytesIO(content))


@pytest.mark.parametrize(
    ("suffix", "label", "classes"),
    [
        ("cls", lambda n: str(n % 2), ("0", "1")),
        ("json", lambda n: json.dumps({"label": CLASSES[n % 2]}), CLASSES),
    ],
    ids=["cls", "json"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.situation("shards: tar files of WebDataset")
def test_shards_are_read(
    tmp_path: Path, cache: None, suffix: str, label: Callable[[int], str], classes: tuple[str, ...]
) -> None:
    write_shard(tmp_path / "set/train-000000.tar", range(8), suffix, label)
    write_shard(tmp_path / "set/train-000001.tar", range(8, 12), suffix, label)
    write_shard(tmp_path / "set/val-000000.tar", range(12, 16), suffix, label)
    dataset = load_dataset(tmp_path / "set")
    assert (dataset.classes, len(dataset.train), len(dataset.validation)) == (classes, 12, 4)
    assert dataset.train.labels.tolist() == [n % 2 for n in range(12)]
    divided = load_dataset(f"{tmp_path}/set/train-{{000000..000001}}.tar")  # in a folder whose name begins with test
    assert (len(divided.train), len(divided.validation)) == (10, 2)


def hub_set(folder: Path, labels: list[object], splits: tuple[str, ...]) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    for split in splits:
        rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(len(labels))], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-00000.parquet")
    return f"hub:{folder}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.situation("hub: labels are text, and there is no validation split")
def test_text_labels_of_the_hub_become_classes(tmp_path: Path, cache: None) -> None:
    source = hub_set(tmp_path / "set", ["dog", "cat"] * 5, ("train",))
    dataset = load_dataset(source)
    assert (dataset.classes, len(dataset.train), len(dataset.validation)) == (CLASSES, 8, 2)
    assert f"{source} has train only: 2 of 10 images" in dataset.notes[0]


@pytest.mark.situation("tables: paths outside of the folder of the table")
def test_paths_may_leave_the_folder_of_the_table_or_begin_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_class(tmp_path / "photos", {"cat": 5, "dog": 5})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tables").mkdir()
    for start in ("../photos", "photos"):
        rows = [f"{start}/{name}/{n}.png,{name}" for name in ("cat", "dog") for n in range(5)]
        (tmp_path / "tables/labels.csv").write_text("\n".join(["image,label", *rows]) + "\n")
        for table in (tmp_path / "tables/labels.csv", "tables/labels.csv"):
            division = load_dataset(table).division
            assert division is not None
            assert {name for name, *_ in division.rows} == {
                f"../photos/{name}/{n}.png" for name in ("cat", "dog") for n in range(5)
            }


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_spreadsheets_of_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    by_class(tmp_path, {"bilder": 10})
    rows = [f"bilder/{n}.png;{'süß' if n % 2 else 'herb'}" for n in range(10)]
    (tmp_path / "tabelle.csv").write_text("\r\n".join(["Datei;Klasse", *rows]), encoding=encoding, newline="")
    assert load_dataset(tmp_path).classes == ("herb", "süß")


def test_table_of_an_unknown_encoding_says_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label\n1.png,süß\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"a\.csv is not UTF-8 text \(.*\)\. Save it as UTF-8 \(in Excel"):
        load_dataset(tmp_path / "a.csv")


def test_column_of_folds_is_no_label(tmp_path: Path) -> None:
    by_class(tmp_path, {"img": 20})
    rows = [f"img/{n}.png,{n % 2},{n % 5}" for n in range(20)]
    (tmp_path / "folds.csv").write_text("\n".join(["path,y,fold", *rows]))
    assert len(load_dataset(tmp_path, reading=Reading(validation_split="fold=0")).validation) == 4
