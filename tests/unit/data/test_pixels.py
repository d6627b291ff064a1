"""Bands and values of image files: which become channels, which ranges become 0 to 255, and what is never dropped."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gatewise.data import Reading, load_dataset
from gatewise.data.band_image import BandImage
from gatewise.data.pixel_format import RGB, PixelFormat, parse_channels, parse_ranges
from gatewise.data.raster import read_raster
from gatewise.errors import DataError, GatewiseError, InvalidValueError

Make = Callable[[int, int], bytes]  # class and number of an image -> its file


def png16(values: Any) -> bytes:
    """Return a PNG file of 16 bits, from (H, W, bands)."""
    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def folder(root: Path, suffix: str, make: Make, count: int = 3) -> Path:
    """Write train/ and val/ with two classes of `count` images."""
    for split in ("train", "val"):
        for label in (0, 1):
            path = root / split / "ab"[label]
            path.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (path / f"{number}{suffix}").write_bytes(make(label, number))
    return root


def grey(values: Any, kind: str = "PNG") -> bytes:
    return saved(Image.fromarray(np.asarray(values)), kind)


def rgba(alpha: int, kind: str) -> bytes:
    return saved(Image.fromarray(np.full((4, 4, 4), (9, 8, 7, alpha), np.uint8), "RGBA"), kind)


# Channels


@pytest.mark.situation("pixels: grey images give one channel")
def test_grey_files_give_one_channel(tmp_path: Path) -> None:
    dataset = load_dataset(folder(tmp_path, ".png", lambda label, _: grey(np.full((4, 4), 90 + label, np.uint8))))
    assert dataset.channels == 1
    assert dataset.train[5].unique().tolist() == [91]


@pytest.mark.situation("pixels: some images are grey, most have colours")
def test_mixed_grey_and_colour_give_three_channels(tmp_path: Path) -> None:
    def make(label: int, number: int) -> bytes:
        value = np.full((4, 4), 50, np.uint8)
        return grey(value if number == 1 else np.stack([value, value + 1, value + 2], 2))

    dataset = load_dataset(folder(tmp_path, ".png", make))
    assert dataset.channels == 3
    assert dataset.train[0][:, 0, 0].tolist() == [50, 51, 52]
    assert dataset.train[1][:, 0, 0].tolist() == [50, 50, 50]


def test_colour_file_in_grey_data_rejected_but_equal_colours_are_grey() -> None:
    """`predict` of a colour photo with a run on grey images advised a flag that it does not have."""
    form, value = PixelFormat("gray", 1), np.full((4, 4), 50, np.uint8)
    with pytest.raises(DataError, match=r"x\.png has colours, other images are grey\. Convert it to grey, or train"):
        form.decode("x.png", grey(np.stack([value, value, value + 1], 2)))
    assert form.decode("x.png", grey(np.stack([value] * 3, 2))).pixels().shape == (1, 4, 4)


@pytest.mark.situation("pixels: a fourth band is saved as alpha in a TIFF")
@pytest.mark.parametrize("alpha", [200, 255])
def test_alpha_of_tiff_is_dropped_only_if_opaque(tmp_path: Path, alpha: int) -> None:
    data = folder(tmp_path, ".tif", lambda _, __: rgba(alpha, "TIFF"))
    if alpha == 255:
        assert load_dataset(data).channels == 3
        return
    with pytest.raises(DataError, match=r"0\.tif has 4 bands .* everywhere. Train with --channels all, .*rgb\."):
        load_dataset(data)
    assert load_dataset(data, reading=Reading(channels="rgb")).train[0][:, 0, 0].tolist() == [9, 8, 7]
    four = load_dataset(data, reading=Reading(channels="all"))
    assert four.channels == 4
    assert four.train[0][:, 0, 0].tolist() == [9, 8, 7, 200]
    assert load_dataset(data, reading=Reading(channels="4,1")).train[0][:, 0, 0].tolist() == [200, 9]


@pytest.mark.situation("pixels: transparent PNG files")
def test_transparency_of_png_is_dropped_with_a_note(tmp_path: Path) -> None:
    dataset = load_dataset(folder(tmp_path, ".png", lambda _, __: rgba(0, "PNG")))
    assert dataset.channels == 3
    assert "transparency is dropped (12 of 12 sampled images are not opaque)" in dataset.notes
    assert not any("sampled images differ" in note for note in dataset.notes)


@pytest.mark.situation("pixels: grey, coloured and transparent files in one folder")
def test_files_of_different_kinds_are_counted_in_a_note(tmp_path: Path) -> None:
    values = np.full((4, 4, 3), 90, np.uint8)
    kinds = [rgba(255, "PNG"), grey(values[..., 0]), saved(Image.fromarray(values))]
    notes = load_dataset(folder(tmp_path, ".png", lambda label, number: kinds[min(label, number)])).notes
    assert "sampled images differ (8 in colours with alpha, 4 grey): all are read in colours" in notes


@pytest.mark.situation("pixels: arrays of many bands in .npy files")
@pytest.mark.parametrize("first", [True, False], ids=["bands first", "bands last"])
def test_npy_has_its_bands_on_the_shorter_axis(tmp_path: Path, first: bool) -> None:
    bands = np.arange(6, dtype=np.uint8)
    values = np.broadcast_to(bands, (9, 8, 6))
    data = folder(tmp_path, ".npy", lambda _, __: npy(values.transpose(2, 0, 1) if first else values))
    with pytest.raises(DataError, match=r"0\.npy has 6 bands and says .* alpha. Train with --channels all"):
        load_dataset(data)
    dataset = load_dataset(data, reading=Reading(channels="all"))
    assert dataset.train.shape == (6, 9, 8)
    assert dataset.train[0][:, 3, 3].tolist() == bands.tolist()
    assert dataset.train.picture(0).getpixel((0, 0)) == (0, 1, 2)


def test_all_channels_means_the_same_number_in_all_files(tmp_path: Path) -> None:
    folder(tmp_path, ".npy", lambda _, number: npy(np.zeros((9, 8, 5 if number == 2 else 6), np.uint8)))
    with pytest.raises(DataError, match=r"2\.npy has 5 bands, other images have 6"):
        load_dataset(tmp_path, reading=Reading(channels="all"))
    with pytest.raises(DataError, match=r"2\.npy has 5 bands, not 6\. Train with other --channels"):
        load_dataset(tmp_path, reading=Reading(channels="6"))


@pytest.mark.situation("pixels: TIFF of five bands, of one band per page, and of 16 bits with colours")
@pytest.mark.parametrize("layout", ["contig", "separate", "pages", "rgb"])
def test_tiff_that_pillow_cannot_read(layout: str) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(7 * 8 * (3 if layout == "rgb" else 5), dtype=np.uint16).reshape(7, 8, -1)
    options = {"photometric": "rgb" if layout == "rgb" else "minisblack"}
    if layout in {"contig", "separate"}:
        options["planarconfig"] = layout
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values if layout in {"contig", "rgb"} else values.transpose(2, 0, 1), **options)
    assert np.array_equal(read_raster("x.tif", buffer.getvalue()).values, values)


def test_missing_package_for_tiff_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = io.BytesIO()
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (1, 2)]
    frames[0].save(pages, "TIFF", save_all=True, append_images=frames[1:])
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(GatewiseError, match=r"x\.tif .*tifffile.*gatewise\[tiff\]"):
        RGB.decode("x.tif", pages.getvalue())


# Values


@pytest.mark.situation("pixels: 12 bits in 16-bit files")
def test_deep_images_are_scaled_by_one_range_of_the_training_images(tmp_path: Path) -> None:
    def make(label: int, number: int) -> bytes:
        return grey((np.arange(64).reshape(8, 8) * 65 + 20 * label + number).astype(np.uint16))

    dataset = load_dataset(folder(tmp_path, ".png", make))
    ((low, high),) = dataset.pixel_format.ranges
    values = np.concatenate([(np.arange(64) * 65 + 20 * label + number) for label in (0, 1) for number in range(3)])
    assert (low, high) == (pytest.approx(np.percentile(values, 2)), pytest.approx(np.percentile(values, 98)))
    expected = ((np.arange(64) * 65 - low) * 255 / (high - low)).clip(0, 255).round()
    assert dataset.train[0].flatten().tolist() == expected.tolist()
    (note,) = (note for note in dataset.notes if "--value-range" in note)
    assert "values 0 to 4,117" in note


def test_range_is_not_found_per_image(tmp_path: Path) -> None:
    def make(label: int, number: int) -> bytes:
        return grey(np.full((8, 8), 1000 * (label + 1), np.uint16))

    dataset = load_dataset(folder(tmp_path, ".png", make))
    assert [dataset.validation[index].float().mean() for index in (0, 5)] == [0, 255]


@pytest.mark.parametrize(
    ("text", "expected"), [("0,4080", [10, 10, 10]), ("0,4080+0,2040+160,320", [10, 20, 0])], ids=["one", "each"]
)
def test_given_range_is_used(tmp_path: Path, text: str, expected: list[int]) -> None:
    data = folder(tmp_path, ".png", lambda _, __: png16(np.full((4, 4, 3), 160)))
    assert load_dataset(data, reading=Reading(value_range=text)).train[0][:, 0, 0].tolist() == expected


@pytest.mark.situation("pixels: PNG of 16 bits with colours, which Pillow cuts to 8")
@pytest.mark.parametrize("bands", [2, 3, 4])
def test_deep_png_keeps_all_bits(bands: int) -> None:
    values = np.arange(5 * 4 * bands).reshape(5, 4, bands) * 11
    assert np.array_equal(read_raster("x.png", png16(values)).values, values)
    colours = PixelFormat("rgb", 3, ((0.0, 510.0),) * 3, "integers").decode("x.png", png16(values)).pixels()
    assert colours[0, 0, 1] == round(11 * bands / 2)


@pytest.mark.situation("pixels: floating-point images with missing values")
def test_floats_are_scaled_and_what_is_not_finite_becomes_0(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    dataset = load_dataset(folder(tmp_path, ".tif", lambda _, __: grey(values, "TIFF")))
    image = dataset.train[0]
    assert (int(image[0, 0, 0]), int(image[0, 7, 7])) == (0, 255)
    assert 120 < int(image[0, 3, 7]) < 135
    assert "6 pixels of the sampled images are not finite and become 0" in dataset.notes


def test_8_bit_image_rejected_where_range_is_for_deeper_ones() -> None:
    form = PixelFormat("gray", 1, ((0.0, 4095.0),), "integers")
    with pytest.raises(DataError, match=r"x\.png has 8 bits, but the range of values is for integers of more than 8"):
        form.decode("x.png", grey(np.zeros((4, 4), np.uint8)))


@pytest.mark.situation("pixels: images of 8 and of 16 bits in one folder")
def test_mixed_depths_are_scaled_by_their_full_range(tmp_path: Path) -> None:
    def make(label: int, number: int) -> bytes:
        return grey(np.full((4, 4), 100 * 257 if label else 100, np.uint16 if label else np.uint8))

    dataset = load_dataset(folder(tmp_path, ".png", make))
    assert {int(value) for index in range(6) for value in dataset.train[index].unique()} == {100}
    assert any(note.startswith("some images have 8 bits, others 16") for note in dataset.notes)
    with pytest.raises(DataError, match="Convert them to one kind"):
        load_dataset(tmp_path, reading=Reading(value_range="0,4095"))


def test_options_of_pixels_are_rejected_where_there_are_no_files() -> None:
    with pytest.raises(InvalidValueError, match="no image files, so channels 'rgb' is not used"):
        load_dataset("digits", reading=Reading(channels="rgb"))


@pytest.mark.parametrize("text", ["0", "4,,2", "rgba", "1.5", ""])
def test_channels_of_another_form_rejected(text: str) -> None:
    with pytest.raises(InvalidValueError, match=r"channels must be auto, rgb, gray, all, or numbers of bands from 1"):
        parse_channels(text)


@pytest.mark.parametrize("text", ["5,5", "0", "a,b", "0,nan", "0,1,2", "9,1+0,1"])
def test_value_range_of_another_form_rejected(text: str) -> None:
    with pytest.raises(InvalidValueError, match="value_range must be auto, or LOW,HIGH"):
        parse_ranges(text)


# As PIL images


def test_bands_are_varied_alike() -> None:
    from gatewise.data.augmentation import Augmentation

    image = BandImage.of(torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8).expand(5, -1, -1).contiguous())
    crop = Augmentation(crop=True).of_picture((6, 6))
    for _ in range(3):
        varied = image.varied(crop)
        assert varied.shape == (5, 6, 6)
        assert (varied == varied[:1]).all()
    assert torch.equal(image.fitted(8, 8).pixels(), image.pixels())


def test_policy_needs_grey_or_colour(tmp_path: Path) -> None:
    data = folder(tmp_path, ".npy", lambda _, __: npy(np.zeros((9, 8, 4), np.uint8)))
    dataset = load_dataset(data, loading="stream", reading=Reading(channels="all"))
    with pytest.raises(InvalidValueError, match="rand-m9 changes grey and RGB images, these have 4 bands"):
        dataset.augmentation("rand-m9")
    assert dataset.augmentation("auto").crop


def test_pixel_format_of_config_is_checked() -> None:
    form = PixelFormat((4, 2), None, ((0.0, 9.0), (1.0, 2.0)), "floats")
    stored = {"channels": [4, 2], "of": None, "ranges": [[0, 9], [1, 2]], "kind": "floats"}
    assert PixelFormat.of_config("config.json", {"pixels": stored}) == form
    assert PixelFormat.of_config("config.json", {"in_chans": 1}).channels == "gray"
    for wrong in ({"ranges": [[0, 9]]}, {"channels": "bgr"}, {"ranges": [[0, 9], [2, 2]]}, {"kind": "bits"}):
        with pytest.raises(DataError, match=r"^config\.json: "):
            PixelFormat.of_config("config.json", {"pixels": {**stored, **wrong}})
