"""Measure what it costs to check, before every forward, that each inserted gate is still attached to its layer.

    python benchmarks/attachment.py [--rounds 9] [--calls 20] [--threads 2] [--out FILE]

A ResNet-50 with gct before every convolution infers one image, with and without the checks of the network and of each
of its parts, in turn; each round gives one ratio. Both ways run the same network.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.graph.measure import environment
from gatewise.insertion.attachment import KeepAttached


def is_check(hook: object) -> bool:
    """Return whether a hook checks that gates are attached."""
    return isinstance(hook, KeepAttached)


def seconds(call: Callable[[], object], calls: int) -> float:
    """Return the seconds of one call, the mean of several."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/attachment-cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = gw.make_model("resnet50+gct").eval()
    x = torch.randn(1, 3, 224, 224)
    checks = [
        (part, key, hook) for part in net.modules() for key, hook in part._forward_pre_hooks.items() if is_check(hook)
    ]
    assert checks[0][0] is net, "the network checks its gates, and so does each part of it"

    def timed(way: str) -> float:
        for part, key, hook in checks:
            part._forward_pre_hooks.pop(key, None)
            if way == "with":
                part._forward_pre_hooks[key] = hook
        return seconds(lambda: net(x), options.calls)

    def check() -> None:
        for part, _, hook in checks:
            hook(part, (x,))

    ways = ("with", "without")
    for way in ways:
        timed(way)  # warm up
    rounds = [{way: timed(way) for way in ways[:: 1 if turn % 2 else -1]} for turn in range(options.rounds)]
    ratios = [one["with"] / one["without"] for one in rounds]
    alone = [seconds(check, 1000) for _ in range(options.rounds)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    print(f"with / without: {median:.4f} [{low:.4f}, {high:.4f}] over {options.rounds} rounds")
    share = statistics.median(alone) / statistics.median(one["without"] for one in rounds)
    counts = f"{len(checks)} checks of {len(gw.gates_in(net))} gates"
    print(f"the checks alone: {1e6 * statistics.median(alone):.0f} us for {counts}, {share:.2%}")
    write_json(
        options.out,
        {
            "environment": environment(torch.device("cpu")),
            "gates": len(gw.gates_in(net)),
            "checks": len(checks),
            "ratio": {"median": median, "low": low, "high": high, "values": ratios},
            "rounds_s": rounds,
            "check_s": alone,
        },
    )


if __name__ == "__main__":
    main()
