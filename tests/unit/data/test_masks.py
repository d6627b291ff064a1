"""Masks: meaning of their values, scaling of images with masks, and properties of a split."""

import io
import itertools
import math
import pickle
import struct
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from gatewise.data import IGNORED, Augmentation, Dataset, Images, SegmentationDataset, SegmentationSplit, evenly_spaced
from gatewise.data.masks import MaskEncoding, decode_mask, infer_mask_encoding
from gatewise.data.pairs import resized, scaled_to
from gatewise.data.tables import EncodedRows
from gatewise.errors import DataError, InvalidValueError

NAMES = ("road", "car", "tree")


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def grey(values: Sequence[Sequence[int]] | np.ndarray) -> bytes:
    """Return a mask as an 8-bit PNG."""
    return saved(Image.fromarray(np.asarray(values, dtype=np.uint8)))


def colours(pixels: np.ndarray) -> bytes:
    """Return (H, W, 3) as a PNG."""
    return saved(Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)))


def random_values(seed: int, height: int = 5, width: int = 7, below: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, (height, width), dtype=np.uint8)


def rows(name: str, content: Sequence[bytes]) -> EncodedRows:
    return EncodedRows([(name, content)])


def make_pairs(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], meaning: MaskEncoding | None = None, **options: int
) -> SegmentationSplit:
    """Return pairs of images (H, W, 3) and masks (H, W)."""
    encoded = rows("images", [colours(i) for i in images]), rows("masks", [grey(m) for m in masks])
    return SegmentationSplit(*encoded, meaning or MaskEncoding(NAMES), **options)


def some_pairs(
    sizes: Sequence[tuple[int, int]], meaning: MaskEncoding | None = None, **options: int
) -> SegmentationSplit:
    """Return random pairs of these (height, width)."""
    images = [np.random.default_rng(i).integers(0, 256, (*size, 3)) for i, size in enumerate(sizes)]
    return make_pairs(images, [random_values(i, *size, below=3) for i, size in enumerate(sizes)], meaning, **options)


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_grey_mask_is_read_as_its_values(form: str) -> None:
    values = random_values(0)
    found = decode_mask("a", saved(Image.fromarray(values), form))
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), values)


@pytest.mark.parametrize("count", [2, 4, 16, 200])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_palette_mask_is_read_as_indices(count: int, form: str) -> None:
    values = random_values(1, below=count)
    values.flat[:count] = np.arange(count)[: values.size]
    image = Image.fromarray(values)
    image.putpalette([(7 * i + 100) % 256 for i in range(3 * count)])
    assert image.mode == "P"
    np.testing.assert_array_equal(decode_mask("a", saved(image, form)).numpy(), values)


def test_1_bit_mask_has_classes_0_and_1() -> None:
    values = random_values(2) > 100
    np.testing.assert_array_equal(decode_mask("a", saved(Image.fromarray(values))).numpy(), values.astype(int))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_mask_is_not_scaled(form: str) -> None:
    values = np.array([[0, 1, 255], [256, 300, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(decode_mask("a", saved(Image.fromarray(values), form)).numpy(), values)


def test_big_endian_16_bit_and_32_bit_masks_are_read() -> None:
    values = np.array([[0, 1, 300], [2, 70_000, 5]], dtype=np.int32)
    np.testing.assert_array_equal(decode_mask("a", saved(Image.fromarray(values), "TIFF")).numpy(), values)
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1)]
    head = b"MM\0*" + struct.pack(">I", 12) + struct.pack(">HH", 300, 7)
    table = struct.pack(">H", len(entries) + 1)
    for tag, kind, value in [*entries, (279, 4, 4)]:
        table += struct.pack(">HHI", tag, kind, 1) + struct.pack(*((">HH", value, 0) if kind == 3 else (">I", value)))
    content = head + table + struct.pack(">I", 0)
    assert Image.open(io.BytesIO(content)).mode == "I;16B"
    assert decode_mask("a", content).tolist() == [[300, 7]]


GREY = Image.fromarray(random_values(3, 16, 16))
INVALID: dict[str, tuple[bytes | None, str]] = {
    "JPEG": (saved(GREY, "JPEG"), "saved as JPEG, which changes class indices; expected PNG"),
    "GIF": (saved(GREY, "GIF"), "saved as GIF, which changes class indices"),
    "two JPEGs in one file": (saved(GREY, "MPO", save_all=True, append_images=[GREY]), "saved as MPO"),
    "RGB": (saved(GREY.convert("RGB")), "1 or I;16), got mode RGB with colours"),
    "RGBA": (saved(GREY.convert("RGBA")), "mode RGBA"),
    "grey with transparency": (saved(GREY.convert("LA")), "mode LA"),
    "floating point": (saved(GREY.convert("F"), "TIFF"), "mode F"),
    "nothing": (b"", "no image bytes"),
    "none": (None, "no image bytes"),
    "half a file": (saved(GREY)[:60], "truncated or unreadable mask"),
    "the beginning of a file": (saved(GREY)[:-40], "truncated or unreadable mask"),
    "text": (b"no image", "truncated or unreadable mask (unknown format)"),
}


@pytest.mark.parametrize("case", INVALID)
def test_non_mask_rejected_in_one_line_with_its_file(case: str) -> None:
    content, expected = INVALID[case]
    with pytest.raises(DataError) as caught:
        decode_mask("folder/a.png", content)
    message = str(caught.value)
    assert message.startswith("folder/a.png: ")
    assert expected in message
    assert "\n" not in message


# --- Meaning of values -----------------------------------------------------------------------------------------------


def test_values_are_classes_and_255_is_ignored() -> None:
    found = MaskEncoding(NAMES)(torch.tensor([[0, 1, 2, 255]], dtype=torch.int32), "a")
    assert found.tolist() == [[0, 1, 2, 255]]
    assert found.dtype == torch.uint8
    assert MaskEncoding(NAMES).kept == NAMES


@pytest.mark.parametrize("masks", [[[[0, 0]], [[0, 0]]], [[[0, 255]], [[0, 1]]], [[[255, 255]]], [[[1, 255]]]])
def test_masks_without_objects_or_with_a_border_have_no_wrong_values(masks: list[list[list[int]]]) -> None:
    said: list[str] = []
    MaskEncoding(("0", "1")).warn_of_values(rows("masks", [grey(mask) for mask in masks]), said.append)
    assert said == []


def test_classes_after_ignored_one_are_shifted_down() -> None:
    meaning = MaskEncoding(NAMES, ignored=0)
    assert meaning.kept == ("car", "tree")
    assert meaning(torch.tensor([[0, 1, 2]]), "a").tolist() == [[IGNORED, 0, 1]]


def test_255_rejected_where_other_value_is_ignored() -> None:
    with pytest.raises(DataError, match="a: value 255 in 1 pixels; expected 0 to 2 for 3 classes, or 7 for"):
        MaskEncoding(NAMES, ignored=7)(torch.tensor([[0, 255, 7]]), "a")


def test_foreground_is_1_and_other_classes_are_0() -> None:
    meaning = MaskEncoding((*NAMES, "void"), ignored=3, foreground="car")
    assert meaning.kept == ("car",)
    assert meaning(torch.tensor([[0, 1, 2, 3]]), "a").tolist() == [[0, 1, 0, IGNORED]]


def meaning_by_loops(values: Tensor, names: Sequence[str], ignored: int, foreground: str | None) -> list[list[int]]:
    """Return the class of each pixel as the names say it."""
    counted = [name for number, name in enumerate(names) if number != ignored]
    found = []
    for line in values.tolist():
        found.append([])
        for value in line:
            if value == ignored:
                found[-1].append(IGNORED)
            elif foreground is None:
                found[-1].append(counted.index(names[value]))
            else:
                found[-1].append(int(names[value] == foreground))
    return found


@given(st.data())
def test_each_pixel_gets_class_of_its_name(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 6))
    names = tuple("abcdef"[:count])
    ignored = data.draw(st.sampled_from([*range(count), count, count + 1, 255, 300, 65535]))
    counted = [name for number, name in enumerate(names) if number != ignored]
    foreground = data.draw(st.sampled_from([None, *counted]))
    pixel = st.sampled_from(sorted({*range(count), ignored}))
    height, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    values = torch.tensor([[data.draw(pixel) for _ in range(width)] for _ in range(height)], dtype=torch.int32)
    meaning = MaskEncoding(names, ignored, foreground)
    found = meaning(values, "a")
    assert found.dtype == torch.uint8
    assert found.tolist() == meaning_by_loops(values, names, ignored, foreground)
    assert meaning.kept == (tuple(counted) if foreground is None else (foreground,))


@pytest.mark.parametrize(("value", "count"), [(3, 1), (200, 2), (-1, 1), (65535, 3)])
def test_value_above_classes_rejected_with_file_and_pixels(value: int, count: int) -> None:
    values = torch.zeros(4, 4, dtype=torch.int32)
    values.view(-1)[:count] = value
    with pytest.raises(DataError) as caught:
        MaskEncoding(NAMES)(values, "b/7.png")
    assert str(caught.value).startswith(f"b/7.png: value {value} in {count} pixels; expected 0 to 2 for 3 classes")
    assert "or 255 for ignored pixels" in str(caught.value)
    assert "classes.txt" in str(caught.value)


def test_unknown_foreground_rejected_with_suggestion() -> None:
    with pytest.raises(InvalidValueError, match=r"unknown foreground class 'cars'; .*Did you mean 'car'\?"):
        MaskEncoding(NAMES, foreground="cars")


def test_ignored_class_cannot_be_foreground() -> None:
    with pytest.raises(InvalidValueError, match="unknown foreground class 'car'; expected one of 'road', 'tree'"):
        MaskEncoding(NAMES, ignored=1, foreground="car")


@pytest.mark.parametrize(("names", "ignored"), [(("road",), 255), (("road", "void"), 1), (("void", "road"), 0)])
def test_single_class_rejected(names: tuple[str, ...], ignored: int) -> None:
    with pytest.raises(DataError, match="expected at least two classes in the masks, got road"):
        MaskEncoding(names, ignored)


def test_one_class_with_background_can_be_foreground() -> None:
    meaning = MaskEncoding(("back", "void", "car"), ignored=1, foreground="car")
    assert meaning(torch.tensor([[0, 1, 2]]), "a").tolist() == [[0, 255, 1]]


def test_at_most_255_classes() -> None:
    names = tuple(map(str, range(256)))
    assert MaskEncoding(names[:255])(torch.tensor([[254, 255]]), "a").tolist() == [[254, 255]]
    with pytest.raises(DataError, match="expected at most 255 classes in the masks, got 256"):
        MaskEncoding(names)


def test_mask_reader_can_be_sent_to_workers() -> None:
    meaning = MaskEncoding(NAMES, ignored=0, foreground="tree")
    again = pickle.loads(pickle.dumps(meaning))
    assert again == meaning
    assert again(torch.tensor([[0, 1, 2]]), "a").tolist() == [[255, 0, 1]]


# --- The number of classes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "ignored", "expected"),
    [
        ([[[0, 1]], [[3, 255]]], 255, 4),
        ([[[0, 1]], [[3, 255]], [[2, 2]]], 255, 4),
        ([[[0, 1, 11]]], 11, 2),
        ([[[1, 5]]], 0, 6),
        ([[[254]]], 255, 255),
    ],
)
def test_classes_are_highest_counted_value_plus_one(masks: list[list[list[int]]], ignored: int, expected: int) -> None:
    meaning = infer_mask_encoding([rows("masks", [grey(mask) for mask in masks])], (), ignored)
    assert meaning.classes == tuple(map(str, range(expected)))


@pytest.mark.parametrize("values", [[[0, 0]], [[255, 255]]])
def test_single_value_rejected(values: list[list[int]]) -> None:
    with pytest.raises(DataError, match="expected at least two classes in the masks, got 0"):
        infer_mask_encoding([rows("masks", [grey(values)])], (), 255)


def test_splits_are_read_together() -> None:
    splits = [rows("train", [grey([[0, 1]])]), rows("val", [grey([[0, 3]])])]
    assert len(infer_mask_encoding(splits, ()).classes) == 4


def test_highest_value_255_error_suggests_ignore_index() -> None:
    with pytest.raises(DataError, match=r"masks, row 0 .*values up to 255; .*set ignore_index to it") as caught:
        infer_mask_encoding([rows("masks", [grey([[0, 1]]), grey([[255, 2]])])], (), 11)
    assert "\n" not in str(caught.value)


def test_256_evenly_spaced_masks_give_number_of_classes() -> None:
    low, high = grey([[1]]), grey([[9]])
    looked_at = evenly_spaced(600, 256)
    between = next(index for index in range(600) if index not in looked_at)
    masks = [low] * 600
    masks[between] = high
    assert len(infer_mask_encoding([rows("masks", masks)], (), 255).classes) == 2
    for index in (0, 599, looked_at[100]):
        masks = [low] * 600
        masks[index] = high
        assert len(infer_mask_encoding([rows("masks", masks)], (), 255).classes) == 10


@given(st.integers(1, 3000), st.integers(2, 600))
def test_indices_are_evenly_spaced(count: int, most: int) -> None:
    found = evenly_spaced(count, most)
    assert found == sorted(set(found))
    assert (found[0], found[-1], len(found)) == (0, count - 1, min(count, most))
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= 1


# --- Pairs -----------------------------------------------------------------------------------------------------------


def test_pair_has_pixels_of_image_and_classes_of_mask() -> None:
    image, mask = np.random.default_rng(0).integers(0, 256, (4, 6, 3)), random_values(0, 4, 6, below=3)
    pairs = make_pairs([image], [mask], MaskEncoding(NAMES, ignored=0))
    pixels, classes = pairs[0]
    assert (pixels.dtype, classes.dtype) == (torch.uint8, torch.uint8)
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), image)
    np.testing.assert_array_equal(classes.numpy(), np.where(mask == 0, 255, mask - 1).astype(np.uint8))
    assert pairs.shape == (3, 4, 6)
    assert pairs.crop_size == (4, 6)
    assert pairs.picture(0).size == (6, 4)


def test_crop_is_square() -> None:
    assert some_pairs([(4, 6)], crop=5).crop_size == (5, 5)


def test_held_pairs_equal_streamed_pairs() -> None:
    pairs = some_pairs([(8, 6), (5, 9), (7, 7)], MaskEncoding(NAMES, ignored=1), side=4)
    streamed = [pairs[index] for index in range(3)]
    assert not pairs.held
    pairs.hold()
    assert pairs.held
    pairs.images = pairs.masks = None  # so what comes now is what was held
    for index, (image, mask) in enumerate(streamed):
        assert torch.equal(pairs[index][0], image)
        assert torch.equal(pairs[index][1], mask)
    assert len({mask.shape for _, mask in streamed}) == 3


@pytest.mark.parametrize("shape", [(4, 7), (6, 4), (3, 6)])
def test_mask_of_other_size_than_image_rejected_with_both_files(shape: tuple[int, int]) -> None:
    good = random_values(0, 4, 6, below=3)
    pairs = make_pairs([np.zeros((4, 6, 3))] * 2, [good, random_values(1, *shape, below=3)])
    pairs[0]
    with pytest.raises(DataError) as caught:
        pairs[1]
    message = str(caught.value)
    assert message.startswith(f"masks, row 1: the mask is {shape[1]}x{shape[0]}, but its image images, row 1 is 6x4")
    assert "\n" not in message
    with pytest.raises(DataError, match="masks, row 1: the mask is"):
        pairs.hold()


def test_mask_above_classes_rejected_with_file() -> None:
    with pytest.raises(DataError, match="masks, row 0: value 9 in 4 pixels"):
        make_pairs([np.zeros((2, 2, 3))], [np.full((2, 2), 9)])[0]


@given(st.data())
def test_mask_is_scaled_to_class_at_centre_of_new_pixel(data: st.DataObject) -> None:
    height, width, new_height, new_width = (data.draw(st.integers(2, 12)) for _ in range(4))
    mask = torch.arange(height * width, dtype=torch.uint8).reshape(height, width)
    _, found = resized(torch.zeros(3, height, width, dtype=torch.uint8), mask, (new_height, new_width))
    assert found.shape == (new_height, new_width)
    assert found.dtype == torch.uint8
    for row in range(new_height):
        for column in range(new_width):
            at = (row + 0.5) * height / new_height, (column + 0.5) * width / new_width
            near = [{math.floor(place - 1e-4), math.floor(place + 1e-4)} for place in at]  # a tie has two
            assert int(found[row, column]) in {a * width + b for a in near[0] for b in near[1]}


@given(st.data())
def test_scaled_image_and_mask_stay_aligned(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(20, 60)), data.draw(st.integers(20, 60))
    border, axis = data.draw(st.integers(8, 12)), data.draw(st.integers(0, 1))
    size = data.draw(st.integers(10, 120)), data.draw(st.integers(10, 120))
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask.narrow(axis, border, (height, width)[axis] - border).fill_(1)
    image, scaled = resized((mask * 255).expand(3, -1, -1).contiguous(), mask, size)
    assert image.shape == (3, *size)
    assert scaled.unique().tolist() == [0, 1]
    profiles = (image[0] > 127).int().movedim(axis, 1)[0], scaled.movedim(axis, 1)[0]
    own, expected = (int((profile == 0).sum()) for profile in profiles)
    assert abs(own - expected) <= 1
    assert abs(expected - border * size[axis] / (height, width)[axis]) <= 0.5 + 1e-6


@pytest.mark.parametrize("column", range(4))
def test_image_is_scaled_with_antialiasing_and_mask_is_not(column: int) -> None:
    stripes = (torch.arange(64) % 4 == column).to(torch.uint8).expand(64, 64)
    image, mask = resized((stripes * 255).expand(3, -1, -1).contiguous(), stripes * 200, (16, 16))
    assert (image[:, :, 1:-1].int() - 64).abs().max() < 5  # every fourth column is white
    assert set(mask.unique().tolist()) <= {0, 200}


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((40, 60), 20, (20, 30)), ((60, 40), 20, (30, 20)), ((10, 15), 20, (20, 30)), ((20, 33), 20, (20, 33))],
)
def test_shorter_side_is_scaled_and_aspect_is_kept(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    image, mask = torch.zeros(3, *size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    found = scaled_to(side, image, mask)
    assert (found[0].shape, found[1].shape) == ((3, *expected), expected)
    same = scaled_to(None, image, mask)
    assert same[0] is image
    assert same[1] is mask
    pairs = some_pairs([size], side=side)
    assert pairs.shape == (3, *expected)
    assert pairs[0][1].shape == expected


# --- Two splits ------------------------------------------------------------------------------------------------------


def of(train: SegmentationSplit, validation: SegmentationSplit | None = None) -> SegmentationDataset:
    return SegmentationDataset("", train, validation or train)


def test_data_set_has_classes_channels_and_size() -> None:
    dataset = of(some_pairs([(4, 6)], MaskEncoding(NAMES, ignored=0)), some_pairs([(5, 9), (4, 4)]))
    assert (dataset.classes, dataset.channels, dataset.size) == (("car", "tree"), 3, (5, 9))
    assert of(some_pairs([(4, 6)], MaskEncoding(NAMES, foreground="car"))).classes == ("car",)


@pytest.mark.parametrize("held", [False, True])
def test_mean_and_std_are_over_all_pixels_for_any_sizes(held: bool) -> None:
    pairs = some_pairs([(4, 6), (9, 5), (7, 7)])
    if held:
        pairs.hold()
    values = torch.cat([pairs[index][0].double().flatten(1) for index in range(3)], 1)
    mean, std = of(pairs, some_pairs([(2, 2)])).statistics()
    assert_close(mean, values.mean(1).float())
    assert_close(std, values.std(1, correction=0).float())
    assert mean.dtype == std.dtype == torch.float32


def test_constant_channel_is_not_divided_by_zero() -> None:
    flat = np.broadcast_to([7, 0, 200], (3, 3, 3))
    mean, std = of(make_pairs([flat], [np.zeros((3, 3))])).statistics()
    assert (mean.tolist(), std.tolist()) == ([7, 0, 200], [1, 1, 1])


def test_512_evenly_spaced_images_and_all_masks_are_read() -> None:
    looked_at = set(evenly_spaced(700, 512))
    images = [np.full((1, 1, 3), 200 if index in looked_at else 0) for index in range(700)]
    masks = [np.full((1, 1), 1 if index in looked_at else 2) for index in range(700)]
    dataset = of(make_pairs(images, masks))
    assert dataset.statistics()[0].tolist() == [200, 200, 200]
    assert dataset.frequencies.tolist() == [0, 1, 1], "all masks: a rare class is not missed"


def frequencies_by_loops(masks: Sequence[Tensor], count: int) -> list[float]:
    """Return the share of each class among the pixels that count of the images in which it occurs."""
    found = []
    for number in range(count):
        own = there = 0
        for mask in masks:
            pixels = [value for line in mask.tolist() for value in line if value != IGNORED]
            if number in pixels:
                own += pixels.count(number)
                there += len(pixels)
        found.append(own / there if there else 0.0)
    return found


@given(st.data())
def test_frequencies_are_counted_in_images_with_the_class(data: st.DataObject) -> None:
    side, foreground = st.integers(1, 4), data.draw(st.sampled_from([None, "car"]))
    pixel = st.sampled_from([0, 1, 2, 3, 255] if data.draw(st.booleans()) else [0, 2, 255])
    masks = []
    for _ in range(data.draw(st.integers(1, 4))):
        height, width = data.draw(side), data.draw(side)
        masks.append(np.array([[data.draw(pixel) for _ in range(width)] for _ in range(height)]))
    pairs = make_pairs(
        [np.zeros((*mask.shape, 3)) for mask in masks], masks, MaskEncoding((*NAMES, "sky"), foreground=foreground)
    )
    decoded = [pairs[index][1] for index in range(len(masks))]
    expected = frequencies_by_loops(decoded, 2 if foreground else 4)
    assert_close(of(pairs).frequencies, torch.tensor(expected, dtype=torch.float32))


# --- Augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", Augmentation(scale=True, crop=True, flip=True)),
        ("none", Augmentation()),
        ("flip", Augmentation(flip=True)),
        ("crop", Augmentation(crop=True)),
        ("scale+crop", Augmentation(scale=True, crop=True)),
        ("flip+crop+scale", Augmentation(scale=True, crop=True, flip=True)),
    ],
)
def test_words_of_augmentation_of_pairs(text: str, expected: Augmentation) -> None:
    assert of(some_pairs([(4, 4)])).augmentation(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shift", "augmentation 'shift' is for images with one label; for masks use scale, crop and flip"),
        ("shift+flip", "is for images with one label"),
        ("rand-m9", "is for images with one label"),
        ("crop+augmix-m3", "is for images with one label"),
        ("scale", "augmentation 'scale' makes images of different sizes. Add crop"),
        ("scale+flip", "Add crop"),
        ("scales", r"unknown augmentation 'scales'.* Did you mean 'scale'\?"),
        ("auto+crop", "cannot combine the options"),
    ],
)
def test_augmentations_unsuitable_for_masks_rejected(text: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        of(some_pairs([(4, 4)])).augmentation(text)


def test_scale_rejected_for_classification() -> None:
    images = Images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(InvalidValueError, match=r"scale is only for masks\. Use crop"):
        Dataset("", ("a", "b"), images, images, padding=1, flip=True).augmentation("scale+crop")


def test_no_side_becomes_zero() -> None:
    pixels, mask = resized(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8), (0, 1))
    assert (pixels.shape, mask.shape) == ((3, 2, 2), (2, 2))


# --- Masks of brightness ---------------------------------------------------------------------------------------------


def soft_disc(side: int = 32) -> np.ndarray:
    """Return a disc whose edge is 6 pixels wide, from 0 to 255."""
    rows, columns = np.mgrid[:side, :side] - side / 2
    return ((11 - np.hypot(rows, columns)) / 6 * 255).clip(0, 255).astype(np.uint8)


@pytest.mark.situation("masks: soft edges, 0 to 255")
def test_soft_masks_need_a_threshold() -> None:
    soft = rows("masks", [grey(soft_disc().tolist())])
    counts = r"masks, row 0 and 0 others have \d+ values, 0 and 255 in \d+ % of pixels"
    with pytest.raises(DataError, match=rf"{counts}: masks with soft edges\? Add --mask-threshold 128"):
        infer_mask_encoding([soft], ())
    found = infer_mask_encoding([soft], (), threshold=100)
    assert found.kept == ("background", "foreground")
    content = soft.content(0)
    assert torch.equal(found(found.decode("a", content), "a"), torch.tensor(soft_disc() >= 100).to(torch.uint8))


@pytest.mark.situation("masks: many classes, in regions and in thin lines, are no soft edges")
def test_masks_of_many_classes_are_not_soft() -> None:
    classes = np.arange(200, dtype=np.uint8).reshape(10, 20).repeat(4, 0).repeat(4, 1)
    classes[::8] = 255
    assert len(infer_mask_encoding([rows("masks", [grey(classes.tolist())])], ()).classes) == 200


@pytest.mark.situation("masks: saved as JPEG")
def test_threshold_reads_jpeg_and_colours() -> None:
    image = Image.fromarray(soft_disc())
    found = infer_mask_encoding([], (), threshold=128)
    expected = torch.tensor(np.asarray(image) >= 128)
    for content in (saved(image, "JPEG"), saved(image.convert("RGB"), "PNG"), saved(image.convert("F"), "TIFF")):
        assert (found.decode("a", content).bool() == expected).float().mean() > 0.98


@pytest.mark.situation("masks: classes written as far-apart greys")
def test_few_values_far_apart_rejected() -> None:
    with pytest.raises(
        DataError, match=r"only the values 0, 128, which would be 129 classes\. Add --mask-threshold 128"
    ):
        infer_mask_encoding([rows("masks", [grey([[0, 0, 128], [128, 128, 255]])])], ())


def test_threshold_makes_two_classes() -> None:
    assert infer_mask_encoding([], ("sky", "bird"), threshold=9).kept == ("sky", "bird")
    with pytest.raises(InvalidValueError, match=r"mask_threshold makes two classes, .* got 3 names"):
        infer_mask_encoding([], ("a", "b", "c"), threshold=9)
    with pytest.raises(InvalidValueError, match="ignore_index 7 has no meaning with mask_threshold"):
        infer_mask_encoding([], (), 7, threshold=9)
