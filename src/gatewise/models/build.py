"""Build a backbone and its gates by name: those of `families` here, all others by timm."""

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


def build_backbone(
    spec: ModelSpec,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network and the gates inside it, without the gater that its spec may name; see `gatewise.make_model`."""
    _validation.check_seed(seed)
    for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value is None:
            continue
        _validation.check_integer_at_least(1, **{name: value})
        if (asked := spec.model_options.get(name, value)) != value:
            raise errors.InvalidValueError(
                f"{spec.model} is asked for with {name}={asked}, but {name}={value} is needed here. "
                f"Leave it out of the text."
            )
        options[name] = value
    _check_no_file_options(spec.model, spec.model_options)
    options = {**spec.model_options, **options}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU too
        model = _backbone(spec.model, options)
        insert_all(model, tuple(choice for choice in spec.gates if not choice.is_gater))
    return model


def _check_no_file_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options of a spec by which timm opens a file of its own accord, in older versions as a pickle.

    What timm itself hands a preset is no text of a spec but an object of timm's, and passes.
    """
    for option in _FILES:
        if options.get(option) and not dataclasses.is_dataclass(options[option]):
            raise errors.InvalidValueError(
                f"{name} is asked for with {option}={_validation.safe_repr(options[option])}, and no spec may name a "
                f"file to open. Leave it out, and fill the network with gatewise.load_weights."
            )


def _backbone(name: str, options: dict[str, Any]) -> nn.Module:
    if name in FAMILIES:
        _validation.check_fits_in_memory(
            f"{name} of these sizes", options.values(), lambda: FAMILIES[name].make(**options)
        )
        return FAMILIES[name].make(**options)
    timm = _validation.import_optional("timm", f"the model {name!r}")
    base = name.partition(".")[0]
    known = [*FAMILIES, *timm.list_models()]
    if "/" not in name and ":" not in name and base not in known:
        plain = [known for known in FAMILIES if not known.endswith(("_wider", "_gct"))]
        raise errors.InvalidValueError(
            f"unknown model {base!r}; expected one of {', '.join(plain)}, or a name from timm.list_models()."
            f"{_validation.did_you_mean(base, known)}"
        )
    build = partial(timm.create_model, name, **options)
    try:
        plain = {key: value for key, value in options.items() if key != "pretrained"}
        _validation.check_fits_in_memory(
            f"{name} of these sizes", plain.values(), partial(timm.create_model, name, **plain)
        )
        return build()
    except errors.GatewiseError:
        raise
    except Exception as error:  # whatever options that it does not know of lead to, deep inside timm
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise errors.InvalidValueError(f"timm cannot build {name!r} with these options: {reason}") from None
