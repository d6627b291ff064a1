"""`gct` as one autograd operation: two passes forward, two backward, without a saved copy of the map."""

# pyright: basic

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, float32, float64, is_grad_enabled

from gatewise.gates.kernels.backend import gradients_through, kernels_for, must_be_differentiable, why_not_fusible

Definition = Callable[..., Tensor]


def why_not_fused(
    x: Tensor, alpha: Tensor, gamma: Tensor, beta: Tensor, *, mode: str | float, after_relu: bool
) -> str | None:
    """Return why this gate cannot run a kernel now, or None."""
    if after_relu and mode == "l1" and x.device.type != "cpu":
        return f"after_relu has no kernel on {x.device.type}"
    if not isinstance(mode, str):
        return f"mode {mode:g} has no kernel, only 'l1' and 'l2' have"
    return why_not_fusible(x, alpha, gamma, beta)


def fused_gated_channel_transform(
    x: Tensor,
    alpha: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    definition: Definition,
    mode: str,
    eps: float,
    after_relu: bool,
    activation: str,
) -> Tensor:
    """Compute `definition(x, alpha, gamma, beta)` by a kernel; second derivatives use `definition` itself.

    Saved for backward: x (N, C, *S), which the graph holds anyway, and one norm per channel, (N, C).
    """
    options = kernel_options(mode, eps, after_relu, activation)
    inputs = (x, alpha, gamma, beta)
    if not (is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)):
        return _kernels(x).forward(x, *kernel_parameters(inputs), **options)[0]

    def defined(*inputs: Tensor) -> Tensor:
        return definition(*inputs, mode=mode, eps=eps, after_relu=after_relu, activation=activation)

    return _GatedChannelTransform.apply(*inputs, defined, options)  # type: ignore[return-value]


def kernel_options(mode: str, eps: float, after_relu: bool, activation: str) -> dict[str, Any]:
    """Return a gate's options in the form of the kernels: mode "sum" is l1 of non-negative maps."""
    return {"mode": "sum" if after_relu and mode == "l1" else mode, "eps": eps, "activation": activation}


def kernel_parameters(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return alpha, gamma and beta contiguous and at least float32, without a copy where possible."""
    real = float64 if inputs[0].dtype == float64 else float32
    return [p if p.dtype == real and p.is_contiguous() else p.detach().to(real).contiguous() for p in inputs[1:]]


def _kernels(x: Tensor) -> ModuleType:
    return kernels_for(x.device, "gated_channel_transform")


class _GatedChannelTransform(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha, gamma, beta, defined, options):
        inputs = (x, alpha, gamma, beta)
        y, norms = _kernels(x).forward(x, *kernel_parameters(inputs), **options)
        ctx.save_for_backward(*inputs, norms)
        ctx.defined, ctx.options = defined, options
        return y

    @staticmethod
    def backward(ctx, grad_output):
        *inputs, norms = ctx.saved_tensors
        if must_be_differentiable(grad_output):
            needed = ctx.needs_input_grad[: len(inputs)]
            return *gradients_through(ctx.defined, inputs, needed, grad_output), None, None
        x, needs_map = inputs[0], ctx.needs_input_grad[0]
        gradient, each = _kernels(x).backward(
            grad_output, x, norms, *kernel_parameters(inputs), **ctx.options, needs_map=needs_map
        )
        parameters = [
            total.view_as(parameter).to(parameter.dtype)
            for total, parameter in zip(each.sum(1), inputs[1:], strict=True)
        ]
        return gradient, *parameters, None, None
