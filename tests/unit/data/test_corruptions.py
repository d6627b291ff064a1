"""Corruptions of images: repeatable, stronger with their strength, with the constants of CIFAR-10-C on small images."""

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gatewise.data import corruptions
from gatewise.data.corruptions import CORRUPTIONS, KINDS, STRENGTHS, corrupted
from gatewise.errors import InvalidValueError, MissingExtraError


@pytest.fixture
def library() -> None:
    pytest.importorskip("imagecorruptions")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, int], int]]:
    """Stand in for the package, whose gaussian_noise is called for large images only; return its calls."""
    called: list[tuple[tuple[int, int], int]] = []

    def gaussian_noise(image: Any, severity: int) -> Any:
        called.append((image.size, severity))
        return np.asarray(image)

    module = types.ModuleType("imagecorruptions.corruptions")
    module.gaussian_noise = gaussian_noise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imagecorruptions", types.ModuleType("imagecorruptions"))
    monkeypatch.setitem(sys.modules, "imagecorruptions.corruptions", module)
    return called


def picture(side: int = 32, channels: int = 3) -> Tensor:
    """Return a smooth picture with an edge."""
    ramp = torch.linspace(20, 180, side)
    image = ramp[:, None] / 2 + ramp[None, :] / 2 + 60 * (torch.arange(side) > side // 2)
    return image.expand(channels, -1, -1).round().to(torch.uint8)


def test_fifteen_corruptions_of_four_kinds() -> None:
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 15
    assert list(KINDS) == ["noise", "blur", "weather", "digital"]
    assert all(len(constants) == len(STRENGTHS) for constants in corruptions._CONSTANTS.values())
    assert set(corruptions._CONSTANTS) == set(corruptions._SMALL) == set(CORRUPTIONS)


def test_package_corrupts_large_images_only(stand_in: list[tuple[tuple[int, int], int]]) -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    small = [corrupted(picture(63), "gaussian_noise", 4, number) for number in (1, 1, 2)]
    assert stand_in == []
    assert torch.equal(small[0], small[1])
    assert not torch.equal(small[0], small[2])
    assert float((small[0].float() - picture(63).float()).std()) / 255 == pytest.approx(0.09, rel=0.05)
    assert torch.equal(corrupted(picture(64), "gaussian_noise", 4, 1), picture(64))
    assert stand_in == [((64, 64), 4)]
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruption_is_repeatable_and_keeps_shape_and_range(library: None, corruption: str) -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    for side, channels in ((8, 1), (32, 3)):
        image = picture(side, channels)
        found = corrupted(image, corruption, 3, 7)
        assert found.shape == image.shape
        assert found.dtype == torch.uint8
        assert not torch.equal(found, image)
        assert torch.equal(found, corrupted(image, corruption, 3, 7))
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


@pytest.mark.parametrize("shape", [(24, 130), (130, 24)])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_narrow_images_are_corrupted_to_their_ends(library: None, corruption: str, shape: tuple[int, int]) -> None:
    """The pictures of frost were smaller than these images: numpy's traceback, after all trainings of a comparison."""
    image = picture(130)[:, : shape[0], : shape[1]]
    for number in range(6):
        changed = corrupted(image, corruption, 3, number) != image
        assert changed.shape == image.shape
        assert changed[..., :24, :24].any()
        assert changed[..., -24:, -24:].any()


@pytest.mark.parametrize("corruption", ["gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "snow", "frost"])
def test_each_image_has_its_own_noise(library: None, corruption: str) -> None:
    assert not torch.equal(corrupted(picture(), corruption, 3, 1), corrupted(picture(), corruption, 3, 2))


@pytest.mark.parametrize("corruption", ["gaussian_noise", "defocus_blur", "brightness", "contrast", "pixelate"])
def test_stronger_corruptions_change_more(library: None, corruption: str) -> None:
    image = picture().float()
    changes = [float((corrupted(image, corruption, strength, 0) - image).abs().mean()) for strength in STRENGTHS]
    assert changes == sorted(changes)
    assert changes[0] < 0.8 * changes[-1]


def test_small_images_have_the_constants_of_cifar_10_c(library: None) -> None:
    grey = torch.full((3, 63, 63), 128, dtype=torch.uint8)
    noise = [
        float((corrupted(grey, "gaussian_noise", strength, 0).float() - 128).std()) / 255 for strength in STRENGTHS
    ]
    assert noise == pytest.approx([0.04, 0.06, 0.08, 0.09, 0.10], rel=0.05)
    larger = grey[:, :1, :1].expand(3, 64, 64)
    assert float((corrupted(larger, "gaussian_noise", 1, 0).float() - 128).std()) / 255 == pytest.approx(0.08, rel=0.05)
    contrast = corrupted(picture(), "contrast", 5, 0).float()
    assert float(contrast.std() / picture().float().std()) == pytest.approx(0.15, rel=0.05)
    salt = corrupted(grey, "impulse_noise", 5, 0)
    assert float(((salt == 0) | (salt == 255)).float().mean()) == pytest.approx(0.07, rel=0.15)
    assert float((corrupted(grey, "brightness", 2, 0).float() - 128).mean()) / 255 == pytest.approx(0.1, abs=0.01)


def test_invalid_arguments_are_named(library: None) -> None:
    with pytest.raises(InvalidValueError, match=r"corruption.*'fogg'.*Did you mean 'fog'"):
        corrupted(picture(), "fogg", 1, 0)
    with pytest.raises(InvalidValueError, match=r"one or three channels, got 4"):
        corrupted(picture(channels=4), "fog", 1, 0)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions.corruptions", None)
    with pytest.raises(MissingExtraError, match="corruptions"):
        corrupted(picture(), "fog", 1, 0)
