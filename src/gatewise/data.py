"""Labelled images: decoded once to uint8 in memory, then served in shuffled, augmented, normalised batches."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise import _checks

_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "test")}


@dataclass(frozen=True)
class Images:
    """One split.

    Attributes:
        pixels: (N, C, H, W), uint8.
        labels: (N,), int64.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Two splits and what a training must know of them.

    Attributes:
        name: what `load_dataset` was given.
        classes: names, in the order of the labels.
        train: images to learn from.
        validation: images to measure on.
        padding: pixels by which training images are shifted at most, in each direction.
        flip: whether a mirror image is as good an example as the image (not so for digits).
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images
    padding: int
    flip: bool

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.pixels.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.train.pixels.shape[2], self.train.pixels.shape[3]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation per channel of the training images, on the scale 0 to 255."""
        totals = torch.zeros(2, self.channels, dtype=torch.float64)
        for part in self.train.pixels.split(4096):
            values = part.to(torch.float64)
            totals += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
        mean, square = totals / (len(self.train) * self.size[0] * self.size[1])
        return mean.float(), (square - mean.square()).sqrt().clamp(min=1).float()


class Batches:
    """Batches of one split as (N, C, H, W) float maps, normalised, in channels_last layout.

    In training every epoch has its own order, shifts and flips, which depend on `seed` and the epoch alone: a
    resumed training sees what an undisturbed one saw. A last, smaller batch is left out of training.

    Args:
        images: the split, moved to `device` as a whole.
        batch_size: samples in a batch over all processes.
        mean: per channel, on the scale 0 to 255.
        std: likewise.
        device: where batches are made.
        share: (rank, processes): which slice of each batch this process gets.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        mean: Tensor,
        std: Tensor,
        *,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
    ) -> None:
        _checks.integer_at_least(1, batch_size=batch_size)
        self.pixels = images.pixels.to(device)
        self.labels = images.labels.to(device)
        self.batch_size = min(batch_size, len(images))
        self.share = share
        self._scale = (1 / std).to(device).reshape(1, -1, 1, 1)
        self._shift = (-mean / std).to(device).reshape(1, -1, 1, 1)

    @property
    def steps(self) -> int:
        """Batches in a training epoch."""
        return len(self.labels) // self.batch_size

    def training(self, epoch: int, *, seed: int, padding: int, flip: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the shuffled, shifted and flipped batches of one epoch."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        rank, processes = self.share
        for step in range(self.steps):
            samples = order[step * self.batch_size : (step + 1) * self.batch_size]
            moves = torch.randint(0, 2 * padding + 1, (2, len(samples)), generator=generator)
            mirrored = torch.rand(len(samples), generator=generator) < 0.5
            mine = slice(rank, None, processes)
            index = samples[mine].to(self.pixels.device)
            images = self.pixels[index]
            if padding:
                images = shift(images, moves[:, mine].to(images.device), padding)
            if flip:
                images = torch.where(mirrored[mine].to(images.device).reshape(-1, 1, 1, 1), images.flip(3), images)
            yield self._normalised(images), self.labels[index]

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in their own order, as they are."""
        for images, labels in zip(self.pixels.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            yield self._normalised(images), labels

    def _normalised(self, images: Tensor) -> Tensor:
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, floats, self._scale).contiguous(memory_format=torch.channels_last)


def shift(images: Tensor, moves: Tensor, padding: int) -> Tensor:
    """Return each image moved within a frame of zeros: (N, C, H, W), (2, N) -> (N, C, H, W).

    A move of `padding` leaves the image where it is; 0 shows `padding` rows of the frame above it.

    >>> shift(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[2], [1]]), 1)
    tensor([[[[3, 4],
              [0, 0]]]])
    """
    height, width = images.shape[2:]
    framed = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, moves[0], moves[1]]


def load_dataset(source: str | Path, image_size: int | None = None) -> Dataset:
    """Load "digits" (bundled with scikit-learn), or a folder of parquet files in the Hugging Face layout.

    Args:
        source: "digits", or a folder with train*.parquet and validation*, val* or test*.parquet, at any depth.
        image_size: scale the shorter side to this and crop the centre; needed where sizes differ.

    Refused with `DataError`, which names the file: a missing folder or split, an unreadable file, a truncated image,
    images of several sizes, a missing or negative label, fewer than two classes, classes that differ between splits.
    """
    if image_size is not None:
        _checks.integer_at_least(4, image_size=image_size)
    if str(source) == "digits":
        if image_size is not None:
            raise _checks.InvalidValueError(f"digits are 8x8, got image_size {image_size}. Leave it out.")
        return _digits()
    folder = _checks.existing_path("data folder", source)
    if not folder.is_dir():
        raise _checks.DataError(f"{folder} is a file; expected 'digits' or a folder with train*.parquet.")
    splits = {split: _read_split(folder, split, image_size) for split in _SPLITS}
    (train, classes), (validation, other) = splits["train"], splits["validation"]
    if classes != other:
        differing = sorted(set(classes) ^ set(other))
        which = f"only in one of them: {differing[:5]}" if differing else "the same names in another order"
        raise _checks.DataError(f"{folder}: the splits have different classes; {which}.")
    if train.pixels.shape[1:] != validation.pixels.shape[1:]:
        sizes = [tuple(images.pixels.shape[2:]) for images in (train, validation)]
        raise _checks.DataError(f"{folder}: train images are {sizes[0]}, validation images {sizes[1]}; set image_size.")
    return Dataset(str(source), classes, train, validation, padding=max(1, train.pixels.shape[3] // 8), flip=True)


def _digits() -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits, 8x8: every fifth of a stratified shuffle is for validation."""
    datasets = _checks.optional_module("sklearn.datasets", "the digits data set")
    selection = _checks.optional_module("sklearn.model_selection", "the digits data set")
    bunch: Any = datasets.load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, validation = selection.train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return Dataset(
        "digits",
        tuple(str(digit) for digit in range(10)),
        Images(pixels[train], labels[train]),
        Images(pixels[validation], labels[validation]),
        padding=1,
        flip=False,
    )


def _read_split(folder: Path, split: str, image_size: int | None) -> tuple[Images, tuple[str, ...]]:
    """Read all parquet files of one split."""
    parquet = sorted(folder.rglob("*.parquet"))
    files: list[Path] = []
    for prefix in _SPLITS[split]:
        files = files or [file for file in parquet if file.name.startswith(prefix)]
    if not files:
        found = ", ".join(file.name for file in parquet[:5]) or "no parquet file at all"
        wanted = " or ".join(f"{prefix}*.parquet" for prefix in _SPLITS[split])
        raise _checks.DataError(f"{folder} has no {split} split: expected {wanted}, found {found}.")
    parts = [_read_file(file, image_size) for file in files]
    names = parts[0][2]
    for file, part in zip(files, parts, strict=True):
        if part[2] != names:
            raise _checks.DataError(f"{file}: its classes or their order differ from those of {files[0]}.")
    pixels = [image for part in parts for image in part[0]]
    labels = torch.tensor([label for part in parts for label in part[1]])
    sizes = {tuple(image.shape) for image in pixels}
    if len(sizes) > 1:
        raise _checks.DataError(
            f"{files[0]}: images have {len(sizes)} different sizes, for example {sorted(sizes)[:2]}; set image_size."
        )
    if len(labels.unique()) < 2:
        raise _checks.DataError(f"{files[0]}: all {len(labels)} images have one class; expected at least two.")
    names = names or tuple(str(label) for label in range(int(labels.max()) + 1))
    if int(labels.max()) >= len(names):
        raise _checks.DataError(f"{files[0]}: label {int(labels.max())}, but only {len(names)} class names.")
    return Images(torch.stack(pixels), labels), names


def _read_file(file: Path, image_size: int | None) -> tuple[list[Tensor], list[int], tuple[str, ...]]:
    """Return images (C, H, W), labels and class names ((), where the file has none) of one parquet file."""
    parquet = _checks.optional_module("pyarrow.parquet", "reading parquet files")
    try:
        table: Any = parquet.read_table(file)
    except Exception as error:
        raise _checks.DataError(f"{file}: cannot be read as parquet: {str(error).splitlines()[0]}") from None
    image_column, label_column = _columns(file, table)
    labels = table[label_column].to_pylist()
    for row, label in enumerate(labels):
        if not isinstance(label, int) or label < 0:
            raise _checks.DataError(f"{file}, row {row}: label {label!r}; expected an integer from 0.")
    images = []
    for row, value in enumerate(table[image_column].to_pylist()):
        content = value.get("bytes") if isinstance(value, dict) else value
        images.append(_decode(f"{file}, row {row}", content, image_size))
    return images, labels, _class_names(table, label_column)


def _columns(file: Path, table: Any) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
    names = table.column_names
    image = next((name for name in ("image", "img") if name in names), None)
    label = next((name for name in ("label", "labels", "fine_label") if name in names), None)
    if image is None or label is None:
        raise _checks.DataError(f"{file}: expected columns 'image' and 'label', found {', '.join(names)}.")
    return image, label


def _class_names(table: Any, column: str) -> tuple[str, ...]:
    """Return the names of a Hugging Face ClassLabel column, from the schema's metadata."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    feature = json.loads(metadata).get("info", {}).get("features", {}).get(column, {})
    return tuple(feature.get("names", ()))


def _decode(where: str, content: bytes | None, image_size: int | None) -> Tensor:
    """Return an encoded image as (3, H, W) uint8."""
    import numpy as np
    from PIL import Image, ImageOps

    if not content:
        raise _checks.DataError(f"{where}: no image bytes.")
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise _checks.DataError(f"{where}: truncated or unreadable image ({error}).") from None
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
