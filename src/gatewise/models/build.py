"""Build a backbone with its gates by name, from `families` or from timm."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core.reasons import as_data_error
from gatewise.core.seeding import seeded
from gatewise.gaternet.gater import register_gater
from gatewise.gates.spec import ModelSpec
from gatewise.insertion.insert import insert_all
from gatewise.models.downloads import downloading
from gatewise.models.families import FAMILIES
from gatewise.models.network_functions import build_with_function

_FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def model_names() -> tuple[str, ...]:
    """Return the names of the networks defined in this package; all other names are timm's."""
    return tuple(FAMILIES)


def build_backbone(
    spec: ModelSpec,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with its gates, without the gater of the spec; see `gatewise.make_model` for the arguments."""
    _validation.check_seed(seed)
    for name, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if value is None:
            continue
        _validation.check_integer_at_least(1, **{name: value})
        if (given := spec.model_options.get(name, value)) != value:
            raise errors.InvalidValueError(
                f"the spec of {spec.model} sets {name}={given}, but {name}={value} is required by the data or the "
                f"caller. Remove {name} from the spec."
            )
        options[name] = value
    _check_no_file_options(spec.model, spec.model_options)
    options = {**spec.model_options, **options}
    with seeded(seed):
        model = build_with_function(spec.model, options) if spec.function else _backbone(spec.model, options)
        insert_all(model, tuple(choice for choice in spec.gates if not choice.is_gater))
    return model


@register_gater("resnet20")
def resnet20_features(in_chans: int) -> tuple[nn.Module, int]:
    """Return a ResNet-20 without its classifier and its number of features: the gater of the GaterNet paper."""
    network: Any = build_backbone(ModelSpec("resnet20"), in_chans=in_chans)
    width: int = network.fc.in_features
    network.fc = nn.Identity()
    return network, width


def _check_no_file_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise if a spec has options that make timm open a file, which older versions read as a pickle.

    The dataclass that timm passes to a preset cannot come from the text of a spec and is allowed.
    """
    for option in _FILES:
        if options.get(option) and not dataclasses.is_dataclass(options[option]):
            raise errors.InvalidValueError(
                f"{name} has the option {option}={_validation.safe_repr(options[option])}, but a spec must not name a "
                f"file. Omit it, and load the weights with gatewise.load_weights."
            )


def _backbone(name: str, options: dict[str, Any]) -> nn.Module:
    if name in FAMILIES:
        _validation.check_fits_in_memory(
            f"{name} with these sizes", options.values(), lambda: FAMILIES[name].make(**options)
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
    plain = {key: value for key, value in options.items() if key != "pretrained"}
    with as_data_error("timm", f"cannot build {name!r} with these options", kind=errors.InvalidValueError):
        _validation.check_fits_in_memory(
            f"{name} with these sizes", plain.values(), partial(timm.create_model, name, **plain)
        )
        with downloading(name, pretrained=bool(options.get("pretrained"))):
            return build()
