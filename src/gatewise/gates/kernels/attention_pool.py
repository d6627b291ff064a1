"""Attention pooling of a global context block: one pass over the map forward, one backward.

It is used together with `scale_channels`: see `gatewise.gates.kernels.channels`.
"""

# pyright: basic

import torch
from torch import Tensor

from gatewise.gates.kernels.backend import gradients_through, kernels_for, must_be_differentiable
from gatewise.gates.kernels.channels import SharedGradient, as_numbers, per_channel


def pool_by_attention(x: Tensor, weight: Tensor, bias: Tensor | None, link: SharedGradient) -> tuple[Tensor, Tensor]:
    """Return x and the context sum_j softmax_j(w x_j + b) x_j; pass x only to `scale_channels` with the same link.

    Args:
        x: (N, C, *S).
        weight: (1, C, 1, ...), weight of a pointwise convolution.
        bias: (1,) or None.
        link: shared with the `scale_channels` that follows.

    Returns:
        x and the context, (N, C, 1, ...).

    Raises:
        TrainingError: in backward, if another operation has used the returned x.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _AttentionPool.apply(x, weight, bias, link)  # type: ignore[return-value]
    return x, per_channel(_forward(x, weight, bias)[0], x)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Return the context (N, C) and the tensors that backward needs."""
    bias = None if bias is None else as_numbers(bias, x)
    return kernels_for(x.device, "attention_pool").forward(x.detach(), as_numbers(weight, x), bias)


class _AttentionPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, link):
        ctx.set_materialize_grads(False)
        context, *kept = _forward(x, weight, bias)
        ctx.save_for_backward(x, weight, bias, *kept)
        ctx.link = link
        return x.view_as(x), per_channel(context, x)

    @staticmethod
    def backward(ctx, grad_output, of_context):
        x, weight, bias, *kept = ctx.saved_tensors
        factors = ctx.link.take_factors(grad_output)
        of_bias = None if bias is None else torch.zeros_like(bias)  # softmax is invariant to it
        if of_context is None:
            of_context = x.new_zeros(x.shape[:2] + (1,) * (x.dim() - 2))
        if must_be_differentiable(grad_output, of_context):
            needed = (*ctx.needs_input_grad[:2], False)
            of_map, of_weight, _ = gradients_through(_defined, (x, weight, bias), needed, of_context)
            return of_map, of_weight, of_bias, None
        of_context, numbers = as_numbers(of_context, x).view(x.shape[:2]), as_numbers(weight, x)
        kernels = kernels_for(x.device, "attention_pool")
        of_map, each, *_ = kernels.backward(of_context, x, *kept, numbers, grad_output, factors)
        return of_map, each.sum(0).view_as(weight).to(weight.dtype), of_bias, None


def _defined(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the context by the reference implementation, which supports second derivatives."""
    logits = (x * weight.to(x.dtype)).sum(1, keepdim=True) + (0 if bias is None else bias.to(x.dtype))
    attention = logits.flatten(1).softmax(1).view_as(logits)
    return (x * attention).sum(tuple(range(2, x.dim())), keepdim=True)
