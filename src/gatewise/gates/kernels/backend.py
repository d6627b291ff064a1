"""Decide whether a gate runs its reference implementation or a fused kernel, with the reason if it cannot be fused."""

# pyright: basic

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter

from gatewise import errors
from gatewise.core._torch_compat import (
    has_memory,
    is_dispatch_mode_active,
    is_forward_mode_active,
    is_jit_tracing,
    is_transform_active,
)

BACKENDS = ("auto", "reference", "fused")
_CUDA_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def takes_fused(backend: str, gate: str, why_not_fusible: str | None) -> bool:
    """Return whether to run the kernel, if there is no reason against it; raise if backend="fused" cannot.

    >>> takes_fused("auto", "gct", None), takes_fused("auto", "gct", "it is empty")
    (True, False)
    """
    if backend == "fused" and why_not_fusible:
        raise errors.InvalidValueError(
            f"{gate} with backend='fused' cannot run here: {why_not_fusible}. Choose backend='auto', which uses "
            f"the definition where there is no kernel."
        )
    return backend != "reference" and not why_not_fusible


def why_not_fusible(x: Tensor, *others: Tensor) -> str | None:
    """Return why no kernel can run on the map x and the parameters `others` now, or None.

    >>> why_not_fusible(torch.zeros(2, 3, 4, 4, dtype=torch.int32))
    'there is no kernel for maps of torch.int32 on cpu'
    """
    if is_compiling():
        return "torch.compile and torch.export use the definition, which the compiler fuses itself"
    if type(x) is not Tensor and type(x) is not Parameter:
        return f"the map is a {type(x).__name__}, and kernels read plain tensors"
    device = x.device
    return why_observed() or _why_unreadable(x, others, device) or _why_unavailable(device.type, x.dtype)


def must_be_differentiable(*grad_output: Tensor | None) -> bool:
    """Return whether the backward pass is differentiated, vectorised or compiled, so that no kernel can run it."""
    return (
        torch.is_grad_enabled()
        or is_compiling()
        or why_observed() is not None
        or any(gradient is not None and not has_memory(gradient) for gradient in grad_output)
    )


def gradients_through(
    definition: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], grad_output: Tensor
) -> list[Tensor | None]:
    """Return the gradients of `inputs` by autograd through `definition`, differentiable if grad mode is on."""
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need and tensor is not None]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        result = definition(*inputs)
    gradients = iter(torch.autograd.grad(result, wanted, grad_output, create_graph=create_graph))
    return [next(gradients) if need else None for need in needed]


def why_observed() -> str | None:
    """Return which torch feature must observe each operation of a gate, which a kernel would hide, or None."""
    if is_jit_tracing():
        return "torch.jit.trace records the definition"
    if is_transform_active():
        return "torch.func transforms the definition"
    if is_forward_mode_active():
        return "forward-mode differentiation follows the definition"
    if is_dispatch_mode_active():
        return "a dispatch mode observes the operations of the definition"
    return None


def _why_unreadable(x: Tensor, others: tuple[Tensor, ...], device: torch.device) -> str | None:
    if x.numel() == 0:
        return "the map is empty"
    if not (x.is_contiguous() or _is_channels_last(x)):
        return f"the map, with strides {x.stride()}, is neither contiguous nor channels-last"
    for other in others:
        if other.device != device:
            return f"the map is on {device} and the gate on {other.device}"
        if type(other) is not Parameter and type(other) is not Tensor:
            return f"a parameter is a {type(other).__name__}, and kernels read plain tensors"
    return None


def _is_channels_last(x: Tensor) -> bool:
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)


@functools.cache
def _why_unavailable(device: str, dtype: torch.dtype) -> str | None:
    """Return what is missing on this machine for maps of `dtype` on `device`, or None."""
    if device == "cpu":
        if importlib.util.find_spec("numba") is None:
            return "kernels for the CPU need numba; pip install 'gatewise[fast]'"
        from gatewise.gates.kernels.cpu.openmp import runtime, supported_types

        if runtime() is None:
            return "torch's OpenMP library, whose threads run the kernels, was not found in torch/lib"
        if dtype in supported_types():
            return None
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "kernels for GPUs need triton; pip install triton"
        if dtype in _CUDA_TYPES:
            return None
    return f"there is no kernel for maps of {dtype} on {device}"


def kernels_for(device: torch.device, name: str) -> ModuleType:
    """Return the module of kernels `name` for a device."""
    return _module("cpu" if device.type == "cpu" else "triton", name)


@functools.cache
def _module(folder: str, name: str) -> ModuleType:
    return importlib.import_module(f"gatewise.gates.kernels.{folder}.{name}")
