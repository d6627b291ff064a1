"""Table of the networks defined in this package: name, builder and options."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.insertion.insert import insert_gates
from gatewise.models.form import ResNetConfig
from gatewise.models.segmenter import Segmenter
from gatewise.models.u2net import FULL, SMALL, U2NetConfig

Scale = Callable[[Mapping[str, Any], float], tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Family:
    """One network: its name and its builder, whose keyword-only arguments are the options.

    Attributes:
        name: name of the network.
        build: its builder.
        scale: function from options and a factor to the name and the options of the same network with all widths times
            that factor; None if there is none.
    """

    name: str
    build: Callable[..., nn.Module]
    scale: Scale | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options.

        >>> FAMILIES["resnet20"].options
        ('shortcut', 'num_classes', 'in_chans')
        """
        parameters = inspect.signature(self.build).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def check_options(self, given: Iterable[str]) -> None:
        """Raise `InvalidValueError` if an option is unknown; the message suggests the nearest or the scaled network."""
        wider = f"{self.name}_wider"
        if wider in FAMILIES and (asked := [name for name in given if name in {"width", "widths", "parameters"}]):
            raise errors.InvalidValueError(
                f"{self.name} has no option {asked[0]!r}. In {wider}:parameters=N its widths are scaled to about N "
                f"parameters, which may also be fewer."
            )
        _validation.check_known_options(f"model {self.name!r}", given, self.options)

    def make(self, **options: Any) -> nn.Module:
        """Build the network.

        Raises:
            InvalidValueError: an option is unknown (the message suggests the nearest known one) or invalid.
        """
        self.check_options(options)
        for name, parameter in inspect.signature(self.build).parameters.items():
            if isinstance(parameter.default, int) and not isinstance(parameter.default, bool) and name in options:
                _validation.check_integer_at_least(1, **{name: options[name]})
        return self.build(**options)


def _four_stages(
    *, width: int = 64, shortcut: str = "projection", num_classes: int = 10, in_chans: int = 3
) -> nn.Module:
    """Build a ResNet-18 with a 3x3 stem and widths `width` times 1, 2, 4, 8."""
    form = ResNetConfig(blocks=(2, 2, 2, 2), widths=(width, 2 * width, 4 * width, 8 * width))
    return form.build(shortcut=shortcut, num_classes=num_classes, in_chans=in_chans)


def _wider(
    form: ResNetConfig,
    /,
    *,
    parameters: int | None = None,
    shortcut: str = "projection",
    num_classes: int = 10,
    in_chans: int = 3,
) -> nn.Module:
    """Build this network with all widths scaled by one factor so that its parameter count is nearest to `parameters`.

    By default `parameters` is the sum of the plain network and the gater of GaterNet's paper, for the same classes,
    image channels and shortcut: the fair baseline for a GaterNet. `ResNetConfig.wider` documents the rounding.
    """
    options: dict[str, Any] = {"shortcut": shortcut, "num_classes": num_classes, "in_chans": in_chans}
    return _wider_form(form, parameters, options).build(**options)


def _wider_form(form: ResNetConfig, parameters: int | None, options: Mapping[str, Any]) -> ResNetConfig:
    if parameters is None:
        images = {name: value for name, value in options.items() if name == "in_chans"}
        parameters = form.parameter_count(**options) + form.gater_parameter_count(**images)
    return form.wider(parameters, **options)


def _scaled_stages(options: Mapping[str, Any], factor: float) -> tuple[str, dict[str, Any]]:
    """Scale a ResNet-18 for small images by its option width."""
    return "resnet18_cifar", {**options, "width": max(1, round(factor * options.get("width", 64)))}


def _scaled_form(name: str, /, *, wider: bool) -> Scale:
    """Return the scaling of a network in `_FORMS`, or of the wider network of that form."""
    form = _FORMS[name]

    def scale(options: Mapping[str, Any], factor: float) -> tuple[str, dict[str, Any]]:
        given = dict(options)
        base = _wider_form(form, given.pop("parameters", None), given) if wider else form
        found = form.wider(base.scaled(factor).parameter_count(**given), **given)
        return f"{name}_wider", {**given, "parameters": found.parameter_count(**given)}

    return scale


def _gated_u2net(form: U2NetConfig, /, *, num_classes: int = 1, in_chans: int = 3) -> nn.Module:
    """Build a U²-Net with gct before the convolution of every REBNCONV, but not before those of the side outputs."""
    model = form.build(num_classes=num_classes, in_chans=in_chans)
    insert_gates(model, "gct", place="before_conv", include=r"\.conv$")
    return model


def _stride_first(depth: int, /, *, num_classes: int = 1000, in_chans: int = 3) -> nn.Module:
    """Build timm's bottleneck ResNet with the stride of each stage in its first 1x1 convolution, not in the 3x3.

    The original ResNets (He et al., 2016), Caffe's, mmdetection's "caffe" style and the released GCT networks have this
    form. With 50 layers it has 3.86 instead of 4.09 billion multiply-adds.
    """
    timm = _validation.import_optional("timm", f"resnet{depth}_v1")
    model = timm.create_model(f"resnet{depth}", num_classes=num_classes, in_chans=in_chans)
    for block in (model.layer2[0], model.layer3[0], model.layer4[0]):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


def _basic(depth: int) -> ResNetConfig:
    """Return the config with depth 6n + 2 and widths 16, 32, 64 (He et al., 2016)."""
    return ResNetConfig(blocks=((depth - 2) // 6,) * 3, widths=(16, 32, 64))


# Depth 9n + 2. GaterNet's paper has 7,200 gates in its ResNet-164, which means 18 units per stage with output widths
# 16, 128, 256: its first stage is not expanded. The usual widths have 8,064 gates and 1.70 million parameters.
_RESNET164 = ResNetConfig(blocks=(18, 18, 18), widths=(64, 128, 256), stem=16, bottleneck=True)
_RESNET164_GATERNET = ResNetConfig(blocks=(18, 18, 18), widths=(16, 128, 256), bottleneck=True)

_FORMS = {
    **{f"resnet{depth}": _basic(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet164": _RESNET164,
    "resnet164_gaternet": _RESNET164_GATERNET,
}
SEGMENTER = "segmenter"
_U2NETS = {"u2net": FULL, "u2net_small": SMALL}

_builders: dict[str, Callable[..., nn.Module]] = {
    **{name: form.build for name, form in _FORMS.items()},
    "resnet18_cifar": _four_stages,
    **{f"{name}_wider": partial(_wider, form) for name, form in _FORMS.items()},
    **{f"resnet{depth}_v1": partial(_stride_first, depth) for depth in (50, 101, 152)},
    SEGMENTER: Segmenter,
    **{name: form.build for name, form in _U2NETS.items()},
    **{f"{name}_gct": partial(_gated_u2net, form) for name, form in _U2NETS.items()},
}
_scales: dict[str, Scale] = {
    "resnet18_cifar": _scaled_stages,
    **{name: _scaled_form(name, wider=False) for name in _FORMS},
    **{f"{name}_wider": _scaled_form(name, wider=True) for name in _FORMS},
}
LABELS_PIXELS = (SEGMENTER, *_U2NETS, *(f"{name}_gct" for name in _U2NETS))
FAMILIES = {name: Family(name, build, _scales.get(name)) for name, build in _builders.items()}
