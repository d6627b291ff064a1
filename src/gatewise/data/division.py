"""Divide a data set, and record which image is in which split: split.csv, which is itself a table for `--data`."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.files import read_text, write_atomically
from gatewise.core.wording import counted
from gatewise.data.folders import Location
from gatewise.data.grouping import MOST_COMPARED, chosen_groups, copies, frames_of_clips, joined, keys_of, same_bytes
from gatewise.data.images import EncodedSource
from gatewise.data.layout import SPLIT_WORDS
from gatewise.data.reading import OtherReading
from gatewise.data.splitting import RULE, Split, held_out

SPLIT_FILE = "split.csv"
LEAKS_FILE = "leaks.csv"
CONFLICTS_FILE = "conflicts.csv"
SKIPPED_FILE = "skipped.csv"
_NAMED = 3  # pictures with different labels that a note names
ROLES = ("test", "validation")  # in the order in which images are held out
COLUMNS = ("file_name", "label", "split", "group")
AnySplit = TypeVar("AnySplit", bound="ImagesSplit")


class ImagesSplit(Split, Protocol):
    """A split with images: `LabelledSplit` or `MaskedSplit`."""

    @property
    def images(self) -> EncodedSource | Tensor: ...

    @property
    def shown(self) -> str: ...


@dataclass(frozen=True)
class Division:
    """Which image is in which split.

    Attributes:
        folder: the folder to which names are relative, absolute; "" if images are not files.
        rows: name, label (for masks the name of the mask), split and group of each image; the group of an image alone
            is "".
        rule: how images were held out, {} if all splits were given.
        leaks: names of pairs of files with the same bytes, the first in training, with the split of the second.
        groups: number of the group of each validation image, (images,), or None if each is a group of its own.
        skipped: names of images that cannot be read, each with the reason.
        duplicates: number of images with the same bytes as another.
        conflicts: groups of files with the same bytes and different labels: name and label of each.
    """

    folder: str
    rows: tuple[tuple[str, str, str, str], ...]
    rule: Mapping[str, Any]
    leaks: tuple[tuple[str, str, str], ...] = ()
    groups: Tensor | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    duplicates: int = 0
    conflicts: tuple[tuple[tuple[str, str], ...], ...] = ()

    @property
    def csv(self) -> str:
        """The content of split.csv."""
        return _csv(COLUMNS, self.rows)

    @property
    def details(self) -> dict[str, Any]:
        """What config.json and results.json say of the split."""
        return {"folder": self.folder, "sha256": sha256(self.csv.encode()).hexdigest(), "rule": dict(self.rule)}

    @property
    def recorded(self) -> bool:
        """Whether a run has a split.csv: images are files, or the split is of our making."""
        return bool(self.folder or self.rule)

    @property
    def listings(self) -> list[str]:
        """Names of the files of `write` that list what the notes about the division count."""
        files = {
            SPLIT_FILE: self.rule,
            LEAKS_FILE: self.leaks,
            CONFLICTS_FILE: self.conflicts,
            SKIPPED_FILE: self.skipped,
        }
        return [name for name, found in files.items() if found]

    @property
    def leaks_by_split(self) -> dict[str, int]:
        """Number of images of other splits that are in training too, byte for byte."""
        return dict(Counter(split for _, _, split in self.leaks))

    def with_labels(self, labels: Mapping[str, str]) -> "Division":
        """Return the division with other labels of the images, by their names."""
        return replace(self, rows=tuple((name, labels[name], *rest) for name, _, *rest in self.rows))

    def check_same(self, out: Path) -> None:
        """Raise `DataError` if a folder has a split.csv of other images or another division."""
        file = out / SPLIT_FILE
        if not self.recorded or not file.exists() or (text := read_text(file)) == self.csv:
            return
        raise errors.DataError(
            f"{file} lists {max(0, len(text.splitlines()) - 1):,} images, the data has {len(self.rows):,} now or other "
            f"splits. Choose another --out; --data {file} repeats the old division there."
        )

    def record(self, out: Path) -> None:
        """Write to a folder unless it has the division of other images, which is an error; see `check_same`."""
        self.check_same(out)
        self.write(out)

    def write(self, out: Path) -> None:
        """Write split.csv to a folder, and leaks.csv, conflicts.csv and skipped.csv if there is something to list."""
        if self.recorded:
            write_atomically(out / SPLIT_FILE, self.csv)
        if self.leaks:
            write_atomically(out / LEAKS_FILE, _csv(("train", "other", "split"), self.leaks))
        if self.conflicts:
            rows = [(name, label, group[0][0]) for group in self.conflicts for name, label in group]
            write_atomically(out / CONFLICTS_FILE, _csv(("image", "label", "same_as"), rows))
        if self.skipped:
            write_atomically(out / SKIPPED_FILE, _csv(("image", "reason"), self.skipped))


def _csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def divide(
    location: Location,
    splits: Mapping[str, AnySplit],
    strata: Mapping[str, Sequence[tuple[int, ...]]],
    texts: Mapping[str, Sequence[str]],
    skipped: tuple[tuple[str, str], ...] = (),
) -> tuple[dict[str, AnySplit], Division]:
    """Hold out validation and test images where they are not given, and find what leaks between splits.

    Args:
        location: the data set, with the options of the division; notes are added to it.
        splits: the given splits; "train" is divided.
        strata: strata of the images of each split, see `held_out`.
        texts: labels of the images of each split as text.
        skipped: names of images that are left out, each with the reason; they are recorded too.

    Returns:
        Train and validation images, test images if there are any, and the record of the division. Where a trained
        network is tried and nothing can be held out, splits are the same images.

    Raises:
        DataError: there are too few groups to hold out any image, or a group of `--group` is in two given splits.
        InvalidValueError: `--group` names no groups.
    """
    images = _Everything(location, splits, texts)
    held, rule = _held_out(location, images, strata["train"], [role for role in ROLES if role not in splits])
    left = sorted(set(range(len(splits["train"].images))).difference(*held.values()))
    parts = {**held, "train": left} if held else {}
    found = {**splits, **{role: splits["train"].of(rows) for role, rows in parts.items()}}
    if isinstance(reading := location.reading, OtherReading) and "validation" not in found:
        found |= dict.fromkeys(("validation", reading.stands_for_all or "validation"), splits["train"])
    positions = {
        role: [images.start["train"] + row for row in parts[role]] if role in parts else images.of(role)
        for role in found
    }
    _say_held_out(location, splits, {role: len(rows) for role, rows in held.items()})
    if held and not location.group and (clip := frames_of_clips(images.keys)):
        location.say(
            f"names such as {clip}_... look like frames of one clip, which may be divided; --group '(.+)_' keeps each "
            f"together",
            of_training=True,
        )
    leaks = images.leaks(location, {index: role for role, own in positions.items() for index in own})
    division = Division(
        folder=str(location.root.absolute()) if images.are_files else "",
        rows=tuple(images.row(index, role) for role in SPLIT_WORDS if role in positions for index in positions[role]),
        rule=rule,
        leaks=leaks,
        groups=images.groups_of(positions["validation"]),
        skipped=skipped,
        duplicates=sum(map(len, images.identical)),
        conflicts=images.conflicts(location),
    )
    return found, division


def _held_out(
    location: Location, images: "_Everything", strata: Sequence[tuple[int, ...]], roles: Sequence[str]
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Return which training images are held out for each role that has a fraction, and the rule, as it is recorded."""
    reading = location.reading
    options = {role: getattr(reading, f"{role}_split") for role in roles}
    fractions = {role: value for role, value in options.items() if isinstance(value, float | int)}
    if isinstance(reading, OtherReading) and reading.stands_for_all:
        return {}, {}
    first = images.start["train"]
    rest, held, rule = list(range(len(strata))), dict[str, list[int]](), dict[str, Any]()
    for role, fraction in fractions.items():
        taken = held_out(
            [images.keys[first + row] for row in rest],
            [images.groups[first + row] for row in rest],
            [strata[row] for row in rest],
            fraction * len(strata) / len(rest),
            reading.split_seed,
            "test/" if role == "test" else "",
        )
        if not taken and isinstance(reading, OtherReading):
            continue
        if not taken:
            groups = {images.groups[first + row] for row in rest}
            raise errors.DataError(
                f"{location}: {counted(len(rest), 'image')} in {counted(len(groups), 'group')} (same bytes, or "
                f"--group) are too few to hold out any for {role}: each class needs two. Add images, or a {role} split."
            )
        held[role] = [rest[position] for position in taken]
        rest = sorted(set(rest).difference(held[role]))
        rule[role] = {"fraction": fraction, "seed": reading.split_seed, "images": len(taken), "version": RULE}
    return held, rule


class _Everything:
    """The images of all splits, one after another.

    Attributes:
        start: position of the first image of each split.
        keys: name of each image.
        texts: label of each image.
        groups: number of the group of each image.
        named: group of each image that `--group` or a split.csv says, None without.
        identical: positions of files with the same bytes.
        copied: positions of augmented copies of one picture.
        are_files: whether each image is a file of its own.
    """

    def __init__(
        self, location: Location, splits: Mapping[str, ImagesSplit], texts: Mapping[str, Sequence[str]]
    ) -> None:
        self.start: dict[str, int] = {}
        self._count = {role: len(split.images) for role, split in splits.items()}
        self.keys: list[str] = []
        self.texts: list[str] = []
        named: list[str | None] = []
        files: list[str | None] = []
        for role, split in splits.items():
            self.start[role] = len(self.keys)
            keys = keys_of(split.images, location.root)
            if isinstance(split.images, Tensor):
                keys = [f"{role}/{key}" for key in keys]
            self.keys += keys
            self.texts += texts[role]
            files += [
                None if isinstance(split.images, Tensor) else split.images.file(index) for index in range(len(keys))
            ]
            if location.group is not None:
                named += chosen_groups(location.group, keys, split.columns)
        self.are_files = all(file is not None for file in files)
        self.named = named or None
        found = same_bytes(files)
        if found is None:
            location.say(
                f"warning: more than {MOST_COMPARED:,} files have the size of another and are not compared: images "
                "may be there twice, and in two splits"
            )
        self.identical = found or []
        self.copied = copies(self.keys, self.texts)
        self.groups = joined(len(self.keys), [*self.identical, *self.copied], self.named)
        sizes: defaultdict[int, int] = defaultdict(int)
        for group in self.groups:
            sizes[group] += 1
        self._sizes = sizes

    def of(self, split: str) -> list[int]:
        """Return the positions of the images of a given split, or those of training that are taken for it."""
        split = split if split in self.start else "train"
        return list(range(self.start[split], self.start[split] + self._count[split]))

    def groups_of(self, positions: Sequence[int]) -> Tensor | None:
        """Return the number of the group of some images, (images,), or None if each is alone among them."""
        numbers = torch.tensor([self.groups[index] for index in positions])
        return None if len(numbers.unique()) == len(numbers) else numbers

    def row(self, index: int, role: str) -> tuple[str, str, str, str]:
        """Return the row of an image in split.csv."""
        return self.keys[index], self.texts[index], role, self._group_text(index)

    def _group_text(self, index: int) -> str:
        """Return the name of the group of an image, "" if it is alone."""
        if self.named and (name := self.named[index]) is not None:
            return name
        return self.keys[self.groups[index]] if self._sizes[self.groups[index]] > 1 else ""

    def leaks(self, location: Location, where: Mapping[int, str]) -> tuple[tuple[str, str, str], ...]:
        """Return the files of other splits that are in training too, and say how many there are.

        Args:
            location: gets the notes.
            where: split of each image that is used.
        """
        if location.reading.group is not None:
            self._check_named(location, where)
        pairs = dict(self._across(self.identical, where))
        totals: defaultdict[str, int] = defaultdict(int)
        for split in where.values():
            totals[split] += 1
        for kind, found in (
            ("byte for byte in train too", pairs),
            ("copies of a picture in train (.rf.)", dict(self._across(self.copied, where))),
        ):
            for split in ("validation", "test"):
                inside = [(index, other) for index, other in found.items() if where[index] == split]
                if inside:
                    index, other = inside[0]
                    location.say(
                        f"warning: {len(inside):,} of {totals[split]:,} {split} images are {kind} "
                        f"({100 * len(inside) / totals[split]:.1f} %; {self.keys[index]} is {self.keys[other]}). "
                        f"Scores flatter every network"
                    )
        return tuple((self.keys[other], self.keys[index], where[index]) for index, other in pairs.items())

    def conflicts(self, location: Location) -> tuple[tuple[tuple[str, str], ...], ...]:
        """Return name and label of the files with the same bytes and different labels, and say which they are."""
        found = [tuple((self.keys[index], self.texts[index]) for index in group) for group in self.identical]
        different = tuple(group for group in found if len({label for _, label in group}) > 1)
        if different:
            shown = ["; ".join(f"{name} is {label}" for name, label in group) for group in different[:_NAMED]]
            more = [f"{len(different) - _NAMED:,} more"] * (len(different) > _NAMED)
            location.say(
                f"warning: same bytes, different labels: {counted(len(different), 'picture')} "
                f"({' / '.join([*shown, *more])})"
            )
        return different

    def _across(self, together: Sequence[Sequence[int]], where: Mapping[int, str]) -> list[tuple[int, int]]:
        """Return (image of another split, image of train) for images that belong together."""
        found: list[tuple[int, int]] = []
        for group in together:
            train = [index for index in group if where.get(index) == "train"]
            if train:
                found += [(index, train[0]) for index in group if where.get(index, "train") != "train"]
        return found

    def _check_named(self, location: Location, where: Mapping[int, str]) -> None:
        """Raise if a group of `--group` is in two splits."""
        split_of_group: dict[str, str] = {}
        for index, split in where.items():
            if self.named and (name := self.named[index]) is not None:
                other = split_of_group.setdefault(name, split)
                if other != split:
                    raise errors.DataError(
                        f"{location}: group {_validation.safe_repr(name)} has images in {other} and {split}. Move "
                        f"them, or merge the splits and let --group divide."
                    )


def _say_held_out(location: Location, given: Mapping[str, ImagesSplit], held: Mapping[str, int]) -> None:
    """Add a note about what was held out, and about options that are not used."""
    reading = location.reading
    parts = " and ".join(f"{split.shown or name}" for name, split in given.items())
    total = len(given["train"].images)
    what = f"has {parts} only" if given["train"].shown else "has no splits"
    for role, count in held.items():
        fraction = getattr(reading, f"{role}_split")
        location.say(
            f"{location} {what}: {count:,} of {total:,} images ({fraction:g}, seed {reading.split_seed}, stratified) "
            f"are held out for {role}",
            of_training=True,
        )
    for role in ("validation", "test"):
        option, default = getattr(reading, f"{role}_split"), getattr(type(reading)(), f"{role}_split")
        if isinstance(option, float) and option != default and role in given:
            unused = f"{given[role].shown or role} is the {role} split; the fraction {option:g} is not used"
            location.say(unused, of_training=True)
    if "test" in given:
        location.say(f"{given['test'].shown or 'test'} is scored once, after the last epoch", of_training=True)
