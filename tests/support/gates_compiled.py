"""Compiles the Triton kernels of the gates for GPUs that need not be there; prints how many programs that made.

Each launch is turned into the program that Triton would build for it (types, sizes of 1 as constants, what 16 divides),
down to machine code. Nothing runs: this says that a GPU can load the kernels, not what they compute there.

    PYTHONPATH=tests python -m support.gates_compiled [--all]  more types, modes and sizes, and a second architecture
"""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gatewise.gates.kernels.triton import attention_pool, channel_affine, gated_channel_transform

MODULES = (attention_pool, channel_affine, gated_channel_transform)
POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
LARGEST_INT32 = 2**31 - 1
programs: dict[str, Any] = {}


class Compiling:
    """A kernel whose launches are compiled instead of run."""

    def __init__(self, kernel: Any, architectures: tuple[int, ...]) -> None:
        self.kernel, self.architectures = kernel, architectures

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < size < LARGEST_INT32 for size in grid), grid
        return self.launch

    def launch(self, *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
        names = self.kernel.arg_names
        assert len(arguments) + len(constants) == len(names), (self.kernel.__name__, arguments, constants)
        signature, fixed, attributes = dict.fromkeys(names, "constexpr"), dict(constants), {}
        for place, value in enumerate(arguments):
            if isinstance(value, int) and value == 1:
                fixed[names[place]] = 1
                continue
            if isinstance(value, torch.Tensor):
                signature[names[place]] = POINTERS[value.dtype]
            else:
                signature[names[place]] = "i32" if value <= LARGEST_INT32 else "i64"
            if (value if isinstance(value, int) else value.data_ptr()) % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
        key = f"{self.kernel.__name__} {signature} {fixed} {attributes} {num_warps}"
        for architecture in self.architectures:
            if f"{key} {architecture}" not in programs:
                source = ASTSource(self.kernel, signature, fixed, attributes)
                target = GPUTarget("cuda", architecture, 32)
                made = triton.compile(source, target=target, options={"num_warps": num_warps})
                assert made.asm["cubin"]
                programs[f"{key} {architecture}"] = made


def launch_all(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, mode: str, activation: str
) -> None:
    """Launch every kernel for such a map."""
    x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)
    reduced = torch.promote_types(dtype, torch.float32)
    alpha, gamma, beta = torch.zeros(3, shape[1], dtype=reduced)
    settings: dict[str, Any] = {"mode": mode, "eps": 1e-5, "activation": activation}
    _, norms = gated_channel_transform.forward(x, alpha, gamma, beta, **settings)
    for needs_map in (True, False):
        gated_channel_transform.backward(x, x, norms, alpha, gamma, beta, **settings, needs_map=needs_map)
    _, attention = attention_pool.forward(x, alpha, gamma[:1] if mode == "l1" else None)
    factors = norms if mode == "l2" else None
    attention_pool.backward(norms, x, attention, alpha, x if mode == "l2" else None, factors)
    channel_affine.channel_affine(x, factors, norms)
    channel_affine.channel_products(x, x)


def main(everything: bool) -> None:
    for module in MODULES:
        for name, kernel in vars(module).copy().items():
            if name.endswith("_kernel"):
                setattr(module, name, Compiling(kernel, (80, 90) if everything else (90,)))
    cases = [
        ((2, 64, 6, 8), torch.bfloat16, torch.contiguous_format, "l2", "tanh"),  # one program holds a sample
        ((2, 192, 28, 28), torch.float16, torch.channels_last, "l1", "elu"),
        ((1, 1, 3, 3), torch.float64, torch.contiguous_format, "l2", "sigmoid"),
    ]
    if everything:
        shapes = [(2, 64, 6, 8), (3, 7, 5, 5), (1, 1, 1, 1), (2, 128, 32, 32), (1, 2048, 14, 14)]
        layouts = [torch.contiguous_format, torch.channels_last]
        cases = list(itertools.product(shapes, POINTERS, layouts, ("l2",), ("tanh",)))
        cases += itertools.product(shapes[::3], list(POINTERS)[:3], layouts, ("l1",), ("sigmoid", "relu", "elu"))
    for case in cases:
        launch_all(*case)
    print(f"{len(programs)} programs")


if __name__ == "__main__":
    main("--all" in sys.argv[1:])
