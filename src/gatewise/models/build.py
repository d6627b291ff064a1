"""Build a network, gates included, from its name or spec."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from gatewise import _validation, errors
from gatewise.insertion import insert_all
from gatewise.models.families import FAMILIES
from gatewise.spec import ModelSpec

_FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def model_names() -> tuple[str, ...]:
    """Return the names that are built here; all others are timm's."""
    return tuple(FAMILIES)


def make_model(
    spec: str | ModelSpec,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with its gates.

    Args:
        spec: a name ("resnet20", or any of timm's, "hf-hub:OWNER/NAME" too), a string with options and gates
            ("resnet20:shortcut=padding+gct:mode=l1@before_conv"), or a `ModelSpec`.
        num_classes: outputs of the classifier; None leaves the spec's, or the network's own (10 here, 1000 in timm).
        in_chans: channels of the image; None leaves the spec's, or 3.
        seed: makes the weights reproducible without touching torch's global generator; the backbone's weights do
            not depend on the gates.
        **options: of the network. Built here: shortcut="projection" or "padding" for all, width=32 for
            resnet18_cifar, parameters=400000 for the names that end in _wider. For timm's, all of create_model.

    An unknown name or option is refused with ValueError and the nearest known one, a spec whose num_classes or in_chans
    disagree with the call with both. Other options win over the spec's.

    >>> net = make_model("resnet20+gct", num_classes=10)
    >>> sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in make_model("resnet20").parameters())
    2025
    """
    spec = spec if isinstance(spec, ModelSpec) else ModelSpec.parse(spec)
    _validation.seed(seed)
    if any(choice.is_gater for choice in spec.gates):
        raise errors.InvalidValueError(f"{spec} has a gater around the network; build it with gatewise.make_model.")
    for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value is None:
            continue
        _validation.integer_at_least(1, **{name: value})
        if (asked := spec.model_options.get(name, value)) != value:
            raise errors.InvalidValueError(
                f"{spec.model} is asked for with {name}={asked}, but {name}={value} is needed here. "
                f"Leave it out of the text."
            )
        options[name] = value
    _refuse_files(spec.model, spec.model_options)
    options = {**spec.model_options, **options}
    if seed is None:
        model = _backbone(spec.model, options)
        insert_all(model, spec.gates)
        return model
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        return make_model(ModelSpec(spec.model, {}, spec.gates), **options)


def _refuse_files(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a spec by which timm opens a file of its own accord, in older versions as a pickle.

    What timm itself hands a preset is no text of a spec but an object of timm's, and passes.
    """
    for option in _FILES:
        if options.get(option) and not dataclasses.is_dataclass(options[option]):
            raise errors.InvalidValueError(
                f"{name} is asked for with {option}={_validation.shown(options[option])}, and no spec may name a file "
                f"to open. Leave it out, and fill the network with gatewise.load_weights."
            )


def _backbone(name: str, options: dict[str, Any]) -> nn.Module:
    if name in FAMILIES:
        _validation.affordable(f"{name} of these sizes", options.values(), lambda: FAMILIES[name].make(**options))
        return FAMILIES[name].make(**options)
    timm = _validation.optional_module("timm", f"the model {name!r}")
    base = name.partition(".")[0]
    known = [*FAMILIES, *timm.list_models()]
    if "/" not in name and ":" not in name and base not in known:
        plain = [known for known in FAMILIES if not known.endswith(("_wider", "_gct"))]
        raise errors.InvalidValueError(
            f"unknown model {base!r}; expected one of {', '.join(plain)}, or a name from timm.list_models()."
            f"{_validation.nearest(base, known)}"
        )
    build = partial(timm.create_model, name, **options)
    try:
        plain = {key: value for key, value in options.items() if key != "pretrained"}
        _validation.affordable(f"{name} of these sizes", plain.values(), partial(timm.create_model, name, **plain))
        return build()
    except errors.GatewiseError:
        raise
    except Exception as error:  # whatever options that it does not know of lead to, deep inside timm
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise errors.InvalidValueError(f"timm cannot build {name!r} with these options: {reason}") from None
