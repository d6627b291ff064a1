"""Numbers that are not finite: in which tensor or layer they begin, so that a training stops and says where."""

# pyright: basic

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gatewise.serialization import ruined_parameter

_LEAST_SCALE = 2.0**-14  # the smallest normal number of float16: no gradient needs its loss scaled further down


class NotFinite(Exception):  # noqa: N818
    """A step has come to something that is not finite.

    Attributes:
        what: it is, with its value.
        cause: where it begins, as a sentence.
    """

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(f"{what}: {cause}")
        self.what, self.cause = what, cause


def check_loss_finite(loss: Tensor, parts: Mapping[str, Tensor], model: nn.Module, images: Tensor) -> None:
    """Raise `NotFinite` for a loss that is not finite, before a step spreads it over all weights.

    Args:
        loss: a scalar, whose value is waited for.
        parts: of the loss, by name.
        model: which gave it, as it was then.
        images: it was given.
    """
    if not math.isfinite(value := float(loss.detach())):
        raise NotFinite(f"the loss is {value}", origin(model, images, parts))


def check_gradients_finite(model: nn.Module) -> None:
    """Raise `NotFinite` for gradients that are not finite, before a step spreads them."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = torch.nn.utils.get_total_norm(gradients.values(), math.inf)
    if not math.isfinite(float(largest)):
        ruined = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        raise NotFinite(
            f"the gradient of {ruined[0]} is not finite",
            f"The loss and all weights are; so are the gradients of {len(gradients) - len(ruined)} of "
            f"{len(gradients)} tensors of weights.",
        )


@torch.no_grad()
def origin(model: nn.Module, images: Tensor, parts: Mapping[str, Tensor]) -> str:
    """Say where a loss stopped being finite: in the images, the weights, a layer, or a part of the loss."""
    bad = (~images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        return f"Its images are not finite: {len(bad)} of {len(images)} in the batch, the first being number {bad[0]}."
    if (name := ruined_parameter(model)) is not None:  # statistics are ruined by the forward that gave this loss
        return f"It begins in the weights: {name} holds values that are not finite."
    if (layer := first_layer(model, lambda: model(images))) is not None:
        return f"It begins in {layer}, which gives such values though its weights and what it is given are finite."
    modules: Any = model.named_modules()
    for name, module in modules:
        own = module.extra_loss() if hasattr(module, "extra_loss") else None
        if own is not None and not bool(own.isfinite().all()):
            return f"It begins in the loss that {name} ({type(module).__name__}) asks for."
    ruined = [name for name, part in parts.items() if not bool(part.isfinite().all())]
    return f"All layers give finite values; not finite is {' and '.join(ruined) or 'the sum of its parts'}."


def first_layer(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Return the first module, with its class, that makes values that are not finite of finite ones, if one does."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def look(_: nn.Module, given: Any, output: Any) -> None:
            if not found and all(map(_finite, _tensors(given))) and not all(map(_finite, _tensors(output))):
                found.append(f"{name or 'the network'} ({type(module).__name__})")

        return module.register_forward_hook(look)

    handles = [watch(name, module) for name, module in model.named_modules()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def ruined_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Name the first value that an optimizer keeps of a tensor of weights and that is not finite, if there is one."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor) and not _finite(value):
                return f"{slot} of {names.get(parameter, 'a parameter')} in the optimizer"
    return None


def hopeless_scale(scaler: Any) -> str | None:
    """Say that no scale of the loss keeps gradients within float16, if that is so: then every step is left out."""
    if scaler is None or scaler.get_scale() >= _LEAST_SCALE:
        return None
    return f"the scale of the loss has fallen to {scaler.get_scale():.1e}: gradients overflow float16 at every scale"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in _tensors(part))
    elif isinstance(value, tuple | list):
        yield from (tensor for part in value for tensor in _tensors(part))
