"""Measure the Triton kernels of gct on a GPU, against a copy of the map and torch.compile of the definition.

    python benchmarks/gates_gpu.py [--rounds 10] [--quick] [--out benchmarks/results/gates_gpu-cuda.json]

All entries of a table are timed in turn in one run (see `gatewise.graph.measure.interleaved_latency`). The result is
the ratio to a `clone` of the map of each round, as median and quartiles. `--quick` uses tiny maps, to check that the
script works; its times have no meaning.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatewise.core.files import write_json
from gatewise.gates.gated_channel_transform import gated_channel_transform
from gatewise.graph.measure import Latency, environment, interleaved_latency

SETTINGS: dict[str, Any] = {"mode": "l2", "eps": 1e-5, "activation": "tanh"}
SHAPES = [(64, 32, 16, 16), (64, 64, 8, 8), (32, 256, 56, 56), (32, 1024, 14, 14), (32, 2048, 7, 7)]
QUICK = [(2, 8, 4, 4)]


def synchronised(call: Callable[[], Any]) -> Callable[[], Any]:
    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait


def ratios(latencies: dict[str, Latency]) -> dict[str, dict[str, float]]:
    rows = {}
    for name, latency in latencies.items():
        ratio = latency.times(latencies["clone"])
        rows[name] = {
            "ratio": ratio.median_s,
            "ratio_low": ratio.low_s,
            "ratio_high": ratio.high_s,
            "median_ms": 1e3 * latency.median_s,
        }
    return rows


def differentiated(function: Callable[..., Tensor], leaves: list[Tensor], grad_output: Tensor) -> Callable[[], Any]:
    def call() -> None:
        torch.autograd.grad(function(*leaves, **SETTINGS), leaves, grad_output)

    return call


def one_map(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, *, backward: bool, rounds: int
) -> dict[str, dict[str, float]]:
    """Time forward, or forward and backward, against `clone`, which reads and writes the map once."""
    from gatewise.gates.kernels.triton import gated_channel_transform as kernels

    torch._dynamo.reset()
    x, grad_output = (torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=layout) for _ in range(2))
    flat = torch.randn(3, shape[1], device="cuda")
    leaves = [x.detach().requires_grad_(), *(each[None, :, None, None].requires_grad_() for each in flat)]
    compiled = torch.compile(gated_channel_transform, fullgraph=True, dynamic=False)

    def fused() -> None:
        _, norms = kernels.forward(x, *flat, **SETTINGS)
        if backward:
            _, dparams = kernels.backward(grad_output, x, norms, *flat, **SETTINGS)
            dparams.sum(1)

    def defined(function: Callable[..., Tensor]) -> Callable[[], Any]:
        if backward:
            return differentiated(function, leaves, grad_output)
        return torch.no_grad()(lambda: function(*leaves, **SETTINGS))

    calls: dict[str, Callable[[], Any]] = {
        "clone": x.clone,
        "triton": fused,
        "torch.compile": defined(compiled),
        "eager": defined(gated_channel_transform),
    }
    return ratios(interleaved_latency({name: synchronised(call) for name, call in calls.items()}, rounds=rounds))


def tables(shapes: list[tuple[int, ...]], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    results = {}
    for shape in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            for layout in (torch.contiguous_format, torch.channels_last):
                for backward in (False, True):
                    parts = (
                        "forward + backward" if backward else "forward",
                        str(dtype).removeprefix("torch."),
                        str(layout).removeprefix("torch."),
                        "x".join(map(str, shape)),
                    )
                    title = ", ".join(parts)
                    results[title] = one_map(shape, dtype, layout, backward=backward, rounds=rounds)
                    print(f"\n{title}")
                    for name, row in results[title].items():
                        spread = f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
                        print(f"  {name:14s} {row['ratio']:.2f} x {spread}  {row['median_ms']:.3f} ms", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gates_gpu-cuda.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gates_gpu.py needs a CUDA device; torch.cuda.is_available() is False.", file=sys.stderr)
        return 2
    rounds = 2 if options.quick else options.rounds
    results = {
        "environment": environment("cuda"),
        "rounds": rounds,
        "tables": tables(QUICK if options.quick else SHAPES, rounds),
    }
    if not options.quick:
        write_json(options.out, results)
        print(f"\n{options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
