"""Depth and widths of a CIFAR ResNet, the resulting parameter count, and scaling to a parameter budget."""

import itertools
from dataclasses import dataclass, replace

from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.models.cifar_resnet import EXPANSION, CifarResNet


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Depth and widths of a CIFAR ResNet; `CifarResNet` documents the fields.

    >>> form = ResNetConfig(blocks=(3, 3, 3), widths=(16, 32, 64))
    >>> form.parameter_count(), form.gates, form.parameter_count() + form.gater_parameter_count()
    (272474, 336, 547842)
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int | None = None
    bottleneck: bool = False

    def build(self, *, shortcut: str = "projection", num_classes: int = 10, in_chans: int = 3) -> nn.Module:
        """Build the network; its weights are drawn from torch's global generator."""
        return CifarResNet(
            self.blocks,
            self.widths,
            stem=self.stem,
            bottleneck=self.bottleneck,
            shortcut=shortcut,
            num_classes=num_classes,
            in_chans=in_chans,
        )

    @property
    def gates(self) -> int:
        """Number of gates in GaterNet's paper: one per filter of the last convolution of each unit."""
        return sum(count * width for count, width in zip(self.blocks, self.widths, strict=True))

    def parameter_count(self, *, shortcut: str = "projection", num_classes: int = 10, in_chans: int = 3) -> int:
        """Return the parameter count of `build(...)`, without building the network."""
        inputs = self.widths[0] if self.stem is None else self.stem
        total = _with_norm(in_chans, inputs, 3)
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            if shortcut == "projection" and (stage > 0 or inputs != width):
                total += _with_norm(inputs, width, 1)
            total += self._unit_parameter_count(inputs, width) + (count - 1) * self._unit_parameter_count(width, width)
            inputs = width
        return total + (inputs + 1) * num_classes

    def _unit_parameter_count(self, inputs: int, outputs: int) -> int:
        if not self.bottleneck:
            return _with_norm(inputs, outputs, 3) + _with_norm(outputs, outputs, 3)
        inner = outputs // EXPANSION
        return _with_norm(inputs, inner, 1) + _with_norm(inner, inner, 3) + _with_norm(inner, outputs, 1)

    def gater_parameter_count(self, *, in_chans: int = 3) -> int:
        """Return the parameter count of the paper's gater: a ResNet-20 without classifier, then 64 -> 8 -> gates."""
        body = ResNetConfig(blocks=(3, 3, 3), widths=(16, 32, 64)).parameter_count(num_classes=0, in_chans=in_chans)
        return body + (64 + 1) * 8 + (8 + 1) * self.gates

    def wider(
        self, budget: int, *, shortcut: str = "projection", num_classes: int = 10, in_chans: int = 3
    ) -> "ResNetConfig":
        """Return the config with all widths scaled by one factor so that the parameter count is nearest to `budget`.

        Each width w, including that of the stem, becomes factor * w, rounded to an integer (for bottleneck units to a
        multiple of 4, so that inner widths are integers). The factor is a real number; widths change one at a time as
        it grows, so no other network with these proportions is nearer to the budget. Ties go to the smaller network.

        Args:
            budget: number of parameters.
            shortcut: as for `build`; so are num_classes and in_chans.
            num_classes: outputs of the classifier.
            in_chans: channels of the image.

        Raises:
            InvalidValueError: the narrowest such network has more parameters than the budget.

        >>> form = ResNetConfig(blocks=(3, 3, 3), widths=(16, 32, 64))
        >>> form.wider(547_842).widths, form.wider(547_842).parameter_count()
        ((23, 45, 91), 547403)
        """
        _validation.check_integer_at_least(1, parameters=budget)

        def count(step: int) -> int:
            form = self._scaled(step)
            return form.parameter_count(shortcut=shortcut, num_classes=num_classes, in_chans=in_chans)

        if budget < count(0):
            raise errors.InvalidValueError(
                f"parameters must be at least {count(0)}, those of the narrowest such network, got {budget}."
            )
        too_wide = next(step for step in (2**power for power in itertools.count()) if count(step) > budget)
        low, high = 0, too_wide  # count(low) <= budget < count(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(middle) <= budget else (low, middle)
        return self._scaled(low if budget - count(low) <= count(high) - budget else high)

    def scaled(self, factor: float) -> "ResNetConfig":
        """Return the config with all widths scaled by one factor, rounded as `wider` does.

        >>> ResNetConfig(blocks=(3, 3, 3), widths=(16, 32, 64)).scaled(0.5).widths
        (8, 16, 32)
        """
        return self._scaled(round(2 * factor * max(self.widths) / (EXPANSION if self.bottleneck else 1)))

    def _scaled(self, step: int) -> "ResNetConfig":
        """Return the config scaled such that the widest stage has step / 2 units before rounding.

        A unit is the number of which all widths are multiples (1, or 4 for bottleneck units). All other widths divide
        the widest, so they also change only at such factors.
        """
        unit = EXPANSION if self.bottleneck else 1
        widest = max(self.widths)

        def scaled(width: int) -> int:
            return unit * max(1, (step * width + widest) // (2 * widest))

        stem = None if self.stem is None else scaled(self.stem)
        return replace(self, widths=tuple(map(scaled, self.widths)), stem=stem)


def _with_norm(inputs: int, outputs: int, size: int) -> int:
    """Return the parameter count of a convolution without bias and its BatchNorm."""
    return inputs * outputs * size * size + 2 * outputs
