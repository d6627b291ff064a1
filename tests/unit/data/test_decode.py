"""Image files: decoded as a viewer shows them, or one line that names the file."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gatewise.data.decode import fit, picture_of, pixels_of
from gatewise.data.pixel_format import RGB
from gatewise.data.raster import size_of
from gatewise.errors import DataError

RED, BLUE = (200, 30, 10), (10, 30, 200)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def decode(where: str, content: bytes | None) -> Any:
    return RGB.decode(where, content).shown()


def two_colours(width: int = 4, height: int = 2) -> Image.Image:
    """Return an image whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height))
    return image


def at(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(image.getpixel((x, y)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("orientation", "corner_of_red"),
    [(1, (0, 0)), (2, (3, 0)), (3, (3, 1)), (6, (0, 0)), (8, (1, 3))],
)
def test_exif_orientation_is_applied(orientation: int, corner_of_red: tuple[int, int]) -> None:
    image = two_colours()
    exif = image.getexif()
    exif[0x0112] = orientation
    turned = decode("file", saved(image, exif=exif))
    assert turned.size == ((2, 4) if orientation > 4 else (4, 2))
    assert at(turned, *corner_of_red) == RED
    width, height = turned.size
    assert at(turned, width - 1 - corner_of_red[0], height - 1 - corner_of_red[1]) == BLUE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 5, 6, 8])
def test_size_is_that_of_the_decoded_image(kind: str, orientation: int) -> None:
    image = two_colours()
    exif = image.getexif()
    if orientation:
        exif[0x0112] = orientation
    content = saved(image, kind, exif=exif)
    assert size_of("file", content) == decode("file", content).size == ((2, 4) if orientation > 4 else (4, 2))


def test_size_of_an_array_is_its_height_and_width() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 5, 7), np.uint8))
    assert size_of("file", buffer.getvalue()) == (7, 5)


@pytest.mark.parametrize("block", [b"MM\x00*garbage", b"II*\x00", b"nothing", b""])
def test_broken_exif_block_is_ignored(block: bytes) -> None:
    content = saved(two_colours(), "JPEG", exif=b"Exif\x00\x00" + block)
    assert decode("file", content).size == (4, 2)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    image = decode("file", saved(Image.fromarray(values)))
    assert image.mode == "RGB"
    assert [at(image, x, 0) for x in range(4)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_cmyk_is_converted_to_its_colours() -> None:
    image = decode("file", saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    red, green, blue = at(image, 4, 4)
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert at(decode("file", content), 1, 1) == pytest.approx(RED, abs=2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "YCbCr"])
def test_other_pixel_formats_become_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "YCbCr" else "PNG"
    image = decode("file", saved(Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode), kind))
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert at(image, 1, 1) == pytest.approx((255, 255, 255), abs=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no image bytes"),
        (b"", "no image bytes"),
        (b"text", "truncated or unreadable image"),
        (saved(two_colours(64, 64), "JPEG")[:-200], "truncated or unreadable image"),
        (saved(two_colours())[:60], "truncated or unreadable image"),
        (saved(Image.new("F", (2, 2), 0.5), "TIFF"), "floating-point pixels"),
    ],
    ids=["none", "empty", "text", "half a JPEG", "half a PNG", "floats"],
)
def test_non_image_rejected_with_its_name(content: bytes | None, message: str) -> None:
    with pytest.raises(DataError) as caught:
        decode("some/file.png", content)
    assert str(caught.value).startswith("some/file.png: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_decoder_exception_becomes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to decode image")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DataError, match=r"^x\.avif: truncated or unreadable image \(Failed to decode image\)"):
        decode("x.avif", b"bytes")


@pytest.mark.parametrize(("kind", "expected"), [(np.int32, "32-bit"), (np.float32, "floating-point")])
def test_pixels_of_unknown_range_rejected(kind: Any, expected: str) -> None:
    content = saved(Image.fromarray(np.arange(4, dtype=kind).reshape(2, 2)), "TIFF")
    with pytest.raises(DataError, match=f"x: expected 8 or 16 bits per channel, got {expected} pixels"):
        decode("x", content)


def test_transparency_is_dropped() -> None:
    assert at(decode("x", saved(Image.new("RGBA", (2, 2), (9, 8, 7, 0)))), 0, 0) == (9, 8, 7)


def test_decompression_bomb_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"^file: truncated or unreadable image .*bomb"):
        decode("file", saved(two_colours(16, 16)))


def test_pixels_and_pictures_are_inverse() -> None:
    pixels = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert torch.equal(pixels_of(picture_of(pixels)), pixels)
    assert torch.equal(pixels_of(picture_of(pixels[:1])), pixels[:1].expand(3, -1, -1))


def test_fit_scales_shorter_side_and_crops_centre() -> None:
    image = Image.new("RGB", (16, 8))
    image.paste(BLUE, (4, 0, 12, 8))
    assert at(fit(image, 8), 0, 4) == BLUE
    assert fit(image, 4).size == (4, 4)
