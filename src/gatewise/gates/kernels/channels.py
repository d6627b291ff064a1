"""Scale channels by factors and add offsets, as most gates do last: one pass forward and two backward.

The factors depend on a statistic of the same map, so the map gets two gradients: from the product and from the
statistic. Adding them in autograd would cost three more passes. The statistic and the product therefore share a
`SharedGradient`: the backward of the product returns grad_output unchanged and stores its factors there. The backward
of the statistic runs later and computes both gradients at once. The factors may be computed by any operations on
(N, C, 1, ...). The backward of the statistic raises if the gradient that it gets is not the one that the product
returned: another consumer of the map would have added its gradient, which must not be multiplied by the factors.
"""

# pyright: basic

import torch
from torch import Tensor

from gatewise import errors
from gatewise.gates.kernels.backend import kernels_for, must_be_differentiable


class SharedGradient:
    """State shared by the product and the statistic of one feature map.

    Attributes:
        x: the map, needed for second derivatives; released when the product has saved it in autograd.
        grad_output: the gradient returned by the backward of the product, until the backward of the statistic takes it.
        factors: (N, C), factors that this gradient must still be multiplied by; None for 1.
    """

    def __init__(self, x: Tensor) -> None:
        self.x: Tensor | None = x
        self.grad_output: Tensor | None = None
        self.factors: Tensor | None = None

    def leave(self, grad_output: Tensor | None, factors: Tensor | None) -> None:
        """Store the gradient that the product's backward returned, and the factors that it has not multiplied it by."""
        self.grad_output, self.factors = grad_output, factors

    def take_factors(self, gradient: Tensor | None) -> Tensor | None:
        """Return the factors of the gradient that the statistic's backward got; None for 1 or no gradient.

        Raises:
            TrainingError: if it is not the gradient that the product returned.
        """
        handed_on, factors = self.grad_output, self.factors
        self.leave(None, None)
        if gradient is None:
            return None
        if gradient is not handed_on:
            raise errors.TrainingError(
                "the map returned by mean_of_channels or pool_by_attention must only be passed to one scale_channels "
                "with the same link, but another operation uses it too, so its gradient would be wrong. Use their "
                "input there."
            )
        return factors


def mean_of_channels(x: Tensor, link: SharedGradient) -> tuple[Tensor, Tensor]:
    """Return x and its means (N, C, 1, ...); pass x only to `scale_channels` with the same link.

    Raises:
        TrainingError: in backward, if another operation has used the returned x.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x, per_channel(kernels_for(x.device, "channel_affine").channel_means(x.detach()), x)
    return _Mean.apply(x, link)  # type: ignore[return-value]


def scale_channels(
    x: Tensor,
    factors: Tensor | None,
    offsets: Tensor | None = None,
    link: SharedGradient | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return x * factors + offsets, each (N, C, 1, ...) or None, at inference written into `out`, which may be x."""
    inputs = (x, factors, offsets)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        whole = None if link is None else link.x
        if link is not None:
            link.x = None
        return _Scale.apply(*inputs, whole, link)  # type: ignore[return-value]
    return kernels_for(x.device, "channel_affine").channel_affine(x.detach(), _flat(x, factors), _flat(x, offsets), out)


def as_numbers(values: Tensor, x: Tensor) -> Tensor:
    """Return per-channel values in the format of the kernels: flat, at least float32."""
    return values.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32).flatten().contiguous()


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return values (N, C) in the dtype of x and with its spatial axes: (N, C, 1, ...)."""
    return values.to(x.dtype).reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def _flat(x: Tensor, values: Tensor | None) -> Tensor | None:
    """Return factors or offsets in the format of the kernels."""
    if values is None:
        return None
    return as_numbers(values.expand(x.shape[0], *values.shape[1:]), x).view(x.shape[:2])


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, link):
        ctx.set_materialize_grads(False)
        ctx.link, ctx.shape = link, x.shape
        return x.view_as(x), per_channel(kernels_for(x.device, "channel_affine").channel_means(x), x)

    @staticmethod
    def backward(ctx, grad_output, of_mean):
        factors = ctx.link.take_factors(grad_output)
        slopes = None if of_mean is None else of_mean / ctx.shape[2:].numel()
        if grad_output is None:  # no product ran, or its gradient supports second derivatives
            return None if slopes is None else slopes.expand(ctx.shape), None
        kernels = kernels_for(grad_output.device, "channel_affine")
        return kernels.channel_affine(grad_output, factors, _flat(grad_output, slopes)), None


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factors, offsets, whole, link):
        ctx.link, ctx.linked = link, whole is not None
        ctx.offsets_like = None if offsets is None else (offsets.shape, offsets.dtype)
        ctx.save_for_backward(whole if ctx.linked else x, factors)
        return kernels_for(x.device, "channel_affine").channel_affine(x, _flat(x, factors), _flat(x, offsets))

    @staticmethod
    def backward(ctx, grad_output):
        x, factors = ctx.saved_tensors
        if must_be_differentiable(grad_output):
            of_map, *others = _differentiable(ctx, x, factors, grad_output)
            return *((None, *others, of_map) if ctx.linked else (of_map, *others, None)), None
        kernels, flat = kernels_for(x.device, "channel_affine"), _flat(x, factors)
        of_factors = of_offsets = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            products, sums = kernels.channel_products(grad_output, x)
            if ctx.needs_input_grad[1]:
                of_factors = products.sum_to_size(factors.shape[:2]).view_as(factors).to(factors.dtype)
            if ctx.needs_input_grad[2]:
                shape, dtype = ctx.offsets_like
                of_offsets = sums.sum_to_size(shape[:2]).view(shape).to(dtype)
        if ctx.linked:
            ctx.link.leave(grad_output, flat)
            return grad_output, of_factors, of_offsets, None, None
        of_map = None
        if ctx.needs_input_grad[0]:
            of_map = grad_output if flat is None else kernels.channel_affine(grad_output, flat, None)
        return of_map, of_factors, of_offsets, None, None


def _differentiable(ctx, x: Tensor, factors: Tensor | None, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of map, factors and offsets by operations that support second derivatives."""
    of_map = grad_output if factors is None else grad_output * factors.to(grad_output.dtype)
    of_factors = of_offsets = None
    if factors is not None:
        of_factors = (grad_output * x).sum_to_size(factors.shape).to(factors.dtype)
    if ctx.offsets_like is not None:
        shape, dtype = ctx.offsets_like
        of_offsets = grad_output.sum_to_size(shape).to(dtype)
    return of_map, of_factors, of_offsets
