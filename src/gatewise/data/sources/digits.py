"""The data set "digits": scikit-learn's handwritten digits."""

from typing import Any

import torch

from gatewise.core import _validation
from gatewise.data.folders import Location
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, register_source


@register_source("digits", help="digits", order=10)
class Digits(LabelledSource):
    """scikit-learn's 1,797 handwritten digits, 8x8; a stratified random fifth is for validation."""

    flip = False

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:  # noqa: ARG002
        datasets = _validation.import_optional("sklearn.datasets", "the digits data set")
        selection = _validation.import_optional("sklearn.model_selection", "the digits data set")
        bunch: Any = datasets.load_digits()
        pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
        rows, classes = range(len(bunch.target)), tuple(str(digit) for digit in range(10))
        train, validation = selection.train_test_split(rows, test_size=0.2, random_state=0, stratify=bunch.target)
        return {
            split: LabelledSplit(pixels[chosen], bunch.target[chosen].tolist(), classes)
            for split, chosen in (("train", train), ("validation", validation))
        }
