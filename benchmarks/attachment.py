"""Measure what it costs to check, before every forward, that each inserted gate is still attached to its layer.

    python benchmarks/attachment.py [--rounds 9] [--threads 2] [--out FILE]

A ResNet-50 with gct before every convolution infers one image, with and without the check, in turn; each round gives one
ratio. The two networks share their modules.
"""

import argparse
import statistics
from pathlib import Path

import torch

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.graph.measure import environment, interleaved_latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/attachment-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = gw.make_model("resnet50+gct").eval()
    x = torch.randn(1, 3, 224, 224)
    hooks = list(net._forward_pre_hooks.values())  # noqa: SLF001
    assert len(hooks) == 1, "the check is the only hook of the network"
    check = hooks[0]
    results = interleaved_latency({"with": lambda: net(x), "without": lambda: net.forward(x)}, rounds=options.rounds)
    ratios = [a / b for a, b in zip(results["with"], results["without"], strict=True)]
    alone = interleaved_latency({"check": lambda: check(net, (x,))}, rounds=options.rounds)["check"]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    print(f"with / without: {median:.4f} [{low:.4f}, {high:.4f}] over {options.rounds} rounds")
    print(f"the check alone: {1e6 * statistics.median(alone):.0f} us for {len(gw.gates_in(net))} gates")
    write_json(
        options.out,
        {
            "environment": environment(torch.device("cpu")),
            "gates": len(gw.gates_in(net)),
            "ratio": {"median": median, "low": low, "high": high, "values": ratios},
            "check_s": alone,
        },
    )


if __name__ == "__main__":
    main()
