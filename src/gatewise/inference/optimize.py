"""Optimise a network for inference in place, and undo it."""

import contextlib
import functools
from collections.abc import Generator
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core._torch_compat import MoveObserver, version_of
from gatewise.core.hooks import count_hooks
from gatewise.core.types import Example, Output, tensors_of
from gatewise.gates.inference_form import InferencePattern
from gatewise.graph import FusionPattern, Graph, evaluation_mode, find_fusion_patterns, own_layers
from gatewise.graph.trace import example_inputs
from gatewise.inference.fold import WithoutNorm, can_fold, has_scale_and_shift, is_plain_convolution
from gatewise.inference.forms import FactorSlot, FoldedConvolution, GateBeforeConvolution, NormOnly, pass_on
from gatewise.insertion.insert import gate_hosts, gates_in
from gatewise.insertion.mixins import add_mixin, remove_mixin

_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


class _ForInference(MoveObserver):
    """Methods of a network that is optimised for inference: training and moving raise."""

    def train(self, mode: bool = True) -> "_ForInference":
        if mode:
            raise errors.InvalidValueError(
                "a network that is optimised for inference cannot be trained. Call undo() first."
            )
        return super().train(mode)

    def before_move(self) -> None:
        raise errors.InvalidValueError(
            "a network that is optimised for inference keeps its device and dtype. Call undo(), move it, "
            "and optimise it again."
        )


class InferenceNet(_ForInference):
    """A network that is optimised for inference until `undo` is called; `model` is the network itself.

    Attributes:
        model: the network, changed in place. Its parameters, their names and its state dict are unchanged.
        folded: {path of a convolution: path of the batch norm folded into it}.
        gates: {path of a gate: how it runs}: "in place" or "new map", with "norm" and "relu" if it applies them itself.

    Raises:
        InvalidValueError: on `train()`, `load_state_dict`, a move to another device or dtype, or an input that requires
            a gradient. Call `undo()` first.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.folded: dict[str, str] = {}
        self.gates: dict[str, str] = {}
        self._flags = {module: module.training for module in model.modules()}
        self._changed: list[nn.Module] = []
        self._handles = [module.register_load_state_dict_pre_hook(_reject_weights) for module in model.modules()]
        add_mixin(model, _ForInference)
        self.eval()

    def forward(self, *args: Any, **named: Any) -> Output:
        with torch.no_grad():
            return self.model(*args, **named)

    def undo(self) -> nn.Module:
        """Restore the network bit for bit, including training flags, and return it."""
        for layer in self._changed:
            layer.__dict__.pop("forward", None)
        for module, flag in self._flags.items():
            module.training = flag
        if isinstance(self.model, _ForInference):
            remove_mixin(self.model, _ForInference)
        for handle in self._handles:
            handle.remove()
        self._changed, self.folded, self.gates = [], {}, {}
        return self.model

    def replace_forward(self, layer: nn.Module, form: Any) -> None:
        """Let a layer run `form` until `undo`."""
        layer.__dict__["forward"] = form
        self._changed.append(layer)


def _reject_weights(module: nn.Module, *_: Any) -> None:  # noqa: ARG001
    raise errors.InvalidValueError(
        "a network that is optimised for inference holds batch norms in its convolutions, so weights that are loaded "
        "now would not be used. Take it back with undo(), load them, and optimise it again."
    )


def optimize_for_inference(model: nn.Module, example: Example = None) -> InferenceNet:
    """Optimise a network with or without gates for inference, in place; outputs are equal within rounding.

    Batch norms are folded into the convolutions before them. A `gct` applies the ReLU before it, and a norm that could
    not be folded, in its own two passes, and works in place if no other layer reads the map. For a single image its
    factors scale the weights of the next convolution if that was measured to be faster, once per map size. `se` and
    `gc` work in place if no other layer reads the map.

    Args:
        model: any network; layers that cannot be found in its graph are left unchanged.
        example: an input or tuple of inputs, needed if the input size cannot be guessed.

    Returns:
        The optimised network; `.undo()` restores the original.

    Raises:
        InvalidValueError: if the network is already optimised, its graph cannot be read, or its outputs would change.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    >>> x = torch.randn(2, 3, 6, 6)
    >>> fast = optimize_for_inference(net)
    >>> fast.folded
    {'0': '1'}
    >>> y = fast(x)
    >>> bool((fast.undo()(x) - y).abs().max() < 1e-5)
    True
    """
    if any("forward" in module.__dict__ for module in model.modules()):
        raise errors.InvalidValueError("the network is optimised already, or its layers' forwards are replaced.")
    inputs = _example(model, example)
    hosts = gate_hosts(model)
    with evaluation_mode(model), torch.no_grad(), _calls_of_gates(model) as calls:
        expected = tensors_of(model(*inputs))
    inserted = {gate for *_, gate in hosts}
    hosts += [(layer, "after", gate) for gate, layer in calls.items() if layer and gate not in inserted]
    with evaluation_mode(model):
        patterns, norms = find_fusion_patterns(Graph(model, inputs), [(host, side) for host, side, _ in hosts])
    net = InferenceNet(model)
    layers: dict[str, Any] = dict(model.named_modules())
    convolutions = _fold(net, layers, norms)
    for host, side, gate in hosts:
        single = sum(h == host and s == side for h, s, _ in hosts) == 1
        handed_on = side == "input" and single and _alone(layers[host])
        _place(net, layers, host, gate, patterns[host, side], convolutions if handed_on else {})
    try:
        _prove(net, inputs, expected)
    except BaseException:
        net.undo()
        raise
    return net


@contextlib.contextmanager
def _calls_of_gates(model: nn.Module) -> Generator[dict[str, str]]:
    """Return {gate path: path of the layer that returned its input}; '' if none did or the gate is called twice."""
    calls: dict[str, str] = {}
    last: tuple[str, Tensor | None, float] = ("", None, 0)  # path, output and its version of the last layer
    gates = gates_in(model)
    nested = {inner for gate in gates.values() for inner in gate.modules() if inner is not gate}

    def returned(path: str, layer: nn.Module, _: Any, result: Any) -> None:
        nonlocal last
        outer = next(layer.children(), None) is not None  # it may return the output of an inner layer
        if isinstance(result, Tensor) and not result.is_inference() and not (outer and result is last[1]):
            last = path, result, version_of(result)

    def reached(path: str, _: Any, args: Any) -> None:
        layer, result, version = last
        straight = bool(args) and args[0] is result and result is not None and version_of(result) == version
        calls[path] = layer if straight and path not in calls else ""

    with contextlib.ExitStack() as hooks:
        for path, layer in own_layers(model):
            hooks.callback(layer.register_forward_hook(functools.partial(returned, path)).remove)
        for path, gate in gates.items():
            if gate not in nested:
                hooks.callback(gate.register_forward_pre_hook(functools.partial(reached, path)).remove)
        yield calls


def _alone(host: Any) -> bool:
    """Return whether the gate is the only operation between the map and the convolution."""
    return count_hooks(host, "input") == 1


def _fold(net: InferenceNet, layers: dict[str, Any], norms: dict[str, str]) -> dict[str, FoldedConvolution]:
    """Set the optimised forward of convolutions, folding norms where possible; return them by path."""
    convolutions: dict[str, FoldedConvolution] = {}
    for path, layer in layers.items():
        if not is_plain_convolution(layer):
            continue
        norm = layers.get(norms.get(path, ""))
        if norm is not None and not can_fold(layer, norm):
            norm = None
        convolutions[path] = FoldedConvolution(layer, norm, FactorSlot() if layer.groups == 1 else None)
        net.replace_forward(layer, convolutions[path])
        if norm is not None:
            net.folded[path] = norms[path]
            net.replace_forward(norm, WithoutNorm(norm))
    return convolutions


def _place(
    net: InferenceNet,
    layers: dict[str, Any],
    host: str,
    path: str,
    pattern: FusionPattern,
    convolutions: dict[str, FoldedConvolution],
) -> None:
    """Set the optimised forward of a gate, and of the layers that it applies itself."""
    gate = layers[path]
    folded = pattern.norm in net.folded.values()
    norm = layers[pattern.norm] if pattern.norm and not folded and has_scale_and_shift(layers[pattern.norm]) else None
    before = InferencePattern(pattern.owned, bool(pattern.activation), None if norm is None else NormOnly(norm))
    form = gate.inference_form(before)
    net.gates[path] = "as it was" if form is None else str(form)
    if form is None:
        return
    if form.norm:
        net.replace_forward(norm, WithoutNorm(norm))  # type: ignore[arg-type]  # pyright: ignore
    if form.relu:
        net.replace_forward(layers[pattern.activation], pass_on)
    reader = convolutions.get(host)
    hands_on = form.factors is not None and reader is not None and reader.factor_slot is not None
    net.replace_forward(gate, GateBeforeConvolution(form, gate, reader) if hands_on else form.run)  # type: ignore[arg-type]


def _example(model: nn.Module, example: Example) -> tuple[Any, ...]:
    if example is not None:
        return cast(tuple[Any, ...], example) if isinstance(example, tuple) else (example,)
    generator = torch.Generator().manual_seed(0)
    with evaluation_mode(model), torch.no_grad():
        for guess in example_inputs(model):
            inputs = (torch.randn(guess.shape, generator=generator).to(guess),)
            try:
                model(*inputs)
            except Exception:  # try the next size
                continue
            return inputs
    raise errors.InvalidValueError(
        f"no input for {type(model).__name__} could be guessed. Pass example=, an input that the network takes."
    )


def _prove(net: InferenceNet, inputs: tuple[Any, ...], expected: list[Tensor]) -> None:
    """Raise if the outputs for the example differ by more than rounding."""
    for tensor, before in zip(tensors_of(net(*inputs)), expected, strict=True):
        if not before.is_floating_point() or before.numel() == 0:
            if not torch.equal(tensor, before):
                raise errors.InvalidValueError(f"optimising would change an output of {type(net.model).__name__}.")
            continue
        bound = _ROUNDING.get(before.dtype, 0) * float(before.abs().max().clamp(min=1e-6))
        error = float((tensor - before).abs().max())
        if not error <= bound:
            raise errors.InvalidValueError(
                f"optimising would change the outputs of {type(net.model).__name__} by {error:.2g}, but rounding "
                f"allows only {bound:.2g}. The network is unchanged. Does its forward read attributes of layers?"
            )
