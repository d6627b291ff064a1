"""Measure the cost of each registered gate: alone against a copy of its map, and in a ResNet-50.

    python benchmarks/gates.py [--rounds 10] [--quick] [--out benchmarks/results/gates-DEVICE.json]

All entries of a table are timed in turn in one run (see `gatewise.graph.measure.interleaved_latency`). The result is
the ratio to the baseline of the same run. `--quick` uses tiny sizes, to check that the script works; its times have no
meaning.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.graph.measure import Latency, environment, interleaved_latency


def synchronised(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    if device == "cpu":
        return call

    def wait() -> None:
        call()
        torch.cuda.synchronize()

    return wait


def ratios(latencies: dict[str, Latency], baseline: str) -> dict[str, dict[str, float]]:
    base = latencies[baseline].median_s
    return {
        name: {
            "ratio": latency.median_s / base,
            "ratio_low": latency.low_s / base,
            "ratio_high": latency.high_s / base,
            "median_ms": 1e3 * latency.median_s,
        }
        for name, latency in latencies.items()
    }


def forward_backward(gate: torch.nn.Module, x: Tensor, grad_output: Tensor) -> Callable[[], Any]:
    def call() -> None:
        x.grad = None
        gate(x).backward(grad_output)

    return call


def gate_alone(shape: tuple[int, ...], device: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Time forward and backward of each gate against `clone` and `add`, which copy the bytes once in each direction."""
    x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    grad_output = torch.randn_like(x)
    plain = x.detach()
    calls: dict[str, Callable[[], Any]] = {"clone + add": lambda: (plain.clone(), plain + grad_output)}
    for name in gw.gate_names():
        gate = gw.make_gate(name, shape[1], device=device, dtype=dtype)
        calls[name] = forward_backward(gate, x, grad_output)
    calls = {name: synchronised(call, device) for name, call in calls.items()}
    return ratios(interleaved_latency(calls, rounds=rounds), "clone + add")


def in_a_network(device: str, batch: int, rounds: int, size: int, model: str, *, train: bool) -> dict[str, Any]:
    """Time one forward in eval mode, or one training step, of a timm network with each gate at its paper's place."""
    image = torch.randn(batch, 3, size, size, device=device)
    calls: dict[str, Callable[[], Any]] = {}
    for name in ("none", *gw.gate_names()):
        net = gw.make_model(model if name == "none" else f"{model}+{name}", seed=0).to(device).train(train)

        def infer(net: torch.nn.Module = net) -> None:
            with torch.inference_mode():
                net(image)

        def step(net: torch.nn.Module = net) -> None:
            net.zero_grad()
            net(image).sum().backward()

        calls[name] = synchronised(step if train else infer, device)
    return ratios(interleaved_latency(calls, rounds=rounds), "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, size, model = ((32, 256, 56, 56), 224, "resnet50") if not options.quick else ((2, 16, 8, 8), 32, "resnet20")
    rounds = 2 if options.quick else options.rounds
    tables = {"forward + backward float32": gate_alone(shape, device, torch.float32, rounds)}
    if device == "cuda":
        tables["forward + backward bfloat16"] = gate_alone(shape, device, torch.bfloat16, rounds)
    for batch, train in ((1, False), (8, False), (8, True)):
        title = f"{model}, {'train' if train else 'infer'} {batch} image{'s' if batch > 1 else ''}"
        tables[title] = in_a_network(device, batch, rounds, size, model, train=train)
    results = {"environment": environment(device), "shape": shape, "rounds": rounds, "tables": tables}
    for title, table in tables.items():
        print(f"\n{title}")
        for name, row in table.items():
            spread = f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
            print(f"  {name:12s} {row['ratio']:.2f} x {spread}  {row['median_ms']:.2f} ms")
    out = options.out or Path(__file__).parent / "results" / f"gates-{device}.json"
    if not options.quick or options.out:
        write_json(out, results)
        print(f"\n{out}")


if __name__ == "__main__":
    main()
