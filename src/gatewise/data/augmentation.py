"""Augmentation of training images: shift, crop, flip, scale, and timm's auto-augmentation policies."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gatewise import errors
from gatewise.core import _validation

GEOMETRIES = ("auto", "none", "shift", "scale", "crop", "flip")
_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")  # prefixes of timm's auto_augment strings


@dataclass(frozen=True)
class Augmentation:
    """Options of the augmentation of training images.

    Attributes:
        padding: largest shift in pixels, in each direction, with zero padding.
        crop: whether to cut out a random crop; with one label per image, 8 to 100 % of the area, scaled to the image
            size.
        flip: whether to flip images horizontally with probability 0.5.
        scale: whether to scale an image and its mask by a random factor first.
        policy: timm's auto-augmentation, for example "rand-m9-mstd0.5" or "augmix-m3"; "" for none.
    """

    padding: int = 0
    crop: bool = False
    flip: bool = False
    scale: bool = False
    policy: str = ""

    @property
    def per_image(self) -> bool:
        """Whether images must be augmented one by one, as PIL images."""
        return self.crop or bool(self.policy)

    def of_picture(self, size: tuple[int, int]) -> Callable[[Any], Any]:
        """Return a function that augments a PIL image: a random crop to `size` if `crop` is set, then the policy.

        It draws from the global generators of Python, NumPy and torch.

        Args:
            size: (height, width) of a crop.

        Raises:
            InvalidValueError: timm does not know the policy.
        """
        timm_data = _validation.import_optional("timm.data", "timm's augmentation")
        options: dict[str, Any] = {"hflip": 0.0, "color_jitter": None, "interpolation": "random", "separate": True}
        try:
            crop, policy, _ = timm_data.create_transform(
                size, is_training=True, auto_augment=self.policy or None, **options
            )
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise errors.InvalidValueError(
                f"timm cannot parse the policy {self.policy!r} ({type(error).__name__}: {error}); "
                f"expected for example rand-m9-mstd0.5 or augmix-m3-w3."
            ) from None
        return _InTurn((*([crop] if self.crop else []), *([policy] if self.policy else [])))


@dataclass(frozen=True)
class _InTurn:
    """Apply functions in sequence; unlike a local function, an instance can be pickled for data workers."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, picture: Any) -> Any:
        for step in self.steps:
            picture = step(picture)
        return picture


def parse_augmentation(text: str) -> tuple[frozenset[str], str]:
    """Return the geometry options and the timm policy ("" for none) in a text of options joined by "+".

    Args:
        text: auto or none, or any of shift, scale, crop and flip, and at most one timm policy.

    Raises:
        InvalidValueError: an option is unknown, or the options cannot be combined.

    >>> geometry, policy = parse_augmentation("shift+flip+rand-m9")
    >>> sorted(geometry), policy
    (['flip', 'shift'], 'rand-m9')
    """
    words = text.split("+")
    policies = [word for word in words if word.partition("-")[0] in _POLICIES]
    for section in (section for policy in policies for section in policy.split("-")[1:]):
        if not re.fullmatch(r"[a-z]+\d.*", section):  # timm ignores it silently
            raise errors.InvalidValueError(
                f"cannot parse {section!r} in augmentation {text!r}; expected letters and a number, as in rand-m9."
            )
    geometry = [word for word in words if word not in policies]
    for word in geometry:
        _validation.check_one_of("augmentation", word, [*GEOMETRIES, "rand-m9-mstd0.5 or another of timm's policies"])
    alone = {"auto", "none"} & set(geometry)
    if len(set(words)) != len(words) or len(policies) > 1 or (alone and len(geometry) > 1):
        raise errors.InvalidValueError(
            f"cannot combine the options of augmentation {text!r}; expected auto or none alone, or shift, scale, crop "
            f"and flip joined by +, and at most one policy after them."
        )
    return frozenset(geometry), "".join(policies)
