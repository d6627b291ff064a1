"""Labels as a source reads them, and as a task needs them: one class, several classes, or numbers for each image."""

# pyright: basic

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.wording import counted
from gatewise.data.images import EncodedSource
from gatewise.data.reading import Kind

_FRACTION = re.compile(r"-?\d+\.\d+")  # a column of a CSV that had an empty cell in pandas has 1.0 for 1
KINDS: tuple[Kind, ...] = ("class", "classes", "number")
DELIMITERS = ("|", ";", ",", " ")  # between several labels in one cell, the likeliest first
_TASKS = {"class": "classify", "classes": "multilabel", "number": "regress"}
_FEW = 20  # images; with fewer, many different labels are no sign of a wrong column


@dataclass(frozen=True)
class LabelledSplit:
    """One split of labelled images, as a source reads it.

    A label is the index or name of a class, several of them, a number, several numbers, or text that may mean any of
    these; `interpreted` makes it what the task needs.

    Attributes:
        images: encoded image files, or pixels (N, C, H, W), uint8.
        labels: label of each image.
        classes: names of the classes, in the order of the indices; of several numbers, their names. () if the labels
            are names, or single numbers.
        columns: further columns of a table, by name; `group` and COLUMN=VALUE read them.
        shown: the split in messages, such as val/; "" is its name.
        delimiter: text between several labels in one cell, once they are interpreted.
    """

    images: EncodedSource | Tensor
    labels: Sequence[Any]
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    shown: str = ""
    delimiter: str | None = None

    @property
    def is_labelled(self) -> bool:
        """Whether any image has a label; -1 is none if the classes have names, as in the library `datasets`."""
        none = (None, "", -1) if self.classes else (None, "")
        return any(part not in none and part == part for label in self.labels for part in _listed(label))

    def where(self, index: int) -> str:
        """Return the name of a label for error messages."""
        return f"image {index}" if isinstance(self.images, Tensor) else self.images.label_where(index)

    def of(self, chosen: Sequence[int]) -> "LabelledSplit":
        """Return the images with these indices."""
        images = self.images[list(chosen)] if isinstance(self.images, Tensor) else self.images.subset(chosen)
        columns = {name: [values[index] for index in chosen] for name, values in self.columns.items()}
        return replace(self, images=images, labels=[self.labels[index] for index in chosen], columns=columns)


def targets(labels: Sequence[Any], kind: Kind, outputs: int) -> Tensor:
    """Return interpreted labels as a tensor.

    Args:
        labels: for class an index each, for classes a tuple of indices, for number a tuple of numbers.
        kind: what a label is.
        outputs: number of classes, or of numbers of an image.

    Returns:
        For class (N,), int64; for classes (N, outputs) of 0 and 1, float32; for number (N, outputs), float32.

    >>> targets([(0, 2), ()], "classes", 3)
    tensor([[1., 0., 1.],
            [0., 0., 0.]])
    """
    if kind == "class":
        return torch.tensor(labels, dtype=torch.long)
    if kind == "number":
        return torch.tensor(labels, dtype=torch.float32).reshape(-1, outputs)
    hot = torch.zeros(len(labels), outputs)
    for row, classes in enumerate(labels):
        hot[row, list(classes)] = 1
    return hot


def label_text(label: Any, kind: Kind, classes: Sequence[str]) -> str:
    """Return an interpreted label as text, which a table with one label column can have.

    >>> label_text(1, "class", "ab"), label_text((0, 1), "classes", "ab"), label_text((2.5,), "number", ["value"])
    ('b', 'a|b', '2.5')
    """
    if kind == "class":
        return str(classes[label])
    parts = [str(classes[part]) for part in label] if kind == "classes" else [repr(part) for part in label]
    return DELIMITERS[0].join(parts)


@dataclass(frozen=True)
class Interpreter:
    """From the labels of a source to those that a task needs.

    Args:
        kind: what a label is.
        delimiter: text between several labels in one cell; None takes the first of `DELIMITERS` that occurs in training
            images, or else in others. It divides no cell that is one of `classes`.
        class_names: the classes to keep, in this order; None keeps all of the training images.
        classes: the classes of a trained network, which need not occur; None takes those of the training images.
        say: called with a line about everything that is left out.
    """

    kind: Kind
    delimiter: str | None = None
    class_names: str | None = None
    classes: tuple[str, ...] | None = None
    say: Callable[[str], None] = print

    def __call__(self, where: object, splits: Mapping[str, LabelledSplit]) -> dict[str, LabelledSplit]:
        """Return splits whose labels are as `targets` expects them, all with the same `classes`.

        Args:
            where: name of the data set, with which an error message begins.
            splits: the splits; classes are those of "train".

        Raises:
            DataError: a label is missing or of another kind, or a class has no training image. The message names the
                file or row.
            InvalidValueError: `class_names` has a name that is no class.
        """
        if self.kind == "number":
            return _numbers(splits, self.delimiter or DELIMITERS[0], self.classes)
        cells = {name: _texts_of(split) for name, split in splits.items()}
        if not any(split.classes for split in splits.values()):
            cells = _as_integers(cells, self.classes or self._chosen or ())
        delimiter = self.delimiter or self._delimiter(splits, cells)
        names = {name: self._names(split, cells[name], delimiter) for name, split in splits.items()}
        classes = self._classes(where, splits, names)
        found = {name: self._indexed(split, names[name], classes, delimiter) for name, split in splits.items()}
        for name, split in found.items():
            if not split.labels:
                raise errors.DataError(f"{where}: {split.shown or name} has no image of {_classes_text(classes)}.")
        return found

    @property
    def _chosen(self) -> tuple[str, ...] | None:
        """The names in `class_names`."""
        return None if self.class_names is None else tuple(name.strip() for name in self.class_names.split(","))

    def _delimiter(self, splits: Mapping[str, LabelledSplit], cells: Mapping[str, list[tuple[str, ...]]]) -> str | None:
        """Return the text between several labels in one cell, of all splits alike; None if there is none."""
        for name in dict.fromkeys(("train", *splits)):
            texts = set() if splits[name].classes else _single(cells[name]).keys() - set(self.classes or ())
            if found := next((text for text in DELIMITERS if any(text in cell for cell in texts)), None):
                return found
        return None

    def _names(self, split: LabelledSplit, rows: list[tuple[str, ...]], delimiter: str | None) -> list[tuple[str, ...]]:
        """Return the names of the classes of each image."""
        if delimiter is not None and not split.classes:
            rows = self._divided(split, rows, delimiter)
        if self.kind == "class":
            for row, names in enumerate(rows):
                if len(names) != 1:
                    labels = f"the labels {' '.join(names)!r}. Add --task multilabel" if names else "no label. Add one"
                    raise errors.DataError(f"{split.where(row)} has {labels}, or choose --label-column.")
        return rows

    def _divided(self, split: LabelledSplit, rows: list[tuple[str, ...]], delimiter: str) -> list[tuple[str, ...]]:
        """Divide cells with several labels where the task allows several; else raise if cells look like that."""
        if self.kind == "classes":
            whole = self.classes or ()
            return [
                tuple(part for cell in cells for part in ([cell] if cell in whole else _parts(cell, delimiter)))
                for cells in rows
            ]
        if _look_divided(_single(rows), delimiter):
            row = next(row for row, names in enumerate(rows) if len(names) == 1 and delimiter in names[0])
            raise errors.DataError(
                f"{split.where(row)} has the labels {rows[row][0]!r}. Add --task multilabel, or choose --label-column."
            )
        return rows

    def _classes(
        self, where: object, splits: Mapping[str, LabelledSplit], names: Mapping[str, list[tuple[str, ...]]]
    ) -> tuple[str, ...]:
        """Return the classes: those given, or all that occur in training images."""
        counts = {name: Counter(label for labels in rows for label in labels) for name, rows in names.items()}
        train = counts["train"]
        if self.classes is not None and any(set(self.classes) & set(count) for count in counts.values()):
            return self.classes
        listed = _merged([split.classes for split in splits.values()]) or _ordered(set().union(*counts.values()))
        if (chosen := self._chosen) is not None:
            for name in chosen:
                _validation.check_one_of("class", name, listed)
            listed = chosen
        kept = tuple(name for name in listed if train[name])
        for name, count in counts.items():
            if name != "train":
                self._check_known(where, splits, name, count, kept, listed)
        if unused := [name for name in listed if not any(count[name] for count in counts.values())]:
            self.say(f"no image of {_classes_text(unused)}: left out of the {len(listed)} classes")
        if self.kind == "class":
            _check_several(where, splits["train"], kept, sum(train[name] for name in kept))
        elif not kept:
            raise errors.DataError(f"{where}: no training image has a label. Choose another --label-column.")
        return kept

    def _check_known(
        self,
        where: object,
        splits: Mapping[str, LabelledSplit],
        name: str,
        count: Counter[str],
        kept: tuple[str, ...],
        listed: tuple[str, ...],
    ) -> None:
        """Raise if a split has a class that is not in train."""
        own, train = (splits[split].shown or split for split in (name, "train"))
        unknown = [label for label in listed if count[label] and label not in kept]
        lacking = [label for label in kept if not count[label]]
        if unknown and len(unknown) == len(lacking):
            raise errors.DataError(
                f"{where}: class {_validation.listed(unknown, 5)} is in {own} only, {_validation.listed(lacking, 5)} "
                f"in {train} only. Give both one name."
            )
        if unknown:
            advice = (
                "leave test images out with --test-split none"
                if name == "test"
                else "leave the class out with --class-names"
            )
            raise errors.DataError(
                f"{where}: {own} has {counted(count[unknown[0]], 'image')} of class {unknown[0]}, {train} has none. "
                f"Add some, or {advice}."
            )

    def _indexed(
        self, split: LabelledSplit, names: list[tuple[str, ...]], classes: tuple[str, ...], delimiter: str | None
    ) -> LabelledSplit:
        """Return the split with indices of classes; images of other classes are left out of single-label data."""
        index = {name: number for number, name in enumerate(classes)}
        labels: list[Any] = [tuple(index[name] for name in row if name in index) for row in names]
        if self.kind == "classes":
            if others := Counter(name for row in names for name in row if name not in index):
                self.say(
                    f"{counted(others.total(), 'label')} of other classes than {_classes_text(classes)} left out "
                    f"({_validation.listed(list(others), 5)})"
                )
            return replace(split, labels=labels, classes=classes, delimiter=delimiter)
        kept = [row for row, label in enumerate(labels) if label]
        if len(kept) < len(labels):
            left_out = counted(len(labels) - len(kept), "image")
            self.say(f"{left_out} of other classes than {_classes_text(classes)} left out")
            split, labels = split.of(kept), [labels[row] for row in kept]
        return replace(split, labels=[label for (label,) in labels], classes=classes)


def _named(split: LabelledSplit, row: int, label: Any) -> tuple[str, ...]:
    """Return the names of class indices; raise `DataError` if one is no index of a class."""
    indices = _listed(label)
    for index in indices:
        if isinstance(index, dict | bytes):
            raise errors.DataError(
                f"{split.where(row)}: expected the index of a class as label, got an image or a list, perhaps a mask."
            )
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(split.classes):
            raise errors.DataError(
                f"{split.where(row)}: expected a label from 0 to {len(split.classes) - 1} (one per class name), "
                f"got {_validation.safe_repr(index)}."
            )
    return tuple(split.classes[index] for index in indices)


def _texts_of(split: LabelledSplit) -> list[tuple[str, ...]]:
    """Return the labels of each image as text, not yet divided."""
    if split.classes:
        return [_named(split, row, label) for row, label in enumerate(split.labels)]
    _check_no_fractions(split)
    return [_texts(split, row, label) for row, label in enumerate(split.labels)]


def _as_integers(cells: Mapping[str, list[tuple[str, ...]]], known: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """Return the texts of all splits with 0 and 1 for 0.0 and 1.0, but for `known` texts and among other fractions.

    >>> _as_integers({"train": [("1",), ("unknown",)], "validation": [("1.0",)]}, [])
    {'train': [('1',), ('unknown',)], 'validation': [('1',)]}
    """
    fractions = {text for rows in cells.values() for texts in rows for text in texts if _FRACTION.fullmatch(text)}
    if not all(text.endswith(".0") for text in fractions):
        return dict(cells)
    change = {text: text.removesuffix(".0") for text in fractions - set(known)}
    return {name: [tuple(change.get(text, text) for text in texts) for texts in rows] for name, rows in cells.items()}


def _single(rows: Sequence[tuple[str, ...]]) -> Counter[str]:
    """Return the labels of images with one, and how often each occurs."""
    return Counter(names[0] for names in rows if len(names) == 1)


def _listed(label: Any) -> Sequence[Any]:
    return label if isinstance(label, list | tuple) else (label,)


def _texts(split: LabelledSplit, row: int, label: Any) -> tuple[str, ...]:
    """Return the labels in a cell as text."""
    if isinstance(label, list | tuple):
        return tuple(text for part in label for text in _texts(split, row, part))
    if isinstance(label, dict | bytes):
        raise errors.DataError(
            f"{split.where(row)}: expected a class or a number as label, got an image or a list, perhaps a mask."
        )
    if label is None or label != label or label == "":
        return ()
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    text = str(label).strip()
    return (text,) if text else ()


def _check_no_fractions(split: LabelledSplit) -> None:
    """Raise if all labels are numbers and one is no integer."""
    numbers = [[_number(part) for part in _listed(label) if part not in (None, "")] for label in split.labels]
    if any(number is None for row in numbers for number in row):
        return
    for row, label in enumerate(split.labels):
        if any(number is not None and not number.is_integer() and number == number for number in numbers[row]):
            raise errors.DataError(
                f"{split.where(row)} has the label {label}. Add --task regress for numbers, or choose --label-column."
            )


def _number(label: Any) -> float | None:
    """Return a label as a number, or None."""
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        return None
    try:
        return float(label)
    except ValueError:
        return None


def _numbers(
    splits: Mapping[str, LabelledSplit], delimiter: str, names: tuple[str, ...] | None = None
) -> dict[str, LabelledSplit]:
    """Return the splits with a tuple of numbers as each label, all of one length.

    Args:
        splits: the splits; the names of the numbers are those of "train".
        delimiter: text between several numbers in one cell.
        names: those of a trained network, if known.
    """
    train = splits["train"]
    found = {
        name: [_numbers_in(split, row, label, delimiter) for row, label in enumerate(split.labels)]
        for name, split in splits.items()
    }
    count = len(found["train"][0])
    for name, rows in found.items():
        if (row := next((row for row, numbers in enumerate(rows) if len(numbers) != count), None)) is not None:
            raise errors.DataError(
                f"{splits[name].where(row)}: expected {counted(count, 'number')} as for {train.where(0)}, got "
                f"{_validation.safe_repr(splits[name].labels[row])}."
            )
    own = train.classes if isinstance(train.labels[0], list | tuple) else ()
    numbered = ("value",) if count == 1 else tuple(f"value_{number}" for number in range(1, count + 1))
    classes = next((known for known in (names, own) if known and len(known) == count), numbered)
    return {name: replace(split, labels=found[name], classes=classes) for name, split in splits.items()}


def _numbers_in(split: LabelledSplit, row: int, label: Any, delimiter: str) -> tuple[float, ...]:
    """Return the numbers of one image; raise `DataError` if a part of its label is none, or not finite."""
    named = bool(split.classes) and isinstance(label, int)  # an index of a class, such as that of a folder
    parts = [split.classes[label]] if named else _listed(label)
    cells = [cell for part in parts for cell in (part.split(delimiter) if isinstance(part, str) else [part])]
    numbers = tuple(number for cell in cells if (number := _number(cell)) is not None and math.isfinite(number))
    if not numbers or len(numbers) < len(cells):
        raise errors.DataError(
            f"{split.where(row)}: expected a number as label, got {_validation.safe_repr(label)}. Choose "
            f"--label-column, or another --task."
        )
    return numbers


def _parts(cell: str, delimiter: str) -> list[str]:
    return [part.strip() for part in cell.split(delimiter) if part.strip()]


def _look_divided(cells: Mapping[str, int], delimiter: str) -> bool:
    """Return whether cells look like several labels: fewer different parts than cells, and parts that occur alone.

    >>> _look_divided({"cat dog": 1, "cat": 1, "dog": 1}, " "), _look_divided({"golden retriever": 9, "poodle": 9}, " ")
    (True, False)
    """
    parts = {part for cell in cells for part in _parts(cell, delimiter)}
    alone = any(delimiter not in cell and cell in parts for cell in cells) and any(
        part in cells for cell in cells if delimiter in cell for part in _parts(cell, delimiter)
    )
    return (alone and len(parts) < len(cells)) or 2 * len(parts) < len(cells)


def _ordered(names: set[str]) -> tuple[str, ...]:
    """Return names sorted as torchvision does, or by value if all are integers.

    >>> _ordered({"10", "9"}), _ordered({"b", "a1", "A"})
    (('9', '10'), ('A', 'a1', 'b'))
    """
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def _merged(lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names in lists in the order of the first, followed by those of the others."""
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _check_several(where: object, train: LabelledSplit, classes: tuple[str, ...], images: int) -> None:
    """Raise if there are fewer than two classes, or so many that the label is none."""
    where = f"{where}, {train.shown}" if train.shown else where
    if len(classes) < 2:
        raise errors.DataError(
            f"{where}: expected at least two classes, but all {images} images have one class"
            f"{f' ({classes[0]})' if classes else ''}."
        )
    if not train.classes and images >= _FEW and 2 * len(classes) > images:
        raise errors.DataError(
            f"{where}: {len(classes):,} classes for {images:,} images. Is it the wrong --label-column? For numbers "
            f"add --task regress."
        )


def _classes_text(names: Sequence[str]) -> str:
    return f"class{'es' if len(names) > 1 else ''} {_validation.listed(list(names), 5)}"
