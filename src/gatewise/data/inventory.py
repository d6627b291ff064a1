"""What a data set holds: images of each class and split, sizes, pixels, duplicates, leaks and broken files."""

# pyright: basic

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.wording import as_lines
from gatewise.data.broken import left_out_note
from gatewise.data.division import Division
from gatewise.data.images import Dataset, EncodedImages, Images
from gatewise.data.load import DataSource
from gatewise.data.masks import IGNORED, with_background
from gatewise.data.pairs import SegmentationDataset, SegmentationSplit
from gatewise.data.raster import read_raster
from gatewise.data.reading import Reading

_IGNORED = "ignored"  # entry of the pixels without a class
_MANY = 12  # classes; with more, only the largest and the smallest are named


@dataclass(frozen=True)
class Inventory:
    """What a data set holds.

    Attributes:
        dataset: the data set; its images are decoded when they are needed.
        counts: number of images of each class in each split; {} if images have no classes.
        sizes: number of images of each width and height, in pixels.
        file_kinds: number of image files in grey, in colours, with alpha.
        near: names of pairs of images in different splits that look the same, but are other bytes.
        broken: name of each image that cannot be read, with the reason.
        stops: whether a training with the same options stops at such an image.
        pixel_counts: number of pixels of each class in the masks of each split, with "ignored"; {} without masks.
    """

    dataset: Dataset | SegmentationDataset
    counts: dict[str, dict[str, int]]
    sizes: Counter[tuple[int, int]]
    file_kinds: Counter[str]
    near: list[tuple[str, str]]
    broken: list[tuple[str, str]]
    stops: bool = False
    pixel_counts: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    @property
    def details(self) -> dict[str, Any]:
        """The same as JSON values."""
        dataset, division = self.dataset, self.dataset.division
        return {
            "data": dataset.name,
            "images": {name: len(split) for name, split in _splits(dataset).items()},
            "classes": list(dataset.classes),
            "counts": self.counts,
            "pixel_counts": self.pixel_counts,
            "largest_class": self._largest,
            "sizes": [{"width": w, "height": h, "images": n} for (w, h), n in self.sizes.most_common()],
            "channels": dataset.channels,
            "file_kinds": dict(self.file_kinds.most_common()),
            "split": {} if division is None else division.details,
            "leaks": [] if division is None else [list(leak) for leak in division.leaks],
            "duplicates": 0 if division is None else division.duplicates,
            "look_alike": [list(pair) for pair in self.near],
            "broken": [{"image": name, "reason": reason} for name, reason in self.broken],
            "conflicts": [] if division is None else [[list(image) for image in group] for group in division.conflicts],
            "notes": self._notes,
        }

    @property
    def _notes(self) -> list[str]:
        """The notes about the data set; instead of what is left out here, what a training does there."""
        notes = [note for note in self.dataset.notes if note != left_out_note(self.broken)]
        if self.broken and self.stops:
            notes.append(
                "warning: a training stops at an image that cannot be read. Remove it, or add --on-broken skip"
            )
        return notes

    @property
    def _largest(self) -> dict[str, Any] | None:
        """Name of the largest class in training, and its share of the validation images."""
        if not (isinstance(self.dataset, Dataset) and self.dataset.labels == "class"):
            return None
        train, validation = self.counts["train"], self.counts["validation"]
        name = max(train, key=lambda label: train[label])
        return {"class": name, "share": validation[name] / sum(validation.values())}

    @property
    def facts(self) -> list[str]:
        """One line for each fact."""
        dataset, division = self.dataset, self.dataset.division
        splits = ", ".join(f"{len(split):,} {name}" for name, split in _splits(dataset).items())
        lines = [f"images: {splits}", *self._classes(), *self._sizes()]
        kinds = ", ".join(f"{count:,} {what}" for what, count in self.file_kinds.most_common())
        lines.append(f"channels: {dataset.channels}" + (f"; files: {kinds}" if kinds else ""))
        if division is not None and division.folder:
            across = f"{len(division.leaks):,} in another split"
            example = f" ({self.near[0][0]} and {self.near[0][1]})" if self.near else ""
            lines.append(f"same bytes: {division.duplicates:,} images have a copy, {across}")
            lines.append(f"look alike in two splits: {len(self.near):,}{example}")
        reasons = "".join(f"; {name}: {reason}" for name, reason in self.broken[:3])
        lines.append(f"cannot be read: {len(self.broken):,}{reasons}")
        return [*lines, *as_lines(self._notes)]

    def _classes(self) -> list[str]:
        if not self.counts:
            names = _validation.listed(list(self.dataset.classes), _MANY)
            if isinstance(self.dataset, SegmentationDataset):
                return [f"classes of pixels: {len(self.dataset.classes)}", *self._shares()]
            labels = self.dataset.train.labels
            ranges = zip(self.dataset.classes, labels.amin(0).tolist(), labels.amax(0).tolist(), strict=True)
            return [f"numbers: {names}", *(f"  {name}: {low:g} to {high:g} in train" for name, low, high in ranges)]
        totals = {name: sum(counts[name] for counts in self.counts.values()) for name in self.dataset.classes}
        order = sorted(totals, key=lambda name: -totals[name])
        shown = order if len(order) <= _MANY else [*order[: _MANY // 2], *order[-_MANY // 2 :]]
        lines = [f"classes: {len(order)}" + (", the largest and the smallest:" if len(shown) < len(order) else "")]
        for name in shown:
            lines.append(
                f"  {name}: " + ", ".join(f"{counts[name]:,} {split}" for split, counts in self.counts.items())
            )
        if (largest := self._largest) is not None:
            lines.append(
                f"always saying {largest['class']} would be right for {100 * largest['share']:.1f} % of validation"
            )
        return lines

    def _shares(self) -> list[str]:
        """Return the share of each class in the pixels that are not ignored, and that of the ignored in all."""
        totals = {split: sum(counts.values()) for split, counts in self.pixel_counts.items()}
        kept = {split: totals[split] - counts[_IGNORED] for split, counts in self.pixel_counts.items()}
        return [
            f"  {name}: "
            + ", ".join(
                f"{100 * counts[name] / max(1, (totals if name == _IGNORED else kept)[split]):.2f} % of {split}"
                for split, counts in self.pixel_counts.items()
            )
            for name in self.pixel_counts["train"]
            if name != _IGNORED or any(counts[name] for counts in self.pixel_counts.values())
        ]

    def _sizes(self) -> list[str]:
        if not self.sizes:
            return []
        (width, height), count = self.sizes.most_common(1)[0]
        if len(self.sizes) == 1:
            return [f"size: {width}x{height}"]
        widths, heights = ([size[axis] for size in self.sizes] for axis in (0, 1))
        text = (
            f"sizes: {len(self.sizes):,} different, {min(widths)} to {max(widths)} wide, {min(heights)} to "
            f"{max(heights)} high, most often {width}x{height} ({count:,})"
        )
        return [text]


class _WithAnyBroken(Reading):
    """How data is read to look at it."""

    stops_at_many_broken = False


def take_inventory(source: DataSource) -> Inventory:
    """Read a data set and look at all of its images; each is decoded once.

    Args:
        source: the data set; images that cannot be read are counted, and left out of the rest.

    Raises:
        DataError: the data set cannot be read at all.
    """
    skipping = replace(source, loading="stream", reading=replace(source.reading, on_broken="skip"))
    try:
        dataset = replace(skipping, reading=_WithAnyBroken.like(skipping.reading)).load()
    except errors.DataError:
        skipping.load()  # if too many are broken, it says so instead
        raise
    counts: dict[str, dict[str, int]] = {}
    if isinstance(dataset, Dataset) and dataset.labels != "number":
        counts = {name: _counts(split.labels, dataset.classes) for name, split in _splits(dataset).items()}
    sizes: Counter[tuple[int, int]] = Counter()
    kinds: Counter[str] = Counter()
    pixel_counts: dict[str, dict[str, int]] = {}
    alike: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for name, split in _splits(dataset).items():
        files = split.images if not isinstance(split, Images | EncodedImages) else getattr(split, "files", None)
        if isinstance(split, SegmentationSplit):
            pixel_counts[name] = _pixel_counts(split, with_background(dataset.classes))
        for index in range(len(split)):
            picture = split.picture(index)
            sizes[picture.width, picture.height] += 1
            if files is None:
                continue
            where = files.where(index)
            kinds[read_raster(where, files.content(index), header_only=True).described] += 1
            if (value := difference_hash(picture)) is not None:
                alike[value].append((name, where))
    division = dataset.division
    broken = list(division.skipped) if division is not None else []
    stops = source.reading.on_broken != "skip"
    return Inventory(dataset, counts, sizes, kinds, _across(alike, division), broken, stops, pixel_counts)


_STEP, _STEPS = 2, 16  # fewest steps of a picture that differ by more than rounding


def _splits(dataset: Dataset | SegmentationDataset) -> dict[str, Any]:
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: split for name, split in splits.items() if split is not None}


def _counts(labels: Tensor, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of images of each class, for indices (N,) or 0 and 1 (N, classes)."""
    counts = labels.bincount(minlength=len(classes)) if labels.ndim == 1 else labels.sum(0)
    return dict(zip(classes, map(int, counts.tolist()), strict=True))


def _pixel_counts(split: SegmentationSplit, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of pixels of each class in the masks of a split, and of those that are ignored."""
    counts = torch.zeros(IGNORED + 1, dtype=torch.int64)
    for index in range(len(split)):
        counts += split.mask(index).flatten().long().bincount(minlength=IGNORED + 1)
    return dict(zip([*classes, _IGNORED], [*counts[: len(classes)].tolist(), int(counts[IGNORED])], strict=True))


def difference_hash(picture: Any) -> int | None:
    """Return 64 bits that are equal for pictures that look the same: which of 8 x 8 steps to the right are brighter.

    None for a picture with hardly any steps, which would look like every other such one.
    """
    import numpy as np

    steps = np.diff(np.asarray(picture.convert("L").resize((9, 8)), dtype=np.int16), axis=1)
    if (abs(steps) > _STEP).sum() < _STEPS:
        return None
    return int.from_bytes(np.packbits(steps > 0).tobytes(), "big")


def _across(alike: dict[int, list[tuple[str, str]]], division: Division | None) -> list[tuple[str, str]]:
    """Return pairs that look alike, of training and another split, without those of the same bytes."""
    leaks = {name for leak in (division.leaks if division is not None else ()) for name in leak[:2]}
    pairs: list[tuple[str, str]] = []
    for found in alike.values():
        train = next((name for split, name in found if split == "train"), None)
        others = [name for split, name in found if split != "train"]
        if train is not None:
            pairs += [(train, name) for name in others if not any(name.endswith(leak) for leak in leaks)]
    return pairs
