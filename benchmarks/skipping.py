"""Measure the time and the multiply-adds saved by skipping closed filters of a ResNet-50 on the CPU.

    python benchmarks/skipping.py [--threads 2] [--rounds 9] [--pairs 30] [--tables skipping,auto] [--out FILE]

The network is a ResNet-50 at 224x224 with inner sites and groups of 8 filters; a share of each layer's groups is open
at random. The images are 8 images with 8 different patterns, one at a time, and batches of 8 images with 4 patterns.
A pattern is the set of open filters. All forms run in turn, and each round gives one ratio. Dense is the faster of
contiguous and channels_last, with batch norms folded. "reused" has the weights of all patterns in its cache; "picked"
has no cache and selects the weights for every image. The gater is not included: the benchmark measures how much of
the saved multiply-adds becomes saved time.

The second table compares `mode="auto"` with mask mode for different shares of open gates, with new patterns only.
"""

import argparse
import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gatewise as gw
from gatewise.core.files import write_json
from gatewise.graph.measure import Latency, environment, interleaved_latency
from gatewise.inference import SkippingNet, folded
from gatewise.inference.compaction import Constant

IMAGES = 8
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def gater_net(model: str, group_size: int) -> gw.GaterNet:
    backbone = gw.make_model(model, seed=0).eval()
    return gw.GaterNet(backbone, group_size=group_size, gater=lambda gates: Constant([1.0] * gates)).eval()


def pattern(net: gw.GaterNet, share: float, generator: torch.Generator) -> Tensor:
    """Return random gates, (1, gate_count), with the same share open in each layer."""
    gates = torch.zeros(1, net.gate_count)
    for site in net.sites:
        chosen = torch.randperm(site.gates, generator=generator)[: round(share * site.gates)]
        gates[0, site.first + chosen] = 1
    return gates


def channels_last(network: nn.Module) -> Callable[[Tensor], Any]:
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return lambda x: other(x.contiguous(memory_format=torch.channels_last))


def through(form: Callable[..., Any], images: list[Tensor], gates: list[Tensor] | None = None) -> Callable[[], None]:
    """Return a function that runs the images one after another."""

    def call() -> None:
        for number, x in enumerate(images):
            form(x) if gates is None else form(x, gates[number])

    return call


def quartiles(latency: Latency) -> dict[str, float]:
    return {"median": latency.median_s, "low": latency.low_s, "high": latency.high_s}


def saved(net: gw.GaterNet, share: float, batch: int, rounds: int) -> dict[str, Any]:
    """Return the ratios dense / skipped of time and multiply-adds."""
    generator = torch.Generator().manual_seed(0)
    patterns = [pattern(net, share, generator) for _ in range(IMAGES)]
    images = list(torch.randn(IMAGES * batch, 3, 224, 224, generator=generator).split(batch))
    gates = patterns
    if batch > 1:
        images, gates = images[:1], [torch.cat([patterns[n % 4] for n in range(batch)])]
    dense = folded(net.backbone)
    ways = {
        "contiguous": through(dense, images),
        "channels_last": through(channels_last(dense), images),
        "masked": through(net, images, gates),
        "reused": through(gw.skip_closed_filters(net, "skip"), images, gates),
        "picked": through(gw.skip_closed_filters(net, "skip", memory=0), images, gates),
    }
    with torch.inference_mode():
        times = interleaved_latency(ways, rounds=rounds)
    best = min((times["contiguous"], times["channels_last"]), key=lambda latency: latency.median_s)
    macs = net.dense_macs / float(net.executed_macs(torch.cat(gates)).mean())
    row: dict[str, Any] = {"open": share, "batch": batch, "macs_ratio": macs}
    row["ms"] = {name: 1e3 * latency.median_s / len(images) for name, latency in times.items()}
    for name in ("reused", "picked"):
        row[name] = quartiles(best.times(times[name]))
        row[name]["of_macs_ratio"] = row[name]["median"] / macs
    return row


def auto_against_mask(net: gw.GaterNet, fast: SkippingNet, share: float, batch: int, pairs: int) -> dict[str, Any]:
    """Return the ratio of auto mode's time to mask mode's, with new patterns in every call."""
    generator = torch.Generator().manual_seed(1)
    size = net.input_shape[1:]
    images = torch.randn(batch, 3, *size, generator=generator)
    new = [
        torch.cat([pattern(net, share, generator) for _ in range(batch)]) for _ in range(8 * pairs + 16)
    ]  # the timer makes warm-up calls
    turn = iter(new)
    with torch.inference_mode():
        ways = {"auto": lambda: fast(images, next(turn)), "mask": lambda: net(images, next(turn))}
        times = interleaved_latency(ways, rounds=pairs, seconds_per_turn=0.0)
    return {
        "open": share,
        "batch": batch,
        "ms": {name: 1e3 * latency.median_s for name, latency in times.items()},
        "auto_over_mask": quartiles(times["auto"].times(times["mask"])),
    }


def skipping_table(rounds: int, pairs: int) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    net = gater_net("resnet50", 8)
    for share, batch in ((0.5, 1), (0.25, 1), (0.5, 8), (0.25, 8)):
        yield saved(net, share, batch, rounds)


def auto_table(rounds: int, pairs: int) -> Iterator[dict[str, Any]]:  # noqa: ARG001
    for model, group_size in (("resnet18_cifar:width=32", 1), ("resnet50", 8)):
        net = gater_net(model, group_size)
        for batch, share in itertools.product((1, 8), SHARES):
            fast = gw.skip_closed_filters(net, "auto")  # it keeps what the first batch of a size shows
            yield {"model": model, **auto_against_mask(net, fast, share, batch, pairs)}


TABLES = {"skipping": skipping_table, "auto": auto_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--tables", default="skipping,auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"environment": environment(), "rounds": arguments.rounds, "pairs": arguments.pairs}
    for name in arguments.tables.split(","):
        results[name] = []
        for row in TABLES[name](arguments.rounds, arguments.pairs):
            results[name].append(row)
            print(json.dumps(row), flush=True)
    if arguments.out is not None:
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
