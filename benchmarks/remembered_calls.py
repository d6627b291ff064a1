"""What remembering the last call of a `gct` saves in eager inference: a ResNet-50 with 53 gates, one image.

    python benchmarks/remembered_calls.py [--rounds 11] [--calls 30] [--out FILE]

A `gct` at inference keeps the facts that decided its last call (`gatewise.kernels.repeated`) and calls the kernel
directly while they are the same. Both variants run in one process and alternate call by call. The result is the ratio
of the medians of each round, time without remembering / time with it: its median and quartiles over the rounds.
"""

import argparse
import statistics
import time
from pathlib import Path

import timm
import torch

import gatewise as gw
from gatewise.files import write_json
from gatewise.kernels.repeated import Repeated
from gatewise.measure import environment

METHODS = {
    "with": (Repeated.take, Repeated.remember),
    "without": (lambda *_: None, lambda *_: None),
}


def seconds(net: torch.nn.Module, x: torch.Tensor, variant: str) -> float:
    Repeated.take, Repeated.remember = METHODS[variant]
    start = time.perf_counter()
    net(x)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="What remembering the last call of a gct saves.")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/remembered_calls-cpu.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    net = timm.create_model("resnet50")
    gw.insert_gates(net, "gct")
    net.eval()
    x = torch.randn(1, 3, 224, 224)
    ratios, times = [], {"with": [], "without": []}
    with torch.inference_mode():
        for _ in range(10):
            net(x)
        for _ in range(options.rounds):
            taken = {"with": [], "without": []}
            for call in range(options.calls):
                for variant in taken if call % 2 else reversed(taken):
                    taken[variant].append(seconds(net, x, variant))
            ratios.append(statistics.median(taken["without"]) / statistics.median(taken["with"]))
            for variant, values in taken.items():
                times[variant].append(1e3 * statistics.median(values))
    low, median, high = statistics.quantiles(ratios, n=4)
    result = {
        "environment": environment(),
        "rounds": options.rounds,
        "calls_per_round": options.calls,
        "ratio": {"median": median, "low": low, "high": high, "rounds": ratios},
        "median_ms": {variant: statistics.median(values) for variant, values in times.items()},
    }
    write_json(options.out, result)
    print(f"without / with: {median:.3f} [{low:.3f}, {high:.3f}] over {options.rounds} rounds")


if __name__ == "__main__":
    main()
