"""What timm says about pretrained weights: the images that they were trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatewise.core import _validation
from gatewise.gates.spec import ModelSpec
from gatewise.models.families import FAMILIES


@dataclass(frozen=True)
class PretrainedImages:
    """The images of pretrained weights.

    Attributes:
        side: side in pixels, or None if it is not known.
        mean: mean per channel on the scale 0 to 255.
        std: standard deviation per channel, on the same scale.
    """

    side: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "PretrainedImages":
        """Return what timm's `pretrained_cfg` says; unknown entries become () or None."""
        size = config.get("input_size") or ()
        mean, std = (tuple(255 * part for part in config.get(name) or ()) for name in ("mean", "std"))
        return cls(int(size[-1]) if len(size) == 3 else None, mean, std)

    def for_channels(self, count: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return mean and standard deviation for images of `count` channels, or None if they have another number.

        timm adds up the weights of all colours for grey images, so these get the means over colours.
        """
        if not self.mean or len(self.mean) != len(self.std):
            return None
        if count == 1:
            mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
            return (mean,), (std,)
        return (self.mean, self.std) if len(self.mean) == count else None


def is_pretrained(spec: ModelSpec) -> bool:
    """Return whether a network begins with pretrained weights of timm."""
    return bool(spec.model_options.get("pretrained"))


def pretrained_side(spec: ModelSpec) -> int | None:
    """Return the side of the images of a spec's pretrained weights, or None; nothing is downloaded."""
    if not is_pretrained(spec) or spec.model in FAMILIES or ":" in spec.model or "/" in spec.model:
        return None
    timm = _validation.import_optional("timm", f"the model {spec.model!r}")
    config: Any = timm.get_pretrained_cfg(spec.model, allow_unregistered=True)
    return None if config is None else PretrainedImages.of(config.to_dict()).side
