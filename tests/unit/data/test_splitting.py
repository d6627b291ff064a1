"""The rule that divides images: deterministic, stratified, never through a group; split.csv; leaks."""

import csv
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewise.data import Reading, load_dataset
from gatewise.data.division import SPLIT_FILE
from gatewise.data.grouping import copies, frames_of_clips, joined, same_bytes
from gatewise.data.splitting import held_out, strata_of
from gatewise.errors import DataError, InvalidValueError
from support.picture_folders import by_class, write_pictures

TEN = {"cat": 10, "dog": 10}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def split(folder: Path, **reading: object) -> dict[str, str]:
    """Return the split of each file of a data set."""
    division = load_dataset(folder, reading=Reading(**reading)).division
    assert division is not None
    return {name: which for name, _, which, _ in division.rows}


# The rule

cases = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=60)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([0.1, 0.2, 0.5]))
def test_no_group_is_divided_and_each_class_keeps_a_group_to_train_on(
    images: list[tuple[int, int]], fraction: float
) -> None:
    """An image is (class, group)."""
    keys = [str(number) for number in range(len(images))]
    groups = [group for _, group in images]
    chosen = set(held_out(keys, groups, [(label,) for label, _ in images], fraction, 0))
    assert {groups[index] for index in chosen}.isdisjoint(groups[i] for i in range(len(images)) if i not in chosen)
    assert {label for label, _ in images} == {images[i][0] for i in range(len(images)) if i not in chosen}


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 1), (5, 1), (12, 2), (13, 3), (100, 20)])
def test_fraction_of_each_class_is_held_out(count: int, expected: int) -> None:
    strata = [(0,)] * count + [(1,)] * 50
    chosen = held_out([str(n) for n in range(count + 50)], list(range(count + 50)), strata, 0.2, 0)
    assert Counter(strata[index] for index in chosen) == Counter({(0,): expected, (1,): 10})


@pytest.mark.parametrize(("each", "expected"), [(7, {1: 60, 2: 40}), (8, {1: 40, 2: 60})])
def test_fraction_of_all_images_is_held_out(each: int, expected: dict[int, int]) -> None:
    """Of 100 classes with 1.4 or 1.6 images to hold out, so many get a second that the sum is right."""
    strata = [(n % 100,) for n in range(100 * each)]
    chosen = held_out([str(n) for n in range(len(strata))], list(range(len(strata))), strata, 0.2, 0)
    assert Counter(Counter(strata[index] for index in chosen).values()) == expected


@pytest.mark.situation("splits: several labels for an image")
@pytest.mark.parametrize("together", [False, True], ids=["each label alone", "labels that come together"])
def test_fraction_holds_for_images_and_each_of_several_labels(together: bool) -> None:
    drawn = random.Random(1)
    rates = (0.6, 0.3, 0.2, 0.2, 0.1)
    labels = [{label for label, rate in enumerate(rates) if drawn.random() < rate} for _ in range(1000)]
    strata = [tuple(own | {0, 1} if together and 4 in own else own) or (-1,) for own in labels]
    chosen = held_out([str(n) for n in range(1000)], list(range(1000)), strata, 0.2, 0)
    assert len(chosen) == 200
    total, held = (Counter(s for n in numbers for s in strata[n]) for numbers in (range(1000), chosen))
    assert all(abs(held[label] - 0.2 * count) <= 0.1 * 0.2 * count for label, count in total.items())


def test_groups_are_held_out_whole_near_the_fraction() -> None:
    groups = [index // 10 for index in range(200)]
    chosen = held_out([f"{n:03}" for n in range(200)], groups, [(n % 2,) for n in range(200)], 0.2, 0)
    assert len(chosen) == 40
    assert all(count == 10 for count in Counter(groups[index] for index in chosen).values())


def test_new_files_move_few_old_ones() -> None:
    def of(count: int) -> set[int]:
        return set(held_out([str(n) for n in range(count)], list(range(count)), [(0,)] * count, 0.2, 0))

    old, new = of(1000), of(1010)
    assert len(old - new) <= 10
    assert len(new) == 202


def test_numbers_are_divided_by_tenths() -> None:
    strata = strata_of([(float(n),) for n in range(100)], "number")
    assert Counter(strata) == Counter({(tenth,): 10 for tenth in range(10)})


@pytest.mark.parametrize(("count", "fraction", "expected"), [(20, 0.2, 4), (30, 0.1, 3), (45, 0.2, 9), (4, 0.1, 1)])
def test_fraction_of_few_numbers_is_held_out_of_all_their_range(
    tmp_path: Path, count: int, fraction: float, expected: int
) -> None:
    """A tenth of few numbers had one image held out of two or three: half of all."""
    write_pictures(tmp_path, [f"{number}.png" for number in range(count)])
    rows = [f"{number}.png,{number}.5" for number in range(count)]
    (tmp_path / "ages.csv").write_text("\n".join(["file,age", *rows]))
    reading = Reading(validation_split=fraction)
    held = load_dataset(tmp_path / "ages.csv", reading=reading, labels="number").validation.labels.flatten().tolist()
    assert len(held) == expected
    assert {int(number) * expected // count for number in held} == set(range(expected))


def test_images_that_belong_together_through_others_are_one_group() -> None:
    assert joined(5, [[0, 1], [1, 2]], [None, None, "p", "p", "q"]) == [0, 0, 0, 0, 4]
    assert joined(4, [[0, 2], [1, 3], [2, 3]], None) == [0, 0, 0, 0]


@pytest.mark.situation("splits: the same split on every machine")
def test_division_depends_on_relative_paths_and_seed_only(tmp_path: Path) -> None:
    by_class(tmp_path / "a", TEN)
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere/b")
    assert split(tmp_path / "a") == split(tmp_path / "elsewhere/b")
    assert split(tmp_path / "a") != split(tmp_path / "a", split_seed=1)
    held = [name for name, which in split(tmp_path / "a").items() if which == "validation"]
    assert held == ["cat/0.png", "cat/1.png", "dog/1.png", "dog/9.png"]  # on any machine, for ever


@pytest.mark.parametrize(("fraction", "expected"), [(0.5, 10), ("0.5", None), (0.1, 2)])
def test_fraction_can_be_chosen(tmp_path: Path, fraction: float | str, expected: int | None) -> None:
    by_class(tmp_path, TEN)
    if expected is None:
        with pytest.raises(DataError, match=r"has no split '0\.5'"):
            split(tmp_path, validation_split=fraction)
    else:
        assert Counter(split(tmp_path, validation_split=fraction).values())["validation"] == expected


def test_test_images_can_be_held_out_too(tmp_path: Path) -> None:
    by_class(tmp_path, {"cat": 20, "dog": 20})
    counts = Counter(split(tmp_path, test_split=0.25, validation_split=0.25).values())
    assert counts == {"train": 20, "validation": 10, "test": 10}


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1])
def test_impossible_fraction_is_rejected(value: float) -> None:
    with pytest.raises(InvalidValueError, match="validation_split must be a fraction between 0 and 1"):
        Reading(validation_split=value)


@pytest.mark.parametrize("value", ["none", None])
def test_validation_images_cannot_be_left_out(value: Any) -> None:
    """`--validation-split none`, a word of `--test-split`, ended in a KeyError."""
    with pytest.raises(InvalidValueError, match="validation images are needed"):
        Reading(validation_split=value)


def test_fractions_that_leave_nothing_to_train_on_are_rejected() -> None:
    with pytest.raises(
        InvalidValueError, match=r"validation_split 0\.5 and test_split 0\.5 leave no images to train on"
    ):
        Reading(validation_split=0.5, test_split=0.5)


def test_fraction_beside_a_given_split_is_said_not_to_be_used(tmp_path: Path) -> None:
    by_class(tmp_path, {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    notes = load_dataset(tmp_path, reading=Reading(validation_split=0.3)).notes
    assert "val/ is the validation split; the fraction 0.3 is not used" in notes


# Groups


@pytest.mark.situation("splits: several images of one patient")
def test_expression_over_the_path_names_groups(tmp_path: Path) -> None:
    names = [f"{label}/patient{patient}_{n}.png" for label in TEN for patient in range(6) for n in range(3)]
    write_pictures(tmp_path, names)
    of = split(tmp_path, group=r"(patient\d+)_")
    for patient in range(6):
        assert len({which for name, which in of.items() if f"patient{patient}_" in name}) == 1
    assert Counter(of.values())["validation"] == 6


@pytest.mark.situation("splits: the same file twice")
def test_same_bytes_stay_together(tmp_path: Path) -> None:
    by_class(tmp_path, TEN)
    for number in range(10):
        shutil.copy(tmp_path / f"cat/{number}.png", tmp_path / f"cat/copy{number}.png")
    of = split(tmp_path)
    assert all(of[f"cat/{number}.png"] == of[f"cat/copy{number}.png"] for number in range(10))
    assert "validation" in of.values()


def test_files_with_equal_ends_are_compared_whole(tmp_path: Path) -> None:
    contents = [b"a" * 1024 + bytes([middle]) * 9 + b"z" * 1024 for middle in (1, 2, 1)] + [
        b"short",
        b"short",
        b"other",
    ]
    files = [str(tmp_path / str(number)) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        Path(file).write_bytes(content)
    assert same_bytes([None, *files]) == [[1, 3], [4, 5]]
    assert same_bytes(files, most=len(files)) == [[0, 2], [3, 4]]
    assert same_bytes(files, most=len(files) - 1) is None


def test_files_with_different_ends_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(tmp_path / name) for name in "ab"]
    for file in files:
        Path(file).write_bytes(bytes(3000) + file[-1].encode())
    monkeypatch.setattr("gatewise.data.grouping._checksum", lambda file: pytest.fail(f"{file} is read"))
    assert same_bytes(files) == []


def test_files_that_are_too_many_to_compare_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_class(tmp_path, TEN)
    monkeypatch.setattr("gatewise.data.division.same_bytes", lambda _: None)
    notes = load_dataset(tmp_path).notes
    assert any(
        "files have the size of another and are not compared: images may be there twice" in note for note in notes
    )


@pytest.mark.situation("splits: augmented copies of Roboflow")
def test_roboflow_copies_stay_together(tmp_path: Path) -> None:
    names = [f"{label}/{n}_jpg.rf.{h}.png" for label in TEN for n in range(10) for h in ("a1b2", "c3d4", "e5f6")]
    write_pictures(tmp_path, names)
    of = split(tmp_path)
    for label in TEN:
        for number in range(10):
            assert len({which for name, which in of.items() if name.startswith(f"{label}/{number}_jpg")}) == 1


def test_copies_of_two_labels_are_two_pictures() -> None:
    keys = ["cat/1.rf.a1.png", "cat/1.rf.b2.png", "dog/1.rf.c3.png"]
    assert copies(keys, ["cat", "cat", "dog"]) == [[0, 1]]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("(nothing)", r"group '\(nothing\)' is found in no path, such as cat/0\.png"),
        ("cat", "expected a column, or a regular expression with one pair of parentheses"),
        ("(", r"group '\(' is no regular expression"),
    ],
)
def test_wrong_group_is_explained(tmp_path: Path, group: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        split(by_class(tmp_path, TEN), group=group)


def test_group_in_two_given_splits_is_an_error(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{s}/{c}/p{n}_{s}.png" for s in ("train", "val") for c in TEN for n in range(2)])
    with pytest.raises(DataError, match=r"group 'p0' has images in train and validation\. Move them, or merge"):
        split(tmp_path, group=r"(p\d)_")


def test_frames_of_clips_are_hinted_at(tmp_path: Path) -> None:
    names = [f"{label}/clip{clip}_{n:04}.png" for label in TEN for clip in range(2) for n in range(12)]
    notes = load_dataset(write_pictures(tmp_path, names)).notes
    assert any("names such as clip0_... look like frames of one clip" in note for note in notes)
    assert frames_of_clips([f"n0144/n0144_{n}.png" for n in range(20)]) is None  # a class, not a clip


# Leaks


@pytest.mark.situation("splits: the same image in train/ and val/")
def test_leaks_are_counted_and_named(tmp_path: Path) -> None:
    by_class(tmp_path / "photos", {"train/cat": 5, "train/dog": 5, "val/cat": 4, "val/dog": 4})
    shutil.copy(tmp_path / "photos/train/cat/0.png", tmp_path / "photos/val/cat/again.png")
    dataset = load_dataset(tmp_path / "photos")
    (note,) = dataset.notes
    assert note.startswith(
        "warning: 1 of 9 validation images are byte for byte in train too (11.1 %; val/cat/again.png is train/cat/0.png"
    )
    assert dataset.division is not None
    dataset.division.write(tmp_path / "run")
    assert rows(tmp_path / "run/leaks.csv") == [
        {"train": "train/cat/0.png", "other": "val/cat/again.png", "split": "validation"}
    ]


def test_split_csv_of_data_with_leaks_is_read_again(tmp_path: Path) -> None:
    """Copies in two splits were taken for a group of --group that must not be divided."""
    by_class(tmp_path / "photos", {"train/cat": 5, "train/dog": 5, "val/cat": 4, "val/dog": 4})
    shutil.copy(tmp_path / "photos/train/cat/0.png", tmp_path / "photos/val/cat/again.png")
    dataset = load_dataset(tmp_path / "photos")
    assert dataset.division is not None
    dataset.division.write(tmp_path / "run")
    again = load_dataset(tmp_path / "run" / SPLIT_FILE, reading=Reading(data_root=str(tmp_path / "photos")))
    assert again.division is not None
    assert (again.division.rows, again.division.leaks) == (dataset.division.rows, dataset.division.leaks)
    with pytest.raises(DataError, match="has images in train and validation"):
        load_dataset(tmp_path / "run" / SPLIT_FILE, reading=Reading(data_root=str(tmp_path / "photos"), group="group"))


def test_same_bytes_with_different_labels_are_named(tmp_path: Path) -> None:
    by_class(tmp_path / "data", TEN)
    pairs = [f"cat/{number}.png is cat; dog/x{number}.png is dog" for number in range(4)]
    for number, named in enumerate((pairs[:1], pairs[:2], pairs[:3], [*pairs[:3], "1 more"])):
        shutil.copy(tmp_path / f"data/cat/{number}.png", tmp_path / f"data/dog/x{number}.png")
        count = "1 picture" if number == 0 else f"{number + 1} pictures"
        notes = load_dataset(tmp_path / "data").notes
        assert f"warning: same bytes, different labels: {count} ({' / '.join(named)})" in notes
    shutil.copy(tmp_path / "data/cat/4.png", tmp_path / "data/cat/4_again.png")  # the same label: no conflict
    division = load_dataset(tmp_path / "data").division
    assert division is not None
    assert division.listings == ["split.csv", "conflicts.csv"]
    division.write(tmp_path / "run")
    found = rows(tmp_path / "run/conflicts.csv")
    assert [row["image"] for row in found] == [name for n in range(4) for name in (f"cat/{n}.png", f"dog/x{n}.png")]
    assert found[1] == {"image": "dog/x0.png", "label": "dog", "same_as": "cat/0.png"}


# split.csv


@pytest.mark.situation("splits: the table of a run is used again")
def test_split_csv_is_a_table_that_gives_the_same_division(tmp_path: Path) -> None:
    by_class(tmp_path / "photos", TEN)
    shutil.copy(tmp_path / "photos/cat/0.png", tmp_path / "photos/cat/copy.png")
    dataset = load_dataset(tmp_path / "photos", reading=Reading(test_split=0.2))
    assert dataset.division is not None
    dataset.division.write(tmp_path / "run")
    table = tmp_path / "run" / SPLIT_FILE
    of_copy = next(row for row in rows(table) if row["file_name"] == "cat/copy.png")
    assert (of_copy["label"], of_copy["group"]) == ("cat", "cat/0.png")
    (tmp_path / "run/recipe.yaml").write_text(f"data: {tmp_path / 'photos'}\n")
    by_class(tmp_path / "photos", {"owl": 5}, seed=50)  # files of later
    again = load_dataset(table)
    assert again.division is not None
    assert again.division.rows == dataset.division.rows
    assert again.division.folder == dataset.division.folder
    assert [len(part) for part in (again.train, again.validation, again.test or ())] == [13, 4, 4]


def test_split_csv_finds_images_below_data_root(tmp_path: Path) -> None:
    by_class(tmp_path / "photos", TEN)
    division = load_dataset(tmp_path / "photos").division
    assert division is not None
    division.write(tmp_path)
    for folder in ("elsewhere", "tables"):
        (tmp_path / folder).mkdir()
    shutil.move(tmp_path / "photos", tmp_path / "elsewhere")
    table = shutil.move(tmp_path / SPLIT_FILE, tmp_path / "tables" / SPLIT_FILE)
    with pytest.raises(DataError, match="--data-root"):
        load_dataset(table)
    root = str(tmp_path / "elsewhere/photos")
    again = load_dataset(table, reading=Reading(data_root=root)).division
    assert again is not None
    assert again.rows == division.rows


def test_changed_files_do_not_continue_an_old_division(tmp_path: Path) -> None:
    by_class(tmp_path / "photos", TEN)
    division = load_dataset(tmp_path / "photos").division
    assert division is not None
    division.write(tmp_path / "run")
    division.check_same(tmp_path / "run")
    by_class(tmp_path / "photos", {"dog": 12}, seed=100)
    changed = load_dataset(tmp_path / "photos").division
    assert changed is not None
    with pytest.raises(DataError, match=r"split\.csv lists 20 images, the data has 22 now or other splits"):
        changed.check_same(tmp_path / "run")
