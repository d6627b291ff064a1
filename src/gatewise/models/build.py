"""Build a network, gates included, from its name or spec."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from gatewise import _checks
from gatewise.insertion import insert_all
from gatewise.models.cifar_resnet import CifarResNet
from gatewise.spec import ModelSpec


def _three_stages(depth: int, **options: Any) -> nn.Module:
    """Build a CIFAR ResNet of 6n + 2 layers and widths 16, 32, 64."""
    return CifarResNet([(depth - 2) // 6] * 3, [16, 32, 64], **options)


def _four_stages(*, width: int = 64, **options: Any) -> nn.Module:
    """Build a ResNet-18 with a 3x3 stem and widths `width` times 1, 2, 4, 8."""
    return CifarResNet([2, 2, 2, 2], [width, 2 * width, 4 * width, 8 * width], **options)


_builders: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(_three_stages, depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18_cifar": _four_stages,
}


def model_names() -> tuple[str, ...]:
    """Return the names that are built here; all others are timm's."""
    return tuple(_builders)


def make_model(
    spec: str | ModelSpec,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with its gates.

    Args:
        spec: a name ("resnet20", or any of timm's), a string with gates ("resnet18+gct:mode=l1@before_conv"), or a
            `ModelSpec`.
        num_classes: outputs of the classifier; None leaves the network's own (10 here, 1000 in timm).
        in_chans: channels of the image.
        seed: makes the weights reproducible without touching torch's global generator; the backbone's weights do
            not depend on the gates.
        **options: of the network, for example width=32 for resnet18_cifar or pretrained=True for timm's.

    An unknown name or option is refused with ValueError and the nearest known one.

    >>> net = make_model("resnet20+gct", num_classes=10)
    >>> sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in make_model("resnet20").parameters())
    2025
    """
    spec = ModelSpec.parse(spec) if isinstance(spec, str) else spec
    options = {**spec.model_options, **options, "in_chans": in_chans}
    if num_classes is not None:
        _checks.integer_at_least(1, num_classes=num_classes)
        options["num_classes"] = num_classes
    if seed is None:
        model = _backbone(spec.model, options)
        insert_all(model, spec.gates)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        return make_model(ModelSpec(spec.model, options, spec.gates), in_chans=in_chans)


def _backbone(name: str, options: dict[str, Any]) -> nn.Module:
    if name in _builders:
        builder = _builders[name]
        known = set(inspect.signature(CifarResNet).parameters) - {"blocks", "widths"}
        if builder is _four_stages:
            known.add("width")
        _checks.options_of(f"model {name!r}", options, known)
        return builder(**options)
    timm = _checks.optional_module("timm", f"the model {name!r}")
    base = name.partition(".")[0]
    known = [*_builders, *timm.list_models()]
    if "/" not in name and ":" not in name and base not in known:
        raise _checks.InvalidValueError(
            f"unknown model {base!r}; expected one of {', '.join(_builders)}, or a name from timm.list_models()."
            f"{_checks.nearest(base, known)}"
        )
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        raise _checks.InvalidValueError(f"timm cannot build {name!r} with these options: {error}") from None
