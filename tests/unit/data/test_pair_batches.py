"""Batches of pairs: image and mask change together; same seed and epoch, same batches, with any number of workers."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from gatewise.data import IGNORED, Augmentation, SegmentationBatches, SegmentationSplit, load_pairs, make_batches
from gatewise.data.masks import MaskEncoding
from gatewise.data.pair_batches import SCALES, cropped
from gatewise.data.tables import EncodedRows
from gatewise.errors import DataError, InvalidValueError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors

ZERO, ONE = torch.zeros(3), torch.ones(3)
MEAN, STD = torch.tensor([100.0, 121, 140]), torch.tensor([50.0, 60, 70])
STEP = 50  # between the red of two classes
KINDS = [
    Augmentation(),
    Augmentation(flip=True),
    Augmentation(crop=True),
    Augmentation(crop=True, flip=True, scale=True),
]


def content(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def pairs_of(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], times: int = 1, **options: int
) -> SegmentationSplit:
    """Return pairs of images (H, W, 3) and masks (H, W), whose classes are their values, all `times` over."""
    parts = [("images", [content(image) for image in images])], [("masks", [content(mask) for mask in masks])]
    encoded = [EncodedRows([(name, rows * times)]) for ((name, rows),) in parts]
    return SegmentationSplit(encoded[0], encoded[1], MaskEncoding(tuple(map(str, range(240)))), **options)


def telling(sizes: Sequence[tuple[int, int]], block: int = 1, **options: int) -> SegmentationSplit:
    """Return pairs whose red is the class of a pixel and whose green is the image number; random blocks of 0 to 4."""
    images, masks = [], []
    for number, (height, width) in enumerate(sizes):
        coarse = np.random.default_rng(number).integers(0, 5, (-(-height // block), -(-width // block)))
        masks.append(coarse.repeat(block, 0).repeat(block, 1)[:height, :width])
        green = np.full((height, width), number)
        images.append(np.stack([masks[-1] * STEP, green, green], 2))
    return pairs_of(images, masks, **options)


def epoch(
    batches: SegmentationBatches, augmentation: Augmentation, number: int = 1, seed: int = 3, start: int = 0
) -> list[tuple[Tensor, Tensor]]:
    return list(batches.training(number, seed=seed, augmentation=augmentation, start=start))


def equal(first: Sequence[tuple[Tensor, Tensor]], second: Sequence[tuple[Tensor, Tensor]]) -> bool:
    if len(first) != len(second):
        return False
    matched = zip(itertools.chain(*first), itertools.chain(*second), strict=True)
    return all(torch.equal(a, b) for a, b in matched)


def order(shown: Sequence[tuple[Tensor, Tensor]]) -> list[list[int]]:
    """Return the numbers of the images in each batch, of images without padding."""
    return [images[:, 1, 0, 0].int().tolist() for images, _ in shown]


SAME = [(10, 12)] * 13
MIXED = [(10, 12), (7, 9), (16, 6), (12, 12), (6, 20), (10, 12), (9, 9)]


# --- Which images, in which order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", KINDS, ids=str)
def test_batches_depend_only_on_seed_and_epoch(augmentation: Augmentation) -> None:
    first = epoch(SegmentationBatches(telling(SAME, crop=8), 4, ZERO, ONE), augmentation)
    torch.manual_seed(9)
    np.random.seed(9)
    batches = SegmentationBatches(telling(SAME, crop=8), 4, ZERO, ONE)
    epoch(batches, augmentation, number=0)
    assert equal(epoch(batches, augmentation), first)
    assert not equal(epoch(batches, augmentation, number=2), first)
    assert not equal(epoch(batches, augmentation, seed=4), first)


def test_epoch_shows_every_pair_once_except_incomplete_batch() -> None:
    batches = SegmentationBatches(telling(SAME), 4, ZERO, ONE)
    shown = order(epoch(batches, Augmentation()))
    assert [len(batch) for batch in shown] == [4, 4, 4]
    assert batches.steps == 3
    assert len(set(itertools.chain(*shown))) == 12
    epochs = (order(epoch(batches, Augmentation(), number=number)) for number in range(12))
    assert {number for shown in epochs for batch in shown for number in batch} == set(range(13))


@pytest.mark.parametrize("augmentation", KINDS, ids=str)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_epoch_can_start_at_any_batch(augmentation: Augmentation, start: int) -> None:
    batches = SegmentationBatches(telling(SAME, crop=8), 4, ZERO, ONE)
    assert equal(epoch(batches, augmentation, start=start), epoch(batches, augmentation)[start:])


@pytest.mark.parametrize("augmentation", KINDS[1:], ids=str)
def test_held_pairs_make_same_batches_as_streamed_pairs(augmentation: Augmentation) -> None:
    held, streamed = telling(SAME, crop=8, side=9), telling(SAME, crop=8, side=9)
    held.hold()
    first, second = (SegmentationBatches(pairs, 4, MEAN, STD) for pairs in (held, streamed))
    assert equal(epoch(first, augmentation), epoch(second, augmentation))
    assert equal(list(first.evaluation()), list(second.evaluation()))


def test_number_of_workers_does_not_matter() -> None:
    alone, two = (SegmentationBatches(telling(MIXED, crop=8), 3, MEAN, STD, workers=workers) for workers in (0, 2))
    assert two.workers == 2
    assert equal(epoch(alone, KINDS[3]), epoch(two, KINDS[3]))
    assert equal(list(alone.evaluation()), list(two.evaluation()))


@pytest.mark.parametrize("processes", [2, 3])
def test_process_shares_make_up_each_batch(processes: int) -> None:
    shares = [SegmentationBatches(telling(SAME), 6, MEAN, STD, share=(rank, processes)) for rank in range(processes)]
    whole = epoch(SegmentationBatches(telling(SAME), 6, MEAN, STD), Augmentation(flip=True))
    parts = [epoch(share, Augmentation(flip=True)) for share in shares]
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        for kind, expected in enumerate(batch):
            together = torch.stack([part[step][kind] for part in parts], 1).flatten(0, 1)
            assert torch.equal(together, expected)


@pytest.mark.parametrize("processes", [2, 3])
def test_process_shares_have_same_images_with_other_crops(processes: int) -> None:
    crop = Augmentation(crop=True)
    whole = order(epoch(SegmentationBatches(telling(SAME, crop=8), 6, ZERO, ONE), crop))
    same = pairs_of([np.arange(192).reshape(8, 8, 3)], [np.zeros((8, 8))], 12, crop=3)
    shown = []
    for rank in range(processes):
        share = SegmentationBatches(telling(SAME, crop=8), 6, ZERO, ONE, share=(rank, processes))
        assert order(epoch(share, crop)) == [batch[rank::processes] for batch in whole]
        shown.append(epoch(SegmentationBatches(same, 6, ZERO, ONE, share=(rank, processes)), crop))
    assert not equal(*shown[:2])


def test_make_batches_accepts_pairs() -> None:
    streamed, held = telling(SAME), telling(SAME)
    held.hold()
    for pairs in (streamed, held):
        batches = make_batches(pairs, 4, ZERO, ONE, augmentation=KINDS[3], workers=2)
        assert type(batches) is SegmentationBatches
        assert batches.workers == 2


def test_evaluation_batch_has_limited_number_of_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = telling(SAME)
    values = 2 * pairs[0][1].numel() * len(pairs.meaning.kept)
    monkeypatch.setattr("gatewise.data.pair_batches._VALUES", values)
    batches = make_batches(pairs, 4, ZERO, ONE, augmentation=KINDS[0])
    assert max(len(labels) for _, labels in batches.evaluation()) == 2


# --- Evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_shows_complete_pairs_in_order_grouped_by_size() -> None:
    sizes = [(6, 8)] * 5 + [(8, 6)] * 2 + [(6, 8)] + [(4, 4)] * 3
    pairs = telling(sizes, crop=3)
    shown = list(SegmentationBatches(pairs, 3, ZERO, ONE).evaluation())
    assert [tuple(masks.shape) for _, masks in shown] == [(3, 6, 8), (2, 6, 8), (2, 8, 6), (1, 6, 8), (3, 4, 4)]
    assert list(itertools.chain(*order(shown))) == list(range(11))
    for index, (image, mask) in enumerate((i, m) for batch in shown for i, m in zip(*batch, strict=True)):
        assert torch.equal(image, pairs[index][0].float())
        assert torch.equal(mask, pairs[index][1].long())


def test_evaluation_keeps_ignored_pixels() -> None:
    pairs = pairs_of([np.zeros((2, 2, 3))], [np.array([[0, 255], [1, 255]])])
    ((_, masks),) = SegmentationBatches(pairs, 4, ZERO, ONE).evaluation()
    assert masks.tolist() == [[[0, IGNORED], [1, IGNORED]]]


@pytest.mark.parametrize("augmentation", KINDS, ids=str)
def test_images_are_channels_last_floats_and_masks_are_integers(
    augmentation: Augmentation,
) -> None:
    batches = SegmentationBatches(telling(SAME, crop=8), 4, MEAN, STD)
    plain = SegmentationBatches(telling(SAME, crop=8), 4, ZERO, ONE)
    for own, raw in (
        (epoch(batches, augmentation), epoch(plain, augmentation)),
        (batches.evaluation(), plain.evaluation()),
    ):
        for (images, masks), (pixels, same) in zip(own, raw, strict=True):
            assert (images.dtype, masks.dtype) == (torch.float32, torch.int64)
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(masks, same)
            inside = (masks != IGNORED).unsqueeze(1).expand_as(images)  # the colour of padding is the mean's
            expected = (pixels - MEAN.reshape(1, 3, 1, 1)) / STD.reshape(1, 3, 1, 1)
            assert_close(images[inside], expected[inside])


# --- Augmentation ----------------------------------------------------------------------------------------------------


def cropped_by_loops(
    pixels: Tensor, mask: Tensor, size: tuple[int, int], fill: Tensor, start: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the expected result of `cropped`, pixel by pixel; `start` is the offset of the smaller in the larger."""
    part, labels = torch.empty(len(pixels), *size, dtype=pixels.dtype), torch.empty(size, dtype=mask.dtype)
    for row in range(size[0]):
        for column in range(size[1]):
            own_row = row + start[0] if mask.shape[0] >= size[0] else row - start[0]
            own_column = column + start[1] if mask.shape[1] >= size[1] else column - start[1]
            inside = 0 <= own_row < mask.shape[0] and 0 <= own_column < mask.shape[1]
            part[:, row, column] = pixels[:, own_row, own_column] if inside else fill[:, 0, 0]
            labels[row, column] = mask[own_row, own_column] if inside else IGNORED
    return part, labels


@given(st.data())
def test_crop_is_part_of_image_or_padded_image(data: st.DataObject) -> None:
    height, width, *size = (data.draw(st.integers(1, 7)) for _ in range(4))
    start = tuple(data.draw(st.integers(0, abs(a - b))) for a, b in zip((height, width), size, strict=True))
    at = tuple(
        place / abs(a - b) if a != b else data.draw(st.floats(0, 1))
        for place, a, b in zip(start, (height, width), size, strict=True)
    )
    channels = data.draw(st.sampled_from([1, 3]))
    pixels = torch.arange(channels * height * width, dtype=torch.uint8).reshape(channels, height, width)
    mask = torch.arange(100, 100 + height * width, dtype=torch.uint8).reshape(height, width)
    fill = torch.tensor([200, 210, 220], dtype=torch.uint8)[:channels].reshape(-1, 1, 1)
    found = cropped(pixels, mask, tuple(size), fill, at)
    for own, expected in zip(found, cropped_by_loops(pixels, mask, tuple(size), fill, start), strict=True):
        assert torch.equal(own, expected)
        assert own.dtype == torch.uint8


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
def test_crop_may_be_anywhere(own: int, wanted: int, down: float, right: float) -> None:
    mask = torch.arange(own * own).reshape(own, own)
    pixels, labels = cropped(mask.expand(1, -1, -1), mask, (wanted, wanted), torch.full((1, 1, 1), -1), (down, right))
    assert torch.equal(torch.where(labels == IGNORED, -1, labels), pixels[0])
    assert int((labels != IGNORED).sum()) == min(own, wanted) ** 2


@pytest.mark.parametrize("augmentation", KINDS[:3], ids=str)
def test_image_and_mask_are_moved_together(augmentation: Augmentation) -> None:
    batches = SegmentationBatches(telling(MIXED if augmentation.crop else SAME, crop=8), 4, ZERO, ONE)
    for number in range(4):
        for images, masks in epoch(batches, augmentation, number):
            inside = masks != IGNORED
            assert torch.equal(images[:, 0][inside], masks[inside].float() * STEP)
            assert inside.any()
            assert inside.all() or augmentation.crop


def test_image_and_mask_are_scaled_together() -> None:
    batches = SegmentationBatches(telling([(60, 80)] * 12, block=15, crop=48), 4, ZERO, ONE)
    agreeing = []
    for images, masks in epoch(batches, Augmentation(scale=True, crop=True, flip=True)):
        inside = masks != IGNORED
        red = images[:, 0]
        level = (red / STEP).round().long()
        near = (masks.float() * STEP - red).abs() <= 5  # apart from the borders between blocks, which are blurred
        agreeing.append((near & inside).sum() / inside.sum())
        flat = torch.nn.functional.max_pool2d(red, 3, 1, 1) == -torch.nn.functional.max_pool2d(-red, 3, 1, 1)
        assert torch.equal(level[flat & inside], masks[flat & inside])
    assert min(agreeing) > 0.8


def ramps(count: int) -> SegmentationBatches:
    """Return batches of one pair `count` times, whose red, and class, is the column, and whose green is the row."""
    rows, columns = np.mgrid[0:80, 0:240]
    return SegmentationBatches(pairs_of([np.stack([columns, rows, rows], 2)], [columns], count, crop=32), 40, ZERO, ONE)


def test_scales_are_log_symmetric_between_half_and_2() -> None:
    assert SCALES == (0.5, 2.0)
    steepness = []
    for images, masks in epoch(ramps(400), Augmentation(scale=True, crop=True)):
        red, green = images[:, 0], images[:, 1]
        across, down = ((red[:, 5, 26] - red[:, 5, 5]) / 21, (green[:, 26, 5] - green[:, 5, 5]) / 21)
        of_mask = (masks[:, 5, 26] - masks[:, 5, 5]).float() / 21
        assert_close(across, down, atol=0.15, rtol=0)  # both sides by one factor
        assert_close(across, of_mask, atol=0.15, rtol=0)
        steepness.append(across)
    found = torch.cat(steepness)
    assert 0.4 < float(found.min()) < 0.6
    assert 1.8 < float(found.max()) < 2.1
    assert abs(float((found < 1).double().mean()) - 0.5) < 5 * 0.5 / 400**0.5
    assert abs(float((found < 2**-0.5).double().mean()) - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5


def test_crop_without_scale_keeps_pixels_of_image() -> None:
    for images, masks in epoch(ramps(40), Augmentation(crop=True)):
        assert images.shape == (40, 3, 32, 32)
        assert torch.equal(masks - masks[:, :, :1], torch.arange(32).expand(40, 32, 32))
        assert len(masks[:, 0, 0].unique()) > 20
        assert len(images[:, 1, 0, 0].unique()) > 20


def test_half_of_pairs_are_mirrored() -> None:
    image = np.arange(9).reshape(3, 3)
    pairs = pairs_of([np.stack([image] * 3, 2)], [image], 600)
    ((images, masks),) = epoch(SegmentationBatches(pairs, 600, ZERO, ONE), Augmentation(flip=True))
    plain = torch.from_numpy(image)
    flips = (masks == plain.flip(1)).flatten(1).all(1)
    assert (flips | (masks == plain).flatten(1).all(1)).all()
    assert abs(float(flips.double().mean()) - 0.5) < 5 * 0.5 / 600**0.5
    assert torch.equal(images[:, 0], masks.float())


def test_pairs_without_augmentation_are_unchanged() -> None:
    pairs = telling(SAME, crop=4)
    for images, masks in epoch(SegmentationBatches(pairs, 4, ZERO, ONE), Augmentation()):
        for image, mask in zip(images, masks, strict=True):
            number = int(image[1, 0, 0])
            assert torch.equal(image, pairs[number][0].float())
            assert torch.equal(mask, pairs[number][1].long())


def test_padding_is_mean_colour_and_ignored() -> None:
    pairs = telling([(4, 5)] * 4, crop=9)
    ((images, masks),) = epoch(SegmentationBatches(pairs, 4, MEAN, STD), Augmentation(crop=True))
    assert images.shape == (4, 3, 9, 9)
    outside = masks == IGNORED
    assert (outside.flatten(1).sum(1) == 81 - 20).all()
    assert images.movedim(1, -1)[outside].abs().max() < 1e-6
    assert (images.movedim(1, -1)[~outside].abs().amax(1) > 0.1).all()


def test_padding_is_byte_nearest_to_mean() -> None:
    mean = torch.tensor([100.4, 99.6, 0.0])
    ((images, masks),) = epoch(SegmentationBatches(telling([(4, 5)], crop=9), 1, mean, ONE), Augmentation(crop=True))
    padding = images.movedim(1, -1)[masks == IGNORED]
    assert_close(padding, torch.tensor([-0.4, 0.4, 0.0]).expand_as(padding), atol=1e-4, rtol=0)


def test_default_crop_has_size_of_first_image() -> None:
    for images, masks in epoch(SegmentationBatches(telling(MIXED), 3, ZERO, ONE), Augmentation(crop=True)):
        assert images.shape == (3, 3, 10, 12)
        assert masks.shape == (3, 10, 12)


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_different_sizes_without_crop_rejected_with_both_files() -> None:
    with pytest.raises(DataError) as caught:
        epoch(SegmentationBatches(telling([(10, 12), (10, 12), (12, 10)]), 3, ZERO, ONE), Augmentation(flip=True))
    assert str(caught.value) == (
        "images, row 2: the image is 10x12, but images, row 0 is 12x10; add crop to augmentation."
    )


def test_batch_size_zero_rejected() -> None:
    with pytest.raises(InvalidValueError, match="batch_size must be at least 1, got 0"):
        SegmentationBatches(telling(SAME), 0, ZERO, ONE)


def write_pairs(root: Path) -> Path:
    for split in ("train", "val"):
        for number in range(4):
            for part, values in (("images", np.full((6, 6, 3), number)), ("masks", np.arange(36).reshape(6, 6) % 3)):
                path = root / split / part / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content(values))
    return root


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def _other_size(path: Path) -> None:
    path.write_bytes(content(np.zeros((5, 6))))


def _beyond(path: Path) -> None:
    path.write_bytes(content(np.full((6, 6), 7)))


BROKEN = {
    "truncated image": ("images", _truncate, "truncated or unreadable image"),
    "truncated mask": ("masks", _truncate, "truncated or unreadable mask"),
    "mask of another size": ("masks", _other_size, "the mask is 6x5"),
    "value beyond the classes": ("masks", _beyond, "value 7 in 36 pixels"),
    "file that is gone": ("masks", Path.unlink, "does not exist"),
}


@pytest.mark.parametrize(
    ("case", "workers"), [*((case, 0) for case in BROKEN), ("truncated image", 2), ("file that is gone", 2)]
)
def test_broken_pair_is_one_line_with_its_file_when_read(tmp_path: Path, case: str, workers: int) -> None:
    part, break_it, message = BROKEN[case]
    pairs = load_pairs(write_pairs(tmp_path), loading="stream", class_names="a,b,c").train
    broken = tmp_path / "train" / part / "3.png"
    break_it(broken)
    batches = SegmentationBatches(pairs, 2, ZERO, ONE, workers=workers)
    for read in (lambda: epoch(batches, Augmentation(crop=True)), lambda: list(batches.evaluation())):
        with pytest.raises(DataError) as caught:
            read()
        separator = " " if case == "file that is gone" else ": "
        assert str(caught.value).startswith(f"{broken}{separator}{message}")
        assert "\n" not in str(caught.value)


def test_every_start_of_crop_is_equally_likely() -> None:
    mask = torch.arange(4).expand(1, 4)
    shares = (torch.arange(400) + 0.5) / 400
    fill = torch.zeros(1, 1, 1, dtype=torch.long)
    starts = [int(cropped(mask[None], mask, (1, 1), fill, (0.0, float(share)))[1]) for share in shares]
    assert torch.tensor(starts).bincount().tolist() == [100, 100, 100, 100]
