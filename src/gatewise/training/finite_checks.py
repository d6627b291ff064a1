"""Detect losses and gradients that are not finite, and find the tensor or layer in which they begin."""

# pyright: basic

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gatewise.core.types import tensors_of
from gatewise.models.serialization import ruined_parameter

_LEAST_SCALE = 2.0**-14  # the smallest normal float16: no finite gradient needs a smaller loss scale


class NotFinite(Exception):  # noqa: N818
    """Raised if a loss or gradient of a step is not finite.

    Attributes:
        what: the loss or gradient, as a clause.
        cause: where it begins, as a sentence.
    """

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(f"{what}: {cause}")
        self.what, self.cause = what, cause


def check_loss_finite(loss: Tensor, parts: Mapping[str, Tensor], model: nn.Module, images: Tensor) -> None:
    """Raise `NotFinite` if a loss is not finite, before a step spreads it to all weights.

    Args:
        loss: a scalar; reading it synchronises with the device.
        parts: terms of the loss, by name.
        model: the network, with the weights that gave this loss.
        images: its input, (B, C, H, W).
    """
    if not math.isfinite(value := float(loss.detach())):
        raise NotFinite(f"the loss is {value}", origin(model, images, parts))


def check_gradients_finite(model: nn.Module) -> None:
    """Raise `NotFinite` if a gradient is not finite, before a step applies it."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = torch.nn.utils.get_total_norm(gradients.values(), math.inf)
    if not math.isfinite(float(largest)):
        bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        raise NotFinite(
            f"the gradient of {bad[0]} is not finite",
            f"The loss and all weights are finite, and so are the gradients of {len(gradients) - len(bad)} of "
            f"{len(gradients)} parameters.",
        )


@torch.no_grad()
def origin(model: nn.Module, images: Tensor, parts: Mapping[str, Tensor]) -> str:
    """Return a sentence that says where a loss became infinite or NaN: images, weights, a layer, or a loss term."""
    bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        return f"Its images are not finite: {len(bad)} of {len(images)} in the batch, the first at index {bad[0]}."
    # parameters only: the forward that gave this loss has already updated the running statistics
    if (name := ruined_parameter(model)) is not None:
        return f"It begins in the weights: {name} has values that are not finite."
    if (layer := first_layer(model, lambda: model(images))) is not None:
        return f"It begins in {layer}: its output is not finite, although its weights and inputs are."
    modules: Any = model.named_modules()
    for name, module in modules:
        own = module.extra_loss() if hasattr(module, "extra_loss") else None
        if own is not None and not bool(own.isfinite().all()):
            return f"It begins in the extra loss of {name} ({type(module).__name__})."
    terms = [name for name, part in parts.items() if not bool(part.isfinite().all())]
    return f"The outputs of all layers are finite. Not finite: {' and '.join(terms) or 'the sum of the loss terms'}."


def first_layer(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Return name and class of the first module whose inputs are finite and whose output is not, or None."""
    names: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def check(_: nn.Module, inputs: Any, output: Any) -> None:
            if not names and all(map(_finite, tensors_of(inputs))) and not all(map(_finite, tensors_of(output))):
                names.append(f"{name or 'the network'} ({type(module).__name__})")

        return module.register_forward_hook(check)

    handles = [watch(name, module) for name, module in model.named_modules()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return names[0] if names else None


def ruined_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Return a name for the first optimizer state that is not finite, or None."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor) and not _finite(value):
                return f"{slot} of {names.get(parameter, 'a parameter')} in the optimizer"
    return None


def hopeless_scale(scaler: Any) -> str | None:
    """Return a message if the gradient scaler's loss scale is too small to recover from, else None."""
    if scaler is None or scaler.get_scale() >= _LEAST_SCALE:
        return None
    return f"the loss scale has fallen to {scaler.get_scale():.1e}: gradients overflow float16 at every scale"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
