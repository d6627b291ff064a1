"""The one list of gates: what a gate is, the facts about each, and how to make one by name.

A gate registers itself in its own file with `@register_gate`. The command line, the contract tests, the
benchmark, the documentation and the comparison read this table; nobody writes the list a second time.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from gatewise import _validation, errors

PLACES = ("before_conv", "inner", "residual_end", "stage_end")  # in any network
MARKED_PLACES = ("context", "context_stages")  # in networks that mark them, such as a segmenter


class Gate(nn.Module):
    """Base of every gate: a map (N, C, *S) goes in, a map of the same shape, type and layout comes out.

    A subclass takes `channels` first and positionally, then keyword-only options, then `device` and `dtype`.

    Attributes:
        spatial_dims: number of axes behind (N, C): 1, 2 or 3.
        no_weight_decay: names of own parameters that weight decay must leave alone.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # torch types the call of a module as Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, channels: int, *, spatial_dims: int = 2) -> None:
        super().__init__()
        _validation.check_integer_at_least(1, channels=channels)
        self._channels = channels
        self.spatial_dims = _validation.check_one_of("spatial_dims", spatial_dims, (1, 2, 3))

    @property
    def channels(self) -> int:
        """C. A gate with weights reads it from them, so that it stays true when a pruner cuts channels off."""
        return self._channels

    @property
    def identity_at_init(self) -> bool:
        """Whether a freshly made gate with these options returns its input bit for bit."""
        return False

    @property
    def is_additive(self) -> bool:
        """Whether the gate adds something to its input; most multiply it by factors."""
        return False

    def attention(self, x: Tensor, queries: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the weight of every position in what is added at `queries`, or None for a gate that attends to none.

        Args:
            x: the gate's input, (N, C, *S).
            queries: positions, numbered along the flattened (*S): (Q,).

        Returns: (N, Q, *S).
        """
        return None

    def extra_loss(self) -> Tensor | None:
        """Return a scalar that training should add to its loss, or None (most gates ask for nothing)."""
        return None

    def check_input(self, x: Tensor) -> None:
        """Refuse anything but a floating-point map with this gate's channels and rank."""
        _validation.check_feature_map(type(self).__name__, x, self.channels, self.spatial_dims)

    def pointwise(
        self, inputs: int, outputs: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Return a new convolution of kernel size 1 for maps of this gate's rank."""
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.spatial_dims - 1]
        return convolution(inputs, outputs, 1, device=device, dtype=dtype)


def bottleneck_width(channels: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int) -> int:
    """Return `rd_channels`, or channels * rd_ratio rounded down to a multiple of rd_divisor, never below one multiple.

    >>> bottleneck_width(64, 1 / 16, None, 1), bottleneck_width(100, 1 / 4, None, 8), bottleneck_width(64, 1, 5, 1)
    (4, 24, 5)
    """
    _validation.check_integer_at_least(1, rd_divisor=rd_divisor)
    _validation.check_number_between(1e-9, 1, rd_ratio=rd_ratio)
    if rd_channels is not None:
        _validation.check_integer_at_least(1, rd_channels=rd_channels)
        return rd_channels
    return max(1, int(channels * rd_ratio) // rd_divisor) * rd_divisor


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """Facts about one kind of gate.

    Attributes:
        name: the registry's key, the paper's abbreviation.
        gate: the module class.
        function: the pure function the module forwards to.
        title: the mechanism's full name.
        paper: authors, venue and identifier of the paper.
        place: where the paper puts it, one of `PLACES`.
        variants: option sets that the tests and the documentation go through besides the defaults.
        no_effect_at_init: options that cannot change the output of a fresh gate, each with the reason.
        guidance: when it is worth trying and what to beware of, in a few sentences of Markdown for the documentation.
    """

    name: str
    gate: type[Gate]
    function: Callable[..., Tensor]
    title: str
    paper: str
    place: str
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    no_effect_at_init: Mapping[str, str] = field(default_factory=dict[str, str])
    guidance: str = ""

    @functools.cached_property
    def options(self) -> dict[str, inspect.Parameter]:
        """The constructor's keyword options, without `device` and `dtype`."""
        parameters = inspect.signature(self.gate).parameters
        keywords = {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        return {name: p for name, p in keywords.items() if name not in {"device", "dtype"}}

    def make(self, channels: int, **options: Any) -> Gate:
        """Build the gate; an unknown option is refused with the list of known ones."""
        _validation.check_known_options(f"gate {self.name!r}", options.keys() - {"device", "dtype"}, self.options)
        sizes = [channels, *options.values()]
        meta: dict[str, Any] = {**options, "device": "meta"}
        _validation.check_fits_in_memory(f"gate {self.name!r}", sizes, lambda: self.gate(channels, **meta))
        return self.gate(channels, **options)


_registry: dict[str, GateSpec] = {}
GateClass = TypeVar("GateClass", bound=type[Gate])


def register_gate(
    name: str,
    *,
    function: Callable[..., Tensor],
    title: str,
    paper: str,
    place: str,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    no_effect_at_init: Mapping[str, str] | None = None,
    guidance: str = "",
) -> Callable[[GateClass], GateClass]:
    """Register the decorated `Gate` class under `name`; a name in use or an unknown place is refused."""
    _validation.check_one_of("place", place, PLACES)
    if name in _registry:
        raise errors.InvalidValueError(f"gate {name!r} is registered already, by {_registry[name].gate.__name__}.")
    if not name.isidentifier():
        raise errors.InvalidValueError(f"a gate's name must be letters, digits and '_', got {name!r}.")

    def register(gate: GateClass) -> GateClass:
        _registry[name] = GateSpec(
            name=name,
            gate=gate,
            function=function,
            title=title,
            paper=paper,
            place=place,
            variants=variants or {},
            no_effect_at_init=no_effect_at_init or {},
            guidance=guidance,
        )
        return gate

    return register


def gate_names() -> tuple[str, ...]:
    """Return the names of all registered gates in alphabetical order.

    >>> "gct" in gate_names()
    True
    """
    return tuple(sorted(_registry))


def gate_spec(name: str) -> GateSpec:
    """Return the facts about one gate; an unknown name is refused with the nearest known one."""
    return _registry[_validation.check_one_of("gate", name, _registry)]


def make_gate(
    name: str,
    channels: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Gate:
    """Build the gate `name` for maps of `channels` channels.

    >>> make_gate("gct", 64, mode="l1")
    GatedChannelTransform(64, mode='l1')
    """
    return gate_spec(name).make(channels, device=device, dtype=dtype, **options)
