"""What happens to a training image: moved or cropped, mirrored, and changed by a policy of timm's."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gatewise import _validation, errors

GEOMETRIES = ("auto", "none", "shift", "scale", "crop", "flip")
_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")  # timm's auto_augment strings begin so


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images.

    Attributes:
        padding: largest move in pixels, in each direction, within a frame of zeros.
        crop: whether a random part (8 to 100 % of the area) is scaled to the whole.
        flip: whether every second image is mirrored.
        scale: whether an image and its mask are scaled by a random factor first.
        policy: timm's auto-augmentation, for example "rand-m9-mstd0.5" or "augmix-m3"; "" for none.
    """

    padding: int = 0
    crop: bool = False
    flip: bool = False
    scale: bool = False
    policy: str = ""

    @property
    def per_image(self) -> bool:
        """Whether images must be handled one by one, as pictures, which workers do."""
        return self.crop or bool(self.policy)

    def of_picture(self, size: tuple[int, int]) -> Callable[[Any], Any]:
        """Return a function from a picture of any size to one of `size`: cropped or fitted, then changed by the policy.

        It draws from the global generators of Python, NumPy and torch. A policy that timm does not know is refused
        with ValueError.
        """
        transforms = _validation.import_optional("timm.data.transforms_factory", "timm's augmentation")
        options: dict[str, Any] = {"hflip": 0.0, "vflip": 0.0, "color_jitter": None, "separate": True}
        try:
            crop, policy, _ = transforms.transforms_imagenet_train(size, auto_augment=self.policy or None, **options)
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise errors.InvalidValueError(
                f"timm cannot read the policy {self.policy!r} ({type(error).__name__}: {error}); "
                f"expected for example rand-m9-mstd0.5 or augmix-m3-w3."
            ) from None
        return _InTurn((*([crop] if self.crop else []), *([policy] if self.policy else [])))


@dataclass(frozen=True)
class _InTurn:
    """Applies functions one after the other; unlike a local function, workers that are not forked can be sent it."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, picture: Any) -> Any:
        for step in self.steps:
            picture = step(picture)
        return picture


def parse_augmentation(text: str) -> tuple[frozenset[str], str]:
    """Read words joined by "+": geometry (auto, none, shift, scale, crop, flip), and at most one policy of timm's.

    >>> geometry, policy = parse_augmentation("shift+flip+rand-m9")
    >>> sorted(geometry), policy
    (['flip', 'shift'], 'rand-m9')
    """
    words = text.split("+")
    policies = [word for word in words if word.partition("-")[0] in _POLICIES]
    for section in (section for policy in policies for section in policy.split("-")[1:]):
        if not re.fullmatch(r"[a-z]+\d.*", section):  # timm passes over it without a word
            raise errors.InvalidValueError(
                f"cannot read {section!r} in augmentation {text!r}; expected letters and a number, as in rand-m9."
            )
    geometry = [word for word in words if word not in policies]
    for word in geometry:
        _validation.check_one_of("augmentation", word, [*GEOMETRIES, "rand-m9-mstd0.5 or another of timm's policies"])
    alone = {"auto", "none"} & set(geometry)
    if len(set(words)) != len(words) or len(policies) > 1 or (alone and len(geometry) > 1):
        raise errors.InvalidValueError(
            f"augmentation {text!r} does not fit together; expected auto or none alone, or shift, scale, crop and flip "
            f"joined by +, and at most one policy behind them."
        )
    return frozenset(geometry), "".join(policies)
