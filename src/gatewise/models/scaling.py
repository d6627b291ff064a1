"""The same network in other widths, for comparisons at equal cost.

Networks of this package say how they are scaled (`Family.scale`). One of timm, or of a function of the user, is scaled
by the option of its constructor that sets its widths: a tuple with the width of each stage, one width, or a factor.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch

from gatewise import errors
from gatewise.core.reasons import reason_of
from gatewise.gates.spec import ModelSpec
from gatewise.graph.measure import parameter_count
from gatewise.models.build import build_backbone
from gatewise.models.families import FAMILIES
from gatewise.models.network_functions import network_function

Widths = Callable[[float, int], ModelSpec]  # from a factor, and the number of which widths are multiples, to a network
UNITS = (8, 4, 2, 1)  # of widths of timm's networks: hardware computes multiples of 8 fastest
_OPTIONS = (  # of constructors, those of the whole network first
    "channels",
    "dims",
    "embed_dims",
    "embed_dim",
    "widths",
    "base_dim",
    "width_factor",
    "width_mult",
    "width",
    "channel_multiplier",
    "growth_rate",
    "base_width",
)
_LARGEST, _STEP = 16.0, 1.5  # largest factor, or divisor, of widths that is tried; ratio of factors in a bracket


def widths_of(spec: ModelSpec, *, num_classes: int, in_chans: int) -> Widths:
    """Return a function from a factor to the same network with all widths times that factor.

    Args:
        spec: a network without gates.
        num_classes: its outputs.
        in_chans: channels of its images.

    Raises:
        InvalidValueError: the network has no option that scales its widths.

    >>> str(widths_of(ModelSpec.parse("resnet20"), num_classes=10, in_chans=3)(0.5, 1))
    'resnet20_wider:parameters=68786'
    """
    images = {"num_classes": num_classes, "in_chans": in_chans}
    if spec.model in FAMILIES:
        if (scale := FAMILIES[spec.model].scale) is None:
            raise errors.InvalidValueError(f"{spec.model} has no option for its width.")

        def of_family(factor: float, unit: int) -> ModelSpec:  # noqa: ARG001
            name, options = scale({**spec.model_options, **images}, factor)
            kept = {key: value for key, value in options.items() if key not in images or key in spec.model_options}
            return ModelSpec(name, kept)

        return of_family
    return _widths_of_timm(spec, images)


def _widths_of_timm(spec: ModelSpec, images: Mapping[str, Any]) -> Widths:
    """Return the scaling of a network of timm by the first option in `_OPTIONS` with which it can be built."""
    arguments = _function_arguments(spec) if spec.function else _constructor_arguments(spec, images)
    tried: list[str] = []
    for option, unit in itertools.product(_OPTIONS, (8, 1)):  # small widths are no multiples of 8
        widths = partial(_with_widths, spec, option, arguments.get(option))
        if not _are_widths(arguments.get(option)):
            continue
        try:
            narrow, wide = (_parameters_of(widths(factor, unit), images) for factor in (0.5, 2.0))
        except errors.GatewiseError as error:
            tried.append(f"{option} ({reason_of(error, 80)})")
            continue
        if narrow < _parameters_of(spec, images) < wide:
            return widths
    words = f"; tried {', '.join(tried)}" if tried else ""
    raise errors.InvalidValueError(f"{spec.model} takes no option for its width{words}.")


def _are_widths(value: object) -> bool:
    values = cast(tuple[object, ...], value) if isinstance(value, tuple | list) else (value,)
    return bool(values) and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def _with_widths(spec: ModelSpec, option: str, value: Any, factor: float, unit: int) -> ModelSpec:
    """Return a spec with an option times a factor; integers are widths, rounded to multiples of `unit`."""

    def scaled(width: float) -> float:
        if isinstance(width, float):
            return round(width * factor, 4)
        return unit * max(1, round(width * factor / unit))

    new = tuple(map(scaled, value)) if isinstance(value, tuple | list) else scaled(value)
    return ModelSpec(spec.model, {**spec.model_options, option: new})


def _function_arguments(spec: ModelSpec) -> dict[str, Any]:
    """Return the options of a function of the user, with their defaults."""
    parameters = inspect.signature(network_function(spec.model)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters} | dict(spec.model_options)


def _constructor_arguments(spec: ModelSpec, images: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that timm passes to the class of a network, with the defaults of the others."""
    kind = type(without_values(spec, images))
    original: Any = kind.__init__
    seen: list[inspect.BoundArguments] = []

    def recording(self: object, *given: Any, **options: Any) -> None:
        seen.append(inspect.signature(original).bind(self, *given, **options))
        original(self, *given, **options)

    kind.__init__ = recording  # type: ignore[method-assign]
    try:
        without_values(spec, images)
    finally:
        kind.__init__ = original
    seen[0].apply_defaults()
    return dict(seen[0].arguments)


def without_values(spec: ModelSpec, images: Mapping[str, Any]) -> torch.nn.Module:
    """Build a network on the meta device to count what it costs, or with values where that fails.

    Args:
        spec: the network.
        images: num_classes and in_chans.
    """
    plain = {key: value for key, value in spec.model_options.items() if key != "pretrained"}
    build = partial(build_backbone, ModelSpec(spec.model, plain), **images)
    try:
        with torch.device("meta"):
            return build()
    except errors.InvalidValueError:
        return build()


def _parameters_of(spec: ModelSpec, images: Mapping[str, Any]) -> int:
    return parameter_count(without_values(spec, images))


def nearest_width(
    widths: Callable[[float], ModelSpec],
    cost: Callable[[ModelSpec], float],
    target: float,
    *,
    tolerance: float = 1e-3,
    steps: int = 30,
) -> tuple[ModelSpec, float]:
    """Return the network with the cost nearest to `target`, and its cost, by bisection of the factor of its widths.

    Args:
        widths: function from a factor to a network.
        cost: function from a network to its cost, which grows with the widths; called once for each network.
        target: the cost to reach.
        tolerance: relative difference at which the search ends.
        steps: largest number of bisections.

    >>> widths = lambda factor: ModelSpec("net", {"width": round(64 * factor)})
    >>> spec, cost = nearest_width(widths, lambda spec: spec.model_options["width"], 40)
    >>> str(spec), cost
    ('net:width=40', 40)
    """
    found: dict[str, tuple[float, ModelSpec]] = {}

    def cost_at(factor: float) -> float:
        spec = widths(factor)
        if str(spec) not in found:
            found[str(spec)] = cost(spec), spec
        return found[str(spec)][0]

    low = high = 1.0
    while cost_at(high) < target and high < _LARGEST:
        low, high = high, high * _STEP
    while cost_at(low) > target and low > 1 / _LARGEST:
        low, high = low / _STEP, low
    for _ in range(steps):
        if min(abs(value / target - 1) for value, _ in found.values()) <= tolerance:
            break
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost_at(middle) < target else (low, middle)
    best, spec = min(found.values(), key=lambda pair: abs(math.log(pair[0] / target)))
    return spec, best
