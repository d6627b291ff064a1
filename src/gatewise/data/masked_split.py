"""One split of images with masks, as a source reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gatewise.data.images import EncodedSource


@dataclass(frozen=True)
class MaskedSplit:
    """One split of images with masks, as a source reads it.

    Attributes:
        images: encoded image files.
        masks: encoded mask files, in the same order.
        classes: names of the classes, in the order of the values in masks; () if they are not known.
        columns: further columns of a table, by name.
        shown: the split in messages, such as val/; "" is its name.
    """

    images: EncodedSource
    masks: EncodedSource
    classes: tuple[str, ...] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    shown: str = ""

    def of(self, chosen: Sequence[int]) -> "MaskedSplit":
        """Return the pairs with these indices."""
        columns = {name: [values[index] for index in chosen] for name, values in self.columns.items()}
        return replace(self, images=self.images.subset(chosen), masks=self.masks.subset(chosen), columns=columns)
