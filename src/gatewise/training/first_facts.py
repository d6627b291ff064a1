"""What a training begins with, in a few lines: images, classes and steps, and warnings about what cannot work."""

from gatewise.core import _validation
from gatewise.core.wording import as_lines, counted
from gatewise.data import Dataset, SegmentationDataset
from gatewise.training.constant_answer import ConstantAnswer
from gatewise.training.options import OptimisationOptions

FEW_STEPS = 100  # hardly more than the warm-up of a network from scratch
FEW_IMAGES = 100  # for validation: one image is a point or more


def first_facts(
    dataset: Dataset | SegmentationDataset, options: OptimisationOptions, constant: ConstantAnswer | None
) -> list[str]:
    """Return lines about a training before its first step.

    Args:
        dataset: the images.
        options: how long and in which batches it trains.
        constant: what the same answer for all images would score.
    """
    train, validation = len(dataset.train), len(dataset.validation)
    steps = train // min(options.batch_size, train)
    total = steps * options.epochs
    test = f", {len(dataset.test):,} test" if dataset.test is not None else ""
    first = (
        f"{train:,} training, {validation:,} validation{test} images, {_outputs(dataset)}, "
        f"{dataset.size[1]}x{dataset.size[0]} pixels; {counted(steps, 'step')} an epoch, {total:,} in all"
    )
    lines = [first, *as_lines(all_notes(dataset))]
    if options.batch_size > train:
        lines.append(
            f"warning: a batch of {options.batch_size} is larger than the {train} training images: every step sees "
            f"them all. Choose a smaller --batch-size, such as {_advised(train)}"
        )
    if total < FEW_STEPS:
        lines.append(
            f"warning: {total} steps are too few to learn much. Raise --epochs, or lower --batch-size "
            f"({options.batch_size})"
        )
    lines += few_images(dataset)
    return lines if constant is None else [*lines, constant.sentence]


def few_images(dataset: Dataset | SegmentationDataset) -> list[str]:
    """Return a warning if there are few validation images."""
    images = len(dataset.validation)
    if images >= FEW_IMAGES:
        return []
    of_classes = isinstance(dataset, Dataset) and dataset.labels == "class"
    each = f"one image is {100 / images:.1f} points: " if of_classes else ""
    return [f"warning: with {counted(images, 'validation image')}, {each}differences between networks are hard to see"]


def all_notes(dataset: Dataset | SegmentationDataset) -> list[str]:
    """Return the notes about a data set, and in which files of the results what they count is listed."""
    listings = [] if dataset.division is None else dataset.division.listings
    return [*dataset.notes, *([f"which images these are: {', '.join(listings)}"] if listings else [])]


def _outputs(dataset: Dataset | SegmentationDataset) -> str:
    names = _validation.listed(list(dataset.classes), 8)
    if isinstance(dataset, Dataset) and dataset.labels == "number":
        return f"numbers: {names}"
    return f"{len(dataset.classes)} classes: {names}" if len(dataset.classes) > 1 else f"class {names}"


def _advised(images: int) -> int:
    """Return the largest power of two that makes at least eight steps an epoch, at least 2."""
    return 1 << max(1, (images // 8).bit_length() - 1)
