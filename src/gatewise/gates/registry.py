"""Registry of gates: the base class, the metadata of each gate, and construction by name.

Each gate registers itself in its own file with `@register_gate`. The command line, the tests, the benchmark, the
documentation and the comparison all read this registry.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core import _validation
from gatewise.core._torch_compat import MoveObserver
from gatewise.core.layer_types import CONVOLUTIONS
from gatewise.core.registry import Registry
from gatewise.gates.inference_form import InferenceForm, InferencePattern


class Gate(MoveObserver):
    """Base class of all gates: maps (N, C, *S) to the same shape, dtype and memory format.

    The constructor of a subclass takes `channels` as its first positional argument, then keyword-only options, then
    `device` and `dtype`.

    Attributes:
        spatial_dims: number of spatial axes: 1, 2 or 3.
        no_weight_decay: names of the gate's parameters that must not have weight decay.
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
        """Number of channels, read from the weights where there are any, so it stays correct after pruning."""
        return self._channels

    def reset_parameters(self) -> None:
        """Give parameters and buffers the values of a new gate; a gate that has any defines it.

        Raises:
            InvalidTypeError: the class does not define it.
        """
        raise errors.InvalidTypeError(
            f"{type(self).__name__} does not define reset_parameters(), so a gate on the meta device has no initial "
            f"values. Define it, or insert the gate after the network has its weights."
        )

    def after_materialised(self) -> None:
        self.reset_parameters()

    def set_channels(self, channels: int) -> None:
        """Set the number of channels of a gate that has no weights to read it from, after pruning."""
        self._channels = channels

    @property
    def identity_at_init(self) -> bool:
        """Whether a new gate with these options returns its input unchanged, bit for bit."""
        return False

    @property
    def is_additive(self) -> bool:
        """Whether the gate adds an offset to its input; most gates only multiply by factors."""
        return False

    def attention(self, x: Tensor, queries: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the attention weights of all positions for the query positions, or None if the gate has no attention.

        Args:
            x: the gate's input, (N, C, *S).
            queries: indices of positions in the flattened (*S), (Q,).

        Returns:
            Weights, (N, Q, *S).
        """
        return None

    def inference_form(self, pattern: InferencePattern) -> InferenceForm | None:  # noqa: ARG002
        """Return how the gate runs in a network that is optimised for inference; None leaves it as it is.

        Args:
            pattern: what precedes the gate in the network.
        """
        return None

    def export_form(self) -> Callable[[Tensor], Tensor] | None:
        """Return the gate's function in operations that other runtimes run fast, or None for its `forward`.

        It maps (N, C, *S) to the same values as `forward` in eval mode, up to rounding, and is used in ONNX files.
        """
        return None

    def extra_loss(self) -> Tensor | None:
        """Return a scalar to add to the training loss, or None."""
        return None

    def __prepare_scriptable__(self) -> nn.Module:
        raise _validation.cannot_script("gates")

    def check_input(self, x: Tensor) -> None:
        """Raise if `x` is not a floating-point map with this gate's number of channels and of spatial axes."""
        _validation.check_feature_map(type(self).__name__, x, self.channels, self.spatial_dims)

    def pointwise(
        self, inputs: int, outputs: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """Return a new convolution of kernel size 1 for maps with `spatial_dims` spatial axes."""
        return CONVOLUTIONS[self.spatial_dims - 1](inputs, outputs, 1, device=device, dtype=dtype)


def bottleneck_width(channels: int, rd_ratio: float, rd_channels: int | None, rd_divisor: int) -> int:
    """Return `rd_channels`, or channels * rd_ratio rounded down to a multiple of rd_divisor, at least rd_divisor.

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
    """Metadata of one kind of gate.

    Attributes:
        name: key in the registry, the abbreviation used in the paper.
        gate: the module class.
        function: the pure function that computes the gate's output.
        title: full name of the mechanism.
        paper: authors, venue and identifier of the paper.
        place: name of the place that the paper uses, validated at insertion.
        variants: named option sets that the tests and the documentation cover in addition to the defaults.
        no_effect_at_init: options that do not change the output of a new gate, each with the reason.
        guidance: when to use the gate and what to watch out for, in a few sentences of Markdown.
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
        """Keyword-only parameters of the constructor, without `device` and `dtype`."""
        parameters = inspect.signature(self.gate).parameters
        keywords = {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        return {name: p for name, p in keywords.items() if name not in {"device", "dtype"}}

    def make(self, channels: int, **options: Any) -> Gate:
        """Build the gate.

        Raises:
            InvalidValueError: an option is unknown (the message lists the known ones) or invalid.
        """
        _validation.check_known_options(f"gate {self.name!r}", options.keys() - {"device", "dtype"}, self.options)
        sizes = [channels, *options.values()]
        meta: dict[str, Any] = {**options, "device": "meta"}
        _validation.check_fits_in_memory(f"gate {self.name!r}", sizes, lambda: self.gate(channels, **meta))
        return self.gate(channels, **options)


_registry: Registry[GateSpec] = Registry("gate", "gate")
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
    """Return a decorator that registers a `Gate` class under `name`; `GateSpec` documents the arguments.

    Raises:
        InvalidValueError: the name is in use or not an identifier.
    """
    _registry.check_new(name)

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
    """Return the metadata of one gate.

    Raises:
        InvalidValueError: the name is unknown; the message suggests the nearest known name.
    """
    return _registry.lookup(name)


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
